//! The head: logits, the shift of each row of them, and the loss of any token.
//!
//! ```text
//! C·2^16 - (X·W' + b')[j] = 2^16·D_hi[j] + D_lo[j],   e[j] = T[D_hi[j]]
//! ```
//!
//! and the rows of e are as [`super::softmax`] says. `2^16·D_hi + D_lo` is the loss of token j in units of 2^-25 octave.

use p3_field::PrimeCharacteristicRing;

use super::linear::Form;
use super::softmax::{Exponentials, SHIFT_BITS, Scores, Softmax};
use super::{RelationError, bounded, power};
use crate::field::{E, Secret, below, bits_of};
use crate::layout::{Layout, Tensor};
use crate::scene::{Scene, Sum};
use crate::tensors::Tensors;
use crate::witness::{OutOfRange, Witness};

/// Fraction bits of a logit below a tick.
pub const LOW_BITS: u32 = 16;

/// What a head is made of.
pub struct Inputs {
    /// From normalised activations to logits; without LoRA.
    pub form: Form,
    /// The exponentials.
    pub table: Exponentials,
    /// The most that a logit can be.
    pub logit_bound: u128,
}

/// See the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    form: Form,
    /// D_hi, `rows x vocabulary`.
    pub index: Tensor,
    /// D_lo, `rows x vocabulary`.
    pub low: Tensor,
    entry: Tensor,
    softmax: Softmax,
}

impl Head {
    pub(crate) fn new(builder: &mut Tensors, name: &str, inputs: Inputs) -> Result<Self, RelationError> {
        let Inputs { form, table, logit_bound } = inputs;
        form.check(name)?;
        form.fits(name, builder.adapter_of())?;
        if form.lora.is_some() {
            return Err(RelationError::Shape { name: name.into(), what: "a head has no LoRA" });
        }
        let (rows, vocabulary) = (form.input.rows, form.weights.columns());
        bounded(name, "a logit's distance", logit_bound.saturating_add(1 << (SHIFT_BITS - 1 + LOW_BITS)))?;
        let [index, entry] =
            builder.looked_up(rows, vocabulary, table.table, [(16, 0), (table.entry_bits(), 0)]);
        let low = builder.unsigned(rows, vocabulary, LOW_BITS);
        let softmax = Softmax::new(builder.layout(), rows, 1, table);
        softmax.check(name, vocabulary)?;
        Ok(Self { form, index, low, entry, softmax })
    }

    pub(crate) fn describe(&self, hash: &mut dyn FnMut(&[u8])) {
        self.form.describe(hash);
        self.softmax.describe(hash);
    }

    pub(crate) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        [&self.form.input, &self.index, &self.low, &self.entry].into_iter().chain(self.softmax.tensors())
    }

    pub(crate) fn converse(&self, scene: &mut Scene<'_>) {
        let (rows, vocabulary) = (self.form.input.rows, self.form.weights.columns());
        let (row_bits, column_bits) = (bits_of(rows), bits_of(vocabulary));
        let z_t = scene.run.challenges("position", row_bits);
        let z_j = scene.run.challenges("token of the vocabulary", column_bits);
        let tick: E = power(LOW_BITS).into();
        let index = scene.tensor(&self.index, &z_t, &z_j, E::ONE);
        let low = scene.tensor(&self.low, &z_t, &z_j, E::ONE);
        let shift = scene.tensor(&self.softmax.shift, &z_t, &[], E::ONE);
        let logits =
            Sum::default().said(tick * below(&z_j, vocabulary), shift).said(-tick, index).said(-E::ONE, low);
        let logits = scene.affine(logits);
        self.form.converse(scene, None, logits, &z_t, &z_j);

        let z_t = scene.run.challenges("position's sum", row_bits);
        let halves = vec![E::ONE.halve(); column_bits];
        let sums = scene.tensor(&self.entry, &z_t, &halves, power(column_bits as u32).into());
        self.softmax.converse(scene, sums, &z_t, &[]);
    }

    /// Fills in the cells, from shifts and logits, row-major.
    pub fn fill(
        &self,
        witness: &mut Witness,
        layout: &Layout,
        shifts: &[i64],
        logits: &[i64],
    ) -> Result<(), OutOfRange> {
        let vocabulary = self.form.weights.columns();
        let mut distances: Secret<i64> = logits.to_vec().into();
        for (row, &shift) in distances.chunks_mut(vocabulary).zip(shifts) {
            row.iter_mut().for_each(|logit| *logit = (shift << LOW_BITS) - *logit);
        }
        let scores = Scores::of(&distances, LOW_BITS, &self.softmax.table)?;
        let sums = scores.entries.chunks(vocabulary).map(|row| row.iter().sum());
        let sums: Secret<i64> = sums.collect::<Vec<_>>().into();
        witness.set(layout, &self.index, &scores.index)?;
        witness.set(layout, &self.low, &scores.low)?;
        witness.set(layout, &self.entry, &scores.entries)?;
        self.softmax.fill(witness, layout, shifts, &sums)
    }
}
