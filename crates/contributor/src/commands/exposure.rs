use std::io::Write;
use std::path::Path;

use anyhow::bail;
use clap::ArgMatches;
use clap::parser::ValueSource;
use schemars::JsonSchema;
use serde::Serialize;
use tracing::warn;
use zklora_cli::Escaped;
use zklora_contributor::control::ask_exposure;
use zklora_contributor::exposure::{Exposure, Ledger, boot_id};
use zklora_contributor::state::State;
use zklora_contributor::store::{STORE, Store, is_served};
use zklora_proto::{AdapterId, Document, SignedManifest};

use super::Share;
use super::args::ExposureReport;
use super::settings::Places;

/// How much of an adapter is known.
#[derive(Serialize, JsonSchema)]
pub struct Exposures {
    /// The adapter id.
    adapter: AdapterId,
    /// Whether a daemon serves it now, whose budget this is.
    serving: bool,
    /// Every module, in the manifest's order.
    modules: Vec<Exposure>,
}

impl Document for Exposures {
    const FORMAT: &'static str = "zklora-exposure/1";
    const PRINTED_BY: &'static str = "zklora-contributor exposure --json";
}

/// Shows it. `matches` are those that the arguments were made of.
pub fn run(args: &ExposureReport, matches: &ArgMatches, out: &mut dyn Write) -> anyhow::Result<()> {
    let places = Places::of_ledger(args, matches).map_err(|errors| anyhow::anyhow!(errors.join("; ")))?;
    // The identity key, which a service keeps elsewhere, is not needed.
    let manifest = State::manifest_of(&places.state)?;
    let serving = ask_exposure(&places.control)?;
    let is_serving = serving.is_some();
    let exposures = match serving {
        Some(exposures) => {
            let expected = manifest.manifest().modules().iter().map(|module| module.name());
            anyhow::ensure!(
                exposures.iter().map(|exposure| &exposure.module[..]).eq(expected),
                "the daemon at {} serves another adapter than that of {}",
                places.control.display(),
                places.state.display()
            );
            exposures
        }
        None if is_served(&places.state) => bail!(
            "a daemon serves {}, and none answers at {}: name its socket with --control",
            places.state.display(),
            places.control.display()
        ),
        None => stored(&places.state, &manifest, places.budget)?,
    };
    if is_serving && matches.value_source("exposure_budget") == Some(ValueSource::CommandLine) {
        warn!(
            "a daemon serves this state: its budget is shown, and not --exposure-budget {}",
            args.exposure_budget
        );
    }
    if let Some(warning) = Exposure::warning(&exposures) {
        warn!("{}", Escaped(&warning));
    }
    if args.json {
        let report = Exposures { adapter: manifest.adapter_id(), serving: is_serving, modules: exposures };
        writeln!(out, "{}", report.to_line()?)?;
        return Ok(());
    }
    writeln!(out, "{:>7} {:>7} {:>7}  module", "rows", "budget", "d_in")?;
    for Exposure { module, rows, lost, budget, d_in } in exposures {
        let lost = if lost > 0 {
            format!(" ({lost} of them not known, and may have been answered)")
        } else {
            String::new()
        };
        writeln!(out, "{rows:>7} {budget:>7} {d_in:>7}  {}{lost}", Escaped(&module))?;
    }
    writeln!(
        out,
        "Rows are linearly independent ones, answered to all clients together. d_in of them give a module away, and far fewer most of \
         what it does on ordinary text."
    )?;
    writeln!(
        out,
        "The budget is {}",
        if is_serving {
            "that of the daemon that serves the state now."
        } else {
            "what `serve` would be given: no daemon serves the state now."
        }
    )?;
    Ok(())
}

/// What the state folder says.
fn stored(state: &Path, manifest: &SignedManifest, budget: Share) -> anyhow::Result<Vec<Exposure>> {
    let store = Store::open(&state.join(STORE), manifest.adapter_id())?;
    Ledger::report(&store, manifest.manifest(), budget.0, &boot_id())
}
