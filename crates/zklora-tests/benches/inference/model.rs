//! A base model of distilgpt2's dimensions and a LoRA adapter for all of its projections, both with random weights.

use std::path::Path;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::json;
use zklora_hf::{Config, Projection};

/// Tokens of the vocabulary.
pub const VOCABULARY: i64 = 50_257;
/// The adapter's rank.
const RANK: usize = 4;

/// Writes the base model in Hugging Face's layout, without a tokenizer.
pub fn write_base(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let config = json!({
        "model_type": "gpt2", "n_layer": 6, "n_head": 12, "n_embd": 768, "n_positions": 1024, "vocab_size": VOCABULARY
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let config = Config::open(&folder.join("config.json")).unwrap();
    let mut rng = StdRng::seed_from_u64(1);
    let tensors = config.architecture().tensors().into_iter().map(|(name, shape)| {
        // As at the start of a training: weights near zero, norms that leave what they normalise.
        let (centre, spread) = match () {
            () if !name.contains("ln_") => (0.0, 0.035),
            () if name.ends_with("weight") => (1.0, 0.0),
            () => (0.0, 0.0),
        };
        let bytes = floats(shape.iter().product(), centre, spread, &mut rng);
        (name, shape, bytes)
    });
    write(&folder.join("model.safetensors"), tensors.collect());
}

/// Writes the adapter as PEFT does.
pub fn write_adapter(folder: &Path, projections: &[Projection]) {
    std::fs::create_dir_all(folder).unwrap();
    let config = json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "distilgpt2", "r": RANK,
        "lora_alpha": 2 * RANK, "bias": "none", "fan_in_fan_out": true, "inference_mode": true,
        "target_modules": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
    });
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    let mut rng = StdRng::seed_from_u64(2);
    let mut tensors = Vec::new();
    for Projection { name, d_in, d_out } in projections {
        for (factor, shape) in [("A", vec![RANK, *d_in]), ("B", vec![*d_out, RANK])] {
            let bytes = floats(shape.iter().product(), 0.0, 0.035, &mut rng);
            tensors.push((format!("base_model.model.{name}.lora_{factor}.weight"), shape, bytes));
        }
    }
    write(&folder.join("adapter_model.safetensors"), tensors);
}

/// Floats within `spread` of `centre`, as bytes.
fn floats(count: usize, centre: f32, spread: f32, rng: &mut StdRng) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 * count);
    for _ in 0..count {
        bytes.extend((centre + spread * (2.0 * rng.random::<f32>() - 1.0)).to_le_bytes());
    }
    bytes
}

fn write(path: &Path, tensors: Vec<(String, Vec<usize>, Vec<u8>)>) {
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    serialize_to_file(views, None, path).unwrap();
}
