//! However a run ends, what was answered gets its receipt, and the contributor proves it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;
use zklora_client::Records;
use zklora_proto::Receipt;
use zklora_testing::schemas::read_document;
use zklora_tests::fixtures;
use zklora_tests::programs::{Programs, Server, program, success, text};

#[test]
fn text_that_nobody_reads_any_more_ends_the_session() {
    let world = Programs::new();
    let server = world.serve();
    let mut child = generate(&world, &server, "200").stdout(Stdio::piped()).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    // The prompt, and some of what follows it.
    out.read_exact(&mut [0; 20]).unwrap();
    drop(out);
    let output = child.wait_with_output().unwrap();
    assert_ne!(output.status.code(), Some(0));
    let said = text(&output.stderr);
    assert!(!said.contains("panicked") && said.contains("receipt signed by both"), "{said}");
    let receipt = &receipts(&world, 1)[0];
    assert!(receipt.rows.iter().all(|&rows| (1..200).contains(&rows)), "{receipt:?}");
    proved(&world);
    server.stop();
}

#[test]
fn a_disk_that_is_full_costs_no_receipt() {
    let world = Programs::new();
    let server = world.serve();
    let loss = |command: &mut Command| command.stdout(full()).output().unwrap();
    let lost = loss(&mut world.loss(&server.address, "El sistema."));
    assert_ne!(lost.status.code(), Some(0));
    receipts(&world, 1);
    let lost = loss(&mut eval(&world, &[&server], &["--max-tokens", "200"]));
    assert_ne!(lost.status.code(), Some(0));
    receipts(&world, 2);
    // The text cannot be printed: nothing is asked for.
    let lost = loss(&mut generate(&world, &server, "8"));
    let said = text(&lost.stderr);
    assert!(said.contains("to the standard output: No space left"), "{said}");
    assert!(!said.contains("receipt"), "{said}");
    receipts(&world, 2);
    let lost = loss(generate(&world, &server, "8").arg("--json"));
    assert_ne!(lost.status.code(), Some(0));
    receipts(&world, 3);
    proved(&world);
    server.stop();
}

/// Not even if it is the disk of the records, and is full when the run ends.
#[test]
fn a_receipt_has_its_place_before_anything_is_asked() {
    let world = Programs::new();
    let server = world.serve();
    let records = world.path("sessions");
    fs::create_dir(&records).unwrap();
    // A folder in a file system of its own, which is there as long as the shell is.
    let script = "mount -t tmpfs -o size=256k,mode=700 none \"$0\" && { \"$@\"; code=$?; cp -r \"$0\" \"$0.kept\"; exit $code; }";
    let inner = generate(&world, &server, "60");
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]).arg(&records);
    command.arg(inner.get_program()).args(inner.get_args()).arg("--json");
    inner.get_envs().for_each(|(name, value)| match value {
        Some(value) => drop(command.env(name, value)),
        None => drop(command.env_remove(name)),
    });
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let inside = PathBuf::from(format!("/proc/{}/root{}", child.id(), records.display()));
    let is_open = || {
        fs::read_dir(&inside)
            .is_ok_and(|mut entries| entries.any(|entry| entry.unwrap().path().extension().is_some()))
    };
    let before = bytes(&world.path("state"));
    until(|| is_open() && bytes(&world.path("state")) > before + (64 << 10));
    let full = fs::write(inside.join("fill"), vec![1; 1 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    fs::remove_dir(&records).unwrap();
    fs::rename(world.path("sessions.kept"), &records).unwrap();
    receipts(&world, 1);
}

#[test]
fn a_signal_ends_the_run_and_the_session_with_it() {
    let world = Programs::new();
    let server = world.serve_more(&["--exposure-budget", "1", "--metrics", "127.0.0.1:0"]);
    let mut child =
        generate(&world, &server, "200").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut [0; 20]).unwrap();
    signal(&child, "INT");
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(128 + 2), "{said}");
    assert!(
        rest.contains("ended                    by a signal") && rest.contains("signed by both"),
        "{rest}"
    );
    assert!(said.contains("with a receipt of both for") && said.contains("stopped by SIGINT"), "{said}");
    receipts(&world, 1);

    for (number, name, code) in [(2, "TERM", 128 + 15), (3, "HUP", 128 + 1)] {
        let before = rows_answered(&world);
        let mut command = eval(&world, &[&server], &["--batch-tokens", "16", "--blind"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // Before that there is nothing to be lost.
        until(|| rows_answered(&world) > before);
        signal(&child, name);
        let output = child.wait_with_output().unwrap();
        let said = text(&output.stderr);
        assert_eq!((output.status.code(), &*output.stdout), (Some(code), &b""[..]), "{said}");
        assert!(said.contains("with a receipt of both for"), "{said}");
        let receipts = receipts(&world, number);
        assert!(receipts.iter().all(|receipt| receipt.rows.iter().all(|&rows| rows < 6559)), "{receipts:?}");
    }
    proved(&world);
    server.stop();
}

#[test]
fn a_second_signal_quits_at_once_and_so_does_the_first_if_nothing_is_lost() {
    let world = Programs::new();
    let server = world.serve();
    let mut child =
        generate(&world, &server, "200").stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut [0; 20]).unwrap();
    // It does not answer any more.
    server.signal("STOP");
    signal(&child, "INT");
    sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none());
    signal(&child, "INT");
    assert_eq!(child.wait().unwrap().signal(), Some(2));

    let mut child = generate(&world, &server, "200").stdout(Stdio::null()).spawn().unwrap();
    until(|| mask(&child, "SigCgt") & (1 << 14) != 0);
    signal(&child, "TERM");
    assert_eq!(child.wait().unwrap().signal(), Some(15));
    server.signal("CONT");
}

