//! The hiding commitment to the cells, and its one opening at one point.
//!
//! Cells are a list; `2^row_bits` of them in a row make a column, which is a polynomial's low coefficients. Its high coefficients are random, as many
//! as positions will be opened. Columns are evaluated at `2^height_bits` roots of unity, and the values at each root are a leaf of a salted [Merkle tree](crate::merkle).
//! Two more columns are wholly random: as one column over E they mask the answer.
//!
//! To open at `(z_hi, z_lo)` the prover sends `V = Σ_j eq(z_hi, j)·Σ_i eq(z_lo, i)·cell[j][i]`, the same sum of the mask, and for a challenge g
//! the coefficients of `mask + g·Σ_j eq(z_hi, j)·column_j`: evaluation and proximity test at once. Positions are drawn after them.
//! It is Ligero's test (S. Ames, C. Hazay, Y. Ishai, M. Venkitasubramaniam, eprint 2022/1608) with the tensor
//! combination of B. Diamond and J. Posen (eprint 2023/630), used within the unique decoding radius.
//!
//! Zero knowledge is exact, up to the salts: any q values of a column are uniform, for its q random coefficients; the combination is under a
//! one-time pad of full length; the mask's sum follows from the others. That holds for one opening, so [`Committed::open`] takes the commitment by value.

use p3_dft::{Radix2DFTSmallBatch, TwoAdicSubgroupDft};
use p3_field::{BasedVectorSpace, PrimeCharacteristicRing};
use p3_matrix::Matrix;
use p3_matrix::dense::RowMajorMatrix;
use rand::CryptoRng;
use rayon::prelude::*;

use crate::fiat_shamir::FiatShamir;
use crate::field::{E, F, ORDER, bits_of, eq_table, extension, wipe};
use crate::merkle::{self, Digest, Salt, Tree};

/// Bits of the queries, and those that grinding adds.
pub const QUERY_BITS: u32 = 88;
/// Leading zeros of the hash that the prover has to find before positions are drawn.
pub const GRINDING_BITS: u32 = 16;
/// Each column is evaluated at twice as many points as it has cells.
const RATE_BITS: usize = 1;
/// Columns have at least so many cells: with fewer there are too few points for the queries.
const LEAST_ROW_BITS: usize = 10;
const MOST_ROW_BITS: usize = 22;
/// Columns of the mask.
pub(crate) const MASK: usize = 2;

/// How many cells are committed to, and so how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Cells, in whole columns.
    pub cells: usize,
    /// Logarithm of the cells of a column.
    pub row_bits: usize,
    /// Columns, without those of the mask.
    pub columns: usize,
    /// Positions that are opened.
    pub queries: usize,
}

impl Sizes {
    /// For at least so many cells, with the shortest opening.
    pub fn new(cells: usize) -> Self {
        (LEAST_ROW_BITS..=MOST_ROW_BITS)
            .filter_map(|row_bits| {
                let columns = cells.div_ceil(1 << row_bits).max(1);
                let queries = queries(row_bits)?;
                Some(Self { cells: columns << row_bits, row_bits, columns, queries })
            })
            .min_by_key(Self::bytes)
            // From 2^10 cells on there are enough points for the queries: a test goes through all.
            .expect("every number of row bits has its queries")
    }

    /// Logarithm of the points that a column is evaluated at.
    pub fn height_bits(&self) -> usize {
        self.row_bits + RATE_BITS
    }

    /// Coordinates of a point: the first are of the column.
    pub fn point_bits(&self) -> usize {
        bits_of(self.columns) + self.row_bits
    }

    /// Coefficients of a column, the random ones included.
    pub fn coefficients(&self) -> usize {
        (1 << self.row_bits) + self.queries
    }

    /// Bytes of an opening.
    pub fn bytes(&self) -> usize {
        let row = 8 * (self.columns + MASK) + 32 * (1 + merkle::path_len(self.height_bits()));
        16 + 16 * self.coefficients() + 8 + self.queries * row
    }

    /// `-log2` of the chance that combining the columns hides that they are far from the code: `(2·log2(columns) + 1)·height/|E|`.
    pub fn proximity_bits(&self) -> f64 {
        let terms = (2 * bits_of(self.columns) + 1) as f64;
        127.99 - terms.log2() - self.height_bits() as f64
    }
}

