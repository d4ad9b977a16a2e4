//! What the three programs have in common on the command line: logging to stderr, the way they fail, text from
//! elsewhere made safe for a terminal, completions and manual pages.

mod documents;
mod escape;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

pub use documents::{Documents, Manual};
pub use escape::Escaped;

/// Flags for logging. What is logged is chosen by `RUST_LOG`, by default `info`.
#[derive(Debug, Clone, Args)]
pub struct Logging {
    /// Form of the log on stderr; what is logged is chosen by RUST_LOG.
    #[arg(long, global = true, value_enum, default_value_t)]
    pub log_format: LogFormat,
}

/// The form of the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl Logging {
    /// Sends the log to stderr from now on.
    pub fn init(&self) {
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
        let builder = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal());
        match self.log_format {
            LogFormat::Text => builder.with_target(false).init(),
            LogFormat::Json => builder.json().init(),
        }
    }
}

/// Starts logging, runs a command and turns its error into a line on stderr and exit code 1.
pub fn run(logging: &Logging, command: impl FnOnce() -> anyhow::Result<()>) -> ExitCode {
    logging.init();
    match command() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", Escaped(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}
