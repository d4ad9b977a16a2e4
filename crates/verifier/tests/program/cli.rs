//! The command `zklora-verifier`, as people and scripts run it.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "tests say what they measure or pass over")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::LazyLock;

use crate::common::SESSION;
use serde_json::Value;
use tempfile::TempDir;
use zklora_testing::{RawBundle, World, shape};

/// Instead of the cache folder of who runs the tests.
static CACHE: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());

fn run<A: AsRef<std::ffi::OsStr>>(arguments: &[A]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_zklora-verifier"))
        .args(arguments)
        .env_remove("RUST_LOG")
        .env("XDG_CACHE_HOME", CACHE.path())
        .output()
        .unwrap()
}

fn verify(folder: &TempDir, arguments: &[&str]) -> (Option<i32>, String, String) {
    let folder = folder.path().to_str().unwrap();
    let output = run(&[&["verify", "--proof-dir", folder][..], arguments].concat());
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

fn folder(bundles: &[(&str, &RawBundle)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bundle) in bundles {
        fs::write(folder.path().join(name), bundle.to_bytes()).unwrap();
    }
    folder
}

/// The session's bundle with a byte of its second proof changed and the digest made to fit.
fn bad() -> RawBundle {
    let mut bad = SESSION.bundle.clone();
    bad.blobs.last_mut().unwrap()[5000] ^= 1;
    bad
}

fn contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
}

#[test]
fn an_honest_folder_is_valid() {
    let folder = folder(&[("b.pf", &SESSION.bundle), ("a.pf", &SESSION.bundle)]);
    fs::write(folder.path().join("notes.txt"), "not a bundle").unwrap();
    let (code, out, _) = verify(&folder, &["--unpinned"]);
    assert_eq!(code, Some(0), "{out}");
    contains(
        &out,
        &[
            "a.pf: VALID, NOT PINNED",
            "m.0: 4 rows, proof 0, ok",
            "m.2: 2 rows, proof 1, ok",
            "The seller and the user both signed the record of this session. Every answer in it was computed with the adapter below; none was \
             altered.",
            "NOT PINNED: only this bundle says so; give the id that you were promised with --adapter",
            "NOT PINNED: only this bundle says so; anyone can make a bundle",
            &SESSION.world.manifest().adapter_id().to_string(),
            &SESSION.world.contributor().public().to_string(),
            &SESSION.world.manifest().manifest().base_model().to_string(),
            "security: parameter set \"standard\", 10",
            "Nobody said which adapter that has to be",
            "bundles: 2 valid (of which 2 NOT PINNED), 0 INVALID",
        ],
    );
    assert!(out.find("a.pf").unwrap() < out.find("b.pf").unwrap());
    let last = out.lines().last().unwrap();
    assert!(last.starts_with("Done verifying 4 proofs. Total time: ") && last.ends_with(" s"), "{last}");
}

#[test]
fn of_many_the_failures_are_told_at_the_end_and_quietly_nothing_else() {
    let folder =
        folder(&[("a.pf", &bad()), ("b.pf", &SESSION.bundle), ("c.pf", &bad()), ("d.pf", &SESSION.bundle)]);
    let (code, out, _) = verify(&folder, &[]);
    assert_eq!(code, Some(1));
    let end: Vec<&str> = out.lines().rev().take(5).collect();
    assert!(end[0].starts_with("Done verifying 4 proofs"), "{out}");
    assert_eq!(end[1], "sessions: 1, since 1 of the bundles is of a session that another is of, too");
    assert_eq!(end[2], "bundles: 2 valid (of which 2 NOT PINNED), 2 INVALID");
    assert!(end[3].contains("c.pf: INVALID: proof 1") && end[4].contains("a.pf: INVALID: proof 1"), "{out}");

    let (code, quiet, _) = verify(&folder, &["--quiet"]);
    assert_eq!(code, Some(1));
    // But for the times.
    let lines: Vec<&str> = quiet.lines().collect();
    assert_eq!((lines.len(), lines[0], lines[1], lines[2], lines[3]), (5, end[4], end[3], end[2], end[1]));
    let valid = self::folder(&[("a.pf", &SESSION.bundle)]);
    let (code, quiet, _) = verify(&valid, &["-q", "--unpinned"]);
    assert_eq!((code, quiet.lines().count()), (Some(0), 2), "{quiet}");
}

