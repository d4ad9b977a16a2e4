//! What may go wrong in a session.

use std::error::Error;

use zklora_circuit::parameters::{Security, UnknownSecurity};
use zklora_net::{DialError, FrameError};
use zklora_proto::manifest::ManifestError;
use zklora_proto::message::ErrorCode;
use zklora_proto::packing::PackingError;
use zklora_proto::receipt::ReceiptError;
use zklora_proto::transcript::CallError;

use crate::record::RecordError;

/// Why a session failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// No connection.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The connection broke, or the contributor speaks nonsense.
    #[error("talking to the contributor")]
    Frame(#[from] FrameError),
    /// The contributor refuses.
    #[error("the contributor refuses: {message}")]
    Refused {
        /// What kind of refusal.
        code: ErrorCode,
        /// Its words.
        message: String,
    },
    /// The contributor answers another question.
    #[error("the contributor answered {found}, expected {expected}")]
    Unexpected {
        /// What was expected.
        expected: &'static str,
        /// What came.
        found: String,
    },
    /// Not a valid manifest.
    #[error("the contributor's manifest")]
    Manifest(#[from] ManifestError),
    /// Not the pinned manifest, or not the pinned contributor's.
    #[error("the contributor sent {what} {found}, expected the pinned {expected}")]
    NotPinned {
        /// What differs.
        what: &'static str,
        /// What came.
        found: String,
        /// What is pinned.
        expected: String,
    },
    /// Proofs that this program cannot check.
    #[error(
        "the contributor proves with a parameter set that this program does not know, so that its bundles cannot be checked here"
    )]
    UnknownSecurity(#[from] UnknownSecurity),
    /// Proofs that are worth less than was asked for.
    #[error(
        "the contributor proves with the parameter set {:?}, which guarantees {} bits of soundness on theorems alone, expected at least \
         {min}; --min-security accepts less",
        .security.name(), .security.provable_bits()
    )]
    MinSecurity {
        /// The contributor's parameter set.
        security: Security,
        /// Bits asked for.
        min: u32,
    },
    /// A call that the manifest does not allow.
    #[error("this call cannot be made")]
    Call(#[from] CallError),
    /// Deltas that are no deltas.
    #[error("the contributor's deltas")]
    Deltas(#[from] PackingError),
    /// A receipt that does not verify.
    #[error("the contributor's receipt")]
    Receipt(#[from] ReceiptError),
    /// A receipt that says something else than what happened.
    #[error("the contributor's receipt says {what} {found}, but it was {expected}; it is not signed")]
    FalseReceipt {
        /// What differs.
        what: &'static str,
        /// What the receipt says.
        found: String,
        /// What happened.
        expected: String,
    },
    /// A receipt whose times cannot be.
    #[error(
        "the contributor's receipt says that the session {what} at {found}, {expected} (seconds since 1970); it is not signed: \
         find out which clock is wrong, this machine's or the contributor's"
    )]
    FalseTime {
        /// What it says a time of.
        what: &'static str,
        /// That time, in seconds since 1970.
        found: u64,
        /// What it was expected to be.
        expected: String,
    },
    /// The session's record cannot be kept.
    #[error("keeping the record of the session")]
    Record(#[from] RecordError),
    /// The contributor asks for a second signature of one session.
    #[error(
        "the contributor sent another receipt of this session than the one that was signed: it is not signed"
    )]
    SecondReceipt,
    /// The contributor could not prove the session.
    #[error("the contributor failed to prove the session")]
    ProofFailed,
    /// Waiting for the proof was stopped.
    #[error("the proof was not waited for")]
    NotWaited(#[source] Box<dyn Error + Send + Sync>),
}
