//! Softmax and log-sum-exp in one: the shift of a row of scores.
//!
//! Scores are in octaves. C, in ticks of 2^-9 octave, is the least integer at which the row's exponentials `E(⌊(C·2^g - s) / 2^g⌋)` add up to
//! no more than the table's budget. There is exactly one. It is the row's log-sum-exp within a tick, and the table's entries at
//! it are the softmax.

use crate::error::OutOfRange;
use crate::norm::signed;
use crate::tables::ExpTable;

/// The shift C of a row of scores that have `bits` fraction bits below a tick, and `C·2^bits - s` for each.
pub(crate) fn shift(scores: &[i64], bits: u32, table: &ExpTable) -> Result<i64, OutOfRange> {
    let largest = scores.iter().copied().max().unwrap_or(0);
    let mut shift = (largest >> bits) + 1;
    let first = Sum::at(shift, scores, bits, table);
    // The share of the budget says how many ticks are missing, within one or two.
    let octaves = (first.now as f64 / table.budget as f64).log2();
    shift += (octaves * f64::from(1u32 << table.tick_bits)).ceil() as i64;
    loop {
        let sum = Sum::at(shift, scores, bits, table);
        if sum.negative || sum.now > u128::from(table.budget) {
            shift += 1;
        } else if sum.before <= u128::from(table.budget) {
            shift -= 1;
        } else {
            break;
        }
    }
    signed(shift, 24, "the shift of a softmax")?;
    Ok(shift)
}

/// The index of a score's exponential, in ticks, if the table has it.
pub(crate) fn ticks(distance: i64, bits: u32, table: &ExpTable) -> Result<u64, OutOfRange> {
    let ticks = distance >> bits;
    let entries = table.entries().len() as i64;
    match u64::try_from(ticks) {
        Ok(found) if ticks < entries => Ok(found),
        _ => Err(OutOfRange::new("a score's distance from its row's sum, in ticks,", ticks, 0, entries - 1)),
    }
}

/// What a row adds up to at a shift, and at the shift before.
struct Sum {
    now: u128,
    before: u128,
    /// Whether a score is above the shift, so that nothing stands for it.
    negative: bool,
}

impl Sum {
    fn at(shift: i64, scores: &[i64], bits: u32, table: &ExpTable) -> Self {
        let (mut total, mut negative) = (0u128, false);
        // So few entries of less than 2^50 do not overflow.
        for scores in scores.chunks(1 << 12) {
            let mut sum = 0u64;
            for &score in scores {
                let ticks = ((shift << bits) - score) >> bits;
                negative |= ticks < 0;
                // Beyond the table everything is zero.
                sum += table.get(ticks as u64).unwrap_or(0);
            }
            total += u128::from(sum);
        }
        let now = total >> table.step_bits;
        Self { now, before: now + (total & ((1 << table.step_bits) - 1)), negative }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn there_is_exactly_one_shift_and_it_is_the_log_of_the_sum(
            scores in prop::collection::vec(-3_000_000i64..3_000_000, 1..82), spread in 0u32..12,
        ) {
            const BITS: u32 = 5;
            let table = ExpTable::new(9, 15, 7, 16);
            let scores: Vec<i64> = scores.into_iter().map(|s| s >> spread).collect();
            let found = shift(&scores, BITS, &table).unwrap();
            let good = |c: i64| {
                let sum = Sum::at(c, &scores, BITS, &table);
                !sum.negative && sum.now <= u128::from(table.budget) && sum.before > u128::from(table.budget)
            };
            for c in found - 3000..found + 3000 {
                prop_assert_eq!(good(c), c == found);
            }
            let unit = f64::from(1 << (BITS + 9));
            let log = scores.iter().map(|&s| (s as f64 / unit).exp2()).sum::<f64>().log2();
            // Half a tick for the budget and half for each score, and half a unit by which each value may be rounded.
            let tolerance = 1.0 / 512.0 + scores.len() as f64 / 32768.0;
            prop_assert!((found as f64 / 512.0 - log).abs() <= tolerance, "{} {log}", found as f64 / 512.0);
        }
    }
}