/// Two bundles of one session are no two sessions, whoever gives them.
#[test]
fn a_session_that_is_given_twice_is_told() {
    let folder = folder(&[("a.pf", &SESSION.bundle), ("b.pf", &SESSION.bundle)]);
    let (_, out, _) = verify(&folder, &[]);
    let first = folder.path().join("a.pf");
    contains(
        &out,
        &[&format!("the same session as {}: it counts once", first.display()), "sessions: 1, since"],
    );
    assert_eq!(out.matches("the same session as").count(), 1, "{out}");
    let (_, out, _) = verify(&folder, &["--json"]);
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["bundles"][0]["same_session_as"], Value::Null);
    assert_eq!(report["bundles"][1]["same_session_as"], first.to_str().unwrap());
    // The same file twice, too; and what is not valid is nobody's double.
    let first = first.to_str().unwrap();
    let out = text(run(&["verify", first, first]).stdout);
    contains(&out, &["the same session as"]);
    let folder = self::folder(&[("a.pf", &bad()), ("b.pf", &SESSION.bundle)]);
    let (_, out, _) = verify(&folder, &[]);
    assert!(!out.contains("the same session"), "{out}");
}

#[test]
fn pins_are_named_in_words() {
    let folder = folder(&[("a.pf", &SESSION.bundle)]);
    let adapter = SESSION.world.manifest().adapter_id().to_string();
    let contributor = SESSION.world.contributor().public().to_string();
    let (code, out, _) =
        verify(&folder, &["--adapter", &adapter, "--contributor", &contributor, "--verbose"]);
    assert_eq!(code, Some(0));
    contains(
        &out,
        &[
            &format!("adapter: {adapter}\n    pinned: it is the one you gave\n"),
            &format!("contributor: {contributor}\n    pinned: it is the one you gave\n"),
            "session: 0101",
            "proof 1: of m.2; circuit of 2^10 rows",
        ],
    );
    assert!(!out.contains("NOT PINNED"), "{out}");
    let (code, out, _) = verify(&folder, &["--adapter", &adapter]);
    assert_eq!(code, Some(0));
    contains(&out, &["not given with --contributor, but the pinned adapter names this key"]);

    let other = "ab".repeat(32);
    let (code, out, _) = verify(&folder, &["--adapter", &other]);
    assert_eq!(code, Some(1));
    contains(
        &out,
        &["REFUSED", "is not the pinned one", &other, "NOT the one you gave", "proof 1, not counted"],
    );
    let (code, out, _) = verify(&folder, &["--contributor", &other]);
    assert_eq!(code, Some(1));
    contains(&out, &["REFUSED", "the contributor of this file is not the pinned one", &other]);
}

