//! Redacted bundles of real sessions, and what a verifier that has nothing else says of them.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use zklora_proto::bundle::Bundle;
use zklora_testing::schemas::read_document;
use zklora_tests::programs::{Programs, failure, program, success, text};

const TEXT: &str = "Debian es libre, y lo será siempre para todas las personas del mundo.";

/// A world with the bundle of a session that was blinded and of one that was not.
struct Proved {
    world: Programs,
    blinded: PathBuf,
    plain: PathBuf,
    client: String,
}

impl Proved {
    fn new() -> Self {
        let world = Programs::new();
        let server = world.serve();
        let bundle = |more: &[&str]| {
            let said = success(world.loss(&server.address, TEXT).arg("--wait").args(more));
            let session = said["sessions"][0]["session"].as_str().unwrap().to_owned();
            (world.path("out").join(format!("{session}.pf")), said)
        };
        let (blinded, with) = bundle(&["--blind"]);
        let (plain, without) = bundle(&[]);
        // The loss is that of the text alone; every module has sixteen rows more, in a call of its own.
        assert_eq!(with["adapter_loss"], without["adapter_loss"]);
        assert_eq!(with["sessions"][0]["blinded"], true);
        assert_eq!(without["sessions"][0]["blinded"], Value::Null);
        let rows = |said: &Value| -> Vec<u64> {
            said["sessions"][0]["rows"]
                .as_array()
                .unwrap()
                .iter()
                .map(|rows| rows.as_u64().unwrap())
                .collect()
        };
        let called = rows(&without).iter().filter(|rows| **rows > 0).count() as u64;
        for (with, without) in rows(&with).into_iter().zip(rows(&without)) {
            // As many as are sent for blinding: that there are so many says nothing of what they are.
            assert!(without == 0 || without >= 16, "{without}");
            assert_eq!(with, if without > 0 { without + 16 } else { 0 });
        }
        let calls = |said: &Value| said["sessions"][0]["calls"].as_u64().unwrap();
        assert_eq!(calls(&with), calls(&without) + called);
        let client = with["sessions"][0]["client"].as_str().unwrap().to_owned();
        server.stop();
        Self { world, blinded, plain, client }
    }

    fn redact(&self, bundle: &PathBuf, out: &str) -> Command {
        let mut command = program("zklora-base-user");
        command.arg("redact").arg(bundle).arg("--out").arg(self.world.path(out));
        command.arg("--identity").arg(self.world.path("client.key"));
        command.arg("--sessions").arg(self.world.path("sessions"));
        command
    }

    fn verify(&self, out: &str, more: &[&str]) -> (Value, i32) {
        let output = program("zklora-verifier")
            .args(["verify", "--json", "--adapter", &self.world.adapter])
            .args(["--contributor", &self.world.contributor])
            .arg(self.world.path(out))
            .args(more)
            .output()
            .unwrap();
        let report: Value = read_document(&output.stdout);
        (report["bundles"][0].clone(), output.status.code().unwrap())
    }
}

