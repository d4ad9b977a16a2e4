//! The program `zklora-contributor` by itself.

mod config;
mod hub;
mod plan;

use std::path::{Path, PathBuf};
use std::process::Command;

/// `fixtures/`, at the top of the workspace.
fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

fn contributor() -> Command {
    Command::new(env!("CARGO_BIN_EXE_zklora-contributor"))
}
