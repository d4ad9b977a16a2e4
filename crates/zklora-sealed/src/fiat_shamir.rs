//! Challenges from what has been said: a chain of BLAKE3.

use p3_field::PrimeCharacteristicRing;

use crate::field::{E, F, ORDER, coordinates, extension};

/// Everything that was absorbed so far, as 32 bytes.
///
/// Absorbing: `state' = BLAKE3(state ‖ 0 ‖ length of label (u8) ‖ label ‖ length (u64) ‖ bytes)`; a challenge:
/// `BLAKE3(state ‖ 1 ‖ length of label ‖ label)` is a stream, whose first 32 bytes are the new state, and then eight bytes an element, little-endian,
/// where values not below p are skipped. Hashes are in key-derivation mode, with the context `zklora v1 sealed transcript`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FiatShamir([u8; 32]);

impl FiatShamir {
    /// The state before anything was said.
    pub fn new() -> Self {
        Self([0; 32])
    }

    /// The state.
    pub fn state(&self) -> [u8; 32] {
        self.0
    }

    /// Absorbs bytes.
    pub fn absorb(&mut self, label: &'static str, bytes: &[u8]) {
        let mut hasher = self.step(0, label);
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
        self.0 = *hasher.finalize().as_bytes();
    }

    /// Absorbs elements, 16 bytes each.
    pub fn absorb_elements(&mut self, label: &'static str, elements: &[E]) {
        let bytes: Vec<u8> =
            elements.iter().flat_map(|&x| coordinates(x)).flat_map(u64::to_le_bytes).collect();
        self.absorb(label, &bytes);
    }

    /// A uniform element of the extension.
    pub fn challenge(&mut self, label: &'static str) -> E {
        let mut stream = self.stream(label);
        let mut element = || loop {
            let mut bytes = [0; 8];
            stream.fill(&mut bytes);
            let word = u64::from_le_bytes(bytes);
            if word < ORDER {
                return F::from_u64(word);
            }
        };
        let first = element();
        extension(first, element())
    }

    /// `count` uniform elements.
    pub fn challenges(&mut self, label: &'static str, count: usize) -> Vec<E> {
        (0..count).map(|_| self.challenge(label)).collect()
    }

    /// Different uniform numbers below `2^bits`, at most all of them, in the order in which they were drawn.
    pub fn positions(&mut self, label: &'static str, bits: usize, count: usize) -> Vec<usize> {
        let mut stream = self.stream(label);
        let mut seen = vec![false; 1 << bits];
        let mut positions = Vec::with_capacity(count);
        while positions.len() < count.min(1 << bits) {
            let mut bytes = [0; 4];
            stream.fill(&mut bytes);
            let position = u32::from_le_bytes(bytes) as usize & ((1 << bits) - 1);
            if !std::mem::replace(&mut seen[position], true) {
                positions.push(position);
            }
        }
        positions
    }

    /// Whether a nonce makes a hash of the state with so many zero bits in front.
    pub fn grinds(&self, label: &'static str, bits: u32, nonce: u64) -> bool {
        let mut hasher = self.step(2, label);
        hasher.update(&nonce.to_le_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        u64::from_be_bytes(first).leading_zeros() >= bits
    }

    fn stream(&mut self, label: &'static str) -> blake3::OutputReader {
        let mut stream = self.step(1, label).finalize_xof();
        stream.fill(&mut self.0);
        stream
    }

    fn step(&self, kind: u8, label: &'static str) -> blake3::Hasher {
        let mut hasher = blake3::Hasher::new_derive_key("zklora v1 sealed transcript");
        hasher.update(&self.0);
        hasher.update(&[kind, label.len() as u8]);
        hasher.update(label.as_bytes());
        hasher
    }
}

impl Default for FiatShamir {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_said_and_its_place_decide_a_challenge() {
        let challenge = |edit: &dyn Fn(&mut FiatShamir)| {
            let mut fs = FiatShamir::new();
            edit(&mut fs);
            fs.challenge("c")
        };
        let all = [
            challenge(&|_| ()),
            challenge(&|fs| fs.absorb("a", b"")),
            challenge(&|fs| fs.absorb("a", b"x")),
            challenge(&|fs| fs.absorb("b", b"x")),
            challenge(&|fs| {
                fs.absorb("a", b"x");
                fs.absorb("a", b"");
            }),
            challenge(&|fs| {
                let _ = fs.challenge("c");
            }),
            challenge(&|fs| {
                let _ = fs.challenge("d");
            }),
            challenge(&|fs| fs.absorb_elements("a", &[E::ONE])),
        ];
        for (i, a) in all.iter().enumerate() {
            assert!(all[..i].iter().all(|b| a != b), "{i}");
        }
    }

    #[test]
    fn positions_are_different_and_end() {
        let mut fs = FiatShamir::new();
        let mut positions = fs.positions("p", 4, 100);
        positions.sort_unstable();
        assert_eq!(positions, (0..16).collect::<Vec<_>>());
        let some = fs.positions("p", 20, 300);
        assert_eq!(some.len(), 300);
        assert!(some.iter().all(|&p| p < 1 << 20));
    }

    #[test]
    fn a_nonce_is_for_one_state() {
        let mut fs = FiatShamir::new();
        let nonce = (0..).find(|&nonce| fs.grinds("g", 8, nonce)).unwrap();
        assert!(fs.grinds("g", 0, nonce));
        fs.absorb("a", b"x");
        let others = (0..64).filter(|i| fs.grinds("g", 8, nonce + i)).count();
        assert!(others < 8);
    }
}
