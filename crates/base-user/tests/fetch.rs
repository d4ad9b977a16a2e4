//! Fetching bundles, from a contributor that keeps to the protocol and from others; and opening their calls.

mod common;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};

use common::{World, failure, program, success, text};
use serde_json::Value;
use tokio::runtime::Runtime;
use zklora_net::{Listener, deliver, read_frame, write_frame};
use zklora_proto::message::{ProofState, Request, Response};
use zklora_proto::{Address, SecretKey};

const PART: usize = 64 << 10;

/// A world with bundles of two sessions of one client, whose contributor is gone.
struct Proved {
    world: World,
    sessions: [String; 2],
    bundles: [Vec<u8>; 2],
}

impl Proved {
    fn new() -> Self {
        let world = World::new();
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
fn fetch(world: &World) -> Command {
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
        world: &World,
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
    fn serving(world: &World, file: Vec<u8>, end: u64) -> Self {
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
    let world = World::new();
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
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
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
fn what_is_not_the_sessions_bundle_is_found_out_and_deleted() {
    let proved = Proved::new();
    let (world, bundle) = (&proved.world, proved.bundles[0].clone());
    let refused = |file: Vec<u8>, words: &str| {
        let fake = Fake::serving(world, file, u64::MAX);
        let said = failure(&mut proved.fetch(&fake.address));
        assert!(said.contains("was deleted") && said.contains(words), "{words:?}: {said}");
        assert!(!proved.file(".pf").exists() && !proved.file(".pf.part").exists());
    };
    // The last bytes are a proof's.
    let mut changed = bundle.clone();
    let last = changed.len() - 9;
    changed[last] ^= 1;
    refused(changed, "does not have the digest");
    let mut changed = zklora_testing::RawBundle::parse(&bundle);
    *changed.blobs.last_mut().unwrap().last_mut().unwrap() ^= 1;
    refused(changed.to_bytes(), "proof 0");
    // A true bundle of the same parties and adapter.
    refused(proved.bundles[1].clone(), "its receipt is not the one that you signed for this session");
    refused(bundle[..bundle.len() - 1].to_vec(), "cut off or extended");
    refused(b"no bundle".to_vec(), "the header claims");

    // What was begun with something else.
    fs::create_dir_all(world.path("fetched")).unwrap();
    fs::write(proved.file(".pf.part"), vec![7; PART]).unwrap();
    refused(bundle.clone(), "");
    let honest = Fake::serving(world, bundle.clone(), u64::MAX);
    success(&mut proved.fetch(&honest.address));
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
    assert!(said.contains("has 549755813888 bytes, expected at most 8589934592"), "{said}");
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
    let open = |call: &str, module: &str, out: &str| {
        let mut command = program("zklora-base-user");
        command.args(["open", "--json", "--call", call, "--module", module, "--sessions"]);
        command.arg(world.path("sessions")).arg("--out").arg(world.path(out)).arg(&bundle);
        command
    };
    let said = success(&mut open("0", "0", "a.opening.json"));
    assert_eq!((&said["session"], &said["call"]), (&proved.sessions[0].as_str().into(), &0.into()));
    let module = said["module"].as_str().unwrap();
    success(&mut open("0", module, "b.opening.json"));
    assert_eq!(
        fs::read(world.path("a.opening.json")).unwrap(),
        fs::read(world.path("b.opening.json")).unwrap()
    );
    let output = program("zklora-verifier")
        .arg("opening")
        .arg(world.path("a.opening.json"))
        .args(["--adapter", &world.adapter, "--contributor", &world.contributor])
        .output()
        .unwrap();
    let said = text(&output.stdout);
    assert!(output.status.success() && said.contains("VALID") && !said.contains("NOT PINNED"), "{said}");

    assert!(failure(&mut open("0", module, "a.opening.json")).contains("File exists"));
    assert!(failure(&mut open("999", module, "c")).contains("there is no call 999"));
    assert!(failure(&mut open("0", "999", "c")).contains("the adapter has no module \"999\""));
    let said = failure(&mut open("0", "1", "c"));
    assert!(said.contains("call 0 does not ask for this module; it asks for"), "{said}");
    // Somebody else who has the bundle.
    fs::remove_dir_all(world.path("sessions")).unwrap();
    let said = failure(&mut open("0", module, "c"));
    assert!(said.contains("there is no record of session"), "{said}");
    assert!(!world.path("c").exists());
}
