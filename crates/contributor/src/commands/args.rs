//! Arguments of the commands that read settings, too: a flag, its variable and its default.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};
use zklora_circuit::parameters::Security;
use zklora_contributor::exposure::DEFAULT_SHARE;
use zklora_contributor::limits::{Limit, Limits};
use zklora_contributor::memory::MemoryLimit;

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

/// Shows how much of the adapter the answered rows give away, module by module, and the budget: that of the daemon, if one serves
/// the state.
#[derive(Args)]
#[command(after_help = "Example: zklora-contributor exposure --state a-state")]
pub struct ExposureReport {
    /// The daemon's configuration, if its state, socket or budget is named there.
    #[arg(long, value_name = "FILE", env = "ZKLORA_CONFIG")]
    pub config: Option<PathBuf>,
    /// Folder that `init` made.
    #[arg(long, value_name = "DIR", env = "ZKLORA_STATE")]
    pub state: Option<OsString>,
    /// Socket of the daemon, if it was given one; otherwise control.sock in the state.
    #[arg(long, value_name = "PATH", env = "ZKLORA_CONTROL")]
    pub control: Option<OsString>,
    /// The budget that `serve` will be given. A daemon that runs says its own.
    #[arg(long, value_name = "SHARE", env = "ZKLORA_EXPOSURE_BUDGET", default_value_t = DEFAULT_SHARE.to_string())]
    pub exposure_budget: String,
    /// Print it as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Asks the running daemon how it is.
#[derive(Args)]
#[command(after_help = "Exit codes: 0 it runs, 1 it cannot be asked, 2 wrong usage, 3 it does not run.
Example: zklora-contributor status --state a-state")]
pub struct StatusReport {
    /// The daemon's configuration, if its state or socket is named there.
    #[arg(long, value_name = "FILE", env = "ZKLORA_CONFIG")]
    pub config: Option<PathBuf>,
    /// Folder of the daemon's state.
    #[arg(long, value_name = "DIR", env = "ZKLORA_STATE")]
    pub state: Option<OsString>,
    /// Socket of the daemon, if it was given one; otherwise control.sock in its state.
    #[arg(long, value_name = "PATH", env = "ZKLORA_CONTROL")]
    pub control: Option<OsString>,
    /// Print the status as JSON.
    #[arg(long)]
    pub json: bool,
}

/// The flag and the variable of a setting.
pub fn spellings(name: &str) -> (String, String) {
    (name.replace('_', "-"), format!("ZKLORA_{}", name.to_uppercase()))
}
