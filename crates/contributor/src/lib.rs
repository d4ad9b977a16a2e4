//! The contributor's side: the owner of a private LoRA adapter, who serves its deltas and proves them.
//!
//! [`state`] makes and opens the state folder (key, manifest, secret openings) from an adapter that [`quantise`] turned into
//! integers; [`delta`] multiplies in libtorch; [`service`] answers requests and keeps sessions; [`server`] puts it on QUIC;
//! [`prover`] proves finished sessions, one after another, and writes their bundles.

pub mod budget;
pub mod delta;
pub mod prover;
pub mod quantise;
pub mod server;
pub mod service;
pub mod state;
