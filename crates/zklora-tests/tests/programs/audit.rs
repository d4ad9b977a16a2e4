//! Replay: sessions of a base model on a text are known as such, and others are not.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "tests say what they measure or pass over")]

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rand::RngExt;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Value, json};
use tch::Tensor;
use tokio::runtime::Runtime;
use zklora_base_user::activations::quantised;
use zklora_base_user::hooks::{BaseOutput, Hook};
use zklora_base_user::models::Model;
use zklora_base_user::remote::{CombineMode, RemoteHook};
use zklora_base_user::replay::{Recording, ReplayHook, TOLERANCE};
use zklora_base_user::tokenizer::Tokenizer;
use zklora_client::Session;
use zklora_hf::{BaseModel, LoraAdapter};
use zklora_proto::bundle::{Bundle, BundleError};
use zklora_proto::{BLINDING_ROWS, Call, SecretKey};
use zklora_testing::{RawBundle, TRANSCRIPT, encode_transcript};
use zklora_tests::fixtures;
use zklora_tests::programs::{Programs, Server, program, success, text};

const TEXT: &str = "El administrador debe comprobar la red.";
const LINES: [&str; 4] =
    ["Debian es libre.", "El sistema es otro, y no el de antes.", "La red", "Un archivo de texto."];

/// A contributor that serves all tests, and a run of `loss` and one of `eval` with it.
struct Proved {
    world: Programs,
    /// Stopped with the last test that has it.
    _server: Mutex<Server>,
    address: String,
    loss: Run,
    eval: Run,
    dataset: PathBuf,
}

/// A run of a program: what it printed, and its bundle.
struct Run {
    report: PathBuf,
    said: Value,
    bundle: PathBuf,
}

/// What is there, as long as a test has it.
fn proved() -> Arc<Proved> {
    static PROVED: Mutex<Weak<Proved>> = Mutex::new(Weak::new());
    let mut proved = PROVED.lock().unwrap_or_else(PoisonError::into_inner);
    proved.upgrade().unwrap_or_else(|| {
        let new = Arc::new(Proved::new());
        *proved = Arc::downgrade(&new);
        new
    })
}

impl Proved {
    fn new() -> Self {
        let world = Programs::new();
        let server = world.serve();
        let loss = Run::of(&world, "loss", world.loss(&server.address, TEXT).arg("--wait"));
        let dataset = world.path("dataset.txt");
        fs::write(&dataset, LINES.join("\n")).unwrap();
        let mut eval = program("zklora-base-user");
        eval.args([
            "eval",
            "--json",
            "--wait",
            "--contributor",
            &server.address,
            "--adapter",
            &world.adapter,
        ])
        .args(["--batch-tokens", "20", "--base-model"])
        .arg(gpt2())
        .arg("--dataset")
        .arg(&dataset)
        .arg("--identity")
        .arg(world.path("client.key"));
        let eval = Run::of(&world, "eval", &mut eval);
        let address = server.address.clone();
        Self { world, _server: Mutex::new(server), address, loss, eval, dataset }
    }

    /// A session of [`TEXT`] by somebody who is free to run any model, to put any hook on it, and to ask for more afterwards. Gives
    /// the bundle.
    fn cheat(
        &self,
        mut model: Model,
        hook: impl FnOnce(RemoteHook) -> Arc<dyn Hook>,
        after: impl FnOnce(&Session),
    ) -> PathBuf {
        let runtime = Runtime::new().unwrap();
        let digest = BaseModel::open(gpt2()).unwrap().digest();
        let (address, adapter) = (self.address.parse().unwrap(), self.world.adapter.parse().unwrap());
        let key = SecretKey::generate();
        let session = Session::open(runtime.handle().clone(), key, &address, adapter, digest).unwrap();
        let session = Arc::new(session);
        let remote = RemoteHook::new([(session.clone(), CombineMode::AddDelta)]);
        model.patch(hook(remote)).unwrap();
        model.loss(&tokenizer().encode(TEXT).unwrap()).unwrap();
        model.unpatch();
        after(&session);
        session.finish().unwrap();
        session.wait_for_proof(|_| ()).unwrap();
        bundle(&self.world, &session.id().to_string())
    }
}

impl Run {
    fn of(world: &Programs, name: &str, command: &mut Command) -> Self {
        let said = success(command);
        let report = world.path(&format!("{name}.json"));
        fs::write(&report, said.to_string()).unwrap();
        let bundle = bundle(world, said["sessions"][0]["session"].as_str().unwrap());
        Self { report, said, bundle }
    }
}

