//! What a daemon logs: within spans, for the journal, and never what a peer would have it write.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::Value;
use tokio::runtime::Runtime;
use zklora_client::Session;
use zklora_contributor::state::State;
use zklora_net::{Connection, read_frame};
use zklora_proto::message::{Request, Response};
use zklora_proto::{Address, SecretKey, SessionId};
use zklora_tests::process::Process;

fn address(daemon: &Process) -> Address {
    daemon.said["address"].as_str().unwrap().parse().unwrap()
}

#[test]
fn what_is_said_of_a_request_lies_in_its_sessions_span() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let daemon = Process::start(folder.path(), |command| {
        command.args(["--log-format", "json"]).stderr(File::create(&log).unwrap());
    });
    let state = State::open(&folder.path().join("state")).unwrap();
    let (runtime, base) = (Runtime::new().unwrap(), *state.manifest.manifest().base_model());
    let id = state.manifest.adapter_id();
    let session =
        Session::open(runtime.handle().clone(), SecretKey::generate(), &address(&daemon), id, base).unwrap();
    session.forward(&[0], &vec![1; state.manifest.manifest().modules()[0].shape().d_in()]).unwrap();
    session.finish().unwrap();
    // Refused, since the session is another client's.
    let stranger = runtime.block_on(Connection::dial(&SecretKey::generate(), &address(&daemon))).unwrap();
    let request = Request::Forward { session: session.id(), call: 1, rows: 1, modules: vec![0] };
    runtime.block_on(stranger.request(&request, &[])).unwrap();
    session.wait_for_proof(|_| {}).unwrap();
    daemon.stop();

    let events: Vec<Value> = std::fs::read_to_string(&log)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let of = |message: &str| {
        let said = |event: &&Value| event["fields"]["message"].as_str().unwrap().contains(message);
        events.iter().find(said).unwrap_or_else(|| panic!("{message}: {events:?}"))
    };
    for message in ["receipt signed by both", "refused"] {
        let spans = of(message)["spans"].as_array().unwrap();
        let names: Vec<&str> = spans.iter().map(|span| span["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["connection", "session"], "{message}");
        assert_eq!(spans[1]["id"], session.id().to_string());
    }
}

#[test]
fn a_client_that_is_refused_again_and_again_does_not_fill_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let daemon = Process::start(folder.path(), |command| {
        command.stderr(File::create(&log).unwrap());
    });
    let runtime = Runtime::new().unwrap();
    let request = Request::Status { session: SessionId::from_bytes([7; 32]) };
    let client = runtime.block_on(Connection::dial(&SecretKey::generate(), &address(&daemon))).unwrap();
    for _ in 0..100 {
        let (response, _) = runtime.block_on(client.request(&request, &[])).unwrap();
        assert!(matches!(response, Response::Error { .. }), "{response:?}");
    }
    drop(client);
    daemon.stop();
    let said = std::fs::read_to_string(&log).unwrap();
    let lines = |words: &str| said.lines().filter(|line| line.contains(words)).count();
    assert_eq!((lines("refused: "), lines("refused again")), (16, 1), "{said}");
    assert_eq!(lines("100 requests of this connection were refused"), 1, "{said}");
}

/// Starts a daemon whose stderr is a file that it is told is the journal, or not, and gives what it has said.
fn logged_to(stream: impl FnOnce(&File) -> String) -> String {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let file = File::create(&log).unwrap();
    let stream = stream(&file);
    Process::start(folder.path(), |command| {
        command.env("JOURNAL_STREAM", stream).stderr(file);
    })
    .stop();
    std::fs::read_to_string(log).unwrap()
}

#[test]
fn the_journal_is_recognised() {
    let said = logged_to(|file| {
        let metadata = file.metadata().unwrap();
        format!("{}:{}", metadata.dev(), metadata.ino())
    });
    assert!(
        said.lines().count() >= 2
            && said.lines().all(|line| ["<4>", "<6>"].iter().any(|priority| line.starts_with(priority))),
        "{said}"
    );
    // The variable is inherited by what was redirected elsewhere.
    let said = logged_to(|_| "1:2".into());
    assert!(said.lines().count() >= 2 && said.lines().all(|line| line.starts_with("20")), "{said}");
}

#[test]
fn a_peer_cannot_write_lines_into_the_log() {
    for format in ["text", "json", "journal"] {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let daemon = Process::start(folder.path(), |command| {
            command.args(["--log-format", format]).stderr(File::create(&log).unwrap());
        });
        let runtime = Runtime::new().unwrap();
        // A type that is quoted when it is refused.
        let header = b"{\"type\":\"\\u001b[2J\\n<0>forged\\u009b\\u202e\"}";
        let mut frame = (header.len() as u32).to_le_bytes().to_vec();
        frame.extend_from_slice(header);
        frame.extend_from_slice(&0u64.to_le_bytes());
        let response = runtime.block_on(async {
            let connection = Connection::dial(&SecretKey::generate(), &address(&daemon)).await.unwrap();
            let (mut send, mut receive) = connection.open().await.unwrap();
            send.write_all(&frame).await.unwrap();
            let _ = send.finish();
            read_frame::<Response>(&mut receive, 1 << 20).await.unwrap().0
        });
        assert!(matches!(response, Response::Error { .. }));
        daemon.stop();
        assert_harmless(&log);
    }
}

fn assert_harmless(log: &Path) {
    let said = std::fs::read_to_string(log).unwrap();
    let line = said.lines().find(|line| line.contains("forged")).unwrap_or_else(|| panic!("{said}"));
    assert!(line.contains("refused"), "{said:?}");
    assert!(!said.contains(|c: char| (c.is_control() && c != '\n') || c == '\u{202e}'), "{said:?}");
}
