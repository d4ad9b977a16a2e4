use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use serde_json::json;
use tracing::info;
use zklora_contributor::exposure::DEFAULT_SHARE;
use zklora_contributor::prover::Prover;
use zklora_contributor::server::serve;
use zklora_contributor::service::{Limits, Service};
use zklora_contributor::store::{self, STORE, Store};
use zklora_net::Listener;
use zklora_proto::Address;

use super::{Proving, open_state, share};

/// Serves the adapter of a state folder until it is told to stop (Ctrl-C or SIGTERM), then finishes its proofs.
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
    /// Linearly independent rows that each module may answer, to all clients together, as a share of its d_in. All of them
    /// would give the adapter away.
    #[arg(long, value_name = "SHARE", default_value_t = DEFAULT_SHARE, value_parser = share)]
    exposure_budget: f64,
    /// Print the address as JSON.
    #[arg(long)]
    json: bool,
    /// The identity key, if it is not in the state folder. Without this, the credential identity.key is taken if systemd has
    /// made one.
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
}

/// Serves until the program is told to stop.
pub fn run(args: &Serve) -> anyhow::Result<()> {
    tokio::runtime::Runtime::new().context("starting the runtime")?.block_on(run_async(args))
}

async fn run_async(args: &Serve) -> anyhow::Result<()> {
    let planner = args.proving.planner()?;
    let state = Arc::new(open_state(&args.state, args.identity.as_deref())?);
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