#[test]
fn a_signal_that_was_to_be_ignored_is_ignored() {
    let world = Programs::new();
    let server = world.serve();
    let mut command = generate_under("--ignore-signal=HUP", &world, &server, "40");
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 14]).unwrap();
    assert_eq!(mask(&child, "SigCgt") & 0b11, 0b10, "SIGINT is listened for, SIGHUP is not");
    signal(&child, "HUP");
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    receipts(&world, 1);
}

#[test]
fn a_budget_that_ends_in_the_middle_leaves_receipts() {
    let world = Programs::new();
    let server = world.serve_more(&["--exposure-budget", "0.25"]);
    let output = generate(&world, &server, "60").arg("--json").output().unwrap();
    let (said, found) = (text(&output.stderr), json(&output));
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(found["stopped"], "by an error");
    assert!(
        said.contains("with a receipt of both for") && said.contains("the contributor refuses"),
        "{said}"
    );
    let receipt = &receipts(&world, 1)[0];
    assert_eq!(found["sessions"][0]["session"], receipt.session.to_string());
    // The text is that of the tokens that were there.
    assert!(found["tokens"].as_u64().unwrap() > 5 && !found["text"].as_str().unwrap().is_empty(), "{found}");

    proved(&world);
}

#[test]
fn if_one_of_several_contributors_refuses_all_give_receipts() {
    let (world, generous) = (Programs::new(), Programs::new());
    let servers = [&world.serve_more(&["--exposure-budget", "0.25"]), &generous.serve()];
    let words = fs::read_to_string(fixtures().join("text/es-heldout.txt")).unwrap();
    let words: Vec<&str> = words.split_whitespace().take(60).collect();
    let lines: Vec<String> = words.chunks(3).map(|words| words.join(" ")).collect();
    fs::write(world.path("short.txt"), lines.join("\n")).unwrap();
    let mut command = with(DEFAULT, &world, "eval", &servers);
    command.args(["--adapter", &generous.adapter, "--anyway", "--batch-tokens", "1", "--dataset"]);
    let output = command.arg(world.path("short.txt")).output().unwrap();
    let said = text(&output.stderr);
    assert_eq!((output.status.code(), &*output.stdout), (Some(1), &b""[..]), "{said}");
    assert!(said.contains("the contributor refuses"), "{said}");
    let receipts = receipts(&world, 2);
    assert!(receipts.iter().all(|receipt| said.contains(&receipt.session.to_string())), "{said}");
    proved(&world);
}

/// `generate` of so many tokens, which the model does not end by itself.
fn generate(world: &Programs, server: &Server, tokens: &str) -> Command {
    generate_under(DEFAULT, world, server, tokens)
}

