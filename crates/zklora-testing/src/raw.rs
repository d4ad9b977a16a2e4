//! A bundle in its parts, valid or not.

use std::io::Write;

use flate2::Compression;
use flate2::write::ZlibEncoder;
use serde::{Deserialize, Serialize};
use zklora_proto::bundle::{BundleParts, Plan, write};
use zklora_proto::{BundleDigest, Call, CommitmentSeed, SignedSession};

/// Index of the manifest's bytes among a bundle's blobs.
pub const MANIFEST: usize = 0;
/// Index of the contributor's signature over the manifest.
pub const MANIFEST_SIGNATURE: usize = 1;
/// Index of the receipt's bytes.
pub const RECEIPT: usize = 2;
/// Index of the contributor's signature over the receipt.
pub const CONTRIBUTOR_SIGNATURE: usize = 3;
/// Index of the client's signature over the receipt.
pub const CLIENT_SIGNATURE: usize = 4;
/// Index of the salt of the transcript's digest.
pub const TRANSCRIPT_SALT: usize = 5;
/// Index of the transcript.
pub const TRANSCRIPT: usize = 6;
/// Index of the folds in a redacted bundle.
pub const FOLDS: usize = 5;
/// Index of the client's signature over the folds in a redacted bundle.
pub const FOLDS_SIGNATURE: usize = 6;
/// The format of a redacted bundle.
pub const REDACTED: &str = "zklora-pf-redacted/2";
/// Index of the first proof.
pub const PROOFS: usize = 7;

/// What all sessions here are salted with.
pub(crate) const SEED: CommitmentSeed = CommitmentSeed::from_bytes([0x5e; 32]);

/// A bundle as anyone can take it apart and put it together again: blobs and plan, with nothing checked.
///
/// Written independently of the format's own reader and writer, so that it can also be wrong in ways that they never are.
#[derive(Debug, Clone)]
pub struct RawBundle {
    /// The header's format.
    pub format: String,
    /// The header's plan.
    pub plan: Plan,
    /// All blobs, in the order of the constants of this module.
    pub blobs: Vec<Vec<u8>>,
}

/// One entry of the header's table of blobs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TableEntry {
    /// The blob's name.
    pub name: String,
    /// Where it begins, counted from the end of the header.
    pub offset: u64,
    /// Its bytes.
    pub length: u64,
    /// Its BLAKE3 digest.
    pub digest: BundleDigest,
}

#[derive(Serialize, Deserialize)]
struct Header {
    format: String,
    plan: Plan,
    blobs: Vec<TableEntry>,
}

impl RawBundle {
    /// The parts of a bundle that the real writer makes of these.
    pub fn new(session: &SignedSession, calls: &[Call], plan: &Plan, proofs: &[Vec<u8>]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("session.pf");
        let salt = SEED.transcript_salt();
        write(&path, &BundleParts { session, salt, calls, plan, proofs }).unwrap();
        Self::parse(&std::fs::read(path).unwrap())
    }

    /// The parts of a well-formed bundle.
    pub fn parse(bytes: &[u8]) -> Self {
        Self::try_parse(bytes).expect("a bundle")
    }

    /// The parts of anything that has a header in front of its blobs, whether or not they fit each other.
    pub fn try_parse(bytes: &[u8]) -> Option<Self> {
        let (length, rest) = bytes.split_at_checked(8)?;
        let length = u64::from_le_bytes(length.try_into().unwrap());
        let (header, rest) = rest.split_at_checked(length.try_into().ok()?)?;
        let header: Header = serde_json::from_slice(header).ok()?;
        let blob = |entry: &TableEntry| {
            let (begin, end) = (entry.offset, entry.offset.checked_add(entry.length)?);
            Some(rest.get(begin.try_into().ok()?..end.try_into().ok()?)?.to_vec())
        };
        let blobs = header.blobs.iter().map(blob).collect::<Option<_>>()?;
        Some(Self { format: header.format, plan: header.plan, blobs })
    }