#[test]
fn an_honest_loss_is_replayed() {
    let proved = proved();
    let Proved { world, loss, .. } = &*proved;
    let mut audit = audit_text(TEXT, &[&loss.bundle]);
    audit.args(["--adapter", &world.adapter, "--contributor", &world.contributor]);
    let found = holds(audit.arg("--report").arg(&loss.report));
    assert_eq!(found["report"], json!({ "agrees": true, "error": null }));
    assert_eq!(found["tokens"], loss.said["tokens"]);
    close(&found["base_loss"]["value"], &loss.said["base_loss"]);
    close(&found["adapter_loss"]["value"], &loss.said["adapter_loss"]);
    let bundle = &found["bundles"][0];
    assert_eq!((&found["pinned"], &bundle["pinned"]), (&json!(true), &json!(true)));
    assert_eq!(
        bundle["pins"],
        json!({ "adapter": true, "base_model": true, "contributor": true, "client": false })
    );
    assert_eq!(bundle["session"], loss.said["sessions"][0]["session"]);
    assert_eq!(bundle["blinding_rows"], 0);
    assert!(bundle["activations"].as_u64().unwrap() > 10_000, "{bundle}");

    let mut people = program("zklora-base-user");
    people.args(["audit", "--text", TEXT, "--base-model"]).arg(gpt2()).arg(&loss.bundle);
    let output = people.arg("--report").arg(&loss.report).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    let words = text(&output.stdout);
    for expected in [
        "REPLAYED, NOT PINNED",
        "Nobody said which adapter",
        "AGREES",
        "loss with the adapter    6.",
        "means: These are the losses",
    ] {
        assert!(words.contains(expected), "{words}");
    }
}

#[test]
fn an_honest_evaluation_is_replayed_as_it_was_batched() {
    let proved = proved();
    let Proved { eval, dataset, .. } = &*proved;
    let audit = |more: &[&str]| {
        let mut audit = audit(&[&eval.bundle]);
        audit.arg("--dataset").arg(dataset).args(more);
        audit
    };
    let found = holds(audit(&["--batch-tokens", "20"]).arg("--report").arg(&eval.report));
    assert_eq!(found["report"]["agrees"], true);
    assert_eq!(found["predicted"], eval.said["predicted"]);
    close(&found["difference"]["value"], &eval.said["difference"]["value"]);

    // On another machine.
    let older = holds(
        with_older_instructions(&mut audit(&["--batch-tokens", "20"])).arg("--report").arg(&eval.report),
    );
    println!(
        "on an older processor, {} of {}",
        older["bundles"][0]["differing_by_one"], older["bundles"][0]["activations"]
    );

    for (more, kind) in [
        (&[][..], "rows"),
        (&["--batch-tokens", "1"], "rows"),
        (&["--batch-tokens", "20", "--max-tokens", "20"], "more-calls"),
    ] {
        let (found, what) = fails(&mut audit(more));
        assert_eq!(found["bundles"][0]["error"]["kind"], kind, "{what}");
        assert!(what.contains("--batch-tokens"), "{what}");
    }
    // A report of something else.
    let mut other = audit(&["--batch-tokens", "20"]);
    let found = does_not_hold(other.arg("--report").arg(&proved.loss.report));
    assert_eq!(found["bundles"][0]["replayed"], true);
    assert_eq!(found["report"]["agrees"], false);
}

#[test]
fn another_text_is_not_that_of_the_session() {
    let proved = proved();
    let Proved { loss, .. } = &*proved;
    let tokens = |text: &str| tokenizer().encode(text).unwrap();
    let ids = tokens(TEXT);
    // As long, and the same in the beginning.
    let other = ["El administrador debe comprobar el red.", "El administrador debe comprobar la paz."]
        .into_iter()
        .find(|other| tokens(other).len() == ids.len())
        .unwrap();
    let first = tokens(other).iter().zip(&ids).position(|(a, b)| a != b).unwrap();
    assert!(first > 0);
    let (found, what) = fails(&mut audit_text(other, &[&loss.bundle]));
    let error = &found["bundles"][0]["error"];
    assert_eq!(error["kind"], "activation");
    // The first projection's input is a function of token and position.
    assert_eq!((&error["place"]["call"], &error["place"]["row"]), (&json!(0), &json!(first)));
    assert_eq!(error["place"]["token"], first);
    assert!(what.contains("another text, or another base model"), "{what}");

    let (_, what) = fails(&mut audit_text("El red", &[&loss.bundle]));
    assert!(what.contains("another text"), "{what}");
    let (found, what) = fails(&mut audit_text(&format!("{TEXT} Y más."), &[&loss.bundle]));
    assert_eq!(found["bundles"][0]["error"]["kind"], "rows", "{what}");
}

