use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use clap::{ArgMatches, Args};
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tracing::{error, info};
use zklora_circuit::security::Security;
use zklora_cli::Escaped;
use zklora_contributor::control::Control;
use zklora_contributor::daemon::Daemon;
use zklora_contributor::exposure::DEFAULT_SHARE;
use zklora_contributor::http::Http;
use zklora_contributor::memory::MemoryLimit;
use zklora_contributor::metrics::Metrics;
use zklora_contributor::prover::Prover;
use zklora_contributor::server::serve;
use zklora_contributor::service::{Limits, Service};
use zklora_contributor::state::State;
use zklora_contributor::store::{self, STORE, Store};
use zklora_contributor::systemd;
use zklora_net::Listener;
use zklora_proto::Address;

use super::settings::Settings;
use super::{check_config, planner};

/// Serves the adapter of a state folder until it is told to stop (Ctrl-C or SIGTERM), then finishes its proofs.
#[derive(Args)]
#[command(
    after_help = "Example: zklora-contributor serve --state a-state --listen 127.0.0.1:30000 --out-dir a-out"
)]
pub struct Serve {
    /// TOML file with any of the settings below; flags and variables are stronger. dist/config/contributor.toml is an example.
    #[arg(long, value_name = "FILE", env = "ZKLORA_CONFIG")]
    pub config: Option<PathBuf>,
    /// Check the configuration, print the settings and where each comes from, and do not serve.
    #[arg(long)]
    pub check_config: bool,
    /// Folder that `init` made.
    #[arg(long, value_name = "DIR", env = "ZKLORA_STATE")]
    pub state: Option<OsString>,
    /// UDP address to listen on; port 0 takes a free one.
    #[arg(long, value_name = "HOST:PORT", env = "ZKLORA_LISTEN", default_value = "127.0.0.1:30000")]
    pub listen: String,
    /// Folder for the bundles.
    #[arg(long, value_name = "DIR", env = "ZKLORA_OUT_DIR")]
    pub out_dir: Option<OsString>,
    /// Parameter set of the proofs.
    #[arg(long, env = "ZKLORA_SECURITY", default_value_t = Security::default().name().to_string())]
    pub security: String,
    /// Threads for proving; 0 takes one for each core.
    #[arg(long, env = "ZKLORA_PROVING_THREADS", default_value = "0")]
    pub proving_threads: String,
    /// Memory that proving may take, beside weights and transcripts: an amount such as 2GiB, or a share of what is available
    /// when the program starts, control groups considered.
    #[arg(long, value_name = "SIZE", env = "ZKLORA_MEMORY", default_value_t = MemoryLimit::default().to_string())]
    pub memory: String,
    /// Linearly independent rows that each module may answer, to all clients together, as a share of its d_in. All of them
    /// would give the adapter away.
    #[arg(long, value_name = "SHARE", env = "ZKLORA_EXPOSURE_BUDGET", default_value_t = DEFAULT_SHARE.to_string())]
    pub exposure_budget: String,
    /// Socket at which `status` asks the daemon; unless told, control.sock in the state folder.
    #[arg(long, value_name = "PATH", env = "ZKLORA_CONTROL")]
    pub control: Option<OsString>,
    /// Loopback address of /metrics, for Prometheus, and of /healthz, over HTTP; none unless told.
    #[arg(long, value_name = "HOST:PORT", env = "ZKLORA_METRICS")]
    pub metrics: Option<String>,
    /// Print the address, or the settings, as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Serves until the program is told to stop. `matches` are those that the arguments were made of.
pub fn run(args: &Serve, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let settings = Settings::read(args, matches);
    if args.check_config {
        return Ok(check_config::run(settings, args.json));
    }
    let settings = settings.map_err(|errors| {
        for wrong in &errors {
            error!("{}", Escaped(wrong));
        }
        anyhow::anyhow!("the configuration is wrong in {} ways, named above", errors.len())
    })?;
    let runtime = tokio::runtime::Runtime::new().context("starting the runtime")?;
    let served = runtime.block_on(serve_until_stopped(&settings, args.json));
    // Whoever stops a second time does not wait for a thread that waits for proofs.
    runtime.shutdown_background();
    served.map(|()| ExitCode::SUCCESS)
}

async fn serve_until_stopped(settings: &Settings, json: bool) -> anyhow::Result<()> {
    let (began, starting) = (Instant::now(), systemd::Starting::begin());
    // From now on SIGHUP does not end the process.
    let hangups = signal(SignalKind::hangup()).context("waiting for SIGHUP")?;
    let planner = planner(settings.security, settings.proving_threads, settings.memory)?;
    let state = Arc::new(State::open(&settings.state)?);
    let listener = Listener::bind(&state.key, settings.listen)?;
    let local = listener.local_address().context("asking for the listening address")?;
    let _lock = store::lock(&settings.state)?;
    let control = Control::bind(&settings.control_path())?;
    let http = match settings.metrics {
        Some(address) => Some(Http::bind(address).await?),
        None => None,
    };
    let store = Arc::new(Store::open(&settings.state.join(STORE), state.manifest.adapter_id())?);
    let prover = Prover::start(state.clone(), settings.out_dir.clone(), planner, store.clone())?;
    let share = settings.exposure_budget.0;
    let service = Arc::new(Service::new(state.clone(), Limits::default(), store, share, prover)?);
    let address = Address { key: state.key.public(), host: host_of(local), port: local.port() };
    let metrics = Arc::new(Metrics::default());
    let daemon =
        Arc::new(Daemon::new(service.clone(), metrics.clone(), address.clone(), &settings.state, began));

    // Dropped with their sockets at the end.
    let mut tasks = JoinSet::new();
    tasks.spawn(control.serve(daemon.clone()));
    let mut said = json!({ "address": address.to_string(), "adapter": state.manifest.adapter_id() });
    if let Some(http) = http {
        let local = http.local_address().context("asking for the metrics' address")?;
        info!("metrics at http://{local}/metrics");
        said["metrics"] = local.to_string().into();
        tasks.spawn(http.serve(metrics.registry(daemon.clone()), daemon.clone()));
    }
    tasks.spawn(reload_at(hangups));
    // From here on a signal has the daemon stop in order. Before, it ends the process, which loses nothing either.
    let mut stop = StopSignals::new()?;
    if json {
        println!("{said}");
    } else {
        println!("{address}");
    }
    info!(adapter = %state.manifest.adapter_id(), "serving at {local}");
    drop(starting);
    let _notifying = systemd::ready(&daemon);

    serve(&listener, service.clone(), metrics, stop.next()).await;
    daemon.stop();
    systemd::stopping();
    service.close()?;
    info!("stopping: finishing the proofs of finished sessions; stop again to give them up");
    let drained = tokio::select! {
        drained = tokio::task::spawn_blocking(move || service.drain()) => drained.context("waiting for proofs"),
        () = stop.next() => Err(anyhow::anyhow!("stopped before all finished sessions were proved")),
    };
    // The socket's file goes before the lock does.
    tasks.shutdown().await;
    drained
}

/// Reads again, at each SIGHUP, what can be changed while it serves.
async fn reload_at(mut hangups: Signal) {
    while hangups.recv().await.is_some() {
        systemd::reloading(|| info!("told to reload: no setting of this version changes without a restart"));
    }
}

/// The host part of an address: an IPv6 address in brackets.
fn host_of(address: SocketAddr) -> String {
    match address {
        SocketAddr::V4(v4) => v4.ip().to_string(),
        SocketAddr::V6(v6) => format!("[{}]", v6.ip()),
    }
}

/// Ctrl-C and SIGTERM, which no longer end the process once this is there.
struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    fn new() -> anyhow::Result<Self> {
        let signal = |kind| signal(kind).context("waiting for signals");
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Completes at the next of them.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
