//! The challenges α and β: drawn by hashing the signed receipt, so that the prover cannot choose its deltas after them.

use zklora_proto::{PROTOCOL_VERSION, SignedReceipt};

use crate::hash::next_element;
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
    /// the transcript (every X and every Y). The client's signature, which the contributor cannot make, leaves it one try for each
    /// receipt that the client signs. The plan is not hashed: it only groups statements that α and β have fixed, and each
    /// proof's own challenges bind its circuit and public values. Hashed, integers little-endian: version (u32), length
    /// of the receipt (u64), the receipt, the client's signature (64 bytes). From BLAKE3's output stream come α0, α1, β0, β1,
    /// eight bytes each, little-endian, where values not below p are skipped.
    pub fn derive(receipt: &SignedReceipt) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("zklora v2 fold challenge");
        hasher.update(&PROTOCOL_VERSION.to_le_bytes());
        hasher.update(&(receipt.bytes().len() as u64).to_le_bytes());
        hasher.update(receipt.bytes());
        hasher.update(receipt.client_signature().as_bytes());
        let mut stream = hasher.finalize_xof();
        let mut element = || -> F { next_element(&mut stream) };
        let mut extension =
            || plonky2::field::extension::quadratic::QuadraticExtension([element(), element()]);
        Self { alpha: extension(), beta: extension() }
    }
}
