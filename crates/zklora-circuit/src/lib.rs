//! The statement of ZKLoRA, in plonky2.
//!
//! For each module m of a session: the prover knows A, B and a salt that open the commitment `C_m`, every entry of A and B
//! lies in `[-2^11, 2^11)`, and `Y_m = X_m·A·B` over the integers, for all rows of the session.
//!
//! The way from a transcript to a verdict, in the order of the modules:
//!
//! 1. [`commitment`]: what `C_m` is.
//! 2. [`challenge`]: α and β are drawn from the receipt that both signed.
//! 3. [`fold`]: all rows of X and Y fold into one vector `a_m` and one value `s_m`, outside any circuit. Whatever the number
//!    of rows, this is all that the circuit sees.
//! 4. [`circuit`]: the circuit of a batch of modules, made of [`gate`]s, with the [`masking`] that hides the witness.
//! 5. [`prove`] and [`verify`]: a proof is bytes; a verifier builds the circuit itself from the modules' shapes.
//! 6. [`keys`]: built circuits that a verifier keeps.
//! 7. [`plan`]: which modules go into which proof; [`parameters`]: the named parameter sets; [`security`]: what they are worth; [`session`]: a whole bundle.
//!
//! 8. [`transcript`]: another circuit, of the hidden transcript of a sealed evaluation.
//!
//! The mathematics of steps 2 and 3 is Freivalds' check of a matrix product (R. Freivalds, "Probabilistic machines can use
//! less running time", 1977) with powers of two challenges in place of random vectors.

pub mod challenge;
pub mod circuit;
mod circuit_id;
pub mod commitment;
pub mod fold;
pub mod gate;
pub mod hash;
pub mod keys;
mod layout;
pub mod masking;
pub mod memory;
pub mod parameters;
pub mod plan;
pub mod prove;
pub mod security;
pub mod session;
pub mod transcript;
pub mod verify;

#[cfg(test)]
mod cheating;

pub use circuit_id::CircuitId;
use plonky2::field::extension::quadratic::QuadraticExtension;
use plonky2::field::goldilocks_field::GoldilocksField;
use plonky2::field::types::{Field, PrimeField64};

/// The base field: integers modulo p = 2^64 - 2^32 + 1.
pub type F = GoldilocksField;
/// Its quadratic extension `F[φ]/(φ² - 7)`, where the challenges α and β of the fold live.
pub type E = QuadraticExtension<F>;
/// The degree of the extension that the proof system's own challenges come from. With 2, no more than 2^16 rows would leave
/// 100 provable bits, and proofs would be half as large again: `docs/soundness.md`.
pub const D: usize = 4;

/// An element of [`E`] with these coordinates, below p each.
pub fn element(coordinates: [u64; 2]) -> E {
    QuadraticExtension(coordinates.map(F::from_canonical_u64))
}

/// The canonical coordinates of an element of [`E`].
pub fn coordinates(x: E) -> [u64; 2] {
    x.0.map(|part| part.to_canonical_u64())
}
