//! A finished session on its way to its bundle: a folder that any number of processes may work on, on any machine.
//!
//! | file | content |
//! |---|---|
//! | `unproved.pf` | the bundle, but for its proofs: manifest, receipt, transcript and plan |
//! | `proof.N` | the proof of batch N, after its digest |
//! | `claim.I-N` | locked by the worker that is at shard I/N |
//!
//! When the bundle is written, the folder goes, and a file `SESSION.proved` takes its place, by which whoever comes late knows.
//!
//! Batches depend on each other through the plan alone, which is fixed when the folder is made. Each file appears under its name
//! when it is complete and on the disk, so that whoever is stopped, in order or not, loses the batches that it was at and no
//! other. Nothing in the folder is secret from the two parties; the transcript is nobody else's business.

use std::fs::{self, File, TryLockError};
use std::io::{self, BufReader, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use tracing::warn;
use zklora_circuit::circuit::BatchCircuit;
use zklora_circuit::commitment::Opening;
use zklora_circuit::parameters::Security;
use zklora_circuit::plan::{Planner, degree_bits};
use zklora_circuit::session::{Circuits, SessionProver};
use zklora_proto::bundle::{Bundle, BundleParts, Plan, write_unproved};
use zklora_proto::limits::MAX_PROOF_BYTES;
use zklora_proto::{BundleDigest, Manifest, SessionId, SignedReceipt, partial, read_bounded, secret_file};

/// The folder of all jobs in the state folder.
const JOBS: &str = "jobs";
const UNPROVED: &str = "unproved.pf";
/// What the names of a new folder and of a proof begin with until they are complete.
const NEW: &str = ".new-";
const PROOF: &str = ".proof-";
const DIGEST_BYTES: usize = 32;

/// An open job.
pub struct Job {
    folder: PathBuf,
    bundle: Bundle<BufReader<File>>,
}

impl Job {
    /// Where the job of a session is, in a state folder.
    pub fn folder(state: &Path, session: SessionId) -> PathBuf {
        state.join(JOBS).join(session.to_string())
    }

    /// Removes what killed processes left in a state folder, and says how much: folders of jobs that they were making, and proofs. What
    /// others are writing stays.
    pub fn remove_abandoned(state: &Path) -> io::Result<usize> {
        let jobs = state.join(JOBS);
        let mut removed = partial::remove_abandoned_folders(&jobs, NEW)?;
        if jobs.is_dir() {
            for job in fs::read_dir(&jobs)? {
                let job = job?.path();
                // A job may be finished and gone by now.
                removed += partial::remove_abandoned_files(&job, PROOF).unwrap_or(0);
                // Whoever put the one in the place of the other was killed while it removed what was in it.
                if job.is_dir() && proved_file(&job).is_file() {
                    removed += usize::from(fs::remove_dir_all(&job).is_ok());
                }
            }
        }
        Ok(removed)
    }

    /// Makes the folder of a session whose transcript and plan these are; its proofs are not looked at.
    pub fn create(folder: &Path, parts: &BundleParts<'_>) -> anyhow::Result<()> {
        let jobs = folder.parent().unwrap_or(Path::new("."));
        let make = || -> io::Result<()> {
            secret_file::create_folder(jobs, 0o700)?;
            let new = partial::folder(jobs, NEW)?;
            write_unproved(&new.path().join(UNPROVED), parts)?;
            fs::rename(new.path(), folder)?;
            new.keep();
            File::open(jobs)?.sync_all()
        };
        make().with_context(|| format!("writing {}", folder.display()))
    }

    /// Opens the folder.
    pub fn open(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join(UNPROVED);
        let bundle = Bundle::open(&path).with_context(|| path.display().to_string())?;
        Ok(Self { folder: folder.into(), bundle })
    }

    /// The sessions that have a folder in a state folder, those that have waited longest first.
    pub fn all(state: &Path) -> io::Result<Vec<SessionId>> {
        let jobs = match fs::read_dir(state.join(JOBS)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            jobs => jobs?,
        };
        let mut all = Vec::new();
        for job in jobs {
            let job = job?;
            let session: Option<SessionId> = job.file_name().to_str().and_then(|name| name.parse().ok());
            // One that is gone by now is finished.
            let made = fs::metadata(job.path().join(UNPROVED)).and_then(|unproved| unproved.modified());
            all.extend(session.zip(made.ok()).map(|(session, made)| (made, session)));
        }
        all.sort_unstable_by_key(|(made, session)| (*made, *session.as_bytes()));
        Ok(all.into_iter().map(|(_, session)| session).collect())
    }

    /// Size of the bundle of a session whose job is done with; `None` if nothing here says that it is.
    pub fn proved(state: &Path, session: SessionId) -> Option<u64> {
        fs::read_to_string(proved_file(&Self::folder(state, session))).ok()?.trim_end().parse().ok()
    }

    /// Forgets that a session is proved.
    pub fn forget(state: &Path, session: SessionId) -> io::Result<()> {
        match fs::remove_file(proved_file(&Self::folder(state, session))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Makes others who ask for the same shard go elsewhere, for as long as the file is open; `None` if somebody is at it. Where there
    /// are no locks, everybody gets it.
    pub fn claim(&self, shard: Shard) -> io::Result<Option<File>> {
        let path = self.folder.join(format!("claim.{}-{}", shard.index, shard.count));
        let file = File::options().create(true).append(true).mode(0o600).open(path)?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(_)) | Ok(()) => Ok(Some(file)),
        }
    }

    /// The session's receipt.
    pub fn receipt(&self) -> &SignedReceipt {
        self.bundle.receipt()
    }

    /// How its modules are spread over proofs.
    pub fn plan(&self) -> &Plan {
        self.bundle.plan()
    }

    /// Its adapter.
    pub fn manifest(&self) -> &Manifest {
        self.bundle.manifest().manifest()
    }

    /// Bytes of its transcript on the disk.
    pub fn bytes(&self) -> io::Result<u64> {
        Ok(fs::metadata(self.folder.join(UNPROVED))?.len())
    }

    /// Throws away proofs that are damaged, to be made again.
    pub fn discard_damaged(&self) -> anyhow::Result<()> {
        (0..self.plan().batches.len()).try_for_each(|batch| self.read(batch).map(drop))
    }

    /// The batches that have no proof yet.
    pub fn missing(&self) -> Vec<usize> {
        (0..self.plan().batches.len()).filter(|&batch| !self.proof(batch).exists()).collect()
    }

    /// The batches that a shard is to prove: those in its part of all rows, the batches being laid one after another. The
    /// shards have no batch in common, and all together have all.
    pub fn batches_of(&self, shard: Shard) -> anyhow::Result<Vec<usize>> {
        let security: Security = self.plan().security.parse()?;
        let modules = self.manifest().modules();
        let rows = |batch: &Vec<usize>| -> u128 {
            let shapes: Vec<_> = batch.iter().map(|&module| modules[module].shape()).collect();
            1 << degree_bits(security, &shapes)
        };
        let rows: Vec<u128> = self.plan().batches.iter().map(rows).collect();
        Ok(shard.part_of(&rows))
    }

    /// Proves these batches. `proved` is told of each proof that is kept, from any thread; once it breaks, no other batch is begun.
    pub fn prove(
        &mut self,
        batches: &[usize],
        openings: &[Opening],
        planner: &Planner,
        circuits: &Circuits<BatchCircuit>,
        proved: &(dyn Fn() -> ControlFlow<()> + Sync),
    ) -> anyhow::Result<ControlFlow<()>> {
        let (session, plan) = (self.bundle.session().clone(), self.bundle.plan().clone());
        let salt = self.bundle.transcript_salt()?;
        let prover = SessionProver::new(&session, salt, &plan, openings, planner, |visit| {
            self.bundle.calls(|call| visit(&call))
        })?;
        let failure = Mutex::new(None);
        let made = |batch: usize, proof: Vec<u8>| match self.keep(batch, &proof) {
            Ok(()) => proved(),
            Err(error) => {
                *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                ControlFlow::Break(())
            }
        };
        let ended = prover.prove(batches, circuits, &made)?;
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error).with_context(|| format!("writing into {}", self.folder.display())),
            None => Ok(ended),
        }
    }

    /// Writes the bundle if every proof is there, and returns its size.
    pub fn finish(&mut self, path: &Path) -> anyhow::Result<Option<u64>> {
        let mut proofs = Vec::new();
        for batch in 0..self.plan().batches.len() {
            match self.read(batch)? {
                Some(proof) => proofs.push(proof),
                None => return Ok(None),
            }
        }
        let written = self.bundle.write_with_proofs(path, &proofs);
        written.map(Some).with_context(|| format!("writing {}", path.display()))
    }

    /// Removes the folder: a bundle of this size is in its place.
    pub fn remove(self, bytes: u64) -> io::Result<()> {
        let jobs = self.folder.parent().unwrap_or(Path::new("."));
        let mut file = partial::file(jobs, NEW)?;
        writeln!(file, "{bytes}")?;
        file.as_file().sync_all()?;
        file.persist(proved_file(&self.folder)).map_err(|error| error.error)?;
        // From now on nobody looks for it.
        fs::remove_dir_all(&self.folder)
    }

    fn proof(&self, batch: usize) -> PathBuf {
        self.folder.join(format!("proof.{batch}"))
    }

    fn keep(&self, batch: usize, proof: &[u8]) -> io::Result<()> {
        let mut file = partial::file(&self.folder, PROOF)?;
        file.write_all(BundleDigest::of_blob(proof).as_bytes())?;
        file.write_all(proof)?;
        file.as_file().sync_all()?;
        file.persist(self.proof(batch)).map_err(|error| error.error)?;
        File::open(&self.folder)?.sync_all()
    }

    /// A proof, if it is there. One that is damaged is thrown away, to be made again.
    fn read(&self, batch: usize) -> anyhow::Result<Option<Vec<u8>>> {
        let path = self.proof(batch);
        let bytes = match File::open(&path) {
            Ok(file) => read_bounded(file, MAX_PROOF_BYTES + DIGEST_BYTES as u64),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => Err(error),
        };
        let bytes = bytes.with_context(|| path.display().to_string())?.unwrap_or_default();
        match bytes.split_at_checked(DIGEST_BYTES) {
            Some((digest, proof)) if BundleDigest::of_blob(proof).as_bytes()[..] == *digest => {
                Ok(Some(proof.to_vec()))
            }
            _ => {
                warn!("{} is damaged; it is made again", path.display());
                fs::remove_file(&path).with_context(|| path.display().to_string())?;
                Ok(None)
            }
        }
    }
}

