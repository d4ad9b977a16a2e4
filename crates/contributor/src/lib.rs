//! The contributor's side: the owner of a private LoRA adapter, who serves its deltas and proves them.
//!
//! [`state`] makes and opens the state folder (key, manifest, secret openings) from an adapter that [`quantise`] turned into
//! integers; [`delta`] multiplies in libtorch; [`service`] answers requests and keeps sessions; [`server`] puts it on QUIC;
//! [`prover`] proves finished sessions, one after another, within a limit of [`memory`], and writes their bundles; [`explain`]
//! says how it will group modules into proofs. [`exposure`] counts what answers give away, in the [`store`].
//!
//! For those who run it: [`daemon`] says what a process is doing, [`metrics`] and [`http`] to Prometheus, [`control`] to the `status`
//! command, [`systemd`] to the service manager.

pub mod budget;
pub mod control;
pub mod daemon;
pub mod delta;
pub mod explain;
pub mod exposure;
pub mod http;
pub mod memory;
pub mod metrics;
pub mod prover;
pub mod quantise;
pub mod server;
pub mod service;
pub mod state;
pub mod store;
pub mod systemd;
