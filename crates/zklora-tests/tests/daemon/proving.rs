//! Proving is stopped, killed, shared out and taken up again, and makes the same bundle.

use std::fs;
use std::io::{BufRead, BufReader, Cursor};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use zklora_circuit::session::{Circuits, verify_session};
use zklora_client::Session;
use zklora_contributor::state::State;
use zklora_contributor::store::{STORE, Stage, Store};
use zklora_proto::bundle::Bundle;
use zklora_proto::{SecretKey, SessionId};
use zklora_testing::schemas::read_document;
use zklora_tests::fixtures;
use zklora_tests::process::{Process, bundle_at, wait_for};
use zklora_tests::programs::program;

/// With this, the fixture adapter takes two proofs, one after the other.
const MEMORY: [&str; 2] = ["--memory", "130MiB"];

struct Contributor {
    folder: TempDir,
    state: State,
    runtime: Runtime,
}

impl Contributor {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (base, lora) = (fixtures().join("gpt2-tiny"), fixtures().join("lora-es"));
        let state = State::create(&folder.path().join("state"), &base, &lora).unwrap();
        Self { folder, state, runtime: Runtime::new().unwrap() }
    }

    fn serve(&self, arguments: &[&str]) -> Process {
        Process::start(self.path(), |command| {
            command.args(arguments);
        })
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn job(&self, session: SessionId) -> PathBuf {
        self.path().join("state/jobs").join(session.to_string())
    }

    fn bundle(&self, session: SessionId) -> PathBuf {
        self.path().join("out").join(format!("{session}.pf"))
    }

    /// A session that calls every module and that both sign.
    fn finished_session(&self, daemon: &Process) -> SessionId {
        let manifest = self.state.manifest.manifest();
        let session = Session::open(
            self.runtime.handle().clone(),
            SecretKey::generate(),
            &daemon.address(),
            self.state.manifest.adapter_id(),
            *manifest.base_model(),
        )
        .unwrap();
        for (index, module) in manifest.modules().iter().enumerate() {
            session.forward(&[index], &vec![7; module.shape().d_in()]).unwrap();
        }
        session.finish().unwrap();
        session.id()
    }

    fn prove(&self, session: SessionId, arguments: &[&str]) -> Child {
        program("zklora-contributor")
            .args(["prove", "--json", "--state"])
            .arg(self.path().join("state"))
            .args(["--session", &session.to_string()])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }
}

/// What a `prove` that succeeds says.
fn said(process: Child) -> Value {
    let output = process.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    read_document(&output.stdout)
}

/// The proofs of a bundle that verifies.
fn proofs(bytes: Vec<u8>) -> Vec<Vec<u8>> {
    let mut bundle = Bundle::from_reader(Cursor::new(bytes)).unwrap();
    let batches = verify_session(&mut bundle, &Circuits::default()).unwrap().batches.len();
    (0..batches).map(|batch| bundle.proof(batch).unwrap()).collect()
}

/// A proof as it is kept in a job folder, after its digest.
fn kept(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap().split_off(32)
}

#[test]
fn killed_or_stopped_it_goes_on_with_the_batches_that_are_left() {
    let world = Contributor::new();
    let daemon = world.serve(&MEMORY);
    let session = world.finished_session(&daemon);
    let first = world.job(session).join("proof.0");
    let first = wait_for("the first proof", || first.exists().then(|| kept(&first)));
    daemon.kill();
    let daemon = world.serve(&MEMORY);
    let proofs_of_first = proofs(bundle_at(&world.bundle(session)));
    assert_eq!((proofs_of_first.len(), &proofs_of_first[0]), (2, &first));
    wait_for("the job folder's end", || (!world.job(session).exists()).then_some(()));

    let session = world.finished_session(&daemon);
    daemon.stop();
    let _daemon = world.serve(&MEMORY);
    assert_eq!(proofs(bundle_at(&world.bundle(session))).len(), 2);
}

