//! What is left on the disk: modes of files and folders, what killed processes were writing, and what is to be forgotten.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tokio::runtime::Runtime;
use zklora_contributor::state::State;
use zklora_proto::message::Response;
use zklora_proto::{SecretKey, partial};
use zklora_tests::client::{Client, MODULE};
use zklora_tests::fixtures;
use zklora_tests::process::{Process, bundle_at, wait_for};
use zklora_tests::programs::program;

/// A command of the program under a umask.
fn under(umask: &str) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", "umask \"$0\" && exec \"$@\"", umask])
        .arg(program("zklora-contributor").get_program());
    command
}

fn succeeds(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The modes of all that is in a folder, and its own, by their paths from there.
fn modes(folder: &Path) -> BTreeMap<PathBuf, u32> {
    fn walk(path: &Path, from: &Path, modes: &mut BTreeMap<PathBuf, u32>) {
        let metadata = fs::symlink_metadata(path).unwrap();
        modes.insert(path.strip_prefix(from).unwrap().into(), metadata.permissions().mode() & 0o7777);
        if metadata.is_dir() {
            fs::read_dir(path).unwrap().for_each(|entry| walk(&entry.unwrap().path(), from, modes));
        }
    }
    let mut modes = BTreeMap::new();
    walk(folder, folder, &mut modes);
    modes
}

/// A session of one call that both have signed.
fn finished(client: &mut Client<'_>, daemon: &Process) {
    let width = client.state.manifest.manifest().modules()[MODULE].shape().d_in();
    let connection = client.connect(daemon);
    assert!(client.next(&connection, &vec![5; width]));
    let (response, receipt) = client.ask_anew(daemon, &client.finish());
    assert!(matches!(response, Response::Receipt { .. }), "{response:?}");
    assert_eq!(client.ask_anew(daemon, &client.countersign(&receipt)).0, Response::Accepted);
}

#[test]
fn files_and_folders_have_the_documented_modes_under_any_umask() {
    for umask in ["000", "022", "077", "027"] {
        let folder = tempfile::tempdir().unwrap();
        // Below folders that are not there yet.
        let (state, out) = (folder.path().join("new/state"), folder.path().join("more/out"));
        let (base, lora) = (fixtures().join("gpt2-tiny"), fixtures().join("lora-es"));
        succeeds(
            under(umask)
                .args(["init", "--base-model"])
                .arg(base)
                .arg("--lora")
                .arg(lora)
                .arg("--state")
                .arg(&state),
        );
        let mut serve = under(umask);
        serve.args(["serve", "--open", "--json", "--prove-elsewhere", "--listen", "127.0.0.1:0", "--state"]);
        let daemon = Process::run(serve.arg(&state).arg("--out-dir").arg(&out).stderr(Stdio::null()));
        let (opened, runtime) = (State::open(&state).unwrap(), Runtime::new().unwrap());
        let mut client = Client::open(&runtime, &opened, &daemon);
        finished(&mut client, &daemon);
        let job = state.join("jobs").join(client.id.to_string());
        wait_for("the job", || job.exists().then_some(()));
        let found = modes(&state);
        let mode = |path: &str| found.get(Path::new(path)).copied().unwrap_or_else(|| panic!("no {path}"));
        let job = format!("jobs/{}", client.id);
        for (path, expected) in [
            ("", 0o700),
            ("identity.key", 0o600),
            ("openings.safetensors", 0o600),
            ("manifest.json", 0o644),
            ("manifest.sig", 0o644),
            ("sessions.sqlite", 0o600),
            ("sessions.sqlite-wal", 0o600),
            ("sessions.sqlite-shm", 0o600),
            ("control.sock", 0o600),
            ("jobs", 0o700),
            (&job, 0o700),
        ] {
            assert_eq!(mode(path), expected, "{path} under umask {umask}");
        }
        // Nobody else can put anything anywhere, or change it.
        for (path, mode) in &found {
            assert_eq!(mode & 0o022, 0, "{} under umask {umask}", path.display());
        }
        let by_hand = folder.path().join("by/hand");
        let session = client.id.to_string();
        succeeds(
            under(umask)
                .args(["prove", "--session", &session, "--state"])
                .arg(&state)
                .arg("--out-dir")
                .arg(&by_hand),
        );
        bundle_at(&out.join(format!("{session}.pf")));
        let package = folder.path().join("adapter.zkd");
        let adapter = opened.manifest.adapter_id().to_string();
        let to = SecretKey::generate().public().to_string();
        succeeds(
            under(umask)
                .args(["deliver", "--adapter", &adapter, "--to", &to, "--state"])
                .arg(&state)
                .arg("--out")
                .arg(&package),
        );
        daemon.stop();
        for (path, expected) in [
            (state.parent().unwrap(), 0o700),
            (&out, 0o750),
            (out.parent().unwrap(), 0o750),
            (&by_hand, 0o750),
            (&out.join(format!("{session}.pf")), 0o640),
            (&by_hand.join(format!("{session}.pf")), 0o640),
            (&package, 0o600),
        ] {
            let mode = fs::metadata(path).unwrap().permissions().mode() & 0o7777;
            assert_eq!(mode, expected, "{} under umask {umask}", path.display());
        }
    }
}

#[test]
fn a_folder_that_is_there_keeps_its_mode() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    fs::create_dir(&out).unwrap();
    fs::set_permissions(&out, fs::Permissions::from_mode(0o2770)).unwrap();
    Process::start(folder.path(), |_| {}).stop();
    assert_eq!(fs::metadata(&out).unwrap().permissions().mode() & 0o7777, 0o2770);
}

