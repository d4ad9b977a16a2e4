//! The exact model on the command line: calibration, losses in the clear, and how far they are from float32.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use zklora_tests::fixtures;
use zklora_tests::programs::{failure, program, success};

/// The plan that a text makes for a base model of the fixtures.
pub fn calibrate(base: &str, text: &str, plan: &Path) -> Command {
    let mut command = program("zklora-base-user");
    command.args(["exact", "calibrate", "--json", "--base-model"]).arg(fixtures().join(base));
    command.arg("--dataset").arg(fixtures().join("text").join(text)).arg("--out").arg(plan);
    command
}

/// The exact loss of a text.
pub fn loss(plan: &Path, text: &str) -> Command {
    let mut command = program("zklora-base-user");
    command.args(["loss", "--json", "--base-model"]).arg(fixtures().join("gpt2-tiny"));
    command.args(["--text", text, "--exact"]).arg(plan);
    command
}

#[test]
fn anyone_gets_the_same_plan_and_the_same_losses() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second, other] = ["first", "second", "other"].map(|name| folder.path().join(name));
    let said = success(&mut calibrate("gpt2-tiny", "en-heldout.txt", &first));
    let again = success(calibrate("gpt2-tiny", "en-heldout.txt", &second).env("RAYON_NUM_THREADS", "1"));
    assert_eq!(fs::read(&first).unwrap(), fs::read(&second).unwrap());
    assert_eq!(said["exact_model"], again["exact_model"]);
    let long = success(calibrate("gpt2-tiny", "en-heldout.txt", &other).args(["--profile", "long"]));
    assert_ne!(said["exact_model"], long["exact_model"]);

    let text = "El administrador debe comprobar la configuración de la red.";
    let with = |command: &mut Command| success(command.arg("--lora").arg(fixtures().join("lora-es")));
    let found = with(&mut loss(&first, text));
    let again = with(loss(&second, text).env("RAYON_NUM_THREADS", "1"));
    assert_eq!(found, again);
    assert_eq!(found["exact_model"], said["exact_model"]);
    assert_eq!(found["adapter_id"], Value::Null);
    let units = |found: &Value, part: &str| found[part]["units"].as_str().unwrap().parse::<i64>().unwrap();
    let nats = found["predicted"].as_f64().unwrap() * found["adapter"]["nats"].as_f64().unwrap();
    let from_units = units(&found, "adapter") as f64 * 2f64.powi(-25) * std::f64::consts::LN_2;
    assert!((nats - from_units).abs() < 1e-9, "{nats} {from_units}");
    assert!(units(&found, "adapter") < units(&found, "base"));
    // Known answers: they are the same on every machine.
    assert_eq!(said["exact_model"], "7d8a231acbd441db9dd1a110051162efc049f3d1c39f03e17cb2d48d307e12de");
    let known = with(&mut loss(&first, "El administrador debe comprobar la red."));
    assert_eq!((units(&known, "base"), units(&known, "adapter")), (3_590_245_840, 2_489_558_996));
    let alone = success(&mut loss(&first, text));
    assert_eq!((&alone["base"], &alone["adapter"]), (&found["base"], &Value::Null));
}

#[test]
fn exact_losses_are_near_those_of_float32_on_all_held_out_texts() {
    let folder = tempfile::tempdir().unwrap();
    let plan = folder.path().join("plan");
    success(&mut calibrate("gpt2-tiny", "en-heldout.txt", &plan));
    for text in ["en-heldout.txt", "es-heldout.txt"] {
        let mut command = program("zklora-base-user");
        command.args(["exact", "fidelity", "--json", "--base-model"]).arg(fixtures().join("gpt2-tiny"));
        command.arg("--exact").arg(&plan).arg("--dataset").arg(fixtures().join("text").join(text));
        let found = success(command.arg("--lora").arg(fixtures().join("lora-es")));
        for part in ["base", "adapter"] {
            let found = &found[part];
            assert_eq!(found["refused"], 0, "{text}: {found}");
            assert!(found["mean"].as_f64().unwrap().abs() < 0.005, "{text}: {found}");
            assert!(found["worst"].as_f64().unwrap() < 0.03, "{text}: {found}");
        }
    }
}

#[test]
fn what_is_no_plan_of_this_model_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let plan = folder.path().join("plan");
    let error = failure(&mut calibrate("llama-tiny", "en-heldout.txt", &plan));
    assert!(error.contains("an exact model exists of gpt2 alone"), "{error}");
    success(&mut calibrate("gpt2-tiny", "en-heldout.txt", &plan));
    let error = failure(&mut calibrate("gpt2-tiny", "en-heldout.txt", &plan));
    assert!(error.contains("is there already"), "{error}");
    let whole = fs::read_to_string(&plan).unwrap();
    for (content, expected) in [
        (whole.replacen("\"base_model\":\"6", "\"base_model\":\"7", 1), "the plan is for base model 7"),
        (whole.replacen("\"residual_bits\":", "\"residual_bits\":1", 1), "residual_bits is"),
        (whole.replace('\n', ""), "not written as calibration writes it"),
        ("{}".into(), "no plan of an exact model"),
    ] {
        assert_ne!(content, whole);
        fs::write(&plan, content).unwrap();
        let error = failure(&mut loss(&plan, "Un texto"));
        assert!(error.contains(expected), "{error}");
    }
    let error = failure(&mut loss(&folder.path().join("none"), "Un texto"));
    assert!(error.contains("cannot read"), "{error}");
    fs::write(&plan, &whole).unwrap();
    let error = failure(&mut loss(&plan, ""));
    assert!(error.contains("the text has 0 tokens, expected 2 to 256"), "{error}");
    let error = failure(&mut loss(&plan, "a"));
    assert!(error.contains("the text has 1 tokens, expected 2 to 256"), "{error}");
}