#[test]
fn a_report_that_was_made_better_does_not_agree() {
    let proved = proved();
    let Proved { loss, world, .. } = &*proved;
    let report = |name: &str, content: &[u8]| {
        let path = world.path(name);
        fs::write(&path, content).unwrap();
        let mut audit = audit_text(TEXT, &[&loss.bundle]);
        audit.arg("--report").arg(path);
        audit
    };
    let mut better = loss.said.clone();
    better["adapter_loss"] = json!(better["adapter_loss"].as_f64().unwrap() - 0.01);
    let found = does_not_hold(&mut report("better.json", better.to_string().as_bytes()));
    // That the sessions are replayed is as true as before.
    assert_eq!(found["bundles"][0]["replayed"], true);
    let what = found["report"]["error"].as_str().unwrap();
    assert!(what.contains("/adapter_loss") && what.contains("expected"), "{what}");

    let mut foreign = loss.said.clone();
    foreign["sessions"][0]["session"] = json!("0".repeat(64));
    let found = does_not_hold(&mut report("foreign.json", foreign.to_string().as_bytes()));
    assert!(found["report"]["error"].as_str().unwrap().contains("/sessions"), "{found}");

    let message = unusable(&mut report("broken.json", b"[1"));
    assert!(message.contains("is not what `loss --json` or `eval --json` prints"), "{message}");
}

#[test]
fn another_tokenizer_is_told_from_that_of_the_run() {
    let proved = proved();
    let Proved { loss, world, .. } = &*proved;
    let with_settings = |settings: Value| {
        let folder = tempfile::tempdir_in(world.folder.path()).unwrap().keep();
        for entry in fs::read_dir(gpt2()).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
        }
        fs::write(folder.join("tokenizer_config.json"), settings.to_string()).unwrap();
        let mut command = program("zklora-base-user");
        command
            .args(["audit", "--json", "--unpinned", "--text", TEXT, "--base-model"])
            .arg(&folder)
            .arg(&loss.bundle);
        command
    };
    // Of the same base model, and other tokens.
    let (_, what) = fails(&mut with_settings(json!({ "add_prefix_space": true })));
    assert!(what.contains("tokenizer"), "{what}");

    // As many tokens of this text, and the same, but not of every text.
    let padded = || with_settings(json!({ "pad_token": "<pad>" }));
    let found = holds(&mut padded());
    assert_ne!(found["tokenizer"], loss.said["tokenizer"]);
    let found = does_not_hold(padded().arg("--report").arg(&loss.report));
    let what = found["report"]["error"].as_str().unwrap();
    assert!(what.contains("/tokenizer") && what.contains(loss.said["tokenizer"].as_str().unwrap()), "{what}");

    // The same, from other files.
    let same = holds(with_settings(json!({ "chat_template": "x" })).arg("--report").arg(&loss.report));
    assert_eq!(same["tokenizer"], loss.said["tokenizer"]);
}

#[test]
fn another_base_model_is_told_by_its_digest() {
    let proved = proved();
    let Proved { loss, world, .. } = &*proved;
    let other = other_model(world);
    let mut command = program("zklora-base-user");
    command
        .args(["audit", "--json", "--unpinned", "--text", TEXT, "--base-model"])
        .arg(&other)
        .arg(&loss.bundle);
    let (found, what) = fails(&mut command);
    assert_eq!(found["bundles"][0]["error"]["kind"], "base-model-pin");
    assert!(what.contains("another base model"), "{what}");
}

