//! An exact model on one text as a system: its loss is the public result, and everything else is committed.

use std::collections::HashMap;
use std::sync::Arc;

use zklora_circuit::commitment::Opening;
use zklora_exact::{
    ExactAdapter, ExactModel, ExponentialPart, LinearPart, Losses, Projection, Refusal, Trace,
};
use zklora_proto::ModuleShape;

use crate::field::Secret;
use crate::layout::{Layout, Tensor};
use crate::matrix::Matrix;
use crate::relation::RelationError;
use crate::relation::attention::{self, Attention};
use crate::relation::head::{self, Head, LOW_BITS};
use crate::relation::linear::{Form, Gain, Linear, Lora};
use crate::relation::norm::{Norm, Residual};
use crate::relation::public::Weighed;
use crate::relation::softmax::Exponentials;
use crate::system::{Builder, System};
use crate::witness::{OutOfRange, Witness};

/// Bits of a loss (units of 2^-25 octave) that a result drops: it is in 16ths of an octave.
pub const GRANULARITY_BITS: u32 = 21;

/// Why a model on a text is no system, or has no witness.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The exact model has no loss for the text.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Something cannot be sealed yet.
    #[error("cannot be sealed: {0}")]
    Unsupported(String),
    /// Numbers could wrap around, or an adapter does not fit.
    #[error(transparent)]
    Relation(#[from] RelationError),
    /// A value left its range: the text has no result.
    #[error(transparent)]
    OutOfRange(#[from] OutOfRange),
}

/// An adapter on a model: its modules as the manifest has them.
pub struct SealedAdapter<'a> {
    /// How it rounds. Of weights there may be any: a verifier takes zeros.
    pub exact: &'a ExactAdapter,
    /// Names and shapes, in the manifest's order: all of its modules and no others.
    pub modules: Vec<(&'a str, ModuleShape)>,
}

impl SealedAdapter<'_> {
    /// Each module is one that the exact adapter applies, and the other way round: else the loss would be of another adapter.
    fn check(&self, layers: usize) -> Result<(), ModelError> {
        let all = [
            Projection::Query,
            Projection::Key,
            Projection::Value,
            Projection::AttentionOut,
            Projection::MlpIn,
            Projection::MlpOut,
        ];
        let mut applied: Vec<(String, usize)> = (0..layers)
            .flat_map(|layer| all.map(|projection| (layer, projection)))
            .filter_map(|(layer, projection)| {
                let rank = self.exact.part(layer, projection)?.rank;
                Some((module_name(layer, projection), rank))
            })
            .collect();
        applied.dedup();
        applied.sort();
        let mut named: Vec<(String, usize)> =
            self.modules.iter().map(|(name, shape)| ((*name).into(), shape.rank())).collect();
        named.sort();
        match named == applied {
            true => Ok(()),
            false => Err(ModelError::Unsupported(
                "an adapter of which the exact model does not apply each module, once".into(),
            )),
        }
    }
}

/// The name that a manifest has for the module of a projection.
fn module_name(layer: usize, projection: Projection) -> String {
    format!("transformer.h.{layer}.{}", projection.module())
}

/// See the module's documentation.
pub struct SealedModel<'a> {
    model: &'a ExactModel,
    tokens: Vec<u32>,
    scored: Vec<usize>,
    system: System,
    first: (Tensor, Vec<i64>),
    start: Vec<i64>,
    layers: Vec<Layer>,
    last_norm: Norm,
    head: Head,
    /// What the result drops.
    rest: Tensor,
}

struct Layer {
    /// None for the first.
    norm: Option<Norm>,
    forms: [Form; 3],
    attention: Attention,
    out: Linear,
    norm2: Norm,
    mlp_in: Linear,
    active: Tensor,
    mlp_out: Linear,
}

/// Makes layers.
struct Making<'a, 'b> {
    model: &'a ExactModel,
    adapter: Option<&'b SealedAdapter<'a>>,
    modules: HashMap<&'a str, usize>,
    builder: Builder,
    tokens: usize,
}

