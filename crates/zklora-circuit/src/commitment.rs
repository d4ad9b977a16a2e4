//! The commitment to a module: `C_m = Poseidon(domain, shape, bits; salt, packed A, packed B)`.
//!
//! Weights are stored as w + 2^11 in 12 bits, five to a word of 60 bits, least significant first, forty to a row of the circuit.
//! A row of A holds `40/g` entries of g columns of A, one column after another, where g is the [`Grid`]'s; a row of B
//! holds 40 entries of one row of B. Padding weights are zero.
//!
//! The hash is a sponge over plonky2's Poseidon permutation (state of 12, rate 8, capacity 4). Its capacity starts as domain and shape,
//! which fix the number of blocks; each block of eight words *overwrites* the rate; the first block is the salt. The
//! commitment is the capacity after the last block, an inner state: two openings of one commitment are an inner collision of
//! the sponge, which is what the sponge's security rests on (G. Bertoni, J. Daemen, M. Peeters, G. Van Assche, "On the
//! indifferentiability of the sponge construction", 2008).

use plonky2::field::types::{Field, Field64, PrimeField64, Sample};
use plonky2::hash::poseidon::Poseidon;
use rand::CryptoRng;
use zeroize::Zeroize;
use zklora_proto::limits::WEIGHT_BITS;
use zklora_proto::{Commitment, ModuleShape};

use crate::F;
use crate::gate::weight::{BIAS, CAPACITY, Grid, WEIGHTS, WEIGHTS_PER_WORD, WORDS};

/// The first element of every commitment's capacity: ASCII "zkloraC2".
pub const DOMAIN: u64 = u64::from_be_bytes(*b"zkloraC2");

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

    /// What is hashed of the weights: for each row of the circuit, 40 biased weights. Rows of A, then rows of B.
    pub(crate) fn rows(&self) -> impl Iterator<Item = [u16; WEIGHTS]> + '_ {
        let (d_in, rank, d_out) = (self.shape.d_in(), self.shape.rank(), self.shape.d_out());
        let grid = Grid::of(self.shape);
        let a = (0..rank).step_by(grid.ranks).flat_map(move |first_rank| {
            (0..d_in).step_by(grid.entries()).map(move |first_entry| {
                std::array::from_fn(|weight| {
                    let k = first_rank + weight / grid.entries();
                    let i = first_entry + weight % grid.entries();
                    biased(if k < rank && i < d_in { self.a[i * rank + k] } else { 0 })
                })
            })
        });
        let b = self.b.chunks_exact(d_out).flat_map(|row| {
            row.chunks(WEIGHTS).map(|weights| std::array::from_fn(|j| biased(*weights.get(j).unwrap_or(&0))))
        });
        a.chain(b)
    }

    /// The commitment that this opens.
    pub fn commitment(&self) -> Commitment {
        let blocks = std::iter::once(self.salt.words()).chain(self.rows().map(|row| pack(&row)));
        let mut state = Sponge::new(self.shape);
        blocks.for_each(|mut block| {
            state.absorb(&block);
            block.zeroize();
        });
        state.commitment()
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

    /// The sponge's first block: both halves of each element, the low one first.
    pub(crate) fn words(&self) -> [u64; WORDS] {
        std::array::from_fn(|i| self.0[i / 2] >> (32 * (i % 2)) & 0xffff_ffff)
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

/// What the sponge's capacity starts as: domain, shape and bits.
pub(crate) fn header(shape: ModuleShape) -> [u64; CAPACITY] {
    [DOMAIN, shape.d_in() as u64, shape.rank() as u64 | u64::from(WEIGHT_BITS) << 32, shape.d_out() as u64]
}

/// The sponge of a commitment.
struct Sponge([F; WORDS + CAPACITY]);

impl Sponge {
    fn new(shape: ModuleShape) -> Self {
        let mut state = [F::ZERO; WORDS + CAPACITY];
        state[WORDS..].copy_from_slice(&header(shape).map(F::from_canonical_u64));
        Self(state)
    }

    fn absorb(&mut self, block: &[u64; WORDS]) {
        for (element, &word) in self.0.iter_mut().zip(block) {
            *element = F::from_canonical_u64(word);
        }
        self.0 = F::poseidon(self.0);
    }

    fn commitment(&self) -> Commitment {
        let capacity: [F; CAPACITY] = std::array::from_fn(|i| self.0[WORDS + i]);
        // Canonical representatives are below the order.
        Commitment::from_elements(capacity.map(|e| e.to_canonical_u64())).unwrap()
    }
}

impl Drop for Sponge {
    fn drop(&mut self) {
        self.0.iter_mut().for_each(|element| element.0.zeroize());
    }
}

fn biased(weight: i16) -> u16 {
    (weight + BIAS as i16) as u16
}

/// The packed words of one row of biased weights.
pub(crate) fn pack(biased: &[u16; WEIGHTS]) -> [u64; WORDS] {
    std::array::from_fn(|word| {
        let weights = &biased[word * WEIGHTS_PER_WORD..(word + 1) * WEIGHTS_PER_WORD];
        weights.iter().rev().fold(0, |packed, &w| packed << WEIGHT_BITS | u64::from(w))
    })
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
    fn rows_are_parts_of_a_then_rows_of_b() {
        // Eight columns of A, five entries each.
        let opening = opening(0, |_, _| {});
        let rows: Vec<_> = opening.rows().collect();
        assert_eq!(rows.len(), 1 + 2);
        assert_eq!(rows[0][..4], [2048, 2050, 2052, 2048]);
        assert_eq!(rows[0][5..9], [2049, 2051, 2053, 2048]);
        assert_eq!(rows[0][10..], [2048; 30]);
        assert_eq!(rows[2][..3], [2048 - 25, 2048 - 26, 2048 - 27]);
        assert_eq!(rows[2][24..26], [2048 - 49, 2048]);
        let mut row = [0; WEIGHTS];
        row[..6].copy_from_slice(&[1, 2, 0, 0, 0, 3]);
        assert_eq!(pack(&row), [1 + (2 << 12), 3, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_salt_is_a_block() {
        let salt = Salt::from_elements([1 << 32 | 2, 3, 4, 5 << 32]).unwrap();
        assert_eq!(salt.words(), [2, 1, 3, 0, 4, 0, 0, 5]);
    }

    #[test]
    fn debug_shows_no_secret() {
        assert_eq!(format!("{:?}", Salt::from_elements([77; 4]).unwrap()), "Salt(secret)");
        assert!(!format!("{:?}", opening(0, |_, _| {})).contains("-49"));
    }
}
