//! Proofs of a system: made, checked, and as bytes.

use p3_field::{BasedVectorSpace, ExtensionField, PrimeCharacteristicRing, PrimeField64};
use plonky2_elements::{from_circuit, to_circuit};
use rand::CryptoRng;
use zklora_circuit::circuit::CircuitError;
use zklora_circuit::commitment::Opening as Weights;
use zklora_circuit::parameters::Security;
use zklora_circuit::transcript::{
    self, PadCommitment, Pads, TranscriptCircuit, TranscriptError, TranscriptShape, TranscriptVerifier,
};
use zklora_proto::Commitment;
use zklora_proto::limits::MAX_PROOF_BYTES;

use crate::commitment::{self, Committed, Opening, OpeningError, uniform};
use crate::conversation::{Conversation, Form, Operand, Shape};
use crate::fiat_shamir::FiatShamir;
use crate::field::{E, F, ORDER, Secret, coordinates, eq_at, from_coordinates, signed};
use crate::layout::FACE_BITS;
use crate::merkle::{self, Digest};
use crate::relation::BOUND_BITS;
use crate::scene::Scene;
use crate::system::System;
use crate::witness::Witness;

/// What a proof is about, beside its system: all of it is absorbed before anything else.
#[derive(Debug, Clone, Copy)]
pub struct Statement<'a> {
    /// What the caller wants the proof to be bound to.
    pub context: &'a [u8],
    /// C_m of each module of the adapter.
    pub commitments: &'a [Commitment],
    /// The public results.
    pub results: &'a [i64],
}

/// A proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    pads: PadCommitment,
    cap: Vec<Digest>,
    ciphertexts: Vec<E>,
    /// V.
    value: E,
    opening: Opening,
    /// plonky2's.
    transcript: Vec<u8>,
}

/// A system with the circuit that proves its conversation.
pub struct Prover<'a> {
    system: &'a System,
    shape: Shape,
    circuit: TranscriptCircuit,
}

/// A system with the circuit that verifies its conversation.
pub struct Verifier<'a> {
    system: &'a System,
    shape: Shape,
    circuit: TranscriptVerifier,
}

/// Why there is no proof.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProveError {
    /// Commitments, openings or results are not as many as the system has.
    #[error("the statement has {found} {what}, expected {expected}")]
    Statement {
        /// Of what.
        what: &'static str,
        /// Found.
        found: usize,
        /// Expected.
        expected: usize,
    },
    /// The statement is false. What of it is not said: it is a secret.
    #[error("the committed values do not make the statement true")]
    FalseStatement,
    /// One in 2^120 proofs would not hide its witness.
    #[error("the challenges of this attempt do not hide the witness: try again")]
    Unlucky,
    /// plonky2 failed.
    #[error(transparent)]
    Transcript(TranscriptError),
}

