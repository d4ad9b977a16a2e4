//! What is encrypted: for each module of the manifest, in its order, salt, A and B, and nothing else.

use zeroize::{Zeroize, Zeroizing};
use zklora_circuit::commitment::{Opening, Salt};
use zklora_proto::{Manifest, ModuleShape};

use crate::package::PackageError;

const SALT: usize = 32;
/// Bytes that are turned into weights, or weights into bytes, at a time.
const PIECE: usize = 64 << 10;

/// Bytes of the whole content, which follow from the manifest's shapes alone.
pub(crate) fn bytes(manifest: &Manifest) -> u64 {
    manifest.modules().iter().map(|entry| module_bytes(entry.shape())).sum()
}

fn module_bytes(shape: ModuleShape) -> u64 {
    // Bounded by the shape's limits to some 2^26.
    (SALT + 2 * (shape.d_in() * shape.rank() + shape.rank() * shape.d_out())) as u64
}

/// Hands over the content piece by piece.
pub(crate) fn write<E>(openings: &[Opening], mut take: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
    let mut piece = Zeroizing::new(Vec::with_capacity(PIECE));
    for opening in openings {
        piece.extend(opening.salt().elements().iter().flat_map(|element| element.to_le_bytes()));
        take(&piece)?;
        piece.clear();
        for weights in opening.a().chunks(PIECE / 2).chain(opening.b().chunks(PIECE / 2)) {
            piece.extend(weights.iter().flat_map(|weight| weight.to_le_bytes()));
            take(&piece)?;
            piece.clear();
        }
    }
    Ok(())
}

/// Reads all modules of a manifest from what `fill` gives.
pub(crate) fn read(
    manifest: &Manifest,
    mut fill: impl FnMut(&mut [u8]) -> Result<(), PackageError>,
) -> Result<Vec<Opening>, PackageError> {
    let mut piece = Zeroizing::new(vec![0; PIECE]);
    let mut openings = Vec::with_capacity(manifest.modules().len());
    for entry in manifest.modules() {
        let shape = entry.shape();
        let refuse = |what| PackageError::Content { module: entry.name().to_owned(), what };
        fill(&mut piece[..SALT])?;
        let mut elements = [0; 4];
        for (element, bytes) in elements.iter_mut().zip(piece[..SALT].chunks_exact(8)) {
            // Chunks of exactly eight bytes.
            *element = u64::from_le_bytes(bytes.try_into().unwrap());
        }
        let salt = Salt::from_elements(elements);
        elements.zeroize();
        let salt =
            salt.ok_or_else(|| refuse("its salt has an element that is not below the field's order"))?;
        let mut weights = |count: usize| {
            // Sized beforehand: growing would leave copies of the weights in freed memory.
            let mut weights = Zeroizing::new(Vec::with_capacity(count));
            while weights.len() < count {
                let bytes = PIECE.min(2 * (count - weights.len()));
                fill(&mut piece[..bytes])?;
                weights.extend(piece[..bytes].chunks_exact(2).map(|w| i16::from_le_bytes([w[0], w[1]])));
            }
            Ok::<_, PackageError>(std::mem::take(&mut *weights))
        };
        let (a, b) = (weights(shape.d_in() * shape.rank())?, weights(shape.rank() * shape.d_out())?);
        let opening = Opening::new(shape, a, b, salt)
            .ok_or_else(|| refuse("a weight of it is outside [-2^11, 2^11)"))?;
        openings.push(opening);
    }
    Ok(openings)
}
