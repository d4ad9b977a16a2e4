//! Llama: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

use serde::Deserialize;

use super::{Architecture, File, MAX_LAYERS, MAX_POSITIONS, MAX_VOCABULARY, MAX_WIDTH, Projection, Setting};
use crate::Error;

/// The shape of a Llama model, from its `config.json`.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct LlamaConfig {
    /// Transformer blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the MLP.
    pub intermediate: usize,
    /// Attention heads in a block.
    pub heads: usize,
    /// Heads of keys and values; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head; even. `hidden` / `heads` unless the file says otherwise.
    pub head_dim: usize,
    /// The longest sequence, in tokens.
    pub positions: usize,
    /// Tokens in the vocabulary.
    pub vocabulary: usize,
    /// The ε of every RMSNorm.
    pub epsilon: f64,
    /// The base of the rotary angles.
    pub rope_theta: f64,
    /// How the rotary angles are stretched for long sequences.
    pub rope_scaling: RopeScaling,
    /// Whether the head has the embedding's weights.
    pub tied: bool,
}

/// How the rotary angles are stretched for long sequences.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// All divided by a factor (Chen et al., arXiv 2306.15595).
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Low frequencies divided by a factor, high ones left, those between in between: Llama 3.1's.
    Llama3 {
        /// The factor.
        factor: f64,
        /// Wavelengths longer than `original_positions` over this are divided.
        low_freq_factor: f64,
        /// Wavelengths shorter than `original_positions` over this are left.
        high_freq_factor: f64,
        /// The longest sequence in training.
        original_positions: usize,
    },
}

impl LlamaConfig {
    /// Checks a `config.json`. Settings that are left out have the values transformers gives them.
    pub(super) fn read(json: &File<'_>) -> Result<Self, Error> {
        let file: ConfigFile = json.parse()?;
        if file.hidden_act != "silu" {
            return Err(json.setting("hidden_act", r#""silu""#, format!("{:?}", file.hidden_act)));
        }
        for (field, found) in [("attention_bias", file.attention_bias), ("mlp_bias", file.mlp_bias)] {
            if found {
                return Err(json.setting(field, "false", found.to_string()));
            }
        }
        let hidden = json.dimension("hidden_size", file.hidden_size, MAX_WIDTH)?;
        let heads = json.dimension("num_attention_heads", file.num_attention_heads, MAX_WIDTH)?;
        let kv_heads = match file.num_key_value_heads {
            Some(kv_heads) => json.dimension("num_key_value_heads", kv_heads, heads)?,
            None => heads,
        };
        if !heads.is_multiple_of(kv_heads) {
            let expected = format!("a divisor of num_attention_heads = {heads}");
            return Err(json.setting("num_key_value_heads", &expected, kv_heads.to_string()));
        }
        let head_dim = match file.head_dim {
            Some(head_dim) => json.dimension("head_dim", head_dim, MAX_WIDTH)?,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                let expected = format!("a divisor of hidden_size = {hidden}");
                return Err(json.setting("num_attention_heads", &expected, heads.to_string()));
            }
        };
        if !head_dim.is_multiple_of(2) {
            return Err(json.setting("head_dim", "an even number", head_dim.to_string()));
        }
        if heads * head_dim > MAX_WIDTH {
            let found = format!("{head_dim} with {heads} heads");
            return Err(json.setting("head_dim", &format!("at most {MAX_WIDTH} for all heads"), found));
        }
        if !(file.rms_norm_eps > 0.0 && file.rms_norm_eps < 1.0) {
            return Err(json.setting("rms_norm_eps", "above 0 and below 1", file.rms_norm_eps.to_string()));
        }
        let positions =
            json.dimension("max_position_embeddings", file.max_position_embeddings, MAX_POSITIONS)?;
        // Newer versions of transformers write rope_parameters, older ones rope_theta and rope_scaling.
        let rope = file.rope_parameters.or(file.rope_scaling).unwrap_or_default();
        let rope_theta = rope.rope_theta.unwrap_or(file.rope_theta);
        if !(rope_theta > 1.0 && rope_theta <= MAX_THETA) {
            return Err(json.setting(
                "rope_theta",
                &format!("above 1, at most {MAX_THETA}"),
                rope_theta.to_string(),
            ));
        }
        Ok(Self {
            layers: json.dimension("num_hidden_layers", file.num_hidden_layers, MAX_LAYERS)?,
            hidden,
            intermediate: json.dimension("intermediate_size", file.intermediate_size, 4 * MAX_WIDTH)?,
            heads,
            kv_heads,
            head_dim,
            positions,
            vocabulary: json.dimension("vocab_size", file.vocab_size, MAX_VOCABULARY)?,
            epsilon: file.rms_norm_eps,
            rope_theta,
            rope_scaling: rope.scaling(json)?,
            tied: file.tie_word_embeddings,
        })
    }
}

impl Architecture for LlamaConfig {
    fn name(&self) -> &'static str {
        "llama"
    }

