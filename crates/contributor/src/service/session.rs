//! What is kept in memory of a session.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use zklora_proto::{Call, PublicKey, Signature, TranscriptHasher};

use crate::budget::{Budget, Reservation};

/// A session and whose it is. The owner stands outside the lock, so that a session in use holds up nobody else.
pub(super) struct Entry {
    pub(super) client: PublicKey,
    pub(super) session: Arc<Mutex<Session>>,
}

/// A session until its receipt is signed by both.
pub(super) struct Session {
    pub(super) started: u64,
    pub(super) last_used: Instant,
    pub(super) hasher: TranscriptHasher,
    pub(super) calls: Vec<Call>,
    pub(super) memory: Reservation,
    pub(super) stage: Stage,
}

pub(super) enum Stage {
    /// Forward calls may come.
    Open,
    /// The receipt waits for the client's signature.
    Signed { receipt: Vec<u8>, signature: Signature },
    /// Handed to the prover.
    Done,
}

impl Session {
    pub(super) fn new(started: u64, modules: usize, budget: Arc<Budget>) -> Self {
        Self {
            started,
            last_used: Instant::now(),
            hasher: TranscriptHasher::new(modules),
            calls: Vec::new(),
            memory: Reservation::none(budget),
            stage: Stage::Open,
        }
    }
}
