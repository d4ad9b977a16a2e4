use std::path::{Path, PathBuf};

use zklora_proto::BaseModelDigest;

use crate::digest::base_model_digest;
use crate::{Config, Error, Projection, Weights, read};

/// A base model in a folder in Hugging Face layout, checked and identified.
#[derive(Debug)]
pub struct BaseModel {
    folder: PathBuf,
    config: Config,
    weights: Weights,
    digest: BaseModelDigest,
}

impl BaseModel {
    /// Opens `config.json` and `model.safetensors` (or its shards) in `folder` and reads all weights once, for the
    /// digest: about a second for GPT-2's 500 MB, with a few megabytes of memory.
    ///
    /// Fails with an [`Error`] naming the file and the setting or tensor that is missing, unsupported or misshapen.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self, Error> {
        let folder = folder.as_ref();
        read::folder(folder)?;
        let config = Config::open(&folder.join("config.json"))?;
        let (config, weights) = Weights::open(folder, config)?;
        Ok(Self { folder: folder.to_owned(), digest: base_model_digest(&config, &weights)?, config, weights })
    }

    /// Where the model lies; its tokenizer is there too.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The shape of the model.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The model's tensors, read on demand.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Which model this is.
    pub fn digest(&self) -> BaseModelDigest {
        self.digest
    }

    /// The projections that LoRA can target, in the order in which a forward pass meets them.
    pub fn projections(&self) -> Vec<Projection> {
        self.config.architecture().projections()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{gpt2_config, gpt2_tensors, write_base};

    #[test]
    fn a_good_model_opens() {
        let folder = tempfile::tempdir().unwrap();
        write_base(folder.path(), &gpt2_config(), &gpt2_tensors("transformer."));
        let model = BaseModel::open(folder.path()).unwrap();
        assert_eq!(model.config().architecture().name(), "gpt2");
        assert_eq!(model.projections().len(), 8);
        assert_eq!(model.folder(), folder.path());
    }

    #[test]
    fn what_is_not_a_model_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let message = |path: &Path| BaseModel::open(path).unwrap_err().to_string();
        assert!(message(folder.path()).contains("config.json is missing"));
        assert!(message(&folder.path().join("nowhere")).contains("cannot read"));
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(message(&file).contains("is not a folder"));
        std::fs::write(folder.path().join("config.json"), "[]").unwrap();
        assert!(message(folder.path()).contains("is not the JSON that was expected"));
        std::fs::write(folder.path().join("config.json"), vec![b' '; 5 << 20]).unwrap();
        assert!(message(folder.path()).contains("at most 4194304 are accepted"));
    }
}
