//! What the service manager is told, by a real daemon, over a real socket.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use rustix::process::Signal;
use tokio::runtime::Runtime;
use zklora_client::Session;
use zklora_contributor::state::State;
use zklora_proto::SecretKey;
use zklora_tests::process::{Process, command, wait_for};

/// A service manager's socket.
struct Manager(UnixDatagram);

impl Manager {
    /// Waits for a message that has this line, and gives it. Fails after a time that is far too long.
    fn wait_for(&self, line: &str) -> String {
        let mut passed = Vec::new();
        loop {
            let mut bytes = [0; 4096];
            let length =
                self.0.recv(&mut bytes).unwrap_or_else(|e| panic!("no {line:?} after {passed:?}: {e}"));
            let message = String::from_utf8(bytes[..length].to_vec()).unwrap();
            if message.lines().any(|said| said.starts_with(line)) {
                return message;
            }
            passed.push(message);
        }
    }
}

#[test]
fn the_service_manager_is_told_of_every_step() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("notify");
    let manager = Manager(UnixDatagram::bind(&socket).unwrap());
    manager.0.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut daemon = Process::start(folder.path(), |command| {
        command.env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", "200000");
    });
    // More time is asked for before it is ready, and only then.
    assert!(manager.wait_for("EXTEND_TIMEOUT_USEC=").contains("30000000"));
    manager.wait_for("READY=1");
    assert!(manager.wait_for("STATUS=").contains("0 sessions open"));
    for _ in 0..3 {
        manager.wait_for("WATCHDOG=1");
    }
    daemon.signal(Signal::HUP);
    assert!(manager.wait_for("RELOADING=1").contains("MONOTONIC_USEC="));
    manager.wait_for("READY=1");
    manager.wait_for("WATCHDOG=1");
    daemon.signal(Signal::TERM);
    manager.wait_for("STOPPING=1");
    assert!(daemon.child.wait().unwrap().success());
}

#[test]
fn told_to_stop_it_leaves_the_proofs_that_are_not_begun_to_the_next_start() {
    const SESSIONS: usize = 6;
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("notify");
    let manager = Manager(UnixDatagram::bind(&socket).unwrap());
    manager.0.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut daemon = Process::start(folder.path(), |command| {
        command.env("NOTIFY_SOCKET", &socket);
    });
    let state = State::open(&folder.path().join("state")).unwrap();
    let manifest = state.manifest.manifest();
    let (runtime, address) =
        (Runtime::new().unwrap(), daemon.said["address"].as_str().unwrap().parse().unwrap());
    for _ in 0..SESSIONS {
        let (key, adapter) = (SecretKey::generate(), state.manifest.adapter_id());
        let session =
            Session::open(runtime.handle().clone(), key, &address, adapter, *manifest.base_model()).unwrap();
        for (index, module) in manifest.modules().iter().enumerate() {
            session.forward(&[index], &vec![1; module.shape().d_in()]).unwrap();
        }
        session.finish().unwrap();
    }
    daemon.signal(Signal::TERM);
    manager.wait_for("STOPPING=1");
    assert!(daemon.child.wait().unwrap().success());
    let bundles = || {
        let files = folder.path().join("out").read_dir().unwrap();
        files.filter(|file| file.as_ref().unwrap().path().extension() == Some("pf".as_ref())).count()
    };
    assert!(bundles() < SESSIONS, "all was proved before the signal: give it more sessions");

    let daemon = Process::start(folder.path(), |_| {});
    wait_for("all bundles", || (bundles() == SESSIONS).then_some(()));
    daemon.stop();
}

#[test]
fn a_watchdog_of_another_process_is_not_fed() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("notify");
    let manager = Manager(UnixDatagram::bind(&socket).unwrap());
    manager.0.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let daemon = Process::start(folder.path(), |command| {
        command.env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", "200000").env("WATCHDOG_PID", "1");
    });
    manager.wait_for("READY=1");
    daemon.stop();
    manager.0.set_nonblocking(true).unwrap();
    let mut bytes = [0; 4096];
    while let Ok(length) = manager.0.recv(&mut bytes) {
        assert!(!bytes[..length].starts_with(b"WATCHDOG=1"));
    }
}

#[test]
fn a_daemon_that_cannot_start_is_never_ready() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    let output =
        command(folder.path()).args(["--memory", "1MiB"]).env("NOTIFY_SOCKET", &socket).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    manager.set_nonblocking(true).unwrap();
    let mut bytes = [0; 4096];
    while let Ok(length) = manager.recv(&mut bytes) {
        assert!(!String::from_utf8_lossy(&bytes[..length]).contains("READY=1"));
    }
}
