//! The base model, and the base model with a LoRA adapter applied in float32, against what transformers and PEFT
//! computed (`fixtures/goldens.json`, made by `scripts/make_fixtures.py`).

use std::fs;

use serde::Deserialize;
use zklora_base_user::models::Model;
use zklora_base_user::tokenizer::Tokenizer;
use zklora_hf::{BaseModel, LoraAdapter};

mod expected;
mod local_lora;

use expected::{GoldenModules, Outputs, Worst, adapted, compare_modules, compare_outputs, fixtures, goldens};

#[test]
fn token_ids_are_those_of_transformers() {
    let goldens: Goldens = goldens("goldens.json");
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
    check_outputs("base model", &Model::load(&base()).unwrap(), |text| &text.base);
}

#[test]
fn a_local_adapter_computes_what_peft_does() {
    let base = base();
    let (model, _) = adapted(&base, &adapter(&base));
    check_outputs("with adapter", &model, |text| &text.adapter);
}

#[test]
fn each_module_gives_the_delta_that_peft_gives() {
    let goldens: Goldens = goldens("goldens.json");
    let base = base();
    let text = goldens.texts.iter().find(|text| text.name == goldens.modules.text).unwrap();
    let mut worst = Worst::default();
    compare_modules(&mut worst, &base, &adapter(&base), &text.token_ids, &goldens.modules.samples);
    worst.report("modules");
}

#[test]
fn unpatching_gives_the_base_model_back() {
    let goldens: Goldens = goldens("goldens.json");
    let ids = &goldens.texts[0].token_ids;
    let base = base();
    let plain = Model::load(&base).unwrap().loss(ids).unwrap();
    let (mut model, _) = adapted(&base, &adapter(&base));
    assert_ne!(model.loss(ids).unwrap(), plain);
    model.unpatch();
    assert_eq!(model.loss(ids).unwrap(), plain);
}

fn check_outputs(what: &str, model: &Model, golden: fn(&GoldenText) -> &Outputs) {
    let goldens: Goldens = goldens("goldens.json");
    let mut worst = Worst::default();
    for text in &goldens.texts {
        compare_outputs(
            &mut worst,
            &text.name,
            model,
            &text.token_ids,
            &goldens.logit_token_ids,
            golden(text),
        );
    }
    worst.report(what);
}

fn base() -> BaseModel {
    BaseModel::open(fixtures().join("gpt2-tiny")).unwrap()
}

fn adapter(base: &BaseModel) -> LoraAdapter {
    LoraAdapter::open(fixtures().join("lora-es"), &base.projections()).unwrap()
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