/// The attacker is a contributor who plays the client itself, or shows a session for another base model, or an old one.
#[test]
fn client_base_model_and_age_can_be_asked_for() {
    let folder = folder(&[("a.pf", &SESSION.bundle)]);
    let report = |out: &str| -> Value { serde_json::from_str(out).unwrap() };
    let (_, out, _) = verify(&folder, &["--json"]);
    let bundle = report(&out)["bundles"][0].clone();
    let of = |field: &str| bundle[field].as_str().unwrap().to_owned();
    assert_eq!((&bundle["pinned"], &bundle["pins"]["client"]), (&Value::Bool(false), &Value::Bool(false)));
    let (code, out, _) = verify(&folder, &["--client", &of("client"), "--base-model", &of("base_model")]);
    assert_eq!(code, Some(3), "{out}");
    contains(
        &out,
        &[
            &format!("client: {}\n    pinned: it is the one you gave\n", of("client")),
            &format!("base model: {}\n    pinned: it is the one you gave\n", of("base_model")),
            "Not shown:\n  - that the user ran this base model",
            "by the contributor's clock",
        ],
    );
    let other = SESSION.world.contributor().public().to_string();
    for (pin, words) in
        [("--client", "a contributor can play the client"), ("--base-model", "is not the pinned one")]
    {
        let (code, out, _) = verify(&folder, &[pin, &other]);
        assert_eq!(code, Some(1), "{out}");
        contains(&out, &["REFUSED", words, &other, "NOT the one you gave"]);
        // Only the first that is wrong is the reason, and none that was given is called not pinned.
        let wrong = "ab".repeat(32);
        let (_, out, _) = verify(&folder, &[pin, &wrong, "--adapter", &wrong, "--contributor", &wrong]);
        assert_eq!(out.matches("NOT the one you gave").count(), 3, "{out}");
        assert!(!out.contains("NOT PINNED"), "{out}");
        let (_, out, _) = verify(&folder, &[pin, &other, "--json"]);
        assert_eq!(report(&out)["bundles"][0]["error"]["kind"], format!("{}-pin", &pin[2..]));
    }
    // One of several is enough.
    let (code, out, _) = verify(&folder, &["--unpinned", "--client", &other, "--client", &of("client")]);
    assert_eq!(code, Some(0), "{out}");

    let path = folder.path().join("policy.toml");
    let path = path.to_str().unwrap();
    let policy = |text: &str| {
        fs::write(path, text).unwrap();
        verify(&folder, &["--policy", path, "--json"])
    };
    let all = format!(
        "adapters = [\"{}\"]\ncontributors = [\"{}\"]\nbase_models = [\"{}\"]\nclients = [\"{}\"]\n",
        of("adapter"),
        of("contributor"),
        of("base_model"),
        of("client")
    );
    let (code, out, _) = policy(&all);
    assert_eq!(code, Some(0), "{out}");
    let report_of = report(&out);
    let pins = &report_of["bundles"][0]["pins"];
    assert!(pins.as_object().unwrap().values().all(|pin| *pin == true), "{pins}");
    assert_eq!(
        (&report_of["pinned"], &report_of["bundles"][0]["verdict"]),
        (&Value::Bool(true), &"valid".into())
    );
    // A policy that does not say which adapter pins none.
    for (text, code) in [
        (format!("adapters = [\"{}\"]", of("adapter")), 0),
        (format!("contributors = [\"{}\"]", of("contributor")), 3),
    ] {
        assert_eq!(policy(&text).0, Some(code), "{text}");
    }
    for (text, kind) in [
        (format!("{all}max_age_days = 1"), "age"),
        (format!("{all}min_security = 120"), "security"),
        (format!("clients = [\"{other}\"]"), "client-pin"),
    ] {
        let (code, out, _) = policy(&text);
        assert_eq!(code, Some(1), "{out}");
        assert_eq!(report(&out)["bundles"][0]["error"]["kind"], kind);
    }
    for (text, words) in [("adapter = []", "unknown field"), ("adapters = []", "empty list")] {
        let (code, out, log) = policy(text);
        assert_eq!((code, out.as_str()), (Some(2), ""));
        contains(&log, &[words, "policy.toml"]);
    }
    let (code, ..) = verify(&folder, &["--policy", "/nonexistent/policy.toml"]);
    assert_eq!(code, Some(2));
    let (code, _, log) = verify(&folder, &["--policy", path, "--client", &other]);
    assert_eq!(code, Some(2));
    contains(&log, &["cannot be used with"]);
}

