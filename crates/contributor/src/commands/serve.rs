use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::ArgMatches;
use schemars::JsonSchema;
use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{error, info, warn};
use zklora_cli::{UsageError, say_error};
use zklora_contributor::access::Access;
use zklora_contributor::control::Control;
use zklora_contributor::daemon::Daemon;
use zklora_contributor::delta::Engines;
use zklora_contributor::exposure::{Exposure, renew};
use zklora_contributor::http::Http;
use zklora_contributor::metrics::Metrics;
use zklora_contributor::prover::{Place, Prover, ProverConfig};
use zklora_contributor::reach;
use zklora_contributor::retention::Retention;
use zklora_contributor::scrape::registry;
use zklora_contributor::server::Server;
use zklora_contributor::service::Service;
use zklora_contributor::store::{self, STORE, Store};
use zklora_contributor::systemd;
use zklora_net::Listener;
use zklora_proto::{AdapterId, Address, Document, counted};

use super::args::Serve;
use super::settings::Settings;
pub use super::settings::log_format;
use super::{StopSignals, check_config, open_state, planner};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// How often bundles are looked through for those to be deleted.
const RETENTION_INTERVAL: Duration = Duration::from_secs(3600);

/// Serves until the program is told to stop. `matches` are those that the arguments were made of.
pub fn run(args: &Serve, matches: &ArgMatches, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let settings = Settings::read(args, matches);
    if args.check_config {
        return Ok(check_config::run(settings, args.json, out)?);
    }
    let settings = settings.map_err(|errors| {
        errors.iter().for_each(say_error);
        let places = if errors.len() == 1 { "place" } else { "places" };
        UsageError::new(format!("the configuration is wrong in {} {places}, named above", errors.len()))
    })?;
    let runtime = tokio::runtime::Runtime::new().context("starting the runtime")?;
    let served = runtime.block_on(serve_until_stopped(&settings, args, out));
    // Whoever stops a second time does not wait for a thread that waits for proofs.
    runtime.shutdown_background();
    served.map(|()| ExitCode::SUCCESS)
}

