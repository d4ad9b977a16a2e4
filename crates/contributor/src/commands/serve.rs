use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};
use schemars::JsonSchema;
use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{error, info, warn};
use zklora_circuit::parameters::Security;
use zklora_cli::{UsageError, say_error};
use zklora_contributor::access::Access;
use zklora_contributor::control::Control;
use zklora_contributor::daemon::Daemon;
use zklora_contributor::delta::Engines;
use zklora_contributor::exposure::{DEFAULT_SHARE, Exposure, renew};
use zklora_contributor::http::Http;
use zklora_contributor::limits::{Limit, Limits};
use zklora_contributor::memory::MemoryLimit;
use zklora_contributor::metrics::Metrics;
use zklora_contributor::prover::{Place, Prover, ProverConfig};
use zklora_contributor::reach;
use zklora_contributor::retention::Retention;
use zklora_contributor::server::Server;
use zklora_contributor::service::Service;
use zklora_contributor::store::{self, STORE, Store};
use zklora_contributor::systemd;
use zklora_net::Listener;
use zklora_proto::{AdapterId, Address, Document, counted};

pub use super::settings::log_format;
use super::settings::{Settings, spellings};
use super::{StopSignals, check_config, open_state, planner};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// How often bundles are looked through for those to be deleted.
const RETENTION_INTERVAL: Duration = Duration::from_secs(3600);

/// Serves the adapter of a state folder until it is told to stop (Ctrl-C or SIGTERM). What is not proved by then is proved after the
/// next start.
#[derive(Args)]
#[command(after_help = "Examples:
  zklora-contributor serve --state a-state --out-dir a-out --allow KEY --listen 0.0.0.0:30000
  zklora-contributor serve --config /etc/zklora/contributor.toml --check-config")]
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
    /// The identity key, if it is not in the state folder. Without this, the credential identity.key is taken if systemd has made one.
    #[arg(long, value_name = "FILE", env = "ZKLORA_IDENTITY")]
    pub identity: Option<OsString>,
    /// UDP address to listen on; port 0 takes a free one.
    #[arg(long, value_name = "HOST:PORT", env = "ZKLORA_LISTEN", default_value = "127.0.0.1:30000")]
    pub listen: String,
    /// Where clients reach it: a host, and a port if it is another; unless told, the address that is listened on, or if that is every address,
    /// those by which this machine reaches others.
    #[arg(long, value_name = "HOST[:PORT]", env = "ZKLORA_ADVERTISE")]
    pub advertise: Option<String>,
    /// Folder for the bundles.
    #[arg(long, value_name = "DIR", env = "ZKLORA_OUT_DIR")]
    pub out_dir: Option<OsString>,
    /// Days for which a bundle is kept after it was written, and handed to its client; 0 keeps it for ever.
    #[arg(long, value_name = "N", env = "ZKLORA_BUNDLE_DAYS", default_value = "0")]
    pub bundle_days: String,
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
    /// Begin a new ledger of what was answered, in the place of one that is missing or damaged. What can be read of the old one
    /// counts; its sessions are lost. Refused if the ledger is whole.
    #[arg(long)]
    pub new_ledger: bool,
    /// Do not prove here: leave each finished session as a folder in the state's jobs, for `prove` to work on, and make the bundle when
    /// all its proofs are there.
    #[arg(long, value_name = "BOOL", env = "ZKLORA_PROVE_ELSEWHERE", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    pub prove_elsewhere: String,
    /// A client to be served: its key, as `zklora-base-user identity` prints it. May be given several times.
    #[arg(long, value_name = "KEY", env = "ZKLORA_ALLOW", value_delimiter = ',')]
    pub allow: Vec<String>,
    /// Clients to be served, one a line: the key, then a name or a note. Read again at SIGHUP.
    #[arg(long, value_name = "FILE", env = "ZKLORA_ALLOW_FILE")]
    pub allow_file: Option<OsString>,
    /// Serve everybody.
    #[arg(long, value_name = "BOOL", env = "ZKLORA_OPEN", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    pub open: String,
    #[command(flatten)]
    pub limits: LimitArgs,
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

/// The values of all limits, as text; the arguments are made from [`Limits::ALL`].
pub struct LimitArgs(BTreeMap<&'static str, String>);

impl LimitArgs {
    /// The value of a limit.
    pub fn get(&self, limit: &Limit) -> Option<&String> {
        self.0.get(limit.name)
    }
}

impl Args for LimitArgs {
    fn augment_args(command: Command) -> Command {
        Limits::ALL.iter().fold(command, |command, limit| {
            let (flag, variable) = spellings(limit.name);
            command.arg(
                Arg::new(limit.name)
                    .long(flag)
                    .env(variable)
                    .value_name(limit.value_name)
                    .default_value(limit.show(&Limits::DEFAULT))
                    // Without a full stop, as all help.
                    .help(limit.help().trim_end_matches('.'))
                    .help_heading("Limits"),
            )
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for LimitArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |limit: &Limit| Some((limit.name, matches.get_one::<String>(limit.name)?.clone()));
        Ok(Self(Limits::ALL.iter().filter_map(given).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

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
        tasks.spawn(http.serve(metrics.registry(daemon.clone()), daemon.clone()));
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
