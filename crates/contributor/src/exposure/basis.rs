//! Rank of what was answered, row by row, over a prime field.
//!
//! Rows of integers that are independent modulo a prime are independent over the rationals. The converse fails only if the prime
//! divides certain minors. For rows that do not know the prime this has negligible probability; somebody who knew it could
//! look for rows whose minors it divides, and have them answered uncounted. So the prime is drawn at random and kept secret.

use std::ops::Range;

use rand::{CryptoRng, RngExt};

/// Primes are drawn from here. Products of two residues are below 2^44, so that 2^8 of them add up exactly in an `f64`.
const PRIMES: Range<u32> = 1 << 21..1 << 22;
/// Products that are added before a reduction.
const EXACT: usize = 1 << 8;

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

    fn residue(self, x: i16) -> u32 {
        i64::from(x).rem_euclid(i64::from(self.0)) as u32
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

    /// `target - Σ factor·row`, entry by entry.
    fn subtract<'a>(self, target: &mut [u32], terms: impl Iterator<Item = (u32, &'a [u32])>) {
        let p = f64::from(self.0);
        let mut sums = vec![0.0f64; target.len()];
        let mut added = 0;
        let reduce = |sums: &mut [f64]| sums.iter_mut().for_each(|sum| *sum %= p);
        for (factor, row) in terms.filter(|&(factor, _)| factor != 0) {
            let factor = f64::from(factor);
            for (sum, &entry) in sums.iter_mut().zip(row) {
                *sum += factor * f64::from(entry);
            }
            added += 1;
            if added % (EXACT - 1) == 0 {
                reduce(&mut sums);
            }
        }
        reduce(&mut sums);
        for (entry, sum) in target.iter_mut().zip(sums) {
            // Below p.
            let sum = sum as u32;
            *entry = if *entry >= sum { *entry - sum } else { *entry + self.0 - sum };
        }
    }
}

impl std::fmt::Debug for Prime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Prime(secret)")
    }
}

/// The space that rows of one module span, in reduced echelon form.
#[derive(Debug, Clone)]
pub struct Basis {
    prime: Prime,
    width: usize,
    rows: Vec<Row>,
}

#[derive(Debug, Clone)]
struct Row {
    /// Where this row is 1 and all others are 0.
    pivot: usize,
    entries: Vec<u32>,
}

/// Rows that would be added to a [`Basis`].
#[derive(Debug, Clone)]
pub struct Addition {
    rows: Vec<Row>,
    /// Which of the rows that were asked about are independent of the basis and of those before them.
    pub independent: Vec<usize>,
}

impl Basis {
    /// The space of no rows, of this width.
    pub fn new(prime: Prime, width: usize) -> Self {
        Self { prime, width, rows: Vec::new() }
    }

    /// Length of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Dimension of the space.
    pub fn rank(&self) -> usize {
        self.rows.len()
    }

    /// What these rows would add, row-major `rows x width`. The basis stays as it is.
    pub fn consider(&self, rows: &[i16]) -> Addition {
        let mut addition = Addition { rows: Vec::new(), independent: Vec::new() };
        for (index, row) in rows.chunks_exact(self.width).enumerate() {
            let mut entries: Vec<u32> = row.iter().map(|&x| self.prime.residue(x)).collect();
            // Reduced form: no row changes what stands at the pivots of another, so all factors are known beforehand.
            for known in [&self.rows, &addition.rows] {
                let factors: Vec<u32> = known.iter().map(|row| entries[row.pivot]).collect();
                let terms = factors.into_iter().zip(known.iter().map(|row| &row.entries[..]));
                self.prime.subtract(&mut entries, terms);
            }
            let Some(pivot) = entries.iter().position(|&entry| entry != 0) else { continue };
            let inverse = self.prime.inverse(entries[pivot]);
            entries.iter_mut().for_each(|entry| *entry = self.prime.multiply(*entry, inverse));
            let row = Row { pivot, entries };
            clear(self.prime, &mut addition.rows, &row);
            addition.rows.push(row);
            addition.independent.push(index);
        }
        addition
    }

    /// Adds what [`Basis::consider`] gave, if nothing was added in between.
    pub fn add(&mut self, addition: Addition) {
        for row in &addition.rows {
            clear(self.prime, &mut self.rows, row);
        }
        self.rows.extend(addition.rows);
    }
}

/// Makes all rows zero at another row's pivot.
fn clear(prime: Prime, rows: &mut [Row], by: &Row) {
    for row in rows {
        let factor = row.entries[by.pivot];
        prime.subtract(&mut row.entries, std::iter::once((factor, &by.entries[..])));
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
        // More rows than are added between two reductions; the last half is sums of the first.
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

    proptest! {
        #[test]
        fn rank_is_that_of_gauss_elimination_over_the_rationals(
            rows in proptest::collection::vec(proptest::collection::vec(-3i16..4, 5), 0..9),
            at_once in 1usize..4,
        ) {
            prop_assert_eq!(rank(&rows.concat(), 5, at_once), rational_rank(&rows));
        }
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
