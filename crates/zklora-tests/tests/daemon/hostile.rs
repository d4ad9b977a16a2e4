//! Clients that do not keep to the protocol.

use zklora_contributor::limits::Limits;
use zklora_net::{Connection, read_frame};
use zklora_proto::identity::Purpose;
use zklora_proto::message::{ErrorCode, Request, Response};
use zklora_proto::{SecretKey, SessionId, TranscriptDigest};
use zklora_tests::Contributor;
use zklora_tests::bare::{SEED, ask, error, hello, open, still_serves};
use zklora_tests::process::wait_for;

/// Sends raw bytes on a stream of their own and gives the answer.
fn raw(world: &Contributor, connection: &Connection, bytes: &[u8]) -> (ErrorCode, String) {
    world.runtime.block_on(async {
        let (mut send, mut receive) = connection.open().await.unwrap();
        send.write_all(bytes).await.unwrap();
        let _ = send.finish();
        error(read_frame(&mut receive, 1 << 20).await.unwrap().0)
    })
}

#[test]
fn frames_that_claim_too_much_are_refused_in_words() {
    let world = Contributor::new(Limits::default());
    let connection = world.connect(&SecretKey::generate());
    let header = serde_json::to_vec(&Request::Status { session: SessionId::from_bytes([0; 32]) }).unwrap();
    let frame = |header_length: u32, payload_length: u64| {
        let mut bytes = header_length.to_le_bytes().to_vec();
        bytes.extend_from_slice(&header);
        bytes.extend_from_slice(&payload_length.to_le_bytes());
        bytes
    };
    let (code, message) = raw(&world, &connection, &frame(header.len() as u32, 1 << 40));
    assert_eq!(code, ErrorCode::BadRequest);
    assert!(message.contains("claims a payload of 1099511627776 bytes, expected at most"), "{message}");
    let (_, message) = raw(&world, &connection, &frame(u32::MAX, 0));
    assert!(message.contains("claims a header of 4294967295 bytes"), "{message}");
    let mut garbage = frame(header.len() as u32, 0);
    garbage[4..8].copy_from_slice(b"\xff\x00{[");
    let (_, message) = raw(&world, &connection, &garbage);
    assert!(message.contains("no message of this protocol"), "{message}");
    let mut excess = frame(header.len() as u32, 0);
    excess.push(0);
    let (_, message) = raw(&world, &connection, &excess);
    assert!(message.contains("after the end"), "{message}");
    still_serves(&world);
}

#[test]
fn a_peer_that_hangs_up_in_the_middle_of_a_frame_disturbs_nobody() {
    let world = Contributor::new(Limits::default());
    for _ in 0..8 {
        let connection = world.connect(&SecretKey::generate());
        world.runtime.block_on(async {
            let (mut send, _receive) = connection.open().await.unwrap();
            send.write_all(&[60, 0, 0, 0, b'{']).await.unwrap();
            connection.close().await;
        });
    }
    still_serves(&world);
}

#[test]
fn hello_refuses_what_does_not_fit() {
    let world = Contributor::new(Limits::default());
    let connection = world.connect(&SecretKey::generate());
    let refused = |edit: fn(&mut Request)| {
        let mut request = hello(&world);
        edit(&mut request);
        error(ask(&world, &connection, &request, &[]))
    };
    let (code, message) = refused(|r| {
        if let Request::Hello { version, .. } = r {
            *version = 99;
        }
    });
    assert_eq!(code, ErrorCode::Version);
    assert!(message.contains("version 99"), "{message}");
    let (code, _) = refused(|r| {
        if let Request::Hello { adapter, .. } = r {
            *adapter = zklora_proto::AdapterId::from_bytes([1; 32]);
        }
    });
    assert_eq!(code, ErrorCode::Adapter);
    let (code, message) = refused(|r| {
        if let Request::Hello { base_model, .. } = r {
            *base_model = zklora_proto::BaseModelDigest::from_bytes([1; 32]);
        }
    });
    assert_eq!(code, ErrorCode::BaseModel);
    assert!(message.contains("but you run base model 0101"), "{message}");
    let (code, _) = error(ask(&world, &connection, &hello(&world), b"payload"));
    assert_eq!(code, ErrorCode::BadRequest);
}

