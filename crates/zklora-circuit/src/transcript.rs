//! The circuit of a hidden transcript.
//!
//! An outer protocol, that of a sealed evaluation, hides each message under a pad that its prover committed to beforehand. All that its verifier has to know of the messages is then one quadratic form
//! in the pads. This circuit shows, for public coefficients:
//!
//! 1. the pads open their commitment: a sponge over a salt of eight elements and the pads, eight elements a block;
//! 2. A, B and a salt open the commitment `C_m` of each module, as in [`crate::circuit`];
//! 3. `Σ_j λ_j·pad_j + Σ_t κ_t·x_t·y_t = target`, where x and y are pads, 1, or `f = Σ_n β^n·w_n` over all committed weights in the order in which they are hashed
//!    ([`hashed_places`](crate::commitment::hashed_places)), module after module.
//!
//! Both commitments are opened exactly, by copy constraints. They are no terms of the form: a prover chooses its witness after the form's coefficients, and a sum over the commitments would
//! be one that it can search for.

mod pads;

use std::collections::HashSet;
use std::ops::Range;

use plonky2::field::types::{Field, PrimeField64};
use plonky2::plonk::circuit_builder::CircuitBuilder;
use plonky2::plonk::circuit_data::{CircuitConfig, CircuitData, VerifierCircuitData};
use plonky2::util::serialization::Write;
use rand::CryptoRng;
use zklora_proto::{Commitment, ModuleShape};

use self::pads::{MESSAGES_PER_BLOCK, PadRow, pad_header, pad_rows};
pub use self::pads::{PadCommitment, Pads};
use crate::circuit::{CircuitError, PUBLIC_INPUTS, add_sponge, connect};
use crate::commitment::{Opening, header};
use crate::fold::signed;
use crate::gate::instance::{CIRCUIT_WIRES, Instance, InstanceGate, InstanceRows, digest};
use crate::gate::pads as gate;
use crate::gate::pads::{PADS, PERMUTATIONS, PadGate, WIRE_PADS};
use crate::gate::poseidon::SBOXES;
use crate::gate::product::{self, ProductGate, SLOTS, wire_x, wire_y};
use crate::gate::weight::{
    BIAS, CAPACITY, DIGITS, Grid, WEIGHTS, WIRE_ACC_IN, WIRE_ACC_OUT, WORDS, WeightGate, wire_q,
};
use crate::hash::Blake3Config;
use crate::layout::{Layout, PUBLIC_C, PUBLIC_HEADER, PUBLIC_S, PUBLIC_ZERO, flat};
use crate::masking::{Accounting, Masking};
use crate::parameters::{MAX_DEGREE_BITS, MaskingCounts, Security};
use crate::prove::{Contradictions, Filler, ModuleRows, prove_witness};
use crate::security::{Parameters, Soundness};
use crate::verify::{Refusal, check_proof};
use crate::{D, E, F};

/// The most messages of a transcript.
pub const MAX_MESSAGES: usize = 1 << 16;
/// The most products of a transcript.
pub const MAX_PRODUCTS: usize = 1 << 14;

/// What the circuit of a transcript depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TranscriptShape {
    /// Modules whose weights it opens; none for a transcript that has nothing to do with an adapter.
    pub modules: Vec<ModuleShape>,
    /// Messages, so many pads.
    pub messages: usize,
    /// The operands of each product.
    pub products: Vec<(Operand, Operand)>,
}

/// An operand of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operand {
    /// The pad of this message.
    Message(usize),
    /// f; zero without modules.
    Weights,
    /// One.
    One,
}

/// The coefficients of a form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Form {
    /// β, of f.
    pub beta: E,
    /// λ, one for each message.
    pub lambda: Vec<E>,
    /// κ, one for each product.
    pub kappa: Vec<E>,
    /// What the form has to be.
    pub target: E,
}

/// Where everything is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rows {
    layout: Layout,
    /// The row of the pads' commitment and the target.
    public: usize,
    messages: usize,
    products: Vec<(Operand, Operand)>,
}

impl Rows {
    fn new(shape: &TranscriptShape) -> Self {
        let layout = Layout::new(&shape.modules);
        let public = layout.end();
        Self { layout, public, messages: shape.messages, products: shape.products.clone() }
    }

    /// The row of one.
    fn one(&self) -> usize {
        self.public + 1
    }

    fn pads(&self) -> Range<usize> {
        let first = self.one() + 1;
        first..first + pad_rows(self.messages)
    }

    fn products(&self) -> Range<usize> {
        let first = self.pads().end;
        first..first + self.products.len().div_ceil(SLOTS)
    }