/// The attacker is a base-model user, perhaps with the contributor: both sign for the base model of the manifest, and another one ran.
#[test]
fn activations_of_another_base_model_are_told_from_those_of_the_signed_one() {
    let proved = proved();
    // Another in its first layer, and in a later one only.
    let other = Model::load(&BaseModel::open(other_model(&proved.world)).unwrap()).unwrap();
    let mut later = model();
    let projections = BaseModel::open(gpt2()).unwrap().projections();
    let mut change = LoraAdapter::open(fixtures().join("lora-es"), &projections).unwrap();
    change.modules.retain(|module| module.name.ends_with("h.1.mlp.c_fc"));
    assert_eq!(change.modules.len(), 1);
    later.merge(&change).unwrap();
    for (model, calls, cause) in [
        (other, 0..1, "another text, or another base model"),
        (later, 1..12, "later layers of the base model"),
    ] {
        let bundle = proved.cheat(model, |hook| Arc::new(hook), |_| ());
        let (found, what) = fails(&mut audit_text(TEXT, &[&bundle]));
        let error = &found["bundles"][0]["error"];
        assert_eq!(error["kind"], "activation", "{what}");
        assert!(calls.contains(&error["place"]["call"].as_u64().unwrap()), "{what}");
        assert!(what.contains(cause), "{what}");
    }
}

/// The attacker sends one activation that its model does not have. Its twin stays within the tolerance.
#[test]
fn one_changed_activation_is_found() {
    const AT: &str = "transformer.h.1.mlp.c_fc";
    let proved = proved();
    for (by, within) in [(TOLERANCE as i32, true), (TOLERANCE as i32 + 1, false)] {
        let place = Arc::new(Mutex::new(None));
        let bundle = proved.cheat(
            model(),
            |hook| Arc::new(Changed { hook, at: AT, by, place: place.clone() }),
            |_| (),
        );
        let (column, sent) = place.lock().unwrap().unwrap();
        let mut audit = audit_text(TEXT, &[&bundle]);
        if within {
            let found = holds(&mut audit);
            let bundle = &found["bundles"][0];
            assert!(bundle["differing_by_one"].as_u64().unwrap() >= 1, "{bundle}");
            assert_eq!(bundle["largest_difference"], TOLERANCE);
        } else {
            let (found, what) = fails(&mut audit);
            let place = &found["bundles"][0]["error"]["place"];
            assert_eq!((&place["row"], &place["column"]), (&json!(1), &json!(column)), "{what}");
            assert_eq!((&place["modules"], &place["found"]), (&json!(AT), &json!(sent)));
            assert!((place["expected"].as_i64().unwrap() - i64::from(sent)).abs() >= 2, "{what}");
            assert!(place["call"].as_u64().unwrap() > 0 && what.contains(AT), "{what}");
        }
    }
}

#[test]
fn only_blinding_rows_may_follow_the_text() {
    let proved = proved();
    let rows = |session: &Session, module: usize, rows: usize| {
        let d_in = session.manifest().modules()[module].shape().d_in();
        let random: Vec<i16> = (0..rows * d_in).map(|i| (i * 7919 % 60_000) as i16 ^ 0x55).collect();
        let random: Vec<i16> = random.into_iter().map(|x| x.max(-i16::MAX)).collect();
        session.forward(&[module], &random).unwrap();
    };
    let modules = |session: &Session| session.manifest().modules().len();
    let blinded = proved.cheat(model(), |hook| Arc::new(hook), |session| session.blind().unwrap());
    let found = holds(&mut audit_text(TEXT, &[&blinded]));
    assert_eq!(found["bundles"][0]["blinding_rows"], BLINDING_ROWS);
    // They are not compared.
    let without = holds(&mut audit_text(TEXT, &[&proved.loss.bundle]));
    assert_eq!(found["bundles"][0]["activations"], without["bundles"][0]["activations"]);

    // A module left out, one more row, and one module twice.
    let after: [&dyn Fn(&Session); 3] = [
        &|session| (1..modules(session)).for_each(|module| rows(session, module, BLINDING_ROWS)),
        &|session| (0..modules(session)).for_each(|module| rows(session, module, BLINDING_ROWS + 1)),
        &|session| {
            (0..modules(session)).for_each(|module| rows(session, module, BLINDING_ROWS));
            rows(session, 0, BLINDING_ROWS);
        },
    ];
    for after in after {
        let bundle = proved.cheat(model(), |hook| Arc::new(hook), after);
        let (found, what) = fails(&mut audit_text(TEXT, &[&bundle]));
        assert_eq!(found["bundles"][0]["error"]["kind"], "more-calls", "{what}");
    }
}

