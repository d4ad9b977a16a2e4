//! How near a quantised delta comes to the adapter's own, on activations of the real model.

mod common;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use common::fixtures;
use tch::{Kind, Tensor};
use zklora_base_user::activations::Quantised;
use zklora_base_user::gpt2::Gpt2;
use zklora_base_user::hooks::{BaseOutput, ProjectionHook};
use zklora_base_user::tokenizer::Tokenizer;
use zklora_circuit::commitment::{Opening, Salt};
use zklora_contributor::delta::DeltaEngine;
use zklora_contributor::quantise::quantise;
use zklora_hf::{BaseModel, LoraAdapter};
use zklora_proto::ModuleShape;

/// `|Δ - Δ'| / |Δ|` in the Frobenius norm, over all rows of a projection's input.
const TOLERANCE: f64 = 2e-3;

/// Both deltas of a projection, in integers and in floats.
struct Compare {
    engine: DeltaEngine,
    scale: f64,
    /// Float64 copies of A and B times the scaling.
    a: Mutex<Tensor>,
    b: Mutex<Tensor>,
    errors: Arc<Mutex<HashMap<String, f64>>>,
}

impl ProjectionHook for Compare {
    fn apply(&self, projection: &str, input: &Tensor, base: BaseOutput<'_>) -> anyhow::Result<Tensor> {
        let quantised = Quantised::new(input)?;
        let found = quantised.restore(&[&self.engine.delta(&quantised.values)?], self.scale)?;
        let a = self.a.lock().unwrap();
        let expected = input.to_kind(Kind::Double).matmul(&a).matmul(&self.b.lock().unwrap());
        let error = (found.to_kind(Kind::Double) - &expected).norm() / expected.norm();
        let mut errors = self.errors.lock().unwrap();
        let worst = errors.entry(projection.to_owned()).or_default();
        *worst = worst.max(error.double_value(&[]));
        Ok(base()? + found)
    }
}

#[test]
fn quantised_deltas_are_near_those_of_the_adapter() {
    let base = BaseModel::open(fixtures().join("gpt2-tiny")).unwrap();
    let adapter = LoraAdapter::open(fixtures().join("lora-es"), &base.projections()).unwrap();
    let tokenizer = Tokenizer::open(fixtures().join("gpt2-tiny")).unwrap();
    let mut model = Gpt2::load(&base).unwrap();
    let errors = Arc::new(Mutex::new(HashMap::new()));
    for module in &adapter.modules {
        let shape = ModuleShape::new(module.d_in, module.rank, module.d_out).unwrap();
        let quantised = quantise(module);
        let salt = Salt::from_elements([0; 4]).unwrap();
        let opening = Opening::new(shape, quantised.a.to_vec(), quantised.b.to_vec(), salt).unwrap();
        let matrix = |weights: &[f32], rows: usize| {
            Mutex::new(Tensor::from_slice(weights).view([rows as i64, -1]).to_kind(Kind::Double))
        };
        let hook = Compare {
            engine: DeltaEngine::new(&opening).unwrap(),
            scale: quantised.scale,
            a: Mutex::new(matrix(&module.a, module.d_in).into_inner().unwrap() * module.scaling),
            b: matrix(&module.b, module.rank),
            errors: errors.clone(),
        };
        model.patch(&module.name, Arc::new(hook)).unwrap();
    }
    for file in ["es-heldout.txt", "en-heldout.txt"] {
        let text = std::fs::read_to_string(fixtures().join("text").join(file)).unwrap();
        for line in text.lines().take(10) {
            let mut ids = tokenizer.encode(line).unwrap();
            ids.truncate(256);
            model.loss(&ids).unwrap();
        }
    }
    let errors = errors.lock().unwrap();
    assert_eq!(errors.len(), adapter.modules.len());
    for (name, error) in errors.iter() {
        println!("{name}: relative error {error:.2e}");
        assert!(*error <= TOLERANCE, "{name}: {error}");
    }
}
