//! Mean loss and perplexity over a dataset, with confidence intervals.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Serialize;

use crate::dataset::Example;
use crate::error::ModelError;
use crate::models::Model;
use crate::tokenizer::Tokenizer;

/// A piece of text that goes through the model at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Which example it is of, from 0.
    pub example: usize,
    /// Its tokens; at least 2.
    pub ids: Vec<i64>,
    /// The first token whose prediction counts; at least 1.
    pub from: usize,
}

/// A dataset as tokens.
#[derive(Debug, Default)]
pub struct Windows {
    /// The windows, in the order of the dataset.
    pub windows: Vec<Window>,
    /// Examples of which nothing is left to predict.
    pub skipped: usize,
}

/// What an example contributes: the sum of its losses, in nats, and how many there are.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Total {
    /// Sum of the losses.
    pub loss: f64,
    /// Tokens predicted.
    pub tokens: usize,
}

/// An estimate with its interval of 95 % confidence.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// The estimate.
    pub value: f64,
    /// Bounds of the interval.
    pub interval: [f64; 2],
}

impl Windows {
    /// One text of these tokens, whose every token but the first counts.
    pub fn one(ids: Vec<i64>) -> Self {
        Self { windows: vec![Window { example: 0, ids, from: 1 }], skipped: 0 }
    }

    /// Where a token is that goes through the model after so many others: its example, and its place in that, from 0.
    pub fn find(&self, token: u64) -> Option<(usize, usize)> {
        let (mut before, mut example, mut begins) = (0, None, 0);
        for window in &self.windows {
            if example.replace(window.example) != Some(window.example) {
                begins = before;
            }
            before += window.ids.len() as u64;
            if token < before {
                return Some((window.example, (token - begins) as usize));
            }
        }
        None
    }

    /// Cuts examples into windows of at most `positions` tokens, one after the other without overlap. Where an example has a
    /// completion, only its tokens count, given the text before; it is not cut.
    ///
    /// Fails if an example with a completion is longer than that.
    pub fn of(examples: &[Example], tokenizer: &Tokenizer, positions: usize) -> anyhow::Result<Self> {
        let mut windows = Self::default();
        for (example, Example { line, text, completion }) in examples.iter().enumerate() {
            let before = windows.windows.len();
            let mut add = |ids: &[i64], from: usize| {
                if ids.len() > from {
                    windows.windows.push(Window { example, ids: ids.to_vec(), from });
                }
            };
            match completion {
                None => tokenizer.encode(text)?.chunks(positions).for_each(|ids| add(ids, 1)),
                Some(completion) => {
                    let from = tokenizer.encode(text)?.len();
                    let ids = tokenizer.encode(&format!("{text}{completion}"))?;
                    anyhow::ensure!(
                        ids.len() <= positions,
                        "line {line} of the dataset has {} tokens with its completion, the base model takes at most {positions} at \
                         once: shorten it",
                        ids.len()
                    );
                    add(&ids, from.max(1));
                }
            }
            if windows.windows.len() == before {
                windows.skipped += 1;
            }
        }
        Ok(windows)
    }

    /// Rows that every projection sees: all tokens.
    pub fn rows(&self) -> usize {
        self.windows.iter().map(|window| window.ids.len()).sum()
    }

    /// The first windows, as many as have at most so many rows together.
    pub fn truncate(&mut self, rows: usize) {
        let mut left = rows;
        let fit = |window: &Window| {
            left = left.checked_sub(window.ids.len())?;
            Some(())
        };
        let count = self.windows.iter().map_while(fit).count();
        self.windows.truncate(count);
    }

    /// Windows that go through the model together, in order: at most `tokens` in a batch, but at least one window.
    pub fn batches(&self, tokens: usize) -> impl Iterator<Item = &[Window]> {
        let mut rest = &self.windows[..];
        std::iter::from_fn(move || {
            let mut sum = 0;
            let fits = |window: &&Window| {
                sum += window.ids.len();
                sum <= tokens
            };
            let count = rest.iter().take_while(fits).count().max(1).min(rest.len());
            let batch;
            (batch, rest) = rest.split_at(count);
            (!batch.is_empty()).then_some(batch)
        })
    }
}

/// Adds the losses of a batch to the totals of its examples.
///
/// Fails as [`Model::token_losses`] does.
pub fn add_losses(model: &Model, batch: &[Window], totals: &mut [Total]) -> Result<(), ModelError> {
    let sequences: Vec<&[i64]> = batch.iter().map(|window| window.ids.as_slice()).collect();
    for (window, losses) in batch.iter().zip(model.token_losses(&sequences)?) {
        // The first loss is of the token at 1.
        let counted = &losses[window.from - 1..];
        let total = &mut totals[window.example];
        total.loss += counted.iter().copied().map(f64::from).sum::<f64>();
        total.tokens += counted.len();
    }
    Ok(())
}

/// The mean loss per token: over all of them, so that long texts weigh more.
pub fn mean(totals: &[Total]) -> Estimate {
    bootstrap(totals, |total| total.loss)
}

/// The mean difference per token of two evaluations of the same examples, the second less the first.
pub fn difference(first: &[Total], second: &[Total]) -> Estimate {
    let pairs = first.iter().zip(second);
    let totals: Vec<Total> =
        pairs.map(|(first, second)| Total { loss: second.loss - first.loss, tokens: first.tokens }).collect();
    mean(&totals)
}

