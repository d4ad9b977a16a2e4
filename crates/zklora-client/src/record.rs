//! What a base-model user keeps of each session: where it was, the seed of its commitments, and what both parties signed.
//!
//! One file for each session, closed to others: with the seed, and a receipt or an opening, a guess of any call can be checked.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;
use zklora_proto::bundle::Element;
use zklora_proto::limits::MAX_RECEIPT_BYTES;
use zklora_proto::receipt::ReceiptError;
use zklora_proto::secret_file::{self, SecretFileError};
use zklora_proto::{AdapterId, Address, CommitmentSeed, SessionId, Signature, SignedReceipt, partial};

const FORMAT: &str = "zklora-session/1";
/// A receipt as a JSON string, in which each byte takes two at most, and all the rest.
const MAX_RECORD_BYTES: u64 = 2 * MAX_RECEIPT_BYTES as u64 + 4096;

/// More than a record with a receipt takes, its rows left aside.
const RESERVED_BYTES: usize = 8192;

/// Why a record cannot be kept or found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// There is no place for records.
    #[error("neither HOME nor XDG_STATE_HOME is set; name a folder with --sessions")]
    NoFolder,
    /// The file or folder cannot be had.
    #[error("{path}: {error}", path = .path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The file is not one that only its owner may read.
    #[error(transparent)]
    File(#[from] SecretFileError),
    /// There is no record of this session.
    #[error("there is no record of session {session} in {folder}: it was opened by somebody else, or with another --sessions",
        folder = .folder.display())]
    Unknown {
        /// The session.
        session: SessionId,
        /// Where records are.
        folder: PathBuf,
    },
    /// The file is no record.
    #[error("{path}: expected the record of a session: {why}", path = .path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// One session.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Its id.
    pub session: SessionId,
    /// Where the contributor was, and its key.
    pub contributor: Address,
    /// The adapter that was pinned.
    pub adapter: AdapterId,
    /// What its commitments are salted with.
    pub seed: CommitmentSeed,
    /// What both signed, once the client has.
    pub receipt: Option<SignedReceipt>,
    /// The challenge α of the folds that were signed, once some were: the session is redacted under no other.
    pub alpha: Option<Element>,
    /// Where the bundle was fetched to, once it was.
    pub bundle: Option<PathBuf>,
}

/// The file, field by field.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    format: String,
    session: SessionId,
    contributor: String,
    adapter: AdapterId,
    seed: CommitmentSeed,
    receipt: Option<Signed>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    alpha: Option<Element>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bundle: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signed {
    bytes: String,
    contributor: Signature,
    client: Signature,
}

impl Record {
    fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let fields = Fields {
            format: FORMAT.into(),
            session: self.session,
            contributor: self.contributor.to_string(),
            adapter: self.adapter,
            seed: self.seed.clone(),
            receipt: self.receipt.as_ref().map(|receipt| Signed {
                // JSON is UTF-8, so that nothing is lost.
                bytes: String::from_utf8_lossy(receipt.bytes()).into_owned(),
                contributor: *receipt.contributor_signature(),
                client: *receipt.client_signature(),
            }),
            alpha: self.alpha,
            bundle: self.bundle.as_ref().map(|path| path.to_string_lossy().into_owned()),
        };
        // A plain struct of strings always serialises.
        Zeroizing::new(serde_json::to_vec(&fields).expect("a record always serialises"))
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let fields: Fields = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if fields.format != FORMAT {
            return Err(format!("its format is {:?}, expected {FORMAT:?}", fields.format));
        }
        let signed = |signed: Signed| -> Result<SignedReceipt, ReceiptError> {
            SignedReceipt::parse(signed.bytes.into_bytes(), signed.contributor, signed.client)
        };
        let receipt = fields.receipt.map(signed).transpose().map_err(|error| error.to_string())?;
        let contributor: Address = fields
            .contributor
            .parse()
            .map_err(|error: zklora_proto::identity::AddressError| error.to_string())?;
        let of_session = |receipt: &SignedReceipt| {
            let receipt = receipt.receipt();
            receipt.session == fields.session
                && receipt.adapter == fields.adapter
                && receipt.contributor == contributor.key
        };
        if !receipt.as_ref().is_none_or(of_session) {
            return Err("its receipt is of another session".into());
        }
        let Fields { session, adapter, seed, alpha, bundle, .. } = fields;
        Ok(Self { session, contributor, adapter, seed, receipt, alpha, bundle: bundle.map(PathBuf::from) })
    }
}