#[test]
fn shards_on_machines_without_the_key_make_one_bundle_that_the_daemon_writes() {
    let world = Contributor::new();
    let daemon = world.serve(&[&MEMORY[..], &["--prove-elsewhere"]].concat());
    let session = world.finished_session(&daemon);
    wait_for("the job folder", || world.job(session).exists().then_some(()));
    // The daemon has its key in memory.
    fs::remove_file(world.path().join("state/identity.key")).unwrap();
    let shards = ["0/2", "1/2"].map(|shard| world.prove(session, &["--shard", shard, "--memory", "1GiB"]));
    for shard in shards {
        let said = said(shard);
        assert_eq!(
            (&said["proved"], &said["shard_batches"], &said["batches"]),
            (&1.into(), &1.into(), &2.into())
        );
    }
    assert_eq!(proofs(bundle_at(&world.bundle(session))).len(), 2);
    drop(daemon);
}

#[test]
fn by_hand_it_can_be_stopped_and_makes_damaged_proofs_again() {
    let world = Contributor::new();
    let daemon = world.serve(&[&MEMORY[..], &["--prove-elsewhere"]].concat());
    let session = world.finished_session(&daemon);
    // Killed before or after it has made the job folder: `prove` makes it if need be.
    daemon.kill();
    let out = world.path().join("by-hand");
    let arguments = [&MEMORY[..], &["--out-dir", out.to_str().unwrap()]].concat();

    let mut stopped = world.prove(session, &arguments);
    let mut log = BufReader::new(stopped.stderr.take().unwrap()).lines();
    while !log.next().expect("a line before the end").unwrap().contains("are to be proved") {}
    kill_process(Pid::from_child(&stopped), Signal::TERM).unwrap();
    for line in log {
        line.unwrap();
    }
    let stopped = stopped.wait_with_output().unwrap();
    let batches = read_document(&stopped.stdout);
    assert_eq!(stopped.status.code(), Some(3));
    assert_eq!(
        (&batches["proved"], &batches["left"], &batches["bundle"]),
        (&1.into(), &1.into(), &Value::Null)
    );

    let path = world.job(session).join("proof.0");
    let first = kept(&path);
    said(world.prove(session, &arguments));
    let bundle = out.join(format!("{session}.pf"));
    let made = proofs(fs::read(&bundle).unwrap());
    assert_eq!(made[0], first, "what was proved is not proved again");

    let mut bytes = fs::read(&path).unwrap();
    bytes[40] ^= 1;
    fs::write(&path, bytes).unwrap();
    let again = said(world.prove(session, &arguments));
    assert_eq!(again["proved"], 1);
    let again = proofs(fs::read(&bundle).unwrap());
    assert_eq!(again[1], made[1]);
    assert_ne!(again[0], first);

    // The daemon finds all proofs in the folder, and is done.
    let _daemon = world.serve(&["--prove-elsewhere"]);
    assert_eq!(proofs(bundle_at(&world.bundle(session))), again);
}

#[test]
fn a_job_that_is_gone_is_not_made_again_of_nothing() {
    let world = Contributor::new();
    let daemon = world.serve(&["--prove-elsewhere"]);
    let session = world.finished_session(&daemon);
    // Once the store says that the folder has the calls, there is no other place for them.
    let state = world.path().join("state");
    let store = Store::open(&state.join(STORE), world.state.manifest.adapter_id()).unwrap();
    wait_for("the job", || (store.session(session).unwrap().unwrap().stage == Stage::Proving).then_some(()));
    daemon.kill();
    fs::remove_dir_all(world.job(session)).unwrap();
    let output = world.prove(session, &[]).wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("which is begun"), "{said}");
    assert!(!world.job(session).exists());
}

