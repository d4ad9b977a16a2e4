use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use zklora_contributor::state::State;

/// Makes the state of an adapter: identity key, salts, commitments and the signed manifest.
#[derive(Args)]
#[command(
    after_help = "Example: zklora-contributor init --base-model fixtures/gpt2-tiny --lora fixtures/lora-es --state a-state"
)]
pub struct Init {
    /// Folder of the base model, in Hugging Face layout.
    #[arg(long, value_name = "DIR")]
    base_model: PathBuf,
    /// Folder of the adapter, as PEFT writes it.
    #[arg(long, value_name = "DIR")]
    lora: PathBuf,
    /// Folder for the state; it holds secrets and is made with access for its owner only.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Init) -> anyhow::Result<()> {
    let state = State::create(&args.state, &args.base_model, &args.lora)?;
    let manifest = state.manifest.manifest();
    if args.json {
        let summary = json!({
            "adapter": state.manifest.adapter_id(),
            "contributor": manifest.contributor(),
            "base_model": manifest.base_model(),
            "modules": manifest.modules().iter().map(|m| m.name()).collect::<Vec<_>>(),
        });
        println!("{summary}");
    } else {
        println!("adapter      {}", state.manifest.adapter_id());
        println!("contributor  {}", manifest.contributor());
        println!("base model   {}", manifest.base_model());
        println!("modules      {}", manifest.modules().len());
        println!(
            "Give the adapter id and the contributor's key to your buyers; keep {} to yourself.",
            args.state.display()
        );
    }
    Ok(())
}