/// Why a proof was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// Commitments or results are not as many as the system has.
    #[error("the statement has {found} {what}, expected {expected}")]
    Statement {
        /// Of what.
        what: &'static str,
        /// Found.
        found: usize,
        /// Expected.
        expected: usize,
    },
    /// The bytes are no proof of this system.
    #[error("the proof is malformed: {0}")]
    Malformed(&'static str),
    /// The commitment to the cells is not opened.
    #[error("the sealed proof does not show its statement: {0}")]
    Opening(#[from] OpeningError),
    /// The conversation is not shown to hold.
    #[error("the sealed proof does not show its statement: {0}")]
    Transcript(#[from] TranscriptError),
}

/// What one step of a proof is worth.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// The step.
    pub name: &'static str,
    /// Minus the logarithm of the chance that a false statement passes it.
    pub bits: f64,
}

impl<'a> Prover<'a> {
    /// Builds the circuit.
    pub fn new(system: &'a System) -> Result<Self, CircuitError> {
        let shape = system.shape();
        let circuit = TranscriptCircuit::build(Security::Standard, &transcript_shape(system, &shape))?;
        Ok(Self { system, shape, circuit })
    }

    /// What a verifier needs.
    pub fn verifier(&self) -> Verifier<'a> {
        Verifier { system: self.system, shape: self.shape.clone(), circuit: self.circuit.verifier() }
    }

    /// Logarithm of the rows of the circuit.
    pub fn degree_bits(&self) -> usize {
        self.circuit.degree_bits()
    }

    /// Messages and products of the conversation.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Proves a statement. `rng` has to be the operating system's, or seeded from it, but in tests: pads, salts and masks of two proofs must never agree. The witness has all tensors filled in; it is consumed, as pads and masks are for one proof.
    pub fn prove(
        &self,
        statement: Statement<'_>,
        mut witness: Witness,
        openings: &[&Weights],
        rng: &mut impl CryptoRng,
    ) -> Result<Proof, ProveError> {
        let system = self.system;
        check_statement(system, statement)
            .and_then(|()| equal("openings", openings.len(), system.modules().len()))
            .map_err(|(what, found, expected)| ProveError::Statement { what, found, expected })?;
        let layout = system.layout();
        system.lookups().count(layout, &mut witness.cells);
        witness.cells[layout.face()].iter_mut().for_each(|cell| *cell = uniform(rng));

        let pads = Pads::random(self.shape.messages, rng);
        let of_messages: Secret<E> =
            pads.values().iter().map(|&pad| from_circuit(pad)).collect::<Vec<_>>().into();
        let commitment = pads.commitment();
        let committed = Committed::new(layout.sizes, &witness.cells, rng);
        let cap = committed.cap();
        let fs = start(system, statement, &commitment, &cap);
        let mut scene = Scene::new(Conversation::prover(fs, &of_messages), layout, Some(&witness));
        let end = system.converse(&mut scene, statement.results);
        if !hides(layout.face, &end.point) {
            return Err(ProveError::Unlucky);
        }
        let (value, opening) = committed.open(&witness.cells, &end.point, scene.run.transcript());
        end.check(&mut scene.run, value);
        let weights: E = openings
            .iter()
            .flat_map(|opening| opening.hashed_weights())
            .zip(end.beta.powers())
            .map(|(weight, power)| power * signed(weight.into()))
            .sum();
        if scene.run.violated(weights).is_some() {
            return Err(ProveError::FalseStatement);
        }
        let form = scene.run.form_at_last();
        let (ciphertexts, fs) = scene.run.end();
        let form = circuit_form(end.beta, &form);
        let transcript = transcript::prove(&self.circuit, openings, pads, &form, &fs.state(), rng)
            .map_err(ProveError::Transcript)?;
        Ok(Proof { pads: commitment, cap, ciphertexts, value, opening, transcript })
    }
}

impl<'a> Verifier<'a> {
    /// Builds the circuit and keeps what a verifier needs.
    pub fn new(system: &'a System) -> Result<Self, CircuitError> {
        Ok(Prover::new(system)?.verifier())
    }

    /// Checks a proof.
    pub fn verify(&self, statement: Statement<'_>, bytes: &[u8]) -> Result<(), VerifyError> {
        let system = self.system;
        check_statement(system, statement).map_err(|(what, found, expected)| VerifyError::Statement {
            what,
            found,
            expected,
        })?;
        let proof = Proof::parse(system, &self.shape, bytes)?;
        let layout = system.layout();
        let fs = start(system, statement, &proof.pads, &proof.cap);
        let mut scene = Scene::new(Conversation::verifier(fs, &proof.ciphertexts), layout, None);
        let end = system.converse(&mut scene, statement.results);
        let fs = scene.run.transcript();
        commitment::verify(&layout.sizes, &proof.cap, &end.point, proof.value, &proof.opening, fs)?;
        end.check(&mut scene.run, proof.value);
        let form = scene.run.form_at_last();
        let (_, fs) = scene.run.end();
        let form = circuit_form(end.beta, &form);
        let commitments = statement.commitments;
        transcript::verify(&self.circuit, commitments, &proof.pads, &form, &fs.state(), &proof.transcript)?;
        Ok(())
    }

