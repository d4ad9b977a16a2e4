use serde_json::{Value, json};

use super::*;
use crate::Config;
use crate::config::testing::open;

#[test]
fn defaults_are_those_of_transformers() {
    let config = llama(&json!({ "model_type": "llama" }));
    // Llama 2 7B.
    let parameters: usize = config.tensors().iter().map(|(_, s)| s.iter().product::<usize>()).sum();
    assert_eq!(parameters, 6_738_415_616);
    assert_eq!((config.kv_heads, config.head_dim, config.tied), (32, 128, false));
    assert_eq!(config.rope_scaling, RopeScaling::Default);
}

#[test]
fn grouped_queries_have_narrower_keys_and_values() {
    let config = llama(&json!({ "model_type": "llama", "num_key_value_heads": 8, "head_dim": 64 }));
    let widths: Vec<(usize, usize)> = config.projections()[..7].iter().map(|p| (p.d_in, p.d_out)).collect();
    assert_eq!(
        widths,
        [(4096, 2048), (4096, 512), (4096, 512), (2048, 4096), (4096, 11008), (4096, 11008), (11008, 4096)]
    );
    assert_eq!(config.projections()[8].name, "model.layers.1.self_attn.k_proj");
}

#[test]
fn rope_is_read_in_both_ways_of_writing_it() {
    let scaling = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192
    });
    let old = llama(&json!({ "model_type": "llama", "rope_theta": 500000.0, "rope_scaling": scaling }));
    let mut parameters = scaling.clone();
    parameters["rope_theta"] = json!(500000.0);
    let new = llama(&json!({ "model_type": "llama", "rope_parameters": parameters }));
    assert_eq!(old, new);
    assert_eq!(old.rope_theta, 500000.0);
    let linear = json!({ "model_type": "llama", "rope_scaling": { "type": "linear", "factor": 2.0 } });
    assert_eq!(llama(&linear).rope_scaling, RopeScaling::Linear { factor: 2.0 });
}

