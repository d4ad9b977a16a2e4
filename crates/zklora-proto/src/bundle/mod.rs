//! The `.pf` bundle: one self-contained file for one session.
//!
//! An 8-byte little-endian header length, a JSON header, then blobs at contiguous offsets, without gaps or overlaps, each
//! with a BLAKE3 digest. In this order: the manifest and its signature, the receipt and its two signatures, the
//! transcript's salt, the transcript, and one proof for each batch of the plan. `docs/format.md` specifies every byte.

#[cfg(unix)]
mod encode;
mod read;
mod transcript;
#[cfg(unix)]
mod write;

pub use read::{BlobEntry, Bundle};
#[cfg(unix)]
pub use write::{BundleParts, write, write_unproved};

use serde::{Deserialize, Serialize};

use crate::BundleDigest;
use crate::limits::{MAX_BUNDLE_HEADER_BYTES, MAX_MODULES};
use crate::manifest::ManifestError;
use crate::receipt::ReceiptError;
use crate::transcript::CallError;

const FORMAT: &str = "zklora-pf/1";
/// The blobs before the proofs, in their order.
const FIXED_BLOBS: [&str; 7] = [
    "manifest",
    "manifest.signature",
    "receipt",
    "receipt.contributor",
    "receipt.client",
    "transcript.salt",
    "transcript",
];
const TRANSCRIPT: usize = 6;

/// How the modules are spread over proofs, and under which parameters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Name of the parameter set; the verifier knows what it means.
    pub security: String,
    /// For each proof, the indices of the modules it covers, in the order of the circuit.
    pub batches: Vec<Vec<usize>>,
}

impl Plan {
    /// Whether every module with rows is in exactly one batch, and no other is in any.
    pub fn check(&self, rows: &[u64]) -> Result<(), BundleError> {
        let mut seen = vec![false; rows.len()];
        for &module in self.batches.iter().flatten() {
            let seen = seen
                .get_mut(module)
                .ok_or_else(|| BundleError::Plan(format!("it names module {module} of {}", rows.len())))?;
            if std::mem::replace(seen, true) {
                return Err(BundleError::Plan(format!("it names module {module} twice")));
            }
            if rows[module] == 0 {
                return Err(BundleError::Plan(format!("it names module {module}, which has no rows")));
            }
        }
        if self.batches.iter().any(Vec::is_empty) {
            return Err(BundleError::Plan("it has an empty batch".into()));
        }
        match (0..rows.len()).find(|&module| rows[module] > 0 && !seen[module]) {
            Some(module) => Err(BundleError::Plan(format!("it leaves out module {module}"))),
            None => Ok(()),
        }
    }
}

/// Why a file is no valid bundle. The first thing found wrong.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The file could not be read.
    #[error("reading the bundle: {0}")]
    Io(#[from] std::io::Error),
    /// The header's length is out of bounds or beyond the file.
    #[error("the header claims {found} bytes, expected at most {max}")]
    HeaderLength {
        /// What the file claims.
        found: u64,
        /// The bound: the maximum, or what the file has left.
        max: u64,
    },
    /// The header is no such JSON.
    #[error("the header is not valid JSON of its format: {0}")]
    HeaderJson(String),
    /// Another format or version.
    #[error("the bundle's format is {0:?}, expected {FORMAT:?}")]
    Format(String),
    /// The blob table is not the one that the plan asks for.
    #[error("the blob table: {0}")]
    Table(String),
    /// The file has fewer or more bytes than its blobs.
    #[error("the file has {found} bytes, but its blobs end at {expected}: it was cut off or extended")]
    Length {
        /// Where the last blob ends.
        expected: u64,
        /// The file's length.
        found: u64,
    },
    /// A blob does not have its digest.
    #[error("blob {0:?} does not have the digest in the header: it was changed or damaged")]
    Digest(String),
    /// The proof plan is not one for this transcript.
    #[error("the proof plan: {0}")]
    Plan(String),
    /// The manifest is not valid.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The receipt is not valid.
    #[error(transparent)]
    Receipt(#[from] ReceiptError),
    /// Manifest and receipt are each valid, but do not belong together.
    #[error("the receipt names another {0} than the manifest beside it: one of the two was exchanged")]
    Foreign(&'static str),
    /// A call is none that the manifest allows.
    #[error("transcript, call {call}: {error}")]
    Call {
        /// Which call.
        call: u64,
        /// What is wrong.
        error: CallError,
    },
    /// The transcript's bytes are malformed.
    #[error("transcript, call {call}: {what}")]
    Transcript {
        /// Which call.
        call: u64,
        /// What is wrong.
        what: String,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format: String,
    plan: Plan,
    blobs: Vec<Blob>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Blob {
    name: String,
    offset: u64,
    length: u64,
    digest: BundleDigest,
}

/// The name of blob `index`.
fn blob_name(index: usize) -> String {
    match FIXED_BLOBS.get(index) {
        Some(name) => (*name).into(),
        None => format!("proof.{}", index - FIXED_BLOBS.len()),
    }
}

const _: () = assert!(MAX_BUNDLE_HEADER_BYTES as usize > 512 * MAX_MODULES);

#[cfg(test)]
mod tests;