impl<'a> SealedModel<'a> {
    /// The system of a text's loss at these positions.
    pub fn new(
        model: &'a ExactModel,
        tokens: &[u32],
        scored: &[usize],
        adapter: Option<&SealedAdapter<'a>>,
    ) -> Result<Self, ModelError> {
        model.check_text(tokens, scored)?;
        let (start, first) = (model.start(tokens)?, model.first_norm(tokens)?);
        let score_bits = model
            .score_bits()
            .ok_or_else(|| ModelError::Unsupported("formats `long`, which round queries and keys".into()))?;
        let count = tokens.len();
        let (width, heads) = (model.width(), model.heads());
        let mut builder = Builder::default();
        let mut modules = HashMap::new();
        if let Some(adapter) = adapter {
            modules = adapter.modules.iter().enumerate().map(|(i, &(name, _))| (name, i)).collect();
            adapter.check(model.layers())?;
            builder.adapter(&adapter.modules.iter().map(|&(_, shape)| shape).collect::<Vec<_>>());
        }
        let attention_table = table(&mut builder, model.attention_exponentials(count))?;
        let head_table = table(&mut builder, model.head_exponentials())?;
        // Cells are not negative.
        let gelu =
            builder.table(model.gelu().iter().map(|&g| i64::from(g) + GELU_OFFSET)).ok_or_else(table_size)?;
        let cells: Arc<[(u32, u32)]> = (0..count as u32).flat_map(|t| (0..=t).map(move |u| (t, u))).collect();
        let mut making = Making { model, adapter, modules, builder, tokens: count };

        let input = making.builder.signed(count, width, 16);
        making.builder.fixed(input.clone(), first.clone())?;
        let residual = |written: &[Tensor]| Residual {
            public: start.clone().into(),
            written: written.to_vec(),
            rows: count,
            positions: None,
            columns: width,
        };
        let (mut written, mut layers) = (Vec::new(), Vec::new());
        for layer in 0..model.layers() {
            let norm = match layer {
                0 => None,
                _ => Some(making.builder.norm(
                    &format!("h.{layer}.ln_1"),
                    residual(&written),
                    model.epsilon(),
                )?),
            };
            let x = norm.as_ref().map_or(&input, |norm| &norm.cut.output);
            let forms = [Projection::Query, Projection::Key, Projection::Value]
                .map(|projection| making.form(layer, projection, x));
            let inputs = attention::Inputs {
                forms: forms.clone(),
                heads,
                cells: cells.clone(),
                low_bits: score_bits,
                cut_bits: model.attended_bits(),
                table: attention_table.clone(),
                bounds: model.attention_bounds(layer, adapter.map(|adapter| adapter.exact)),
            };
            let attention = making.builder.attention(&format!("h.{layer}.attn"), inputs)?;
            let hot = &model.plan().hot[layer];
            let written_by = making.builder.signed_hot(count, width, &hot.attention);
            let out = making.linear(layer, Projection::AttentionOut, &attention.cut.output, written_by)?;
            written.push(out.cut.output.clone());
            let norm2 =
                making.builder.norm(&format!("h.{layer}.ln_2"), residual(&written), model.epsilon())?;
            let inner = model.projection(layer, Projection::MlpIn).columns;
            let [x, active] =
                making.builder.looked_up(count, inner, gelu, [(16, 1 << 15), (18, GELU_OFFSET)]);
            let mlp_in = making.linear(layer, Projection::MlpIn, &norm2.cut.output, x)?;
            let written_by = making.builder.signed_hot(count, width, &hot.mlp);
            let mlp_out = making.linear(layer, Projection::MlpOut, &active, written_by)?;
            written.push(mlp_out.cut.output.clone());
            layers.push(Layer { norm, forms, attention, out, norm2, mlp_in, active, mlp_out });
        }

        let positions: Arc<[usize]> = scored.iter().map(|&position| position - 1).collect();
        let rows = positions.iter().flat_map(|&position| &start[position * width..(position + 1) * width]);
        let residual = Residual {
            public: rows.copied().collect(),
            written,
            rows: scored.len(),
            positions: Some(positions),
            columns: width,
        };
        let last_norm = making.builder.norm("ln_f", residual, model.epsilon())?;
        let part = model.head_part();
        let head_form = form(part, &last_norm.cut.output, None);
        let inputs = head::Inputs { form: head_form, table: head_table, logit_bound: part.bound };
        let head = making.builder.head("lm_head", inputs)?;
        let rest = making.builder.unsigned(1, 1, GRANULARITY_BITS);
        let targets = |factor: i64| {
            let rows = scored.iter().enumerate();
            rows.map(|(row, &position)| (row, tokens[position] as usize, factor)).collect::<Vec<_>>()
        };
        let terms = vec![
            Weighed { tensor: head.index.clone(), entries: targets(1 << LOW_BITS) },
            Weighed { tensor: head.low.clone(), entries: targets(1) },
            Weighed { tensor: rest.clone(), entries: vec![(0, 0, -1)] },
        ];
        making.builder.total("loss", terms)?;
        let system = making.builder.build()?;
        Ok(Self {
            model,
            tokens: tokens.to_vec(),
            scored: scored.to_vec(),
            system,
            first: (input, first),
            start,
            layers,
            last_norm,
            head,
            rest,
        })
    }

