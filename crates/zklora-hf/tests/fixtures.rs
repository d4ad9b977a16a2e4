//! The model and the adapters in `fixtures/`, as transformers and PEFT wrote them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::json;
use zklora_hf::{BaseModel, LoraAdapter, Projection};

#[test]
fn the_tiny_model_and_its_adapter_open() {
    let base = BaseModel::open(fixtures().join("gpt2-tiny")).unwrap();
    let adapter = LoraAdapter::open(fixtures().join("lora-es"), &base.projections()).unwrap();
    let targeted: Vec<&String> = adapter.modules.iter().map(|module| &module.name).collect();
    let projections = base.projections();
    let all: Vec<&String> = projections.iter().map(|projection| &projection.name).collect();
    assert_eq!(targeted, all, "the fixture targets every projection");
}

#[test]
fn adapters_that_are_more_than_lora_are_refused() {
    let base = BaseModel::open(fixtures().join("gpt2-tiny")).unwrap();
    for (adapter, why) in [
        ("dora", "use_dora is set: DoRA rescales the base model's weights"),
        ("bias", "bias is \"lora_only\", only \"none\" is supported"),
        ("modules-to-save", "modules_to_save is set: whole retrained modules come with the adapter"),
        ("embedding", "LoRA on an embedding is not supported"),
        (
            "trainable-tokens",
            "trainable_token_indices is set: retrained token embeddings are not LoRA deltas",
        ),
    ] {
        let folder = fixtures().join("unsupported").join(adapter);
        let message = LoraAdapter::open(folder, &base.projections()).unwrap_err().to_string();
        assert!(message.contains(why), "{message:?} should contain {why:?}");
    }
}

/// There is no Llama here yet to give the projections, so the shapes are written out.
#[test]
fn adapters_of_llama_are_read() {
    for (adapter, heads_width, kv_width, modules, rank) in [
        ("llama-all", 32, 16, 14, 4),
        ("llama-qv", 32, 16, 4, 2),
        ("llama-tied-all", 64, 16, 14, 3),
        ("llama-tied-qv", 64, 16, 4, 2),
    ] {
        let projections = llama_projections(heads_width, kv_width);
        let folder = fixtures().join("adapters").join(adapter);
        let read = LoraAdapter::open(&folder, &projections).unwrap();
        assert_eq!(read.modules.len(), modules, "{adapter}");
        assert!(read.modules.iter().all(|module| module.rank == rank), "{adapter}");
    }

    // As PEFT names the modules of LlamaModel.
    let from = fixtures().join("adapters/llama-qv");
    let folder = tempfile::tempdir().unwrap();
    fs::copy(from.join("adapter_config.json"), folder.path().join("adapter_config.json")).unwrap();
    let mut tensors = Tensors::read(&from.join("adapter_model.safetensors"));
    tensors.rename(|name| name.replace("base_model.model.model.", "base_model.model."));
    tensors.write(&folder.path().join("adapter_model.safetensors"), |_| true);
    let read = LoraAdapter::open(folder.path(), &llama_projections(32, 16)).unwrap();
    assert_eq!(read.modules[0].name, "model.layers.0.self_attn.q_proj");
}

