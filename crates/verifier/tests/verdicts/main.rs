//! Bundles, honest and forged, and what the verifier says of them.

mod artifacts;
mod cheating;
#[path = "../common/mod.rs"]
mod common;
mod mutations;
mod redacted;
mod vectors;
