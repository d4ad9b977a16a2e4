//! Llama: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

use std::sync::LazyLock;

use serde_json::{Map, Value};

use super::{
    Architecture, File, HEAD, MAX_LAYERS, MAX_POSITIONS, MAX_VOCABULARY, MAX_WIDTH, Projection, Setting,
    layer_of,
};
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
        json.only("hidden_act", &["silu", "swish"])?;
        for field in ["attention_bias", "mlp_bias"] {
            if json.flag(field, false)? {
                return Err(json.refuse(field, "false"));
            }
        }
        let hidden = json.dimension(&["hidden_size"], 4096, MAX_WIDTH)?;
        let heads = json.dimension(&["num_attention_heads"], 32, MAX_WIDTH)?;
        let kv_heads = json.optional_dimension("num_key_value_heads", heads)?.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            let expected = format!("a divisor of num_attention_heads = {heads}");
            return Err(json.setting("num_key_value_heads", &expected, kv_heads.to_string()));
        }
        // transformers asks for that even where head_dim says the width of a head.
        if !hidden.is_multiple_of(heads) {
            let expected = format!("a divisor of hidden_size = {hidden}");
            return Err(json.setting("num_attention_heads", &expected, heads.to_string()));
        }
        let head_dim = json.optional_dimension("head_dim", MAX_WIDTH)?.unwrap_or(hidden / heads);
        if !head_dim.is_multiple_of(2) {
            return Err(json.setting("head_dim", "an even number", head_dim.to_string()));
        }
        if heads * head_dim > MAX_WIDTH {
            let found = format!("{head_dim} with {heads} heads");
            return Err(json.setting("head_dim", &format!("at most {MAX_WIDTH} for all heads"), found));
        }
        let positions = json.dimension(&["max_position_embeddings"], 2048, MAX_POSITIONS)?;
        json.refuse_windows(positions)?;
        let rope = Rope::of(json, positions)?;
        Ok(Self {
            layers: json.dimension(&["num_hidden_layers"], 32, MAX_LAYERS)?,
            hidden,
            intermediate: json.dimension(&["intermediate_size"], 11008, 4 * MAX_WIDTH)?,
            heads,
            kv_heads,
            head_dim,
            positions,
            vocabulary: json.dimension(&["vocab_size"], 32000, MAX_VOCABULARY)?,
            epsilon: json.epsilon("rms_norm_eps", 1e-6)?,
            rope_theta: rope.theta()?,
            rope_scaling: rope.scaling()?,
            tied: json.flag("tie_word_embeddings", false)?,
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
            tensors.push((HEAD.to_owned(), vec![self.vocabulary, self.hidden]));
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

    fn tied(&self) -> bool {
        self.tied
    }

    fn embedding(&self) -> &'static str {
        "embed_tokens.weight"
    }

    /// The frequencies of rotary positions, of the model or of each layer, which follow from the configuration.
    fn is_buffer(&self, name: &str) -> bool {
        const FREQUENCIES: &str = "rotary_emb.inv_freq";
        name == FREQUENCIES
            || layer_of(name, "layers").is_some() && name.ends_with(&format!(".self_attn.{FREQUENCIES}"))
    }

    fn about_unused(&self, name: &str) -> Option<String> {
        let beyond = layer_of(name, "layers").filter(|&layer| layer >= self.layers);
        if beyond.is_some() {
            return Some(format!("by num_hidden_layers, the model has {} layers", self.layers));
        }
        name.ends_with("_proj.bias").then(|| {
            "attention_bias and mlp_bias are false, so that transformers would leave the bias out, too, and compute \
             something other than what the model was trained to; a Llama with biases is not supported"
                .to_owned()
        })
    }
}

/// The rotary settings, as transformers 5.23 finds them (`RotaryEmbeddingConfigMixin`): newer versions write `rope_parameters`, older ones
/// `rope_theta` and `rope_scaling`, and files that were edited have both.
struct Rope<'a> {
    json: &'a File<'a>,
    /// What the object of these settings is called in the file.
    name: &'static str,
    fields: &'a Map<String, Value>,
    positions: usize,
}

