//! What a service is doing, for those who run it.

use std::sync::atomic::Ordering;

use prometheus_client::metrics::histogram::Histogram;
use serde::Serialize;
use zklora_proto::{AdapterId, SessionId};

use super::Service;
use super::session::Stage;
use crate::exposure::{Exposure, MostRefused};
use crate::prover::Snapshot;

/// A service at a moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Overview {
    /// Sessions whose calls go on.
    pub open: usize,
    /// Sessions whose receipt waits for the client's signature.
    pub signed: usize,
    /// Sessions given up since this process began, because their client was silent or they could not be restored.
    pub abandoned: u64,
    /// Sessions that both have signed.
    pub prover: Snapshot,
    /// The ledger, in the manifest's order.
    pub exposures: Vec<Exposure>,
    /// Calls refused since this process began because they went beyond the budget, and the client that has the most of them.
    pub exposure_refusals: (u64, Option<MostRefused>),
}

impl Service {
    /// What it is doing now. Waits for calls that are just being recorded, but for no session.
    pub fn overview(&self) -> Overview {
        let (mut open, mut signed) = (0, 0);
        for entry in self.lock().values() {
            // A session that is locked is in use, mostly by a call.
            match entry.session.try_lock().as_deref().map(|session| &session.stage) {
                Ok(Stage::Signed) => signed += 1,
                Ok(Stage::Done) => {}
                Ok(Stage::Open) | Err(_) => open += 1,
            }
        }
        Overview {
            open,
            signed,
            abandoned: self.abandoned.load(Ordering::Relaxed),
            prover: self.prover.snapshot(),
            exposures: self.ledger.exposures(),
            exposure_refusals: self.refusals.totals(),
        }
    }

    /// How long sessions took to be proved.
    pub fn proving_time(&self) -> Histogram {
        self.prover.time()
    }

    /// What each module has answered, in the manifest's order.
    pub fn exposures(&self) -> Vec<Exposure> {
        self.ledger.exposures()
    }

    /// The adapter that is served.
    pub fn adapter(&self) -> AdapterId {
        self.adapter
    }

    /// Returns if what every request needs can be had: the table of sessions, and an answer of the store. Blocks while it
    /// cannot.
    pub fn check_health(&self) -> anyhow::Result<()> {
        drop(self.lock());
        self.store.session(SessionId::from_bytes([0; 32])).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use zklora_circuit::parameters::Security;
    use zklora_circuit::plan::Planner;
    use zklora_proto::{Address, SecretKey};

    use super::*;
    use crate::daemon::Daemon;
    use crate::delta::Engines;
    use crate::limits::Limits;
    use crate::prover::{Place, Prover, ProverConfig};
    use crate::state::State;
    use crate::store::{STORE, Store};

    #[test]
    fn a_service_whose_sessions_cannot_be_had_is_not_healthy() {
        let folder = tempfile::tempdir().unwrap();
        let (path, fixtures) = (folder.path(), Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures"));
        let state =
            Arc::new(State::create(path, &fixtures.join("gpt2-tiny"), &fixtures.join("lora-es")).unwrap());
        let store = Arc::new(Store::open(&path.join(STORE), state.manifest.adapter_id()).unwrap());
        let engines = Arc::new(Engines::new(state.manifest.clone(), &state.openings).unwrap());
        let config = ProverConfig {
            folder: path.into(),
            out_dir: path.join("out"),
            planner: Planner::new(Security::Standard),
            place: Place::Here,
        };
        let prover = Prover::start(state.clone(), engines.clone(), store.clone(), config).unwrap();
        let service = Arc::new(Service::new(state, engines, Limits::default(), store, 1.0, prover).unwrap());
        let address = Address { key: SecretKey::generate().public(), host: "h".into(), port: 1 };
        let daemon = Daemon::new(service.clone(), Arc::default(), address, [path, path], Instant::now());

        let (short, long) = (Duration::from_millis(10), Duration::from_secs(60));
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let check = |within| runtime.block_on(daemon.check_health(within));
        check(long).unwrap();
        let held = service.lock();
        // Twice: the second waits for the first.
        for _ in 0..2 {
            let error = check(short).unwrap_err();
            assert!(error.to_string().contains("takes longer than 10ms"), "{error}");
        }
        drop(held);
        check(long).unwrap();

        assert!(!daemon.status().stopping);
        daemon.stop();
        assert!(daemon.status().stopping && daemon.status().line().starts_with("stopping: 0 sessions"));
    }
}
