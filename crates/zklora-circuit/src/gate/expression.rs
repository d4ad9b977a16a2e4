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