/// The weights of GPT-2 on the Hugging Face Hub have no prefix and keep the masks of attention.
#[test]
fn gpt2_may_be_stored_as_it_is_published() {
    let tiny = BaseModel::open(fixtures().join("gpt2-tiny")).unwrap();
    let mut tensors = Tensors::read(&fixtures().join("gpt2-tiny/model.safetensors"));
    tensors.rename(|name| name.trim_start_matches("transformer.").to_owned());
    for layer in 0..3 {
        let mask = (Dtype::F32, vec![1, 1, 256, 256], vec![0; 256 * 256 * 4]);
        tensors.0.insert(format!("h.{layer}.attn.bias"), mask);
    }
    assert_eq!(tensors.open(1).digest(), tiny.digest());
    assert_eq!(tensors.open(3).digest(), tiny.digest());
    tensors.rename(|name| format!("transformer.{name}"));
    assert_eq!(tensors.open(1).digest(), tiny.digest());

    // Rounded weights are another model, however they are stored.
    for (dtype, round) in [
        (Dtype::F16, (|x| f16::from_f32(x).to_le_bytes()) as fn(f32) -> [u8; 2]),
        (Dtype::BF16, |x| bf16::from_f32(x).to_le_bytes()),
    ] {
        let mut rounded = tensors.clone();
        for (stored, _, bytes) in rounded.0.values_mut() {
            *stored = dtype;
            *bytes = floats(bytes).flat_map(round).collect();
        }
        let mut widened = rounded.clone();
        for (stored, _, bytes) in widened.0.values_mut() {
            *stored = Dtype::F32;
            let widen = |x: &[u8]| match dtype {
                Dtype::F16 => f16::from_le_bytes([x[0], x[1]]).to_f32(),
                _ => bf16::from_le_bytes([x[0], x[1]]).to_f32(),
            };
            *bytes = bytes.chunks_exact(2).flat_map(|x| widen(x).to_le_bytes()).collect();
        }
        assert_eq!(rounded.open(2).digest(), widened.open(1).digest());
        assert_ne!(rounded.open(1).digest(), tiny.digest());
    }
}

fn llama_projections(heads_width: usize, kv_width: usize) -> Vec<Projection> {
    (0..2)
        .flat_map(|layer| {
            [
                ("self_attn.q_proj", 32, heads_width),
                ("self_attn.k_proj", 32, kv_width),
                ("self_attn.v_proj", 32, kv_width),
                ("self_attn.o_proj", heads_width, 32),
                ("mlp.gate_proj", 32, 48),
                ("mlp.up_proj", 32, 48),
                ("mlp.down_proj", 48, 32),
            ]
            .map(|(part, d_in, d_out)| Projection {
                name: format!("model.layers.{layer}.{part}"),
                d_in,
                d_out,
            })
        })
        .collect()
}

/// The contents of a safetensors file: type, shape and bytes by name.
#[derive(Clone)]
struct Tensors(BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>);

impl Tensors {
    fn read(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let contents = |view: TensorView<'_>| (view.dtype(), view.shape().to_vec(), view.data().to_vec());
        Self(file.iter().map(|(name, view)| (name.to_owned(), contents(view))).collect())
    }

    fn rename(&mut self, rename: impl Fn(&str) -> String) {
        self.0 = std::mem::take(&mut self.0)
            .into_iter()
            .map(|(name, contents)| (rename(&name), contents))
            .collect();
    }

    fn write(&self, path: &Path, wanted: impl Fn(&str) -> bool) {
        let views = self.0.iter().filter(|(name, _)| wanted(name)).map(|(name, (dtype, shape, bytes))| {
            (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        serialize_to_file(views, None, path).unwrap();
    }

    /// Opens a copy of the GPT-2 fixture that has these weights, in so many files.
    fn open(&self, files: usize) -> BaseModel {
        let folder = tempfile::tempdir().unwrap();
        let path = |file: &str| folder.path().join(file);
        fs::copy(fixtures().join("gpt2-tiny/config.json"), path("config.json")).unwrap();
        if files == 1 {
            self.write(&path("model.safetensors"), |_| true);
        } else {
            let shard = |index: usize| format!("model-{:05}-of-{files:05}.safetensors", index + 1);
            let map: BTreeMap<&str, String> = self
                .0
                .keys()
                .enumerate()
                .map(|(index, name)| (name.as_str(), shard(index * files / self.0.len())))
                .collect();
            for file in (0..files).map(shard) {
                self.write(&path(&file), |name| map[name] == file);
            }
            let index = json!({ "weight_map": map });
            fs::write(path("model.safetensors.index.json"), index.to_string()).unwrap();
        }
        BaseModel::open(folder.path()).unwrap()
    }
}

fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}
