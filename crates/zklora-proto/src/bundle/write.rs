//! Writing a bundle.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::encode::encode;
use super::read::HashingReader;
use super::{Blob, Bundle, FORMAT, Header, Plan, TRANSCRIPT, blob_name};
use crate::transcript::Call;
use crate::{BundleDigest, SignedManifest, SignedReceipt, TranscriptSalt};

/// What a bundle is made of.
#[derive(Clone, Copy)]
pub struct BundleParts<'a> {
    /// The adapter's manifest.
    pub manifest: &'a SignedManifest,
    /// The session's receipt.
    pub receipt: &'a SignedReceipt,
    /// What the transcript's digest in the receipt is salted with.
    pub salt: TranscriptSalt,
    /// The session's calls.
    pub calls: &'a [Call],
    /// How the modules are spread over proofs.
    pub plan: &'a Plan,
    /// One proof for each batch of the plan.
    pub proofs: &'a [Vec<u8>],
}

/// Writes a bundle and returns its size in bytes. The file appears under its name only when it is complete.
pub fn write(path: &Path, parts: &BundleParts<'_>) -> io::Result<u64> {
    let bytes = encode(parts.calls)?;
    let transcript = Transcript {
        length: bytes.len() as u64,
        digest: BundleDigest::of_blob(&bytes),
        reader: &mut &bytes[..],
    };
    write_blobs(path, parts.manifest, parts.receipt, parts.salt, transcript, parts.plan, parts.proofs)
}

/// Writes all of a bundle but its proofs, each of which is empty: what it takes to make them, in a file that no verifier takes
/// for a proof.
pub fn write_unproved(path: &Path, parts: &BundleParts<'_>) -> io::Result<u64> {
    let proofs = vec![Vec::new(); parts.plan.batches.len()];
    write(path, &BundleParts { proofs: &proofs, ..*parts })
}

impl<R: Read + Seek> Bundle<R> {
    /// Writes this bundle with other proofs, one for each batch of its plan, and returns its size in bytes. The file appears under
    /// its name only when it is complete.
    pub fn write_with_proofs(&mut self, path: &Path, proofs: &[Vec<u8>]) -> io::Result<u64> {
        let Blob { offset, length, digest, .. } = self.blobs[TRANSCRIPT];
        self.reader.seek(SeekFrom::Start(self.start + offset))?;
        let transcript = Transcript { length, digest, reader: &mut self.reader };
        write_blobs(path, &self.manifest, &self.receipt, self.salt, transcript, &self.plan, proofs)
    }
}

/// The transcript blob, wherever it comes from.
struct Transcript<'a> {
    length: u64,
    digest: BundleDigest,
    reader: &'a mut dyn Read,
}

fn write_blobs(
    path: &Path,
    manifest: &SignedManifest,
    receipt: &SignedReceipt,
    salt: TranscriptSalt,
    transcript: Transcript<'_>,
    plan: &Plan,
    proofs: &[Vec<u8>],
) -> io::Result<u64> {
    let before: [&[u8]; TRANSCRIPT] = [
        manifest.bytes(),
        manifest.signature().as_bytes(),
        receipt.bytes(),
        receipt.contributor_signature().as_bytes(),
        receipt.client_signature().as_bytes(),
        salt.as_bytes(),
    ];
    let of = |blob: &[u8]| (blob.len() as u64, BundleDigest::of_blob(blob));
    let sizes = before
        .iter()
        .map(|blob| of(blob))
        .chain([(transcript.length, transcript.digest)])
        .chain(proofs.iter().map(|proof| of(proof)));
    let mut offset = 0;
    let table = sizes
        .enumerate()
        .map(|(index, (length, digest))| {
            let entry = Blob { name: blob_name(index), offset, length, digest };
            offset += length;
            entry
        })
        .collect();
    let header = serde_json::to_vec(&Header { format: FORMAT.into(), plan: plan.clone(), blobs: table })?;

    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".pf-").tempfile_in(folder)?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    for blob in before {
        file.write_all(blob)?;
    }
    let mut hashed =
        HashingReader { inner: transcript.reader.take(transcript.length), hasher: BundleDigest::hasher() };
    let copied = io::copy(&mut hashed, &mut file)?;
    if copied != transcript.length || BundleDigest::finish(&hashed.hasher) != transcript.digest {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the transcript does not have its digest"));
    }
    for proof in proofs {
        file.write_all(proof)?;
    }
    // A bundle is made to be handed out, unlike the temporary file it grows in; but not to everyone: prompts can mostly be
    // read back from the activations in it.
    file.as_file().set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o640))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    // The name, too, has to survive a loss of power.
    std::fs::File::open(folder)?.sync_all()?;
    Ok(8 + header.len() as u64 + offset)
}
