//! Writing a bundle.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::encode::encode;
use super::read::HashingReader;
use super::{Blob, Bundle, BundleError, Folds, Header, Layout, Plan, TRANSCRIPT};
use crate::partial;
use crate::transcript::Call;
use crate::{BundleDigest, Signature, SignedSession, TranscriptSalt};

/// What the name of a bundle begins with until it is complete; see [`partial`].
pub const PARTIAL: &str = ".pf-";

/// What a bundle is made of.
#[derive(Clone, Copy)]
pub struct BundleParts<'a> {
    /// What both parties signed.
    pub session: &'a SignedSession,
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
    let transcript = encode(parts.calls)?;
    let evidence = [Source::of(parts.salt.as_bytes()), Source::of(&transcript)];
    let proofs = parts.proofs.iter().map(|proof| Source::of(proof)).collect();
    write_blobs(path, Layout::Full, parts.session, evidence, parts.plan, proofs)
}

/// Writes all of a bundle but its proofs, each of which is empty: what it takes to make them, in a file that no verifier takes
/// for a proof.
pub fn write_unproved(path: &Path, parts: &BundleParts<'_>) -> io::Result<u64> {
    let proofs = vec![Vec::new(); parts.plan.batches.len()];
    write(path, &BundleParts { proofs: &proofs, ..*parts })
}

impl<R: Read + Seek> Bundle<R> {
    /// Writes this bundle with other proofs, one for each batch of its plan, and returns its size in bytes. The file appears under
    /// its name only when it is complete. Fails on a redacted bundle.
    pub fn write_with_proofs(&mut self, path: &Path, proofs: &[Vec<u8>]) -> io::Result<u64> {
        let salt = self.transcript_salt().map_err(io::Error::other)?;
        let Blob { offset, length, digest, .. } = self.blobs[TRANSCRIPT];
        self.reader.seek(SeekFrom::Start(self.start + offset))?;
        let transcript = Source { length, digest, reader: Box::new(&mut self.reader) };
        let evidence = [Source::of(salt.as_bytes()), transcript];
        let proofs = proofs.iter().map(|proof| Source::of(proof)).collect();
        write_blobs(path, Layout::Full, &self.session, evidence, &self.plan, proofs)
    }

    /// Writes this bundle with its folds, which the client signed with [`Folds::sign`], in place of the transcript, and returns its
    /// size in bytes. The file appears under its name only when it is complete, and never in the place of another.
    pub fn write_redacted(
        &mut self,
        path: &Path,
        folds: &Folds,
        signature: &Signature,
    ) -> Result<u64, BundleError> {
        let proofs: Vec<Vec<u8>> =
            (0..self.plan.batches.len()).map(|batch| self.proof(batch)).collect::<Result<_, _>>()?;
        let folds = folds.to_bytes();
        let evidence = [Source::of(&folds), Source::of(signature.as_bytes())];
        let proofs = proofs.iter().map(|proof| Source::of(proof)).collect();
        Ok(write_blobs(path, Layout::Redacted, &self.session, evidence, &self.plan, proofs)?)
    }
}

/// A blob, wherever it comes from.
struct Source<'a> {
    length: u64,
    digest: BundleDigest,
    reader: Box<dyn Read + 'a>,
}

impl<'a> Source<'a> {
    fn of(blob: &'a [u8]) -> Self {
        Self { length: blob.len() as u64, digest: BundleDigest::of_blob(blob), reader: Box::new(blob) }
    }
}

fn write_blobs(
    path: &Path,
    layout: Layout,
    session: &SignedSession,
    evidence: [Source<'_>; 2],
    plan: &Plan,
    proofs: Vec<Source<'_>>,
) -> io::Result<u64> {
    let (manifest, receipt) = (session.manifest(), session.receipt());
    let blobs = [
        Source::of(manifest.bytes()),
        Source::of(manifest.signature().as_bytes()),
        Source::of(receipt.bytes()),
        Source::of(receipt.contributor_signature().as_bytes()),
        Source::of(receipt.client_signature().as_bytes()),
    ];
    let blobs: Vec<Source<'_>> = blobs.into_iter().chain(evidence).chain(proofs).collect();
    let mut offset = 0;
    let table = blobs
        .iter()
        .enumerate()
        .map(|(index, &Source { length, digest, .. })| {
            let entry = Blob { name: layout.blob_name(index), offset, length, digest };
            offset += length;
            entry
        })
        .collect();
    let header = Header { format: layout.format().into(), plan: plan.clone(), blobs: table };
    let header = serde_json::to_vec(&header)?;

    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = partial::file(folder, PARTIAL)?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    for (index, blob) in blobs.into_iter().enumerate() {
        let mut hashed =
            HashingReader { inner: blob.reader.take(blob.length), hasher: BundleDigest::hasher() };
        let copied = io::copy(&mut hashed, &mut file)?;
        if copied != blob.length || BundleDigest::finish(&hashed.hasher) != blob.digest {
            let what = format!("the {} does not have its digest", layout.blob_name(index));
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
    }
    // A bundle is made to be handed out, unlike the temporary file it grows in; but not to everyone: prompts can mostly be
    // read back from the activations in it.
    file.as_file().set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o640))?;
    file.as_file().sync_all()?;
    // Proving again gives the same bundle again; a redacted one is made by hand, and may be named like another file.
    match layout {
        Layout::Full => file.persist(path),
        Layout::Redacted => file.persist_noclobber(path),
    }
    .map_err(|error| error.error)?;
    // The name, too, has to survive a loss of power.
    std::fs::File::open(folder)?.sync_all()?;
    Ok(8 + header.len() as u64 + offset)
}