#[test]
fn a_bundle_is_taken_apart_without_being_verified() {
    // Its proof is bad, which nobody asks here.
    let folder = folder(&[("bad.pf", &bad())]);
    let file = folder.path().join("bad.pf");
    let file = file.to_str().unwrap();
    let output = run(&["inspect", file]);
    assert_eq!(output.status.code(), Some(0));
    contains(
        &text(output.stdout),
        &[
            "NOT VERIFIED",
            "m.2: 40 to 48, rank 216, 2 rows",
            "proof 0: m.0, m.1",
            "transcript.salt: 32 bytes at ",
        ],
    );
    let document: Value = serde_json::from_slice(&run(&["inspect", file, "--json"]).stdout).unwrap();
    let parts = document["parts"].as_array().unwrap();
    let bytes = fs::read(file).unwrap();
    assert_eq!(parts.len(), bad().blobs.len());
    for (part, blob) in parts.iter().zip(&bad().blobs) {
        let (offset, length) = (part["offset"].as_u64().unwrap(), part["length"].as_u64().unwrap());
        assert_eq!(&bytes[offset as usize..][..length as usize], blob);
        assert_eq!(run(&["extract", file, part["name"].as_str().unwrap()]).stdout, *blob);
    }

    let receipt = folder.path().join("receipt.json");
    let receipt = receipt.to_str().unwrap();
    assert_eq!(run(&["extract", file, "receipt", "--out", receipt]).status.code(), Some(0));
    assert_eq!(fs::read(receipt).unwrap(), bad().blobs[2]);
    for (arguments, code, words) in [
        (vec!["extract", file, "manifest", "--out", receipt], 2, "exists"),
        (vec!["extract", file, "weights"], 2, "expected one of: manifest, manifest.signature, "),
        (vec!["extract", "/nonexistent.pf", "receipt"], 2, "cannot be opened"),
        (vec!["inspect", "/nonexistent.pf"], 2, "cannot be opened"),
        (vec!["inspect", receipt], 1, "header"),
    ] {
        let output = run(&arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        contains(&text(output.stderr), &[words]);
    }
    assert_eq!(fs::read(receipt).unwrap(), bad().blobs[2], "an existing file is left alone");

    // A full disk is not the bundle's fault.
    let output = Command::new(env!("CARGO_BIN_EXE_zklora-verifier"))
        .args(["extract", file, "proof.1"])
        .stdout(fs::File::options().write(true).open("/dev/full").unwrap())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    contains(&text(output.stderr), &["No space left"]);

    // A part that does not have its digest is not put under its name.
    let mut damaged = bytes.clone();
    *damaged.last_mut().unwrap() ^= 1;
    fs::write(file, damaged).unwrap();
    let proof = folder.path().join("proof");
    let output = run(&["extract", file, "proof.1", "--out", proof.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    contains(&text(output.stderr), &["does not have the digest in the header"]);
    assert!(!proof.exists());
}

#[test]
fn one_bad_bundle_does_not_hide_the_others() {
    let folder = folder(&[("1-bad.pf", &bad()), ("2-good.pf", &SESSION.bundle)]);
    fs::write(folder.path().join("3-junk.pf"), "junk").unwrap();
    fs::create_dir(folder.path().join("4-folder.pf")).unwrap();
    let (code, out, _) = verify(&folder, &[]);
    assert_eq!(code, Some(1));
    contains(
        &out,
        &[
            "1-bad.pf: INVALID",
            "reason: proof 1 (of m.2)",
            "m.2: 2 rows, proof 1, NOT PROVED",
            "2-good.pf: VALID",
            "3-junk.pf: INVALID",
            "4-folder.pf: UNREADABLE",
            "Nothing is known of this file",
            "this is not a regular file",
            "Nothing in this file can be relied on",
            "bundles: 1 valid (of which 1 NOT PINNED), 1 UNREADABLE, 2 INVALID",
            "Done verifying 2 proofs.",
        ],
    );
}

#[test]
fn files_and_folders_may_be_named_directly() {
    let folder = folder(&[("a.pf", &SESSION.bundle), ("b.pf", &bad())]);
    let good = folder.path().join("a.pf");
    assert_eq!(run(&["verify".as_ref(), good.as_os_str()]).status.code(), Some(3));
    assert_eq!(run(&["verify".as_ref(), folder.path().as_os_str()]).status.code(), Some(1));
}

#[test]
fn what_leads_to_no_bundle_is_exit_2() {
    let empty = tempfile::tempdir().unwrap();
    let (code, out, err) = verify(&empty, &[]);
    assert_eq!(code, Some(2));
    contains(&err, &["no bundle found, expected files named *.pf"]);
    contains(&out, &["Done verifying 0 proofs."]);

    let missing = empty.path().join("missing");
    let output = run(&["verify".as_ref(), "--proof-dir".as_ref(), missing.as_os_str()]);
    assert_eq!(output.status.code(), Some(2));
    contains(&text(output.stderr), &["missing: No such file"]);

    for wrong in
        [&["verify"][..], &["verify", "--adapter", "12", "x"], &["verify", "--no-such-flag", "x"], &[]]
    {
        assert_eq!(run(wrong).status.code(), Some(2), "{wrong:?}");
    }
    contains(&text(run(&["verify", "--adapter", "12", "x"]).stderr), &["64 hexadecimal digits"]);

    // A good bundle beside a folder without any: something that was asked for was not verified.
    let good = folder(&[("a.pf", &SESSION.bundle)]);
    let (code, out, _) = verify(&good, &["--proof-dir", empty.path().to_str().unwrap()]);
    assert_eq!(code, Some(2));
    contains(&out, &["a.pf: VALID"]);
}

#[test]
fn json_is_one_document_and_nothing_else() {
    let folder = folder(&[("a.pf", &SESSION.bundle), ("b.pf", &bad())]);
    let adapter = SESSION.world.manifest().adapter_id().to_string();
    let (code, out, _) = verify(&folder, &["--json", "--adapter", &adapter, "--verbose"]);
    assert_eq!(code, Some(1));
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["format"], "zklora-verify/2");
    assert_eq!(report["valid"], false);
    assert_eq!(report["proofs"], 2);
    assert!(report["seconds"].as_f64().unwrap() > 0.0);
    let good = &report["bundles"][0];
    assert!(good["path"].as_str().unwrap().ends_with("a.pf"));
    assert_eq!((&good["valid"], &good["error"]), (&Value::Bool(true), &Value::Null));
    assert_eq!(good["adapter"], adapter);
    assert_eq!(good["contributor"], SESSION.world.contributor().public().to_string());
    assert_eq!(good["client"], SESSION.world.client().public().to_string());
    assert_eq!(good["session"], "01".repeat(32));
    assert_eq!(good["base_model"], "09".repeat(32));
    assert_eq!(
        good["pins"],
        serde_json::json!({ "adapter": true, "contributor": false, "base_model": false, "client": false })
    );
    assert_eq!(good["security"], "standard");
    let mut module = good["modules"][2].clone();
    // What these are is held against another implementation: see tests/check_pf.rs.
    for (pair, place) in [(&good["alpha"], "alpha"), (&good["beta"], "beta"), (&module["s"].take(), "s")] {
        let parts: Vec<u64> =
            pair.as_array().unwrap().iter().map(|part| part.as_str().unwrap().parse().unwrap()).collect();
        assert_eq!(parts.len(), 2, "{place}");
    }
    assert_eq!(module["a_digest"].take().as_str().unwrap().len(), 64);
    assert_eq!(
        module,
        serde_json::json!({
            "name": "m.2", "d_in": 40, "rank": 216, "d_out": 48, "rows": 2, "batch": 1, "ok": true,
            "a_digest": null, "s": null
        })
    );
    let batch = &good["batches"][0];
    assert_eq!(batch["modules"], serde_json::json!(["m.0", "m.1"]));
    assert_eq!(batch["degree_bits"], 10);
    assert_eq!(batch["proof_bytes"], SESSION.bundle.proofs()[0].len());
    assert!(batch["build_seconds"].is_f64() && batch["verify_seconds"].is_f64());
    let bad = &report["bundles"][1];
    assert_eq!((&bad["valid"], &bad["error"]["kind"]), (&Value::Bool(false), &"proof".into()));
    contains(bad["error"]["what"].as_str().unwrap(), &["proof 1 (of m.2)"]);
    assert_eq!(bad["modules"][0]["ok"], false);
    assert_eq!((&bad["alpha"], &bad["modules"][0]["s"]), (&Value::Null, &Value::Null));

    let empty = tempfile::tempdir().unwrap();
    let (code, out, _) = verify(&empty, &["--json"]);
    assert_eq!(code, Some(2));
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&report["valid"], &report["bundles"]), (&Value::Bool(false), &serde_json::json!([])));
    contains(report["problems"][0].as_str().unwrap(), &["no bundle found"]);
}

