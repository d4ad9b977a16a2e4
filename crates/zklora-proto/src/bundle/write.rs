//! Writing a bundle.

use std::io::Write;
use std::path::Path;

use super::transcript::encode;
use super::{Blob, FORMAT, Header, Plan, blob_name};
use crate::transcript::Call;
use crate::{BundleDigest, SignedManifest, SignedReceipt};

/// What a bundle is made of.
pub struct BundleParts<'a> {
    /// The adapter's manifest.
    pub manifest: &'a SignedManifest,
    /// The session's receipt.
    pub receipt: &'a SignedReceipt,
    /// The session's calls.
    pub calls: &'a [Call],
    /// How the modules are spread over proofs.
    pub plan: &'a Plan,
    /// One proof for each batch of the plan.
    pub proofs: &'a [Vec<u8>],
}

/// Writes a bundle and returns its size in bytes. The file appears under its name only when it is complete.
pub fn write(path: &Path, parts: &BundleParts<'_>) -> std::io::Result<u64> {
    let transcript = encode(parts.calls)?;
    let mut blobs: Vec<&[u8]> = vec![
        parts.manifest.bytes(),
        parts.manifest.signature().as_bytes(),
        parts.receipt.bytes(),
        parts.receipt.contributor_signature().as_bytes(),
        parts.receipt.client_signature().as_bytes(),
        &transcript,
    ];
    blobs.extend(parts.proofs.iter().map(Vec::as_slice));

    let mut offset = 0;
    let table = blobs
        .iter()
        .enumerate()
        .map(|(index, blob)| {
            let length = blob.len() as u64;
            let entry = Blob { name: blob_name(index), offset, length, digest: BundleDigest::of_blob(blob) };
            offset += length;
            entry
        })
        .collect();
    let header =
        serde_json::to_vec(&Header { format: FORMAT.into(), plan: parts.plan.clone(), blobs: table })?;

    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".pf-").tempfile_in(folder)?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    for blob in blobs {
        file.write_all(blob)?;
    }
    // A bundle is made to be handed out, unlike the temporary file it grows in; but not to everyone: prompts can mostly be
    // read back from the activations in it.
    file.as_file().set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o640))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(8 + header.len() as u64 + offset)
}
