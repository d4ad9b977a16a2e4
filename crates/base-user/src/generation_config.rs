//! What a base model's files say of how texts are generated.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};
use zklora_hf::read;

use crate::error::ModelError;

/// `generation_config.json`, or what `config.json` says where there is none.
#[derive(Debug, Default)]
pub(crate) struct GenerationConfig {
    /// The tokens that end a text.
    pub(crate) end: Vec<i64>,
    /// Settings that would have transformers generate another text, and are not done here: `name: value`.
    pub(crate) not_done: Vec<String>,
}

impl GenerationConfig {
    /// Where there is a `generation_config.json`, it alone counts, as in transformers.
    pub(crate) fn read(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join("generation_config.json");
        if path.exists() {
            let fields = fields(&path)?;
            let not_done = fields.iter().filter(|(name, value)| alters(name, value));
            let not_done = not_done.map(|(name, value)| format!("{name}: {}", shortened(value))).collect();
            return Ok(Self { end: end(&path, &fields)?, not_done });
        }
        let path = folder.join("config.json");
        let end = if path.exists() { end(&path, &fields(&path)?)? } else { Vec::new() };
        Ok(Self { end, not_done: Vec::new() })
    }
}

fn fields(path: &Path) -> Result<Map<String, Value>, ModelError> {
    Ok(read::parse_json(path, &read::text(path, MAX_BYTES, "")?)?)
}

/// `eos_token_id`: a number, several, or none.
fn end(path: &Path, fields: &Map<String, Value>) -> Result<Vec<i64>, ModelError> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Ids {
        One(i64),
        Many(Vec<i64>),
    }
    let Some(value) = fields.get("eos_token_id") else { return Ok(Vec::new()) };
    match Option::<Ids>::deserialize(value) {
        Ok(None) => Ok(Vec::new()),
        Ok(Some(Ids::One(id))) => Ok(vec![id]),
        Ok(Some(Ids::Many(ids))) => Ok(ids),
        Err(_) => Err(ModelError::Tokenizer {
            path: path.to_owned(),
            reason: format!("eos_token_id is {}, expected a token's id or several", shortened(value)),
        }),
    }
}

/// Whether a setting with this value changes the text, and is none that the command line has.
fn alters(name: &str, value: &Value) -> bool {
    let says_nothing = match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(items) => items.is_empty(),
        // Penalties and scales are factors.
        Value::Number(number) => {
            let number = number.as_f64();
            number == Some(0.0) || (name.contains("penalty") || name.contains("scale")) && number == Some(1.0)
        }
        Value::String(_) | Value::Bool(true) => false,
    };
    let counts_one = ["num_beams", "num_beam_groups", "num_return_sequences"].contains(&name);
    !(says_nothing || HARMLESS.contains(&name) || counts_one && *value == 1)
}

/// Settings that the command line has, that only say what is returned or how fast, or that are about the file.
const HARMLESS: &[&str] = &[
    "_from_model_config",
    "_commit_hash",
    "transformers_version",
    "bos_token_id",
    "decoder_start_token_id",
    "eos_token_id",
    "pad_token_id",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "max_length",
    "max_new_tokens",
    "early_stopping",
    "length_penalty",
    "chat_format",
    "use_cache",
    "return_dict_in_generate",
    "return_legacy_cache",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "compile_config",
    "disable_compile",
];

fn shortened(value: &Value) -> String {
    value.to_string().chars().take(80).collect()
}

/// Both files have a few hundred bytes.
const MAX_BYTES: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    fn read(generation: Option<Value>, config: Value) -> Result<GenerationConfig, ModelError> {
        let folder = tempfile::tempdir().unwrap();
        if let Some(generation) = generation {
            fs::write(folder.path().join("generation_config.json"), generation.to_string()).unwrap();
        }
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        GenerationConfig::read(folder.path())
    }

    #[test]
    fn where_there_is_a_generation_config_it_alone_says_what_ends_a_text() {
        for (generation, end) in [
            (None, &[7][..]),
            (Some(json!({})), &[]),
            (Some(json!({ "eos_token_id": null })), &[]),
            (Some(json!({ "eos_token_id": 3 })), &[3]),
            (Some(json!({ "eos_token_id": [3, 4] })), &[3, 4]),
        ] {
            let read = read(generation.clone(), json!({ "eos_token_id": 7 })).unwrap();
            assert_eq!(read.end, end, "{generation:?}");
        }
        for wrong in [json!("3"), json!(1.5), json!([3, "x"]), json!({})] {
            let message = read(None, json!({ "eos_token_id": wrong })).unwrap_err().to_string();
            assert!(message.contains("config.json: eos_token_id is"), "{message}");
        }
    }

    #[test]
    fn settings_that_would_change_the_text_are_named() {
        for (setting, named) in [
            (json!({ "repetition_penalty": 1.1 }), Some("repetition_penalty: 1.1")),
            (json!({ "repetition_penalty": 1.0 }), None),
            (json!({ "suppress_tokens": [1, 2] }), Some("suppress_tokens: [1,2]")),
            (json!({ "suppress_tokens": [] }), None),
            (json!({ "no_repeat_ngram_size": 2 }), Some("no_repeat_ngram_size: 2")),
            (json!({ "min_new_tokens": 5 }), Some("min_new_tokens: 5")),
            (json!({ "min_length": 0 }), None),
            (json!({ "bad_words_ids": [[1]] }), Some("bad_words_ids: [[1]]")),
            (json!({ "forced_eos_token_id": 5 }), Some("forced_eos_token_id: 5")),
            (json!({ "num_beams": 1 }), None),
            (json!({ "num_beams": 4 }), Some("num_beams: 4")),
            (json!({ "guidance_scale": 1 }), None),
            (json!({ "min_p": 0.05 }), Some("min_p: 0.05")),
            (json!({ "stop_strings": ["x"] }), Some("stop_strings: [\"x\"]")),
            // What nobody knows yet, too.
            (json!({ "of_a_later_version": true }), Some("of_a_later_version: true")),
            (json!({ "do_sample": true, "temperature": 0.6, "top_p": 0.9, "max_length": 20 }), None),
        ] {
            let read = read(Some(setting.clone()), json!({})).unwrap();
            assert_eq!(read.not_done, Vec::from_iter(named.map(str::to_owned)), "{setting}");
        }
        // The fixtures' are as transformers writes them.
        for model in ["gpt2-tiny", "llama-tiny"] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(model);
            let read = GenerationConfig::read(&folder).unwrap();
            assert_eq!((read.end.len(), read.not_done.len()), (1, 0), "{model}");
        }
    }
}
