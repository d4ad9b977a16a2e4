//! What hides the witness in a proof.
//!
//! plonky2's own `zero_knowledge` mode adds row pairs for the permutation polynomial without tying them, so that σ is the
//! identity on them and Z opens unblinded values; it is also dear. This module takes its place, from outside the library.
//! What a proof reveals is uniform, whatever the witness, because of the following, each of which covers what the
//! others do not:
//!
//! 1. **Pads**: D wire columns are uniformly random in every row. FRI batches all columns with powers of one challenge,
//!    so that they are a one-time pad, over the extension field, for the polynomial that FRI folds.
//! 2. **Quotient masks**: random columns that [`MaskGate`] multiplies into the quotient, one for each challenge that
//!    combines constraints. They make the opened values of all its chunks uniform.
//! 3. **Free rows** without a gate are random in every column: for the values of wire columns that are opened directly, one
//!    for each query and D at ζ.
//! 4. **Pairs** of rows are tied, wire by wire, by copy constraints and random: for what is revealed of Z and its
//!    partial products. Each query opens Z(x), and the opened quotient gives Z(gx) away (as many equations as
//!    Zs); D values each are opened at ζ and gζ.
//! 5. **Salts** in the leaves of the trees of wires, Z and quotient: what is not opened stays hidden by the hash.
//!
//! [`Accounting`] computes from a built circuit that there is enough of everything; no circuit is built without.
//! `docs/zero-knowledge.md` gives the argument and its sources.

mod accounting;
mod gate;
#[cfg(test)]
mod statistics;
#[cfg(test)]
mod tests;

use std::ops::Range;

use plonky2::field::types::{Field, Sample};
use plonky2::gates::noop::NoopGate;
use plonky2::iop::target::Target;
use plonky2::iop::wire::Wire;
use plonky2::iop::witness::{PartitionWitness, WitnessWrite};
use plonky2::plonk::circuit_builder::CircuitBuilder;
use plonky2::plonk::circuit_data::CircuitData;
use plonky2::util::log2_strict;
use rand::CryptoRng;

pub use self::accounting::{Accounting, HidingError, Item};
pub use self::gate::MaskGate;
use crate::gate::instance::CIRCUIT_WIRES;
use crate::hash::Blake3Config;
use crate::parameters::{CHUNKS, MaskingCounts, ROUTED, SPARE_PAIRS};
use crate::{D, F};

/// Where a circuit's masking is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Masking {
    /// How much there is.
    pub counts: MaskingCounts,
    /// The first of its columns, that of `X^(n-d)`, which [`MaskGate`] shifts by.
    pub shift: usize,
    /// Rows that are random in every column.
    pub free: Vec<usize>,
    /// Pairs of rows, equal in routed columns and random.
    pub pairs: Vec<[usize; 2]>,
    /// The row of [`MaskGate`].
    pub gate_row: usize,
    /// The row of plonky2's public-input gate, whose unused wires plonky2 wants to be random.
    pub public_input_row: usize,
}

impl Masking {
    /// Wires of plonky2's public-input gate.
    const PUBLIC_INPUT_WIRES: usize = 4;

    /// The gate that makes the quotient random.
    pub const fn gate(&self) -> MaskGate {
        MaskGate { shift: self.shift, masks: self.counts.quotient_masks, chunks: CHUNKS }
    }

    /// Adds the rows to a circuit whose columns from `shift` on are for the masking. Pairs are tied, but in tests that show why.
    pub(crate) fn add_to(
        builder: &mut CircuitBuilder<F, D>,
        counts: MaskingCounts,
        shift: usize,
        tie: bool,
    ) -> Self {
        let free = (0..counts.free_rows).map(|_| builder.add_gate(NoopGate, vec![])).collect();
        let routed = builder.config.num_routed_wires;
        let pairs = (0..counts.pairs)
            .map(|_| {
                let pair = [(); 2].map(|()| builder.add_gate(NoopGate, vec![]));
                for column in (0..routed).filter(|_| tie) {
                    builder.connect(Target::wire(pair[0], column), Target::wire(pair[1], column));
                }
                pair
            })
            .collect();
        let gate_row = builder.num_gates();
        let masking = Self { counts, shift, free, pairs, gate_row, public_input_row: usize::MAX };
        builder.add_gate(masking.gate(), vec![]);
        while builder.num_gates() < counts.least_rows {
            builder.add_gate(NoopGate, vec![]);
        }
        masking
    }

