//! A contributor in this process, serving the fixture adapter on loopback.

use std::path::PathBuf;
use std::sync::Arc;

use tempfile::TempDir;
use tokio::runtime::Runtime;
use zklora_circuit::parameters::Security;
use zklora_circuit::plan::Planner;
use zklora_client::{Session, SessionError};
use zklora_contributor::access::Access;
use zklora_contributor::delta::Engines;
use zklora_contributor::limits::Limits;
use zklora_contributor::prover::{Place, Prover, ProverConfig};
use zklora_contributor::server::Server;
use zklora_contributor::service::Service;
use zklora_contributor::state::State;
use zklora_contributor::store::{STORE, Store};
use zklora_net::{Connection, Listener};
use zklora_proto::{Address, SecretKey};

use crate::fixtures;

pub struct Contributor {
    pub runtime: Runtime,
    pub folder: TempDir,
    pub state: Arc<State>,
    pub service: Arc<Service>,
    pub access: Arc<Access>,
    pub address: Address,
}

impl Contributor {
    /// A contributor with a budget that nothing exhausts.
    pub fn new(limits: Limits) -> Self {
        Self::with_budget(limits, 1.0)
    }

    pub fn with_budget(limits: Limits, share: f64) -> Self {
        Self::with_access(limits, share, Access::open())
    }

    pub fn with_access(limits: Limits, share: f64, access: Access) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (base, lora) = (fixtures().join("gpt2-tiny"), fixtures().join("lora-es"));
        let state = Arc::new(State::create(&folder.path().join("state"), &base, &lora).unwrap());
        let path = folder.path().join("state").join(STORE);
        let store = Arc::new(Store::open(&path, state.manifest.adapter_id()).unwrap());
        let engines = Arc::new(Engines::new(state.manifest.clone(), &state.openings).unwrap());
        let config = ProverConfig {
            folder: folder.path().join("state"),
            out_dir: folder.path().join("out"),
            planner: Planner::new(Security::Standard),
            place: Place::Here,
        };
        let prover = Prover::start(state.clone(), engines.clone(), store.clone(), config).unwrap();
        let service = Arc::new(Service::new(state.clone(), engines, limits, store, share, prover).unwrap());
        let runtime = Runtime::new().unwrap();
        let listener = {
            let _guard = runtime.enter();
            Listener::bind(&state.key, "127.0.0.1:0".parse().unwrap()).unwrap()
        };
        let address = Address {
            key: state.key.public(),
            host: "127.0.0.1".into(),
            port: listener.local_address().unwrap().port(),
        };
        let access = Arc::new(access);
        let server = Server::new(service.clone(), access.clone(), Arc::default());
        runtime.spawn(async move { server.serve(&listener, std::future::pending()).await });
        Self { runtime, folder, state, service, access, address }
    }

    /// A session of a client with this key.
    pub fn session(&self, key: SecretKey) -> Result<Session, SessionError> {
        Session::open(
            self.runtime.handle().clone(),
            key,
            &self.address,
            self.state.manifest.adapter_id(),
            *self.state.manifest.manifest().base_model(),
        )
    }

    /// A bare connection of a client with this key.
    pub fn connect(&self, key: &SecretKey) -> Connection {
        self.runtime.block_on(Connection::dial(key, &self.address)).unwrap()
    }

    /// The width of a module's input.
    pub fn d_in(&self, module: usize) -> usize {
        self.state.manifest.manifest().modules()[module].shape().d_in()
    }

    /// The bundles in the out folder.
    pub fn bundles(&self) -> Vec<PathBuf> {
        std::fs::read_dir(self.folder.path().join("out"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect()
    }
}
