//! What a prover fills in.

use p3_field::PrimeCharacteristicRing;

use crate::field::{F, wipe};
use crate::layout::{ArrayId, Layout, Tensor};

/// The cells of a system, all of them secret.
pub struct Witness {
    pub(crate) cells: Vec<F>,
    /// Integers that no cell has: queries, keys and values.
    pub(crate) hidden: Vec<Vec<i64>>,
}

/// A value that has no place in its tensor: what it is part of cannot be proved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a value is out of range")]
pub struct OutOfRange;

impl Witness {
    /// Of zeros, with so many lists of hidden integers.
    pub(crate) fn new(layout: &Layout, hidden: usize) -> Self {
        Self { cells: F::zero_vec(layout.sizes.cells), hidden: vec![Vec::new(); hidden] }
    }

    /// Fills in a tensor, row-major. Which value was out of range is not said: it is a secret.
    pub fn set(&mut self, layout: &Layout, tensor: &Tensor, values: &[i64]) -> Result<(), OutOfRange> {
        let columns = tensor.columns;
        let fits = values.iter().enumerate().all(|(i, &value)| tensor.holds(i % columns, value));
        if values.len() != tensor.rows * columns || !fits {
            return Err(OutOfRange);
        }
        let offsets: Vec<i64> = (0..columns).map(|column| tensor.format(column).0).collect();
        let mut fill = |id: ArrayId, bits: u32, shift: u32, of: &dyn Fn(usize) -> usize| {
            for block in &layout.array(id).blocks {
                let width = 1 << block.column_bits;
                for (row, cells) in self.cells[block.range()].chunks_mut(width).enumerate() {
                    for (column, cell) in cells.iter_mut().enumerate() {
                        let column = of(block.column + column);
                        let value = values[(block.row + row) * columns + column] + offsets[column];
                        *cell = F::from_u64((value as u64 >> shift) & ((1 << bits) - 1));
                    }
                }
            }
        };
        let mut shift = 0;
        for &(id, bits) in &tensor.limbs {
            fill(id, bits, shift, &|column| column);
            shift += bits;
        }
        if let Some(hot) = &tensor.hot {
            fill(hot.high, u32::BITS, shift, &|column| hot.columns[column]);
        }
        Ok(())
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        wipe(&mut self.cells);
        self.hidden.iter_mut().for_each(|values| wipe(values));
    }
}
