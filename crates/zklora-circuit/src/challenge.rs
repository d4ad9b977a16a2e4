//! The challenges α and β: drawn by hashing everything public, so that the prover cannot choose its deltas after them.

use zklora_proto::bundle::Plan;
use zklora_proto::{PROTOCOL_VERSION, SignedReceipt};

use crate::hash::next_element;
use crate::security::CircuitId;
use crate::{E, F};

/// The points at which a session's matrix products are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Challenges {
    /// Rows are weighted with α^t.
    pub alpha: E,
    /// Outputs are weighted with β^j.
    pub beta: E,
}

impl Challenges {
    /// The challenges of a session.
    ///
    /// The receipt's exact bytes bind the manifest (and with it every commitment, name, shape and scale), the session and
    /// the transcript (every X and every Y); beside them stand the plan and the circuit of each batch. Hashed, all integers
    /// little-endian: version (u32), length of the receipt (u64), the receipt, number of batches (u64), and for each
    /// batch its circuit id, its number of modules (u64) and their indices (u64 each). From BLAKE3's output stream come
    /// α0, α1, β0, β1, eight bytes each, little-endian, where values not below p are skipped.
    pub fn derive(receipt: &SignedReceipt, plan: &Plan, circuits: &[CircuitId]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("zklora v1 fold challenge");
        hasher.update(&PROTOCOL_VERSION.to_le_bytes());
        hasher.update(&(receipt.bytes().len() as u64).to_le_bytes());
        hasher.update(receipt.bytes());
        hasher.update(&(plan.batches.len() as u64).to_le_bytes());
        for (batch, circuit) in plan.batches.iter().zip(circuits) {
            hasher.update(circuit.as_bytes());
            hasher.update(&(batch.len() as u64).to_le_bytes());
            for &module in batch {
                hasher.update(&(module as u64).to_le_bytes());
            }
        }
        let mut stream = hasher.finalize_xof();
        let mut element = || -> F { next_element(&mut stream) };
        let mut extension =
            || plonky2::field::extension::quadratic::QuadraticExtension([element(), element()]);
        Self { alpha: extension(), beta: extension() }
    }
}
