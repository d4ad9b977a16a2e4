//! Rank of what was answered, row by row, over a prime field.
//!
//! Rows of integers that are independent modulo a prime are independent over the rationals. The converse fails only if the prime
//! divides certain minors. For rows that do not know the prime this has negligible probability; somebody who knew it could
//! look for rows whose minors it divides, and have them answered uncounted. So the prime is drawn at random and kept secret.

use std::collections::HashMap;
use std::ops::Range;

use rand::{CryptoRng, RngExt};

/// Primes are drawn from here: products of two residues are below 2^44.
const PRIMES: Range<u32> = 1 << 21..1 << 22;
/// Rows that are in reduced form among themselves, and are subtracted together before a reduction: their products add up to less
/// than 2^50, which an `f64` holds exactly.
const BLOCK: usize = 32;
/// Rows that are taken from together, so that each of their sums is loaded once.
const LANES: usize = 4;
/// Columns that are worked on at once, so that they stay in the cache for all rows.
const TILE: usize = 256;
/// Entries by which a row is looked up among those that were seen.
const PREFIX: usize = 32;

/// A secret prime of 22 bits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Prime(u32);

impl Prime {
    /// A random one.
    pub fn random(rng: &mut impl CryptoRng) -> Self {
        loop {
            if let Some(prime) = Self::new(rng.random_range(PRIMES)) {
                return prime;
            }
        }
    }

    /// The prime of this value; `None` if it is none or out of range.
    pub fn new(value: u32) -> Option<Self> {
        let is_prime = PRIMES.contains(&value)
            && (2..).take_while(|d| d * d <= value).all(|divisor| !value.is_multiple_of(divisor));
        is_prime.then_some(Self(value))
    }

    /// Its value.
    pub const fn value(self) -> u32 {
        self.0
    }

    fn residue(self, x: i16) -> f64 {
        let x = f64::from(x);
        if x < 0.0 { x + f64::from(self.0) } else { x }
    }

    /// The residues of integers of magnitude below 2^51, in place.
    fn reduce(self, values: &mut [f64]) {
        /// Added and taken off again, it rounds to the nearest integer what is of magnitude below 2^51.
        const ROUND: f64 = 1.5 * (1u64 << 52) as f64;
        let p = f64::from(self.0);
        let inverse = 1.0 / p;
        for value in values {
            // The quotient may be off by little more than a half; all else is exact.
            let quotient = (*value * inverse + ROUND) - ROUND;
            let rest = *value - quotient * p;
            *value = if rest < 0.0 { rest + p } else { rest };
        }
    }

    fn multiply(self, x: u32, y: u32) -> u32 {
        (u64::from(x) * u64::from(y) % u64::from(self.0)) as u32
    }

    /// The inverse of a residue that is not zero, by Fermat's little theorem.
    fn inverse(self, x: u32) -> u32 {
        let (mut result, mut power, mut exponent) = (1, x, self.0 - 2);
        while exponent > 0 {
            if exponent & 1 == 1 {
                result = self.multiply(result, power);
            }
            power = self.multiply(power, power);
            exponent >>= 1;
        }
        result
    }
}

impl std::fmt::Debug for Prime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Prime(secret)")
    }
}

/// The space that rows of one module span, in echelon form by blocks.
#[derive(Debug, Clone)]
pub struct Basis {
    prime: Prime,
    width: usize,
    /// A block's rows are zero at the pivots of all blocks before it.
    blocks: Vec<Block>,
    /// Rows that were added, by their first entries: who asks for a text again is answered without arithmetic. No more than
    /// there are rows in the blocks.
    seen: HashMap<Box<[i16]>, Box<[i16]>>,
}

/// Rows that would be added to a [`Basis`].
#[derive(Debug, Clone)]
pub struct Addition {
    blocks: Vec<Block>,
    rows: Vec<Box<[i16]>>,
    /// Which of the rows that were asked about are independent of the basis and of those before them.
    pub independent: Vec<usize>,
}

impl Basis {
    /// The space of no rows, of this width.
    pub fn new(prime: Prime, width: usize) -> Self {
        Self { prime, width, blocks: Vec::new(), seen: HashMap::new() }
    }

    /// Length of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Dimension of the space.
    pub fn rank(&self) -> usize {
        self.blocks.iter().map(Block::rank).sum()
    }

