//! The socket by which a daemon is asked how it is, and what it has answered.
//!
//! A client connects, writes one line of JSON, a [`Question`], and reads one line of JSON. The socket is for the daemon's user alone.

use std::fs::{self, Permissions};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixSocket};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use crate::daemon::{Daemon, Status};
use crate::exposure::Exposure;

/// The socket's name in the state folder.
pub const CONTROL: &str = "control.sock";

/// Bytes of a socket's path: `sun_path` of unix(7), less the zero at its end.
const MAX_PATH_BYTES: usize = 107;
/// Questions at once; more wait until one of these is over.
const MAX_CONNECTIONS: usize = 8;
/// A question must have been asked and answered within this time.
const TIMEOUT: Duration = Duration::from_secs(5);
const MAX_QUESTION_BYTES: u64 = 4 << 10;
/// More than the exposure of as many modules as a manifest may have.
const MAX_ANSWER_BYTES: u64 = 16 << 20;

/// What a daemon may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Question {
    /// For its [`Status`].
    Status,
    /// For what its modules have answered: an [`Exposure`] of each.
    Exposure,
}

/// A daemon's socket, which is removed when this is dropped.
#[derive(Debug)]
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
}

impl Control {
    /// Makes the socket. What a dead daemon left at this path is replaced; anything else there is an error.
    pub fn bind(path: &Path) -> anyhow::Result<Self> {
        check_path(path)?;
        remove_stale(path)?;
        let binding = || -> io::Result<UnixListener> {
            let socket = UnixSocket::new_stream()?;
            socket.bind(path)?;
            // Before it listens, nobody can connect.
            fs::set_permissions(path, Permissions::from_mode(0o600))?;
            socket.listen(MAX_CONNECTIONS as u32)
        };
        let listener = binding().with_context(|| format!("making the control socket {}", path.display()))?;
        Ok(Self { listener, path: path.into() })
    }

    /// Answers until it is dropped.
    pub async fn serve(self, daemon: Arc<Daemon>) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            // The semaphore is never closed.
            let Ok(place) = places.clone().acquire_owned().await else { return };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let daemon = daemon.clone();
                    tokio::spawn(async move {
                        let _place = place;
                        match timeout(TIMEOUT, answer(stream, daemon)).await {
                            Ok(Ok(())) => {}
                            Ok(Err(error)) => debug!("control socket: {error:#}"),
                            Err(_) => {
                                debug!("control socket: nobody asked, or took the answer, in {TIMEOUT:?}")
                            }
                        }
                    });
                }
                Err(error) => {
                    warn!("control socket: {error}");
                    // Such as too many open files: at once it would fail again.
                    sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            debug!("removing {}: {error}", self.path.display());
        }
    }
}

/// Asks the daemon at this socket how it is; `None` if there is none.
pub fn ask_status(path: &Path) -> anyhow::Result<Option<Status>> {
    ask(path, Question::Status)
}

/// Asks the daemon at this socket what its modules have answered, in the manifest's order; `None` if there is none.
pub fn ask_exposure(path: &Path) -> anyhow::Result<Option<Vec<Exposure>>> {
    ask(path, Question::Exposure)
}

fn ask<T: DeserializeOwned>(path: &Path, question: Question) -> anyhow::Result<Option<T>> {
    check_path(path)?;
    let stream = match UnixStream::connect(path) {
        Ok(stream) => stream,
        // No socket, or one that a dead daemon left.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => {
            return Err(error)
                .with_context(|| format!("connecting to {}: is it this user's?", path.display()));
        }
    };
    let asking = || -> anyhow::Result<T> {
        // The daemon gives up first.
        stream.set_read_timeout(Some(2 * TIMEOUT))?;
        stream.set_write_timeout(Some(2 * TIMEOUT))?;
        writeln!(&stream, "{}", serde_json::to_string(&question)?)?;
        let mut answer = String::new();
        let read = BufReader::new((&stream).take(MAX_ANSWER_BYTES)).read_line(&mut answer);
        read.context("it does not answer: it may still be restoring sessions, or hang")?;
        if !answer.ends_with('\n') {
            bail!("the answer is cut off after {} bytes", answer.len());
        }
        serde_json::from_str(&answer)
            .context("it answers something else: is the daemon of another version than this program?")
    };
    asking().map(Some).with_context(|| format!("asking the daemon at {}", path.display()))
}

/// Fails if the path cannot be a socket's.
pub fn check_path(path: &Path) -> anyhow::Result<()> {
    let bytes = path.as_os_str().len();
    if bytes > MAX_PATH_BYTES {
        bail!(
            "{} has {bytes} bytes, and the path of a socket has at most {MAX_PATH_BYTES}: give a shorter one with --control",
            path.display()
        );
    }
    Ok(())
}

fn remove_stale(path: &Path) -> anyhow::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    if !metadata.file_type().is_socket() {
        bail!("{} is there and is no socket: give another path with --control", path.display());
    }
    // The lock of the state keeps two daemons from one state, not from one socket.
    if UnixStream::connect(path).is_ok() {
        bail!("another daemon listens at {}: give another path with --control", path.display());
    }
    fs::remove_file(path).with_context(|| format!("removing {}, of a daemon that is dead", path.display()))
}

async fn answer(mut stream: tokio::net::UnixStream, daemon: Arc<Daemon>) -> anyhow::Result<()> {
    let (receive, mut send) = stream.split();
    let mut question = String::new();
    tokio::io::BufReader::new(receive.take(MAX_QUESTION_BYTES)).read_line(&mut question).await?;
    let mut answer = match serde_json::from_str(&question)? {
        Question::Status => {
            let status = spawn_blocking(move || daemon.status()).await.context("the status panicked")?;
            serde_json::to_string(&status)?
        }
        Question::Exposure => {
            let exposures = spawn_blocking(move || daemon.service().exposures())
                .await
                .context("looking at the ledger panicked")?;
            serde_json::to_string(&exposures)?
        }
    };
    answer.push('\n');
    send.write_all(answer.as_bytes()).await?;
    Ok(())
}
