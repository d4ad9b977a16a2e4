//! What must survive the process: sessions, their calls, and the exposure ledger, in one SQLite file.
//!
//! SQLite in WAL mode. A commit is in the file system's hands when the call returns, so that it survives the death of the process at
//! any point. What must survive a loss of power as well (a signed receipt) is committed with `synchronous = FULL`, which waits for
//! the disk; the rest with `NORMAL`, which keeps the file whole but may lose the last commits. [`crate::exposure`] says why the
//! ledger may live with that: what it has reserved is in a file beside. What is in the log is moved into the file by a thread
//! of its own, so that no call waits for the disk.
//!
//! Both files are made together with the state and never anew by themselves: a ledger that is not there has not answered nothing.
//! They hold clients' activations and the seeds of their commitments. They lie in the state folder and are closed to others.
//! What is deleted is overwritten (`secure_delete`), and the log is cut to nothing soon after, so that neither file has it any more. What
//! the file system and the disk keep of blocks that were freed is another matter.

mod ledger;
mod log;
mod reserved;
mod sessions;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use rusqlite::{Connection, Transaction, TransactionBehavior, params};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tracing::error;
use zklora_proto::{AdapterId, secret_file};

pub use self::ledger::salvage;
use self::log::Checkpoints;
pub use self::reserved::Allowance;
use self::reserved::Reserved;
pub use self::sessions::{Exposed, Stage, StoredCall, StoredSession};

/// The layout of the tables. Another number in a file means another version of this program.
const VERSION: i64 = 4;

const TABLES: &str = "
CREATE TABLE session (
    id BLOB PRIMARY KEY,
    client BLOB NOT NULL,
    started INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('open', 'signed', 'finished', 'proving', 'proved', 'failed', 'abandoned')),
    receipt BLOB,
    by_contributor TEXT,
    by_client TEXT,
    bundle_bytes INTEGER,
    bundle_deleted INTEGER,
    security TEXT NOT NULL,
    seed BLOB
) STRICT, WITHOUT ROWID;
CREATE TABLE call (
    session BLOB NOT NULL REFERENCES session (id) ON DELETE CASCADE,
    number INTEGER NOT NULL,
    modules BLOB NOT NULL,
    rows INTEGER NOT NULL,
    activations BLOB NOT NULL,
    PRIMARY KEY (session, number)
) STRICT;
CREATE TABLE exposed_row (
    module INTEGER NOT NULL,
    number INTEGER NOT NULL,
    entries BLOB NOT NULL,
    PRIMARY KEY (module, number)
) STRICT;
CREATE TABLE fact (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;
";

/// The file's name in the state folder.
pub const STORE: &str = "sessions.sqlite";

/// Makes sure that one process alone serves a state: two would count exposed rows apart. Holds until the file is dropped.
pub fn lock(state: &Path) -> anyhow::Result<File> {
    let file = File::open(state).with_context(|| format!("opening {}", state.display()))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).with_context(|| {
        format!("{} is being served by another process; stop that one first", state.display())
    })?;
    Ok(file)
}

/// Whether a process serves a state at this moment. Nobody does if there is no such folder.
pub fn is_served(state: &Path) -> bool {
    File::open(state).is_ok_and(|file| {
        flock(&file, FlockOperation::NonBlockingLockShared).is_err_and(|error| error == Errno::WOULDBLOCK)
    })
}

/// See the module's documentation.
pub struct Store {
    path: PathBuf,
    checkpoints: Checkpoints,
    db: Mutex<Connection>,
    reserved: Mutex<Reserved>,
}

/// Why a store is not opened, where it is not the machine that fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unusable {
    /// A file of it is not there.
    #[error(
        "{} is not there, without which nobody knows what this state has answered: put it back as it was last, or begin a new \
         ledger with `serve --new-ledger`",
        path.display()
    )]
    Missing {
        /// Which.
        path: PathBuf,
    },
    /// A file of it is not whole.
    #[error(
        "{} is damaged or cut ({why}), so that it does not tell what this state has answered: put it back as it was last, or begin \
         a new ledger with `serve --new-ledger`",
        path.display()
    )]
    Damaged {
        /// Which.
        path: PathBuf,
        /// How that shows.
        why: String,
    },
    /// It is of another version of this program.
    #[error(
        "{} is of another version of this program: it has layout {found}, expected {expected}. Serve the state with that version, or \
         make a new one with `init`",
        path.display()
    )]
    Version {
        /// Which.
        path: PathBuf,
        /// Its layout.
        found: i64,
        /// The layout that this program has.
        expected: i64,
    },
    /// It belongs to another state.
    #[error("{} is of another adapter than the state's {adapter}", path.display())]
    Foreign {
        /// Which.
        path: PathBuf,
        /// The state's.
        adapter: AdapterId,
    },
}

impl Store {
    /// Makes the files of a state that has answered nothing, or of one that may have answered what its modules are given as `lost`.
    pub fn create(path: &Path, adapter: AdapterId, modules: Vec<Allowance>) -> anyhow::Result<()> {
        // Before SQLite makes it, who gives its own mode to its other files.
        OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(path)
            .with_context(|| format!("making {}", path.display()))?;
        Reserved::create(path, adapter, modules)?;
        let create = || -> anyhow::Result<()> {
            let db = connect(path)?;
            db.execute_batch(&format!("BEGIN; {TABLES} PRAGMA user_version = {VERSION};"))?;
            db.execute("INSERT INTO fact (name, value) VALUES (?, ?)", params![ADAPTER, adapter.as_bytes()])?;
            Ok(db.execute_batch("COMMIT")?)
        };
        create().with_context(|| format!("making {}", path.display()))
    }

