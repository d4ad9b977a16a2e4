//! The forward pass: a text's losses, exactly.

use ndarray::ArrayView2;
use rayon::prelude::*;

use crate::adapter::{ExactAdapter, Lora};
use crate::error::{OutOfRange, Refusal};
use crate::matrix::product;
use crate::model::{ExactModel, Linear, LoraInput, nearest};
use crate::norm::{Statistics, round, signed};
use crate::profile::{ATTENDED, ATTENTION_ENTRY, CUT, EMBEDDING, LOGIT, NORMED, TICK};
use crate::softmax::{shift, ticks};
use crate::trace::{AttentionTrace, HeadTrace, LayerTrace, LinearTrace, NormTrace, Trace};

/// Positions whose logits are in memory at once.
const HEAD_ROWS: usize = 128;
/// A loss of 1 in these units is 2^-25 octave.
pub const LOSS_BITS: u32 = LOGIT;

/// The losses of one text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Losses {
    /// For each scored position, -log2 of the probability of its token, in units of 2^-[`LOSS_BITS`] octave.
    pub units: Vec<i64>,
}

impl Losses {
    /// The sum of all, in units of 2^-[`LOSS_BITS`] octave.
    pub fn total(&self) -> i64 {
        // At most 2,041 positions of less than 2^49 each.
        self.units.iter().sum()
    }

    /// The mean, in nats.
    pub fn mean(&self) -> f64 {
        self.nats().sum::<f64>() / self.units.len() as f64
    }

    /// Each, in nats.
    pub fn nats(&self) -> impl Iterator<Item = f64> {
        let unit = std::f64::consts::LN_2 / f64::from(1u32 << LOSS_BITS);
        self.units.iter().map(move |&units| units as f64 * unit)
    }
}

impl ExactModel {
    /// The losses of all tokens of a text but its first, with or without an adapter.
    pub fn losses(&self, tokens: &[u32], adapter: Option<&ExactAdapter>) -> Result<Losses, Refusal> {
        let scored: Vec<usize> = (1..tokens.len()).collect();
        self.run(tokens, &scored, adapter, None)
    }

    /// The losses of the tokens at these positions, which ascend and do not have the first among them.
    pub fn losses_at(
        &self,
        tokens: &[u32],
        scored: &[usize],
        adapter: Option<&ExactAdapter>,
    ) -> Result<Losses, Refusal> {
        self.run(tokens, scored, adapter, None)
    }

    /// The same, with everything that a proof needs.
    pub fn trace(
        &self,
        tokens: &[u32],
        scored: &[usize],
        adapter: Option<&ExactAdapter>,
    ) -> Result<(Losses, Trace), Refusal> {
        let mut trace = Trace::default();
        let losses = self.run(tokens, scored, adapter, Some(&mut trace))?;
        Ok((losses, trace))
    }

