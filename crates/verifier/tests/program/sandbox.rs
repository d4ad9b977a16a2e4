//! No network and no other program, whatever is in a bundle: the kernel holds the verifier to that.

#![cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]

use std::io::{self, ErrorKind, Read};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::{fs, thread};

use zklora_verdict::{Pins, Verifier};
use zklora_verifier::{KeyCache, sandbox};

/// In a thread, which the sandbox is entered by alone: the rest of this process goes on as before.
#[test]
fn files_and_threads_are_allowed_networks_and_programs_are_not() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let _unix = UnixListener::bind(&socket).unwrap();
    let ways_out = move || -> Vec<(&str, io::Result<()>)> {
        vec![
            ("TCP", TcpStream::connect(address).map(drop)),
            ("TCP, listening", TcpListener::bind("127.0.0.1:0").map(drop)),
            ("UDP", UdpSocket::bind("127.0.0.1:0").map(drop)),
            ("a Unix socket", UnixStream::connect(&socket).map(drop)),
            ("a program", Command::new("true").status().map(drop)),
        ]
    };
    for (way, result) in ways_out() {
        assert!(result.is_ok(), "{way}, without a sandbox: {result:?}");
    }

    let key_folder = folder.path().join("keys");
    let in_sandbox = thread::spawn(move || {
        sandbox::enter().unwrap();
        for (way, result) in ways_out() {
            assert_eq!(result.map_err(|error| error.kind()), Err(ErrorKind::Unsupported), "{way}");
        }

        let file = folder.path().join("file");
        fs::write(&file, "written").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "written");
        assert!(fs::read_dir(folder.path()).unwrap().count() >= 2);
        // A thread inherits it.
        let inherited = thread::spawn(move || TcpStream::connect(address).map(drop)).join().unwrap();
        assert_eq!(inherited.unwrap_err().kind(), ErrorKind::Unsupported);

        // With a key that is kept, and with one that was.
        for _ in 0..2 {
            let keys = KeyCache::new(key_folder.clone());
            let verifier =
                Verifier::new(Pins::default()).with_circuits(move |set, shapes| Ok(keys.get(set, shapes)?.0));
            let verdict = verifier.check_file(&bundle());
            assert!(verdict.outcome.is_ok(), "{}", verdict.outcome.unwrap_err());
        }
        assert_eq!(fs::read_dir(&key_folder).unwrap().count(), 1, "the key is kept");
    });
    in_sandbox.join().unwrap();
    TcpStream::connect(address).expect("the other threads still may");
}

/// All threads of the program are in the sandbox. It is looked at when it cannot go on, since nobody reads what it says.
#[test]
fn the_program_enters_it() {
    // More than a pipe holds.
    let nowhere: Vec<String> = (0..5000).map(|i| format!("/nonexistent/{i:040}")).collect();
    let mut verifier = Stopped(
        Command::new(env!("CARGO_BIN_EXE_zklora-verifier"))
            .args(["verify", "--json"])
            .arg(bundle())
            .args(&nowhere)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let mut first = [0];
    verifier.0.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    let tasks = format!("/proc/{}/task", verifier.0.id());
    let mut threads = 0;
    for task in fs::read_dir(&tasks).unwrap() {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        for line in ["NoNewPrivs:\t1", "Seccomp:\t2"] {
            assert!(status.lines().any(|found| found == line), "expected {line} in {status}");
        }
        threads += 1;
    }
    assert!(threads > 0);
}

/// A program that is ended with the test.
struct Stopped(Child);

impl Drop for Stopped {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn bundle() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/vectors/valid/one-module.pf")
}