    /// The system.
    pub fn system(&self) -> &System {
        &self.system
    }

    /// The loss of a text as a proof shows it, in 16ths of an octave.
    pub fn rounded(losses: &Losses) -> i64 {
        (losses.total() + (1 << (GRANULARITY_BITS - 1))) >> GRANULARITY_BITS
    }

    /// A rounded loss as the system's public result; `None` for what no text can have: 2^40 or more.
    pub fn results(rounded: i64) -> Option<Vec<i64>> {
        const MOST: i64 = 1 << 40;
        let unit = 1 << GRANULARITY_BITS;
        (-MOST..MOST).contains(&rounded).then(|| vec![rounded * unit - unit / 2])
    }

    /// The witness of a pass with the adapter's openings, in the manifest's order: and the rounded loss.
    pub fn witness(
        &self,
        adapter: Option<&ExactAdapter>,
        openings: &[&Opening],
    ) -> Result<(Witness, i64), ModelError> {
        // Where a value left its range, and which, is a secret of the adapter.
        let traced = self.model.trace(&self.tokens, &self.scored, adapter);
        let (losses, trace) = traced.map_err(|refusal| match refusal {
            Refusal::OutOfRange { .. } => ModelError::OutOfRange(OutOfRange),
            refusal => refusal.into(),
        })?;
        self.witness_of(&losses, &trace, openings)
    }

    /// The same of a trace that may be another than the exact model's.
    pub(crate) fn witness_of(
        &self,
        losses: &Losses,
        trace: &Trace,
        openings: &[&Opening],
    ) -> Result<(Witness, i64), ModelError> {
        let layout = self.system.layout();
        let mut witness = self.system.witness(openings);
        self.fill(&mut witness, trace, openings)?;
        let rounded = Self::rounded(losses);
        let rest = losses.total() - Self::results(rounded).ok_or(OutOfRange)?[0];
        witness.set(layout, &self.rest, &[rest])?;
        Ok((witness, rounded))
    }

    fn fill(&self, witness: &mut Witness, trace: &Trace, openings: &[&Opening]) -> Result<(), OutOfRange> {
        let (layout, width) = (self.system.layout(), self.model.width());
        let (input, first) = &self.first;
        witness.set(layout, input, first)?;
        let mut h: Secret<i64> = self.start.clone().into();
        let add = |h: &mut [i64], values: &[i64]| h.iter_mut().zip(values).for_each(|(h, v)| *h += v);
        for (index, (layer, trace)) in self.layers.iter().zip(&trace.layers).enumerate() {
            let linear = |linear: &Linear, projection: Projection, x: &[i64]| {
                let mut sums = self.model.outputs(index, projection, x);
                let ranks = linear.form.add_lora(&mut sums, x, module(&linear.form, openings));
                linear.rounded(sums, ranks)
            };
            let x: Secret<i64> = match &layer.norm {
                None => first.clone().into(),
                Some(norm) => {
                    let values = norm.values(&h)?;
                    norm.fill(witness, layout, &values)?;
                    values.outputs.clone().into()
                }
            };
            let mut qkv = [const { Vec::new() }; 3];
            let projections = [Projection::Query, Projection::Key, Projection::Value];
            for ((values, form), projection) in qkv.iter_mut().zip(&layer.forms).zip(projections) {
                let mut outputs = self.model.outputs(index, projection, &x);
                let ranks = form.add_lora(&mut outputs, &x, module(form, openings));
                if let Some(lora) = &form.lora {
                    lora.cut.fill(witness, layout, &ranks.outputs, &ranks.remainders)?;
                }
                *values = outputs;
            }
            // By token and then by head.
            let tokens = self.tokens.len();
            let shifts =
                (0..tokens).flat_map(|t| trace.attention.shifts.iter().map(move |of_head| of_head[t]));
            let shifts: Secret<i64> = shifts.collect::<Vec<_>>().into();
            let distances: Secret<i64> = trace.attention.distances.concat().into();
            let attended: Secret<i64> =
                layer.attention.fill(witness, layout, qkv, &shifts, &distances)?.into();
            let values = linear(&layer.out, Projection::AttentionOut, &attended);
            set_linear(witness, layout, &layer.out, &values)?;
            add(&mut h, &values.outputs);

            let norm = layer.norm2.values(&h)?;
            layer.norm2.fill(witness, layout, &norm)?;
            let values = linear(&layer.mlp_in, Projection::MlpIn, &norm.outputs);
            set_linear(witness, layout, &layer.mlp_in, &values)?;
            let gelu = self.model.gelu();
            let active = values.outputs.iter().map(|&x| i64::from(gelu[(x + (1 << 15)) as usize]));
            let active: Secret<i64> = active.collect::<Vec<_>>().into();
            witness.set(layout, &layer.active, &active)?;
            let values = linear(&layer.mlp_out, Projection::MlpOut, &active);
            set_linear(witness, layout, &layer.mlp_out, &values)?;
            add(&mut h, &values.outputs);
        }
        let rows = self.scored.iter().flat_map(|&position| &h[(position - 1) * width..position * width]);
        let rows: Secret<i64> = rows.copied().collect::<Vec<_>>().into();
        let values = self.last_norm.values(&rows)?;
        self.last_norm.fill(witness, layout, &values)?;
        let logits: Secret<i64> = self.model.logits(&values.outputs).into();
        self.head.fill(witness, layout, &trace.head.shifts, &logits)
    }
}

