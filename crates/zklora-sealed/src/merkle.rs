//! Merkle trees of BLAKE3 with salted leaves: what is not opened stays hidden, even from someone who guesses it.

use rayon::prelude::*;

use crate::field::F;
use p3_field::PrimeField64;

/// A hash.
pub type Digest = [u8; 32];
/// What is hashed with a leaf: uniform, of 256 bits.
pub type Salt = [u8; 32];

/// Levels below the root that a commitment leaves out: it is a list of up to `2^CAP` hashes, so that paths are shorter by as many.
pub const CAP: usize = 6;

/// A tree over the rows of a matrix.
pub struct Tree {
    /// From the leaves to the cap.
    levels: Vec<Vec<Digest>>,
    salts: Vec<Salt>,
}

impl Tree {
    /// Hashes rows of `width` elements, with a salt each. The number of rows is a power of two.
    pub fn new(rows: &[F], width: usize, salts: Vec<Salt>) -> Self {
        let leaves = rows.par_chunks(width).zip(&salts).map(|(row, salt)| leaf(row, salt)).collect();
        let mut levels: Vec<Vec<Digest>> = vec![leaves];
        while let Some(below) = levels.last().filter(|level| level.len() > 1 << CAP) {
            let above =
                below.par_chunks(2).with_min_len(1 << 8).map(|pair| node(&pair[0], &pair[1])).collect();
            levels.push(above);
        }
        Self { levels, salts }
    }

    /// The commitment.
    pub fn cap(&self) -> Vec<Digest> {
        self.levels.last().cloned().unwrap_or_default()
    }

    /// The salt of a leaf, and the hashes beside its way to the cap.
    pub fn path(&self, position: usize) -> (Salt, Vec<Digest>) {
        let below_cap = &self.levels[..self.levels.len() - 1];
        let path = below_cap.iter().enumerate().map(|(level, hashes)| hashes[position >> level ^ 1]);
        (self.salts[position], path.collect())
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        crate::field::wipe(&mut self.salts);
    }
}

/// Hashes of a cap over `2^height_bits` leaves.
pub fn cap_len(height_bits: usize) -> usize {
    1 << height_bits.min(CAP)
}

/// Hashes of a path in a tree of `2^height_bits` leaves.
pub fn path_len(height_bits: usize) -> usize {
    height_bits.saturating_sub(CAP)
}

/// Whether a row is at this position of the tree with this cap. The caller has checked the path's length and the position.
pub fn verify(cap: &[Digest], position: usize, row: &[F], salt: &Salt, path: &[Digest]) -> bool {
    let mut hash = leaf(row, salt);
    for (level, beside) in path.iter().enumerate() {
        hash = if position >> level & 1 == 0 { node(&hash, beside) } else { node(beside, &hash) };
    }
    cap.get(position >> path.len()) == Some(&hash)
}

fn leaf(row: &[F], salt: &Salt) -> Digest {
    let mut bytes = Vec::with_capacity(32 + 8 * row.len());
    bytes.extend_from_slice(salt);
    bytes.extend(row.iter().flat_map(|x| x.as_canonical_u64().to_le_bytes()));
    *blake3::keyed_hash(LEAF, &bytes).as_bytes()
}

fn node(left: &Digest, right: &Digest) -> Digest {
    let mut bytes = [0; 64];
    bytes[..32].copy_from_slice(left);
    bytes[32..].copy_from_slice(right);
    *blake3::keyed_hash(NODE, &bytes).as_bytes()
}

// Keys of keyed mode, so that no leaf is a node.
const LEAF: &[u8; 32] = b"zklora v1 sealed leaf           ";
const NODE: &[u8; 32] = b"zklora v1 sealed node           ";

#[cfg(test)]
mod tests {
    use p3_field::PrimeCharacteristicRing;

    use super::*;

    #[test]
    fn a_path_shows_one_row_at_one_place_under_one_salt() {
        for height_bits in [0, 3, 6, 9] {
            let (count, width) = (1usize << height_bits, 3);
            let rows: Vec<F> = (0..(count * width) as u64).map(F::from_u64).collect();
            let salts: Vec<Salt> = (0..count).map(|i| [i as u8 & 0x7f; 32]).collect();
            let tree = Tree::new(&rows, width, salts);
            let cap = tree.cap();
            assert_eq!(cap.len(), cap_len(height_bits));
            for position in [0, count / 3, count - 1] {
                let row = &rows[position * width..][..width];
                let (salt, path) = tree.path(position);
                assert_eq!(path.len(), path_len(height_bits));
                assert!(verify(&cap, position, row, &salt, &path));
                assert!(!verify(&cap, position ^ 1, row, &salt, &path) || count == 1);
                assert!(!verify(&cap, position, &[row, &[F::ZERO]].concat(), &salt, &path));
                assert!(!verify(&cap, position, row, &[0xa5; 32], &path));
                for at in 0..path.len() {
                    let mut path = path.clone();
                    path[at][0] ^= 1;
                    assert!(!verify(&cap, position, row, &salt, &path));
                }
            }
        }
    }
}