    /// Rows whose wires repeat their public values.
    fn copied(&self) -> HashSet<usize> {
        let publics = self.layout.modules.iter().map(|module| module.public);
        self.layout.powers().chain(publics).chain([self.public, self.one()]).collect()
    }

    fn instance_columns(&self) -> usize {
        self.layout.instance_columns().max(PADS).max(2 * SLOTS)
    }

    /// All rows of weights but those of salts, in the order in which they are hashed.
    fn weights(&self) -> impl DoubleEndedIterator<Item = (usize, Grid)> + '_ {
        let modules = self.layout.modules.iter();
        modules.flat_map(|module| (module.salt() + 1..module.weights().end).map(|row| (row, module.grid)))
    }

    /// Where an operand is.
    fn operand(&self, operand: Operand) -> (usize, usize) {
        match operand {
            Operand::One => (self.one(), 0),
            Operand::Weights => match self.weights().next() {
                Some((row, _)) => (row, WIRE_ACC_OUT),
                None => (self.public, PUBLIC_ZERO),
            },
            Operand::Message(message) => {
                let element = WORDS + 2 * message;
                (self.pads().start + element / PADS, WIRE_PADS + element % PADS)
            }
        }
    }

    fn instance(
        &self,
        commitments: &[Commitment],
        pads: &PadCommitment,
        form: &Form,
        binding: &[u8; 32],
    ) -> Instance {
        let mut all = Vec::new();
        let mut rows = |rows, values| all.push(InstanceRows { rows, values });
        let beta = form.beta;
        for (first, powers) in self.layout.all_powers(beta) {
            rows(vec![first], powers);
        }
        for (module, commitment) in self.layout.modules.iter().zip(commitments) {
            let mut values = header(module.shape).map(F::from_canonical_u64).to_vec();
            values.extend([F::ZERO; 2]);
            values.extend(commitment.elements().map(F::from_canonical_u64));
            rows(vec![module.public], values);
            let powers: Vec<E> = beta.powers().take(module.grid.entries()).collect();
            let of_weights = [flat(&[beta.exp_u64(WEIGHTS as u64)]), flat(&powers)].concat();
            rows((module.salt() + 1..module.weights().end).collect(), of_weights);
        }
        let mut values = pad_header(self.messages).to_vec();
        values.extend([F::ZERO; 2]);
        values.extend(pads.0);
        values.extend(form.target.0);
        rows(vec![self.public], values);
        rows(vec![self.one()], flat(&[E::ONE]));
        // The salt has no factors.
        let lambda = [&[E::ZERO; MESSAGES_PER_BLOCK], &form.lambda[..]].concat();
        for (row, lambda) in self.pads().zip(lambda.chunks(PADS / 2)) {
            rows(vec![row], flat(lambda));
        }
        for (row, kappa) in self.products().zip(form.kappa.chunks(SLOTS)) {
            rows(vec![row], flat(kappa));
        }
        let words =
            binding.as_chunks::<4>().0.iter().map(|word| F::from_canonical_u32(u32::from_le_bytes(*word)));
        let commitments = commitments.iter().flat_map(|c| c.elements().map(F::from_canonical_u64));
        let coefficients = [form.beta, form.target].into_iter();
        let coefficients = coefficients.chain(form.lambda.iter().copied()).chain(form.kappa.iter().copied());
        let values = words.chain(pads.0).chain(commitments).chain(coefficients.flat_map(|x| x.0));
        Instance { digest: digest("zklora v1 transcript instance", values), rows: all }
    }

    fn fits(&self, commitments: usize, form: &Form) -> Result<(), TranscriptError> {
        let expected = [self.layout.modules.len(), self.messages, self.products.len()];
        let found = [commitments, form.lambda.len(), form.kappa.len()];
        match found == expected {
            true => Ok(()),
            false => Err(TranscriptError::Shape { found, expected }),
        }
    }
}

/// A built circuit, for proving.
pub struct TranscriptCircuit {
    data: CircuitData<F, Blake3Config, D>,
    rows: Rows,
    masking: Masking,
}

/// A built circuit, for verifying.
pub struct TranscriptVerifier {
    data: VerifierCircuitData<F, Blake3Config, D>,
    rows: Rows,
}

