//! A base model of distilgpt2's dimensions with the outliers that GPT-2's have, and a LoRA adapter on it, both with random weights.

use std::collections::BTreeMap;
use std::path::Path;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::json;

/// Tokens of the vocabulary.
pub const VOCABULARY: u32 = 50_257;
const LAYERS: usize = 6;
const WIDTH: usize = 768;
const POSITIONS: usize = 1024;
const RANK: usize = 8;
/// The channels of the residual stream that become massive, and what the first token has there from the third layer on.
const HOT: [usize; 4] = [138, 378, 447, 591];
const MASSIVE: [f32; 4] = [3000.0, -2000.0, 800.0, 300.0];
/// The inner unit of an MLP that fires for the first token alone.
const UNIT: usize = 77;

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Random numbers of a few kinds.
struct Random(StdRng);

impl Random {
    /// A normal one: Box and Muller, 1958.
    fn normal(&mut self, mean: f32, deviation: f32) -> f32 {
        let (u, v): (f32, f32) = (1.0 - self.0.random::<f32>(), self.0.random());
        mean + deviation * (-2.0 * u.ln()).sqrt() * (std::f32::consts::TAU * v).cos()
    }

    fn normals(&mut self, count: usize, mean: f32, deviation: f32) -> Vec<f32> {
        (0..count).map(|_| self.normal(mean, deviation)).collect()
    }

    /// Gains of a norm, spread log-normally.
    fn gains(&mut self, median: f32, spread: f32) -> Vec<f32> {
        (0..WIDTH).map(|_| self.normal(median.ln(), spread).exp()).collect()
    }
}

