//! The program `zklora-verifier`: its commands, what they print, and what it may do.

mod check_pf;
mod cli;
#[path = "../common/mod.rs"]
mod common;
mod dependencies;
mod documents;
mod keys;
mod opening;
mod sandbox;
mod schemas;
mod security;
