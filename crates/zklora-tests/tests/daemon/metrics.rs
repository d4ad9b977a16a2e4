//! What Prometheus is told, over a real socket, of a real daemon.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use tokio::runtime::Runtime;
use zklora_client::Session;
use zklora_contributor::state::State;
use zklora_net::Connection;
use zklora_proto::message::{ErrorCode, Request, Response};
use zklora_proto::{Address, SecretKey, SessionId};
use zklora_tests::process::{Process, command, wait_for};

fn start(folder: &Path) -> Process {
    Process::start(folder, |command| {
        command.args(["--metrics", "127.0.0.1:0"]);
    })
}

/// Head and body of the answer to these bytes.
fn exchange(daemon: &Process, request: &str) -> (String, String) {
    let mut stream = TcpStream::connect(daemon.said["metrics"].as_str().unwrap()).unwrap();
    // Far longer than an answer takes, so that a daemon that never answers fails the test.
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.into(), body.into())
}

fn get(daemon: &Process, path: &str) -> (String, String) {
    exchange(daemon, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
}

/// Every value by its name and labels.
fn scrape(daemon: &Process) -> BTreeMap<String, f64> {
    let (head, body) = get(daemon, "/metrics");
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("openmetrics-text"), "{head}");
    assert!(body.ends_with("# EOF\n"), "{body}");
    let values = body.lines().filter(|line| !line.starts_with('#'));
    values
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_string(), value.parse().unwrap())
        })
        .collect()
}

#[test]
fn what_happens_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = start(folder.path());
    let state = State::open(&folder.path().join("state")).unwrap();
    let manifest = state.manifest.manifest();
    let address: Address = daemon.said["address"].as_str().unwrap().parse().unwrap();
    let before = scrape(&daemon);
    assert_eq!((before["zklora_connections"], before["zklora_sessions{stage=\"open\"}"]), (0.0, 0.0));
    assert_eq!(before["zklora_requests_total{kind=\"forward\",outcome=\"ok\"}"], 0.0);

    let runtime = Runtime::new().unwrap();
    let key = SecretKey::generate();
    let client = key.public().to_string();
    let session = Session::open(
        runtime.handle().clone(),
        key,
        &address,
        state.manifest.adapter_id(),
        *manifest.base_model(),
    )
    .unwrap();
    // c_attn and c_fc of the first block read rows of the same length.
    let position = |suffix: &str| manifest.modules().iter().position(|m| m.name().ends_with(suffix)).unwrap();
    let pair = [position("c_attn"), position("c_fc")];
    let d_in = manifest.modules()[pair[0]].shape().d_in();
    let rows: Vec<i16> = (0..3 * d_in).map(|i| (i * i % 1009) as i16).collect();
    session.forward(&[pair[0]], &rows).unwrap();
    session.forward(&pair, &rows[..2 * d_in]).unwrap();
    // A session of nobody.
    let stranger = runtime.block_on(Connection::dial(&SecretKey::generate(), &address)).unwrap();
    let request = Request::Status { session: SessionId::from_bytes([7; 32]) };
    let (response, _) = runtime.block_on(stranger.request(&request, &[])).unwrap();
    assert!(matches!(response, Response::Error { code: ErrorCode::Session, .. }), "{response:?}");

    let open = scrape(&daemon);
    assert_eq!((open["zklora_connections"], open["zklora_sessions{stage=\"open\"}"]), (2.0, 1.0));
    assert_eq!(open["zklora_requests_total{kind=\"hello\",outcome=\"ok\"}"], 1.0);
    assert_eq!(open["zklora_requests_total{kind=\"forward\",outcome=\"ok\"}"], 2.0);
    assert_eq!(open["zklora_requests_total{kind=\"status\",outcome=\"session\"}"], 1.0);
    assert_eq!(open["zklora_rows_answered_total"], 3.0 + 2.0 * 2.0);
    assert_eq!(open["zklora_forward_seconds_count"], 2.0);
    assert_eq!(open["zklora_forward_seconds_bucket{le=\"+Inf\"}"], 2.0);
    assert_eq!(open["zklora_received_bytes_total"], (2 * 5 * d_in) as f64);
    assert!(open["zklora_sent_bytes_total"] > state.manifest.bytes().len() as f64);
    let exposed = |name: &str, module: usize| {
        open[&format!("{name}{{module=\"{}\"}}", manifest.modules()[module].name())]
    };
    assert_eq!(exposed("zklora_exposure_rows", pair[0]), 3.0);
    assert_eq!(exposed("zklora_exposure_rows", pair[1]), 2.0);
    assert_eq!(exposed("zklora_exposure_budget_rows", pair[0]), d_in as f64);

    session.finish().unwrap();
    session.wait_for_proof(|_| {}).unwrap();
    let ended = scrape(&daemon);
    assert_eq!(ended["zklora_sessions{stage=\"open\"}"], 0.0);
    assert_eq!(ended["zklora_sessions_ended_total{outcome=\"proved\"}"], 1.0);
    assert_eq!(ended["zklora_proving_seconds_count"], 1.0);
    assert!(ended["zklora_proving_seconds_sum"] > 0.0);
    assert!(ended["process_cpu_seconds_total"] > open["process_cpu_seconds_total"]);
    assert!(ended["process_open_fds"] > 3.0 && ended["process_max_fds"] >= ended["process_open_fds"]);
    for folder in ["state", "out_dir"] {
        assert!(ended[&format!("zklora_free_bytes{{folder=\"{folder}\"}}")] > 0.0);
    }
    assert!(ended["zklora_store_bytes"] > 0.0 && ended["process_resident_memory_bytes"] > 0.0);
    let (_, body) = get(&daemon, "/metrics");
    assert!(!body.contains(&client), "clients are not named");
    daemon.stop();
}

