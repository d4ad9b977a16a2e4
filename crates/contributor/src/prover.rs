//! Proving finished sessions, one after another, in a thread and with a thread pool of its own, so that answering deltas
//! goes on meanwhile.
//!
//! What waits is in the [`Store`] and in [job folders](crate::job), and is taken up again at the next start: stopping loses nothing.

use std::collections::{HashMap, VecDeque};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use prometheus_client::metrics::histogram::Histogram;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing::{Span, error, info, info_span, warn};
use zklora_circuit::circuit::BatchCircuit;
use zklora_circuit::parameters::Security;
use zklora_circuit::plan::Planner;
use zklora_circuit::session::Circuits;
use zklora_proto::bundle::{Bundle, BundleParts, PARTIAL};
use zklora_proto::message::ProofState;
use zklora_proto::{PublicKey, SessionId, SignedReceipt, SignedSession, counted, partial, secret_file};

use crate::budget::Reservation;
use crate::delta::Engines;
use crate::job::Job;
use crate::state::State;
use crate::store::{Stage, Store};

/// Sessions that are over and whose outcome is still told from memory.
const REMEMBERED: usize = 4096;
/// How often the folders of jobs that are proved elsewhere are looked into.
pub const POLL: Duration = Duration::from_secs(2);
/// A session that failed is tried again after this pause, twice as long each time up to [`LONGEST_PAUSE`]: a disk that was full may have
/// room again.
pub const FIRST_PAUSE: Duration = Duration::from_secs(15);
/// See [`FIRST_PAUSE`].
pub const LONGEST_PAUSE: Duration = Duration::from_secs(3600);
/// Of a folder for bundles that is made: open to the group, as the bundles in it are.
pub const OUT_DIR_MODE: u32 = 0o750;
/// Upper ends of the histogram's buckets, in seconds: from a few modules of a small model to a large adapter on one core.
const PROVING_TIMES: [f64; 13] =
    [1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 21600.0];
/// What the proving threads add to their nice value: whoever answers goes first.
const NICE: i32 = 10;

/// Where sessions are proved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Place {
    /// In this process.
    #[default]
    Here,
    /// By others, who put proofs into the job folders; this process makes the folders, and the bundles when all proofs are there.
    Elsewhere,
}

/// How sessions are proved.
#[derive(Debug, Clone)]
pub struct ProverConfig {
    /// The state folder; jobs are in it.
    pub folder: PathBuf,
    /// Bundles are written here as `<session>.pf`.
    pub out_dir: PathBuf,
    /// Parameter set, threads and memory.
    pub planner: Planner,
    /// By whom.
    pub place: Place,
}

/// The queue of sessions to be proved.
pub struct Prover {
    out_dir: PathBuf,
    security: Security,
    shared: Arc<Shared>,
    worker: Mutex<Option<JoinHandle<()>>>,
}

/// What the prover is doing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Snapshot {
    /// Sessions that wait for their turn.
    pub queued: usize,
    /// Those that are being proved.
    pub proving: Vec<Progress>,
    /// What was done since this process began.
    pub totals: Totals,
}

/// How far a session is that is being proved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Progress {
    /// The session.
    pub session: SessionId,
    /// Batches done.
    pub done: usize,
    /// Batches in all.
    pub total: usize,
}

/// What a prover has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Totals {
    /// Sessions proved, each with its bundle.
    pub proved: u64,
    /// Sessions whose proving failed.
    pub failed: u64,
    /// Time of proving, in sessions that ended either way.
    pub seconds: f64,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    stopping: AtomicBool,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    /// Those that failed, until they are tried again.
    paused: Vec<(Instant, Waiting)>,
    /// In the hands of the worker.
    working: usize,
    states: HashMap<SessionId, (PublicKey, ProofState)>,
    /// Those that are over, oldest first.
    over: VecDeque<SessionId>,
    totals: Totals,
    time: ProvingTime,
}

/// From the first batch of a session to its bundle, in seconds.
struct ProvingTime(Histogram);

impl Default for ProvingTime {
    fn default() -> Self {
        Self(Histogram::new(PROVING_TIMES))
    }
}

/// A session that both have signed, and the disk space that it takes.
struct Waiting {
    id: SessionId,
    client: PublicKey,
    _journal: Reservation,
    /// When its proving began, in this process.
    began: Option<Instant>,
    /// How long to wait if it fails.
    pause: Duration,
}

enum Outcome {
    Proved(u64),
    /// Proofs are missing: others are to make them, or one was damaged.
    Pending,
    Stopped,
}

