//! What `serve` is told: by a TOML file, by the environment and by flags, of which the later is stronger.
//!
//! Every setting is read from text by one parser, wherever it was given. A new one needs an argument of [`Serve`], which has its
//! documentation, its variable and its default, a field of [`Settings`] with the line that reads it, and an entry in
//! `dist/config/contributor.toml`. A new limit needs a line in the table of `limits.rs`, and an entry in that file.

mod sources;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::ArgMatches;
pub use sources::{Effective, Source};
use sources::{Keys, Sources};
use zklora_circuit::parameters::Security;
use zklora_cli::{LogFormat, UsageError};
use zklora_contributor::access::Access;
use zklora_contributor::control::CONTROL;
use zklora_contributor::http::LoopbackAddress;
use zklora_contributor::limits::Limits;
use zklora_contributor::memory::MemoryLimit;
use zklora_contributor::reach::Advertised;

use super::Share;
use super::args::{ExposureReport, Serve, StatusReport};

/// Far more than all settings together.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// All settings, valid.
#[derive(Debug)]
pub struct Settings {
    pub state: PathBuf,
    /// The identity key, if it is neither in the state folder nor a credential.
    pub identity: Option<PathBuf>,
    pub listen: SocketAddr,
    /// Where clients reach it, if that is not where it listens.
    pub advertise: Option<Advertised>,
    pub out_dir: PathBuf,
    /// Days for which bundles are kept; 0 is for ever.
    pub bundle_days: usize,
    pub security: Security,
    pub proving_threads: usize,
    pub memory: MemoryLimit,
    pub prove_elsewhere: bool,
    pub exposure_budget: Share,
    /// Clients that are served, and a file with more of them.
    pub allow: Option<Keys>,
    pub allow_file: Option<PathBuf>,
    /// Everybody is served.
    pub open: bool,
    pub limits: Limits,
    /// The control socket, if it is not in the state folder.
    pub control: Option<PathBuf>,
    pub metrics: Option<LoopbackAddress>,
    /// Each of them as it is shown.
    pub effective: Vec<Effective>,
}

impl Settings {
    /// The settings that these arguments, of which clap found these matches, and the file that they name give; or everything that
    /// is wrong with them.
    pub fn read(args: &Serve, matches: &ArgMatches) -> Result<Self, Vec<String>> {
        let text = read_given(args.config.as_deref())?;
        let mut sources = Sources::new(args.config.as_deref(), &text, matches);
        let state = sources.required("state", args.state.as_ref());
        let identity = sources.optional("identity", args.identity.as_ref());
        let listen = sources.required("listen", Some(&args.listen));
        let advertise = sources.optional("advertise", args.advertise.as_ref());
        let out_dir = sources.required("out_dir", args.out_dir.as_ref());
        let bundle_days = sources.required("bundle_days", Some(&args.bundle_days));
        let security = sources.required("security", Some(&args.security));
        let proving_threads = sources.required("proving_threads", Some(&args.proving_threads));
        let memory = sources.required("memory", Some(&args.memory));
        let prove_elsewhere = sources.required("prove_elsewhere", Some(&args.prove_elsewhere));
        let exposure_budget = sources.required("exposure_budget", Some(&args.exposure_budget));
        let allow = (!args.allow.is_empty()).then(|| args.allow.join(","));
        let allow = sources.optional("allow", allow.as_ref());
        let allow_file = sources.optional("allow_file", args.allow_file.as_ref());
        let open = sources.required("open", Some(&args.open));
        let limits = sources.limits(&args.limits);
        let control = sources.optional("control", args.control.as_ref());
        let metrics = sources.optional("metrics", args.metrics.as_ref());
        // In force before anything else is read.
        let _: Option<LogFormat> = sources.optional("log_format", raw(matches, "log_format").as_ref());
        let (effective, errors) = sources.finish();
        let settings = || {
            Some(Self {
                prove_elsewhere: prove_elsewhere?,
                allow,
                allow_file,
                open: open?,
                limits: limits?,
                state: state?,
                identity,
                listen: listen?,
                advertise,
                out_dir: out_dir?,
                bundle_days: bundle_days?,
                security: security?,
                proving_threads: proving_threads?,
                memory: memory?,
                exposure_budget: exposure_budget?,
                control,
                metrics,
                effective,
            })
        };
        if errors.is_empty() { settings().ok_or(errors) } else { Err(errors) }
    }