/// The attacker exchanges the bundle between its verification and its replay: same receipt, other deltas in the last call, which no
/// activation of the session depends on.
#[test]
fn calls_that_are_not_those_of_the_receipt_are_not_replayed() {
    let proved = proved();
    let bytes = fs::read(&proved.loss.bundle).unwrap();
    let mut calls = Vec::new();
    let mut bundle = Bundle::from_reader(Cursor::new(bytes.clone())).unwrap();
    bundle
        .calls(|call| {
            calls.push(call);
            Ok::<_, BundleError>(())
        })
        .unwrap();
    let replay = |calls: &[Call]| {
        let transcript = encode_transcript(calls, 0, &[]);
        let bytes = RawBundle::parse(&bytes).with_blob(TRANSCRIPT, transcript).to_bytes();
        let recording = Recording::new(Bundle::from_reader(Cursor::new(bytes)).unwrap()).unwrap();
        let hook = Arc::new(ReplayHook::new([(recording, CombineMode::AddDelta)]));
        let mut model = model();
        model.patch(hook.clone()).unwrap();
        let ran = model.loss(&tokenizer().encode(TEXT).unwrap()).map_err(|error| error.to_string());
        ran.and_then(|loss| hook.finish().map(|_| loss).map_err(|error| error.to_string()))
    };
    replay(&calls).unwrap();
    calls.last_mut().unwrap().deltas[0].values[0] += 1;
    assert!(replay(&calls).unwrap_err().contains("not those of its receipt"));
    calls.pop();
    assert!(replay(&calls).unwrap_err().contains("not those of its receipt"));
    assert!(replay(&[]).unwrap_err().contains("not those of its receipt"));
}

#[test]
fn llama_is_replayed_with_projections_that_share_an_input() {
    let base = fixtures().join("llama-tiny");
    let world = Programs::of(&base, &fixtures().join("adapters/llama-all"));
    let server = world.serve();
    let mut command = program("zklora-base-user");
    command
        .args(["loss", "--json", "--wait", "--text", TEXT, "--contributor", &server.address])
        .args(["--adapter", &world.adapter, "--base-model"])
        .arg(&base)
        .arg("--identity")
        .arg(world.path("client.key"));
    let run = Run::of(&world, "loss", &mut command);
    let mut audit = program("zklora-base-user");
    audit.args(["audit", "--json", "--unpinned", "--text", TEXT, "--base-model"]).arg(&base).arg(&run.bundle);
    let found = holds(audit.arg("--report").arg(&run.report));
    assert_eq!(found["bundles"][0]["calls"], 8);
}

#[test]
fn several_bundles_are_one_run() {
    let worlds = ["layers-to-transform", "rslora"]
        .map(|name| Programs::of(&gpt2(), &fixtures().join("adapters").join(name)));
    let servers = worlds.each_ref().map(Programs::serve);
    let modes = ["--combine-mode", "replace", "--combine-mode", "add-delta"];
    let mut command = program("zklora-base-user");
    command.args(["loss", "--json", "--wait", "--text", TEXT, "--base-model"]).arg(gpt2());
    for (world, server) in worlds.iter().zip(&servers) {
        command.args(["--contributor", &server.address, "--adapter", &world.adapter]);
    }
    command.args(modes).arg("--identity").arg(worlds[0].path("client.key"));
    let said = success(&mut command);
    let report = worlds[0].path("report.json");
    fs::write(&report, said.to_string()).unwrap();
    let session = |index: usize| bundle(&worlds[index], said["sessions"][index]["session"].as_str().unwrap());
    let bundles = [session(0), session(1)];

    let found = holds(audit_text(TEXT, &[&bundles[0], &bundles[1]]).args(modes).arg("--report").arg(&report));
    close(&found["adapter_loss"]["value"], &said["adapter_loss"]);
    let (_, what) = fails(&mut audit_text(TEXT, &[&bundles[0], &bundles[1]]));
    assert!(what.contains("--combine-mode"), "{what}");
    // Each alone is not what ran.
    for bundle in &bundles {
        fails(&mut audit_text(TEXT, &[bundle]));
    }
    let message = unusable(&mut audit_text(TEXT, &[&bundles[0], &bundles[0]]));
    assert!(message.contains("given twice"), "{message}");
}

