//! Where committed tensors are among the cells: a function of shapes alone.
//!
//! A tensor of integers is made of *limbs*, arrays of cells `rows x columns` whose values are looked up in a range. An array is cut into
//! *blocks*, whose sides are powers of two, as the binary digits of its sides say: 100 rows are 64, 32 and 4. So there is a cell for each entry and no other:
//! nothing has to be masked. All blocks are laid out by size, the largest first, so that each begins at a multiple of its size.

use std::ops::Range;
use std::sync::Arc;

use p3_field::PrimeCharacteristicRing;

use crate::claims::{Functional, Piece};
use crate::commitment::Sizes;
use crate::field::{E, F, below, bits_of, eq_at, eq_table, signed};

/// Cells that are random and that no relation reads: what makes the one opened value uniform.
pub const FACE_BITS: usize = 6;
/// Bits of the table of ranges: a cell that is looked up is below 2^16.
pub const LIMB_BITS: u32 = 16;

/// What the cells of an array may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cells {
    /// Integers of `0..2^bits`, with at most 16 bits: they are looked up.
    Limb {
        /// Bits.
        bits: u32,
    },
    /// Any element of the field.
    Free,
}

/// An array of cells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Array {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// What its cells may be.
    pub cells: Cells,
    /// From the top left to the bottom right.
    pub blocks: Vec<Block>,
}

/// A part of an array, `2^row_bits x 2^column_bits`, row-major.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// Its first row: a multiple of its rows.
    pub row: usize,
    /// Its first column: a multiple of its columns.
    pub column: usize,
    /// Logarithm of its rows.
    pub row_bits: usize,
    /// Logarithm of its columns.
    pub column_bits: usize,
    /// Its first cell.
    pub offset: usize,
}

impl Block {
    /// Logarithm of its cells.
    pub fn bits(&self) -> usize {
        self.row_bits + self.column_bits
    }

    /// Its cells.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + (1 << self.bits())
    }
}

/// The number of an array.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ArrayId(pub(crate) usize);

/// A committed tensor: the integers `Σ_l factor_l·limb_l - offset`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Limbs, the lowest first, with their bits.
    pub limbs: Vec<(ArrayId, u32)>,
    /// What is taken off: 2^(b-1) for signed b bits.
    pub offset: i64,
    /// Columns with more bits.
    pub hot: Option<Hot>,
}

/// Columns of a tensor of signed 16 bits that have signed 24 bits: `limb + 2^16·high - 2^23`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hot {
    /// Which, ascending.
    pub columns: Arc<[usize]>,
    /// Their high limbs of 8 bits, `rows x columns`.
    pub high: ArrayId,
}

impl Hot {
    /// Bits of the low limb.
    const LOW: u32 = LIMB_BITS;
    /// Bits of the high limb.
    const HIGH: u32 = 8;
    /// What is taken off beyond what is taken off other columns.
    pub(crate) const OFFSET: i64 = (1 << (Self::LOW + Self::HIGH - 1)) - (1 << (Self::LOW - 1));
}

/// Arrays that are going to be laid out.
#[derive(Debug, Clone, Default)]
pub struct Builder {
    arrays: Vec<Array>,
}

/// Arrays and where they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    arrays: Vec<Array>,
    /// The first of the cells of the random face.
    pub face: usize,
    /// How all cells are committed to.
    pub sizes: Sizes,
}

impl Builder {
    /// An array.
    pub fn array(&mut self, rows: usize, columns: usize, cells: Cells) -> ArrayId {
        self.arrays.push(Array { rows, columns, cells, blocks: Vec::new() });
        ArrayId(self.arrays.len() - 1)
    }

    /// A tensor of integers of `0..2^bits`, in limbs of 16 bits.
    pub fn unsigned(&mut self, rows: usize, columns: usize, bits: u32) -> Tensor {
        let limbs = (0..bits)
            .step_by(LIMB_BITS as usize)
            .map(|from| {
                let bits = LIMB_BITS.min(bits - from);
                (self.array(rows, columns, Cells::Limb { bits }), bits)
            })
            .collect();
        Tensor { rows, columns, limbs, offset: 0, hot: None }
    }

    /// A tensor of integers of `-2^(bits-1)..2^(bits-1)`.
    pub fn signed(&mut self, rows: usize, columns: usize, bits: u32) -> Tensor {
        Tensor { offset: 1 << (bits - 1), ..self.unsigned(rows, columns, bits) }
    }