async fn serve_until_stopped(settings: &Settings, args: &Serve, out: &mut dyn Write) -> anyhow::Result<()> {
    let (began, starting) = (Instant::now(), systemd::Starting::begin());
    // From now on SIGHUP does not end the process.
    let hangups = signal(SignalKind::hangup()).context("waiting for SIGHUP")?;
    let access = Arc::new(settings.access()?);
    let planner = planner(settings.security, settings.proving_threads, settings.memory)?;
    let state = Arc::new(open_state(&settings.state, settings.identity.as_deref())?);
    let listener = Listener::bind(&state.key, settings.listen)?;
    let local = listener.local_address().context("asking for the listening address")?;
    let _lock = store::lock(&settings.state)?;
    let control = Control::bind(&settings.control_path())?;
    let http = match settings.metrics {
        Some(address) => Some(Http::bind(address).await?),
        None => None,
    };
    if args.new_ledger {
        renew(&settings.state, &state.manifest)?;
    }
    let store = Arc::new(Store::open(&settings.state.join(STORE), state.manifest.adapter_id())?);
    let engines = Arc::new(Engines::new(state.manifest.clone(), &state.openings)?);
    let config = ProverConfig {
        folder: settings.state.clone(),
        out_dir: settings.out_dir.clone(),
        planner,
        place: if settings.prove_elsewhere { Place::Elsewhere } else { Place::Here },
    };
    let prover = Prover::start(state.clone(), engines.clone(), store.clone(), config)?;
    let (limits, share) = (settings.limits.clone(), settings.exposure_budget.0);
    let service = Arc::new(Service::new(state.clone(), engines, limits, store.clone(), share, prover)?);
    if let Some(warning) = Exposure::warning(&service.overview().exposures) {
        warn!("{warning}");
    }
    let addresses = reach::addresses(state.key.public(), local, settings.advertise.as_ref());
    let address = &addresses[0];
    let metrics = Arc::new(Metrics::default());
    let daemon = Arc::new(Daemon::new(
        service.clone(),
        metrics.clone(),
        address.clone(),
        [&settings.state, &settings.out_dir],
        began,
    ));

    // Dropped with their sockets at the end.
    let mut tasks = JoinSet::new();
    tasks.spawn(control.serve(daemon.clone()));
    let adapter = state.manifest.adapter_id();
    let shown: Vec<String> = addresses.iter().map(Address::to_string).collect();
    let mut report =
        ServeReport { address: shown[0].clone(), addresses: shown.clone(), adapter, metrics: None };
    if let Some(http) = http {
        let local = http.local_address().context("asking for the metrics' address")?;
        info!("metrics at http://{local}/metrics");
        report.metrics = Some(local.to_string());
        tasks.spawn(http.serve(registry(&metrics, daemon.clone()), daemon.clone()));
    }
    tasks.spawn(reload_at(hangups, access.clone(), metrics.clone()));
    // From here on a signal has the daemon stop in order. Before, it ends the process, which loses nothing either.
    let mut stop = StopSignals::listen()?;
    if args.json {
        writeln!(out, "{}", report.to_line()?)?;
    } else {
        shown.iter().try_for_each(|address| writeln!(out, "{address}"))?;
    }
    out.flush()?;
    info!(%adapter, "serving at {local}; clients dial {}", shown.join(" or "));
    if settings.listen.ip().is_unspecified() && settings.advertise.is_none() {
        info!("from elsewhere clients may have to dial another host or port: name it with --advertise");
    }
    if settings.bundle_days > 0 {
        let keep = DAY.saturating_mul(u32::try_from(settings.bundle_days).unwrap_or(u32::MAX));
        let retention = Retention::new(store, adapter, &settings.state, &settings.out_dir, keep);
        tasks.spawn(delete_old_bundles(retention));
    }
    drop(starting);
    let _notifying = systemd::ready(&daemon);

    Server::new(service.clone(), access, metrics).serve(&listener, stop.next()).await;
    daemon.stop();
    systemd::stopping();
    info!("stopping: the proofs under way are finished; those not begun are made after the next start");
    service.close()?;
    let stopped = tokio::select! {
        stopped = spawn_blocking(move || service.stop_proving()) => stopped.context("stopping the prover"),
        () = stop.next() => {
            Err(anyhow::anyhow!("stopped again before the proofs under way were finished; they are made anew"))
        }
    };
    // The socket's file goes before the lock does.
    tasks.shutdown().await;
    stopped
}

/// Where clients find the daemon, as soon as they do.
#[derive(Serialize, JsonSchema)]
pub struct ServeReport {
    /// The first address that clients dial.
    address: String,
    /// All of them.
    addresses: Vec<String>,
    /// The adapter id.
    adapter: AdapterId,
    /// Where metrics are served; null if they are not.
    metrics: Option<String>,
}

impl Document for ServeReport {
    const FORMAT: &'static str = "zklora-serve/1";
    const PRINTED_BY: &'static str = "zklora-contributor serve --json";
}

/// Looks for bundles that are to be deleted, now and then.
async fn delete_old_bundles(retention: Retention) {
    let (retention, mut interval) = (Arc::new(retention), interval(RETENTION_INTERVAL));
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let retention = retention.clone();
        match spawn_blocking(move || retention.sweep()).await {
            Ok(Err(error)) => error!("deleting old bundles: {error:#}"),
            Ok(Ok(_)) => {}
            Err(_) => return error!("deleting old bundles panicked; this is a bug"),
        }
    }
}

/// Reads again, at each SIGHUP, what can be changed while it serves.
async fn reload_at(mut hangups: Signal, access: Arc<Access>, metrics: Arc<Metrics>) {
    while hangups.recv().await.is_some() {
        let (access, metrics) = (access.clone(), metrics.clone());
        let reload = move || {
            systemd::reloading(|| {
                let reloaded = access.reload();
                metrics.reloaded(reloaded.is_ok());
                match reloaded {
                    Ok(Some(clients)) => info!("told to reload: {} on the list", counted(clients, "client")),
                    Ok(None) => {
                        info!(
                            "told to reload: everybody is served, and nothing else changes without a restart"
                        )
                    }
                    Err(error) => error!("told to reload: the list of clients stays as it was: {error:#}"),
                }
            });
        };
        // The disk that the list is on may not answer.
        if spawn_blocking(reload).await.is_err() {
            error!("reloading panicked; this is a bug");
        }
    }
}
