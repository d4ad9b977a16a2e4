//! `loss`, `eval` and `generate` as their users run them, with real contributors.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use zklora_base_user::models::Model;
use zklora_base_user::tokenizer::Tokenizer;
use zklora_hf::{BaseModel, LoraAdapter};
use zklora_testing::schemas::read_document;
use zklora_tests::fixtures;
use zklora_tests::programs::{Programs, Server, failure, program, success, text};

/// The largest difference between a loss with remote, quantised deltas and one in float32.
const TOLERANCE: f64 = 1e-3;

const TEXT: &str = "Debian es un sistema operativo libre.";

#[test]
fn llama_asks_once_for_projections_that_share_an_input() {
    let goldens = goldens("goldens-llama.json");
    for (model, adapter, calls) in [("llama-tiny", "llama-all", 8), ("llama-tiny-tied", "llama-tied-qv", 2)] {
        let golden = goldens["models"].as_array().unwrap().iter().find(|m| m["base_model"] == model).unwrap();
        let outputs = golden["adapters"].as_array().unwrap().iter().find(|a| a["name"] == adapter).unwrap();
        let base = fixtures().join(model);
        let world = Programs::of(&base, &fixtures().join("adapters").join(adapter));
        let server = world.serve();
        for golden in golden["texts"].as_array().unwrap() {
            let found = success(served(&world, "loss", &base, &[&server]).args([
                "--text",
                golden["text"].as_str().unwrap(),
                "--wait",
            ]));
            let name = golden["name"].as_str().unwrap();
            close(&found["base_loss"], &golden["base"]["loss"]);
            close(&found["adapter_loss"], &outputs["outputs"][name]["loss"]);
            // Of each block's projections four inputs, or one if only q and v have an adapter.
            assert_eq!(found["sessions"][0]["calls"], calls);
        }
        server.stop();
        let (report, code) = world.verify();
        assert_eq!(code, 0, "{report}");
    }
}

#[test]
fn several_contributors_add_to_one_model() {
    let base = fixtures().join("gpt2-tiny");
    // Some modules are in both.
    let adapters = ["layers-to-transform", "rslora"].map(|name| fixtures().join("adapters").join(name));
    let worlds = adapters.each_ref().map(|adapter| Programs::of(&base, adapter));
    let servers = worlds.each_ref().map(|world| world.serve());
    let found = success(
        program("zklora-base-user")
            .args(["loss", "--json", "--wait", "--text", TEXT, "--base-model"])
            .arg(&base)
            .args(["--contributor", &servers[0].address, "--contributor", &servers[1].address])
            .args(["--adapter", &worlds[0].adapter, "--adapter", &worlds[1].adapter])
            .arg("--identity")
            .arg(worlds[0].path("client.key")),
    );
    close(&found["adapter_loss"], &json!(merged_loss(&base, &[&adapters[0], &adapters[1]])));
    let sessions = found["sessions"].as_array().unwrap();
    assert_eq!(sessions.len(), 2);
    for (session, world) in sessions.iter().zip(&worlds) {
        assert_eq!(session["adapter"], world.adapter.as_str());
        let (report, code) = world.verify();
        assert_eq!(code, 0, "{report}");
        assert_eq!(report["bundles"].as_array().unwrap().len(), 1);
    }

    // One replaces, the other adds to what it put there.
    let ask = |modes: [&str; 2]| {
        let mut command = served(&worlds[0], "loss", &base, &[&servers[0]]);
        command.args(["--contributor", &servers[1].address, "--adapter", &worlds[1].adapter, "--text", TEXT]);
        success(command.args(modes.map(|mode| ["--combine-mode", mode]).concat()))["adapter_loss"].clone()
    };
    let replaced = ask(["replace", "add-delta"]);
    assert_ne!(replaced, ask(["add-delta", "add-delta"]));
    assert_ne!(replaced, ask(["replace", "replace"]));
}

