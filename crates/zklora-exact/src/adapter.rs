//! A LoRA adapter in integers: the very matrices that its manifest commits to.

use std::collections::BTreeMap;

use zklora_hf::{LoraAdapter, Quantised, quantise};

use crate::bounds::bounded;
use crate::error::BuildError;
use crate::matrix::Matrix;
use crate::model::{ExactModel, Linear, exp2, nearest};
use crate::profile::{ATTENDED, GELU_OUT, LORA_IN, MULTIPLIER, RANK_WIDE};

/// A module of an adapter as it is committed to. The weights are secret.
pub struct Module<'a> {
    /// The projection, such as `transformer.h.0.attn.c_attn`.
    pub name: &'a str,
    /// A, row-major `d_in x rank`, in 12 bits.
    pub a: &'a [i16],
    /// B, row-major `rank x d_out`, in 12 bits.
    pub b: &'a [i16],
    /// Its rank.
    pub rank: usize,
    /// The manifest's scale: what one unit of an integer delta is worth, for activations in units of 1.
    pub scale: f64,
}

/// An adapter on one exact model.
pub struct ExactAdapter {
    pub(crate) layers: Vec<LayerLora>,
}

#[derive(Default)]
pub(crate) struct LayerLora {
    /// Of attn.c_attn: with outputs for queries, keys and values.
    pub(crate) attention_in: Option<Lora>,
    pub(crate) attention_out: Option<Lora>,
    pub(crate) mlp_in: Option<Lora>,
    pub(crate) mlp_out: Option<Lora>,
}

/// `Δ = rnd(M·(x·A) / 2^k)·B`, for each part of the outputs with an M and k of its own.
pub(crate) struct Lora {
    pub(crate) a: Matrix,
    pub(crate) parts: Vec<Part>,
}

pub(crate) struct Part {
    pub(crate) b: Matrix,
    /// M, from 2^10 to 2^11.
    pub(crate) multiplier: i64,
    /// k.
    pub(crate) shift: u32,
    /// Signed bits of what is rounded.
    pub(crate) bits: u32,
}

/// A part of a module's outputs, and how it enters the base model.
struct Target<'a> {
    linear: &'a Linear,
    /// Fraction bits of the accumulator.
    bits: u32,
    /// What the base model's matrix was multiplied by.
    factor: f64,
    rank_bits: u32,
}

impl ExactAdapter {
    /// An adapter as PEFT has it, rounded to the integers that a contributor would commit to.
    pub fn quantised(model: &ExactModel, lora: &LoraAdapter) -> Result<Self, BuildError> {
        let quantised: Vec<Quantised> = lora.modules.iter().map(quantise).collect();
        let modules: Vec<Module<'_>> = lora
            .modules
            .iter()
            .zip(&quantised)
            .map(|(m, q)| Module { name: &m.name, a: &q.a, b: &q.b, rank: m.rank, scale: q.scale })
            .collect();
        Self::new(model, &modules)
    }

