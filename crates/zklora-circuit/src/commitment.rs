//! The commitment to a module: `C_m = Poseidon(domain, shape, bits; salt, packed A, packed B)`.
//!
//! Weights are stored as w + 2^11 in 12 bits, five to a word of 60 bits, least significant first, forty to a row of the circuit.
//! A row of A holds `40/g` entries of g columns of A, one column after another, where g is the [`Grid`]'s; a row of B
//! holds 40 entries of one row of B. Padding weights are zero, of an honest contributor: the circuit takes any, and so does an [`Opening`].
//!
//! The hash is a sponge over plonky2's Poseidon permutation (state of 12, rate 8, capacity 4). Its capacity starts as domain and shape,
//! which fix the number of blocks; each block of eight words *overwrites* the rate; the first block is the salt, eight words as any. The
//! commitment is the capacity after the last block, an inner state: two openings of one commitment are an inner collision of
//! the sponge, which is what the sponge's security rests on (G. Bertoni, J. Daemen, M. Peeters, G. Van Assche, "On the
//! indifferentiability of the sponge construction", 2008).

use plonky2::field::types::{Field, PrimeField64};
use plonky2::hash::poseidon::Poseidon;
use rand::CryptoRng;
use zeroize::Zeroize;
use zklora_proto::limits::WEIGHT_BITS;
use zklora_proto::{Commitment, ModuleShape};

use crate::F;
use crate::gate::weight::{BIAS, CAPACITY, Grid, WEIGHTS, WEIGHTS_PER_WORD, WORDS};

/// The first element of every commitment's capacity: ASCII "zkloraC2".
pub const DOMAIN: u64 = u64::from_be_bytes(*b"zkloraC2");

/// A quantised module and all else that is hashed into its commitment: salt and padding. Secret; wiped when dropped, never printed.
pub struct Opening {
    shape: ModuleShape,
    a: Vec<i16>,
    b: Vec<i16>,
    salt: Salt,
    /// Weights beyond the last, biased, in the order of the rows; none if all are zero, as an honest contributor has them.
    padding: Vec<u16>,
}

impl Opening {
    /// A module with A row-major `d_in x rank` and B row-major `rank x d_out`, and zeros for padding. `None` if a length does not
    /// fit the shape or a weight is outside `[-2^11, 2^11)`.
    pub fn new(shape: ModuleShape, a: Vec<i16>, b: Vec<i16>, salt: Salt) -> Option<Self> {
        let opening = Self { shape, a, b, salt, padding: Vec::new() };
        let fits = opening.a.len() == shape.d_in() * shape.rank()
            && opening.b.len() == shape.rank() * shape.d_out()
            && opening.a.iter().chain(&opening.b).all(|&w| (-(BIAS as i16)..BIAS as i16).contains(&w));
        fits.then_some(opening)
    }

    /// The module that is hashed as these blocks: [`Opening::block_count`] of eight words below 2^60 each. Whatever the circuit
    /// admits can be written so, and the other way round. `None` if there are more or fewer, or a word is too large.
    pub fn from_blocks(shape: ModuleShape, blocks: &[[u64; WORDS]]) -> Option<Self> {
        let (salt, rows) = blocks.split_first()?;
        let fits = blocks.len() == Self::block_count(shape) && rows.iter().flatten().all(|&w| w < WORD_BOUND);
        let salt = Salt::from_words(*salt).filter(|_| fits)?;
        let mut opening = Self {
            shape,
            a: vec![0; shape.d_in() * shape.rank()],
            b: vec![0; shape.rank() * shape.d_out()],
            salt,
            padding: Vec::new(),
        };
        for (places, words) in places(shape).zip(rows) {
            for (weight, place) in places.into_iter().enumerate() {
                let word = words[weight / WEIGHTS_PER_WORD];
                let biased =
                    (word >> (weight % WEIGHTS_PER_WORD * WEIGHT_BITS as usize)) as u16 & WEIGHT_MASK;
                match place {
                    Place::A(at) => opening.a[at] = biased as i16 - BIAS as i16,
                    Place::B(at) => opening.b[at] = biased as i16 - BIAS as i16,
                    Place::Padding => opening.padding.push(biased),
                }
            }
        }
        if opening.padding.iter().all(|&biased| u64::from(biased) == BIAS) {
            opening.padding = Vec::new();
        }
        Some(opening)
    }

    /// Blocks that are hashed of a module of this shape: the salt, and one for each row of the circuit.
    pub fn block_count(shape: ModuleShape) -> usize {
        1 + Grid::of(shape).rows_of_a(shape) + shape.rank() * shape.d_out().div_ceil(WEIGHTS)
    }

    /// All that is hashed, in order.
    pub fn blocks(&self) -> impl Iterator<Item = [u64; WORDS]> + '_ {
        std::iter::once(*self.salt.words()).chain(self.rows().map(|row| pack(&row)))
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
        let mut padding = self.padding.iter();
        places(self.shape).map(move |places| {
            places.map(|place| match place {
                Place::A(at) => biased(self.a[at]),
                Place::B(at) => biased(self.b[at]),
                Place::Padding => padding.next().copied().unwrap_or(BIAS as u16),
            })
        })
    }

    /// All weights that are hashed, in their order, the padding included and the salt not: see [`hashed_places`].
    pub fn hashed_weights(&self) -> impl Iterator<Item = i16> + '_ {
        self.rows().flat_map(|row| row.map(|w| w as i16 - BIAS as i16))
    }

    /// The commitment that this opens.
    pub fn commitment(&self) -> Commitment {
        let mut state = Sponge::new(self.shape);
        self.blocks().for_each(|mut block| {
            state.absorb(&block);
            block.zeroize();
        });
        state.commitment()
    }
}

