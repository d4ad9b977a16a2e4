use serde_json::json;

use super::*;
use crate::testing::write_json;

#[test]
fn scaling_follows_peft() {
    let mut config = plain();
    assert_eq!(open(&config).unwrap().scaling_of("h.0.attn.c_attn").unwrap(), 2.0);
    config["use_rslora"] = json!(true);
    assert_eq!(open(&config).unwrap().scaling_of("h.0.attn.c_attn").unwrap(), 8.0);
}

#[test]
fn patterns_match_names_and_their_ends() {
    let mut config = plain();
    config["rank_pattern"] = json!({ "c_fc": 4, r"^transformer\.h\.0\.attn\.c_attn": 2 });
    config["alpha_pattern"] = json!({ r"h\.(0|1)\.mlp\.c_fc": 64.0 });
    let config = open(&config).unwrap();
    for (module, rank, scaling) in [
        ("transformer.h.0.mlp.c_fc", 4, 16.0),
        ("transformer.h.2.mlp.c_fc", 4, 8.0),
        ("transformer.h.2.mlp.xc_fc", 16, 2.0),
        ("transformer.h.0.attn.c_attn", 2, 16.0),
        ("transformer.h.1.attn.c_attn", 16, 2.0),
    ] {
        assert_eq!(config.rank_of(module).unwrap(), rank, "{module}");
        assert_eq!(config.scaling_of(module).unwrap(), scaling, "{module}");
    }
}

#[test]
fn ambiguous_and_hostile_patterns_are_refused() {
    let mut config = plain();
    config["rank_pattern"] = json!({ "c_fc": 4, "mlp.c_fc": 8 });
    let message = open(&config).unwrap().rank_of("h.0.mlp.c_fc").unwrap_err().to_string();
    assert!(message.contains("several entries of rank_pattern match h.0.mlp.c_fc"), "{message}");
    for key in ["(?=x)", "(", "(a{1000}){1000}"] {
        config["rank_pattern"] = json!({ key: 4 });
        let message = open(&config).err().unwrap().to_string();
        assert!(message.contains("not a simple regular expression"), "{message}");
    }
}

