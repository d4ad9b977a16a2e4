//! Requests on bare connections, one message at a time.

use zklora_net::Connection;
use zklora_proto::message::{ErrorCode, Nonce, Request, Response};
use zklora_proto::{CommitmentSeed, PROTOCOL_VERSION, SecretKey, SessionId};

use crate::Contributor;

/// Of all sessions on bare connections.
pub const SEED: CommitmentSeed = CommitmentSeed::from_bytes([0x5e; 32]);

pub fn ask(world: &Contributor, connection: &Connection, request: &Request, payload: &[u8]) -> Response {
    world.runtime.block_on(connection.request(request, payload)).unwrap().0
}

pub fn error(response: Response) -> (ErrorCode, String) {
    match response {
        Response::Error { code, message } => (code, message),
        other => panic!("{other:?} is no refusal"),
    }
}

pub fn hello(world: &Contributor) -> Request {
    Request::Hello {
        version: PROTOCOL_VERSION,
        adapter: world.state.manifest.adapter_id(),
        base_model: *world.state.manifest.manifest().base_model(),
        nonce: Nonce::random(),
        commitment_seed: SEED,
    }
}

/// A session on a bare connection.
pub fn open(world: &Contributor, key: &SecretKey) -> (Connection, SessionId) {
    let connection = world.connect(key);
    let request = hello(world);
    let Request::Hello { nonce: mine, .. } = &request else { unreachable!() };
    let mine = *mine;
    let Response::Welcome { nonce, .. } = ask(world, &connection, &request, &[]) else {
        panic!("no welcome")
    };
    let adapter = world.state.manifest.adapter_id();
    let id = SessionId::derive(
        mine.as_bytes(),
        nonce.as_bytes(),
        &key.public(),
        &world.state.key.public(),
        &adapter,
    );
    (connection, id)
}

/// A client that keeps to the protocol is served, whatever others did before.
pub fn still_serves(world: &Contributor) {
    let session = world.session(SecretKey::generate()).unwrap();
    session.forward(&[0], &vec![1; world.d_in(0)]).unwrap();
    session.finish().unwrap();
}