    fn run(
        &self,
        tokens: &[u32],
        scored: &[usize],
        adapter: Option<&ExactAdapter>,
        mut trace: Option<&mut Trace>,
    ) -> Result<Losses, Refusal> {
        self.check_tokens(tokens, scored)?;
        let width = self.shape.n_embd;
        let embedded: Vec<i64> = tokens
            .iter()
            .enumerate()
            .flat_map(|(position, &token)| self.embedding(token as usize, position))
            .collect();
        let mut residual: Vec<i64> = embedded.iter().map(|&h| round(h, EMBEDDING)).collect();
        for (index, layer) in self.layers.iter().enumerate() {
            let at = |part: &'static str| {
                move |value| Refusal::OutOfRange { place: format!("h.{index}.{part}"), value }
            };
            let lora = adapter.map(|adapter| &adapter.layers[index]);
            let hot = &self.plan.hot[index];
            // The first norm has more bits of the embeddings, which are small.
            let first = (index == 0).then_some(&embedded);
            let extra = if index == 0 { EMBEDDING } else { 0 };
            let norm = self.norm(first.unwrap_or(&residual), extra, NORMED).map_err(at("ln_1"))?;
            let attention = self
                .attention(index, &norm, lora.and_then(|l| l.attention_in.as_ref()))
                .map_err(at("attn"))?;
            let out = self
                .add_to(
                    &mut residual,
                    &layer.attention_out,
                    &attention.attended,
                    lora.and_then(|l| l.attention_out.as_ref()),
                    &hot.attention,
                )
                .map_err(at("attn.c_proj"))?;

            let norm2 = self.norm(&residual, 0, NORMED).map_err(at("ln_2"))?;
            let (fc, active) = self
                .mlp(&layer.mlp_in, &layer.mlp_lora_in, &norm2, lora.and_then(|l| l.mlp_in.as_ref()))
                .map_err(at("mlp.c_fc"))?;
            let mlp_out = self
                .add_to(
                    &mut residual,
                    &layer.mlp_out,
                    &active,
                    lora.and_then(|l| l.mlp_out.as_ref()),
                    &hot.mlp,
                )
                .map_err(at("mlp.c_proj"))?;
            if let Some(trace) = trace.as_deref_mut() {
                trace.layers.push(LayerTrace {
                    attention_norm: norm,
                    attention,
                    attention_out: out,
                    mlp_norm: norm2,
                    mlp_in: fc,
                    mlp_out,
                });
            }
        }
        let rows: Vec<i64> = scored
            .iter()
            .flat_map(|&position| &residual[(position - 1) * width..position * width])
            .copied()
            .collect();
        let place = |value| Refusal::OutOfRange { place: "lm_head".into(), value };
        let norm = self.norm(&rows, 0, NORMED).map_err(place)?;
        let targets: Vec<usize> = scored.iter().map(|&position| tokens[position] as usize).collect();
        let (losses, shifts) = self.head(&norm.normed, &targets).map_err(place)?;
        if let Some(trace) = trace {
            trace.head = HeadTrace { norm, shifts };
        }
        Ok(losses)
    }

    pub(crate) fn check_tokens(&self, tokens: &[u32], scored: &[usize]) -> Result<(), Refusal> {
        let refuse = |why: String| Err(Refusal::Tokens(why));
        if tokens.len() < 2 || tokens.len() > self.max_tokens() {
            return refuse(format!(
                "the text has {} tokens, expected 2 to {}",
                tokens.len(),
                self.max_tokens()
            ));
        }
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= self.vocabulary()) {
            return refuse(format!("the text has token {token}, expected less than {}", self.vocabulary()));
        }
        let ascending = scored.windows(2).all(|pair| pair[0] < pair[1]);
        if scored.is_empty() || scored[0] == 0 || !ascending || scored[scored.len() - 1] >= tokens.len() {
            return refuse(format!("scored positions are not ascending from 1 to {}", tokens.len() - 1));
        }
        Ok(())
    }

    /// `extra` is how many more fraction bits the rows have than the residual stream.
    pub(crate) fn norm(&self, rows: &[i64], extra: u32, bits: u32) -> Result<NormTrace, OutOfRange> {
        let width = self.shape.n_embd;
        let unit = 4f64.powi((self.plan.residual_bits + extra) as i32);
        let epsilon = nearest(self.shape.layer_norm_epsilon * unit * width as f64).max(1);
        let found: Vec<(Statistics, Vec<i64>)> = rows
            .par_chunks_exact(width)
            .map(|row| {
                let statistics = Statistics::of(row, epsilon)?;
                Ok((statistics, statistics.apply(row, bits)?))
            })
            .collect::<Result<_, OutOfRange>>()?;
        let (statistics, normed): (Vec<_>, Vec<_>) = found.into_iter().unzip();
        Ok(NormTrace { statistics, normed: normed.concat() })
    }

    fn attention(
        &self,
        index: usize,
        norm: &NormTrace,
        lora: Option<&Lora>,
    ) -> Result<AttentionTrace, OutOfRange> {
        let layer = &self.layers[index];
        let (width, heads) = (self.shape.n_embd, self.shape.n_head);
        let (tokens, per_head) = (norm.statistics.len(), width / heads);
        let mut parts = [&layer.query, &layer.key, &layer.value].map(|linear| linear.apply(&norm.normed));
        let mut ranks = Vec::new();
        if let Some(lora) = lora {
            let (deltas, found) = lora.apply(&layer.attention_in.of(&norm.normed))?;
            for (part, delta) in parts.iter_mut().zip(deltas) {
                add(part, &delta);
            }
            ranks = found;
        }
        let [mut query, mut key, value] = parts;
        if self.formats.cut_qk {
            for entry in query.iter_mut().chain(&mut key) {
                *entry = round(*entry, CUT);
                signed(*entry, 16, "a query or key")?;
            }
        }
        let table = self.attention_table(tokens);
        let below = self.formats.score() - TICK;
        let found: Vec<(Vec<i64>, Vec<i64>, Vec<i64>)> = (0..heads)
            .into_par_iter()
            .map(|head| {
                let of_head = |all: &[i64]| -> Vec<i64> {
                    all.chunks_exact(width)
                        .flat_map(|row| &row[head * per_head..][..per_head])
                        .copied()
                        .collect()
                };
                let (query, key, value) = (of_head(&query), of_head(&key), of_head(&value));
                // Both have the shape that their lengths say.
                let view =
                    |all| ArrayView2::from_shape((tokens, per_head), all).expect("a row for each token");
                let scores = product(&query, per_head, view(&key).t());
                let (mut shifts, mut distances) = (Vec::with_capacity(tokens), Vec::new());
                let mut weights = vec![0i64; tokens * tokens];
                for (token, row) in scores.chunks_exact(tokens).enumerate() {
                    let row = &row[..=token];
                    let found = shift(row, below, table)?;
                    shifts.push(found);
                    for (weight, &score) in weights[token * tokens..].iter_mut().zip(row) {
                        let distance = (found << below) - score;
                        // Entries have 22 bits.
                        *weight = table.entries()[ticks(distance, below, table)? as usize] as i64;
                        distances.push(distance);
                    }
                }
                let sums = product(&weights, tokens, view(&value));
                let drop = ATTENTION_ENTRY + self.formats.v - ATTENDED;
                let attended: Vec<i64> = sums.iter().map(|&sum| round(sum, drop)).collect();
                for &entry in &attended {
                    signed(entry, 16, "an attention output")?;
                }
                Ok((attended, shifts, distances))
            })
            .collect::<Result<_, OutOfRange>>()?;
        let mut attended = vec![0; tokens * width];
        let (mut shifts, mut distances) = (Vec::new(), Vec::new());
        for (head, (of_head, of_shifts, of_distances)) in found.into_iter().enumerate() {
            for (row, entries) in attended.chunks_exact_mut(width).zip(of_head.chunks_exact(per_head)) {
                row[head * per_head..][..per_head].copy_from_slice(entries);
            }
            shifts.push(of_shifts);
            distances.push(of_distances);
        }
        Ok(AttentionTrace { query, key, value, ranks, shifts, distances, attended })
    }

    /// Adds a layer's output to the residual stream.
    fn add_to(
        &self,
        residual: &mut [i64],
        linear: &Linear,
        input: &[i64],
        lora: Option<&Lora>,
        hot: &[usize],
    ) -> Result<LinearTrace, OutOfRange> {
        let mut sums = linear.apply(input);
        let ranks = add_lora(&mut sums, input, lora)?;
        let width = self.shape.n_embd;
        let bits: Vec<u32> = (0..width).map(|channel| self.added_bits(hot, channel)).collect();
        let mut outputs = sums;
        for (row, target) in outputs.chunks_exact_mut(width).zip(residual.chunks_exact_mut(width)) {
            for ((output, target), &bits) in row.iter_mut().zip(target).zip(&bits) {
                *output = round(*output, CUT);
                signed(*output, bits, "what a layer adds to the residual stream")?;
                *target += *output;
            }
        }
        Ok(LinearTrace { ranks, outputs })
    }

    /// GELU's inputs, and what comes out.
    fn mlp(
        &self,
        linear: &Linear,
        lora_in: &LoraInput,
        norm: &NormTrace,
        lora: Option<&Lora>,
    ) -> Result<(LinearTrace, Vec<i64>), OutOfRange> {
        let mut outputs = linear.apply(&norm.normed);
        let ranks = match lora {
            Some(_) => add_lora(&mut outputs, &lora_in.of(&norm.normed), lora)?,
            None => Vec::new(),
        };
        for output in &mut outputs {
            *output = round(*output, CUT);
            signed(*output, 16, "GELU's input")?;
        }
        let active = outputs.iter().map(|&x| self.gelu[(x + (1 << 15)) as usize].into()).collect();
        Ok((LinearTrace { ranks, outputs }, active))
    }

    /// The losses at rows that are to predict these tokens, and the shift of each row.
    fn head(&self, normed: &[i64], targets: &[usize]) -> Result<(Losses, Vec<i64>), OutOfRange> {
        let below = LOGIT - TICK;
        let (mut units, mut shifts) = (Vec::with_capacity(targets.len()), Vec::with_capacity(targets.len()));
        for (rows, targets) in normed.chunks(HEAD_ROWS * self.shape.n_embd).zip(targets.chunks(HEAD_ROWS)) {
            let logits = self.head.apply(rows);
            let found: Vec<(i64, i64)> = logits
                .par_chunks_exact(self.vocabulary())
                .zip(targets)
                .map(|(logits, &target)| {
                    let found = shift(logits, below, &self.head_table)?;
                    for &logit in logits {
                        ticks((found << below) - logit, below, &self.head_table)?;
                    }
                    Ok((found, (found << below) - logits[target]))
                })
                .collect::<Result<_, OutOfRange>>()?;
            for (shift, loss) in found {
                shifts.push(shift);
                units.push(loss);
            }
        }
        Ok((Losses { units }, shifts))
    }
}