#[test]
fn a_redacted_bundle_verifies_and_says_whether_it_is_blinded() {
    let proved = Proved::new();
    let said = success(proved.redact(&proved.blinded, "blinded.pf").arg("--json"));
    assert_eq!((&said["blinded"], &said["client"]), (&true.into(), &proved.client.clone().into()));
    let bytes = fs::metadata(proved.world.path("blinded.pf")).unwrap().len();
    assert_eq!(said["bytes"], bytes);
    assert!(bytes < fs::metadata(&proved.blinded).unwrap().len());

    // Nothing of an activation or a delta is left, nor a way to them.
    let mut redacted = Bundle::open(&proved.world.path("blinded.pf")).unwrap();
    assert!(redacted.calls(|_| Ok::<_, zklora_proto::bundle::BundleError>(())).is_err());
    let (report, code) = proved.verify("blinded.pf", &["--redacted", "--client", &proved.client]);
    assert_eq!((code, &report["redacted"]), (0, &true.into()), "{report}");
    let (full, _) =
        proved.verify(&format!("out/{}", proved.blinded.file_name().unwrap().to_str().unwrap()), &[]);
    assert_eq!(report["modules"], full["modules"]);
    let (report, code) = proved.verify("blinded.pf", &[]);
    assert_eq!((code, &report["error"]["kind"]), (1, &"redacted".into()));

    // The same session's calls are gone from it: it can neither be opened nor redacted again.
    let said = failure(&mut proved.redact(&proved.world.path("blinded.pf"), "again.pf"));
    assert!(said.contains("is redacted"), "{said}");

    let output = proved.redact(&proved.plain, "plain.pf").output().unwrap();
    assert!(output.status.success());
    assert!(text(&output.stdout).contains("NOT BLINDED"), "{}", text(&output.stdout));
    let said = failure(&mut proved.redact(&proved.plain, "plain.pf"));
    assert!(said.contains("exists"), "{said}");

    // Folds are signed under one challenge of a session: again under the same, and under no other.
    let said = success(proved.redact(&proved.blinded, "twice.pf").arg("--json"));
    let session = said["session"].as_str().unwrap();
    assert_eq!(
        fs::read(proved.world.path("twice.pf")).unwrap(),
        fs::read(proved.world.path("blinded.pf")).unwrap()
    );
    let kept = proved.world.path("sessions").join(format!("{session}.json"));
    let mut record: Value = serde_json::from_slice(&fs::read(&kept).unwrap()).unwrap();
    let alpha = record["alpha"][0].as_u64().unwrap();
    record["alpha"][0] = (alpha ^ 1).into();
    fs::write(&kept, serde_json::to_vec(&record).unwrap()).unwrap();
    let said = failure(&mut proved.redact(&proved.blinded, "second.pf"));
    assert!(said.contains("under another challenge"), "{said}");
    assert!(!proved.world.path("second.pf").exists());

    // A bundle that does not hold is not signed for, and neither is somebody else's.
    let mut damaged = fs::read(&proved.plain).unwrap();
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    fs::write(proved.world.path("damaged.pf"), damaged).unwrap();
    let said = failure(&mut proved.redact(&proved.world.path("damaged.pf"), "d.pf"));
    assert!(said.contains("is not this session's bundle"), "{said}");
    let other = proved.world.path("other.key");
    let stranger = || {
        let mut command = program("zklora-base-user");
        command.arg("redact").arg(&proved.plain).arg("--identity").arg(&other);
        command.arg("--sessions").arg(proved.world.path("sessions"));
        command.arg("--out").arg(proved.world.path("s.pf"));
        command
    };
    let said = failure(&mut stranger());
    assert!(said.contains("No such file") && said.contains("--identity"), "{said}");
    assert!(!other.exists(), "an identity was made that nobody knows");
    zklora_proto::SecretKey::generate().save(&other).unwrap();
    let said = failure(&mut stranger());
    assert!(said.contains("the session was opened with key"), "{said}");
    for none in ["again.pf", "d.pf", "s.pf"] {
        assert!(!proved.world.path(none).exists());
    }
}

/// Random rows are new to the contributor: where they are too many, the session that they were to hide goes on without them.
#[test]
fn a_session_is_not_lost_because_blinding_is_refused() {
    let world = Programs::new();
    // Enough for the text, not for 16 rows more.
    let server = world.serve_more(&["--exposure-budget", "0.15"]);
    let output = world.loss(&server.address, "Debian es libre.").arg("--blind").output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let said: Value = read_document(&output.stdout);
    assert_eq!(said["sessions"][0]["blinded"], false);
    assert!(said["adapter_loss"].is_f64());
    assert!(text(&output.stderr).contains("NOT BLINDED"), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("beside the 16 for blinding"), "{}", text(&output.stderr));
}