    /// A tensor of signed 16 bits, with signed 24 bits in some columns.
    pub fn signed_hot(&mut self, rows: usize, columns: usize, hot: &[usize]) -> Tensor {
        let tensor = self.signed(rows, columns, Hot::LOW);
        let hot = (!hot.is_empty()).then(|| Hot {
            columns: hot.into(),
            high: self.array(rows, hot.len(), Cells::Limb { bits: Hot::HIGH }),
        });
        Tensor { hot, ..tensor }
    }

    /// A tensor of integers of `-offset..2^bits - offset` whose range is not looked up: a [table](crate::lookup::Table) has to pin it.
    pub fn unranged(&mut self, rows: usize, columns: usize, bits: u32, offset: i64) -> Tensor {
        Tensor {
            rows,
            columns,
            limbs: vec![(self.array(rows, columns, Cells::Free), bits)],
            offset,
            hot: None,
        }
    }

    /// How many cells there are so far.
    pub fn cells(&self) -> u128 {
        self.arrays.iter().map(|array| array.rows as u128 * array.columns as u128).sum()
    }

    /// Lays everything out.
    pub fn build(self) -> Layout {
        let mut arrays = self.arrays;
        let mut blocks = Vec::new();
        for (index, array) in arrays.iter_mut().enumerate() {
            for (row, row_bits) in powers(array.rows) {
                for (column, column_bits) in powers(array.columns) {
                    blocks.push((row_bits + column_bits, index, array.blocks.len()));
                    array.blocks.push(Block { row, column, row_bits, column_bits, offset: 0 });
                }
            }
        }
        // The face is a block like any other. Equal blocks stay in the order of their arrays.
        const FACE: usize = usize::MAX;
        blocks.push((FACE_BITS, FACE, 0));
        blocks.sort_by_key(|&(bits, _, _)| std::cmp::Reverse(bits));
        let (mut offset, mut face) = (0, 0);
        for (bits, array, block) in blocks {
            match array {
                FACE => face = offset,
                _ => arrays[array].blocks[block].offset = offset,
            }
            offset += 1 << bits;
        }
        Layout { arrays, face, sizes: Sizes::new(offset) }
    }
}

/// The powers of two that a number is the sum of, the largest first, each with what comes before it.
fn powers(count: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..usize::BITS as usize).rev().filter(move |&bits| count >> bits & 1 == 1).map(move |bits| {
        // The higher digits alone.
        (count >> bits >> 1 << bits << 1, bits)
    })
}

impl Layout {
    /// All arrays.
    pub fn arrays(&self) -> impl Iterator<Item = (ArrayId, &Array)> {
        self.arrays.iter().enumerate().map(|(index, array)| (ArrayId(index), array))
    }

    /// One array.
    pub fn array(&self, id: ArrayId) -> &Array {
        &self.arrays[id.0]
    }

    /// The cells of the random face.
    pub fn face(&self) -> Range<usize> {
        self.face..self.face + (1 << FACE_BITS)
    }

    /// An array's extension at a point, times a factor.
    pub fn extension(&self, id: ArrayId, row: &[E], column: &[E], factor: E) -> Functional {
        let array = self.array(id);
        debug_assert_eq!((row.len(), column.len()), (bits_of(array.rows), bits_of(array.columns)));
        let pieces = array.blocks.iter().map(|block| {
            let (row_hi, row_lo) = row.split_at(row.len() - block.row_bits);
            let (column_hi, column_lo) = column.split_at(column.len() - block.column_bits);
            let factor = factor
                * eq_at(row_hi, block.row >> block.row_bits)
                * eq_at(column_hi, block.column >> block.column_bits);
            Piece::Block { offset: block.offset, point: [row_lo, column_lo].concat(), factor }
        });
        Functional(pieces.collect())
    }

    /// `Σ_i weights[i]·cell[start + i]` of an array of one row.
    pub fn dense(&self, id: ArrayId, start: usize, weights: &[E]) -> Functional {
        let end = start + weights.len();
        let pieces = self.array(id).blocks.iter().filter_map(|block| {
            let from = start.max(block.column);
            let to = end.min(block.column + (1 << block.column_bits));
            (from < to).then(|| Piece::Dense {
                offset: block.offset + from - block.column,
                weights: weights[from - start..to - start].to_vec(),
            })
        });
        Functional(pieces.collect())
    }

