//! Public values in columns of their own, which the verifier knows whole.
//!
//! An instance column is a wire column after the circuit's own wires. In honest proofs it holds public values in some rows and
//! zero in all others. The verifier computes the column's polynomial itself, evaluates it at the point ζ at which the proof opens all
//! columns, and compares: if the prover's column is another one, they differ at ζ but with probability n/p^D. So any gate may read
//! public values off its own row, at no cost in rows, where plonky2's public inputs would be hashed inside the circuit.
//!
//! What makes it sound is that the prover cannot choose the public values after ζ: their digest is plonky2's only public input, and
//! so part of what ζ is drawn from.
//!
//! [`InstanceGate`] brings public values where copy constraints can reach them.

use plonky2::field::extension::{Extendable, FieldExtension};
use plonky2::field::packed::PackedField;
use plonky2::field::types::{Field, PrimeField64};
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
use rayon::prelude::*;

use super::weight;
use crate::{D, F};

/// Wires that gates use, beside the instance columns, which follow them.
pub const CIRCUIT_WIRES: usize = weight::WIRES;
/// Values of one row of [`InstanceGate`].
pub const VALUES: usize = 12;

/// Its first [`VALUES`] wires are equal to the row's first instance columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InstanceGate;

impl<T: RichField + Extendable<N>, const N: usize> Gate<T, N> for InstanceGate {
    fn id(&self) -> String {
        "zklora v2 InstanceGate".into()
    }

    fn serialize(&self, _: &mut Vec<u8>, _: &CommonCircuitData<T, N>) -> IoResult<()> {
        Ok(())
    }

    fn deserialize(_: &mut Buffer<'_>, _: &CommonCircuitData<T, N>) -> IoResult<Self> {
        Ok(Self)
    }

    fn eval_unfiltered(&self, vars: EvaluationVars<'_, T, N>) -> Vec<T::Extension> {
        (0..VALUES).map(|i| vars.local_wires[i] - vars.local_wires[CIRCUIT_WIRES + i]).collect()
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
        let wires = vars.local_wires;
        (0..VALUES).map(|i| builder.sub_extension(wires[i], wires[CIRCUIT_WIRES + i])).collect()
    }

    fn generators(&self, _row: usize, _constants: &[T]) -> Vec<WitnessGeneratorRef<T, N>> {
        // Rows are filled directly by `crate::prove`.
        Vec::new()
    }

    fn num_wires(&self) -> usize {
        CIRCUIT_WIRES + VALUES
    }

    fn num_constants(&self) -> usize {
        0
    }

    fn degree(&self) -> usize {
        1
    }

    fn num_constraints(&self) -> usize {
        VALUES
    }
}

impl<T: RichField + Extendable<N>, const N: usize> PackedEvaluableBase<T, N> for InstanceGate {
    fn eval_unfiltered_base_packed<P: PackedField<Scalar = T>>(
        &self,
        vars: EvaluationVarsBasePacked<'_, P>,
        mut consumer: StridedConstraintConsumer<P>,
    ) {
        (0..VALUES).for_each(|i| consumer.one(vars.local_wires[i] - vars.local_wires[CIRCUIT_WIRES + i]));
    }
}

/// The public values of a proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Rows that hold any, each in one of these.
    pub rows: Vec<InstanceRows>,
    /// What binds them to the proof's challenges.
    pub digest: [u8; 32],
}

/// Rows with the same public values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceRows {
    /// Which.
    pub rows: Vec<usize>,
    /// The values of their first instance columns; the others are zero.
    pub values: Vec<F>,
}

impl Instance {
    /// plonky2's public inputs: the digest, four bytes each, little-endian.
    pub fn public_inputs(&self) -> Vec<F> {
        let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
        self.digest.chunks_exact(4).map(|bytes| F::from_canonical_u64(word(bytes))).collect()
    }

    /// The columns' polynomials, of degree below `2^degree_bits`, at a point outside the subgroup H of that size.
    ///
    /// By Lagrange's formula on H: `f(ζ) = (ζ^n - 1)/n · Σ_h f(h)·h/(ζ - h)`.
    pub fn evaluate(&self, columns: usize, degree_bits: usize, point: Point) -> Vec<Point> {
        let subgroup = F::two_adic_subgroup(degree_bits);
        let flat: Vec<F> = self.rows.iter().flat_map(|same| &same.rows).map(|&row| subgroup[row]).collect();
        // h/(ζ - h) of every row, in the order of the rows here.
        let weights: Vec<Point> = flat
            .par_chunks(1 << 10)
            .flat_map_iter(|points| {
                let distances: Vec<Point> = points.iter().map(|&h| point - Point::from(h)).collect();
                let inverses = Point::batch_multiplicative_inverse(&distances).into_iter();
                inverses.zip(points).map(|(inverse, &h)| scale(inverse, h)).collect::<Vec<_>>()
            })
            .collect();
        let mut rest = &weights[..];
        let mut sums = vec![Point::ZERO; columns];
        for InstanceRows { rows, values } in &self.rows {
            let (of_rows, after) = rest.split_at(rows.len());
            rest = after;
            let weight: Point = of_rows.iter().copied().sum();
            for (sum, &value) in sums.iter_mut().zip(values) {
                *sum += scale(weight, value);
            }
        }
        let vanishing = point.exp_power_of_2(degree_bits) - Point::ONE;
        let factor = scale(vanishing, F::from_canonical_u64(1 << degree_bits).inverse());
        sums.into_iter().map(|sum| sum * factor).collect()
    }
}

fn scale(point: Point, by: F) -> Point {
    FieldExtension::<D>::scalar_mul(&point, by)
}

/// The field that ζ comes from.
pub type Point = <F as Extendable<D>>::Extension;

/// The digest of public values, in any order that names each once.
pub(crate) fn digest(context: &str, values: impl IntoIterator<Item = F>) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key(context);
    for value in values {
        hasher.update(&value.to_canonical_u64().to_le_bytes());
    }
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use plonky2::field::polynomial::PolynomialValues;
    use plonky2::field::types::Sample;
    use plonky2::gates::gate_testing::{test_eval_fns, test_low_degree};
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn degree_is_as_declared() {
        test_low_degree::<F, _, D>(InstanceGate);
    }

    #[test]
    fn native_packed_and_recursive_evaluation_agree() {
        use plonky2::plonk::config::PoseidonGoldilocksConfig;
        test_eval_fns::<F, PoseidonGoldilocksConfig, _, 2>(InstanceGate).unwrap();
    }

    #[test]
    fn columns_are_evaluated_as_the_polynomials_that_they_are() {
        let mut rng = StdRng::seed_from_u64(3);
        let mut random = || F::sample(&mut rng);
        let rows =
            [(vec![0, 9], vec![random(), random()]), (vec![5], vec![random()]), (vec![31], vec![random()])]
                .map(|(rows, values)| InstanceRows { rows, values });
        let instance = Instance { rows: rows.to_vec(), digest: [0; 32] };
        let zeta = Point::sample(&mut StdRng::seed_from_u64(4));
        let found = instance.evaluate(3, 5, zeta);
        for (column, found) in found.into_iter().enumerate() {
            let mut values = vec![F::ZERO; 32];
            for InstanceRows { rows, values: given } in &rows {
                rows.iter().for_each(|&row| values[row] = given.get(column).copied().unwrap_or(F::ZERO));
            }
            let polynomial = PolynomialValues::new(values).ifft();
            assert_eq!(found, polynomial.to_extension::<D>().eval(zeta));
        }
    }
}
