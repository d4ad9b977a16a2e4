//! GPT-2 and its family: `gpt2` to `gpt2-xl`, `distilgpt2`.

use super::{
    Architecture, File, HEAD, MAX_LAYERS, MAX_POSITIONS, MAX_VOCABULARY, MAX_WIDTH, Projection, Setting,
    layer_of,
};
use crate::Error;

/// The shape of a GPT-2 model, from its `config.json`. One that exists describes a model that can be run: its dimensions
/// are bounded, and nothing in the file asks for mathematics other than plain GPT-2's.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Gpt2Config {
    /// Transformer blocks.
    pub n_layer: usize,
    /// Attention heads in a block; divides `n_embd`.
    pub n_head: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Width of the MLP; 4 · `n_embd` unless the file says otherwise.
    pub n_inner: usize,
    /// The longest sequence, in tokens.
    pub n_positions: usize,
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// The ε of every layer norm.
    pub layer_norm_epsilon: f64,
    /// Whether the head has the token embedding's weights.
    pub tied: bool,
}

impl Gpt2Config {
    /// Checks a `config.json`. Settings that are left out have the values transformers gives them, and it sets those by the names
    /// of other architectures last.
    pub(super) fn read(json: &File<'_>) -> Result<Self, Error> {
        // Both are the tanh approximation.
        json.only("activation_function", &["gelu_new", "gelu_pytorch_tanh"])?;
        for (field, expected) in [
            ("scale_attn_weights", true),
            ("scale_attn_by_inverse_layer_idx", false),
            ("reorder_and_upcast_attn", false),
        ] {
            if json.flag(field, expected)? != expected {
                return Err(json.refuse(field, &expected.to_string()));
            }
        }
        let n_embd = json.dimension(&["hidden_size", "n_embd"], 768, MAX_WIDTH)?;
        let heads = ["num_attention_heads", "n_head"];
        let n_head = json.dimension(&heads, 12, n_embd)?;
        if !n_embd.is_multiple_of(n_head) {
            return Err(json.refuse(json.named(&heads).0, &format!("a divisor of n_embd = {n_embd}")));
        }
        let n_positions = json.dimension(&["max_position_embeddings", "n_positions"], 1024, MAX_POSITIONS)?;
        json.refuse_windows(n_positions)?;
        Ok(Self {
            n_layer: json.dimension(&["num_hidden_layers", "n_layer"], 12, MAX_LAYERS)?,
            n_head,
            n_embd,
            n_inner: json.optional_dimension("n_inner", 4 * MAX_WIDTH)?.unwrap_or(4 * n_embd),
            n_positions,
            vocab_size: json.dimension(&["vocab_size"], 50257, MAX_VOCABULARY)?,
            layer_norm_epsilon: json.epsilon("layer_norm_epsilon", 1e-5)?,
            tied: json.flag("tie_word_embeddings", true)?,
        })
    }
}