/// Why a proof was refused, or not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TranscriptError {
    /// The coefficients are of another shape.
    #[error(
        "the transcript has {found:?} modules, messages and products, expected {expected:?} and modules of the circuit's shapes"
    )]
    Shape {
        /// Modules, messages, products.
        found: [usize; 3],
        /// Those of the circuit.
        expected: [usize; 3],
    },
    /// The form does not hold of these pads and weights: nothing is proved.
    #[error("the transcript does not hold")]
    FalseStatement,
    /// The bytes are no proof of this circuit.
    #[error("the proof of the transcript is malformed: {0}")]
    Malformed(&'static str),
    /// The proof does not show the statement.
    #[error("the proof does not show that the transcript holds (plonky2: {0})")]
    Rejected(String),
    /// The proof is about other public values.
    #[error("the proof does not show that the transcript holds (its instance columns are others)")]
    Instance,
    /// plonky2 failed.
    #[error("plonky2: {0}")]
    Plonky2(String),
}

impl From<Refusal> for TranscriptError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Malformed(why) => Self::Malformed(why),
            Refusal::Rejected(why) => Self::Rejected(why),
            Refusal::Instance => Self::Instance,
        }
    }
}

impl TranscriptCircuit {
    /// Builds the circuit of a shape. The same shape gives the same circuit in every process.
    pub fn build(security: Security, shape: &TranscriptShape) -> Result<Self, CircuitError> {
        let rows = Rows::new(shape);
        let counts = MaskingCounts::new(security);
        // plonky2 adds one row for the public inputs and one for constants.
        let total = (rows.products().end + counts.rows()).max(counts.least_rows) + 2;
        let operand = |operand: &Operand| matches!(operand, Operand::Message(m) if *m >= shape.messages);
        if total > 1 << MAX_DEGREE_BITS
            || shape.messages > MAX_MESSAGES
            || shape.products.len() > MAX_PRODUCTS
            || shape.products.iter().any(|(x, y)| operand(x) || operand(y))
        {
            return Err(CircuitError::TooLarge { rows: total });
        }
        let first_mask = CIRCUIT_WIRES + rows.instance_columns();
        let config = CircuitConfig { num_wires: first_mask + counts.columns(), ..security.config() };
        let mut builder = CircuitBuilder::<F, D>::new(config);
        let id = id(security, shape);
        let words = id.as_chunks::<4>().0.iter().map(|word| F::from_canonical_u32(u32::from_le_bytes(*word)));
        builder.set_domain_separator(words.collect());
        rows.add_to(&mut builder);
        let mut masking = Masking::add_to(&mut builder, counts, first_mask, true);
        for _ in 0..PUBLIC_INPUTS {
            builder.add_virtual_public_input();
        }
        let mut data = builder.build::<Blake3Config>();
        masking.finish(&mut data);
        Accounting::of(&data, &masking)?.check()?;
        Ok(Self { data, rows, masking })
    }

    /// The part of the circuit that a verifier needs.
    pub fn verifier(&self) -> TranscriptVerifier {
        TranscriptVerifier { data: self.data.verifier_data(), rows: self.rows.clone() }
    }

    /// plonky2's digest of the built circuit.
    pub fn digest(&self) -> [u8; 32] {
        self.data.verifier_only.circuit_digest.0
    }

    /// Logarithm of the circuit's rows.
    pub fn degree_bits(&self) -> usize {
        self.data.common.degree_bits()
    }

    /// Rows before they are padded to a power of two, without the masking.
    pub fn rows(&self) -> usize {
        self.rows.products().end
    }
}

impl TranscriptVerifier {
    /// Builds the circuit of a shape and keeps what a verifier needs.
    pub fn build(security: Security, shape: &TranscriptShape) -> Result<Self, CircuitError> {
        Ok(TranscriptCircuit::build(security, shape)?.verifier())
    }

    /// What a proof of this circuit is worth.
    pub fn soundness(&self) -> Soundness {
        Soundness::new(&Parameters::new(&self.data.common, Vec::new()))
    }

    /// Logarithm of the circuit's rows.
    pub fn degree_bits(&self) -> usize {
        self.data.common.degree_bits()
    }
}

/// What a circuit is, before it is built.
fn id(security: Security, shape: &TranscriptShape) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("zklora v1 transcript circuit");
    hasher.update(&(security.name().len() as u64).to_le_bytes());
    hasher.update(security.name().as_bytes());
    let mut number = |x: u64| {
        hasher.update(&x.to_le_bytes());
    };
    number(shape.modules.len() as u64);
    for shape in &shape.modules {
        [shape.d_in(), shape.rank(), shape.d_out()].into_iter().for_each(|x| number(x as u64));
    }
    number(shape.messages as u64);
    number(shape.products.len() as u64);
    for operand in shape.products.iter().flat_map(|&(x, y)| [x, y]) {
        number(match operand {
            Operand::Message(message) => message as u64,
            Operand::Weights => u64::MAX,
            Operand::One => u64::MAX - 1,
        });
    }
    *hasher.finalize().as_bytes()
}

