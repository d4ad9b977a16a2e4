//! What the page is told is what the program says.

use std::io::{self, Cursor};
use std::path::Path;
use std::sync::Mutex;

use serde_json::{Value, json};
use zklora_testing::vectors::{Vector, client_of_redacted, load};
use zklora_verdict::{BundleReport, Policy, Verifier};
use zklora_web::{Checker, ReadAt};

#[test]
fn every_vector_has_the_verdict_of_the_native_verifier() {
    let mut checker = Checker::new(|_| ());
    let mut vectors = 0;
    for Vector { name, bytes, reason } in load() {
        // One of them is of the set `compact`; redacted ones need a client whose word is taken.
        let client = client_of_redacted(&bytes);
        let policy = match client {
            None => json!({ "min_security": 65 }),
            Some(client) => json!({ "min_security": 65, "clients": [client], "redacted": true }),
        };
        let answer = check(&mut checker, &policy, &bytes[..]);
        let Policy { pins, min_security } = serde_json::from_value(policy).unwrap();
        let native = Verifier::new(pins).with_min_security(min_security);
        let expected =
            BundleReport::new(Path::new("x.pf"), native.pins(), &native.check(Cursor::new(&bytes)));
        let mut expected_json = serde_json::to_value(&expected).unwrap();
        let mut found = answer["report"].clone();
        forget_times(&mut expected_json);
        forget_times(&mut found);
        assert_eq!(found, expected_json, "{name}");
        assert_eq!(answer["verdict"], expected.verdict(), "{name}");
        assert_eq!(answer["report"]["valid"], reason.is_none(), "{name}");
        assert_eq!(answer["meaning"], expected.meaning(), "{name}");
        assert_eq!(answer["facts"].as_array().unwrap().len(), expected.facts().len(), "{name}");
        assert_eq!(answer["modules"].as_array().unwrap().len(), expected.modules.len(), "{name}");
        assert!(answer["text"].as_str().unwrap().starts_with("x.pf: "), "{name}");
        vectors += 1;
    }
    assert!(vectors >= 54, "{vectors} vectors");
}

#[test]
fn what_is_asked_of_one_file_is_not_asked_of_the_next() {
    let bundle = bundle();
    let mut checker = Checker::new(|_| ());
    let plain = check(&mut checker, &json!({}), &bundle[..]);
    assert_eq!(plain["report"]["pinned"], false);
    let adapter = &plain["report"]["adapter"];
    let other = "ab".repeat(32);
    for (policy, kind) in [
        (json!({ "adapters": [other, adapter] }), None),
        (json!({ "adapters": [other] }), Some("adapter-pin")),
        (json!({ "clients": [adapter] }), Some("client-pin")),
        (json!({ "min_security": 200 }), Some("security")),
        (json!({}), None),
    ] {
        let answer = check(&mut checker, &policy, &bundle[..]);
        assert_eq!(answer["report"]["error"]["kind"].as_str(), kind, "{policy}: {}", answer["text"]);
        assert_eq!(answer["report"]["pinned"], kind.is_none() && policy != json!({}), "{policy}");
    }
}

/// A slip must not become a verdict without pins.
#[test]
fn a_request_that_cannot_be_used_has_no_verdict() {
    let bundle = bundle();
    let mut checker = Checker::new(|_| ());
    for (request, words) in [
        (json!({ "name": "x.pf", "policy": { "adapter": [] } }), "unknown field"),
        (json!({ "name": "x.pf", "policy": { "adapters": [] } }), "empty list"),
        (json!({ "name": "x.pf", "policy": { "adapters": ["abc"] } }), "hexadecimal"),
        (json!({ "name": "x.pf", "policy": { "min_security": -1 } }), "invalid value"),
        (json!({ "name": "x.pf" }), "missing field `policy`"),
        (json!({ "name": "x.pf", "policy": {}, "pins": {} }), "unknown field"),
    ] {
        let answer = checker.check(request.to_string().as_bytes(), &bundle[..]);
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        assert!(answer["problem"].as_str().unwrap().contains(words), "{request}: {answer}");
        assert!(answer.get("report").is_none());
    }
}

#[test]
fn long_work_is_announced_and_a_file_that_cannot_be_read_is_said_to_be() {
    static ANNOUNCED: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let mut checker = Checker::new(|work| ANNOUNCED.lock().unwrap().push(work.into()));
    let answer = check(&mut checker, &json!({}), &bundle()[..]);
    assert_eq!(answer["verdict"], "VALID, NOT PINNED");
    let announced = ANNOUNCED.lock().unwrap();
    assert!(announced.len() == 1 && announced[0].contains("building the circuit"), "{announced:?}");

    struct Gone;
    impl ReadAt for Gone {
        fn length(&self) -> u64 {
            1000
        }
        fn read_at(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
            Err(io::Error::other("gone"))
        }
    }
    let answer = check(&mut checker, &json!({}), Gone);
    assert_eq!(answer["report"]["valid"], false);
    assert!(answer["report"]["error"]["what"].as_str().unwrap().contains("gone"), "{answer}");
}

/// The default of the form is the default of the program.
#[test]
fn an_empty_form_asks_what_the_program_asks() {
    assert_eq!(serde_json::from_value::<Policy>(json!({})).unwrap(), Policy::default());
    let page = include_str!("../web/page.html");
    let bits = format!("placeholder=\"{}\"", Policy::default().min_security);
    assert!(page.contains(&bits), "the page says another default than {bits}");
}

fn check(checker: &mut Checker, policy: &Value, file: impl ReadAt) -> Value {
    let request = json!({ "name": "x.pf", "policy": policy }).to_string();
    serde_json::from_slice(&checker.check(request.as_bytes(), file)).unwrap()
}

fn bundle() -> Vec<u8> {
    load().into_iter().find(|vector| vector.name.ends_with("one-module.pf")).unwrap().bytes
}

fn forget_times(report: &mut Value) {
    let object = report.as_object_mut().unwrap();
    object.remove("seconds");
    object.remove("fold_seconds");
    for batch in object["batches"].as_array_mut().unwrap() {
        let batch = batch.as_object_mut().unwrap();
        batch.remove("build_seconds");
        batch.remove("verify_seconds");
    }
}
