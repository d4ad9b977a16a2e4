//! A client that speaks the protocol by hand, and comes back after the daemon was restarted.

use std::time::Duration;

use tokio::runtime::Runtime;
use zklora_contributor::state::State;
use zklora_net::Connection;
use zklora_proto::identity::Purpose;
use zklora_proto::message::{Nonce, Request, Response};
use zklora_proto::packing::{activations_to_bytes, unpack_deltas};
use zklora_proto::{Call, CommitmentSeed, Delta, PROTOCOL_VERSION, SecretKey, SessionHasher, SessionId};

use crate::process::Process;

/// The module that is asked.
pub const MODULE: usize = 0;
/// A client that remembers what it was answered, and comes back.
pub struct Client<'a> {
    pub runtime: &'a Runtime,
    pub key: SecretKey,
    pub state: &'a State,
    pub id: SessionId,
    pub seed: CommitmentSeed,
    pub transcript: SessionHasher,
    pub last: Option<Call>,
}

impl<'a> Client<'a> {
    pub fn open(runtime: &'a Runtime, state: &'a State, daemon: &Process) -> Self {
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
        let transcript = SessionHasher::new(manifest.modules().len(), seed.clone());
        let id = SessionId::from_bytes([0; 32]);
        let mut client = Self { runtime, key, state, id, seed, transcript, last: None };
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

    pub fn connect(&self, daemon: &Process) -> Connection {
        self.runtime.block_on(Connection::dial(&self.key, &daemon.address())).unwrap()
    }

    pub fn ask(
        &self,
        connection: &Connection,
        request: &Request,
        payload: &[u8],
    ) -> Result<(Response, Vec<u8>), zklora_net::FrameError> {
        self.runtime.block_on(connection.request(request, payload))
    }

    /// Asks for one row, as call `number`. `None` if the daemon is gone.
    pub fn forward(&self, connection: &Connection, number: u64, activations: &[i16]) -> Option<Call> {
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
    pub fn next(&mut self, connection: &Connection, activations: &[i16]) -> bool {
        let call = self.forward(connection, self.transcript.calls(), activations);
        if let Some(call) = &call {
            assert!(self.transcript.add(call));
            self.last = Some(call.clone());
        }
        call.is_some()
    }

    /// Asks for the receipt.
    pub fn finish(&self) -> Request {
        let (calls, transcript) = (self.transcript.calls(), self.transcript.digest());
        Request::Finish { session: self.id, calls, transcript }
    }

    /// Hands over the signature of a receipt.
    pub fn countersign(&self, receipt: &[u8]) -> Request {
        Request::Countersign { session: self.id, signature: self.key.sign(Purpose::ReceiptClient, receipt) }
    }

    /// Asks on a connection of its own.
    pub fn ask_anew(&self, daemon: &Process, request: &Request) -> (Response, Vec<u8>) {
        self.ask(&self.connect(daemon), request, &[]).unwrap()
    }
}
