//! The test vectors in `fixtures/vectors`: bundles that every later version has to accept, and bundles that it has to refuse.
//!
//! A valid one is a file, `valid/NAME.pf`. An invalid one is a [`Patch`] of a valid one, `invalid/NAME.json`, since a proof
//! takes a hundred kilobytes and more. `fixtures/vectors/README.md` says how to apply it, for who has no Rust.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use zklora_proto::{PublicKey, Receipt};

use crate::{RECEIPT, REDACTED, RawBundle};

/// A bundle as it is in a file, and what a verifier must say of it.
#[derive(Debug, Clone)]
pub struct Vector {
    /// The path in `fixtures/vectors`.
    pub name: String,
    /// The bundle.
    pub bytes: Vec<u8>,
    /// Why it is refused; `None` if it is valid.
    pub reason: Option<Reason>,
}

/// Why a bundle is refused.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reason {
    /// The verifier's word for what kind of thing is wrong: `error.kind` of `verify --json`.
    pub kind: String,
    /// What `error.what` says among other things.
    pub says: String,
}

/// An invalid bundle as what is changed in a valid one.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Patch {
    /// What this bundle is, for people.
    pub about: String,
    /// The valid bundle, as a path in `fixtures/vectors`.
    pub from: String,
    /// Whether the header's table is made anew, so that offsets, lengths and digests fit the changed blobs.
    pub fit: bool,
    /// The changes, in the order in which they are made.
    pub edits: Vec<Edit>,
    /// Why the bundle is refused.
    pub reason: Reason,
}

/// One change.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Edit {
    /// What is changed: a blob by its name, `header` or `file`. Blobs are changed first, then the table is fitted, then the
    /// header is changed (and its length fitted), then the file.
    pub part: String,
    /// How.
    pub change: Change,
}

/// How bytes are changed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Change {
    /// A text that occurs exactly once is replaced.
    Replace {
        /// The text.
        from: String,
        /// What takes its place.
        to: String,
    },
    /// All bytes are replaced by these, in hexadecimal.
    Set(String),
    /// One byte is combined with a value by exclusive or.
    Xor {
        /// Its position.
        at: usize,
        /// The value.
        value: u8,
    },
    /// That many bytes are cut off at the end.
    Cut(usize),
    /// These bytes, in hexadecimal, are added at the end.
    Append(String),
}

impl Patch {
    /// The invalid bundle.
    pub fn apply(&self, valid: &[u8]) -> Vec<u8> {
        let mut bundle = RawBundle::parse(valid);
        let header_length = u64::from_le_bytes(valid[..8].try_into().unwrap()) as usize;
        let mut header = valid[8..8 + header_length].to_vec();
        for index in 0..bundle.blobs.len() {
            self.edit(&bundle.blob_name(index), &mut bundle.blobs[index]);
        }
        if self.fit {
            header = bundle.header();
        }
        self.edit("header", &mut header);
        let mut file = [&(header.len() as u64).to_le_bytes()[..], &header, &bundle.blobs.concat()].concat();
        self.edit("file", &mut file);
        assert_ne!(file, valid, "the patch changes something");
        file
    }

    fn edit(&self, part: &str, bytes: &mut Vec<u8>) {
        for edit in self.edits.iter().filter(|edit| edit.part == part) {
            match &edit.change {
                Change::Replace { from, to } => {
                    let text = std::str::from_utf8(bytes).unwrap();
                    assert_eq!(text.matches(from).count(), 1, "{from:?} occurs once in {part}");
                    *bytes = text.replace(from, to).into_bytes();
                }
                Change::Set(text) => *bytes = hex::decode(text).unwrap(),
                Change::Xor { at, value } => bytes[*at] ^= value,
                Change::Cut(count) => bytes.truncate(bytes.len() - count),
                Change::Append(text) => bytes.extend(hex::decode(text).unwrap()),
            }
        }
    }
}

/// The client that a redacted bundle names, of which it is to be said that its word is taken.
pub fn client_of_redacted(bundle: &[u8]) -> Option<PublicKey> {
    let bundle = RawBundle::try_parse(bundle).filter(|bundle| bundle.format == REDACTED)?;
    Some(Receipt::from_bytes(&bundle.blobs[RECEIPT]).ok()?.client)
}

/// The folder of the vectors.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/vectors")
}

/// All vectors, by name.
pub fn load() -> Vec<Vector> {
    let read = |path: &Path| std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut vectors: Vec<Vector> = ["valid", "invalid"]
        .into_iter()
        .flat_map(|kind| std::fs::read_dir(folder().join(kind)).unwrap())
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(folder()).unwrap().to_str().unwrap().to_owned();
            if name.ends_with(".pf") {
                return Vector { name, bytes: read(&path), reason: None };
            }
            let patch: Patch = serde_json::from_slice(&read(&path)).unwrap();
            let bytes = patch.apply(&read(&folder().join(&patch.from)));
            Vector { name, bytes, reason: Some(patch.reason) }
        })
        .collect();
    vectors.sort_by(|a, b| a.name.cmp(&b.name));
    vectors
}
