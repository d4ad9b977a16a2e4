//! The gate of rows of products: `acc' = acc + Σ_t κ_t·x_t·y_t` over the quadratic extension, six products a row. The κ are read from [`super::instance`] columns, all else is wires.

use std::ops::{Add, Mul, Sub};

use plonky2::util::serialization::Buffer;

use super::expression::impl_gate;
use super::instance::CIRCUIT_WIRES;
use super::weight::NON_RESIDUE;

/// Products of one row.
pub const SLOTS: usize = 6;
/// First wire of the accumulator before this row.
pub const WIRE_ACC_IN: usize = 0;
/// First wire of the accumulator after this row.
pub const WIRE_ACC_OUT: usize = 2;
const _: () = assert!(wire_x(SLOTS) <= crate::parameters::ROUTED);

/// First wire of the first factor of a product.
pub const fn wire_x(slot: usize) -> usize {
    4 + 4 * slot
}

/// First wire of the second factor of a product.
pub const fn wire_y(slot: usize) -> usize {
    6 + 4 * slot
}

/// See the module's documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProductGate;

impl ProductGate {
    /// Evaluates both parts of the accumulator's constraint.
    #[inline(always)]
    fn constraints<T>(&self, wire: impl Fn(usize) -> T, constant: impl Fn(u64) -> T, mut emit: impl FnMut(T))
    where
        T: Copy + Add<Output = T> + Sub<Output = T> + Mul<Output = T>,
    {
        let seven = constant(NON_RESIDUE);
        let pair = |first: usize| [wire(first), wire(first + 1)];
        let product = |x: [T; 2], y: [T; 2]| [x[0] * y[0] + seven * (x[1] * y[1]), x[0] * y[1] + x[1] * y[0]];
        let mut acc = pair(WIRE_ACC_IN);
        for slot in 0..SLOTS {
            let factors = product(pair(wire_x(slot)), pair(wire_y(slot)));
            let term = product(pair(CIRCUIT_WIRES + 2 * slot), factors);
            acc = [acc[0] + term[0], acc[1] + term[1]];
        }
        let out = pair(WIRE_ACC_OUT);
        emit(out[0] - acc[0]);
        emit(out[1] - acc[1]);
    }
}

impl_gate!(
    ProductGate,
    id: |_: &ProductGate| "zklora v1 ProductGate".into(),
    write: |_: &ProductGate, _: &mut Vec<u8>| Ok(()),
    read: |_: &mut Buffer<'_>, _| Ok(ProductGate),
    wires: |_: &ProductGate| CIRCUIT_WIRES + 2 * SLOTS,
    degree: 3,
    constraints: 2
);

#[cfg(test)]
mod tests {
    use plonky2::gates::gate_testing::{test_eval_fns, test_low_degree};

    use super::*;
    use crate::{D, F};

    #[test]
    fn degree_is_as_declared() {
        test_low_degree::<F, _, D>(ProductGate);
    }

    #[test]
    fn native_packed_and_recursive_evaluation_agree() {
        use plonky2::plonk::config::PoseidonGoldilocksConfig;
        test_eval_fns::<F, PoseidonGoldilocksConfig, _, 2>(ProductGate).unwrap();
    }
}
