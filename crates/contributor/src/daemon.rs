//! What a running contributor says of itself.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use zklora_proto::{AdapterId, Address, Document, counted};

use crate::exposure::{Exposure, MostRefused};
use crate::memory;
use crate::metrics::Metrics;
use crate::prover::Snapshot;
use crate::service::{Overview, Service};
use crate::state::unix_time;
use crate::store::STORE;

/// A process that serves.
pub struct Daemon {
    service: Arc<Service>,
    metrics: Arc<Metrics>,
    address: Address,
    state: PathBuf,
    out_dir: PathBuf,
    began: Instant,
    /// Seconds since 1970.
    started: u64,
    stopping: AtomicBool,
    /// Held by a health check, so that those which hang do not take one thread after another.
    checking: Arc<tokio::sync::Mutex<()>>,
}

impl Daemon {
    /// The process that serves this state folder at this address, with its bundles in the second folder, and began then: before sessions
    /// were restored.
    pub fn new(
        service: Arc<Service>,
        metrics: Arc<Metrics>,
        address: Address,
        [state, out_dir]: [&Path; 2],
        began: Instant,
    ) -> Self {
        Self {
            service,
            metrics,
            address,
            state: state.into(),
            out_dir: out_dir.into(),
            began,
            started: unix_time().saturating_sub(began.elapsed().as_secs()),
            stopping: AtomicBool::new(false),
            checking: Arc::default(),
        }
    }

    /// What it serves.
    pub fn service(&self) -> &Arc<Service> {
        &self.service
    }

    /// When it began, in seconds since 1970.
    pub fn started(&self) -> u64 {
        self.started
    }

    /// From now on it answers no more clients, and proves what is finished.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Whether it has been told to stop.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// The folders that it writes to, with what they are called in the configuration.
    pub fn folders(&self) -> [(&'static str, &Path); 2] {
        [("state", &self.state), ("out_dir", &self.out_dir)]
    }

    /// Bytes of the store's files.
    pub fn store_bytes(&self) -> u64 {
        // SQLite's write-ahead log is part of the store, and may be larger than the rest.
        let files = [STORE.to_string(), format!("{STORE}-wal")];
        files.iter().filter_map(|file| Some(self.state.join(file).metadata().ok()?.len())).sum()
    }

    /// Fails unless the service has passed its health check within this time.
    pub async fn check_health(&self, within: Duration) -> anyhow::Result<()> {
        let check = async {
            let checking = self.checking.clone().lock_owned().await;
            let service = self.service.clone();
            let check = move || {
                let _checking = checking;
                service.check_health()
            };
            spawn_blocking(check).await.context("the health check panicked")?
        };
        timeout(within, check)
            .await
            .with_context(|| format!("the health check takes longer than {within:?}"))?
    }

    /// What it is doing. Blocks for as long as [`Service::overview`].
    pub fn status(&self) -> Status {
        let Overview { open, signed, abandoned, prover, exposures, exposure_refusals } =
            self.service.overview();
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            adapter: self.service.adapter(),
            address: self.address.to_string(),
            pid: std::process::id(),
            uptime_seconds: self.began.elapsed().as_secs(),
            stopping: self.is_stopping(),
            memory_bytes: memory::resident(),
            store_bytes: self.store_bytes(),
            connections: self.metrics.connections(),
            open,
            signed,
            abandoned,
            prover,
            most_exposed: MostExposed::of(&exposures),
            exposure_refused: exposure_refusals.0,
            most_refused: exposure_refusals.1,
        }
    }
}

/// What a daemon answers to the `status` command. Holds no secrets, but the ids of sessions being proved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// Of the program.
    pub version: String,
    /// The adapter that it serves.
    pub adapter: AdapterId,
    /// Where it serves it.
    pub address: String,
    /// Of the process.
    pub pid: u32,
    /// Since it began.
    pub uptime_seconds: u64,
    /// Whether it has been told to stop.
    pub stopping: bool,
    /// Memory that the process has.
    pub memory_bytes: Option<usize>,
    /// The record of sessions on disk.
    pub store_bytes: u64,
    /// Open connections of clients.
    pub connections: i64,
    /// Sessions whose calls go on.
    pub open: usize,
    /// Sessions whose receipt waits for the client's signature.
    pub signed: usize,
    /// Sessions given up since the process began, because their client was silent or they could not be restored.
    pub abandoned: u64,
    /// Sessions that both have signed.
    pub prover: Snapshot,
    /// The module whose budget is nearest to its end; `None` if none has a budget.
    pub most_exposed: Option<MostExposed>,
    /// Calls refused since it began because they went beyond the budget.
    pub exposure_refused: u64,
    /// The client that has the most of them.
    pub most_refused: Option<MostRefused>,
}

impl Document for Status {
    const FORMAT: &'static str = "zklora-status/1";
    const PRINTED_BY: &'static str = "zklora-contributor status --json";
}

impl Status {
    /// In a short line, such as `systemctl status` shows.
    pub fn line(&self) -> String {
        let Self { open, signed, prover, .. } = self;
        let proving = match &prover.proving[..] {
            [] => String::new(),
            some => {
                let (done, total) =
                    some.iter().fold((0, 0), |(done, total), p| (done + p.done, total + p.total));
                format!(", proving batch {done} of {total}")
            }
        };
        let stopping = if self.stopping { "stopping: " } else { "" };
        format!(
            "{stopping}{} open, {} to be proved{proving}; {} proved, {} failed",
            counted(open + signed, "session"),
            prover.queued + prover.proving.len(),
            prover.totals.proved,
            prover.totals.failed
        )
    }
}

/// A module and what is left of its budget.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MostExposed {
    /// The module.
    pub module: String,
    /// Independent rows answered.
    pub rows: usize,
    /// Rows that may be answered in all.
    pub budget: usize,
    /// Rows that may still be answered.
    pub left: usize,
}

impl MostExposed {
    /// The module with the least share of its budget left.
    fn of(exposures: &[Exposure]) -> Option<Self> {
        let share = |exposure: &&Exposure| (exposure.rows * 1_000_000) / exposure.budget.max(1);
        exposures.iter().max_by_key(share).map(|exposure| Self {
            module: exposure.module.clone(),
            rows: exposure.rows,
            budget: exposure.budget,
            left: exposure.budget.saturating_sub(exposure.rows),
        })
    }
}
