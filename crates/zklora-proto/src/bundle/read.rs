//! Reading a bundle that anyone may have made.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use super::{
    Blob, BundleError, FIXED_BLOBS, FOLDS, FOLDS_SIGNATURE, Folds, Header, Layout, Plan, SALT, TRANSCRIPT,
    transcript,
};
use crate::limits::{MAX_BUNDLE_BYTES, MAX_BUNDLE_HEADER_BYTES};
use crate::transcript::Call;
use crate::{BundleDigest, Signature, SignedManifest, SignedReceipt, SignedSession, TranscriptSalt};

/// Where a part of a bundle is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobEntry<'a> {
    /// Its name, such as `receipt` or `proof.0`.
    pub name: &'a str,
    /// Where it begins in the file.
    pub offset: u64,
    /// Its bytes.
    pub length: u64,
    /// The digest that the header gives it.
    pub digest: BundleDigest,
}

/// An open bundle whose header, manifest and receipt have been checked. Transcript, folds and proofs are read when asked for.
#[derive(Debug)]
pub struct Bundle<R> {
    pub(super) reader: R,
    /// Where the first blob begins.
    pub(super) start: u64,
    pub(super) blobs: Vec<Blob>,
    pub(super) plan: Plan,
    pub(super) session: SignedSession,
    /// Of a redacted bundle, none.
    pub(super) salt: Option<TranscriptSalt>,
}

impl Bundle<BufReader<File>> {
    /// Opens a file.
    pub fn open(path: &Path) -> Result<Self, BundleError> {
        Self::from_reader(BufReader::new(File::open(path)?))
    }
}

impl<R: Read + Seek> Bundle<R> {
    /// Reads header, manifest and receipt; checks the layout of the file, the digests of what it reads, all signatures, and
    /// that receipt and plan belong to the manifest.
    pub fn from_reader(mut reader: R) -> Result<Self, BundleError> {
        let file_length = reader.seek(SeekFrom::End(0))?;
        if file_length > MAX_BUNDLE_BYTES {
            return Err(BundleError::Length { expected: MAX_BUNDLE_BYTES, found: file_length });
        }
        reader.rewind()?;
        let mut length = [0; 8];
        reader.read_exact(&mut length)?;
        let length = u64::from_le_bytes(length);
        // Eight bytes have been read, whatever the file said of its length.
        let max = MAX_BUNDLE_HEADER_BYTES.min(file_length.saturating_sub(8));
        if length > max {
            return Err(BundleError::HeaderLength { found: length, max });
        }
        let mut bytes = vec![0; length as usize];
        reader.read_exact(&mut bytes)?;
        let header: Header =
            serde_json::from_slice(&bytes).map_err(|e| BundleError::HeaderJson(e.to_string()))?;
        let Some(layout) = Layout::of(&header.format) else {
            return Err(BundleError::Format(header.format.chars().take(80).collect()));
        };
        // One bundle has one encoding: fields in their order, no white space, lower-case digits.
        if serde_json::to_vec(&header).ok().as_ref() != Some(&bytes) {
            return Err(BundleError::HeaderJson("it is not in its canonical form".into()));
        }
        let start = 8 + length;
        check_table(layout, &header, start, file_length)?;

        let mut blobs = FixedBlobs { reader: &mut reader, start, blobs: &header.blobs };
        let manifest = SignedManifest::parse(blobs.read(0)?, blobs.signature(1)?)?;
        let receipt = SignedReceipt::parse(blobs.read(2)?, blobs.signature(3)?, blobs.signature(4)?)?;
        let session = SignedSession::new(manifest, receipt)?;
        let salt = match layout {
            Layout::Full => Some(TranscriptSalt::from_bytes(blobs.exactly(SALT)?)),
            Layout::Redacted => None,
        };
        header.plan.check(session.rows())?;
        Ok(Self { reader, start, blobs: header.blobs, plan: header.plan, session, salt })
    }

    /// What both parties signed.
    pub fn session(&self) -> &SignedSession {
        &self.session
    }

    /// The adapter's manifest. Its signature is valid; whether its signer is the right one, only a pinned key tells.
    pub fn manifest(&self) -> &SignedManifest {
        self.session.manifest()
    }

    /// The session's receipt, for this manifest.
    pub fn receipt(&self) -> &SignedReceipt {
        self.session.receipt()
    }

    /// Whether it has the transcript's folds in place of the transcript.
    pub fn is_redacted(&self) -> bool {
        self.salt.is_none()
    }

    /// What the transcript's digest in the receipt is salted with. A redacted bundle has no transcript.
    pub fn transcript_salt(&self) -> Result<TranscriptSalt, BundleError> {
        self.salt.ok_or(BundleError::Redacted)
    }

