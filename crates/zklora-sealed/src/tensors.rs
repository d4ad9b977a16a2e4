//! Tensors, tables and the adapter, before they are laid out.

use crate::adapter::Adapter;
use crate::field::{F, signed};
use crate::layout::{self, ArrayId, Tensor};
use crate::lookup::{self, Table};
use crate::relation::Cut;
use zklora_proto::ModuleShape;

/// Collects what is committed to.
#[derive(Debug, Default)]
pub struct Tensors {
    layout: layout::Builder,
    adapter: Option<Adapter>,
    tables: Vec<Table>,
    pairs: Vec<(usize, ArrayId, ArrayId)>,
}

impl Tensors {
    /// The adapter: modules of these shapes, at least one.
    pub fn adapter(&mut self, shapes: &[ModuleShape]) {
        self.adapter = Some(Adapter::new(&mut self.layout, shapes));
    }

    /// A tensor of signed integers.
    pub fn signed(&mut self, rows: usize, columns: usize, bits: u32) -> Tensor {
        self.layout.signed(rows, columns, bits)
    }

    /// A tensor of integers that are not negative.
    pub fn unsigned(&mut self, rows: usize, columns: usize, bits: u32) -> Tensor {
        self.layout.unsigned(rows, columns, bits)
    }

    /// A tensor of signed 16 bits, with signed 24 bits in some columns.
    pub fn signed_hot(&mut self, rows: usize, columns: usize, hot: &[usize]) -> Tensor {
        self.layout.signed_hot(rows, columns, hot)
    }

    /// What is laid out.
    pub(crate) fn layout(&mut self) -> &mut layout::Builder {
        &mut self.layout
    }

    /// The tensors of a rounding.
    pub fn cut(&mut self, rows: usize, columns: usize, output_bits: u32, bits: u32) -> Cut {
        Cut::new(&mut self.layout, rows, columns, output_bits, bits)
    }

    /// A public table of 2^16 values by index. Returns its number; `None` for another number of values.
    pub fn table(&mut self, values: impl IntoIterator<Item = i64>) -> Option<usize> {
        let values: Vec<F> = values.into_iter().map(signed).collect();
        if values.len() != lookup::TABLE {
            return None;
        }
        self.tables.push(Table { values: Some(values) });
        Some(self.tables.len())
    }

    /// Two tensors of one size whose entries are index and value in a table: of each, bits and what is taken off the cells.
    pub fn looked_up(
        &mut self,
        rows: usize,
        columns: usize,
        table: usize,
        formats: [(u32, i64); 2],
    ) -> [Tensor; 2] {
        let [index, value] = formats.map(|(bits, offset)| self.layout.unranged(rows, columns, bits, offset));
        self.pairs.push((table, index.limbs[0].0, value.limbs[0].0));
        [index, value]
    }

    /// A rounding into a tensor that is there.
    pub fn cut_into(&mut self, output: Tensor, bits: u32) -> Cut {
        Cut::into(&mut self.layout, output, bits)
    }

    /// The adapter, if there is one.
    pub fn adapter_of(&self) -> Option<&Adapter> {
        self.adapter.as_ref()
    }

    /// All of it: arrays, adapter, tables, and pairs that are looked up in them.
    #[allow(clippy::type_complexity, reason = "its one user takes it apart")]
    pub(crate) fn parts(
        self,
    ) -> (layout::Builder, Option<Adapter>, Vec<Table>, Vec<(usize, ArrayId, ArrayId)>) {
        (self.layout, self.adapter, self.tables, self.pairs)
    }
}
