//! Who may come, what each may take, and that nobody pays for what another does.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use zklora_contributor::access::Access;
use zklora_contributor::limits::Limits;
use zklora_contributor::server::Server;
use zklora_contributor::store::{STORE, Stage, Store};
use zklora_net::{Connection, FrameError, Listener, read_frame, write_frame};
use zklora_proto::message::{ErrorCode, ProofState, Request, Response};
use zklora_proto::{Address, SecretKey, SessionId};
use zklora_tests::Contributor;
use zklora_tests::bare::{ask, error, hello, open, still_serves};

/// Why a connection was closed.
fn closed(world: &Contributor, connection: &Connection) -> String {
    match world.runtime.block_on(connection.request(&hello(world), &[])) {
        Err(FrameError::Closed { reason, refused: true }) => reason,
        other => panic!("{other:?}, expected that the connection is closed"),
    }
}

fn row(world: &Contributor) -> Vec<u8> {
    vec![0; 2 * world.d_in(0)]
}

fn forward(session: SessionId, call: u64) -> Request {
    Request::Forward { session, call, rows: 1, modules: vec![0] }
}

fn stage(world: &Contributor, session: SessionId) -> Stage {
    let path = world.folder.path().join("state").join(STORE);
    let store = Store::open(&path, world.state.manifest.adapter_id()).unwrap();
    store.session(session).unwrap().unwrap().stage
}

#[test]
fn only_those_on_the_list_are_served_and_the_list_is_read_again() {
    let [anna, berta] = [(); 2].map(|()| SecretKey::generate());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clients");
    std::fs::write(&path, format!("{} anna", anna.public())).unwrap();
    let access = Access::list(vec![], Some(path.clone())).unwrap();
    let world = Contributor::with_access(Limits::default(), 1.0, access);
    let (of_anna, session) = open(&world, &anna);
    let reason = closed(&world, &world.connect(&berta));
    assert!(reason.contains(&format!("{} is not on this contributor's list", berta.public())), "{reason}");

    std::fs::write(&path, format!("{} berta", berta.public())).unwrap();
    world.access.reload().unwrap();
    let (of_berta, other) = open(&world, &berta);
    assert!(matches!(ask(&world, &of_berta, &forward(other, 0), &row(&world)), Response::Deltas { .. }));
    // Her connection is closed, and she cannot come back.
    let reason = closed(&world, &of_anna);
    assert!(reason.contains("no longer on"), "{reason}");
    assert!(closed(&world, &world.connect(&anna)).contains("not on"));
    assert_eq!(stage(&world, session), Stage::Open, "what she had is there, should she be let in again");
}

#[test]
fn connections_sessions_and_transcripts_of_a_client_are_bounded() {
    let limits =
        Limits { client_connections: 2, client_sessions: 2, session_bytes: 10_000, ..Limits::default() };
    let world = Contributor::new(limits);
    let key = SecretKey::generate();
    let (connection, session) = open(&world, &key);
    let (_second, _) = open(&world, &key);
    assert!(closed(&world, &world.connect(&key)).contains("too many connections"));
    assert_eq!(error(ask(&world, &connection, &hello(&world), &[])).0, ErrorCode::Limit);
    // Another client is not concerned.
    still_serves(&world);

    let mut call = 0;
    let refusal = loop {
        match ask(&world, &connection, &forward(session, call), &row(&world)) {
            Response::Deltas { .. } => call += 1,
            other => break error(other),
        }
    };
    assert!(call >= 1);
    assert_eq!(refusal.0, ErrorCode::Limit);
    assert!(refusal.1.contains("finish it and open another"), "{}", refusal.1);
}

#[test]
fn all_transcripts_of_a_client_together_are_bounded_and_given_back() {
    let world = Contributor::new(Limits { client_bytes: 10_000, ..Limits::default() });
    let key = SecretKey::generate();
    let (connection, session) = open(&world, &key);
    let mut call = 0;
    while let Response::Deltas { .. } = ask(&world, &connection, &forward(session, call), &row(&world)) {
        call += 1;
    }
    let (connection, other) = open(&world, &key);
    let (code, message) = error(ask(&world, &connection, &forward(other, 0), &row(&world)));
    assert_eq!(code, ErrorCode::Limit);
    assert!(message.contains("wait for their proofs"), "{message}");
    still_serves(&world);
}

