//! The gate of rows of pads: 16 elements in a row, absorbed by a sponge, and their sum with public factors.
//!
//! - Eight pads overwrite the first eight elements of a Poseidon state, whose last four come from the row before; after the permutation, eight more do the same, and after a second
//!   permutation the last four go to the next row. That is the sponge of the commitment to the pads.
//! - `acc' = acc + Σ λ·pad` over the quadratic extension, where two pads are one of its elements, and the λ are read from [`super::instance`] columns.

use std::array::from_fn;
use std::ops::{Add, Mul, Sub};

use plonky2::util::serialization::Buffer;

use super::expression::impl_gate;
use super::instance::CIRCUIT_WIRES;
use super::poseidon::{self, SBOXES, WIDTH};
use super::weight::{CAPACITY, NON_RESIDUE, WORDS};

/// Permutations of one row.
pub const PERMUTATIONS: usize = 2;
/// Pads of one row, as elements of the base field.
pub const PADS: usize = PERMUTATIONS * WORDS;

/// First wire of what the sponge carries into this row.
pub const WIRE_CAPACITY_IN: usize = 0;
/// First wire of what the sponge carries on.
pub const WIRE_CAPACITY_OUT: usize = WIRE_CAPACITY_IN + CAPACITY;
/// First wire of the accumulator before this row.
pub const WIRE_ACC_IN: usize = WIRE_CAPACITY_OUT + CAPACITY;
/// First wire of the accumulator after this row.
pub const WIRE_ACC_OUT: usize = WIRE_ACC_IN + 2;
/// First wire of the pads.
pub const WIRE_PADS: usize = WIRE_ACC_OUT + 2;
/// First wire of the inputs of the permutations' S-boxes.
pub const WIRE_SBOXES: usize = WIRE_PADS + PADS;
/// First wire of what the first permutation of a row hands to the second.
pub const WIRE_CAPACITY_MIDDLE: usize = WIRE_SBOXES + PERMUTATIONS * SBOXES;
const WIRES: usize = WIRE_CAPACITY_MIDDLE + CAPACITY;
const _: () = assert!(WIRES <= CIRCUIT_WIRES && WIRE_SBOXES <= crate::parameters::ROUTED);

const CONSTRAINTS: usize = PERMUTATIONS * (SBOXES + CAPACITY) + 2;

/// See the module's documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PadGate;

impl PadGate {
    /// Evaluates all constraints over any ring that holds the field; `constant` embeds a number below p.
    ///
    /// Order: of each permutation the inputs of the S-boxes and what it hands on; both parts of the accumulator.
    #[inline(always)]
    fn constraints<T>(&self, wire: impl Fn(usize) -> T, constant: impl Fn(u64) -> T, mut emit: impl FnMut(T))
    where
        T: Copy + Add<Output = T> + Sub<Output = T> + Mul<Output = T>,
    {
        let mut carried: [T; CAPACITY] = from_fn(|i| wire(WIRE_CAPACITY_IN + i));
        for permutation in 0..PERMUTATIONS {
            let state: [T; WIDTH] = from_fn(|i| match i.checked_sub(WORDS) {
                Some(i) => carried[i],
                None => wire(WIRE_PADS + permutation * WORDS + i),
            });
            let state = poseidon::permute(state, &constant, |slot, input| {
                let given = wire(WIRE_SBOXES + permutation * SBOXES + slot);
                emit(given - input);
                given
            });
            // A wire of its own, so that no S-box of the next permutation has the degree of two.
            let first = if permutation + 1 < PERMUTATIONS { WIRE_CAPACITY_MIDDLE } else { WIRE_CAPACITY_OUT };
            carried = from_fn(|i| wire(first + i));
            for (i, &carried) in carried.iter().enumerate() {
                emit(carried - state[WORDS + i]);
            }
        }
        let seven = constant(NON_RESIDUE);
        let mut acc = [wire(WIRE_ACC_IN), wire(WIRE_ACC_IN + 1)];
        for i in (0..PADS).step_by(2) {
            let [x, y] = [0, 1].map(|part| wire(WIRE_PADS + i + part));
            let [a, b] = [0, 1].map(|part| wire(CIRCUIT_WIRES + i + part));
            acc = [acc[0] + x * a + seven * (y * b), acc[1] + x * b + y * a];
        }
        emit(wire(WIRE_ACC_OUT) - acc[0]);
        emit(wire(WIRE_ACC_OUT + 1) - acc[1]);
    }
}

impl_gate!(
    PadGate,
    id: |_: &PadGate| "zklora v1 PadGate".into(),
    write: |_: &PadGate, _: &mut Vec<u8>| Ok(()),
    read: |_: &mut Buffer<'_>, _| Ok(PadGate),
    wires: |_: &PadGate| CIRCUIT_WIRES + PADS,
    degree: 7,
    constraints: CONSTRAINTS
);

#[cfg(test)]
mod tests {
    use plonky2::gates::gate_testing::{test_eval_fns, test_low_degree};

    use super::*;
    use crate::{D, F};

    #[test]
    fn degree_is_as_declared() {
        test_low_degree::<F, _, D>(PadGate);
    }

    #[test]
    fn native_packed_and_recursive_evaluation_agree() {
        use plonky2::plonk::config::PoseidonGoldilocksConfig;
        test_eval_fns::<F, PoseidonGoldilocksConfig, _, 2>(PadGate).unwrap();
    }
}
