//! Paid means delivered what was proved.
//!
//! 1. The contributor [`seal`]s a package: the quantised weights and salts of every module, encrypted to the buyer's key and signed.
//! 2. The buyer reads it as a [`Package`], and decrypts it to a [`Delivery`], which exists only if every module opens its commitment in
//!    the manifest. So its weights are those that every proof under that manifest is about.
//! 3. [`Delivery::check_bundle`] computes every delta of a session again.
//! 4. [`PeftFolder`] writes the adapter as PEFT reads it.
//!
//! The bytes are in `docs/delivery.md`. This crate has neither libtorch nor a network.

mod check;
mod cipher;
mod content;
mod error;
mod package;
mod peft;

pub use check::{Compared, DeliveryMismatch, difference};
pub use error::PackageError;
pub use package::{CHUNK, Delivery, Package, SealError, seal};
pub use peft::{Integers, PeftError, PeftFolder, committed_integers, delivered_manifest};

/// Most bytes of the content, which a reader holds whole.
pub const MAX_CONTENT_BYTES: u64 = 16 << 30;