#[test]
fn calls_that_are_refused_take_nothing_of_what_a_session_may_have() {
    // One independent row, and room for two calls.
    let limits = Limits { session_bytes: 8_000, ..Limits::default() };
    let world = Contributor::with_budget(limits, 0.01);
    let (connection, session) = open(&world, &SecretKey::generate());
    let unit = |index: usize| -> Vec<u8> {
        (0..world.d_in(0)).flat_map(|i| i16::from(i == index).to_le_bytes()).collect()
    };
    assert!(matches!(ask(&world, &connection, &forward(session, 0), &unit(0)), Response::Deltas { .. }));
    for _ in 0..10 {
        let refused = error(ask(&world, &connection, &forward(session, 1), &unit(1)));
        assert_eq!(refused.0, ErrorCode::Exposure, "{}", refused.1);
    }
    assert!(matches!(ask(&world, &connection, &forward(session, 1), &unit(0)), Response::Deltas { .. }));
}

#[test]
fn who_asks_for_too_many_rows_a_minute_has_to_wait() {
    let world = Contributor::new(Limits { client_rows_per_minute: 3, ..Limits::default() });
    let key = SecretKey::generate();
    let (connection, session) = open(&world, &key);
    for call in 0..3 {
        assert!(matches!(
            ask(&world, &connection, &forward(session, call), &row(&world)),
            Response::Deltas { .. }
        ));
    }
    let five = Request::Forward { session, call: 3, rows: 5, modules: vec![0] };
    // Within some seconds there is a row again, and with it a debt, which takes longer than anybody waits.
    let answer = ask(&world, &connection, &five, &row(&world).repeat(5));
    assert!(matches!(answer, Response::Deltas { .. }), "{answer:?}");
    let (code, message) = error(ask(&world, &connection, &forward(session, 4), &row(&world)));
    assert_eq!(code, ErrorCode::Limit);
    assert!(message.contains("3 rows a minute"), "{message}");
    still_serves(&world);
}

#[test]
fn silent_and_slow_clients_hold_up_nobody_but_themselves() {
    let world = Contributor::new(Limits { client_memory: 64 << 10, client_requests: 2, ..Limits::default() });
    let key = SecretKey::generate();
    let (connection, session) = open(&world, &key);
    let rows = Request::Forward { session, call: 0, rows: 4, modules: vec![0] };
    let _held = world.runtime.block_on(async {
        let mut held = Vec::new();
        // One sends a header and no payload, others not even that: more than are worked on at once.
        for header in [true, false, false, false] {
            let (mut send, receive) = connection.open().await.unwrap();
            if header {
                let bytes = serde_json::to_vec(&rows).unwrap();
                send.write_all(&(bytes.len() as u32).to_le_bytes()).await.unwrap();
                send.write_all(&bytes).await.unwrap();
            } else {
                send.write_all(&[1]).await.unwrap();
            }
            held.push((send, receive));
        }
        held
    });
    for _ in 0..3 {
        still_serves(&world);
    }
}

#[test]
fn clients_that_stop_in_the_middle_of_large_calls_hold_up_no_small_one() {
    let world =
        Contributor::new(Limits { request_memory: 8 << 20, client_memory: 6 << 20, ..Limits::default() });
    // Each of nearly all that one may take: two of them are more than there is for all.
    let rows = 300;
    let _held: Vec<_> = (0..5)
        .map(|_| {
            let (connection, session) = open(&world, &SecretKey::generate());
            let request = Request::Forward { session, call: 0, rows, modules: vec![0] };
            let held = world.runtime.block_on(async {
                let (mut send, receive) = connection.open().await.unwrap();
                let mut frame = Vec::new();
                write_frame(&mut frame, &request, &row(&world).repeat(rows)).await.unwrap();
                send.write_all(&frame[..frame.len() / 2]).await.unwrap();
                (send, receive)
            });
            (connection, held)
        })
        .collect();
    still_serves(&world);
    // And a large one that arrives.
    let (connection, session) = open(&world, &SecretKey::generate());
    let request = Request::Forward { session, call: 0, rows, modules: vec![0] };
    let answer = ask(&world, &connection, &request, &row(&world).repeat(rows));
    assert!(matches!(answer, Response::Deltas { .. }), "{answer:?}");
}

