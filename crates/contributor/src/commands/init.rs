use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use zklora_contributor::state::State;
use zklora_hub::{Options, Source};

/// Makes the state of an adapter: identity key, salts, commitments and the signed manifest.
#[derive(Args)]
#[command(after_help = "Examples:
  zklora-contributor init --base-model fixtures/gpt2-tiny --lora fixtures/lora-es --state a-state
  zklora-contributor init --base-model distilgpt2 --lora ng0-k1/distilgpt2-finetuned-es --state a-state")]
pub struct Init {
    /// The base model: a folder in Hugging Face layout, or a name on the Hugging Face hub, such as distilgpt2 or ORG/NAME@REVISION.
    #[arg(long, value_name = "DIR|NAME")]
    base_model: Source,
    /// The adapter: a folder as PEFT writes it, or a name on the hub.
    #[arg(long, value_name = "DIR|NAME")]
    lora: Source,
    /// Folder for the state; it holds secrets and is made with access for its owner only.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Init, out: &mut dyn Write) -> anyhow::Result<()> {
    let hub = Options::from_env();
    let state = State::create(&args.state, &args.base_model.base_model(&hub)?, &args.lora.adapter(&hub)?)?;
    let manifest = state.manifest.manifest();
    if args.json {
        let summary = json!({
            "adapter": state.manifest.adapter_id(),
            "contributor": manifest.contributor(),
            "base_model": manifest.base_model(),
            "modules": manifest.modules().iter().map(|m| m.name()).collect::<Vec<_>>(),
        });
        writeln!(out, "{summary}")?;
    } else {
        writeln!(out, "adapter      {}", state.manifest.adapter_id())?;
        writeln!(out, "contributor  {}", manifest.contributor())?;
        writeln!(out, "base model   {}", manifest.base_model())?;
        writeln!(out, "modules      {}", manifest.modules().len())?;
        writeln!(
            out,
            "Give the adapter id and the contributor's key to your buyers; keep {} to yourself.",
            args.state.display()
        )?;
    }
    Ok(())
}