#[test]
fn connections_are_refused_for_a_reason_and_reloads_succeed_or_do_not() {
    let folder = tempfile::tempdir().unwrap();
    let clients = folder.path().join("clients");
    let [anna, berta] = [(); 2].map(|()| SecretKey::generate());
    std::fs::write(&clients, anna.public().to_string()).unwrap();
    let serve = |limits: [&str; 2]| {
        let mut command = command(folder.path());
        let arguments: Vec<_> = command.get_args().filter(|a| *a != "--open").map(Into::into).collect();
        let arguments: Vec<std::ffi::OsString> = arguments;
        command = std::process::Command::new(command.get_program());
        command
            .args(arguments)
            .arg("--allow-file")
            .arg(&clients)
            .args(["--metrics", "127.0.0.1:0"])
            .args(limits);
        Process::run(command.stderr(std::process::Stdio::null()))
    };
    let daemon = serve(["--client-connections", "1"]);
    let runtime = Runtime::new().unwrap();
    // A connection that is refused is closed once its key is known, and so after it was made.
    let request = Request::Status { session: SessionId::from_bytes([7; 32]) };
    let refused = |daemon: &Process, key: &SecretKey| {
        let asked = async {
            let connection = Connection::dial(key, &daemon.address()).await?;
            Ok::<_, zklora_net::DialError>(connection.request(&request, &[]).await)
        };
        !matches!(runtime.block_on(asked), Ok(Ok(_)))
    };
    let reasons = |daemon: &Process| {
        let values = scrape(daemon);
        ["connections", "client_connections", "not_listed"]
            .map(|reason| values[&format!("zklora_connections_refused_total{{reason=\"{reason}\"}}")])
    };
    assert_eq!(reasons(&daemon), [0.0, 0.0, 0.0]);
    assert!(refused(&daemon, &berta));
    assert_eq!(reasons(&daemon), [0.0, 0.0, 1.0]);
    let first = runtime.block_on(Connection::dial(&anna, &daemon.address())).unwrap();
    runtime.block_on(first.request(&request, &[])).unwrap();
    assert!(refused(&daemon, &anna));
    assert_eq!(reasons(&daemon), [0.0, 1.0, 1.0]);

    let reload = |daemon: &Process, successful: f64| {
        daemon.signal(Signal::HUP);
        wait_for("the reload", || {
            let values = scrape(daemon);
            let time = values["zklora_config_last_reload_success_timestamp_seconds"];
            (values["zklora_config_last_reload_successful"] == successful).then_some(time)
        })
    };
    let before = scrape(&daemon)["zklora_config_last_reload_success_timestamp_seconds"];
    assert_eq!(scrape(&daemon)["zklora_config_last_reload_successful"], 1.0);
    assert!(before > 1.7e9);
    std::fs::remove_file(&clients).unwrap();
    assert_eq!(reload(&daemon, 0.0), before);
    std::fs::write(&clients, anna.public().to_string()).unwrap();
    assert!(reload(&daemon, 1.0) >= before);
    daemon.stop();

    let daemon = serve(["--connections", "1"]);
    let first = runtime.block_on(Connection::dial(&anna, &daemon.address())).unwrap();
    runtime.block_on(first.request(&request, &[])).unwrap();
    assert!(refused(&daemon, &berta));
    assert_eq!(reasons(&daemon), [1.0, 0.0, 0.0]);
    daemon.stop();
}