#[test]
fn eval_weighs_tokens_and_reads_json_lines() {
    let goldens = goldens("goldens.json");
    let base = fixtures().join("gpt2-tiny");
    let world = Programs::new();
    let server = world.serve();
    let (mut lines, mut sums, mut predicted) = (String::new(), [0.0, 0.0], 0.0);
    for golden in goldens["texts"].as_array().unwrap() {
        lines += &format!("{}\n", json!({ "body": golden["text"] }));
        let tokens = golden["token_ids"].as_array().unwrap().len() as f64 - 1.0;
        predicted += tokens;
        for (sum, side) in sums.iter_mut().zip(["base", "adapter"]) {
            *sum += tokens * golden[side]["loss"].as_f64().unwrap();
        }
    }
    lines += "{\"body\": \"\"}\n";
    let dataset = world.path("dataset.jsonl");
    fs::write(&dataset, lines).unwrap();
    let eval = |more: &[&str]| {
        let mut command = served(&world, "eval", &base, &[&server]);
        command.arg("--dataset").arg(&dataset).args(["--text-field", "body"]).args(more);
        command
    };
    // Whatever goes together, the losses are the same.
    for more in [&[][..], &["--batch-tokens", "40"]] {
        let found = success(&mut eval(more));
        assert_eq!(found["predicted"], predicted as u64);
        assert_eq!(found["texts_skipped"], 1);
        for (side, sum) in ["base", "adapter"].iter().zip(sums) {
            let loss = &found[side]["loss"];
            close(&loss["value"], &json!(sum / predicted));
            let [low, value, high] = [&loss["interval"][0], &loss["value"], &loss["interval"][1]]
                .map(|number| number.as_f64().unwrap());
            assert!(low < value && value < high, "{loss}");
            let perplexity = found[side]["perplexity"]["value"].as_f64().unwrap();
            assert!((perplexity - value.exp()).abs() < 1e-9 * perplexity);
        }
        close(&found["difference"]["value"], &json!((sums[1] - sums[0]) / predicted));
    }
    let one_call_each = success(&mut eval(&[]))["sessions"][0]["calls"].clone();
    assert_eq!(
        one_call_each,
        world_modules(&server, &world, &base),
        "all texts of a batch are one call for each module"
    );
    let few = success(&mut eval(&["--max-tokens", "60"]));
    assert!(few["tokens"].as_u64().unwrap() <= 60 && few["texts"].as_u64().unwrap() >= 1, "{few}");
    let words = text(&eval(&[]).env("RUST_LOG", "off").output().unwrap().stdout);
    assert!(words.contains("perplexity"), "{words}");
}

#[test]
fn eval_counts_only_completions_where_there_are_some() {
    let base = fixtures().join("gpt2-tiny");
    let folder = tempfile::tempdir().unwrap();
    let dataset = folder.path().join("labels.jsonl");
    let (question, answer) = ("Debian is a free", " operating system.");
    fs::write(&dataset, format!("{}\n", json!({ "text": question, "label": answer }))).unwrap();
    let found = success(local("eval", &base).arg("--dataset").arg(&dataset));

    let (model, tokenizer) = loaded(&base);
    let from = tokenizer.encode(question).unwrap().len();
    let ids = tokenizer.encode(&format!("{question}{answer}")).unwrap();
    let losses = &model.token_losses(&[&ids]).unwrap()[0][from - 1..];
    assert_eq!(found["predicted"], losses.len());
    close(&found["base"]["loss"]["value"], &json!(losses.iter().sum::<f32>() / losses.len() as f32));
    assert_eq!(found["adapter"], Value::Null);
    assert_eq!(found["sessions"], json!([]));
}

