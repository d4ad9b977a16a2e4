//! One session with a contributor.

use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::runtime::Handle;
use tracing::trace_span;
use zklora_circuit::parameters::Security;
use zklora_proto::identity::Purpose;
use zklora_proto::limits::{MAX_CALL_DELTAS, MAX_CALL_ROWS, MAX_CALLS, MAX_CLOCK_SKEW, MAX_TENSOR_ENTRIES};
use zklora_proto::message::{ErrorCode, Nonce, ProofState, Request, Response};
use zklora_proto::packing::{PackingError, activations_to_bytes, unpack_deltas};
use zklora_proto::transcript::CallShape;
use zklora_proto::{
    AdapterId, Address, BaseModelDigest, Call, CommitmentSeed, Delta, Manifest, PROTOCOL_VERSION, Receipt,
    SecretKey, SessionHasher, SessionId, Signature, SignedManifest, SignedReceipt, counted,
};
use zklora_verdict::DEFAULT_MIN_SECURITY;

use crate::error::SessionError;
use crate::fetch::Fetcher;
use crate::link::Link;
use crate::record::{Record, RecordError};
use crate::requests::{Interrupt, ask, granted, unexpected, wait_for_proof};
use crate::transcript::Transcript;

/// An open session. Calls are made one after another, whatever the number of threads that ask. A connection that breaks is made anew,
/// and a contributor that went is waited for, for two minutes.
pub struct Session {
    runtime: Handle,
    link: Arc<Link>,
    id: SessionId,
    seed: CommitmentSeed,
    manifest: SignedManifest,
    max_call_bytes: usize,
    left: Vec<u64>,
    /// By this machine's clock, in seconds since 1970.
    opened: u64,
    transcript: Mutex<Transcript>,
}

impl Session {
    /// Connects to a contributor and opens a session with the pinned adapter, for the base model with this digest. Its proofs are to be
    /// worth [`DEFAULT_MIN_SECURITY`] bits.
    ///
    /// Blocks, as all methods do; must not be called from a task of the runtime.
    pub fn open(
        runtime: Handle,
        key: SecretKey,
        address: &Address,
        adapter: AdapterId,
        base_model: BaseModelDigest,
    ) -> Result<Self, SessionError> {
        Self::open_with_min_security(runtime, key, address, adapter, base_model, DEFAULT_MIN_SECURITY)
    }

    /// The same with a contributor whose parameter set guarantees at least this many bits of soundness on theorems alone. That is what it
    /// says of itself, before anything is asked of it; its bundle shows whether it was true.
    pub fn open_with_min_security(
        runtime: Handle,
        key: SecretKey,
        address: &Address,
        adapter: AdapterId,
        base_model: BaseModelDigest,
        min_security: u32,
    ) -> Result<Self, SessionError> {
        let key_of_client = key.public();
        let link = Arc::new(runtime.block_on(Link::dial(key, address.clone()))?);
        let (nonce, seed, opened) = (Nonce::random(), CommitmentSeed::random(), unix_time());
        let commitment_seed = seed.clone();
        let hello = Request::Hello { version: PROTOCOL_VERSION, adapter, base_model, nonce, commitment_seed };
        let (response, bytes) = ask(&runtime, &link, &hello)?;
        let Response::Welcome { nonce: theirs, signature, max_call_bytes, left, security } = response else {
            return Err(unexpected("a welcome", &response));
        };
        let manifest = SignedManifest::parse(bytes, signature)?;
        pinned("adapter", manifest.adapter_id(), adapter)?;
        let modules = manifest.manifest().modules().len();
        if left.len() != modules {
            let found = format!("{} budgets for {modules} modules", left.len());
            return Err(SessionError::Unexpected { expected: "a budget for each module", found });
        }
        pinned("contributor", *manifest.manifest().contributor(), address.key)?;
        pinned("base model", *manifest.manifest().base_model(), base_model)?;
        let security: Security = security.parse()?;
        if security.provable_bits() < min_security {
            return Err(SessionError::MinSecurity { security, min: min_security });
        }
        let id =
            SessionId::derive(nonce.as_bytes(), theirs.as_bytes(), &key_of_client, &address.key, &adapter);
        let transcript = Mutex::new(Transcript::new(runtime.clone(), modules, seed.clone()));
        Ok(Self { runtime, link, id, seed, manifest, max_call_bytes, left, opened, transcript })
    }

