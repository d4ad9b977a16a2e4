//! The shift of a row of scores, which is its log-sum-exp.
//!
//! Of the entries `e = T[D_hi]` that a row has looked up, `Σ e = 2^k·L + dL` has the sum L at the shift C and its rise dL if C were one tick less
//! (docs/exact-model.md, "Shift"). `L ≤ B < L + dL` makes C the only one; with `ℓ = B - L` and `w = dL - 1 - ℓ` it is
//!
//! ```text
//! Σ e = 2^k·(B - ℓ) + dL,   dL = ℓ + w + 1,   ℓ, w, dL in 0..2^k
//! ```
//!
//! where the range of dL makes the split of the sum the only one.

use p3_field::PrimeCharacteristicRing;

use super::{BoundError, bounded, power};
use crate::field::{E, ORDER, Secret, below, signed};
use crate::layout::{Builder, Layout, Tensor};
use crate::scene::{Said, Scene, Sum};
use crate::witness::{OutOfRange, Witness};

/// A table of exponentials, `T[j] = 2^k·E(j) + E(j-1) - E(j)` (docs/exact-model.md, "Tables").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exponentials {
    /// Its number among the tables.
    pub table: usize,
    /// Its entries.
    pub entries: std::sync::Arc<[i64]>,
    /// B.
    pub budget: i64,
    /// k.
    pub step_bits: u32,
}

impl Exponentials {
    /// Bits of an entry.
    pub(crate) fn entry_bits(&self) -> u32 {
        let most = self.entries.iter().copied().max().unwrap_or(0);
        i64::BITS - most.leading_zeros()
    }
}

/// See the module's documentation. Tensors are `rows x columns`, an entry for each row of scores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Softmax {
    /// C.
    pub(crate) shift: Tensor,
    short: Tensor,
    more: Tensor,
    rise: Tensor,
    pub(crate) table: Exponentials,
}

/// Bits of a shift.
pub(crate) const SHIFT_BITS: u32 = 24;

/// What a row's score adds: the index and what is below a tick.
pub(crate) struct Scores {
    pub(crate) index: Vec<i64>,
    pub(crate) low: Vec<i64>,
    pub(crate) entries: Vec<i64>,
}

impl Drop for Scores {
    fn drop(&mut self) {
        for values in [&mut self.index, &mut self.low, &mut self.entries] {
            crate::field::wipe(values);
        }
    }
}

impl Scores {
    /// Of distances `C·2^low_bits - score`.
    pub(crate) fn of(distances: &[i64], low_bits: u32, table: &Exponentials) -> Result<Self, OutOfRange> {
        // At their full length: growing would leave copies.
        let [index, low, entries] = [(); 3].map(|()| Vec::with_capacity(distances.len()));
        let mut scores = Self { index, low, entries };
        for &distance in distances {
            let index = distance >> low_bits;
            // Beyond the table's own end there are zeros up to 2^16.
            let inside = usize::try_from(index).ok().filter(|&index| index < crate::lookup::TABLE);
            let entry = inside.map(|index| table.entries.get(index).copied().unwrap_or(0));
            scores.entries.push(entry.ok_or(OutOfRange)?);
            scores.index.push(index);
            scores.low.push(distance & ((1 << low_bits) - 1));
        }
        Ok(scores)
    }
}

impl Softmax {
    pub(crate) fn new(builder: &mut Builder, rows: usize, columns: usize, table: Exponentials) -> Self {
        let k = table.step_bits;
        Self {
            shift: builder.signed(rows, columns, SHIFT_BITS),
            short: builder.unsigned(rows, columns, k),
            more: builder.unsigned(rows, columns, k),
            rise: builder.unsigned(rows, columns, k),
            table,
        }
    }

    /// Whether a row of so many entries cannot wrap around.
    pub(crate) fn check(&self, name: &str, entries: usize) -> Result<(), BoundError> {
        // Neither side is negative: it is enough that both are below p.
        let most = self.table.entries.iter().map(|e| u128::from(e.unsigned_abs())).max().unwrap_or(0);
        let sum = most.saturating_mul(entries as u128);
        let what = "a row's sum";
        if sum >= u128::from(ORDER) {
            return Err(BoundError { name: name.into(), what, found: sum, below: ORDER.into() });
        }
        if self.table.budget < 1 << self.table.step_bits {
            let found = 1 << self.table.step_bits;
            let below = self.table.budget.unsigned_abs().into();
            return Err(BoundError {
                name: name.into(),
                what: "what a row is short of its budget",
                found,
                below,
            });
        }
        bounded(name, what, u128::from(self.table.budget.unsigned_abs() + 1) << self.table.step_bits)
    }

    pub(crate) fn describe(&self, hash: &mut dyn FnMut(&[u8])) {
        hash(&(self.table.table as u64).to_le_bytes());
        hash(&self.table.budget.to_le_bytes());
        hash(&self.table.step_bits.to_le_bytes());
    }

    pub(crate) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        [&self.shift, &self.short, &self.more, &self.rise].into_iter()
    }

    /// Shows the rows' sums, which `sums` are at the point.
    pub(crate) fn converse(&self, scene: &mut Scene<'_>, sums: Said, row: &[E], column: &[E]) {
        let ones = below(row, self.shift.rows) * below(column, self.shift.columns);
        let [short, more, rise] =
            [&self.short, &self.more, &self.rise].map(|tensor| scene.tensor(tensor, row, column, E::ONE));
        let step: E = power(self.table.step_bits).into();
        let budget = step * ones * signed(self.table.budget);
        scene.check(Sum::of(-budget).said(E::ONE, sums).said(step, short).said(-E::ONE, rise));
        scene.check(Sum::of(-ones).said(E::ONE, rise).said(-E::ONE, short).said(-E::ONE, more));
    }

    /// Fills in the cells, from shifts and what each row's entries add up to.
    pub(crate) fn fill(
        &self,
        witness: &mut Witness,
        layout: &Layout,
        shifts: &[i64],
        sums: &[i64],
    ) -> Result<(), OutOfRange> {
        let k = self.table.step_bits;
        let of_rows = |of: &dyn Fn(i64, i64) -> i64| -> Secret<i64> {
            let rows = sums.iter().map(|sum| of(self.table.budget - (sum >> k), sum & ((1 << k) - 1)));
            rows.collect::<Vec<_>>().into()
        };
        let (short, rise) = (of_rows(&|short, _| short), of_rows(&|_, rise| rise));
        let more = of_rows(&|short, rise| rise - 1 - short);
        witness.set(layout, &self.shift, shifts)?;
        witness.set(layout, &self.short, &short)?;
        witness.set(layout, &self.more, &more)?;
        witness.set(layout, &self.rise, &rise)
    }
}
