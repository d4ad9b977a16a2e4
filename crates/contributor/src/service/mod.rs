//! What the contributor answers, free of any transport.

mod overview;
mod session;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use tracing::{error, info, warn};
use zklora_proto::identity::Purpose;
use zklora_proto::limits::{MAX_CALL_ROWS, MAX_CALLS, MAX_PAYLOAD_BYTES};
use zklora_proto::message::{ErrorCode, Nonce, ProofState, Request, Response};
use zklora_proto::packing::{activations_from_bytes, pack_deltas};
use zklora_proto::transcript::CallShape;
use zklora_proto::{
    AdapterId, BaseModelDigest, Call, Delta, PROTOCOL_VERSION, PublicKey, Receipt, SessionId, Signature,
    SignedReceipt, TranscriptDigest,
};

pub use self::overview::Overview;
use self::session::{Entry, Session, Stage};
use crate::budget::{Budget, Reservation};
use crate::delta::{DeltaEngine, DeltaError};
use crate::exposure::{Ledger, Refused, boot_id};
use crate::prover::{Job, Prover};
use crate::state::{State, unix_time};
use crate::store::{self, Store, StoredSession};

/// What a contributor allows its clients.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Open sessions of one client.
    pub sessions_per_client: usize,
    /// Open sessions of all clients.
    pub sessions: usize,
    /// Memory for the transcript of one session, in bytes.
    pub session_bytes: usize,
    /// Memory for the transcripts of all sessions, those that wait for their proof included, in bytes.
    pub total_bytes: usize,
    /// A session without a request for this long is forgotten.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions_per_client: 16,
            sessions: 256,
            session_bytes: 2 << 30,
            total_bytes: 8 << 30,
            idle: Duration::from_secs(600),
        }
    }
}

/// A request that was not granted, as the client is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What kind.
    pub code: ErrorCode,
    /// In words.
    pub message: String,
}

fn refuse<T>(code: ErrorCode, message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { code, message: message.into() })
}

/// Serves one adapter.
pub struct Service {
    state: Arc<State>,
    adapter: AdapterId,
    engines: Vec<DeltaEngine>,
    limits: Limits,
    sessions: Mutex<HashMap<SessionId, Entry>>,
    budget: Arc<Budget>,
    store: Arc<Store>,
    ledger: Ledger,
    prover: Prover,
    abandoned: AtomicU64,
}