/// What is added to GELU's values, of which the least is -348, so that cells are not negative.
const GELU_OFFSET: i64 = 1 << 16;

fn module<'o>(form: &Form, openings: &[&'o Opening]) -> Option<(&'o [i16], &'o [i16])> {
    let opening = openings.get(form.lora.as_ref()?.module)?;
    Some((opening.a(), opening.b()))
}

fn set_linear(
    witness: &mut Witness,
    layout: &Layout,
    linear: &Linear,
    values: &crate::relation::linear::LinearValues,
) -> Result<(), OutOfRange> {
    if let Some(lora) = &linear.form.lora {
        lora.cut.fill(witness, layout, &values.ranks.outputs, &values.ranks.remainders)?;
    }
    linear.cut.fill(witness, layout, &values.outputs, &values.remainders)
}

fn table_size() -> ModelError {
    ModelError::Unsupported("a table of other than 2^16 entries".into())
}

fn table(builder: &mut Builder, part: ExponentialPart<'_>) -> Result<Exponentials, ModelError> {
    // Entries have 49 bits.
    let entries: Arc<[i64]> = part.entries.iter().map(|&entry| entry as i64).collect();
    let table = builder.table(entries.iter().copied()).ok_or_else(table_size)?;
    Ok(Exponentials { table, entries, budget: part.budget as i64, step_bits: part.step_bits })
}

fn form(part: LinearPart<'_>, input: &Tensor, lora: Option<Lora>) -> Form {
    // The part has as many weights as it says.
    let weights = Matrix::new(part.rows, part.columns, part.weights).expect("a matrix has its entries");
    Form { input: input.clone(), weights, bias: part.bias.into(), lora }
}

impl Making<'_, '_> {
    fn form(&mut self, layer: usize, projection: Projection, input: &Tensor) -> Form {
        let part = self.model.projection(layer, projection);
        let name = module_name(layer, projection);
        let rank = self.adapter.and_then(|adapter| adapter.exact.part(layer, projection));
        let lora = self.modules.get(name.as_str()).copied().zip(rank).map(|(module, rank)| {
            let from = projection.part() * part.columns;
            let gain = self.model.lora_input(layer, projection);
            Lora {
                module,
                outputs: from..from + part.columns,
                gain: gain.map(|(gain, bias)| Gain { gain: gain.into(), bias: bias.into() }),
                multiplier: rank.multiplier,
                cut: self.builder.cut(self.tokens, rank.rank, rank.bits, rank.shift),
            }
        });
        form(part, input, lora)
    }

    /// A layer whose outputs are rounded by 16 bits, into a tensor.
    fn linear(
        &mut self,
        layer: usize,
        projection: Projection,
        input: &Tensor,
        output: Tensor,
    ) -> Result<Linear, RelationError> {
        let form = self.form(layer, projection, input);
        let cut = self.builder.cut_into(output, 16);
        let name = format!("h.{layer}.{}", projection.module());
        let linear = Linear { name, form, cut };
        self.builder.linear(linear.clone())?;
        Ok(linear)
    }
}
