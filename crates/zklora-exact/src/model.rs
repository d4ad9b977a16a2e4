//! The integer model: public matrices and tables, made from a base model's float weights and a plan.

use std::path::Path;

use zklora_hf::{BaseModel, Config, Gpt2Config};

use crate::bounds::{below, bounded, largest};
use crate::error::BuildError;
use crate::matrix::Matrix;
use crate::plan::Plan;
use crate::profile::{
    ATTENDED, ATTENTION_ENTRY, CUT, EMBEDDING, Formats, GELU_IN, GELU_OUT, HEAD_STEP, HEAD_UNIT, LOGIT,
    LORA_IN, NORM_PRODUCT, NORMED, TICK, attention_step,
};
use crate::tables::{ExpTable, gelu};

/// log2(e), which turns logarithms into octaves.
const OCTAVES: f64 = std::f64::consts::LOG2_E;
/// Index bits of all exponential tables.
const INDEX: u32 = 16;
/// Magnitudes of entries of the residual stream less its mean stay below this power of two.
const CENTRED: u32 = 28;

/// A base model in integers. What it gives for a text is the same on every machine.
pub struct ExactModel {
    pub(crate) plan: Plan,
    pub(crate) formats: Formats,
    pub(crate) shape: Gpt2Config,
    wte: Vec<f32>,
    wpe: Vec<f32>,
    pub(crate) layers: Vec<Layer>,
    pub(crate) head: Linear,
    pub(crate) gelu: Vec<i32>,
    pub(crate) head_table: ExpTable,
    /// For k = 7 … 11.
    attention_tables: Vec<ExpTable>,
    /// While calibrating no range but the field's matters.
    pub(crate) calibrating: bool,
}

pub(crate) struct Layer {
    pub(crate) query: Linear,
    pub(crate) key: Linear,
    pub(crate) value: Linear,
    pub(crate) attention_in: LoraInput,
    pub(crate) attention_out: Linear,
    pub(crate) mlp_lora_in: LoraInput,
    pub(crate) mlp_in: Linear,
    pub(crate) mlp_out: Linear,
}

/// `y = x·W + b` in integers.
pub(crate) struct Linear {
    pub(crate) weights: Matrix,
    pub(crate) bias: Vec<i64>,
    /// The most that an entry of y may be.
    pub(crate) bound: u128,
}

/// A norm's gain and bias, by which LoRA's input comes from normalised activations.
pub(crate) struct LoraInput {
    pub(crate) gain: Vec<i64>,
    pub(crate) bias: Vec<i64>,
    /// The most that the magnitudes of a row may add up to.
    pub(crate) bound: u128,
}

impl ExactModel {
    /// The integer model of a base model, in the formats of a plan.
    ///
    /// Fails with [`BuildError::Bound`] if some sum could leave the range in which a proof of it would be one of integers.
    pub fn new(base: &BaseModel, plan: Plan) -> Result<Self, BuildError> {
        Self::build(base, plan, false)
    }

    pub(crate) fn build(base: &BaseModel, plan: Plan, calibrating: bool) -> Result<Self, BuildError> {
        let Config::Gpt2(shape) = base.config() else {
            let found = base.config().architecture().name();
            return Err(BuildError::Unsupported(format!(
                "the base model's architecture is {found}, an exact model exists of gpt2 alone"
            )));
        };
        plan.check(base.digest(), shape.n_layer, shape.n_embd)?;
        let formats = plan.profile.formats();
        let tensor = |name: &str| Ok::<_, BuildError>(base.weights().tensor(name)?.data);
        let (wte, wpe) = (tensor("wte.weight")?, tensor("wpe.weight")?);
        let gelu = gelu(GELU_IN, GELU_OUT);
        let builder = Builder { shape, formats, residual: plan.residual_bits, gelu: &gelu };
        let layers = (0..shape.n_layer)
            .map(|layer| builder.layer(layer, &|name| tensor(&format!("h.{layer}.{name}"))))
            .collect::<Result<Vec<_>, _>>()?;
        let (gain, bias) = (tensor("ln_f.weight")?, tensor("ln_f.bias")?);
        let head = match shape.tied {
            true => builder.head(&gain, &bias, &wte)?,
            false => builder.head(&gain, &bias, &tensor("lm_head.weight")?)?,
        };
        let attention_tables =
            (7..=11).map(|step| ExpTable::new(TICK, ATTENTION_ENTRY - step, step, INDEX)).collect();
        let head_table = ExpTable::new(TICK, HEAD_UNIT, HEAD_STEP, INDEX);
        let model = Self {
            plan,
            formats,
            shape: shape.clone(),
            wte,
            wpe,
            layers,
            head,
            gelu,
            head_table,
            attention_tables,
            calibrating,
        };
        if !calibrating {
            model.check_residual()?;
        }
        Ok(model)
    }

