use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::adapter_fields::{Fields, Pattern};
use crate::adapter_targets::Targets;
use crate::{Error, read};

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

#[cfg(test)]
mod tests;
