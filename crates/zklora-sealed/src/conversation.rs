//! The hidden conversation: what the prover says, under pads, and what has to hold of it.
//!
//! Prover and verifier run the same text, that of [`System::converse`](crate::system::System), on a [`Conversation`]. The prover sends each message m as the ciphertext `c = m + pad`, whose
//! pad it has committed to; challenges are drawn from ciphertexts. Every check is a sum of messages and of products of two. For a last challenge ρ, the
//! powers of which weigh the checks, the whole conversation is therefore one quadratic form in the pads, `Σ λ_j·pad_j + Σ κ_t·x_t·y_t = target`: its coefficients come from ciphertexts and
//! challenges, and a plonky2 circuit ([`zklora_circuit::transcript`]) shows that it holds of the pads that were committed to.
//!
//! The idea of a padded transcript that a second proof checks is from M. Frigo, a. shelat, eprint 2024/2010. That a sum of checks hides a false one
//! with chance `checks/|E|` at most is Schwartz and Zippel's.

use p3_field::{Field, PrimeCharacteristicRing};

use crate::fiat_shamir::FiatShamir;
use crate::field::{E, Secret};

/// A message: what the prover said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message(usize);

/// An affine function of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Value(usize);

/// Who runs the conversation.
enum Side<'a> {
    /// Knows what is said.
    Prover { pads: &'a [E] },
    /// Reads ciphertexts.
    Verifier { given: &'a [E] },
    /// Wants to know how many messages and products there are; nobody said anything.
    Shape,
}

enum Node {
    Message(usize),
    Affine { constant: E, terms: Vec<(E, usize)> },
}

/// A sum that has to be zero.
struct Check {
    constant: E,
    terms: Vec<(E, usize)>,
    products: Vec<(E, usize, usize)>,
    /// Times what the circuit makes of the committed weights.
    weights: E,
}

/// One side of a conversation.
pub struct Conversation<'a> {
    side: Side<'a>,
    fs: FiatShamir,
    nodes: Vec<Node>,
    /// What nodes are, to the prover. Secret.
    plain: Secret<E>,
    /// The nodes of messages.
    messages: Vec<usize>,
    ciphertexts: Vec<E>,
    /// Ciphertexts that have been absorbed.
    absorbed: usize,
    checks: Vec<Check>,
}

/// An operand of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operand {
    /// The pad of this message.
    Pad(usize),
    /// The powers of β with the committed weights: see [`Conversation::check_weights`].
    Weights,
    /// One.
    One,
}

/// What a circuit for a conversation depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// Messages.
    pub messages: usize,
    /// Products, in the order of [`Form::kappa`].
    pub products: Vec<(Operand, Operand)>,
}

/// `Σ_j lambda[j]·pad_j + Σ_t kappa[t]·x_t·y_t = target`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Form {
    /// Of the pads.
    pub lambda: Vec<E>,
    /// Of the products.
    pub kappa: Vec<E>,
    /// What it is to be.
    pub target: E,
}

impl<'a> Conversation<'a> {
    /// The prover's side. There must be a pad for each message.
    pub fn prover(fs: FiatShamir, pads: &'a [E]) -> Self {
        Self::new(Side::Prover { pads }, fs)
    }

    /// The verifier's side. Ciphertexts beyond those given are zero: [`Conversation::shape`] says how many there are.
    pub fn verifier(fs: FiatShamir, given: &'a [E]) -> Self {
        Self::new(Side::Verifier { given }, fs)
    }

    /// The side of nobody, for the shape.
    pub fn of_nobody() -> Self {
        Self::new(Side::Shape, FiatShamir::new())
    }

    fn new(side: Side<'a>, fs: FiatShamir) -> Self {
        let (nodes, plain, messages, ciphertexts, checks) = Default::default();
        Self { side, fs, nodes, plain, messages, ciphertexts, absorbed: 0, checks }
    }

    /// Whether what is said is known here.
    pub fn is_prover(&self) -> bool {
        matches!(self.side, Side::Prover { .. })
    }

    /// Something public that takes time to compute: nobody wants it for a shape, where it is `blank`.
    pub fn public<T>(&self, blank: T, compute: impl FnOnce() -> T) -> T {
        match self.side {
            Side::Shape => blank,
            _ => compute(),
        }
    }

    /// Absorbs something public.
    pub fn absorb(&mut self, label: &'static str, bytes: &[u8]) {
        self.absorb_ciphertexts();
        self.fs.absorb(label, bytes);
    }

