//! Proving finished sessions, one after another, in a thread and with a thread pool of its own, so that answering deltas
//! goes on meanwhile.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tracing::{error, info};
use zklora_circuit::circuit::BatchCircuit;
use zklora_circuit::plan::Planner;
use zklora_circuit::session::{Circuits, prove_session};
use zklora_proto::bundle::{self, BundleParts};
use zklora_proto::message::ProofState;
use zklora_proto::{Call, PublicKey, SessionId, SignedReceipt};

use crate::budget::Reservation;
use crate::state::State;
use crate::store::Store;

/// Sessions that are over and whose outcome is still told.
const REMEMBERED: usize = 4096;

/// A session whose receipt both have signed.
pub struct Job {
    /// The receipt.
    pub receipt: SignedReceipt,
    /// Its transcript.
    pub calls: Vec<Call>,
    /// The memory that the transcript takes.
    pub memory: Reservation,
}

/// The queue of sessions to be proved.
pub struct Prover {
    queue: Sender<Job>,
    states: Arc<States>,
}

#[derive(Default)]
struct States {
    sessions: Mutex<Sessions>,
    changed: Condvar,
}

#[derive(Default)]
struct Sessions {
    began: HashMap<SessionId, Instant>,
    totals: Totals,
    states: HashMap<SessionId, (PublicKey, ProofState)>,
    /// Those that are over, oldest first.
    over: VecDeque<SessionId>,
}

/// What the prover is doing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Sessions that wait for their turn.
    pub queued: usize,
    /// Those that are being proved.
    pub proving: Vec<Progress>,
    /// What was done since this process began.
    pub totals: Totals,
}

/// How far a session is that is being proved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The session.
    pub session: SessionId,
    /// Batches done.
    pub done: usize,
    /// Batches in all.
    pub total: usize,
}

/// What a prover has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// Sessions proved, each with its bundle.
    pub proved: u64,
    /// Sessions whose proving failed.
    pub failed: u64,
    /// Time of proving, in sessions that ended either way.
    pub seconds: f64,
}

impl Prover {
    /// Starts the prover. Bundles are written into `out_dir` as `<session>.pf`; the planner says with how many threads and in
    /// how much memory. Fails if a module cannot be proved in it, or if nothing can be written into the folder.
    pub fn start(
        state: Arc<State>,
        out_dir: PathBuf,
        planner: Planner,
        store: Arc<Store>,
    ) -> anyhow::Result<Self> {
        // What cannot be proved must not be served.
        let modules = state.manifest.manifest().modules().len();
        planner
            .plan(state.manifest.manifest(), &vec![1; modules])
            .context("this adapter cannot be proved")?;
        std::fs::create_dir_all(&out_dir).with_context(|| format!("making {}", out_dir.display()))?;
        // Whether a bundle can be written there is better known before a session than after it.
        tempfile::tempfile_in(&out_dir).with_context(|| format!("writing into {}", out_dir.display()))?;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(planner.threads)
            .thread_name(|i| format!("prover-{i}"))
            .build()
            .context("starting the proving threads")?;
        let (queue, jobs) = mpsc::channel::<Job>();
        let states = Arc::new(States::default());
        let worker_states = states.clone();
        std::thread::Builder::new().name("prover".into()).spawn(move || {
            let circuits = Circuits::default();
            for job in jobs {
                let id = job.receipt.receipt().session;
                let progress = |done, total| {
                    info!(session = %id, "proving: {done} of {total} batches");
                    worker_states.set(&job.receipt, ProofState::Proving { done, total });
                };
                // A panic in one session, of plonky2 for example, must not end the proving of all others.
                let proved = catch_unwind(AssertUnwindSafe(|| {
                    pool.install(|| prove(&state, &job, &out_dir, &planner, &circuits, &progress))
                }));
                let (recorded, result) = match proved {
                    Ok(Ok(bytes)) => (store.proved(id, bytes), ProofState::Proved { bytes }),
                    Ok(Err(error)) => {
                        error!(session = %id, "proving failed, and is tried again at the next start: {error:#}");
                        (Ok(()), ProofState::Failed)
                    }
                    Err(_) => {
                        error!(session = %id, "proving panicked; this is a bug");
                        (store.failed(id), ProofState::Failed)
                    }
                };
                if let Err(error) = recorded {
                    error!(session = %id, "recording how proving ended: {error:#}");
                }
                worker_states.set(&job.receipt, result);
            }
        })?;
        Ok(Self { queue, states })
    }