/// The fewest positions that catch a word outside the unique decoding radius but with 2^-88; `None` if no number does.
///
/// With `k + q` coefficients and n points the code's distance is `n - k - q + 1`. A word that no codeword is within `e = ⌊(n - k - q)/2⌋` of agrees
/// with each at `n - e - 1` points at most.
fn queries(row_bits: usize) -> Option<usize> {
    /// Probabilities are multiples of 2^-100, rounded up.
    const ONE: u128 = 1 << 100;
    let (n, k) = (1u128 << (row_bits + RATE_BITS), 1u128 << row_bits);
    let most = n - k;
    // More queries shorten the distance, too: the first number that does is found by trying.
    (QUERY_BITS as u128..most.min(1 << 12)).find_map(|q| {
        let agree = n - (most - q) / 2 - 1;
        let chance = (0..q).fold(ONE, |chance, _| (chance * agree).div_ceil(n));
        (chance <= ONE >> QUERY_BITS).then_some(q as usize)
    })
}

/// What the prover keeps until it opens. All of it is secret but the cap.
pub struct Committed {
    sizes: Sizes,
    code: Vec<F>,
    tree: Tree,
    /// The random coefficients, row by row.
    random: Vec<F>,
    mask: Vec<E>,
}

/// One opened position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenedRow {
    /// The columns' values, the mask's last.
    pub values: Vec<F>,
    /// The leaf's salt.
    pub salt: Salt,
    /// The way to the cap.
    pub path: Vec<Digest>,
}

/// An opening, without V.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    /// What the mask is at the point.
    pub mask: E,
    /// The masked combination of the columns.
    pub combination: Vec<E>,
    /// Of the grinding.
    pub nonce: u64,
    /// In the order in which positions are drawn.
    pub rows: Vec<OpenedRow>,
}

/// Why an opening was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpeningError {
    /// A part has another length.
    #[error("the opening has {found} {what}, expected {expected}")]
    Length {
        /// Of what.
        what: &'static str,
        /// Found.
        found: usize,
        /// Expected.
        expected: usize,
    },
    /// The combination does not give the value.
    #[error("the opened combination does not give the claimed value")]
    Value,
    /// The nonce grinds nothing.
    #[error("the nonce does not give {GRINDING_BITS} zero bits")]
    Grinding,
    /// A row is not what was committed to.
    #[error("opened row {0} is not under the commitment")]
    Path(usize),
    /// A row is not on the combination.
    #[error("opened row {0} does not agree with the combination")]
    Row(usize),
}

impl Committed {
    /// Commits to cells, `sizes.cells` of them.
    pub fn new(sizes: Sizes, cells: &[F], rng: &mut impl CryptoRng) -> Self {
        let random = (0..sizes.queries * sizes.columns).map(|_| uniform(rng)).collect();
        let mask = (0..sizes.coefficients()).map(|_| extension(uniform(rng), uniform(rng))).collect();
        let mut salts = vec![[0; 32]; 1 << sizes.height_bits()];
        salts.iter_mut().for_each(|salt| rng.fill_bytes(salt));
        Self::with(sizes, cells, random, mask, salts)
    }

    /// Commits with all that hides the cells: random coefficients, row by row, the mask's, and salts.
    fn with(sizes: Sizes, cells: &[F], random: Vec<F>, mask: Vec<E>, salts: Vec<Salt>) -> Self {
        assert_eq!(cells.len(), sizes.cells);
        let (k, w) = (1usize << sizes.row_bits, sizes.columns);
        let (width, height) = (w + MASK, 1usize << sizes.height_bits());
        let mut code = F::zero_vec(width * height);
        code.par_chunks_mut(width).take(k).enumerate().for_each(|(i, row)| {
            for (j, value) in row[..w].iter_mut().enumerate() {
                *value = cells[j * k + i];
            }
        });
        for (row, random) in code[k * width..].chunks_mut(width).zip(random.chunks(w)) {
            row[..w].copy_from_slice(random);
        }
        for (row, mask) in code.chunks_mut(width).zip(&mask) {
            row[w..].copy_from_slice(mask.as_basis_coefficients_slice());
        }
        let code = encode(code, width);
        let tree = Tree::new(&code, width, salts);
        Self { sizes, code, tree, random, mask }
    }

    /// The commitment.
    pub fn cap(&self) -> Vec<Digest> {
        self.tree.cap()
    }