#[test]
fn a_bundle_that_does_not_hold_is_not_replayed() {
    let proved = proved();
    let Proved { loss, world, .. } = &*proved;
    let mut bytes = fs::read(&loss.bundle).unwrap();
    let end = bytes.len() - 100;
    bytes[end] ^= 1;
    let changed = world.path("changed.pf");
    fs::write(&changed, bytes).unwrap();
    let (found, _) = fails(&mut audit_text(TEXT, &[&changed]));
    assert_eq!(found["bundles"][0]["error"]["kind"], "format");
    assert_eq!(found["adapter_loss"], Value::Null);

    let other = SecretKey::generate().public().to_string();
    let (found, _) = fails(audit_text(TEXT, &[&loss.bundle]).args(["--contributor", &other]));
    assert_eq!(found["bundles"][0]["error"]["kind"], "contributor-pin");

    let redacted = world.path("redacted.pf");
    let mut redact = program("zklora-base-user");
    redact.arg("redact").arg(&loss.bundle).arg("--out").arg(&redacted).arg("--json");
    redact.arg("--identity").arg(world.path("client.key")).arg("--sessions").arg(world.path("sessions"));
    success(&mut redact);
    let (found, what) = fails(&mut audit_text(TEXT, &[&redacted]));
    assert_eq!(found["bundles"][0]["error"]["kind"], "redacted", "{what}");
    assert!(what.contains("ask for the full one"), "{what}");
}

#[test]
fn what_cannot_be_audited_has_a_code_of_its_own() {
    let proved = proved();
    let Proved { loss, world, .. } = &*proved;
    for (command, why) in [
        (&mut audit_text(TEXT, &[&world.path("none.pf")]), "cannot be opened"),
        (&mut audit_text("", &[&loss.bundle]), "at least 2 tokens"),
        (
            audit_text(TEXT, &[&loss.bundle]).args([
                "--combine-mode",
                "replace",
                "--combine-mode",
                "replace",
            ]),
            "expected one --combine-mode",
        ),
        (audit_text(TEXT, &[&loss.bundle]).args(["--max-tokens", "7"]), "--dataset"),
        (audit_text(TEXT, &[&loss.bundle]).args(["--text-field", "body"]), "--dataset"),
        (&mut audit(&[&loss.bundle]), "--dataset"),
    ] {
        let message = unusable(command);
        assert!(message.contains(why), "{message:?} should contain {why:?}");
    }
}

/// What the tolerance is for: the same text with another number of threads, alone or in a batch, and with the instructions of a much
/// older processor; in a deep model, too.
#[test]
fn rounding_moves_an_activation_by_one_unit_at_most() {
    if let Some(folder) = std::env::var_os(OLDER) {
        return on_older_processor(Path::new(&folder));
    }
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("deep");
    fs::create_dir(&deep).unwrap();
    deep_model(&deep, 48);
    for (name, path) in
        [("gpt2-tiny", gpt2()), ("llama-tiny", fixtures().join("llama-tiny")), ("48 random layers", deep)]
    {
        let one = activations(&path, 1, false);
        let alone = activations(&path, 2, true);
        // Of each input, the rows of all texts.
        let input = |input: usize| alone.iter().skip(input).step_by(one.len()).flatten().copied().collect();
        let alone: Vec<Vec<i16>> = (0..one.len()).map(input).collect();
        let older = older_processor(&path, folder.path());
        for (what, other) in [
            ("2 threads for 1", activations(&path, 2, false).concat()),
            ("alone for together", alone.concat()),
            ("instructions of an older processor", older),
        ] {
            let one = one.iter().flatten();
            assert_eq!(one.clone().count(), other.len());
            let distances: Vec<u32> =
                one.zip(&other).map(|(a, b)| i32::from(*a).abs_diff((*b).into())).collect();
            let differing = distances.iter().filter(|distance| **distance > 0).count();
            let largest = distances.iter().max().unwrap();
            println!("{name}, {what}: {differing} of {} differ, by at most {largest}", distances.len());
            assert!(*largest <= TOLERANCE);
        }
    }
}

/// What every projection of a model reads, input by input, quantised.
fn activations(base: &Path, threads: i32, alone: bool) -> Vec<Vec<i16>> {
    let texts = fs::read_to_string(fixtures().join("text/es-heldout.txt")).unwrap();
    // All of them have the tokens of the smallest vocabulary, and no more than the shortest context.
    let ids: Vec<Vec<i64>> = texts.lines().take(8).map(|line| tokenizer().encode(line).unwrap()).collect();
    let ids: Vec<Vec<i64>> = ids.iter().map(|ids| ids.iter().take(60).map(|id| id % 256).collect()).collect();
    let ids: Vec<&[i64]> = ids.iter().map(Vec::as_slice).filter(|ids| ids.len() > 1).collect();
    tch::set_num_threads(threads);
    let base = BaseModel::open(base).unwrap();
    let mut model = Model::load(&base).unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let names = base.projections().into_iter().map(|projection| projection.name).collect();
    model.patch(Arc::new(Recorded { names, seen: seen.clone() })).unwrap();
    match alone {
        true => ids.iter().for_each(|ids| drop(model.token_losses(&[*ids]).unwrap())),
        false => drop(model.token_losses(&ids).unwrap()),
    }
    model.unpatch();
    std::mem::take(&mut *seen.lock().unwrap())
}

