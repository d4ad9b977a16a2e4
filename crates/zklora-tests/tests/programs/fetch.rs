//! Fetching bundles, from a contributor that keeps to the protocol and from others; and disclosing their calls.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::runtime::Runtime;
use zklora_contributor::state::State;
use zklora_net::{Listener, deliver, read_frame, write_frame};
use zklora_proto::message::{Nonce, ProofState, Request, Response};
use zklora_proto::{Address, SecretKey};
use zklora_testing::schemas::read_document;
use zklora_tests::fixtures;
use zklora_tests::programs::{Programs, failure, program, success, text};

const PART: usize = 64 << 10;

/// A world with bundles of two sessions of one client, whose contributor is gone.
struct Proved {
    world: Programs,
    sessions: [String; 2],
    bundles: [Vec<u8>; 2],
}

impl Proved {
    fn new() -> Self {
        let world = Programs::new();
        let server = world.serve();
        let sessions = ["Debian es libre.", "El sistema es otro."].map(|text| {
            let said = success(world.loss(&server.address, text).arg("--wait"));
            said["sessions"][0]["session"].as_str().unwrap().to_owned()
        });
        server.stop();
        let bundles =
            sessions.clone().map(|id| fs::read(world.path("out").join(format!("{id}.pf"))).unwrap());
        Self { world, sessions, bundles }
    }

    /// `fetch --json` of the first session, from a contributor at this address.
    fn fetch(&self, address: &str) -> Command {
        let mut command = fetch(&self.world);
        command.args(["--session", &self.sessions[0], "--contributor", address]);
        command
    }

    fn file(&self, suffix: &str) -> PathBuf {
        self.world.path("fetched").join(format!("{}{suffix}", self.sessions[0]))
    }
}

/// `fetch --json` into the folder `fetched`.
fn fetch(world: &Programs) -> Command {
    let mut command = program("zklora-base-user");
    command
        .args(["fetch", "--json", "--identity"])
        .arg(world.path("client.key"))
        .arg("--sessions")
        .arg(world.path("sessions"))
        .arg("--out")
        .arg(world.path("fetched"));
    command
}

/// A contributor with the right key that answers as a test wants; if that is not at all, it closes the connection for good.
struct Fake {
    address: String,
    /// Offsets that were asked for.
    asked: Arc<Mutex<Vec<u64>>>,
    _runtime: Runtime,
}

impl Fake {
    fn new(
        world: &Programs,
        answer: impl Fn(&Request) -> Option<(Response, Vec<u8>)> + Send + Sync + 'static,
    ) -> Self {
        let runtime = Runtime::new().unwrap();
        let key = SecretKey::load(&world.path("state/identity.key")).unwrap();
        let listener = {
            let _guard = runtime.enter();
            Listener::bind(&key, "127.0.0.1:0".parse().unwrap()).unwrap()
        };
        let port = listener.local_address().unwrap().port();
        let address = Address { key: key.public(), host: "127.0.0.1".into(), port }.to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let offsets = asked.clone();
        runtime.spawn(async move {
            while let Some(incoming) = listener.incoming().await {
                let connection = incoming.accept().await.unwrap();
                while let Ok((mut send, mut receive)) = connection.accept().await {
                    let (request, _): (Request, _) = read_frame(&mut receive, 0).await.unwrap();
                    if let Request::Fetch { offset, .. } = request {
                        offsets.lock().unwrap().push(offset);
                    }
                    match answer(&request) {
                        Some((response, payload)) => {
                            write_frame(&mut send, &response, &payload).await.unwrap();
                            deliver(send).await;
                        }
                        None => connection.close_because("enough", false),
                    }
                }
            }
        });
        Self { address, asked, _runtime: runtime }
    }

    /// Hands over this file in small parts, up to an offset.
    fn serving(world: &Programs, file: Vec<u8>, end: u64) -> Self {
        let bytes = file.len() as u64;
        Self::new(world, move |request| match request {
            Request::Status { .. } => {
                Some((Response::Status { state: ProofState::Proved { bytes } }, vec![]))
            }
            Request::Fetch { offset, .. } if *offset < end => {
                let start = *offset as usize;
                let part = file[start..file.len().min(start + PART)].to_vec();
                Some((Response::Bundle { bytes }, part))
            }
            _ => None,
        })
    }

