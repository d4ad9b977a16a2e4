//! Verifying a batch.

use plonky2::field::types::Field;
use plonky2::plonk::circuit_data::VerifierCircuitData;
use plonky2::plonk::proof::{Proof, ProofWithPublicInputs};
use plonky2::util::serialization::{Buffer, Read, Write};
use zklora_proto::Commitment;

use crate::circuit::BatchVerifier;
use crate::fold::Fold;
use crate::gate::instance::{CIRCUIT_WIRES, Instance, Point};
use crate::hash::Blake3Config;
use crate::{D, E, F};

/// Why a proof was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The public data does not belong to this circuit.
    #[error("the batch has {found} modules, expected {expected} of the circuit's shapes")]
    Batch {
        /// Modules given.
        found: usize,
        /// Modules of the circuit.
        expected: usize,
    },
    /// The bytes are no proof of this circuit.
    #[error("the proof is malformed: {0}")]
    Malformed(&'static str),
    /// The proof does not show the statement.
    #[error("the proof does not show that these deltas are X·A·B of the committed adapter (plonky2: {0})")]
    Rejected(String),
    /// The proof is about other public values.
    #[error(
        "the proof does not show that these deltas are X·A·B of the committed adapter (its instance columns are others)"
    )]
    Instance,
}

/// Verifies a proof for modules with these commitments and folds, in the order of the circuit's shapes.
pub fn verify(
    verifier: &BatchVerifier,
    modules: &[(&Commitment, &Fold)],
    beta: E,
    bytes: &[u8],
) -> Result<(), VerifyError> {
    let layout = &verifier.layout;
    let fits = modules.len() == layout.modules.len()
        && modules.iter().zip(&layout.modules).all(|((_, fold), module)| fold.a.len() == module.shape.d_in());
    if !fits {
        return Err(VerifyError::Batch { found: modules.len(), expected: layout.modules.len() });
    }
    let instance = layout.instance(modules, beta);
    check_proof(&verifier.data, layout.instance_columns(), &instance, bytes)?;
    Ok(())
}

/// Why a proof shows nothing about an instance.
pub(crate) enum Refusal {
    Malformed(&'static str),
    Rejected(String),
    Instance,
}

impl From<Refusal> for VerifyError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Malformed(why) => Self::Malformed(why),
            Refusal::Rejected(why) => Self::Rejected(why),
            Refusal::Instance => Self::Instance,
        }
    }
}

/// Verifies the bytes of a proof of a circuit with these public values in its instance columns.
pub(crate) fn check_proof(
    data: &VerifierCircuitData<F, Blake3Config, D>,
    columns: usize,
    instance: &Instance,
    bytes: &[u8],
) -> Result<(), Refusal> {
    let mut buffer = Buffer::new(bytes);
    let proof: Proof<F, Blake3Config, D> = buffer
        .read_proof(&data.common)
        .map_err(|_| Refusal::Malformed("it has too few bytes or lengths of another circuit"))?;
    if !buffer.unread_bytes().is_empty() {
        return Err(Refusal::Malformed("it has bytes left over"));
    }
    // One proof has one encoding: field elements that are not canonical would give it others.
    let mut canonical = Vec::with_capacity(bytes.len());
    if canonical.write_proof(&proof).is_err() || canonical != bytes {
        return Err(Refusal::Malformed("it is not in its canonical form"));
    }
    let proof = ProofWithPublicInputs { proof, public_inputs: instance.public_inputs() };
    let rejected = |error: anyhow::Error| Refusal::Rejected(error.to_string());
    data.verify(proof.clone()).map_err(rejected)?;

    // What plonky2 does not know: the instance columns are the polynomials that the public values make.
    let (common, degree_bits) = (&data.common, data.common.degree_bits());
    let digest = &data.verifier_only.circuit_digest;
    let zeta =
        proof.get_challenges(proof.get_public_inputs_hash(), digest, common).map_err(rejected)?.plonk_zeta;
    if zeta.exp_power_of_2(degree_bits) == Point::ONE {
        return Err(Refusal::Instance);
    }
    let expected = instance.evaluate(columns, degree_bits, zeta);
    if proof.proof.openings.wires.get(CIRCUIT_WIRES..CIRCUIT_WIRES + columns) != Some(&expected[..]) {
        return Err(Refusal::Instance);
    }
    Ok(())
}
