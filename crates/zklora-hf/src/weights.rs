use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::path::{Component, Path};

use serde::Deserialize;

use crate::tensor_file::TensorFile;
use crate::{Config, Error, read};

/// A base model's weights, in `model.safetensors` or in shards listed by `model.safetensors.index.json`.
///
/// The files stay open and tensors are read from them one at a time. They must not change while this exists.
#[derive(Debug)]
pub struct Weights {
    files: Vec<TensorFile>,
    /// Which file holds which needed tensor, and under what name there. Sorted by name without the architecture's prefix.
    tensors: BTreeMap<String, Location>,
}

/// A tensor in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct HostTensor {
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// Its values in row-major order.
    pub data: Vec<f32>,
}

impl Weights {
    /// Opens the weights in `folder` and checks that each tensor that `config` asks for is there, with its shape, as
    /// float32, float16 or bfloat16. Other tensors (buffers such as `attn.bias`, the tied `lm_head`) are ignored.
    pub fn open(folder: &Path, config: &Config) -> Result<Self, Error> {
        let architecture = config.architecture();
        let files = open_files(folder)?;
        let mut found: BTreeMap<String, Location> = BTreeMap::new();
        for (index, file) in files.iter().enumerate() {
            for stored in file.names() {
                let name = stored.strip_prefix(architecture.prefix()).unwrap_or(&stored).to_owned();
                let location = Location { file: index, stored };
                if let Some(other) = found.insert(name.clone(), location) {
                    return Err(Error::Tensor {
                        path: file.path().to_owned(),
                        tensor: name,
                        expected: "one tensor of this name".to_owned(),
                        found: format!("another in {}", files[other.file].path().display()),
                    });
                }
            }
        }
        let mut tensors = BTreeMap::new();
        for (name, shape) in architecture.tensors() {
            let Some(location) = found.remove(&name) else {
                return Err(Error::Tensor {
                    path: folder.to_owned(),
                    tensor: name,
                    expected: format!("a tensor of shape {shape:?}"),
                    found: "none of this name".to_owned(),
                });
            };
            files[location.file].check(&location.stored, &shape)?;
            tensors.insert(name, location);
        }
        Ok(Self { files, tensors })
    }

    /// Reads a tensor of [`Architecture::tensors`](crate::Architecture::tensors), widened to float32.
    pub fn tensor(&self, name: &str) -> Result<HostTensor, Error> {
        let (file, stored) = self.locate(name)?;
        Ok(HostTensor { shape: file.shape(stored)?.to_vec(), data: mem::take(&mut *file.read(stored)?) })
    }

    /// The needed tensors' names, in order of their bytes.
    pub(crate) fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The file that holds a tensor, and its name there.
    pub(crate) fn locate(&self, name: &str) -> Result<(&TensorFile, &str), Error> {
        match self.tensors.get(name) {
            Some(location) => Ok((&self.files[location.file], &location.stored)),
            None => Err(Error::Tensor {
                path: self.files[0].path().to_owned(),
                tensor: name.to_owned(),
                expected: "a tensor of the architecture".to_owned(),
                found: "a name that is not one".to_owned(),
            }),
        }
    }
}

/// Never empty.
fn open_files(folder: &Path) -> Result<Vec<TensorFile>, Error> {
    let index_path = folder.join("model.safetensors.index.json");
    let single = folder.join("model.safetensors");
    if single.exists() || !index_path.exists() {
        let hint = if folder.join("pytorch_model.bin").exists() {
            "only pytorch_model.bin is there, a pickle, which can run code; convert it to safetensors"
        } else {
            "it holds the base model's weights"
        };
        return Ok(vec![TensorFile::open(&single, hint)?]);
    }

    let index: ShardIndex = read::json(&index_path, "it lists the shards of the base model's weights")?;
    let names: BTreeSet<&String> = index.weight_map.values().collect();
    if names.is_empty() || names.len() > MAX_SHARDS {
        return Err(Error::Setting {
            path: index_path,
            field: "weight_map".to_owned(),
            expected: format!("1 to {MAX_SHARDS} files"),
            found: names.len().to_string(),
        });
    }
    names
        .into_iter()
        .map(|name| {
            // A shard lies beside its index: the index must not make us open files elsewhere.
            if !matches!(Path::new(name).components().collect::<Vec<_>>()[..], [Component::Normal(_)]) {
                return Err(Error::Setting {
                    path: index_path.clone(),
                    field: "weight_map".to_owned(),
                    expected: "names of files in the same folder".to_owned(),
                    found: format!("{name:?}"),
                });
            }
            TensorFile::open(&folder.join(name), "it is a shard of the base model's weights")
        })
        .collect()
}

