//! Bad networks, clients that vanish, disks that are full or closed, damaged files and clocks that jump: nothing that was
//! answered or signed is lost, and nobody else notices.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "tests say what they measure or pass over")]

use std::fs;
use std::io::Cursor;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use zklora_circuit::parameters::Security;
use zklora_circuit::session::{Circuits, verify_session};
use zklora_client::{Session, SessionError};
use zklora_contributor::state::State;
use zklora_proto::bundle::Bundle;
use zklora_proto::{Address, SecretKey, SessionId};
use zklora_tests::process::{Process, bundle_at, command, status, wait_for};
use zklora_tests::programs::program;
use zklora_tests::proxy::{Proxy, Weather};

const CALM: Weather = Weather { lost: 0, repeated: 0, late: Duration::ZERO };

struct Contributor {
    folder: TempDir,
    state: State,
    runtime: Runtime,
}

impl Contributor {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Makes the state.
        command(folder.path());
        let state = State::open(&folder.path().join("state")).unwrap();
        Self { folder, state, runtime: Runtime::new().unwrap() }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn serve(&self, arguments: &[&str]) -> Process {
        Process::start(self.path(), |command| {
            command.args(arguments);
        })
    }

    fn session(&self, address: &Address) -> Result<Session, SessionError> {
        Session::open(
            self.runtime.handle().clone(),
            SecretKey::generate(),
            address,
            self.state.manifest.adapter_id(),
            *self.state.manifest.manifest().base_model(),
        )
    }

    /// Asks every module for some rows.
    fn forward_all(&self, session: &Session, value: i16) -> Result<(), SessionError> {
        for (index, module) in self.state.manifest.manifest().modules().iter().enumerate() {
            session.forward(&[index], &vec![value; 3 * module.shape().d_in()])?;
        }
        Ok(())
    }

    /// Waits for the bundle of a session and verifies it. Gives its number of calls.
    fn verified(&self, session: SessionId) -> u64 {
        let bytes = bundle_at(&self.path().join("out").join(format!("{session}.pf")));
        let mut bundle = Bundle::from_reader(Cursor::new(bytes)).unwrap();
        verify_session(&mut bundle, &Circuits::default()).unwrap();
        bundle.receipt().receipt().calls
    }
}

/// The way to a daemon through a proxy.
fn through(daemon: &Process, weather: Weather) -> (Proxy, Address) {
    let address = daemon.address();
    let server = SocketAddr::from(([127, 0, 0, 1], address.port));
    let proxy = Proxy::new(server, weather);
    let address = Address { port: proxy.address.port(), ..address };
    (proxy, address)
}

#[test]
fn packets_that_are_lost_late_or_repeated_change_nothing() {
    let world = Contributor::new();
    let daemon = world.serve(&[]);
    let weather = Weather { lost: 100, repeated: 50, late: Duration::from_millis(8) };
    let (proxy, address) = through(&daemon, weather);
    let session = world.session(&address).unwrap();
    for value in 1..4 {
        world.forward_all(&session, value).unwrap();
    }
    session.finish().unwrap();
    assert!(proxy.lost.load(Ordering::Relaxed) > 10, "the network was better than it should be");
    assert_eq!(world.verified(session.id()), 36);
}

#[test]
fn a_daemon_that_dies_and_comes_back_is_found_again_by_its_clients() {
    let world = Contributor::new();
    let daemon = world.serve(&[]);
    let listen = format!("127.0.0.1:{}", daemon.address().port);
    let session = world.session(&daemon.address()).unwrap();
    world.forward_all(&session, 1).unwrap();
    daemon.kill();
    // The client asks while nobody is there.
    let daemon = std::thread::scope(|scope| {
        let asked = scope.spawn(|| world.forward_all(&session, 2));
        std::thread::sleep(Duration::from_millis(300));
        let daemon = Process::start_at(world.path(), &listen);
        asked.join().unwrap().unwrap();
        daemon
    });
    session.finish().unwrap();
    assert_eq!(world.verified(session.id()), 24);
    drop(daemon);
}

