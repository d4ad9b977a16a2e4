//! The main job, with all three programs.

use zklora_hf::BaseModel;
use zklora_tests::fixtures;
use zklora_tests::programs::{Programs, program, success, text};

/// The largest difference between a loss with remote, quantised deltas and peft's in float32.
const TOLERANCE: f64 = 1e-3;

#[test]
fn losses_are_those_of_peft_and_every_bundle_verifies() {
    let goldens: serde_json::Value =
        serde_json::from_slice(&std::fs::read(fixtures().join("goldens.json")).unwrap()).unwrap();
    let world = Programs::new();
    let server = world.serve();
    let mut worst = 0f64;
    let texts = goldens["texts"].as_array().unwrap();
    for golden in texts {
        // Each session is opened while the one before may still be being proved.
        let found = success(&mut world.loss(&server.address, golden["text"].as_str().unwrap()));
        for (field, golden) in
            [("base_loss", &golden["base"]["loss"]), ("adapter_loss", &golden["adapter"]["loss"])]
        {
            let error = (found[field].as_f64().unwrap() - golden.as_f64().unwrap()).abs();
            assert!(error <= TOLERANCE, "{field}: {error}");
            worst = worst.max(error);
        }
        assert_eq!(found["tokens"].as_u64().unwrap() as usize, golden["token_ids"].as_array().unwrap().len());
    }
    println!("largest error of a loss against peft's: {worst:.1e} nats");
    world.wait_for_bundles(texts.len());
    server.stop();

    let (report, code) = world.verify();
    assert_eq!(code, 0, "{report}");
    assert_eq!(report["bundles"].as_array().unwrap().len(), texts.len());
}

#[test]
fn the_adapter_matters() {
    let world = Programs::new();
    let server = world.serve();
    let spanish = std::fs::read_to_string(fixtures().join("text/es-heldout.txt")).unwrap();
    let found = success(world.loss(&server.address, spanish.lines().nth(3).unwrap()).arg("--wait"));
    let gain = found["base_loss"].as_f64().unwrap() - found["adapter_loss"].as_f64().unwrap();
    assert!(gain > 0.5, "{gain}");
    assert!(found["sessions"][0]["bundle_bytes"].as_u64().unwrap() > 100_000);
    assert!(found["sessions"][0]["rows"].as_array().unwrap().iter().all(|rows| *rows == found["tokens"]));
}

#[test]
fn the_delta_may_replace_the_output() {
    let world = Programs::new();
    let server = world.serve();
    let text = "Debian is a free operating system.";
    let added = success(&mut world.loss(&server.address, text));
    let replaced = success(world.loss(&server.address, text).args(["--combine-mode", "replace"]));
    assert_eq!(added["base_loss"], replaced["base_loss"]);
    assert_ne!(added["adapter_loss"], replaced["adapter_loss"]);
}

#[test]
fn people_get_sentences() {
    let world = Programs::new();
    let server = world.serve();
    let output = program("zklora-base-user")
        .args(["loss", "--wait", "--contributor", &server.address, "--adapter", &world.adapter])
        .args(["--text", "Debian es un sistema operativo libre."])
        .arg("--base-model")
        .arg(fixtures().join("gpt2-tiny"))
        .arg("--identity")
        .arg(world.path("client.key"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let stdout = text(&output.stdout);
    for expected in ["loss of the base model", "loss with the adapter", "signed by both"] {
        assert!(stdout.contains(expected), "{stdout}");
    }
    server.stop();
    let output = program("zklora-verifier")
        .args(["verify", "--adapter", &world.adapter, "--proof-dir"])
        .arg(world.path("out"))
        .output()
        .unwrap();
    let stdout = text(&output.stdout);
    assert!(output.status.success() && stdout.contains("Done verifying"), "{stdout}");
}

/// What third parties are shown.
#[test]
fn the_example_gets_a_bundle_that_holds() {
    let world = Programs::new();
    let server = world.serve();
    let base_model = BaseModel::open(fixtures().join("gpt2-tiny")).unwrap().digest().to_string();
    let mut example = program("examples/verified_bundle");
    example.args([&server.address, &world.adapter, &base_model]).arg(world.path("fetched"));
    let output = example.output().unwrap();
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}{}", text(&output.stderr));
    assert!(said.contains("every delta is the adapter's"), "{said}");
    let mut verify = program("zklora-verifier");
    verify.args(["verify", "--adapter", &world.adapter]).arg(world.path("fetched"));
    assert_eq!(verify.output().unwrap().status.code(), Some(0));
    // Of another adapter it takes nothing.
    let mut example = program("examples/verified_bundle");
    example.args([&server.address, &"ab".repeat(32), &base_model]).arg(world.path("other"));
    assert!(!example.output().unwrap().status.success() && !world.path("other").exists());
    server.stop();
}