/// The same, of a process in which libtorch and its matrix library believe that they are on an older processor, and add in another
/// order. It is this test once more.
fn older_processor(base: &Path, folder: &Path) -> Vec<i16> {
    fs::write(folder.join("base"), base.to_str().unwrap()).unwrap();
    let status = with_older_instructions(&mut Command::new(std::env::current_exe().unwrap()))
        .args(["--exact", "audit::rounding_moves_an_activation_by_one_unit_at_most"])
        .env(OLDER, folder)
        .status()
        .unwrap();
    assert!(status.success());
    let bytes = fs::read(folder.join("activations")).unwrap();
    bytes.as_chunks().0.iter().map(|bytes| i16::from_le_bytes(*bytes)).collect()
}

fn on_older_processor(folder: &Path) {
    let base = fs::read_to_string(folder.join("base")).unwrap();
    let seen = activations(Path::new(&base), 1, false);
    let bytes: Vec<u8> = seen.iter().flatten().flat_map(|value| value.to_le_bytes()).collect();
    fs::write(folder.join("activations"), bytes).unwrap();
}

fn with_older_instructions(command: &mut Command) -> &mut Command {
    command.env("ATEN_CPU_CAPABILITY", "default").env("MKL_ENABLE_INSTRUCTIONS", "SSE4_2")
}

/// Names the folder for [`on_older_processor`].
const OLDER: &str = "ZKLORA_TEST_OLDER_PROCESSOR";

