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

mod log;
mod reserved;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior, params};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tracing::{debug, error, warn};
use zklora_circuit::security::Security;
use zklora_proto::packing::{activations_from_bytes, activations_to_bytes};
use zklora_proto::{AdapterId, CommitmentSeed, PublicKey, SessionId, Signature, secret_file};

use self::log::Checkpoints;
pub use self::reserved::Allowance;
use self::reserved::Reserved;

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

/// How far a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Calls may come.
    Open,
    /// The contributor has signed the receipt.
    Signed,
    /// Both have; it is to be proved.
    Finished,
    /// Its job folder has all that proving takes, in place of this file.
    Proving,
    /// The bundle is written.
    Proved,
    /// Proving failed.
    Failed,
    /// The client did not come back.
    Abandoned,
}

impl Stage {
    const ALL: [(Self, &str); 7] = [
        (Self::Open, "open"),
        (Self::Signed, "signed"),
        (Self::Finished, "finished"),
        (Self::Proving, "proving"),
        (Self::Proved, "proved"),
        (Self::Failed, "failed"),
        (Self::Abandoned, "abandoned"),
    ];

    /// The stage in a word.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(stage, _)| *stage == self).map_or("open", |(_, name)| name)
    }

    fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(stage, _)| *stage)
    }
}

/// A session as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredSession {
    /// Its id.
    pub id: SessionId,
    /// Whose it is.
    pub client: PublicKey,
    /// Seconds since 1970.
    pub started: u64,
    /// How far it is.
    pub stage: Stage,
    /// The receipt's exact bytes, once it is signed.
    pub receipt: Option<Vec<u8>>,
    /// The contributor's signature of it.
    pub by_contributor: Option<Signature>,
    /// The client's.
    pub by_client: Option<Signature>,
    /// Size of the bundle, once it is proved.
    pub bundle_bytes: Option<u64>,
    /// When the bundle was deleted because it had been kept for long enough, in seconds since 1970.
    pub bundle_deleted: Option<u64>,
    /// The parameter set of its proofs, which the client was told.
    pub security: Security,
    /// What its commitments are salted with, as long as that is needed: until its job folder is there.
    pub seed: Option<CommitmentSeed>,
}

/// A call as it is stored: its deltas follow from the adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredCall {
    /// Modules by index in the manifest.
    pub modules: Vec<usize>,
    /// Rows.
    pub rows: usize,
    /// Row-major.
    pub activations: Vec<i16>,
}

