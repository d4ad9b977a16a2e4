//! Each form that plain LoRA takes in PEFT, applied in float32, against what transformers and PEFT computed
//! (`fixtures/goldens-kinds.json`, and `goldens-llama.json` for Llama, made by `scripts/make_fixtures.py`); and adapters that have to be refused.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;
use zklora_base_user::models::Model;
use zklora_base_user::tokenizer::Tokenizer;
use zklora_hf::{BaseModel, LoraAdapter};

use crate::expected::{
    GoldenModules, Outputs, Worst, adapted, compare_modules, compare_outputs, fixtures, goldens,
};

#[test]
fn the_base_model_computes_what_transformers_does() {
    for golden in &all_goldens() {
        let base = golden.open();
        let model = Model::load(&base).unwrap();
        let tokenizer = Tokenizer::open(base.folder()).unwrap();
        let mut worst = Worst::default();
        for text in &golden.texts {
            assert_eq!(tokenizer.encode(&text.text).unwrap(), text.token_ids, "{}", text.name);
            compare_outputs(
                &mut worst,
                &text.name,
                &model,
                &text.token_ids,
                &golden.logit_token_ids,
                &text.base,
            );
        }
        worst.report(&golden.base_model);
    }
}

#[test]
fn each_kind_of_adapter_computes_what_peft_does() {
    let goldens = all_goldens();
    for golden in &goldens {
        for expected in &golden.adapters {
            golden.check(&fixtures().join("adapters").join(&expected.name), expected);
        }
    }
    let tested: BTreeSet<&str> =
        goldens.iter().flat_map(|model| &model.adapters).map(|adapter| adapter.name.as_str()).collect();
    for folder in fs::read_dir(fixtures().join("adapters")).unwrap() {
        let name = folder.unwrap().file_name().into_string().unwrap();
        assert!(tested.contains(name.as_str()), "there are no goldens for {name}");
    }
}

/// PEFT writes the names of all linear layers instead; other tools leave the word.
#[test]
fn all_linear_may_be_a_word() {
    let goldens: Goldens = goldens("goldens-kinds.json");
    let golden = &goldens.models[0];
    let expected = golden.adapters.iter().find(|adapter| adapter.name == "target-all-linear").unwrap();
    let folder = changed(&expected.name, &[("target_modules", json!("all-linear"))]);
    golden.check(folder.path(), expected);
}

#[test]
fn whatever_is_more_than_lora_is_refused() {
    for (adapter, why) in [
        ("dora", "use_dora is set: DoRA rescales the base model's weights"),
        ("bias", "bias is \"lora_only\", only \"none\" is supported"),
        ("modules-to-save", "modules_to_save is set: whole retrained modules come with the adapter"),
        ("embedding", "wte.lora_embedding_A: LoRA on an embedding is not supported"),
        (
            "trainable-tokens",
            "trainable_token_indices is set: retrained token embeddings are not LoRA deltas",
        ),
    ] {
        let message = refusal(&fixtures().join("unsupported").join(adapter));
        assert!(message.contains(why), "{message:?} should contain {why:?}");
    }

    // The tensors betray what the configuration conceals.
    for (adapter, setting, why) in [
        ("dora", "use_dora", "a DoRA magnitude"),
        ("bias", "bias", "a changed bias is not a LoRA delta"),
        (
            "modules-to-save",
            "modules_to_save",
            "tensor base_model.model.transformer.ln_f.bias: a changed bias",
        ),
        ("trainable-tokens", "trainable_token_indices", "retrained token embeddings"),
    ] {
        let folder = changed(&format!("../unsupported/{adapter}"), &[(setting, Value::Null)]);
        let message = refusal(folder.path());
        assert!(message.contains(why), "{message:?} should contain {why:?}");
    }
}

#[test]
fn a_pickle_is_refused() {
    let folder = changed("target-names", &[]);
    fs::rename(folder.path().join("adapter_model.safetensors"), folder.path().join("adapter_model.bin"))
        .unwrap();
    let message = refusal(folder.path());
    assert!(message.contains("only adapter_model.bin is there, a pickle"), "{message}");
}

