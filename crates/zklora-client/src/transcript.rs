//! A session's transcript, as its client hashes it.

use std::panic::resume_unwind;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use zklora_proto::{Call, CommitmentSeed, SessionHasher};

/// The transcript of a session, hashed beside whatever else its client does.
pub(crate) struct Transcript {
    pub(crate) runtime: Handle,
    pub(crate) calls: u64,
    /// Of each module.
    pub(crate) rows: Vec<u64>,
    pub(crate) hasher: SessionHasher,
    /// The hasher with the last call, once it is there.
    pub(crate) last: Option<JoinHandle<SessionHasher>>,
    /// The receipt that was signed for it.
    pub(crate) signed: Option<Vec<u8>>,
}

impl Transcript {
    pub(crate) fn new(runtime: Handle, modules: usize, seed: CommitmentSeed) -> Self {
        let hasher = SessionHasher::new(modules, seed);
        Self { runtime, calls: 0, rows: vec![0; modules], hasher, last: None, signed: None }
    }

    /// Adds the next call. There must be fewer than [`MAX_CALLS`].
    pub(crate) fn add(&mut self, call: Arc<Call>) {
        self.calls += 1;
        call.deltas.iter().for_each(|delta| self.rows[delta.module] += call.rows as u64);
        let mut hasher = self.hasher().clone();
        self.last = Some(self.runtime.spawn_blocking(move || {
            // As many calls as were counted: there may be another.
            let _ = hasher.add(&call);
            hasher
        }));
    }

    /// The hasher, with all calls in it.
    pub(crate) fn hasher(&mut self) -> &SessionHasher {
        if let Some(last) = self.last.take() {
            let hashed = self.runtime.block_on(last);
            self.hasher = hashed.unwrap_or_else(|failed| resume_unwind(failed.into_panic()));
        }
        &self.hasher
    }
}