#[test]
fn forwards_out_of_order_or_out_of_bounds_are_refused_and_change_nothing() {
    let world = Contributor::new(Limits::default());
    let (connection, session) = open(&world, &SecretKey::generate());
    let d_in = world.d_in(0);
    let row = vec![0; 2 * d_in];
    let forward = |call, rows, modules: &[usize], payload: &[u8]| {
        let request = Request::Forward { session, call, rows, modules: modules.to_vec() };
        ask(&world, &connection, &request, payload)
    };
    let mut lowest = row.clone();
    lowest[..2].copy_from_slice(&i16::MIN.to_le_bytes());
    for (call, rows, modules, payload, expected) in [
        (1, 1, &[0][..], &row[..], "expected call 0"),
        (u64::MAX, 1, &[0], &row, "expected call 0"),
        (0, 0, &[0], &[], "0 rows"),
        (0, 1 << 40, &[0], &row, "rows"),
        (0, usize::MAX, &[0], &row, "rows"),
        (0, 1, &[], &row, "0 modules"),
        (0, 1, &[999], &row, "module 999"),
        (0, 1, &[0, 0], &row, "module 0 twice"),
        (0, 1, &[0; 65], &row, "65 modules"),
        (0, 2, &[0], &row, "activations"),
        (0, 1, &[0], &row[1..], "activations"),
        (0, 1, &[0], &lowest, "above -2^15"),
    ] {
        let (_, message) = error(forward(call, rows, modules, payload));
        assert!(message.contains(expected), "{message:?} does not say {expected:?}");
    }
    let row = &row[..2 * d_in];
    let answer = forward(0, 1, &[0], row);
    assert!(matches!(answer, Response::Deltas { .. }));
    // The last call once more has the same answer, if it is the same.
    assert_eq!(forward(0, 1, &[0], row), answer);
    let mut other = row.to_vec();
    other[0] = 1;
    let (_, message) = error(forward(0, 1, &[0], &other));
    assert!(message.contains("was another"), "{message}");
    let (_, message) = error(forward(0, 1, &[1], row));
    assert!(message.contains("was another"), "{message}");
    let (_, message) = error(forward(2, 1, &[0], row));
    assert!(message.contains("expected call 1"), "{message}");
}

#[test]
fn sessions_belong_to_the_client_that_opened_them() {
    let world = Contributor::new(Limits::default());
    let owner = SecretKey::generate();
    let (connection, session) = open(&world, &owner);
    let row = vec![0; 2 * world.d_in(0)];
    let forward = Request::Forward { session, call: 0, rows: 1, modules: vec![0] };
    assert!(matches!(ask(&world, &connection, &forward, &row), Response::Deltas { .. }));

    let stranger = world.connect(&SecretKey::generate());
    let transcript = TranscriptDigest::from_bytes([0; 32]);
    for request in [
        Request::Forward { session, call: 1, rows: 1, modules: vec![0] },
        Request::Finish { session, calls: 1, transcript },
        Request::Status { session },
    ] {
        let payload = if matches!(request, Request::Forward { .. }) { &row[..] } else { &[] };
        let (code, message) = error(ask(&world, &stranger, &request, payload));
        assert_eq!(code, ErrorCode::Session, "{message}");
    }

    // Refused before the payload is read, however long: the stranger is told all the same.
    let request = Request::Forward { session, call: 1, rows: 1, modules: vec![0] };
    let (code, _) = error(ask(&world, &stranger, &request, &vec![0; 32 << 20]));
    assert_eq!(code, ErrorCode::Session);

    // The owner itself may not finish with another transcript, nor sign with another key or for another purpose.
    let (code, _) = error(ask(&world, &connection, &Request::Finish { session, calls: 1, transcript }, &[]));
    assert_eq!(code, ErrorCode::Transcript);
    let early = Request::Countersign { session, signature: owner.sign(Purpose::ReceiptClient, b"") };
    assert_eq!(error(ask(&world, &connection, &early, &[])).0, ErrorCode::Session);
}

#[test]
fn a_countersignature_of_another_key_starts_no_proof() {
    let world = Contributor::new(Limits::default());
    let owner = SecretKey::generate();
    let (connection, session) = open(&world, &owner);
    let mut hasher = zklora_proto::SessionHasher::new(world.state.openings.len(), SEED);
    let row = vec![0; 2 * world.d_in(0)];
    let forward = Request::Forward { session, call: 0, rows: 1, modules: vec![0] };
    assert!(matches!(ask(&world, &connection, &forward, &row), Response::Deltas { .. }));
    let d_out = world.state.manifest.manifest().modules()[0].shape().d_out();
    assert!(hasher.add(&zklora_proto::Call {
        rows: 1,
        activations: vec![0; world.d_in(0)],
        deltas: vec![zklora_proto::Delta { module: 0, values: vec![0; d_out] }],
    }));
    let finish = Request::Finish { session, calls: 1, transcript: hasher.digest() };
    let (response, receipt) = world.runtime.block_on(connection.request(&finish, &[])).unwrap();
    assert!(matches!(response, Response::Receipt { .. }));
    let sign =
        |key: &SecretKey, purpose| Request::Countersign { session, signature: key.sign(purpose, &receipt) };
    for bad in
        [sign(&SecretKey::generate(), Purpose::ReceiptClient), sign(&owner, Purpose::ReceiptContributor)]
    {
        assert_eq!(error(ask(&world, &connection, &bad, &[])).0, ErrorCode::Signature);
    }
    assert_eq!(ask(&world, &connection, &sign(&owner, Purpose::ReceiptClient), &[]), Response::Accepted);
    // Asked again, as after a lost answer: accepted, and proved once.
    assert_eq!(ask(&world, &connection, &sign(&owner, Purpose::ReceiptClient), &[]), Response::Accepted);
    let bundles = || (world.service.overview().prover.totals.proved > 0).then(|| world.bundles());
    assert_eq!(wait_for("the bundle", bundles).len(), 1);
}
