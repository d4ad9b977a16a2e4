//! A LoRA adapter applied as PEFT does it: output + scaling · x·A·B in float32.
#![allow(dead_code, reason = "each test file uses a part of this")]

use std::collections::BTreeMap;
use std::sync::Mutex;

use tch::Tensor;
use zklora_base_user::hooks::{BaseOutput, Hook};
use zklora_hf::LoraAdapter;

/// The hook that applies an adapter, and what its modules last read and gave.
pub struct LocalLora {
    /// A tensor may be sent to another thread, but not used by two at once.
    modules: Mutex<BTreeMap<String, Module>>,
}

struct Module {
    a: Tensor,
    b: Tensor,
    scaling: f64,
    last: Option<LastRow>,
}

/// The last row of a module's input and of its delta.
#[derive(Clone)]
pub struct LastRow {
    pub input: Vec<f64>,
    pub delta: Vec<f64>,
}

impl LocalLora {
    pub fn new(adapter: &LoraAdapter) -> Self {
        let module = |module: &zklora_hf::LoraModule| {
            let [rank, d_in, d_out] = [module.rank, module.d_in, module.d_out].map(|size| size as i64);
            let a = Tensor::from_slice(&module.a).view([d_in, rank]);
            let b = Tensor::from_slice(&module.b).view([rank, d_out]);
            (module.name.clone(), Module { a, b, scaling: module.scaling, last: None })
        };
        Self { modules: Mutex::new(adapter.modules.iter().map(module).collect()) }
    }

    /// Of each module that was reached, the last rows of the last pass.
    pub fn last_rows(&self) -> BTreeMap<String, LastRow> {
        let modules = self.modules.lock().unwrap();
        modules.iter().filter_map(|(name, module)| Some((name.clone(), module.last.clone()?))).collect()
    }
}

impl Hook for LocalLora {
    fn projections(&self) -> Vec<String> {
        self.modules.lock().unwrap().keys().cloned().collect()
    }

    fn apply(
        &self,
        projections: &[&str],
        input: &Tensor,
        base: BaseOutput<'_>,
    ) -> anyhow::Result<Vec<Tensor>> {
        let mut modules = self.modules.lock().unwrap();
        let mut outputs = Vec::new();
        for (place, name) in projections.iter().enumerate() {
            let output = base(place)?;
            let Some(module) = modules.get_mut(*name) else {
                outputs.push(output);
                continue;
            };
            let delta = input.matmul(&module.a).matmul(&module.b) * module.scaling;
            module.last = Some(LastRow { input: values(&input.get(-1)), delta: values(&delta.get(-1)) });
            outputs.push(output + delta);
        }
        Ok(outputs)
    }
}

/// The values of a vector.
pub fn values(vector: &Tensor) -> Vec<f64> {
    Vec::<f32>::try_from(vector).unwrap().into_iter().map(f64::from).collect()
}