/// A GPT-2 of so many layers, whose weights are random and keep the length of a row.
fn deep_model(folder: &Path, layers: usize) {
    const WIDTH: usize = 128;
    let config = fs::read(gpt2().join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    (config["n_layer"], config["vocab_size"]) = (json!(layers), json!(256));
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let mut names =
        vec![("wte.weight".to_owned(), vec![256, WIDTH]), ("wpe.weight".to_owned(), vec![256, WIDTH])];
    for (name, columns, rows) in [
        ("attn.c_attn", 3 * WIDTH, WIDTH),
        ("attn.c_proj", WIDTH, WIDTH),
        ("mlp.c_fc", 4 * WIDTH, WIDTH),
        ("mlp.c_proj", WIDTH, 4 * WIDTH),
        ("ln_1", WIDTH, 0),
        ("ln_2", WIDTH, 0),
    ] {
        for layer in 0..layers {
            let weight = if rows == 0 { vec![columns] } else { vec![rows, columns] };
            names.push((format!("h.{layer}.{name}.weight"), weight));
            names.push((format!("h.{layer}.{name}.bias"), vec![columns]));
        }
    }
    names.push(("ln_f.weight".to_owned(), vec![WIDTH]));
    names.push(("ln_f.bias".to_owned(), vec![WIDTH]));
    let mut rng = zklora_testing::rng(1);
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = names
        .into_iter()
        .map(|(name, shape)| {
            let fixed = match (shape.len(), name.ends_with("weight")) {
                (1, weight) => Some(f32::from(u8::from(weight))),
                _ => None,
            };
            // Of variance 1/rows.
            let largest = (3.0 / shape[0].min(4 * WIDTH) as f32).sqrt();
            let entries = shape.iter().product();
            let bytes = (0..entries)
                .flat_map(|_| fixed.unwrap_or_else(|| rng.random_range(-largest..largest)).to_le_bytes());
            (name, shape.clone(), bytes.collect())
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    fs::write(folder.join("model.safetensors"), serialize(views, None).unwrap()).unwrap();
}

/// Notes what every projection reads, quantised.
struct Recorded {
    names: Vec<String>,
    seen: Arc<Mutex<Vec<Vec<i16>>>>,
}

impl Hook for Recorded {
    fn projections(&self) -> Vec<String> {
        self.names.clone()
    }

    fn apply(
        &self,
        projections: &[&str],
        input: &Tensor,
        base: BaseOutput<'_>,
    ) -> anyhow::Result<Vec<Tensor>> {
        self.seen.lock().unwrap().push(quantised(input)?.values);
        (0..projections.len()).map(|place| Ok(base(place)?)).collect()
    }
}

/// Sends one activation of row 1 changed by some units, and goes on with its own.
struct Changed {
    hook: RemoteHook,
    at: &'static str,
    by: i32,
    /// The column, and what is sent.
    place: Arc<Mutex<Option<(usize, i16)>>>,
}

impl Hook for Changed {
    fn projections(&self) -> Vec<String> {
        self.hook.projections()
    }

    fn apply(
        &self,
        projections: &[&str],
        input: &Tensor,
        base: BaseOutput<'_>,
    ) -> anyhow::Result<Vec<Tensor>> {
        if !projections.contains(&self.at) {
            return self.hook.apply(projections, input, base);
        }
        let d_in = input.size()[1] as usize;
        let row = &quantised(input)?.values[d_in..2 * d_in];
        let column = row.iter().position(|x| x.abs() < 1000).unwrap();
        *self.place.lock().unwrap() = Some((column, row[column] + self.by as i16));
        let changed = input.copy();
        let largest = input.get(1).abs().max().double_value(&[]);
        // To the middle of the unit, so that it is that many for certain.
        let value = f64::from(i32::from(row[column]) + self.by) * largest / f64::from(i16::MAX);
        let _ = changed.get(1).get(column as i64).fill_(value);
        self.hook.apply(projections, &changed, base)
    }
}

/// The fixture's base model with other weights of the same shapes.
fn other_model(world: &Programs) -> PathBuf {
    let folder = tempfile::tempdir_in(world.folder.path()).unwrap().keep();
    for entry in fs::read_dir(gpt2()).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
    }
    let weights = folder.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    // A bit of each mantissa: all weights change by a few percent.
    for place in (header..bytes.len()).step_by(4) {
        bytes[place + 2] ^= 0x08;
    }
    fs::write(&weights, bytes).unwrap();
    folder
}

fn bundle(world: &Programs, session: &str) -> PathBuf {
    world.path("out").join(format!("{session}.pf"))
}

/// `audit --json` of bundles with the fixture's base model.
fn audit(bundles: &[&Path]) -> Command {
    let mut command = program("zklora-base-user");
    command.args(["audit", "--json", "--unpinned", "--base-model"]).arg(gpt2()).args(bundles);
    command
}

fn audit_text(text: &str, bundles: &[&Path]) -> Command {
    let mut command = audit(bundles);
    command.args(["--text", text]);
    command
}

fn holds(command: &mut Command) -> Value {
    let output = command.output().unwrap();
    let words = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{words}{}", text(&output.stderr));
    let found: Value = serde_json::from_str(&words).unwrap();
    assert_eq!((&found["format"], &found["holds"]), (&json!("zklora-audit/2"), &json!(true)));
    assert!(found["bundles"].as_array().unwrap().iter().all(|bundle| bundle["replayed"] == true), "{found}");
    found
}

fn does_not_hold(command: &mut Command) -> Value {
    let output = command.output().unwrap();
    let words = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{words}{}", text(&output.stderr));
    let found: Value = serde_json::from_str(&words).unwrap();
    assert_eq!(found["holds"], false);
    found
}

/// What is wrong with the first bundle that was not replayed.
fn fails(command: &mut Command) -> (Value, String) {
    let found = does_not_hold(command);
    let bundles = found["bundles"].as_array().unwrap();
    let errors = bundles.iter().map(|bundle| &bundle["error"]);
    let error = errors.filter(|error| error["kind"] != "not-finished").find(|error| !error.is_null());
    let what = error.unwrap()["what"].as_str().unwrap().to_owned();
    assert_eq!(found["adapter_loss"], Value::Null);
    (found, what)
}

fn unusable(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stdout));
    assert!(output.stdout.is_empty());
    text(&output.stderr)
}

fn close(found: &Value, expected: &Value) {
    let (found, expected) = (found.as_f64().unwrap(), expected.as_f64().unwrap());
    assert!((found - expected).abs() < 1e-5, "found {found}, expected {expected}");
}

fn gpt2() -> PathBuf {
    fixtures().join("gpt2-tiny")
}

fn model() -> Model {
    Model::load(&BaseModel::open(gpt2()).unwrap()).unwrap()
}

fn tokenizer() -> Tokenizer {
    Tokenizer::open(gpt2()).unwrap()
}