/// A daemon that died between the bundle and the store finds neither the job nor, once somebody took it away, the bundle.
#[test]
fn a_session_is_proved_though_its_bundle_was_taken_away_before_the_store_knew() {
    let world = Contributor::new();
    let daemon = world.serve(&["--prove-elsewhere"]);
    let session = world.finished_session(&daemon);
    wait_for("the job folder", || world.job(session).exists().then_some(()));
    daemon.stop();
    let path = world.path().join("state").join(STORE);
    let files = Store::files(&path).map(|file| fs::read(&file).ok().map(|bytes| (file, bytes)));
    let daemon = world.serve(&[]);
    let bundle = bundle_at(&world.bundle(session));
    wait_for("the job folder's end", || (!world.job(session).exists()).then_some(()));
    daemon.stop();
    // As it was before the daemon wrote down that it is proved.
    Store::files(&path).iter().for_each(|file| drop(fs::remove_file(file)));
    for (file, bytes) in files.into_iter().flatten() {
        fs::write(&file, bytes).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    }
    fs::remove_file(world.bundle(session)).unwrap();
    let stage = || {
        let store = Store::open(&path, world.state.manifest.adapter_id()).unwrap();
        store.session(session).unwrap().unwrap().stage
    };
    assert!(matches!(stage(), Stage::Finished | Stage::Proving));

    let daemon = world.serve(&[]);
    wait_for("the store to know", || (stage() == Stage::Proved).then_some(()));
    assert!(!world.bundle(session).exists() && !world.job(session).exists());
    daemon.stop();
    let said = said(world.prove(session, &[]));
    assert_eq!((&said["already_proved"], &said["bundle_bytes"]), (&true.into(), &bundle.len().into()));
}

