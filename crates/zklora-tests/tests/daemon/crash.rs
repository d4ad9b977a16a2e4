//! The daemon is killed at random moments, and forgets nothing that it has answered or signed.

use std::io::Cursor;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use tokio::runtime::Runtime;
use zklora_circuit::session::{Circuits, verify_session};
use zklora_contributor::state::State;
use zklora_proto::bundle::Bundle;
use zklora_proto::message::Response;
use zklora_testing::schemas::read_document;
use zklora_tests::client::{Client, MODULE};
use zklora_tests::fixtures;
use zklora_tests::process::{Process, bundle_at};
use zklora_tests::programs::program;

/// Random rows span no more than this, so that the budget does not end the test.
const DIMENSIONS: usize = 60;

/// Rows of the module that the ledger counts.
fn counted(folder: &Path) -> u64 {
    let output = program("zklora-contributor")
        .args(["exposure", "--json", "--state"])
        .arg(folder.join("state"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said: Value = read_document(&output.stdout);
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
    let (response, receipt) = client.ask_anew(&daemon, &client.finish());
    assert!(matches!(response, Response::Receipt { .. }), "{response:?}");
    daemon.kill();
    daemon = Process::start(folder, |_| {});
    let (response, _) = client.ask_anew(&daemon, &client.countersign(&receipt));
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