/// What a hashed weight is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// An entry of A, by its index in `d_in x rank`.
    A(usize),
    /// An entry of B, by its index in `rank x d_out`.
    B(usize),
    /// No entry: any number of 12 bits, commonly 0.
    Padding,
}

/// How many weights a commitment hashes after its salt.
pub fn hashed_count(shape: ModuleShape) -> usize {
    (Opening::block_count(shape) - 1) * WEIGHTS
}

/// What the weights are that a commitment hashes after its salt, in their order: 40 for each row of the circuit.
pub fn hashed_places(shape: ModuleShape) -> impl Iterator<Item = Place> {
    places(shape).flatten()
}

/// The places of the weights of each row: rows of A, then rows of B.
fn places(shape: ModuleShape) -> impl Iterator<Item = [Place; WEIGHTS]> {
    let (d_in, rank, d_out, grid) = (shape.d_in(), shape.rank(), shape.d_out(), Grid::of(shape));
    let a = (0..rank).step_by(grid.ranks).flat_map(move |first_rank| {
        (0..d_in).step_by(grid.entries()).map(move |first_entry| {
            std::array::from_fn(|weight| {
                let k = first_rank + weight / grid.entries();
                let i = first_entry + weight % grid.entries();
                if k < rank && i < d_in { Place::A(i * rank + k) } else { Place::Padding }
            })
        })
    });
    let b = (0..rank).flat_map(move |k| {
        (0..d_out).step_by(WEIGHTS).map(move |first| {
            std::array::from_fn(|weight| match first + weight {
                j if j < d_out => Place::B(k * d_out + j),
                _ => Place::Padding,
            })
        })
    });
    a.chain(b)
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.a.zeroize();
        self.b.zeroize();
        self.padding.zeroize();
    }
}

impl std::fmt::Debug for Opening {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Opening({:?}, secret)", self.shape)
    }
}

/// Eight words of 60 bits that hide the weights in a commitment: its first block, and any that the circuit takes.
#[derive(Clone, PartialEq, Eq)]
pub struct Salt([u64; WORDS]);

impl Salt {
    /// A fresh salt: uniform, of 480 bits.
    pub fn random(rng: &mut impl CryptoRng) -> Self {
        Self([(); WORDS].map(|()| rng.next_u64() % WORD_BOUND))
    }

    /// The salt with these words; `None` unless each is below 2^60.
    pub fn from_words(words: [u64; WORDS]) -> Option<Self> {
        words.iter().all(|&word| word < WORD_BOUND).then_some(Self(words))
    }

    /// The words.
    pub fn words(&self) -> &[u64; WORDS] {
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

/// What words are below: five weights of 12 bits.
const WORD_BOUND: u64 = 1 << (WEIGHT_BITS as usize * WEIGHTS_PER_WORD);
const WEIGHT_MASK: u16 = (1 << WEIGHT_BITS) - 1;

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
        Opening::new(shape, a, b, Salt::from_words([salt, 0, 0, 0, 0, 0, 0, 0]).unwrap()).unwrap()
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
    fn whatever_is_hashed_is_an_opening_and_whatever_is_not_is_none() {
        let mut rng = StdRng::seed_from_u64(5);
        for (d_in, rank, d_out) in [(3, 2, 25), (1, 1, 1), (41, 9, 81), (40, 8, 40), (5, 3, 39)] {
            let shape = ModuleShape::new(d_in, rank, d_out).unwrap();
            let count = Opening::block_count(shape);
            // Words that the circuit's digits can make: all of them.
            let blocks: Vec<[u64; WORDS]> = (0..count).map(|_| *Salt::random(&mut rng).words()).collect();
            let opening = Opening::from_blocks(shape, &blocks).unwrap();
            assert_eq!(opening.blocks().collect::<Vec<_>>(), blocks);
            let mut state = Sponge::new(shape);
            blocks.iter().for_each(|block| state.absorb(block));
            assert_eq!(opening.commitment(), state.commitment());

            assert!(Opening::from_blocks(shape, &blocks[1..]).is_none());
            assert!(Opening::from_blocks(shape, &[&blocks[..], &blocks[..1]].concat()).is_none());
            assert!(Opening::from_blocks(shape, &[]).is_none());
            for (block, word) in [(0, 7), (count - 1, 0)] {
                let mut blocks = blocks.clone();
                blocks[block][word] = WORD_BOUND;
                assert!(Opening::from_blocks(shape, &blocks).is_none());
            }

            // With zeros as padding it is what its weights and salt make.
            let (a, b) = (opening.a().to_vec(), opening.b().to_vec());
            let plain = Opening::new(shape, a, b, opening.salt().clone()).unwrap();
            let again = Opening::from_blocks(shape, &plain.blocks().collect::<Vec<_>>()).unwrap();
            assert_eq!(again.commitment(), plain.commitment());
            assert!(again.padding.is_empty());
            assert_eq!(plain.commitment() == opening.commitment(), (d_in, rank, d_out) == (40, 8, 40));
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        assert_eq!(format!("{:?}", Salt::from_words([77; WORDS]).unwrap()), "Salt(secret)");
        assert!(!format!("{:?}", opening(0, |_, _| {})).contains("-49"));
    }
}
