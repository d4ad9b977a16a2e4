//! The base model, and the base model with a LoRA adapter applied in float32, against what transformers and PEFT
//! computed (`fixtures/goldens.json`, made by `scripts/make_fixtures.py`).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
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
fn token_ids_are_those_of_transformers() {
    let goldens: Goldens = goldens("goldens.json");
    let tokenizer = Tokenizer::open(fixtures().join("gpt2-tiny")).unwrap();
    for text in &goldens.texts {
        assert_eq!(tokenizer.encode(&text.text).unwrap(), text.token_ids, "{}", text.name);
    }

    // The older pair of files means the same tokenizer.
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "vocab.json", "merges.txt"] {
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

/// Losses of transformers 5.23.0 for the tokens 5 to 44.
#[test]
fn configurations_mean_what_they_mean_to_transformers() {
    let linear = json!({ "type": "linear", "factor": 4 });
    let both_kinds = json!({ "rope_type": "linear", "type": "linear", "factor": 4 });
    let llama3 = |original: Option<u64>| {
        let mut rope = json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 1e4
        });
        if let Some(original) = original {
            rope["original_max_position_embeddings"] = json!(original);
        }
        rope
    };
    for (name, settings, loss) in [
        ("llama-tiny", json!({}), 7.482643),
        ("llama-tiny", json!({ "hidden_act": "swish" }), 7.482643),
        ("llama-tiny", json!({ "max_position_embeddings": 4194304 }), 7.482643),
        ("llama-tiny", json!({ "rope_theta": null }), 7.482643),
        ("llama-tiny", json!({ "rope_scaling": linear }), 7.450973),
        ("llama-tiny", json!({ "rope_scaling": both_kinds }), 7.450973),
        ("llama-tiny", json!({ "rope_parameters": null, "rope_theta": 500 }), 7.852474),
        (
            "llama-tiny",
            json!({ "rope_parameters": null, "rope_theta": 500.0, "rope_scaling": linear }),
            7.436771,
        ),
        ("llama-tiny", json!({ "rope_parameters": { "rope_type": "linear", "factor": 0.5 } }), 7.522450),
        ("llama-tiny", json!({ "rope_parameters": llama3(None) }), 7.297502),
        ("llama-tiny", json!({ "rope_parameters": llama3(Some(32)) }), 7.295653),
        (
            "llama-tiny",
            json!({ "rope_parameters": llama3(Some(32)), "original_max_position_embeddings": 16 }),
            7.180166,
        ),
        ("llama-tiny", json!({ "rope_parameters": llama3(None), "rope_scaling": linear }), 7.450973),
        ("gpt2-tiny", json!({}), 5.911207),
        ("gpt2-tiny", json!({ "num_attention_heads": 2 }), 5.926064),
        ("gpt2-tiny", json!({ "n_head": 2, "num_attention_heads": 4 }), 5.911207),
        ("gpt2-tiny", json!({ "activation_function": "gelu_pytorch_tanh", "n_ctx": 5 }), 5.911207),
    ] {
        let folder = changed(name, &settings, |_| {});
        let found = loss_of(folder.path());
        assert!((found - loss).abs() < 2e-5, "{name} {settings}: {found}, expected {loss}");
    }
}

/// Losses of transformers 5.23.0 for the tokens 5 to 44, whichever names the embedding and the head are stored under.
#[test]
fn heads_are_those_that_transformers_finds() {
    for (name, embedding, tied, untied) in [
        ("gpt2-tiny", "transformer.wte.weight", 5.911207, 5.785722),
        ("llama-tiny-tied", "model.embed_tokens.weight", 7.497552, 6.273085),
    ] {
        let opened = |change: &dyn Fn(&mut Tensors)| {
            let folder = changed(name, &json!({}), change);
            (loss_of(folder.path()), BaseModel::open(folder.path()).unwrap().digest())
        };
        let plain = opened(&|_| {});
        let only_head = opened(&|tensors| {
            let embedding = tensors.remove(embedding).unwrap();
            tensors.insert("lm_head.weight".to_owned(), embedding);
        });
        let both = opened(&|tensors| {
            let embedding = tensors[embedding].clone();
            tensors.insert("lm_head.weight".to_owned(), embedding);
        });
        assert!((plain.0 - tied).abs() < 2e-5, "{name}: {}, expected {tied}", plain.0);
        assert_eq!(only_head, plain, "{name}");
        assert_eq!(both, plain, "{name}");
        let other = opened(&|tensors| {
            let (shape, mut values) = tensors[embedding].clone();
            values.iter_mut().for_each(|value| *value *= 0.5);
            tensors.insert("lm_head.weight".to_owned(), (shape, values));
        });
        assert!((other.0 - untied).abs() < 2e-5, "{name}: {}, expected {untied}", other.0);
        assert_ne!(other.1, plain.1, "{name}");
    }
}

/// Shapes and values by name.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// A copy of a fixture's base model with other settings and weights, in float32 and one file.
fn changed(name: &str, settings: &Value, change: impl Fn(&mut Tensors)) -> TempDir {
    let (from, folder) = (fixtures().join(name), tempfile::tempdir().unwrap());
    let config = fs::read_to_string(from.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();

    let model = BaseModel::open(&from).unwrap();
    let architecture = model.config().architecture();
    let prefixed = |name: String| match name.as_str() {
        "lm_head.weight" => name,
        _ => format!("{}{name}", architecture.prefix()),
    };
    let mut tensors: Tensors = architecture
        .tensors()
        .into_iter()
        .map(|(name, shape)| {
            let values = model.weights().tensor(&name).unwrap().data;
            (prefixed(name), (shape, values))
        })
        .collect();
    change(&mut tensors);
    let bytes: BTreeMap<&String, (&Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, (shape, values))| (name, (shape, values.iter().flat_map(|v| v.to_le_bytes()).collect())))
        .collect();
    let views = bytes
        .iter()
        .map(|(name, (shape, bytes))| (name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap()));
    serialize_to_file(views, None, &folder.path().join("model.safetensors")).unwrap();
    folder
}

fn loss_of(folder: &Path) -> f64 {
    let ids: Vec<i64> = (5..45).collect();
    Model::load(&BaseModel::open(folder).unwrap()).unwrap().loss(&ids).unwrap()
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