/// What a call adds to the ledger for one module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exposed<'a> {
    /// The module, by index in the manifest.
    pub module: usize,
    /// The number of the first of these rows.
    pub first: usize,
    /// Rows that are independent of all before them.
    pub rows: Vec<&'a [i16]>,
    /// The module's new reservation, if it needs one.
    pub reserve: Option<usize>,
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
            // What is in the log may complete the file.
            db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?;
            let bytes: i64 = db.query_row(
                "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size",
                [],
                |row| row.get(0),
            )?;
            let found = path.metadata()?.len();
            anyhow::ensure!(
                found >= bytes as u64,
                damaged(format!("it has {found} bytes, expected {bytes}"))
            );
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

    /// A new session.
    pub fn begin(
        &self,
        id: SessionId,
        client: PublicKey,
        started: u64,
        security: Security,
        seed: &CommitmentSeed,
    ) -> anyhow::Result<()> {
        self.change(false, |db| {
            db.execute(
                "INSERT INTO session (id, client, started, state, security, seed) VALUES (?, ?, ?, 'open', ?, ?)",
                params![id.as_bytes(), client.as_bytes(), started as i64, security.name(), seed.as_bytes()],
            )
        })?;
        Ok(())
    }

    /// The next call of an open session, and what it adds to the ledger. What is reserved is on the disk before anything else is
    /// written.
    pub fn record(
        &self,
        session: SessionId,
        number: u64,
        call: (&[usize], usize, &[i16]),
        exposed: &[Exposed<'_>],
    ) -> anyhow::Result<()> {
        let (modules, rows, activations) = call;
        let modules: Vec<u8> = modules.iter().flat_map(|&module| (module as u32).to_le_bytes()).collect();
        let reserve: Vec<(usize, usize)> =
            exposed.iter().filter_map(|exposed| Some((exposed.module, exposed.reserve?))).collect();
        if !reserve.is_empty() {
            self.reserved().reserve(&reserve)?;
        }
        self.change(false, |db| {
            let mut insert = db.prepare_cached("INSERT INTO call VALUES (?, ?, ?, ?, ?)")?;
            let activations = activations_to_bytes(activations);
            insert.execute(params![session.as_bytes(), number as i64, modules, rows as i64, activations])?;
            let mut insert = db.prepare_cached("INSERT INTO exposed_row VALUES (?, ?, ?)")?;
            for exposed in exposed {
                for (number, row) in (exposed.first..).zip(&exposed.rows) {
                    let entries = activations_to_bytes(row);
                    insert.execute(params![exposed.module as i64, number as i64, entries])?;
                }
            }
            Ok(())
        })?;
        let rows: usize = exposed.iter().map(|exposed| exposed.rows.len()).sum();
        // The call is recorded. Without this line, damage done to the database before the next reservation would go unnoticed.
        if let Err(why) = self.reserved().add_rows(rows as u64) {
            error!("noting how many rows were answered: {why}");
        }
        Ok(())
    }

    /// The contributor's signature of the receipt.
    pub fn sign(&self, id: SessionId, receipt: &[u8], signature: &Signature) -> anyhow::Result<()> {
        self.change(true, |db| {
            db.execute(
                "UPDATE session SET state = 'signed', receipt = ?, by_contributor = ? WHERE id = ?",
                params![receipt, signature.to_string(), id.as_bytes()],
            )
        })?;
        Ok(())
    }

    /// The client's signature of the receipt: from now on the session will be proved.
    pub fn finish(&self, id: SessionId, signature: &Signature) -> anyhow::Result<()> {
        self.change(true, |db| {
            db.execute(
                "UPDATE session SET state = 'finished', by_client = ? WHERE id = ?",
                params![signature.to_string(), id.as_bytes()],
            )
        })?;
        Ok(())
    }

    /// The job folder is in its place: it has the calls now.
    pub fn proving(&self, id: SessionId) -> anyhow::Result<()> {
        self.close(id, Stage::Proving, None)
    }

    /// The bundle is in its place.
    pub fn proved(&self, id: SessionId, bundle_bytes: u64) -> anyhow::Result<()> {
        self.close(id, Stage::Proved, Some(bundle_bytes))
    }

    /// The sessions that are proved, with the sizes of their bundles, but for those whose bundles were deleted.
    pub fn bundles(&self) -> anyhow::Result<Vec<(SessionId, u64)>> {
        let db = self.db();
        let mut query = db.prepare_cached(
            "SELECT id, bundle_bytes FROM session
                WHERE state = 'proved' AND bundle_bytes IS NOT NULL AND bundle_deleted IS NULL",
        )?;
        let bundles = query
            .query_map([], |row| Ok((SessionId::from_bytes(row.get(0)?), row.get::<_, i64>(1)? as u64)))?;
        Ok(bundles.collect::<rusqlite::Result<_>>()?)
    }

    /// The bundle has been kept for as long as it is to be kept.
    pub fn bundle_deleted(&self, id: SessionId, at: u64) -> anyhow::Result<()> {
        self.change(true, |db| {
            db.execute(
                "UPDATE session SET bundle_deleted = ? WHERE id = ?",
                params![at as i64, id.as_bytes()],
            )
        })?;
        Ok(())
    }

    /// Proving failed, and would fail again. What it was made of is kept, for someone to look at.
    pub fn failed(&self, id: SessionId) -> anyhow::Result<()> {
        self.change(true, |db| {
            db.execute("UPDATE session SET state = 'failed' WHERE id = ?", [id.as_bytes()])
        })?;
        Ok(())
    }

    /// The client did not come back.
    pub fn abandon(&self, id: SessionId) -> anyhow::Result<()> {
        self.close(id, Stage::Abandoned, None)
    }

    fn close(&self, id: SessionId, stage: Stage, bundle_bytes: Option<u64>) -> anyhow::Result<()> {
        self.change(true, |db| {
            db.execute(
                "UPDATE session SET state = ?, bundle_bytes = ?, seed = NULL WHERE id = ?",
                params![stage.name(), bundle_bytes.map(|bytes| bytes as i64), id.as_bytes()],
            )
        })?;
        // From the next checkpoint on, the log has nothing of it either.
        self.checkpoints.erase();
        self.forget_calls(id)
    }

    /// Deletes the calls of a session, a few at a time: what is deleted is overwritten, and others want to write, too.
    fn forget_calls(&self, id: SessionId) -> anyhow::Result<()> {
        const FEW: &str = "DELETE FROM call WHERE rowid IN (SELECT rowid FROM call WHERE session = ? ORDER BY number LIMIT 8)";
        while self.change(false, |db| db.prepare_cached(FEW)?.execute([id.as_bytes()]))? > 0 {}
        Ok(())
    }

    /// Deletes what a process that was killed left of the calls of sessions that need them no more.
    pub fn forget_leftovers(&self) -> anyhow::Result<()> {
        const LEFT: &str = "WHERE state IN ('proving', 'proved', 'abandoned')
            AND EXISTS (SELECT 1 FROM call WHERE call.session = session.id)";
        for session in self.sessions(LEFT, &[])? {
            self.forget_calls(session.id)?;
            self.checkpoints.erase();
        }
        Ok(())
    }

    /// One session.
    pub fn session(&self, id: SessionId) -> anyhow::Result<Option<StoredSession>> {
        Ok(self.sessions("WHERE id = ?", &[id.as_bytes()])?.pop())
    }

    /// All sessions at this stage, the oldest first.
    pub fn sessions_at(&self, stage: Stage) -> anyhow::Result<Vec<StoredSession>> {
        self.sessions("WHERE state = ? ORDER BY started, id", &[&stage.name()])
    }

    fn sessions(&self, which: &str, values: &[&dyn rusqlite::ToSql]) -> anyhow::Result<Vec<StoredSession>> {
        let db = self.db();
        let columns = "id, client, started, state, receipt, by_contributor, by_client, bundle_bytes, security, seed, bundle_deleted";
        let mut query = db.prepare_cached(&format!("SELECT {columns} FROM session {which}"))?;
        let mut rows = query.query(values)?;
        let mut sessions = Vec::new();
        while let Some(row) = rows.next()? {
            let signature = |text: Option<String>| text.map(|text| text.parse::<Signature>()).transpose();
            let stage: String = row.get(3)?;
            sessions.push(StoredSession {
                id: SessionId::from_bytes(row.get(0)?),
                client: PublicKey::from_bytes(row.get(1)?),
                started: row.get::<_, i64>(2)? as u64,
                stage: Stage::parse(&stage).with_context(|| format!("unknown stage {stage:?}"))?,
                receipt: row.get(4)?,
                by_contributor: signature(row.get(5)?)?,
                by_client: signature(row.get(6)?)?,
                bundle_bytes: row.get::<_, Option<i64>>(7)?.map(|bytes| bytes as u64),
                security: row.get::<_, String>(8)?.parse()?,
                seed: row.get::<_, Option<_>>(9)?.map(CommitmentSeed::from_bytes),
                bundle_deleted: row.get::<_, Option<i64>>(10)?.map(|time| time as u64),
            });
        }
        Ok(sessions)
    }

    /// Visits the calls of a session, in their order. Others may use the store in between.
    pub fn calls(
        &self,
        session: SessionId,
        mut visit: impl FnMut(StoredCall) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let count: i64 = self.db().query_row(
            "SELECT count(*) FROM call WHERE session = ?",
            [session.as_bytes()],
            |row| row.get(0),
        )?;
        for number in 0..count {
            let call = self.call(session, number)?;
            visit(call.with_context(|| format!("session {session}: call {number} is missing or damaged"))?)?;
        }
        Ok(())
    }

    fn call(&self, session: SessionId, number: i64) -> anyhow::Result<Option<StoredCall>> {
        let db = self.db();
        let mut query = db
            .prepare_cached("SELECT modules, rows, activations FROM call WHERE session = ? AND number = ?")?;
        let mut found = query.query(params![session.as_bytes(), number])?;
        let Some(row) = found.next()? else { return Ok(None) };
        let (modules, activations): (Vec<u8>, Vec<u8>) = (row.get(0)?, row.get(2)?);
        let modules = modules.chunks_exact(4);
        let modules = modules.map(|m| u32::from_le_bytes([m[0], m[1], m[2], m[3]]) as usize).collect();
        let rows = row.get::<_, i64>(1)? as usize;
        let activations = activations_from_bytes(&activations, activations.len() / 2);
        Ok(activations.map(|activations| StoredCall { modules, rows, activations }))
    }

    /// Independent rows that a module has answered, in their order.
    pub fn exposed_rows(&self, module: usize) -> anyhow::Result<Vec<Vec<i16>>> {
        let db = self.db();
        let mut query =
            db.prepare_cached("SELECT number, entries FROM exposed_row WHERE module = ? ORDER BY number")?;
        let mut found = query.query([module as i64])?;
        let mut rows = Vec::new();
        while let Some(row) = found.next()? {
            let (number, entries): (i64, Vec<u8>) = (row.get(0)?, row.get(1)?);
            anyhow::ensure!(
                number == rows.len() as i64,
                self.damaged(format!("row {} of module {module} is missing", rows.len()))
            );
            let entries = activations_from_bytes(&entries, entries.len() / 2);
            rows.push(entries.ok_or_else(|| self.damaged(format!("row {number} of module {module}")))?);
        }
        Ok(rows)
    }

    /// How many rows each module may have answered, and whether, and why, the database may know less than that in this boot of the
    /// machine, `boot` being the kernel's boot id. If so, all that was reserved is in `lost`, but for what is known.
    pub fn allowances(&self, boot: &[u8]) -> anyhow::Result<(Vec<Allowance>, Option<&'static str>)> {
        let reserved = self.reserved();
        let mut modules = reserved.modules().to_vec();
        let mut known = vec![0usize; modules.len()];
        {
            let db = self.db();
            let mut query = db.prepare_cached("SELECT module, count(*) FROM exposed_row GROUP BY module")?;
            let mut found = query.query([])?;
            while let Some(row) = found.next()? {
                let (module, rows): (i64, i64) = (row.get(0)?, row.get(1)?);
                let known = usize::try_from(module).ok().and_then(|module| known.get_mut(module));
                *known.ok_or_else(|| {
                    self.damaged(format!("it has rows of module {module}, which is none"))
                })? = rows as usize;
            }
        }
        let lost = reserved.may_have_lost(known.iter().sum::<usize>() as u64, boot);
        for (allowance, known) in modules.iter_mut().zip(&known) {
            let at_most = allowance.reserved.saturating_sub(*known);
            if lost.is_some() {
                allowance.lost = allowance.lost.max(at_most);
            }
            allowance.reserved = allowance.reserved.max(known + allowance.lost);
        }
        Ok((modules, lost))
    }

    /// The ledger is open from now on, with these allowances.
    pub fn open_ledger(&self, boot: &[u8], modules: Vec<Allowance>) -> anyhow::Result<()> {
        let rows: i64 = self.db().query_row("SELECT count(*) FROM exposed_row", [], |row| row.get(0))?;
        self.reserved().begin(rows as u64, boot, modules)
    }

    /// The ledger is closed in order.
    pub fn close_ledger(&self) -> anyhow::Result<()> {
        self.reserved().close()
    }
}

