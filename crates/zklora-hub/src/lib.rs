//! Base models and adapters by name: Hugging Face hub ids, its usual cache and environment variables.
//!
//! A [`Source`] is what somebody gives on a command line: a folder, or a name on the hub such as `distilgpt2` or
//! `ng0-k1/distilgpt2-finetuned-es@main`. [`Source::base_model`] and [`Source::adapter`] turn it into a local folder,
//! for [`BaseModel::open`](zklora_hf::BaseModel::open) and [`LoraAdapter::open`](zklora_hf::LoraAdapter::open); from the hub
//! they fetch the files that are read there and no others. The cache has the layout of Python's huggingface_hub and
//! is shared with it. `docs/models.md` says all this to users.
//!
//! Names bind nothing: the hub may give anything under a name. What binds a base model is its
//! [digest](zklora_hf::BaseModel::digest), and an adapter its commitment. So what the hub says is hostile: sizes are
//! bounded, file names, entity tags and commits have to be plain before they become part of a path, and the token
//! goes to the hub's own origin and nowhere else. The download of hf-hub itself checks none of these, so that of
//! hf-hub only the cache's layout, the repository's addresses and the form of the hub's answers are used.

mod client;
mod download;
mod error;
mod options;
mod proxies;
mod reference;
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use hf_hub::{Cache, CacheRepo};
use serde::Deserialize;

use zklora_hf::read::{self, MAX_JSON_BYTES};

use client::Client;
pub use error::Error;
pub use options::{Options, VARIABLES};
pub use reference::Reference;
pub use source::Source;

impl Source {
    /// The folder of a base model, with `config.json`, the weights in `model.safetensors` or its shards, and, if the
    /// repository has them, the files of its tokenizer. A [`Source::Folder`] is given back as it is.
    ///
    /// This blocks while it downloads; a bar on stderr, if that is a terminal, shows how far it is.
    ///
    /// Fails with an [`Error`] that says what was asked for and what to do: if the hub cannot be reached, has no such
    /// model or does not let this user have it; if the model has no safetensors; if an answer of the hub is unsound
    /// or larger than anything of its kind; if the cache cannot be written; or, with `HF_HUB_OFFLINE`, if the cache
    /// lacks a file.
    pub fn base_model(&self, options: &Options) -> Result<PathBuf, Error> {
        self.folder(Kind::BaseModel, options)
    }

    /// The folder of a LoRA adapter, with `adapter_config.json` and `adapter_model.safetensors`. The base model that
    /// the configuration names is not looked at. Otherwise as [`Source::base_model`].
    pub fn adapter(&self, options: &Options) -> Result<PathBuf, Error> {
        self.folder(Kind::Adapter, options)
    }

    fn folder(&self, kind: Kind, options: &Options) -> Result<PathBuf, Error> {
        match self {
            Self::Folder(folder) => Ok(folder.clone()),
            Self::Hub(reference) if options.offline() => cached(reference, kind, options),
            Self::Hub(reference) => fetch(reference, kind, options),
        }
    }
}

#[derive(Clone, Copy)]
enum Kind {
    BaseModel,
    Adapter,
}

impl Kind {
    /// Which of the files in a repository are needed, or the one that would be needed and is not there.
    fn needs(self, there: &BTreeSet<String>) -> Result<Vec<&str>, Lacking> {
        let find = |name: &str| there.get(name).map(String::as_str);
        let need = |name: &'static str| find(name).ok_or(Lacking { file: name, pickle: None });
        let pickle = |prefix: &str| {
            there.iter().find(|name| name.starts_with(prefix) && name.ends_with(".bin")).cloned()
        };
        match self {
            Self::BaseModel => {
                let mut files = vec![need("config.json")?];
                files.push(
                    find(WEIGHTS)
                        .or_else(|| find(INDEX))
                        .ok_or_else(|| Lacking { file: WEIGHTS, pickle: pickle("pytorch_model") })?,
                );
                match find("tokenizer.json") {
                    Some(tokenizer) => files.push(tokenizer),
                    None => files.extend(["vocab.json", "merges.txt"].into_iter().filter_map(find)),
                }
                // They say what else becomes a token.
                files.extend(TOKENIZER_SETTINGS.into_iter().filter_map(find));
                files.extend(find("generation_config.json"));
                Ok(files)
            }
            Self::Adapter => {
                let weights = find(ADAPTER_WEIGHTS)
                    .ok_or_else(|| Lacking { file: ADAPTER_WEIGHTS, pickle: pickle("adapter_model") });
                Ok(vec![need("adapter_config.json")?, weights?])
            }
        }
    }
}

/// A file that is needed and not there, and one with the same weights that cannot be used.
struct Lacking {
    file: &'static str,
    pickle: Option<String>,
}

/// Fetches what the cache lacks.
fn fetch(reference: &Reference, kind: Kind, options: &Options) -> Result<PathBuf, Error> {
    let client = Client::new(options)?;
    let (commit, there) = client.revision(reference)?;
    let files = kind.needs(&there).map_err(|Lacking { file, pickle }| match pickle {
        Some(pickle) => Error::Pickle { reference: reference.clone(), pickle, file },
        None => Error::NoFile { reference: reference.clone(), file: file.to_owned() },
    })?;

    let cache = options.cache()?;
    let repository = download::Repository::new(&client, &cache, reference, &commit);
    let mut left = MAX_WEIGHTS_BYTES;
    for file in files {
        let path = repository.fetch(file, limit(file))?;
        if file == INDEX {
            for shard in shards(&path)? {
                if !there.contains(&shard) {
                    return Err(Error::NoFile { reference: reference.clone(), file: shard });
                }
                let path = repository.fetch(&shard, left)?;
                let bytes =
                    fs::metadata(&path).map_err(|error| Error::Io { path, reason: error.to_string() })?.len();
                left = left.saturating_sub(bytes);
            }
        }
    }
    repository.remember()
}

