//! Handing over bundles: to whom, from where, and when not.

use std::fs;

use tokio::runtime::Runtime;
use zklora_client::{Session, SessionError};
use zklora_contributor::limits::Limits;
use zklora_contributor::state::State;
use zklora_net::Connection;
use zklora_proto::limits::MAX_BUNDLE_PART_BYTES;
use zklora_proto::message::{ErrorCode, Request, Response};
use zklora_proto::{SecretKey, SessionId};
use zklora_tests::Contributor;
use zklora_tests::bare::{ask, error, open};
use zklora_tests::process::{Process, bundle_at, wait_for};

/// A copy of the key, which sessions take for themselves.
fn copies() -> [SecretKey; 2] {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    let key = SecretKey::generate();
    key.save(&path).unwrap();
    [key, SecretKey::load(&path).unwrap()]
}

/// A session of one row of every module that the contributor has proved.
fn proved(session: Session, widths: impl Iterator<Item = usize>) -> (SessionId, u64) {
    for (module, width) in widths.enumerate() {
        session.forward(&[module], &vec![3; width]).unwrap();
    }
    session.finish().unwrap();
    let bytes = session.wait_for_proof(|_| {}).unwrap();
    let id = session.id();
    session.close();
    (id, bytes)
}

fn widths(state: &State) -> impl Iterator<Item = usize> {
    state.manifest.manifest().modules().iter().map(|module| module.shape().d_in())
}

/// All of a bundle, part by part.
fn all(ask: impl Fn(&Request) -> (Response, Vec<u8>), session: SessionId, bytes: u64) -> (Vec<u8>, usize) {
    let (mut bundle, mut parts) = (Vec::new(), 0);
    while (bundle.len() as u64) < bytes {
        let (response, part) = ask(&Request::Fetch { session, offset: bundle.len() as u64 });
        assert_eq!(response, Response::Bundle { bytes });
        assert!(!part.is_empty() && part.len() as u64 <= MAX_BUNDLE_PART_BYTES);
        bundle.extend(part);
        parts += 1;
    }
    (bundle, parts)
}

#[test]
fn a_proved_bundle_is_handed_to_its_client_and_to_nobody_else() {
    let world = Contributor::new(Limits { client_memory: 100 << 10, ..Limits::default() });
    let [key, again] = copies();
    let (session, bytes) = proved(world.session(key).unwrap(), widths(&world.state));
    // Another connection of the same client.
    let connection = world.connect(&again);
    let asked = |request: &Request| world.runtime.block_on(connection.request(request, &[])).unwrap();
    let (bundle, parts) = all(asked, session, bytes);
    let path = world.folder.path().join(format!("out/{session}.pf"));
    assert_eq!(bundle, fs::read(&path).unwrap());
    // No more at once than the client may have in memory here.
    assert_eq!(parts, bundle.len().div_ceil(100 << 10));

    let (response, part) = asked(&Request::Fetch { session, offset: bytes });
    assert_eq!((response, part), (Response::Bundle { bytes }, vec![]));
    for offset in [bytes + 1, u64::MAX] {
        let (code, message) = error(asked(&Request::Fetch { session, offset }).0);
        assert_eq!(code, ErrorCode::BadRequest, "{message}");
        assert!(message.contains(&format!("has {bytes} bytes")), "{message}");
    }
    let (code, _) = error(ask(&world, &connection, &Request::Fetch { session, offset: 0 }, b"payload"));
    assert_eq!(code, ErrorCode::BadRequest);

    let stranger = world.connect(&SecretKey::generate());
    for session in [session, SessionId::from_bytes([0; 32])] {
        let (code, message) = error(ask(&world, &stranger, &Request::Fetch { session, offset: 0 }, &[]));
        assert_eq!((code, &message[..24]), (ErrorCode::Session, "you have no such session"), "{message}");
    }
}

#[test]
fn what_is_not_proved_or_not_there_is_refused_in_words() {
    let world = Contributor::new(Limits::default());
    let (connection, session) = open(&world, &SecretKey::generate());
    let (code, message) = error(ask(&world, &connection, &Request::Fetch { session, offset: 0 }, &[]));
    assert_eq!(code, ErrorCode::Session);
    assert!(message.contains("the session is not finished"), "{message}");

    let [key, again] = copies();
    let (session, _) = proved(world.session(key).unwrap(), widths(&world.state));
    let connection = world.connect(&again);
    let fetch = || error(ask(&world, &connection, &Request::Fetch { session, offset: 0 }, &[]));
    let path = world.folder.path().join(format!("out/{session}.pf"));
    let elsewhere = world.folder.path().join("elsewhere");
    fs::rename(&path, &elsewhere).unwrap();
    let gone = |(code, message): (ErrorCode, String)| {
        assert_eq!(code, ErrorCode::Gone);
        assert!(message.contains("no longer where it was"), "{message}");
        assert!(!message.contains("out/"), "{message}");
    };
    gone(fetch());
    fs::create_dir(&path).unwrap();
    gone(fetch());
    fs::remove_dir(&path).unwrap();
    // Somebody has put something else there.
    fs::write(&path, b"another file").unwrap();
    gone(fetch());
    fs::rename(&elsewhere, &path).unwrap();
    assert!(matches!(
        ask(&world, &connection, &Request::Fetch { session, offset: 0 }, &[]),
        Response::Bundle { .. }
    ));
}

