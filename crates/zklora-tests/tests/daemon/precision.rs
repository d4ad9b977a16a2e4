//! How near a quantised delta comes to the adapter's own, on activations of the real model.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tch::{Kind, Tensor};
use zklora_base_user::activations::{quantised, restored};
use zklora_base_user::hooks::{BaseOutput, Hook};
use zklora_base_user::models::Model;
use zklora_base_user::tokenizer::Tokenizer;
use zklora_circuit::commitment::{Opening, Salt};
use zklora_contributor::delta::DeltaEngine;
use zklora_hf::quantise;
use zklora_hf::{BaseModel, LoraAdapter};
use zklora_proto::ModuleShape;
use zklora_tests::fixtures;

/// `|Δ - Δ'| / |Δ|` in the Frobenius norm, over all rows of a projection's input.
const TOLERANCE: f64 = 2e-3;

/// Computes each delta both in integers and in floats, and keeps the largest error of each module.
struct Compare {
    modules: HashMap<String, Module>,
    errors: Mutex<HashMap<String, f64>>,
}

struct Module {
    engine: DeltaEngine,
    scale: f64,
    /// Float64 copies of A and B times the scaling.
    factors: Mutex<(Tensor, Tensor)>,
}

impl Hook for Compare {
    fn projections(&self) -> Vec<String> {
        self.modules.keys().cloned().collect()
    }

    /// GPT-2 has one projection for each input.
    fn apply(
        &self,
        projections: &[&str],
        input: &Tensor,
        base: BaseOutput<'_>,
    ) -> anyhow::Result<Vec<Tensor>> {
        let Module { engine, scale, factors } = &self.modules[projections[0]];
        let rows = quantised(input)?;
        let found = restored(&rows, &[&engine.delta(&rows.values)?], *scale)?;
        let factors = factors.lock().unwrap();
        let expected = input.to_kind(Kind::Double).matmul(&factors.0).matmul(&factors.1);
        let error = (found.to_kind(Kind::Double) - &expected).norm() / expected.norm();
        let mut errors = self.errors.lock().unwrap();
        let worst = errors.entry(projections[0].to_owned()).or_default();
        *worst = worst.max(error.double_value(&[]));
        Ok(vec![base(0)? + found])
    }
}

#[test]
fn quantised_deltas_are_near_those_of_the_adapter() {
    let base = BaseModel::open(fixtures().join("gpt2-tiny")).unwrap();
    let adapter = LoraAdapter::open(fixtures().join("lora-es"), &base.projections()).unwrap();
    let tokenizer = Tokenizer::open(fixtures().join("gpt2-tiny")).unwrap();
    let mut modules = HashMap::new();
    for module in &adapter.modules {
        let shape = ModuleShape::new(module.d_in, module.rank, module.d_out).unwrap();
        let quantised = quantise(module);
        let salt = Salt::from_words([0; 8]).unwrap();
        let opening = Opening::new(shape, quantised.a.to_vec(), quantised.b.to_vec(), salt).unwrap();
        let matrix = |weights: &[f32], rows: usize| {
            Tensor::from_slice(weights).view([rows as i64, -1]).to_kind(Kind::Double)
        };
        let factors = (matrix(&module.a, module.d_in) * module.scaling, matrix(&module.b, module.rank));
        let engine = DeltaEngine::new(&opening).unwrap();
        let compared = Module { engine, scale: quantised.scale, factors: Mutex::new(factors) };
        modules.insert(module.name.clone(), compared);
    }
    let compare = Arc::new(Compare { modules, errors: Mutex::default() });
    let mut model = Model::load(&base).unwrap();
    model.patch(compare.clone()).unwrap();
    for file in ["es-heldout.txt", "en-heldout.txt"] {
        let text = std::fs::read_to_string(fixtures().join("text").join(file)).unwrap();
        for line in text.lines().take(10) {
            let mut ids = tokenizer.encode(line).unwrap();
            ids.truncate(256);
            model.loss(&ids).unwrap();
        }
    }
    let errors = compare.errors.lock().unwrap();
    assert_eq!(errors.len(), adapter.modules.len());
    for (name, error) in errors.iter() {
        println!("{name}: relative error {error:.2e}");
        assert!(*error <= TOLERANCE, "{name}: {error}");
    }
}
