//! What the programs print as JSON is what the schemas in `docs/schemas` say: no field is missing, of another type, or not described.

use std::fs;
use std::process::Command;

use crate::common::{SESSION, client_of_redacted};
use serde_json::{Value, json};
use zklora_proto::bundle::Bundle;
use zklora_proto::{Disclosure, Document};
use zklora_testing::World;
use zklora_testing::schemas::{Schema, check_file, holds};
use zklora_testing::vectors::load;
use zklora_verdict::{DisclosureReport, Report};
use zklora_verifier::parts::InspectReport;

fn json(arguments: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_zklora-verifier")).args(arguments).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn verdicts_are_what_their_schema_says() {
    let schema = Schema::of(Report::FORMAT);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.pf");
    let verify = |more: &[&str]| {
        let arguments = [&["verify", "--json", file.to_str().unwrap()], more].concat();
        json(&arguments)
    };
    let mut kinds = Vec::new();
    let mut seen = |case: &str, document: Value| {
        schema.holds(case, &document);
        kinds.extend(document["bundles"][0]["error"]["kind"].as_str().map(str::to_owned));
        document
    };
    for vector in load() {
        fs::write(&file, &vector.bytes).unwrap();
        let client = client_of_redacted(&vector.bytes).map(|client| client.to_string());
        let trusting: Vec<&str> = match &client {
            Some(client) => vec!["--redacted", "--client", client],
            None => vec![],
        };
        seen(&vector.name, verify(&trusting));
        if client.is_some() {
            seen("not trusted", verify(&[]));
        }
    }
    fs::write(&file, SESSION.bundle.to_bytes()).unwrap();
    let honest = seen("honest", verify(&[]));
    assert_eq!(honest["bundles"][0]["verdict"], "not-pinned");
    let adapter = SESSION.world.manifest().adapter_id().to_string();
    let pinned = seen("pinned", verify(&["--adapter", &adapter]));
    assert_eq!(pinned["bundles"][0]["verdict"], "valid");
    let other = "ab".repeat(32);
    for pin in ["--adapter", "--contributor", "--base-model", "--client"] {
        let refused = seen(pin, verify(&[pin, &other]));
        assert_eq!(refused["bundles"][0]["verdict"], "refused");
    }
    let policy = folder.path().join("policy.toml");
    fs::write(&policy, "max_age_days = 1").unwrap();
    seen("age", verify(&["--policy", policy.to_str().unwrap()]));
    assert_eq!(seen("security", verify(&["--min-security", "128"]))["bundles"][0]["verdict"], "refused");
    let folder_as_bundle = folder.path().join("folder.pf");
    fs::create_dir(&folder_as_bundle).unwrap();
    seen("a folder", json(&["verify", "--json", "--proof-dir", folder.path().to_str().unwrap()]));
    seen("nothing", json(&["verify", "--json", folder.path().join("none").to_str().unwrap()]));

    // Each kind is in the schema, or it would not hold, and all but those that no bundle of a few bytes brings about were seen.
    for kind in [
        "format",
        "manifest",
        "receipt",
        "plan",
        "transcript",
        "folds",
        "proof",
        "security",
        "age",
        "redacted",
        "file",
    ] {
        assert!(kinds.iter().any(|seen| seen == kind), "no bundle of kind {kind}");
    }

    // The schema can say no.
    for (pointer, value) in [
        ("/format", json!("zklora-verify/1")),
        ("/bundles/0/valid", json!(false)),
        ("/bundles/0/verdict", json!("INVALID")),
        ("/bundles/0/verdict", json!("valid")),
        ("/bundles/0/pinned", json!(true)),
        ("/bundles/0/adapter", json!("AB")),
        ("/bundles/0/alpha/0", json!(1)),
        ("/bundles/0/error", json!({"kind": "proof", "what": ""})),
        ("/bundles/0/error", json!({"kind": "unheard-of", "what": ""})),
        ("/bundles/0/modules/0/rows", json!(-1)),
        ("/bundles/0/modules/0", json!({})),
        (
            "/bundles/0/pins",
            json!({"adapter": true, "contributor": true, "base_model": true, "client": true, "x": true}),
        ),
    ] {
        let mut changed = honest.clone();
        *changed.pointer_mut(pointer).unwrap() = value;
        assert!(!schema.allows(&changed), "{pointer}");
    }
}

#[test]
fn verdicts_on_disclosures_are_what_their_schema_says() {
    let schema = Schema::of(DisclosureReport::FORMAT);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.disclosure.json");
    let mut bundle = Bundle::from_reader(std::io::Cursor::new(SESSION.bundle.to_bytes())).unwrap();
    let disclosure = Disclosure::new(&mut bundle, &World::SEED, 1, 2).unwrap().to_bytes();
    let check = |more: &[&str]| json(&[&["disclosure", "--json", file.to_str().unwrap()], more].concat());
    let mut verdicts = Vec::new();
    let mut seen = |case: &str, document: Value| {
        schema.holds(case, &document);
        verdicts.push(document["verdict"].as_str().unwrap().to_owned());
    };
    seen("no file", check(&[]));
    fs::write(&file, &disclosure).unwrap();
    seen("honest", check(&["--adapter", &SESSION.world.manifest().adapter_id().to_string()]));
    seen("not pinned", check(&[]));
    seen("refused", check(&["--client", &"ab".repeat(32)]));
    for (case, from, to) in [
        ("format", "disclosure/1", "disclosure/2"),
        ("commitment", "\"position\":2", "\"position\":1"),
        ("manifest", "\"manifest_signature\":\"", "\"manifest_signature\":\"00"),
    ] {
        let text = String::from_utf8(disclosure.clone()).unwrap();
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "{case}");
        fs::write(&file, changed).unwrap();
        seen(case, check(&[]));
    }
    assert_eq!(verdicts, ["unreadable", "valid", "not-pinned", "refused", "invalid", "invalid", "invalid"]);
}

#[test]
fn what_is_in_a_bundle_is_what_its_schema_says() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.pf");
    for vector in load().iter().filter(|vector| vector.reason.is_none()) {
        fs::write(&file, &vector.bytes).unwrap();
        holds(&json(&["inspect", "--json", file.to_str().unwrap()]));
    }
}

#[test]
fn the_files_are_the_schemas_of_the_types() {
    check_file::<Report>();
    check_file::<DisclosureReport>();
    check_file::<InspectReport>();
}