    /// `Σ_{r, c} rows[r]·columns[c]·entry` of a tensor: a functional of the cells, and what is to be added to it.
    pub fn outer(&self, tensor: &Tensor, rows: &[E], columns: &[E]) -> (Functional, E) {
        let mut all = Functional::default();
        for (factor, &(id, _)) in tensor.factors().zip(&tensor.limbs) {
            for block in &self.array(id).blocks {
                let rows = &rows[block.row..block.row + (1 << block.row_bits)];
                let columns = columns[block.column..block.column + (1 << block.column_bits)].to_vec();
                let rows = rows.iter().map(|&x| x * factor).collect();
                all.0.push(Piece::Outer { offset: block.offset, rows, columns });
            }
        }
        let sum = |weights: &[E], count: usize| weights[..count].iter().copied().sum::<E>();
        let ones = sum(rows, tensor.rows) * sum(columns, tensor.columns);
        let mut constant = -(ones * signed(tensor.offset));
        if let Some(hot) = &tensor.hot {
            let of_hot: Vec<E> = hot.columns.iter().map(|&column| columns[column]).collect();
            constant += self.hot(hot, rows, &of_hot, &mut all) * sum(rows, tensor.rows);
        }
        (all, constant)
    }

    /// The cell of an entry of an array.
    pub fn cell(&self, id: ArrayId, row: usize, column: usize) -> Option<usize> {
        self.array(id).blocks.iter().find_map(|block| {
            let (row, column) = (row.checked_sub(block.row)?, column.checked_sub(block.column)?);
            let inside = row >> block.row_bits == 0 && column >> block.column_bits == 0;
            inside.then(|| block.offset + (row << block.column_bits) + column)
        })
    }

    /// The cell of the high limb of an entry of a hot column, and what it is multiplied by.
    pub fn high(&self, tensor: &Tensor, row: usize, column: usize) -> Option<(usize, F)> {
        let hot = tensor.hot.as_ref()?;
        let at = hot.columns.binary_search(&column).ok()?;
        Some((self.cell(hot.high, row, at)?, F::from_u64(1 << Hot::LOW)))
    }

    /// A tensor's extension at a point, times a factor: a functional of the cells, and what is to be added to it.
    pub fn tensor(&self, tensor: &Tensor, row: &[E], column: &[E], factor: E) -> (Functional, E) {
        let mut all = Functional::default();
        for (factor_of_limb, &(id, _)) in tensor.factors().zip(&tensor.limbs) {
            all.0.extend(self.extension(id, row, column, factor * factor_of_limb).0);
        }
        let ones = below(row, tensor.rows) * below(column, tensor.columns);
        let mut constant = -(factor * ones * signed(tensor.offset));
        if let Some(hot) = &tensor.hot {
            let of_hot: Vec<E> = hot.columns.iter().map(|&at| factor * eq_at(column, at)).collect();
            constant += self.hot(hot, &eq_table(row), &of_hot, &mut all) * below(row, tensor.rows);
        }
        (all, constant)
    }

    /// Adds the high limbs of hot columns, each times the weights of its row and column; returns what is to be added for each row of weight one.
    fn hot(&self, hot: &Hot, rows: &[E], of_hot: &[E], all: &mut Functional) -> E {
        let shift = F::from_u64(1 << Hot::LOW);
        for block in &self.array(hot.high).blocks {
            let columns = &of_hot[block.column..block.column + (1 << block.column_bits)];
            all.0.push(Piece::Outer {
                offset: block.offset,
                rows: rows[block.row..block.row + (1 << block.row_bits)].to_vec(),
                columns: columns.iter().map(|&x| x * shift).collect(),
            });
        }
        -(of_hot.iter().copied().sum::<E>() * signed(Hot::OFFSET))
    }
}

