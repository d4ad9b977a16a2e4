//! What is encrypted: for each module of the manifest, in its order, the blocks that its commitment hashes, and nothing else.

use zeroize::Zeroizing;
use zklora_circuit::commitment::Opening;
use zklora_proto::{Manifest, ModuleShape};

use crate::error::PackageError;

/// Words of a block, each of eight bytes.
const WORDS: usize = 8;
const BLOCK: usize = 8 * WORDS;
/// Bytes that are turned into words, or words into bytes, at a time.
const PIECE: usize = 64 << 10;

/// Bytes of the whole content, which follow from the manifest's shapes alone.
pub(crate) fn bytes(manifest: &Manifest) -> u64 {
    // Bounded by the shape's limits to some 2^25 each.
    manifest.modules().iter().map(|entry| (BLOCK * Opening::block_count(entry.shape())) as u64).sum()
}

/// Hands over the content piece by piece.
pub(crate) fn write<E>(openings: &[Opening], mut take: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
    let mut piece = Zeroizing::new(Vec::with_capacity(PIECE));
    for opening in openings {
        for block in opening.blocks().map(Zeroizing::new) {
            piece.extend(block.iter().flat_map(|word| word.to_le_bytes()));
            if piece.len() == PIECE {
                take(&piece)?;
                piece.clear();
            }
        }
    }
    take(&piece)
}

/// Reads all modules of a manifest from what `fill` gives.
pub(crate) fn read(
    manifest: &Manifest,
    mut fill: impl FnMut(&mut [u8]) -> Result<(), PackageError>,
) -> Result<Vec<Opening>, PackageError> {
    manifest
        .modules()
        .iter()
        .map(|entry| {
            let blocks = read_blocks(entry.shape(), &mut fill)?;
            Opening::from_blocks(entry.shape(), &blocks)
                .ok_or_else(|| PackageError::Content { module: entry.name().to_owned() })
        })
        .collect()
}

fn read_blocks(
    shape: ModuleShape,
    fill: &mut impl FnMut(&mut [u8]) -> Result<(), PackageError>,
) -> Result<Zeroizing<Vec<[u64; WORDS]>>, PackageError> {
    let count = Opening::block_count(shape);
    // Sized beforehand: growing would leave copies of the weights in freed memory.
    let mut blocks = Zeroizing::new(Vec::with_capacity(count));
    let mut piece = Zeroizing::new([0; BLOCK]);
    for _ in 0..count {
        fill(&mut piece[..])?;
        let mut block = Zeroizing::new([0; WORDS]);
        for (word, bytes) in block.iter_mut().zip(piece.chunks_exact(8)) {
            // Chunks of exactly eight bytes.
            *word = u64::from_le_bytes(bytes.try_into().unwrap());
        }
        blocks.push(*block);
    }
    Ok(blocks)
}
