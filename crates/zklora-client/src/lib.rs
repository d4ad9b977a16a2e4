//! The client's side of a session with a contributor: from the first word to a bundle that holds. It has neither libtorch nor a command
//! line; where activations come from is its caller's.
//!
//! 1. [`Session`]: opened with a pinned adapter, it has the contributor answer activations and ends with a receipt that both have signed.
//! 2. [`Quantised`]: activations as int16, and the deltas back as floats.
//! 3. [`Records`]: what is kept of each session.
//! 4. [`Fetcher`]: gets the bundle of a session and verifies it before it has its name.
//! 5. [`redact`]: makes one of it that has no activations.
//!
//! One call of a bundle is shown by [`Disclosure`](zklora_proto::Disclosure). The example `verified_bundle` does all of the first four.

mod activations;
mod error;
mod fetch;
mod link;
mod record;
mod redact;
mod requests;
mod session;
mod transcript;

pub use activations::{NotFinite, Quantised};
pub use error::SessionError;
pub use fetch::{FetchError, Fetched, Fetcher};
pub use record::{Record, RecordError, Records};
pub use redact::{RedactError, Redacted, redact};
pub use requests::Interrupt;
pub use session::Session;
