//! `serve`'s configuration: who wins, what is wrong, and that a check serves nothing.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Output, Stdio};

use crate::{contributor, fixtures};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::runtime::Runtime;
use zklora_contributor::state::State;
use zklora_net::Connection;
use zklora_proto::{Address, SecretKey};
use zklora_testing::schemas::read_document;

/// A folder with a state and a configuration file in it.
fn world(config: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let (base, lora) = (fixtures().join("gpt2-tiny"), fixtures().join("lora-es"));
    State::create(&folder.path().join("state"), &base, &lora).unwrap();
    std::fs::write(folder.path().join("contributor.toml"), config).unwrap();
    folder
}

fn check(folder: &Path, variables: &[(&str, &str)], flags: &[&str]) -> Output {
    let mut command = contributor();
    command.args(["serve", "--check-config"]).args(flags).envs(variables.iter().copied());
    // Found by the variable, and from another folder than its own.
    command.env("ZKLORA_CONFIG", folder.join("contributor.toml")).current_dir("/").output().unwrap()
}

fn json(output: &Output) -> Value {
    read_document(&output.stdout)
}

#[test]
fn a_variable_is_stronger_than_the_file_and_a_flag_than_both() {
    let folder = world(
        "state = \"state\"\nopen = true\nout_dir = \"out\"\nmemory = \"1GiB\"\nproving_threads = 1\nlisten = \"[::1]:1\"\n",
    );
    let variables = [("ZKLORA_PROVING_THREADS", "2"), ("ZKLORA_LISTEN", "127.0.0.1:2")];
    let output = check(folder.path(), &variables, &["--listen", "127.0.0.1:3", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = json(&output);
    let setting = |name: &str| {
        let settings = said["settings"].as_array().unwrap();
        let found = settings.iter().find(|setting| setting["name"] == name).unwrap();
        (found["value"].as_str().unwrap().to_string(), found["source"].as_str().unwrap().to_string())
    };
    let is = |name: &str, value: &str, source: &str| assert_eq!(setting(name), (value.into(), source.into()));
    is("listen", "127.0.0.1:3", "flag");
    is("proving_threads", "2", "environment");
    is("memory", "1073741824", "file");
    is("security", "standard", "default");
    is("state", folder.path().join("state").to_str().unwrap(), "file");
    assert_eq!(said["errors"], serde_json::json!([]));

    let output = check(folder.path(), &[], &[]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        said.lines()
            .any(|line| line.starts_with("listen ") && line.contains("file ") && line.ends_with(" [::1]:1")),
        "{said}"
    );
    // Nothing was served, and nothing made.
    let mut files: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["contributor.toml", "state"]);
    assert!(!folder.path().join("state/control.sock").exists());
}

#[test]
fn all_that_is_wrong_is_told_at_once() {
    let folder = world("state = \"state\"\nout_dir = \"out\"\nlisten = \"here\"\nproving = 3\n");
    let output = check(folder.path(), &[("ZKLORA_MEMORY", "lots")], &["--json"]);
    assert_eq!(output.status.code(), Some(1));
    let errors = json(&output)["errors"].to_string();
    for expected in [
        "contributor.toml:3: listen",
        "ZKLORA_MEMORY \\\"lots\\\"",
        "contributor.toml:4: \\\"proving\\\" is no",
    ] {
        assert!(errors.contains(expected), "{expected}: {errors}");
    }
    // Serving says the same and does not begin.
    let output = contributor()
        .args(["serve", "--config"])
        .arg(folder.path().join("contributor.toml"))
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(said.contains("contributor.toml:3: listen") && said.contains("wrong in 2 places"), "{said}");
}

#[test]
fn what_the_machine_lacks_is_found_before_serving() {
    let folder = world("state = \"no-state\"\nout_dir = \"contributor.toml/out\"\n");
    let output = check(folder.path(), &[], &["--json"]);
    assert_eq!(output.status.code(), Some(1));
    let said = json(&output);
    let errors = said["errors"].to_string();
    assert!(errors.contains("zklora-contributor init"), "{errors}");
    assert!(errors.contains("out_dir: "), "{errors}");
    // The settings themselves are fine, and shown.
    assert_eq!(said["settings"][0]["name"], "state");

    let folder = world("state = \"state\"\nout_dir = \"out\"\nmemory = \"1MiB\"\n");
    let output = check(folder.path(), &[], &[]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("cannot be proved"), "{said}");

    let output = check(folder.path(), &[], &["--config", "/no/such/file"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && said.contains("/no/such/file"), "{said}");
}

#[test]
fn the_form_of_the_log_can_be_said_in_the_file() {
    let folder = world(
        "state = \"state\"\nout_dir = \"out\"\nopen = true\nlisten = \"127.0.0.1:0\"\nlog_format = \"json\"\n",
    );
    let run = |variables: &[(&str, &str)], flags: &[&str]| {
        let mut command = contributor();
        command.args(["serve", "--config"]).arg(folder.path().join("contributor.toml")).args(flags);
        command
            .envs(variables.iter().copied())
            .env_remove("RUST_LOG")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut daemon = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(daemon.stderr.take().unwrap()).read_line(&mut line).unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        line
    };
    let is_json = |line: &str| serde_json::from_str::<Value>(line).is_ok();
    let line = run(&[], &[]);
    assert!(is_json(&line), "{line}");
    // What is stronger, is.
    let line = run(&[("ZKLORA_LOG_FORMAT", "journal")], &[]);
    assert!(line.starts_with("<6>"), "{line}");
    let line = run(&[("ZKLORA_LOG_FORMAT", "journal")], &["--log-format", "text"]);
    assert!(!is_json(&line) && !line.starts_with('<'), "{line}");
    let said = json(&check(folder.path(), &[], &["--json"]));
    let settings = said["settings"].as_array().unwrap();
    let setting = settings.iter().find(|setting| setting["name"] == "log_format").unwrap();
    assert_eq!((&setting["value"], &setting["source"]), (&"json".into(), &"file".into()));

    std::fs::write(folder.path().join("contributor.toml"), "log_format = \"yaml\"\n").unwrap();
    let errors = json(&check(folder.path(), &[], &["--json"]))["errors"].to_string();
    assert!(
        errors.contains("contributor.toml:1: log_format") && errors.contains("text, json, journal"),
        "{errors}"
    );
}

#[test]
fn clients_are_told_an_address_that_they_can_dial() {
    let folder = world("state = \"state\"\nout_dir = \"out\"\nopen = true\n");
    let said = |flags: &[&str]| {
        let mut command = contributor();
        command.args(["serve", "--json", "--config"]).arg(folder.path().join("contributor.toml")).args(flags);
        let mut daemon = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"));
        let address: Address = said["address"].as_str().unwrap().parse().unwrap();
        // Whoever has only this dials it.
        let dialled = flags.contains(&"--advertise").then_some(()).or_else(|| {
            let key = SecretKey::generate();
            Runtime::new().unwrap().block_on(Connection::dial(&key, &address)).map(drop).ok()
        });
        kill_process(Pid::from_child(&daemon), Signal::TERM).unwrap();
        let mut log = String::new();
        daemon.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        assert!(daemon.wait().unwrap().success());
        assert!(dialled.is_some(), "{address}");
        assert_eq!(said["addresses"][0], said["address"]);
        assert!(log.contains(&format!("clients dial {address}")), "{log}");
        (address, log)
    };
    for listen in ["0.0.0.0:0", "[::]:0"] {
        let (address, log) = said(&["--listen", listen]);
        assert!(address.host != "0.0.0.0" && address.host != "[::]" && address.port > 0, "{address}");
        assert!(log.contains("--advertise"), "{log}");
    }
    let (address, log) = said(&["--listen", "0.0.0.0:0", "--advertise", "proofs.example:4433"]);
    assert_eq!((&address.host[..], address.port), ("proofs.example", 4433));
    assert!(!log.contains("--advertise"), "{log}");
    let output = check(folder.path(), &[], &["--advertise", "0.0.0.0", "--json"]);
    assert!(json(&output)["errors"].to_string().contains("expected a host"), "{}", json(&output));
}