    /// The bundle's bytes, with a table and digests that fit its blobs.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.to_bytes_with_table(|_| {})
    }

    /// The bundle's bytes, with a table that fits its blobs but for what `edit` does to it.
    pub fn to_bytes_with_table(&self, edit: impl FnOnce(&mut Vec<TableEntry>)) -> Vec<u8> {
        let header = self.header_with_table(edit);
        [&(header.len() as u64).to_le_bytes()[..], &header, &self.blobs.concat()].concat()
    }

    /// The header's JSON, with a table that fits the blobs.
    pub(crate) fn header(&self) -> Vec<u8> {
        self.header_with_table(|_| {})
    }

    fn header_with_table(&self, edit: impl FnOnce(&mut Vec<TableEntry>)) -> Vec<u8> {
        let mut offset = 0;
        let mut table = Vec::with_capacity(self.blobs.len());
        for (index, blob) in self.blobs.iter().enumerate() {
            let name = self.blob_name(index);
            let length = blob.len() as u64;
            table.push(TableEntry { name, offset, length, digest: BundleDigest::of_blob(blob) });
            offset += length;
        }
        edit(&mut table);
        let header = Header { format: self.format.clone(), plan: self.plan.clone(), blobs: table };
        serde_json::to_vec(&header).unwrap()
    }

    /// The same bundle with another blob in one place.
    pub fn with_blob(&self, index: usize, blob: Vec<u8>) -> Self {
        let mut changed = self.clone();
        changed.blobs[index] = blob;
        changed
    }

    /// The same bundle with another plan.
    pub fn with_plan(&self, batches: &[&[usize]]) -> Self {
        let mut changed = self.clone();
        changed.plan.batches = batches.iter().map(|batch| batch.to_vec()).collect();
        changed
    }

    /// The name of blob `index`.
    pub(crate) fn blob_name(&self, index: usize) -> String {
        let evidence = match self.format.as_str() {
            REDACTED => ["folds", "folds.client"],
            _ => ["transcript.salt", "transcript"],
        };
        let [of, of_client] = evidence;
        match index {
            0..5 => ["manifest", "manifest.signature", "receipt", "receipt.contributor", "receipt.client"]
                [index]
                .into(),
            5 => of.into(),
            6 => of_client.into(),
            _ => format!("proof.{}", index - PROOFS),
        }
    }

    /// The proofs.
    pub fn proofs(&self) -> &[Vec<u8>] {
        &self.blobs[PROOFS..]
    }
}

/// A transcript blob whose deltas take `wider` bytes more than they need each, and whose activations' tensors are followed
/// by `extra` within their compressed bytes.
pub fn encode_transcript(calls: &[Call], wider: u8, extra: &[u8]) -> Vec<u8> {
    let mut blob = (calls.len() as u64).to_le_bytes().to_vec();
    for call in calls {
        blob.extend((call.rows as u32).to_le_bytes());
        blob.extend((call.deltas.len() as u32).to_le_bytes());
        for delta in &call.deltas {
            blob.extend((delta.module as u32).to_le_bytes());
        }
        let activations: Vec<i64> = call.activations.iter().map(|&x| x.into()).collect();
        push_tensor(&mut blob, &activations, 2, extra);
        for delta in &call.deltas {
            let fits = |width: &u8| delta.values.iter().all(|&y| y >> (8 * width - 1) == y >> 63);
            let width = (1..8).find(fits).unwrap_or(8) + wider;
            blob.push(width);
            push_tensor(&mut blob, &delta.values, width.into(), &[]);
        }
    }
    blob
}

/// Adds a tensor as byte planes, in one zlib stream.
fn push_tensor(blob: &mut Vec<u8>, values: &[i64], width: usize, extra: &[u8]) {
    let planes: Vec<u8> =
        (0..width).flat_map(|plane| values.iter().map(move |y| y.to_le_bytes()[plane])).collect();
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(&planes).unwrap();
    let mut compressed = encoder.finish().unwrap();
    compressed.extend_from_slice(extra);
    blob.extend((compressed.len() as u64).to_le_bytes());
    blob.extend(compressed);
}