/// The folder of all records.
#[derive(Debug, Clone)]
pub struct Records {
    folder: PathBuf,
}

impl Records {
    /// The records in this folder, or in the one of the user's state.
    pub fn new(folder: Option<PathBuf>) -> Result<Self, RecordError> {
        if let Some(folder) = folder {
            return Ok(Self { folder });
        }
        let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
        let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).or_else(home);
        Ok(Self { folder: state.ok_or(RecordError::NoFolder)?.join("zklora/sessions") })
    }

    /// Where they are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn path(&self, session: SessionId) -> PathBuf {
        self.folder.join(format!("{session}.json"))
    }

    /// Takes the space on the disk that the receipt of a session with so many modules will need, until the file is dropped. No other program
    /// sees it.
    pub fn reserve(&self, modules: usize) -> Result<File, RecordError> {
        let reserve = || -> io::Result<File> {
            let mut file = tempfile::tempfile_in(&self.folder)?;
            // A record with a number of rows for each module, of at most 20 digits and a comma; each byte of a receipt may take two.
            file.write_all(&vec![0; 2 * 21 * modules + RESERVED_BYTES])?;
            // Some file systems find a place for it only now.
            file.sync_all()?;
            Ok(file)
        };
        reserve().map_err(|error| RecordError::Io { path: self.folder.clone(), error })
    }

    /// Writes a record in the place of what there is of that session; it is on the disk when this returns.
    pub fn put(&self, record: &Record) -> Result<(), RecordError> {
        let path = self.path(record.session);
        let write = || {
            secret_file::create_folder(&self.folder, 0o700)?;
            // Made with mode 0600.
            let mut file = partial::file(&self.folder, ".session-")?;
            file.write_all(&record.to_bytes())?;
            file.as_file().sync_all()?;
            file.persist(&path).map_err(|error| error.error)?;
            File::open(&self.folder)?.sync_all()
        };
        write().map_err(|error| RecordError::Io { path: path.clone(), error })
    }

    /// The record of a session.
    pub fn get(&self, session: SessionId) -> Result<Record, RecordError> {
        let path = self.path(session);
        if !path.exists() {
            return Err(RecordError::Unknown { session, folder: self.folder.clone() });
        }
        let record = read(&path)?;
        if record.session != session {
            let why = format!("it is of session {}", record.session);
            return Err(RecordError::Content { path, why });
        }
        Ok(record)
    }

    /// When the record of a session was written last.
    pub fn written(&self, session: SessionId) -> Option<SystemTime> {
        fs::metadata(self.path(session)).and_then(|found| found.modified()).ok()
    }

    /// Deletes the record of a session, readable or not; with it the seed is gone for good.
    pub fn remove(&self, session: SessionId) -> Result<(), RecordError> {
        let path = self.path(session);
        match fs::remove_file(&path).and_then(|()| File::open(&self.folder)?.sync_all()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(RecordError::Unknown { session, folder: self.folder.clone() })
            }
            removed => removed.map_err(|error| RecordError::Io { path, error }),
        }
    }

    /// All sessions that there are records of, in the order of their ids.
    pub fn sessions(&self) -> Result<Vec<SessionId>, RecordError> {
        let io = |error| RecordError::Io { path: self.folder.clone(), error };
        let mut sessions = Vec::new();
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(sessions),
            entries => entries.map_err(io)?,
        };
        for entry in entries {
            let name = entry.map_err(io)?.file_name();
            let id: Option<SessionId> =
                name.to_str().and_then(|name| name.strip_suffix(".json")?.parse().ok());
            sessions.extend(id);
        }
        sessions.sort();
        Ok(sessions)
    }
}

