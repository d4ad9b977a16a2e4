//! What must survive the process: sessions, their calls, and the exposure ledger, in one SQLite file.
//!
//! SQLite in WAL mode. A commit is in the file system's hands when the call returns, so that it survives the death of the process at
//! any point. What must survive a loss of power as well (a signed receipt, a reservation of the ledger) is committed with
//! `synchronous = FULL`, which waits for the disk; the rest with `NORMAL`, which keeps the file whole but may lose the last
//! commits. [`crate::exposure`] says why the ledger may live with that. What is in the log is moved into the file by a thread
//! of its own, so that no call waits for the disk.
//!
//! The file holds clients' activations, the seeds of their commitments and the ledger's secret prime. It lies in the state folder and is closed to others.
//! What is deleted is overwritten (`secure_delete`), and the log is cut to nothing soon after, so that neither file has it any more. What
//! the file system and the disk keep of blocks that were freed is another matter.

mod log;

use std::fs::File;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use rustix::fs::{FlockOperation, flock};
use zklora_circuit::security::Security;
use zklora_proto::packing::{activations_from_bytes, activations_to_bytes};
use zklora_proto::{AdapterId, CommitmentSeed, PublicKey, SessionId, Signature};

use self::log::Checkpoints;

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
CREATE TABLE exposure (
    module INTEGER PRIMARY KEY,
    reserved INTEGER NOT NULL,
    lost INTEGER NOT NULL
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

/// See the module's documentation.
pub struct Store {
    checkpoints: Checkpoints,
    db: Mutex<Connection>,
    torn: bool,
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

/// What the ledger knows of one module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoredExposure {
    /// Independent rows that were answered, in their order.
    pub rows: Vec<Vec<i16>>,
    /// Rows that may be answered before the ledger has to wait for the disk.
    pub reserved: usize,
    /// Rows that may have been answered and forgotten in a loss of power.
    pub lost: usize,
}

impl Store {
    /// Opens the file, and makes it if it is not there, for the sessions of this adapter.
    pub fn open(path: &Path, adapter: AdapterId) -> anyhow::Result<Self> {
        use std::os::unix::fs::OpenOptionsExt;
        // Before SQLite makes it, who gives its own mode to its other files.
        std::fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path)
            .with_context(|| format!("making {}", path.display()))?;
        let written = log::frames(path).with_context(|| format!("reading the log of {}", path.display()))?;
        let store = || -> anyhow::Result<Self> {
            let db = Connection::open(path)?;
            db.execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;
                 PRAGMA wal_autocheckpoint = 0; PRAGMA secure_delete = ON;",
            )?;
            let version: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
            match version {
                0 => {
                    db.execute_batch(&format!("BEGIN; {TABLES} PRAGMA user_version = {VERSION}; COMMIT;"))?;
                }
                VERSION => {}
                other => anyhow::bail!(
                    "it has layout {other}, expected {VERSION}: it belongs to another version of this program"
                ),
            }
            // How many frames of the log SQLite has found to be whole, and part of a transaction that was committed.
            let whole: i64 = db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| row.get(1))?;
            let torn = whole < written;
            if !torn {
                // A process that was killed may have left there what is to be forgotten. If somebody else is at it, they will.
                log::cut(&db);
            }
            let checkpoints = Checkpoints::start(path)?;
            Ok(Self { checkpoints, db: Mutex::new(db), torn })
        };
        let store = store().with_context(|| format!("opening {}", path.display()))?;
        let known = store.fact("adapter", || Ok(adapter.as_bytes().to_vec()))?;
        if known != adapter.as_bytes() {
            anyhow::bail!("{} is of another adapter than the state's {adapter}", path.display());
        }
        Ok(store)
    }

    fn db(&self) -> MutexGuard<'_, Connection> {
        self.db.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the end of what was written before is lost. It may be a transaction that was cut off, and that nobody was answered for;
    /// or the file was damaged, and somebody was.
    pub fn is_torn(&self) -> bool {
        self.torn
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
        self.checkpoints.due(&db)?;
        Ok(value)
    }

    /// A value that is made once and then stays.
    pub fn fact(
        &self,
        name: &str,
        make: impl FnOnce() -> anyhow::Result<Vec<u8>>,
    ) -> anyhow::Result<Vec<u8>> {
        let known = self
            .db()
            .query_row("SELECT value FROM fact WHERE name = ?", [name], |row| row.get(0))
            .optional()?;
        match known {
            Some(value) => Ok(value),
            None => {
                let value = make()?;
                self.set_fact(name, &value)?;
                Ok(value)
            }
        }
    }

    /// Gives a fact another value.
    pub fn set_fact(&self, name: &str, value: &[u8]) -> anyhow::Result<()> {
        self.change(true, |db| {
            db.execute("INSERT OR REPLACE INTO fact (name, value) VALUES (?, ?)", params![name, value])
        })?;
        Ok(())
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

    /// The next call of an open session, and what it adds to the ledger.
    pub fn record(
        &self,
        session: SessionId,
        number: u64,
        call: (&[usize], usize, &[i16]),
        exposed: &[Exposed<'_>],
    ) -> anyhow::Result<()> {
        let (modules, rows, activations) = call;
        let modules: Vec<u8> = modules.iter().flat_map(|&module| (module as u32).to_le_bytes()).collect();
        let durable = exposed.iter().any(|exposed| exposed.reserve.is_some());
        self.change(durable, |db| {
            let mut insert = db.prepare_cached("INSERT INTO call VALUES (?, ?, ?, ?, ?)")?;
            let activations = activations_to_bytes(activations);
            insert.execute(params![session.as_bytes(), number as i64, modules, rows as i64, activations])?;
            let mut insert = db.prepare_cached("INSERT INTO exposed_row VALUES (?, ?, ?)")?;
            for exposed in exposed {
                for (number, row) in (exposed.first..).zip(&exposed.rows) {
                    let entries = activations_to_bytes(row);
                    insert.execute(params![exposed.module as i64, number as i64, entries])?;
                }
                if let Some(reserved) = exposed.reserve {
                    db.execute(
                        "INSERT INTO exposure VALUES (?1, ?2, 0) ON CONFLICT (module) DO UPDATE SET reserved = ?2",
                        params![exposed.module as i64, reserved as i64],
                    )?;
                }
            }
            Ok(())
        })
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

    /// What the ledger knows of a module.
    pub fn exposure(&self, module: usize) -> anyhow::Result<StoredExposure> {
        let db = self.db();
        let known = db
            .query_row("SELECT reserved, lost FROM exposure WHERE module = ?", [module as i64], |row| {
                Ok((row.get::<_, i64>(0)? as usize, row.get::<_, i64>(1)? as usize))
            })
            .optional()?;
        let (reserved, lost) = known.unwrap_or_default();
        let mut query =
            db.prepare_cached("SELECT entries FROM exposed_row WHERE module = ? ORDER BY number")?;
        let mut rows = query.query([module as i64])?;
        let mut exposure = StoredExposure { rows: Vec::new(), reserved, lost };
        while let Some(row) = rows.next()? {
            let entries: Vec<u8> = row.get(0)?;
            let entries = activations_from_bytes(&entries, entries.len() / 2);
            exposure.rows.push(entries.with_context(|| format!("a row of module {module} is damaged"))?);
        }
        Ok(exposure)
    }

    /// Counts rows of a module as answered and forgotten.
    pub fn lose(&self, module: usize, lost: usize) -> anyhow::Result<()> {
        self.change(true, |db| {
            db.execute("UPDATE exposure SET lost = ? WHERE module = ?", params![lost as i64, module as i64])
        })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use zklora_proto::SecretKey;
    use zklora_proto::identity::Purpose;

    use super::*;

    fn adapter(byte: u8) -> AdapterId {
        AdapterId::from_bytes([byte; 32])
    }

    #[test]
    fn a_session_survives_from_its_first_call_to_its_bundle() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.sqlite");
        // Opened anew for each step, as after a crash.
        let store = || Store::open(&path, adapter(1)).unwrap();
        let (id, key) = (SessionId::from_bytes([7; 32]), SecretKey::generate());
        let seed = CommitmentSeed::random();
        store().begin(id, key.public(), 99, Security::Compact, &seed).unwrap();
        let call = (&[3, 1][..], 2, &[1i16, -2, 3, -32767][..]);
        store().record(id, 0, call, &[]).unwrap();
        assert!(store().record(id, 0, call, &[]).is_err(), "a call is recorded once");
        let exposed = Exposed { module: 3, first: 0, rows: vec![&[1, -2]], reserve: Some(5) };
        store().record(id, 1, (&[3], 1, &[1, -2]), &[exposed]).unwrap();

        let calls = || {
            let mut calls = Vec::new();
            let visited = store().calls(id, |call| {
                calls.push(call);
                Ok(())
            });
            visited.unwrap();
            calls
        };
        assert_eq!(
            calls()[0],
            StoredCall { modules: vec![3, 1], rows: 2, activations: vec![1, -2, 3, -32767] }
        );
        assert_eq!(calls().len(), 2);
        let exposure = StoredExposure { rows: vec![vec![1, -2]], reserved: 5, lost: 0 };
        assert_eq!(store().exposure(3).unwrap(), exposure);
        assert_eq!(store().exposure(1).unwrap(), StoredExposure::default());

        let signature = key.sign(Purpose::ReceiptContributor, b"receipt");
        store().sign(id, b"receipt", &signature).unwrap();
        assert_eq!(store().sessions_at(Stage::Signed).unwrap().len(), 1);
        store().finish(id, &signature).unwrap();
        let session = store().session(id).unwrap().unwrap();
        assert_eq!((session.stage, session.client, session.started), (Stage::Finished, key.public(), 99));
        assert_eq!(session.receipt.as_deref(), Some(&b"receipt"[..]));
        assert_eq!((session.by_contributor, session.by_client), (Some(signature), Some(signature)));
        assert_eq!((session.seed, session.security), (Some(seed), Security::Compact));
        store().proving(id).unwrap();
        assert_eq!(calls(), [], "the job folder has them");
        store().proved(id, 1234).unwrap();
        let session = store().session(id).unwrap().unwrap();
        assert_eq!((session.stage, session.bundle_bytes), (Stage::Proved, Some(1234)));
        assert_eq!(session.seed, None, "nobody asks for it any more");
        // The transcript is in the bundle now; the ledger keeps its rows.
        assert_eq!(store().exposure(3).unwrap(), exposure);
    }

    #[test]
    fn the_file_is_closed_to_others_and_of_one_adapter() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.sqlite");
        let store = Store::open(&path, adapter(1)).unwrap();
        store
            .begin(
                SessionId::from_bytes([7; 32]),
                SecretKey::generate().public(),
                0,
                Security::Standard,
                &CommitmentSeed::random(),
            )
            .unwrap();
        for entry in std::fs::read_dir(folder.path()).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o77, 0, "{:?}", entry.file_name());
        }
        drop(store);
        let error = Store::open(&path, adapter(2)).err().unwrap();
        assert!(error.to_string().contains("of another adapter"), "{error}");
        std::fs::write(&path, b"no database, though it has some bytes").unwrap();
        assert!(Store::open(&path, adapter(1)).is_err());
    }

    #[test]
    fn what_is_forgotten_is_in_no_byte_of_the_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.sqlite");
        let store = Store::open(&path, adapter(1)).unwrap();
        let key = SecretKey::generate();
        let signature = key.sign(Purpose::ReceiptContributor, b"receipt");
        let files = || -> Vec<u8> {
            let files = std::fs::read_dir(folder.path()).unwrap();
            files.flat_map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect()
        };
        // Enough for pages to be split and joined, with receipts of a few modules and of many, some of which need pages of their own.
        let sessions: Vec<_> = (0..300)
            .map(|_| {
                (SessionId::from_bytes(rand::random()), CommitmentSeed::random(), rand::random::<[u8; 32]>())
            })
            .collect();
        for (id, seed, _) in &sessions {
            store.begin(*id, key.public(), 0, Security::Standard, seed).unwrap();
        }
        let row = |secret: &[u8; 32]| -> Vec<i16> { secret.iter().map(|&byte| byte.into()).collect() };
        for (id, _, secret) in &sessions {
            store.record(*id, 0, (&[0], 40, &row(secret).repeat(40)), &[]).unwrap();
        }
        let found = |bytes: &[u8]| -> (usize, usize) {
            let places: std::collections::HashSet<&[u8]> = bytes.windows(32).collect();
            let calls: std::collections::HashSet<&[u8]> = bytes.windows(64).collect();
            let seeds = sessions.iter().filter(|(_, seed, _)| places.contains(&seed.as_bytes()[..])).count();
            let rows = sessions
                .iter()
                .filter(|(_, _, secret)| calls.contains(&activations_to_bytes(&row(secret))[..]));
            (seeds, rows.count())
        };
        assert_eq!(found(&files()), (300, 300), "what is kept is found where it is looked for");
        for (number, (id, ..)) in sessions.iter().enumerate().filter(|(number, _)| number % 5 != 0) {
            store.sign(*id, &vec![b'r'; number * 37 % 6000], &signature).unwrap();
        }
        for (number, (id, ..)) in sessions.iter().enumerate() {
            match number % 5 {
                0 => store.abandon(*id).unwrap(),
                _ => {
                    store.finish(*id, &signature).unwrap();
                    store.proving(*id).unwrap();
                }
            }
        }
        // The log is cut by a thread of its own, as soon as nobody reads it.
        let mut left = (300, 300);
        for _ in 0..600 {
            left = found(&files());
            if left == (0, 0) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        assert_eq!(left, (0, 0));
        assert_eq!(store.sessions_at(Stage::Proving).unwrap().len(), 240);
        drop(store);
        assert_eq!(found(&files()), (0, 0));
    }

    #[test]
    fn calls_that_a_killed_process_has_not_deleted_are_deleted_later() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store.sqlite"), adapter(1)).unwrap();
        let (key, ids) = (SecretKey::generate(), [1, 2].map(|byte| SessionId::from_bytes([byte; 32])));
        for id in ids {
            store.begin(id, key.public(), 0, Security::Standard, &CommitmentSeed::random()).unwrap();
            for number in 0..20 {
                store.record(id, number, (&[0], 1, &[1, 2]), &[]).unwrap();
            }
        }
        store.db().execute("UPDATE session SET state = 'proving' WHERE id = ?", [ids[0].as_bytes()]).unwrap();
        store.forget_leftovers().unwrap();
        let calls = ids.map(|id| {
            let mut calls = 0;
            let visited = store.calls(id, |_| {
                calls += 1;
                Ok(())
            });
            visited.unwrap();
            calls
        });
        assert_eq!(calls, [0, 20]);
    }

    #[test]
    fn a_log_whose_end_is_damaged_is_told_from_one_that_was_left_in_order_or_by_a_crash() {
        let folder = tempfile::tempdir().unwrap();
        let [path, left] = ["store", "left"].map(|name| folder.path().join(name));
        let id = SessionId::from_bytes([7; 32]);
        let store = Store::open(&path, adapter(1)).unwrap();
        store
            .begin(id, SecretKey::generate().public(), 0, Security::Standard, &CommitmentSeed::random())
            .unwrap();
        for number in 0..4 {
            store.record(id, number, (&[0], 1, &[1, 2, 3]), &[]).unwrap();
        }
        // What a process that is killed leaves: the log is not part of the file yet.
        let log = |path: &Path| {
            path.with_extension("").with_file_name(format!("{}-wal", path.file_name().unwrap().display()))
        };
        let whole = std::fs::read(log(&path)).unwrap();
        let calls = |damage: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = whole.clone();
            damage(&mut bytes);
            std::fs::copy(&path, &left).unwrap();
            std::fs::write(log(&left), bytes).unwrap();
            let store = Store::open(&left, adapter(1)).unwrap();
            let mut calls = 0;
            store
                .calls(id, |_| {
                    calls += 1;
                    Ok(())
                })
                .unwrap();
            (store.is_torn(), calls)
        };
        assert_eq!(calls(&|_| ()), (false, 4));
        let last = whole.len() - 1;
        assert_eq!(calls(&|bytes| bytes[last] ^= 1), (true, 3));
        assert_eq!(
            calls(&|bytes| bytes.truncate(last - 5000)),
            (false, 3),
            "nothing tells of what is not there"
        );
        drop(store);
        assert!(!Store::open(&path, adapter(1)).unwrap().is_torn());
    }
}