/// What can still be read of a store that cannot be opened: what each module had reserved, if that is known, and the rows that it
/// has answered at least.
///
/// `old` are the `-reserved` files of stores whose place it took, or was to take when the process was killed: what one of them had
/// reserved is reserved still.
pub fn salvage(
    path: &Path,
    old: &[PathBuf],
    adapter: AdapterId,
    modules: usize,
) -> (Option<Vec<usize>>, Vec<usize>) {
    let mut reserved: Option<Vec<usize>> = None;
    for file in [reserved::name(path)].iter().chain(old) {
        match Reserved::read(file, adapter) {
            Ok(found) if found.modules().len() == modules => {
                let all = reserved.get_or_insert_with(|| vec![0; modules]);
                for (most, module) in all.iter_mut().zip(found.modules()) {
                    *most = module.reserved.max(*most);
                }
            }
            Ok(_) => {}
            Err(error) => debug!("{error:#}"),
        }
    }
    let mut rows = vec![0; modules];
    let count = |rows: &mut [usize]| -> rusqlite::Result<()> {
        let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        let mut query = db.prepare("SELECT module, max(number) FROM exposed_row GROUP BY module")?;
        let mut found = query.query([])?;
        while let Some(row) = found.next()? {
            let (module, last): (i64, i64) = (row.get(0)?, row.get(1)?);
            if let Some(rows) = usize::try_from(module).ok().and_then(|module| rows.get_mut(module)) {
                *rows = usize::try_from(last).map_or(0, |last| last.saturating_add(1));
            }
        }
        Ok(())
    };
    if let Err(error) = count(&mut rows) {
        warn!("{}: {error}: rows of the ledger cannot be read", path.display());
    }
    (reserved, rows)
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

/// Whether it is the file that is wrong, and not the disk or the rights.
fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    // A table that is not there has no code of its own; nothing else about these queries is unknown.
    matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase | rusqlite::ErrorCode::Unknown))
}

#[cfg(test)]
mod tests;
