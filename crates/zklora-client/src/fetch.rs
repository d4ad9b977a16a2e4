//! The bundle of a proved session, fetched from its contributor and checked before it has its name.
//!
//! What has come is in `SESSION.pf.part`, and is gone on with, by whoever asks next. It becomes `SESSION.pf` when it is the
//! bundle of exactly what this client signed, and every proof in it holds and is worth as much as was asked for. A bundle that holds
//! and is worth less stays where it is, for whoever takes less; so does what this program cannot check. What is not the session's
//! bundle may be evidence: the first such file becomes `SESSION.pf.refused`.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::runtime::Handle;
use zklora_circuit::session::{VerifiedSession, VerifySessionError};
use zklora_proto::bundle::BundleError;
use zklora_proto::limits::MAX_BUNDLE_PART_BYTES;
use zklora_proto::message::{ProofState, Request, Response};
use zklora_proto::{Address, Bytes, Escaped, SecretKey, SessionId, secret_file};
use zklora_verdict::{Refusal, Verifier};

use crate::error::SessionError;
use crate::link::Link;
use crate::record::Record;
use crate::requests::{ask, status, unexpected};

/// Why there is no bundle.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
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
        "the contributor says that the bundle has {}, expected at most {}; --max-bytes takes more",
        Bytes(*.found),
        Bytes(*.max)
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
    #[error("what the contributor sent is not this session's bundle: {why}; {}", kept_as(.kept, .deleted))]
    Refused {
        /// What is wrong with it.
        why: String,
        /// Where what was refused first is.
        kept: PathBuf,
        /// Whether this was deleted, since there was such a file already.
        deleted: bool,
    },
    /// It is the session's bundle, but not one that the caller takes.
    #[error("the session's bundle is there, but is not taken: {why}; it is kept in {path}", path = .path.display())]
    NotTaken {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// Whether it is the session's bundle, this program cannot tell.
    #[error("the bundle cannot be checked here: {why}; it is kept in {path}", path = .path.display())]
    Unchecked {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
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
    link: Arc<Link>,
}

impl Fetcher {
    /// Connects to a contributor, as the client with this key. Blocks, as all methods do.
    pub fn dial(runtime: Handle, key: SecretKey, address: &Address) -> Result<Self, SessionError> {
        let link = Arc::new(runtime.block_on(Link::dial(key, address.clone()))?);
        Ok(Self { runtime, link })
    }

    /// Over a connection that is there.
    pub(crate) fn over(runtime: Handle, link: Arc<Link>) -> Self {
        Self { runtime, link }
    }

    /// How far the proof of a session is.
    pub fn state(&self, session: SessionId) -> Result<ProofState, SessionError> {
        status(&self.runtime, &self.link, session)
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
        let begun = file.metadata().map_err(io)?.len();
        let take = |bytes, received| {
            fs::rename(&part, &path).map_err(io)?;
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)?;
            Ok(Fetched { path: path.clone(), bytes, received })
        };
        // It may be all that there is, and was not taken so far. If it cannot be checked, that may be because it is not all.
        let whole = (begun > 0).then(|| check(&part, record, verifier));
        let unchecked = match whole {
            Some(Ok(_)) => return take(begun, 0),
            Some(Err(Unfit::NotAsked(why))) => return Err(FetchError::NotTaken { path: part.clone(), why }),
            Some(Err(Unfit::Unchecked(why))) => Some(why),
            Some(Err(Unfit::Foreign(_))) | None => None,
        };
        let total = self.total(record.session, max_bytes)?;
        if begun > total {
            if let Some(why) = unchecked {
                return Err(FetchError::Unchecked { path: part.clone(), why });
            }
            // It is not the bundle, as just seen, and cannot be its beginning.
            file.set_len(0).map_err(io)?;
        }
        let received = self.complete(record.session, &mut file, &part, total, progress)?;
        file.sync_all().map_err(io)?;
        match check(&part, record, verifier) {
            Ok(_) => take(total, received),
            Err(Unfit::NotAsked(why)) => Err(FetchError::NotTaken { path: part.clone(), why }),
            Err(Unfit::Unchecked(why)) => Err(FetchError::Unchecked { path: part.clone(), why }),
            Err(Unfit::Foreign(why)) => {
                let kept = folder.join(format!("{}.pf.refused", record.session));
                let deleted = kept.try_exists().map_err(io)?;
                match deleted {
                    true => fs::remove_file(&part).map_err(io)?,
                    false => fs::rename(&part, &kept).map_err(io)?,
                }
                Err(FetchError::Refused { why, kept, deleted })
            }
        }
    }

    /// Bytes of a session's bundle, as the contributor says.
    fn total(&self, session: SessionId, max_bytes: u64) -> Result<u64, FetchError> {
        match status(&self.runtime, &self.link, session)? {
            ProofState::Proved { bytes } if bytes > max_bytes => {
                Err(FetchError::TooLarge { found: bytes, max: max_bytes })
            }
            ProofState::Proved { bytes } => Ok(bytes),
            ProofState::Failed => Err(SessionError::ProofFailed.into()),
            _ => Err(FetchError::NotProved),
        }
    }

    /// Appends to the file what it lacks of so many bytes; gives how many it lacked.
    fn complete(
        &self,
        session: SessionId,
        file: &mut File,
        part: &Path,
        total: u64,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<u64, FetchError> {
        let io = |error| FetchError::Io { path: part.into(), error };
        let mut length = file.metadata().map_err(io)?.len();
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
        Ok(length - before)
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
    let path = path.to_owned();
    match check(&path, record, verifier) {
        Ok(_) => Ok(Some(Fetched { path, bytes, received: 0 })),
        Err(Unfit::NotAsked(why)) => Err(FetchError::NotTaken { path, why }),
        Err(Unfit::Unchecked(why)) => Err(FetchError::Unchecked { path, why }),
        Err(Unfit::Foreign(why)) => Err(FetchError::Foreign { path, why }),
    }
}

/// Why a file is not taken as the bundle of a session.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unfit {
    /// It is another's, or it does not hold.
    #[error("{0}")]
    Foreign(String),
    /// It is the session's, and nothing is wrong with it but that it is less than was asked for.
    #[error("{0}")]
    NotAsked(String),
    /// This program cannot tell.
    #[error("{0}")]
    Unchecked(String),
}

/// What a file shows that is the bundle of a session; otherwise why it is not. Its receipt is the record's, which names adapter and
/// contributor.
pub(crate) fn check(path: &Path, record: &Record, verifier: &Verifier) -> Result<VerifiedSession, Unfit> {
    let verdict = verifier.check_file(path);
    if let Some(declared) = &verdict.declared
        && Some(declared.session.receipt()) != record.receipt.as_ref()
    {
        return Err(Unfit::Foreign("its receipt is not the one that you signed for this session".into()));
    }
    verdict.outcome.map_err(|refusal| {
        let why = Escaped(&refusal.to_string()).to_string();
        match refusal {
            _ if refusal.is_of_what_was_asked() => Unfit::NotAsked(why),
            _ if beyond_this_program(&refusal) => Unfit::Unchecked(why),
            _ => Unfit::Foreign(why),
        }
    })
}

/// Whether a bundle was refused that another program, or another machine, may find valid.
fn beyond_this_program(refusal: &Refusal) -> bool {
    match refusal {
        Refusal::Open(_) | Refusal::NotAFile | Refusal::Internal => true,
        Refusal::FoldBytes(_) | Refusal::NewRows(_) => true,
        Refusal::Session(VerifySessionError::Security(_) | VerifySessionError::Circuit { .. }) => true,
        // A file that ends too early is none.
        Refusal::Session(VerifySessionError::Bundle(BundleError::Io(error))) => {
            error.kind() != io::ErrorKind::UnexpectedEof
        }
        Refusal::Session(VerifySessionError::Bundle(BundleError::Format(_))) => true,
        _ => false,
    }
}

/// What became of a file that is no evidence, or the first.
fn kept_as(kept: &Path, deleted: &bool) -> String {
    let kept = kept.display();
    match deleted {
        false => format!("it is kept as {kept}"),
        true => format!("it was deleted, since {kept}, which was refused before, is there already"),
    }
}
