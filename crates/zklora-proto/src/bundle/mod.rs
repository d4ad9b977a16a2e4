//! The `.pf` bundle: one self-contained file for one session.
//!
//! An 8-byte little-endian header length, a JSON header, then blobs at contiguous offsets, without gaps or overlaps, each
//! with a BLAKE3 digest. In this order: the manifest and its signature, the receipt and its two signatures, the
//! transcript's salt, the transcript, and one proof for each batch of the plan. A *redacted* bundle has the folds of the
//! transcript and the client's signature over them in place of the transcript and its salt. `docs/format.md` specifies every
//! byte.

#[cfg(unix)]
mod encode;
mod folds;
mod read;
mod transcript;
#[cfg(unix)]
mod write;

pub use folds::{Element, FoldedModule, Folds};
pub use read::{BlobEntry, Bundle};
#[cfg(unix)]
pub use write::{BundleParts, PARTIAL, write, write_unproved};

use serde::{Deserialize, Serialize};

use crate::BundleDigest;
use crate::ForeignReceipt;
use crate::PublicKey;
use crate::limits::{
    MAX_BUNDLE_BYTES, MAX_BUNDLE_HEADER_BYTES, MAX_MANIFEST_BYTES, MAX_MODULES, MAX_PROOF_BYTES,
    MAX_RECEIPT_BYTES,
};
use crate::manifest::ManifestError;
use crate::receipt::ReceiptError;
use crate::transcript::CallError;

/// The two layouts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// With the transcript.
    Full,
    /// With its folds.
    Redacted,
}

const FULL: &str = "zklora-pf/2";
const REDACTED: &str = "zklora-pf-redacted/2";
/// Blobs before the proofs.
const FIXED_BLOBS: usize = 7;
/// Index of the salt of the transcript's digest in a full bundle.
const SALT: usize = 5;
/// Index of the transcript in a full bundle.
const TRANSCRIPT: usize = 6;
/// Index of the folds in a redacted bundle.
const FOLDS: usize = 5;
/// Index of the client's signature over the folds in a redacted bundle.
const FOLDS_SIGNATURE: usize = 6;

impl Layout {
    /// The layout of the format of this name.
    fn of(format: &str) -> Option<Self> {
        [Self::Full, Self::Redacted].into_iter().find(|layout| layout.format() == format)
    }

    fn format(self) -> &'static str {
        match self {
            Self::Full => FULL,
            Self::Redacted => REDACTED,
        }
    }

    /// The blobs before the proofs, in their order.
    fn fixed_blobs(self) -> [&'static str; FIXED_BLOBS] {
        let [evidence, its_other] = match self {
            Self::Full => ["transcript.salt", "transcript"],
            Self::Redacted => ["folds", "folds.client"],
        };
        [
            "manifest",
            "manifest.signature",
            "receipt",
            "receipt.contributor",
            "receipt.client",
            evidence,
            its_other,
        ]
    }

    /// The name of blob `index`.
    fn blob_name(self, index: usize) -> String {
        match self.fixed_blobs().get(index) {
            Some(name) => (*name).into(),
            None => format!("proof.{}", index - FIXED_BLOBS),
        }
    }

    /// Most bytes of blob `index`.
    fn blob_max(self, index: usize) -> u64 {
        match (self, index) {
            (_, 0) => MAX_MANIFEST_BYTES as u64,
            (_, 2) => MAX_RECEIPT_BYTES as u64,
            (_, 1 | 3 | 4) | (Self::Redacted, FOLDS_SIGNATURE) => 64,
            (Self::Full, SALT) => 32,
            (Self::Full, TRANSCRIPT) | (Self::Redacted, FOLDS) => MAX_BUNDLE_BYTES,
            _ => MAX_PROOF_BYTES,
        }
    }
}

/// How the modules are spread over proofs, and under which parameters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
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
///
/// Not `non_exhaustive`: each has its kind in `zklora-verdict`, which does not compile without.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The file could not be read.
    #[error("reading the bundle: {0}")]
    Io(#[from] std::io::Error),
    /// The header's length is out of bounds or beyond the file.
    #[error(
        "this is no bundle, or its first bytes were changed: by them its header has {}, expected at most {}",
        crate::Bytes(*.found),
        crate::Bytes(*.max)
    )]
    HeaderLength {
        /// What the file says.
        found: u64,
        /// The bound: the maximum, or what the file has left.
        max: u64,
    },
    /// The header is no such JSON.
    #[error("the header is not valid JSON of its format: {0}")]
    HeaderJson(String),
    /// Another format or version.
    #[error("the bundle's format is {0:?}, expected {FULL:?} or {REDACTED:?}")]
    Format(String),
    /// The blob table is not the one that the plan asks for.
    #[error("the blob table: {0}")]
    Table(String),
    /// The file has fewer or more bytes than its blobs.
    #[error("the file has {found} bytes, but its parts end at {expected}: it was cut off or extended")]
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
    #[error(transparent)]
    Foreign(#[from] ForeignReceipt),
    /// A call is none that the manifest allows.
    #[error("transcript, call {call}: {error}")]
    Call {
        /// Which call.
        call: u64,
        /// What is wrong.
        error: CallError,
    },
    /// The bundle has no transcript.
    #[error(
        "this bundle is redacted: it has no activations and no deltas, only their folds; the full bundle has them"
    )]
    Redacted,
    /// The folds of a redacted bundle are malformed, or those of something else.
    #[error("the folds: {0}")]
    Folds(String),
    /// The client did not sign the folds.
    #[error("the folds' signature is not one of the receipt's client {0} over them and the receipt")]
    FoldsSignature(PublicKey),
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

const _: () = assert!(MAX_BUNDLE_HEADER_BYTES as usize > 512 * MAX_MODULES);

#[cfg(test)]
mod tests;