    /// Who is served.
    pub fn access(&self) -> anyhow::Result<Access> {
        let keys = self.allow.clone().map_or_else(Vec::new, |keys| keys.0);
        match (self.open, keys.is_empty() && self.allow_file.is_none()) {
            (false, false) => Access::list(keys, self.allow_file.clone()),
            (true, true) => Ok(Access::open()),
            (false, true) => Err(UsageError::new(
                "the list of clients is empty: nobody could be served; name one with --allow or --allow-file, or serve everybody \
                 with --open",
            )
            .into()),
            (true, false) => Err(UsageError::new(
                "clients are listed, and everybody is to be served: leave out one of allow with allow_file, and open",
            )
            .into()),
        }
    }

    /// Where the control socket is.
    pub fn control_path(&self) -> PathBuf {
        self.control.clone().unwrap_or_else(|| self.state.join(CONTROL))
    }
}

/// The form of the log that the file says, unless a flag or a variable is stronger. What is wrong with the file is told once it is read for good.
pub fn log_format(args: &Serve, matches: &ArgMatches) -> Option<LogFormat> {
    let text = read_given(args.config.as_deref()).ok()?;
    Sources::new(args.config.as_deref(), &text, matches)
        .optional("log_format", raw(matches, "log_format").as_ref())
}

/// A value as it was given on the command line or in the environment.
fn raw(matches: &ArgMatches, name: &str) -> Option<OsString> {
    matches.try_get_raw(name).ok().flatten().and_then(|mut values| values.next()).map(OsStr::to_os_string)
}

/// Where the daemon listens for `status`, by the arguments of that command and the file that they name.
pub fn control_path(args: &StatusReport, matches: &ArgMatches) -> Result<PathBuf, Vec<String>> {
    let text = read_given(args.config.as_deref())?;
    let mut sources = Sources::new(args.config.as_deref(), &text, matches);
    let control: Option<PathBuf> = sources.optional("control", args.control.as_ref());
    let path = match control {
        Some(path) => Some(path),
        None => sources.required("state", args.state.as_ref()).map(|state: PathBuf| state.join(CONTROL)),
    };
    // What else is in the file is the daemon's business.
    path.filter(|_| sources.errors.is_empty()).ok_or(sources.errors)
}

/// Where a ledger is, and the budget that it is compared with.
#[derive(Debug)]
pub struct Places {
    pub state: PathBuf,
    pub control: PathBuf,
    pub budget: Share,
}

impl Places {
    /// By the arguments of `exposure` and the file that they name.
    pub fn of_ledger(args: &ExposureReport, matches: &ArgMatches) -> Result<Self, Vec<String>> {
        let text = read_given(args.config.as_deref())?;
        let mut sources = Sources::new(args.config.as_deref(), &text, matches);
        let state: Option<PathBuf> = sources.required("state", args.state.as_ref());
        let control: Option<PathBuf> = sources.optional("control", args.control.as_ref());
        let budget = sources.required("exposure_budget", Some(&args.exposure_budget));
        // What else is in the file is the daemon's business.
        match (state, budget) {
            (Some(state), Some(budget)) if sources.errors.is_empty() => {
                let control = control.unwrap_or_else(|| state.join(CONTROL));
                Ok(Self { state, control, budget })
            }
            _ => Err(sources.errors),
        }
    }
}

fn read_given(path: Option<&Path>) -> Result<String, Vec<String>> {
    path.map_or_else(|| Ok(String::new()), |path| read(path).map_err(|error| vec![error]))
}

fn read(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text))
        .map_err(|error| format!("reading {}: {error}", path.display()))?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(format!(
            "{} has more than {MAX_FILE_BYTES} bytes: is it a configuration file?",
            path.display()
        ));
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
