//! Small models and adapters in temporary folders, for this crate's tests.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Value, json};

/// The smallest GPT-2 with all of its parts: 2 layers of width 4.
pub(crate) fn gpt2_config() -> Value {
    json!({
        "model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 4, "n_positions": 8, "vocab_size": 16,
        "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new"
    })
}

/// All tensors of the model of [`gpt2_config`], with names prefixed by `prefix`; values differ between tensors.
pub(crate) fn gpt2_tensors(prefix: &str) -> Vec<TestTensor> {
    let mut shapes = vec![
        ("wte.weight".to_owned(), vec![16, 4]),
        ("wpe.weight".to_owned(), vec![8, 4]),
        ("ln_f.weight".to_owned(), vec![4]),
        ("ln_f.bias".to_owned(), vec![4]),
    ];
    for layer in 0..2 {
        for (name, shape) in [
            ("ln_1.weight", vec![4]),
            ("ln_1.bias", vec![4]),
            ("attn.c_attn.weight", vec![4, 12]),
            ("attn.c_attn.bias", vec![12]),
            ("attn.c_proj.weight", vec![4, 4]),
            ("attn.c_proj.bias", vec![4]),
            ("ln_2.weight", vec![4]),
            ("ln_2.bias", vec![4]),
            ("mlp.c_fc.weight", vec![4, 16]),
            ("mlp.c_fc.bias", vec![16]),
            ("mlp.c_proj.weight", vec![16, 4]),
            ("mlp.c_proj.bias", vec![4]),
        ] {
            shapes.push((format!("h.{layer}.{name}"), shape));
        }
    }
    shapes
        .into_iter()
        .enumerate()
        .map(|(i, (name, shape))| {
            let values: Vec<f32> =
                (0..shape.iter().product()).map(|j: usize| i as f32 + j as f32 / 64.0).collect();
            TestTensor::f32(&format!("{prefix}{name}"), &shape, &values)
        })
        .collect()
}

pub(crate) fn write_base(folder: &Path, config: &Value, tensors: &[TestTensor]) {
    write_json(&folder.join("config.json"), config);
    write_tensors(&folder.join("model.safetensors"), tensors);
}

pub(crate) fn write_json(path: &Path, value: &Value) {
    std::fs::write(path, value.to_string()).unwrap();
}

pub(crate) fn write_tensors(path: &Path, tensors: &[TestTensor]) {
    let views: BTreeMap<&str, TensorView<'_>> = tensors
        .iter()
        .map(|t| (t.name.as_str(), TensorView::new(t.dtype, t.shape.clone(), &t.bytes).unwrap()))
        .collect();
    assert_eq!(views.len(), tensors.len(), "names must differ");
    std::fs::write(path, serialize(views, None).unwrap()).unwrap();
}

#[derive(Clone)]
pub(crate) struct TestTensor {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

impl TestTensor {
    pub(crate) fn f32(name: &str, shape: &[usize], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes());
        Self::raw(name, Dtype::F32, shape, bytes.collect())
    }

    pub(crate) fn raw(name: &str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Self {
        Self { name: name.to_owned(), dtype, shape: shape.to_vec(), bytes }
    }
}