    /// What the steps of a proof are worth, and all together.
    pub fn soundness(&self) -> (Vec<Item>, f64) {
        let field = 2.0 * (ORDER as f64).log2();
        let sizes = &self.system.layout().sizes;
        let weights: usize =
            self.system.modules().iter().map(|shape| zklora_circuit::commitment::hashed_count(*shape)).sum();
        // No more checks than messages: each is about one that was said for it.
        // A round or a point has degree 3 or as many coordinates at most, and one message or more.
        let rounds = (3 * self.shape.messages) as f64;
        let items = vec![
            Item { name: "lookups", bits: field - self.system.lookups().sum_bits() },
            Item { name: "sumchecks and points", bits: field - rounds.log2() },
            Item { name: "committed weights", bits: field - (weights.max(1) as f64).log2() },
            Item { name: "checks in one form", bits: field - (self.shape.messages as f64).log2() },
            Item { name: "cells to one codeword", bits: sizes.proximity_bits() },
            Item { name: "queries", bits: f64::from(commitment::QUERY_BITS + commitment::GRINDING_BITS) },
            Item { name: "transcript circuit", bits: self.circuit.soundness().provable.bits },
        ];
        let chance: f64 = items.iter().map(|item| (-item.bits).exp2()).sum();
        (items, -chance.log2())
    }
}

impl Conversation<'_> {
    /// All checks as one form, at a challenge after all that was said.
    fn form_at_last(&mut self) -> Form {
        let rho = self.challenge("rho");
        self.form(rho)
    }
}

/// The transcript before the conversation.
fn start(system: &System, statement: Statement<'_>, pads: &PadCommitment, cap: &[Digest]) -> FiatShamir {
    let mut fs = FiatShamir::new();
    fs.absorb("system", &system.digest());
    fs.absorb("context", statement.context);
    let elements = statement.commitments.iter().flat_map(|commitment| commitment.elements());
    fs.absorb("commitments", &elements.flat_map(u64::to_le_bytes).collect::<Vec<_>>());
    let results = statement.results.iter().copied().flat_map(i64::to_le_bytes);
    fs.absorb("results", &results.collect::<Vec<_>>());
    fs.absorb("pads", &pads.to_bytes());
    fs.absorb("cells", cap.as_flattened());
    fs
}

fn check_statement(system: &System, statement: Statement<'_>) -> Result<(), (&'static str, usize, usize)> {
    equal("commitments", statement.commitments.len(), system.modules().len())?;
    equal("results", statement.results.len(), system.results())?;
    // Sums stay below this; a number beyond it could be one of them modulo p.
    let possible = statement.results.iter().filter(|result| result.unsigned_abs() >> BOUND_BITS == 0);
    equal("possible results", possible.count(), system.results())
}

fn equal(what: &'static str, found: usize, expected: usize) -> Result<(), (&'static str, usize, usize)> {
    if found == expected { Ok(()) } else { Err((what, found, expected)) }
}

/// Whether the random cells make V uniform: their weights span E over F.
fn hides(face: usize, point: &[E]) -> bool {
    let (hi, lo) = point.split_at(point.len() - FACE_BITS);
    eq_at(hi, face >> FACE_BITS) != E::ZERO && lo.iter().any(|x| !ExtensionField::<F>::is_in_basefield(x))
}

fn transcript_shape(system: &System, shape: &Shape) -> TranscriptShape {
    let operand = |operand| match operand {
        Operand::Pad(message) => transcript::Operand::Message(message),
        Operand::Weights => transcript::Operand::Weights,
        Operand::One => transcript::Operand::One,
    };
    TranscriptShape {
        modules: system.modules(),
        messages: shape.messages,
        products: shape.products.iter().map(|&(x, y)| (operand(x), operand(y))).collect(),
    }
}

fn circuit_form(beta: E, form: &Form) -> transcript::Form {
    transcript::Form {
        beta: to_circuit(beta),
        lambda: form.lambda.iter().copied().map(to_circuit).collect(),
        kappa: form.kappa.iter().copied().map(to_circuit).collect(),
        target: to_circuit(form.target),
    }
}

/// Elements of one library as those of the other: the same field.
mod plonky2_elements {
    use super::{E, coordinates, from_coordinates};
    use p3_field::PrimeCharacteristicRing;

    pub(super) fn to_circuit(x: E) -> zklora_circuit::E {
        zklora_circuit::element(coordinates(x))
    }

    pub(super) fn from_circuit(x: zklora_circuit::E) -> E {
        // Coordinates are canonical.
        from_coordinates(zklora_circuit::coordinates(x)).unwrap_or(E::ZERO)
    }
}

