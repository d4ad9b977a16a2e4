//! What a proof of the model is made of: its public matrices, tables and formats, and what bounds its numbers.

use crate::adapter::{ExactAdapter, Lora, delta_bound};
use crate::error::Refusal;
use crate::model::{ExactModel, Linear, nearest};
use crate::norm::round;
use crate::profile::{ATTENDED, ATTENTION_ENTRY, EMBEDDING, NORMED, TICK};
use crate::tables::ExpTable;

/// A projection of a layer; `attn.c_attn` is three.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Projection {
    /// The first third of `attn.c_attn`.
    Query,
    /// The second third.
    Key,
    /// The last third.
    Value,
    /// `attn.c_proj`.
    AttentionOut,
    /// `mlp.c_fc`.
    MlpIn,
    /// `mlp.c_proj`.
    MlpOut,
}

impl Projection {
    /// The module that it is of, or a part of, in a layer.
    pub const fn module(self) -> &'static str {
        match self {
            Self::Query | Self::Key | Self::Value => "attn.c_attn",
            Self::AttentionOut => "attn.c_proj",
            Self::MlpIn => "mlp.c_fc",
            Self::MlpOut => "mlp.c_proj",
        }
    }

    /// Which part of its module's outputs it has, in widths.
    pub const fn part(self) -> usize {
        match self {
            Self::Key => 1,
            Self::Value => 2,
            _ => 0,
        }
    }
}

/// `y = x·W + b`, public.
#[derive(Debug, Clone, Copy)]
pub struct LinearPart<'a> {
    /// Inputs.
    pub rows: usize,
    /// Outputs.
    pub columns: usize,
    /// W, row-major.
    pub weights: &'a [i32],
    /// b.
    pub bias: &'a [i64],
    /// The most that an output can be, without LoRA.
    pub bound: u128,
}

/// How LoRA rounds at its rank: `U = ⌊(M·(x·A) + 2^(k-1)) / 2^k⌋`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RankPart {
    /// The rank.
    pub rank: usize,
    /// M.
    pub multiplier: i64,
    /// k.
    pub shift: u32,
    /// Signed bits of U.
    pub bits: u32,
}

/// A table of exponentials.
#[derive(Debug, Clone, Copy)]
pub struct ExponentialPart<'a> {
    /// Its entries.
    pub entries: &'a [u64],
    /// B.
    pub budget: u64,
    /// k.
    pub step_bits: u32,
}

impl ExactModel {
    /// Layers.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// The width of the residual stream.
    pub fn width(&self) -> usize {
        self.shape.n_embd
    }

    /// Heads of a layer.
    pub fn heads(&self) -> usize {
        self.shape.n_head
    }

    /// Whether the model takes a text, and these are positions of it that can be scored: ascending, and not the first.
    pub fn check_text(&self, tokens: &[u32], scored: &[usize]) -> Result<(), Refusal> {
        self.check_tokens(tokens, scored)
    }

    /// The residual stream before the first layer, row-major.
    pub fn start(&self, tokens: &[u32]) -> Result<Vec<i64>, Refusal> {
        Ok(self.embedded(tokens)?.into_iter().map(|h| round(h, EMBEDDING)).collect())
    }

    /// What the first norm makes of the tokens: public.
    pub fn first_norm(&self, tokens: &[u32]) -> Result<Vec<i64>, Refusal> {
        let place = |value| Refusal::OutOfRange { place: "h.0.ln_1".into(), value };
        Ok(self.norm(&self.embedded(tokens)?, EMBEDDING, NORMED).map_err(place)?.normed)
    }

    fn embedded(&self, tokens: &[u32]) -> Result<Vec<i64>, Refusal> {
        self.check_tokens(tokens, &[1])?;
        let rows = tokens.iter().enumerate();
        Ok(rows.flat_map(|(position, &token)| self.embedding(token as usize, position)).collect())
    }

    /// What a norm of the residual stream adds to a row's sum of squares.
    pub fn epsilon(&self) -> i64 {
        let unit = 4f64.powi(self.plan.residual_bits as i32);
        nearest(self.shape.layer_norm_epsilon * unit * self.shape.n_embd as f64).max(1)
    }