fn read(path: &Path) -> Result<Record, RecordError> {
    let bytes = Zeroizing::new(secret_file::read(path, MAX_RECORD_BYTES)?);
    Record::parse(&bytes).map_err(|why| RecordError::Content { path: path.into(), why })
}

#[cfg(test)]
mod tests {
    use zklora_proto::identity::Purpose;
    use zklora_proto::{BaseModelDigest, CommitmentsDigest, Receipt, SecretKey, TranscriptDigest};

    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn record() -> Record {
        let (a, b) = (SecretKey::generate(), SecretKey::generate());
        let (session, adapter) = (SessionId::from_bytes([3; 32]), AdapterId::from_bytes([4; 32]));
        let receipt = Receipt::new(
            session,
            adapter,
            BaseModelDigest::from_bytes([5; 32]),
            a.public(),
            b.public(),
            1,
            vec![1],
            TranscriptDigest::from_bytes([6; 32]),
            CommitmentsDigest::from_bytes([7; 32]),
            8,
            9,
        )
        .to_bytes();
        let by_a = a.sign(Purpose::ReceiptContributor, &receipt);
        let by_b = b.sign(Purpose::ReceiptClient, &receipt);
        Record {
            session,
            contributor: Address { key: a.public(), host: "host".into(), port: 7 },
            adapter,
            seed: CommitmentSeed::random(),
            receipt: Some(SignedReceipt::parse(receipt, by_a, by_b).unwrap()),
            alpha: None,
            bundle: Some("/a/b.pf".into()),
        }
    }

    #[test]
    fn records_are_kept_for_their_owner_alone_and_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("state/sessions");
        let records = Records::new(Some(folder.clone())).unwrap();
        assert_eq!(records.sessions().unwrap(), []);
        let record = record();
        records.put(&Record { receipt: None, ..record.clone() }).unwrap();
        assert_eq!(records.get(record.session).unwrap().receipt, None);
        records.put(&record).unwrap();
        assert_eq!(records.get(record.session).unwrap(), record);
        let redacted = Record { alpha: Some([u64::MAX, 0]), ..record.clone() };
        records.put(&redacted).unwrap();
        assert_eq!(records.get(record.session).unwrap(), redacted);
        assert_eq!(records.sessions().unwrap(), [record.session]);

        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let path = records.path(record.session);
        assert_eq!((mode(&path), mode(&folder)), (0o600, 0o700));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(records.get(record.session).unwrap_err().to_string().contains("0600"));
        let other = SessionId::from_bytes([1; 32]);
        assert!(records.get(other).unwrap_err().to_string().contains("there is no record of session 0101"));
    }

    #[test]
    fn what_is_no_record_is_refused_without_telling_its_seed() {
        let record = record();
        let text = String::from_utf8(record.to_bytes().to_vec()).unwrap();
        let session = record.session.to_string();
        let adapter = record.adapter.to_string();
        let seed = hex(&record.seed);
        for (from, to, says) in [
            ("session/1", "session/2", "expected \"zklora-session/1\""),
            (&adapter, &session, "another session"),
            ("zklora://", "http://", "does not start with zklora://"),
            ("\"client\":\"", "\"client\":\"0", "hexadecimal"),
            (&seed, &seed[1..], "63 characters"),
            ("{\"format", "{\"x\":1,\"format", "unknown field"),
        ] {
            let changed = text.replacen(from, to, 1);
            assert_ne!(changed, text);
            let error = Record::parse(changed.as_bytes()).unwrap_err();
            assert!(error.contains(says), "{error}");
            assert!(!error.contains(&seed[8..]), "{error}");
        }
        assert!(!format!("{record:?}").contains(&seed));
    }

    fn hex(seed: &CommitmentSeed) -> String {
        seed.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