impl Rows {
    fn add_to(&self, builder: &mut CircuitBuilder<F, D>) {
        for _ in self.layout.powers() {
            builder.add_gate(InstanceGate, vec![]);
        }
        for module in &self.layout.modules {
            debug_assert_eq!(builder.num_gates(), module.public);
            builder.add_gate(InstanceGate, vec![]);
            for _ in module.weights() {
                builder.add_gate(WeightGate { grid: module.grid }, vec![]);
            }
            add_sponge(builder, module);
        }
        debug_assert_eq!(builder.num_gates(), self.public);
        for _ in [self.public, self.one()] {
            builder.add_gate(InstanceGate, vec![]);
        }
        for _ in self.pads() {
            builder.add_gate(PadGate, vec![]);
        }
        for _ in self.products() {
            builder.add_gate(ProductGate, vec![]);
        }
        debug_assert_eq!(builder.num_gates(), self.products().end);

        // f, by Horner's rule from the last row to the first.
        let zero = (self.public, PUBLIC_ZERO);
        let mut acc = zero;
        for (row, grid) in self.weights().rev() {
            connect::<2>(builder, acc, (row, WIRE_ACC_IN));
            for l in 0..grid.ranks {
                connect::<2>(builder, self.layout.power(grid, l), (row, wire_q(l)));
            }
            acc = (row, WIRE_ACC_OUT);
        }

        // The pads and their commitment.
        let mut carried = (self.public, PUBLIC_HEADER);
        let mut acc = zero;
        for row in self.pads() {
            connect::<CAPACITY>(builder, carried, (row, gate::WIRE_CAPACITY_IN));
            carried = (row, gate::WIRE_CAPACITY_OUT);
            connect::<2>(builder, acc, (row, gate::WIRE_ACC_IN));
            acc = (row, gate::WIRE_ACC_OUT);
        }
        connect::<CAPACITY>(builder, carried, (self.public, PUBLIC_C));

        for (row, operands) in self.products().zip(self.products.chunks(SLOTS)) {
            connect::<2>(builder, acc, (row, product::WIRE_ACC_IN));
            for (slot, &(x, y)) in operands.iter().enumerate() {
                connect::<2>(builder, self.operand(x), (row, wire_x(slot)));
                connect::<2>(builder, self.operand(y), (row, wire_y(slot)));
            }
            acc = (row, product::WIRE_ACC_OUT);
        }
        connect::<2>(builder, acc, (self.public, PUBLIC_S));
    }
}

/// The values of all rows, honest or not.
struct Values {
    modules: Vec<ModuleRows>,
    pads: Vec<PadRow>,
    /// After each row of pads, and then after each row of products.
    accumulators: Vec<E>,
}

impl Values {
    fn new(rows: &Rows, openings: &[&Opening], pads: &Pads, form: &Form) -> Self {
        let mut modules: Vec<ModuleRows> =
            openings.iter().map(|opening| ModuleRows::hashed(opening)).collect();
        let powers: Vec<E> = form.beta.powers().take(WEIGHTS + 1).collect();
        let mut f = E::ZERO;
        for row in modules.iter_mut().rev().flat_map(|module| module.rows[1..].iter_mut().rev()) {
            f *= powers[WEIGHTS];
            for (digits, &power) in row.digits.as_chunks::<DIGITS>().0.iter().zip(&powers) {
                let biased = digits.iter().rev().fold(0, |w, digit| 8 * w + digit);
                f += power * E::from(signed(biased as i64 - BIAS as i64));
            }
            row.acc_out = f;
        }
        let (pad_rows, _) = pads.sponge();
        let mut acc = E::ZERO;
        let mut accumulators = Vec::new();
        let lambda = [&[E::ZERO; MESSAGES_PER_BLOCK], &form.lambda[..]].concat();
        for (row, lambda) in pad_rows.iter().zip(lambda.chunks(PADS / 2)) {
            let pads = row.pads.as_chunks::<2>().0.iter();
            acc += pads.zip(lambda).map(|(&pad, &l)| l * plonky2_pair(pad)).sum::<E>();
            accumulators.push(acc);
        }
        let value = |operand| match operand {
            Operand::One => E::ONE,
            Operand::Weights => f,
            Operand::Message(message) => pads.values[message],
        };
        for (operands, kappa) in rows.products.chunks(SLOTS).zip(form.kappa.chunks(SLOTS)) {
            let products = operands.iter().zip(kappa);
            acc += products.map(|(&(x, y), &k)| k * value(x) * value(y)).sum::<E>();
            accumulators.push(acc);
        }
        Self { modules, pads: pad_rows, accumulators }
    }