impl Architecture for Gpt2Config {
    fn name(&self) -> &'static str {
        "gpt2"
    }

    fn prefix(&self) -> &'static str {
        "transformer."
    }

    fn positions(&self) -> usize {
        self.n_positions
    }

    fn vocabulary(&self) -> usize {
        self.vocab_size
    }

    /// That the head is not tied is seen from its tensor.
    fn settings(&self) -> Vec<Setting> {
        let dimensions =
            [self.n_layer, self.n_head, self.n_embd, self.n_inner, self.n_positions, self.vocab_size];
        let mut settings: Vec<Setting> = dimensions.into_iter().map(Setting::Whole).collect();
        settings.push(Setting::Real(self.layer_norm_epsilon));
        settings.push(Setting::Text("gelu_new"));
        settings
    }

    fn projections(&self) -> Vec<Projection> {
        (0..self.n_layer)
            .flat_map(|layer| {
                [
                    ("attn.c_attn", self.n_embd, 3 * self.n_embd),
                    ("attn.c_proj", self.n_embd, self.n_embd),
                    ("mlp.c_fc", self.n_embd, self.n_inner),
                    ("mlp.c_proj", self.n_inner, self.n_embd),
                ]
                .map(|(part, d_in, d_out)| Projection {
                    name: format!("transformer.h.{layer}.{part}"),
                    d_in,
                    d_out,
                })
            })
            .collect()
    }

    /// Projections are stored input × output.
    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let width = self.n_embd;
        let mut tensors = vec![
            ("wte.weight".to_owned(), vec![self.vocab_size, width]),
            ("wpe.weight".to_owned(), vec![self.n_positions, width]),
            ("ln_f.weight".to_owned(), vec![width]),
            ("ln_f.bias".to_owned(), vec![width]),
        ];
        if !self.tied {
            tensors.push((HEAD.to_owned(), vec![self.vocab_size, width]));
        }
        for layer in 0..self.n_layer {
            for norm in ["ln_1", "ln_2"] {
                tensors.push((format!("h.{layer}.{norm}.weight"), vec![width]));
                tensors.push((format!("h.{layer}.{norm}.bias"), vec![width]));
            }
        }
        for projection in self.projections() {
            let name = projection.name.trim_start_matches(self.prefix());
            tensors.push((format!("{name}.weight"), vec![projection.d_in, projection.d_out]));
            tensors.push((format!("{name}.bias"), vec![projection.d_out]));
        }
        tensors
    }

    fn tied(&self) -> bool {
        self.tied
    }

    fn embedding(&self) -> &'static str {
        "wte.weight"
    }

    /// The causal masks, and what is put in place of masked scores.
    fn is_buffer(&self, name: &str) -> bool {
        layer_of(name, "h").is_some() && (name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias"))
    }

    fn about_unused(&self, name: &str) -> Option<String> {
        let beyond = layer_of(name, "h").filter(|&layer| layer >= self.n_layer);
        if beyond.is_some() {
            return Some(format!("by n_layer, the model has {} layers", self.n_layer));
        }
        name.contains(".crossattention.").then(|| "attention to an encoder is not supported".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::Config;
    use crate::config::testing::open;
    use crate::testing::gpt2_config;

    #[test]
    fn defaults_are_those_of_transformers() {
        let config = gpt2(&json!({ "model_type": "gpt2", "n_inner": null, "n_ctx": 1024 }));
        let gpt2 = Gpt2Config {
            n_layer: 12,
            n_head: 12,
            n_embd: 768,
            n_inner: 3072,
            n_positions: 1024,
            vocab_size: 50257,
            layer_norm_epsilon: 1e-5,
            tied: true,
        };
        assert_eq!(config, gpt2);
        let parameters: usize = config.tensors().iter().map(|(_, s)| s.iter().product::<usize>()).sum();
        assert_eq!(parameters, 124_439_808);
    }

    #[test]
    fn projections_are_named_as_in_the_model() {
        let projections = gpt2(&gpt2_config()).projections();
        assert_eq!(projections.len(), 8);
        assert_eq!(
            projections[7],
            Projection { name: "transformer.h.1.mlp.c_proj".to_owned(), d_in: 16, d_out: 4 }
        );
    }

    /// transformers' `attribute_map`: these names are those of other architectures, and win.
    #[test]
    fn settings_go_by_other_names_too() {
        for (name, other, value) in [
            ("n_embd", "hidden_size", json!(8)),
            ("n_head", "num_attention_heads", json!(1)),
            ("n_layer", "num_hidden_layers", json!(3)),
            ("n_positions", "max_position_embeddings", json!(5)),
        ] {
            let mut usual = gpt2_config();
            usual[name] = value.clone();
            let mut both = gpt2_config();
            both[other] = value;
            let mut alone = both.clone();
            alone.as_object_mut().unwrap().remove(name);
            assert_ne!(gpt2(&usual), gpt2(&gpt2_config()), "{name}");
            assert_eq!(gpt2(&both), gpt2(&usual), "{other}");
            assert_eq!(gpt2(&alone), gpt2(&usual), "{other}");
        }
        let mut config = gpt2_config();
        config["activation_function"] = json!("gelu_pytorch_tanh");
        config["n_ctx"] = json!(3);
        assert_eq!(gpt2(&config), gpt2(&gpt2_config()));
    }

    #[test]
    fn unsupported_settings_are_named() {
        for (field, value, why) in [
            ("activation_function", json!("relu"), r#"activation_function is "relu", expected "gelu_new""#),
            ("scale_attn_weights", json!(false), "scale_attn_weights is false, expected true"),
            ("scale_attn_by_inverse_layer_idx", json!(true), "scale_attn_by_inverse_layer_idx is true"),
            ("reorder_and_upcast_attn", json!(true), "reorder_and_upcast_attn is true"),
            ("add_cross_attention", json!(true), "add_cross_attention is true"),
            ("n_head", json!(3), "n_head is 3, expected a divisor of n_embd = 4"),
            ("n_head", json!(0), "n_head is 0, expected 1 to 4"),
            ("n_layer", json!(0), "n_layer is 0, expected 1 to 512"),
            ("n_embd", json!(1u64 << 60), "n_embd is 1152921504606846976, expected 1 to 16384"),
            ("vocab_size", json!(-1), "vocab_size is -1, expected 1 to 1048576"),
            ("vocab_size", json!(null), "vocab_size is null, expected 1 to"),
            ("n_layer", json!(2.0), "n_layer is 2.0, expected 1 to 512"),
            ("n_layer", json!("2"), r#"n_layer is "2", expected 1 to 512"#),
            ("n_layer", json!(true), "n_layer is true, expected 1 to 512"),
            ("num_hidden_layers", json!(0), "num_hidden_layers is 0, expected 1 to 512"),
            ("num_attention_heads", json!(3), "num_attention_heads is 3, expected a divisor of n_embd = 4"),
            ("hidden_size", json!(null), "hidden_size is null, expected 1 to 16384"),
            ("n_inner", json!(0), "n_inner is 0, expected 1 to 65536"),
            ("tie_word_embeddings", json!(null), "tie_word_embeddings is null, expected true or false"),
            ("scale_attn_weights", json!("no"), r#"scale_attn_weights is "no", expected true or false"#),
            ("activation_function", json!("gelu"), r#"activation_function is "gelu", expected "gelu_new""#),
            ("activation_function", json!(null), "activation_function is null"),
            ("layer_norm_epsilon", json!("1e-5"), r#"layer_norm_epsilon is "1e-5""#),
            ("layer_norm_epsilon", json!(0.0), "layer_norm_epsilon is 0"),
        ] {
            let mut config = gpt2_config();
            config[field] = value;
            let message = open(&config).unwrap_err().to_string();
            assert!(message.contains(why), "{message:?} should contain {why:?}");
            assert!(message.contains("config.json"), "{message}");
        }
    }

    fn gpt2(config: &Value) -> Gpt2Config {
        match open(config).unwrap() {
            Config::Gpt2(config) => config,
            other => panic!("{other:?}"),
        }
    }
}
