//! What a base model's `config.json` says, by architecture. Another architecture is another file here, and another
//! variant of [`Config`].

mod gpt2;
mod llama;

use std::path::Path;

pub use gpt2::Gpt2Config;
pub use llama::{LlamaConfig, RopeScaling};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

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
    /// Reads and checks a `config.json`. Settings that are left out have the values transformers gives them.
    ///
    /// Fails with [`Error::Setting`] naming the setting if the architecture is not one of these, the model is larger than any
    /// known one by a wide margin, or it uses a variant that is not supported.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = File { path, json: read::json(path, "it describes the base model")? };
        let Common { model_type, quantization_config } = file.parse()?;
        if !quantization_config.is_null() {
            let found = quantization_config.to_string();
            return Err(file.setting("quantization_config", "none (an unquantised model)", found));
        }
        match model_type.as_str() {
            "gpt2" => Gpt2Config::read(&file).map(Self::Gpt2),
            "llama" => LlamaConfig::read(&file).map(Self::Llama),
            _ => Err(file.setting("model_type", r#""gpt2" or "llama""#, format!("{model_type:?}"))),
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

/// What every `config.json` has.
#[derive(Deserialize)]
struct Common {
    model_type: String,
    #[serde(default)]
    quantization_config: Value,
}

/// A `config.json` that is being read.
struct File<'a> {
    path: &'a Path,
    json: Value,
}

impl File<'_> {
    /// The fields of `T`, whatever else is there.
    fn parse<T: DeserializeOwned>(&self) -> Result<T, Error> {
        T::deserialize(&self.json).map_err(|source| Error::Json { path: self.path.to_owned(), source })
    }

    fn setting(&self, field: &str, expected: &str, found: String) -> Error {
        Error::Setting {
            path: self.path.to_owned(),
            field: field.to_owned(),
            expected: expected.to_owned(),
            found,
        }
    }

    /// A dimension from 1 to `limit`.
    fn dimension(&self, field: &str, value: u64, limit: usize) -> Result<usize, Error> {
        match usize::try_from(value) {
            Ok(size) if (1..=limit).contains(&size) => Ok(size),
            _ => Err(self.setting(field, &format!("1 to {limit}"), value.to_string())),
        }
    }
}

// GPT-2 XL has 48 layers of width 1600, Llama 3.1 405B 126 of 16384; every product of dimensions stays below 2^53.
const MAX_LAYERS: usize = 512;
const MAX_WIDTH: usize = 1 << 14;
const MAX_POSITIONS: usize = 1 << 20;
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
            ("quantization_config", json!({ "bits": 4 }), "quantization_config is"),
        ] {
            let mut config = gpt2_config();
            config[field] = value;
            let message = open(&config).unwrap_err().to_string();
            assert!(message.contains(why), "{message:?} should contain {why:?}");
        }
    }
}
