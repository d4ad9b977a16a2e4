//! `zklora-base-user loss`.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use zklora_proto::Document;
use zklora_verdict::LossReport;

use super::contributors::ContributorArgs;
use super::inputs::read_text;
use super::{ModelArgs, exact};

/// Computes the loss of a text with the base model alone and with the adapter, and ends each session with a receipt that
/// both sign.
#[derive(Args)]
#[command(
    after_help = "Example: zklora-base-user loss --base-model fixtures/gpt2-tiny --contributor zklora://KEY@127.0.0.1:30000 --adapter ID --text \"Un texto\""
)]
pub struct Loss {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    contributors: ContributorArgs,
    #[command(flatten)]
    text: Text,
    /// Compute the losses in exact integers, which are the same everywhere, with the plan that `exact calibrate` made. An adapter of
    /// --lora is rounded as a contributor commits to it; one that was delivered is the very integers.
    #[arg(long, value_name = "PLAN", conflicts_with = "contributor")]
    exact: Option<PathBuf>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Text {
    /// The text.
    #[arg(long)]
    text: Option<String>,
    /// A file with the text, or - for the standard input.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

pub fn run(args: &Loss, out: &mut dyn Write) -> anyhow::Result<()> {
    args.contributors.check()?;
    let text = read_text(args.text.text.as_deref(), args.text.file.as_deref())?;
    if let Some(plan) = &args.exact {
        return exact::loss(&args.model, plan, &text, args.json, out);
    }
    let mut base = args.model.load()?;
    let ids = base.tokenizer.encode(&text)?;
    let base_loss = base.model.loss(&ids)?;
    let contributors = args.contributors.connect(base.digest)?;
    contributors.warn_of(ids.len());
    let (adapter_loss, mut ended) = contributors
        .run(&mut base, |base, hook| Ok(if base.adapt(hook)? { Some(base.model.loss(&ids)?) } else { None }));
    let adapter_loss = ended.complete(adapter_loss)?;

    if args.json {
        let report = LossReport {
            base_loss,
            adapter_loss,
            tokens: ids.len() as u64,
            tokenizer: base.tokenizer.digest()?,
            sessions: ended.reports(),
        };
        writeln!(out, "{}", report.to_line()?)?;
    } else {
        writeln!(out, "loss of the base model   {base_loss:.4}")?;
        if let Some(adapter_loss) = adapter_loss {
            writeln!(out, "loss with the adapter    {adapter_loss:.4}")?;
        }
        writeln!(out, "tokens                   {}", ids.len())?;
        ended.finished().try_for_each(|session| session.print(out))?;
    }
    ended.proved()
}