impl Tensor {
    /// What limbs are multiplied by.
    pub fn factors(&self) -> impl Iterator<Item = F> + '_ {
        self.limbs.iter().scan(0, |shift, &(_, bits)| {
            let factor = F::from_u64(1 << *shift);
            *shift += bits;
            Some(factor)
        })
    }

    /// Everything that decides what it is, for a digest.
    pub(crate) fn describe(&self, hash: &mut dyn FnMut(&[u8])) {
        let mut number = |x: u64| hash(&x.to_le_bytes());
        [self.rows as u64, self.columns as u64, self.offset as u64, self.limbs.len() as u64]
            .into_iter()
            .for_each(&mut number);
        for &(id, bits) in &self.limbs {
            number(id.0 as u64);
            number(bits.into());
        }
        match &self.hot {
            None => number(u64::MAX),
            Some(hot) => {
                number(hot.columns.len() as u64);
                hot.columns.iter().for_each(|&column| number(column as u64));
                number(hot.high.0 as u64);
            }
        }
    }

    /// Bits of all limbs.
    pub fn bits(&self) -> u32 {
        self.limbs.iter().map(|&(_, bits)| bits).sum()
    }

    /// Whether a value has a place in a column of the tensor.
    pub fn holds(&self, column: usize, value: i64) -> bool {
        let (offset, bits) = self.format(column);
        // Below 2^62 by the bounds of the model.
        let shifted = i128::from(value) + i128::from(offset);
        (0..1i128 << bits).contains(&shifted)
    }

    /// What is taken off in a column, and its bits.
    pub fn format(&self, column: usize) -> (i64, u32) {
        match &self.hot {
            Some(hot) if hot.columns.binary_search(&column).is_ok() => {
                (self.offset + Hot::OFFSET, Hot::LOW + Hot::HIGH)
            }
            _ => (self.offset, self.bits()),
        }
    }

    /// The most that the magnitude of an entry of a column can be.
    pub fn most(&self, column: usize) -> u128 {
        let (offset, bits) = self.format(column);
        let offset = i128::from(offset);
        offset.unsigned_abs().max(((1i128 << bits) - offset).unsigned_abs())
    }

    /// The most that the magnitude of any entry can be.
    pub fn most_of_all(&self) -> u128 {
        let hot = self.hot.iter().flat_map(|hot| hot.columns.iter().copied());
        hot.chain([0]).map(|column| self.most(column)).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_cell_for_each_entry_and_no_other() {
        let mut builder = Builder::default();
        for (rows, columns) in [(100, 768), (1, 1), (7, 5), (64, 50), (3, 1)] {
            builder.array(rows, columns, Cells::Free);
        }
        let layout = builder.build();
        let mut taken = vec![0; layout.sizes.cells];
        for (_, array) in layout.arrays() {
            let mut entries = vec![0; array.rows * array.columns];
            for block in &array.blocks {
                assert_eq!(block.offset % (1 << block.bits()), 0);
                block.range().for_each(|cell| taken[cell] += 1);
                for row in block.row..block.row + (1 << block.row_bits) {
                    for column in block.column..block.column + (1 << block.column_bits) {
                        entries[row * array.columns + column] += 1;
                    }
                }
            }
            assert!(entries.iter().all(|&count| count == 1));
        }
        layout.face().for_each(|cell| taken[cell] += 1);
        let used = 100 * 768 + 1 + 35 + 3200 + 3 + 64;
        assert_eq!(taken.iter().filter(|&&count| count == 1).count(), used);
        assert!(taken.iter().all(|&count| count <= 1));
    }

    #[test]
    fn tensors_know_what_they_hold() {
        let mut builder = Builder::default();
        let tensor = builder.signed(2, 2, 24);
        assert_eq!(tensor.limbs.iter().map(|&(_, bits)| bits).collect::<Vec<_>>(), [16, 8]);
        assert!(tensor.holds(0, -(1 << 23)) && tensor.holds(0, (1 << 23) - 1));
        assert!(!tensor.holds(0, 1 << 23) && !tensor.holds(0, -(1 << 23) - 1));
        let tensor = builder.unsigned(2, 2, 12);
        assert!(
            [0, 4095].iter().all(|&x| tensor.holds(0, x)) && ![-1, 4096].iter().any(|&x| tensor.holds(0, x))
        );
        let tensor = builder.signed_hot(2, 5, &[1, 4]);
        assert!(tensor.holds(1, -(1 << 23)) && tensor.holds(4, (1 << 23) - 1) && tensor.holds(0, -(1 << 15)));
        assert!(!tensor.holds(0, 1 << 15) && !tensor.holds(4, 1 << 23));
        assert_eq!([0, 1].map(|column| tensor.most(column)), [1 << 15, 1 << 23]);
    }
}