#[derive(Debug)]
struct Location {
    /// Index into `Weights::files`.
    file: usize,
    stored: String,
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

/// The largest public models have fewer than 200.
const MAX_SHARDS: usize = 1024;

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tempfile::TempDir;

    use super::*;
    use crate::testing::{TestTensor, gpt2_config, gpt2_tensors, write_base, write_json, write_tensors};

    #[test]
    fn names_may_have_the_prefix_and_buffers_are_ignored() {
        for prefix in ["", "transformer."] {
            let folder = tempfile::tempdir().unwrap();
            let mut tensors = gpt2_tensors(prefix);
            tensors.push(TestTensor::raw(
                &format!("{prefix}h.0.attn.bias"),
                safetensors::Dtype::U8,
                &[2],
                vec![1, 1],
            ));
            tensors.push(TestTensor::f32("lm_head.weight", &[1], &[7.0]));
            write_base(folder.path(), &gpt2_config(), &tensors);
            let weights = open(&folder).unwrap();
            let bias = weights.tensor("ln_f.bias").unwrap();
            assert_eq!(bias.shape, [4]);
            assert_eq!(bias.data, [3.0, 3.0 + 1.0 / 64.0, 3.0 + 2.0 / 64.0, 3.0 + 3.0 / 64.0]);
            assert!(weights.tensor("h.0.attn.bias").is_err());
        }
    }

    #[test]
    fn shards_are_read_by_their_index() {
        let folder = tempfile::tempdir().unwrap();
        let tensors = gpt2_tensors("");
        let mut map = serde_json::Map::new();
        for (shard, tensors) in tensors.chunks(tensors.len().div_ceil(2)).enumerate() {
            let file = format!("model-{shard}.safetensors");
            write_tensors(&folder.path().join(&file), tensors);
            map.extend(tensors.iter().map(|t| (t.name.clone(), json!(file))));
        }
        let index = folder.path().join("model.safetensors.index.json");
        write_json(&folder.path().join("config.json"), &gpt2_config());
        write_json(&index, &json!({ "metadata": { "total_size": 1 }, "weight_map": map }));
        assert_eq!(open(&folder).unwrap().files.len(), 2);

        for name in ["../model-0.safetensors", "/etc/passwd", "a/b", ".."] {
            write_json(&index, &json!({ "weight_map": { "wte.weight": name } }));
            let message = open(&folder).unwrap_err().to_string();
            assert!(message.contains("names of files in the same folder"), "{message}");
        }
    }

    #[test]
    fn a_tensor_that_does_not_fit_is_named() {
        let refusal = |change: &dyn Fn(&mut Vec<TestTensor>)| {
            let folder = tempfile::tempdir().unwrap();
            let mut tensors = gpt2_tensors("");
            change(&mut tensors);
            write_base(folder.path(), &gpt2_config(), &tensors);
            open(&folder).unwrap_err().to_string()
        };
        let missing = refusal(&|tensors| tensors.retain(|t| t.name != "h.1.ln_2.bias"));
        assert!(missing.contains("tensor h.1.ln_2.bias: expected a tensor of shape [4]"), "{missing}");

        let shape = refusal(&|tensors| tensors[0].shape = vec![4, 16]);
        assert!(shape.contains("tensor wte.weight: expected shape [16, 4], found [4, 16]"), "{shape}");

        let dtype = refusal(&|tensors| {
            tensors[3].dtype = safetensors::Dtype::I32;
        });
        assert!(dtype.contains("tensor ln_f.bias: expected F32, F16 or BF16, found I32"), "{dtype}");

        let twice = refusal(&|tensors| {
            let mut copy = tensors[0].clone();
            copy.name.insert_str(0, "transformer.");
            tensors.push(copy);
        });
        assert!(twice.contains("tensor wte.weight: expected one tensor of this name"), "{twice}");
    }

    #[test]
    fn missing_weights_say_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        write_json(&folder.path().join("config.json"), &gpt2_config());
        assert!(open(&folder).unwrap_err().to_string().contains("model.safetensors is missing"));
        std::fs::write(folder.path().join("pytorch_model.bin"), b"").unwrap();
        assert!(open(&folder).unwrap_err().to_string().contains("convert it to safetensors"));
    }

    fn open(folder: &TempDir) -> Result<Weights, Error> {
        let config = Config::open(&folder.path().join("config.json")).unwrap();
        Weights::open(folder.path(), &config)
    }
}