    fn asked(&self) -> Vec<u64> {
        self.asked.lock().unwrap().clone()
    }
}

#[test]
fn bundles_are_fetched_verified_and_named() {
    let world = Programs::new();
    let server = world.serve();
    let session = |text| {
        let said = success(&mut world.loss(&server.address, text));
        said["sessions"][0]["session"].as_str().unwrap().to_owned()
    };
    let first = session("Debian es libre.");
    let said = success(fetch(&world).args(["--wait", "--session", &first]));
    let name = |id: &str| format!("{id}.pf");
    let served = fs::read(world.path("out").join(name(&first))).unwrap();
    assert_eq!(fs::read(world.path("fetched").join(name(&first))).unwrap(), served);
    assert_eq!(said["bundles"][0]["received"], served.len());

    let second = session("El sistema es otro.");
    let said = success(fetch(&world).args(["--wait", "--all"]));
    assert_eq!((said["bundles"].as_array().unwrap().len(), &said["failed"]), (2, &Value::Array(vec![])));
    for bundle in said["bundles"].as_array().unwrap() {
        let is_new = bundle["session"] == second.as_str();
        assert_eq!(bundle["received"] != 0, is_new, "{bundle}");
    }
    let mut names: Vec<_> =
        fs::read_dir(world.path("fetched")).unwrap().map(|e| e.unwrap().file_name()).collect();
    let mut expected = [name(&first), name(&second)].map(std::ffi::OsString::from);
    names.sort();
    expected.sort();
    assert_eq!(names, expected, "no part is left");

    // The contributor's operator has moved the file away.
    fs::rename(world.path("out").join(name(&first)), world.path("away.pf")).unwrap();
    fs::remove_dir_all(world.path("fetched")).unwrap();
    let said = failure(fetch(&world).args(["--session", &first]));
    assert!(said.contains("no longer where it was; ask the contributor for it"), "{said}");
    let output = fetch(&world).args(["--all"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said: Value = read_document(&output.stdout);
    assert_eq!(said["bundles"][0]["session"], second.as_str());
    assert_eq!(said["failed"][0]["session"], first.as_str());

    // By other means it is the same file; but not any file is.
    fs::copy(world.path("away.pf"), world.path("fetched").join(name(&first))).unwrap();
    assert_eq!(success(fetch(&world).args(["--session", &first]))["bundles"][0]["received"], 0);
    fs::copy(world.path("out").join(name(&second)), world.path("fetched").join(name(&first))).unwrap();
    let said = failure(fetch(&world).args(["--session", &first]));
    assert!(
        said.contains("is there already, and is not this session's bundle: its receipt is not"),
        "{said}"
    );
    server.stop();
}

#[test]
fn broken_off_it_goes_on_where_it_was() {
    let proved = Proved::new();
    let (world, bundle) = (&proved.world, &proved.bundles[0]);
    let broken = Fake::serving(world, bundle.clone(), 3 * PART as u64);
    let said = failure(&mut proved.fetch(&broken.address));
    assert!(said.contains("closed the connection: enough"), "{said}");
    assert_eq!(fs::read(proved.file(".pf.part")).unwrap(), bundle[..3 * PART]);
    assert!(!proved.file(".pf").exists());

    let whole = Fake::serving(world, bundle.clone(), u64::MAX);
    let said = success(&mut proved.fetch(&whole.address));
    assert_eq!(whole.asked()[0], 3 * PART as u64);
    assert_eq!(said["bundles"][0]["received"], bundle.len() - 3 * PART);
    assert_eq!(&fs::read(proved.file(".pf")).unwrap(), bundle);
    assert!(!proved.file(".pf.part").exists());

    // All of it is there, but nobody looked yet.
    fs::rename(proved.file(".pf"), proved.file(".pf.part")).unwrap();
    let done = Fake::serving(world, bundle.clone(), u64::MAX);
    success(&mut proved.fetch(&done.address));
    assert!(done.asked().is_empty());
    assert_eq!(&fs::read(proved.file(".pf")).unwrap(), bundle);

    // More than there is: not the beginning of it.
    fs::rename(proved.file(".pf"), proved.file(".pf.part")).unwrap();
    fs::write(proved.file(".pf.part"), [&bundle[..], b"more"].concat()).unwrap();
    success(&mut proved.fetch(&done.address));
    assert_eq!(done.asked()[0], 0);
}

#[test]
fn what_is_not_the_sessions_bundle_is_found_out_and_set_aside() {
    let proved = Proved::new();
    let (world, bundle) = (&proved.world, proved.bundles[0].clone());
    let refused = |file: Vec<u8>, words: &str| {
        let fake = Fake::serving(world, file.clone(), u64::MAX);
        let said = failure(&mut proved.fetch(&fake.address));
        assert!(said.contains("it is kept as") && said.contains(words), "{words:?}: {said}");
        assert!(!proved.file(".pf").exists() && !proved.file(".pf.part").exists());
        let kept = fs::read(proved.file(".pf.refused")).unwrap();
        fs::remove_file(proved.file(".pf.refused")).unwrap();
        (file, kept)
    };
    let kept = |(file, kept): (Vec<u8>, Vec<u8>)| assert!(file == kept, "what was sent is what is kept");
    // The last bytes are a proof's.
    let mut changed = bundle.clone();
    let last = changed.len() - 9;
    changed[last] ^= 1;
    kept(refused(changed, "does not have the digest"));
    let mut changed = zklora_testing::RawBundle::parse(&bundle);
    *changed.blobs.last_mut().unwrap().last_mut().unwrap() ^= 1;
    kept(refused(changed.to_bytes(), "proof 0"));
    // A true bundle of the same parties and adapter.
    kept(refused(proved.bundles[1].clone(), "its receipt is not the one that you signed for this session"));
    kept(refused(bundle[..bundle.len() - 1].to_vec(), "cut off or extended"));
    kept(refused(b"no bundle".to_vec(), "this is no bundle"));
    kept(refused(b"none".to_vec(), "reading the bundle"));

    // What was begun with something else.
    fs::create_dir_all(world.path("fetched")).unwrap();
    fs::write(proved.file(".pf.part"), vec![7; PART]).unwrap();
    refused(bundle.clone(), "");

    // Of several, the first is kept.
    for (file, words) in [(&b"the first"[..], "it is kept as"), (b"the second", "it was deleted, since")] {
        let fake = Fake::serving(world, file.to_vec(), u64::MAX);
        let said = failure(&mut proved.fetch(&fake.address));
        assert!(said.contains(words), "{said}");
        assert_eq!(fs::read(proved.file(".pf.refused")).unwrap(), b"the first");
    }
    let honest = Fake::serving(world, bundle.clone(), u64::MAX);
    success(&mut proved.fetch(&honest.address));
}

/// What another program may make something of is none of the evidence that is set aside.
#[test]
fn what_this_program_cannot_check_stays() {
    let proved = Proved::new();
    let newer = replaced(&proved.bundles[0], b"\"format\":\"zklora-pf/", |digit| digit + 1);
    let unknown = replaced(&proved.bundles[0], b"\"security\":\"standar", |_| b't');
    for (file, words) in
        [(newer, "the bundle's format is"), (unknown, "parameter set \"standart\" is not known")]
    {
        let fake = Fake::serving(&proved.world, file.clone(), u64::MAX);
        for _ in 0..2 {
            let said = failure(&mut proved.fetch(&fake.address));
            assert!(said.contains("cannot be checked here") && said.contains(words), "{said}");
            assert!(fs::read(proved.file(".pf.part")).unwrap() == file);
        }
        // Not even if the contributor says that it is shorter.
        let cut = Fake::serving(&proved.world, file[..file.len() - 1].to_vec(), u64::MAX);
        let said = failure(&mut proved.fetch(&cut.address));
        assert!(said.contains("cannot be checked here"), "{said}");
        assert!(fs::read(proved.file(".pf.part")).unwrap() == file);
        fs::remove_file(proved.file(".pf.part")).unwrap();
    }
    // Half of it, and the rest later.
    let bundle = &proved.bundles[0];
    fs::write(proved.file(".pf.part"), &bundle[..bundle.len() / 2]).unwrap();
    let honest = Fake::serving(&proved.world, bundle.clone(), u64::MAX);
    success(&mut proved.fetch(&honest.address));
}

/// The file with another byte after this text.
fn replaced(file: &[u8], after: &[u8], with: impl Fn(u8) -> u8) -> Vec<u8> {
    let place = file.windows(after.len()).position(|bytes| bytes == after).unwrap() + after.len();
    let mut file = file.to_vec();
    file[place] = with(file[place]);
    file
}

#[test]
fn a_weaker_parameter_set_is_refused_at_hello_and_its_bundle_kept() {
    let world = Programs::new();
    let server = world.serve_more(&["--exposure-budget", "1", "--security", "compact"]);
    let loss = || world.loss(&server.address, "Debian es libre.");
    let weak = "the parameter set \"compact\", which guarantees 65 bits of soundness on theorems alone, expected at least";
    for (args, bits) in [(&[][..], "100"), (&["--min-security", "66"], "66")] {
        let said = failure(loss().args(args));
        assert!(said.contains(&format!("{weak} {bits}; --min-security accepts less")), "{said}");
        assert!(!world.path("sessions").exists(), "no session was begun");
    }
    let said = success(loss().args(["--min-security", "65", "--wait"]));
    let session = said["sessions"][0]["session"].as_str().unwrap();
    let file = |suffix: &str| world.path("fetched").join(format!("{session}{suffix}"));
    let served = fs::read(world.path("out").join(format!("{session}.pf"))).unwrap();

    let one = |more: &[&str]| {
        let mut command = fetch(&world);
        command.args(["--session", session]).args(more);
        command
    };
    for more in [&[][..], &["--min-security", "101"], &[]] {
        let said = failure(&mut one(more));
        assert!(said.contains("the session's bundle is there, but is not taken: its proofs have"), "{said}");
        assert!(said.contains("--min-security accepts less") && said.contains(".pf.part"), "{said}");
        assert!(fs::read(file(".pf.part")).unwrap() == served && !file(".pf").exists());
    }
    let said = success(&mut one(&["--min-security", "65"]));
    assert_eq!(said["bundles"][0]["received"], 0);
    assert!(fs::read(file(".pf")).unwrap() == served && !file(".pf.part").exists());
    let said = failure(&mut one(&[]));
    assert!(
        said.contains("is not taken: its proofs have") && fs::read(file(".pf")).unwrap() == served,
        "{said}"
    );

    // Nor do those that take bundles take it, unless told.
    let audit = |more: &[&str]| {
        let mut command = program("zklora-base-user");
        command
            .args(["audit", "--json", "--unpinned", "--text", "Debian es libre.", "--base-model"])
            .arg(fixtures().join("gpt2-tiny"));
        let output = command.args(more).arg(file(".pf")).output().unwrap();
        (output.status.code(), read_document(&output.stdout))
    };
    let (code, said) = audit(&[]);
    assert_eq!((code, &said["bundles"][0]["error"]["kind"]), (Some(1), &"security".into()), "{said}");
    assert_eq!(audit(&["--min-security", "65"]).0, Some(0));
    let client = SecretKey::load(&world.path("client.key")).unwrap().public().to_string();
    let mut deliver = program("zklora-contributor");
    deliver.args(["deliver", "--json", "--adapter", &world.adapter, "--to", &client, "--state"]);
    success(deliver.arg(world.path("state")).arg("--out").arg(world.path("package")));
    let accept = |more: &[&str]| {
        let mut command = program("zklora-base-user");
        command.args(["accept", "--json", "--adapter", &world.adapter]).arg(world.path("package")).args(more);
        command.arg("--identity").arg(world.path("client.key")).arg("--bundle").arg(file(".pf"));
        command.arg("--out").arg(world.path("bought"));
        command
    };
    let said = failure(&mut accept(&[]));
    assert!(said.contains("--min-security accepts less") && !world.path("bought").exists(), "{said}");
    success(&mut accept(&["--min-security", "65"]));
    server.stop();
}

#[test]
fn a_parameter_set_that_nobody_knows_here_is_refused_at_hello() {
    let world = Programs::new();
    let manifest = State::open(&world.path("state")).unwrap().manifest;
    let modules = manifest.manifest().modules().len();
    let fake = Fake::new(&world, move |request| {
        let Request::Hello { .. } = request else { panic!("nothing is asked for: {request:?}") };
        let welcome = Response::Welcome {
            nonce: Nonce::random(),
            signature: *manifest.signature(),
            max_call_bytes: 1 << 20,
            left: vec![9; modules],
            security: "quick\u{1b}[2J".into(),
        };
        Some((welcome, manifest.bytes().to_vec()))
    });
    let said = failure(&mut world.loss(&fake.address, "Debian es libre."));
    assert!(
        said.contains("a parameter set that this program does not know") && !said.contains('\u{1b}'),
        "{said}"
    );
}

#[test]
fn of_all_sessions_one_that_is_dead_does_not_hold_up_the_others() {
    let proved = Proved::new();
    let [dead, alive] = proved.sessions.clone();
    let bundle = proved.bundles[1].clone();
    let (served, asked) = (AtomicBool::new(false), AtomicBool::new(false));
    let bytes = bundle.len() as u64;
    let fake = Fake::new(&proved.world, {
        let dead = dead.clone();
        move |request| {
            Some(match request {
                // It is waited for until there is nothing else to wait for, and at least once: either session may come first.
                Request::Status { session } if session.to_string() == dead => {
                    let again = asked.swap(true, Ordering::SeqCst);
                    let state = match again && served.load(Ordering::SeqCst) {
                        true => ProofState::Failed,
                        false => ProofState::Proving { done: 0, total: 4 },
                    };
                    (Response::Status { state }, vec![])
                }
                Request::Fetch { offset, .. } => {
                    let part = bundle[*offset as usize..].iter().copied().take(PART).collect::<Vec<u8>>();
                    served.store(*offset as usize + part.len() == bundle.len(), Ordering::SeqCst);
                    (Response::Bundle { bytes }, part)
                }
                _ => (Response::Status { state: ProofState::Proved { bytes } }, vec![]),
            })
        }
    });
    let output =
        fetch(&proved.world).args(["--all", "--wait", "--contributor", &fake.address]).output().unwrap();
    let (said, log) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{log}");
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["bundles"][0]["session"], alive.as_str(), "{said}");
    assert_eq!(said["failed"][0]["session"], dead.as_str(), "{said}");
    assert!(log.contains("the contributor's proof: under way, 0 of 4 parts done"), "{log}");
    assert!(log.contains(&format!("error: session {dead}: the contributor failed to prove")), "{log}");
}

#[test]
fn contributors_that_are_down_are_named_once_and_the_others_are_asked() {
    let (world, other) = (Programs::new(), Programs::new());
    let (server, down) = (world.serve(), other.serve());
    success(world.loss(&server.address, "Debian es libre.").arg("--wait"));
    for text in ["El sistema es otro.", "La red es lenta."] {
        let mut loss = program("zklora-base-user");
        loss.args([
            "loss",
            "--json",
            "--contributor",
            &down.address,
            "--adapter",
            &other.adapter,
            "--text",
            text,
        ]);
        loss.arg("--base-model").arg(fixtures().join("gpt2-tiny"));
        loss.arg("--identity").arg(world.path("client.key")).arg("--sessions").arg(world.path("sessions"));
        success(&mut loss);
    }
    let address = down.address.clone();
    down.stop();
    let output = fetch(&world).arg("--all").output().unwrap();
    let (said, log) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{log}");
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((said["bundles"].as_array().unwrap().len(), said["failed"].as_array().unwrap().len()), (1, 2));
    let errors: Vec<&str> = log.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 2, "{log}");
    assert!(errors[0].contains(&address) && errors[0].ends_with("2 bundles not fetched"), "{log}");
    assert!(errors[1].contains("2 of 3 bundles not fetched"), "{log}");
}