impl Service {
    /// A service of this state, whose finished sessions go to `prover`, and which answers at most `share` of each module's d_in in
    /// independent rows. Takes up what an earlier service left in the store: finished sessions are proved, open ones wait for
    /// their clients.
    pub fn new(
        state: Arc<State>,
        limits: Limits,
        store: Arc<Store>,
        share: f64,
        prover: Prover,
    ) -> anyhow::Result<Self> {
        let service = Self {
            adapter: state.manifest.adapter_id(),
            engines: state.openings.iter().map(DeltaEngine::new).collect::<Result<_, _>>()?,
            ledger: Ledger::open(&store, state.manifest.manifest(), share, &boot_id())
                .context("opening the exposure ledger")?,
            state,
            budget: Budget::new(limits.total_bytes),
            limits,
            sessions: Mutex::default(),
            store,
            prover,
            abandoned: AtomicU64::new(0),
        };
        for stored in service.store.sessions_at(store::Stage::Finished)? {
            let id = stored.id;
            match service
                .restore(stored)
                .and_then(|(session, receipt)| Ok((session, receipt.context("the receipt is missing")?)))
            {
                Ok((session, receipt)) => {
                    info!(session = %id, "taken up again: finished, to be proved");
                    let Session { calls, memory, .. } = session;
                    service.prover.submit(Job { receipt, calls, memory });
                }
                // It stays finished: what stands in its way, such as a lack of memory, may be gone at the next start.
                Err(error) => error!(session = %id, "not taken up again until the next start: {error:#}"),
            }
        }
        for stage in [store::Stage::Open, store::Stage::Signed] {
            for stored in service.store.sessions_at(stage)? {
                let (id, client) = (stored.id, stored.client);
                match service.restore(stored) {
                    Ok((session, _)) => {
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

    /// A session as it was, with its deltas computed again, and its receipt if both have signed it.
    fn restore(&self, stored: StoredSession) -> anyhow::Result<(Session, Option<SignedReceipt>)> {
        let manifest = self.state.manifest.manifest();
        let mut session = Session::new(stored.started, manifest.modules().len(), self.budget.clone());
        for call in self.store.calls(stored.id)? {
            let shape = CallShape::new(manifest, call.rows, call.modules)?;
            let call = Call {
                rows: call.rows,
                deltas: self.deltas(&shape, &call.activations)?,
                activations: call.activations,
            };
            anyhow::ensure!(session.memory.grow(bytes_of(&call)), "there is not memory for all sessions");
            anyhow::ensure!(session.hasher.add(&call), "the session has too many calls");
            session.calls.push(call);
        }
        let mut receipt = None;
        if let (Some(bytes), Some(signature)) = (stored.receipt, stored.by_contributor) {
            if let Some(by_client) = stored.by_client {
                receipt = Some(SignedReceipt::parse(bytes.clone(), signature, by_client)?);
            }
            session.stage = Stage::Signed { receipt: bytes, signature };
        }
        Ok((session, receipt))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<SessionId, Entry>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the service in order: nothing that the ledger reserved is open any more.
    pub fn close(&self) -> anyhow::Result<()> {
        self.ledger.close(&self.store)
    }

    /// Largest payload that any request may have: the activations of a call.
    pub fn max_payload(&self) -> u64 {
        let widest = self.state.manifest.manifest().modules().iter().map(|m| m.shape().d_in()).max();
        (widest.unwrap_or(0) * 2 * self.max_rows()) as u64
    }

    /// Refuses a request for a session that is not the client's, before its payload is read.
    pub fn admit(&self, client: PublicKey, request: &Request) -> Result<(), Refusal> {
        match request {
            Request::Forward { session, .. } => self.session(client, *session).map(drop),
            _ => Ok(()),
        }
    }

    /// Answers a request of the client that holds this key.
    pub fn answer(
        &self,
        client: PublicKey,
        request: Request,
        payload: Vec<u8>,
    ) -> Result<(Response, Vec<u8>), Refusal> {
        if !payload.is_empty() && !matches!(request, Request::Forward { .. }) {
            return refuse(ErrorCode::BadRequest, "only a forward request has a payload");
        }
        match request {
            Request::Hello { version, adapter, base_model, nonce } => {
                self.hello(client, version, adapter, base_model, nonce)
            }
            Request::Forward { session, call, rows, modules } => {
                self.forward(client, session, call, rows, modules, &payload)
            }
            Request::Finish { session, calls, transcript } => self.finish(client, session, calls, transcript),
            Request::Countersign { session, signature } => self.countersign(client, session, signature),
            Request::Status { session } => self.status(client, session),
        }
    }

    /// Waits until every finished session has been proved.
    pub fn drain(&self) {
        self.prover.drain();
    }

    fn hello(
        &self,
        client: PublicKey,
        version: u32,
        adapter: AdapterId,
        base_model: BaseModelDigest,
        nonce: Nonce,
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
        let mut sessions = self.lock();
        let mut of_client = 0;
        let mut abandoned = Vec::new();
        sessions.retain(|id, entry| {
            // A session that is locked is in use.
            let keep = entry.session.try_lock().map_or(true, |session| {
                let done = matches!(session.stage, Stage::Done);
                let idle = session.last_used.elapsed() >= self.limits.idle;
                if idle && !done {
                    abandoned.push(*id);
                }
                !idle && !done
            });
            of_client += usize::from(keep && entry.client == client);
            keep
        });
        for id in abandoned {
            info!(session = %id, "abandoned: its client has been silent for too long");
            self.store.abandon(id).map_err(|e| not_recorded(id, &e))?;
            self.abandoned.fetch_add(1, Ordering::Relaxed);
        }
        if of_client >= self.limits.sessions_per_client || sessions.len() >= self.limits.sessions {
            return refuse(ErrorCode::Limit, "too many sessions are open; finish one, or try again later");
        }
        let session = Session::new(unix_time(), modules, self.budget.clone());
        self.store.begin(id, client, session.started).map_err(|e| not_recorded(id, &e))?;
        sessions.insert(id, Entry { client, session: Arc::new(Mutex::new(session)) });
        info!(session = %id, %client, "session opened");
        let welcome = Response::Welcome {
            nonce: mine,
            signature: *self.state.manifest.signature(),
            max_rows: self.max_rows(),
            left: self.ledger.exposures().iter().map(|e| e.budget.saturating_sub(e.rows) as u64).collect(),
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
        if again {
            let last = session.calls.last().filter(|last| {
                last.activations == activations
                    && last.deltas.iter().map(|delta| delta.module).eq(shape.modules().iter().copied())
            });
            let Some(last) = last else {
                return refuse(ErrorCode::Session, format!("call {call} has been answered, and was another"));
            };
            let answer = packed(&last.deltas);
            session.last_used = Instant::now();
            return Ok(answer);
        }
        let outputs: usize =
            shape.modules().iter().map(|&m| rows * manifest.modules()[m].shape().d_out()).sum();
        let bytes = 2 * entries + 8 * outputs;
        if session.memory.bytes() + bytes > self.limits.session_bytes {
            return refuse(
                ErrorCode::Limit,
                format!(
                    "the session has reached its limit of {} MiB; finish it and open another",
                    self.limits.session_bytes >> 20
                ),
            );
        }
        if !session.memory.grow(bytes) {
            return refuse(
                ErrorCode::Limit,
                "this contributor holds as many transcripts as it can; finish the session, or try again later",
            );
        }
        let deltas = self.deltas(&shape, &activations).map_err(|e| {
            error!(session = %id, "delta: {e}");
            Refusal {
                code: ErrorCode::Internal,
                message: "the contributor could not compute the delta".into(),
            }
        })?;
        let answer = packed(&deltas);
        if answer.1.len() as u64 > MAX_PAYLOAD_BYTES {
            return refuse(ErrorCode::Limit, "the deltas of this call do not fit a message; send fewer rows");
        }
        // The ledger and the journal come before the answer. What is counted and then not sent is counted all the same.
        let charge = self.ledger.charge(shape.modules(), &activations).map_err(|refused| match refused {
            Refused::Exhausted(_) => Refusal { code: ErrorCode::Exposure, message: refused.to_string() },
            Refused::Closed => Refusal { code: ErrorCode::Limit, message: refused.to_string() },
        })?;
        charge
            .record(&activations, |exposed| {
                self.store.record(id, call, (shape.modules(), rows, &activations), exposed)
            })
            .map_err(|e| not_recorded(id, &e))?;
        let call = Call { rows, activations, deltas };
        // Fewer calls than there may be: checked above.
        let _ = session.hasher.add(&call);
        session.calls.push(call);
        session.last_used = Instant::now();
        Ok(answer)
    }

    /// The deltas of a call, module by module.
    fn deltas(&self, shape: &CallShape, activations: &[i16]) -> Result<Vec<Delta>, DeltaError> {
        let of = |&module: &usize| Ok(Delta { module, values: self.engines[module].delta(activations)? });
        shape.modules().iter().map(of).collect()
    }

    fn finish(
        &self,
        client: PublicKey,
        id: SessionId,
        calls: u64,
        transcript: TranscriptDigest,
    ) -> Result<(Response, Vec<u8>), Refusal> {
        let session = self.session(client, id)?;
        let mut session = session.lock().unwrap_or_else(PoisonError::into_inner);
        match &session.stage {
            Stage::Open => {}
            // Asked again: the same answer.
            Stage::Signed { receipt, signature } => {
                return Ok((Response::Receipt { signature: *signature }, receipt.clone()));
            }
            Stage::Done => return refuse(ErrorCode::Session, "the session is finished already"),
        }
        if calls != session.hasher.calls() || transcript != session.hasher.digest() {
            return refuse(
                ErrorCode::Transcript,
                format!(
                    "your transcript ({calls} calls, {transcript}) is not this contributor's ({} calls, {})",
                    session.hasher.calls(),
                    session.hasher.digest()
                ),
            );
        }
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
            session.started,
            unix_time(),
        )
        .to_bytes();
        let signature = self.state.key.sign(Purpose::ReceiptContributor, &receipt);
        self.store.sign(id, &receipt, &signature).map_err(|e| not_recorded(id, &e))?;
        session.stage = Stage::Signed { receipt: receipt.clone(), signature };
        session.last_used = Instant::now();
        Ok((Response::Receipt { signature }, receipt))
    }

    fn countersign(
        &self,
        client: PublicKey,
        id: SessionId,
        by_client: Signature,
    ) -> Result<(Response, Vec<u8>), Refusal> {
        if self.prover.status(&id).is_some() {
            // Asked again: it has been accepted.
            return self.status(client, id).map(|_| (Response::Accepted, vec![]));
        }
        let session = self.session(client, id)?;
        let mut session = session.lock().unwrap_or_else(PoisonError::into_inner);
        let Stage::Signed { receipt, signature } = &session.stage else {
            return refuse(ErrorCode::Session, "the session has no receipt to sign yet; finish it first");
        };
        let receipt = SignedReceipt::parse(receipt.clone(), *signature, by_client)
            .map_err(|e| Refusal { code: ErrorCode::Signature, message: e.to_string() })?;
        self.store.finish(id, &by_client).map_err(|e| not_recorded(id, &e))?;
        info!(session = %id, calls = receipt.receipt().calls, "receipt signed by both");
        session.stage = Stage::Done;
        let calls = std::mem::take(&mut session.calls);
        let memory = std::mem::replace(&mut session.memory, Reservation::none(self.budget.clone()));
        self.prover.submit(Job { receipt, calls, memory });
        Ok((Response::Accepted, vec![]))
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
            _ => None,
        }
    }

    fn session(&self, client: PublicKey, id: SessionId) -> Result<Arc<Mutex<Session>>, Refusal> {
        match self.lock().get(&id) {
            Some(entry) if entry.client == client => Ok(entry.session.clone()),
            _ => unknown_session(),
        }
    }

    fn max_rows(&self) -> usize {
        MAX_CALL_ROWS.min(1 << 14)
    }
}

fn unknown_session<T>() -> Result<T, Refusal> {
    refuse(ErrorCode::Session, "you have no such session here; it may have been idle for too long")
}

fn not_recorded(id: SessionId, error: &anyhow::Error) -> Refusal {
    error!(session = %id, "recording: {error:#}");
    Refusal { code: ErrorCode::Internal, message: "the contributor could not record this; try again".into() }
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

/// Memory that a call takes.
fn bytes_of(call: &Call) -> usize {
    2 * call.activations.len() + call.deltas.iter().map(|delta| 8 * delta.values.len()).sum::<usize>()
}
