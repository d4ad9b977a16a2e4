//! What the three programs have in common on the command line: logging to stderr, the way they fail, text from
//! elsewhere made safe for a terminal, completions and manual pages.

mod documents;
mod format;

use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::process::{ExitCode, Termination};

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

pub use documents::{Documents, Manual};
pub use zklora_proto::Escaped;

/// Flags for logging. What is logged is chosen by `RUST_LOG`, by default `info`.
#[derive(Debug, Clone, Args)]
pub struct Logging {
    /// Form of the log on stderr; what is logged is chosen by RUST_LOG. Unless told, journal if stderr is connected to the
    /// systemd journal, otherwise text.
    #[arg(long, global = true, value_enum, env = "ZKLORA_LOG_FORMAT")]
    pub log_format: Option<LogFormat>,
}

/// The form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
    /// Lines for the systemd journal: their priority in front, no time, no colours.
    Journal,
}

impl Logging {
    /// Sends the log to stderr from now on.
    pub fn init(&self) {
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
        let colours = std::io::stderr().is_terminal();
        format::subscriber(self.format(), filter, std::io::stderr, colours).init();
    }

    fn format(&self) -> LogFormat {
        self.log_format.unwrap_or_else(|| match std::env::var("JOURNAL_STREAM") {
            Ok(stream) if is_stream(&stream, &std::io::stderr()) => LogFormat::Journal,
            _ => LogFormat::Text,
        })
    }
}

/// Whether an open file is the one that systemd names as `device:inode` (systemd.exec(5), `JOURNAL_STREAM`). A child whose stderr
/// was redirected has inherited the variable all the same.
fn is_stream(stream: &str, open: &impl AsFd) -> bool {
    let Ok(metadata) = open.as_fd().try_clone_to_owned().and_then(|file| File::from(file).metadata()) else {
        return false;
    };
    stream == format!("{}:{}", metadata.dev(), metadata.ino())
}

/// Starts logging, runs a command and turns its error into a line on stderr and exit code 1.
pub fn run<T: Termination>(logging: &Logging, command: impl FnOnce() -> anyhow::Result<T>) -> ExitCode {
    logging.init();
    match command() {
        Ok(done) => done.report(),
        Err(error) => {
            let priority = if logging.format() == LogFormat::Journal { format::ERROR } else { "" };
            eprintln!("{priority}error: {}", Escaped(&causes(&error)));
            ExitCode::FAILURE
        }
    }
}

/// What an error says and what its causes say, each once: the texts of many errors have their cause's in them.
pub fn causes(error: &anyhow::Error) -> String {
    let mut said = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if said.is_empty() {
            said = cause;
        } else if !said.contains(&cause) {
            said = format!("{said}: {cause}");
        }
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_said_once() {
        use anyhow::Context;

        #[derive(Debug)]
        struct Unreadable(std::io::Error);

        impl std::fmt::Display for Unreadable {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "cannot read it: {}", self.0)
            }
        }

        impl std::error::Error for Unreadable {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                Some(&self.0)
            }
        }

        let error = anyhow::Error::new(Unreadable(std::io::Error::other("the disk is gone")));
        assert_eq!(causes(&error), "cannot read it: the disk is gone");
        let error = Err::<(), _>(error).context("opening the state").unwrap_err();
        assert_eq!(causes(&error), "opening the state: cannot read it: the disk is gone");
    }

    #[test]
    fn the_journal_is_known_by_its_device_and_inode() {
        let (one, other) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let metadata = one.metadata().unwrap();
        let stream = format!("{}:{}", metadata.dev(), metadata.ino());
        assert!(is_stream(&stream, &one));
        assert!(!is_stream(&stream, &other));
        assert!(!is_stream("", &one) && !is_stream("1", &one));
    }
}
