use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use zklora_contributor::exposure::{DEFAULT_SHARE, Exposure, Ledger};
use zklora_contributor::state::State;
use zklora_contributor::store::{STORE, Store};

use super::Share;

/// Shows how much of the adapter the answered rows give away, module by module.
#[derive(Args)]
#[command(after_help = "Example: zklora-contributor exposure --state a-state")]
pub struct ExposureReport {
    /// Folder that `init` made.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// The budget that `serve` has been given.
    #[arg(long, value_name = "SHARE", default_value_t = Share(DEFAULT_SHARE))]
    exposure_budget: Share,
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &ExposureReport, out: &mut dyn Write) -> anyhow::Result<()> {
    // The identity key, which a service keeps elsewhere, is not needed.
    let manifest = State::manifest_of(&args.state)?;
    let path = args.state.join(STORE);
    // Before anything was served there is none, and looking makes none.
    let store = path.exists().then(|| Store::open(&path, manifest.adapter_id())).transpose()?;
    let exposures = Ledger::report(store.as_ref(), manifest.manifest(), args.exposure_budget.0)?;
    if args.json {
        writeln!(out, "{}", json!({ "adapter": manifest.adapter_id(), "modules": exposures }))?;
        return Ok(());
    }
    writeln!(out, "{:>7} {:>7} {:>7}  module", "rows", "budget", "d_in")?;
    for Exposure { module, rows, lost, budget, d_in } in exposures {
        let lost = if lost > 0 { format!(" ({lost} of them lost with the power)") } else { String::new() };
        writeln!(out, "{rows:>7} {budget:>7} {d_in:>7}  {module}{lost}")?;
    }
    writeln!(
        out,
        "Rows are linearly independent ones, answered to all clients together. d_in of them give a module away."
    )?;
    Ok(())
}