    /// Opens the cells at a point: V, and what shows it.
    pub fn open(self, cells: &[F], point: &[E], fs: &mut FiatShamir) -> (E, Opening) {
        let sizes = self.sizes;
        let (k, w, width) = (1usize << sizes.row_bits, sizes.columns, sizes.columns + MASK);
        let (hi, lo) = point.split_at(point.len() - sizes.row_bits);
        let (hi, lo) = (eq_table(hi), eq_table(lo));
        let mut combined: Vec<E> = (0..k)
            .into_par_iter()
            .with_min_len(1 << 6)
            .map(|i| hi[..w].iter().enumerate().map(|(j, &e)| e * cells[j * k + i]).sum())
            .collect();
        combined
            .extend(self.random.chunks(w).map(|row| row.iter().zip(&hi).map(|(&x, &e)| e * x).sum::<E>()));
        let at = |row: &[E]| -> E { row.iter().zip(&lo).map(|(&x, &e)| x * e).sum() };
        let (value, mask) = (at(&combined), at(&self.mask));
        fs.absorb_elements("value", &[value, mask]);
        let g = fs.challenge("mask");
        let combination: Vec<E> = combined.iter().zip(&self.mask).map(|(&x, &m)| m + g * x).collect();
        wipe(&mut combined);
        fs.absorb_elements("combination", &combination);
        let nonce = (0..u64::MAX).find(|&nonce| fs.grinds("grinding", GRINDING_BITS, nonce)).unwrap_or(0);
        fs.absorb("nonce", &nonce.to_le_bytes());
        let rows = fs
            .positions("positions", sizes.height_bits(), sizes.queries)
            .into_iter()
            .map(|position| {
                let (salt, path) = self.tree.path(position);
                OpenedRow { values: self.code[position * width..][..width].to_vec(), salt, path }
            })
            .collect();
        (value, Opening { mask, combination, nonce, rows })
    }
}

impl Drop for Committed {
    fn drop(&mut self) {
        wipe(&mut self.code);
        wipe(&mut self.random);
        wipe(&mut self.mask);
    }
}

/// Checks that the cells under a commitment have this value at this point.
pub fn verify(
    sizes: &Sizes,
    cap: &[Digest],
    point: &[E],
    value: E,
    opening: &Opening,
    fs: &mut FiatShamir,
) -> Result<(), OpeningError> {
    let width = sizes.columns + MASK;
    let path_len = merkle::path_len(sizes.height_bits());
    let length = |what, found, expected| match found == expected {
        true => Ok(()),
        false => Err(OpeningError::Length { what, found, expected }),
    };
    length("coordinates", point.len(), sizes.point_bits())?;
    length("hashes of the cap", cap.len(), merkle::cap_len(sizes.height_bits()))?;
    length("coefficients", opening.combination.len(), sizes.coefficients())?;
    length("rows", opening.rows.len(), sizes.queries)?;
    for row in &opening.rows {
        length("values of a row", row.values.len(), width)?;
        length("hashes of a path", row.path.len(), path_len)?;
    }

    let (hi, lo) = point.split_at(point.len() - sizes.row_bits);
    let (hi, lo) = (eq_table(hi), eq_table(lo));
    fs.absorb_elements("value", &[value, opening.mask]);
    let g = fs.challenge("mask");
    fs.absorb_elements("combination", &opening.combination);
    if opening.combination.iter().zip(&lo).map(|(&x, &e)| x * e).sum::<E>() != opening.mask + g * value {
        return Err(OpeningError::Value);
    }
    if !fs.grinds("grinding", GRINDING_BITS, opening.nonce) {
        return Err(OpeningError::Grinding);
    }
    fs.absorb("nonce", &opening.nonce.to_le_bytes());
    let positions = fs.positions("positions", sizes.height_bits(), sizes.queries);
    let mut code = F::zero_vec(MASK << sizes.height_bits());
    for (target, x) in code.chunks_mut(MASK).zip(&opening.combination) {
        target.copy_from_slice(x.as_basis_coefficients_slice());
    }
    let code = encode(code, MASK);
    for (index, (&position, row)) in positions.iter().zip(&opening.rows).enumerate() {
        if !merkle::verify(cap, position, &row.values, &row.salt, &row.path) {
            return Err(OpeningError::Path(index));
        }
        let combined: E = row.values[..sizes.columns].iter().zip(&hi).map(|(&x, &e)| e * x).sum();
        let pair = |at: &[F]| extension(at[0], at[1]);
        if pair(&row.values[sizes.columns..]) + g * combined != pair(&code[MASK * position..]) {
            return Err(OpeningError::Row(index));
        }
    }
    Ok(())
}

/// The columns' values at the roots of unity, from their coefficients, in place.
fn encode(coefficients: Vec<F>, width: usize) -> Vec<F> {
    let matrix = RowMajorMatrix::new(coefficients, width);
    Radix2DFTSmallBatch::<F>::new(matrix.height()).dft_batch(matrix).to_row_major_matrix().values
}

/// A uniform element of the field.
pub(crate) fn uniform(rng: &mut impl CryptoRng) -> F {
    loop {
        let word = rng.next_u64();
        if word < ORDER {
            return F::from_u64(word);
        }
    }
}

#[cfg(test)]
mod tests;
