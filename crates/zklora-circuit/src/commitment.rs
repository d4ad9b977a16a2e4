//! The commitment to a module: `C_m = Poseidon(domain, shape, bits, salt, packed A, packed B)`.
//!
//! Weights are stored as w + 2^11 in 12 bits, five to a word of 60 bits, least significant first. The columns of A come
//! first, then the rows of B, each padded with zero weights to a multiple of 20, so that it fills whole rows of the
//! circuit. The hash is plonky2's Poseidon sponge over the Goldilocks field (rate 8, capacity 4, no padding); the header
//! fixes the number of words, so that no two modules have the same input.

use plonky2::field::types::{Field, Field64, PrimeField64, Sample};
use plonky2::hash::poseidon::PoseidonHash;
use plonky2::plonk::config::Hasher;
use rand::CryptoRng;
use zeroize::{Zeroize, Zeroizing};
use zklora_proto::limits::WEIGHT_BITS;
use zklora_proto::{Commitment, ModuleShape};

use crate::F;
use crate::gate::{BIAS, WEIGHTS, WEIGHTS_PER_WORD, WORDS};

/// The first element of every commitment's input: ASCII "zkloraC1".
pub const DOMAIN: u64 = u64::from_be_bytes(*b"zkloraC1");

/// A quantised module and its salt: everything that opens a commitment. Secret; wiped when dropped, never printed.
pub struct Opening {
    shape: ModuleShape,
    a: Vec<i16>,
    b: Vec<i16>,
    salt: Salt,
}

impl Opening {
    /// A module with A row-major `d_in x rank` and B row-major `rank x d_out`. `None` if a length does not fit the shape or
    /// a weight is outside `[-2^11, 2^11)`.
    pub fn new(shape: ModuleShape, a: Vec<i16>, b: Vec<i16>, salt: Salt) -> Option<Self> {
        let opening = Self { shape, a, b, salt };
        let fits = opening.a.len() == shape.d_in() * shape.rank()
            && opening.b.len() == shape.rank() * shape.d_out()
            && opening.a.iter().chain(&opening.b).all(|&w| (-(BIAS as i16)..BIAS as i16).contains(&w));
        fits.then_some(opening)
    }

    /// Dimensions of A and B.
    pub fn shape(&self) -> ModuleShape {
        self.shape
    }

    /// A, row-major `d_in x rank`.
    pub fn a(&self) -> &[i16] {
        &self.a
    }

    /// B, row-major `rank x d_out`.
    pub fn b(&self) -> &[i16] {
        &self.b
    }

    /// The salt.
    pub fn salt(&self) -> &Salt {
        &self.salt
    }

    /// What is hashed of the weights: for each row of the circuit, 20 biased weights. Columns of A, then rows of B.
    pub(crate) fn rows(&self) -> impl Iterator<Item = [u16; WEIGHTS]> + '_ {
        let (d_in, rank, d_out) = (self.shape.d_in(), self.shape.rank(), self.shape.d_out());
        let row = |weights: &mut dyn Iterator<Item = i16>| {
            let mut biased = [BIAS as u16; WEIGHTS];
            for (slot, weight) in biased.iter_mut().zip(weights) {
                *slot = (weight + BIAS as i16) as u16;
            }
            biased
        };
        let a = (0..rank).flat_map(move |k| {
            (0..d_in).step_by(WEIGHTS).map(move |start| {
                let end = d_in.min(start + WEIGHTS);
                row(&mut (start..end).map(|i| self.a[i * rank + k]))
            })
        });
        let b = (0..rank).flat_map(move |k| {
            (0..d_out).step_by(WEIGHTS).map(move |start| {
                let end = d_out.min(start + WEIGHTS);
                row(&mut self.b[k * d_out + start..k * d_out + end].iter().copied())
            })
        });
        a.chain(b)
    }

    /// The commitment that this opens.
    pub fn commitment(&self) -> Commitment {
        // With room for all of it, so that growing leaves no copies behind.
        let words = 2 * 4 + WORDS * crate::circuit::weight_rows(self.shape);
        let mut input = Zeroizing::new(Vec::with_capacity(words));
        input.extend(header(self.shape));
        input.extend(self.salt.0);
        for row in self.rows() {
            input.extend(pack(&row));
        }
        hash_words(&input)
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.a.zeroize();
        self.b.zeroize();
    }
}

impl std::fmt::Debug for Opening {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Opening({:?}, secret)", self.shape)
    }
}