#[test]
fn what_a_killed_process_left_half_written_goes_and_what_another_writes_stays() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Process::start(folder.path(), |command| {
        command.arg("--prove-elsewhere");
    });
    let (state, out) = (folder.path().join("state"), folder.path().join("out"));
    let (opened, runtime) = (State::open(&state).unwrap(), Runtime::new().unwrap());
    let mut client = Client::open(&runtime, &opened, &daemon);
    finished(&mut client, &daemon);
    let job = state.join("jobs").join(client.id.to_string());
    wait_for("the job", || job.exists().then_some(()));
    daemon.kill();

    // Left by a process that is dead.
    let new = state.join("jobs/.new-aB3dE6");
    fs::create_dir(&new).unwrap();
    let left =
        [new.join("unproved.pf"), new.join(".pf-Zz9Zz9"), out.join(".pf-aB3dE6"), job.join(".proof-aB3dE6")];
    left.iter().for_each(|path| fs::write(path, b"half").unwrap());
    // This process lives, and writes beside the daemon. The last one only looks like a file of theirs.
    let (bundle, proof) = (partial::file(&out, ".pf-").unwrap(), partial::file(&job, ".proof-").unwrap());
    let making = partial::folder(&state.join("jobs"), ".new-").unwrap();
    let notes = out.join(".pf-of-yesterday");
    fs::write(&notes, b"mine").unwrap();

    let daemon = Process::start(folder.path(), |command| {
        command.arg("--prove-elsewhere");
    });
    for path in left.iter().chain([&new]) {
        assert!(!path.exists(), "{}", path.display());
    }
    for path in [bundle.path(), proof.path(), making.path(), &notes, &job.join("unproved.pf")] {
        assert!(path.exists(), "{}", path.display());
    }
    daemon.stop();

    // Who proves by hand tidies up, too.
    left[2..].iter().for_each(|path| fs::write(path, b"half").unwrap());
    let session = client.id.to_string();
    succeeds(
        program("zklora-contributor")
            .args(["prove", "--session", &session, "--state"])
            .arg(&state)
            .arg("--out-dir")
            .arg(&out),
    );
    assert!(left.iter().all(|path| !path.exists()));
    assert!(bundle.path().exists() && proof.path().exists() && notes.exists());
}

#[test]
fn the_commitment_seed_is_in_no_file_of_the_state_once_proving_begins() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Process::start(folder.path(), |_| {});
    let state = folder.path().join("state");
    let (opened, runtime) = (State::open(&state).unwrap(), Runtime::new().unwrap());
    let mut clients: Vec<Client<'_>> = (0..3).map(|_| Client::open(&runtime, &opened, &daemon)).collect();
    let seeds: Vec<[u8; 32]> = clients.iter().map(|client| *client.seed.as_bytes()).collect();
    let found = || -> Vec<bool> {
        let mut files = Vec::new();
        for path in modes(folder.path()).into_keys().map(|path| folder.path().join(path)) {
            // Sockets, and what is gone in the meantime.
            if path.is_file() {
                files.push(fs::read(path).unwrap_or_default());
            }
        }
        let hidden = |seed: &[u8; 32]| {
            let (hex, base) = (hex(seed), seed);
            files.iter().any(|file| {
                file.windows(32).any(|bytes| bytes == base) || file.windows(64).any(|bytes| bytes == hex)
            })
        };
        seeds.iter().map(hidden).collect()
    };
    assert_eq!(found(), [true; 3], "an open session needs it");
    clients[..2].iter_mut().for_each(|client| finished(client, &daemon));
    let bundles = [0, 1].map(|i| folder.path().join("out").join(format!("{}.pf", clients[i].id)));
    bundles.iter().for_each(|path| drop(bundle_at(path)));
    // Not at once: the database is read by others, too.
    wait_for("that the seeds are forgotten", || (found() == [false, false, true]).then_some(()));
    // Killed in the meantime, it forgets at the next start.
    finished(&mut clients[2], &daemon);
    daemon.kill();
    let daemon = Process::start(folder.path(), |_| {});
    wait_for("that the last seed is forgotten", || (found() == [false; 3]).then_some(()));
    daemon.stop();
    assert_eq!(found(), [false; 3]);
}

fn hex(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().flat_map(|byte| format!("{byte:02x}").into_bytes()).collect()
}
