//! Rank of what was answered, row by row, over a prime field.
//!
//! Rows of integers that are independent modulo a prime are independent over the rationals. The converse fails only if the prime
//! divides certain minors. Whoever knew the prime could look for rows whose minors it divides, and have them answered uncounted; and
//! every call that is counted, or refused, tells whether it divides the minors of that call. So the prime is secret, and there are
//! so many to choose from that no number of calls finds it: `docs/threat-model.md` has the figures.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};

use rand::rngs::StdRng;
use rand::{CryptoRng, RngExt};

/// Primes are drawn from here, where there are more than 2^54.
const PRIMES: Range<u64> = 1 << 60..1 << 61;
/// Rows that are taken from others together, before a reduction: so many products of two residues add up to less than 2^127.
const BLOCK: usize = 32;
/// Parts into which many rows are divided if there are new ones among them.
const PARTS: usize = 8;
/// Entries by which a row is looked up among those that were seen.
const PREFIX: usize = 32;

/// A secret prime of 61 bits, with what Montgomery's reduction takes (P. Montgomery, 1985).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Prime {
    value: u64,
    /// -1/p modulo 2^64.
    negative_inverse: u64,
}

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
    pub fn new(value: u64) -> Option<Self> {
        if !PRIMES.contains(&value) || !is_prime(value) {
            return None;
        }
        // Newton's iteration: an odd number is its own inverse modulo 2^3, and each step doubles the bits that are right.
        let inverse = (0..5).fold(value, |inverse: u64, _| {
            inverse.wrapping_mul(2u64.wrapping_sub(value.wrapping_mul(inverse)))
        });
        Some(Self { value, negative_inverse: inverse.wrapping_neg() })
    }

    /// Its value.
    pub const fn value(self) -> u64 {
        self.value
    }

    fn residue(self, x: i16) -> u64 {
        if x < 0 { self.value - u64::from(x.unsigned_abs()) } else { u64::from(x.unsigned_abs()) }
    }

    /// `start + sum / 2^64` modulo the prime, of a residue and a sum of at most [`BLOCK`] products of residues.
    #[inline(always)]
    fn reduce(self, start: u64, sum: u128) -> u64 {
        let multiple = (sum as u64).wrapping_mul(self.negative_inverse);
        // Below 2^61 · BLOCK / 2^64 + 1 = 5 primes, which fits with one more.
        let mut value = start + ((sum + u128::from(multiple) * u128::from(self.value)) >> 64) as u64;
        for many in [4 * self.value, 2 * self.value, self.value] {
            value = if value >= many { value - many } else { value };
        }
        value
    }

    /// `x·y / 2^64`.
    fn multiply(self, x: u64, y: u64) -> u64 {
        self.reduce(0, u128::from(x) * u128::from(y))
    }

    /// What [`Prime::multiply`] leaves as it is: 2^64.
    fn one(self) -> u64 {
        ((1u128 << 64) % u128::from(self.value)) as u64
    }

    /// What a residue that is not zero has to be multiplied by to give [`Prime::one`], by Fermat's little theorem.
    fn inverse(self, x: u64) -> u64 {
        let (mut result, mut power, mut exponent) = (self.one(), x, self.value - 2);
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

/// Whether an odd number is prime: the test of G. Miller and M. Rabin, with bases that leave no doubt below 2^64 (J. Sorenson and
/// J. Webster, 2015).
fn is_prime(n: u64) -> bool {
    const BASES: [u64; 12] = [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37];
    if let Some(divisor) = BASES.iter().find(|&&base| n.is_multiple_of(base)) {
        return n == *divisor;
    }
    let multiply = |x: u64, y: u64| (u128::from(x) * u128::from(y) % u128::from(n)) as u64;
    let twos = (n - 1).trailing_zeros();
    BASES.iter().all(|&base| {
        let (mut power, mut square, mut exponent) = (1, base, (n - 1) >> twos);
        while exponent > 0 {
            if exponent & 1 == 1 {
                power = multiply(power, square);
            }
            square = multiply(square, square);
            exponent >>= 1;
        }
        let powers = std::iter::successors(Some(power), |&power| Some(multiply(power, power)));
        power == 1 || powers.take(twos as usize).any(|power| power == n - 1)
    })
}

/// The space that rows of one module span. A clone stays as it is, and costs little.
#[derive(Debug, Clone)]
pub struct Basis {
    prime: Prime,
    width: usize,
    /// All full but the last.
    blocks: Vec<Arc<Block>>,
    /// Rows that were added, by their first entries: who asks for a text again is answered without arithmetic. Clones share them:
    /// whoever finds a row there that was added later may take it for dependent, since that is what it is by now.
    seen: Arc<RwLock<Seen>>,
}

/// Rows by their first entries.
type Seen = HashMap<Box<[i16]>, Box<[i16]>>;

/// Rows that would be added to a [`Basis`].
#[derive(Debug)]
pub struct Addition {
    blocks: Vec<Arc<Block>>,
    /// Rank of the basis that they would be added to.
    pub to: usize,
    /// Which of the rows that were asked about are independent of the basis and of those before them.
    pub independent: Vec<usize>,
}

impl Basis {
    /// The space of no rows, of this width.
    pub fn new(prime: Prime, width: usize) -> Self {
        Self { prime, width, blocks: Vec::new(), seen: Arc::default() }
    }

    /// Length of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Dimension of the space.
    pub fn rank(&self) -> usize {
        self.blocks.iter().map(|block| block.rank()).sum()
    }

    /// What these rows would add, row-major `rows x width`, or `None` if that is more than `most`: nothing is looked at after the
    /// first row too many. The basis stays as it is.
    pub fn consider(&self, rows: &[i16], most: usize) -> Option<Addition> {
        let unseen: Vec<(usize, &[i16])> = {
            let seen = self.seen.read().unwrap_or_else(PoisonError::into_inner);
            let is_new = |row: &[i16]| seen.get(prefix(row)).is_none_or(|seen| **seen != *row);
            rows.chunks_exact(self.width).enumerate().filter(|(_, row)| is_new(row)).collect()
        };
        let addition = Addition { blocks: Vec::new(), to: self.rank(), independent: Vec::new() };
        let mut search = Search { basis: self, most, rng: rand::make_rng(), addition };
        search.look_through(&unseen).then_some(search.addition)
    }

    /// Adds what [`Basis::consider`] gave for these rows, if nothing was added in between.
    pub fn add(&mut self, rows: &[i16], addition: Addition) {
        for block in addition.blocks {
            append(&mut self.blocks, &block);
        }
        let mut seen = self.seen.write().unwrap_or_else(PoisonError::into_inner);
        for index in addition.independent {
            let row = &rows[index * self.width..(index + 1) * self.width];
            seen.insert(prefix(row).into(), row.into());
        }
    }
}

fn prefix(row: &[i16]) -> &[i16] {
    &row[..row.len().min(PREFIX)]
}

/// Looks for rows that are independent of a basis and of each other.
struct Search<'a> {
    basis: &'a Basis,
    most: usize,
    rng: StdRng,
    addition: Addition,
}

