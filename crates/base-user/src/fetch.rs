//! The bundle of a proved session, fetched from its contributor and checked before it has its name.
//!
//! What has come is in `SESSION.pf.part`, and is gone on with, by whoever asks next. It becomes `SESSION.pf` when it is the
//! bundle of exactly what this client signed, and every proof in it holds; otherwise it is deleted.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use tokio::runtime::Handle;
use zklora_circuit::session::VerifiedSession;
use zklora_cli::Escaped;
use zklora_proto::limits::MAX_BUNDLE_PART_BYTES;
use zklora_proto::message::{ProofState, Request, Response};
use zklora_proto::{Address, SecretKey, SessionId, secret_file};
use zklora_verifier::Verifier;

use crate::link::Link;
use crate::record::Record;
use crate::session::{SessionError, ask, status, unexpected, wait_for_proof};
use crate::stop::Stop;

/// Why there is no bundle.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Talking to the contributor.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The file cannot be had.
    #[error("{path}: {error}", path = .path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Another process is at it.
    #[error("{path} is being fetched by another process", path = .0.display())]
    Locked(PathBuf),
    /// The session was never finished.
    #[error("the session was not finished: its record has no receipt, so that there is no bundle to expect")]
    NoReceipt,
    /// The proof is not made.
    #[error("the contributor has not proved the session yet; --wait waits for it")]
    NotProved,
    /// More than the caller takes.
    #[error(
        "the contributor says that the bundle has {found} bytes, expected at most {max}; --max-bytes takes more"
    )]
    TooLarge {
        /// What it says.
        found: u64,
        /// What the caller takes.
        max: u64,
    },
    /// The contributor's answers do not fit each other.
    #[error(
        "the contributor sent a part of {part} bytes, from {offset} on, of a bundle of {bytes} bytes, expected {expected}"
    )]
    Part {
        /// Bytes of the part.
        part: usize,
        /// Where it begins.
        offset: u64,
        /// Bytes of the bundle, as it says with it.
        bytes: u64,
        /// What would fit.
        expected: String,
    },
    /// What came is not the session's bundle.
    #[error("what the contributor sent is not this session's bundle, and was deleted: {0}")]
    Refused(String),
    /// What was there already is not.
    #[error("{path} is there already, and is not this session's bundle: {why}", path = .path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// How a fetch ended well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The bundle.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Bytes of it that this fetch got; the others were there.
    pub received: u64,
}

/// A connection to fetch over.
pub struct Fetcher {
    runtime: Handle,
    link: Link,
}

impl Fetcher {
    /// Connects to a contributor, as the client with this key. Blocks, as all methods do.
    pub fn dial(runtime: Handle, key: SecretKey, address: &Address) -> Result<Self, SessionError> {
        let link = runtime.block_on(Link::dial(key, address.clone()))?;
        Ok(Self { runtime, link })
    }

    /// Waits until a session is proved.
    pub fn wait_for_proof(
        &self,
        session: SessionId,
        progress: impl FnMut(&ProofState),
    ) -> Result<u64, SessionError> {
        wait_for_proof(&self.runtime, &self.link, session, &Stop::default(), progress)
    }

    /// Fetches the bundle of a session into a folder, unless it is there. `progress` hears how many bytes of how many are there.
    pub fn fetch(
        &self,
        record: &Record,
        folder: &Path,
        max_bytes: u64,
        verifier: &Verifier,
        progress: impl FnMut(u64, u64),
    ) -> Result<Fetched, FetchError> {
        if record.receipt.is_none() {
            return Err(FetchError::NoReceipt);
        }
        let path = folder.join(format!("{}.pf", record.session));
        if let Some(there) = there_already(&path, record, verifier)? {
            return Ok(there);
        }
        let part = folder.join(format!("{}.pf.part", record.session));
        let io = |error| FetchError::Io { path: part.clone(), error };
        secret_file::create_folder(folder, 0o700)
            .map_err(|error| FetchError::Io { path: folder.into(), error })?;
        // The activations in it tell the prompts.
        let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(&part).map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(FetchError::Locked(part)),
            Err(TryLockError::Error(error)) => return Err(io(error)),
        }
        let (bytes, received) = self.complete(record.session, &mut file, &part, max_bytes, progress)?;
        file.sync_all().map_err(io)?;
        if let Err(why) = check(&part, record, verifier) {
            fs::remove_file(&part).map_err(io)?;
            return Err(FetchError::Refused(why));
        }
        fs::rename(&part, &path).map_err(io)?;
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)?;
        Ok(Fetched { path, bytes, received })
    }

    /// Appends to the file what it lacks; gives the size of the whole, and what was appended.
    fn complete(
        &self,
        session: SessionId,
        file: &mut File,
        part: &Path,
        max_bytes: u64,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<(u64, u64), FetchError> {
        let io = |error| FetchError::Io { path: part.into(), error };
        let total = match status(&self.runtime, &self.link, session)? {
            ProofState::Proved { bytes } => bytes,
            ProofState::Failed => return Err(SessionError::ProofFailed.into()),
            _ => return Err(FetchError::NotProved),
        };
        if total > max_bytes {
            return Err(FetchError::TooLarge { found: total, max: max_bytes });
        }
        let mut length = file.metadata().map_err(io)?.len();
        if length > total {
            // It cannot be the beginning of this bundle.
            file.set_len(0).map_err(io)?;
            length = 0;
        }
        let before = length;
        progress(length, total);
        while length < total {
            let request = Request::Fetch { session, offset: length };
            let (response, payload) = ask(&self.runtime, &self.link, &request)?;
            let Response::Bundle { bytes } = response else {
                return Err(unexpected("a part of a bundle", &response).into());
            };
            let most = (total - length).min(MAX_BUNDLE_PART_BYTES);
            if bytes != total || payload.is_empty() || payload.len() as u64 > most {
                return Err(FetchError::Part {
                    part: payload.len(),
                    offset: length,
                    bytes,
                    expected: format!("1 to {most} of {total}"),
                });
            }
            file.write_all(&payload).map_err(io)?;
            length += payload.len() as u64;
            progress(length, total);
        }
        Ok((total, length - before))
    }

    /// Closes the connection.
    pub fn close(self) {
        self.runtime.block_on(self.link.close());
    }
}

/// The bundle, if it was fetched before, or copied by other means.
fn there_already(path: &Path, record: &Record, verifier: &Verifier) -> Result<Option<Fetched>, FetchError> {
    let bytes = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(FetchError::Io { path: path.into(), error }),
        Ok(found) => found.len(),
    };
    check(path, record, verifier).map(drop).map_err(|why| FetchError::Foreign { path: path.into(), why })?;
    Ok(Some(Fetched { path: path.into(), bytes, received: 0 }))
}

/// What a file shows that is the bundle of a session; otherwise why it is not. Its receipt is the record's, which names adapter and
/// contributor.
pub(crate) fn check(path: &Path, record: &Record, verifier: &Verifier) -> Result<VerifiedSession, String> {
    let verdict = verifier.check_file(path);
    if let Some(declared) = &verdict.declared
        && Some(&declared.receipt) != record.receipt.as_ref()
    {
        return Err("its receipt is not the one that you signed for this session".into());
    }
    verdict.outcome.map_err(|refusal| Escaped(&refusal.to_string()).to_string())
}
