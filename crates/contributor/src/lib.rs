//! The contributor's side: the owner of a private LoRA adapter, who serves its deltas and proves them.
//!
//! [`state`] makes and opens the state folder (key, manifest, secret openings) from an adapter that [`zklora_hf::quantise`] turned into
//! integers; [`delta`] multiplies in libtorch; [`service`] answers requests and keeps sessions; [`server`] puts it on QUIC,
//! for the clients that [`access`] lets in and within the [`limits`] that [`clients`] have;
//! [`prover`] proves finished sessions, one after another, within a limit of [`memory`], and writes their bundles; a [`job`] is
//! such a session as a folder, on which other machines may work, too; [`explain`] says how modules are grouped into proofs. [`exposure`] counts what answers give away, in the [`store`].
//!
//! For those who run it: [`daemon`] says what a process is doing, [`metrics`] and [`http`] to Prometheus, [`control`] to the `status`
//! command, [`systemd`] to the service manager.

pub mod access;
pub mod budget;
pub mod clients;
pub mod control;
pub mod daemon;
pub mod delta;
pub mod explain;
pub mod exposure;
pub mod http;
pub mod job;
pub mod limits;
pub mod memory;
pub mod metrics;
pub mod process;
pub mod prover;
pub mod reach;
pub mod retention;
pub mod scrape;
pub mod server;
pub mod service;
pub mod state;
pub mod store;
pub mod systemd;
