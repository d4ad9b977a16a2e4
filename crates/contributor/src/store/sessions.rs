//! Sessions and their calls, from the first call to the bundle.

use anyhow::Context;
use rusqlite::params;
use tracing::error;
use zklora_circuit::parameters::Security;
use zklora_proto::packing::{activations_from_bytes, activations_to_bytes};
use zklora_proto::{CommitmentSeed, PublicKey, SessionId, Signature};

use super::Store;

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
}
