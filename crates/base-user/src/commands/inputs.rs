//! What goes through the model: a text, or a dataset. `loss`, `eval` and `audit` read it in the same way.

use std::fs;
use std::io::{Read, stdin};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use tracing::{info, warn};
use zklora_base_user::dataset::{self, Example, Fields};
use zklora_base_user::error::ModelError;
use zklora_base_user::evaluation::{Noted, Total, Windows, add_losses};
use zklora_base_user::models::Model;
use zklora_base_user::tokenizer::Tokenizer;
use zklora_proto::Bytes;

use super::{Loaded, progress};

/// The text that is in an option, or in a file, or, for -, in the standard input.
pub fn read_text(text: Option<&str>, file: Option<&Path>) -> anyhow::Result<String> {
    let Some(path) = file else {
        // One of the two is there.
        return Ok(text.unwrap_or_default().to_owned());
    };
    let mut text = String::new();
    let read = match path.as_os_str() == "-" {
        true => stdin().take(MAX_TEXT_BYTES + 1).read_to_string(&mut text),
        false => {
            fs::File::open(path).and_then(|file| file.take(MAX_TEXT_BYTES + 1).read_to_string(&mut text))
        }
    };
    let length = read.with_context(|| format!("reading the text from {}", path.display()))?;
    ensure!(
        length as u64 <= MAX_TEXT_BYTES,
        "the text is longer than {}; evaluate long texts with `eval`",
        Bytes(MAX_TEXT_BYTES)
    );
    Ok(text)
}

/// Far longer than any text that a model takes at once.
const MAX_TEXT_BYTES: u64 = 16 << 20;

/// How a dataset is read, beside its file, which is the argument `dataset`.
#[derive(Args)]
pub struct DatasetArgs {
    /// The field of a .jsonl line that has the text; `text` unless told otherwise.
    #[arg(long, value_name = "NAME", requires = "dataset")]
    text_field: Option<String>,
    /// The field of a .jsonl line that has what is to be predicted after the text; `completion` or `label` if there is one.
    #[arg(long, value_name = "NAME", requires = "dataset")]
    completion_field: Option<String>,
    /// Take only the first texts, as many as have so many tokens together.
    #[arg(long, value_name = "N", requires = "dataset")]
    max_tokens: Option<usize>,
    /// Tokens that go through the model together.
    #[arg(long, value_name = "N", default_value_t = 2048, requires = "dataset", value_parser = clap::value_parser!(u32).range(1..=1 << 17))]
    batch_tokens: u32,
}

impl DatasetArgs {
    /// Whether something was asked for that only a dataset has. Clap does not see to that where a text, which excludes a dataset, is given.
    pub fn for_dataset_only(&self) -> bool {
        self.text_field.is_some() || self.max_tokens.is_some() || self.completion_field.is_some()
    }

    pub fn read(&self, path: &Path) -> anyhow::Result<Vec<Example>> {
        let text = self.text_field.clone().unwrap_or_else(|| "text".into());
        let fields = Fields { text, completion: self.completion_field.clone() };
        Ok(dataset::read(path, &fields)?)
    }

    /// The examples as tokens; at least one window.
    pub fn cut(&self, path: &Path, examples: Vec<Example>, base: &Loaded) -> anyhow::Result<Task> {
        self.cut_to(path, examples, &base.tokenizer, base.model.positions())
    }

    /// The same for a model that takes so many tokens.
    pub fn cut_to(
        &self,
        path: &Path,
        examples: Vec<Example>,
        tokenizer: &Tokenizer,
        positions: usize,
    ) -> anyhow::Result<Task> {
        let mut windows = Windows::of(&examples, tokenizer, positions)?;
        if let Some(rows) = self.max_tokens {
            windows.truncate(rows, &examples);
        }
        self.tell(path, &windows, &examples);
        ensure!(
            !windows.windows.is_empty(),
            "there is nothing to predict in {}{}",
            path.display(),
            if self.max_tokens.is_some() {
                ", as far as --max-tokens lets it be read"
            } else {
                ": every text has one token or none"
            }
        );
        Ok(Task { windows, examples, batch_tokens: self.batch_tokens as usize })
    }
}

impl DatasetArgs {
    /// Says what counts otherwise than may be thought, by line.
    fn tell(&self, path: &Path, windows: &Windows, examples: &[Example]) {
        let path = path.display();
        let noted = windows.noted_lines();
        for noted in noted.iter().take(MOST_NOTED) {
            match noted.what {
                // That was asked for.
                Noted::BeyondMaxTokens | Noted::CutByMaxTokens => info!("{path}, {noted}"),
                _ => warn!("{path}, {noted}"),
            }
        }
        if noted.len() > MOST_NOTED {
            warn!("{path}: and so on, {} more notes; eval --json has them all", noted.len() - MOST_NOTED);
        }
        let with = examples.iter().filter(|example| example.completion.is_some()).count();
        if (1..examples.len()).contains(&with) {
            warn!(
                "{path}: {with} of {} lines have a completion, of which that alone counts; of the others everything counts",
                examples.len()
            );
        }
    }
}

/// Notes on a dataset that are logged, and printed.
pub const MOST_NOTED: usize = 20;

/// What is evaluated, and how.
pub struct Task {
    pub windows: Windows,
    pub examples: Vec<Example>,
    batch_tokens: usize,
}

/// What an evaluation of all of it gave.
pub struct Evaluated {
    /// Of each example.
    pub totals: Vec<Total>,
    pub took: Duration,
}

impl Task {
    /// One text, of these tokens, as `loss` has it.
    pub fn of_text(ids: Vec<i64>) -> Self {
        let example = Example { line: 1, text: String::new(), completion: None };
        Self { windows: Windows::one(ids), examples: vec![example], batch_tokens: usize::MAX }
    }

    pub fn evaluate(&self, what: &'static str, model: &Model) -> Result<Evaluated, ModelError> {
        let bar = progress(self.windows.rows() as u64, what);
        let started = Instant::now();
        let mut totals = vec![Total::default(); self.examples.len()];
        for batch in self.windows.batches(self.batch_tokens) {
            add_losses(model, batch, &mut totals)?;
            bar.inc(batch.iter().map(|window| window.ids.len() as u64).sum());
        }
        bar.finish_and_clear();
        Ok(Evaluated { totals, took: started.elapsed() })
    }
}

impl Evaluated {
    /// Examples that count.
    pub fn texts(&self) -> usize {
        self.totals.iter().filter(|total| total.tokens > 0).count()
    }

    /// Tokens that were predicted.
    pub fn predicted(&self) -> usize {
        self.totals.iter().map(|total| total.tokens).sum()
    }
}