/// The losses are those of transformers on the tokens that the Language Model Evaluation Harness takes for the completion's.
#[test]
fn a_space_before_a_completion_is_a_part_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = folder.path().join("spaces.jsonl");
    let eval = |base: &str, lines: &[(&str, &str)]| {
        let lines = lines
            .iter()
            .map(|(text, completion)| json!({ "text": text, "completion": completion }).to_string());
        fs::write(&dataset, lines.collect::<Vec<_>>().join("\n")).unwrap();
        success(local("eval", &fixtures().join(base)).arg("--dataset").arg(&dataset))
    };
    for (base, text, completion, tokens, loss) in [
        ("gpt2-tiny", "El administrador debe ", "comprobar la red.", 6, 8.645872),
        ("llama-tiny", "El administrador debe ", "comprobar la red.", 17, 7.067901),
        ("gpt2-tiny", "El administrador  ", "debe", 2, 9.281745),
        ("llama-tiny", "El administrador  ", "debe", 5, 8.765286),
        ("gpt2-tiny", "x:\n\n", "Debian es libre", 5, 13.952163),
        ("gpt2-tiny", "El\u{a0}", "sistema", 5, 9.666466),
    ] {
        let found = eval(base, &[(text, completion)]);
        assert_eq!(found["predicted"], tokens, "{base}: {text:?}");
        close(&found["base"]["loss"]["value"], &json!(loss));
        assert_eq!(found["notes"], json!([]));
    }
    let found = eval("gpt2-tiny", &[("El ", "sistema"), ("El", ""), ("", ""), ("Debian is a free", "dom")]);
    assert_eq!((&found["texts"], &found["texts_skipped"]), (&json!(2), &json!(2)));
    assert_eq!(found["notes"][0]["lines"], json!([2, 3]));
    assert_eq!(found["notes"][0]["what"], "left out: the completion is empty");
    assert_eq!(found["notes"][1]["lines"], json!([4, 4]));
    let output =
        local("eval", &fixtures().join("gpt2-tiny")).arg("--dataset").arg(&dataset).output().unwrap();
    let said = text(&output.stderr);
    assert!(
        said.contains("spaces.jsonl, 2 lines from 2 to 3, each: left out: the completion is empty"),
        "{said}"
    );
    assert!(said.contains("spaces.jsonl, line 4: a token has the end of the text"), "{said}");
}

#[test]
fn bytes_that_are_no_text_are_generated_as_replacement_characters() {
    let base = fixtures().join("llama-tiny");
    let world = Programs::of(&base, &fixtures().join("adapters/llama-all"));
    let server = world.serve();
    let generate = |command: &mut Command, prompt: &str, more: &[&str]| {
        success(command.args(["--prompt", prompt, "--max-tokens", "24"]).args(more))
    };
    let greedy = |prompt: &str| {
        generate(&mut local("generate", &base), prompt, &["--temperature", "0"])["text"].clone()
    };
    // What transformers decodes.
    assert_eq!(greedy("Hello"), format!("{0:\u{fffd}<9}no{0:\u{fffd}<13}no", ""));
    assert_eq!(
        greedy("Debian"),
        format!("\u{1f}n\u{16}no{0:\u{fffd}<3}pacJ/\"p ed{0:\u{fffd}<6}ed{0:\u{fffd}<3}", "")
    );
    for seed in 0..10 {
        let found = generate(
            &mut served(&world, "generate", &base, &[&server]),
            "Hello",
            &["--seed", &seed.to_string()],
        );
        assert!(found["sessions"][0]["calls"].as_u64() > Some(0), "{found}");
    }
    // As it is streamed.
    let mut command = program("zklora-base-user");
    command.args([
        "generate",
        "--prompt",
        "Hello",
        "--max-tokens",
        "24",
        "--temperature",
        "0",
        "--base-model",
    ]);
    let streamed = text(&command.arg(&base).output().unwrap().stdout);
    assert!(streamed.starts_with(&format!("Hello{}\n\n", greedy("Hello").as_str().unwrap())), "{streamed}");
}