#[test]
fn a_call_that_does_not_fit_the_memory_is_refused_before_it_is_read() {
    let world = Contributor::new(Limits { client_memory: 64 << 10, ..Limits::default() });
    let key = SecretKey::generate();
    let (connection, session) = open(&world, &key);
    let many = Request::Forward { session, call: 0, rows: 1 << 14, modules: vec![0] };
    let (code, message) = error(ask(&world, &connection, &many, &[]));
    assert_eq!(code, ErrorCode::Limit);
    assert!(message.contains("split it"), "{message}");
    // A client that heeds what it is told at the beginning is served, however much it wants.
    let session = world.session(SecretKey::generate()).unwrap();
    assert_eq!(session.forward(&[0], &vec![0; 500 * world.d_in(0)]).unwrap()[0].len() % 500, 0);
    assert!(session.counts().0 > 1);
}

#[test]
fn sessions_are_given_up_after_silence_and_after_their_time() {
    for limits in [
        Limits { session_idle: Duration::from_millis(50), ..Limits::default() },
        Limits { session_age: Duration::from_millis(50), ..Limits::default() },
    ] {
        let world = Contributor::new(limits);
        let key = SecretKey::generate();
        let (_connection, session) = open(&world, &key);
        std::thread::sleep(Duration::from_millis(60));
        world.service.sweep();
        assert_eq!(stage(&world, session), Stage::Abandoned);
        let connection = world.connect(&key);
        assert_eq!(error(ask(&world, &connection, &Request::Status { session }, &[])).0, ErrorCode::Session);
    }
    let world = Contributor::new(Limits::default());
    let (connection, session) = open(&world, &SecretKey::generate());
    world.service.sweep();
    let status = ask(&world, &connection, &Request::Status { session }, &[]);
    assert_eq!(status, Response::Status { state: ProofState::Open });
}

#[test]
fn a_connection_without_requests_is_closed() {
    let world = Contributor::new(Limits { session_idle: Duration::from_millis(50), ..Limits::default() });
    let connection = world.connect(&SecretKey::generate());
    let reason = world.runtime.block_on(connection.accept()).err().unwrap();
    assert!(reason.to_string().contains("no request for too long"), "{reason}");
}

#[test]
fn no_session_is_opened_while_too_many_wait_for_their_proofs() {
    let world = Contributor::new(Limits { queue: 0, ..Limits::default() });
    let connection = world.connect(&SecretKey::generate());
    let (code, message) = error(ask(&world, &connection, &hello(&world), &[]));
    assert_eq!(code, ErrorCode::Limit);
    assert!(message.contains("wait for their proofs"), "{message}");
}

#[test]
fn a_server_that_stops_answers_what_it_was_asked() {
    let world = Contributor::new(Limits::default());
    let listener = {
        let _guard = world.runtime.enter();
        Listener::bind(&world.state.key, "127.0.0.1:0".parse().unwrap()).unwrap()
    };
    let port = listener.local_address().unwrap().port();
    let address = Address { port, ..world.address.clone() };
    let (stop, stopped) = oneshot::channel::<()>();
    let server = Server::new(world.service.clone(), Arc::new(Access::open()), Arc::default());
    let serving = world.runtime.spawn(async move {
        server.serve(&listener, async { drop(stopped.await) }).await;
    });
    let key = SecretKey::generate();
    // The session is opened at the other door.
    let (_connection, session) = open(&world, &key);
    world.runtime.block_on(async {
        let connection = Connection::dial(&key, &address).await.unwrap();
        let (mut send, mut receive) = connection.open().await.unwrap();
        let mut frame = Vec::new();
        write_frame(&mut frame, &forward(session, 0), &row(&world)).await.unwrap();
        let (first, rest) = frame.split_at(frame.len() / 2);
        send.write_all(first).await.unwrap();
        // A second request, whose answer shows that the first has been seen.
        connection.request(&Request::Status { session }, &[]).await.unwrap();
        stop.send(()).unwrap();
        let status = Request::Status { session };
        let late = connection.request(&status, &[]);
        send.write_all(rest).await.unwrap();
        send.finish().unwrap();
        let (response, _) = read_frame::<Response>(&mut receive, 1 << 20).await.unwrap();
        assert!(matches!(response, Response::Deltas { .. }), "{response:?}");
        assert!(matches!(late.await, Err(FrameError::Closed { refused: false, .. }) | Ok(_)));
        serving.await.unwrap();
        assert!(Connection::dial(&key, &address).await.is_err());
    });
}