    /// A projection.
    pub fn projection(&self, layer: usize, projection: Projection) -> LinearPart<'_> {
        self.linear(layer, projection).part()
    }

    fn linear(&self, layer: usize, projection: Projection) -> &Linear {
        let layer = &self.layers[layer];
        match projection {
            Projection::Query => &layer.query,
            Projection::Key => &layer.key,
            Projection::Value => &layer.value,
            Projection::AttentionOut => &layer.attention_out,
            Projection::MlpIn => &layer.mlp_in,
            Projection::MlpOut => &layer.mlp_out,
        }
    }

    /// The outputs of a projection, without LoRA, for rows of inputs.
    pub fn outputs(&self, layer: usize, projection: Projection, x: &[i64]) -> Vec<i64> {
        self.linear(layer, projection).apply(x)
    }

    /// Logits for rows of normalised activations.
    pub fn logits(&self, x: &[i64]) -> Vec<i64> {
        self.head.apply(x)
    }

    /// The head.
    pub fn head_part(&self) -> LinearPart<'_> {
        self.head.part()
    }

    /// Gain and bias by which LoRA's input comes from normalised activations; none of a projection that is not behind a norm.
    pub fn lora_input(&self, layer: usize, projection: Projection) -> Option<(&[i64], &[i64])> {
        let layer = &self.layers[layer];
        let input = match projection {
            Projection::Query | Projection::Key | Projection::Value => &layer.attention_in,
            Projection::MlpIn => &layer.mlp_lora_in,
            Projection::AttentionOut | Projection::MlpOut => return None,
        };
        Some((&input.gain, &input.bias))
    }

    /// Fraction bits of a score below a tick; none if queries and keys are rounded.
    pub fn score_bits(&self) -> Option<u32> {
        (!self.formats.cut_qk).then(|| self.formats.score() - TICK)
    }

    /// Bits that an attention output is rounded by.
    pub fn attended_bits(&self) -> u32 {
        ATTENTION_ENTRY + self.formats.v - ATTENDED
    }

    /// GELU, from -2^15 on.
    pub fn gelu(&self) -> &[i32] {
        &self.gelu
    }

    /// The exponentials of attention in a text of so many tokens.
    pub fn attention_exponentials(&self, tokens: usize) -> ExponentialPart<'_> {
        self.attention_table(tokens).part()
    }

    /// The exponentials of the head.
    pub fn head_exponentials(&self) -> ExponentialPart<'_> {
        self.head_table.part()
    }

    /// The most that a score of a layer and that a value of it can be, with an adapter or without.
    pub fn attention_bounds(&self, layer: usize, adapter: Option<&ExactAdapter>) -> [u128; 2] {
        let most = |projection| {
            let part = adapter.and_then(|adapter| adapter.part(layer, projection));
            self.linear(layer, projection).bound + part.map_or(0, |part| delta_bound(part.bits, part.rank))
        };
        let channels = (self.shape.n_embd / self.shape.n_head) as u128;
        [channels * most(Projection::Query) * most(Projection::Key), most(Projection::Value)]
    }
}

impl ExactAdapter {
    /// How the adapter rounds in a projection; none if it has no such module.
    pub fn part(&self, layer: usize, projection: Projection) -> Option<RankPart> {
        let layer = &self.layers[layer];
        let lora: &Lora = match projection {
            Projection::Query | Projection::Key | Projection::Value => layer.attention_in.as_ref(),
            Projection::AttentionOut => layer.attention_out.as_ref(),
            Projection::MlpIn => layer.mlp_in.as_ref(),
            Projection::MlpOut => layer.mlp_out.as_ref(),
        }?;
        let part = &lora.parts[projection.part()];
        Some(RankPart {
            rank: lora.a.columns(),
            multiplier: part.multiplier,
            shift: part.shift,
            bits: part.bits,
        })
    }
}

impl Linear {
    fn part(&self) -> LinearPart<'_> {
        LinearPart {
            rows: self.weights.rows(),
            columns: self.weights.columns(),
            weights: self.weights.entries(),
            bias: &self.bias,
            bound: self.bound,
        }
    }
}

impl ExpTable {
    fn part(&self) -> ExponentialPart<'_> {
        ExponentialPart { entries: self.entries(), budget: self.budget, step_bits: self.step_bits }
    }
}
