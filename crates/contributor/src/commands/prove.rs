use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::Context;
use clap::Args;
use serde_json::json;
use tracing::info;
use zklora_circuit::session::Circuits;
use zklora_contributor::delta::Engines;
use zklora_contributor::job::{Job, Shard};
use zklora_contributor::prover::{prepare, proving_threads};
use zklora_contributor::state::State;
use zklora_contributor::store::{self, STORE, Store};
use zklora_proto::SessionId;

use super::{Proving, StopSignals};

/// The exit code of a command that was stopped before it had done everything.
const STOPPED: u8 = 3;

/// Proves a finished session, or a part of it, beside or without `serve`, on this machine or on others.
///
/// Works on the session's folder in the state's `jobs`, which `serve` makes when both parties have signed. Batches that have a proof
/// there are passed over, so that whoever is stopped goes on where they were. The private key is not needed.
#[derive(Args)]
#[command(
    after_help = "Exit codes: 0 everything of this shard is proved, 1 failure, 2 wrong usage, 3 stopped by SIGTERM or Ctrl-C: \
run it again to go on.

Examples:
  zklora-contributor prove --state a-state --session ID --out-dir a-out
  zklora-contributor prove --state /shared/a-state --session ID --shard \"$SLURM_ARRAY_TASK_ID/8\""
)]
pub struct Prove {
    /// Folder that `init` made, with its `jobs`.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// The session.
    #[arg(long, value_name = "ID")]
    session: SessionId,
    /// Prove only this part of the batches: I/N, with I from 0 to N - 1.
    #[arg(long, value_name = "I/N", default_value_t = Shard::WHOLE)]
    shard: Shard,
    /// Write the bundle into this folder once all proofs are there. A running `serve` does so by itself.
    #[arg(long, value_name = "DIR")]
    out_dir: Option<PathBuf>,
    #[command(flatten)]
    proving: Proving,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// Proves, and gives the exit code.
pub fn run(args: &Prove) -> anyhow::Result<ExitCode> {
    let planner = args.proving.planner()?;
    let (manifest, openings) = State::adapter_of(&args.state)?;
    let folder = Job::folder(&args.state, args.session);
    let mut job = match folder.exists() {
        true => Job::open(&folder)?,
        false => {
            let _lock = store::lock(&args.state).with_context(|| {
                format!("{} is not there, and `serve`, which is running, has not made it", folder.display())
            })?;
            anyhow::ensure!(
                args.state.join(STORE).exists(),
                "{} is not there, expected the folder of a session that both parties have signed",
                folder.display()
            );
            let store = Store::open(&args.state.join(STORE), manifest.adapter_id())?;
            prepare(&args.state, args.session, &Engines::new(manifest.clone(), &openings)?, &store, &planner)?
        }
    };
    job.discard_damaged()?;
    let mine = job.batches_of(args.shard)?;
    let missing: Vec<usize> = job.missing().into_iter().filter(|batch| mine.contains(batch)).collect();
    let (started, stopped, done) = (Instant::now(), stop_flag()?, AtomicUsize::new(0));
    let pool = proving_threads(planner.threads)?;
    info!("shard {}: {} of {} batches are to be proved", args.shard, missing.len(), mine.len());
    let proved = || {
        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
        info!("proved {done} of {} batches, {:.1} s", missing.len(), started.elapsed().as_secs_f64());
        match stopped.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    };
    if !missing.is_empty() {
        let circuits = Circuits::default();
        let _ = pool.install(|| job.prove(&missing, &openings, &planner, &circuits, &proved))?;
    }
    let (total, done) = (job.plan().batches.len(), done.into_inner());
    let left = job.missing().len();
    let bundle = match &args.out_dir {
        Some(out_dir) => {
            std::fs::create_dir_all(out_dir).with_context(|| format!("making {}", out_dir.display()))?;
            let path = out_dir.join(format!("{}.pf", args.session));
            job.finish(&path)?.map(|bytes| (path, bytes))
        }
        None => None,
    };
    if args.json {
        let summary = json!({
            "session": args.session,
            "shard": args.shard.to_string(),
            "proved": done,
            "shard_batches": mine.len(),
            "left": left,
            "batches": total,
            "bundle": bundle.as_ref().map(|(path, _)| path),
            "bundle_bytes": bundle.as_ref().map(|(_, bytes)| bytes),
        });
        println!("{summary}");
    } else {
        println!("proved   {done} of {} batches of shard {}", mine.len(), args.shard);
        println!("left     {left} of {total} batches of the session");
        if let Some((path, bytes)) = bundle {
            println!("bundle   {}, {bytes} bytes", path.display());
        }
    }
    Ok(if done < missing.len() { ExitCode::from(STOPPED) } else { ExitCode::SUCCESS })
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
