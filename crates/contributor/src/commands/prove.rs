use std::collections::HashMap;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use tracing::{error, info};
use zklora_circuit::circuit::BatchCircuit;
use zklora_circuit::commitment::Opening;
use zklora_circuit::plan::Planner;
use zklora_circuit::session::Circuits;
use zklora_contributor::delta::Engines;
use zklora_contributor::job::{Job, Shard};
use zklora_contributor::prover::{
    FIRST_PAUSE, LONGEST_PAUSE, OUT_DIR_MODE, POLL, prepare, proving_threads, remove_abandoned,
};
use zklora_contributor::state::State;
use zklora_contributor::store::{self, STORE, Stage, Store};
use zklora_proto::{Bytes, Document, SessionId, SignedManifest, counted, secret_file};

use super::{Proving, StopSignals};

/// The exit code of a command that was stopped before it had done everything.
const STOPPED: u8 = 3;
/// How long a process that has the state is waited for to make a job: with `serve --prove-elsewhere` this takes seconds.
const JOB_PATIENCE: Duration = Duration::from_secs(30);

/// Proves a finished session, or a part of it, beside or without `serve`, on this machine or on others.
///
/// Works on the session's folder in the state's `jobs`, which `serve` makes when both parties have signed. Batches that have a proof
/// there are passed over, so that whoever is stopped goes on where they were, and whoever comes when all is proved has nothing to do. With
/// --watch it stays, and takes one session after another as they come, those that no other watcher is at. The private key is not needed.
#[derive(Args)]
#[command(
    after_help = "Exit codes: 0 everything of this shard is proved, or was before, or --watch was told to stop; 1 failure; 2 wrong usage; \
3 stopped by SIGTERM or Ctrl-C: run it again to go on.

Examples:
  zklora-contributor prove --state a-state --session ID --out-dir a-out
  zklora-contributor prove --state /shared/a-state --session ID --shard \"$SLURM_ARRAY_TASK_ID/8\"
  zklora-contributor prove --state /shared/a-state --watch"
)]
pub struct Prove {
    /// Folder that `init` made, with its `jobs`.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// The session.
    #[arg(long, value_name = "ID", required_unless_present = "watch")]
    session: Option<SessionId>,
    /// Prove sessions as they come, until SIGTERM or Ctrl-C.
    #[arg(long, conflicts_with = "session")]
    watch: bool,
    /// Prove only this part of the batches: I/N, with I from 0 to N - 1.
    #[arg(long, value_name = "I/N", default_value_t = Shard::WHOLE)]
    shard: Shard,
    /// Write the bundle into this folder once all proofs are there. A running `serve` does so by itself.
    #[arg(long, value_name = "DIR")]
    out_dir: Option<PathBuf>,
    #[command(flatten)]
    proving: Proving,
    /// Print the result as JSON; with --watch, a line for each session.
    #[arg(long)]
    json: bool,
}

/// Proves, and gives the exit code.
pub fn run(args: &Prove, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let planner = args.proving.planner()?;
    let (manifest, openings) = State::adapter_of(&args.state)?;
    remove_abandoned(&args.state, args.out_dir.as_deref());
    let worker = Worker {
        args,
        pool: proving_threads(planner.threads)?,
        planner,
        manifest,
        openings,
        circuits: Circuits::default(),
        stopped: stop_flag()?,
    };
    match args.session {
        Some(session) => worker.one(session, out),
        None => worker.watch(out),
    }
}

/// What it takes to prove.
struct Worker<'a> {
    args: &'a Prove,
    planner: Planner,
    manifest: SignedManifest,
    openings: Vec<Opening>,
    circuits: Circuits<BatchCircuit>,
    pool: rayon::ThreadPool,
    stopped: Arc<AtomicBool>,
}