/// A daemon whose setting is changed keeps the word that it gave.
#[test]
fn a_session_is_proved_with_the_parameter_set_that_its_client_was_told() {
    let world = Contributor::new();
    let daemon = world.serve(&["--security", "compact"]);
    let listen = format!("127.0.0.1:{}", daemon.address().port);
    let error = world.session(&daemon.address()).err().unwrap();
    assert!(matches!(error, SessionError::MinSecurity { security: Security::Compact, min: 100 }), "{error}");
    let open = |address| {
        Session::open_with_min_security(
            world.runtime.handle().clone(),
            SecretKey::generate(),
            address,
            world.state.manifest.adapter_id(),
            *world.state.manifest.manifest().base_model(),
            65,
        )
    };
    let session = open(&daemon.address()).unwrap();
    world.forward_all(&session, 1).unwrap();
    daemon.stop();
    let daemon = Process::start_at(world.path(), &listen);
    world.forward_all(&session, 2).unwrap();
    session.finish().unwrap();
    let new = world.session(&daemon.address()).unwrap();
    world.forward_all(&new, 1).unwrap();
    new.finish().unwrap();
    for (session, security) in [(&session, "compact"), (&new, "standard")] {
        world.verified(session.id());
        let path = world.path().join("out").join(format!("{}.pf", session.id()));
        assert_eq!(Bundle::open(&path).unwrap().plan().security, security);
    }
}

#[test]
fn a_client_that_vanishes_is_given_up_and_nobody_else_notices() {
    let world = Contributor::new();
    let daemon = world.serve(&["--session-idle", "2s"]);
    let (proxy, address) = through(&daemon, CALM);
    let vanishing = world.session(&address).unwrap();
    world.forward_all(&vanishing, 1).unwrap();
    proxy.cut(true);
    let session = world.session(&daemon.address()).unwrap();
    world.forward_all(&session, 1).unwrap();
    session.finish().unwrap();
    assert_eq!(world.verified(session.id()), 12);

    let state = world.path().join("state");
    wait_for("that the client is given up", || {
        let (_, output) = status(&["--json", "--state", state.to_str().unwrap()]);
        let said: Value = serde_json::from_slice(&output.stdout).ok()?;
        (said["abandoned"] == 1).then_some(())
    });
    // It comes back too late.
    proxy.cut(false);
    let error = world.forward_all(&vanishing, 2).unwrap_err().to_string();
    assert!(error.contains("no such session"), "{error}");
}

#[test]
fn a_clock_that_jumps_ends_no_session() {
    let world = Contributor::new();
    let shim = world.path().join("clock.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/daemon/clock.c");
    let built = Command::new("gcc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&shim).arg(source).status();
    assert!(built.unwrap().success());
    let offset = world.path().join("offset");
    let ten_years = 10 * 365 * 24 * 3600;
    let daemon = Process::start(world.path(), |command| {
        command.env("LD_PRELOAD", &shim).env("ZKLORA_TEST_CLOCK", &offset).args(["--session-idle", "30s"]);
    });
    let before = world.session(&daemon.address()).unwrap();
    world.forward_all(&before, 1).unwrap();
    for jump in [ten_years, -ten_years] {
        fs::write(&offset, jump.to_string()).unwrap();
        let session = world.session(&daemon.address()).unwrap();
        world.forward_all(&session, 2).unwrap();
        world.forward_all(&before, 3).unwrap();
        // The shim is at work: the receipt has that time, and the client does not sign it.
        let error = session.finish().unwrap_err();
        assert!(matches!(error, SessionError::FalseTime { what: "started", .. }), "{error}");
    }
    fs::write(&offset, "0").unwrap();
    before.finish().unwrap();
    assert_eq!(world.verified(before.id()), 36);
    // Set back a little, it costs no session.
    let session = world.session(&daemon.address()).unwrap();
    world.forward_all(&session, 4).unwrap();
    fs::write(&offset, "-60").unwrap();
    let receipt = session.finish().unwrap();
    assert_eq!(receipt.receipt().finished, receipt.receipt().started);
    assert_eq!(world.verified(session.id()), 12);
}

/// A folder in a file system of its own, of some size, that a daemon has and that others get at by its process.
struct SmallDisk<'a> {
    daemon: Process,
    folder: &'a Path,
}

impl<'a> SmallDisk<'a> {
    /// Serves with `folder` on a small disk, after `prepare` (a line for a shell) was run there.
    fn serve(world: &Contributor, folder: &'a Path, kilobytes: usize, prepare: &str) -> Self {
        let serve = command(world.path());
        let mut arguments = vec![serve.get_program().to_owned()];
        arguments.extend(serve.get_args().map(Into::into));
        let script =
            format!("mount -t tmpfs -o size={kilobytes}k,mode=700 none \"$0\" && {prepare} && exec \"$@\"");
        let daemon = Process::run(
            Command::new("unshare")
                .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
                .arg(folder)
                .args(arguments)
                .stderr(Stdio::null()),
        );
        Self { daemon, folder }
    }