#[test]
fn the_log_goes_to_stderr_in_either_form() {
    let folder = folder(&[("a.pf", &SESSION.bundle)]);
    let output = Command::new(env!("CARGO_BIN_EXE_zklora-verifier"))
        .args(["verify", "--log-format", "json", "--json"])
        .arg(folder.path())
        .env("RUST_LOG", "zklora_verifier=debug")
        .env("XDG_CACHE_HOME", CACHE.path())
        .output()
        .unwrap();
    serde_json::from_slice::<Value>(&output.stdout).unwrap();
    let log = text(output.stderr);
    assert!(!log.is_empty());
    for line in log.lines() {
        assert_eq!(serde_json::from_str::<Value>(line).unwrap()["level"], "DEBUG", "{line}");
    }
}

#[test]
fn help_says_what_the_exit_codes_mean() {
    for arguments in [&["--help"][..], &["verify", "--help"]] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(0));
        contains(
            &text(output.stdout),
            &[
                "0  at least one bundle was found, and every one is valid and of the pinned adapter",
                "1  a bundle is not valid",
                "2  wrong usage",
                "3  every bundle is valid, but no adapter was pinned",
            ],
        );
    }
}

#[test]
fn a_session_without_rows_proves_nothing_and_says_so() {
    let world = World::new(&[shape(8, 2, 8)], 1);
    let (code, out, _) = verify(&folder(&[("a.pf", &world.bundle(&[]))]), &[]);
    assert_eq!(code, Some(1));
    contains(&out, &["m.0: 0 rows, not called", "the session has no rows, so that nothing is proved"]);
}

