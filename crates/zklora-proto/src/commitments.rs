//! Hiding commitments of a session's calls, so that one of them can be shown without the others.
//!
//! The client chooses a [`CommitmentSeed`] and gives it to the contributor. From it come a salt for each module of each call,
//! and one for the transcript as a whole. A leaf commits to what one module was asked and what it answered in one call; all
//! leaves are the leaves of a Merkle tree, whose [`CommitmentsDigest`] both parties sign. `docs/format.md` has every byte.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::{Zeroize, Zeroizing};

use crate::digest::{HexError, parse_hex};
use crate::random::system_random;
use crate::transcript::{Call, CallDigests, TranscriptHasher};
use crate::{CallSalt, CommitmentNode, CommitmentsDigest, TranscriptDigest, TranscriptSalt};

/// Random rows of each module that hide the others in a redacted bundle: 16 of 16 bits for each input, against the 128 bits that are
/// known of it.
pub const BLINDING_ROWS: usize = 16;

/// 32 random bytes that both parties of a session know and nobody else. Wiped from memory when dropped; never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct CommitmentSeed([u8; 32]);

impl CommitmentSeed {
    /// A new one from the operating system's randomness.
    pub fn random() -> Self {
        Self(system_random())
    }

    /// Wraps 32 bytes that are one.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// What the transcript's digest begins with.
    pub fn transcript_salt(&self) -> TranscriptSalt {
        TranscriptSalt::from_bytes(*blake3::keyed_hash(&self.0, b"transcript").as_bytes())
    }

    /// The last [`BLINDING_ROWS`] rows of activations of a module in a session that is to be redacted: row-major, of `d_in` uniform
    /// entries each, in `[-(2^15 - 1), 2^15 - 1]`.
    pub fn blinding_rows(&self, module: usize, d_in: usize) -> Vec<i16> {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(b"blind");
        hasher.update(&(module as u32).to_le_bytes());
        let mut stream = hasher.finalize_xof();
        let mut next = || {
            let mut bytes = [0; 2];
            stream.fill(&mut bytes);
            i16::from_le_bytes(bytes)
        };
        let entries = std::iter::from_fn(|| Some(next())).filter(|&entry| entry != i16::MIN);
        entries.take(BLINDING_ROWS * d_in).collect()
    }

    /// The salt of a module in a call. No other salt follows from it.
    pub fn call_salt(&self, call: u64, module: usize) -> CallSalt {
        let mut message = Vec::with_capacity(16);
        message.extend_from_slice(b"call");
        message.extend_from_slice(&call.to_le_bytes());
        message.extend_from_slice(&(module as u32).to_le_bytes());
        CallSalt::from_bytes(*blake3::keyed_hash(&self.0, &message).as_bytes())
    }
}

impl Drop for CommitmentSeed {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for CommitmentSeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CommitmentSeed(..)")
    }
}

impl FromStr for CommitmentSeed {
    type Err = HexError;

    fn from_str(text: &str) -> Result<Self, HexError> {
        parse_hex(text).map(Self)
    }
}

impl Serialize for CommitmentSeed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Zeroizing::new(hex::encode(self.0)))
    }
}

impl<'de> Deserialize<'de> for CommitmentSeed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Hashes a session's calls in order, as a party to the session does: the transcript, and the commitments.
#[derive(Debug, Clone)]
pub struct SessionHasher {
    transcript: TranscriptHasher,
    seed: CommitmentSeed,
    tree: Tree,
    watched: Option<(u64, usize)>,
}

impl SessionHasher {
    /// The hasher of a session with no calls yet, for a manifest of this many modules.
    pub fn new(modules: usize, seed: CommitmentSeed) -> Self {
        let transcript = TranscriptHasher::new(modules, seed.transcript_salt());
        Self { transcript, seed, tree: Tree::default(), watched: None }
    }

    /// The same, which keeps the path of a module in a call.
    pub(crate) fn watching(modules: usize, seed: CommitmentSeed, call: u64, module: usize) -> Self {
        Self { watched: Some((call, module)), ..Self::new(modules, seed) }
    }

