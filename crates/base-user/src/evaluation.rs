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
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NotedLines {
    /// The first and the last line.
    pub lines: [usize; 2],
    /// How many examples.
    pub examples: usize,
    /// What happened to them.
    #[serde(serialize_with = "in_words")]
    pub what: Noted,
}

fn in_words<S: serde::Serializer>(what: &Noted, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(what)
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
            Windows { windows: [5, 3, 20, 1, 2].map(|tokens| window(0, tokens)).to_vec(), notes: vec![] };
        let sizes: Vec<Vec<usize>> =
            windows.batches(8).map(|batch| batch.iter().map(|w| w.ids.len()).collect()).collect();
        assert_eq!(sizes, [vec![5, 3], vec![20], vec![1, 2]]);
        assert_eq!(windows.rows(), 31);
    }

    #[test]
    fn a_dataset_is_cut_where_it_no_longer_fits() {
        let windows =
            vec![window(0, 5), window(1, 3), window(1, 2), window(2, 1), window(2, 1), window(3, 1)];
        let notes = vec![Note { example: 2, line: 30, what: Noted::Straddles }];
        let mut windows = Windows { windows, notes };
        let examples = [10, 20, 30, 40].map(|line| Example { line, text: String::new(), completion: None });
        windows.truncate(9, &examples);
        assert_eq!(windows.rows(), 8);
        let noted =
            |windows: &Windows| windows.notes.iter().map(|note| (note.line, note.what)).collect::<Vec<_>>();
        let beyond = Noted::BeyondMaxTokens;
        assert_eq!(noted(&windows), [(20, Noted::CutByMaxTokens), (30, beyond), (40, beyond)]);
        windows.truncate(4, &examples);
        assert_eq!(windows.rows(), 0);
        assert_eq!(noted(&windows), [(10, beyond), (20, beyond), (30, beyond), (40, beyond)]);
    }

    /// The rule of the Language Model Evaluation Harness, where it is one: where the tokens of the context are a beginning of all.
    fn rule(tokenizer: &Tokenizer, text: &str, completion: &str) -> Option<usize> {
        let context = tokenizer.encode(text.trim_end()).unwrap();
        let all = tokenizer.encode(&format!("{text}{completion}")).unwrap();
        all.starts_with(&context).then_some(context.len())
    }

    #[test]
    fn completions_begin_where_their_tokens_do() {
        let whole = "El administrador  debe:\n\tcomprobar 25 cafés\u{a0}o 日本 en la red.";
        for model in ["gpt2-tiny", "llama-tiny"] {
            let tokenizer = open(&fixtures(model));
            let (mut followed, mut straddling) = (0, 0);
            // What begins with the first token is another matter.
            for (cut, _) in whole.char_indices().skip(3) {
                let (text, completion) = whole.split_at(cut);
                let windows = of(&tokenizer, text, completion);
                let window = &windows.windows[0];
                assert_eq!(window.ids, tokenizer.encode(whole).unwrap());
                let straddles = windows.notes.iter().any(|note| note.what == Noted::Straddles);
                straddling += usize::from(straddles);
                match rule(&tokenizer, text, completion) {
                    Some(from) => {
                        followed += 1;
                        assert_eq!(
                            (window.from, straddles),
                            (from, false),
                            "{model}: {text:?}, {completion:?}"
                        );
                    }
                    // Its first token has something of the text.
                    None => {
                        let before = tokenizer.encode_with_spans(whole).unwrap()[window.from].1.start;
                        assert!(
                            straddles && before < text.trim_end().len(),
                            "{model}: {text:?}, {completion:?}"
                        );
                    }
                }
            }
            assert!(followed > 10 && straddling > 1, "{model}: {followed}, {straddling}");
        }
    }

    #[test]
    fn tokens_of_the_template_are_none_of_the_completion() {
        // A tokenizer that ends each text with a token of its own.
        let folder = tempfile::tempdir().unwrap();
        let text = std::fs::read_to_string(fixtures("llama-tiny").join("tokenizer.json")).unwrap();
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let end = serde_json::json!({ "SpecialToken": { "id": "</s>", "type_id": 0 } });
        let template = &mut json["post_processor"];
        template["single"].as_array_mut().unwrap().push(end);
        template["special_tokens"]["</s>"] =
            serde_json::json!({ "id": "</s>", "ids": [2], "tokens": ["</s>"] });
        std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
        let (plain, ending) = (open(&fixtures("llama-tiny")), open(folder.path()));
        let (expected, found) = (of(&plain, "El sistema", " es"), of(&ending, "El sistema", " es"));
        assert_eq!(ending.encode("El sistema es").unwrap().last(), Some(&2));
        assert_eq!(found.windows, expected.windows);
        assert_eq!(of(&ending, "El sistema", "").notes[0].what, Noted::NoCompletion);
    }

    #[test]
    fn no_example_is_left_out_without_a_word() {
        let (gpt2, llama) = (open(&fixtures("gpt2-tiny")), open(&fixtures("llama-tiny")));
        for (tokenizer, text, completion, what, windows) in [
            (&gpt2, "", None, Some(Noted::NoTokens), 0),
            (&gpt2, "Debian es", None, None, 1),
            (&gpt2, ".", None, Some(Noted::OneToken), 0),
            // There is one at the beginning.
            (&llama, "", None, Some(Noted::OneToken), 0),
            (&gpt2, "El sistema", Some(""), Some(Noted::NoCompletion), 0),
            (&gpt2, "El sistema ", Some(""), Some(Noted::NoCompletion), 0),
            (&gpt2, "", Some("."), Some(Noted::NoContext), 0),
            (&gpt2, " ", Some("."), Some(Noted::NoContext), 0),
            (&llama, "", Some("n"), None, 1),
            (&gpt2, "", Some("El sistema"), Some(Noted::FirstNotCounted), 1),
            (&gpt2, "Debian is a free", Some("dom"), Some(Noted::Straddles), 1),
            (&gpt2, "El ", Some("sistema"), None, 1),
        ] {
            let example = Example { line: 7, text: text.into(), completion: completion.map(str::to_owned) };
            let found = Windows::of(&[example], tokenizer, 256).unwrap();
            let noted: Vec<Noted> = found.notes.iter().map(|note| note.what).collect();
            assert_eq!(noted, Vec::from_iter(what), "{text:?}, {completion:?}");
            assert_eq!(found.windows.len(), windows, "{text:?}, {completion:?}");
            assert_eq!(what.is_some_and(Noted::is_left_out), windows == 0);
        }
        // Left over after two windows of as many tokens as there are but one.
        let text = "El sistema de ficheros".to_owned();
        let tokens = gpt2.encode(&text).unwrap().len();
        let example = Example { line: 7, text, completion: None };
        for (positions, expected) in
            [(tokens - 1, Some(Noted::LastNotCounted)), (tokens, None), (tokens - 2, None)]
        {
            let found = Windows::of(std::slice::from_ref(&example), &gpt2, positions).unwrap();
            let noted: Vec<Noted> = found.notes.iter().map(|note| note.what).collect();
            assert_eq!(noted, Vec::from_iter(expected), "{positions} of {tokens}");
            assert_eq!(found.rows(), tokens - expected.into_iter().count());
        }
        let long = Example { line: 7, text: "de ".repeat(300), completion: Some("la".into()) };
        let refused = Windows::of(&[long], &gpt2, 256).unwrap_err().to_string();
        assert!(refused.starts_with("line 7 of the dataset has"), "{refused}");
    }

    #[test]
    fn what_is_said_of_lines_that_follow_one_another_is_said_once() {
        let note = |example, line, what| Note { example, line, what };
        let windows = Windows {
            windows: vec![],
            notes: vec![
                note(1, 2, Noted::NoTokens),
                note(4, 6, Noted::BeyondMaxTokens),
                note(5, 9, Noted::BeyondMaxTokens),
            ],
        };
        let said: Vec<String> = windows.noted_lines().iter().map(NotedLines::to_string).collect();
        assert_eq!(
            said,
            [
                "line 2: left out: it has no tokens",
                "2 lines from 6 to 9, each: left out: --max-tokens ends before it"
            ]
        );
    }

    fn of(tokenizer: &Tokenizer, text: &str, completion: &str) -> Windows {
        let example = Example { line: 1, text: text.into(), completion: Some(completion.into()) };
        Windows::of(&[example], tokenizer, 256).unwrap()
    }

    fn open(folder: &std::path::Path) -> Tokenizer {
        Tokenizer::open(folder).unwrap()
    }

    fn fixtures(name: &str) -> std::path::PathBuf {
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name)
    }

    #[test]
    fn a_token_is_found_in_its_example() {
        let windows = Windows { windows: vec![window(0, 5), window(2, 4), window(2, 3)], notes: vec![] };
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