#[test]
fn names_of_files_do_not_act_on_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("\x1b[2Jx.pf"), "junk").unwrap();
    let (code, out, _) = verify(&folder, &[]);
    assert_eq!(code, Some(1));
    contains(&out, &["\\u{1b}[2Jx.pf: INVALID"]);
    assert!(!out.contains('\x1b'));
}

#[test]
fn a_pipe_is_not_waited_for() {
    let folder = folder(&[("b.pf", &SESSION.bundle)]);
    let pipe = folder.path().join("a.pf");
    let made = Command::new("mkfifo").arg(Path::new(&pipe)).status();
    if !made.is_ok_and(|status| status.success()) {
        eprintln!("skipped: there is no mkfifo here");
        return;
    }
    let (code, out, _) = verify(&folder, &[]);
    assert_eq!(code, Some(2));
    contains(&out, &["a.pf: UNREADABLE", "this is not a regular file", "b.pf: VALID"]);
}

/// Whoever could not read a file has not found that it does not hold.
#[test]
fn what_cannot_be_read_is_not_called_invalid() {
    let folder = folder(&[("b.pf", &SESSION.bundle)]);
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::create_dir(folder.path().join("a.pf")).unwrap();
    let adapter = SESSION.world.manifest().adapter_id().to_string();
    let (code, out, _) = verify(&folder, &["--json", "--adapter", &adapter]);
    assert_eq!(code, Some(2));
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (&report["valid"], &report["bundles"][0]["verdict"]),
        (&Value::from(false), &Value::from("unreadable"))
    );
    assert_eq!(report["bundles"][0]["error"]["kind"], "file");
    // What does not hold weighs more.
    fs::write(folder.path().join("c.pf"), bad().to_bytes()).unwrap();
    assert_eq!(verify(&folder, &[]).0, Some(1));

    for command in ["explain", "keys", "inspect", "disclosure"] {
        let output = run(&[command, &at("a.pf")]);
        assert_eq!(output.status.code(), Some(2), "{command}: {output:?}");
        assert!(!text(output.stdout).contains("INVALID"), "{command}");
        let output = run(&[command, &at("c.pf")]);
        // What inspect and keys read of it holds.
        let code = if ["explain", "disclosure"].contains(&command) { 1 } else { 0 };
        assert_eq!(output.status.code(), Some(code), "{command}: {output:?}");
    }
    let page = at("page.html");
    let alone = folder.path().join("alone");
    fs::create_dir_all(alone.join("a.pf")).unwrap();
    assert_eq!(run(&["verify", alone.to_str().unwrap(), "--html", &page]).status.code(), Some(2));
    contains(&fs::read_to_string(&page).unwrap(), &["<title>UNREADABLE", "The one file could not be read."]);
}