    fn absorb_ciphertexts(&mut self) {
        if self.absorbed < self.ciphertexts.len() {
            self.fs.absorb_elements("messages", &self.ciphertexts[self.absorbed..]);
            self.absorbed = self.ciphertexts.len();
        }
    }

    /// A challenge, after all that has been said.
    pub fn challenge(&mut self, label: &'static str) -> E {
        self.absorb_ciphertexts();
        self.fs.challenge(label)
    }

    /// `count` challenges.
    pub fn challenges(&mut self, label: &'static str, count: usize) -> Vec<E> {
        self.absorb_ciphertexts();
        self.fs.challenges(label, count)
    }

    /// The transcript after all that has been said.
    pub fn transcript(&mut self) -> &mut FiatShamir {
        self.absorb_ciphertexts();
        &mut self.fs
    }

    /// The next message; only the prover knows what it is.
    pub fn message(&mut self, say: impl FnOnce() -> E) -> Message {
        let index = self.messages.len();
        let ciphertext = match self.side {
            Side::Prover { pads } => {
                let message = say();
                self.plain.push(message);
                message + pads[index]
            }
            Side::Verifier { given } => given.get(index).copied().unwrap_or(E::ZERO),
            Side::Shape => E::ZERO,
        };
        self.ciphertexts.push(ciphertext);
        self.messages.push(self.nodes.len());
        self.nodes.push(Node::Message(index));
        Message(index)
    }

    /// A message as a value.
    pub fn value(&self, message: Message) -> Value {
        Value(self.messages[message.0])
    }

    /// `constant + Σ factor·value`.
    pub fn affine(&mut self, constant: E, terms: &[(E, Value)]) -> Value {
        if self.is_prover() {
            let sum = constant + terms.iter().map(|&(factor, value)| factor * self.plain[value.0]).sum::<E>();
            self.plain.push(sum);
        }
        let terms = terms.iter().map(|&(factor, value)| (factor, value.0)).collect();
        self.nodes.push(Node::Affine { constant, terms });
        Value(self.nodes.len() - 1)
    }

    /// What a value is, to the prover; zero to others.
    pub fn known(&self, value: Value) -> E {
        self.plain.get(value.0).copied().unwrap_or(E::ZERO)
    }

    /// `constant + Σ factor·value + Σ factor·message·message = 0` has to hold.
    pub fn check(&mut self, constant: E, terms: &[(E, Value)], products: &[(E, Message, Message)]) {
        self.checks.push(Check {
            constant,
            terms: terms.iter().map(|&(factor, value)| (factor, value.0)).collect(),
            products: products.iter().map(|&(factor, x, y)| (factor, x.0, y.0)).collect(),
            weights: E::ZERO,
        });
    }

    /// The value has to be `Σ_n β^n·w_n` over all committed weights, which the circuit computes.
    pub fn check_weights(&mut self, value: Value) {
        let terms = vec![(-E::ONE, value.0)];
        self.checks.push(Check { constant: E::ZERO, terms, products: Vec::new(), weights: E::ONE });
    }

    /// How many messages and which products there are.
    pub fn shape(&self) -> Shape {
        let products = self.checks.iter().flat_map(|check| {
            let of_weights = (check.weights != E::ZERO).then_some((Operand::Weights, Operand::One));
            let of_messages = check.products.iter().map(|&(_, x, y)| (Operand::Pad(x), Operand::Pad(y)));
            of_messages.chain(of_weights)
        });
        Shape { messages: self.messages.len(), products: products.collect() }
    }

    /// The first check that does not hold, to the prover. `weights` is what the circuit makes of the committed weights.
    pub fn violated(&self, weights: E) -> Option<usize> {
        self.checks.iter().position(|check| {
            let terms = check.terms.iter().map(|&(factor, node)| factor * self.plain[node]);
            let said = |message: usize| self.plain[self.messages[message]];
            let products = check.products.iter().map(|&(factor, x, y)| factor * said(x) * said(y));
            check.constant + terms.chain(products).sum::<E>() + check.weights * weights != E::ZERO
        })
    }

