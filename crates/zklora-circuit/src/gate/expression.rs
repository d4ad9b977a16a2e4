//! Arithmetic that is written down instead of carried out, so that one text of a gate's constraints serves the prover, the
//! verifier and a recursive verifier.

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
pub(crate) struct Tree(RefCell<Vec<Node>>);

#[derive(Clone, Copy)]
pub(crate) struct Value<'a> {
    tree: &'a Tree,
    index: usize,
}

impl Tree {
    fn push(&self, node: Node) -> Value<'_> {
        let mut nodes = self.0.borrow_mut();
        nodes.push(node);
        Value { tree: self, index: nodes.len() - 1 }
    }

    pub(crate) fn wire(&self, index: usize) -> Value<'_> {
        self.push(Node::Wire(index))
    }

    pub(crate) fn constant(&self, value: u64) -> Value<'_> {
        self.push(Node::Constant(value))
    }

    pub(crate) fn build<T: RichField + Extendable<N>, const N: usize>(
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

/// Implements plonky2's gate for a type whose constraints are one text over any ring: a method
/// `constraints(&self, wire: impl Fn(usize) -> T, constant: impl Fn(u64) -> T, emit: impl FnMut(T))`. It has no constants and no generators: rows are filled directly, as boxed
/// generators would cost more than the values.
macro_rules! impl_gate {
    ($gate:ty, id: $id:expr, write: $write:expr, read: $read:expr, wires: $wires:expr, degree: $degree:expr, constraints: $constraints:expr) => {
        impl<T, const N: usize> plonky2::gates::gate::Gate<T, N> for $gate
        where
            T: plonky2::hash::hash_types::RichField + plonky2::field::extension::Extendable<N>,
        {
            fn id(&self) -> String {
                $id(self)
            }

            fn serialize(
                &self,
                to: &mut Vec<u8>,
                _: &plonky2::plonk::circuit_data::CommonCircuitData<T, N>,
            ) -> plonky2::util::serialization::IoResult<()> {
                $write(self, to)
            }

            fn deserialize(
                from: &mut plonky2::util::serialization::Buffer<'_>,
                common: &plonky2::plonk::circuit_data::CommonCircuitData<T, N>,
            ) -> plonky2::util::serialization::IoResult<Self> {
                $read(from, common.config.num_wires)
            }

            fn eval_unfiltered(
                &self,
                vars: plonky2::plonk::vars::EvaluationVars<'_, T, N>,
            ) -> Vec<T::Extension> {
                let mut values = Vec::with_capacity($constraints);
                self.constraints(
                    |i| vars.local_wires[i],
                    <T::Extension as plonky2::field::types::Field>::from_canonical_u64,
                    |value| values.push(value),
                );
                values
            }

            fn eval_unfiltered_base_one(
                &self,
                _: plonky2::plonk::vars::EvaluationVarsBase<'_, T>,
                _: plonky2::gates::util::StridedConstraintConsumer<T>,
            ) {
                panic!("plonky2 calls eval_unfiltered_base_batch, which is overridden");
            }

            fn eval_unfiltered_base_batch(
                &self,
                vars: plonky2::plonk::vars::EvaluationVarsBaseBatch<'_, T>,
            ) -> Vec<T> {
                plonky2::gates::packed_util::PackedEvaluableBase::eval_unfiltered_base_batch_packed(
                    self, vars,
                )
            }

            fn eval_unfiltered_circuit(
                &self,
                builder: &mut plonky2::plonk::circuit_builder::CircuitBuilder<T, N>,
                vars: plonky2::plonk::vars::EvaluationTargets<'_, N>,
            ) -> Vec<plonky2::iop::ext_target::ExtensionTarget<N>> {
                let tree = $crate::gate::expression::Tree::default();
                let mut roots = Vec::with_capacity($constraints);
                self.constraints(|i| tree.wire(i), |c| tree.constant(c), |value| roots.push(value));
                tree.build(builder, vars.local_wires, &roots)
            }

            fn generators(
                &self,
                _row: usize,
                _constants: &[T],
            ) -> Vec<plonky2::iop::generator::WitnessGeneratorRef<T, N>> {
                Vec::new()
            }

            fn num_wires(&self) -> usize {
                $wires(self)
            }

            fn num_constants(&self) -> usize {
                0
            }

            fn degree(&self) -> usize {
                $degree
            }

            fn num_constraints(&self) -> usize {
                $constraints
            }
        }

        impl<T, const N: usize> plonky2::gates::packed_util::PackedEvaluableBase<T, N> for $gate
        where
            T: plonky2::hash::hash_types::RichField + plonky2::field::extension::Extendable<N>,
        {
            fn eval_unfiltered_base_packed<P: plonky2::field::packed::PackedField<Scalar = T>>(
                &self,
                vars: plonky2::plonk::vars::EvaluationVarsBasePacked<'_, P>,
                mut consumer: plonky2::gates::util::StridedConstraintConsumer<P>,
            ) {
                self.constraints(
                    |i| vars.local_wires[i],
                    |c| P::from(T::from_canonical_u64(c)),
                    |value| consumer.one(value),
                );
            }
        }
    };
}
pub(crate) use impl_gate;
