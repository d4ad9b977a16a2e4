//! The fields of a PEFT `adapter_config.json`, and which of them mean plain LoRA.

use std::path::Path;

use regex::bytes::RegexSet;
use serde_json::{Map, Value};

use crate::{Error, python_regex};

/// A `rank_pattern` or `alpha_pattern`: what the modules that match a key have instead of the default.
pub(crate) struct Pattern<T> {
    pub(crate) keys: RegexSet,
    /// In the order of the keys.
    pub(crate) values: Vec<T>,
}

/// The settings of an `adapter_config.json`.
pub(crate) struct Fields<'a> {
    pub(crate) path: &'a Path,
    pub(crate) fields: Map<String, Value>,
}

impl Fields<'_> {
    pub(crate) fn get(&self, field: &str) -> Option<&Value> {
        self.fields.get(field)
    }

    pub(crate) fn refuse_what_is_not_plain_lora(&self) -> Result<(), Error> {
        let refuse = |reason: String| Err(Error::adapter(self.path, reason));
        match self.fields.get("peft_type") {
            Some(Value::String(kind)) if kind == "LORA" => {}
            Some(kind) => {
                return refuse(format!("peft_type is {kind}, only \"LORA\" is supported"));
            }
            None => {
                return refuse("it has no peft_type, so it is not a PEFT adapter's configuration".to_owned());
            }
        }
        for (field, value) in &self.fields {
            // What is null, false or empty switches nothing on, whatever a later PEFT calls it.
            let off = match value {
                Value::Null | Value::Bool(false) => true,
                Value::String(text) => text.is_empty(),
                Value::Array(items) => items.is_empty(),
                Value::Object(items) => items.is_empty(),
                Value::Bool(true) | Value::Number(_) => false,
            };
            if off || UNDERSTOOD.contains(&field.as_str()) || HARMLESS.contains(&field.as_str()) {
                continue;
            }
            return match REFUSED.iter().find(|(refused, _)| refused == field) {
                Some((_, why)) => refuse(format!("{field} is set: {why}")),
                None => refuse(format!(
                    "{field} is {value}, a setting this version does not know; it might alter what the adapter computes"
                )),
            };
        }
        match self.fields.get("bias") {
            None | Some(Value::Null) => {}
            Some(Value::String(bias)) if bias == "none" => {}
            Some(bias) => {
                return refuse(format!(
                    "bias is {bias}, only \"none\" is supported: a changed bias is not a LoRA delta"
                ));
            }
        }
        match self.fields.get("init_lora_weights") {
            Some(Value::String(init))
                if BASE_CHANGING_INITS.iter().any(|prefix| init.to_lowercase().starts_with(prefix)) =>
            {
                refuse(format!(
                    "init_lora_weights is {init:?}, which changes the base model's weights too; convert the adapter to \
                     plain LoRA (path_initial_model_for_weight_conversion of PEFT's save_pretrained)"
                ))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn rank(&self, field: &str, value: Option<&Value>) -> Result<usize, Error> {
        match value.and_then(Value::as_u64) {
            Some(rank) if (1..=MAX_RANK).contains(&rank) => Ok(rank as usize),
            _ => Err(self.setting(field, &format!("a whole number, 1 to {MAX_RANK}"), value)),
        }
    }

    pub(crate) fn alpha(&self, field: &str, value: Option<&Value>) -> Result<f64, Error> {
        match value.and_then(Value::as_f64) {
            Some(alpha) if alpha > 0.0 && alpha <= MAX_ALPHA => Ok(alpha),
            _ => Err(self.setting(field, &format!("a number above 0, at most {MAX_ALPHA}"), value)),
        }
    }

    pub(crate) fn flag(&self, field: &str) -> Result<bool, Error> {
        match self.fields.get(field) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            value => Err(self.setting(field, "true or false", value)),
        }
    }

    /// Reads a `rank_pattern` or `alpha_pattern`: PEFT applies an entry to the modules whose name, or the end of it
    /// after a dot, the entry's regular expression matches.
    pub(crate) fn pattern<T>(
        &self,
        field: &str,
        parse: fn(&Self, &str, Option<&Value>) -> Result<T, Error>,
    ) -> Result<Pattern<T>, Error> {
        let no_entries = Map::new();
        let entries = match self.fields.get(field) {
            None | Some(Value::Null) => &no_entries,
            Some(Value::Object(entries)) if entries.len() <= MAX_PATTERNS => entries,
            Some(Value::Object(entries)) => {
                return Err(self.refuse(format!(
                    "{field} has {} entries, at most {MAX_PATTERNS} are accepted",
                    entries.len()
                )));
            }
            value => return Err(self.setting(field, "an object", value)),
        };
        if let Some(key) = entries.keys().find(|key| !python_regex::is_understood(key)) {
            return Err(self.not_a_simple_regex(field, key));
        }
        let keys = python_regex::compile_set(entries.keys().map(|key| format!(r"^(?:(.*\.)?({key})$)")));
        let values =
            entries.iter().map(|(key, value)| parse(self, &format!("{field}[{key:?}]"), Some(value)));
        Ok(Pattern {
            keys: keys
                .ok_or_else(|| self.refuse(format!("{field} is too large; use simpler expressions")))?,
            values: values.collect::<Result<_, _>>()?,
        })
    }

    pub(crate) fn refuse(&self, reason: impl Into<String>) -> Error {
        Error::adapter(self.path, reason)
    }

    pub(crate) fn not_a_simple_regex(&self, field: &str, pattern: &str) -> Error {
        self.refuse(format!(
            "{field} has {pattern:?}, which is not a simple regular expression that means the same here as in Python; \
             name the modules"
        ))
    }

    pub(crate) fn setting(&self, field: &str, expected: &str, found: Option<&Value>) -> Error {
        let found = found.map_or_else(|| "left out".to_owned(), Value::to_string);
        Error::setting(self.path, field, expected, found)
    }
}

/// Read above, or by [`Fields::refuse_what_is_not_plain_lora`].
const UNDERSTOOD: &[&str] = &[
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "base_model_name_or_path",
    "bias",
    "init_lora_weights",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
];

/// Say how the adapter was made; they do not alter what plain LoRA computes at inference.
const HARMLESS: &[&str] = &[
    "auto_mapping",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "fan_in_fan_out",
    "inference_mode",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "merge_weights",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
];

const REFUSED: &[(&str, &str)] = &[
    ("use_dora", "DoRA rescales the base model's weights, its delta is not x·A·B"),
    ("modules_to_save", "whole retrained modules come with the adapter, and they are not LoRA deltas"),
    ("lora_bias", "a bias in LoRA's layers makes the delta more than x·A·B"),
    ("use_qalora", "QALoRA pools its inputs, its delta is not x·A·B"),
    ("layer_replication", "it changes the base model's layers"),
    ("trainable_token_indices", "retrained token embeddings are not LoRA deltas"),
    ("target_parameters", "LoRA on bare parameters is not supported, only on linear layers"),
    ("alora_invocation_tokens", "an activated LoRA applies to some of the tokens only"),
    ("megatron_config", "Megatron's parallel layers are not supported"),
    ("enable_lora", "LoRA on parts of a projection, as PEFT before 0.3 had it, is not supported"),
    ("arrow_config", "Arrow routes between several adapters"),
    ("use_bdlora", "block-diagonal LoRA is not supported"),
    ("kasa_config", "KaSA has a third factor between A and B"),
    ("monteclora_config", "MonteCLoRA samples its weights"),
    ("velora_config", "VeLoRA has tensors beside A and B"),
];

/// Initialisations that subtract from the base model's weights what A and B start with, or quantise them.
const BASE_CHANGING_INITS: &[&str] = &["pissa", "olora", "corda", "lora_ga", "loftq"];

/// The largest rank the statement admits (|Y| < 2^59).
const MAX_RANK: u64 = 256;
/// Far above any in use; keeps the scaling finite.
const MAX_ALPHA: f64 = 1e6;
const MAX_PATTERNS: usize = 1024;
