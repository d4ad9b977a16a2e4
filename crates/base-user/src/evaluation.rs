//! Mean loss and perplexity over a dataset, with confidence intervals.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use zklora_verdict::{Estimate, NoteReport};

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
    /// What of the dataset counts otherwise than its reader may think, in its order.
    pub notes: Vec<Note>,
}

/// What happened to an example.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Note {
    /// Which one, from 0.
    pub example: usize,
    /// Its line in the dataset, from 1.
    pub line: usize,
    /// What.
    pub what: Noted,
}

/// What may happen to an example.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Noted {
    /// There are no tokens.
    #[error("left out: it has no tokens")]
    NoTokens,
    /// There is one token.
    #[error("left out: it has one token, which nothing comes before that it could be predicted from")]
    OneToken,
    /// The completion has no tokens.
    #[error("left out: the completion is empty")]
    NoCompletion,
    /// The completion is the first token.
    #[error(
        "left out: the completion has one token, which nothing comes before that it could be predicted from"
    )]
    NoContext,
    /// The completion begins with the first token.
    #[error(
        "the first token of the completion does not count: nothing comes before it that it could be predicted from"
    )]
    FirstNotCounted,
    /// After the last piece of the text one token is left, with nothing before it.
    #[error(
        "its last token does not count: after the pieces that the base model takes at once, nothing comes before it that it could be predicted from"
    )]
    LastNotCounted,
    /// A token has the end of the text and the beginning of the completion in it.
    #[error("a token has the end of the text and the beginning of the completion in it, and counts")]
    Straddles,
    /// Beyond as many tokens as are to be taken.
    #[error("left out: --max-tokens ends before it")]
    BeyondMaxTokens,
    /// Its end is beyond as many tokens as are to be taken.
    #[error("its end is left out: --max-tokens ends before that")]
    CutByMaxTokens,
}

/// The same of several examples that follow one another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotedLines {
    /// The first and the last line.
    pub lines: [usize; 2],
    /// How many examples.
    pub examples: usize,
    /// What happened to them.
    pub what: Noted,
}

impl NotedLines {
    /// The same for programs.
    pub fn report(&self) -> NoteReport {
        NoteReport {
            lines: self.lines.map(|line| line as u64),
            examples: self.examples as u64,
            what: self.what.to_string(),
        }
    }
}

impl std::fmt::Display for NotedLines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { lines: [first, last], examples, what } = self;
        match examples {
            1 => write!(f, "line {first}: {what}"),
            _ => write!(f, "{examples} lines from {first} to {last}, each: {what}"),
        }
    }
}

impl Noted {
    /// Whether nothing of the example counts.
    pub fn is_left_out(self) -> bool {
        use Noted::{CutByMaxTokens, FirstNotCounted, LastNotCounted, Straddles};
        !matches!(self, FirstNotCounted | LastNotCounted | Straddles | CutByMaxTokens)
    }
}

/// What an example contributes: the sum of its losses, in nats, and how many there are.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Total {
    /// Sum of the losses.
    pub loss: f64,
    /// Tokens predicted.
    pub tokens: usize,
}

impl Windows {
    /// One text of these tokens, whose every token but the first counts.
    pub fn one(ids: Vec<i64>) -> Self {
        Self { windows: vec![Window { example: 0, ids, from: 1 }], notes: Vec::new() }
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
    /// The tokens of a completion are those of text and completion together that have something of the completion in them, or of the
    /// white space at the end of the text: most tokenizers make one token of a space and the word after it. Where the text's
    /// own tokens are a beginning of all tokens, that is the rule of the Language Model Evaluation Harness. What a tokenizer puts behind
    /// every text is none of the completion, and does not go through the model.
    ///
    /// Fails if an example with a completion is longer than that.
    pub fn of(examples: &[Example], tokenizer: &Tokenizer, positions: usize) -> anyhow::Result<Self> {
        let mut windows = Self::default();
        for (example, Example { line, text, completion }) in examples.iter().enumerate() {
            let Some(completion) = completion else {
                let ids = tokenizer.encode(text)?;
                match ids.len() {
                    0 => windows.note(example, *line, Noted::NoTokens),
                    1 => windows.note(example, *line, Noted::OneToken),
                    tokens if tokens % positions == 1 => windows.note(example, *line, Noted::LastNotCounted),
                    _ => {}
                }
                // A token that is left over at the end has nothing before it in its window.
                let cut = ids.chunks(positions).filter(|ids| ids.len() > 1);
                windows.windows.extend(cut.map(|ids| Window { example, ids: ids.to_vec(), from: 1 }));
                continue;
            };
            let tokens = tokenizer.encode_with_spans(&format!("{text}{completion}"))?;
            anyhow::ensure!(
                tokens.len() <= positions,
                "line {line} of the dataset has {} tokens with its completion, the base model takes at most {positions} at \
                 once: shorten it",
                tokens.len()
            );
            let boundary = text.trim_end_matches(is_space).len();
            let first = tokens.iter().position(|(_, span)| span.end > boundary);
            let Some(first) = first.filter(|_| !completion.is_empty()) else {
                windows.note(example, *line, Noted::NoCompletion);
                continue;
            };
            if tokens[first].1.start < boundary {
                windows.note(example, *line, Noted::Straddles);
            }
            let last = tokens.iter().rposition(|(_, span)| span.end > boundary).unwrap_or(first);
            if last == 0 {
                windows.note(example, *line, Noted::NoContext);
                continue;
            }
            if first == 0 {
                windows.note(example, *line, Noted::FirstNotCounted);
            }
            let ids = tokens.into_iter().take(last + 1).map(|(id, _)| id).collect();
            windows.windows.push(Window { example, ids, from: first.max(1) });
        }
        Ok(windows)
    }

    fn note(&mut self, example: usize, line: usize, what: Noted) {
        self.notes.push(Note { example, line, what });
    }

    /// What there is to say, the same of examples that follow one another together.
    pub fn noted_lines(&self) -> Vec<NotedLines> {
        let together = |a: &Note, b: &Note| a.what == b.what && a.example + 1 == b.example;
        let lines = |notes: &[Note]| NotedLines {
            // A chunk has at least one.
            lines: [notes[0].line, notes[notes.len() - 1].line],
            examples: notes.len(),
            what: notes[0].what,
        };
        self.notes.chunk_by(together).map(lines).collect()
    }

    /// Rows that every projection sees: all tokens.
    pub fn rows(&self) -> usize {
        self.windows.iter().map(|window| window.ids.len()).sum()
    }

    /// The first windows, as many as have at most so many rows together. `examples` are those that the windows are of.
    pub fn truncate(&mut self, rows: usize, examples: &[Example]) {
        let mut left = rows;
        let fit = |window: &Window| {
            left = left.checked_sub(window.ids.len())?;
            Some(())
        };
        let count = self.windows.iter().map_while(fit).count();
        let beyond = self.windows.split_off(count);
        let last = self.windows.last().map(|window| window.example);
        for windows in beyond.chunk_by(|a, b| a.example == b.example) {
            let example = windows[0].example;
            let what = if last == Some(example) { Noted::CutByMaxTokens } else { Noted::BeyondMaxTokens };
            // What else was to be said of it is of no interest any more.
            self.notes.retain(|note| note.example != example || what == Noted::CutByMaxTokens);
            self.note(example, examples[example].line, what);
        }
        self.notes.sort_by_key(|note| note.example);
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

/// Whether Python's `str.rstrip` takes it off.
fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\x1c'..='\x1f').contains(&character)
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
mod tests;
