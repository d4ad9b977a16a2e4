//! What a base model's `config.json` says, by architecture. Another architecture is another file here, and another
//! variant of [`Config`].

mod gpt2;
mod llama;

use std::path::Path;

pub use gpt2::Gpt2Config;
pub use llama::{LlamaConfig, RopeScaling};
use serde_json::{Map, Value};

use crate::{Error, read};

/// The shape of a base model, from its `config.json`. One that exists describes a model that can be run: its dimensions
/// are bounded, and nothing in the file asks for mathematics that is not here.
#[derive(Debug, Clone, PartialEq)]
pub enum Config {
    /// GPT-2.
    Gpt2(Gpt2Config),
    /// Llama.
    Llama(LlamaConfig),
}

/// What the files of all architectures have in common.
pub trait Architecture {
    /// Its `model_type`.
    fn name(&self) -> &'static str;

    /// What precedes the names of tensors and projections in a model with its language-modelling head, such as `transformer.`;
    /// files of models without it have names without it.
    fn prefix(&self) -> &'static str;

    /// The longest sequence, in tokens.
    fn positions(&self) -> usize;

    /// Tokens in the vocabulary.
    fn vocabulary(&self) -> usize;

    /// Everything beside the tensors that decides what the model computes, in a fixed order: see
    /// [`BaseModel::digest`](crate::BaseModel::digest).
    fn settings(&self) -> Vec<Setting>;

    /// The projections that LoRA can target, in the order in which a forward pass meets them.
    fn projections(&self) -> Vec<Projection>;

    /// Name, without [`prefix`](Self::prefix), and shape of every tensor the model is made of.
    fn tensors(&self) -> Vec<(String, Vec<usize>)>;

    /// Whether the language-modelling head, `lm_head.weight`, has the weights of [`embedding`](Self::embedding).
    fn tied(&self) -> bool;

    /// The name of the token embedding among [`tensors`](Self::tensors).
    fn embedding(&self) -> &'static str;

    /// Whether a tensor of this name, without [`prefix`](Self::prefix), is a buffer that models of this architecture were
    /// once saved with: a constant, which transformers does not read either.
    fn is_buffer(&self, name: &str) -> bool;

    /// Why a tensor that is not among [`tensors`](Self::tensors) may be there all the same.
    fn about_unused(&self, name: &str) -> Option<String>;
}

/// A setting of an architecture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Setting {
    /// A dimension, or 0 or 1 for no and yes.
    Whole(usize),
    /// A real number.
    Real(f64),
    /// The name of a function or a variant.
    Text(&'static str),
}

/// A linear layer of the base model that LoRA can target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Projection {
    /// Its name in the model, such as `transformer.h.0.attn.c_attn`.
    pub name: String,
    /// Width of its input rows.
    pub d_in: usize,
    /// Width of its output rows.
    pub d_out: usize,
}

impl Config {
    /// Reads and checks a `config.json`, as transformers 5.23 reads it: settings that are left out have the values it gives
    /// them, other names of a setting are known, and settings that no computation depends on are not looked at.
    ///
    /// Fails with [`Error::Setting`] naming the setting if the architecture is not one of these, the model is larger than any
    /// known one by a wide margin, or it uses a variant that is not supported.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = File { path, fields: read::json(path, "it describes the base model")? };
        file.refuse_what_is_not_here()?;
        match file.fields.get("model_type").and_then(Value::as_str) {
            Some("gpt2") => Gpt2Config::read(&file).map(Self::Gpt2),
            Some("llama") => LlamaConfig::read(&file).map(Self::Llama),
            _ => Err(file.refuse("model_type", r#""gpt2" or "llama""#)),
        }
    }

    /// The same model with a head of its own.
    pub(crate) fn untied(self) -> Self {
        match self {
            Self::Gpt2(config) => Self::Gpt2(Gpt2Config { tied: false, ..config }),
            Self::Llama(config) => Self::Llama(LlamaConfig { tied: false, ..config }),
        }
    }

    /// What all architectures have.
    pub fn architecture(&self) -> &dyn Architecture {
        match self {
            Self::Gpt2(config) => config,
            Self::Llama(config) => config,
        }
    }
}

/// The language-modelling head, in files with the architecture's prefix as without it.
pub(crate) const HEAD: &str = "lm_head.weight";

/// The index of the layer that a name such as `h.7.attn.bias` is in, after `list` and a dot.
fn layer_of(name: &str, list: &str) -> Option<usize> {
    name.strip_prefix(list)?.strip_prefix('.')?.split('.').next()?.parse().ok()
}

/// A `config.json` that is being read, or an object in it.
struct File<'a> {
    path: &'a Path,
    fields: Map<String, Value>,
}

