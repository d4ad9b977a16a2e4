//! Receipts: what a client does not sign, and that whoever asks again gets the same answer.

use tokio::runtime::Runtime;
use zklora_client::SessionError;
use zklora_contributor::limits::Limits;
use zklora_contributor::state::State;
use zklora_proto::Receipt;
use zklora_proto::limits::MAX_CLOCK_SKEW;
use zklora_proto::message::{ErrorCode, ProofState, Request, Response};
use zklora_proto::receipt::ReceiptError;
use zklora_tests::Contributor;
use zklora_tests::client::{Client, MODULE};
use zklora_tests::liar::Liar;
use zklora_tests::process::{Process, wait_for};

/// A receipt as a contributor changes it before it signs it.
type Change = fn(&mut Receipt);

#[test]
fn a_receipt_whose_times_cannot_be_is_not_signed() {
    let world = Contributor::new(Limits::default());
    let finish = |change: Change| {
        let session = Liar::new(&world, change).session(&world);
        session.forward(&[0], &vec![3; world.d_in(0)]).unwrap();
        session.finish()
    };
    // A little more than the bound, since a session takes its time.
    let changes: [(&str, Change); 5] = [
        ("finished", |receipt| receipt.finished += MAX_CLOCK_SKEW + 60),
        ("finished", |receipt| receipt.finished = u64::MAX),
        ("started", |receipt| receipt.started -= MAX_CLOCK_SKEW + 60),
        ("started", |receipt| {
            receipt.started += MAX_CLOCK_SKEW + 60;
            receipt.finished = receipt.started;
        }),
        ("started", |receipt| (receipt.started, receipt.finished) = (0, 0)),
    ];
    for (expected, change) in changes {
        let error = finish(change).unwrap_err();
        assert!(matches!(error, SessionError::FalseTime { what, .. } if what == expected), "{error}");
        assert!(error.to_string().contains("it is not signed"), "{error}");
    }
    // No receipt of any session ends before it begins.
    let reversed: [Change; 2] =
        [|receipt| receipt.finished = receipt.started - 1, |receipt| receipt.finished = 0];
    for change in reversed {
        let error = finish(change).unwrap_err();
        assert!(matches!(error, SessionError::Receipt(ReceiptError::Times { .. })), "{error}");
    }
    // Clocks that differ by less.
    let within: [Change; 3] = [
        |_| {},
        |receipt| {
            receipt.started -= MAX_CLOCK_SKEW - 60;
            receipt.finished -= MAX_CLOCK_SKEW - 60;
        },
        |receipt| {
            receipt.started += MAX_CLOCK_SKEW - 60;
            receipt.finished += MAX_CLOCK_SKEW - 60;
        },
    ];
    for change in within {
        finish(change).unwrap();
    }
}

#[test]
fn finish_and_countersign_have_the_same_answer_at_any_later_time() {
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = Process::start(folder.path(), |command| {
        command.arg("--prove-elsewhere");
    });
    let state = State::open(&folder.path().join("state")).unwrap();
    let runtime = Runtime::new().unwrap();
    let mut client = Client::open(&runtime, &state, &daemon);
    let width = state.manifest.manifest().modules()[MODULE].shape().d_in();
    let refused = |answer: (Response, Vec<u8>), expected: ErrorCode| match answer.0 {
        Response::Error { code, message } => assert_eq!(code, expected, "{message}"),
        other => panic!("{other:?} is no refusal"),
    };
    // Too early for either.
    refused(client.ask_anew(&daemon, &client.finish()), ErrorCode::Session);
    refused(client.ask_anew(&daemon, &client.countersign(b"receipt")), ErrorCode::Session);
    assert!(client.next(&client.connect(&daemon), &vec![1; width]));

    let answer = client.ask_anew(&daemon, &client.finish());
    let receipt = answer.1.clone();
    assert!(matches!(answer.0, Response::Receipt { .. }), "{answer:?}");
    let stranger = Client::open(&runtime, &state, &daemon);
    let check = |client: &Client<'_>, daemon: &Process| {
        assert_eq!(client.ask_anew(daemon, &client.finish()), answer);
        let Request::Finish { session, calls, transcript } = client.finish() else { unreachable!() };
        let another = Request::Finish { session, calls: calls + 1, transcript };
        refused(client.ask_anew(daemon, &another), ErrorCode::Transcript);
        refused(stranger.ask_anew(daemon, &client.finish()), ErrorCode::Session);
    };
    let check_signed = |client: &Client<'_>, daemon: &Process| {
        check(client, daemon);
        let accepted = (Response::Accepted, vec![]);
        assert_eq!(client.ask_anew(daemon, &client.countersign(&receipt)), accepted);
        refused(client.ask_anew(daemon, &client.countersign(b"another")), ErrorCode::Signature);
        refused(stranger.ask_anew(daemon, &client.countersign(&receipt)), ErrorCode::Session);
    };
    let restart = |daemon: Process, elsewhere: bool| {
        daemon.kill();
        Process::start(folder.path(), |command| {
            if elsewhere {
                command.arg("--prove-elsewhere");
            }
        })
    };
    check(&client, &daemon);
    refused(client.ask_anew(&daemon, &client.countersign(b"another")), ErrorCode::Signature);
    daemon = restart(daemon, true);
    check(&client, &daemon);
    // Signed by both: in this process, in the next, and when the bundle is there, in that process and in the next.
    check_signed(&client, &daemon);
    check_signed(&client, &daemon);
    daemon = restart(daemon, true);
    check_signed(&client, &daemon);
    daemon = restart(daemon, false);
    wait_for("the proof", || {
        let (status, _) = client.ask_anew(&daemon, &Request::Status { session: client.id });
        matches!(status, Response::Status { state: ProofState::Proved { .. } }).then_some(())
    });
    check_signed(&client, &daemon);
    daemon = restart(daemon, false);
    check_signed(&client, &daemon);
    daemon.stop();
}