/// What transformers 5.23 takes, in the order in which it looks.
#[test]
fn rope_is_found_where_transformers_finds_it() {
    let with = |settings: Value| {
        let mut config = json!({ "model_type": "llama", "max_position_embeddings": 64 });
        config.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
        let config = llama(&config);
        (config.rope_theta, config.rope_scaling)
    };
    let linear = RopeScaling::Linear { factor: 4.0 };
    for (settings, expected) in [
        (json!({ "rope_scaling": { "type": "linear", "rope_type": "linear", "factor": 4 } }), (1e4, linear)),
        // The newer name of the kind wins.
        (
            json!({ "rope_parameters": { "rope_type": "linear", "type": "llama3", "factor": 4 } }),
            (1e4, linear),
        ),
        (json!({ "rope_parameters": { "factor": 4 } }), (1e4, RopeScaling::Default)),
        // The older name of the object wins, and with it its base.
        (
            json!({
                "rope_parameters": { "rope_type": "default", "rope_theta": 700.0 }, "rope_theta": 500,
                "rope_scaling": { "type": "linear", "factor": 4.0 }
            }),
            (500.0, linear),
        ),
        (
            json!({ "rope_parameters": { "rope_theta": 700.0 }, "rope_theta": 500.0, "rope_scaling": {} }),
            (700.0, RopeScaling::Default),
        ),
        (
            json!({ "rope_parameters": null, "rope_scaling": null, "rope_theta": 500.0 }),
            (500.0, RopeScaling::Default),
        ),
        // What is not looked at may be null.
        (
            json!({ "rope_parameters": { "rope_theta": 700.0 }, "rope_theta": null }),
            (700.0, RopeScaling::Default),
        ),
        (json!({ "partial_rotary_factor": 1.0 }), (1e4, RopeScaling::Default)),
    ] {
        assert_eq!(with(settings.clone()), expected, "{settings}");
    }

    let llama3 = |original: Option<u64>, beside: Option<u64>| {
        let mut settings = json!({ "rope_parameters": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0
        } });
        if let Some(original) = original {
            settings["rope_parameters"]["original_max_position_embeddings"] = json!(original);
        }
        if let Some(beside) = beside {
            settings["original_max_position_embeddings"] = json!(beside);
        }
        match with(settings).1 {
            RopeScaling::Llama3 { original_positions, .. } => original_positions,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(llama3(None, None), 64);
    assert_eq!(llama3(Some(32), None), 32);
    assert_eq!(llama3(Some(32), Some(16)), 16);
    assert_eq!(llama3(None, Some(16)), 16);
}

#[test]
fn contexts_are_as_long_as_models_say() {
    for positions in [1 << 20, 10_485_760, 1 << 30] {
        let config = llama(&json!({ "model_type": "llama", "max_position_embeddings": positions }));
        assert_eq!(config.positions, positions);
    }
}

#[test]
fn unsupported_settings_are_named() {
    for (field, value, why) in [
        ("hidden_act", json!("gelu"), r#"hidden_act is "gelu", expected "silu""#),
        ("attention_bias", json!(true), "attention_bias is true, expected false"),
        ("mlp_bias", json!(true), "mlp_bias is true"),
        ("num_key_value_heads", json!(5), "num_key_value_heads is 5, expected a divisor of"),
        ("hidden_act", json!(null), r#"hidden_act is null, expected "silu""#),
        ("attention_bias", json!(null), "attention_bias is null, expected true or false"),
        ("max_position_embeddings", json!(null), "max_position_embeddings is null, expected 1 to"),
        (
            "max_position_embeddings",
            json!(1u64 << 31),
            "max_position_embeddings is 2147483648, expected 1 to 2147483647",
        ),
        ("rope_theta", json!(null), "rope_theta is null, expected above 1"),
        ("rope_theta", json!("500"), r#"rope_theta is "500", expected above 1"#),
        ("partial_rotary_factor", json!(0.5), "partial_rotary_factor is 0.5, expected none, or 1"),
        ("rope_scaling", json!("linear"), r#"rope_scaling is "linear", expected an object"#),
        ("rope_scaling", json!({ "type": null }), "rope_scaling.type is null, expected \"default\""),
        (
            "rope_parameters",
            json!({ "rope_type": null, "type": "linear" }),
            "rope_parameters.rope_type is null",
        ),
        ("rope_parameters", json!({ "rope_theta": null }), "rope_parameters.rope_theta is null"),
        ("rope_parameters", json!({ "rope_theta": 0 }), "rope_parameters.rope_theta is 0"),
        (
            "rope_parameters",
            json!({ "partial_rotary_factor": 0.5 }),
            "rope_parameters.partial_rotary_factor is 0.5",
        ),
        ("rope_parameters", json!({ "full_attention": {} }), "rope_parameters.full_attention is {}"),
        (
            "rope_parameters",
            json!({
                "rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
                "original_max_position_embeddings": null
            }),
            "rope_parameters.original_max_position_embeddings is null, expected 1 to",
        ),
        (
            "rope_parameters",
            json!({ "rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4 }),
            "rope_parameters.high_freq_factor is 4, expected above low_freq_factor = 4",
        ),
        ("num_attention_heads", json!(33), "num_attention_heads is 33, expected a divisor of hidden_size"),
        ("head_dim", json!(7), "head_dim is 7, expected an even number"),
        ("head_dim", json!(1024), "head_dim is 1024 with 32 heads"),
        ("hidden_size", json!(0), "hidden_size is 0"),
        ("rms_norm_eps", json!(0.0), "rms_norm_eps is 0"),
        ("rope_theta", json!(0.5), "rope_theta is 0.5"),
        ("rope_scaling", json!({ "type": "yarn" }), r#"rope_scaling.type is "yarn", expected "default""#),
        ("rope_scaling", json!({ "type": "linear" }), "rope_scaling.factor is left out"),
        ("rope_scaling", json!({ "type": "linear", "factor": -1.0 }), "rope_scaling.factor is -1"),
        ("rope_scaling", json!({ "type": "linear", "factor": "4" }), r#"rope_scaling.factor is "4""#),
    ] {
        let mut config = json!({ "model_type": "llama" });
        config[field] = value;
        let message = open(&config).unwrap_err().to_string();
        assert!(message.contains(why), "{message:?} should contain {why:?}");
    }
}

fn llama(config: &Value) -> LlamaConfig {
    match open(config).unwrap() {
        Config::Llama(config) => config,
        other => panic!("{other:?}"),
    }
}
