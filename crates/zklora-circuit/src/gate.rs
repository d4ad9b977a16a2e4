//! The one custom gate: range check, unpacking and dot product of 20 weights in a row.
//!
//! `acc' = c·acc + m·Σ_j w_j·p_j` over the quadratic extension, where the weights `w_j` are 12-bit integers given as four
//! base-8 digits each, and the same digits make up four packed words, which the commitment hashes. The same gate serves
//! rows of B (p: powers of β, c = β^20, m = 1: Horner's rule) and columns of A (p: 20 entries of `a_m`, c = 1, m = `w_k`).

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
use zklora_proto::limits::WEIGHT_BITS;

/// Weights of one row.
pub const WEIGHTS: usize = 20;
/// Packed words of one row.
pub const WORDS: usize = 4;
/// Weights of one packed word, 12 bits each: 60 bits, below p.
pub const WEIGHTS_PER_WORD: usize = WEIGHTS / WORDS;
/// Base-8 digits of a weight.
pub const DIGITS: usize = 4;
/// A weight w is stored as w + 2^11, which is not negative.
pub const BIAS: u64 = 1 << (WEIGHT_BITS - 1);
/// φ² in the quadratic extension `F[φ]/(φ² - 7)`.
pub const NON_RESIDUE: u64 = 7;

/// First wire of the factor `c` (two wires, as every value of the extension).
pub const WIRE_C: usize = 0;
/// First wire of the factor `m`.
pub const WIRE_M: usize = 2;
/// First wire of the accumulator before this row.
pub const WIRE_ACC_IN: usize = 4;
/// First wire of the accumulator after this row.
pub const WIRE_ACC_OUT: usize = 6;
const WIRE_P: usize = 8;
/// First wire of the packed words.
pub const WIRE_WORDS: usize = WIRE_P + 2 * WEIGHTS;
const WIRE_DIGITS: usize = WIRE_WORDS + WORDS;
/// Wires that the gate uses.
pub const WIRES: usize = WIRE_DIGITS + WEIGHTS * DIGITS;
/// Wires of them that must be routed.
pub const ROUTED_WIRES: usize = WIRE_DIGITS;

/// First wire of factor `p_j`.
pub const fn wire_p(j: usize) -> usize {
    WIRE_P + 2 * j
}

/// Wire of digit `digit` (least significant first) of weight `weight`.
pub const fn wire_digit(weight: usize, digit: usize) -> usize {
    WIRE_DIGITS + weight * DIGITS + digit
}

/// See the module's documentation.
#[derive(Debug, Clone, Copy)]
pub struct WeightGate;

const CONSTRAINTS: usize = WEIGHTS * DIGITS + WORDS + 2;

/// Evaluates all constraints over any ring that holds the field; `constant` embeds a small integer.
///
/// Order: each digit is in 0..8; each word is made of its digits; both parts of the accumulator.
fn constraints<T>(wire: impl Fn(usize) -> T, constant: impl Fn(u64) -> T, mut emit: impl FnMut(T))
where
    T: Copy + Add<Output = T> + Sub<Output = T> + Mul<Output = T>,
{
    let (six, ten, twelve, seven) = (constant(6), constant(10), constant(12), constant(7));
    let eight = constant(8);
    let base = constant(1 << WEIGHT_BITS);
    let bias = constant(BIAS);
    let zero = constant(0);

    let mut biased = [zero; WEIGHTS];
    for (weight, value) in biased.iter_mut().enumerate() {
        for digit in (0..DIGITS).rev() {
            let l = wire(wire_digit(weight, digit));
            // l(l-1)...(l-7), with the factors paired from both ends: l(l-7) = t, (l-1)(l-6) = t + 6, ...
            let t = l * (l - seven);
            emit((t * (t + six)) * ((t + ten) * (t + twelve)));
            *value = *value * eight + l;
        }
    }
    for word in 0..WORDS {
        let mut packed = zero;
        for j in (0..WEIGHTS_PER_WORD).rev() {
            packed = packed * base + biased[word * WEIGHTS_PER_WORD + j];
        }
        emit(wire(WIRE_WORDS + word) - packed);
    }
    let mut sum = [zero; 2];
    for (j, &value) in biased.iter().enumerate() {
        let weight = value - bias;
        sum[0] = sum[0] + weight * wire(wire_p(j));
        sum[1] = sum[1] + weight * wire(wire_p(j) + 1);
    }
    let pair = |first: usize| [wire(first), wire(first + 1)];
    let non_residue = constant(NON_RESIDUE);
    let product =
        |x: [T; 2], y: [T; 2]| [x[0] * y[0] + non_residue * (x[1] * y[1]), x[0] * y[1] + x[1] * y[0]];
    let carried = product(pair(WIRE_C), pair(WIRE_ACC_IN));
    let added = product(pair(WIRE_M), sum);
    let out = pair(WIRE_ACC_OUT);
    for part in 0..2 {
        emit(out[part] - (carried[part] + added[part]));
    }
}

impl<T: RichField + Extendable<N>, const N: usize> Gate<T, N> for WeightGate {
    fn id(&self) -> String {
        "zklora v1 WeightGate".into()
    }

    fn serialize(&self, _: &mut Vec<u8>, _: &CommonCircuitData<T, N>) -> IoResult<()> {
        Ok(())
    }

    fn deserialize(_: &mut Buffer, _: &CommonCircuitData<T, N>) -> IoResult<Self> {
        Ok(Self)
    }

