use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use zklora_contributor::state::State;
use zklora_hub::{Options, Source};
use zklora_proto::{AdapterId, BaseModelDigest, Document, PublicKey};

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

/// The adapter whose state was made.
#[derive(Serialize, JsonSchema)]
pub struct InitReport {
    /// The adapter id.
    adapter: AdapterId,
    /// Your key.
    contributor: PublicKey,
    /// The base model that it is for.
    base_model: BaseModelDigest,
    /// Names of its modules.
    modules: Vec<String>,
}

impl Document for InitReport {
    const FORMAT: &'static str = "zklora-init/1";
    const PRINTED_BY: &'static str = "zklora-contributor init --json";
}

pub fn run(args: &Init, out: &mut dyn Write) -> anyhow::Result<()> {
    let hub = Options::from_env();
    let state = State::create(&args.state, &args.base_model.base_model(&hub)?, &args.lora.adapter(&hub)?)?;
    let manifest = state.manifest.manifest();
    if args.json {
        let report = InitReport {
            adapter: state.manifest.adapter_id(),
            contributor: *manifest.contributor(),
            base_model: *manifest.base_model(),
            modules: manifest.modules().iter().map(|m| m.name().to_owned()).collect(),
        };
        writeln!(out, "{}", report.to_line()?)?;
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