impl File<'_> {
    /// Refuses what would make any architecture compute something else, or have weights from elsewhere.
    fn refuse_what_is_not_here(&self) -> Result<(), Error> {
        for (field, expected) in [
            ("quantization_config", "none (an unquantised model)"),
            ("per_layer_config", "none (all layers alike)"),
            ("transformers_weights", "none (weights in model.safetensors or its shards)"),
            ("configuration_files", "none (all settings in config.json)"),
            // Of these transformers takes settings that are not at the top.
            ("text_config", "none (all settings at the top)"),
            ("decoder", "none (all settings at the top)"),
            ("generator", "none (all settings at the top)"),
        ] {
            if self.fields.get(field).is_some_and(|value| !value.is_null()) {
                return Err(self.refuse(field, expected));
            }
        }
        for (field, expected) in
            [("is_causal", true), ("is_encoder_decoder", false), ("add_cross_attention", false)]
        {
            if self.fields.get(field).is_some_and(|value| !value.is_null() && *value != Value::Bool(expected))
            {
                return Err(self.refuse(field, &expected.to_string()));
            }
        }
        let all_full = |layers: &Value| {
            layers.as_array().is_some_and(|layers| layers.iter().all(|layer| layer == "full_attention"))
        };
        match self.fields.get("layer_types") {
            None | Some(Value::Null) => Ok(()),
            Some(layers) if all_full(layers) => Ok(()),
            Some(_) => Err(self.refuse("layer_types", r#""full_attention" for all layers"#)),
        }
    }

    /// Refuses windows of attention that are narrower than a sequence of so many positions.
    fn refuse_windows(&self, positions: usize) -> Result<(), Error> {
        for field in ["sliding_window", "attention_chunk_size"] {
            if self.optional_whole(field)?.is_some_and(|window| window < positions as u64) {
                return Err(self.refuse(field, &format!("none, or the {positions} positions that there are")));
            }
        }
        Ok(())
    }

    /// A setting that may go by several names, of which the first that is there counts: its name, and its value.
    fn named<'n>(&self, names: &[&'n str]) -> (&'n str, Option<&Value>) {
        let found = names.iter().find_map(|&name| Some((name, Some(self.fields.get(name)?))));
        found.unwrap_or_else(|| (names.last().copied().unwrap_or_default(), None))
    }

    /// A dimension from 1 to `limit`, by one of its names.
    fn dimension(&self, names: &[&str], default: u64, limit: usize) -> Result<usize, Error> {
        let (name, value) = self.named(names);
        let found = value.map_or(Some(default), Value::as_u64);
        match found.and_then(|found| usize::try_from(found).ok()) {
            Some(size) if (1..=limit).contains(&size) => Ok(size),
            _ => Err(self.refuse(name, &format!("1 to {limit}"))),
        }
    }

    /// A dimension from 1 to `limit`, if it is there and not null.
    fn optional_dimension(&self, name: &str, limit: usize) -> Result<Option<usize>, Error> {
        match self.fields.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(_) => self.dimension(&[name], 0, limit).map(Some),
        }
    }

    /// A whole number, if it is there and not null.
    fn optional_whole(&self, name: &str) -> Result<Option<u64>, Error> {
        match self.fields.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                value.as_u64().map(Some).ok_or_else(|| self.refuse(name, "a whole number or null"))
            }
        }
    }

    /// The ε of a norm.
    fn epsilon(&self, name: &str, default: f64) -> Result<f64, Error> {
        match self.fields.get(name).map_or(Some(default), Value::as_f64) {
            Some(epsilon) if epsilon > 0.0 && epsilon < 1.0 => Ok(epsilon),
            _ => Err(self.refuse(name, "above 0 and below 1")),
        }
    }

    fn flag(&self, name: &str, default: bool) -> Result<bool, Error> {
        match self.fields.get(name).map_or(Some(default), Value::as_bool) {
            Some(flag) => Ok(flag),
            None => Err(self.refuse(name, "true or false")),
        }
    }

    /// Checks that a setting is one of these, all of which mean the same; the first is the default.
    fn only(&self, name: &str, accepted: &[&str]) -> Result<(), Error> {
        match self.fields.get(name) {
            None => Ok(()),
            Some(Value::String(found)) if accepted.contains(&found.as_str()) => Ok(()),
            Some(_) => Err(self.refuse(name, &format!("{:?}", accepted[0]))),
        }
    }

    /// The error that a setting has another value than expected.
    fn refuse(&self, field: &str, expected: &str) -> Error {
        let found = self.fields.get(field).map_or_else(|| "left out".to_owned(), Value::to_string);
        self.setting(field, expected, found)
    }

    fn setting(&self, field: &str, expected: &str, found: String) -> Error {
        Error::setting(self.path, field, expected, found)
    }
}