    /// For each module, linearly independent rows that the contributor would still answer when the session was opened, to all its
    /// clients together.
    pub fn left(&self) -> &[u64] {
        &self.left
    }

    /// The session's name.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// The adapter that is served: the pinned one.
    pub fn adapter(&self) -> AdapterId {
        self.manifest.adapter_id()
    }

    /// What the session's commitments are salted with, of which both parties know and nobody else. Whoever wants to show a call
    /// later has to keep it.
    pub fn commitment_seed(&self) -> &CommitmentSeed {
        &self.seed
    }

    /// What the contributor committed to; it has the pinned id.
    pub fn manifest(&self) -> &Manifest {
        self.manifest.manifest()
    }

    /// Calls and rows of each module so far.
    pub fn counts(&self) -> (u64, Vec<u64>) {
        let transcript = self.transcript.lock().unwrap_or_else(PoisonError::into_inner);
        (transcript.calls, transcript.rows.clone())
    }

    /// The deltas of row-major activations for these modules, which all read them: one `rows x d_out` for each module. Long
    /// inputs are split into several calls as the contributor asks.
    pub fn forward(&self, modules: &[usize], activations: &[i16]) -> Result<Vec<Vec<i64>>, SessionError> {
        let (calls, ()) = self.forward_while(modules, activations, || ())?;
        let deltas = |place: usize| {
            calls.iter().flat_map(move |call: &Arc<Call>| &call.deltas[place].values).copied().collect()
        };
        Ok((0..modules.len()).map(deltas).collect())
    }

    /// The same as the calls that it takes, one after another, and what `meanwhile` gives, which runs while the contributor is at
    /// the first of them.
    pub fn forward_while<T>(
        &self,
        modules: &[usize],
        activations: &[i16],
        meanwhile: impl FnOnce() -> T,
    ) -> Result<(Vec<Arc<Call>>, T), SessionError> {
        // One call after another: their order is part of the transcript.
        let mut transcript = self.transcript.lock().unwrap_or_else(PoisonError::into_inner);
        let row = CallShape::new(self.manifest(), 1, modules.to_vec())?;
        let d_in = row.d_in();
        let mut parts = activations.chunks(d_in * self.most_rows(&row));
        // None for no rows, which CallShape refuses.
        let first = parts.next().unwrap_or_default();
        let (call, value) = self.call(&mut transcript, modules, first, d_in, meanwhile)?;
        let mut calls = vec![call];
        for part in parts {
            calls.push(self.call(&mut transcript, modules, part, d_in, || ())?.0);
        }
        Ok((calls, value))
    }

    /// Most rows of a call with rows like this one: as the contributor asks, and as any call may have.
    fn most_rows(&self, row: &CallShape) -> usize {
        let widest = row.modules().iter().map(|&module| self.manifest().modules()[module].shape().d_out());
        let tensor = MAX_TENSOR_ENTRIES / widest.chain([row.d_in()]).max().unwrap_or(1);
        (self.max_call_bytes / row.bytes())
            .min(MAX_CALL_ROWS)
            .min(tensor)
            .min(MAX_CALL_DELTAS / row.d_out())
            .max(1)
    }