#[test]
fn eval_says_beforehand_what_does_not_fit() {
    let base = fixtures().join("gpt2-tiny");
    let world = Programs::new();
    let server = world.serve_more(&["--exposure-budget", "0.25"]);
    let dataset = fixtures().join("text/es-heldout.txt");
    let eval = || {
        let mut command = served(&world, "eval", &base, &[&server]);
        command.arg("--dataset").arg(&dataset);
        command
    };
    let message = failure(&mut eval());
    assert!(
        message.contains("may answer 32 more independent rows")
            && message.contains("not even the first text fits, which has 109"),
        "{message}"
    );
    // Nothing was asked.
    let message = failure(&mut eval());
    assert!(message.contains("may answer 32 more"), "{message}");
    let message = failure(eval().arg("--anyway"));
    assert!(message.contains("refuses"), "{message}");
}

#[test]
fn generation_is_the_same_with_the_same_seed_and_as_with_the_adapter_here() {
    let base = fixtures().join("gpt2-tiny");
    let world = Programs::new();
    let server = world.serve();
    let remote = |more: &[&str]| {
        let mut command = served(&world, "generate", &base, &[&server]);
        command.args(["--prompt", "El sistema"]).args(more);
        command
    };
    let draw = ["--seed", "7", "--top-k", "40", "--top-p", "0.95", "--temperature", "0.8"];
    let first = success(&mut remote(&draw));
    assert_eq!(first["text"], success(&mut remote(&draw))["text"]);
    assert_ne!(first["text"], success(&mut remote(&["--seed", "8"]))["text"]);
    // Each token is one row of each module, but the last one, unless that is the model's end of text, which does not count.
    let rows = first["sessions"][0]["rows"].as_array().unwrap();
    let counted = u64::from(first["stopped"] == "after as many tokens as were asked for");
    let expected = first["prompt_tokens"].as_u64().unwrap() + first["tokens"].as_u64().unwrap() - counted;
    assert!(rows.iter().all(|rows| *rows == expected), "{first}");

    let greedy = success(&mut remote(&["--temperature", "0"]));
    let here = |more: &[&str]| {
        let mut command = local("generate", &base);
        command.args(["--prompt", "El sistema", "--temperature", "0", "--lora"]);
        command.arg(fixtures().join("lora-es")).args(more);
        command
    };
    let local = success(&mut here(&[]));
    assert_eq!(greedy["text"], local["text"]);
    assert!(local["tokens"].as_u64().unwrap() > 3, "{local}");
    let short = success(&mut here(&["--max-tokens", "2"]));
    assert_eq!(
        (&short["tokens"], &short["stopped"]),
        (&json!(2), &json!("after as many tokens as were asked for"))
    );

    // A stop text ends it, and is neither printed nor returned.
    let words = local["text"].as_str().unwrap();
    let stop = &words[words.char_indices().nth(words.chars().count() / 2).unwrap().0..];
    let stop = &stop[..stop.char_indices().nth(3).unwrap().0];
    let stopped = success(&mut here(&["--stop", stop]));
    assert_eq!(stopped["text"].as_str().unwrap(), &words[..words.find(stop).unwrap()]);
    assert_eq!(stopped["stopped"], "before a stop text");
    // Without --json the text is streamed, and the same.
    let mut command = program("zklora-base-user");
    command.args([
        "generate",
        "--prompt",
        "El sistema",
        "--max-tokens",
        "12",
        "--temperature",
        "0",
        "--base-model",
    ]);
    let output = command.arg(&base).arg("--lora").arg(fixtures().join("lora-es")).output().unwrap();
    let streamed = text(&output.stdout);
    assert!(streamed.starts_with(&format!("El sistema{words}\n")), "{streamed}");
}

