//! The fixed point formats of an exact model: how many fraction bits each tensor has. `f` fraction bits: x·2^-f is written as x.

use serde::{Deserialize, Serialize};

/// Which formats a model has; see docs/exact-model.md, "Formats".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Profile {
    /// Queries and keys are never rounded. For texts of up to 512 tokens and ranks of up to 16.
    Faithful,
    /// Queries and keys are rounded to 16 bits. For longer texts and larger ranks.
    Long,
}

/// Fraction bits and widths of a [`Profile`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Formats {
    /// Accumulators of queries, keys and values.
    pub q: u32,
    pub k: u32,
    pub v: u32,
    /// Whether queries and keys are rounded by [`CUT`] bits, to 16 bits.
    pub cut_qk: bool,
    /// Signed bits of what LoRA has at its rank, for queries, keys, values.
    pub rank_q: u32,
    pub rank_k: u32,
    pub rank_v: u32,
}

impl Profile {
    pub(crate) const fn formats(self) -> Formats {
        match self {
            Self::Faithful => {
                Formats { q: 22, k: 19, v: 20, cut_qk: false, rank_q: 15, rank_k: 12, rank_v: 16 }
            }
            Self::Long => Formats { q: 25, k: 25, v: 20, cut_qk: true, rank_q: 20, rank_k: 20, rank_v: 16 },
        }
    }

    /// The longest text.
    pub const fn max_tokens(self) -> usize {
        match self {
            Self::Faithful => 512,
            Self::Long => 2041,
        }
    }

    /// Its name in files and digests.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Faithful => "faithful",
            Self::Long => "long",
        }
    }
}

impl Formats {
    /// Fraction bits of a score, `q·k` in octaves.
    pub(crate) const fn score(self) -> u32 {
        if self.cut_qk { self.q + self.k - 2 * CUT } else { self.q + self.k }
    }
}

/// Bits that an ordinary rounding drops.
pub(crate) const CUT: u32 = 16;
/// Of the residual stream: the least and the most that a plan may choose.
pub(crate) const RESIDUAL: std::ops::RangeInclusive<u32> = 9..=10;
/// More fraction bits of the embeddings at the first norm.
pub(crate) const EMBEDDING: u32 = 6;
/// A normalised activation, signed 16 bits.
pub(crate) const NORMED: u32 = 8;
/// What a norm multiplies has so many fraction bits before it is rounded.
pub(crate) const NORM_PRODUCT: u32 = NORMED + CUT;
/// An attention output, signed 16 bits.
pub(crate) const ATTENDED: u32 = 10;
/// What goes into GELU, signed 16 bits, and what comes out.
pub(crate) const GELU_IN: u32 = 10;
pub(crate) const GELU_OUT: u32 = 11;
/// Logits, in octaves.
pub(crate) const LOGIT: u32 = 25;
/// LoRA's input behind a norm.
pub(crate) const LORA_IN: u32 = 20;
/// Signed bits of what LoRA has at its rank, in all modules but queries, keys and values.
pub(crate) const RANK_WIDE: u32 = 24;
/// Bits of LoRA's multiplier M: 2^10 ≤ M ≤ 2^11.
pub(crate) const MULTIPLIER: u32 = 10;

/// Ticks of the attention's and of the head's exponential: 2^9 an octave.
pub(crate) const TICK: u32 = 9;
/// The head's table: M and k.
pub(crate) const HEAD_UNIT: u32 = 28;
pub(crate) const HEAD_STEP: u32 = 20;
/// M + k of an attention's table.
pub(crate) const ATTENTION_ENTRY: u32 = 22;

/// k of the attention's table for texts of this length: the least for which a tick's rise stays below 2^k.
pub(crate) const fn attention_step(tokens: usize) -> u32 {
    match tokens {
        0..=82 => 7,
        83..=232 => 8,
        233..=499 => 9,
        500..=1016 => 10,
        _ => 11,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::ExpTable;

    #[test]
    fn a_ticks_rise_is_below_its_bits_for_every_length() {
        for (tokens, step) in [(82, 7), (232, 8), (499, 9), (1016, 10), (2041, 11)] {
            assert_eq!(attention_step(tokens), step);
            let table = ExpTable::new(TICK, ATTENTION_ENTRY - step, step, 16);
            let bound = rise(table.budget, tokens);
            assert!(bound < 1 << step, "{tokens}: {bound}");
        }
        let head = ExpTable::new(TICK, HEAD_UNIT, HEAD_STEP, 16);
        assert!(rise(head.budget, 300_000) < 1 << HEAD_STEP);
    }

    /// The most by which a row's sum may rise in a tick if it was within the budget: each value by its share of 2^(1/2^τ) - 1, and by
    /// one for its rounding.
    fn rise(budget: u64, cells: usize) -> u64 {
        (budget as f64 * 0.001_355).ceil() as u64 + cells as u64
    }
}