impl Worker<'_> {
    fn one(&self, session: SessionId, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        let work = || match self.job(session)? {
            Some(mut job) => self.work(session, &mut job).map(Some),
            None => Ok(None),
        };
        // Others may have proved it meanwhile, the last of whom took the folder away.
        let is_proved = |error| match Job::proved(&self.args.state, session) {
            Some(_) => Ok(None),
            None => Err(error),
        };
        let done = work().or_else(is_proved)?;
        match done {
            Some(done) => {
                self.tell(&done, out)?;
                Ok(if done.is_complete() { ExitCode::SUCCESS } else { ExitCode::from(STOPPED) })
            }
            None => {
                self.tell_proved(session, out)?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }

    /// Proves what comes until it is told to stop.
    fn watch(&self, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        info!("waiting for sessions to prove in {}", self.args.state.join("jobs").display());
        // Those that failed, until when they are left alone, and for how long the next time.
        let mut failed: HashMap<SessionId, (Instant, Duration)> = HashMap::new();
        while !self.is_stopped() {
            let mut proved = 0;
            let sessions = Job::all(&self.args.state).context("looking for jobs")?;
            failed.retain(|session, _| sessions.contains(session));
            for session in sessions {
                if self.is_stopped() || failed.get(&session).is_some_and(|(until, _)| *until > Instant::now())
                {
                    continue;
                }
                // A panic in one session, of plonky2 for example, must not end the proving of all others.
                let taken = catch_unwind(AssertUnwindSafe(|| self.take(session, out)))
                    .unwrap_or_else(|_| Err(anyhow::anyhow!("proving panicked; this is a bug")));
                match taken {
                    Ok(batches) => {
                        proved += batches;
                        failed.remove(&session);
                    }
                    // It is done with.
                    Err(_) if !Job::folder(&self.args.state, session).exists() => {}
                    Err(error) => {
                        let pause = failed.get(&session).map_or(FIRST_PAUSE, |(_, pause)| *pause);
                        error!(%session, "proving failed, and is tried again in {pause:?}: {error:#}");
                        failed.insert(session, (Instant::now() + pause, LONGEST_PAUSE.min(2 * pause)));
                    }
                }
            }
            let until = Instant::now() + if proved == 0 { POLL } else { Duration::ZERO };
            while !self.is_stopped() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Proves this shard of a session, unless another watcher is at it. Gives the number of batches.
    fn take(&self, session: SessionId, out: &mut dyn Write) -> anyhow::Result<usize> {
        let mut job = Job::open(&Job::folder(&self.args.state, session))?;
        let Some(_claim) = job.claim(self.args.shard).context("claiming the job")? else { return Ok(0) };
        let done = self.work(session, &mut job)?;
        if done.proved > 0 || done.bundle.is_some() {
            self.tell(&done, out)?;
        }
        Ok(done.proved)
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// The job of a session; `None` if the session is proved. If another process has the state, waits a while for it to make the job.
    fn job(&self, session: SessionId) -> anyhow::Result<Option<Job>> {
        let state = &self.args.state;
        let folder = Job::folder(state, session);
        let until = Instant::now() + JOB_PATIENCE;
        loop {
            if folder.exists() {
                return Job::open(&folder).map(Some);
            }
            if Job::proved(state, session).is_some() {
                return Ok(None);
            }
            let path = state.join(STORE);
            if !path.exists() {
                bail!(
                    "{} is not there, expected the folder of a session that both parties have signed",
                    folder.display()
                );
            }
            // A running `serve` does not mind being read beside.
            let store = Store::open(&path, self.manifest.adapter_id())?;
            let found =
                store.session(session)?.with_context(|| format!("there is no session {session} here"))?;
            match (found.stage, store::lock(state)) {
                (Stage::Proved, _) => return Ok(None),
                // `serve`, or another shard that makes the job just now.
                (Stage::Finished | Stage::Proving, Err(_))
                    if Instant::now() < until && !self.is_stopped() =>
                {
                    std::thread::sleep(POLL);
                }
                (Stage::Finished, Err(_)) => bail!(
                    "`serve`, which is running, has not come to session {session} yet: it makes {} when it does, and unless it has \
                     --prove-elsewhere it proves it, too; run this again later, or have `prove --watch` wait for it",
                    folder.display()
                ),
                (Stage::Proving, Err(_)) => bail!(
                    "session {session} is begun, but {} is not there: was it moved? `serve`, which is running, misses it, too",
                    folder.display()
                ),
                (_, _lock) => {
                    let engines = Engines::new(self.manifest.clone(), &self.openings)?;
                    return prepare(state, session, &engines, &store, &self.planner).map(Some);
                }
            }
        }
    }

    /// Proves what is missing of this shard, and writes the bundle if that is all.
    fn work(&self, session: SessionId, job: &mut Job) -> anyhow::Result<Done> {
        let Self { args, planner, openings, circuits, pool, .. } = self;
        job.discard_damaged()?;
        let mine = job.batches_of(args.shard)?;
        let missing: Vec<usize> = job.missing().into_iter().filter(|batch| mine.contains(batch)).collect();
        let (started, done) = (Instant::now(), AtomicUsize::new(0));
        if !args.watch || !missing.is_empty() {
            info!(%session, "shard {}: {} of {} batches are to be proved", args.shard, missing.len(), mine.len());
        }
        let proved = || {
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            let seconds = started.elapsed().as_secs_f64();
            info!(%session, "proved {done} of {} batches, {seconds:.1} s", missing.len());
            if self.is_stopped() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        if !missing.is_empty() {
            let _ = pool.install(|| job.prove(&missing, openings, planner, circuits, &proved))?;
        }
        let bundle = match &args.out_dir {
            Some(out_dir) => {
                secret_file::create_folder(out_dir, OUT_DIR_MODE)
                    .with_context(|| format!("making {}", out_dir.display()))?;
                let path = out_dir.join(format!("{session}.pf"));
                // Who watches comes back to a job that nobody takes away.
                let there = args.watch && missing.is_empty() && path.exists();
                if there { None } else { job.finish(&path)?.map(|bytes| (path, bytes)) }
            }
            None => None,
        };
        Ok(Done {
            session,
            missing: missing.len(),
            proved: done.into_inner(),
            mine: mine.len(),
            left: job.missing().len(),
            total: job.plan().batches.len(),
            bundle,
        })
    }

    fn tell(&self, done: &Done, out: &mut dyn Write) -> io::Result<()> {
        let Done { session, proved, mine, left, total, bundle, .. } = done;
        if self.args.json {
            let report = ProveReport {
                session: *session,
                shard: self.args.shard.to_string(),
                already_proved: false,
                proved: *proved,
                shard_batches: Some(*mine),
                left: *left,
                batches: Some(*total),
                bundle: bundle.as_ref().map(|(path, _)| path.display().to_string()),
                bundle_bytes: bundle.as_ref().map(|(_, bytes)| *bytes),
            };
            return writeln!(out, "{}", report.to_line()?);
        }
        writeln!(out, "session  {session}")?;
        writeln!(out, "proved   {proved} of {} of shard {}", counted(*mine, "batch"), self.args.shard)?;
        writeln!(out, "left     {left} of {} of the session", counted(*total, "batch"))?;
        if let Some((path, bytes)) = bundle {
            writeln!(out, "bundle   {}, {}", path.display(), Bytes(*bytes))?;
        }
        Ok(())
    }

    /// Says that there was nothing to do.
    fn tell_proved(&self, session: SessionId, out: &mut dyn Write) -> io::Result<()> {
        if self.args.json {
            let report = ProveReport {
                session,
                shard: self.args.shard.to_string(),
                already_proved: true,
                proved: 0,
                shard_batches: None,
                left: 0,
                batches: None,
                bundle: None,
                bundle_bytes: Job::proved(&self.args.state, session),
            };
            return writeln!(out, "{}", report.to_line()?);
        }
        writeln!(out, "session  {session}")?;
        writeln!(
            out,
            "proved   before: nothing is left to do, and `serve` has the bundle in its folder for bundles"
        )
    }
}

/// What was done for a session, for programs.
#[derive(Serialize, JsonSchema)]
pub struct ProveReport {
    /// The session.
    session: SessionId,
    /// The part of it that is proved here.
    shard: String,
    /// Whether it was proved before, and nothing was to be done.
    already_proved: bool,
    /// Batches that were proved now.
    proved: usize,
    /// Batches of the shard; null if it was proved before.
    shard_batches: Option<usize>,
    /// Batches of the session that have no proof.
    left: usize,
    /// Batches of the session; null if it was proved before.
    batches: Option<usize>,
    /// The bundle, if it was made now.
    bundle: Option<String>,
    /// Its size, if it is known.
    bundle_bytes: Option<u64>,
}

impl Document for ProveReport {
    const FORMAT: &'static str = "zklora-prove/1";
    const PRINTED_BY: &'static str = "zklora-contributor prove --json";
}

/// What was done for a session.
struct Done {
    session: SessionId,
    /// Batches of this shard that had no proof.
    missing: usize,
    /// Those of them that have one now.
    proved: usize,
    /// Batches of this shard.
    mine: usize,
    /// Batches of the session without a proof.
    left: usize,
    /// Batches of the session.
    total: usize,
    bundle: Option<(PathBuf, u64)>,
}

impl Done {
    fn is_complete(&self) -> bool {
        self.proved == self.missing
    }
}

/// A flag that SIGTERM and Ctrl-C raise. The second time, the program ends at once.
fn stop_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let raised = flag.clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("listening for signals")?;
    let mut signals = {
        let _guard = runtime.enter();
        StopSignals::listen()?
    };
    std::thread::spawn(move || {
        runtime.block_on(signals.next());
        info!("stopping at the end of the batches under way");
        raised.store(true, Ordering::Relaxed);
        runtime.block_on(signals.next());
        std::process::exit(STOPPED.into());
    });
    Ok(flag)
}