/// Looks only into the cache.
fn cached(reference: &Reference, kind: Kind, options: &Options) -> Result<PathBuf, Error> {
    let cache = options.cache()?;
    let lacking = |file: &str| Error::NotCached {
        reference: reference.clone(),
        file: file.to_owned(),
        cache: cache.clone(),
    };
    let Some(snapshot) = snapshot(&cache, reference) else {
        return Err(lacking("the revision"));
    };
    let there: BTreeSet<String> = match fs::read_dir(&snapshot) {
        // A link to a blob that is gone is not a file.
        Ok(entries) => entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| snapshot.join(name).is_file())
            .collect(),
        Err(_) => return Err(lacking("the revision")),
    };
    let files = kind.needs(&there).map_err(|Lacking { file, .. }| lacking(file))?;
    if files.contains(&INDEX) {
        for shard in shards(&snapshot.join(INDEX))? {
            if !there.contains(&shard) {
                return Err(lacking(&shard));
            }
        }
    }
    Ok(snapshot)
}

/// Where the cache has the files of a revision, if it knows which commit that is.
fn snapshot(cache: &Path, reference: &Reference) -> Option<PathBuf> {
    let pointers = |commit: &str| layout(cache, reference).pointer_path(commit);
    if reference.is_commit() {
        return Some(pointers(reference.revision()));
    }
    let path = cache.join(reference.repo().folder_name()).join("refs").join(reference.revision());
    let length = fs::metadata(&path).ok()?.len();
    let commit = if length <= MAX_REF_BYTES { fs::read_to_string(path).ok()? } else { return None };
    reference::is_commit(commit.trim()).then(|| pointers(commit.trim()))
}

fn layout(cache: &Path, reference: &Reference) -> CacheRepo {
    Cache::new(cache.to_owned()).repo(reference.repo())
}

/// The shards that an index lists.
fn shards(index: &Path) -> Result<BTreeSet<String>, Error> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index_file: Index = read::json(index, "it lists the shards of the base model's weights")?;
    let names: BTreeSet<String> = index_file.weight_map.into_values().collect();
    let unsound = |found: String| Error::Index { path: index.to_owned(), found };
    if names.len() > MAX_SHARDS {
        return Err(unsound(format!("{} files", names.len())));
    }
    match names.iter().find(|name| !reference::is_plain(name) || !name.ends_with(".safetensors")) {
        Some(name) => Err(unsound(format!("{name:?}"))),
        None => Ok(names),
    }
}

/// The largest size that is accepted of a file.
fn limit(file: &str) -> u64 {
    match file {
        WEIGHTS => MAX_WEIGHTS_BYTES,
        ADAPTER_WEIGHTS => MAX_ADAPTER_BYTES,
        "tokenizer.json" | "vocab.json" | "merges.txt" => MAX_TOKENIZER_BYTES,
        _ => MAX_JSON_BYTES,
    }
}

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
const TOKENIZER_SETTINGS: [&str; 3] =
    ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"];

/// Of a base model, all shards together: a model of 16 billion float32 parameters.
const MAX_WEIGHTS_BYTES: u64 = 64 << 30;
const MAX_ADAPTER_BYTES: u64 = 4 << 30;
/// GPT-2's tokenizer.json has 1.4 MB, Llama 3's 9 MB.
const MAX_TOKENIZER_BYTES: u64 = 64 << 20;
/// As many as are opened.
const MAX_SHARDS: usize = 1024;
/// A commit and perhaps the end of a line.
const MAX_REF_BYTES: u64 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_read_is_needed() {
        let needs = |kind: Kind, there: &[&str]| {
            let there: BTreeSet<String> = there.iter().map(|&name| name.to_owned()).collect();
            let files = kind.needs(&there).map(|files| files.join(" "));
            files.map_err(|lacking| (lacking.file, lacking.pickle))
        };
        let gpt2 =
            ["config.json", "model.safetensors", "tokenizer.json", "vocab.json", "merges.txt", "64.tflite"];
        assert_eq!(needs(Kind::BaseModel, &gpt2).unwrap(), "config.json model.safetensors tokenizer.json");
        let with_settings =
            [&gpt2[..], &["added_tokens.json", "special_tokens_map.json", "tokenizer_config.json"]];
        assert_eq!(
            needs(Kind::BaseModel, &with_settings.concat()).unwrap(),
            "config.json model.safetensors tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json"
        );
        let older = [&gpt2[..2], &["vocab.json", "merges.txt", "generation_config.json", INDEX]].concat();
        assert_eq!(
            needs(Kind::BaseModel, &older).unwrap(),
            "config.json model.safetensors vocab.json merges.txt generation_config.json"
        );
        assert_eq!(needs(Kind::BaseModel, &["config.json", INDEX]).unwrap(), format!("config.json {INDEX}"));
        assert_eq!(needs(Kind::BaseModel, &["model.safetensors"]).unwrap_err(), ("config.json", None));
        assert_eq!(
            needs(Kind::BaseModel, &["config.json", "pytorch_model-00001-of-00002.bin"]).unwrap_err(),
            (WEIGHTS, Some("pytorch_model-00001-of-00002.bin".to_owned()))
        );
        assert_eq!(
            needs(Kind::Adapter, &["adapter_config.json", ADAPTER_WEIGHTS, "README.md"]).unwrap(),
            "adapter_config.json adapter_model.safetensors"
        );
        assert_eq!(
            needs(Kind::Adapter, &["adapter_config.json", "adapter_model.bin"]).unwrap_err(),
            (ADAPTER_WEIGHTS, Some("adapter_model.bin".to_owned()))
        );
    }
}
