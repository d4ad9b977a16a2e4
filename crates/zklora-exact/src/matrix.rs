//! Products of integer matrices, exactly.
//!
//! They are computed in float64, where sums of products of integers are exact, in whatever order and with or without fused
//! multiplication, as long as no partial sum reaches 2^53. [`Matrix::multiply`] sees to that: it knows for each column the sum of
//! magnitudes, and splits its left side where that does not do.

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;
use zeroize::Zeroizing;

/// Up to here float64 has every integer.
const EXACT: u128 = 1 << 53;
/// Columns that are multiplied at once by one thread.
const BLOCK: usize = 256;

/// A matrix of public or secret integers, row-major `rows x columns`.
#[derive(Clone)]
pub(crate) struct Matrix {
    rows: usize,
    columns: usize,
    /// An adapter's are secret.
    entries: Zeroizing<Vec<i32>>,
    /// The largest sum of magnitudes in a column.
    norm1: u64,
    /// The largest sum of squares in a column.
    squares: u128,
}

impl Matrix {
    /// The matrix with these entries.
    pub(crate) fn new(rows: usize, columns: usize, entries: Vec<i32>) -> Self {
        assert_eq!(rows * columns, entries.len());
        let (mut sums, mut squares) = (vec![0u64; columns], vec![0u128; columns]);
        for row in entries.chunks_exact(columns) {
            for ((sum, square), &entry) in sums.iter_mut().zip(&mut squares).zip(row) {
                *sum += u64::from(entry.unsigned_abs());
                *square += u128::from(entry.unsigned_abs()).pow(2);
            }
        }
        let norm1 = sums.into_iter().max().unwrap_or(0);
        let squares = squares.into_iter().max().unwrap_or(0);
        Self { rows, columns, entries: entries.into(), norm1, squares }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// Entries, row-major.
    pub(crate) fn entries(&self) -> &[i32] {
        &self.entries
    }

    /// The largest sum of magnitudes in a column: a product with entries of at most x is at most x times that.
    pub(crate) fn norm1(&self) -> u64 {
        self.norm1
    }

    /// The largest Euclidean length of a column, rounded up.
    pub(crate) fn norm2(&self) -> u64 {
        let root = self.squares.isqrt();
        (root + u128::from(root * root < self.squares)) as u64
    }

    /// `x · self`, for x row-major with as many columns as this has rows. The result is row-major.
    ///
    /// The caller has made sure, by the bounds of the model, that no entry of the result can reach 2^62.
    pub(crate) fn multiply(&self, x: &[i64]) -> Vec<i64> {
        let count = x.len() / self.rows;
        let largest = x.iter().map(|x| x.unsigned_abs()).max().unwrap_or(0);
        let parts = split(x, largest, self.norm1);
        let mut result = vec![0i64; count * self.columns];
        let blocks: Vec<(usize, Vec<i64>)> = (0..self.columns)
            .into_par_iter()
            .step_by(BLOCK)
            .map(|from| {
                let width = BLOCK.min(self.columns - from);
                let mut right = Array2::zeros((self.rows, width));
                for (mut target, row) in
                    right.rows_mut().into_iter().zip(self.entries.chunks_exact(self.columns))
                {
                    for (target, &entry) in target.iter_mut().zip(&row[from..from + width]) {
                        *target = f64::from(entry);
                    }
                }
                (from, sum_of_products(&parts, (count, self.rows), right.view()))
            })
            .collect();
        for (from, block) in blocks {
            let width = block.len() / count.max(1);
            for (target, row) in result.chunks_exact_mut(self.columns).zip(block.chunks_exact(width)) {
                target[from..from + width].copy_from_slice(row);
            }
        }
        result
    }
}

/// `x · y` for x row-major `count x inner` and y of `inner` rows.
pub(crate) fn product(x: &[i64], inner: usize, y: ArrayView2<'_, i64>) -> Vec<i64> {
    let largest = x.iter().map(|x| x.unsigned_abs()).max().unwrap_or(0);
    // Columns' sums of magnitudes, or an upper bound of them.
    let norm1 = y.iter().map(|y| y.unsigned_abs()).max().unwrap_or(0).saturating_mul(inner as u64);
    let right = y.mapv(|y| y as f64);
    sum_of_products(&split(x, largest, norm1), (x.len() / inner, inner), right.view())
}

/// The left side in parts of so few bits that their products with columns of this sum of magnitudes are exact, each with the bits
/// by which it was shifted down.
fn split(x: &[i64], largest: u64, norm1: u64) -> Vec<(u32, Vec<f64>)> {
    let exact = |part: u64| u128::from(part) * u128::from(norm1) < EXACT;
    if exact(largest) {
        return vec![(0, x.iter().map(|&x| x as f64).collect())];
    }
    // Parts of so many bits, with a sign in the highest alone.
    let bits = (1..63).rev().find(|&bits| exact((1 << bits) - 1)).unwrap_or(1);
    let (mut parts, mut shift) = (Vec::new(), 0);
    loop {
        let rest = |x: i64| x >> shift;
        if exact(x.iter().map(|&x| rest(x).unsigned_abs()).max().unwrap_or(0)) {
            parts.push((shift, x.iter().map(|&x| rest(x) as f64).collect()));
            return parts;
        }
        parts.push((shift, x.iter().map(|&x| (rest(x) & ((1 << bits) - 1)) as f64).collect()));
        shift += bits;
    }
}

fn sum_of_products(parts: &[(u32, Vec<f64>)], shape: (usize, usize), right: ArrayView2<'_, f64>) -> Vec<i64> {
    let mut sum = vec![0i64; shape.0 * right.ncols()];
    let mut result = Array2::<f64>::zeros((shape.0, right.ncols()));
    for (shift, part) in parts {
        // Its length is that of x.
        let left = ArrayView2::from_shape(shape, part).expect("a part has the shape of what was split");
        general_mat_mul(1.0, &left, &right, 0.0, &mut result);
        for (sum, &value) in sum.iter_mut().zip(&result) {
            // Parts may be larger than their sum; that is below 2^62.
            *sum = sum.wrapping_add((value as i64).wrapping_shl(*shift));
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reference(x: &[i64], inner: usize, y: &[i64], columns: usize) -> Vec<i64> {
        x.chunks_exact(inner)
            .flat_map(|row| {
                (0..columns).map(|j| row.iter().enumerate().map(|(i, x)| x * y[i * columns + j]).sum())
            })
            .collect()
    }

    proptest! {
        #[test]
        fn products_are_those_of_integers(
            inner in 1usize..20, columns in 1usize..600, count in 1usize..4,
            bits in 1u32..40, weight_bits in 1u32..18, seed: u64,
        ) {
            let mut state = seed | 1;
            let mut next = |bits: u32| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state as i64) >> (63 - bits)
            };
            let x: Vec<i64> = (0..count * inner).map(|_| next(bits)).collect();
            let y: Vec<i64> = (0..inner * columns).map(|_| next(weight_bits)).collect();
            let expected = reference(&x, inner, &y, columns);
            let matrix = Matrix::new(inner, columns, y.iter().map(|&y| y as i32).collect());
            prop_assert_eq!(&matrix.multiply(&x), &expected);
            let view = ArrayView2::from_shape((inner, columns), &y).unwrap();
            prop_assert_eq!(&product(&x, inner, view), &expected);
        }
    }
}