#[test]
fn a_text_comes_from_a_file_or_the_standard_input() {
    let base = fixtures().join("gpt2-tiny");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("text");
    fs::write(&file, TEXT).unwrap();
    let loss = success(local("loss", &base).args(["--text", TEXT]))["base_loss"].clone();
    assert_eq!(loss, success(local("loss", &base).arg("--file").arg(&file))["base_loss"]);
    let mut child = local("loss", &base)
        .args(["--file", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(TEXT.as_bytes()).unwrap();
    let found: Value = read_document(&child.wait_with_output().unwrap().stdout);
    assert_eq!(loss, found["base_loss"]);
}

#[test]
fn wrong_use_is_answered_in_words() {
    let base = fixtures().join("gpt2-tiny");
    let world = Programs::new();
    let server = world.serve();
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty.txt");
    fs::write(&empty, "\n").unwrap();
    for (command, why) in [
        (
            served(&world, "loss", &base, &[&server]).args([
                "--text",
                "a b",
                "--contributor",
                &server.address,
            ]),
            "expected an --adapter for each --contributor, found 1 for 2",
        ),
        (
            served(&world, "loss", &base, &[&server]).args([
                "--text",
                "a b",
                "--combine-mode",
                "replace",
                "--combine-mode",
                "replace",
            ]),
            "expected one --combine-mode, or one for each of 1 contributors, found 2",
        ),
        (local("generate", &base).args(["--prompt", ""]), "the prompt has no tokens"),
        (local("generate", &base).args(["--prompt", "a", "--stop", ""]), "a value is required for '--stop"),
        (
            local("generate", &base).args(["--prompt", &"palabra ".repeat(300)]),
            "the base model takes at most 256; shorten it",
        ),
        (local("eval", &base).arg("--dataset").arg(&empty), "has no text in it"),
        (local("eval", &base).arg("--dataset").arg(folder.path().join("none")), "cannot read"),
    ] {
        let output = command.output().unwrap();
        let message = text(&output.stderr);
        assert!(message.contains(why), "{message:?} should contain {why:?}");
        // What is wrong with the arguments themselves is told from what is wrong with what they name.
        let code = if message.contains("expected a")
            || message.contains("expected one")
            || message.contains("--stop")
        {
            2
        } else {
            1
        };
        assert_eq!(output.status.code(), Some(code), "{message}");
    }
    let usage = local("generate", &base).args(["--prompt", "a", "--top-p", "2"]).output().unwrap();
    assert_eq!(usage.status.code(), Some(2));
    assert!(text(&usage.stderr).contains("a number from 0 to 1"));
}

/// A command with the contributors of a world, printing JSON.
fn served(world: &Programs, command: &str, base: &Path, servers: &[&Server]) -> Command {
    let mut command = local(command, base);
    for server in servers {
        command.args(["--contributor", &server.address, "--adapter", &world.adapter]);
    }
    command.arg("--identity").arg(world.path("client.key"));
    command
}

/// A command without contributors, printing JSON.
fn local(command: &str, base: &Path) -> Command {
    let mut program = program("zklora-base-user");
    program.args([command, "--json", "--base-model"]).arg(base);
    program
}

/// The number of modules of the world's adapter: those of a session.
fn world_modules(server: &Server, world: &Programs, base: &Path) -> usize {
    let found = success(served(world, "loss", base, &[server]).args(["--text", TEXT]));
    found["sessions"][0]["rows"].as_array().unwrap().len()
}

fn loaded(base: &Path) -> (Model, Tokenizer) {
    (Model::load(&BaseModel::open(base).unwrap()).unwrap(), Tokenizer::open(base).unwrap())
}

fn merged_loss(base: &Path, adapters: &[&Path]) -> f64 {
    let (mut model, tokenizer) = loaded(base);
    for adapter in adapters {
        let projections = BaseModel::open(base).unwrap().projections();
        model.merge(&LoraAdapter::open(adapter, &projections).unwrap()).unwrap();
    }
    model.loss(&tokenizer.encode(TEXT).unwrap()).unwrap()
}

fn goldens(name: &str) -> Value {
    serde_json::from_slice(&fs::read(fixtures().join(name)).unwrap()).unwrap()
}

fn close(found: &Value, expected: &Value) {
    let (found, expected) = (found.as_f64().unwrap(), expected.as_f64().unwrap());
    assert!((found - expected).abs() < TOLERANCE, "found {found}, expected {expected}");
}