    /// What these rows would add, row-major `rows x width`. The basis stays as it is.
    pub fn consider(&self, rows: &[i16]) -> Addition {
        let mut addition = Addition { blocks: Vec::new(), rows: Vec::new(), independent: Vec::new() };
        let unseen: Vec<(usize, &[i16])> =
            rows.chunks_exact(self.width).enumerate().filter(|(_, row)| !self.has_seen(row)).collect();
        for batch in unseen.chunks(BLOCK) {
            let mut residues: Vec<f64> =
                batch.iter().flat_map(|(_, row)| row.iter()).map(|&x| self.prime.residue(x)).collect();
            for block in self.blocks.iter().chain(&addition.blocks) {
                block.clear(&mut residues);
            }
            let mut fresh = Block { prime: self.prime, width: self.width, pivots: vec![], entries: vec![] };
            for place in fresh.eliminate(&mut residues) {
                let (index, row) = batch[place];
                addition.independent.push(index);
                addition.rows.push(row.into());
            }
            if fresh.rank() > 0 {
                addition.blocks.push(fresh);
            }
        }
        addition
    }

    /// Adds what [`Basis::consider`] gave, if nothing was added in between.
    pub fn add(&mut self, addition: Addition) {
        for block in addition.blocks {
            match self.blocks.last_mut() {
                Some(last) if last.rank() + block.rank() <= BLOCK => last.append(block),
                _ => self.blocks.push(block),
            }
        }
        for row in addition.rows {
            self.seen.insert(prefix(&row).into(), row);
        }
    }

    fn has_seen(&self, row: &[i16]) -> bool {
        self.seen.get(prefix(row)).is_some_and(|seen| **seen == *row)
    }
}

fn prefix(row: &[i16]) -> &[i16] {
    &row[..row.len().min(PREFIX)]
}

/// At most [`BLOCK`] rows, each 1 at its pivot, where all others are 0.
#[derive(Debug, Clone)]
struct Block {
    prime: Prime,
    width: usize,
    pivots: Vec<usize>,
    /// Residues, row-major. Signed, because that is what processors convert to floats fast.
    entries: Vec<i32>,
}

impl Block {
    fn rank(&self) -> usize {
        self.pivots.len()
    }

    /// Makes rows of residues zero at this block's pivots, by taking multiples of its rows from them.
    fn clear(&self, rows: &mut [f64]) {
        // No row of a block changes what stands at the pivots of another, so all factors are known beforehand.
        let count = rows.len() / self.width;
        let mut factors: Vec<[f64; LANES]> = Vec::with_capacity(count * self.rank().div_ceil(LANES));
        for pivots in self.pivots.chunks(LANES) {
            for row in rows.chunks_exact(self.width) {
                let mut lanes = [0.0; LANES];
                lanes.iter_mut().zip(pivots).for_each(|(factor, &pivot)| *factor = row[pivot]);
                factors.push(lanes);
            }
        }
        if factors.iter().flatten().all(|&factor| factor == 0.0) {
            return;
        }
        let mut known = [[0.0; TILE]; LANES];
        for from in (0..self.width).step_by(TILE) {
            let tile = from..self.width.min(from + TILE);
            for (lanes, factors) in self.entries.chunks(LANES * self.width).zip(factors.chunks(count)) {
                for (known, row) in known.iter_mut().zip(lanes.chunks_exact(self.width)) {
                    known.iter_mut().zip(&row[tile.clone()]).for_each(|(x, &entry)| *x = f64::from(entry));
                }
                for (factors, row) in factors.iter().zip(rows.chunks_exact_mut(self.width)) {
                    subtract(&mut row[tile.clone()], factors, &known);
                }
            }
            for row in rows.chunks_exact_mut(self.width) {
                self.prime.reduce(&mut row[tile.clone()]);
            }
        }
    }

    /// Fills this empty block with at most [`BLOCK`] rows of residues, by elimination (Gauss and Jordan), and gives the places of those
    /// that are independent of the rows before them.
    fn eliminate(&mut self, rows: &mut [f64]) -> Vec<usize> {
        let mut independent = Vec::new();
        for place in 0..rows.len() / self.width {
            let (before, rest) = rows.split_at_mut(place * self.width);
            let (row, after) = rest.split_at_mut(self.width);
            // Until here, at most BLOCK products were taken from it.
            self.prime.reduce(row);
            let Some(pivot) = row.iter().position(|&entry| entry != 0.0) else { continue };
            let inverse = f64::from(self.prime.inverse(row[pivot] as u32));
            row.iter_mut().for_each(|entry| *entry *= inverse);
            self.prime.reduce(row);
            for other in before.chunks_exact_mut(self.width).chain(after.chunks_exact_mut(self.width)) {
                self.prime.reduce(&mut other[pivot..=pivot]);
                let factor = other[pivot];
                if factor != 0.0 {
                    other.iter_mut().zip(&*row).for_each(|(other, &entry)| *other -= factor * entry);
                }
            }
            self.pivots.push(pivot);
            independent.push(place);
        }
        for &place in &independent {
            let row = &mut rows[place * self.width..(place + 1) * self.width];
            self.prime.reduce(row);
            self.entries.extend(row.iter().map(|&entry| entry as i32));
        }
        independent
    }

