use serde_json::{Value, json};

use super::*;
use crate::Config;
use crate::testing::{TestTensor, gpt2_config, write_json, write_tensors};

#[test]
fn factors_are_transposed_to_row_vector_convention() {
    for prefix in ["transformer.", ""] {
        let adapter = open(&config(), &tensors(prefix)).unwrap();
        assert_eq!(adapter.base_model_name.as_deref(), Some("gpt2"));
        let names: Vec<&str> = adapter.modules.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(names, ["transformer.h.0.mlp.c_proj", "transformer.h.1.attn.c_attn"]);
        let module = &adapter.modules[1];
        assert_eq!((module.rank, module.d_in, module.d_out, module.scaling), (2, 4, 12, 4.0));
        // lora_A.weight[k][i] = 4k + i, so A[i][k] = 4k + i.
        assert_eq!(module.a, [0.0, 4.0, 1.0, 5.0, 2.0, 6.0, 3.0, 7.0]);
        // lora_B.weight[j][k] = 2j + k, so B[k][j] = 2j + k.
        let b: Vec<f32> = (0..2).flat_map(|k| (0..12).map(move |j| (2 * j + k) as f32)).collect();
        assert_eq!(module.b, b);
    }
}

#[test]
fn debug_does_not_print_weights() {
    let adapter = open(&config(), &tensors("")).unwrap();
    let text = format!("{adapter:?}");
    assert!(text.contains("c_attn") && text.contains("rank: 2"), "{text}");
    assert!(!text.contains("7.0") && !text.contains(" a:") && !text.contains(" b:"), "{text}");
}

#[test]
fn tensors_that_are_not_plain_lora_are_refused() {
    for (tensor, why) in [
        ("h.1.attn.c_attn.lora_magnitude_vector", "a DoRA magnitude"),
        ("wte.lora_embedding_A", "LoRA on an embedding"),
        ("h.1.attn.c_attn.lora_B.bias", "a bias in LoRA's layers"),
        ("h.1.attn.c_attn.base_layer.bias", "a changed bias"),
        ("ln_f.modules_to_save.weight", "not a factor of LoRA"),
        ("h.1.attn.c_attn.lora_A.default.weight", "mean the same"),
        ("h.1.attn.c_attn.lora_A.spanish.weight", "the name of an adapter in it"),
        ("lm_head.lora_A.weight", "it has LoRA on lm_head, which is not a projection of the base model"),
        ("h.9.attn.c_attn.lora_A.weight", "it has LoRA on h.9.attn.c_attn"),
        ("transformer.h.1.attn.c_attn.lora_A.weight", "what the model's head puts before its modules"),
        ("transformer.h.0.mlp.c_fc.lora_A.weight", "what the model's head puts before its modules"),
        ("wte.token_adapter.trainable_tokens_delta", "retrained token embeddings"),
        ("wte.weight", "save_embedding_layers=False"),
        ("transformer.wte.weight", "save_embedding_layers=False"),
        ("model.embed_tokens.weight", "save_embedding_layers=False"),
        ("lm_head.weight", "save_embedding_layers=False"),
        ("model.embed_tokens.base_layer.weight", "save_embedding_layers=False"),
        ("_orig_mod.h.0.mlp.c_fc.lora_A.weight", "torch.compile"),
        ("h.0._fsdp_wrapped_module.mlp.c_fc.lora_A.weight", "FSDP"),
    ] {
        let mut tensors = tensors("");
        tensors.push(TestTensor::f32(&format!("{PREFIX}{tensor}"), &[1], &[0.0]));
        let message = open(&config(), &tensors).unwrap_err().to_string();
        assert!(message.contains(why), "{message:?} should contain {why:?}");
    }
    let mut unprefixed = tensors("");
    unprefixed[0].name = unprefixed[0].name.replace(PREFIX, "");
    assert!(
        open(&config(), &unprefixed)
            .unwrap_err()
            .to_string()
            .contains("does not begin with base_model.model.")
    );
}

#[test]
fn a_module_with_a_factor_of_zeros_does_nothing() {
    let does_nothing = |change: &dyn Fn(&mut Vec<TestTensor>)| {
        let mut tensors = tensors("");
        change(&mut tensors);
        let modules = open(&config(), &tensors).unwrap().modules;
        modules.iter().map(LoraModule::does_nothing).collect::<Vec<_>>()
    };
    assert_eq!(does_nothing(&|_| {}), [false, false]);
    // lora_B of h.1.attn.c_attn, lora_A of h.0.mlp.c_proj; a zero may be negative.
    assert_eq!(does_nothing(&|tensors| tensors[1].bytes.fill(0)), [false, true]);
    let negative = |tensors: &mut Vec<TestTensor>| {
        let zeros = (-0f32).to_le_bytes().repeat(2 * 16);
        tensors[2].bytes = zeros;
    };
    assert_eq!(does_nothing(&negative), [true, false]);
}