    /// Reads a plan from a file, and the integer model that it makes of a base model.
    pub fn open(base: &BaseModel, plan: &Path) -> Result<Self, BuildError> {
        let bytes = std::fs::read(plan)
            .map_err(|error| BuildError::Plan(format!("cannot read {}: {error}", plan.display())))?;
        Self::new(base, Plan::parse(&bytes)?)
    }

    /// The public constants.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The longest text, in tokens.
    pub fn max_tokens(&self) -> usize {
        self.shape.n_positions.min(self.plan.profile.max_tokens())
    }

    /// Tokens of the vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.shape.vocab_size
    }

    /// A token's row at a position, with [`EMBEDDING`] more fraction bits than the residual stream.
    pub(crate) fn embedding(&self, token: usize, position: usize) -> impl Iterator<Item = i64> {
        let width = self.shape.n_embd;
        let unit = exp2(self.plan.residual_bits + EMBEDDING);
        let (word, place) = (&self.wte[token * width..][..width], &self.wpe[position * width..][..width]);
        word.iter().zip(place).map(move |(&w, &p)| nearest((f64::from(w) + f64::from(p)) * unit))
    }

    pub(crate) fn attention_table(&self, tokens: usize) -> &ExpTable {
        &self.attention_tables[attention_step(tokens) as usize - 7]
    }

    /// Bits of what a layer adds to a channel of the residual stream.
    pub(crate) fn added_bits(&self, hot: &[usize], channel: usize) -> u32 {
        if self.calibrating || hot.binary_search(&channel).is_ok() { 24 } else { 16 }
    }

    /// Whether a norm's product and its sum of squares stay in range, whatever the layers add.
    fn check_residual(&self) -> Result<(), BuildError> {
        let width = self.shape.n_embd;
        let unit = exp2(self.plan.residual_bits);
        let column = |table: &[f32], channel: usize| {
            table.iter().skip(channel).step_by(width).fold(0f64, |most, &w| most.max(f64::from(w).abs()))
        };
        let (mut squares, mut first) = (0u128, 0u128);
        for channel in 0..width {
            let start = (column(&self.wte, channel) + column(&self.wpe, channel)) * unit + 1.0;
            first = first.max((start * exp2(EMBEDDING)) as u128);
            let added: u128 = self
                .plan
                .hot
                .iter()
                .flat_map(|hot| [&hot.attention, &hot.mlp])
                .map(|hot| 1 << (self.added_bits(hot, channel) - 1))
                .sum();
            // The mean has 16 bits.
            let centred = start as u128 + added + (1 << 15);
            below("residual stream", "an entry less its mean", centred, CENTRED)?;
            squares += centred * centred;
        }
        below("first norm", "an entry less its mean", first + (1 << 15), CENTRED)?;
        below("residual stream", "the sum of squares of a row", squares, 60)?;
        Ok(())
    }
}

/// What layers are made with.
struct Builder<'a> {
    shape: &'a Gpt2Config,
    formats: Formats,
    residual: u32,
    gelu: &'a [i32],
}

