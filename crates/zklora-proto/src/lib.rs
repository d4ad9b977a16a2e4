//! What ZKLoRA's three programs say to each other and leave behind.
//!
//! The story of an artifact, in the order in which its parts come to be:
//!
//! 1. The contributor quantises a LoRA adapter, commits to every module and signs a [`manifest::Manifest`]. Its digest is
//!    the [`AdapterId`] that the base-model user pins, together with the contributor's [`identity::PublicKey`].
//! 2. The base-model user connects and sends [`message::Request`]s. Each forward is a [`transcript::Call`]: the quantised
//!    activations X of one projection input and the deltas Y that came back. Both sides hash them as they go.
//! 3. Both sign a [`receipt::Receipt`] over the [`TranscriptDigest`], and over [`commitments`] to every call.
//! 4. The contributor proves the transcript and writes a [`bundle`], the `.pf` file that a verifier reads.
//! 5. The base-model user may show one module of one call, and nothing of the others, as a [`Disclosure`].
//!
//! What the programs print for other programs about any of it is a [`Document`].
//!
//! This crate knows bytes, hashes, signatures and bounds. It knows neither libtorch nor plonky2.

mod bounded;
pub mod bundle;
pub mod commitments;
pub mod digest;
pub mod disclosure;
pub mod document;
mod escape;
pub mod identity;
mod json;
pub mod limits;
pub mod manifest;
pub mod message;
pub mod packing;
#[cfg(unix)]
pub mod partial;
mod random;
pub mod receipt;
#[cfg(unix)]
pub mod secret_file;
mod session_id;
pub mod shape;
mod signed_session;
pub mod transcript;
mod words;

pub use bounded::read_bounded;
pub use commitments::{BLINDING_ROWS, CommitmentSeed, SessionHasher};
pub use digest::{
    AdapterId, BaseModelDigest, BundleDigest, CallSalt, CommitmentNode, CommitmentsDigest, DeliveryDigest,
    ExactModelDigest, SessionId, TokenizerDigest, TranscriptDigest, TranscriptSalt,
};
pub use disclosure::Disclosure;
pub use document::Document;
pub use escape::Escaped;
pub use identity::{Address, PublicKey, SecretKey, Signature};
pub use manifest::{Commitment, Manifest, ModuleEntry, SignedManifest};
pub use receipt::{Receipt, SignedReceipt};
pub use shape::ModuleShape;
pub use signed_session::{ForeignReceipt, SignedSession};
pub use transcript::{Call, Delta, TranscriptHasher};
pub use words::{Bytes, counted};

/// The version of the protocol and of everything hashed under it. Part of every hash context as `v1`.
pub const PROTOCOL_VERSION: u32 = 2;
