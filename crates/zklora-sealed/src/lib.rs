//! Sealed evaluation: proofs about committed integers that show a statement, and nothing else.

pub mod adapter;
pub mod claims;
pub mod commitment;
pub mod conversation;
pub mod fiat_shamir;
pub mod field;
pub mod layout;
pub mod lookup;
pub mod matrix;
pub mod merkle;
pub mod model;
pub mod proof;
pub mod relation;
mod scene;
pub mod sumcheck;
pub mod system;
pub mod tensors;
pub mod witness;

#[cfg(test)]
mod tests;