// GPT-2 XL has 48 layers of width 1600, Llama 3.1 405B 126 of 16384; every product of dimensions stays below 2^53.
const MAX_LAYERS: usize = 512;
const MAX_WIDTH: usize = 1 << 14;
/// A bound of texts, not of what is read: some models name ten million and more.
const MAX_POSITIONS: usize = i32::MAX as usize;
const MAX_VOCABULARY: usize = 1 << 20;

#[cfg(test)]
mod testing {
    use serde_json::Value;

    use super::Config;
    use crate::Error;
    use crate::testing::write_json;

    pub(super) fn open(config: &Value) -> Result<Config, Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        write_json(&path, config);
        Config::open(&path)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::testing::open;
    use crate::testing::gpt2_config;

    #[test]
    fn other_architectures_and_quantised_models_are_refused() {
        for (field, value, why) in [
            ("model_type", json!("mamba"), r#"model_type is "mamba", expected "gpt2" or "llama""#),
            ("model_type", json!(null), "model_type is null, expected"),
            (
                "quantization_config",
                json!({ "bits": 4 }),
                r#"quantization_config is {"bits":4}, expected none"#,
            ),
            ("per_layer_config", json!({ "0": {} }), "per_layer_config is"),
            (
                "text_config",
                json!({ "hidden_size": 8 }),
                r#"text_config is {"hidden_size":8}, expected none"#,
            ),
            ("transformers_weights", json!("other.safetensors"), "transformers_weights is"),
            ("configuration_files", json!(["config.4.0.json"]), "configuration_files is"),
            ("is_causal", json!(false), "is_causal is false, expected true"),
            ("is_encoder_decoder", json!(true), "is_encoder_decoder is true, expected false"),
            ("add_cross_attention", json!(true), "add_cross_attention is true, expected false"),
            ("layer_types", json!(["sliding_attention"]), "layer_types is"),
            ("sliding_window", json!(4), "sliding_window is 4, expected none, or the 8 positions"),
            ("attention_chunk_size", json!(4), "attention_chunk_size is 4"),
        ] {
            let mut config = gpt2_config();
            config[field] = value;
            let message = open(&config).unwrap_err().to_string();
            assert!(message.contains(why), "{message:?} should contain {why:?}");
        }
        let mut neutral = gpt2_config();
        for (field, value) in [
            ("quantization_config", json!(null)),
            ("is_causal", json!(true)),
            ("layer_types", json!(["full_attention", "full_attention"])),
            ("sliding_window", json!(8)),
            ("attention_chunk_size", json!(null)),
            ("torch_dtype", json!("bfloat16")),
            ("dtype", json!("float16")),
        ] {
            neutral[field] = value;
        }
        assert_eq!(open(&neutral).unwrap(), open(&gpt2_config()).unwrap());
    }

    #[test]
    fn a_stranger_s_value_is_not_repeated_at_length() {
        let mut config = gpt2_config();
        config["n_layer"] = json!("9".repeat(1 << 16));
        let message = open(&config).unwrap_err().to_string();
        assert!(message.contains("n_layer is \"999") && message.len() < 600, "{}", message.len());
    }
}