    /// Opens the files, which are those of this adapter. Fails with [`Unusable`] if they are not there, not whole or others.
    pub fn open(path: &Path, adapter: AdapterId) -> anyhow::Result<Self> {
        let damaged = |why: String| Unusable::Damaged { path: path.into(), why };
        match path.metadata() {
            Ok(file) if file.len() == 0 => return Err(damaged("it is empty".into()).into()),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Unusable::Missing { path: path.into() }.into());
            }
            Err(error) => return Err(error).with_context(|| format!("opening {}", path.display())),
        }
        // Activations are in it, and whoever can change it can have the budget spent again.
        secret_file::check_closed(path.parent().unwrap_or(Path::new(".")), &Self::files(path))?;
        let open = || -> anyhow::Result<Connection> {
            let db = connect(path)?;
            let version: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
            anyhow::ensure!(version != 0, damaged("it has no tables".into()));
            if version != VERSION {
                let (path, found) = (path.into(), version);
                return Err(Unusable::Version { path, found, expected: VERSION }.into());
            }
            check_length(&db, path)?;
            for table in ["exposed_row", "fact", "session"] {
                let query = format!("PRAGMA integrity_check({table})");
                let said: String = db.query_row(&query, [], |row| row.get(0))?;
                anyhow::ensure!(said == "ok", damaged(said));
            }
            let known: Vec<u8> =
                db.query_row("SELECT value FROM fact WHERE name = ?", [ADAPTER], |row| row.get(0))?;
            anyhow::ensure!(known == adapter.as_bytes(), Unusable::Foreign { path: path.into(), adapter });
            Ok(db)
        };
        let db = open().map_err(|error| match error.downcast_ref::<rusqlite::Error>() {
            Some(rusqlite::Error::QueryReturnedNoRows) => {
                damaged("it does not say whose it is".into()).into()
            }
            Some(sqlite) if is_damage(sqlite) => damaged(sqlite.to_string()).into(),
            Some(_) => error.context(format!("opening {}", path.display())),
            None => error,
        })?;
        let reserved = Mutex::new(Reserved::open(path, adapter)?);
        // A process that was killed may have left there what is to be forgotten. If somebody else is at it, they will.
        log::cut(&db);
        let (checkpoints, db) = (Checkpoints::start(path)?, Mutex::new(db));
        Ok(Self { path: path.into(), checkpoints, db, reserved })
    }

    /// The error of a store whose ledger does not hold together.
    pub fn damaged(&self, why: impl Into<String>) -> Unusable {
        Unusable::Damaged { path: self.path.clone(), why: why.into() }
    }

    /// The files of a store at this path.
    pub fn files(path: &Path) -> [PathBuf; 4] {
        let beside = |ending: &str| {
            let mut name = path.as_os_str().to_owned();
            name.push(ending);
            PathBuf::from(name)
        };
        [path.into(), beside("-wal"), beside("-shm"), reserved::name(path)]
    }

    fn db(&self) -> MutexGuard<'_, Connection> {
        self.db.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reserved(&self) -> MutexGuard<'_, Reserved> {
        self.reserved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes changes together, and waits for the disk if they have to survive a loss of power.
    fn change<T>(
        &self,
        durable: bool,
        changes: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> anyhow::Result<T> {
        let mut db = self.db();
        db.pragma_update(None, "synchronous", if durable { "FULL" } else { "NORMAL" })?;
        let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let value = changes(&transaction)?;
        transaction.commit()?;
        // It is recorded, whatever becomes of the log now.
        if let Err(error) = self.checkpoints.due(&db) {
            error!("moving the store's log into its file: {error:#}");
        }
        Ok(value)
    }
}

/// The fact that says whose a store is.
const ADAPTER: &str = "adapter";

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let db = Connection::open(path)?;
    db.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;
         PRAGMA wal_autocheckpoint = 0; PRAGMA secure_delete = ON;",
    )?;
    Ok(db)
}

/// Fails if the file has lost its end. A service may be writing at the same time: what it has put into the log since the checkpoint is not
/// in the file yet. So a file is cut only if all that was in the log when its pages were counted has come into it, and it is still too
/// short.
///
/// The file must not be opened here but by SQLite: to close it would give up all locks that this process has on it (fcntl(2)), and another
/// process would take the log for nobody's and delete it.
fn check_length(db: &Connection, path: &Path) -> anyhow::Result<()> {
    for _ in 0..LENGTH_LOOKS {
        let expected: i64 = db.query_row(
            "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size",
            [],
            |row| row.get(0),
        )?;
        // Whether somebody else was at it, frames of the log, and how many of them are in the file now.
        let (busy, log, written): (i64, i64, i64) =
            db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })?;
        let found = path.metadata()?.len();
        if found >= expected as u64 {
            break;
        }
        let why = format!("it has {found} bytes, expected {expected}");
        anyhow::ensure!(busy != 0 || log != written, Unusable::Damaged { path: path.into(), why });
        thread::sleep(Duration::from_millis(20));
    }
    // It is being written to all the time, by a service that has held it against this when it began.
    Ok(())
}

/// How often a file is looked at that seems to be too short.
const LENGTH_LOOKS: u32 = 100;

/// Whether it is the file that is wrong, and not the disk or the rights.
fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    // A table that is not there has no code of its own; nothing else about these queries is unknown.
    matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase | rusqlite::ErrorCode::Unknown))
}

#[cfg(test)]
mod tests;