    /// Adds the next call, as [`TranscriptHasher::add`] does, and a leaf for each of its modules.
    ///
    /// Returns false, and adds nothing, if the session has as many calls as it may have.
    #[must_use]
    pub fn add(&mut self, call: &Call) -> bool {
        let (number, digests) = (self.transcript.calls(), CallDigests::of(call));
        if !self.transcript.add_hashed(call, &digests) {
            return false;
        }
        for (delta, deltas) in call.deltas.iter().zip(&digests.deltas) {
            let leaf = Leaf {
                salt: self.seed.call_salt(number, delta.module),
                call: number,
                module: delta.module,
                rows: call.rows,
                activations: digests.activations,
                deltas: *deltas,
            };
            self.tree.push(leaf.hash(), self.watched == Some((number, delta.module)));
        }
        true
    }

    /// Calls so far.
    pub fn calls(&self) -> u64 {
        self.transcript.calls()
    }

    /// Rows so far of each module, in the manifest's order.
    pub fn rows(&self) -> &[u64] {
        self.transcript.rows()
    }

    /// The digest of the calls so far.
    pub fn digest(&self) -> TranscriptDigest {
        self.transcript.digest()
    }

    /// What commits to the calls so far.
    pub fn commitments(&self) -> CommitmentsDigest {
        self.tree.root().0
    }

    /// Where the watched leaf is among how many, and its path; `None` if there was no such call.
    pub(crate) fn path(&self) -> Option<Path> {
        let nodes = self.tree.root().1;
        self.tree.position.map(|position| Path { position, leaves: self.tree.leaves, nodes })
    }
}

/// What is committed to: one module in one call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Leaf {
    pub(crate) salt: CallSalt,
    pub(crate) call: u64,
    pub(crate) module: usize,
    pub(crate) rows: usize,
    /// The digest of X, as in the transcript.
    pub(crate) activations: [u8; 32],
    /// The digest of Y.
    pub(crate) deltas: [u8; 32],
}

impl Leaf {
    pub(crate) fn hash(&self) -> CommitmentNode {
        let mut hasher = blake3::Hasher::new_derive_key("zklora v1 call commitment");
        hasher.update(self.salt.as_bytes());
        hasher.update(&self.call.to_le_bytes());
        hasher.update(&(self.module as u32).to_le_bytes());
        hasher.update(&(self.rows as u64).to_le_bytes());
        hasher.update(&self.activations);
        hasher.update(&self.deltas);
        CommitmentNode::from_bytes(*hasher.finalize().as_bytes())
    }
}

/// From a leaf up to the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Path {
    pub(crate) position: u64,
    pub(crate) leaves: u64,
    /// Siblings, from the leaf's on.
    pub(crate) nodes: Vec<CommitmentNode>,
}

impl Path {
    /// What commits to a tree with this leaf in this place; `None` if there is no such place, or no such path to it.
    ///
    /// As RFC 9162, section 2.1.3.2, checks an inclusion proof.
    pub(crate) fn root(&self, leaf: CommitmentNode) -> Option<CommitmentsDigest> {
        let (mut at, mut last) = (self.position, self.leaves.checked_sub(1)?);
        if at > last {
            return None;
        }
        let mut node = leaf;
        for &sibling in &self.nodes {
            if last == 0 {
                return None;
            }
            if at % 2 == 1 || at == last {
                node = parent(sibling, node);
                // The last of a row that has no partner goes up until it has one.
                while at % 2 == 0 && at > 0 {
                    (at, last) = (at / 2, last / 2);
                }
            } else {
                node = parent(node, sibling);
            }
            (at, last) = (at / 2, last / 2);
        }
        (last == 0).then(|| root_digest(self.leaves, Some(node)))
    }
}

/// A Merkle tree of the shape of RFC 6962, of which complete subtrees are kept by their roots alone.
#[derive(Debug, Clone, Default)]
struct Tree {
    /// Roots of complete subtrees, the largest first; their sizes are the ones in the binary form of `leaves`.
    peaks: Vec<Peak>,
    leaves: u64,
    /// Of the watched leaf.
    position: Option<u64>,
    /// Of the watched leaf, as far as its subtree reaches.
    path: Vec<CommitmentNode>,
}

#[derive(Debug, Clone, Copy)]
struct Peak {
    hash: CommitmentNode,
    /// Whether the watched leaf is below.
    watched: bool,
}

impl Tree {
    fn push(&mut self, hash: CommitmentNode, watched: bool) {
        if watched {
            self.position = Some(self.leaves);
        }
        let mut peak = Peak { hash, watched };
        for _ in 0..self.leaves.trailing_ones() {
            if let Some(left) = self.peaks.pop() {
                peak = join(left, peak, &mut self.path);
            }
        }
        self.peaks.push(peak);
        self.leaves += 1;
    }

