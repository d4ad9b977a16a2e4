//! Public matrices, which the verifier has itself, and their extensions.

use std::sync::Arc;

use p3_field::PrimeCharacteristicRing;
use rayon::prelude::*;

use crate::field::{E, F, coordinates, extension};

/// A public matrix of integers, row-major.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matrix {
    rows: usize,
    columns: usize,
    entries: Arc<[i32]>,
}

impl Matrix {
    /// The matrix with these entries; `None` unless there are `rows x columns`.
    pub fn new(rows: usize, columns: usize, entries: impl Into<Arc<[i32]>>) -> Option<Self> {
        let entries = entries.into();
        (rows.checked_mul(columns) == Some(entries.len()) && columns > 0).then_some(Self {
            rows,
            columns,
            entries,
        })
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Entries, row-major.
    pub fn entries(&self) -> &[i32] {
        &self.entries
    }

    /// The largest sum of magnitudes in a column.
    pub fn norm(&self) -> u128 {
        let mut sums = vec![0u128; self.columns];
        for row in self.entries.chunks_exact(self.columns) {
            sums.iter_mut().zip(row).for_each(|(sum, &entry)| *sum += u128::from(entry.unsigned_abs()));
        }
        sums.into_iter().max().unwrap_or(0)
    }

    /// `Σ_j weights[j]·self[i][j]` for each row i. Products are of integers: an entry has 32 bits, a part of a weight 22, and 512 of them are added up before a reduction.
    pub fn times(&self, weights: &[E]) -> Vec<E> {
        const PART: u32 = 22;
        const COLUMNS: usize = 512;
        let mask = (1 << PART) - 1;
        // Six lists: of each coordinate the low, middle and high bits.
        let parts: [Vec<i32>; 6] = std::array::from_fn(|index| {
            let (coordinate, shift) = (index / 3, PART * (index as u32 % 3));
            weights.iter().map(|&w| (coordinates(w)[coordinate] >> shift & mask) as i32).collect()
        });
        let row = |row: &[i32]| -> E {
            let mut sums = [0i128; 6];
            for (chunk, entries) in row.chunks(COLUMNS).enumerate() {
                let from = chunk * COLUMNS;
                for (sum, part) in sums.iter_mut().zip(&parts) {
                    let part = &part[from..from + entries.len()];
                    let products = entries.iter().zip(part).map(|(&x, &w)| i64::from(x) * i64::from(w));
                    *sum += i128::from(products.sum::<i64>());
                }
            }
            let coordinate = |parts: &[i128]| {
                parts
                    .iter()
                    .rev()
                    .fold(F::ZERO, |sum, &part| sum * F::from_u64(1 << PART) + F::from_i128(part))
            };
            extension(coordinate(&sums[..3]), coordinate(&sums[3..]))
        };
        self.entries.par_chunks_exact(self.columns).with_min_len(8).map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::signed;

    #[test]
    fn products_are_those_of_the_field() {
        let (rows, columns) = (3, 1300);
        let entries: Vec<i32> = (0..rows * columns)
            .map(|i| match i % 5 {
                0 => i32::MAX,
                1 => i32::MIN,
                _ => (i as i32).wrapping_mul(0x9e37_79b9u32 as i32),
            })
            .collect();
        let matrix = Matrix::new(rows, columns, entries.clone()).unwrap();
        let weights: Vec<E> = (0..columns as u64)
            .map(|i| extension(signed(-(i as i64) - 1), F::from_u64(u64::MAX / 3 * (i % 3) + i)))
            .collect();
        for (row, found) in entries.chunks(columns).zip(matrix.times(&weights)) {
            let expected: E = row.iter().zip(&weights).map(|(&x, &w)| w * signed(x.into())).sum();
            assert_eq!(found, expected);
        }
        assert!(Matrix::new(2, 2, vec![0; 3]).is_none());
    }
}
