//! The hook that gets a projection's delta from a contributor.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, ensure};
use tch::Tensor;
use tracing::trace_span;

use crate::activations::Quantised;
use crate::error::ModelError;
use crate::gpt2::Gpt2;
use crate::hooks::{BaseOutput, ProjectionHook};
use crate::session::Session;

/// What becomes of a projection's own output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum CombineMode {
    /// The delta is added to it, as LoRA does.
    #[default]
    AddDelta,
    /// The delta takes its place.
    Replace,
}

/// Asks a contributor for the delta of every projection that it serves.
pub struct RemoteHook {
    session: Arc<Session>,
    modules: HashMap<String, usize>,
    mode: CombineMode,
}

impl RemoteHook {
    /// Patches every projection that the session's manifest names. Fails if the model has no such projection.
    pub fn patch(model: &mut Gpt2, session: &Arc<Session>, mode: CombineMode) -> Result<(), ModelError> {
        let modules = session.manifest().modules().iter().enumerate();
        let modules: HashMap<String, usize> =
            modules.map(|(index, module)| (module.name().to_owned(), index)).collect();
        let hook = Arc::new(Self { session: session.clone(), modules, mode });
        for name in hook.modules.keys() {
            model.patch(name, hook.clone())?;
        }
        Ok(())
    }
}

impl ProjectionHook for RemoteHook {
    fn apply(&self, projection: &str, input: &Tensor, base: BaseOutput<'_>) -> anyhow::Result<Tensor> {
        let module =
            *self.modules.get(projection).context("the contributor does not serve this projection")?;
        let entry = &self.session.manifest().modules()[module];
        let (d_in, d_out) = (entry.shape().d_in() as i64, entry.shape().d_out() as i64);
        let mismatch = || format!("the adapter is for a projection of {d_in} to {d_out}");
        ensure!(input.size2()?.1 == d_in, mismatch());
        let quantised = trace_span!("quantise").in_scope(|| Quantised::new(input))?;
        // While the contributor works, so does the base model.
        let base = || (self.mode == CombineMode::AddDelta).then(base).transpose();
        let (calls, base) = self.session.forward_while(&[module], &quantised.values, base)?;
        let restore = || {
            let deltas: Vec<&[i64]> = calls.iter().map(|call| call.deltas[0].values.as_slice()).collect();
            quantised.restore(&deltas, entry.scale())
        };
        let delta = trace_span!("restore").in_scope(restore)?;
        Ok(match base? {
            Some(base) => {
                ensure!(base.size2()?.1 == d_out, mismatch());
                base.f_add(&delta)?
            }
            None => delta,
        })
    }
}
