//! The verdict on an adapter that was delivered.

use schemars::JsonSchema;
use serde::Serialize;
use zklora_proto::{AdapterId, BaseModelDigest, DeliveryDigest, Document, PublicKey, SessionId};

use crate::pins::PinsFound;
use crate::report::Standing;

/// An adapter that was delivered and holds: its weights open their commitments, and every delta of the bundles is computed with them.
/// One that does not hold is an error, and gets no document.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct AcceptReport {
    /// The folder of the adapter.
    pub folder: String,
    /// `valid`, or `not-pinned` if nobody said which adapter it has to be.
    pub verdict: Standing,
    /// Whether the caller had pinned the adapter.
    pub pinned: bool,
    /// Which of these the caller had pinned.
    pub pins: PinsFound,
    /// The adapter id.
    pub adapter: AdapterId,
    /// The contributor's key.
    pub contributor: PublicKey,
    /// The base model that the contributor names.
    pub base_model: BaseModelDigest,
    /// The digest of the package, which the contributor signed.
    pub digest: DeliveryDigest,
    /// Modules, all of whose weights open their commitments.
    pub modules: u64,
    /// Every bundle whose deltas were computed again.
    pub bundles: Vec<AcceptedBundle>,
    /// Rows of all of them.
    pub rows: u64,
}

impl Document for AcceptReport {
    const FORMAT: &'static str = "zklora-accept/1";
    const PRINTED_BY: &'static str = "zklora-base-user accept --json";
}

/// A bundle whose deltas are those of the delivered weights.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct AcceptedBundle {
    /// The file.
    pub bundle: String,
    /// The session.
    pub session: SessionId,
    /// Forward calls.
    pub calls: u64,
    /// Rows of all modules together.
    pub rows: u64,
    /// Deltas that were compared.
    pub deltas: u64,
}
