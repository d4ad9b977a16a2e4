//! Adapters applied in float32 by the base model's own process, and what transformers and PEFT computed with them.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tch::Tensor;
use zklora_base_user::gpt2::Gpt2;
use zklora_base_user::hooks::{BaseOutput, ProjectionHook};
use zklora_hf::{BaseModel, LoraAdapter, LoraModule};

/// Of logits, losses in nats, and deltas: what float32 sums in another order may differ by, with a margin.
const TOLERANCE: f64 = 1e-3;

pub fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

/// Reads a file of goldens in the fixtures.
pub fn goldens<T: DeserializeOwned>(file: &str) -> T {
    serde_json::from_slice(&fs::read(fixtures().join(file)).unwrap()).unwrap()
}

/// The base model with an adapter, each module through the hook that `hook` makes of it.
pub fn adapted(
    base: &BaseModel,
    adapter: &LoraAdapter,
    hook: impl Fn(LocalLora) -> Arc<dyn ProjectionHook>,
) -> Gpt2 {
    let mut model = Gpt2::load(base).unwrap();
    for module in &adapter.modules {
        model.patch(&module.name, hook(LocalLora::new(module))).unwrap();
    }
    model
}

/// Compares what a model computes for a text with what is expected of it.
pub fn compare_outputs(
    worst: &mut Worst,
    text: &str,
    model: &Gpt2,
    token_ids: &[i64],
    logit_token_ids: &[usize],
    golden: &Outputs,
) {
    let logits = model.forward(&Tensor::from_slice(token_ids).unsqueeze(0)).unwrap().squeeze_dim(0);
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
    let last_rows = Arc::new(Mutex::new(BTreeMap::new()));
    let model = adapted(base, adapter, |lora| Arc::new(Recorder { lora, last_rows: last_rows.clone() }));
    model.loss(token_ids).unwrap();
    let found = last_rows.lock().unwrap();
    assert!(found.keys().eq(golden.keys()), "{:?}, expected {:?}", found.keys(), golden.keys());
    for (name, golden) in golden {
        worst.compare(&format!("input of {name}"), &golden.input, &found[name].input);
        worst.compare(&format!("delta of {name}"), &golden.delta, &found[name].delta);
    }
}

/// LoRA as PEFT computes it: output + scaling · x·A·B in float32.
pub struct LocalLora {
    /// A and B. A tensor may be sent to another thread, but not used by two at once.
    factors: Mutex<(Tensor, Tensor)>,
    scaling: f64,
}

impl LocalLora {
    pub fn new(module: &LoraModule) -> Self {
        let [rank, d_in, d_out] = [module.rank, module.d_in, module.d_out].map(|size| size as i64);
        Self {
            factors: Mutex::new((
                Tensor::from_slice(&module.a).view([d_in, rank]),
                Tensor::from_slice(&module.b).view([rank, d_out]),
            )),
            scaling: module.scaling,
        }
    }

    fn delta(&self, input: &Tensor) -> Tensor {
        let factors = self.factors.lock().unwrap();
        input.matmul(&factors.0).matmul(&factors.1) * self.scaling
    }
}

impl ProjectionHook for LocalLora {
    fn apply(&self, _: &str, input: &Tensor, base: BaseOutput<'_>) -> anyhow::Result<Tensor> {
        Ok(base()? + self.delta(input))
    }
}

/// Keeps the last row of a module's input and of its delta.
struct Recorder {
    lora: LocalLora,
    last_rows: Arc<Mutex<BTreeMap<String, LastRow>>>,
}

struct LastRow {
    input: Vec<f64>,
    delta: Vec<f64>,
}

impl ProjectionHook for Recorder {
    fn apply(&self, projection: &str, input: &Tensor, base: BaseOutput<'_>) -> anyhow::Result<Tensor> {
        let delta = self.lora.delta(input);
        let row = LastRow { input: values(&input.get(-1)), delta: values(&delta.get(-1)) };
        self.last_rows.lock().unwrap().insert(projection.to_owned(), row);
        Ok(base()? + delta)
    }
}

fn values(vector: &Tensor) -> Vec<f64> {
    Vec::<f32>::try_from(vector).unwrap().into_iter().map(f64::from).collect()
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
