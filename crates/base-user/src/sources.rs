//! Whoever has deltas for projections, and how deltas and a projection's own output become what the model goes on with.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::ensure;
use tch::{TchError, Tensor};
use tracing::trace_span;
use zklora_client::Quantised;
use zklora_proto::{Call, Manifest};

use crate::activations::restored;
use crate::hooks::BaseOutput;

/// What becomes of a projection's own output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum CombineMode {
    /// The delta is added to it, as LoRA does.
    #[default]
    AddDelta,
    /// The delta takes its place.
    Replace,
}

/// Something that has the deltas of a manifest's modules.
pub(crate) trait Adapter {
    fn manifest(&self) -> &Manifest;
}

/// An adapter, and which projections it serves.
pub(crate) struct Source<A> {
    pub(crate) adapter: A,
    /// Index in the manifest, by name.
    modules: HashMap<String, usize>,
    mode: CombineMode,
}

/// Several adapters. Where several serve a projection, their deltas add; if one of them replaces the projection's own output,
/// that is left out.
pub(crate) struct Sources<A>(Vec<Source<A>>);

/// The modules of one source that read an input.
pub(crate) struct Asked<'a, A> {
    /// Which source, of all.
    pub(crate) index: usize,
    pub(crate) source: &'a Source<A>,
    /// Of each module, the place of its projection, and its index in the manifest.
    places: Vec<(usize, usize)>,
}

impl<A: Adapter> Sources<A> {
    pub(crate) fn new(adapters: impl IntoIterator<Item = (A, CombineMode)>) -> Self {
        let source = |(adapter, mode): (A, CombineMode)| {
            let modules = adapter.manifest().modules().iter().enumerate();
            let modules = modules.map(|(index, module)| (module.name().to_owned(), index)).collect();
            Source { adapter, modules, mode }
        };
        Self(adapters.into_iter().map(source).collect())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Source<A>> {
        self.0.iter()
    }

    /// The names of all projections that are served.
    pub(crate) fn projections(&self) -> Vec<String> {
        self.0.iter().flat_map(|source| source.modules.keys().cloned()).collect()
    }

    /// Who has modules that read this input. Fails if one of them expects rows of another length.
    pub(crate) fn asked(&self, projections: &[&str], input: &Tensor) -> anyhow::Result<Vec<Asked<'_, A>>> {
        let asked = self.0.iter().enumerate().map(|(index, source)| {
            let served =
                |(place, name): (usize, &&str)| source.modules.get(*name).map(|&module| (place, module));
            Asked { index, source, places: projections.iter().enumerate().filter_map(served).collect() }
        });
        let asked: Vec<_> = asked.filter(|asked| !asked.places.is_empty()).collect();
        for Asked { source, places, .. } in &asked {
            for &(place, module) in places {
                let (expected, found) = (source.shape(module).0, input.size2()?.1);
                ensure!(
                    expected == found,
                    "the adapter expects {expected} inputs of {}, the base model gives it {found}",
                    projections[place]
                );
            }
        }
        Ok(asked)
    }
}

impl<A: Adapter> Source<A> {
    /// d_in and d_out of a module.
    fn shape(&self, module: usize) -> (i64, i64) {
        let shape = self.adapter.manifest().modules()[module].shape();
        (shape.d_in() as i64, shape.d_out() as i64)
    }
}

impl<A> Asked<'_, A> {
    /// The modules, as indices in the manifest.
    pub(crate) fn modules(&self) -> Vec<usize> {
        self.places.iter().map(|(_, module)| *module).collect()
    }
}

/// Of each of so many projections, its own output, unless a delta takes its place.
pub(crate) fn own_outputs<A>(
    asked: &[Asked<'_, A>],
    projections: usize,
    base: BaseOutput<'_>,
) -> Result<Vec<Option<Tensor>>, TchError> {
    let replaced = |place: usize| {
        let replaces = |asked: &Asked<'_, A>| {
            asked.source.mode == CombineMode::Replace
                && asked.places.iter().any(|(served, _)| *served == place)
        };
        asked.iter().any(replaces)
    };
    (0..projections).map(|place| (!replaced(place)).then(|| base(place)).transpose()).collect()
}

/// Adds to these outputs the deltas of each source's calls, which are for these activations.
pub(crate) fn combine<A: Adapter>(
    asked: &[Asked<'_, A>],
    projections: &[&str],
    quantised: &Quantised,
    calls: Vec<Vec<Arc<Call>>>,
    mut outputs: Vec<Option<Tensor>>,
) -> anyhow::Result<Vec<Tensor>> {
    trace_span!("restore").in_scope(|| {
        for (Asked { source, places, .. }, calls) in asked.iter().zip(calls) {
            for (nth, &(place, module)) in places.iter().enumerate() {
                let deltas: Vec<&[i64]> =
                    calls.iter().map(|call| call.deltas[nth].values.as_slice()).collect();
                let scale = source.adapter.manifest().modules()[module].scale();
                let delta = restored(quantised, &deltas, scale)?;
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
        // Each is the model's own, or was replaced by a delta.
        Ok(outputs.into_iter().flatten().collect())
    })
}
