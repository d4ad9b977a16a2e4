//! The program `zklora-verifier`: its commands, what they print, and what it may do.

mod check_pf;
mod cli;
#[path = "../common/mod.rs"]
mod common;
mod dependencies;
mod disclosure;
mod documents;
mod keys;
mod sandbox;
mod schemas;
mod security;
