//! The verifier for a page in a browser, which has neither threads nor a file system.
//!
//! 1. [`Checker::check`]: a request and a file in, an answer out, both as JSON. Any platform.
//! 2. [`ReadAt`]: the file, of which only what is asked for is ever in memory.
//! 3. `abi`: the same as functions that JavaScript calls. WebAssembly alone.
//!
//! `scripts/web-verifier.sh` makes the page, from this and what is in `web/`.

#[cfg(target_family = "wasm")]
mod abi;
mod check;
mod read_at;

pub use check::Checker;
pub use read_at::ReadAt;