#[test]
fn sessions_are_listed_and_forgotten() {
    let world = Programs::new();
    let server = world.serve();
    let sessions = |args: &[&str]| {
        let mut command = program("zklora-base-user");
        command.arg("sessions").args(args).arg("--sessions").arg(world.path("sessions"));
        command
    };
    let list = || success(&mut sessions(&["list", "--json"]));
    assert_eq!(list()["sessions"], Value::Array(vec![]));
    let ids = ["Debian es libre.", "El sistema es otro."].map(|text| {
        let said = success(world.loss(&server.address, text).arg("--wait"));
        said["sessions"][0]["session"].as_str().unwrap().to_owned()
    });
    success(fetch(&world).args(["--session", &ids[0]]));
    let listed = list();
    let of = |id: &str| {
        let all = listed["sessions"].as_array().unwrap();
        all.iter().find(|session| session["session"] == id).unwrap().clone()
    };
    assert_eq!((&of(&ids[0])["fetched"], &of(&ids[1])["fetched"]), (&true.into(), &false.into()));
    let bundle = world.path("fetched").join(format!("{}.pf", ids[0]));
    assert_eq!(of(&ids[0])["bundle"], bundle.to_str().unwrap());
    for id in &ids {
        let session = of(id);
        assert_eq!(session["state"], "signed");
        assert_eq!(session["contributor"], server.address.as_str());
        assert_eq!(session["adapter"], world.adapter.as_str());
        assert_eq!(session["calls"], 12);
        assert!(session["started"].as_u64() <= session["finished"].as_u64());
    }
    let shown = text(&sessions(&["list"]).output().unwrap().stdout);
    for part in [&ids[1], "signed by both: 12 calls", "bundle       not fetched", "2 sessions in "] {
        assert!(shown.contains(part), "{part}: {shown}");
    }

    // All of them or none, if one's bundle would be lost.
    let refused = sessions(&["forget", &ids[0], &ids[1]]).output().unwrap();
    let said = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains(&ids[1]) && !said.contains(&ids[0]) && said.contains("--yes"), "{said}");
    assert_eq!(list()["sessions"].as_array().unwrap().len(), 2);
    assert_eq!(success(&mut sessions(&["forget", "--json", &ids[0]]))["forgotten"][0], ids[0].as_str());
    success(&mut sessions(&["forget", "--json", "--yes", &ids[1]]));
    assert_eq!(list()["sessions"], Value::Array(vec![]));
    let said = failure(&mut sessions(&["forget", &ids[1]]));
    assert!(said.contains("there is no record of session"), "{said}");

    // A record that cannot be read is told, and does not hide the others.
    success(&mut world.loss(&server.address, "Debian es libre."));
    let damaged = world.path("sessions").join(format!("{}.json", ids[0]));
    fs::write(&damaged, "{").unwrap();
    fs::set_permissions(&damaged, fs::Permissions::from_mode(0o600)).unwrap();
    let output = sessions(&["list", "--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said: Value = read_document(&output.stdout);
    assert_eq!(said["sessions"].as_array().unwrap().len(), 1);
    assert_eq!(said["unreadable"][0]["session"], ids[0].as_str());
    assert_eq!(sessions(&["forget", &ids[0]]).output().unwrap().status.code(), Some(2));
    success(&mut sessions(&["forget", "--json", "--yes", &ids[0]]));
    assert!(!damaged.exists());
    server.stop();
}

#[test]
fn answers_that_do_not_fit_each_other_end_it() {
    let proved = Proved::new();
    let bytes = proved.bundles[0].len() as u64;
    let answering = |part: fn(u64) -> (u64, Vec<u8>)| {
        let fake = Fake::new(&proved.world, move |request| {
            Some(match request {
                Request::Fetch { .. } => {
                    let (bytes, part) = part(bytes);
                    (Response::Bundle { bytes }, part)
                }
                _ => (Response::Status { state: ProofState::Proved { bytes } }, vec![]),
            })
        });
        failure(&mut proved.fetch(&fake.address))
    };
    for part in [
        (|bytes| (bytes, vec![])) as fn(u64) -> _,
        |bytes| (bytes + 1, vec![1]),
        |bytes| (bytes, vec![1; bytes as usize + 1]),
    ] {
        let said = answering(part);
        assert!(said.contains("expected 1 to"), "{said}");
        assert_eq!(fs::read(proved.file(".pf.part")).unwrap(), b"");
    }
    let large = Fake::new(&proved.world, |_| {
        Some((Response::Status { state: ProofState::Proved { bytes: 1 << 39 } }, vec![]))
    });
    let said = failure(&mut proved.fetch(&large.address));
    assert!(said.contains("has 512 GiB, expected at most 8 GiB"), "{said}");
    let waiting =
        Fake::new(&proved.world, |_| Some((Response::Status { state: ProofState::Queued }, vec![])));
    let said = failure(&mut proved.fetch(&waiting.address));
    assert!(said.contains("has not proved the session yet; --wait"), "{said}");

    let other = SecretKey::generate().public();
    let said = failure(&mut proved.fetch(&format!("zklora://{other}@127.0.0.1:1")));
    assert!(said.contains("the session was with contributor"), "{said}");
    fs::rename(proved.world.path("client.key"), proved.world.path("away.key")).unwrap();
    let said = failure(&mut proved.fetch(&large.address));
    assert!(said.contains("the session was opened with key"), "{said}");
}

#[test]
fn a_call_is_opened_with_the_clients_record_and_verifies_alone() {
    let proved = Proved::new();
    let world = &proved.world;
    let bundle = world.path("out").join(format!("{}.pf", proved.sessions[0]));
    let disclose = |call: &str, module: &str, out: &str| {
        let mut command = program("zklora-base-user");
        command.args(["disclose", "--json", "--call", call, "--module", module, "--sessions"]);
        command.arg(world.path("sessions")).arg("--out").arg(world.path(out)).arg(&bundle);
        command
    };
    let said = success(&mut disclose("0", "0", "a.disclosure.json"));
    assert_eq!((&said["session"], &said["call"]), (&proved.sessions[0].as_str().into(), &0.into()));
    let module = said["module"].as_str().unwrap();
    success(&mut disclose("0", module, "b.disclosure.json"));
    assert_eq!(
        fs::read(world.path("a.disclosure.json")).unwrap(),
        fs::read(world.path("b.disclosure.json")).unwrap()
    );
    let output = program("zklora-verifier")
        .arg("disclosure")
        .arg(world.path("a.disclosure.json"))
        .args(["--adapter", &world.adapter, "--contributor", &world.contributor])
        .output()
        .unwrap();
    let said = text(&output.stdout);
    assert!(output.status.success() && said.contains("VALID") && !said.contains("NOT PINNED"), "{said}");

    assert!(failure(&mut disclose("0", module, "a.disclosure.json")).contains("File exists"));
    assert!(failure(&mut disclose("999", module, "c")).contains("there is no call 999"));
    assert!(failure(&mut disclose("0", "999", "c")).contains("the adapter has no module \"999\""));
    let said = failure(&mut disclose("0", "1", "c"));
    assert!(said.contains("call 0 does not ask for this module; it asks for"), "{said}");
    // Somebody else who has the bundle.
    fs::remove_dir_all(world.path("sessions")).unwrap();
    let said = failure(&mut disclose("0", module, "c"));
    assert!(said.contains("there is no record of session"), "{said}");
    assert!(!world.path("c").exists());
}