    /// All checks as one form, weighed with powers of a challenge.
    pub fn form(&self, rho: E) -> Form {
        let mut adjoints = vec![E::ZERO; self.nodes.len()];
        let mut lambda = vec![E::ZERO; self.messages.len()];
        let (mut kappa, mut sum, mut weight) = (Vec::new(), E::ZERO, E::ONE);
        for check in &self.checks {
            sum += weight * check.constant;
            for &(factor, node) in &check.terms {
                adjoints[node] += weight * factor;
            }
            for &(factor, x, y) in &check.products {
                // (c_x - pad_x)·(c_y - pad_y)
                let factor = weight * factor;
                let (c_x, c_y) = (self.ciphertexts[x], self.ciphertexts[y]);
                sum += factor * c_x * c_y;
                lambda[x] -= factor * c_y;
                lambda[y] -= factor * c_x;
                kappa.push(factor);
            }
            if check.weights != E::ZERO {
                kappa.push(weight * check.weights);
            }
            weight *= rho;
        }
        for (index, node) in self.nodes.iter().enumerate().rev() {
            let adjoint = adjoints[index];
            match node {
                Node::Message(message) => {
                    sum += adjoint * self.ciphertexts[*message];
                    lambda[*message] -= adjoint;
                }
                Node::Affine { constant, terms } => {
                    sum += adjoint * *constant;
                    for &(factor, node) in terms {
                        adjoints[node] += adjoint * factor;
                    }
                }
            }
        }
        Form { lambda, kappa, target: -sum }
    }

    /// Ends the conversation with its ciphertexts and transcript.
    pub fn end(mut self) -> (Vec<E>, FiatShamir) {
        self.absorb_ciphertexts();
        (self.ciphertexts, self.fs)
    }
}

/// The factors by which values at 0, 1, …, degree give the value at `point` of the polynomial through them.
pub(crate) fn lagrange(degree: usize, point: E) -> Vec<E> {
    (0..=degree)
        .map(|i| {
            let others = (0..=degree).filter(|&j| j != i);
            others
                .map(|j| {
                    let distance = E::from(crate::field::signed(i as i64 - j as i64));
                    (point - E::from_usize(j)) * distance.inverse()
                })
                .product()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::{F, extension};

    fn element(i: u64) -> E {
        extension(F::from_u64(i * i + 3), F::from_u64(5 * i + 1))
    }

    /// Says 6 and 7 and that their product is 42, by a detour.
    fn talk(run: &mut Conversation<'_>, second: u64) -> E {
        let x = run.message(|| E::from_u64(6));
        let challenge = run.challenge("c");
        let y = run.message(|| E::from_u64(second));
        let (value_x, value_y) = (run.value(x), run.value(y));
        let both = run.affine(E::ONE, &[(challenge, value_x), (E::TWO, value_y)]);
        let far = run.affine(E::ZERO, &[(E::TWO, both)]);
        // far - 2 - 2c·x - 4·y + x·y - 42
        let terms = [(E::ONE, far), (-challenge.double(), value_x), (-E::from_u64(4), value_y)];
        run.check(-E::from_u64(44), &terms, &[(E::ONE, x, y)]);
        run.check(-E::from_u64(36), &[], &[(E::ONE, x, x)]);
        run.challenge("rho")
    }

    #[test]
    fn the_form_holds_of_the_pads_if_all_checks_do() {
        let pads = [element(1), element(2)];
        for (second, holds) in [(7, true), (8, false)] {
            let mut run = Conversation::prover(FiatShamir::new(), &pads);
            let rho = talk(&mut run, second);
            let form = run.form(rho);
            assert_eq!(run.violated(E::ZERO), (!holds).then_some(0));
            let shape = run.shape();
            let of = |operand| match operand {
                Operand::Pad(i) => pads[i],
                Operand::Weights | Operand::One => E::ONE,
            };
            let linear: E = form.lambda.iter().zip(&pads).map(|(&l, &p)| l * p).sum();
            let products = form.kappa.iter().zip(&shape.products);
            let quadratic: E = products.map(|(&k, &(x, y))| k * of(x) * of(y)).sum();
            assert_eq!(linear + quadratic == form.target, holds);

            let (ciphertexts, transcript) = run.end();
            let mut verifier = Conversation::verifier(FiatShamir::new(), &ciphertexts);
            assert_eq!(talk(&mut verifier, 0), rho);
            assert_eq!(verifier.form(rho), form);
            assert_eq!(verifier.end().1, transcript);
            let mut nobody = Conversation::of_nobody();
            let _ = talk(&mut nobody, 0);
            assert_eq!(nobody.shape(), shape);
        }
    }

    #[test]
    fn interpolation_is_exact() {
        let polynomial = |x: E| element(4) + x * (element(5) + x * (element(6) + x * element(7)));
        let point = element(9);
        let factors = lagrange(3, point);
        let value: E = factors.iter().enumerate().map(|(i, &f)| f * polynomial(E::from_usize(i))).sum();
        assert_eq!(value, polynomial(point));
    }
}
