//! The gate that makes the quotient's chunks random.
//!
//! It has one row, h₀, and for each mask column m_j the constraint `m_j·(1 + u + … + u^(k-1)) = 0`, where k is the number of
//! chunks of the quotient. Random m_j that are zero at h₀ satisfy it. Its degree is so high that no other gate fits its
//! selector group, so that its filter is the Lagrange polynomial of h₀, up to a constant factor. The constraint therefore adds
//! `e_j·(1 + u + … + u^(k-1))` to the quotient, where `e_j = m_j/(X - h₀)`, up to a constant factor, is uniform among the
//! polynomials of degree below n - 1.
//!
//! The prover fills u with the values of the monomial `X^(n-d)`, where `d = ⌊(n-1)/k⌋`. Then e_j enters chunk after chunk
//! with its coefficients shifted by d each time, and the values of all chunks at up to d points depend on all k blocks
//! of d coefficients: they are uniform. `docs/zero-knowledge.md` has the proof.
//!
//! A prover that fills these columns otherwise harms no one but itself: they occur in no other constraint.

use std::ops::{Add, Mul};

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
use plonky2::util::serialization::{Buffer, IoError, IoResult, Read, Write};

/// See the module's documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaskGate {
    /// The column u; the mask columns follow it.
    pub shift: usize,
    /// Mask columns, one for each challenge that combines constraints.
    pub masks: usize,
    /// Chunks of the quotient, which is also the gate's degree.
    pub chunks: usize,
}

impl MaskGate {
    /// Evaluates all constraints over any ring.
    fn constraints<T>(&self, wire: impl Fn(usize) -> T, one: T, mut emit: impl FnMut(T))
    where
        T: Copy + Add<Output = T> + Mul<Output = T>,
    {
        let shift = wire(self.shift);
        // Horner's rule for 1 + u + … + u^(chunks - 1).
        let sum = (1..self.chunks).fold(one, |sum, _| sum * shift + one);
        for mask in 1..=self.masks {
            emit(wire(self.shift + mask) * sum);
        }
    }
}

impl<T: RichField + Extendable<N>, const N: usize> Gate<T, N> for MaskGate {
    fn id(&self) -> String {
        format!("zklora v1 {self:?}")
    }

    fn serialize(&self, to: &mut Vec<u8>, _: &CommonCircuitData<T, N>) -> IoResult<()> {
        [self.shift, self.masks, self.chunks].into_iter().try_for_each(|value| to.write_usize(value))
    }

    fn deserialize(from: &mut Buffer<'_>, common: &CommonCircuitData<T, N>) -> IoResult<Self> {
        let [shift, masks, chunks] = [from.read_usize()?, from.read_usize()?, from.read_usize()?];
        let wires = shift.checked_add(masks).and_then(|last| last.checked_add(1)).ok_or(IoError)?;
        if wires > common.config.num_wires || chunks > common.quotient_degree_factor {
            return Err(IoError);
        }
        Ok(Self { shift, masks, chunks })
    }

    fn eval_unfiltered(&self, vars: EvaluationVars<'_, T, N>) -> Vec<T::Extension> {
        let mut values = Vec::with_capacity(self.masks);
        self.constraints(|i| vars.local_wires[i], T::Extension::ONE, |value| values.push(value));
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
        let shift = vars.local_wires[self.shift];
        let one = builder.one_extension();
        let sum = (1..self.chunks).fold(one, |sum, _| builder.mul_add_extension(sum, shift, one));
        (1..=self.masks).map(|mask| builder.mul_extension(vars.local_wires[self.shift + mask], sum)).collect()
    }

    fn generators(&self, _row: usize, _constants: &[T]) -> Vec<WitnessGeneratorRef<T, N>> {
        // `super::Masking::fill` fills all columns.
        Vec::new()
    }

    fn num_wires(&self) -> usize {
        self.shift + 1 + self.masks
    }

    fn num_constants(&self) -> usize {
        0
    }

    fn degree(&self) -> usize {
        self.chunks
    }

    fn num_constraints(&self) -> usize {
        self.masks
    }
}

impl<T: RichField + Extendable<N>, const N: usize> PackedEvaluableBase<T, N> for MaskGate {
    fn eval_unfiltered_base_packed<P: PackedField<Scalar = T>>(
        &self,
        vars: EvaluationVarsBasePacked<'_, P>,
        mut consumer: StridedConstraintConsumer<P>,
    ) {
        self.constraints(|i| vars.local_wires[i], P::ONES, |value| consumer.one(value));
    }
}

#[cfg(test)]
mod tests {
    use plonky2::gates::gate_testing::{test_eval_fns, test_low_degree};

    use super::*;
    use crate::{D, F};

    const GATE: MaskGate = MaskGate { shift: 2, masks: 3, chunks: 8 };

    #[test]
    fn degree_is_as_declared() {
        test_low_degree::<F, _, D>(GATE);
    }

    #[test]
    fn native_packed_and_recursive_evaluation_agree() {
        use plonky2::plonk::config::PoseidonGoldilocksConfig;
        test_eval_fns::<F, PoseidonGoldilocksConfig, _, 2>(GATE).unwrap();
    }
}
