//! The program `zklora-verifier`: what an auditor does with `.pf` bundles, offline.
//!
//! What is checked, and how the verdict is said, is in `zklora-verdict`.
//!
//! 1. [`find`]: which files are meant.
//! 2. [`PinArgs`] and [`read_policy`]: what the caller knows from elsewhere.
//! 3. [`KeyCache`]: circuits that were built in an earlier run.
//! 4. [`parts`]: what is in a bundle, unverified.
//! 5. [`explain`]: what proofs are worth.
//! 6. [`HtmlOutput`]: the report as a page.
//! 7. [`sandbox`]: what the kernel lets the program do.
//! 8. [`cli`]: the commands, their exit codes and their log.
//!
//! This crate has neither libtorch nor a network stack among its dependencies; a test holds that.

pub mod cli;
pub mod explain;
pub mod find;
mod html;
mod keys;
pub mod parts;
mod policy;
pub mod sandbox;
mod slow;

pub use html::{HtmlArgs, HtmlError, HtmlOutput};
pub use keys::{KeyCache, Origin};
pub use policy::{PinArgs, PolicyError, read_policy};