    fn call<T>(
        &self,
        transcript: &mut Transcript,
        modules: &[usize],
        activations: &[i16],
        d_in: usize,
        meanwhile: impl FnOnce() -> T,
    ) -> Result<(Arc<Call>, T), SessionError> {
        if transcript.calls >= MAX_CALLS {
            let message = "the session has as many calls as it may have".into();
            return Err(SessionError::Refused { code: ErrorCode::Limit, message });
        }
        let rows = activations.len() / d_in;
        let shape = CallShape::new(self.manifest(), rows, modules.to_vec())?;
        let (link, session, call) = (self.link.clone(), self.id, transcript.calls);
        let request = Request::Forward { session, call, rows, modules: modules.to_vec() };
        let bytes = trace_span!("serialise").in_scope(|| activations_to_bytes(activations));
        // In a task of the runtime it goes on by itself.
        let exchange = self.runtime.spawn(async move { link.request(&request, &bytes).await });
        let value = trace_span!("meanwhile").in_scope(meanwhile);
        let answer = trace_span!("wait").in_scope(|| self.runtime.block_on(exchange));
        let (response, payload) =
            granted(answer.unwrap_or_else(|failed| resume_unwind(failed.into_panic())))?;
        let Response::Deltas { widths } = response else {
            return Err(unexpected("deltas", &response));
        };
        let unpack = || self.unpack(&shape, &widths, &payload);
        let deltas = trace_span!("unpack").in_scope(unpack)?;
        let call = Arc::new(Call { rows, activations: activations.to_vec(), deltas });
        trace_span!("hash").in_scope(|| transcript.add(call.clone()));
        Ok((call, value))
    }

    /// The deltas of an answer.
    fn unpack(&self, shape: &CallShape, widths: &[u8], payload: &[u8]) -> Result<Vec<Delta>, SessionError> {
        if widths.len() != shape.modules().len() {
            let found = format!(
                "{} for {}",
                counted(widths.len(), "width"),
                counted(shape.modules().len(), "module")
            );
            return Err(SessionError::Unexpected { expected: "one width for each module", found });
        }
        let mut rest = payload;
        let mut deltas = Vec::with_capacity(widths.len());
        for (&module, &width) in shape.modules().iter().zip(widths) {
            let entries = shape.rows() * self.manifest().modules()[module].shape().d_out();
            let length = (entries * usize::from(width)).min(rest.len());
            let (bytes, after) = rest.split_at(length);
            deltas.push(Delta { module, values: unpack_deltas(width, bytes, entries)? });
            rest = after;
        }
        if !rest.is_empty() {
            let (expected, found) = (payload.len() - rest.len(), payload.len());
            return Err(PackingError::Length { expected, found }.into());
        }
        Ok(deltas)
    }

    /// Has every module that was called answer [`BLINDING_ROWS`](zklora_proto::BLINDING_ROWS) random rows, each in a call of its own, so that a redacted bundle does
    /// not give the other rows away. To be done after the last call: `docs/zero-knowledge.md`, "Redacted bundles".
    pub fn blind(&self) -> Result<(), SessionError> {
        let (_, rows) = self.counts();
        for (module, _) in rows.iter().enumerate().filter(|(_, rows)| **rows > 0) {
            let d_in = self.manifest().modules()[module].shape().d_in();
            self.forward(&[module], &self.seed.blinding_rows(module, d_in))?;
        }
        Ok(())
    }

    /// Ends the calls: gets the contributor's receipt, holds it against what happened, signs it and hands the signature
    /// over. From then on the contributor proves.
    pub fn finish(&self) -> Result<SignedReceipt, SessionError> {
        self.finish_keeping(|_| Ok(()))
    }

    /// The same, where `keep` gets the receipt with both signatures before the contributor has the client's.
    pub fn finish_keeping(
        &self,
        keep: impl FnOnce(&SignedReceipt) -> Result<(), RecordError>,
    ) -> Result<SignedReceipt, SessionError> {
        let mut transcript = self.transcript.lock().unwrap_or_else(PoisonError::into_inner);
        let hasher = transcript.hasher();
        let request =
            Request::Finish { session: self.id, calls: hasher.calls(), transcript: hasher.digest() };
        let (response, bytes) = ask(&self.runtime, &self.link, &request)?;
        let Response::Receipt { signature } = response else {
            return Err(unexpected("a receipt", &response));
        };
        let receipt = Receipt::from_bytes(&bytes)?;
        self.check(&receipt, transcript.hasher())?;
        // Each signature of a receipt is a try at challenges that let a false delta through: there is one for each session.
        if *transcript.signed.get_or_insert_with(|| bytes.clone()) != bytes {
            return Err(SessionError::SecondReceipt);
        }
        let countersignature = self.link.key().sign(Purpose::ReceiptClient, &bytes);
        let signed = SignedReceipt::parse(bytes, signature, countersignature)?;
        keep(&signed)?;
        self.countersign(countersignature)?;
        Ok(signed)
    }