impl Proof {
    /// The bytes of a proof: all parts one after another, lengths following from the system.
    ///
    /// Integers and elements of F are eight bytes, little-endian; an element of E is two of F. Commitment to the pads, cap, ciphertexts, V, the mask's value, combination, nonce,
    /// then of each opened row values, salt and path; the rest is plonky2's proof.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.pads.to_bytes().to_vec();
        bytes.extend(self.cap.as_flattened());
        let mut elements = |elements: &[E]| {
            bytes.extend(elements.iter().flat_map(|&x| coordinates(x)).flat_map(u64::to_le_bytes));
        };
        elements(&self.ciphertexts);
        elements(&[self.value, self.opening.mask]);
        elements(&self.opening.combination);
        bytes.extend(self.opening.nonce.to_le_bytes());
        for row in &self.opening.rows {
            bytes.extend(row.values.iter().flat_map(|x| x.as_canonical_u64().to_le_bytes()));
            bytes.extend(row.salt);
            bytes.extend(row.path.as_flattened());
        }
        bytes.extend(&self.transcript);
        bytes
    }

    fn parse(system: &System, shape: &Shape, bytes: &[u8]) -> Result<Self, VerifyError> {
        let sizes = &system.layout().sizes;
        let mut reader = Reader(bytes);
        let pads = PadCommitment::from_bytes(&reader.hash()?).ok_or(VerifyError::Malformed(
            "the commitment to the pads has an element that is not canonical",
        ))?;
        let cap = reader.hashes(merkle::cap_len(sizes.height_bits()))?;
        let ciphertexts = reader.elements(shape.messages)?;
        let [value, mask] = [reader.element()?, reader.element()?];
        let combination = reader.elements(sizes.coefficients())?;
        let nonce = reader.word()?;
        let rows = (0..sizes.queries)
            .map(|_| {
                let values =
                    (0..sizes.columns + commitment::MASK).map(|_| reader.base()).collect::<Result<_, _>>()?;
                let salt = reader.hash()?;
                let path = reader.hashes(merkle::path_len(sizes.height_bits()))?;
                Ok(commitment::OpenedRow { values, salt, path })
            })
            .collect::<Result<_, VerifyError>>()?;
        let opening = Opening { mask, combination, nonce, rows };
        if reader.0.len() as u64 > MAX_PROOF_BYTES {
            return Err(VerifyError::Malformed("it has too many bytes"));
        }
        Ok(Self { pads, cap, ciphertexts, value, opening, transcript: reader.0.to_vec() })
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], VerifyError> {
        let (first, rest) =
            self.0.split_first_chunk::<N>().ok_or(VerifyError::Malformed("it has too few bytes"))?;
        self.0 = rest;
        Ok(*first)
    }

    fn word(&mut self) -> Result<u64, VerifyError> {
        Ok(u64::from_le_bytes(self.take()?))
    }

    fn hash(&mut self) -> Result<Digest, VerifyError> {
        self.take()
    }

    fn hashes(&mut self, count: usize) -> Result<Vec<Digest>, VerifyError> {
        self.bounded(count, 32)?;
        (0..count).map(|_| self.hash()).collect()
    }

    fn base(&mut self) -> Result<F, VerifyError> {
        let word = self.word()?;
        match word < ORDER {
            true => Ok(F::from_u64(word)),
            false => Err(VerifyError::Malformed("an element is not canonical")),
        }
    }

    fn element(&mut self) -> Result<E, VerifyError> {
        let parts = [self.base()?, self.base()?];
        Ok(E::from_basis_coefficients_fn(|i| parts[i]))
    }

    fn elements(&mut self, count: usize) -> Result<Vec<E>, VerifyError> {
        self.bounded(count, 16)?;
        (0..count).map(|_| self.element()).collect()
    }

    /// Nothing is allocated for what is not there.
    fn bounded(&self, count: usize, bytes: usize) -> Result<(), VerifyError> {
        match count.checked_mul(bytes).is_some_and(|bytes| bytes <= self.0.len()) {
            true => Ok(()),
            false => Err(VerifyError::Malformed("it has too few bytes")),
        }
    }
}
