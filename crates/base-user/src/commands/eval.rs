//! `zklora-base-user eval`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use clap::Args;
use serde_json::{Value, json};
use tracing::info;
use zklora_base_user::dataset::{self, Fields};
use zklora_base_user::evaluation::{Estimate, Total, Windows, add_losses, difference, mean};
use zklora_base_user::models::Model;

use super::{ContributorArgs, Contributors, ModelArgs, progress};

/// Computes mean loss and perplexity over a dataset with the base model alone and with the adapter, with intervals of 95 %
/// confidence, and ends each session with a receipt that both sign.
///
/// Losses are means over tokens. A line of a text file is a text; a line of a .jsonl file is an object with the text in a field,
/// and if it has a completion or a label, too, only its tokens count. Texts longer than the model's context are cut into pieces.
#[derive(Args)]
#[command(
    after_help = "Example: zklora-base-user eval --base-model fixtures/gpt2-tiny --dataset fixtures/text/es-heldout.txt --max-tokens 500 --contributor zklora://KEY@127.0.0.1:30000 --adapter ID"
)]
pub struct Eval {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    contributors: ContributorArgs,
    /// The dataset: .jsonl, or text with a text on each line.
    #[arg(long, value_name = "FILE")]
    dataset: PathBuf,
    /// The field of a .jsonl line that has the text.
    #[arg(long, value_name = "NAME", default_value = "text")]
    text_field: String,
    /// The field of a .jsonl line that has what is to be predicted after the text; `completion` or `label` if there is one.
    #[arg(long, value_name = "NAME")]
    completion_field: Option<String>,
    /// Take only the first texts, as many as have so many tokens together.
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// Tokens that go through the model together.
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(1..=1 << 17))]
    batch_tokens: u32,
    /// Begin even if the contributor may not answer as many rows as this takes.
    #[arg(long)]
    anyway: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// What an evaluation of the whole dataset gave.
struct Evaluated {
    totals: Vec<Total>,
    took: Duration,
}

pub fn run(args: &Eval) -> anyhow::Result<()> {
    let fields = Fields { text: args.text_field.clone(), completion: args.completion_field.clone() };
    let examples = dataset::read(&args.dataset, &fields)?;
    let mut base = args.model.load()?;
    let mut windows = Windows::of(&examples, &base.tokenizer, base.model.positions())?;
    if let Some(rows) = args.max_tokens {
        windows.truncate(rows);
    }
    ensure!(
        !windows.windows.is_empty(),
        "there is nothing to predict in {}{}",
        args.dataset.display(),
        if args.max_tokens.is_some() {
            ", as far as --max-tokens lets it be read"
        } else {
            ": every text has one token or none"
        }
    );
    let contributors = args.contributors.connect(base.digest)?;
    if !args.anyway {
        fits(&contributors, windows.rows())?;
    }
    info!(texts = examples.len(), tokens = windows.rows(), "dataset read");

    let without = args.evaluate("base model", &base.model, &windows, examples.len())?;
    let with = match base.adapt(&contributors)? {
        true => Some(args.evaluate("with adapter", &base.model, &windows, examples.len())?),
        false => None,
    };
    let sessions = contributors.finish(&mut base.model)?;

    let counted = without.totals.iter().filter(|total| total.tokens > 0).count();
    let predicted: usize = without.totals.iter().map(|total| total.tokens).sum();
    let change = with.as_ref().map(|with| difference(&without.totals, &with.totals));
    if args.json {
        let of = |evaluated: &Evaluated| {
            let loss = mean(&evaluated.totals);
            json!({
                "loss": loss, "perplexity": loss.exp(),
                "tokens_per_second": windows.rows() as f64 / evaluated.took.as_secs_f64(),
            })
        };
        let sessions: Vec<Value> = sessions.iter().map(|session| session.json()).collect();
        let summary = json!({
            "texts": counted, "texts_skipped": examples.len() - counted, "tokens": windows.rows(), "predicted": predicted,
            "base": of(&without), "adapter": with.as_ref().map(of), "difference": change, "sessions": sessions,
        });
        println!("{summary}");
        return Ok(());
    }
    println!("texts                    {counted}, {} left out", examples.len() - counted);
    println!("tokens                   {}, of which {predicted} predicted", windows.rows());
    let all = [("base model", Some(&without)), ("with adapter", with.as_ref())];
    for (name, evaluated) in all.into_iter().filter_map(|(name, evaluated)| Some((name, evaluated?))) {
        let loss = mean(&evaluated.totals);
        println!("{name:<25}loss {}, perplexity {}", shown(loss, 4), shown(loss.exp(), 2));
        let speed = windows.rows() as f64 / evaluated.took.as_secs_f64();
        println!("{:<25}{speed:.0} tokens/s", "");
    }
    if let Some(change) = change {
        println!("difference               loss {}", shown(change, 4));
    }
    sessions.iter().for_each(|session| session.print());
    Ok(())
}

/// Refuses beforehand what may stop half-way.
fn fits(contributors: &Contributors, rows: usize) -> anyhow::Result<()> {
    match contributors.too_few(rows) {
        Some((left, module)) => bail!(
            "the dataset has {rows} tokens, each a row of every module, but {module} may answer {left} more independent rows: take \
             less with --max-tokens {left}, or, if many of these rows were answered before, try with --anyway"
        ),
        None => Ok(()),
    }
}

impl Eval {
    fn evaluate(
        &self,
        what: &'static str,
        model: &Model,
        windows: &Windows,
        examples: usize,
    ) -> anyhow::Result<Evaluated> {
        let bar = progress(windows.rows() as u64, what);
        let started = Instant::now();
        let mut totals = vec![Total::default(); examples];
        for batch in windows.batches(self.batch_tokens as usize) {
            add_losses(model, batch, &mut totals)?;
            bar.inc(batch.iter().map(|window| window.ids.len() as u64).sum());
        }
        bar.finish_and_clear();
        Ok(Evaluated { totals, took: started.elapsed() })
    }
}

fn shown(estimate: Estimate, digits: usize) -> String {
    let [low, high] = estimate.interval;
    format!("{:.digits$} ({low:.digits$} to {high:.digits$})", estimate.value)
}
