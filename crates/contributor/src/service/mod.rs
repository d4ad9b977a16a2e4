//! What the contributor answers, free of any transport.

mod bundle;
mod forward;
mod hello;
mod overview;
mod receipt;
mod session;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use anyhow::Context;
use tracing::{error, info, warn};
use zklora_proto::limits::MAX_BUNDLE_PART_BYTES;
use zklora_proto::message::{ErrorCode, Request, Response};
use zklora_proto::transcript::CallShape;
use zklora_proto::{AdapterId, PublicKey, Receipt, SessionId};

pub use self::overview::Overview;
use self::session::{Entry, Question, Session, Stage};
use crate::budget::{Budget, Reservation};
use crate::delta::Engines;
use crate::exposure::{Ledger, Refusals, boot_id};
use crate::limits::Limits;
use crate::prover::Prover;
use crate::state::State;
use crate::store::{self, Store, StoredSession};

/// A request that was not granted, as the client is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What kind.
    pub code: ErrorCode,
    /// In words.
    pub message: String,
}

pub(crate) fn refuse<T>(code: ErrorCode, message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { code, message: message.into() })
}

/// What a request takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Rows, each module's counted by itself.
    pub rows: u64,
    /// Bytes of its payload.
    pub payload: u64,
    /// Bytes of memory until it is answered.
    pub memory: usize,
}

/// Serves one adapter.
pub struct Service {
    state: Arc<State>,
    adapter: AdapterId,
    engines: Arc<Engines>,
    limits: Limits,
    sessions: Mutex<HashMap<SessionId, Entry>>,
    journals: Arc<Budget>,
    journals_of: Mutex<HashMap<PublicKey, Weak<Budget>>>,
    store: Arc<Store>,
    ledger: Ledger,
    refusals: Refusals,
    prover: Prover,
    abandoned: AtomicU64,
}

