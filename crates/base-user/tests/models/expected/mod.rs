//! What transformers and PEFT computed, in files of goldens, and comparing with it.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "tests say what they measure or pass over")]
#![allow(dead_code, reason = "each test file uses a part of this")]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use zklora_base_user::models::Model;
use zklora_hf::{BaseModel, LoraAdapter};

use crate::local_lora::{LocalLora, values};

/// Of logits, losses in nats, and deltas: what float32 sums in another order may differ by, with a margin.
const TOLERANCE: f64 = 1e-3;

pub fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

/// Reads a file of goldens in the fixtures.
pub fn goldens<T: DeserializeOwned>(file: &str) -> T {
    serde_json::from_slice(&fs::read(fixtures().join(file)).unwrap()).unwrap()
}

/// The base model with an adapter, and the hook that applies it.
pub fn adapted(base: &BaseModel, adapter: &LoraAdapter) -> (Model, Arc<LocalLora>) {
    let mut model = Model::load(base).unwrap();
    let lora = Arc::new(LocalLora::new(adapter));
    model.patch(lora.clone()).unwrap();
    (model, lora)
}

/// Compares what a model computes for a text with what is expected of it.
pub fn compare_outputs(
    worst: &mut Worst,
    text: &str,
    model: &Model,
    token_ids: &[i64],
    logit_token_ids: &[usize],
    golden: &Outputs,
) {
    let logits = model.logits(token_ids).unwrap();
    for at in &golden.logits {
        let all = values(&logits.get(at.position));
        let sampled: Vec<f64> = logit_token_ids.iter().map(|&id| all[id]).collect();
        worst.compare(&format!("{text} at {}", at.position), &at.values, &sampled);
    }
    let last = values(&logits.get(-1));
    let top: Vec<f64> = golden.top5.token_ids.iter().map(|&id| last[id]).collect();
    worst.compare(&format!("top 5 of {text}"), &golden.top5.values, &top);
    worst.compare(&format!("loss of {text}"), &[golden.loss], &[model.loss(token_ids).unwrap()]);
}

/// Compares what goes into each module of an adapter for a text, and its delta, with what is expected.
pub fn compare_modules(
    worst: &mut Worst,
    base: &BaseModel,
    adapter: &LoraAdapter,
    token_ids: &[i64],
    golden: &BTreeMap<String, ModuleSample>,
) {
    let (model, lora) = adapted(base, adapter);
    model.loss(token_ids).unwrap();
    let found = lora.last_rows();
    assert!(found.keys().eq(golden.keys()), "{:?}, expected {:?}", found.keys(), golden.keys());
    for (name, golden) in golden {
        worst.compare(&format!("input of {name}"), &golden.input, &found[name].input);
        worst.compare(&format!("delta of {name}"), &golden.delta, &found[name].delta);
    }
}

/// The largest difference met so far, and where.
#[derive(Default)]
pub struct Worst {
    error: f64,
    at: String,
    compared: usize,
}

impl Worst {
    /// `found` may go on after the values that `expected` samples.
    pub fn compare(&mut self, at: &str, expected: &[f64], found: &[f64]) {
        assert!(!expected.is_empty() && found.len() >= expected.len(), "{at}");
        for (expected, found) in expected.iter().zip(found) {
            let error = (expected - found).abs();
            assert!(error <= TOLERANCE, "{at}: expected {expected}, found {found}");
            self.compared += 1;
            if error > self.error {
                self.error = error;
                self.at = at.to_owned();
            }
        }
    }

    pub fn report(&self, what: &str) {
        println!("{what}: largest error of {} is {:.1e} ({})", self.compared, self.error, self.at);
    }
}

#[derive(Deserialize)]
pub struct Outputs {
    pub loss: f64,
    pub logits: Vec<GoldenLogits>,
    pub top5: Top,
}

#[derive(Deserialize)]
pub struct GoldenLogits {
    pub position: i64,
    pub values: Vec<f64>,
}

#[derive(Deserialize)]
pub struct Top {
    pub token_ids: Vec<usize>,
    pub values: Vec<f64>,
}

#[derive(Deserialize)]
pub struct GoldenModules {
    pub text: String,
    pub samples: BTreeMap<String, ModuleSample>,
}

#[derive(Deserialize)]
pub struct ModuleSample {
    pub input: Vec<f64>,
    pub delta: Vec<f64>,
}