impl Search<'_> {
    /// Adds the independent ones among these rows, each with its index. Whether there are no more than there may be.
    fn look_through(&mut self, rows: &[(usize, &[i16])]) -> bool {
        if rows.len() <= BLOCK {
            // No more at once than it takes to know that there are too many.
            let mut rest = rows;
            while !rest.is_empty() {
                let (batch, after) =
                    rest.split_at(rest.len().min(self.most - self.addition.independent.len() + 1));
                if !self.eliminate(batch) {
                    return false;
                }
                rest = after;
            }
            return true;
        }
        !self.has_new(rows) || rows.chunks(rows.len().div_ceil(PARTS)).all(|part| self.look_through(part))
    }

    /// Whether any of these rows is new: a random combination of them is then new, too, but for one case in 2^60.
    fn has_new(&mut self, rows: &[(usize, &[i16])]) -> bool {
        let p = self.basis.prime.value();
        let mut sums = vec![0i128; self.basis.width];
        for (_, row) in rows {
            let factor = self.rng.random_range(0..p) as i64;
            // A factor has 61 bits, an entry 16, and there are fewer rows than 2^50.
            sums.iter_mut()
                .zip(*row)
                .for_each(|(sum, &x)| *sum += i128::from(factor) * i128::from(i64::from(x)));
        }
        let mut sum: Vec<u64> = sums.into_iter().map(|sum| sum.rem_euclid(i128::from(p)) as u64).collect();
        self.clear(&mut sum);
        sum.iter().any(|&entry| entry != 0)
    }

    /// Adds the independent ones among at most [`BLOCK`] rows. Whether there are no more than there may be.
    fn eliminate(&mut self, rows: &[(usize, &[i16])]) -> bool {
        let (prime, width) = (self.basis.prime, self.basis.width);
        let mut residues: Vec<u64> =
            rows.iter().flat_map(|(_, row)| row.iter()).map(|&x| prime.residue(x)).collect();
        self.clear(&mut residues);
        let mut fresh = Block::new(width);
        for ((index, _), row) in rows.iter().zip(residues.chunks_exact_mut(width)) {
            fresh.clear(prime, row);
            if fresh.push(prime, row) {
                if self.addition.independent.len() == self.most {
                    return false;
                }
                self.addition.independent.push(*index);
            }
        }
        append(&mut self.addition.blocks, &fresh);
        true
    }

    fn clear(&self, rows: &mut [u64]) {
        for block in self.basis.blocks.iter().chain(&self.addition.blocks) {
            block.clear(self.basis.prime, rows);
        }
    }
}

