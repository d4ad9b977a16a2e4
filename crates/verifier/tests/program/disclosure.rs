//! The command `disclosure`: a call that is shown without its bundle.

use std::fs;
use std::io::Cursor;
use std::process::Command;

use crate::common::SESSION;
use serde_json::Value;
use zklora_proto::Disclosure;
use zklora_proto::bundle::Bundle;
use zklora_testing::World;

fn honest() -> Vec<u8> {
    let mut bundle = Bundle::from_reader(Cursor::new(SESSION.bundle.to_bytes())).unwrap();
    Disclosure::new(&mut bundle, &World::SEED, 0, 1).unwrap().to_bytes()
}

/// What the command says of a file with these bytes: its exit code and its output.
fn check(bytes: &[u8], arguments: &[&str]) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.disclosure.json");
    fs::write(&path, bytes).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_zklora-verifier"))
        .arg("disclosure")
        .arg(&path)
        .args(arguments)
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn an_honest_disclosure_is_valid_and_says_what_it_shows() {
    let adapter = SESSION.world.manifest().adapter_id().to_string();
    let contributor = SESSION.world.contributor().public().to_string();
    let (code, said) = check(&honest(), &["--adapter", &adapter, "--contributor", &contributor]);
    assert_eq!(code, Some(0), "{said}");
    for part in [
        "x.disclosure.json: VALID",
        "call 0 of 3, counted from 0; m.1: 3 rows, 60 to 60",
        "The seller and the user both signed that in this call these activations were answered with these deltas.",
        "Not shown:\n  - that the deltas were computed with the adapter below",
        &adapter,
        &contributor,
    ] {
        assert!(said.contains(part), "{part:?} is not in:\n{said}");
    }
    assert!(!said.contains("NOT PINNED"), "{said}");
    let (code, said) = check(&honest(), &[]);
    assert!(code == Some(3) && said.contains("NOT PINNED: only this file says so"), "{said}");

    assert!(
        said.contains("x.disclosure.json: VALID, NOT PINNED") && said.contains("Nobody said which adapter"),
        "{said}"
    );
    // The contributor alone does not say which adapter; whoever does not care says so.
    let (code, said) = check(&honest(), &["--contributor", &contributor]);
    assert_eq!(code, Some(3), "{said}");
    let (code, said) = check(&honest(), &["--unpinned"]);
    assert!(code == Some(0) && said.contains("VALID, NOT PINNED"), "{said}");

    let (code, said) = check(&honest(), &["--json", "--adapter", &adapter]);
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, &said["valid"], &said["error"]), (Some(0), &Value::Bool(true), &Value::Null));
    assert_eq!(said["format"], "zklora-disclosure-check/2");
    assert_eq!(said["pinned"], true);
    assert_eq!(
        said["pins"],
        serde_json::json!({"adapter": true, "contributor": false, "base_model": false, "client": false})
    );
    assert_eq!((&said["disclosure"]["module"], &said["disclosure"]["rows"]), (&"m.1".into(), &3.into()));
}

#[test]
fn other_pins_and_changed_files_are_not_valid() {
    let other = "ab".repeat(32);
    for (pin, kind) in [("--adapter", "adapter-pin"), ("--contributor", "contributor-pin")] {
        let (code, said) = check(&honest(), &[pin, &other]);
        assert!(code == Some(1) && said.contains("REFUSED") && said.contains(&other), "{said}");
        assert!(!said.contains("both signed"), "{said}");
        let (_, said) = check(&honest(), &[pin, &other, "--json"]);
        assert_eq!(serde_json::from_str::<Value>(&said).unwrap()["error"]["kind"], kind);
    }

    let text = String::from_utf8(honest()).unwrap();
    let opened: Value = serde_json::from_str(&text).unwrap();
    let value = |name: &str| opened[name].as_str().unwrap().to_owned();
    let bumped = |name: &str| {
        let value = value(name);
        let digit = if value.starts_with('1') { "2" } else { "1" };
        (format!("\"{name}\":\"{value}"), format!("\"{name}\":\"{digit}{}", &value[1..]))
    };
    for ((from, to), kind) in [
        (bumped("activations"), "commitment"),
        (bumped("salt"), "commitment"),
        (("\"call\":0".into(), "\"call\":2".into()), "commitment"),
        (("\"position\":1".into(), "\"position\":0".into()), "commitment"),
        (("\"leaves\":4".into(), "\"leaves\":5".into()), "commitment"),
        (("\"module\":1,\"name\":\"m.1\"".into(), "\"module\":0,\"name\":\"m.0\"".into()), "commitment"),
        (bumped("client_signature"), "receipt"),
        (bumped("manifest_signature"), "manifest"),
        (("zklora-disclosure/1".into(), "zklora-disclosure/2".into()), "format"),
        (("{\"format".into(), "{ \"format".into()), "format"),
    ] {
        assert_eq!(text.matches(&from).count(), 1, "{from}");
        let (code, said) = check(text.replace(&from, &to).as_bytes(), &["--json"]);
        let said: Value = serde_json::from_str(&said).unwrap();
        assert_eq!((code, &said["error"]["kind"]), (Some(1), &kind.into()), "{from} -> {to}: {said}");
        assert_eq!((&said["valid"], &said["disclosure"]), (&Value::Bool(false), &Value::Null));
    }
    let (code, said) = check(b"\x1b[2J", &[]);
    assert!(code == Some(1) && said.contains("Nothing in this file can be relied on"), "{said}");
}

#[test]
fn what_cannot_be_read_is_exit_2() {
    let folder = tempfile::tempdir().unwrap();
    for path in [folder.path().to_owned(), folder.path().join("missing")] {
        let output = Command::new(env!("CARGO_BIN_EXE_zklora-verifier"))
            .args(["disclosure", "--json"])
            .arg(path)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2));
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(said["error"]["kind"], "file");
    }
}
