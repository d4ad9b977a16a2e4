//! `zklora-base-user eval`.

use std::io::Write;
use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use tracing::info;
use zklora_base_user::evaluation::{NotedLines, difference, mean};
use zklora_proto::Document;
use zklora_verdict::{Estimate, EvalReport, MeanReport};

use super::ModelArgs;
use super::contributors::{ContributorArgs, Contributors};
use super::inputs::{DatasetArgs, Evaluated, MOST_NOTED, Task};

/// Computes mean loss and perplexity over a dataset with the base model alone and with the adapter, with intervals of 95 %
/// confidence, and ends each session with a receipt that both sign.
///
/// Losses are means over tokens. A line of a text file is a text; a line of a .jsonl file is an object with the text in a field,
/// and if it has a completion or a label, too, only its tokens count. A token with a space before the completion is one of them. Texts longer
/// than the model's context are cut into pieces.
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
    #[command(flatten)]
    reading: DatasetArgs,
    /// Begin even if the contributor may not answer as many rows as this takes.
    #[arg(long)]
    anyway: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Eval, out: &mut dyn Write) -> anyhow::Result<()> {
    args.contributors.check()?;
    let examples = args.reading.read(&args.dataset)?;
    let mut base = args.model.load()?;
    let task = args.reading.cut(&args.dataset, examples, &base)?;
    let tokens = task.windows.rows();
    let contributors = args.contributors.connect(base.digest)?;
    if !args.anyway {
        fits(&contributors, &task)?;
    }
    info!(texts = task.examples.len(), tokens, "dataset read");

    let (evaluated, mut ended) = contributors.run(&mut base, |base, hook| {
        let without = task.evaluate("base model", &base.model)?;
        let adapted = base.adapt(hook)?;
        let with = adapted.then(|| task.evaluate("with adapter", &base.model)).transpose()?;
        Ok((without, with))
    });
    let (without, with) = ended.complete(evaluated)?;

    let (counted, predicted) = (without.texts(), without.predicted());
    let change = with.as_ref().map(|with| difference(&without.totals, &with.totals));
    if args.json {
        let of = |evaluated: &Evaluated| {
            MeanReport::new(mean(&evaluated.totals), tokens as f64 / evaluated.took.as_secs_f64())
        };
        let report = EvalReport {
            texts: counted as u64,
            texts_skipped: (task.examples.len() - counted) as u64,
            notes: task.windows.noted_lines().iter().map(NotedLines::report).collect(),
            tokens: tokens as u64,
            predicted: predicted as u64,
            tokenizer: base.tokenizer.digest()?,
            base: of(&without),
            adapter: with.as_ref().map(of),
            difference: change,
            sessions: ended.reports(),
        };
        writeln!(out, "{}", report.to_line()?)?;
        return ended.proved();
    }
    writeln!(out, "texts                    {counted}, {} left out", task.examples.len() - counted)?;
    let notes = task.windows.noted_lines();
    for note in notes.iter().take(MOST_NOTED) {
        writeln!(out, "{:<25}{note}", "")?;
    }
    if notes.len() > MOST_NOTED {
        writeln!(out, "{:<25}and so on, {} more notes; --json has them all", "", notes.len() - MOST_NOTED)?;
    }
    writeln!(out, "tokens                   {tokens}, of which {predicted} predicted")?;
    let all = [("base model", Some(&without)), ("with adapter", with.as_ref())];
    for (name, evaluated) in all.into_iter().filter_map(|(name, evaluated)| Some((name, evaluated?))) {
        let loss = mean(&evaluated.totals);
        writeln!(out, "{name:<25}loss {}, perplexity {}", shown(loss, 4), shown(loss.exp(), 2))?;
        let speed = tokens as f64 / evaluated.took.as_secs_f64();
        writeln!(out, "{:<25}{speed:.0} tokens/s", "")?;
    }
    if let Some(change) = change {
        writeln!(out, "difference               loss {}", shown(change, 4))?;
    }
    ended.finished().try_for_each(|session| session.print(out))?;
    ended.proved()
}

/// Refuses beforehand what may stop half-way.
fn fits(contributors: &Contributors, task: &Task) -> anyhow::Result<()> {
    let rows = task.windows.rows();
    let Some((left, module)) = contributors.too_few(rows) else { return Ok(()) };
    // Texts are taken whole, so that fewer tokens may be none at all.
    let first = task.windows.windows.first().map_or(0, |window| window.ids.len());
    let advice = match first as u64 <= left {
        true => format!("take less with --max-tokens {left}"),
        false => format!("not even the first text fits, which has {first}: take shorter texts"),
    };
    bail!(
        "the dataset has {rows} tokens, each a row of every module, but {module} may answer {left} more independent rows{}: {advice}, \
         or, if many of these rows were answered before, try with --anyway",
        contributors.beside()
    )
}

pub fn shown(estimate: Estimate, digits: usize) -> String {
    let [low, high] = estimate.interval;
    format!("{:.digits$} ({low:.digits$} to {high:.digits$})", estimate.value)
}