#[test]
fn a_configuration_that_does_not_fit_the_tensors_is_refused() {
    for (adapter, changes, why) in [
        (
            "target-suffixes",
            vec![("target_modules", json!(["attn.c_proj"]))],
            "does not target transformer.h.1.mlp.c_proj, but adapter_model.safetensors has tensors for it",
        ),
        (
            "target-names",
            vec![("target_modules", json!(["attn.c_attn", "h.2.mlp.c_proj"]))],
            "targets transformer.h.1.attn.c_attn, but adapter_model.safetensors has no tensors for it",
        ),
        (
            "target-regex",
            vec![("target_modules", json!(r".*\.h\.\d\.(attn\.c_(attn|proj)|mlp\.c_fc)"))],
            "targets transformer.h.1.attn.c_attn, but",
        ),
        (
            "layers-to-transform",
            vec![("layers_to_transform", json!(2))],
            "does not target transformer.h.0.attn.c_attn",
        ),
        (
            "layers-pattern",
            vec![("layers_pattern", json!(["layers"]))],
            "does not target transformer.h.1.attn.c_attn",
        ),
        (
            "exclude-modules",
            vec![("exclude_modules", json!(null))],
            "targets transformer.h.0.mlp.c_proj, but",
        ),
        ("headless", vec![("target_modules", json!(r"transformer\..*"))], "does not target h.0.attn.c_attn"),
        (
            "rank-pattern",
            vec![("rank_pattern", json!({}))],
            "lora_A.weight has shape [3, 128], expected [2, 128]",
        ),
        (
            "target-regex",
            vec![("target_modules", json!(r"^(?!.*h\.1).*c_(attn|fc)"))],
            "not a simple regular expression that means the same here as in Python; name the modules",
        ),
        ("rslora", vec![("init_lora_weights", json!("pissa"))], "which changes the base model's weights too"),
    ] {
        let folder = changed(adapter, &changes);
        let message = refusal(folder.path());
        assert!(message.contains(why), "{message:?} should contain {why:?}");
    }
}

/// Of GPT-2 and of Llama.
fn all_goldens() -> Vec<GoldenModel> {
    ["goldens-kinds.json", "goldens-llama.json"]
        .into_iter()
        .flat_map(|file| goldens::<Goldens>(file).models)
        .collect()
}

/// A copy of an adapter in the fixtures, its configuration changed.
fn changed(adapter: &str, changes: &[(&str, Value)]) -> TempDir {
    let from = fixtures().join("adapters").join(adapter);
    let folder = tempfile::tempdir().unwrap();
    let tensors = "adapter_model.safetensors";
    fs::copy(from.join(tensors), folder.path().join(tensors)).unwrap();
    let mut config: Value =
        serde_json::from_slice(&fs::read(from.join("adapter_config.json")).unwrap()).unwrap();
    for (setting, value) in changes {
        config[setting] = value.clone();
    }
    fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();
    folder
}

/// Why an adapter of the GPT-2 fixture is refused.
fn refusal(adapter: &Path) -> String {
    let base = BaseModel::open(fixtures().join("gpt2-tiny")).unwrap();
    LoraAdapter::open(adapter, &base.projections()).unwrap_err().to_string()
}

#[derive(Deserialize)]
struct Goldens {
    models: Vec<GoldenModel>,
}

#[derive(Deserialize)]
struct GoldenModel {
    base_model: String,
    logit_token_ids: Vec<usize>,
    texts: Vec<GoldenText>,
    adapters: Vec<GoldenAdapter>,
}

impl GoldenModel {
    fn open(&self) -> BaseModel {
        BaseModel::open(fixtures().join(&self.base_model)).unwrap()
    }

    /// Applies the adapter in `folder` and compares all that it computes.
    fn check(&self, folder: &Path, expected: &GoldenAdapter) {
        let base = self.open();
        let adapter = LoraAdapter::open(folder, &base.projections()).unwrap();
        let (model, _) = adapted(&base, &adapter);
        let mut worst = Worst::default();
        for text in &self.texts {
            let at = format!("{} with {}", text.name, expected.name);
            let outputs = &expected.outputs[&text.name];
            compare_outputs(&mut worst, &at, &model, &text.token_ids, &self.logit_token_ids, outputs);
        }
        let text = self.texts.iter().find(|text| text.name == expected.modules.text).unwrap();
        compare_modules(&mut worst, &base, &adapter, &text.token_ids, &expected.modules.samples);
        worst.report(&expected.name);
    }
}

#[derive(Deserialize)]
struct GoldenText {
    name: String,
    text: String,
    token_ids: Vec<i64>,
    base: Outputs,
}

#[derive(Deserialize)]
struct GoldenAdapter {
    name: String,
    outputs: BTreeMap<String, Outputs>,
    modules: GoldenModules,
}
