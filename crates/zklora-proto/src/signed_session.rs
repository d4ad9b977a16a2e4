//! A manifest and a receipt that belong together.

use crate::{ModuleEntry, SessionId, SignedManifest, SignedReceipt};

/// A session that both parties signed, of the adapter that its manifest describes: all signatures are valid, and the receipt is for this
/// manifest. Whether they are the right parties, and theirs the right adapter, only pins tell.
#[derive(Debug, Clone, PartialEq)]
pub struct SignedSession {
    manifest: SignedManifest,
    receipt: SignedReceipt,
}

/// The receipt is for another manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the receipt names another {what} than the manifest beside it: one of the two was exchanged")]
pub struct ForeignReceipt {
    /// What they do not agree in.
    pub what: &'static str,
}

impl SignedSession {
    /// Puts them together, if they belong together.
    pub fn new(manifest: SignedManifest, receipt: SignedReceipt) -> Result<Self, ForeignReceipt> {
        let (said, inner) = (receipt.receipt(), manifest.manifest());
        let same = [
            ("adapter", said.adapter == manifest.adapter_id()),
            ("contributor", said.contributor == *inner.contributor()),
            ("base model", said.base_model == *inner.base_model()),
            ("number of modules", said.rows.len() == inner.modules().len()),
        ];
        match same.into_iter().find(|(_, same)| !same) {
            Some((what, _)) => Err(ForeignReceipt { what }),
            None => Ok(Self { manifest, receipt }),
        }
    }

    /// The adapter's manifest.
    pub fn manifest(&self) -> &SignedManifest {
        &self.manifest
    }

    /// The session's receipt.
    pub fn receipt(&self) -> &SignedReceipt {
        &self.receipt
    }

    /// The session's id.
    pub fn id(&self) -> SessionId {
        self.receipt.receipt().session
    }

    /// Rows of each module, in the manifest's order: as many as it has modules.
    pub fn rows(&self) -> &[u64] {
        &self.receipt.receipt().rows
    }

    /// Every module with its rows, in the manifest's order.
    pub fn modules(&self) -> impl Iterator<Item = (&ModuleEntry, u64)> {
        self.manifest.manifest().modules().iter().zip(self.rows().iter().copied())
    }
}
