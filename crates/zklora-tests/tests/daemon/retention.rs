//! Bundles are kept for as long as they are to be kept, and nothing else is deleted.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use tokio::runtime::Runtime;
use zklora_contributor::state::State;
use zklora_proto::message::{ErrorCode, ProofState, Request, Response};
use zklora_tests::client::{Client, MODULE};
use zklora_tests::process::{Process, bundle_at, wait_for};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn start(folder: &Path, days: &str) -> Process {
    Process::start(folder, |command| {
        command.args(["--bundle-days", days]);
    })
}

/// Makes a file look as if it had been written so many days ago.
fn age(path: &Path, days: u32) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::now() - days * DAY).unwrap();
}

#[test]
fn old_bundles_are_deleted_and_nothing_that_is_not_theirs() {
    let folder = tempfile::tempdir().unwrap();
    let (state, out) = (folder.path().join("state"), folder.path().join("out"));
    let daemon = start(folder.path(), "0");
    let (opened, runtime) = (State::open(&state).unwrap(), Runtime::new().unwrap());
    let width = opened.manifest.manifest().modules()[MODULE].shape().d_in();
    let clients: Vec<Client<'_>> = (0..5)
        .map(|_| {
            let mut client = Client::open(&runtime, &opened, &daemon);
            assert!(client.next(&client.connect(&daemon), &vec![5; width]));
            let (_, receipt) = client.ask_anew(&daemon, &client.finish());
            let (response, _) = client.ask_anew(&daemon, &client.countersign(&receipt));
            assert_eq!(response, Response::Accepted);
            client
        })
        .collect();
    let path = |client: &Client<'_>| out.join(format!("{}.pf", client.id));
    clients.iter().for_each(|client| drop(bundle_at(&path(client))));
    let proved = |client: &Client<'_>, daemon: &Process| {
        let (status, _) = client.ask_anew(daemon, &Request::Status { session: client.id });
        matches!(status, Response::Status { state: ProofState::Proved { .. } })
    };
    wait_for("all proofs", || clients.iter().all(|client| proved(client, &daemon)).then_some(()));
    let [old, young, replaced, linked, swapped] = &clients[..] else { panic!() };
    let whole = fs::read(path(old)).unwrap();
    age(&path(old), 31);
    age(&path(young), 29);
    // Another file of the same size and name; a link to one; and the bundle of another session, of the same size as it happens.
    fs::write(path(replaced), vec![0; fs::metadata(path(replaced)).unwrap().len() as usize]).unwrap();
    age(&path(replaced), 40);
    let elsewhere = folder.path().join("elsewhere.pf");
    fs::rename(path(linked), &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, path(linked)).unwrap();
    age(&elsewhere, 40);
    fs::copy(path(young), path(swapped)).unwrap();
    age(&path(swapped), 40);
    // Named like a bundle, and of no session here.
    let stranger = out.join(format!("{}.pf", "ab".repeat(32)));
    fs::write(&stranger, &whole).unwrap();
    age(&stranger, 4000);
    // Without the setting all stays, however old.
    daemon.stop();
    let daemon = start(folder.path(), "0");
    let fetch = |client: &Client<'_>, daemon: &Process| {
        client.ask_anew(daemon, &Request::Fetch { session: client.id, offset: 0 }).0
    };
    assert!(matches!(fetch(old, &daemon), Response::Bundle { .. }));
    daemon.stop();

    let daemon = start(folder.path(), "30");
    wait_for("that the old bundle is deleted", || (!path(old).exists()).then_some(()));
    let gone = |client: &Client<'_>, daemon: &Process| match fetch(client, daemon) {
        Response::Error { code: ErrorCode::Gone, message } => message,
        other => panic!("{other:?}"),
    };
    let words = wait_for("that it is recorded", || {
        Some(gone(old, &daemon)).filter(|words| words.contains("as long as this contributor keeps bundles"))
    });
    assert!(words.contains("deleted at 20") && words.contains('Z'), "{words}");
    assert!(proved(old, &daemon), "it was proved all the same");
    for kept in [&path(young), &path(replaced), &path(linked), &elsewhere, &path(swapped), &stranger] {
        assert!(kept.symlink_metadata().is_ok(), "{}", kept.display());
    }
    assert!(matches!(fetch(young, &daemon), Response::Bundle { .. }));
    daemon.stop();
    // It is remembered; and put back, the bundle is handed over.
    let daemon = start(folder.path(), "0");
    assert_eq!(gone(old, &daemon), words);
    fs::write(path(old), &whole).unwrap();
    assert!(matches!(fetch(old, &daemon), Response::Bundle { .. }));
    daemon.stop();
}