    /// The adapter with these modules. A module may be missing; none may come twice or be unknown.
    ///
    /// Fails with [`BuildError::Bound`] if some sum could leave its range.
    pub fn new(model: &ExactModel, modules: &[Module<'_>]) -> Result<Self, BuildError> {
        let mut named = BTreeMap::new();
        for module in modules {
            if named.insert(module.name, module).is_some() {
                return Err(refusal(module.name, "it comes twice"));
            }
        }
        let mut layers = Vec::with_capacity(model.layers.len());
        for (index, layer) in model.layers.iter().enumerate() {
            let mut take = |part: &str| named.remove(format!("transformer.h.{index}.{part}").as_str());
            let formats = &model.formats;
            let residual = model.plan.residual_bits + crate::profile::CUT;
            let octaves =
                std::f64::consts::LOG2_E / ((model.shape.n_embd / model.shape.n_head) as f64).sqrt();
            let target = |linear, bits, factor, rank_bits| Target { linear, bits, factor, rank_bits };
            let attention_in = take("attn.c_attn").map(|module| {
                let targets = [
                    target(&layer.query, formats.q, octaves, formats.rank_q),
                    target(&layer.key, formats.k, 1.0, formats.rank_k),
                    target(&layer.value, formats.v, 1.0, formats.rank_v),
                ];
                Lora::new(module, &targets, LORA_IN, layer.attention_in.bound)
            });
            let attention_out = take("attn.c_proj").map(|module| {
                let input = (layer.attention_out.weights.rows() as u128) << 15;
                let target = target(&layer.attention_out, residual, 1.0, RANK_WIDE);
                Lora::new(module, &[target], ATTENDED, input)
            });
            let mlp_in = take("mlp.c_fc").map(|module| {
                let bits = crate::profile::GELU_IN + crate::profile::CUT;
                let target = target(&layer.mlp_in, bits, 1.0, RANK_WIDE);
                Lora::new(module, &[target], LORA_IN, layer.mlp_lora_in.bound)
            });
            let mlp_out = take("mlp.c_proj").map(|module| {
                let most = model.gelu.iter().map(|g| u128::from(g.unsigned_abs())).max().unwrap_or(0);
                let input = layer.mlp_out.weights.rows() as u128 * most;
                let target = target(&layer.mlp_out, residual, 1.0, RANK_WIDE);
                Lora::new(module, &[target], GELU_OUT, input)
            });
            layers.push(LayerLora {
                attention_in: attention_in.transpose()?,
                attention_out: attention_out.transpose()?,
                mlp_in: mlp_in.transpose()?,
                mlp_out: mlp_out.transpose()?,
            });
        }
        if let Some(name) = named.into_keys().next() {
            return Err(refusal(name, "the base model has no projection of this name"));
        }
        let adapter = Self { layers };
        model.check_attention(Some(&adapter))?;
        Ok(adapter)
    }
}

impl Lora {
    /// `input_bits` and `input` are of what A is multiplied with: its fraction bits, and the most that a row's magnitudes add up to.
    fn new(
        module: &Module<'_>,
        targets: &[Target<'_>],
        input_bits: u32,
        input: u128,
    ) -> Result<Self, BuildError> {
        let rows = targets[0].linear.weights.rows();
        let columns: usize = targets.iter().map(|target| target.linear.weights.columns()).sum();
        if (module.a.len(), module.b.len()) != (rows * module.rank, module.rank * columns) {
            let why = format!(
                "expected A of {rows} x {0} and B of {0} x {columns}, found {1} and {2} weights",
                module.rank,
                module.a.len(),
                module.b.len()
            );
            return Err(refusal(module.name, why));
        }
        if module.a.iter().chain(module.b).any(|w| !(-2048..2048).contains(w)) {
            return Err(refusal(module.name, "a weight has more than 12 bits"));
        }
        let a = Matrix::new(rows, module.rank, module.a.iter().map(|&w| w.into()).collect());
        let mut parts = Vec::with_capacity(targets.len());
        let mut from = 0;
        for target in targets {
            let width = target.linear.weights.columns();
            let entries = module
                .b
                .chunks_exact(columns)
                .flat_map(|row| row[from..from + width].iter().map(|&w| w.into()))
                .collect();
            from += width;
            let value = module.scale * 2f64.powi(target.bits as i32 - input_bits as i32) * target.factor;
            let (multiplier, shift) = multiplier(value).ok_or_else(|| {
                refusal(module.name, format!("its scale {:e} is too large or too small", module.scale))
            })?;
            // Any committed weight has 12 bits: bounds are the same for all adapters of one shape.
            bounded(module.name, "M·(x·A)", (input * 2048 * multiplier as u128) + (1 << (shift - 1)))?;
            bounded(module.name, "2^k·U", 1 << (shift + target.rank_bits - 1))?;
            bounded(
                module.name,
                "an output",
                target.linear.bound + delta_bound(target.rank_bits, module.rank),
            )?;
            let b = Matrix::new(module.rank, width, entries);
            parts.push(Part { b, multiplier, shift, bits: target.rank_bits });
        }
        Ok(Self { a, parts })
    }
}

impl ExactModel {
    /// Whether scores and attention's sums stay in range with this adapter.
    pub(crate) fn check_attention(&self, adapter: Option<&ExactAdapter>) -> Result<(), BuildError> {
        let per_head = (self.shape.n_embd / self.shape.n_head) as u128;
        for (index, layer) in self.layers.iter().enumerate() {
            let lora = adapter.and_then(|adapter| adapter.layers[index].attention_in.as_ref());
            let most = |linear: &Linear, part: usize| {
                linear.bound + lora.map_or(0, |lora| delta_bound(lora.parts[part].bits, lora.a.columns()))
            };
            let place = format!("h.{index}.attn");
            let score = match self.formats.cut_qk {
                true => per_head << 30,
                false => per_head * most(&layer.query, 0) * most(&layer.key, 1),
            };
            // A shift has 24 bits.
            let shifted = score + (1 << (23 + self.formats.score() - crate::profile::TICK));
            bounded(&place, "a score's distance from its row's sum", shifted)?;
            let sum = (1u128 << (crate::profile::ATTENTION_ENTRY + 1)) * most(&layer.value, 2);
            bounded(&place, "a sum of values", sum)?;
        }
        Ok(())
    }
}

/// The most that `U·B` may be.
pub(crate) fn delta_bound(bits: u32, rank: usize) -> u128 {
    (rank as u128 * 2048) << (bits - 1)
}

/// M and k with `M / 2^k` nearest to a value, 2^10 ≤ M ≤ 2^11, 1 ≤ k ≤ 60.
fn multiplier(value: f64) -> Option<(i64, u32)> {
    if !value.is_normal() || value < 0.0 {
        return None;
    }
    // ⌊log2(value)⌋, from the bits of the float.
    let octave = (value.to_bits() >> 52) as i64 - 1023;
    let shift =
        u32::try_from(i64::from(MULTIPLIER) - octave).ok().filter(|shift| (1..=60).contains(shift))?;
    Some((nearest(value * exp2(shift)), shift))
}

fn refusal(module: &str, why: impl Into<String>) -> BuildError {
    BuildError::Module { module: module.into(), why: why.into() }
}
