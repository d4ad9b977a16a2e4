//! GPT-2 and its family: `gpt2` to `gpt2-xl`, `distilgpt2`.

use serde::Deserialize;

use super::{Architecture, File, MAX_LAYERS, MAX_POSITIONS, MAX_VOCABULARY, MAX_WIDTH, Projection, Setting};
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
}

impl Gpt2Config {
    /// Checks a `config.json`. Settings that are left out have the values transformers gives them.
    pub(super) fn read(json: &File<'_>) -> Result<Self, Error> {
        let file: ConfigFile = json.parse()?;
        let setting = |field: &str, expected: &str, found: String| json.setting(field, expected, found);
        if file.activation_function != "gelu_new" {
            return Err(setting(
                "activation_function",
                r#""gelu_new""#,
                format!("{:?}", file.activation_function),
            ));
        }
        for (field, found, expected) in [
            ("tie_word_embeddings", file.tie_word_embeddings, true),
            ("scale_attn_weights", file.scale_attn_weights, true),
            ("scale_attn_by_inverse_layer_idx", file.scale_attn_by_inverse_layer_idx, false),
            ("reorder_and_upcast_attn", file.reorder_and_upcast_attn, false),
            ("add_cross_attention", file.add_cross_attention, false),
            ("is_encoder_decoder", file.is_encoder_decoder, false),
        ] {
            if found != expected {
                return Err(setting(field, &expected.to_string(), found.to_string()));
            }
        }

        let n_embd = json.dimension("n_embd", file.n_embd, MAX_WIDTH)?;
        let n_head = json.dimension("n_head", file.n_head, n_embd)?;
        if !n_embd.is_multiple_of(n_head) {
            return Err(setting("n_head", &format!("a divisor of n_embd = {n_embd}"), n_head.to_string()));
        }
        if !(file.layer_norm_epsilon > 0.0 && file.layer_norm_epsilon < 1.0) {
            return Err(setting(
                "layer_norm_epsilon",
                "above 0 and below 1",
                file.layer_norm_epsilon.to_string(),
            ));
        }
        Ok(Self {
            n_layer: json.dimension("n_layer", file.n_layer, MAX_LAYERS)?,
            n_head,
            n_embd,
            n_inner: match file.n_inner {
                Some(n_inner) => json.dimension("n_inner", n_inner, 4 * MAX_WIDTH)?,
                None => 4 * n_embd,
            },
            n_positions: json.dimension("n_positions", file.n_positions, MAX_POSITIONS)?,
            vocab_size: json.dimension("vocab_size", file.vocab_size, MAX_VOCABULARY)?,
            layer_norm_epsilon: file.layer_norm_epsilon,
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
}

/// `config.json` as transformers writes it, with its defaults. What does not alter the inference of a causal language
/// model (dropout, initialisation, token ids, `summary_*`) is left out.
#[derive(Deserialize)]
struct ConfigFile {
    #[serde(default = "default_12")]
    n_layer: u64,
    #[serde(default = "default_12")]
    n_head: u64,
    #[serde(default = "default_768")]
    n_embd: u64,
    #[serde(default)]
    n_inner: Option<u64>,
    #[serde(default = "default_1024")]
    n_positions: u64,
    #[serde(default = "default_50257")]
    vocab_size: u64,
    #[serde(default = "default_epsilon")]
    layer_norm_epsilon: f64,
    #[serde(default = "default_activation")]
    activation_function: String,
    #[serde(default = "default_true")]
    tie_word_embeddings: bool,
    #[serde(default = "default_true")]
    scale_attn_weights: bool,
    #[serde(default)]
    scale_attn_by_inverse_layer_idx: bool,
    #[serde(default)]
    reorder_and_upcast_attn: bool,
    #[serde(default)]
    add_cross_attention: bool,
    #[serde(default)]
    is_encoder_decoder: bool,
}

fn default_12() -> u64 {
    12
}

fn default_768() -> u64 {
    768
}

fn default_1024() -> u64 {
    1024
}

fn default_50257() -> u64 {
    50257
}

fn default_epsilon() -> f64 {
    1e-5
}

fn default_activation() -> String {
    "gelu_new".to_owned()
}

fn default_true() -> bool {
    true
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

    #[test]
    fn unsupported_settings_are_named() {
        for (field, value, why) in [
            ("activation_function", json!("relu"), r#"activation_function is "relu", expected "gelu_new""#),
            ("tie_word_embeddings", json!(false), "tie_word_embeddings is false, expected true"),
            ("scale_attn_weights", json!(false), "scale_attn_weights is false, expected true"),
            ("scale_attn_by_inverse_layer_idx", json!(true), "scale_attn_by_inverse_layer_idx is true"),
            ("reorder_and_upcast_attn", json!(true), "reorder_and_upcast_attn is true"),
            ("add_cross_attention", json!(true), "add_cross_attention is true"),
            ("n_head", json!(3), "n_head is 3, expected a divisor of n_embd = 4"),
            ("n_head", json!(0), "n_head is 0, expected 1 to 4"),
            ("n_layer", json!(0), "n_layer is 0, expected 1 to 512"),
            ("n_embd", json!(1u64 << 60), "n_embd is 1152921504606846976, expected 1 to 16384"),
            ("vocab_size", json!(-1), "is not the JSON that was expected"),
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
