use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::path::{Component, Path};

use serde::Deserialize;

use crate::config::HEAD;
use crate::tensor_file::TensorFile;
use crate::wrappers::wrapper_in;
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
    /// Opens the weights in `folder`: each tensor that `config` asks for has to be there, with its shape, as float32,
    /// float16 or bfloat16, and no other but [buffers](crate::Architecture::is_buffer).
    ///
    /// The embedding and the head of a tied model are one, under the name of either, or of both if their values are the
    /// same. If they are not, the head is one of its own, as for transformers: the configuration that is given back says
    /// so.
    ///
    /// Fails with [`Error::Tensor`] or [`Error::Unused`], naming the tensor.
    pub fn open(folder: &Path, config: Config) -> Result<(Config, Self), Error> {
        let files = open_files(folder)?;
        let mut stored = Stored::of(&files, config.architecture().prefix())?;
        let config = stored.tie(&files, config)?;
        let architecture = config.architecture();
        let mut tensors = BTreeMap::new();
        for (name, shape) in architecture.tensors() {
            let Some(location) = stored.0.remove(&name) else {
                return Err(stored.lacks(folder, name, &shape));
            };
            files[location.file].check(&location.stored, &shape)?;
            tensors.insert(name, location);
        }
        if let Some((name, unused)) = stored.0.iter().find(|(name, _)| !architecture.is_buffer(name)) {
            return Err(Error::Unused {
                path: files[unused.file].path().to_owned(),
                tensor: unused.stored.clone(),
                reason: architecture.about_unused(name).unwrap_or_default(),
            });
        }
        Ok((config, Self { files, tensors }))
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

/// The tensors of all files, by name without the architecture's prefix.
struct Stored(BTreeMap<String, Location>);

impl Stored {
    fn of(files: &[TensorFile], prefix: &str) -> Result<Self, Error> {
        let mut found: BTreeMap<String, Location> = BTreeMap::new();
        for (index, file) in files.iter().enumerate() {
            for stored in file.names() {
                if let Some(wrapper) = wrapper_in(&stored) {
                    return Err(Error::Unused {
                        path: file.path().to_owned(),
                        tensor: stored,
                        reason: wrapper.to_owned(),
                    });
                }
                let name = stored.strip_prefix(prefix).unwrap_or(&stored).to_owned();
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
        Ok(Self(found))
    }

    /// Leaves a tied model's embedding and head under the name of the embedding alone, or unties it.
    fn tie(&mut self, files: &[TensorFile], config: Config) -> Result<Config, Error> {
        let embedding = config.architecture().embedding();
        if !config.architecture().tied() {
            return Ok(config);
        }
        match (self.0.get(embedding), self.0.get(HEAD)) {
            (Some(embedding), Some(head)) => {
                let values = |of: &Location| files[of.file].digest_of_values(&of.stored);
                let same_shape = files[embedding.file].shape(&embedding.stored)?
                    == files[head.file].shape(&head.stored)?;
                if !same_shape || values(embedding)? != values(head)? {
                    return Ok(config.untied());
                }
                self.0.remove(HEAD);
            }
            (None, Some(_)) => {
                if let Some(head) = self.0.remove(HEAD) {
                    self.0.insert(embedding.to_owned(), head);
                }
            }
            (_, None) => {}
        }
        Ok(config)
    }

    fn lacks(&self, folder: &Path, name: String, shape: &[usize]) -> Error {
        let wrapped = self.0.values().find(|other| other.stored.ends_with(&format!(".{name}")));
        let found = match wrapped {
            Some(other) => format!("none of this name, but {}; save the model itself", other.stored),
            None if name == HEAD => "none of this name, and tie_word_embeddings is false".to_owned(),
            None => "none of this name".to_owned(),
        };
        let expected = format!("a tensor of shape {shape:?}");
        Error::Tensor { path: folder.to_owned(), tensor: name, expected, found }
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
    use serde_json::{Value, json};
    use tempfile::TempDir;

    use super::*;
    use crate::BaseModel;
    use crate::testing::{TestTensor, gpt2_config, gpt2_tensors, write_base, write_json, write_tensors};

    #[test]
    fn names_may_have_the_prefix_and_buffers_are_not_read() {
        for prefix in ["", "transformer."] {
            let folder = tempfile::tempdir().unwrap();
            let mut tensors = gpt2_tensors(prefix);
            tensors.push(TestTensor::raw(
                &format!("{prefix}h.0.attn.bias"),
                safetensors::Dtype::U8,
                &[2],
                vec![1, 1],
            ));
            tensors.push(TestTensor::f32(&format!("{prefix}h.1.attn.masked_bias"), &[], &[-1e4]));
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
    fn an_embedding_and_a_tied_head_are_one() {
        let wte = || gpt2_tensors("")[0].clone();
        let head = |bytes: Vec<u8>| TestTensor { name: "lm_head.weight".to_owned(), bytes, ..wte() };
        let opened = |config: &Value, change: &dyn Fn(&mut Vec<TestTensor>)| {
            let folder = tempfile::tempdir().unwrap();
            let mut tensors = gpt2_tensors("");
            change(&mut tensors);
            write_base(folder.path(), config, &tensors);
            let model = BaseModel::open(folder.path())?;
            Ok::<_, Error>((model.digest(), model.config().architecture().tied()))
        };
        let plain = opened(&gpt2_config(), &|_| {}).unwrap();
        assert!(plain.1);
        // Under the name of the head, or of both, in whatever type: it is the same model.
        let only_head = |tensors: &mut Vec<TestTensor>| tensors[0] = head(wte().bytes);
        assert_eq!(opened(&gpt2_config(), &only_head).unwrap(), plain);
        let both = |tensors: &mut Vec<TestTensor>| tensors.push(head(wte().bytes));
        assert_eq!(opened(&gpt2_config(), &both).unwrap(), plain);

        // With other values the head is one of its own, as if the configuration said so.
        let other = |tensors: &mut Vec<TestTensor>| {
            let mut bytes = wte().bytes;
            bytes[0] ^= 1;
            tensors.push(head(bytes));
        };
        let untied = opened(&gpt2_config(), &other).unwrap();
        assert_ne!(untied.0, plain.0);
        assert!(!untied.1);
        let mut config = gpt2_config();
        config["tie_word_embeddings"] = json!(false);
        assert_eq!(opened(&config, &other).unwrap(), untied);
        assert_ne!(opened(&config, &both).unwrap().0, plain.0);

        // One that is not tied has to be there, and neither takes the other's place.
        let message = opened(&config, &|_| {}).unwrap_err().to_string();
        assert!(message.contains("tensor lm_head.weight: expected a tensor of shape [16, 4]"), "{message}");
        assert!(message.contains("tie_word_embeddings is false"), "{message}");
        let message = opened(&config, &only_head).unwrap_err().to_string();
        assert!(message.contains("tensor wte.weight: expected"), "{message}");
        let misshapen = |tensors: &mut Vec<TestTensor>| {
            tensors.push(TestTensor::f32("lm_head.weight", &[1], &[7.0]));
        };
        let message = opened(&gpt2_config(), &misshapen).unwrap_err().to_string();
        assert!(message.contains("tensor lm_head.weight: expected shape [16, 4], found [1]"), "{message}");
        let neither = |tensors: &mut Vec<TestTensor>| drop(tensors.remove(0));
        let message = opened(&gpt2_config(), &neither).unwrap_err().to_string();
        assert!(message.contains("tensor wte.weight: expected"), "{message}");
    }

    #[test]
    fn a_tensor_that_nothing_is_computed_with_is_named() {
        for (name, why) in [
            ("h.2.ln_1.weight", "by n_layer, the model has 2 layers"),
            ("transformer.h.7.attn.c_attn.bias", "by n_layer, the model has 2 layers"),
            ("h.0.crossattention.c_attn.weight", "attention to an encoder"),
            ("h.0.attn.c_attn.weight.absmax", "or take the tensor out"),
            ("lm_head.bias", "or take the tensor out"),
            ("score.weight", "or take the tensor out"),
            ("attn.bias", "or take the tensor out"),
            ("rotary_emb.inv_freq", "or take the tensor out"),
            ("_orig_mod.transformer.wte.weight", "torch.compile"),
            ("module.transformer.wte.weight", "DistributedDataParallel"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let mut tensors = gpt2_tensors("transformer.");
            tensors.push(TestTensor::f32(name, &[1], &[0.0]));
            write_base(folder.path(), &gpt2_config(), &tensors);
            let message = open(&folder).unwrap_err().to_string();
            assert!(message.contains(&format!("tensor {name} has no place in the model")), "{message}");
            assert!(message.contains(why), "{message:?} should contain {why:?}");
        }
    }

    #[test]
    fn a_llama_has_no_biases_and_its_frequencies_are_not_read() {
        let config = json!({
            "model_type": "llama", "num_hidden_layers": 1, "hidden_size": 4, "intermediate_size": 4,
            "num_attention_heads": 2, "vocab_size": 3
        });
        let opened = |more: &[&str]| {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("config.json");
            write_json(&path, &config);
            let needed = Config::open(&path).unwrap().architecture().tensors();
            let mut tensors: Vec<TestTensor> = needed
                .into_iter()
                .map(|(name, shape)| {
                    let values = vec![0.5; shape.iter().product()];
                    TestTensor::f32(&name, &shape, &values)
                })
                .collect();
            tensors.extend(more.iter().map(|name| TestTensor::f32(name, &[2], &[0.1, 0.2])));
            write_base(folder.path(), &config, &tensors);
            BaseModel::open(folder.path()).map(|model| model.digest()).map_err(|error| error.to_string())
        };
        let plain = opened(&[]).unwrap();
        let buffers = ["model.layers.0.self_attn.rotary_emb.inv_freq", "rotary_emb.inv_freq"];
        assert_eq!(opened(&buffers).unwrap(), plain);
        for (name, why) in [
            ("model.layers.0.self_attn.q_proj.bias", "attention_bias and mlp_bias are false"),
            ("model.layers.0.self_attn.o_proj.bias", "attention_bias and mlp_bias are false"),
            ("model.layers.0.mlp.down_proj.bias", "attention_bias and mlp_bias are false"),
            ("model.layers.0.self_attn.q_norm.weight", "or take the tensor out"),
            ("model.layers.1.self_attn.q_proj.weight", "by num_hidden_layers, the model has 1 layers"),
            ("model.norm.bias", "or take the tensor out"),
            ("h.0.attn.bias", "or take the tensor out"),
        ] {
            let message = opened(&[name]).unwrap_err();
            assert!(message.contains(&format!("tensor {name} has no place")), "{message}");
            assert!(message.contains(why), "{message:?} should contain {why:?}");
        }
    }

    #[test]
    fn a_model_within_another_is_said_to_be() {
        let folder = tempfile::tempdir().unwrap();
        let mut tensors = gpt2_tensors("");
        for tensor in &mut tensors {
            tensor.name.insert_str(0, "policy.transformer.");
        }
        write_base(folder.path(), &gpt2_config(), &tensors);
        let message = open(&folder).unwrap_err().to_string();
        assert!(message.contains("none of this name, but policy.transformer.wte.weight"), "{message}");
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
        Ok(Weights::open(folder.path(), config)?.1)
    }
}
