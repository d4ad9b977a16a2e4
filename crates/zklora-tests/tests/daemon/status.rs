//! The control socket and `zklora-contributor status`.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Stdio;

use serde_json::Value;
use tokio::runtime::Runtime;
use zklora_client::Session;
use zklora_contributor::state::State;
use zklora_proto::{Address, SecretKey};
use zklora_testing::schemas::read_document;
use zklora_tests::fixtures;
use zklora_tests::process::{Process, command, status};
use zklora_tests::programs::program;

#[test]
fn a_running_daemon_says_how_it_is_and_a_stopped_one_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let asked = ["--json", "--state", state.to_str().unwrap()];
    assert_eq!(status(&["--json", "--state", "/no/such/state"]).0, Some(3));

    let daemon = Process::start(folder.path(), |_| {});
    let ask = || -> Value {
        let (code, output) = status(&asked);
        assert_eq!(code, Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        read_document(&output.stdout)
    };
    let said = ask();
    assert_eq!(said["pid"], daemon.child.id());
    assert_eq!((&said["address"], &said["adapter"]), (&daemon.said["address"], &daemon.said["adapter"]));
    assert_eq!((&said["open"], &said["stopping"]), (&0.into(), &false.into()));
    let mode = state.join("control.sock").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    // A session: open, proved, and what it exposed.
    let opened = State::open(&state).unwrap();
    let (manifest, runtime) = (opened.manifest.manifest(), Runtime::new().unwrap());
    let address: Address = daemon.said["address"].as_str().unwrap().parse().unwrap();
    let (id, base) = (opened.manifest.adapter_id(), *manifest.base_model());
    let session = Session::open(runtime.handle().clone(), SecretKey::generate(), &address, id, base).unwrap();
    let module = &manifest.modules()[0];
    session.forward(&[0], &vec![1; module.shape().d_in()]).unwrap();
    let said = ask();
    assert_eq!((&said["open"], &said["connections"]), (&1.into(), &1.into()));
    let most = &said["most_exposed"];
    assert_eq!((&most["module"], &most["rows"]), (&module.name().into(), &1.into()));
    assert_eq!(most["left"], module.shape().d_in() - 1);
    session.finish().unwrap();
    session.wait_for_proof(|_| {}).unwrap();
    let said = ask();
    assert_eq!((&said["open"], &said["prover"]["totals"]["proved"]), (&0.into(), &1.into()));
    // Found by the daemon's configuration, whatever else is in it.
    let config = folder.path().join("contributor.toml");
    std::fs::write(&config, "state = \"state\"\nlisten = \"127.0.0.1:1\"\n").unwrap();
    let (code, output) = status(&["--config", config.to_str().unwrap()]);
    assert_eq!(code, Some(0));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("1 proved, 0 failed, 0 abandoned"), "{said}");

    std::fs::write(&config, "state = 1, 2\n").unwrap();
    let (code, output) = status(&["--config", config.to_str().unwrap()]);
    assert!(code == Some(1) && String::from_utf8_lossy(&output.stderr).contains("contributor.toml:1: "));
    assert_eq!(status(&[]).0, Some(1));

    daemon.stop();
    assert!(!state.join("control.sock").exists());
    let (code, output) = status(&asked);
    assert_eq!((code, &output.stdout[..]), (Some(3), &b"null\n"[..]));
}