fn generate_under(signals: &str, world: &Programs, server: &Server, tokens: &str) -> Command {
    let mut command = with(signals, world, "generate", &[server]);
    command.args(["--prompt", "El sistema de", "--max-tokens", tokens, "--seed", "3", "--temperature", "3"]);
    command
}

fn eval(world: &Programs, servers: &[&Server], more: &[&str]) -> Command {
    let mut command = with(DEFAULT, world, "eval", servers);
    command.arg("--json").args(more).arg("--dataset").arg(fixtures().join("text/es-heldout.txt"));
    command
}

/// Whoever runs the tests may have signals ignored, as a shell has for what runs in its background.
const DEFAULT: &str = "--default-signal=HUP";

/// A command with the adapter of this world, and for the other servers those that are added. Signals are as `env` is told to have them.
fn with(signals: &str, world: &Programs, command: &str, servers: &[&Server]) -> Command {
    let program = program("zklora-base-user");
    let mut env = Command::new("env");
    env.args(["--default-signal=INT,TERM", signals]).arg(program.get_program());
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => env.env(name, value),
            None => env.env_remove(name),
        };
    }
    env.arg(command)
        .arg("--base-model")
        .arg(fixtures().join("gpt2-tiny"))
        .args(["--adapter", &world.adapter]);
    for server in servers {
        env.args(["--contributor", &server.address]);
    }
    env.arg("--identity").arg(world.path("client.key")).arg("--sessions").arg(world.path("sessions"));
    env.stdin(Stdio::null()).stderr(Stdio::piped());
    env
}

/// The receipts of the client's sessions; there are so many.
fn receipts(world: &Programs, count: usize) -> Vec<Receipt> {
    let records = Records::new(Some(world.path("sessions"))).unwrap();
    let receipt = |id| Some(records.get(id).unwrap().receipt?.receipt().clone());
    let receipts: Vec<Receipt> = records.sessions().unwrap().into_iter().filter_map(receipt).collect();
    assert_eq!(receipts.len(), count);
    receipts
}

/// Has all sessions with receipts proved and fetched.
fn proved(world: &Programs) {
    let mut fetch = program("zklora-base-user");
    fetch.args(["fetch", "--json", "--all", "--wait", "--identity"]).arg(world.path("client.key"));
    fetch.arg("--sessions").arg(world.path("sessions")).arg("--out").arg(world.path("fetched"));
    let said = success(&mut fetch);
    let bundles: Vec<&Value> =
        said["bundles"].as_array().unwrap().iter().map(|bundle| &bundle["session"]).collect();
    let sessions: Vec<Value> =
        receipts(world, bundles.len()).iter().map(|receipt| receipt.session.to_string().into()).collect();
    assert_eq!(bundles, sessions.iter().collect::<Vec<_>>());
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").arg(format!("-{name}")).arg(child.id().to_string()).status().unwrap();
    assert!(sent.success());
}

/// A mask of signals of a process, 1 for SIGHUP.
fn mask(child: &Child, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:"))).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap()
}

/// All that is in a folder.
/// Rows that a contributor with `--metrics` has answered.
fn rows_answered(world: &Programs) -> u64 {
    let log = fs::read_to_string(world.path("contributor.log")).unwrap();
    let address = log.split_once("metrics at http://").unwrap().1.split_once('/').unwrap().0;
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let name = "zklora_rows_answered_total ";
    answer.lines().find_map(|line| line.strip_prefix(name)).unwrap().parse().unwrap()
}

fn bytes(folder: &Path) -> u64 {
    let size =
        |path: PathBuf| if path.is_dir() { bytes(&path) } else { path.metadata().map_or(0, |m| m.len()) };
    fs::read_dir(folder).unwrap().map(|entry| size(entry.unwrap().path())).sum()
}

fn until(holds: impl Fn() -> bool) {
    for _ in 0..2400 {
        if holds() {
            return;
        }
        sleep(Duration::from_millis(10));
    }
    panic!("nothing happened within a minute");
}

fn full() -> File {
    File::options().write(true).open("/dev/full").unwrap()
}

fn json(output: &Output) -> Value {
    read_document(&output.stdout)
}