#[test]
fn whatever_is_not_plain_lora_is_refused() {
    for (field, value, why) in [
        ("peft_type", json!("IA3"), r#"peft_type is "IA3""#),
        ("peft_type", json!(null), "peft_type is null"),
        ("use_dora", json!(true), "DoRA rescales"),
        ("bias", json!("lora_only"), r#"bias is "lora_only""#),
        ("modules_to_save", json!(["ln_f"]), "modules_to_save is set"),
        ("lora_bias", json!(true), "lora_bias is set"),
        ("layer_replication", json!([[0, 1]]), "layer_replication is set"),
        ("trainable_token_indices", json!([1]), "trainable_token_indices is set"),
        ("megatron_config", json!({ "a": 1 }), "megatron_config is set"),
        ("init_lora_weights", json!("pissa_niter_16"), "changes the base model's weights"),
        ("init_lora_weights", json!("loftq"), "changes the base model's weights"),
        ("init_lora_weights", json!("OLoRA"), "changes the base model's weights"),
        ("enable_lora", json!([true, false, true]), "LoRA on parts of a projection"),
        ("target_modules", json!(null), "target_modules is left out"),
        ("target_modules", json!(3), "target_modules is 3, expected a list of names, or"),
        ("target_modules", json!(["c_attn", 3]), "expected names of modules"),
        ("target_modules", json!("^(?!.*c_proj).*"), "not a simple regular expression"),
        ("exclude_modules", json!("(?=c_proj)"), "exclude_modules has \"(?=c_proj)\""),
        ("layers_to_transform", json!("1"), "expected a layer's index"),
        ("layers_to_transform", json!([1, 2.5]), "expected a layer's index"),
        ("layers_pattern", json!("h"), "layers_pattern is set without layers_to_transform"),
        ("future_setting", json!(3), "a setting this version does not know"),
        ("r", json!(0), "r is 0, expected a whole number, 1 to 256"),
        ("r", json!(257), "r is 257"),
        ("r", json!(8.5), "r is 8.5"),
        ("lora_alpha", json!("16"), r#"lora_alpha is "16", expected a number above 0"#),
        ("lora_alpha", json!(-1), "lora_alpha is -1"),
        ("use_rslora", json!(1), "use_rslora is 1, expected true or false"),
    ] {
        let mut config = plain();
        config[field] = value;
        let message = open(&config).err().unwrap().to_string();
        assert!(message.contains(why), "{message:?} should contain {why:?}");
    }
}

#[test]
fn settings_that_are_off_or_concern_training_are_accepted() {
    let mut config = plain();
    for (field, value) in [
        ("init_lora_weights", json!(true)),
        ("init_lora_weights", json!("eva")),
        ("lora_dropout", json!(0.1)),
        ("loftq_config", json!({ "loftq_bits": 4 })),
        ("megatron_core", json!("megatron.core")),
        ("init_lora_weights", json!("mica")),
        ("target_modules", json!("All-Linear")),
        ("exclude_modules", json!([])),
        ("future_setting", json!(null)),
        ("other_future_setting", json!([])),
    ] {
        config[field] = value;
        open(&config).unwrap();
    }
}

#[test]
fn configurations_of_the_first_versions_of_peft_are_read() {
    let config = json!({
        "base_model_name_or_path": "gpt2", "bias": "none", "enable_lora": null, "fan_in_fan_out": false,
        "inference_mode": true, "lora_alpha": 16, "lora_dropout": 0.05, "merge_weights": true,
        "modules_to_save": null, "peft_type": "LORA", "r": 8, "target_modules": ["c_attn"],
        "task_type": "CAUSAL_LM"
    });
    let config = open(&config).unwrap();
    assert_eq!(config.scaling_of("transformer.h.0.attn.c_attn").unwrap(), 2.0);
    assert!(config.targets("transformer.h.0.attn.c_attn"));
}

/// The selected modules are those that PEFT 0.21.2's `check_target_module_exists` finds.
#[test]
fn targets_are_those_of_peft() {
    let gpt2 = ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_proj", "transformer.h.11.mlp.c_proj"];
    let headless = ["h.0.attn.c_attn", "h.1.attn.c_proj", "h.11.mlp.c_proj"];
    let llama =
        ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj", "model.layers.10.mlp.up_proj"];
    for (modules, settings, selected) in [
        (gpt2, json!({ "target_modules": "all-linear" }), [true, true, true]),
        (gpt2, json!({ "target_modules": ["c_attn", "mlp.c_proj"] }), [true, false, true]),
        (gpt2, json!({ "target_modules": ["proj", "_attn", "ttn.c_attn", "h.1", ""] }), [false; 3]),
        (gpt2, json!({ "target_modules": ["transformer.h.1.attn.c_proj"] }), [false, true, false]),
        (gpt2, json!({ "target_modules": r".*\.h\.1\d*\..*" }), [false, true, true]),
        (gpt2, json!({ "target_modules": "c_attn" }), [false; 3]),
        (gpt2, json!({ "target_modules": r".*c_attn|.*mlp\.c_proj" }), [true, false, true]),
        (headless, json!({ "target_modules": r"h\.\d+\.attn\.c_\w+" }), [true, true, false]),
        (
            headless,
            json!({ "target_modules": ["transformer.h.0.attn.c_attn", "attn.c_proj"] }),
            [false, true, false],
        ),
        (
            gpt2,
            json!({ "target_modules": ["c_attn", "c_proj"], "exclude_modules": ["mlp.c_proj", "c_at"] }),
            [true, true, false],
        ),
        (
            gpt2,
            json!({ "target_modules": "all-linear", "exclude_modules": r".*\.\d\..*" }),
            [false, false, true],
        ),
        (gpt2, json!({ "target_modules": ["c_attn", "c_proj"], "exclude_modules": "c_proj" }), [true; 3]),
        (
            gpt2,
            json!({ "target_modules": ["c_attn", "c_proj"], "layers_to_transform": 1 }),
            [false, true, false],
        ),
        (
            gpt2,
            json!({ "target_modules": ["c_attn", "c_proj"], "layers_to_transform": [0, 11] }),
            [true, false, true],
        ),
        (gpt2, json!({ "target_modules": ["c_attn", "c_proj"], "layers_to_transform": [] }), [true; 3]),
        // A whole name is selected whatever its layer.
        (
            gpt2,
            json!({ "target_modules": [gpt2[0], "c_proj"], "layers_to_transform": [1] }),
            [true, true, false],
        ),
        // Without a pattern, an index is looked for from the third part of the name on.
        (
            headless,
            json!({ "target_modules": ["c_attn", "c_proj"], "layers_to_transform": [0, 1] }),
            [false; 3],
        ),
        (
            headless,
            json!({ "target_modules": ["c_attn", "c_proj"], "layers_to_transform": [0, 1], "layers_pattern": "h" }),
            [true, true, false],
        ),
        (
            llama,
            json!({
                "target_modules": ["q_proj", "up_proj"], "layers_to_transform": [0, 10],
                "layers_pattern": ["h", "layers"]
            }),
            [true, false, true],
        ),
        (
            llama,
            json!({ "target_modules": ["q_proj", "up_proj"], "layers_to_transform": 1, "layers_pattern": ["blocks"] }),
            [false; 3],
        ),
        // PEFT does not put the pattern into a group of its own.
        (
            llama,
            json!({ "target_modules": ["q_proj", "up_proj"], "layers_to_transform": 1, "layers_pattern": "h|layers" }),
            [false; 3],
        ),
        (
            llama,
            json!({ "target_modules": ["up_proj"], "layers_to_transform": 1, "layers_pattern": ["l\\w+s"] }),
            [false, true, false],
        ),
    ] {
        let mut config = plain();
        config.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
        let config = open(&config).unwrap();
        assert_eq!(modules.map(|module| config.targets(module)), selected, "{settings}");
    }
}

fn plain() -> Value {
    json!({
        "peft_type": "LORA", "r": 16, "lora_alpha": 32, "bias": "none", "use_dora": false, "lora_bias": false,
        "modules_to_save": null, "target_modules": ["c_attn"], "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": false
    })
}

fn open(config: &Value) -> Result<AdapterConfig, Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter_config.json");
    write_json(&path, config);
    AdapterConfig::open(&path)
}