/// At most [`BLOCK`] rows in echelon form: each is [`Prime::one`] at its pivot, and zero at the pivots of all rows before it, in this
/// block and in those before.
#[derive(Debug, Clone)]
struct Block {
    pivots: Vec<usize>,
    /// The entries of all rows in each column; zero where there is no row.
    columns: Vec<[u64; BLOCK]>,
}

impl Block {
    fn new(width: usize) -> Self {
        Self { pivots: Vec::new(), columns: vec![[0; BLOCK]; width] }
    }

    fn rank(&self) -> usize {
        self.pivots.len()
    }

    /// Makes rows of residues zero at this block's pivots, by taking multiples of its rows from them.
    fn clear(&self, prime: Prime, rows: &mut [u64]) {
        let width = self.columns.len();
        for pair in rows.chunks_mut(2 * width) {
            // Two rows at once, for which each column is loaded once.
            let (first, second) = pair.split_at_mut(width);
            let (a, b) = (self.factors(prime, first), self.factors(prime, second));
            if second.is_empty() {
                for (x, column) in first.iter_mut().zip(&self.columns) {
                    let sum = a.iter().zip(column).map(|(&a, &c)| u128::from(a) * u128::from(c)).sum();
                    *x = prime.reduce(*x, sum);
                }
            }
            for ((x, y), column) in first.iter_mut().zip(second).zip(&self.columns) {
                let (mut sum, mut other) = (0u128, 0u128);
                for ((&a, &b), &c) in a.iter().zip(&b).zip(column) {
                    sum += u128::from(a) * u128::from(c);
                    other += u128::from(b) * u128::from(c);
                }
                (*x, *y) = (prime.reduce(*x, sum), prime.reduce(*y, other));
            }
        }
    }

    /// By what the rows of this block have to be multiplied before they are added to a row, to make it zero at their pivots.
    fn factors(&self, prime: Prime, row: &[u64]) -> [u64; BLOCK] {
        let mut factors = [0; BLOCK];
        if row.is_empty() {
            return factors;
        }
        for (place, &pivot) in self.pivots.iter().enumerate() {
            // What stands there once the rows before have been added.
            let before = factors.iter().zip(&self.columns[pivot]).take(place);
            let sum = before.map(|(&factor, &entry)| u128::from(factor) * u128::from(entry)).sum();
            let entry = prime.reduce(row[pivot], sum);
            factors[place] = if entry == 0 { 0 } else { prime.value() - entry };
        }
        factors
    }

    /// Takes in a row that was cleared by this block and all before it, unless it is zero. Whether it did.
    fn push(&mut self, prime: Prime, row: &[u64]) -> bool {
        let Some(pivot) = row.iter().position(|&entry| entry != 0) else { return false };
        let (inverse, place) = (prime.inverse(row[pivot]), self.rank());
        for (column, &entry) in self.columns.iter_mut().zip(row) {
            column[place] = prime.multiply(entry, inverse);
        }
        self.pivots.push(pivot);
        true
    }
}

/// Adds the rows of a block, which were cleared by all of these.
fn append(blocks: &mut Vec<Arc<Block>>, block: &Block) {
    for (place, &pivot) in block.pivots.iter().enumerate() {
        if blocks.last().is_none_or(|last| last.rank() == BLOCK) {
            blocks.push(Arc::new(Block::new(block.columns.len())));
        }
        let Some(last) = blocks.last_mut().map(Arc::make_mut) else { return };
        let to = last.rank();
        for (column, from) in last.columns.iter_mut().zip(&block.columns) {
            column[to] = from[place];
        }
        last.pivots.push(pivot);
    }
}

#[cfg(test)]
mod tests;