    /// How the modules are spread over proofs: every module with rows exactly once.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The parts of the file, in their order.
    pub fn blobs(&self) -> impl Iterator<Item = BlobEntry<'_>> {
        self.blobs.iter().map(|blob| BlobEntry {
            name: &blob.name,
            offset: self.start + blob.offset,
            length: blob.length,
            digest: blob.digest,
        })
    }

    /// Hands over one part piece by piece, and then checks its digest: what `take` got counts only if this returns `Ok`. `None` if
    /// there is no part of this name.
    pub fn read_blob<E: From<BundleError>>(
        &mut self,
        name: &str,
        take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Option<Result<(), E>> {
        let blob = self.blobs.iter().find(|blob| blob.name == name)?.clone();
        Some(self.pieces(&blob, take))
    }

    fn pieces<E: From<BundleError>>(
        &mut self,
        blob: &Blob,
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.reader.seek(SeekFrom::Start(self.start + blob.offset)).map_err(BundleError::from)?;
        let (mut hasher, mut piece, mut left) = (BundleDigest::hasher(), vec![0; 1 << 16], blob.length);
        while left > 0 {
            let length = left.min(piece.len() as u64);
            let piece = &mut piece[..length as usize];
            self.reader.read_exact(piece).map_err(BundleError::from)?;
            hasher.update(piece);
            take(piece)?;
            left -= length;
        }
        if BundleDigest::finish(&hasher) != blob.digest {
            return Err(BundleError::Digest(blob.name.clone()).into());
        }
        Ok(())
    }

    /// How many bytes the proof of batch `index` has.
    pub fn proof_bytes(&self, index: usize) -> u64 {
        self.blobs[FIXED_BLOBS + index].length
    }

    /// Bytes of the proof of batch `index`.
    pub fn proof(&mut self, index: usize) -> Result<Vec<u8>, BundleError> {
        FixedBlobs { reader: &mut self.reader, start: self.start, blobs: &self.blobs }
            .read(FIXED_BLOBS + index)
    }

    /// The folds of a redacted bundle, signed by the receipt's client; `None` of one with the transcript.
    pub fn folds(&mut self) -> Result<Option<Folds>, BundleError> {
        if !self.is_redacted() {
            return Ok(None);
        }
        let expected = Folds::length(&self.session);
        let found = self.blobs[FOLDS].length;
        if found != expected {
            return Err(BundleError::Folds(format!("they have {found} bytes, expected {expected}")));
        }
        let mut blobs = FixedBlobs { reader: &mut self.reader, start: self.start, blobs: &self.blobs };
        let (folds, signature) = (blobs.read(FOLDS)?, blobs.signature(FOLDS_SIGNATURE)?);
        Folds::parse(&folds, &signature, &self.session).map(Some)
    }

    /// Visits every call in order, then checks the blob's digest. What `visit` learned counts only if this returns `Ok`.
    pub fn calls<E: From<BundleError>>(&mut self, visit: impl FnMut(Call) -> Result<(), E>) -> Result<(), E> {
        if self.is_redacted() {
            return Err(BundleError::Redacted.into());
        }
        let blob = &self.blobs[TRANSCRIPT];
        self.reader.seek(SeekFrom::Start(self.start + blob.offset)).map_err(BundleError::from)?;
        let mut hashed = HashingReader {
            inner: BufReader::new((&mut self.reader).take(blob.length)),
            hasher: BundleDigest::hasher(),
        };
        transcript::decode(&mut hashed, self.session.manifest().manifest(), visit)?;
        if BundleDigest::finish(&hashed.hasher) != blob.digest {
            return Err(BundleError::Digest(blob.name.clone()).into());
        }
        Ok(())
    }
}

/// Checks that the table has exactly the blobs that the plan asks for, back to back, up to the end of the file.
fn check_table(layout: Layout, header: &Header, start: u64, file_length: u64) -> Result<(), BundleError> {
    let expected = FIXED_BLOBS + header.plan.batches.len();
    if header.blobs.len() != expected {
        return Err(BundleError::Table(format!("{} blobs, expected {expected}", header.blobs.len())));
    }
    let mut end = 0u64;
    for (index, blob) in header.blobs.iter().enumerate() {
        let name = layout.blob_name(index);
        if blob.name != name {
            let found: String = blob.name.chars().take(40).collect();
            return Err(BundleError::Table(format!("blob {index} is {found:?}, expected {name:?}")));
        }
        if blob.offset != end {
            return Err(BundleError::Table(format!("{name:?} begins at {}, expected {end}", blob.offset)));
        }
        let max = layout.blob_max(index);
        if blob.length > max {
            return Err(BundleError::Table(format!(
                "{name:?} has {} bytes, expected at most {max}",
                blob.length
            )));
        }
        // Lengths are bounded by 2^40 and there are few of them.
        end += blob.length;
    }
    if start + end != file_length {
        return Err(BundleError::Length { expected: start + end, found: file_length });
    }
    Ok(())
}

/// Reads whole blobs whose lengths [`check_table`] has bounded.
struct FixedBlobs<'a, R> {
    reader: &'a mut R,
    start: u64,
    blobs: &'a [Blob],
}

impl<R: Read + Seek> FixedBlobs<'_, R> {
    fn read(&mut self, index: usize) -> Result<Vec<u8>, BundleError> {
        let blob = &self.blobs[index];
        self.reader.seek(SeekFrom::Start(self.start + blob.offset))?;
        let mut bytes = vec![0; blob.length as usize];
        self.reader.read_exact(&mut bytes)?;
        if BundleDigest::of_blob(&bytes) != blob.digest {
            return Err(BundleError::Digest(blob.name.clone()));
        }
        Ok(bytes)
    }

    fn signature(&mut self, index: usize) -> Result<Signature, BundleError> {
        self.exactly(index).map(Signature::from_bytes)
    }

    fn exactly<const N: usize>(&mut self, index: usize) -> Result<[u8; N], BundleError> {
        let bytes = self.read(index)?;
        let found = bytes.len();
        bytes.try_into().map_err(|_| {
            BundleError::Table(format!("{:?} has {found} bytes, expected {N}", self.blobs[index].name))
        })
    }
}

/// Hashes what is read through it.
pub(super) struct HashingReader<R> {
    pub(super) inner: R,
    pub(super) hasher: blake3::Hasher,
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}