impl Builder<'_> {
    fn layer(
        &self,
        layer: usize,
        tensor: &dyn Fn(&str) -> Result<Vec<f32>, BuildError>,
    ) -> Result<Layer, BuildError> {
        let (width, inner) = (self.shape.n_embd, self.shape.n_inner);
        let place = |part: &str| format!("h.{layer}.{part}");
        let (gain, bias) = (tensor("ln_1.weight")?, tensor("ln_1.bias")?);
        let (weights, offsets) = (tensor("attn.c_attn.weight")?, tensor("attn.c_attn.bias")?);
        let per_head = (width / self.shape.n_head) as f64;
        let third = |part: usize, factor: f64, bits: u32| {
            let source = Source {
                weights: &|i, j| weights[i * 3 * width + part * width + j],
                bias: &|j| offsets[part * width + j],
                size: (width, width),
            };
            self.behind_norm(&place("attn.c_attn"), &gain, &bias, source, factor, bits)
        };
        let query = third(0, OCTAVES / per_head.sqrt(), self.formats.q)?;
        let key = third(1, 1.0, self.formats.k)?;
        let value = third(2, 1.0, self.formats.v)?;
        let attention_in = self.lora_input(&gain, &bias);
        let attention_out = self.plain(
            &place("attn.c_proj"),
            &tensor("attn.c_proj.weight")?,
            &tensor("attn.c_proj.bias")?,
            (width, width),
            (ATTENDED, 1 << 15),
        )?;
        let (gain, bias) = (tensor("ln_2.weight")?, tensor("ln_2.bias")?);
        let (weights, offsets) = (tensor("mlp.c_fc.weight")?, tensor("mlp.c_fc.bias")?);
        let source =
            Source { weights: &|i, j| weights[i * inner + j], bias: &|j| offsets[j], size: (width, inner) };
        let mlp_in = self.behind_norm(&place("mlp.c_fc"), &gain, &bias, source, 1.0, GELU_IN + CUT)?;
        let mlp_lora_in = self.lora_input(&gain, &bias);
        let most = self.gelu.iter().map(|g| u128::from(g.unsigned_abs())).max().unwrap_or(0);
        let mlp_out = self.plain(
            &place("mlp.c_proj"),
            &tensor("mlp.c_proj.weight")?,
            &tensor("mlp.c_proj.bias")?,
            (inner, width),
            (GELU_OUT, most),
        )?;
        Ok(Layer { query, key, value, attention_in, attention_out, mlp_lora_in, mlp_in, mlp_out })
    }

    /// The language model's head: the transpose of the embedding, or of a matrix of its own.
    fn head(&self, gain: &[f32], bias: &[f32], weights: &[f32]) -> Result<Linear, BuildError> {
        let (width, vocabulary) = (self.shape.n_embd, self.shape.vocab_size);
        let source =
            Source { weights: &|i, j| weights[j * width + i], bias: &|_| 0.0, size: (width, vocabulary) };
        let head = self.behind_norm("lm_head", gain, bias, source, OCTAVES, LOGIT)?;
        // A shift has 24 bits.
        let shifted = head.bound + (1 << (23 + LOGIT - TICK));
        bounded("lm_head", "a logit's distance from its row's sum", shifted)?;
        Ok(head)
    }

    /// A linear layer behind a norm, whose gain and bias become part of it:
    /// `W'[i][j] = ⌊g_i·W[i][j]·c·2^(F - 8) + 1/2⌋` and `b'[j] = ⌊(b_j + Σ_i β_i·W[i][j])·c·2^F + 1/2⌋`.
    ///
    /// In float64, factors from the left to the right and the sum in the order of i, so that all machines get the same.
    fn behind_norm(
        &self,
        place: &str,
        gain: &[f32],
        bias: &[f32],
        source: Source<'_>,
        factor: f64,
        bits: u32,
    ) -> Result<Linear, BuildError> {
        let (rows, columns) = source.size;
        let unit = exp2(bits - NORMED);
        let mut entries = Vec::with_capacity(rows * columns);
        let mut sums = vec![0f64; columns];
        for (i, (&gain, &bias)) in gain.iter().zip(bias).enumerate() {
            for (j, sum) in sums.iter_mut().enumerate() {
                let weight = f64::from((source.weights)(i, j));
                entries.push(nearest(f64::from(gain) * weight * factor * unit));
                *sum += f64::from(bias) * weight;
            }
        }
        let offsets: Vec<i64> = sums
            .into_iter()
            .enumerate()
            .map(|(j, sum)| nearest((f64::from((source.bias)(j)) + sum) * factor * exp2(bits)))
            .collect();
        let weights = matrix(place, rows, columns, entries)?;
        // A normalised row is short, by Cauchy and Schwarz; an entry of it has 16 bits.
        let by_length = (normed_length(rows) * 1.0001 * weights.norm2() as f64) as u128;
        let by_entries = u128::from(weights.norm1()) << 15;
        let bound = bounded(place, "an output", by_length.min(by_entries) + largest(&offsets))?;
        Ok(Linear { weights, bias: offsets, bound })
    }

    /// A linear layer that writes to the residual stream: `W' = ⌊W·2^(F - b) + 1/2⌋` for inputs of b fraction bits and a given
    /// magnitude.
    fn plain(
        &self,
        place: &str,
        weights: &[f32],
        bias: &[f32],
        (rows, columns): (usize, usize),
        (input_bits, input): (u32, u128),
    ) -> Result<Linear, BuildError> {
        let bits = self.residual + CUT;
        let unit = exp2(bits - input_bits);
        let entries = weights.iter().map(|&w| nearest(f64::from(w) * unit)).collect();
        let offsets: Vec<i64> = bias.iter().map(|&b| nearest(f64::from(b) * exp2(bits))).collect();
        let weights = matrix(place, rows, columns, entries)?;
        let bound = bounded(place, "an output", u128::from(weights.norm1()) * input + largest(&offsets))?;
        Ok(Linear { weights, bias: offsets, bound })
    }

    fn lora_input(&self, gain: &[f32], bias: &[f32]) -> LoraInput {
        let integers = |values: &[f32], unit: f64| -> Vec<i64> {
            values.iter().map(|&v| nearest(f64::from(v) * unit)).collect()
        };
        let gain = integers(gain, exp2(LORA_IN - NORMED));
        let bias = integers(bias, exp2(LORA_IN));
        let magnitude = |values: &[i64]| values.iter().map(|v| u128::from(v.unsigned_abs())).sum::<u128>();
        let squares = gain.iter().map(|g| (*g as f64).powi(2)).sum::<f64>();
        let by_length = (normed_length(gain.len()) * 1.0001 * squares.sqrt()) as u128 + 1;
        let bound = by_length.min(magnitude(&gain) << 15) + magnitude(&bias);
        LoraInput { gain, bias, bound }
    }
}