    /// Finishes a circuit that has been built: finds the row of the public inputs and has leaves salted.
    ///
    /// plonky2 salts leaves in its `zero_knowledge` mode only, where it also adds rows for nothing. It adds the rows while a
    /// circuit is built and the salts while it is proved, and so the mode is set between the two.
    pub(crate) fn finish(&mut self, data: &mut CircuitData<F, Blake3Config, D>) {
        let public_input = data.common.gates.iter().position(|gate| gate.0.id() == "PublicInputGate");
        self.public_input_row = accounting::gates_of_rows(data)
            .iter()
            .position(|&gate| gate == public_input)
            .expect("plonky2 adds a public-input gate to every circuit");
        data.common.config.zero_knowledge = true;
        data.common.fri_params.leaf_hiding = true;
    }

    /// Columns that are random in every row but that of [`MaskGate`].
    pub fn quotient_masks(&self) -> Range<usize> {
        self.shift + 1..self.shift + 1 + self.counts.quotient_masks
    }

    /// Columns that are random in every row.
    pub fn pads(&self) -> Range<usize> {
        let start = self.quotient_masks().end;
        start..start + self.counts.pads
    }

    /// Whether a wire's value comes from [`Masking::fill`], so that plonky2's generator of random values is not heeded.
    pub(crate) fn fills(&self, wire: Wire) -> bool {
        let public_input = wire.row == self.public_input_row && wire.column >= Self::PUBLIC_INPUT_WIRES;
        wire.column >= self.shift || public_input
    }

    /// Draws every random value of a proof but the salts, which plonky2 draws.
    pub fn fill(
        &self,
        witness: &mut PartitionWitness<'_, F>,
        rng: &mut impl CryptoRng,
    ) -> anyhow::Result<()> {
        self.fill_from(witness, &mut |_| F::sample(rng))
    }

    /// Fills the masking with values from anywhere: see [`Masking::fill`].
    pub(crate) fn fill_from(
        &self,
        witness: &mut PartitionWitness<'_, F>,
        value: &mut dyn FnMut(Part) -> F,
    ) -> anyhow::Result<()> {
        let degree = witness.degree;
        let mut set = |row, column, value| witness.set_wire(Wire { row, column }, value);
        for column in Self::PUBLIC_INPUT_WIRES..CIRCUIT_WIRES {
            set(self.public_input_row, column, value(Part::PublicInputRow))?;
        }
        for &row in &self.free {
            for column in 0..CIRCUIT_WIRES {
                set(row, column, value(Part::FreeRows))?;
            }
        }
        for &[first, second] in &self.pairs {
            for column in 0..CIRCUIT_WIRES {
                let drawn = value(Part::Pairs);
                set(first, column, drawn)?;
                set(second, column, if column < ROUTED { drawn } else { value(Part::Pairs) })?;
            }
        }
        let step = F::primitive_root_of_unity(log2_strict(degree)).exp_u64((degree - block(degree)) as u64);
        for (row, power) in step.powers().take(degree).enumerate() {
            set(row, self.shift, power)?;
            for column in self.quotient_masks() {
                let drawn = if row == self.gate_row { F::ZERO } else { value(Part::QuotientMasks) };
                set(row, column, drawn)?;
            }
            for column in self.pads() {
                set(row, column, value(Part::Pads))?;
            }
        }
        Ok(())
    }
}

/// What a random value is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// For nothing here: so that a Z that happens to be undefined is not undefined in the next attempt too.
    PublicInputRow,
    /// Openings of wires.
    FreeRows,
    /// Z and partial products.
    Pairs,
    /// Chunks of the quotient.
    QuotientMasks,
    /// What FRI folds.
    Pads,
}

/// The coefficients of a mask that are one chunk's own: see [`MaskGate`].
const fn block(degree: usize) -> usize {
    (degree - 1) / CHUNKS
}