    fn eval_unfiltered(&self, vars: EvaluationVars<T, N>) -> Vec<T::Extension> {
        let mut values = Vec::with_capacity(CONSTRAINTS);
        constraints(|i| vars.local_wires[i], T::Extension::from_canonical_u64, |value| values.push(value));
        values
    }

    fn eval_unfiltered_base_one(&self, _: EvaluationVarsBase<T>, _: StridedConstraintConsumer<T>) {
        panic!("plonky2 calls eval_unfiltered_base_batch, which is overridden");
    }

    fn eval_unfiltered_base_batch(&self, vars: EvaluationVarsBaseBatch<T>) -> Vec<T> {
        self.eval_unfiltered_base_batch_packed(vars)
    }

    fn eval_unfiltered_circuit(
        &self,
        builder: &mut CircuitBuilder<T, N>,
        vars: EvaluationTargets<N>,
    ) -> Vec<ExtensionTarget<N>> {
        // The ring is recorded as a tree first and only then turned into gates, so that one text of the constraints
        // serves the prover, the verifier and a recursive verifier.
        let tree = expression::Tree::default();
        let mut roots = Vec::with_capacity(CONSTRAINTS);
        constraints(|i| tree.wire(i), |c| tree.constant(c), |value| roots.push(value));
        tree.build(builder, vars.local_wires, &roots)
    }

    fn generators(&self, _row: usize, _constants: &[T]) -> Vec<WitnessGeneratorRef<T, N>> {
        // Rows are filled directly by `crate::prove`; 50,000 boxed generators would cost more than the values.
        Vec::new()
    }

    fn num_wires(&self) -> usize {
        WIRES
    }

    fn num_constants(&self) -> usize {
        0
    }

    fn degree(&self) -> usize {
        1 << 3
    }

    fn num_constraints(&self) -> usize {
        CONSTRAINTS
    }
}

impl<T: RichField + Extendable<N>, const N: usize> PackedEvaluableBase<T, N> for WeightGate {
    fn eval_unfiltered_base_packed<P: PackedField<Scalar = T>>(
        &self,
        vars: EvaluationVarsBasePacked<P>,
        mut consumer: StridedConstraintConsumer<P>,
    ) {
        constraints(
            |i| vars.local_wires[i],
            |c| P::from(T::from_canonical_u64(c)),
            |value| consumer.one(value),
        );
    }
}

/// Arithmetic that is written down instead of carried out.
mod expression {
    use std::cell::RefCell;
    use std::ops::{Add, Mul, Sub};

    use plonky2::field::extension::Extendable;
    use plonky2::field::types::Field;
    use plonky2::hash::hash_types::RichField;
    use plonky2::iop::ext_target::ExtensionTarget;
    use plonky2::plonk::circuit_builder::CircuitBuilder;

    #[derive(Clone, Copy)]
    enum Node {
        Wire(usize),
        Constant(u64),
        Add(usize, usize),
        Sub(usize, usize),
        Mul(usize, usize),
    }

    #[derive(Default)]
    pub(super) struct Tree(RefCell<Vec<Node>>);

    #[derive(Clone, Copy)]
    pub(super) struct Value<'a> {
        tree: &'a Tree,
        index: usize,
    }

    impl Tree {
        fn push(&self, node: Node) -> Value<'_> {
            let mut nodes = self.0.borrow_mut();
            nodes.push(node);
            Value { tree: self, index: nodes.len() - 1 }
        }

        pub(super) fn wire(&self, index: usize) -> Value<'_> {
            self.push(Node::Wire(index))
        }

        pub(super) fn constant(&self, value: u64) -> Value<'_> {
            self.push(Node::Constant(value))
        }

        pub(super) fn build<T: RichField + Extendable<N>, const N: usize>(
            &self,
            builder: &mut CircuitBuilder<T, N>,
            wires: &[ExtensionTarget<N>],
            roots: &[Value<'_>],
        ) -> Vec<ExtensionTarget<N>> {
            let mut targets = Vec::new();
            for &node in self.0.borrow().iter() {
                let target = match node {
                    Node::Wire(i) => wires[i],
                    Node::Constant(c) => builder.constant_extension(T::Extension::from_canonical_u64(c)),
                    Node::Add(a, b) => builder.add_extension(targets[a], targets[b]),
                    Node::Sub(a, b) => builder.sub_extension(targets[a], targets[b]),
                    Node::Mul(a, b) => builder.mul_extension(targets[a], targets[b]),
                };
                targets.push(target);
            }
            roots.iter().map(|root| targets[root.index]).collect()
        }
    }

    impl Add for Value<'_> {
        type Output = Self;
        fn add(self, other: Self) -> Self {
            self.tree.push(Node::Add(self.index, other.index))
        }
    }

    impl Sub for Value<'_> {
        type Output = Self;
        fn sub(self, other: Self) -> Self {
            self.tree.push(Node::Sub(self.index, other.index))
        }
    }

    impl Mul for Value<'_> {
        type Output = Self;
        fn mul(self, other: Self) -> Self {
            self.tree.push(Node::Mul(self.index, other.index))
        }
    }
}

#[cfg(test)]
mod tests {
    use plonky2::gates::gate_testing::{test_eval_fns, test_low_degree};

    use super::*;
    use crate::{D, F};

    #[test]
    fn degree_is_as_declared() {
        test_low_degree::<F, _, D>(WeightGate);
    }

    #[test]
    fn native_packed_and_recursive_evaluation_agree() {
        use plonky2::plonk::config::PoseidonGoldilocksConfig;
        // The one Poseidon configuration that plonky2 brings has degree 2; the gate works over any.
        test_eval_fns::<F, PoseidonGoldilocksConfig, _, 2>(WeightGate).unwrap();
    }
}