/// Four uniform field elements that hide the weights in a commitment.
#[derive(Clone, PartialEq, Eq)]
pub struct Salt([u64; 4]);

impl Salt {
    /// A fresh salt.
    pub fn random(rng: &mut impl CryptoRng) -> Self {
        Self([(); 4].map(|()| F::sample(rng).to_canonical_u64()))
    }

    /// The salt with these elements; `None` unless each is below the field's order.
    pub fn from_elements(elements: [u64; 4]) -> Option<Self> {
        elements.iter().all(|&e| e < F::ORDER).then_some(Self(elements))
    }

    /// The elements.
    pub fn elements(&self) -> &[u64; 4] {
        &self.0
    }
}

impl Drop for Salt {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl std::fmt::Debug for Salt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Salt(secret)")
    }
}

/// The first half of the sponge's first block: domain, shape and bits.
pub(crate) fn header(shape: ModuleShape) -> [u64; 4] {
    [DOMAIN, shape.d_in() as u64, shape.rank() as u64 | u64::from(WEIGHT_BITS) << 32, shape.d_out() as u64]
}

/// Poseidon over words that are canonical field elements.
pub(crate) fn hash_words(words: &[u64]) -> Commitment {
    let elements: Vec<F> = words.iter().map(|&word| F::from_canonical_u64(word)).collect();
    let hash = PoseidonHash::hash_no_pad(&elements);
    // Canonical representatives are below the order.
    Commitment::from_elements(hash.elements.map(|e| e.to_canonical_u64())).unwrap()
}

/// The packed words of one row of biased weights.
pub(crate) fn pack(biased: &[u16; WEIGHTS]) -> impl Iterator<Item = u64> + '_ {
    biased
        .chunks_exact(WEIGHTS_PER_WORD)
        .map(|word| word.iter().rev().fold(0, |packed, &w| packed << WEIGHT_BITS | u64::from(w)))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    fn opening(salt: u64, edit: impl FnOnce(&mut Vec<i16>, &mut Vec<i16>)) -> Opening {
        let shape = ModuleShape::new(3, 2, 25).unwrap();
        let mut a = (0..6).collect();
        let mut b = (0..50).map(|i| -i).collect();
        edit(&mut a, &mut b);
        Opening::new(shape, a, b, Salt::from_elements([salt, 0, 0, 0]).unwrap()).unwrap()
    }

    #[test]
    fn every_weight_and_the_salt_are_bound() {
        let reference = opening(0, |_, _| {}).commitment();
        assert_eq!(opening(0, |_, _| {}).commitment(), reference);
        assert_ne!(opening(1, |_, _| {}).commitment(), reference);
        for i in 0..6 {
            assert_ne!(opening(0, |a, _| a[i] += 1).commitment(), reference);
        }
        for i in 0..50 {
            assert_ne!(opening(0, |_, b| b[i] -= 1).commitment(), reference);
        }
    }

    #[test]
    fn weights_out_of_range_do_not_open_anything() {
        let shape = ModuleShape::new(1, 1, 1).unwrap();
        let salt = || Salt::random(&mut StdRng::seed_from_u64(1));
        assert!(Opening::new(shape, vec![2047], vec![-2048], salt()).is_some());
        assert!(Opening::new(shape, vec![2048], vec![0], salt()).is_none());
        assert!(Opening::new(shape, vec![0], vec![-2049], salt()).is_none());
        assert!(Opening::new(shape, vec![0, 0], vec![0], salt()).is_none());
    }

    #[test]
    fn rows_are_columns_of_a_then_rows_of_b() {
        let opening = opening(0, |_, _| {});
        let rows: Vec<_> = opening.rows().collect();
        assert_eq!(rows.len(), 2 + 2 * 2);
        assert_eq!(rows[1][..4], [2049, 2051, 2053, 2048]);
        assert_eq!(rows[3][..6], [2048 - 20, 2048 - 21, 2048 - 22, 2048 - 23, 2048 - 24, 2048]);
        let mut row = [0; WEIGHTS];
        row[..6].copy_from_slice(&[1, 2, 0, 0, 0, 3]);
        assert_eq!(pack(&row).collect::<Vec<_>>(), [1 + (2 << 12), 3, 0, 0]);
    }

    #[test]
    fn debug_shows_no_secret() {
        assert_eq!(format!("{:?}", Salt::from_elements([77; 4]).unwrap()), "Salt(secret)");
        assert!(!format!("{:?}", opening(0, |_, _| {})).contains("-49"));
    }
}