#[test]
fn every_metric_is_documented_and_every_documented_one_is_there() {
    let page = std::fs::read_to_string(zklora_tests::fixtures().join("../docs/operations.md")).unwrap();
    let section = page.split("\n## ").find(|section| section.starts_with("Metrics\n")).unwrap();
    let row = |line: &str| {
        line.strip_prefix("| `").and_then(|rest| rest.split(['`', '{']).next().map(String::from))
    };
    let mut documented: Vec<String> = section.lines().filter_map(row).collect();
    documented.sort();

    let folder = tempfile::tempdir().unwrap();
    let daemon = start(folder.path());
    let (_, body) = get(&daemon, "/metrics");
    let family = |line: &str| {
        let mut words = line.strip_prefix("# TYPE ")?.split(' ');
        let (name, form) = (words.next()?, words.next()?);
        let ending = match form {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        Some(format!("{name}{ending}"))
    };
    let mut told: Vec<String> = body.lines().filter_map(family).collect();
    told.sort();
    assert_eq!(told, documented);
}

#[test]
fn alert_rules_and_dashboard_name_no_metric_that_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = start(folder.path());
    let values = scrape(&daemon);
    let told: BTreeSet<&str> = values.keys().filter_map(|name| name.split('{').next()).collect();
    for file in ["prometheus/zklora-contributor.rules.yml", "grafana/zklora-contributor.json"] {
        let text = std::fs::read_to_string(zklora_tests::fixtures().join("../dist").join(file)).unwrap();
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let named: BTreeSet<&str> =
            words.filter(|word| word.starts_with("zklora_") || word.starts_with("process_")).collect();
        assert!(named.len() >= 8, "{file}: {named:?}");
        let unknown: Vec<_> = named.difference(&told).collect();
        assert!(unknown.is_empty(), "{file}: {unknown:?}");
    }
    let dashboard = zklora_tests::fixtures().join("../dist/grafana/zklora-contributor.json");
    let dashboard: serde_json::Value = serde_json::from_slice(&std::fs::read(dashboard).unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len());
}

#[test]
fn health_is_told_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = start(folder.path());
    let (head, body) = get(&daemon, "/healthz");
    assert!(head.starts_with("HTTP/1.1 200") && body == "ok\n", "{head}");
    assert!(get(&daemon, "/").0.starts_with("HTTP/1.1 404"));
    let (head, _) = exchange(&daemon, "POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 405"), "{head}");
}

#[test]
fn silent_clients_do_not_keep_others_out() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = start(folder.path());
    // More than are let in at once, one of them in the middle of a request.
    let address = daemon.said["metrics"].as_str().unwrap();
    let mut silent: Vec<TcpStream> = (0..17).map(|_| TcpStream::connect(address).unwrap()).collect();
    silent[0].write_all(b"GET /metrics HTTP/1.1\r\nHost: ").unwrap();
    assert!(scrape(&daemon).contains_key("zklora_connections"));
    drop(silent);
}

#[test]
fn metrics_are_for_this_machine_alone() {
    let folder = tempfile::tempdir().unwrap();
    let output = command(folder.path()).args(["--metrics", "0.0.0.0:0"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(said.contains("expected a loopback address") && said.contains("password"), "{said}");
}
