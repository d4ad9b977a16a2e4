//! The daemon, as a process of its own.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;
use zklora_proto::Address;

/// A running `serve` with `state` and `out` in a folder.
pub struct Daemon {
    process: Child,
    pub address: Address,
}

impl Daemon {
    /// Starts it, and waits until it listens.
    pub fn start(folder: &Path, arguments: &[&str]) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_zklora-contributor"))
            .args(["serve", "--open", "--json", "--listen", "127.0.0.1:0"])
            .args(arguments)
            .arg("--state")
            .arg(folder.join("state"))
            .arg("--out-dir")
            .arg(folder.join("out"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said: Value = serde_json::from_str(&line).expect("the daemon prints its address");
        Self { process, address: said["address"].as_str().unwrap().parse().unwrap() }
    }

    /// Stops it without a warning.
    pub fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Asks it to stop, and waits until it has.
    pub fn terminate(mut self) -> ExitStatus {
        terminate(&self.process);
        self.process.wait().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Sends SIGTERM.
pub fn terminate(process: &Child) {
    let pid = rustix::process::Pid::from_child(process);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
}

/// Waits until something holds.
pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    for _ in 0..2400 {
        if let Some(value) = ask() {
            return value;
        }
        sleep(Duration::from_millis(25));
    }
    panic!("{what} within a minute");
}

/// Waits for a bundle.
pub fn bundle_at(path: &Path) -> Vec<u8> {
    wait_for("the bundle", || std::fs::read(path).ok())
}