#[test]
fn the_report_is_also_a_page() {
    let folder = folder(&[("a.pf", &SESSION.bundle), ("b.pf", &bad())]);
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (good, page) = (at("a.pf"), at("report.html"));
    let output = run(&["verify", &good, "--html", &page]);
    assert_eq!(output.status.code(), Some(3));
    contains(&fs::read_to_string(&page).unwrap(), &["<title>VALID, NOT PINNED", "class=\"banner unpinned\""]);
    let adapter = SESSION.world.manifest().adapter_id().to_string();
    let output = run(&["verify", &good, "--html", &page, "--adapter", &adapter]);
    assert_eq!(output.status.code(), Some(0));
    contains(&text(output.stdout), &["a.pf: VALID (", "bundles: 1 valid, 0 INVALID"]);
    let written = fs::read_to_string(&page).unwrap();
    let version = concat!("Made by zklora-verifier ", env!("CARGO_PKG_VERSION"));
    contains(&written, &["<!DOCTYPE html>", "<title>VALID \u{2013}", "a.pf", "default-src 'none'", version]);
    assert!(written.ends_with("</html>"));

    // In place of the one that is there, beside JSON, and of an invalid bundle, too.
    let (code, out, _) = verify(&folder, &["--json", "--html", &page]);
    assert_eq!(code, Some(1));
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["valid"], false);
    contains(&fs::read_to_string(&page).unwrap(), &["<title>INVALID", "1 of 2 bundles is not valid"]);
    let output = run(&["verify", &good, "--html", "-"]);
    assert_eq!(output.status.code(), Some(3));
    let out = text(output.stdout);
    assert!(out.starts_with("<!DOCTYPE html>") && out.ends_with("</html>"), "{out}");

    let before = fs::read(&page).unwrap();
    fs::create_dir(at("folder")).unwrap();
    let symlink = at("link");
    std::os::unix::fs::symlink(&page, &symlink).unwrap();
    for (target, words) in [
        (at("none/report.html"), "No such file"),
        (at("folder"), "not a regular file"),
        (symlink, "not a regular file"),
        ("/dev/null".into(), "not a regular file"),
        (good.clone(), "the name of a bundle"),
    ] {
        let output = run(&["verify", &good, "--html", &target]);
        assert_eq!(output.status.code(), Some(2), "{target}");
        assert!(output.stdout.is_empty(), "{target}: found before anything is verified");
        contains(&text(output.stderr), &[words]);
    }
    let output = run(&["verify", &good, "--html", "-", "--json"]);
    assert_eq!((output.status.code(), output.stdout.is_empty()), (Some(2), true));
    contains(&text(output.stderr), &["both ask for the standard output"]);
    assert_eq!(fs::read(&page).unwrap(), before);
    let full = Command::new(env!("CARGO_BIN_EXE_zklora-verifier"))
        .args(["verify", &good, "--html", "-"])
        .stdout(fs::File::options().write(true).open("/dev/full").unwrap())
        .output()
        .unwrap();
    assert_eq!(full.status.code(), Some(2), "{full:?}");
}

#[test]
fn an_evaluation_is_on_the_page_only_if_it_is_of_a_bundle() {
    let folder = folder(&[("a.pf", &SESSION.bundle)]);
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (page, evaluation) = (at("report.html"), at("loss.json"));
    let (_, out, _) = verify(&folder, &["--json"]);
    let bundle = serde_json::from_str::<Value>(&out).unwrap()["bundles"][0].clone();
    let mut loss = serde_json::json!({
        "format": "zklora-loss/1", "base_loss": 4.125, "adapter_loss": 3.0625, "tokens": 9, "tokenizer": "ab".repeat(32),
        "sessions": [{
            "session": bundle["session"], "adapter": bundle["adapter"], "contributor": bundle["contributor"],
            "client": bundle["client"], "base_model": bundle["base_model"], "calls": bundle["calls"], "rows": [1], "transcript": "cd".repeat(32),
        }],
    });
    fs::write(&evaluation, loss.to_string()).unwrap();
    let arguments = ["--unpinned", "--html", &page, "--evaluation", &evaluation];
    let (code, out, log) = verify(&folder, &arguments);
    assert_eq!(code, Some(0), "{out}{log}");
    let written = fs::read_to_string(&page).unwrap();
    contains(
        &written,
        &["Claimed by whoever made the file, and not verified", "loss.json", "4.1250", "3.0625"],
    );

    fs::remove_file(&page).unwrap();
    loss["sessions"][0]["session"] = "ab".repeat(32).into();
    let huge = format!("{{\"format\": \"zklora-loss/1\", \"x\": \"{}\"}}", "x".repeat(17 << 20));
    for (content, words) in [
        (loss.to_string(), vec!["loss.json", "abab", bundle["session"].as_str().unwrap()]),
        ("{\"format\": \"zklora-loss/1\", \"base_loss\": NaN}".into(), vec!["loss.json", "this is not what"]),
        (huge, vec!["loss.json", "more than 16 MiB"]),
    ] {
        fs::write(&evaluation, content).unwrap();
        let (code, _, log) = verify(&folder, &arguments);
        assert_eq!(code, Some(2));
        contains(&log, &words);
        assert!(!Path::new(&page).exists(), "no page without what it was to show");
    }
    let (code, _, log) = verify(&folder, &["--evaluation", &evaluation]);
    assert_eq!(code, Some(2));
    contains(&log, &["--html"]);
    // Nothing is left behind.
    let left = fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(left, 2, "a.pf and loss.json");
}
