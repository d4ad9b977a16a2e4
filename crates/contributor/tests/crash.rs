//! The daemon is killed at random moments, and forgets nothing that it has answered or signed.

mod common;

use std::io::Cursor;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use common::fixtures;
use common::process::{Process, bundle_at};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use tokio::runtime::Runtime;
use zklora_circuit::session::{Circuits, verify_session};
use zklora_contributor::state::State;
use zklora_net::Connection;
use zklora_proto::bundle::Bundle;
use zklora_proto::identity::Purpose;
use zklora_proto::message::{Nonce, Request, Response};
use zklora_proto::packing::{activations_to_bytes, unpack_deltas};
use zklora_proto::{Call, CommitmentSeed, Delta, PROTOCOL_VERSION, SecretKey, SessionHasher, SessionId};

const MODULE: usize = 0;
/// Random rows span no more than this, so that the budget does not end the test.
const DIMENSIONS: usize = 60;

/// A client that remembers what it was answered, and comes back.
struct Client<'a> {
    runtime: &'a Runtime,
    key: SecretKey,
    state: &'a State,
    id: SessionId,
    transcript: SessionHasher,
    last: Option<Call>,
}

impl<'a> Client<'a> {
    fn open(runtime: &'a Runtime, state: &'a State, daemon: &Process) -> Self {
        let key = SecretKey::generate();
        let manifest = state.manifest.manifest();
        let (mine, seed) = (Nonce::random(), CommitmentSeed::random());
        let hello = Request::Hello {
            version: PROTOCOL_VERSION,
            adapter: state.manifest.adapter_id(),
            base_model: *manifest.base_model(),
            nonce: mine,
            commitment_seed: seed.clone(),
        };
        let transcript = SessionHasher::new(manifest.modules().len(), seed);
        let id = SessionId::from_bytes([0; 32]);
        let mut client = Self { runtime, key, state, id, transcript, last: None };
        let connection = client.connect(daemon);
        let Ok((Response::Welcome { nonce, .. }, _)) = client.ask(&connection, &hello, &[]) else {
            panic!("no welcome")
        };
        client.id = SessionId::derive(
            mine.as_bytes(),
            nonce.as_bytes(),
            &client.key.public(),
            &state.key.public(),
            &state.manifest.adapter_id(),
        );
        client
    }

    fn connect(&self, daemon: &Process) -> Connection {
        self.runtime.block_on(Connection::dial(&self.key, &daemon.address())).unwrap()
    }

    fn ask(
        &self,
        connection: &Connection,
        request: &Request,
        payload: &[u8],
    ) -> Result<(Response, Vec<u8>), zklora_net::FrameError> {
        self.runtime.block_on(connection.request(request, payload))
    }

    /// Asks for one row, as call `number`. `None` if the daemon is gone.
    fn forward(&self, connection: &Connection, number: u64, activations: &[i16]) -> Option<Call> {
        let request = Request::Forward { session: self.id, call: number, rows: 1, modules: vec![MODULE] };
        let payload = activations_to_bytes(activations);
        // A daemon that is dead says nothing; QUIC takes half a minute to be sure.
        let asked = async {
            tokio::time::timeout(Duration::from_secs(3), connection.request(&request, &payload)).await
        };
        let (response, payload) = self.runtime.block_on(asked).ok()?.ok()?;
        let Response::Deltas { widths } = response else { panic!("{response:?}") };
        let d_out = self.state.manifest.manifest().modules()[MODULE].shape().d_out();
        let values = unpack_deltas(widths[0], &payload, d_out).unwrap();
        Some(Call {
            rows: 1,
            activations: activations.to_vec(),
            deltas: vec![Delta { module: MODULE, values }],
        })
    }

    /// The next call. Whether it was answered.
    fn next(&mut self, connection: &Connection, activations: &[i16]) -> bool {
        let call = self.forward(connection, self.transcript.calls(), activations);
        if let Some(call) = &call {
            assert!(self.transcript.add(call));
            self.last = Some(call.clone());
        }
        call.is_some()
    }
}

/// Rows of the module that the ledger counts.
fn counted(folder: &Path) -> u64 {
    let output = Command::new(env!("CARGO_BIN_EXE_zklora-contributor"))
        .args(["exposure", "--json", "--state"])
        .arg(folder.join("state"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    said["modules"][MODULE]["rows"].as_u64().unwrap()
}

#[test]
fn killed_at_any_moment_it_forgets_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let state =
        State::create(&folder.join("state"), &fixtures().join("gpt2-tiny"), &fixtures().join("lora-es"))
            .unwrap();
    let runtime = Runtime::new().unwrap();
    let mut rng = StdRng::seed_from_u64(1);
    let width = state.manifest.manifest().modules()[MODULE].shape().d_in();
    let row = |rng: &mut StdRng| -> Vec<i16> {
        (0..width).map(|i| if i < DIMENSIONS { rng.random_range(-9999..9999) } else { 0 }).collect()
    };

    let mut daemon = Process::start(folder, |_| {});
    let mut client = Client::open(&runtime, &state, &daemon);
    for round in 0..5 {
        // A killer with a clock of its own, while calls go on.
        let connection = client.connect(&daemon);
        let killer = std::thread::spawn({
            let delay = Duration::from_millis(rng.random_range(0..60));
            move || {
                sleep(delay);
                daemon.kill();
            }
        });
        let mut question = row(&mut rng);
        while client.next(&connection, &question) {
            question = row(&mut rng);
        }
        killer.join().unwrap();
        let answered = client.transcript.calls();
        assert!(counted(folder) >= answered.min(DIMENSIONS as u64), "round {round}: {answered} answered");

        // The client comes back with the question that was not answered, which may have been recorded; and with it once more.
        daemon = Process::start(folder, |_| {});
        let connection = client.connect(&daemon);
        assert!(client.next(&connection, &question), "round {round}");
        let again = client.forward(&connection, answered, &question).unwrap();
        assert_eq!(Some(again), client.last);
    }

    // Both sign, and the daemon is killed before it has proved anything, twice.
    let connection = client.connect(&daemon);
    let request = Request::Finish {
        session: client.id,
        calls: client.transcript.calls(),
        transcript: client.transcript.digest(),
    };
    let (response, receipt) = client.ask(&connection, &request, &[]).unwrap();
    assert!(matches!(response, Response::Receipt { .. }), "{response:?}");
    daemon.kill();
    daemon = Process::start(folder, |_| {});
    let connection = client.connect(&daemon);
    let signature = client.key.sign(Purpose::ReceiptClient, &receipt);
    let request = Request::Countersign { session: client.id, signature };
    let (response, _) = client.ask(&connection, &request, &[]).unwrap();
    assert_eq!(response, Response::Accepted);
    daemon.kill();

    // Nobody asks; the bundle comes, and holds.
    daemon = Process::start(folder, |_| {});
    let path = folder.join("out").join(format!("{}.pf", client.id));
    let bytes = bundle_at(&path);
    let mut bundle = Bundle::from_reader(Cursor::new(bytes)).unwrap();
    assert_eq!(bundle.receipt().receipt().calls, client.transcript.calls());
    verify_session(&mut bundle, &Circuits::default()).unwrap();
    daemon.kill();
}