/// What a `prove` that fails says.
fn complaint(process: Child) -> String {
    let output = process.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn an_array_that_is_run_again_when_all_is_proved_has_nothing_to_do() {
    let world = Contributor::new();
    let daemon = world.serve(&[&MEMORY[..], &["--prove-elsewhere"]].concat());
    let session = world.finished_session(&daemon);
    wait_for("the job folder", || world.job(session).exists().then_some(()));
    // Twice at once, and once more when the bundle is there.
    let shards = ["0/2", "1/2", "0/2", "1/2"]
        .map(|shard| world.prove(session, &["--shard", shard, "--memory", "1GiB"]));
    shards.into_iter().for_each(|shard| drop(said(shard)));
    let bundle = bundle_at(&world.bundle(session));
    assert_eq!(proofs(bundle.clone()).len(), 2);
    wait_for("the job folder's end", || (!world.job(session).exists()).then_some(()));
    let check = |state: &str| {
        for shard in ["0/2", "1/2", "0/1"] {
            let said = said(world.prove(session, &["--shard", shard]));
            assert_eq!(
                (&said["already_proved"], &said["proved"], &said["left"]),
                (&true.into(), &0.into(), &0.into()),
                "{state}"
            );
            assert_eq!(said["bundle_bytes"], bundle.len());
        }
    };
    check("beside serve");
    // A machine that has neither the database nor `serve`.
    let state = world.path().join("state");
    let away = world.path().join("away.sqlite");
    daemon.stop();
    fs::rename(state.join(STORE), &away).unwrap();
    check("on another machine");
    fs::rename(&away, state.join(STORE)).unwrap();
    // By the database alone.
    fs::remove_file(state.join(format!("jobs/{session}.proved"))).unwrap();
    let said = said(world.prove(session, &[]));
    assert_eq!(said["already_proved"], true);
}

#[test]
fn shards_that_start_together_without_serve_make_one_job() {
    let world = Contributor::new();
    let daemon = world.serve(&MEMORY);
    // Killed while it is at the first, it has not come to the last.
    let [_, _, session] = [(); 3].map(|()| world.finished_session(&daemon));
    daemon.kill();
    let state = world.path().join("state");
    let is_finished = || {
        let store = Store::open(&state.join(STORE), world.state.manifest.adapter_id()).unwrap();
        store.session(session).unwrap().unwrap().stage == Stage::Finished
    };
    assert!(is_finished());
    let shards = ["0/2", "1/2", "0/2", "1/2"]
        .map(|shard| world.prove(session, &["--shard", shard, "--memory", "130MiB"]));
    shards.into_iter().for_each(|shard| drop(said(shard)));
    assert!(!is_finished());
    let _daemon = world.serve(&["--prove-elsewhere"]);
    assert_eq!(proofs(bundle_at(&world.bundle(session))).len(), 2);
}

#[test]
fn what_is_not_to_be_proved_is_told_from_what_is() {
    let world = Contributor::new();
    let daemon = world.serve(&[]);
    let unknown = SessionId::from_bytes([7; 32]);
    let said = complaint(world.prove(unknown, &[]));
    assert!(said.contains(&format!("there is no session {unknown}")), "{said}");
    assert!(!said.contains("stop that one"), "{said}");
    let open = Session::open(
        world.runtime.handle().clone(),
        SecretKey::generate(),
        &daemon.address(),
        world.state.manifest.adapter_id(),
        *world.state.manifest.manifest().base_model(),
    )
    .unwrap();
    let said = complaint(world.prove(open.id(), &[]));
    assert!(said.contains("is open, expected one that both parties have signed"), "{said}");
    // A queue of two, of which the daemon has not come to the second.
    let sessions = [(); 3].map(|()| world.finished_session(&daemon));
    if !world.job(sessions[2]).exists() && !world.bundle(sessions[2]).exists() {
        let output = world.prove(sessions[2], &[]).wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        // Or the daemon has come to it meanwhile.
        assert!(
            output.status.success() || said.contains("which is running, has not come to session"),
            "{said}"
        );
    }
    let state = world.path().join("state");
    daemon.kill();
    fs::rename(state.join(STORE), world.path().join("away.sqlite")).unwrap();
    let said = complaint(world.prove(unknown, &[]));
    assert!(said.contains("expected the folder of a session that both parties have signed"), "{said}");
}

#[test]
fn watchers_take_sessions_as_they_come_until_they_are_told_to_stop() {
    let world = Contributor::new();
    let daemon = world.serve(&[&MEMORY[..], &["--prove-elsewhere"]].concat());
    let watch = || {
        program("zklora-contributor")
            .args(["prove", "--watch", "--json", "--memory", "1GiB", "--state"])
            .arg(world.path().join("state"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    // Before there is anything to do.
    let watchers = [(); 2].map(|()| watch());
    let sessions = [(); 3].map(|()| world.finished_session(&daemon));
    for session in sessions {
        assert_eq!(proofs(bundle_at(&world.bundle(session))).len(), 2);
    }
    // One that cannot be proved holds up no other.
    let broken = world.path().join("state/jobs").join(SessionId::from_bytes([7; 32]).to_string());
    fs::create_dir(&broken).unwrap();
    fs::write(broken.join("unproved.pf"), b"no bundle").unwrap();
    let last = world.finished_session(&daemon);
    assert_eq!(proofs(bundle_at(&world.bundle(last))).len(), 2);

    let mut worked: Vec<Value> = Vec::new();
    for watcher in watchers {
        kill_process(Pid::from_child(&watcher), Signal::TERM).unwrap();
        let output = watcher.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        let lines = String::from_utf8(output.stdout).unwrap();
        worked.extend(lines.lines().map(|line| read_document(line.as_bytes())));
    }
    // Every session once, by one of them.
    let mut done: Vec<&str> = worked.iter().map(|line| line["session"].as_str().unwrap()).collect();
    done.sort_unstable();
    let mut expected = [&sessions[..], &[last]].concat().iter().map(SessionId::to_string).collect::<Vec<_>>();
    expected.sort_unstable();
    assert_eq!(done, expected);
    assert!(worked.iter().all(|line| line["proved"] == 2 && line["left"] == 0), "{worked:?}");
    drop(daemon);
}
