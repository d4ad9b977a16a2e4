//! What the contributor answers, free of any transport.

mod overview;
mod session;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::Context;
use humantime::format_rfc3339_seconds;
use tracing::{error, info, warn};
use zklora_proto::identity::Purpose;
use zklora_proto::limits::{MAX_BUNDLE_PART_BYTES, MAX_CALLS, MAX_PAYLOAD_BYTES};
use zklora_proto::message::{ErrorCode, Nonce, ProofState, Request, Response};
use zklora_proto::packing::{activations_from_bytes, pack_deltas};
use zklora_proto::transcript::CallShape;
use zklora_proto::{
    AdapterId, BaseModelDigest, Bytes, Call, CommitmentSeed, Delta, PROTOCOL_VERSION, PublicKey, Receipt,
    SessionId, Signature, SignedReceipt, TranscriptDigest,
};

pub use self::overview::Overview;
use self::session::{Entry, Question, Session, Stage};
use crate::budget::{Budget, Reservation};
use crate::delta::{DeltaError, Engines};
use crate::exposure::{Ledger, Refusals, Refused, boot_id};
use crate::limits::Limits;
use crate::prover::Prover;
use crate::state::{State, unix_time};
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
            let why = if session.last_used.elapsed() >= self.limits.idle {
                "its client has been silent for too long"
            } else if session.opened.elapsed() >= self.limits.age {
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

    fn hello(
        &self,
        client: PublicKey,
        version: u32,
        adapter: AdapterId,
        base_model: BaseModelDigest,
        nonce: Nonce,
        seed: CommitmentSeed,
    ) -> Result<(Response, Vec<u8>), Refusal> {
        if version != PROTOCOL_VERSION {
            return refuse(
                ErrorCode::Version,
                format!("you speak version {version} of the protocol, this contributor {PROTOCOL_VERSION}"),
            );
        }
        if adapter != self.adapter {
            return refuse(
                ErrorCode::Adapter,
                format!("you pin adapter {adapter}, but adapter {} is served here", self.adapter),
            );
        }
        let served = self.state.manifest.manifest().base_model();
        if base_model != *served {
            return refuse(
                ErrorCode::BaseModel,
                format!("the adapter belongs to base model {served}, but you run base model {base_model}"),
            );
        }
        let mine = Nonce::random();
        let id = SessionId::derive(
            nonce.as_bytes(),
            mine.as_bytes(),
            &client,
            &self.state.key.public(),
            &self.adapter,
        );
        let modules = self.state.manifest.manifest().modules().len();
        // Before the table of sessions is locked: a module may be, by a call that is being recorded.
        let left = self.ledger.exposures().iter().map(|exposure| exposure.left() as u64).collect();
        self.sweep();
        let mut sessions = self.lock();
        let of_client = sessions.values().filter(|entry| entry.client == client).count();
        if of_client >= self.limits.client_sessions || sessions.len() >= self.limits.sessions {
            return refuse(ErrorCode::Limit, "too many sessions are open; finish one, or try again later");
        }
        let waiting = self.prover.waiting();
        if waiting >= self.limits.queue {
            return refuse(
                ErrorCode::Limit,
                format!("{waiting} finished sessions wait for their proofs, as many as may; try again later"),
            );
        }
        let session = Session::new(unix_time(), modules, seed.clone(), self.journal(client));
        let started = session.started;
        // Its place is taken before it is recorded: others need not wait for the disk. Nobody else knows its id yet.
        sessions.insert(id, Entry { client, session: Arc::new(Mutex::new(session)) });
        drop(sessions);
        if let Err(error) = self.store.begin(id, client, started, self.prover.security(), &seed) {
            self.lock().remove(&id);
            return Err(not_recorded(id, &error));
        }
        info!(session = %id, %client, "session opened");
        let welcome = Response::Welcome {
            nonce: mine,
            signature: *self.state.manifest.signature(),
            max_call_bytes: self.max_call_bytes(),
            left,
            security: self.prover.security().name().into(),
        };
        Ok((welcome, self.state.manifest.bytes().to_vec()))
    }

    fn forward(
        &self,
        client: PublicKey,
        id: SessionId,
        call: u64,
        rows: usize,
        modules: Vec<usize>,
        payload: &[u8],
    ) -> Result<(Response, Vec<u8>), Refusal> {
        let session = self.session(client, id)?;
        let mut session = session.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(session.stage, Stage::Open) {
            return refuse(ErrorCode::Session, "the session is finished; open another for more calls");
        }
        let expected = session.hasher.calls();
        // The answer to the last call may have been lost: the same question has the same answer.
        let again = call.checked_add(1) == Some(expected);
        if call != expected && !again {
            return refuse(
                ErrorCode::Session,
                format!("this is call {call}, expected call {expected}: calls come in order, each once"),
            );
        }
        if call >= MAX_CALLS {
            return refuse(ErrorCode::Limit, "the session has as many calls as it may have; finish it");
        }
        let manifest = self.state.manifest.manifest();
        let bad = |why: String| Refusal { code: ErrorCode::BadRequest, message: why };
        let shape = CallShape::new(manifest, rows, modules).map_err(|e| bad(e.to_string()))?;
        let entries = rows * shape.d_in();
        let activations = activations_from_bytes(payload, entries).ok_or_else(|| {
            bad(format!("expected {entries} activations as int16 above -2^15, found {} bytes", payload.len()))
        })?;
        let question = Question::new(shape.modules(), &activations);
        let failed = |error: DeltaError| {
            error!("delta: {error}");
            Refusal {
                code: ErrorCode::Internal,
                message: "the contributor could not compute the delta".into(),
            }
        };
        if again {
            if session.last.as_ref() != Some(&question) {
                return refuse(ErrorCode::Session, format!("call {call} has been answered, and was another"));
            }
            session.last_used = Instant::now();
            return Ok(packed(&self.engines.deltas(&shape, &activations).map_err(failed)?));
        }
        let bytes = shape.bytes();
        if session.journal.bytes() + bytes > self.limits.session_bytes {
            return refuse(
                ErrorCode::Limit,
                format!(
                    "the session has reached its limit of {}; finish it and open another",
                    Bytes(self.limits.session_bytes as u64)
                ),
            );
        }
        if !session.journal.grow(bytes) {
            return refuse(
                ErrorCode::Limit,
                "you, or all clients together, have as many transcripts here as may wait for their proofs; try again later",
            );
        }
        let spent = |refused: Refused| match refused {
            Refused::Exhausted(_) => {
                self.refusals.count(client);
                Refusal { code: ErrorCode::Exposure, message: refused.to_string() }
            }
            Refused::Closed => Refusal { code: ErrorCode::Limit, message: refused.to_string() },
        };
        let recorded = || {
            // Before the deltas: a call that goes beyond the budget costs nobody their time.
            let considered = self.ledger.consider(shape.modules(), &activations).map_err(spent)?;
            let deltas = self.engines.deltas(&shape, &activations).map_err(failed)?;
            let answer = packed(&deltas);
            if answer.1.len() as u64 > MAX_PAYLOAD_BYTES {
                return refuse(
                    ErrorCode::Limit,
                    "the deltas of this call do not fit a message; send fewer rows",
                );
            }
            // The ledger and the journal come before the answer. What is counted and then not sent is counted all the same.
            let charge = self.ledger.charge(considered, &activations).map_err(spent)?;
            charge
                .record(&activations, |exposed| {
                    self.store.record(id, call, (shape.modules(), rows, &activations), exposed)
                })
                .map_err(|e| not_recorded(id, &e))?;
            Ok((deltas, answer))
        };
        let (deltas, answer) = recorded().inspect_err(|_| session.journal.shrink(bytes))?;
        let call = Call { rows, activations, deltas };
        // Fewer calls than there may be: checked above.
        let _ = session.hasher.add(&call);
        session.last = Some(question);
        session.last_used = Instant::now();
        Ok(answer)
    }

    fn finish(
        &self,
        client: PublicKey,
        id: SessionId,
        calls: u64,
        transcript: TranscriptDigest,
    ) -> Result<(Response, Vec<u8>), Refusal> {
        let Ok(session) = self.session(client, id) else {
            return self.receipt_again(client, id, calls, transcript);
        };
        let mut session = session.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(session.stage, Stage::Open) {
            return self.receipt_again(client, id, calls, transcript);
        }
        same_transcript((calls, transcript), (session.hasher.calls(), session.hasher.digest()))?;
        if calls == 0 {
            return refuse(ErrorCode::Session, "the session has no calls, so that there is nothing to prove");
        }
        let receipt = Receipt::new(
            id,
            self.adapter,
            *self.state.manifest.manifest().base_model(),
            self.state.key.public(),
            client,
            calls,
            session.hasher.rows().to_vec(),
            transcript,
            session.hasher.commitments(),
            session.started,
            // A clock that was set back a little in between costs nobody the session.
            unix_time().max(session.started),
        )
        .to_bytes();
        let signature = self.state.key.sign(Purpose::ReceiptContributor, &receipt);
        self.store.sign(id, &receipt, &signature).map_err(|e| not_recorded(id, &e))?;
        session.stage = Stage::Signed;
        session.last_used = Instant::now();
        Ok((Response::Receipt { signature }, receipt))
    }

    fn countersign(
        &self,
        client: PublicKey,
        id: SessionId,
        by_client: Signature,
    ) -> Result<(Response, Vec<u8>), Refusal> {
        let session = self.session(client, id).ok();
        let mut session =
            session.as_ref().map(|session| session.lock().unwrap_or_else(PoisonError::into_inner));
        if session.as_ref().is_some_and(|session| matches!(session.stage, Stage::Open)) {
            return refuse(ErrorCode::Session, "the session has no receipt to sign yet; finish it first");
        }
        let (stage, receipt, by_contributor) = self.signed(client, id)?;
        let receipt = SignedReceipt::parse(receipt, by_contributor, by_client)
            .map_err(|e| Refusal { code: ErrorCode::Signature, message: e.to_string() })?;
        // Otherwise it is asked again, and has been accepted, by this process or by an earlier one.
        if stage == store::Stage::Signed {
            let Some(session) = session.as_mut().filter(|session| matches!(session.stage, Stage::Signed))
            else {
                return unknown_session();
            };
            self.store.finish(id, &by_client).map_err(|e| not_recorded(id, &e))?;
            info!(session = %id, calls = receipt.receipt().calls, "receipt signed by both");
            session.stage = Stage::Done;
            let journal = std::mem::replace(&mut session.journal, Reservation::none(vec![]));
            self.prover.submit(id, client, journal);
        }
        Ok((Response::Accepted, vec![]))
    }

    /// The receipt of a session that was finished before: the same answer to the same question.
    fn receipt_again(
        &self,
        client: PublicKey,
        id: SessionId,
        calls: u64,
        transcript: TranscriptDigest,
    ) -> Result<(Response, Vec<u8>), Refusal> {
        let (_, bytes, signature) = self.signed(client, id)?;
        let receipt = Receipt::from_bytes(&bytes).map_err(|e| not_recorded(id, &e.into()))?;
        same_transcript((calls, transcript), (receipt.calls, receipt.transcript))?;
        Ok((Response::Receipt { signature }, bytes))
    }

    /// How far a session is whose receipt this contributor has signed, that receipt and the signature.
    fn signed(
        &self,
        client: PublicKey,
        id: SessionId,
    ) -> Result<(store::Stage, Vec<u8>, Signature), Refusal> {
        let stored = self.store.session(id).map_err(|e| not_recorded(id, &e))?;
        match stored.filter(|stored| stored.client == client) {
            Some(StoredSession {
                stage, receipt: Some(receipt), by_contributor: Some(signature), ..
            }) if stage != store::Stage::Abandoned => Ok((stage, receipt, signature)),
            _ => unknown_session(),
        }
    }

    fn status(&self, client: PublicKey, id: SessionId) -> Result<(Response, Vec<u8>), Refusal> {
        let state = match self.prover.status(&id) {
            Some((owner, state)) if owner == client => state,
            // Whose session it is, is nobody else's business.
            Some(_) => return unknown_session(),
            None => match self.session(client, id) {
                Ok(_) => ProofState::Open,
                Err(unknown) => self.past(client, id).ok_or(unknown)?,
            },
        };
        Ok((Response::Status { state }, vec![]))
    }

    /// How a session of an earlier service ended.
    fn past(&self, client: PublicKey, id: SessionId) -> Option<ProofState> {
        let session = self.store.session(id).ok().flatten().filter(|session| session.client == client)?;
        match session.stage {
            store::Stage::Proved => Some(ProofState::Proved { bytes: session.bundle_bytes? }),
            store::Stage::Failed => Some(ProofState::Failed),
            store::Stage::Finished | store::Stage::Proving => Some(ProofState::Queued),
            _ => None,
        }
    }

    /// A part of the bundle, for the client whose session it is.
    fn fetch(&self, client: PublicKey, id: SessionId, offset: u64) -> Result<(Response, Vec<u8>), Refusal> {
        let bytes = match self.status(client, id)? {
            (Response::Status { state: ProofState::Proved { bytes } }, _) => bytes,
            (Response::Status { state: ProofState::Failed }, _) => {
                return refuse(ErrorCode::Session, "proving this session failed, so that there is no bundle");
            }
            (Response::Status { state: ProofState::Open }, _) => {
                return refuse(ErrorCode::Session, "the session is not finished, so that it is not proved");
            }
            _ => return refuse(ErrorCode::Session, "the session is not proved yet; ask for its status"),
        };
        if offset > bytes {
            let why = format!("the bundle has {bytes} bytes, you ask for what comes after {offset}");
            return refuse(ErrorCode::BadRequest, why);
        }
        let gone = |why: String| {
            warn!(session = %id, "a bundle cannot be handed over: {why}");
            let deleted = self.store.session(id).ok().flatten().and_then(|session| session.bundle_deleted);
            let message = match deleted {
                Some(at) => format!(
                    "the bundle was kept for as long as this contributor keeps bundles, and deleted at {}; ask the contributor whether \
                     it has a copy",
                    format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(at.min(u32::MAX.into())))
                ),
                None => {
                    "the bundle was written, and is no longer where it was; ask the contributor for it".into()
                }
            };
            Refusal { code: ErrorCode::Gone, message }
        };
        let path = self.prover.bundle(id);
        let failed = |error: io::Error| gone(format!("{}: {error}", path.display()));
        // Before opening: to open a pipe would wait for a writer.
        let found = fs::metadata(&path).map_err(failed)?;
        if !found.is_file() || found.len() != bytes {
            return Err(gone(format!("{} is no file of {bytes} bytes", path.display())));
        }
        let mut part = vec![0; (bytes - offset).min(self.part_bytes() as u64) as usize];
        File::open(&path).and_then(|file| file.read_exact_at(&mut part, offset)).map_err(failed)?;
        if offset + part.len() as u64 == bytes {
            info!(session = %id, bytes, "bundle handed over");
        }
        Ok((Response::Bundle { bytes }, part))
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
        self.limits.request_memory().min(MAX_BUNDLE_PART_BYTES as usize)
    }

    /// Most bytes of a call of more than one row: while it is answered it fits the memory that a client may take.
    fn max_call_bytes(&self) -> usize {
        self.limits.request_memory() / MEMORY_OF_BYTE
    }
}

fn unknown_session<T>() -> Result<T, Refusal> {
    refuse(ErrorCode::Session, "you have no such session here; it may have been idle for too long")
}

/// Fails unless the client has hashed the transcript that was recorded here: so many calls, with this digest.
fn same_transcript(
    (calls, digest): (u64, TranscriptDigest),
    (calls_here, here): (u64, TranscriptDigest),
) -> Result<(), Refusal> {
    if (calls, digest) == (calls_here, here) {
        return Ok(());
    }
    refuse(
        ErrorCode::Transcript,
        format!(
            "your transcript ({calls} calls, {digest}) is not this contributor's ({calls_here} calls, {here})"
        ),
    )
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

/// The response that carries these deltas.
fn packed(deltas: &[Delta]) -> (Response, Vec<u8>) {
    let (mut widths, mut payload) = (Vec::new(), Vec::new());
    for delta in deltas {
        let packed = pack_deltas(&delta.values);
        widths.push(packed.width);
        payload.extend_from_slice(&packed.bytes);
    }
    (Response::Deltas { widths }, payload)
}
