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
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    fn prime() -> Prime {
        Prime::random(&mut StdRng::seed_from_u64(5))
    }

    /// Adds rows, and says which of them are independent.
    fn add(basis: &mut Basis, rows: &[i16]) -> Vec<usize> {
        let addition = basis.consider(rows, usize::MAX - 1).unwrap();
        let independent = addition.independent.clone();
        basis.add(rows, addition);
        independent
    }

    fn rank(rows: &[i16], width: usize, at_once: usize) -> usize {
        let mut basis = Basis::new(prime(), width);
        for rows in rows.chunks(width * at_once) {
            add(&mut basis, rows);
        }
        basis.rank()
    }

    #[test]
    fn primes_are_prime() {
        let largest = (1 << 61) - 1;
        assert!(Prime::new(largest).is_some(), "M. Mersenne's ninth");
        // Squares of primes, a product of two, an even number, and primes out of range.
        let composite = [1_073_741_827u64.pow(2), 1_073_741_827 * 1_073_741_831, 1 << 60, largest - 1];
        for value in composite.into_iter().chain([2_097_169, (1 << 59) - 55, (1 << 62) - 57]) {
            assert_eq!(Prime::new(value), None, "{value}");
        }
        // Strong pseudoprimes to the first bases, up to the first nine (G. Jaeschke, 1993), and Carmichael's smallest.
        for value in [2047, 1_373_653, 3_215_031_751, 3_825_123_056_546_413_051, 561] {
            assert!(!is_prime(value), "{value}");
        }
        let sieved = |n: u64| (2..n).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d));
        assert!((3..5000).step_by(2).all(|n| is_prime(n) == sieved(n)));
        assert_eq!(format!("{:?}", prime()), "Prime(secret)");
        let p = prime();
        for x in [1, 2, 77, p.value() - 1] {
            assert_eq!(p.multiply(x, p.inverse(x)), p.one());
            assert_eq!(p.multiply(x, p.one()), x);
        }
    }

    #[test]
    fn no_more_is_looked_for_than_there_may_be() {
        let unit = |i: usize| -> Vec<i16> { (0..100).map(|j| i16::from(i == j)).collect() };
        let rows: Vec<i16> = (0..90).flat_map(unit).collect();
        let mut basis = Basis::new(prime(), 100);
        for most in [0, 1, 40, 89] {
            assert!(basis.consider(&rows, most).is_none(), "{most}");
        }
        assert_eq!(basis.consider(&rows, 90).unwrap().independent.len(), 90);
        add(&mut basis, &rows[..50 * 100]);
        assert!(basis.consider(&rows, 39).is_none());
        assert_eq!(basis.consider(&rows, 40).unwrap().independent, Vec::from_iter(50..90));
        // Of many rows that tell nothing new, the last does.
        let mut last = [7; 100];
        last[50..].fill(0);
        let mut many = last.repeat(5000);
        assert_eq!(basis.consider(&many, 0).unwrap().independent, [0; 0]);
        many.extend(unit(99));
        assert!(basis.consider(&many, 0).is_none());
        assert_eq!(basis.consider(&many, 1).unwrap().independent, [5000]);
    }

    #[test]
    fn a_clone_stays_as_it_is() {
        let mut basis = Basis::new(prime(), 3);
        add(&mut basis, &[1, 0, 0]);
        let before = basis.clone();
        let addition = before.consider(&[0, 1, 0], 1).unwrap();
        assert_eq!(addition.to, 1);
        basis.add(&[0, 1, 0], addition);
        assert_eq!((before.rank(), basis.rank()), (1, 2));
        assert_eq!(before.consider(&[0, 2, 0], 1).unwrap().independent, [0]);
        assert_eq!(basis.consider(&[0, 2, 0], 1).unwrap().independent, [0; 0]);
    }

    #[test]
    fn repeated_and_dependent_rows_do_not_count() {
        let mut basis = Basis::new(prime(), 3);
        let mut add = |rows: &[i16]| super::tests::add(&mut basis, rows);
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
        // The largest prime, and the largest sum of products with it.
        for p in [prime(), Prime::new((1 << 61) - 1).unwrap()] {
            let largest = BLOCK as u128 * u128::from(p.value() - 1).pow(2);
            for start in [0, 1, p.value() - 1] {
                for sum in [0, 1, u64::MAX.into(), 1 << 64, largest / 3, largest - 1, largest] {
                    let reduced = p.reduce(start, sum);
                    let exact = (sum % u128::from(p.value()) + u128::from(start) * u128::from(p.one()))
                        % u128::from(p.value());
                    assert!(reduced < p.value());
                    assert_eq!(u128::from(reduced) * u128::from(p.one()) % u128::from(p.value()), exact);
                }
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
            add(&mut basis, &row(entries));
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
                let independent = add(&mut basis, &rows.concat());
                found.extend(independent.iter().map(|index| batch * at_once + index));
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
        let p = u128::from(prime.value());
        let inverse = |x: u128| {
            // Fermat again, by plain remainders.
            let (mut result, mut power, mut exponent) = (1, x, p - 2);
            while exponent > 0 {
                if exponent & 1 == 1 {
                    result = result * power % p;
                }
                power = power * power % p;
                exponent >>= 1;
            }
            result
        };
        let mut known: Vec<(usize, Vec<u128>)> = Vec::new();
        let mut independent = Vec::new();
        for (index, row) in rows.iter().enumerate() {
            let mut row: Vec<u128> =
                row.iter().map(|&x| i128::from(x).rem_euclid(p as i128) as u128).collect();
            for (pivot, by) in &known {
                let factor = p - row[*pivot];
                row.iter_mut().zip(by).for_each(|(x, by)| *x = (*x + factor * by) % p);
            }
            let Some(pivot) = row.iter().position(|&x| x != 0) else { continue };
            let inverse = inverse(row[pivot]);
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