impl Estimate {
    /// Of a mean loss, the perplexity.
    pub fn exp(self) -> Self {
        Self { value: self.value.exp(), interval: self.interval.map(f64::exp) }
    }
}

/// The percentile bootstrap (Efron, 1979) over examples: how the token-weighted mean varies if examples are drawn again, with
/// replacement. Always with the same seed, so that the same losses give the same interval.
fn bootstrap(totals: &[Total], of: impl Fn(&Total) -> f64) -> Estimate {
    let counted: Vec<(f64, f64)> =
        totals.iter().filter(|t| t.tokens > 0).map(|total| (of(total), total.tokens as f64)).collect();
    let weighted = |sums: (f64, f64)| sums.0 / sums.1;
    let add = |sums: (f64, f64), one: &(f64, f64)| (sums.0 + one.0, sums.1 + one.1);
    let value = weighted(counted.iter().fold((0.0, 0.0), add));
    if counted.len() < 2 {
        return Estimate { value, interval: [value, value] };
    }
    let mut rng = StdRng::seed_from_u64(0);
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let drawn = (0..counted.len()).map(|_| &counted[rng.random_range(0..counted.len())]);
            weighted(drawn.fold((0.0, 0.0), add))
        })
        .collect();
    means.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| means[(share * (RESAMPLES - 1) as f64).round() as usize];
    Estimate { value, interval: [at(0.025), at(0.975)] }
}

const RESAMPLES: usize = 2000;

#[cfg(test)]
mod tests {
    use super::*;

    fn window(example: usize, tokens: usize) -> Window {
        Window { example, ids: vec![0; tokens], from: 1 }
    }

    #[test]
    fn batches_hold_what_fits_and_at_least_one() {
        let windows =
            Windows { windows: [5, 3, 20, 1, 2].map(|tokens| window(0, tokens)).to_vec(), skipped: 0 };
        let sizes: Vec<Vec<usize>> =
            windows.batches(8).map(|batch| batch.iter().map(|w| w.ids.len()).collect()).collect();
        assert_eq!(sizes, [vec![5, 3], vec![20], vec![1, 2]]);
        assert_eq!(windows.rows(), 31);
    }

    #[test]
    fn a_dataset_is_cut_where_it_no_longer_fits() {
        let mut windows = Windows { windows: [5, 3, 2].map(|tokens| window(0, tokens)).to_vec(), skipped: 0 };
        windows.truncate(9);
        assert_eq!(windows.rows(), 8);
        windows.truncate(4);
        assert_eq!(windows.rows(), 0);
    }

    #[test]
    fn a_token_is_found_in_its_example() {
        let windows = Windows { windows: vec![window(0, 5), window(2, 4), window(2, 3)], skipped: 1 };
        let found = [0, 4, 5, 8, 9, 11, 12].map(|token| windows.find(token));
        let expected = [(0, 0), (0, 4), (2, 0), (2, 3), (2, 4), (2, 6)].map(Some);
        assert_eq!((&found[..6], found[6]), (&expected[..], None));
    }

    #[test]
    fn the_mean_is_over_tokens_and_lies_in_its_interval() {
        let totals: Vec<Total> =
            (1..=40).map(|i| Total { loss: i as f64 * 2.0 + (i % 3) as f64, tokens: i }).collect();
        let estimate = mean(&totals);
        let expected = totals.iter().map(|t| t.loss).sum::<f64>()
            / totals.iter().map(|t| t.tokens).sum::<usize>() as f64;
        assert!((estimate.value - expected).abs() < 1e-12);
        assert!(estimate.interval[0] < estimate.value && estimate.value < estimate.interval[1]);
        assert_eq!(estimate, mean(&totals));
        // About 1.96 standard errors to either side.
        let n = totals.len() as f64;
        let tokens = totals.iter().map(|t| t.tokens as f64).sum::<f64>() / n;
        let residuals = totals.iter().map(|t| (t.loss - expected * t.tokens as f64).powi(2)).sum::<f64>();
        let error = (residuals / (n - 1.0) / n).sqrt() / tokens;
        let width = (estimate.interval[1] - estimate.interval[0]) / (2.0 * 1.96 * error);
        assert!((0.8..1.2).contains(&width), "{width}");
    }

    #[test]
    fn a_difference_is_paired() {
        let first: Vec<Total> = (1..=20).map(|i| Total { loss: (i * i) as f64, tokens: i }).collect();
        let second: Vec<Total> =
            first.iter().map(|t| Total { loss: t.loss - 0.5 * t.tokens as f64, tokens: t.tokens }).collect();
        let estimate = difference(&first, &second);
        for value in [estimate.value, estimate.interval[0], estimate.interval[1]] {
            assert!((value + 0.5).abs() < 1e-9, "{estimate:?}");
        }
    }

    #[test]
    fn one_example_has_no_interval_and_skipped_ones_do_not_count() {
        let one = mean(&[Total { loss: 6.0, tokens: 2 }, Total::default()]);
        assert_eq!(one, Estimate { value: 3.0, interval: [3.0, 3.0] });
    }
}