    /// A path in the folder as others see it.
    fn seen(&self, path: &str) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.daemon.child.id()));
        root.join(self.folder.strip_prefix("/").unwrap()).join(path)
    }

    /// Makes the file system writable or not.
    fn remount(&self, how: &str) {
        let status = Command::new("nsenter")
            .args([
                "--user",
                "--mount",
                "--preserve-credentials",
                "--target",
                &self.daemon.child.id().to_string(),
            ])
            .args(["mount", "-o", &format!("remount,{how}")])
            .arg(self.folder)
            .status();
        assert!(status.unwrap().success());
    }
}

/// Whether this user may have file systems of its own. Some containers do not allow it.
fn may_mount() -> bool {
    let mount = ["--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"];
    let may = Command::new("unshare").args(mount).output().is_ok_and(|output| output.status.success());
    if !may {
        assert!(
            std::env::var_os("ZKLORA_TEST_MOUNTS").is_none(),
            "ZKLORA_TEST_MOUNTS is set, but user namespaces are not to be had"
        );
        eprintln!("NOT TESTED: this needs user namespaces (unshare), which are not to be had here");
    }
    may
}

#[test]
fn a_full_disk_refuses_calls_and_loses_none() {
    if !may_mount() {
        return;
    }
    let world = Contributor::new();
    let (state, real) = (world.path().join("state"), world.path().join("real"));
    fs::rename(&state, &real).unwrap();
    fs::create_dir(&state).unwrap();
    // Ballast, which is thrown off when the disk is full: then there is room for the log, the job and its proofs.
    let prepare = format!("cp -a {}/. \"$0\" && head -c 6291456 /dev/zero >\"$0/ballast\"", real.display());
    let disk = SmallDisk::serve(&world, &state, 8 << 10, &prepare);
    let session = world.session(&disk.daemon.address()).unwrap();
    let mut calls = 0;
    let rows = vec![5; 200 * world.state.manifest.manifest().modules()[0].shape().d_in()];
    let refused = loop {
        match session.forward(&[0], &rows) {
            Ok(_) => calls += 1,
            Err(error) => break error.to_string(),
        }
    };
    assert!(calls > 1 && refused.contains("could not record"), "{calls} calls, then {refused}");
    assert!(session.forward(&[0], &rows).is_err(), "it is still full");
    // It is alive, and goes on as soon as there is room.
    fs::remove_file(disk.seen("ballast")).unwrap();
    session.forward(&[0], &rows).unwrap();
    session.finish().unwrap();
    assert_eq!(world.verified(session.id()), calls + 1);
}

#[test]
fn bundles_that_cannot_be_written_are_written_later() {
    if !may_mount() {
        return;
    }
    let world = Contributor::new();
    let out = world.path().join("out");
    fs::create_dir(&out).unwrap();
    let disk = SmallDisk::serve(&world, &out, 64 << 10, "true");
    disk.remount("ro");
    let session = world.session(&disk.daemon.address()).unwrap();
    world.forward_all(&session, 1).unwrap();
    session.finish().unwrap();
    let job = world.path().join("state/jobs").join(session.id().to_string());
    wait_for("all proofs", || job.join("proof.0").exists().then_some(()));
    disk.remount("rw");
    let bundle = disk.seen(&format!("{}.pf", session.id()));
    // It is tried again by itself, without a restart.
    let bytes = bundle_at(&bundle);
    verify_session(&mut Bundle::from_reader(Cursor::new(bytes)).unwrap(), &Circuits::default()).unwrap();
}

