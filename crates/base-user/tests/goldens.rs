//! The base model, and the base model with a LoRA adapter applied in float32, against what transformers and PEFT
//! computed (`fixtures/goldens.json`, made by `scripts/make_fixtures.py`).

mod local_lora;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use local_lora::{LastRow, LocalLora, values};
use serde::Deserialize;
use zklora_base_user::models::Model;
use zklora_base_user::tokenizer::Tokenizer;
use zklora_hf::{BaseModel, LoraAdapter};

/// Of logits, losses in nats, and deltas: what float32 sums in another order may differ by, with a margin.
const TOLERANCE: f64 = 1e-3;

#[test]
fn token_ids_are_those_of_transformers() {
    let goldens = goldens();
    let tokenizer = Tokenizer::open(fixtures().join("gpt2-tiny")).unwrap();
    for text in &goldens.texts {
        assert_eq!(tokenizer.encode(&text.text).unwrap(), text.token_ids, "{}", text.name);
    }

    // The older pair of files means the same tokenizer.
    let folder = tempfile::tempdir().unwrap();
    for file in ["vocab.json", "merges.txt"] {
        fs::copy(fixtures().join("gpt2-tiny").join(file), folder.path().join(file)).unwrap();
    }
    let tokenizer = Tokenizer::open(folder.path()).unwrap();
    for text in &goldens.texts {
        assert_eq!(tokenizer.encode(&text.text).unwrap(), text.token_ids, "{}", text.name);
    }
}

#[test]
fn the_base_model_computes_what_transformers_does() {
    let goldens = goldens();
    let model = Model::load(&base()).unwrap();
    check_outputs("base model", &model, &goldens, |text| &text.base);
}

#[test]
fn a_local_adapter_computes_what_peft_does() {
    let goldens = goldens();
    let model = adapted().0;
    check_outputs("with adapter", &model, &goldens, |text| &text.adapter);
}

#[test]
fn each_module_gives_the_delta_that_peft_gives() {
    let goldens = goldens();
    let (model, lora) = adapted();
    let text = goldens.texts.iter().find(|text| text.name == goldens.modules.text).unwrap();
    model.loss(&text.token_ids).unwrap();

    let found = lora.last_rows();
    let found_names: Vec<&String> = found.keys().collect();
    let golden_names: Vec<&String> = goldens.modules.samples.keys().collect();
    assert_eq!(found_names, golden_names);
    let mut worst = Worst::default();
    for (name, golden) in &goldens.modules.samples {
        let LastRow { input, delta } = &found[name];
        worst.compare(&format!("input of {name}"), &golden.input, input);
        worst.compare(&format!("delta of {name}"), &golden.delta, delta);
    }
    worst.report("modules");
}

#[test]
fn unpatching_gives_the_base_model_back() {
    let goldens = goldens();
    let ids = &goldens.texts[0].token_ids;
    let plain = Model::load(&base()).unwrap().loss(ids).unwrap();
    let mut model = adapted().0;
    assert_ne!(model.loss(ids).unwrap(), plain);
    model.unpatch();
    assert_eq!(model.loss(ids).unwrap(), plain);
}

fn check_outputs(what: &str, model: &Model, goldens: &Goldens, golden: fn(&GoldenText) -> &Outputs) {
    let mut worst_logit = Worst::default();
    let mut worst_loss = Worst::default();
    for text in &goldens.texts {
        let golden = golden(text);
        let logits = model.logits(&text.token_ids).unwrap();
        for at in &golden.logits {
            let all = values(&logits.get(at.position));
            let sampled: Vec<f64> = goldens.logit_token_ids.iter().map(|&id| all[id]).collect();
            worst_logit.compare(&format!("{} at {}", text.name, at.position), &at.values, &sampled);
        }
        let last = values(&logits.get(-1));
        let top: Vec<f64> = golden.top5.token_ids.iter().map(|&id| last[id]).collect();
        worst_logit.compare(&format!("top 5 of {}", text.name), &golden.top5.values, &top);
        let loss = model.loss(&text.token_ids).unwrap();
        worst_loss.compare(&text.name, &[golden.loss], &[loss]);
    }
    worst_logit.report(&format!("{what}, logits"));
    worst_loss.report(&format!("{what}, losses"));
}

/// The base model with the fixture's adapter.
fn adapted() -> (Model, Arc<LocalLora>) {
    let base = base();
    let lora = Arc::new(LocalLora::new(
        &LoraAdapter::open(fixtures().join("lora-es"), &base.projections()).unwrap(),
    ));
    let mut model = Model::load(&base).unwrap();
    model.patch(lora.clone()).unwrap();
    (model, lora)
}

fn base() -> BaseModel {
    BaseModel::open(fixtures().join("gpt2-tiny")).unwrap()
}

fn goldens() -> Goldens {
    serde_json::from_slice(&fs::read(fixtures().join("goldens.json")).unwrap()).unwrap()
}

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

/// The largest difference met so far, and where.
#[derive(Default)]
struct Worst {
    error: f64,
    at: String,
    compared: usize,
}

impl Worst {
    /// `found` may go on after the values that `expected` samples.
    fn compare(&mut self, at: &str, expected: &[f64], found: &[f64]) {
        assert!(!expected.is_empty() && found.len() >= expected.len(), "{at}");
        for (expected, found) in expected.iter().zip(found) {
            let error = (expected - found).abs();
            assert!(error <= TOLERANCE, "{at}: expected {expected}, found {found}");
            self.compared += 1;
            if error > self.error {
                self.error = error;
                self.at = at.to_owned();
            }
        }
    }

    fn report(&self, what: &str) {
        println!("{what}: largest error of {} is {:.1e} ({})", self.compared, self.error, self.at);
    }
}

#[derive(Deserialize)]
struct Goldens {
    logit_token_ids: Vec<usize>,
    texts: Vec<GoldenText>,
    modules: GoldenModules,
}

#[derive(Deserialize)]
struct GoldenText {
    name: String,
    text: String,
    token_ids: Vec<i64>,
    base: Outputs,
    adapter: Outputs,
}

#[derive(Deserialize)]
struct Outputs {
    loss: f64,
    logits: Vec<GoldenLogits>,
    top5: Top,
}

#[derive(Deserialize)]
struct GoldenLogits {
    position: i64,
    values: Vec<f64>,
}

#[derive(Deserialize)]
struct Top {
    token_ids: Vec<usize>,
    values: Vec<f64>,
}

#[derive(Deserialize)]
struct GoldenModules {
    text: String,
    samples: BTreeMap<String, ModuleSample>,
}

#[derive(Deserialize)]
struct ModuleSample {
    input: Vec<f64>,
    delta: Vec<f64>,
}