impl Prover {
    /// Starts the prover. Fails if a module cannot be proved as configured, or if nothing can be written where bundles go.
    pub fn start(
        state: Arc<State>,
        engines: Arc<Engines>,
        store: Arc<Store>,
        config: ProverConfig,
    ) -> anyhow::Result<Self> {
        let ProverConfig { out_dir, planner, .. } = &config;
        let security = planner.security;
        // What cannot be proved must not be served.
        let modules = state.manifest.manifest().modules().len();
        planner
            .plan(state.manifest.manifest(), &vec![1; modules])
            .context("this adapter cannot be proved")?;
        secret_file::create_folder(out_dir, OUT_DIR_MODE)
            .with_context(|| format!("making {}", out_dir.display()))?;
        // Whether a bundle can be written there is better known before a session than after it.
        tempfile::tempfile_in(out_dir).with_context(|| format!("writing into {}", out_dir.display()))?;
        remove_abandoned(&config.folder, Some(out_dir));
        let pool = proving_threads(planner.threads)?;
        let (shared, out_dir) = (Arc::new(Shared::default()), out_dir.clone());
        let worker = Worker { state, engines, store, config, circuits: Circuits::default(), shared, pool };
        let shared = worker.shared.clone();
        let worker = std::thread::Builder::new()
            .name("prover".into())
            .spawn(move || worker.run())
            .context("starting")?;
        Ok(Self { out_dir, security, shared, worker: Mutex::new(Some(worker)) })
    }

    /// Adds a session that the store has as finished or as being proved. `journal` is the disk space it takes until then.
    pub fn submit(&self, id: SessionId, client: PublicKey, journal: Reservation) {
        let mut queue = self.shared.lock();
        queue.states.insert(id, (client, ProofState::Queued));
        queue.waiting.push_back(Waiting { id, client, _journal: journal, began: None, pause: FIRST_PAUSE });
        self.shared.changed.notify_all();
    }

    /// Whose a session is and how far it is; `None` if it was never submitted, or long ago.
    pub fn status(&self, session: &SessionId) -> Option<(PublicKey, ProofState)> {
        self.shared.lock().states.get(session).cloned()
    }

    /// The parameter set of the proofs.
    pub fn security(&self) -> Security {
        self.security
    }

    /// Where the bundle of a session is, once it is proved.
    pub fn bundle(&self, session: SessionId) -> PathBuf {
        bundle_in(&self.out_dir, session)
    }

    /// Sessions that are not proved yet.
    pub fn waiting(&self) -> usize {
        let queue = self.shared.lock();
        queue.waiting.len() + queue.paused.len() + queue.working
    }

    /// How long sessions took from their first batch to their bundle, in seconds, those that this process saw begin: pauses after failures and,
    /// if others prove, waiting for them included.
    pub fn time(&self) -> Histogram {
        self.shared.lock().time.0.clone()
    }

    /// What it is doing now.
    pub fn snapshot(&self) -> Snapshot {
        let queue = self.shared.lock();
        let (mut queued, mut proving) = (0, Vec::new());
        for (&session, (_, state)) in &queue.states {
            match *state {
                ProofState::Queued => queued += 1,
                ProofState::Proving { done, total } => proving.push(Progress { session, done, total }),
                _ => {}
            }
        }
        Snapshot { queued, proving, totals: queue.totals }
    }

    /// Stops at the end of the batches that are being proved, and waits for it. What is left is proved after the next start.
    pub fn stop(&self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        // Whoever is between looking and waiting has the lock.
        drop(self.shared.lock());
        self.shared.changed.notify_all();
        let worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner).take();
        if worker.is_some_and(|worker| worker.join().is_err()) {
            error!("the proving thread panicked; this is a bug");
        }
    }
}

/// Removes what killed processes left half written in a state folder and in one for bundles. What others are writing stays.
pub fn remove_abandoned(state: &Path, out_dir: Option<&Path>) {
    let bundles = || out_dir.map_or(Ok(0), |out_dir| partial::remove_abandoned_files(out_dir, PARTIAL));
    let removed = Job::remove_abandoned(state).and_then(|jobs| Ok(jobs + bundles()?));
    match removed {
        Ok(0) => {}
        Ok(removed) => {
            info!("removed {removed} files or folders that killed processes had left half written")
        }
        // Nobody is in want of them.
        Err(error) => warn!("looking for what killed processes have left half written: {error}"),
    }
}

/// Threads for proving, who let everybody else go first.
pub fn proving_threads(threads: usize) -> anyhow::Result<rayon::ThreadPool> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("prover-{i}"))
        .start_handler(|_| {
            // On Linux a thread has a nice value of its own. Without it, all goes on, only slower.
            let _ = rustix::process::nice(NICE);
        })
        .build()
        .context("starting the proving threads")
}