#[test]
fn a_folder_that_cannot_be_written_is_named_at_the_start() {
    let world = Contributor::new();
    let output = program("zklora-contributor")
        .args(["serve", "--open", "--listen", "127.0.0.1:0", "--out-dir", "/proc/zklora", "--state"])
        .arg(world.path().join("state"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("making /proc/zklora"), "{said}");
}

/// What `exposure` says of the first module: rows, and those of them that are not known.
fn exposed(world: &Contributor) -> (u64, u64) {
    let output = program("zklora-contributor")
        .args(["exposure", "--json", "--state"])
        .arg(world.path().join("state"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    let module = &said["modules"][0];
    (module["rows"].as_u64().unwrap(), module["lost"].as_u64().unwrap())
}

/// Changes a file.
fn damage(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_log_that_is_damaged_or_gone_counts_as_all_that_was_reserved() {
    let world = Contributor::new();
    let [database, log] =
        ["sessions.sqlite", "sessions.sqlite-wal"].map(|file| world.path().join("state").join(file));
    let width = world.state.manifest.manifest().modules()[0].shape().d_in();
    let row = |index: usize| -> Vec<i16> { (0..width).map(|i| i16::from(i == index)).collect() };
    let daemon = world.serve(&[]);
    let session = world.session(&daemon.address()).unwrap();
    world.forward_all(&session, 1).unwrap();
    session.finish().unwrap();
    assert_eq!(world.verified(session.id()), 12);
    daemon.stop();
    assert_eq!(exposed(&world), (1, 0));

    // The end of the log is damaged. If it is part of the file already, nothing is lost by that.
    let daemon = world.serve(&[]);
    let session = world.session(&daemon.address()).unwrap();
    (0..5).for_each(|index| drop(session.forward(&[0], &row(index)).unwrap()));
    daemon.kill();
    damage(&log, |bytes| *bytes.last_mut().unwrap() ^= 1);
    let (rows, lost) = exposed(&world);
    assert!(lost >= 1 && rows > 6 || (rows, lost) == (6, 0), "{rows} rows, {lost} lost");

    // All of the log is gone, and the file is as it was before.
    world.serve(&[]).stop();
    let before = fs::read(&database).unwrap();
    let daemon = world.serve(&[]);
    let session = world.session(&daemon.address()).unwrap();
    session.forward(&[0], &row(100)).unwrap();
    daemon.kill();
    fs::write(&database, before).unwrap();
    fs::remove_file(&log).unwrap();
    fs::remove_file(world.path().join("state/sessions.sqlite-shm")).unwrap();
    let (rows, lost) = exposed(&world);
    assert!(rows > 6 && lost >= 1, "{rows} rows, {lost} lost");
    let daemon = world.serve(&[]);
    assert_eq!(exposed(&world), (rows, lost));
    let session = world.session(&daemon.address()).unwrap();
    world.forward_all(&session, 3).unwrap();
    session.finish().unwrap();
    assert_eq!(world.verified(session.id()), 12);
    daemon.stop();
    assert_eq!(exposed(&world), (rows, lost), "it stays lost");
}

#[test]
fn a_state_without_its_ledger_is_served_only_with_a_new_one() {
    let world = Contributor::new();
    let [database, reserved] =
        ["sessions.sqlite", "sessions.sqlite-reserved"].map(|file| world.path().join("state").join(file));
    let daemon = world.serve(&[]);
    let session = world.session(&daemon.address()).unwrap();
    world.forward_all(&session, 1).unwrap();
    drop(session);
    daemon.stop();
    let whole = [&database, &reserved].map(|file| fs::read(file).unwrap());
    let refused = |arguments: &[&str], expected: &str| {
        let output = command(world.path()).args(arguments).output().unwrap();
        // What --check-config finds is part of its JSON.
        let said = [output.stdout, output.stderr].map(|said| String::from_utf8(said).unwrap()).concat();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(expected), "{said:?} should contain {expected:?}");
    };
    let none = |file: &Path| fs::remove_file(file).unwrap();
    let cut = |file: &Path| damage(file, |bytes| bytes.truncate(bytes.len() / 2));
    let empty = |file: &Path| damage(file, |bytes| bytes.clear());
    type Damage<'a> = (&'a Path, &'a dyn Fn(&Path), &'a str);
    let damages: [Damage<'_>; 5] = [
        (&database, &none, "sessions.sqlite is not there"),
        (&database, &cut, "sessions.sqlite is damaged or cut"),
        (&database, &empty, "sessions.sqlite is damaged or cut"),
        (&reserved, &none, "sessions.sqlite-reserved is not there"),
        (&reserved, &cut, "sessions.sqlite-reserved is damaged or cut"),
    ];
    for (file, damage, expected) in damages {
        for (file, bytes) in [&database, &reserved].iter().zip(&whole) {
            fs::write(file, bytes).unwrap();
            fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
        }
        damage(file);
        refused(&[], expected);
        refused(&[], "serve --new-ledger");
        refused(&["--check-config"], expected);
        // Whoever only looks is told, too, and makes nothing.
        let output = program("zklora-contributor")
            .args(["exposure", "--state"])
            .arg(world.path().join("state"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains(expected), "{said}");
    }
    // The reservation cannot be read: what is known to be answered counts, and another reservation.
    world.serve(&["--new-ledger"]).stop();
    assert_eq!(exposed(&world), (65, 65));
    refused(&["--new-ledger"], "leave out --new-ledger");
    fs::remove_file(&database).unwrap();
    world.serve(&["--new-ledger"]).stop();
    assert_eq!(exposed(&world), (65, 65), "the file beside the database says so");
    world.serve(&[]).stop();
    // A state that answered nothing is served without a word.
    fs::remove_dir_all(world.path().join("state")).unwrap();
    world.serve(&[]).stop();
    assert_eq!(exposed(&world), (0, 0));
}
