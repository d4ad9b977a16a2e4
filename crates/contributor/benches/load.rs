//! Load: many clients at once, each a process of its own, while the daemon proves what others have finished.
//!
//!     cargo bench -p zklora-contributor --bench load [-- CLIENTS SESSIONS ROUNDS]
//!
//! By default 32 clients with 4 sessions each, every session asking all 12 modules of the fixture adapter for 15 rows, 5 times:
//! 7,680 forwards. Prints how many were answered in a second, how long they took, what memory the daemon took, and how long
//! its proofs; then verifies every bundle.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "no program that people use")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tokio::runtime::Builder;
use zklora_circuit::session::{Circuits, verify_session};
use zklora_client::Session;
use zklora_contributor::memory::readable;
use zklora_contributor::state::State;
use zklora_proto::bundle::Bundle;
use zklora_proto::{Address, SecretKey};

const ROWS: usize = 15;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.first().map(String::as_str) {
        Some("client") => client(&arguments[1..]),
        _ => load(&arguments),
    }
}

/// One client: `STATE ADDRESS SEED SESSIONS ROUNDS`. Prints the microseconds of each of its forwards.
fn client(arguments: &[String]) {
    let [state, address, seed, sessions, rounds] = arguments else { panic!("{arguments:?}") };
    let number = |text: &String| text.parse::<u64>().unwrap();
    // Public: a client knows the manifest by its pinned id.
    let signed = State::manifest_of(Path::new(state)).unwrap();
    let address: Address = address.parse().unwrap();
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let mut rng = StdRng::seed_from_u64(number(seed));
    let mut took = Vec::new();
    for _ in 0..number(sessions) {
        let (adapter, base) = (signed.adapter_id(), *signed.manifest().base_model());
        let session =
            Session::open(runtime.handle().clone(), SecretKey::generate(), &address, adapter, base).unwrap();
        for _ in 0..number(rounds) {
            for (index, module) in signed.manifest().modules().iter().enumerate() {
                let count = ROWS * module.shape().d_in();
                let rows: Vec<i16> = (0..count).map(|_| rng.random_range(-9999..=9999)).collect();
                let began = Instant::now();
                session.forward(&[index], &rows).unwrap();
                took.push(began.elapsed().as_micros() as u64);
            }
        }
        session.finish().unwrap();
        session.close();
    }
    println!("{}", json!(took));
}

fn load(arguments: &[String]) {
    let number = |index: usize, default: usize| -> usize {
        arguments.get(index).map_or(default, |text| text.parse().expect("a number"))
    };
    let (clients, sessions, rounds) = (number(0, 32), number(1, 4), number(2, 5));
    let folder = tempfile::tempdir().unwrap();
    let (state, out) = (folder.path().join("state"), folder.path().join("out"));
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
    State::create(&state, &fixtures.join("gpt2-tiny"), &fixtures.join("lora-es")).unwrap();
    let daemon = Daemon::start(&state, &out);
    let mut memory = vec![daemon.memory()];
    println!("{clients} clients, {sessions} sessions each, {rounds} times 12 modules of {ROWS} rows");

    let began = Instant::now();
    let client = |seed: usize| -> Child {
        Command::new(std::env::current_exe().unwrap())
            .arg("client")
            .arg(&state)
            .args([daemon.address.clone(), seed.to_string(), sessions.to_string(), rounds.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let mut running: Vec<Child> = (0..clients).map(client).collect();
    let bundles = || -> Vec<PathBuf> {
        let files = out.read_dir().unwrap().map(|file| file.unwrap().path());
        files.filter(|path| path.extension().is_some_and(|extension| extension == "pf")).collect()
    };
    // What they print is read beside, or they would wait for it.
    let outputs: Vec<_> = running
        .iter_mut()
        .map(|client| {
            let said = client.stdout.take().unwrap();
            std::thread::spawn(move || std::io::read_to_string(said).unwrap())
        })
        .collect();
    let mut answering = None;
    let mut proved_meanwhile = 0;
    while bundles().len() < clients * sessions {
        std::thread::sleep(Duration::from_millis(250));
        memory.push(daemon.memory());
        if answering.is_none() && running.iter_mut().all(|client| client.try_wait().unwrap().is_some()) {
            answering = Some(began.elapsed());
            proved_meanwhile = bundles().len();
        }
        assert!(
            answering.is_none_or(|time| began.elapsed() < 100 * time + Duration::from_secs(600)),
            "the proofs do not come to an end"
        );
    }
    let all = began.elapsed();
    let answering = answering.unwrap_or(all);
    let mut took: Vec<u64> = outputs
        .into_iter()
        .flat_map(|output| serde_json::from_str::<Vec<u64>>(&output.join().unwrap()).unwrap())
        .collect();
    took.sort_unstable();
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize] as f64 / 1e3;
    let forwards = took.len();
    println!(
        "forwards   {forwards} in {:.1} s, {:.0} a second",
        answering.as_secs_f64(),
        forwards as f64 / answering.as_secs_f64()
    );
    println!(
        "           p50 {:.1} ms, p90 {:.1} ms, p99 {:.1} ms, longest {:.1} ms",
        at(0.5),
        at(0.9),
        at(0.99),
        at(1.0)
    );
    println!(
        "proofs     {} sessions in {:.1} s, {proved_meanwhile} of them while forwards were answered",
        clients * sessions,
        all.as_secs_f64()
    );
    let quarters: Vec<String> =
        (0..=4).map(|quarter| readable(memory[(memory.len() - 1) * quarter / 4])).collect();
    let most = memory.iter().max().copied().unwrap_or(0);
    println!("memory     {} from begin to end; at most {}", quarters.join(", "), readable(most));

    let (began, circuits) = (Instant::now(), Circuits::default());
    for path in bundles() {
        verify_session(&mut Bundle::open(&path).unwrap(), &circuits)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    println!("bundles    {}, all valid, verified in {:.1} s", bundles().len(), began.elapsed().as_secs_f64());
}

struct Daemon {
    process: Child,
    address: String,
}

impl Daemon {
    fn start(state: &Path, out: &Path) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_zklora-contributor"))
            .args(["serve", "--open", "--json", "--listen", "127.0.0.1:0", "--exposure-budget", "1"])
            .args(["--queue", "100000", "--sessions", "10000", "--connections", "1000"])
            .arg("--state")
            .arg(state)
            .arg("--out-dir")
            .arg(out)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said: Value = serde_json::from_str(&line).expect("the daemon says where it serves");
        Self { process, address: said["address"].as_str().unwrap().into() }
    }

    /// Bytes of memory that it has.
    fn memory(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("the daemon runs");
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