/// The job of a finished session: the one that is there, or a new one, made of what the store has.
pub fn prepare(
    folder: &Path,
    id: SessionId,
    engines: &Engines,
    store: &Store,
    planner: &Planner,
) -> anyhow::Result<Job> {
    let path = Job::folder(folder, id);
    let session = store.session(id)?.with_context(|| format!("there is no session {id}"))?;
    anyhow::ensure!(
        matches!(session.stage, Stage::Finished | Stage::Proving | Stage::Failed),
        "session {id} is {}, expected one that both parties have signed and that is not proved",
        session.stage.name()
    );
    if !path.exists() {
        // Later, the calls are in the folder alone.
        anyhow::ensure!(
            session.stage == Stage::Finished,
            "{} is not there: expected the job of session {id}, which is begun",
            path.display()
        );
        let (Some(receipt), Some(by_contributor), Some(by_client), Some(seed)) =
            (session.receipt, session.by_contributor, session.by_client, session.seed)
        else {
            anyhow::bail!("the receipt or the commitment seed of session {id} is missing")
        };
        let receipt = SignedReceipt::parse(receipt, by_contributor, by_client)?;
        let mut calls = Vec::new();
        store.calls(id, |call| {
            calls.push(engines.call(call)?);
            Ok(())
        })?;
        let signed = SignedSession::new(engines.manifest().clone(), receipt)?;
        // As the client was told, whatever the setting is now.
        let planner = Planner { security: session.security, ..*planner };
        let plan = planner.plan(signed.manifest().manifest(), signed.rows())?.plan;
        let salt = seed.transcript_salt();
        let parts = BundleParts { session: &signed, salt, calls: &calls, plan: &plan, proofs: &[] };
        Job::create(&path, &parts)?;
    }
    let job = Job::open(&path)?;
    anyhow::ensure!(job.receipt().receipt().session == id, "{} is of another session", path.display());
    if session.stage == Stage::Finished {
        store.proving(id)?;
    }
    Ok(job)
}

/// What the proving thread has.
struct Worker {
    state: Arc<State>,
    engines: Arc<Engines>,
    store: Arc<Store>,
    config: ProverConfig,
    circuits: Circuits<BatchCircuit>,
    shared: Arc<Shared>,
    pool: rayon::ThreadPool,
}

impl Worker {
    fn run(&self) {
        // How many in a row could not be finished.
        let mut pending = 0;
        while let Some(mut waiting) = self.shared.next(pending) {
            let (id, started) = (waiting.id, Instant::now());
            waiting.began.get_or_insert(started);
            let _span = info_span!("session", %id).entered();
            // A panic in one session, of plonky2 for example, must not end the proving of all others.
            let outcome = catch_unwind(AssertUnwindSafe(|| self.prove(&waiting)));
            let seconds = started.elapsed().as_secs_f64();
            pending = if matches!(outcome, Ok(Ok(Outcome::Pending))) { pending + 1 } else { 0 };
            match outcome {
                Ok(Ok(Outcome::Proved(bytes))) => {
                    if let Err(error) = self.store.proved(id, bytes) {
                        error!("recording that it is proved: {error:#}");
                    }
                    self.shared.end(waiting, ProofState::Proved { bytes }, seconds);
                }
                Ok(Ok(Outcome::Pending)) => self.shared.put_back(waiting),
                Ok(Ok(Outcome::Stopped)) => {
                    info!("proving is stopped, and goes on at the next start");
                    self.shared.put_back(waiting);
                }
                Ok(Err(error)) => {
                    error!("proving failed, and is tried again in {:?}: {error:#}", waiting.pause);
                    self.shared.pause(waiting);
                }
                Err(_) => {
                    error!("proving panicked; this is a bug");
                    if let Err(error) = self.store.failed(id) {
                        error!("recording that it failed: {error:#}");
                    }
                    self.shared.end(waiting, ProofState::Failed, seconds);
                }
            }
        }
    }

