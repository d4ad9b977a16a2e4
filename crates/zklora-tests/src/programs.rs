//! Real processes of all three programs on the fixtures.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;

use tempfile::TempDir;
use zklora_testing::schemas::read_document;

use crate::fixtures;

/// One of the three programs, built in the profile of this test.
///
/// `cargo test --workspace` builds all three before the first test runs. Cargo is not asked here to do so: it would build anew what
/// depends on a test's environment, and so would whoever builds next.
pub fn program(name: &str) -> Command {
    // This test is in the folder `deps` beside them.
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().unwrap().parent().unwrap();
    let binary = profile.join(name);
    assert_fresh(&binary);
    let mut command = Command::new(binary);
    command.stdin(Stdio::null()).env_remove("RUST_LOG");
    // Not among the records of whoever runs the tests.
    command.env("ZKLORA_RECORDS", profile.with_file_name("tmp").join("sessions"));
    command
}

/// A test of one package does not build the others' programs. One that is missing or older than its sources is no test of them.
fn assert_fresh(binary: &Path) {
    static FRESH: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    // Unlocked before anything can panic, or all other tests would.
    if FRESH.lock().unwrap().contains(binary) {
        return;
    }
    const DO: &str = "build it with `cargo test --release --workspace --no-run`";
    let modified = |path: &Path| path.metadata().and_then(|metadata| metadata.modified());
    let built = modified(binary).unwrap_or_else(|error| panic!("{}: {error}; {DO}", binary.display()));
    // Beside a binary, `cargo build` lists what of this workspace it was made of: `binary: source source...`. `cargo test` makes no
    // such list, but it builds all programs where it is given the whole workspace.
    let Ok(list) = std::fs::read_to_string(binary.with_extension("d")) else { return };
    let sources = list.split_once(": ").unwrap().1.replace("\\ ", "\0");
    for source in sources.split_whitespace().map(|source| source.replace('\0', " ")) {
        // The list may be older than the binary: what is gone by now says nothing.
        let newer = modified(Path::new(&source)).is_ok_and(|changed| changed > built);
        assert!(!newer, "{} is older than {source}; {DO}", binary.display());
    }
    FRESH.lock().unwrap().insert(binary.to_owned());
}

/// A contributor with a state of its own.
pub struct Programs {
    pub folder: TempDir,
    pub adapter: String,
    pub contributor: String,
}

impl Default for Programs {
    fn default() -> Self {
        Self::new()
    }
}

impl Programs {
    /// A contributor of the fixture's adapter.
    pub fn new() -> Self {
        Self::of(&fixtures().join("gpt2-tiny"), &fixtures().join("lora-es"))
    }

    /// Runs `init` on a base model and an adapter.
    pub fn of(base_model: &Path, lora: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let output = init(base_model, lora, &folder.path().join("state"));
        assert!(output.status.success(), "{}", text(&output.stderr));
        let summary: serde_json::Value = read_document(&output.stdout);
        let field = |name: &str| summary[name].as_str().unwrap().to_owned();
        Self { adapter: field("adapter"), contributor: field("contributor"), folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts `serve` on a free port, with a log of everything.
    pub fn serve(&self) -> Server {
        self.serve_with("RUST_LOG", "trace,quinn=info,quinn_proto=info,rustls=info")
    }

    /// Starts `serve` on a free port, with a variable in its environment.
    pub fn serve_with(&self, variable: &str, value: &str) -> Server {
        self.start(&["--exposure-budget", "1"], variable, value)
    }

    /// Starts `serve` on a free port, with more arguments.
    pub fn serve_more(&self, more: &[&str]) -> Server {
        self.start(more, "RUST_LOG", "info")
    }

    fn start(&self, more: &[&str], variable: &str, value: &str) -> Server {
        let log = std::fs::File::create(self.path("contributor.log")).unwrap();
        let mut child = program("zklora-contributor")
            .args(["serve", "--open", "--listen", "127.0.0.1:0", "--state"])
            .arg(self.path("state"))
            .args(more)
            .arg("--out-dir")
            .arg(self.path("out"))
            .env(variable, value)
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut address = String::new();
        stdout.read_line(&mut address).unwrap();
        Server { child, address: address.trim_end().to_owned(), stdout: Box::new(stdout) }
    }

    /// `zklora-base-user loss --json` against a server.
    pub fn loss(&self, address: &str, text: &str) -> Command {
        let mut command = program("zklora-base-user");
        command
            .args(["loss", "--json", "--contributor", address, "--adapter", &self.adapter, "--text", text])
            .arg("--base-model")
            .arg(fixtures().join("gpt2-tiny"))
            .arg("--identity")
            .arg(self.path("client.key"))
            .arg("--sessions")
            .arg(self.path("sessions"));
        command
    }

    /// Waits until the contributor has written so many bundles.
    pub fn wait_for_bundles(&self, count: usize) {
        let bundles = || {
            let files = std::fs::read_dir(self.path("out")).unwrap();
            files.filter(|file| file.as_ref().unwrap().path().extension() == Some("pf".as_ref())).count()
        };
        for _ in 0..1200 {
            if bundles() >= count {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        panic!("{} of {count} bundles within a minute", bundles());
    }

    /// `zklora-verifier verify --json` over the out folder, with everything pinned.
    pub fn verify(&self) -> (serde_json::Value, i32) {
        let output = program("zklora-verifier")
            .args(["verify", "--json", "--adapter", &self.adapter, "--contributor", &self.contributor])
            .arg("--proof-dir")
            .arg(self.path("out"))
            .output()
            .unwrap();
        let code = output.status.code().unwrap();
        (read_document(&output.stdout), code)
    }
}

/// A running contributor; killed when dropped.
pub struct Server {
    child: Child,
    pub address: String,
    stdout: Box<dyn Read + Send>,
}

impl Server {
    /// Asks it to stop, waits, and gives the rest of its standard output.
    pub fn stop(mut self) -> String {
        let status = Command::new("kill").arg("-TERM").arg(self.child.id().to_string()).status().unwrap();
        assert!(status.success());
        assert!(self.child.wait().unwrap().success());
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        rest
    }

    /// Sends it a signal.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status();
        assert!(sent.unwrap().success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `zklora-contributor init --json`.
pub fn init(base_model: &Path, lora: &Path, state: &Path) -> Output {
    program("zklora-contributor")
        .args(["init", "--json", "--base-model"])
        .arg(base_model)
        .arg("--lora")
        .arg(lora)
        .arg("--state")
        .arg(state)
        .output()
        .unwrap()
}

/// Runs a command that must fail, and gives what it says.
pub fn failure(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    text(&output.stderr)
}

/// Runs a command that must succeed, and gives the JSON it prints.
pub fn success(command: &mut Command) -> serde_json::Value {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    read_document(&output.stdout)
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
