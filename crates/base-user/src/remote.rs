//! The hook that gets projections' deltas from contributors.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::ensure;
use tch::{TchError, Tensor};
use tracing::trace_span;
use zklora_proto::Call;

use crate::activations::Quantised;
use crate::hooks::{BaseOutput, Hook};
use crate::session::{Session, SessionError};

/// What becomes of a projection's own output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum CombineMode {
    /// The delta is added to it, as LoRA does.
    #[default]
    AddDelta,
    /// The delta takes its place.
    Replace,
}

/// Asks contributors for the deltas of the projections that they serve. Where several serve a projection, their deltas add; if
/// one of them replaces the projection's own output, that is left out.
pub struct RemoteHook {
    sources: Vec<Source>,
}

/// A session, and what it serves.
struct Source {
    session: Arc<Session>,
    modules: HashMap<String, usize>,
    mode: CombineMode,
}

/// The modules of one source that read an input.
struct Asked<'a> {
    source: &'a Source,
    /// Of each module, the place of its projection, and its index in the manifest.
    places: Vec<(usize, usize)>,
}

impl RemoteHook {
    /// A hook that serves every projection that the sessions' manifests name.
    pub fn new(sessions: impl IntoIterator<Item = (Arc<Session>, CombineMode)>) -> Self {
        let source = |(session, mode): (Arc<Session>, CombineMode)| {
            let modules = session.manifest().modules().iter().enumerate();
            let modules = modules.map(|(index, module)| (module.name().to_owned(), index)).collect();
            Source { session, modules, mode }
        };
        Self { sources: sessions.into_iter().map(source).collect() }
    }

    /// The modules that read this input, by source.
    fn asked(&self, projections: &[&str]) -> Vec<Asked<'_>> {
        let asked = self.sources.iter().map(|source| {
            let served =
                |(place, name): (usize, &&str)| source.modules.get(*name).map(|&module| (place, module));
            Asked { source, places: projections.iter().enumerate().filter_map(served).collect() }
        });
        asked.filter(|asked| !asked.places.is_empty()).collect()
    }
}

impl Hook for RemoteHook {
    fn projections(&self) -> Vec<String> {
        self.sources.iter().flat_map(|source| source.modules.keys().cloned()).collect()
    }

    fn apply(
        &self,
        projections: &[&str],
        input: &Tensor,
        base: BaseOutput<'_>,
    ) -> anyhow::Result<Vec<Tensor>> {
        let asked = self.asked(projections);
        for Asked { source, places } in &asked {
            for &(place, module) in places {
                let (expected, found) = (source.shape(module).0, input.size2()?.1);
                ensure!(
                    expected == found,
                    "the adapter expects {expected} inputs of {}, the base model gives it {found}",
                    projections[place]
                );
            }
        }
        let quantised = trace_span!("quantise").in_scope(|| Quantised::new(input))?;
        let replaced = |place: usize| {
            let replaces = |asked: &Asked<'_>| {
                asked.source.mode == CombineMode::Replace
                    && asked.places.iter().any(|(served, _)| *served == place)
            };
            asked.iter().any(replaces)
        };
        // While the contributors work, so does the base model.
        let mut outputs = Vec::new();
        let calls = ask(&asked, &quantised.values, || {
            outputs = (0..projections.len())
                .map(|place| (!replaced(place)).then(|| base(place)).transpose())
                .collect();
        })?;
        let mut outputs = outputs.into_iter().collect::<Result<Vec<Option<Tensor>>, TchError>>()?;
        trace_span!("restore").in_scope(|| {
            for (Asked { source, places }, calls) in asked.iter().zip(calls) {
                for (nth, &(place, module)) in places.iter().enumerate() {
                    let deltas: Vec<&[i64]> =
                        calls.iter().map(|call| call.deltas[nth].values.as_slice()).collect();
                    let scale = source.session.manifest().modules()[module].scale();
                    let delta = quantised.restore(&deltas, scale)?;
                    outputs[place] = Some(match outputs[place].take() {
                        Some(output) => {
                            let (expected, found) = (output.size2()?.1, source.shape(module).1);
                            ensure!(
                                expected == found,
                                "the adapter gives {found} outputs of {}, the base model has {expected}",
                                projections[place]
                            );
                            output.f_add(&delta)?
                        }
                        None => delta,
                    });
                }
            }
            Ok(())
        })?;
        // Each is the model's own, or was replaced by a delta.
        Ok(outputs.into_iter().flatten().collect())
    }
}

impl Source {
    /// d_in and d_out of a module.
    fn shape(&self, module: usize) -> (i64, i64) {
        let shape = self.session.manifest().modules()[module].shape();
        (shape.d_in() as i64, shape.d_out() as i64)
    }
}

/// The calls that each source's answer takes; all are asked at once, and `meanwhile` runs while they are at it.
fn ask(
    asked: &[Asked<'_>],
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
    asked: &[Asked<'_>],
    activations: &[i16],
    meanwhile: Box<dyn FnOnce() + '_>,
    answers: &mut Vec<Vec<Arc<Call>>>,
) -> Result<(), SessionError> {
    let Some((Asked { source, places }, others)) = asked.split_first() else {
        meanwhile();
        return Ok(());
    };
    let modules: Vec<usize> = places.iter().map(|(_, module)| *module).collect();
    let (calls, of_others) = source
        .session
        .forward_while(&modules, activations, || ask_each(others, activations, meanwhile, answers))?;
    of_others?;
    answers.push(calls);
    Ok(())
}