impl Linear {
    pub(crate) fn apply(&self, x: &[i64]) -> Vec<i64> {
        let mut y = self.weights.multiply(x);
        for row in y.chunks_exact_mut(self.bias.len()) {
            add(row, &self.bias);
        }
        y
    }
}

impl LoraInput {
    /// LoRA's input: gain and bias of the norm on normalised rows.
    fn of(&self, normed: &[i64]) -> Vec<i64> {
        let row = |row: &[i64]| -> Vec<i64> {
            row.iter().zip(&self.gain).zip(&self.bias).map(|((x, gain), bias)| gain * x + bias).collect()
        };
        normed.chunks_exact(self.gain.len()).flat_map(row).collect()
    }
}

/// A tensor for each part of a module's outputs.
type Parts = Vec<Vec<i64>>;

impl Lora {
    /// The delta of each part, and what was rounded at the rank for it.
    fn apply(&self, x: &[i64]) -> Result<(Parts, Parts), OutOfRange> {
        let inner = self.a.multiply(x);
        let (mut deltas, mut ranks) = (Vec::new(), Vec::new());
        for part in &self.parts {
            let rank: Vec<i64> = inner.iter().map(|&u| round(part.multiplier * u, part.shift)).collect();
            for &u in &rank {
                signed(u, part.bits, "what an adapter has at its rank")?;
            }
            deltas.push(part.b.multiply(&rank));
            ranks.push(rank);
        }
        Ok((deltas, ranks))
    }
}

fn add_lora(sums: &mut [i64], input: &[i64], lora: Option<&Lora>) -> Result<Vec<Vec<i64>>, OutOfRange> {
    let Some(lora) = lora else { return Ok(Vec::new()) };
    let (deltas, ranks) = lora.apply(input)?;
    for delta in &deltas {
        add(sums, delta);
    }
    Ok(ranks)
}

fn add(sums: &mut [i64], more: &[i64]) {
    sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
}
