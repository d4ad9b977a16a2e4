//! What a service is doing, for those who run it.

use std::sync::atomic::Ordering;

use serde::Serialize;
use zklora_proto::{AdapterId, SessionId};

use super::Service;
use super::session::Stage;
use crate::exposure::Exposure;
use crate::prover::Snapshot;

/// A service at a moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Overview {
    /// Sessions whose calls go on.
    pub open: usize,
    /// Sessions whose receipt waits for the client's signature.
    pub signed: usize,
    /// Sessions given up since this process began, because their client was silent or they could not be restored.
    pub abandoned: u64,
    /// Sessions that both have signed.
    pub prover: Snapshot,
    /// The ledger, in the manifest's order.
    pub exposures: Vec<Exposure>,
}

impl Service {
    /// What it is doing now. Waits for calls that the ledger is just counting, but for no session.
    pub fn overview(&self) -> Overview {
        let (mut open, mut signed) = (0, 0);
        for entry in self.lock().values() {
            // A session that is locked is in use, mostly by a call.
            match entry.session.try_lock().as_deref().map(|session| &session.stage) {
                Ok(Stage::Signed { .. }) => signed += 1,
                Ok(Stage::Done) => {}
                Ok(Stage::Open) | Err(_) => open += 1,
            }
        }
        Overview {
            open,
            signed,
            abandoned: self.abandoned.load(Ordering::Relaxed),
            prover: self.prover.snapshot(),
            exposures: self.ledger.exposures(),
        }
    }

    /// The adapter that is served.
    pub fn adapter(&self) -> AdapterId {
        self.adapter
    }

    /// Returns if what every request needs can be had: the table of sessions, and an answer of the store. Blocks while it
    /// cannot.
    pub fn check_health(&self) -> anyhow::Result<()> {
        drop(self.lock());
        self.store.session(SessionId::from_bytes([0; 32])).map(drop)
    }
}