    /// What the form is.
    fn sum(&self) -> E {
        self.accumulators.last().copied().unwrap_or(E::ZERO)
    }
}

fn plonky2_pair(pair: [F; 2]) -> E {
    plonky2::field::extension::quadratic::QuadraticExtension(pair)
}

/// Proves that a form holds of pads and of the weights that these openings have. `binding` is what the outer transcript ended with.
///
/// Fails before any work if it does not.
pub fn prove(
    circuit: &TranscriptCircuit,
    openings: &[&Opening],
    pads: Pads,
    form: &Form,
    binding: &[u8; 32],
    rng: &mut impl CryptoRng,
) -> Result<Vec<u8>, TranscriptError> {
    let rows = &circuit.rows;
    rows.fits(openings.len(), form)?;
    let shapes = openings.iter().zip(&rows.layout.modules).all(|(o, module)| o.shape() == module.shape);
    if !shapes || pads.values.len() != rows.messages {
        let expected = [rows.layout.modules.len(), rows.messages, rows.products.len()];
        let found = [openings.len(), pads.values.len(), form.kappa.len()];
        return Err(TranscriptError::Shape { found, expected });
    }
    let values = Values::new(rows, openings, &pads, form);
    if values.sum() != form.target {
        return Err(TranscriptError::FalseStatement);
    }
    let commitments: Vec<Commitment> = values.modules.iter().map(ModuleRows::commitment).collect();
    let instance = rows.instance(&commitments, &pads.commitment(), form, binding);
    prove_values(circuit, &values, &instance, Contradictions::Stop, rng)
        .map_err(|error| TranscriptError::Plonky2(error.to_string()))
}

/// Proves with these values: what is wrong with them shows when the proof is verified.
fn prove_values(
    circuit: &TranscriptCircuit,
    values: &Values,
    instance: &Instance,
    contradictions: Contradictions,
    rng: &mut impl CryptoRng,
) -> anyhow::Result<Vec<u8>> {
    let (data, rows) = (&circuit.data, &circuit.rows);
    loop {
        let copied = rows.copied();
        let mut filler = Filler::new(data, &circuit.masking, instance, &copied, contradictions)?;
        filler.set_modules(&rows.layout, &values.modules)?;
        for (row, pads) in rows.pads().zip(&values.pads) {
            filler.set(row, WIRE_PADS, pads.pads.iter().copied())?;
            debug_assert_eq!(pads.sboxes.len(), PERMUTATIONS * SBOXES);
            filler.set(row, gate::WIRE_SBOXES, pads.sboxes.iter().copied())?;
            filler.set(row, gate::WIRE_CAPACITY_MIDDLE, pads.middle)?;
            filler.set(row, gate::WIRE_CAPACITY_OUT, pads.capacity)?;
        }
        let (of_pads, of_products) = values.accumulators.split_at(values.pads.len());
        for (row, acc) in rows.pads().zip(of_pads) {
            filler.set(row, gate::WIRE_ACC_OUT, acc.0)?;
        }
        for (row, acc) in rows.products().zip(of_products) {
            filler.set(row, product::WIRE_ACC_OUT, acc.0)?;
        }
        let mut witness = filler.finish()?;
        circuit.masking.fill(&mut witness, rng)?;
        let proof = prove_witness(data, witness)?;
        // Two equal challenges would show a combination of constraints twice, which the masking counts once: 2^-62.
        let digest = &data.verifier_only.circuit_digest;
        let challenges = proof.get_challenges(proof.get_public_inputs_hash(), digest, &data.common)?;
        let alphas: HashSet<u64> =
            challenges.plonk_alphas.iter().map(|alpha| alpha.to_canonical_u64()).collect();
        if alphas.len() == challenges.plonk_alphas.len() {
            let mut bytes = Vec::new();
            bytes.write_proof(&proof.proof).map_err(|_| anyhow::anyhow!("the proof does not serialise"))?;
            return Ok(bytes);
        }
    }
}

/// Verifies that a form holds of the pads under a commitment and of the weights under these commitments, in the order of the circuit's modules.
pub fn verify(
    verifier: &TranscriptVerifier,
    commitments: &[Commitment],
    pads: &PadCommitment,
    form: &Form,
    binding: &[u8; 32],
    proof: &[u8],
) -> Result<(), TranscriptError> {
    verifier.rows.fits(commitments.len(), form)?;
    let instance = verifier.rows.instance(commitments, pads, form, binding);
    Ok(check_proof(&verifier.data, verifier.rows.instance_columns(), &instance, proof)?)
}

#[cfg(test)]
mod tests;