    fn prove(&self, waiting: &Waiting) -> anyhow::Result<Outcome> {
        let Self { state, engines, store, config, circuits, shared, pool } = self;
        let (id, client) = (waiting.id, waiting.client);
        let path = bundle_in(&config.out_dir, id);
        let ProverConfig { folder, planner, place, .. } = config;
        let mut job = match prepare(folder, id, engines, store, planner) {
            Ok(job) => job,
            // The folder may be gone because the bundle is there, or was, until somebody took it: the process died in between.
            Err(error) => {
                let bytes = written(&path, id).or_else(|| Job::proved(folder, id));
                return bytes.map(Outcome::Proved).ok_or(error);
            }
        };
        if *place == Place::Here {
            job.discard_damaged()?;
        }
        let (started, missing, total) = (Instant::now(), job.missing(), job.plan().batches.len());
        let done = AtomicUsize::new(total - missing.len());
        let progress = |done| shared.set(id, client, ProofState::Proving { done, total });
        progress(done.load(Ordering::Relaxed));
        if *place == Place::Here && !missing.is_empty() {
            info!("proving: {} of {}", total - missing.len(), counted(total, "batch"));
            // Of this thread; the proofs are made by others.
            let span = Span::current();
            let proved = || {
                let done = done.fetch_add(1, Ordering::Relaxed) + 1;
                span.in_scope(|| info!("proving: {done} of {}", counted(total, "batch")));
                progress(done);
                match shared.stopping.load(Ordering::Relaxed) {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                }
            };
            let _ = pool.install(|| job.prove(&missing, &state.openings, planner, circuits, &proved))?;
        }
        let Some(bytes) = job.finish(&path)? else {
            let stopping = shared.stopping.load(Ordering::Relaxed);
            return Ok(if stopping { Outcome::Stopped } else { Outcome::Pending });
        };
        let proving = started.elapsed().as_secs_f64();
        info!(proofs = total, bytes, seconds = proving, "proved: {}", path.display());
        if let Err(error) = job.remove(bytes) {
            warn!("the job folder, which is done with, could not be removed: {error}");
        }
        Ok(Outcome::Proved(bytes))
    }
}

/// Where the bundle of a session is.
pub(crate) fn bundle_in(out_dir: &Path, session: SessionId) -> PathBuf {
    out_dir.join(format!("{session}.pf"))
}

/// The size of a session's bundle, if it is there.
fn written(path: &Path, id: SessionId) -> Option<u64> {
    let bundle = Bundle::open(path).ok()?;
    (bundle.receipt().receipt().session == id).then(|| std::fs::metadata(path).ok().map(|file| file.len()))?
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next session to be looked at; `None` once the prover is to stop. Waits a while if none of them could be finished the
    /// last time.
    fn next(&self, pending: usize) -> Option<Waiting> {
        let mut queue = self.lock();
        if pending > 0 && pending >= queue.waiting.len() && !self.stopping.load(Ordering::Relaxed) {
            queue = self.changed.wait_timeout(queue, POLL).unwrap_or_else(PoisonError::into_inner).0;
        }
        loop {
            if self.stopping.load(Ordering::Relaxed) {
                return None;
            }
            let now = Instant::now();
            while let Some(over) = queue.paused.iter().position(|(until, _)| *until <= now) {
                let (_, waiting) = queue.paused.swap_remove(over);
                queue.waiting.push_back(waiting);
            }
            if let Some(waiting) = queue.waiting.pop_front() {
                queue.working = 1;
                return Some(waiting);
            }
            let next = queue.paused.iter().map(|(until, _)| *until - now).min();
            let patience = next.unwrap_or(LONGEST_PAUSE);
            queue = self.changed.wait_timeout(queue, patience).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn set(&self, id: SessionId, client: PublicKey, state: ProofState) {
        self.lock().states.insert(id, (client, state));
    }

    fn put_back(&self, waiting: Waiting) {
        let mut queue = self.lock();
        queue.waiting.push_back(waiting);
        queue.working = 0;
    }

    /// Puts a session aside that failed.
    fn pause(&self, mut waiting: Waiting) {
        let mut queue = self.lock();
        let until = Instant::now() + waiting.pause;
        waiting.pause = LONGEST_PAUSE.min(2 * waiting.pause);
        queue.states.insert(waiting.id, (waiting.client, ProofState::Queued));
        queue.paused.push((until, waiting));
        queue.working = 0;
    }

    fn end(&self, waiting: Waiting, state: ProofState, seconds: f64) {
        let mut queue = self.lock();
        match state {
            ProofState::Failed => queue.totals.failed += 1,
            _ => {
                queue.totals.proved += 1;
                if let Some(began) = waiting.began {
                    queue.time.0.observe(began.elapsed().as_secs_f64());
                }
            }
        }
        queue.totals.seconds += seconds;
        queue.over.push_back(waiting.id);
        if queue.over.len() > REMEMBERED {
            let oldest = queue.over.pop_front();
            oldest.map(|session| queue.states.remove(&session));
        }
        queue.states.insert(waiting.id, (waiting.client, state));
        queue.working = 0;
        self.changed.notify_all();
    }
}
