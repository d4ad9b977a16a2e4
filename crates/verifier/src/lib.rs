//! Says of a `.pf` bundle whether it is true, to somebody who was not there.
//!
//! A bundle claims: these deltas are exactly X·A·B of the adapter that the manifest commits to, and both parties signed for
//! them. [`Verifier`] believes none of it. It checks the file's layout and digests, all signatures, that the transcript is
//! the one of the receipt, and every proof, with circuits that it builds itself from the modules' shapes. What no bundle
//! can say about itself is whether it is the *right* adapter of the *right* contributor: that is what [`Pins`] are for, and
//! the [`BundleReport`] says in words which of the two were given.
//!
//! 1. [`find`]: which files are meant.
//! 2. [`Verifier::check_file`]: one file, one [`Verdict`]. Neither a bundle nor a panic in a dependency stops the others.
//! 3. [`report`]: the verdict in words and as JSON.
//! 4. [`KeyCache`]: circuits that were built in an earlier run.
//! 5. [`opening`]: one call, shown without its bundle.
//! 6. [`parts`]: what is in a bundle, unverified.
//! 7. [`cli`]: the command `zklora-verifier`, its exit codes and its log.
//!
//! This crate has neither libtorch nor a network stack among its dependencies; a test holds that.

mod check;
pub mod cli;
pub mod explain;
pub mod find;
mod keys;
pub mod opening;
pub mod parts;
pub mod pins;
pub mod report;
mod slow;

pub use check::{
    DEFAULT_MIN_SECURITY, Declared, MAX_FOLD_BYTES, MAX_NEW_ROWS, Refusal, Verdict, Verifier, circuits_of,
};
pub use keys::{KeyCache, Origin};
pub use pins::{PinRefusal, Pinned, Pins, Policy};
pub use report::{BundleReport, Report};
