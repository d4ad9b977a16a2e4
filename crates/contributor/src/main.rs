//! `zklora-contributor`: see the library's documentation.

use std::net::SocketAddr;
use std::num::NonZero;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use serde_json::json;
use tracing::info;
use zklora_circuit::plan::Planner;
use zklora_circuit::security::Security;
use zklora_cli::Logging;
use zklora_contributor::explain::Explanation;
use zklora_contributor::exposure::{DEFAULT_SHARE, Exposure, Ledger};
use zklora_contributor::memory::MemoryLimit;
use zklora_contributor::prover::Prover;
use zklora_contributor::server::serve;
use zklora_contributor::service::{Limits, Service};
use zklora_contributor::state::State;
use zklora_contributor::store::{self, STORE, Store};
use zklora_hf::{BaseModel, LoraAdapter, LoraModule};
use zklora_net::Listener;
use zklora_proto::{Address, ModuleShape};

/// Serves a private LoRA adapter's deltas and proves them.
#[derive(Parser)]
#[command(version, after_help = "Exit codes: 0 success, 1 failure, 2 wrong usage.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    logging: Logging,
}

#[derive(Subcommand)]
enum Command {
    Init(Init),
    Plan(PlanArgs),
    Serve(Serve),
    Exposure(ExposureArgs),
}

/// How sessions are proved.
#[derive(Args)]
struct Proving {
    /// Parameter set of the proofs.
    #[arg(long, default_value_t = String::from(Security::default().name()))]
    security: String,
    /// Threads for proving; 0 takes one for each core.
    #[arg(long, default_value_t = 0)]
    proving_threads: usize,
    /// Memory that proving may take, beside weights and transcripts: an amount such as 2GiB, or a share of what is available
    /// when the program starts, control groups considered.
    #[arg(long, value_name = "SIZE", default_value_t = MemoryLimit::default())]
    memory: MemoryLimit,
}

impl Proving {
    fn planner(&self) -> anyhow::Result<Planner> {
        let cores = || std::thread::available_parallelism().map_or(1, NonZero::get);
        Ok(Planner {
            memory: self.memory.resolve()?,
            threads: if self.proving_threads == 0 { cores() } else { self.proving_threads },
            ..Planner::new(self.security.parse()?)
        })
    }
}

/// Says which proofs a session with every module of an adapter is proved with, what they take, and why these.
#[derive(Args)]
#[command(after_help = "Examples:
  zklora-contributor plan --state a-state
  zklora-contributor plan --base-model fixtures/gpt2-tiny --lora fixtures/lora-es --memory 1GiB")]
struct PlanArgs {
    /// Folder that `init` made.
    #[arg(long, value_name = "DIR", required_unless_present = "lora", conflicts_with_all = ["lora", "base_model"])]
    state: Option<PathBuf>,
    /// Folder of an adapter, as PEFT writes it, in place of a state.
    #[arg(long, value_name = "DIR", requires = "base_model")]
    lora: Option<PathBuf>,
    /// Folder of that adapter's base model, in Hugging Face layout.
    #[arg(long, value_name = "DIR", requires = "lora")]
    base_model: Option<PathBuf>,
    #[command(flatten)]
    proving: Proving,
    /// Print the plan as JSON.
    #[arg(long)]
    json: bool,
}

/// Makes the state of an adapter: identity key, salts, commitments and the signed manifest.
#[derive(Args)]
#[command(
    after_help = "Example: zklora-contributor init --base-model fixtures/gpt2-tiny --lora fixtures/lora-es --state a-state"
)]
struct Init {
    /// Folder of the base model, in Hugging Face layout.
    #[arg(long, value_name = "DIR")]
    base_model: PathBuf,
    /// Folder of the adapter, as PEFT writes it.
    #[arg(long, value_name = "DIR")]
    lora: PathBuf,
    /// Folder for the state; it holds secrets and is made with access for its owner only.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// Serves the adapter of a state folder until it is told to stop (Ctrl-C or SIGTERM), then finishes its proofs.
#[derive(Args)]
#[command(
    after_help = "Example: zklora-contributor serve --state a-state --listen 127.0.0.1:30000 --out-dir a-out"
)]
struct Serve {
    /// Folder that `init` made.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// UDP address to listen on; port 0 takes a free one.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:30000")]
    listen: SocketAddr,
    /// Folder for the bundles.
    #[arg(long, value_name = "DIR")]
    out_dir: PathBuf,
    #[command(flatten)]
    proving: Proving,
    /// Linearly independent rows that each module may answer, to all clients together, as a share of its d_in. All of them
    /// would give the adapter away.
    #[arg(long, value_name = "SHARE", default_value_t = DEFAULT_SHARE, value_parser = share)]
    exposure_budget: f64,
    /// Print the address as JSON.
    #[arg(long)]
    json: bool,
}

/// Shows how much of the adapter the answered rows give away, module by module.
#[derive(Args)]
#[command(after_help = "Example: zklora-contributor exposure --state a-state")]
struct ExposureArgs {
    /// Folder that `init` made.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// The budget that `serve` has been given.
    #[arg(long, value_name = "SHARE", default_value_t = DEFAULT_SHARE, value_parser = share)]
    exposure_budget: f64,
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("expected a number from 0 to 1".into()),
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // A core file would hold the weights and the private key.
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        eprintln!("warning: core files cannot be switched off: {error}");
    }
    zklora_cli::run(&cli.logging, || match cli.command {
        Command::Init(args) => init(&args),
        Command::Plan(args) => plan(&args),
        Command::Exposure(args) => exposure(&args),
        Command::Serve(args) => {
            tokio::runtime::Runtime::new().context("starting the runtime")?.block_on(run(&args))
        }
    })
}