#[test]
fn sessions_wait_for_their_proofs_and_are_known_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    // Nobody proves.
    let daemon = Process::start(folder, |command| {
        command.arg("--prove-elsewhere");
    });
    let state = State::open(&folder.join("state")).unwrap();
    let runtime = Runtime::new().unwrap();
    let [key, again] = copies();
    let base = *state.manifest.manifest().base_model();
    let adapter = state.manifest.adapter_id();
    let session = Session::open(runtime.handle().clone(), key, &daemon.address(), adapter, base).unwrap();
    for (module, width) in widths(&state).enumerate() {
        session.forward(&[module], &vec![3; width]).unwrap();
    }
    session.finish().unwrap();
    let id = session.id();
    let ask = |daemon: &Process, request: &Request| {
        runtime.block_on(async {
            let connection = Connection::dial(&again, &daemon.address()).await.unwrap();
            connection.request(request, &[]).await.unwrap()
        })
    };
    let (code, message) = error(ask(&daemon, &Request::Fetch { session: id, offset: 0 }).0);
    assert_eq!(code, ErrorCode::Session);
    assert!(message.contains("not proved yet"), "{message}");
    daemon.stop();

    let daemon = Process::start(folder, |_| {});
    let bundle = bundle_at(&folder.join(format!("out/{id}.pf")));
    let bytes = bundle.len() as u64;
    wait_for("the proof", || {
        let (response, _) = ask(&daemon, &Request::Fetch { session: id, offset: 0 });
        matches!(response, Response::Bundle { .. }).then_some(())
    });
    let half = bytes / 2;
    let (response, first) = ask(&daemon, &Request::Fetch { session: id, offset: half });
    assert_eq!(response, Response::Bundle { bytes });
    daemon.kill();
    // In the middle of it; this daemon has never proved the session.
    let daemon = Process::start(folder, |_| {});
    assert_eq!(ask(&daemon, &Request::Fetch { session: id, offset: half }).1, first);
    assert_eq!(all(|request| ask(&daemon, request), id, bytes).0, bundle);
}

/// A contributor that signs for something else than it served, in one field of the receipt.
#[test]
fn a_receipt_with_other_commitments_is_not_signed() {
    let world = Contributor::new(Limits::default());
    let liar = zklora_tests::liar::Liar::new(&world, |receipt| {
        receipt.commitments = zklora_proto::CommitmentsDigest::from_bytes([1; 32]);
    });
    let session = liar.session(&world);
    session.forward(&[0], &vec![3; world.d_in(0)]).unwrap();
    let error = session.finish().unwrap_err();
    assert!(matches!(error, SessionError::FalseReceipt { what: "commitments", .. }), "{error}");
    assert!(error.to_string().contains("it is not signed"), "{error}");
    // The same contributor, if it changes nothing, has its receipt.
    let honest = zklora_tests::liar::Liar::new(&world, |_| {});
    let session = honest.session(&world);
    session.forward(&[0], &vec![3; world.d_in(0)]).unwrap();
    session.finish().unwrap();
}

/// Each signature of a receipt is a try at challenges that let a false delta through, and a contributor may write as many receipts as it likes: a
/// client signs one of a session, whatever became of that.
#[test]
fn a_second_receipt_of_a_session_is_not_signed() {
    let world = Contributor::new(Limits::default());
    let tries = std::sync::atomic::AtomicU64::new(0);
    let grinding = move |receipt: &mut zklora_proto::Receipt| {
        receipt.finished += tries.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    };
    let liar = zklora_tests::liar::Liar::new(&world, grinding);
    let honest = zklora_tests::liar::Liar::new(&world, |_| {});
    for (contributor, grinds) in [(liar, true), (honest, false)] {
        let session = contributor.session(&world);
        session.forward(&[0], &vec![3; world.d_in(0)]).unwrap();
        // The first is signed, and then something fails before the contributor has it.
        let lost = |_: &zklora_proto::SignedReceipt| Err(zklora_client::RecordError::NoFolder);
        assert!(matches!(session.finish_keeping(lost).unwrap_err(), SessionError::Record(_)));
        match session.finish() {
            Err(error) => assert!(grinds && matches!(error, SessionError::SecondReceipt), "{error}"),
            Ok(_) => assert!(!grinds),
        }
    }
}
