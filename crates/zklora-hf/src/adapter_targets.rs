use std::collections::HashSet;

use regex::bytes::Regex;
use serde_json::Value;

use crate::Error;
use crate::adapter_fields::Fields;
use crate::python_regex;

/// Which modules an adapter's configuration targets: `target_modules` without `exclude_modules`, in the layers of
/// `layers_to_transform`.
///
/// Modules are named as in the model that PEFT was given. What is selected follows `check_target_module_exists` of
/// PEFT 0.21.2 in its results.
pub(crate) struct Targets {
    targeted: Modules,
    excluded: Option<Modules>,
    layers: Option<Layers>,
}

enum Modules {
    /// Every linear layer but the head.
    AllLinear,
    /// These modules, whether the whole name is given or the end of it after a dot.
    Named(HashSet<String>),
    /// Those whose whole name matches.
    Matching(Regex),
}

struct Layers {
    indices: HashSet<u64>,
    /// Each captures a layer's index; the first that matches a name counts.
    patterns: Vec<Regex>,
}

impl Targets {
    pub(crate) fn read(fields: &Fields<'_>) -> Result<Self, Error> {
        let targeted = match fields.get("target_modules") {
            Some(Value::String(text)) if text.eq_ignore_ascii_case("all-linear") => Modules::AllLinear,
            None | Some(Value::Null) => {
                return Err(fields.refuse(
                    "target_modules is left out, and what PEFT then targets depends on its version; list the names of \
                     the modules there",
                ));
            }
            Some(value) => Modules::read(fields, "target_modules", value)?,
        };
        let excluded = match fields.get("exclude_modules") {
            value if is_empty(value) => None,
            Some(value) => Some(Modules::read(fields, "exclude_modules", value)?),
            None => None,
        };
        let layers = Layers::read(fields)?;
        if layers.is_some() && !matches!(targeted, Modules::Named(_)) {
            return Err(fields.refuse(
                "layers_to_transform goes only with a list as target_modules, for PEFT too; list the modules' names",
            ));
        }
        Ok(Self { targeted, excluded, layers })
    }

    /// Whether a linear layer of this name gets LoRA.
    pub(crate) fn select(&self, module: &str) -> bool {
        if self.excluded.as_ref().is_some_and(|excluded| excluded.contain(module)) {
            return false;
        }
        match (&self.targeted, &self.layers) {
            // A name in full is meant whatever its layer.
            (Modules::Named(names), Some(layers)) if !names.contains(module) => {
                self.targeted.contain(module) && layers.contain(module)
            }
            _ => self.targeted.contain(module),
        }
    }
}

impl Modules {
    fn read(fields: &Fields<'_>, field: &str, value: &Value) -> Result<Self, Error> {
        match value {
            Value::String(pattern) => {
                let regex = python_regex::is_understood(pattern)
                    .then(|| python_regex::compile(&format!("^(?:{pattern})$")))
                    .flatten();
                match regex {
                    Some(regex) => Ok(Self::Matching(regex)),
                    None => Err(fields.not_a_simple_regex(field, pattern)),
                }
            }
            Value::Array(names) => names
                .iter()
                .map(|name| name.as_str().map(str::to_owned))
                .collect::<Option<_>>()
                .map(Self::Named)
                .ok_or_else(|| fields.setting(field, "names of modules", Some(value))),
            _ => Err(fields.setting(field, "a list of names, or a regular expression", Some(value))),
        }
    }

    fn contain(&self, module: &str) -> bool {
        match self {
            Self::AllLinear => true,
            Self::Named(names) => {
                names.contains(module)
                    || module.match_indices('.').any(|(dot, _)| names.contains(&module[dot + 1..]))
            }
            Self::Matching(regex) => regex.is_match(module.as_bytes()),
        }
    }
}

impl Layers {
    fn read(fields: &Fields<'_>) -> Result<Option<Self>, Error> {
        let indices = fields.get("layers_to_transform");
        let patterns = fields.get("layers_pattern");
        let Some(found) = indices.filter(|value| !is_empty(Some(value))) else {
            if is_empty(patterns) {
                return Ok(None);
            }
            return Err(fields.refuse(
                "layers_pattern is set without layers_to_transform, which PEFT refuses; set both or neither",
            ));
        };
        let indices = match found {
            Value::Array(indices) => indices.iter().map(Value::as_u64).collect(),
            index => index.as_u64().map(|index| HashSet::from([index])),
        };
        let Some(indices) = indices else {
            return Err(fields.setting(
                "layers_to_transform",
                "a layer's index, or a list of them",
                Some(found),
            ));
        };
        let patterns: Option<Vec<&str>> = match patterns {
            value if is_empty(value) => Some(Vec::new()),
            Some(Value::Array(patterns)) if patterns.len() <= MAX_LAYERS_PATTERNS => {
                patterns.iter().map(Value::as_str).collect()
            }
            value => value.and_then(Value::as_str).map(|pattern| vec![pattern]),
        };
        let Some(patterns) = patterns else {
            let expected = format!("a pattern, or a list of at most {MAX_LAYERS_PATTERNS}");
            return Err(fields.setting("layers_pattern", &expected, fields.get("layers_pattern")));
        };
        let mut regexes: Vec<Regex> = Vec::new();
        for pattern in &patterns {
            let regex = python_regex::is_understood(pattern)
                .then(|| python_regex::compile(&format!(r"^(?:(?:^|.*?\.){pattern}\.(?P<idx>\d+)\.)")))
                .flatten();
            regexes.push(regex.ok_or_else(|| fields.not_a_simple_regex("layers_pattern", pattern))?);
        }
        if patterns.is_empty() {
            // The first part of the name that is a number, the first two parts aside.
            regexes.extend(python_regex::compile(r"^.*?\.[^.]*\.(?P<idx>\d+)\."));
        }
        Ok(Some(Self { indices, patterns: regexes }))
    }

    fn contain(&self, module: &str) -> bool {
        self.patterns
            .iter()
            .find_map(|pattern| pattern.captures(module.as_bytes()))
            .and_then(|found| str::from_utf8(found.name("idx")?.as_bytes()).ok()?.parse().ok())
            .is_some_and(|index: u64| self.indices.contains(&index))
    }
}

/// Whether Python would take a setting for left out.
fn is_empty(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(Value::Array(items)) => items.is_empty(),
        Some(_) => false,
    }
}

/// Models name their list of layers once.
const MAX_LAYERS_PATTERNS: usize = 16;