    /// Adds a session to the queue.
    pub fn submit(&self, job: Job) {
        self.states.set(&job.receipt, ProofState::Queued);
        let receipt = job.receipt.clone();
        if self.queue.send(job).is_err() {
            error!(session = %receipt.receipt().session, "the proving thread has stopped");
            self.states.set(&receipt, ProofState::Failed);
        }
    }

    /// Whose a session is and how far it is; `None` if it was never submitted.
    pub fn status(&self, session: &SessionId) -> Option<(PublicKey, ProofState)> {
        self.states.lock().states.get(session).cloned()
    }

    /// What it is doing now.
    pub fn snapshot(&self) -> Snapshot {
        let sessions = self.states.lock();
        let (mut queued, mut proving) = (0, Vec::new());
        for (&session, (_, state)) in &sessions.states {
            match *state {
                ProofState::Queued => queued += 1,
                ProofState::Proving { done, total } => proving.push(Progress { session, done, total }),
                _ => {}
            }
        }
        Snapshot { queued, proving, totals: sessions.totals }
    }

    /// Waits until the queue is empty.
    pub fn drain(&self) {
        let mut sessions = self.states.lock();
        while sessions
            .states
            .values()
            .any(|(_, state)| matches!(state, ProofState::Queued | ProofState::Proving { .. }))
        {
            sessions = self.states.changed.wait(sessions).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl States {
    fn lock(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, receipt: &SignedReceipt, state: ProofState) {
        let receipt = receipt.receipt();
        let mut sessions = self.lock();
        sessions.count(receipt.session, &state);
        if matches!(state, ProofState::Proved { .. } | ProofState::Failed) {
            sessions.over.push_back(receipt.session);
            if sessions.over.len() > REMEMBERED {
                let oldest = sessions.over.pop_front();
                oldest.map(|session| sessions.states.remove(&session));
            }
        }
        sessions.states.insert(receipt.session, (receipt.client, state));
        self.changed.notify_all();
    }
}

impl Sessions {
    /// Adds to the totals what a session's new state means for them.
    fn count(&mut self, session: SessionId, state: &ProofState) {
        match state {
            ProofState::Proving { .. } => {
                self.began.entry(session).or_insert_with(Instant::now);
                return;
            }
            ProofState::Proved { .. } => self.totals.proved += 1,
            ProofState::Failed => self.totals.failed += 1,
            _ => return,
        }
        let began = self.began.remove(&session);
        self.totals.seconds += began.map_or(0.0, |began| began.elapsed().as_secs_f64());
    }
}

fn prove(
    state: &State,
    job: &Job,
    out_dir: &std::path::Path,
    planner: &Planner,
    circuits: &Circuits<BatchCircuit>,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> anyhow::Result<u64> {
    let started = Instant::now();
    let (plan, proofs) = prove_session(
        &state.manifest,
        &job.receipt,
        &job.calls,
        &state.openings,
        planner,
        circuits,
        progress,
    )?;
    let proving = started.elapsed();
    let path = out_dir.join(format!("{}.pf", job.receipt.receipt().session));
    let parts = BundleParts {
        manifest: &state.manifest,
        receipt: &job.receipt,
        calls: &job.calls,
        plan: &plan,
        proofs: &proofs,
    };
    let bytes = bundle::write(&path, &parts).with_context(|| format!("writing {}", path.display()))?;
    info!(
        session = %job.receipt.receipt().session,
        proofs = proofs.len(),
        bytes,
        seconds = proving.as_secs_f64(),
        "proved: {}",
        path.display()
    );
    Ok(bytes)
}
