//! The contributor as a process of its own.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use zklora_contributor::state::State;
use zklora_proto::Address;
use zklora_testing::schemas::read_document;

use crate::fixtures;
use crate::programs::program;

/// A running daemon, which is killed when this is dropped.
pub struct Process {
    pub child: Child,
    /// What it said when it began to serve.
    pub said: Value,
}

impl Process {
    /// Serves the state in a folder, made if it is not there; `with` adds to the command.
    pub fn start(folder: &Path, with: impl FnOnce(&mut Command)) -> Self {
        let mut command = command(folder);
        command.stderr(Stdio::null());
        with(&mut command);
        Self::run(&mut command)
    }

    /// The same at an address that is known before.
    pub fn start_at(folder: &Path, listen: &str) -> Self {
        Self::run(command_at(folder, listen).stderr(Stdio::null()))
    }

    /// Runs a command that becomes the daemon.
    pub fn run(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said = read_document(line.as_bytes());
        Self { child, said }
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Where it serves.
    pub fn address(&self) -> Address {
        self.said["address"].as_str().unwrap().parse().unwrap()
    }

    /// Stops it without a warning.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Tells it to stop, and waits until it has.
    pub fn stop(mut self) {
        self.signal(Signal::TERM);
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `serve` with the state in this folder, made if it is not there.
pub fn command(folder: &Path) -> Command {
    command_at(folder, "127.0.0.1:0")
}

fn command_at(folder: &Path, listen: &str) -> Command {
    let state = folder.join("state");
    if !state.exists() {
        State::create(&state, &fixtures().join("gpt2-tiny"), &fixtures().join("lora-es")).unwrap();
    }
    let mut command = program("zklora-contributor");
    command.args(["serve", "--open", "--json", "--listen", listen, "--exposure-budget", "1", "--out-dir"]);
    command.arg(folder.join("out")).arg("--state").arg(state);
    command
}

/// What `status` says, with its exit code.
pub fn status(args: &[&str]) -> (Option<i32>, Output) {
    let output = program("zklora-contributor").arg("status").args(args).output().unwrap();
    (output.status.code(), output)
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