    /// Whether the receipt says what happened.
    fn check(&self, receipt: &Receipt, transcript: &SessionHasher) -> Result<(), SessionError> {
        let same = |what, found: &dyn ToString, expected: &dyn ToString| {
            let (found, expected) = (found.to_string(), expected.to_string());
            if found == expected { Ok(()) } else { Err(SessionError::FalseReceipt { what, found, expected }) }
        };
        same("session", &receipt.session, &self.id)?;
        same("adapter", &receipt.adapter, &self.manifest.adapter_id())?;
        same("base model", &receipt.base_model, self.manifest().base_model())?;
        same("contributor", &receipt.contributor, self.manifest().contributor())?;
        same("client", &receipt.client, &self.link.key().public())?;
        same("calls", &receipt.calls, &transcript.calls())?;
        same("transcript", &receipt.transcript, &transcript.digest())?;
        same("commitments", &receipt.commitments, &transcript.commitments())?;
        same("rows", &format!("{:?}", receipt.rows), &format!("{:?}", transcript.rows()))?;
        self.check_times(receipt.started, receipt.finished)
    }

    /// Whether the receipt's times are those of this machine, within what two clocks may differ.
    fn check_times(&self, started: u64, finished: u64) -> Result<(), SessionError> {
        let near = |what, found: u64, here: u64| {
            if found.abs_diff(here) <= MAX_CLOCK_SKEW {
                return Ok(());
            }
            let expected =
                format!("expected at most {MAX_CLOCK_SKEW} s from {here}, by this machine's clock");
            Err(SessionError::FalseTime { what, found, expected })
        };
        near("started", started, self.opened)?;
        near("finished", finished, unix_time())
    }

    fn countersign(&self, signature: Signature) -> Result<(), SessionError> {
        let request = Request::Countersign { session: self.id, signature };
        match ask(&self.runtime, &self.link, &request)?.0 {
            Response::Accepted => Ok(()),
            other => Err(unexpected("that it accepts the receipt", &other)),
        }
    }

    /// Waits until the contributor has proved the session; gives the size of its bundle. `progress` hears of every change.
    pub fn wait_for_proof(&self, progress: impl FnMut(&ProofState)) -> Result<u64, SessionError> {
        self.wait_for_proof_unless(&|| Ok(()), progress)
    }

    /// The same, unless it is interrupted.
    pub fn wait_for_proof_unless(
        &self,
        interrupt: Interrupt<'_>,
        progress: impl FnMut(&ProofState),
    ) -> Result<u64, SessionError> {
        wait_for_proof(&self.runtime, &self.link, self.id, interrupt, progress)
    }

    /// The record of this session, which was opened just now at this address.
    pub fn record(&self, contributor: Address) -> Record {
        Record {
            session: self.id(),
            contributor,
            adapter: self.adapter(),
            seed: self.commitment_seed().clone(),
            receipt: None,
            alpha: None,
            bundle: None,
        }
    }

    /// What fetches bundles over this session's connection.
    pub fn fetcher(&self) -> Fetcher {
        Fetcher::over(self.runtime.clone(), self.link.clone())
    }

    /// Closes the connection.
    pub fn close(self) {
        self.runtime.block_on(self.link.close());
    }
}

/// Seconds since 1970; 0 for a clock set before.
fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|time| time.as_secs()).unwrap_or(0)
}

fn pinned<T: PartialEq + ToString>(what: &'static str, found: T, expected: T) -> Result<(), SessionError> {
    if found == expected {
        return Ok(());
    }
    Err(SessionError::NotPinned { what, found: found.to_string(), expected: expected.to_string() })
}
