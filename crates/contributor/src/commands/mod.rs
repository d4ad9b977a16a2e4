//! The program's commands, one a file: its arguments and what it does.

pub mod exposure;
pub mod init;
pub mod plan;
pub mod serve;

use std::num::NonZero;
use std::path::Path;

use clap::Args;
use zklora_circuit::plan::Planner;
use zklora_circuit::security::Security;
use zklora_cli::Manual;
use zklora_contributor::memory::MemoryLimit;
use zklora_contributor::state::{KEY, State};
use zklora_proto::SecretKey;

/// What the manual page says beside the help.
pub const MANUAL: Manual = Manual {
    environment: &[(
        "CREDENTIALS_DIRECTORY",
        "Set by systemd for a service with LoadCredential=: where serve looks for identity.key first.",
    )],
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
        let cores = || std::thread::available_parallelism().map_or(1, NonZero::get);
        Ok(Planner {
            memory: self.memory.resolve()?,
            threads: if self.proving_threads == 0 { cores() } else { self.proving_threads },
            ..Planner::new(self.security.parse()?)
        })
    }
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
fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("expected a number from 0 to 1".into()),
    }
}
