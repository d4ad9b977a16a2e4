//! What the three programs have in common on the command line: the standard output, logging to stderr, the way they fail, text
//! from elsewhere made safe for a terminal, completions and manual pages.

mod documents;
mod failure;
mod format;
mod output;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::process::{ExitCode, Termination};

use clap::{ArgMatches, Args, Command, Parser, ValueEnum};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

pub use documents::{Documents, Manual};
pub use failure::{CLOSED_PIPE, NOT_PINNED, UsageError, WRONG_USAGE, causes, fail, say_error, say_panics};
pub use output::{Output, OutputError};
pub use zklora_proto::Escaped;

/// The process's arguments, and what clap found them to be. Help, version and wrong usage are told, and there is nothing to do
/// but end with the exit code.
pub fn parse<C: Parser>() -> Result<(C, ArgMatches), ExitCode> {
    let parsed = without_empty_variables(C::command())
        .try_get_matches()
        .and_then(|matches| Ok((C::from_arg_matches(&matches)?, matches)));
    parsed.map_err(|error| {
        let told = error.print().map_err(OutputError::wrap).and_then(|()| Output::stdout().flush());
        match told {
            Err(lost) if !error.use_stderr() => fail(&lost.into(), 1),
            _ => ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(WRONG_USAGE)),
        }
    })
}

/// A variable that is empty counts as not set, for every argument of every command.
fn without_empty_variables(command: Command) -> Command {
    let is_empty = |name: &OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
    command
        .mut_args(|argument| match argument.get_env().is_some_and(is_empty) {
            true => argument.env(None::<&'static str>),
            false => argument,
        })
        .mut_subcommands(without_empty_variables)
}

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
        let given = std::env::var_os("RUST_LOG").unwrap_or_default();
        let filter = match given.to_str() {
            Some(text) if text.trim().is_empty() => Ok(EnvFilter::new("info")),
            Some(text) => EnvFilter::try_new(text).map_err(|error| error.to_string()),
            None => Err("it is not UTF-8".to_owned()),
        };
        let (filter, wrong) = match filter {
            Ok(filter) => (filter, None),
            Err(why) => (EnvFilter::new("info"), Some(why)),
        };
        let format = *failure::FORMAT.get_or_init(|| self.format());
        format::subscriber(format, filter, || failure::Stderr, colours()).init();
        if let Some(error) = wrong {
            tracing::warn!("RUST_LOG is {given:?}, which is no filter: {error}; logging as with info");
        }
    }

    fn format(&self) -> LogFormat {
        self.log_format.unwrap_or_else(|| match std::env::var("JOURNAL_STREAM") {
            Ok(stream) if is_stream(&stream, &std::io::stderr()) => LogFormat::Journal,
            _ => LogFormat::Text,
        })
    }
}

/// Whether people read the log who want colours (<https://no-color.org>).
fn colours() -> bool {
    has_colours(&std::io::stderr())
}

/// Whether a stream is a terminal that is to have colours (no-color.org).
pub fn has_colours(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && !colours_unwanted(|name| std::env::var_os(name))
}

fn colours_unwanted(variable: impl Fn(&str) -> Option<OsString>) -> bool {
    variable("NO_COLOR").is_some_and(|value| !value.is_empty())
        || variable("TERM").is_some_and(|terminal| terminal == "dumb")
}

/// Whether an open file is the one that systemd names as `device:inode` (systemd.exec(5), `JOURNAL_STREAM`). A child whose stderr
/// was redirected has inherited the variable all the same.
fn is_stream(stream: &str, open: &impl AsFd) -> bool {
    let Ok(metadata) = open.as_fd().try_clone_to_owned().and_then(|file| File::from(file).metadata()) else {
        return false;
    };
    stream == format!("{}:{}", metadata.dev(), metadata.ino())
}

/// Starts logging and runs a command, which writes what it has to say to the standard output. Its error becomes a line on stderr
/// and exit code 1, or that of [`fail`].
pub fn run<T: Termination>(
    logging: &Logging,
    command: impl FnOnce(&mut Output) -> anyhow::Result<T>,
) -> ExitCode {
    logging.init();
    say_panics();
    let mut out = Output::stdout();
    let done = command(&mut out).and_then(|done| {
        out.flush()?;
        Ok(done)
    });
    match done {
        Ok(done) => done.report(),
        Err(error) => fail(&error, 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_color_is_heeded_unless_it_is_empty() {
        let unwanted = |name: &'static str, value: &'static str| {
            colours_unwanted(move |asked| (asked == name).then(|| value.into()))
        };
        assert!(unwanted("NO_COLOR", "1") && unwanted("TERM", "dumb"));
        assert!(!unwanted("NO_COLOR", "") && !unwanted("TERM", "xterm") && !unwanted("X", "1"));
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
