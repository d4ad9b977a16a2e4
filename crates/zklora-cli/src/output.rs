//! The standard output of all three programs, and the only way to it.
//!
//! `println!` panics where the reader has gone or the disk is full. Here either is an error like any other, which a program can
//! do something about before it ends, such as finish a session.

use std::fmt;
use std::io::{self, ErrorKind, Stdout, Write};

/// The standard output. Every line goes out when it ends; what has no end yet, at [`Write::flush`].
///
/// Its errors have an [`OutputError`] in them, so that they are told from those of a file or a connection wherever they are
/// handed to.
#[derive(Debug)]
pub struct Output(Stdout);

impl Output {
    /// That of this process.
    #[allow(clippy::disallowed_methods, reason = "the one place that may")]
    pub fn stdout() -> Self {
        Self(io::stdout())
    }

    /// Whether it is a terminal that is to have colours.
    pub fn has_colours(&self) -> bool {
        crate::has_colours(&self.0)
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(OutputError::wrap)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(OutputError::wrap)
    }
}

/// The standard output did not take what was written.
#[derive(Debug)]
pub struct OutputError(io::Error);

impl OutputError {
    pub(crate) fn wrap(error: io::Error) -> io::Error {
        match error.kind() {
            // Tried again by whoever writes.
            ErrorKind::Interrupted => error,
            kind => io::Error::new(kind, Self(error)),
        }
    }

    /// The one that is behind an error, if it came from the standard output.
    pub fn behind(error: &anyhow::Error) -> Option<&Self> {
        // An `io::Error` is not the parent of what it was made of, but of the parents of that.
        error.chain().find_map(|cause| cause.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref::<Self>())
    }

    /// Whether nobody reads any more, as `head` does not after its last line.
    pub fn is_closed_pipe(&self) -> bool {
        self.0.kind() == ErrorKind::BrokenPipe
    }
}

impl fmt::Display for OutputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "writing to the standard output: {}", self.0)
    }
}

impl std::error::Error for OutputError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}
