//! Verifying a batch.

use plonky2::field::types::Field;
use plonky2::plonk::proof::{Proof, ProofWithPublicInputs};
use plonky2::util::serialization::{Buffer, Read, Write};
use zklora_proto::Commitment;

use crate::circuit::BatchVerifier;
use crate::fold::Fold;
use crate::gate::WEIGHTS;
use crate::hash::Blake3Config;
use crate::{D, E, F};

/// Why a proof was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
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
}

/// Verifies a proof for modules with these commitments and folds, in the order of the circuit's shapes.
pub fn verify(
    verifier: &BatchVerifier,
    modules: &[(&Commitment, &Fold)],
    beta: E,
    bytes: &[u8],
) -> Result<(), VerifyError> {
    let fits = modules.len() == verifier.shapes.len()
        && modules.iter().zip(&verifier.shapes).all(|((_, fold), shape)| fold.a.len() == shape.d_in());
    if !fits {
        return Err(VerifyError::Batch { found: modules.len(), expected: verifier.shapes.len() });
    }
    let mut buffer = Buffer::new(bytes);
    let proof: Proof<F, Blake3Config, D> = buffer
        .read_proof(&verifier.data.common)
        .map_err(|_| VerifyError::Malformed("it has too few bytes or lengths of another circuit"))?;
    if !buffer.unread_bytes().is_empty() {
        return Err(VerifyError::Malformed("it has bytes left over"));
    }
    // One proof has one encoding: field elements that are not canonical would give it others.
    let mut canonical = Vec::with_capacity(bytes.len());
    if canonical.write_proof(&proof).is_err() || canonical != bytes {
        return Err(VerifyError::Malformed("it is not in its canonical form"));
    }
    let proof = ProofWithPublicInputs { proof, public_inputs: public_inputs(modules, beta) };
    verifier.data.verify(proof).map_err(|error| VerifyError::Rejected(error.to_string()))
}

/// The public inputs, in the order that [`crate::circuit`] gives.
fn public_inputs(modules: &[(&Commitment, &Fold)], beta: E) -> Vec<F> {
    let mut inputs: Vec<F> = beta.powers().skip(1).take(WEIGHTS).flat_map(|power| power.0).collect();
    for (commitment, fold) in modules {
        inputs.extend(commitment.elements().map(F::from_canonical_u64));
        inputs.extend(fold.a.iter().flat_map(|x| x.0));
        inputs.extend(fold.s.0);
    }
    inputs
}
