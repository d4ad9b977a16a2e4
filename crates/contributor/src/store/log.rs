//! SQLite's write-ahead log, in the form that <https://sqlite.org/fileformat2.html#walformat> specifies.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use rusqlite::Connection;
use tracing::warn;

/// How often the log is moved into the file, while something is written.
const INTERVAL: Duration = Duration::from_secs(1);
/// A log of this size is begun anew, for which writers have to wait a moment: who writes without a pause never lets it end by itself.
const LONGEST: u64 = 64 << 20;
/// Whoever writes is held up for no longer than this by a log that cannot be cut, because somebody reads it.
const LONGEST_CUT: Duration = Duration::from_millis(200);

/// Moves what is in the log into the file, in a thread and with a connection of its own: that waits for the disk, and
/// whoever writes need not.
pub(super) struct Checkpoints {
    log: PathBuf,
    /// Whether the log has something that is not to be kept.
    erase: Arc<AtomicBool>,
    wake: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Checkpoints {
    pub(super) fn start(path: &Path) -> anyhow::Result<Self> {
        let db = Connection::open(path)?;
        // Writers wait for a log that is cut, and it for readers.
        db.busy_timeout(LONGEST_CUT)?;
        let erase = Arc::new(AtomicBool::new(false));
        let to_erase = erase.clone();
        let (wake, woken) = mpsc::sync_channel(1);
        let work = move || {
            while let Ok(()) = woken.recv() {
                loop {
                    let until = Instant::now() + INTERVAL;
                    // What comes meanwhile is moved with the rest.
                    while let Ok(()) = woken.recv_timeout(until.saturating_duration_since(Instant::now())) {}
                    if let Err(error) = db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())) {
                        warn!("moving the store's log into its file: {error}");
                    }
                    if !to_erase.swap(false, Ordering::AcqRel) || cut(&db) {
                        break;
                    }
                    // Somebody reads. Later, then.
                    to_erase.store(true, Ordering::Release);
                    if let Err(RecvTimeoutError::Disconnected) = woken.recv_timeout(Duration::ZERO) {
                        break;
                    }
                }
            }
        };
        let thread = std::thread::Builder::new().name("checkpoints".into()).spawn(work);
        let thread = Some(thread.context("starting the thread for checkpoints")?);
        Ok(Self { log: name(path), erase, wake: Some(wake), thread })
    }

    /// What has been written so far is not to stay in the log. It is cut after the next time that something is [`due`](Self::due).
    pub(super) fn erase(&self) {
        self.erase.store(true, Ordering::Release);
    }

    /// Something has been written by this connection.
    pub(super) fn due(&self, db: &Connection) -> anyhow::Result<()> {
        // One that is waiting is enough.
        let _ = self.wake.as_ref().map(|wake| wake.try_send(()));
        if self.log.metadata().is_ok_and(|log| log.len() > LONGEST) {
            db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        }
        Ok(())
    }
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        drop(self.wake.take());
        // A thread that panicked has nothing left to do.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Moves what is in the log into the file, and cuts it to nothing. Whether that was possible: not while somebody reads it.
pub(super) fn cut(db: &Connection) -> bool {
    let busy = db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0));
    busy.inspect_err(|error| warn!("cutting the store's log: {error}")).is_ok_and(|busy| busy == 0)
}

/// The name of a file's log.
fn name(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push("-wal");
    name.into()
}