/// A float matrix and bias that become part of an integer model.
struct Source<'a> {
    weights: &'a dyn Fn(usize, usize) -> f32,
    bias: &'a dyn Fn(usize) -> f32,
    size: (usize, usize),
}

/// The most that the Euclidean length of a normalised row may be: √d·(1.008·2^8 + 1/2), since r ≤ √(d·4^a/V) + 1/2 and r ≥ 64.
pub(crate) fn normed_length(width: usize) -> f64 {
    (width as f64).sqrt() * (1.008 * exp2(NORMED) + 0.5)
}

fn matrix(place: &str, rows: usize, columns: usize, entries: Vec<i64>) -> Result<Matrix, BuildError> {
    below(place, "a weight", largest(&entries), 31)?;
    // Each is below 2^31.
    Ok(Matrix::new(rows, columns, entries.into_iter().map(|w| w as i32).collect()))
}

/// `⌊x + 1/2⌋`, for finite x; what is beyond an i64 becomes its end, which no bound lets pass.
pub(crate) fn nearest(x: f64) -> i64 {
    (x + 0.5).floor() as i64
}

/// 2^bits.
pub(crate) fn exp2(bits: u32) -> f64 {
    (1u64 << bits) as f64
}

const _: () = assert!(NORM_PRODUCT - NORMED == CUT);
