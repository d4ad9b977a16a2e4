//! The contributor as a daemon, and clients that are honest, absent, broken or hostile.

mod crash;
mod exposure;
mod faults;
mod fetch;
mod hostile;
mod limits;
mod logs;
mod metrics;
mod precision;
mod proving;
mod rebuilt;
mod receipts;
mod retention;
mod service;
mod sessions;
mod state_files;
mod status;
mod systemd;
