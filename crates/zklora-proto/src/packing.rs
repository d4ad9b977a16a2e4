//! Integers as bytes: activations as int16, deltas in the fewest bytes that hold them, both little-endian and row-major.

/// Deltas packed to `width` bytes each, little-endian two's complement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedDeltas {
    /// Bytes of each entry, 1 to 8: the fewest that hold every entry.
    pub width: u8,
    /// `width` bytes for each entry, in order.
    pub bytes: Vec<u8>,
}

/// Packed deltas that are not what [`pack_deltas`] makes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PackingError {
    /// A width outside 1 to 8.
    #[error("deltas of {0} bytes each, expected 1 to 8")]
    Width(u8),
    /// Bytes and entries do not agree.
    #[error("{found} bytes, expected {expected}")]
    Length {
        /// Bytes there should be.
        expected: usize,
        /// Bytes there are.
        found: usize,
    },
    /// Every entry would fit in fewer bytes, so this is a second encoding of the same deltas.
    #[error("deltas of {found} bytes each that all fit in {expected}")]
    NotMinimal {
        /// The width found.
        found: u8,
        /// The fewest bytes that hold every entry.
        expected: u8,
    },
}

/// Packs deltas to the fewest bytes that hold the largest of them.
pub fn pack_deltas(deltas: &[i64]) -> PackedDeltas {
    let width = width_of(magnitude(deltas));
    let bytes = match width {
        1 => pack::<1>(deltas),
        2 => pack::<2>(deltas),
        3 => pack::<3>(deltas),
        4 => pack::<4>(deltas),
        5 => pack::<5>(deltas),
        6 => pack::<6>(deltas),
        7 => pack::<7>(deltas),
        _ => pack::<8>(deltas),
    };
    PackedDeltas { width, bytes }
}

/// Unpacks exactly `entries` deltas; refuses any encoding but the one that [`pack_deltas`] makes.
pub fn unpack_deltas(width: u8, bytes: &[u8], entries: usize) -> Result<Vec<i64>, PackingError> {
    let unpack = match width {
        1 => unpack::<1>,
        2 => unpack::<2>,
        3 => unpack::<3>,
        4 => unpack::<4>,
        5 => unpack::<5>,
        6 => unpack::<6>,
        7 => unpack::<7>,
        8 => unpack::<8>,
        _ => return Err(PackingError::Width(width)),
    };
    let size = usize::from(width);
    if entries.checked_mul(size) != Some(bytes.len()) {
        return Err(PackingError::Length { expected: entries.saturating_mul(size), found: bytes.len() });
    }
    let deltas = unpack(bytes);
    check_width(width, &deltas)?;
    Ok(deltas)
}

/// Whether these deltas take `width` bytes each and no fewer.
pub(crate) fn check_width(width: u8, deltas: &[i64]) -> Result<(), PackingError> {
    match width_of(magnitude(deltas)) {
        expected if expected == width => Ok(()),
        expected => Err(PackingError::NotMinimal { found: width, expected }),
    }
}

/// Activations as bytes, two each.
pub fn activations_to_bytes(activations: &[i16]) -> Vec<u8> {
    activations.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// Activations from bytes; `None` if the bytes are not exactly `entries` of them or one is -2^15, which has no negative.
pub fn activations_from_bytes(bytes: &[u8], entries: usize) -> Option<Vec<i16>> {
    if entries.checked_mul(2) != Some(bytes.len()) {
        return None;
    }
    let activations: Vec<i16> =
        bytes.chunks_exact(2).map(|pair| i16::from_le_bytes([pair[0], pair[1]])).collect();
    (!activations.contains(&i16::MIN)).then_some(activations)
}

/// The low `N` bytes of each. The size is known to the compiler, for which one that is not makes a call of every copy.
fn pack<const N: usize>(deltas: &[i64]) -> Vec<u8> {
    let mut bytes = vec![0; deltas.len() * N];
    for (bytes, delta) in bytes.chunks_exact_mut(N).zip(deltas) {
        bytes.copy_from_slice(&delta.to_le_bytes()[..N]);
    }
    bytes
}

fn unpack<const N: usize>(bytes: &[u8]) -> Vec<i64> {
    let shift = 64 - 8 * N as u32;
    let entry = |entry: &[u8]| {
        let mut word = [0; 8];
        word[..N].copy_from_slice(entry);
        // Shifting up and arithmetically down again extends the sign.
        (i64::from_le_bytes(word) << shift) >> shift
    };
    bytes.chunks_exact(N).map(entry).collect()
}

/// Every bit that one of the entries needs beside its sign: for x >= 0 those of x, for x < 0 those of -x - 1.
fn magnitude(deltas: &[i64]) -> u64 {
    deltas.iter().fold(0, |bits, &x| bits | (x ^ (x >> 63)) as u64)
}

/// The fewest bytes, at least 1, that hold entries of this magnitude in two's complement.
fn width_of(magnitude: u64) -> u8 {
    let bits = 64 - magnitude.leading_zeros() + 1;
    bits.div_ceil(8).max(1) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn widths_at_the_edges() {
        for (value, width) in [(0, 1), (127, 1), (128, 2), (-128, 1), (-129, 2), (i64::MAX, 8), (i64::MIN, 8)]
        {
            assert_eq!(pack_deltas(&[value]).width, width, "{value}");
        }
        assert_eq!(pack_deltas(&[]).width, 1);
    }

    #[test]
    fn a_wider_encoding_is_refused() {
        assert_eq!(unpack_deltas(2, &[1, 0], 1), Err(PackingError::NotMinimal { found: 2, expected: 1 }));
        assert_eq!(unpack_deltas(0, &[], 0), Err(PackingError::Width(0)));
        assert_eq!(unpack_deltas(9, &[0; 9], 1), Err(PackingError::Width(9)));
        assert!(unpack_deltas(8, &[0; 9], usize::MAX).is_err());
    }

    proptest! {
        #[test]
        fn deltas_round_trip(deltas: Vec<i64>, shift in 0u32..63) {
            let deltas: Vec<i64> = deltas.into_iter().map(|x| x >> shift).collect();
            let packed = pack_deltas(&deltas);
            prop_assert_eq!(unpack_deltas(packed.width, &packed.bytes, deltas.len()), Ok(deltas));
        }
    }

    #[test]
    fn activations_round_trip_and_refuse_the_asymmetric_value() {
        let x = vec![i16::MAX, -i16::MAX, 0, 1];
        assert_eq!(activations_from_bytes(&activations_to_bytes(&x), 4), Some(x));
        assert_eq!(activations_from_bytes(&activations_to_bytes(&[i16::MIN]), 1), None);
        assert_eq!(activations_from_bytes(&[0; 3], 1), None);
    }
}
