//! Pads and their commitment.

use plonky2::field::types::{Field, Field64, PrimeField64, Sample};
use rand::CryptoRng;
use zeroize::Zeroize;

use crate::gate::pads::PERMUTATIONS;
use crate::gate::poseidon::{self, WIDTH};
use crate::gate::weight::{CAPACITY, WORDS};
use crate::{E, F};

/// ASCII, big-endian: what the sponge of a commitment to pads starts with.
const DOMAIN: u64 = u64::from_be_bytes(*b"zkloraP1");
/// Messages of one block of the sponge.
pub(super) const MESSAGES_PER_BLOCK: usize = WORDS / 2;

/// Pads, and the salt of their commitment. Secret; wiped when dropped, never printed.
///
/// They are for one transcript: two transcripts under the same pads give both away. So they are consumed by [`prove`](super::prove), and cannot be copied.
pub struct Pads {
    pub(super) salt: [F; WORDS],
    pub(super) values: Vec<E>,
}

impl Pads {
    /// Fresh uniform pads.
    pub fn random(messages: usize, rng: &mut impl CryptoRng) -> Self {
        let salt = [(); WORDS].map(|()| F::sample(rng));
        Self { salt, values: (0..messages).map(|_| E::sample(rng)).collect() }
    }

    /// The pads, in the order of the messages.
    pub fn values(&self) -> &[E] {
        &self.values
    }

    /// The commitment.
    pub fn commitment(&self) -> PadCommitment {
        let (_, capacity) = self.sponge();
        PadCommitment(capacity)
    }

    /// Blocks that are absorbed: the salt, and then the pads, with zeros at the end. A whole number of rows.
    fn blocks(&self) -> Vec<[F; WORDS]> {
        let mut elements: Vec<F> = self.values.iter().flat_map(|pad| pad.0).collect();
        elements.resize((pad_rows(self.values.len()) * PERMUTATIONS - 1) * WORDS, F::ZERO);
        let mut blocks = vec![self.salt];
        blocks.extend(elements.as_chunks::<WORDS>().0);
        elements.iter_mut().for_each(|element| element.0.zeroize());
        blocks
    }

    /// What the rows of pads hold, and what the sponge ends with.
    pub(super) fn sponge(&self) -> (Vec<PadRow>, [F; CAPACITY]) {
        let mut capacity = pad_header(self.values.len());
        let mut blocks = self.blocks();
        let rows = blocks
            .as_chunks::<PERMUTATIONS>()
            .0
            .iter()
            .map(|blocks| {
                let mut row = PadRow { pads: Vec::new(), sboxes: Vec::new(), middle: capacity, capacity };
                for block in blocks {
                    let state: [F; WIDTH] =
                        std::array::from_fn(|i| if i < WORDS { block[i] } else { capacity[i - WORDS] });
                    row.pads.extend(block);
                    let state = poseidon::permute(state, F::from_canonical_u64, |_, input| {
                        row.sboxes.push(input);
                        input
                    });
                    row.middle = capacity;
                    capacity = std::array::from_fn(|i| state[WORDS + i]);
                }
                row.capacity = capacity;
                row
            })
            .collect();
        blocks.iter_mut().flatten().for_each(|element| element.0.zeroize());
        (rows, capacity)
    }
}

impl Drop for Pads {
    fn drop(&mut self) {
        let elements = self.values.iter_mut().flat_map(|pad| &mut pad.0);
        self.salt.iter_mut().chain(elements).for_each(|element| element.0.zeroize());
    }
}

impl std::fmt::Debug for Pads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pads({}, secret)", self.values.len())
    }
}

/// One row of pads. Secret.
pub(super) struct PadRow {
    pub(super) pads: Vec<F>,
    pub(super) sboxes: Vec<F>,
    /// After the first permutation, and after the last.
    pub(super) middle: [F; CAPACITY],
    pub(super) capacity: [F; CAPACITY],
}

impl Drop for PadRow {
    fn drop(&mut self) {
        let elements =
            self.pads.iter_mut().chain(&mut self.sboxes).chain(&mut self.middle).chain(&mut self.capacity);
        elements.for_each(|element| element.0.zeroize());
    }
}

/// The commitment to pads: the last four elements of a Poseidon sponge in overwrite mode that started with domain, number of messages, 0, 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PadCommitment(pub(super) [F; CAPACITY]);

impl PadCommitment {
    /// 32 bytes: canonical elements, little-endian.
    pub fn to_bytes(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (bytes, element) in bytes.chunks_exact_mut(8).zip(self.0) {
            bytes.copy_from_slice(&element.to_canonical_u64().to_le_bytes());
        }
        bytes
    }

    /// The commitment of 32 bytes; `None` unless all elements are canonical.
    pub fn from_bytes(bytes: &[u8; 32]) -> Option<Self> {
        let mut elements = [F::ZERO; CAPACITY];
        for (element, bytes) in elements.iter_mut().zip(bytes.as_chunks::<8>().0) {
            let word = u64::from_le_bytes(*bytes);
            *element = (word < F::ORDER).then(|| F::from_canonical_u64(word))?;
        }
        Some(Self(elements))
    }
}

/// What the sponge of a commitment to pads starts with.
pub(super) fn pad_header(messages: usize) -> [F; CAPACITY] {
    [DOMAIN, messages as u64, 0, 0].map(F::from_canonical_u64)
}

/// Rows of so many pads and the salt.
pub(super) fn pad_rows(messages: usize) -> usize {
    (1 + messages.div_ceil(MESSAGES_PER_BLOCK)).div_ceil(PERMUTATIONS)
}
