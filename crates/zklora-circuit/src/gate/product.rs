//! The gate of rows of products: `acc' = acc + Σ_t κ_t·x_t·y_t` over the quadratic extension, six products a row. The κ are read from [`super::instance`] columns, all else is wires.

use std::ops::{Add, Mul, Sub};

use plonky2::field::extension::Extendable;
use plonky2::field::packed::PackedField;
use plonky2::field::types::Field;
use plonky2::gates::gate::Gate;
use plonky2::gates::packed_util::PackedEvaluableBase;
use plonky2::gates::util::StridedConstraintConsumer;
use plonky2::hash::hash_types::RichField;
use plonky2::iop::ext_target::ExtensionTarget;
use plonky2::iop::generator::WitnessGeneratorRef;
use plonky2::plonk::circuit_builder::CircuitBuilder;
use plonky2::plonk::circuit_data::CommonCircuitData;
use plonky2::plonk::vars::{
    EvaluationTargets, EvaluationVars, EvaluationVarsBase, EvaluationVarsBaseBatch, EvaluationVarsBasePacked,
};
use plonky2::util::serialization::{Buffer, IoResult};

use super::expression::Tree;
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
    fn constraints<T>(self, wire: impl Fn(usize) -> T, constant: impl Fn(u64) -> T, mut emit: impl FnMut(T))
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

impl<T: RichField + Extendable<N>, const N: usize> Gate<T, N> for ProductGate {
    fn id(&self) -> String {
        "zklora v1 ProductGate".into()
    }

    fn serialize(&self, _: &mut Vec<u8>, _: &CommonCircuitData<T, N>) -> IoResult<()> {
        Ok(())
    }

    fn deserialize(_: &mut Buffer<'_>, _: &CommonCircuitData<T, N>) -> IoResult<Self> {
        Ok(Self)
    }

    fn eval_unfiltered(&self, vars: EvaluationVars<'_, T, N>) -> Vec<T::Extension> {
        let mut values = Vec::with_capacity(2);
        self.constraints(
            |i| vars.local_wires[i],
            T::Extension::from_canonical_u64,
            |value| values.push(value),
        );
        values
    }

    fn eval_unfiltered_base_one(&self, _: EvaluationVarsBase<'_, T>, _: StridedConstraintConsumer<T>) {
        panic!("plonky2 calls eval_unfiltered_base_batch, which is overridden");
    }

    fn eval_unfiltered_base_batch(&self, vars: EvaluationVarsBaseBatch<'_, T>) -> Vec<T> {
        self.eval_unfiltered_base_batch_packed(vars)
    }

    fn eval_unfiltered_circuit(
        &self,
        builder: &mut CircuitBuilder<T, N>,
        vars: EvaluationTargets<'_, N>,
    ) -> Vec<ExtensionTarget<N>> {
        let tree = Tree::default();
        let mut roots = Vec::with_capacity(2);
        self.constraints(|i| tree.wire(i), |c| tree.constant(c), |value| roots.push(value));
        tree.build(builder, vars.local_wires, &roots)
    }

    fn generators(&self, _row: usize, _constants: &[T]) -> Vec<WitnessGeneratorRef<T, N>> {
        // Rows are filled directly by `crate::transcript`.
        Vec::new()
    }

    fn num_wires(&self) -> usize {
        CIRCUIT_WIRES + 2 * SLOTS
    }

    fn num_constants(&self) -> usize {
        0
    }

    fn degree(&self) -> usize {
        3
    }

    fn num_constraints(&self) -> usize {
        2
    }
}

impl<T: RichField + Extendable<N>, const N: usize> PackedEvaluableBase<T, N> for ProductGate {
    fn eval_unfiltered_base_packed<P: PackedField<Scalar = T>>(
        &self,
        vars: EvaluationVarsBasePacked<'_, P>,
        mut consumer: StridedConstraintConsumer<P>,
    ) {
        self.constraints(
            |i| vars.local_wires[i],
            |c| P::from(T::from_canonical_u64(c)),
            |value| consumer.one(value),
        );
    }
}

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