#[test]
fn exposure_shows_the_budget_of_the_daemon_that_serves() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let exposure = |args: &[&str]| {
        let output = program("zklora-contributor")
            .args(["exposure", "--state"])
            .arg(&state)
            .args(args)
            .output()
            .unwrap();
        let [out, said] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        assert_eq!(output.status.code(), Some(0), "{said}");
        (out, said)
    };
    let json =
        |args: &[&str]| -> Value { read_document(exposure(&[args, &["--json"]].concat()).0.as_bytes()) };
    let socket = folder.path().join("c.sock");
    let serve = |budget: &str| {
        let mut command = program("zklora-contributor");
        command.args(["serve", "--open", "--json", "--listen", "127.0.0.1:0", "--exposure-budget", budget]);
        command.arg("--state").arg(&state).arg("--out-dir").arg(folder.path().join("out"));
        Process::run(command.arg("--control").arg(&socket).stderr(Stdio::null()))
    };
    State::create(&state, &fixtures().join("gpt2-tiny"), &fixtures().join("lora-es")).unwrap();
    let at = ["--control", socket.to_str().unwrap()];
    let daemon = serve("0.125");
    let said = json(&at);
    assert_eq!((&said["serving"], &said["modules"][0]["budget"]), (&true.into(), &16.into()));
    let (out, warnings) = exposure(&at);
    assert!(out.contains("that of the daemon that serves") && warnings.is_empty(), "{out}{warnings}");
    // Another one that is given is not taken for the daemon's.
    // Whoever names another socket is not told that nobody serves.
    let another = folder.path().join("another.sock");
    let output = program("zklora-contributor")
        .args(["exposure", "--state"])
        .arg(&state)
        .arg("--control")
        .arg(&another)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), &*output.stdout), (Some(1), &b""[..]), "{said}");
    assert!(said.contains("a daemon serves") && said.contains("name its socket with --control"), "{said}");
    // Without a name it is looked for in the state, where it is not.
    let output = program("zklora-contributor").args(["status", "--state"]).arg(&state).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("running, but nobody answers at"), "{said}");
    let (out, warnings) = exposure(&[&at[..], &["--exposure-budget", "0.5"]].concat());
    assert!(out.contains("     16     128  ") && warnings.contains("its budget is shown"), "{out}{warnings}");
    daemon.stop();

    let said = json(&at);
    assert_eq!((&said["serving"], &said["modules"][0]["budget"]), (&false.into(), &32.into()));
    assert!(exposure(&[]).0.contains("no daemon serves"));
    let all = "12 of 12 modules may answer d_in independent rows or more";
    let (_, warnings) = exposure(&["--exposure-budget", "1"]);
    assert!(warnings.contains(all), "{warnings}");
    assert!(exposure(&["--exposure-budget", "0.99"]).1.is_empty());
    let daemon = serve("1");
    assert!(exposure(&at).1.contains(all));
    daemon.stop();
    // Its configuration says the same.
    let config = folder.path().join("contributor.toml");
    std::fs::write(&config, "exposure_budget = 0.0625\nlisten = 7\n").unwrap();
    let said = json(&["--config", config.to_str().unwrap()]);
    assert_eq!(said["modules"][0]["budget"], 8);
}

#[test]
fn the_socket_of_a_dead_daemon_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let asked = ["--state", state.to_str().unwrap()];
    let mut killed = Process::start(folder.path(), |_| {});
    killed.child.kill().unwrap();
    killed.child.wait().unwrap();
    assert!(state.join("control.sock").exists());
    assert_eq!(status(&asked).0, Some(3));
    let daemon = Process::start(folder.path(), |_| {});
    assert_eq!(status(&asked).0, Some(0));
    daemon.stop();
}

#[test]
fn what_is_not_a_dead_daemons_socket_stays_where_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |path: &std::path::Path, expected: &str| {
        let output = command(folder.path()).arg("--control").arg(path).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(expected) && said.contains("--control"), "{said}");
    };
    let file = folder.path().join("notes.txt");
    std::fs::write(&file, "mine").unwrap();
    refused(&file, "is no socket");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");

    let live = folder.path().join("live.sock");
    let _listener = UnixListener::bind(&live).unwrap();
    refused(&live, "another daemon listens");
    assert!(UnixStream::connect(&live).is_ok());

    let long = folder.path().join("x".repeat(120));
    refused(&long, "at most 107");
    assert_eq!(status(&["--control", long.to_str().unwrap()]).0, Some(1));
    let output = command(folder.path()).arg("--check-config").arg("--control").arg(&long).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn silent_and_babbling_peers_of_the_socket_cost_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("c.sock");
    let daemon = Process::start(folder.path(), |command| {
        command.arg("--control").arg(&socket);
    });
    let connect = || UnixStream::connect(&socket).unwrap();
    // What is no question is not answered.
    let mut babbling = connect();
    babbling.write_all(&[b'x'; 4096]).unwrap();
    let mut answer = Vec::new();
    // Closed with bytes unread is a reset.
    let _ = babbling.read_to_end(&mut answer);
    assert!(answer.is_empty());
    // As many silent ones as are let in at once.
    let silent: Vec<UnixStream> = (0..8).map(|_| connect()).collect();
    assert_eq!(status(&["--control", socket.to_str().unwrap()]).0, Some(0));
    drop(silent);
    daemon.stop();
    assert!(!socket.exists());
}