fn exposure(args: &ExposureArgs) -> anyhow::Result<()> {
    let state = State::open(&args.state)?;
    let store = Store::open(&args.state.join(STORE), state.manifest.adapter_id())?;
    let exposures = Ledger::report(&store, state.manifest.manifest(), args.exposure_budget)?;
    if args.json {
        println!("{}", json!({ "adapter": state.manifest.adapter_id(), "modules": exposures }));
        return Ok(());
    }
    println!("{:>7} {:>7} {:>7}  module", "rows", "budget", "d_in");
    for Exposure { module, rows, lost, budget, d_in } in exposures {
        let lost = if lost > 0 { format!(" ({lost} of them lost with the power)") } else { String::new() };
        println!("{rows:>7} {budget:>7} {d_in:>7}  {module}{lost}");
    }
    println!(
        "Rows are linearly independent ones, answered to all clients together. d_in of them give a module away."
    );
    Ok(())
}

fn init(args: &Init) -> anyhow::Result<()> {
    let state = State::create(&args.state, &args.base_model, &args.lora)?;
    let manifest = state.manifest.manifest();
    if args.json {
        let summary = json!({
            "adapter": state.manifest.adapter_id(),
            "contributor": manifest.contributor(),
            "base_model": manifest.base_model(),
            "modules": manifest.modules().iter().map(|m| m.name()).collect::<Vec<_>>(),
        });
        println!("{summary}");
    } else {
        println!("adapter      {}", state.manifest.adapter_id());
        println!("contributor  {}", manifest.contributor());
        println!("base model   {}", manifest.base_model());
        println!("modules      {}", manifest.modules().len());
        println!(
            "Give the adapter id and the contributor's key to your buyers; keep {} to yourself.",
            args.state.display()
        );
    }
    Ok(())
}

fn plan(args: &PlanArgs) -> anyhow::Result<()> {
    let planner = args.proving.planner()?;
    let modules = match (&args.state, &args.lora, &args.base_model) {
        (None, Some(lora), Some(base_model)) => {
            let base = BaseModel::open(base_model)?;
            let shape = |module: &LoraModule| {
                let shape = ModuleShape::new(module.d_in, module.rank, module.d_out);
                Ok((module.name.clone(), shape.with_context(|| format!("module {}", module.name))?))
            };
            let modules = LoraAdapter::open(lora, &base.projections())?.modules;
            modules.iter().map(shape).collect::<anyhow::Result<Vec<_>>>()?
        }
        (Some(state), ..) => {
            let manifest = State::manifest_of(state)?;
            let modules = manifest.manifest().modules().iter();
            modules.map(|module| (module.name().into(), module.shape())).collect()
        }
        _ => anyhow::bail!("expected --state, or --lora with --base-model"),
    };
    let modules: Vec<_> = modules.iter().map(|(name, shape)| (&name[..], *shape)).collect();
    let explanation = Explanation::new(planner, &modules).context("this adapter cannot be proved")?;
    if args.json {
        println!("{}", explanation.json());
    } else {
        print!("{explanation}");
    }
    Ok(())
}

async fn run(args: &Serve) -> anyhow::Result<()> {
    let planner = args.proving.planner()?;
    let state = Arc::new(State::open(&args.state)?);
    let listener = Listener::bind(&state.key, args.listen)?;
    let local = listener.local_address().context("asking for the listening address")?;
    let _lock = store::lock(&args.state)?;
    let store = Arc::new(Store::open(&args.state.join(STORE), state.manifest.adapter_id())?);
    let prover = Prover::start(state.clone(), args.out_dir.clone(), planner, store.clone())?;
    let share = args.exposure_budget;
    let service = Arc::new(Service::new(state.clone(), Limits::default(), store, share, prover)?);
    let address = Address { key: state.key.public(), host: host_of(local), port: local.port() };
    if args.json {
        println!("{}", json!({ "address": address.to_string(), "adapter": state.manifest.adapter_id() }));
    } else {
        println!("{address}");
    }
    info!(adapter = %state.manifest.adapter_id(), "serving at {local}");

    serve(&listener, service.clone(), shutdown()).await;
    service.close()?;
    info!("stopping: finishing the proofs of finished sessions; stop again to give them up");
    tokio::select! {
        drained = tokio::task::spawn_blocking(move || service.drain()) => drained.context("waiting for proofs")?,
        () = shutdown() => anyhow::bail!("stopped before all finished sessions were proved"),
    }
    Ok(())
}

/// The host part of an address: an IPv6 address in brackets.
fn host_of(address: SocketAddr) -> String {
    match address {
        SocketAddr::V4(v4) => v4.ip().to_string(),
        SocketAddr::V6(v6) => format!("[{}]", v6.ip()),
    }
}

/// Completes at the next Ctrl-C or SIGTERM.
async fn shutdown() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        return;
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}