impl Service {
    /// A service of this state, whose finished sessions go to `prover`, and which answers at most `share` of each module's d_in in
    /// independent rows. Takes up what an earlier service left in the store: finished sessions are proved, open ones wait for
    /// their clients.
    pub fn new(
        state: Arc<State>,
        engines: Arc<Engines>,
        limits: Limits,
        store: Arc<Store>,
        share: f64,
        prover: Prover,
    ) -> anyhow::Result<Self> {
        let service = Self {
            adapter: state.manifest.adapter_id(),
            engines,
            ledger: Ledger::open(&store, state.manifest.manifest(), share, &boot_id())
                .context("opening the exposure ledger")?,
            state,
            journals: Budget::new(limits.total_bytes),
            journals_of: Mutex::default(),
            limits,
            sessions: Mutex::default(),
            store,
            refusals: Refusals::default(),
            prover,
            abandoned: AtomicU64::new(0),
        };
        service.store.forget_leftovers()?;
        for stage in [store::Stage::Finished, store::Stage::Proving] {
            for stored in service.store.sessions_at(stage)? {
                info!(session = %stored.id, "taken up again: finished, to be proved");
                let receipt = stored.receipt.as_deref().map(Receipt::from_bytes).transpose()?;
                let mut journal = service.journal(stored.client);
                journal.note(receipt.map_or(0, |receipt| service.session_bytes(&receipt.rows)));
                service.prover.submit(stored.id, stored.client, journal);
            }
        }
        for stage in [store::Stage::Open, store::Stage::Signed] {
            for stored in service.store.sessions_at(stage)? {
                let (id, client) = (stored.id, stored.client);
                match service.restore(stored) {
                    Ok(session) => {
                        info!(session = %id, calls = session.hasher.calls(), "taken up again: waits for its client");
                        let session = Arc::new(Mutex::new(session));
                        service.lock().insert(id, Entry { client, session });
                    }
                    Err(error) => {
                        warn!(session = %id, "abandoned: {error:#}");
                        service.store.abandon(id)?;
                        service.abandoned.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        }
        Ok(service)
    }

    /// A session as it was: its deltas are computed and hashed again.
    fn restore(&self, stored: StoredSession) -> anyhow::Result<Session> {
        let modules = self.state.manifest.manifest().modules().len();
        let seed = stored.seed.context("its commitment seed is missing")?;
        let mut session = Session::new(stored.started, modules, seed, self.journal(stored.client));
        self.store.calls(stored.id, |call| {
            let call = self.engines.call(call)?;
            let modules: Vec<usize> = call.deltas.iter().map(|delta| delta.module).collect();
            session.last = Some(Question::new(&modules, &call.activations));
            let deltas = call.deltas.iter().map(|delta| delta.values.len()).sum();
            session.journal.note(transcript_bytes(call.activations.len(), deltas));
            anyhow::ensure!(session.hasher.add(&call), "the session has too many calls");
            Ok(())
        })?;
        if stored.stage == store::Stage::Signed {
            session.stage = Stage::Signed;
        }
        Ok(session)
    }

    /// Size of the transcript of a session with these rows of each module.
    fn session_bytes(&self, rows: &[u64]) -> usize {
        let modules = self.state.manifest.manifest().modules().iter().zip(rows);
        modules
            .map(|(module, &rows)| {
                rows as usize * transcript_bytes(module.shape().d_in(), module.shape().d_out())
            })
            .sum()
    }

    /// No bytes yet of what a client's transcripts may take.
    fn journal(&self, client: PublicKey) -> Reservation {
        let mut journals = self.journals_of.lock().unwrap_or_else(PoisonError::into_inner);
        journals.retain(|_, budget| budget.strong_count() > 0);
        let of_client = journals.get(&client).and_then(Weak::upgrade).unwrap_or_else(|| {
            let budget = Budget::new(self.limits.client_bytes);
            journals.insert(client, Arc::downgrade(&budget));
            budget
        });
        Reservation::none(vec![self.journals.clone(), of_client])
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, Entry>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the service in order: nothing that the ledger reserved is open any more.
    pub fn close(&self) -> anyhow::Result<()> {
        self.ledger.close(&self.store)
    }

    /// What clients are allowed.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Refuses a request that will not be answered whatever its payload is, before that is read; or says what it takes.
    pub fn admit(&self, client: PublicKey, request: &Request) -> Result<Cost, Refusal> {
        let (session, rows, modules) = match request {
            Request::Forward { session, rows, modules, .. } => (session, rows, modules),
            Request::Fetch { .. } => return Ok(Cost { memory: self.part_bytes(), ..Cost::default() }),
            Request::Hello { .. }
            | Request::Finish { .. }
            | Request::Countersign { .. }
            | Request::Status { .. } => return Ok(Cost::default()),
        };
        self.session(client, *session)?;
        let manifest = self.state.manifest.manifest();
        let shape = CallShape::new(manifest, *rows, modules.clone())
            .map_err(|e| Refusal { code: ErrorCode::BadRequest, message: e.to_string() })?;
        if shape.bytes() > self.max_call_bytes() && *rows > 1 {
            return refuse(
                ErrorCode::Limit,
                format!(
                    "the call takes {} bytes, expected at most {}: split it",
                    shape.bytes(),
                    self.max_call_bytes()
                ),
            );
        }
        Ok(Cost {
            rows: (rows * shape.modules().len()) as u64,
            payload: (2 * rows * shape.d_in()) as u64,
            memory: memory_of(&shape),
        })
    }

    /// Gives up sessions whose client has been silent for too long, and those that have been open for too long.
    pub fn sweep(&self) {
        let mut given_up = Vec::new();
        self.lock().retain(|id, entry| {
            // A session that is locked is in use.
            let Ok(mut session) = entry.session.try_lock() else { return true };
            if matches!(session.stage, Stage::Done) {
                return false;
            }
            let why = if session.last_used.elapsed() >= self.limits.session_idle {
                "its client has been silent for too long"
            } else if session.opened.elapsed() >= self.limits.session_age {
                "it has been open for too long"
            } else {
                return true;
            };
            // Whoever has found it a moment ago, and waits for the lock, does not go on with it.
            session.stage = Stage::Done;
            given_up.push((*id, why));
            false
        });
        for (id, why) in given_up {
            info!(session = %id, "abandoned: {why}");
            self.abandoned.fetch_add(1, Ordering::Relaxed);
            if let Err(error) = self.store.abandon(id) {
                error!(session = %id, "recording that it is abandoned: {error:#}");
            }
        }
    }

    /// Answers a request of the client that holds this key.
    pub fn answer(
        &self,
        client: PublicKey,
        request: Request,
        payload: Vec<u8>,
    ) -> Result<(Response, Vec<u8>), Refusal> {
        if !payload.is_empty() && !request.kind().has_payload() {
            return refuse(ErrorCode::BadRequest, "only a forward request has a payload");
        }
        match request {
            Request::Hello { version, adapter, base_model, nonce, commitment_seed } => {
                self.hello(client, version, adapter, base_model, nonce, commitment_seed)
            }
            Request::Forward { session, call, rows, modules } => {
                self.forward(client, session, call, rows, modules, &payload)
            }
            Request::Finish { session, calls, transcript } => self.finish(client, session, calls, transcript),
            Request::Countersign { session, signature } => self.countersign(client, session, signature),
            Request::Status { session } => self.status(client, session),
            Request::Fetch { session, offset } => self.fetch(client, session, offset),
        }
    }

    /// Stops proving at the end of the batches that are being proved, and waits for it.
    pub fn stop_proving(&self) {
        self.prover.stop();
    }

    fn session(&self, client: PublicKey, id: SessionId) -> Result<Arc<Mutex<Session>>, Refusal> {
        match self.lock().get(&id) {
            Some(entry) if entry.client == client => Ok(entry.session.clone()),
            _ => unknown_session(),
        }
    }

    /// Most bytes of a bundle in one answer.
    fn part_bytes(&self) -> usize {
        // As many as the protocol allows, or as the client may have in memory here.
        self.limits.most_memory().min(MAX_BUNDLE_PART_BYTES as usize)
    }

    /// Most bytes of a call of more than one row: while it is answered it fits the memory that a client may take.
    fn max_call_bytes(&self) -> usize {
        self.limits.most_memory() / MEMORY_OF_BYTE
    }
}

fn unknown_session<T>() -> Result<T, Refusal> {
    refuse(ErrorCode::Session, "you have no such session here; it may have been idle for too long")
}

fn not_recorded(id: SessionId, error: &anyhow::Error) -> Refusal {
    error!(session = %id, "recording: {error:#}");
    Refusal { code: ErrorCode::Internal, message: "the contributor could not record this; try again".into() }
}

/// Memory that a call takes while it is answered: its payload, as int16 and as float64; its deltas as float64, as int64 and packed.
fn memory_of(call: &CallShape) -> usize {
    call.rows() * ((2 + 2 + 8) * call.d_in() + (8 + 8 + 8) * call.d_out())
}

/// Most memory, by [`memory_of`], for each of its [`CallShape::bytes`].
const MEMORY_OF_BYTE: usize = (2 + 2 + 8) / 2;

/// Bytes of so many activations and deltas in a transcript.
fn transcript_bytes(activations: usize, deltas: usize) -> usize {
    2 * activations + 8 * deltas
}