/// Writes the base model in Hugging Face's layout, without a tokenizer.
///
/// Weights have the spreads of GPT-2's. In each layer three gains are 20 to 50 times the others; four channels of the residual stream are written some ten
/// times as strongly as the others by the second and the third MLP, and in the third one unit, which fires for the first token alone, makes
/// them 3,000, -2,000, 800 and 300 there.
pub fn write_base(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let config = json!({
        "model_type": "gpt2", "n_layer": LAYERS, "n_head": 12, "n_embd": WIDTH, "n_positions": POSITIONS, "vocab_size": VOCABULARY
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let mut random = Random(StdRng::seed_from_u64(5));
    let mut tensors = Tensors::new();
    let mut wpe = random.normals(POSITIONS * WIDTH, 0.0, 0.05);
    for (&channel, value) in HOT.iter().zip([25.0, -20.0, 15.0, 8.0]) {
        wpe[channel] = value;
    }
    let wte = random.normals(VOCABULARY as usize * WIDTH, 0.0, 0.14);
    tensors.insert("wte.weight".into(), (vec![VOCABULARY as usize, WIDTH], wte));
    tensors.insert("wpe.weight".into(), (vec![POSITIONS, WIDTH], wpe));
    for layer in 0..LAYERS {
        self::layer(layer, &mut random, &mut tensors);
    }
    let mut gain = random.gains(1.0, 0.2);
    for _ in 0..3 {
        gain[random.0.random_range(0..WIDTH)] *= 5.0;
    }
    HOT.iter().for_each(|&channel| gain[channel] *= 0.1);
    tensors.insert("ln_f.weight".into(), (vec![WIDTH], gain));
    tensors.insert("ln_f.bias".into(), (vec![WIDTH], random.normals(WIDTH, 0.0, 0.05)));
    write(&folder.join("model.safetensors"), &tensors);
}

fn layer(layer: usize, random: &mut Random, tensors: &mut Tensors) {
    let inner = 4 * WIDTH;
    let mut put = |name: &str, shape: Vec<usize>, values: Vec<f32>| {
        tensors.insert(format!("h.{layer}.{name}"), (shape, values));
    };
    let norm = |median: f32, random: &mut Random| {
        let mut gain = random.gains(median, 0.35);
        let large: Vec<usize> = (0..3).map(|_| random.0.random_range(0..WIDTH)).collect();
        for &channel in &large {
            gain[channel] *= random.0.random_range(20.0..50.0);
        }
        HOT.iter().for_each(|&channel| gain[channel] *= 0.1);
        (gain, large)
    };
    let (gain_1, large_1) = norm(if layer == 0 { 0.18 } else { 0.25 }, random);
    let (gain_2, large_2) = norm(0.35, random);
    // Rows that read a large gain have small weights, or everything would blow up.
    let quiet = |weights: &mut [f32], columns: usize, rows: &[usize]| {
        for &row in rows {
            weights[row * columns..][..columns].iter_mut().for_each(|w| *w *= 0.15);
        }
    };
    let mut attention = random.normals(WIDTH * 3 * WIDTH, 0.0, 0.14);
    for row in attention.chunks_exact_mut(3 * WIDTH) {
        row[..2 * WIDTH].iter_mut().for_each(|w| *w *= 1.3);
    }
    quiet(&mut attention, 3 * WIDTH, &large_1);
    let mut mlp_in = random.normals(WIDTH * inner, 0.0, 0.13);
    quiet(&mut mlp_in, inner, &large_2);
    let mut mlp_in_bias = random.normals(inner, -0.3, 0.2);
    let mut mlp_out = random.normals(inner * WIDTH, 0.0, 0.06);
    let mut mlp_out_bias = random.normals(WIDTH, 0.0, 0.1);
    for &channel in &HOT {
        let strength = if layer == 1 || layer == 2 { random.0.random_range(5.0..30.0) } else { 1.0 };
        mlp_out.iter_mut().skip(channel).step_by(WIDTH).for_each(|w| *w *= strength);
        mlp_out_bias[channel] += random.normal(0.0, 10.0);
    }
    if layer == 2 {
        // The first token's direction, which only it has.
        for row in 0..WIDTH {
            mlp_in[row * inner + UNIT] = 0.0;
        }
        for (&channel, sign) in HOT.iter().zip([1.0f32, -1.0, 1.0, 1.0]) {
            mlp_in[channel * inner + UNIT] = sign * 20.0;
        }
        mlp_in_bias[UNIT] = -8.0;
        for (&channel, massive) in HOT.iter().zip(MASSIVE) {
            mlp_out[UNIT * WIDTH + channel] = massive / 19.0;
        }
    }
    put("ln_1.weight", vec![WIDTH], gain_1);
    put("ln_1.bias", vec![WIDTH], random.normals(WIDTH, 0.0, 0.05));
    put("attn.c_attn.weight", vec![WIDTH, 3 * WIDTH], attention);
    put("attn.c_attn.bias", vec![3 * WIDTH], random.normals(3 * WIDTH, 0.0, 0.2));
    put("attn.c_proj.weight", vec![WIDTH, WIDTH], random.normals(WIDTH * WIDTH, 0.0, 0.12));
    put("attn.c_proj.bias", vec![WIDTH], random.normals(WIDTH, 0.0, 0.1));
    put("ln_2.weight", vec![WIDTH], gain_2);
    put("ln_2.bias", vec![WIDTH], random.normals(WIDTH, 0.0, 0.05));
    put("mlp.c_fc.weight", vec![WIDTH, inner], mlp_in);
    put("mlp.c_fc.bias", vec![inner], mlp_in_bias);
    put("mlp.c_proj.weight", vec![inner, WIDTH], mlp_out);
    put("mlp.c_proj.bias", vec![WIDTH], mlp_out_bias);
}

/// Writes an adapter on all projections as PEFT does: its deltas are a tenth of what the base model's matrices give.
pub fn write_adapter(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let config = json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "distilgpt2", "r": RANK,
        "lora_alpha": 2 * RANK, "bias": "none", "fan_in_fan_out": true, "inference_mode": true,
        "target_modules": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
    });
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    let mut random = Random(StdRng::seed_from_u64(6));
    let mut tensors = Tensors::new();
    for layer in 0..LAYERS {
        for (part, d_in, d_out, deviation) in [
            ("attn.c_attn", WIDTH, 3 * WIDTH, 0.17),
            ("attn.c_proj", WIDTH, WIDTH, 0.12),
            ("mlp.c_fc", WIDTH, 4 * WIDTH, 0.13),
            ("mlp.c_proj", 4 * WIDTH, WIDTH, 0.06),
        ] {
            let name = format!("base_model.model.transformer.h.{layer}.{part}");
            let b = 0.1 * deviation / (0.02 * 2.0 * (RANK as f32).sqrt());
            let a = random.normals(RANK * d_in, 0.0, 0.02);
            tensors.insert(format!("{name}.lora_A.weight"), (vec![RANK, d_in], a));
            tensors.insert(
                format!("{name}.lora_B.weight"),
                (vec![d_out, RANK], random.normals(d_out * RANK, 0.0, b)),
            );
        }
    }
    write(&folder.join("adapter_model.safetensors"), &tensors);
}

fn write(path: &Path, tensors: &Tensors) {
    let bytes: Vec<(&String, &Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, (shape, values))| (name, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect()))
        .collect();
    let views = bytes
        .iter()
        .map(|(name, shape, bytes)| (name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap()));
    serialize_to_file(views, None, path).unwrap();
}
