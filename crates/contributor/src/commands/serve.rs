use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use serde_json::json;
use tracing::info;
use zklora_contributor::access::Access;
use zklora_contributor::delta::Engines;
use zklora_contributor::exposure::DEFAULT_SHARE;
use zklora_contributor::limits::Limits;
use zklora_contributor::prover::{Place, Prover, ProverConfig};
use zklora_contributor::server::Server;
use zklora_contributor::service::Service;
use zklora_contributor::state::State;
use zklora_contributor::store::{self, STORE, Store};
use zklora_net::Listener;
use zklora_proto::{Address, PublicKey};

use super::{Proving, StopSignals, share};

/// Serves the adapter of a state folder until it is told to stop (Ctrl-C or SIGTERM). What is not proved by then is proved after the
/// next start.
#[derive(Args)]
#[command(
    after_help = "Example: zklora-contributor serve --state a-state --listen 127.0.0.1:30000 --out-dir a-out"
)]
pub struct Serve {
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
    /// Do not prove here: leave each finished session as a folder in the state's `jobs`, for `prove` to work on, and make the bundle
    /// when all its proofs are there.
    #[arg(long)]
    prove_elsewhere: bool,
    /// Linearly independent rows that each module may answer, to all clients together, as a share of its d_in. All of them
    /// would give the adapter away.
    #[arg(long, value_name = "SHARE", default_value_t = DEFAULT_SHARE, value_parser = share)]
    exposure_budget: f64,
    /// A client to be served: its key, as `zklora-base-user identity` prints it. May be given several times.
    #[arg(long, value_name = "KEY", conflicts_with = "open")]
    allow: Vec<PublicKey>,
    /// Clients to be served, one a line: the key, then a name or a note. Read again at SIGHUP.
    #[arg(long, value_name = "FILE", conflicts_with = "open")]
    allow_file: Option<PathBuf>,
    /// Serve everybody.
    #[arg(long)]
    open: bool,
    /// Print the address as JSON.
    #[arg(long)]
    json: bool,
}

/// Serves until the program is told to stop.
pub fn run(args: &Serve) -> anyhow::Result<()> {
    tokio::runtime::Runtime::new().context("starting the runtime")?.block_on(run_async(args))
}

async fn run_async(args: &Serve) -> anyhow::Result<()> {
    let mut signals = StopSignals::listen()?;
    let planner = args.proving.planner()?;
    let state = Arc::new(State::open(&args.state)?);
    let listener = Listener::bind(&state.key, args.listen)?;
    let local = listener.local_address().context("asking for the listening address")?;
    let _lock = store::lock(&args.state)?;
    let store = Arc::new(Store::open(&args.state.join(STORE), state.manifest.adapter_id())?);
    let engines = Arc::new(Engines::new(state.manifest.clone(), &state.openings)?);
    let config = ProverConfig {
        folder: args.state.clone(),
        out_dir: args.out_dir.clone(),
        planner,
        place: if args.prove_elsewhere { Place::Elsewhere } else { Place::Here },
    };
    let prover = Prover::start(state.clone(), engines.clone(), store.clone(), config)?;
    let share = args.exposure_budget;
    let service = Arc::new(Service::new(state.clone(), engines, Limits::default(), store, share, prover)?);
    let access = Arc::new(match args.open {
        true => Access::open(),
        false => Access::list(args.allow.clone(), args.allow_file.clone())?,
    });
    let address = Address { key: state.key.public(), host: host_of(local), port: local.port() };
    if args.json {
        println!("{}", json!({ "address": address.to_string(), "adapter": state.manifest.adapter_id() }));
    } else {
        println!("{address}");
    }
    info!(adapter = %state.manifest.adapter_id(), "serving at {local}");

    Server::new(service.clone(), access).serve(&listener, signals.next()).await;
    info!("stopping: the proofs under way are finished; those not begun are made after the next start");
    service.close()?;
    tokio::select! {
        stopped = tokio::task::spawn_blocking(move || service.stop_proving()) => stopped.context("stopping the prover")?,
        () = signals.next() => anyhow::bail!("stopped again before the proofs under way were finished; they are made anew"),
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
