//! What is kept in memory of a session: its calls are in the store.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use zklora_proto::packing::activations_to_bytes;
use zklora_proto::{CommitmentSeed, PublicKey, SessionHasher};

use crate::budget::Reservation;

/// A session and whose it is. The owner stands outside the lock, so that a session in use holds up nobody else.
pub(super) struct Entry {
    pub(super) client: PublicKey,
    pub(super) session: Arc<Mutex<Session>>,
}

/// A session until its receipt is signed by both.
pub(super) struct Session {
    pub(super) started: u64,
    pub(super) opened: Instant,
    pub(super) last_used: Instant,
    pub(super) hasher: SessionHasher,
    pub(super) last: Option<Question>,
    pub(super) journal: Reservation,
    pub(super) stage: Stage,
}

/// What was asked in a call.
#[derive(PartialEq, Eq)]
pub(super) struct Question {
    modules: Vec<usize>,
    activations: blake3::Hash,
}

pub(super) enum Stage {
    /// Forward calls may come.
    Open,
    /// The receipt waits for the client's signature. It is in the store.
    Signed,
    /// Handed to the prover.
    Done,
}

impl Session {
    pub(super) fn new(started: u64, modules: usize, seed: CommitmentSeed, journal: Reservation) -> Self {
        // Of a clock that nobody sets.
        let now = Instant::now();
        Self {
            started,
            opened: now,
            last_used: now,
            hasher: SessionHasher::new(modules, seed),
            last: None,
            journal,
            stage: Stage::Open,
        }
    }
}

impl Question {
    pub(super) fn new(modules: &[usize], activations: &[i16]) -> Self {
        let mut hasher = blake3::Hasher::new();
        for chunk in activations.chunks(4096) {
            hasher.update(&activations_to_bytes(chunk));
        }
        Self { modules: modules.to_vec(), activations: hasher.finalize() }
    }
}