#[test]
fn the_name_of_the_default_adapter_may_be_in_a_tensors_name() {
    let mut tensors = tensors("transformer.");
    for tensor in &mut tensors {
        tensor.name = tensor.name.replace(".weight", ".default.weight");
    }
    assert_eq!(open(&config(), &tensors).unwrap().modules.len(), 2);
}

#[test]
fn tensors_and_targets_must_agree() {
    let mut config = config();
    config["target_modules"] = json!(["c_attn", "h.0.mlp.c_proj"]);
    let message = open(&config, &tensors("transformer.")).unwrap_err().to_string();
    assert!(message.contains("it targets transformer.h.0.attn.c_attn, but"), "{message}");
    assert!(message.contains("has no tensors for it"), "{message}");

    config["exclude_modules"] = json!(["transformer.h.0.attn.c_attn"]);
    open(&config, &tensors("transformer.")).unwrap();
    // What is excluded by its whole name has another one in the model without its head.
    let message = open(&config, &tensors("")).unwrap_err().to_string();
    assert!(message.contains("it targets h.0.attn.c_attn, but"), "{message}");

    config["target_modules"] = json!(["c_attn"]);
    let message = open(&config, &tensors("transformer.")).unwrap_err().to_string();
    assert!(message.contains("it does not target transformer.h.0.mlp.c_proj, but"), "{message}");
    assert!(message.contains("adapter_config.json"), "{message}");
}

#[test]
fn a_module_that_does_not_fit_is_named() {
    let refusal = |change: &dyn Fn(&mut Vec<TestTensor>)| {
        let mut tensors = tensors("");
        change(&mut tensors);
        open(&config(), &tensors).unwrap_err().to_string()
    };
    let shape = refusal(&|tensors| tensors[0].shape = vec![4, 2]);
    assert!(
        shape.contains(
            "module transformer.h.1.attn.c_attn: lora_A.weight has shape [4, 2], expected [2, 4], which is rank × d_in"
        ),
        "{shape}"
    );
    let half_missing = refusal(&|tensors| drop(tensors.remove(1)));
    assert!(
        half_missing.contains("module transformer.h.1.attn.c_attn has no lora_B.weight"),
        "{half_missing}"
    );
    let infinite = refusal(&|tensors| tensors[1].bytes[..4].copy_from_slice(&f32::INFINITY.to_le_bytes()));
    assert!(infinite.contains("expected finite values"), "{infinite}");
    let dtype = refusal(&|tensors| tensors[1].dtype = safetensors::Dtype::I32);
    assert!(dtype.contains("expected F64, F32, F16 or BF16, found I32"), "{dtype}");
    assert!(refusal(&|tensors| tensors.clear()).contains("it holds no LoRA weights"));

    let mut other_rank = config();
    other_rank["r"] = json!(3);
    let message = open(&other_rank, &tensors("")).unwrap_err().to_string();
    assert!(
        message.contains("has shape [16, 2], expected") || message.contains("[2, 16], expected [3, 16]"),
        "{message}"
    );
}

#[test]
fn a_pickle_is_refused_with_advice() {
    let folder = tempfile::tempdir().unwrap();
    let projections = projections();
    let message = || LoraAdapter::open(folder.path(), &projections).unwrap_err().to_string();
    assert!(message().contains("adapter_config.json is missing"));
    write_json(&folder.path().join("adapter_config.json"), &config());
    assert!(message().contains("adapter_model.safetensors is missing"));
    std::fs::write(folder.path().join("adapter_model.bin"), b"").unwrap();
    assert!(message().contains("save_pretrained writes safetensors"));
}

fn open(config: &Value, tensors: &[TestTensor]) -> Result<LoraAdapter, Error> {
    let folder = tempfile::tempdir().unwrap();
    write_json(&folder.path().join("adapter_config.json"), config);
    write_tensors(&folder.path().join("adapter_model.safetensors"), tensors);
    LoraAdapter::open(folder.path(), &projections())
}

fn projections() -> Vec<Projection> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    write_json(&path, &gpt2_config());
    Config::open(&path).unwrap().architecture().projections()
}

fn config() -> Value {
    json!({
        "peft_type": "LORA", "base_model_name_or_path": "gpt2", "r": 2, "lora_alpha": 8, "bias": "none",
        "target_modules": ["h.1.attn.c_attn", "h.0.mlp.c_proj"]
    })
}

/// LoRA of rank 2 on h.1.attn.c_attn (4 → 12) and h.0.mlp.c_proj (16 → 4).
fn tensors(prefix: &str) -> Vec<TestTensor> {
    let counting = |n: usize| (0..n).map(|i| i as f32).collect::<Vec<f32>>();
    [
        ("h.1.attn.c_attn.lora_A", [2, 4]),
        ("h.1.attn.c_attn.lora_B", [12, 2]),
        ("h.0.mlp.c_proj.lora_A", [2, 16]),
        ("h.0.mlp.c_proj.lora_B", [4, 2]),
    ]
    .map(|(name, shape)| {
        let values = counting(shape[0] * shape[1]);
        TestTensor::f32(&format!("{PREFIX}{prefix}{name}.weight"), &shape, &values)
    })
    .to_vec()
}
