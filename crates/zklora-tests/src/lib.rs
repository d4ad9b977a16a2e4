//! What tests need that take two programs, or a client and a daemon.
//!
//! - [`programs`]: the three programs as processes, each with its command line; tests in `tests/programs`.
//! - [`process`]: the daemon as a process that is signalled, killed and asked; [`Contributor`]: the same in this process, so that a test can
//!   look into it. [`client`] and [`bare`] are clients that speak the protocol by hand, [`liar`] is a contributor that lies, and
//!   [`proxy`] a bad network. Tests are in `tests/daemon`.
//!
//! Tests of what takes one crate are in that crate; bundles, honest and forged, are made by `zklora-testing`.

#![allow(missing_docs, reason = "for tests only, whose names say what is meant")]

pub mod bare;
pub mod client;
mod contributor;
pub mod liar;
pub mod process;
pub mod programs;
pub mod proxy;

use std::path::{Path, PathBuf};

pub use contributor::Contributor;

/// All Rust files under a folder.
pub fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(rust_files(&path)),
            false if path.extension().is_some_and(|extension| extension == "rs") => found.push(path),
            false => {}
        }
    }
    found
}

/// `fixtures/`, at the top of the workspace.
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}
