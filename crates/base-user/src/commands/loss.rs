//! `zklora-base-user loss`.

use std::fs;
use std::io::{Read, stdin};
use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::{Value, json};

use super::{ContributorArgs, ModelArgs};

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

impl Text {
    fn read(&self) -> anyhow::Result<String> {
        let Some(path) = &self.file else {
            // One of the two is there.
            return Ok(self.text.clone().unwrap_or_default());
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
            "the text is longer than {MAX_TEXT_BYTES} bytes; evaluate long texts with `eval`"
        );
        Ok(text)
    }
}

/// Far longer than any text that a model takes at once.
const MAX_TEXT_BYTES: u64 = 16 << 20;

pub fn run(args: &Loss) -> anyhow::Result<()> {
    let text = args.text.read()?;
    let mut base = args.model.load()?;
    let ids = base.tokenizer.encode(&text)?;
    let base_loss = base.model.loss(&ids)?;
    let contributors = args.contributors.connect(base.digest)?;
    contributors.warn_of(ids.len());
    let adapter_loss = match base.adapt(&contributors)? {
        true => Some(base.model.loss(&ids)?),
        false => None,
    };
    let sessions = contributors.finish(&mut base.model)?;

    if args.json {
        let sessions: Vec<Value> = sessions.iter().map(|session| session.json()).collect();
        let summary = json!({
            "base_loss": base_loss, "adapter_loss": adapter_loss, "tokens": ids.len(), "sessions": sessions,
        });
        println!("{summary}");
    } else {
        println!("loss of the base model   {base_loss:.4}");
        if let Some(adapter_loss) = adapter_loss {
            println!("loss with the adapter    {adapter_loss:.4}");
        }
        println!("tokens                   {}", ids.len());
        sessions.iter().for_each(|session| session.print());
    }
    Ok(())
}
