//! The hook that gets projections' deltas from contributors.

use std::sync::Arc;

use tch::Tensor;
use tracing::trace_span;
use zklora_client::{Session, SessionError};
use zklora_proto::{Call, Manifest};

use crate::activations::quantised;
use crate::hooks::{BaseOutput, Hook};
pub use crate::sources::CombineMode;
use crate::sources::{Adapter, Asked, Sources, combine, own_outputs};
use crate::stop::Stop;

/// Asks contributors for the deltas of the projections that they serve. Where several serve a projection, their deltas add; if
/// one of them replaces the projection's own output, that is left out.
pub struct RemoteHook {
    sources: Sources<Arc<Session>>,
    stop: Stop,
}

impl RemoteHook {
    /// A hook that serves every projection that the sessions' manifests name.
    pub fn new(sessions: impl IntoIterator<Item = (Arc<Session>, CombineMode)>) -> Self {
        Self { sources: Sources::new(sessions), stop: Stop::default() }
    }

    /// The same hook, which fails when the run is to end, and asks nobody for more.
    pub fn until(self, stop: Stop) -> Self {
        Self { stop, ..self }
    }
}

impl Adapter for Arc<Session> {
    fn manifest(&self) -> &Manifest {
        Session::manifest(self)
    }
}

impl Hook for RemoteHook {
    fn projections(&self) -> Vec<String> {
        self.sources.projections()
    }

    fn apply(
        &self,
        projections: &[&str],
        input: &Tensor,
        base: BaseOutput<'_>,
    ) -> anyhow::Result<Vec<Tensor>> {
        let asked = self.sources.asked(projections, input)?;
        self.stop.check()?;
        self.stop.spend();
        let quantised = trace_span!("quantise").in_scope(|| quantised(input))?;
        // While the contributors work, so does the base model.
        let mut outputs = Ok(Vec::new());
        let calls = ask(&asked, &quantised.values, || {
            outputs = own_outputs(&asked, projections.len(), base);
        })?;
        combine(&asked, projections, &quantised, calls, outputs?)
    }
}

/// The calls that each source's answer takes; all are asked at once, and `meanwhile` runs while they are at it.
fn ask(
    asked: &[Asked<'_, Arc<Session>>],
    activations: &[i16],
    meanwhile: impl FnOnce(),
) -> Result<Vec<Vec<Arc<Call>>>, SessionError> {
    let mut answers = Vec::with_capacity(asked.len());
    ask_each(asked, activations, Box::new(meanwhile), &mut answers)?;
    answers.reverse();
    Ok(answers)
}

/// Adds the answers to `answers`, the last source's first.
fn ask_each(
    asked: &[Asked<'_, Arc<Session>>],
    activations: &[i16],
    meanwhile: Box<dyn FnOnce() + '_>,
    answers: &mut Vec<Vec<Arc<Call>>>,
) -> Result<(), SessionError> {
    let Some((first, others)) = asked.split_first() else {
        meanwhile();
        return Ok(());
    };
    let (calls, of_others) = first
        .source
        .adapter
        .forward_while(&first.modules(), activations, || ask_each(others, activations, meanwhile, answers))?;
    of_others?;
    answers.push(calls);
    Ok(())
}