    /// What commits to all leaves, and the path of the watched one.
    fn root(&self) -> (CommitmentsDigest, Vec<CommitmentNode>) {
        let mut path = self.path.clone();
        let mut peaks = self.peaks.iter().rev().copied();
        let root = peaks.next().map(|last| peaks.fold(last, |right, left| join(left, right, &mut path)).hash);
        (root_digest(self.leaves, root), path)
    }
}

fn join(left: Peak, right: Peak, path: &mut Vec<CommitmentNode>) -> Peak {
    if left.watched {
        path.push(right.hash);
    } else if right.watched {
        path.push(left.hash);
    }
    Peak { hash: parent(left.hash, right.hash), watched: left.watched || right.watched }
}

fn parent(left: CommitmentNode, right: CommitmentNode) -> CommitmentNode {
    let mut hasher = blake3::Hasher::new_derive_key("zklora v1 commitment node");
    hasher.update(left.as_bytes());
    hasher.update(right.as_bytes());
    CommitmentNode::from_bytes(*hasher.finalize().as_bytes())
}

/// The number of leaves is hashed too: otherwise a path would fit trees of several sizes.
fn root_digest(leaves: u64, root: Option<CommitmentNode>) -> CommitmentsDigest {
    let mut hasher = blake3::Hasher::new_derive_key("zklora v1 commitments");
    hasher.update(&leaves.to_le_bytes());
    if let Some(root) = root {
        hasher.update(root.as_bytes());
    }
    CommitmentsDigest::from_bytes(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transcript::Delta;

    fn node(number: u64) -> CommitmentNode {
        CommitmentNode::from_bytes(*blake3::hash(&number.to_le_bytes()).as_bytes())
    }

    /// The definition of RFC 6962, section 2.1, with this format's hashes.
    fn by_definition(leaves: &[CommitmentNode]) -> CommitmentNode {
        match leaves {
            [leaf] => *leaf,
            leaves => {
                let left = 1 << (leaves.len() - 1).ilog2();
                parent(by_definition(&leaves[..left]), by_definition(&leaves[left..]))
            }
        }
    }

    fn watching(leaves: u64, watched: u64) -> (CommitmentsDigest, Path) {
        let mut tree = Tree::default();
        (0..leaves).for_each(|leaf| tree.push(node(leaf), leaf == watched));
        let (root, nodes) = tree.root();
        (root, Path { position: tree.position.unwrap(), leaves, nodes })
    }

    #[test]
    fn the_tree_is_that_of_its_definition_and_every_leaf_has_a_path() {
        for leaves in 1..40 {
            let all: Vec<_> = (0..leaves).map(node).collect();
            for position in 0..leaves {
                let (root, path) = watching(leaves, position);
                assert_eq!(root, root_digest(leaves, Some(by_definition(&all))));
                assert_eq!(path.root(node(position)), Some(root), "{position} of {leaves}");
            }
        }
    }

    #[test]
    fn a_path_is_of_one_leaf_in_one_place_of_one_tree() {
        for (leaves, position) in [(1, 0), (2, 1), (7, 6), (8, 3), (13, 12), (13, 4)] {
            let (root, path) = watching(leaves, position);
            for (other_leaves, other) in (1..20).flat_map(|n| (0..n + 1).map(move |at| (n, at))) {
                let moved = Path { position: other, leaves: other_leaves, ..path.clone() };
                let same = (other_leaves, other) == (leaves, position);
                assert_eq!(moved.root(node(position)) == Some(root), same, "{other} of {other_leaves}");
            }
            assert_ne!(path.root(node(99)), Some(root));
            for (at, _) in path.nodes.iter().enumerate() {
                let mut changed = path.clone();
                changed.nodes[at] = node(99);
                assert_ne!(changed.root(node(position)), Some(root));
                changed.nodes.remove(at);
                assert_ne!(changed.root(node(position)), Some(root));
            }
            let mut longer = path;
            longer.nodes.push(node(99));
            assert_eq!(longer.root(node(position)), None);
        }
        let none = Path { position: 0, leaves: 0, nodes: vec![] };
        assert_eq!(none.root(node(0)), None);
        let most = Path { position: u64::MAX, leaves: u64::MAX, nodes: vec![] };
        assert_eq!(most.root(node(0)), None);
    }

    fn call() -> Call {
        let delta = |module| Delta { module, values: vec![5, 6] };
        Call { rows: 1, activations: vec![1, -1], deltas: vec![delta(1), delta(0)] }
    }

    #[test]
    fn what_is_committed_to_cannot_be_checked_without_the_seed() {
        let seed = CommitmentSeed::random();
        let hashed = |seed: &CommitmentSeed, calls: usize| {
            let mut hasher = SessionHasher::new(2, seed.clone());
            (0..calls).for_each(|_| assert!(hasher.add(&call())));
            (hasher.digest(), hasher.commitments())
        };
        // The same calls, as somebody guesses them who has another seed, or none.
        assert_eq!(hashed(&seed, 1), hashed(&seed, 1));
        for other in [CommitmentSeed::random(), CommitmentSeed::from_bytes([0; 32])] {
            let (of_seed, of_other) = (hashed(&seed, 1), hashed(&other, 1));
            assert_ne!(of_seed.0, of_other.0, "the transcript's digest is in the receipt, too");
            assert_ne!(of_seed.1, of_other.1);
        }
    }

    #[test]
    fn equal_calls_have_different_leaves_and_every_part_of_a_leaf_is_bound() {
        let seed = CommitmentSeed::random();
        let digests = CallDigests::of(&call());
        let leaf = |call, module| Leaf {
            salt: seed.call_salt(call, module),
            call,
            module,
            rows: 1,
            activations: digests.activations,
            deltas: digests.deltas[0],
        };
        // Different by their salts already.
        assert_ne!(seed.call_salt(0, 1), seed.call_salt(1, 1));
        assert_ne!(seed.call_salt(0, 1), seed.call_salt(0, 0));
        let honest = leaf(0, 1);
        let salt = CallSalt::from_bytes([0; 32]);
        for other in [
            leaf(1, 1),
            leaf(0, 0),
            Leaf { salt, ..honest },
            Leaf { call: 1, ..honest },
            Leaf { module: 0, ..honest },
            Leaf { rows: 2, ..honest },
            Leaf { activations: digests.deltas[0], ..honest },
            Leaf { deltas: digests.activations, ..honest },
        ] {
            assert_ne!(other.hash(), honest.hash(), "{other:?}");
        }
    }

    #[test]
    fn calls_in_any_other_order_or_grouping_have_other_commitments() {
        let seed = CommitmentSeed::random();
        let of = |calls: &[Call]| {
            let mut hasher = SessionHasher::new(2, seed.clone());
            assert!(calls.iter().all(|call| hasher.add(call)));
            hasher.commitments()
        };
        let mut swapped = call();
        swapped.deltas.reverse();
        let [first, second] = [0, 1].map(|at| Call { deltas: vec![call().deltas[at].clone()], ..call() });
        let all = [
            of(&[call()]),
            of(&[swapped]),
            of(&[first.clone(), second.clone()]),
            of(&[second, first]),
            of(&[]),
        ];
        for (at, one) in all.iter().enumerate() {
            assert!(all[..at].iter().all(|other| other != one), "{at}");
        }
    }

    #[test]
    fn blinding_rows_are_uniform_and_of_their_seed_and_module() {
        let seed = CommitmentSeed::from_bytes([7; 32]);
        let rows = seed.blinding_rows(3, 4096);
        assert_eq!(rows.len(), BLINDING_ROWS * 4096);
        assert_ne!(rows, seed.blinding_rows(4, 4096));
        assert_ne!(rows, CommitmentSeed::from_bytes([8; 32]).blinding_rows(3, 4096));
        // The same stream, whatever the number of columns.
        assert_eq!(seed.blinding_rows(3, 2), rows[..2 * BLINDING_ROWS]);
        assert!(!rows.contains(&i16::MIN));
        // Of 2^16 draws from 2^16 - 1 values, a share of 1/e is missing: 24,109 with a standard deviation of some 80.
        let mut seen = rows;
        seen.sort_unstable();
        seen.dedup();
        assert!((41_000..42_000).contains(&seen.len()), "{}", seen.len());
    }

    #[test]
    fn a_seed_is_not_printed() {
        let seed: CommitmentSeed = "a5".repeat(32).parse().unwrap();
        assert_eq!(format!("{seed:?}"), "CommitmentSeed(..)");
        let text = serde_json::to_string(&seed).unwrap();
        assert_eq!(text, format!("\"{}\"", "a5".repeat(32)));
        assert_eq!(serde_json::from_str::<CommitmentSeed>(&text).unwrap(), seed);
        let error = "a5".repeat(31).parse::<CommitmentSeed>().unwrap_err().to_string();
        assert!(error.contains("62 characters") && !error.contains("a5a5"), "{error}");
    }
}