    fn prefix(&self) -> &'static str {
        "model."
    }

    fn positions(&self) -> usize {
        self.positions
    }

    fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Layers, hidden, intermediate, heads, kv_heads, head_dim, positions, vocabulary, whether the head is tied; ε, theta; the
    /// rope scaling's name and numbers; the activation function.
    fn settings(&self) -> Vec<Setting> {
        let dimensions = [
            self.layers,
            self.hidden,
            self.intermediate,
            self.heads,
            self.kv_heads,
            self.head_dim,
            self.positions,
            self.vocabulary,
            usize::from(self.tied),
        ];
        let mut settings: Vec<Setting> = dimensions.into_iter().map(Setting::Whole).collect();
        settings.extend([Setting::Real(self.epsilon), Setting::Real(self.rope_theta)]);
        match self.rope_scaling {
            RopeScaling::Default => settings.push(Setting::Text("default")),
            RopeScaling::Linear { factor } => {
                settings.extend([Setting::Text("linear"), Setting::Real(factor)]);
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_positions } => {
                settings.extend([
                    Setting::Text("llama3"),
                    Setting::Real(factor),
                    Setting::Real(low_freq_factor),
                    Setting::Real(high_freq_factor),
                    Setting::Whole(original_positions),
                ]);
            }
        }
        settings.push(Setting::Text("silu"));
        settings
    }

    fn projections(&self) -> Vec<Projection> {
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        (0..self.layers)
            .flat_map(|layer| {
                [
                    ("self_attn.q_proj", self.hidden, queries),
                    ("self_attn.k_proj", self.hidden, keys),
                    ("self_attn.v_proj", self.hidden, keys),
                    ("self_attn.o_proj", queries, self.hidden),
                    ("mlp.gate_proj", self.hidden, self.intermediate),
                    ("mlp.up_proj", self.hidden, self.intermediate),
                    ("mlp.down_proj", self.intermediate, self.hidden),
                ]
                .map(|(part, d_in, d_out)| Projection {
                    name: format!("model.layers.{layer}.{part}"),
                    d_in,
                    d_out,
                })
            })
            .collect()
    }

    /// Projections are stored output × input.
    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let mut tensors = vec![
            ("embed_tokens.weight".to_owned(), vec![self.vocabulary, self.hidden]),
            ("norm.weight".to_owned(), vec![self.hidden]),
        ];
        if !self.tied {
            tensors.push(("lm_head.weight".to_owned(), vec![self.vocabulary, self.hidden]));
        }
        for layer in 0..self.layers {
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                tensors.push((format!("layers.{layer}.{norm}.weight"), vec![self.hidden]));
            }
        }
        for projection in self.projections() {
            let name = projection.name.trim_start_matches(self.prefix());
            tensors.push((format!("{name}.weight"), vec![projection.d_out, projection.d_in]));
        }
        tensors
    }
}

/// `config.json` as transformers writes it, with its defaults. What does not alter inference is left out.
#[derive(Deserialize)]
#[serde(default)]
struct ConfigFile {
    num_hidden_layers: u64,
    hidden_size: u64,
    intermediate_size: u64,
    num_attention_heads: u64,
    num_key_value_heads: Option<u64>,
    head_dim: Option<u64>,
    max_position_embeddings: u64,
    vocab_size: u64,
    rms_norm_eps: f64,
    rope_theta: f64,
    rope_scaling: Option<Rope>,
    rope_parameters: Option<Rope>,
    tie_word_embeddings: bool,
    hidden_act: String,
    attention_bias: bool,
    mlp_bias: bool,
}

