//! What hides the witness in a proof.
//!
//! plonky2's own `zero_knowledge` mode adds row pairs for the permutation polynomial without tying them, so that σ is the
//! identity on them and Z opens unblinded values; it is also dear. This module takes its place, from outside the library:
//!
//! 1. [`MASK_COLUMNS`] extra wire columns are uniformly random in every row. FRI batches all columns with powers of one
//!    challenge, so they are the random masking polynomial, over the extension field, for all that FRI folds; and they salt
//!    each leaf of the wires tree with 256 bits.
//! 2. [`free_rows`] rows without a gate are random in every other column: for the values of wire columns that are opened
//!    directly, one for each query and D at ζ, with a margin that leaves entropy for the quotient.
//! 3. [`pairs`] pairs of rows are tied, wire by wire, by copy constraints and random: for what is revealed of Z and its
//!    partial products. A pair randomises one value of each Z. Each query opens Z(x), and the opened quotient gives
//!    Z(gx) away (three equations for the three Zs); D values each are opened at ζ and gζ.
//!
//! `docs/zero-knowledge.md` gives the argument and says what of it is heuristic.

use plonky2::field::types::Sample;
use plonky2::gates::noop::NoopGate;
use plonky2::iop::target::Target;
use plonky2::iop::wire::Wire;
use plonky2::iop::witness::{PartitionWitness, Witness, WitnessWrite};
use plonky2::plonk::circuit_builder::CircuitBuilder;
use rand::CryptoRng;

use crate::security::{MASK_COLUMNS, Security};
use crate::{D, F};

/// Free rows beyond the openings of a wire column, for the quotient's chunks.
const MARGIN: usize = 64;

/// Number of free rows.
pub const fn free_rows(security: Security) -> usize {
    security.queries() + D + MARGIN
}

/// Number of tied pairs of rows.
pub const fn pairs(security: Security) -> usize {
    2 * (security.queries() + D)
}

/// Rows of a circuit that masking takes.
pub const fn rows(security: Security) -> usize {
    free_rows(security) + 2 * pairs(security)
}

/// Where a circuit's masking rows are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Masking {
    /// Rows that are random in every column.
    pub free: Vec<usize>,
    /// Pairs of rows, equal in routed columns and random.
    pub pairs: Vec<[usize; 2]>,
}

impl Masking {
    /// Adds the rows to a circuit and ties the pairs.
    pub fn add_to(builder: &mut CircuitBuilder<F, D>, security: Security) -> Self {
        let free = (0..free_rows(security)).map(|_| builder.add_gate(NoopGate, vec![])).collect();
        let routed = security.config().num_routed_wires;
        let pairs = (0..pairs(security))
            .map(|_| {
                let pair = [(); 2].map(|()| builder.add_gate(NoopGate, vec![]));
                for column in 0..routed {
                    builder.connect(Target::wire(pair[0], column), Target::wire(pair[1], column));
                }
                pair
            })
            .collect();
        Self { free, pairs }
    }

    /// Draws every random value of a proof, after all other values have been set.
    pub fn fill(
        &self,
        witness: &mut PartitionWitness<'_, F>,
        security: Security,
        rng: &mut impl CryptoRng,
    ) -> anyhow::Result<()> {
        let config = security.config();
        let circuit_wires = config.num_wires - MASK_COLUMNS;
        let mut set = |row, column, rng: &mut _| witness.set_wire(Wire { row, column }, F::sample(rng));
        for &row in &self.free {
            for column in 0..circuit_wires {
                set(row, column, rng)?;
            }
        }
        for &[first, second] in &self.pairs {
            for column in 0..circuit_wires {
                set(first, column, rng)?;
                // Routed wires of the second row are the first row's.
                if column >= config.num_routed_wires {
                    set(second, column, rng)?;
                }
            }
        }
        for row in 0..witness.degree {
            for column in circuit_wires..config.num_wires {
                let wire = Wire { row, column };
                // plonky2 itself has filled the unused wires of the public-input row, with randomness too.
                if witness.try_get_wire(wire).is_none() {
                    witness.set_wire(wire, F::sample(rng))?;
                }
            }
        }
        Ok(())
    }
}
