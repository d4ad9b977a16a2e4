//! How a program fails: a line on stderr, whatever is logged, and an exit code.

use std::fmt::{self, Display};
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;
use zklora_proto::Bytes;

use crate::output::OutputError;
use crate::{Escaped, LogFormat, format};

/// Exit code of wrong usage, clap's own.
pub const WRONG_USAGE: u8 = 2;

/// All that was checked holds, but nobody said of which adapter it has to be.
pub const NOT_PINNED: u8 = 3;

/// Exit code if nobody reads the standard output any more: what a shell makes of a program that SIGPIPE has ended, as it ends
/// most programs.
pub const CLOSED_PIPE: u8 = 128 + 13;

/// Wrong usage that shows only when arguments are held against each other.
#[derive(Debug)]
pub struct UsageError(String);

impl UsageError {
    /// What is wrong with them, and what would be right.
    pub fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

impl Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// Says an error, and gives the exit code: `code`, unless usage is wrong or the reader of the standard output has gone, which
/// ends the program without a word.
pub fn fail(error: &anyhow::Error, code: u8) -> ExitCode {
    if OutputError::behind(error).is_some_and(OutputError::is_closed_pipe) {
        return CLOSED_PIPE.into();
    }
    say_error(causes(error));
    match error.is::<UsageError>() {
        true => WRONG_USAGE.into(),
        false => code.into(),
    }
}

/// Writes an error to stderr, in the form of the log, and whatever `RUST_LOG` says: it is the program's answer and no part of the
/// log. It becomes one line.
pub fn say_error(error: impl Display) {
    let error = plain(&error.to_string());
    match FORMAT.get().copied().unwrap_or(LogFormat::Text) {
        LogFormat::Text => say(format_args!("error: {}", Escaped(&error))),
        LogFormat::Journal => say(format_args!("{}error: {}", format::ERROR, Escaped(&error))),
        LogFormat::Json => {
            let always = format::subscriber(LogFormat::Json, EnvFilter::new("error"), || Stderr, false);
            tracing::subscriber::with_default(always, || tracing::error!("{error}"));
        }
    }
}

/// Has a panic of any thread said as an error from now on. It is a bug, or memory has run out, and what it says is for a report of
/// it; with `RUST_BACKTRACE=full`, it is told as Rust tells it.
pub fn say_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        match std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value == "full") {
            true => usual(panic),
            false => say_error(format_args!("internal error: {panic}")),
        }
    }));
}

/// An error and what caused it, from the outside in, each once: many errors have their cause in their own words, too.
pub fn causes(error: &anyhow::Error) -> String {
    let mut said = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if said.is_empty() {
            said = cause;
        } else if !said.contains(&cause) {
            said.push_str(": ");
            said.push_str(&cause);
        }
    }
    said
}

/// The form of the log, once it is known.
pub(crate) static FORMAT: OnceLock<LogFormat> = OnceLock::new();

/// Stderr, of which nobody hears if it cannot be written: there is nowhere to say it, and a service goes on when who read its log
/// has gone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = io::stderr().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn say(line: fmt::Arguments<'_>) {
    // In one piece, or lines of several programs would mix.
    let _ = Stderr.write_all(format!("{line}\n").as_bytes());
}

/// A text on one line, without the call stack that libtorch adds to its errors; that memory ran out is said as what it is.
fn plain(text: &str) -> String {
    let is_stack = |line: &&str| line.starts_with("Exception raised from ") || line.starts_with("frame #");
    let lines =
        text.lines().map(str::trim).filter(|line| !line.is_empty()).take_while(|line| !is_stack(line));
    let line = lines.collect::<Vec<_>>().join(" ");
    // As libtorch's allocator has it, wherever the error went through.
    match line.split_once("you tried to allocate ").and_then(|(_, rest)| rest.split_once(" bytes")) {
        Some((bytes, _)) if line.contains("can't allocate memory") => {
            let amount = bytes.parse().map_or_else(|_| bytes.to_owned(), |bytes| Bytes(bytes).to_string());
            let before = line.split_once('[').map_or("", |(before, _)| before);
            let before = before.trim_end_matches("Internal torch error: ").trim_end_matches("libtorch: ");
            format!("{before}out of memory: {amount} more were needed; free some, or do less at once")
        }
        _ => line,
    }
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    #[derive(Debug)]
    struct Saying(&'static str, io::Error);

    impl Display for Saying {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{}: {}", self.0, self.1)
        }
    }

    impl std::error::Error for Saying {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            Some(&self.1)
        }
    }

    #[test]
    fn a_cause_is_said_once_even_if_its_effect_has_its_words() {
        let error = anyhow::Error::new(Saying("x.json", io::Error::other("no more")));
        assert_eq!(causes(&error), "x.json: no more");
        let error = error.context("reading");
        assert_eq!(causes(&error), "reading: x.json: no more");
        let error: anyhow::Result<()> = Err(anyhow!("inner")).context("middle").context("outer");
        assert_eq!(causes(&error.unwrap_err()), "outer: middle: inner");
    }

    #[test]
    fn an_error_of_several_lines_becomes_one() {
        assert_eq!(plain("TOML parse error\n  |\n1 | x\n\n"), "TOML parse error | 1 | x");
    }

    #[test]
    fn libtorch_is_quoted_without_its_stack_and_lack_of_memory_is_named() {
        let stack = "\nException raised from alloc_cpu at alloc_cpu.cpp:127 (most recent call first):\nframe #0: c10::Error";
        let shapes = format!("libtorch: The size of tensor a (3) must match{stack}");
        assert_eq!(plain(&shapes), "libtorch: The size of tensor a (3) must match");
        let memory = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate \
                      3221225472 bytes. Error code 12 (Cannot allocate memory)";
        assert_eq!(
            plain(&format!("loading: libtorch: Internal torch error: {memory}{stack}")),
            "loading: out of memory: 3 GiB more were needed; free some, or do less at once"
        );
    }

    #[test]
    fn errors_of_the_standard_output_are_told_from_others() {
        let closed = || io::Error::from(io::ErrorKind::BrokenPipe);
        let wrapped = anyhow::Error::new(OutputError::wrap(closed())).context("printing");
        assert!(OutputError::behind(&wrapped).unwrap().is_closed_pipe());
        let other = anyhow::Error::new(closed()).context("a connection");
        assert!(OutputError::behind(&other).is_none());
    }
}
