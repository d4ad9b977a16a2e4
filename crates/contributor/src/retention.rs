//! Deleting bundles that have been kept for as long as they are to be kept.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tracing::{info, warn};
use zklora_proto::bundle::Bundle;
use zklora_proto::{AdapterId, SessionId};

use crate::job::Job;
use crate::prover::bundle_in;
use crate::state::unix_time;
use crate::store::Store;

/// How long bundles are kept, and where.
pub struct Retention {
    store: Arc<Store>,
    adapter: AdapterId,
    state: PathBuf,
    out_dir: PathBuf,
    keep: Duration,
}

impl Retention {
    /// Keeps the bundles of this store's sessions in `out_dir` for this long after they were written.
    pub fn new(store: Arc<Store>, adapter: AdapterId, state: &Path, out_dir: &Path, keep: Duration) -> Self {
        Self { store, adapter, state: state.into(), out_dir: out_dir.into(), keep }
    }

    /// Deletes the bundles that have been kept for long enough, and gives their number. A file is deleted only if it is the bundle of a session
    /// that the store has as proved: its name alone says nothing.
    pub fn sweep(&self) -> anyhow::Result<usize> {
        let mut deleted = 0;
        for (session, bytes) in self.store.bundles()? {
            let path = bundle_in(&self.out_dir, session);
            if !self.is_old(&path, bytes) {
                continue;
            }
            if !self.is_bundle_of(&path, session) {
                warn!(%session, "{} is old enough to be deleted, but is not this session's bundle: it stays", path.display());
                continue;
            }
            if let Err(error) = fs::remove_file(&path) {
                warn!(%session, "deleting {}: {error}", path.display());
                continue;
            }
            self.store.bundle_deleted(session, unix_time())?;
            if let Err(error) = Job::forget(&self.state, session) {
                warn!(%session, "forgetting that it was proved: {error}");
            }
            info!(%session, "deleted {}: it was kept for as long as bundles are kept", path.display());
            deleted += 1;
        }
        Ok(deleted)
    }

    /// Whether a file of this size has been there for long enough.
    fn is_old(&self, path: &Path, bytes: u64) -> bool {
        // One that is moved away, or is a link, is somebody's.
        let Ok(found) = fs::symlink_metadata(path) else { return false };
        let age = found.modified().ok().and_then(|written| SystemTime::now().duration_since(written).ok());
        found.is_file() && found.len() == bytes && age.is_some_and(|age| age >= self.keep)
    }

    fn is_bundle_of(&self, path: &Path, session: SessionId) -> bool {
        Bundle::open(path).is_ok_and(|bundle| {
            let receipt = bundle.receipt().receipt();
            receipt.session == session && receipt.adapter == self.adapter
        })
    }
}
