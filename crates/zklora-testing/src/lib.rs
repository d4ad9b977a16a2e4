//! Bundles for tests: honest ones, and those that somebody who cheats would make.
//!
//! A [`World`] has a contributor, a client and an adapter between them, with every key and every weight at hand. So a test
//! can play each attacker of the threat model:
//!
//! - an **outsider** has the file alone: it takes a [`RawBundle`] apart, changes what it likes, and has all digests of the
//!   file right again;
//! - a **contributor** signs manifests and receipts anew ([`World::with_manifest`], [`World::sign`]) and proves whatever it
//!   has weights for ([`World::forge`]);
//! - a contributor with a **colluding client** has both signatures on any receipt.
//!
//! Everything here panics where something is not as expected: it is for tests, and only a dev-dependency.

mod raw;
pub mod schemas;
pub mod vectors;
mod world;

pub use raw::{
    CLIENT_SIGNATURE, CONTRIBUTOR_SIGNATURE, FOLDS, FOLDS_SIGNATURE, MANIFEST, MANIFEST_SIGNATURE, PROOFS,
    RECEIPT, REDACTED, RawBundle, TRANSCRIPT, TRANSCRIPT_SALT, TableEntry, encode_transcript,
};
pub use world::{World, known_key, rng, shape};