impl<'a> Rope<'a> {
    fn of(json: &'a File<'a>, positions: usize) -> Result<Self, Error> {
        static NONE: LazyLock<Map<String, Value>> = LazyLock::new(Map::new);
        let object = |name| match json.fields.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(fields)) => Ok(Some(fields)),
            Some(_) => Err(json.refuse(name, "an object of rotary settings, or null")),
        };
        let parameters = object("rope_parameters")?;
        // The older name wins, unless it says nothing.
        let rope = match object("rope_scaling")?.filter(|scaling| !scaling.is_empty()) {
            Some(fields) => Self { json, name: "rope_scaling", fields, positions },
            None => Self { json, name: "rope_parameters", fields: parameters.unwrap_or(&NONE), positions },
        };
        if let Some((layers, _)) = rope.fields.iter().find(|(_, value)| value.is_object()) {
            return Err(rope.refuse(layers, "settings of all layers, not of some"));
        }
        for (field, value) in [
            ("partial_rotary_factor".to_owned(), json.fields.get("partial_rotary_factor")),
            (rope.field("partial_rotary_factor"), rope.fields.get("partial_rotary_factor")),
        ] {
            if let Some(value) = value.filter(|value| !value.is_null() && value.as_f64() != Some(1.0)) {
                return Err(json.setting(&field, "none, or 1", value.to_string()));
            }
        }
        Ok(rope)
    }

    /// In the object if it is there, even as null, else beside it.
    fn theta(&self) -> Result<f64, Error> {
        const NAME: &str = "rope_theta";
        let (field, value) = match self.fields.get(NAME) {
            Some(value) => (self.field(NAME), Some(value)),
            None => (NAME.to_owned(), self.json.fields.get(NAME)),
        };
        match value.map_or(Some(10000.0), Value::as_f64) {
            Some(theta) if theta > 1.0 && theta <= MAX_THETA => Ok(theta),
            _ => {
                let found = value.map_or_else(|| "left out".to_owned(), Value::to_string);
                Err(self.json.setting(&field, &format!("above 1, at most {MAX_THETA}"), found))
            }
        }
    }

    fn scaling(&self) -> Result<RopeScaling, Error> {
        // `type` is the oldest name.
        let kind = ["rope_type", "type"].into_iter().find_map(|name| Some((name, self.fields.get(name)?)));
        match kind.map_or(Some("default"), |(_, value)| value.as_str()) {
            Some("default") => Ok(RopeScaling::Default),
            Some("linear") => Ok(RopeScaling::Linear { factor: self.factor("factor")? }),
            Some("llama3") => {
                let low_freq_factor = self.factor("low_freq_factor")?;
                let high_freq_factor = self.factor("high_freq_factor")?;
                if high_freq_factor <= low_freq_factor {
                    let expected = format!("above low_freq_factor = {low_freq_factor}");
                    return Err(self.refuse("high_freq_factor", &expected));
                }
                Ok(RopeScaling::Llama3 {
                    factor: self.factor("factor")?,
                    low_freq_factor,
                    high_freq_factor,
                    original_positions: self.original_positions()?,
                })
            }
            _ => {
                let name = kind.map_or("rope_type", |(name, _)| name);
                Err(self.refuse(name, r#""default", "linear" or "llama3""#))
            }
        }
    }

    fn factor(&self, field: &str) -> Result<f64, Error> {
        match self.fields.get(field).and_then(Value::as_f64) {
            Some(factor) if factor > 0.0 && factor <= MAX_FACTOR => Ok(factor),
            _ => Err(self.refuse(field, &format!("above 0, at most {MAX_FACTOR}"))),
        }
    }

    /// Beside the object if it is there, else in it, else all positions.
    fn original_positions(&self) -> Result<usize, Error> {
        const NAME: &str = "original_max_position_embeddings";
        let (field, value) = match self.json.fields.get(NAME) {
            Some(value) => (NAME.to_owned(), value),
            None => match self.fields.get(NAME) {
                Some(value) => (self.field(NAME), value),
                None => return Ok(self.positions),
            },
        };
        match value.as_u64().and_then(|found| usize::try_from(found).ok()) {
            Some(found) if (1..=MAX_POSITIONS).contains(&found) => Ok(found),
            _ => Err(self.json.setting(&field, &format!("1 to {MAX_POSITIONS}"), value.to_string())),
        }
    }

    /// A setting's whole name.
    fn field(&self, field: &str) -> String {
        format!("{}.{field}", self.name)
    }

    fn refuse(&self, field: &str, expected: &str) -> Error {
        let found = self.fields.get(field).map_or_else(|| "left out".to_owned(), Value::to_string);
        self.json.setting(&self.field(field), expected, found)
    }
}

/// Far above any in use.
const MAX_THETA: f64 = 1e12;
const MAX_FACTOR: f64 = 1e6;

#[cfg(test)]
mod tests;