/// What takes the place of a job's folder.
fn proved_file(folder: &Path) -> PathBuf {
    folder.with_extension("proved")
}

/// One of several processes that prove a session together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    index: usize,
    count: usize,
}

impl Shard {
    /// All of it.
    pub const WHOLE: Self = Self { index: 0, count: 1 };

    /// Those whose middle lies in this shard's part, if these lengths are laid one after another.
    fn part_of(self, lengths: &[u128]) -> Vec<usize> {
        let (total, mut before) = (lengths.iter().sum::<u128>(), 0);
        let mut part = Vec::new();
        for (index, length) in lengths.iter().enumerate() {
            if (2 * before + length) * self.count as u128 / (2 * total) == self.index as u128 {
                part.push(index);
            }
            before += length;
        }
        part
    }
}

impl std::str::FromStr for Shard {
    type Err = String;

    /// `I/N`, with I from 0 to N - 1, as array jobs count.
    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (index, count) = text.split_once('/')?;
            let (index, count) = (index.parse().ok()?, count.parse().ok()?);
            (index < count && count <= 1 << 20).then_some(Self { index, count })
        };
        parse()
            .ok_or_else(|| format!("{text:?} is no shard, expected I/N with I from 0 to N - 1, such as 0/4"))
    }
}

impl std::fmt::Display for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn shards_are_counted_from_zero() {
        assert_eq!("2/3".parse(), Ok(Shard { index: 2, count: 3 }));
        for text in ["3/3", "0/0", "-1/3", "1", "1/", "/2", "a/b", "1/2/3", "0/99999999"] {
            let error = text.parse::<Shard>().unwrap_err();
            assert!(error.contains("expected I/N"), "{error}");
        }
    }

    /// Whoever is done with a job writes `SESSION.proved`, and then removes the folder, which may have been half gone when it was killed.
    #[test]
    fn a_folder_beside_what_says_that_it_is_proved_goes() {
        let state = tempfile::tempdir().unwrap();
        let [done, going_on] = [1, 2].map(|byte| SessionId::from_bytes([byte; 32]));
        for session in [done, going_on] {
            let job = Job::folder(state.path(), session);
            fs::create_dir_all(&job).unwrap();
            fs::write(job.join(UNPROVED), "secret").unwrap();
        }
        fs::write(proved_file(&Job::folder(state.path(), done)), "7\n").unwrap();
        assert_eq!(Job::remove_abandoned(state.path()).unwrap(), 1);
        assert!(!Job::folder(state.path(), done).exists() && Job::folder(state.path(), going_on).exists());
        assert_eq!((Job::proved(state.path(), done), Job::proved(state.path(), going_on)), (Some(7), None));
    }

    #[test]
    fn equal_batches_are_shared_out_equally() {
        let part = |index| Shard { index, count: 4 }.part_of(&[8; 8]);
        assert_eq!([0, 1, 2, 3].map(part), [[0, 1], [2, 3], [4, 5], [6, 7]].map(Vec::from));
    }

    proptest! {
        #[test]
        fn every_batch_has_one_shard(bits in prop::collection::vec(0u32..16, 1..40), count in 1usize..60) {
            let lengths: Vec<u128> = bits.iter().map(|bits| 1 << bits).collect();
            let parts = (0..count).flat_map(|index| Shard { index, count }.part_of(&lengths));
            prop_assert!(parts.eq(0..lengths.len()));
        }
    }
}
