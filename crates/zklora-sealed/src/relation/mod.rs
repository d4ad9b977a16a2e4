//! What has to hold between tensors, each with its bounds, the values that an honest prover fills in, and its part of the conversation.

pub mod attention;
pub mod head;
pub mod linear;
pub mod norm;
pub mod public;
pub mod softmax;

use p3_field::PrimeCharacteristicRing;

use crate::field::{E, F, below};
use crate::layout::{Builder, Layout, Tensor};
use crate::scene::{Scene, Sum};
use crate::witness::{OutOfRange, Witness};

/// A rounding: `2^bits·output + remainder = value + 2^(bits-1)` with the remainder in `0..2^bits`, so that both are the only ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// The rounded value.
    pub output: Tensor,
    /// What was dropped.
    pub remainder: Tensor,
    /// Bits that are dropped, at least one.
    pub bits: u32,
}

impl Cut {
    /// A rounding by `bits` to signed integers of `output_bits`.
    pub fn new(builder: &mut Builder, rows: usize, columns: usize, output_bits: u32, bits: u32) -> Self {
        let output = builder.signed(rows, columns, output_bits);
        Self { output, remainder: builder.unsigned(rows, columns, bits), bits }
    }

    /// A rounding to a tensor that is there.
    pub fn into(builder: &mut Builder, output: Tensor, bits: u32) -> Self {
        Self { remainder: builder.unsigned(output.rows, output.columns, bits), output, bits }
    }

    /// `(output, remainder)` of a value.
    pub fn of(&self, value: i64) -> (i64, i64) {
        let shifted = value + (1 << (self.bits - 1));
        (shifted >> self.bits, shifted & ((1 << self.bits) - 1))
    }

    /// `2^bits·output + remainder - 2^(bits-1)` at a point: the value that was rounded.
    fn converse(&self, scene: &mut Scene<'_>, row: &[E], column: &[E]) -> Sum {
        let z = scene.tensor(&self.output, row, column, E::ONE);
        let r = scene.tensor(&self.remainder, row, column, E::ONE);
        let half = below(row, self.output.rows) * below(column, self.output.columns) * power(self.bits - 1);
        Sum::of(-half).said(power(self.bits).into(), z).said(E::ONE, r)
    }

    /// Fills in the cells.
    pub fn fill(
        &self,
        witness: &mut Witness,
        layout: &Layout,
        outputs: &[i64],
        remainders: &[i64],
    ) -> Result<(), OutOfRange> {
        witness.set(layout, &self.output, outputs)?;
        witness.set(layout, &self.remainder, remainders)
    }

    /// The most that its side of the identity can be.
    fn bound(&self) -> u128 {
        self.output.most_of_all() << self.bits
    }
}

/// Both sides of every identity stay below this in magnitude: then one that holds modulo p is one of integers.
pub const BOUND_BITS: u32 = 62;

/// Why a relation is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RelationError {
    /// Its numbers could wrap around.
    #[error(transparent)]
    Bound(#[from] BoundError),
    /// Its parts do not fit together.
    #[error("{name}: {what}")]
    Shape {
        /// The relation.
        name: String,
        /// What does not fit.
        what: &'static str,
    },
}

/// A relation whose numbers could wrap around.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {what} could reach {found}, expected less than {below}")]
pub struct BoundError {
    /// The relation.
    pub name: String,
    /// What could.
    pub what: &'static str,
    /// The largest magnitude.
    pub found: u128,
    /// What it has to stay below.
    pub below: u128,
}

fn bounded(name: &str, what: &'static str, found: u128) -> Result<(), BoundError> {
    let below = 1 << BOUND_BITS;
    if found < below { Ok(()) } else { Err(BoundError { name: name.into(), what, found, below }) }
}

/// `2^bits`, as an element.
fn power(bits: u32) -> F {
    F::TWO.exp_u64(bits.into())
}