impl Default for ConfigFile {
    fn default() -> Self {
        Self {
            num_hidden_layers: 32,
            hidden_size: 4096,
            intermediate_size: 11008,
            num_attention_heads: 32,
            num_key_value_heads: None,
            head_dim: None,
            max_position_embeddings: 2048,
            vocab_size: 32000,
            rms_norm_eps: 1e-6,
            rope_theta: 10000.0,
            rope_scaling: None,
            rope_parameters: None,
            tie_word_embeddings: false,
            hidden_act: "silu".to_owned(),
            attention_bias: false,
            mlp_bias: false,
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Rope {
    rope_theta: Option<f64>,
    #[serde(alias = "type")]
    rope_type: Option<String>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<u64>,
}

impl Rope {
    fn scaling(&self, json: &File<'_>) -> Result<RopeScaling, Error> {
        let number = |field: &str, value: Option<f64>| match value {
            Some(value) if value > 0.0 && value <= MAX_FACTOR => Ok(value),
            value => {
                let found = value.map_or("left out".to_owned(), |value| value.to_string());
                Err(json.setting(
                    &format!("rope's {field}"),
                    &format!("above 0, at most {MAX_FACTOR}"),
                    found,
                ))
            }
        };
        match self.rope_type.as_deref() {
            None | Some("default") => Ok(RopeScaling::Default),
            Some("linear") => Ok(RopeScaling::Linear { factor: number("factor", self.factor)? }),
            Some("llama3") => {
                let low_freq_factor = number("low_freq_factor", self.low_freq_factor)?;
                let high_freq_factor = number("high_freq_factor", self.high_freq_factor)?;
                if high_freq_factor <= low_freq_factor {
                    let expected = format!("above low_freq_factor = {low_freq_factor}");
                    return Err(json.setting(
                        "rope's high_freq_factor",
                        &expected,
                        high_freq_factor.to_string(),
                    ));
                }
                let original = self.original_max_position_embeddings.unwrap_or_default();
                Ok(RopeScaling::Llama3 {
                    factor: number("factor", self.factor)?,
                    low_freq_factor,
                    high_freq_factor,
                    original_positions: json.dimension(
                        "rope's original_max_position_embeddings",
                        original,
                        MAX_POSITIONS,
                    )?,
                })
            }
            Some(other) => {
                let expected = r#""default", "linear" or "llama3""#;
                Err(json.setting("rope_type", expected, format!("{other:?}")))
            }
        }
    }
}

/// Far above any in use.
const MAX_THETA: f64 = 1e12;
const MAX_FACTOR: f64 = 1e6;

#[cfg(test)]
mod tests {
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
        let widths: Vec<(usize, usize)> =
            config.projections()[..7].iter().map(|p| (p.d_in, p.d_out)).collect();
        assert_eq!(
            widths,
            [
                (4096, 2048),
                (4096, 512),
                (4096, 512),
                (2048, 4096),
                (4096, 11008),
                (4096, 11008),
                (11008, 4096)
            ]
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

    #[test]
    fn unsupported_settings_are_named() {
        for (field, value, why) in [
            ("hidden_act", json!("gelu"), r#"hidden_act is "gelu", expected "silu""#),
            ("attention_bias", json!(true), "attention_bias is true, expected false"),
            ("mlp_bias", json!(true), "mlp_bias is true"),
            ("num_key_value_heads", json!(5), "num_key_value_heads is 5, expected a divisor of"),
            (
                "num_attention_heads",
                json!(33),
                "num_attention_heads is 33, expected a divisor of hidden_size",
            ),
            ("head_dim", json!(7), "head_dim is 7, expected an even number"),
            ("head_dim", json!(1024), "head_dim is 1024 with 32 heads"),
            ("hidden_size", json!(0), "hidden_size is 0"),
            ("rms_norm_eps", json!(0.0), "rms_norm_eps is 0"),
            ("rope_theta", json!(0.5), "rope_theta is 0.5"),
            ("rope_scaling", json!({ "type": "yarn" }), r#"rope_type is "yarn", expected "default""#),
            ("rope_scaling", json!({ "type": "linear" }), "rope's factor is left out"),
            ("rope_scaling", json!({ "type": "linear", "factor": -1.0 }), "rope's factor is -1"),
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
}
