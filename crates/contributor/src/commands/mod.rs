//! The program's commands, one a file: its arguments and what it does.

pub mod args;
mod check_config;
pub mod deliver;
pub mod exposure;
pub mod init;
pub mod plan;
pub mod prove;
pub mod serve;
mod settings;
pub mod status;

use std::fmt;
use std::num::NonZero;
use std::path::Path;
use std::str::FromStr;

use anyhow::Context;
use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};
use zklora_circuit::parameters::Security;
use zklora_circuit::plan::Planner;
use zklora_cli::Manual;
use zklora_contributor::memory::MemoryLimit;
use zklora_contributor::state::{KEY, State};
use zklora_hub::VARIABLES;
use zklora_proto::SecretKey;

/// What the manual page says beside the help.
pub const MANUAL: Manual = Manual {
    environment: &[
        &[(
            "CREDENTIALS_DIRECTORY",
            "Set by systemd for a service with LoadCredential=: where serve looks for identity.key first.",
        )],
        VARIABLES,
    ],
    files: &[
        ("/etc/zklora", "Where the packaged service has its configuration and its identity key."),
        ("/var/lib/zklora", "Where the packaged service has its state and, in bundles, what it has proved."),
    ],
    see_also: &["zklora-base-user(1)", "zklora-verifier(1)"],
};

/// How sessions are proved.
#[derive(Args)]
pub struct Proving {
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
        planner(self.security.parse()?, self.proving_threads, self.memory)
    }
}

/// What plans proofs with so many threads, or one for each core if that is 0, and so much memory.
fn planner(security: Security, threads: usize, memory: MemoryLimit) -> anyhow::Result<Planner> {
    let cores = || std::thread::available_parallelism().map_or(1, NonZero::get);
    Ok(Planner {
        memory: memory.resolve()?,
        threads: if threads == 0 { cores() } else { threads },
        ..Planner::new(security)
    })
}

/// Opens the state of a service, with the identity key in the file that is named, or else among the credentials that systemd
/// made, or else in the state folder.
fn open_state(folder: &Path, identity: Option<&Path>) -> anyhow::Result<State> {
    let credential =
        std::env::var_os("CREDENTIALS_DIRECTORY").map(|credentials| Path::new(&credentials).join(KEY));
    match (identity, credential.filter(|file| file.exists())) {
        (Some(file), _) => State::open_with_key(folder, SecretKey::load(file)?),
        (None, Some(file)) => State::open_with_key(folder, SecretKey::load_credential(&file)?),
        (None, None) => State::open(folder),
    }
}

/// A share, from 0 to 1.
#[derive(Debug, Clone, Copy)]
pub struct Share(f64);

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(share) if (0.0..=1.0).contains(&share) => Ok(Self(share)),
            _ => Err("expected a number from 0 to 1".into()),
        }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Ctrl-C and SIGTERM.
struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// From now on these signals do not end the process. Needs a runtime.
    fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("listening for signals");
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    /// Completes at the next of them.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use zklora_contributor::daemon::Status;
    use zklora_contributor::explain::PlanReport;
    use zklora_testing::schemas::check_file;

    #[test]
    fn the_files_are_the_schemas_of_the_documents() {
        check_file::<super::init::InitReport>();
        check_file::<PlanReport>();
        check_file::<super::serve::ServeReport>();
        check_file::<super::check_config::ConfigReport>();
        check_file::<super::prove::ProveReport>();
        check_file::<super::deliver::DeliverReport>();
        check_file::<super::exposure::Exposures>();
        check_file::<Status>();
    }
}