    /// Takes in a block whose rows were cleared by this one.
    fn append(&mut self, other: Self) {
        let mut rows: Vec<f64> = self.entries.iter().map(|&entry| f64::from(entry)).collect();
        other.clear(&mut rows);
        self.entries.clear();
        self.entries.extend(rows.into_iter().map(|entry| entry as i32));
        self.entries.extend(other.entries);
        self.pivots.extend(other.pivots);
    }
}

/// `sums - Σ factor·row`, entry by entry. Rows may be longer.
fn subtract(sums: &mut [f64], factors: &[f64; LANES], rows: &[[f64; TILE]; LANES]) {
    let [a, b, c, d] = factors;
    let [w, x, y, z] = rows;
    for ((((sum, w), x), y), z) in sums.iter_mut().zip(w).zip(x).zip(y).zip(z) {
        *sum -= (a * w + b * x) + (c * y + d * z);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    fn prime() -> Prime {
        Prime::random(&mut StdRng::seed_from_u64(5))
    }

    fn rank(rows: &[i16], width: usize, at_once: usize) -> usize {
        let mut basis = Basis::new(prime(), width);
        for rows in rows.chunks(width * at_once) {
            let addition = basis.consider(rows);
            basis.add(addition);
        }
        basis.rank()
    }

    #[test]
    fn primes_are_prime() {
        assert!(Prime::new(2_097_169).is_some());
        // 1,447 · 1,451; an even number; too small; too large.
        for value in [2_099_597, 2_097_170, 65_537, 4_194_319] {
            assert_eq!(Prime::new(value), None, "{value}");
        }
        assert_eq!(format!("{:?}", prime()), "Prime(secret)");
        let p = prime();
        for x in [1, 2, 77, p.value() - 1] {
            assert_eq!(p.multiply(x, p.inverse(x)), 1);
        }
    }

    #[test]
    fn repeated_and_dependent_rows_do_not_count() {
        let mut basis = Basis::new(prime(), 3);
        let mut add = |rows: &[i16]| {
            let addition = basis.consider(rows);
            let independent = addition.independent.clone();
            basis.add(addition);
            independent
        };
        assert_eq!(add(&[0, 0, 0]), [0; 0]);
        assert_eq!(add(&[1, 2, 3, 2, 4, 6, 0, 0, 1]), [0, 2]);
        assert_eq!(add(&[3, 6, -32767]), [0; 0]);
        assert_eq!(add(&[1, 2, 0, 0, 5, 0]), [1]);
        assert_eq!(add(&[32767, -32767, 1]), [0; 0]);
        assert_eq!(basis.rank(), 3);
    }

    #[test]
    fn many_extreme_rows_add_up_exactly() {
        // Many blocks; the last half is sums of the first.
        let width = 700;
        let mut rows: Vec<Vec<i16>> = (0..300)
            .map(|i| (0..width).map(|j| if j >= i { 32767 - (i * j % 7) as i16 } else { -32767 }).collect())
            .collect();
        let sums: Vec<Vec<i16>> = rows
            .windows(2)
            .map(|pair| pair[0].iter().zip(&pair[1]).map(|(a, b)| a.wrapping_sub(*b) / 2).collect())
            .collect();
        let independent = rows.len();
        let exact = |row: &Vec<i16>, pair: &[Vec<i16>]| {
            row.iter()
                .zip(&pair[0])
                .zip(&pair[1])
                .all(|((s, a), b)| 2 * i32::from(*s) == i32::from(*a) - i32::from(*b))
        };
        let dependent: Vec<Vec<i16>> = sums
            .iter()
            .zip(rows.windows(2))
            .filter(|(s, pair)| exact(s, pair))
            .map(|(s, _)| s.clone())
            .collect();
        assert!(rank(&rows.concat(), width, 300) == independent);
        rows.extend(dependent);
        assert_eq!(rank(&rows.concat(), width, 7), independent);
    }

    #[test]
    fn reduction_is_exact_to_its_bound() {
        let p = prime();
        let exact = |value: i64| value.rem_euclid(p.value().into()) as f64;
        let largest = -(BLOCK as i64) * i64::from(p.value() - 1) * i64::from(p.value() - 1);
        for near in [0, i64::from(p.value()), largest, largest / 3, 1 << 44] {
            for value in (-3..=3).flat_map(|i| [near + i, near + i * i64::from(p.value()) / 2]) {
                let mut reduced = [value as f64];
                p.reduce(&mut reduced);
                assert_eq!(reduced[0], exact(value), "{value}");
            }
        }
    }

    #[test]
    fn rows_that_only_begin_alike_are_told_apart() {
        let width = PREFIX + 2;
        let row = |entries: [i16; 2]| [vec![1; PREFIX], entries.to_vec()].concat();
        let mut basis = Basis::new(prime(), width);
        for (entries, expected) in
            [([1, 0], 1), ([1, 0], 1), ([0, 1], 2), ([1, 0], 2), ([2, 5], 3), ([0, 1], 3)]
        {
            let addition = basis.consider(&row(entries));
            basis.add(addition);
            assert_eq!(basis.rank(), expected, "{entries:?}");
        }
    }

    proptest! {
        #[test]
        fn the_independent_rows_are_those_of_plain_elimination(
            seed: u64, width in 1usize..300, count in 1usize..120, at_once in 1usize..70,
        ) {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut rows: Vec<Vec<i16>> = Vec::new();
            for _ in 0..count {
                let row = match rng.random_range(0..4) {
                    // Seen before, or a difference of two that were.
                    0 if !rows.is_empty() => rows[rng.random_range(0..rows.len())].clone(),
                    1 if !rows.is_empty() => {
                        let (a, b) = (rng.random_range(0..rows.len()), rng.random_range(0..rows.len()));
                        let half = |x: i16| x / 4 * 2;
                        rows[a].iter().zip(&rows[b]).map(|(&a, &b)| half(a) - half(b)).collect()
                    }
                    2 => (0..width).map(|_| if rng.random() { i16::MAX } else { -i16::MAX }).collect(),
                    _ => (0..width).map(|_| rng.random_range(-i16::MAX..=i16::MAX)).collect(),
                };
                rows.push(row);
            }
            let mut basis = Basis::new(prime(), width);
            let mut found = Vec::new();
            for (batch, rows) in rows.chunks(at_once).enumerate() {
                let addition = basis.consider(&rows.concat());
                found.extend(addition.independent.iter().map(|index| batch * at_once + index));
                basis.add(addition);
            }
            prop_assert_eq!(basis.rank(), found.len());
            prop_assert_eq!(found, plainly_independent(prime(), &rows));
        }

        #[test]
        fn rank_is_that_of_gauss_elimination_over_the_rationals(
            rows in proptest::collection::vec(proptest::collection::vec(-3i16..4, 5), 0..9),
            at_once in 1usize..4,
        ) {
            prop_assert_eq!(rank(&rows.concat(), 5, at_once), rational_rank(&rows));
        }
    }

    /// Elimination modulo a prime, one row and one entry at a time.
    fn plainly_independent(prime: Prime, rows: &[Vec<i16>]) -> Vec<usize> {
        let p = u64::from(prime.value());
        let mut known: Vec<(usize, Vec<u64>)> = Vec::new();
        let mut independent = Vec::new();
        for (index, row) in rows.iter().enumerate() {
            let mut row: Vec<u64> = row.iter().map(|&x| i64::from(x).rem_euclid(p as i64) as u64).collect();
            for (pivot, by) in &known {
                let factor = p - row[*pivot];
                row.iter_mut().zip(by).for_each(|(x, by)| *x = (*x + factor * by) % p);
            }
            let Some(pivot) = row.iter().position(|&x| x != 0) else { continue };
            let inverse = u64::from(prime.inverse(row[pivot] as u32));
            row.iter_mut().for_each(|x| *x = *x * inverse % p);
            known.push((pivot, row));
            independent.push(index);
        }
        independent
    }

    /// Fraction-free elimination (E. Bareiss, 1968), exact in `i128` for small entries.
    fn rational_rank(rows: &[Vec<i16>]) -> usize {
        let mut rows: Vec<Vec<i128>> = rows.iter().map(|r| r.iter().map(|&x| x.into()).collect()).collect();
        let (mut rank, mut last) = (0, 1);
        for column in 0..5 {
            let Some(pivot) = (rank..rows.len()).find(|&row| rows[row][column] != 0) else { continue };
            rows.swap(rank, pivot);
            let (done, rest) = rows.split_at_mut(rank + 1);
            let top = &done[rank];
            for row in rest {
                let factor = row[column];
                for (entry, above) in row.iter_mut().zip(top) {
                    *entry = (*entry * top[column] - factor * above) / last;
                }
            }
            last = rows[rank][column];
            rank += 1;
        }
        rank
    }
}
