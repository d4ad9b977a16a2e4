use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::{ArgGroup, Args};
use zklora_contributor::explain::Explanation;
use zklora_contributor::state::State;
use zklora_hf::{BaseModel, LoraAdapter, LoraModule};
use zklora_hub::{Options, Source};
use zklora_proto::{Document, ModuleShape};

use super::Proving;

/// Says which proofs a session with every module of an adapter is proved with, what they take, and why these.
#[derive(Args)]
#[command(
    after_help = "Examples:
  zklora-contributor plan --state a-state
  zklora-contributor plan --base-model fixtures/gpt2-tiny --lora fixtures/lora-es --memory 1GiB",
    // For what is said if there is neither.
    group(ArgGroup::new("adapter").required(true).args(["state", "lora"]))
)]
pub struct Plan {
    /// Folder that `init` made.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["lora", "base_model"])]
    state: Option<PathBuf>,
    /// An adapter in place of a state: a folder as PEFT writes it, or a name on the Hugging Face hub.
    #[arg(long, value_name = "DIR|NAME", requires = "base_model")]
    lora: Option<Source>,
    /// That adapter's base model: a folder in Hugging Face layout, or a name on the hub.
    #[arg(long, value_name = "DIR|NAME", requires = "lora")]
    base_model: Option<Source>,
    #[command(flatten)]
    proving: Proving,
    /// Print the plan as JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Plan, out: &mut dyn Write) -> anyhow::Result<()> {
    let planner = args.proving.planner()?;
    let modules = match (&args.state, &args.lora, &args.base_model) {
        (None, Some(lora), Some(base_model)) => {
            let hub = Options::from_env();
            let base = BaseModel::open(base_model.base_model(&hub)?)?;
            let shape = |module: &LoraModule| {
                let shape = ModuleShape::new(module.d_in, module.rank, module.d_out);
                Ok((module.name.clone(), shape.with_context(|| format!("module {}", module.name))?))
            };
            let modules = LoraAdapter::open(lora.adapter(&hub)?, &base.projections())?.modules;
            modules.iter().map(shape).collect::<anyhow::Result<Vec<_>>>()?
        }
        (Some(state), ..) => {
            let manifest = State::manifest_of(state)?;
            let modules = manifest.manifest().modules().iter();
            modules.map(|module| (module.name().into(), module.shape())).collect()
        }
        _ => anyhow::bail!("expected --state, or --lora with --base-model"),
    };
    let modules: Vec<_> = modules.iter().map(|(name, shape)| (&name[..], *shape)).collect();
    let explanation = Explanation::new(planner, &modules).context("this adapter cannot be proved")?;
    if args.json {
        writeln!(out, "{}", explanation.report().to_line()?)?;
    } else {
        write!(out, "{explanation}")?;
    }
    Ok(())
}
