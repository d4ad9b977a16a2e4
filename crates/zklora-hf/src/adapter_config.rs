use std::path::{Path, PathBuf};

use regex::bytes::RegexSet;
use serde_json::{Map, Value};

use crate::adapter_targets::Targets;
use crate::{Error, python_regex, read};

/// A PEFT `adapter_config.json` that describes plain LoRA: one that exists asks for nothing but x·A·B·scaling on some
/// linear layers.
pub(crate) struct AdapterConfig {
    path: PathBuf,
    rank: usize,
    alpha: f64,
    use_rslora: bool,
    rank_pattern: Pattern<usize>,
    alpha_pattern: Pattern<f64>,
    targets: Targets,
    pub(crate) base_model: Option<String>,
}

impl AdapterConfig {
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let fields: Map<String, Value> =
            read::json(path, "give the folder that PEFT's save_pretrained wrote")?;
        let file = Fields { path, fields };
        file.refuse_what_is_not_plain_lora()?;
        Ok(Self {
            rank: file.rank("r", file.fields.get("r"))?,
            alpha: file.alpha("lora_alpha", file.fields.get("lora_alpha"))?,
            use_rslora: file.flag("use_rslora")?,
            rank_pattern: file.pattern("rank_pattern", Fields::rank)?,
            alpha_pattern: file.pattern("alpha_pattern", Fields::alpha)?,
            targets: Targets::read(&file)?,
            base_model: file.fields.get("base_model_name_or_path").and_then(Value::as_str).map(str::to_owned),
            path: path.to_owned(),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the configuration targets the linear layer `module`, named as in the adapter's tensors.
    pub(crate) fn targets(&self, module: &str) -> bool {
        self.targets.select(module)
    }

    /// The rank of A and B on `module`, named as in the adapter's tensors.
    pub(crate) fn rank_of(&self, module: &str) -> Result<usize, Error> {
        self.lookup("rank_pattern", &self.rank_pattern, module, self.rank)
    }

    /// What x·A·B is multiplied by on `module`: alpha/r, or alpha/√r for rsLoRA.
    pub(crate) fn scaling_of(&self, module: &str) -> Result<f64, Error> {
        let alpha = self.lookup("alpha_pattern", &self.alpha_pattern, module, self.alpha)?;
        let rank = self.rank_of(module)? as f64;
        Ok(alpha / if self.use_rslora { rank.sqrt() } else { rank })
    }

    fn lookup<T: Copy + PartialEq>(
        &self,
        field: &str,
        pattern: &Pattern<T>,
        module: &str,
        default: T,
    ) -> Result<T, Error> {
        let matching = pattern.keys.matches(module.as_bytes());
        let mut values = matching.iter().map(|key| pattern.values[key]);
        let Some(value) = values.next() else {
            return Ok(default);
        };
        // PEFT takes the first in the file's order, and what it trained with was another order: it sorts when it saves.
        if values.any(|other| other != value) {
            return Err(Error::adapter(
                &self.path,
                format!("several entries of {field} match {module} with different values; leave only one"),
            ));
        }
        Ok(value)
    }
}

/// A `rank_pattern` or `alpha_pattern`: what the modules that match a key have instead of the default.
struct Pattern<T> {
    keys: RegexSet,
    /// In the order of the keys.
    values: Vec<T>,
}

pub(crate) struct Fields<'a> {
    path: &'a Path,
    fields: Map<String, Value>,
}

impl Fields<'_> {
    pub(crate) fn get(&self, field: &str) -> Option<&Value> {
        self.fields.get(field)
    }

    fn refuse_what_is_not_plain_lora(&self) -> Result<(), Error> {
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

    fn rank(&self, field: &str, value: Option<&Value>) -> Result<usize, Error> {
        match value.and_then(Value::as_u64) {
            Some(rank) if (1..=MAX_RANK).contains(&rank) => Ok(rank as usize),
            _ => Err(self.setting(field, &format!("a whole number, 1 to {MAX_RANK}"), value)),
        }
    }

    fn alpha(&self, field: &str, value: Option<&Value>) -> Result<f64, Error> {
        match value.and_then(Value::as_f64) {
            Some(alpha) if alpha > 0.0 && alpha <= MAX_ALPHA => Ok(alpha),
            _ => Err(self.setting(field, &format!("a number above 0, at most {MAX_ALPHA}"), value)),
        }
    }

    fn flag(&self, field: &str) -> Result<bool, Error> {
        match self.fields.get(field) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            value => Err(self.setting(field, "true or false", value)),
        }
    }

    /// Reads a `rank_pattern` or `alpha_pattern`: PEFT applies an entry to the modules whose name, or the end of it
    /// after a dot, the entry's regular expression matches.
    fn pattern<T>(
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

#[cfg(test)]
mod tests {
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
        let gpt2 =
            ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_proj", "transformer.h.11.mlp.c_proj"];
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
}
