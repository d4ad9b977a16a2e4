//! `zklora-base-user accept`.

use std::fs::File;
use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tracing::{info, warn};
use zklora_cli::NOT_PINNED;
use zklora_delivery::{Compared, Delivery, Package, PeftFolder, difference};
use zklora_hf::BaseModel;
use zklora_hub::{Options, Source};
use zklora_proto::bundle::Bundle;
use zklora_proto::{AdapterId, Document, Manifest, PublicKey, SessionId, SignedManifest, counted};
use zklora_verdict::{AcceptReport, AcceptedBundle, Pins, Standing, Verifier};

use super::{SecurityArgs, identity};

/// Takes an adapter that was delivered to you, if it is the one that was proved.
///
/// Decrypts the package, holds every module's weights against its commitment in the signed manifest, and computes every delta of the
/// given bundles again. Only if all of it holds, the adapter is written as a folder that PEFT loads, and `--lora` here.
#[derive(Args)]
#[command(after_help = HELP)]
pub struct Accept {
    /// What the contributor made with `deliver`, for your key.
    #[arg(value_name = "PACKAGE")]
    package: PathBuf,
    /// Folder for the adapter. It must not be there, and is made with access for its owner only.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The adapter that you bought: the id that you were given before your sessions.
    #[arg(long, value_name = "ID")]
    adapter: Option<AdapterId>,
    /// The key of who sold it.
    #[arg(long, value_name = "KEY")]
    contributor: Option<PublicKey>,
    /// The bundle of a session with this adapter; may be given several times. It is verified, and all its deltas are computed again.
    #[arg(long, value_name = "FILE")]
    bundle: Vec<PathBuf>,
    /// Exit with 0 even if --adapter does not say which adapter you bought.
    #[arg(long)]
    unpinned: bool,
    #[command(flatten)]
    security: SecurityArgs,
    /// The base model: a folder or a name on the Hugging Face hub. It is held against the manifest, and named to PEFT.
    #[arg(long, value_name = "DIR|NAME")]
    base_model: Option<Source>,
    /// What PEFT is told that the base model is, which is not looked at here.
    #[arg(long, value_name = "NAME")]
    base_model_name: Option<String>,
    /// Your identity key, for which the package was made.
    #[arg(long, value_name = "FILE", env = "ZKLORA_IDENTITY")]
    identity: Option<PathBuf>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

const HELP: &str = "\
Example: zklora-base-user accept adapter.zkd --adapter ID --contributor KEY --bundle SESSION.pf --out adapter

Exit codes:
  0  the adapter is the pinned one (or any, with --unpinned), all of it holds, and the folder is written
  1  something does not hold or cannot be done, and no folder is written
  2  wrong usage
  3  all of it holds and the folder is written, but no adapter was pinned";

/// A bundle that the delivered weights were held against.
struct Checked {
    path: PathBuf,
    session: SessionId,
    compared: Compared,
}

pub fn run(args: &Accept, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    // Better known before hours of work than after it.
    ensure!(
        args.out.symlink_metadata().is_err(),
        "{} is there already: expected a name for a new folder",
        args.out.display()
    );
    let key = identity::load_existing(args.identity.clone())?;
    let at_package = || args.package.display().to_string();
    let file = File::open(&args.package).with_context(at_package)?;
    ensure!(file.metadata().with_context(at_package)?.is_file(), "{} is not a regular file", at_package());
    let package = Package::open(BufReader::new(file)).with_context(at_package)?;
    args.check_pins(package.manifest())?;
    if let Some(base) = &args.base_model {
        check_base_model(base, package.manifest().manifest())?;
    }

    let bar = bar(package.content_bytes(), "{msg} {bar:30} {bytes}/{total_bytes}, {eta} left", "decrypting");
    let delivery = package.decrypt(&key, |bytes| bar.set_position(bytes)).with_context(at_package)?;
    bar.finish_and_clear();
    info!("all {} modules open their commitments", delivery.openings().len());
    let checked = args.check_bundles(&delivery)?;
    let base_model = args.base_model.as_ref().map(|source| match source {
        Source::Hub(reference) => reference.id().to_owned(),
        Source::Folder(folder) => folder.display().to_string(),
    });
    let name = args.base_model_name.clone().or(base_model);
    PeftFolder::new(&delivery, name.as_deref())?.write(&args.out)?;
    args.print(&delivery, &checked, out)?;
    Ok(match args.adapter.is_some() || args.unpinned {
        true => ExitCode::SUCCESS,
        false => NOT_PINNED.into(),
    })
}

impl Accept {
    /// Whether the package is of what was bought, as the pins and the bundles have it.
    fn check_pins(&self, found: &SignedManifest) -> anyhow::Result<()> {
        let (adapter, contributor) = (found.adapter_id(), *found.manifest().contributor());
        let mut manifests = Vec::with_capacity(self.bundle.len());
        for path in &self.bundle {
            manifests.push((path, open(path)?.manifest().clone()));
        }
        if let Some(pinned) = self.adapter
            && pinned != adapter
        {
            let mut said = format!("the package is of adapter {adapter}, expected {pinned}");
            if let Some((_, expected)) = manifests.iter().find(|(_, bundle)| bundle.adapter_id() == pinned) {
                said += &format!(": {}", difference(found.manifest(), expected.manifest()));
            }
            bail!(said);
        }
        if let Some(pinned) = self.contributor
            && pinned != contributor
        {
            bail!("the package is of contributor {contributor}, expected {pinned}");
        }
        for (path, bundle) in &manifests {
            ensure!(
                bundle.adapter_id() == adapter,
                "the package is of another adapter than {}: {}",
                path.display(),
                difference(found.manifest(), bundle.manifest())
            );
        }
        if self.adapter.is_none() {
            warn!(
                "NOT PINNED: nothing says that {adapter} is the adapter that you bought; give the id that you were promised with \
                 --adapter"
            );
        }
        Ok(())
    }

    /// Verifies the bundles, and computes their deltas again.
    fn check_bundles(&self, delivery: &Delivery) -> anyhow::Result<Vec<Checked>> {
        let verifier = Verifier::new(Pins {
            adapters: vec![delivery.manifest().adapter_id()],
            contributors: vec![*delivery.manifest().manifest().contributor()],
            ..Pins::default()
        })
        .with_min_security(self.security.min_security);
        let mut checked = Vec::with_capacity(self.bundle.len());
        for path in &self.bundle {
            let at = || path.display().to_string();
            let verdict = verifier.check_file(path);
            verdict.outcome.with_context(at)?;
            // There is one where the outcome is good.
            let receipt = verdict.declared.with_context(at)?.session.receipt().clone();
            let signed = receipt.receipt();
            let bar = bar(signed.calls, "{msg} {bar:30} {pos}/{len} calls, {eta} left", "computing");
            let compared = delivery
                .check_bundle(&mut open(path)?, &receipt, |calls| bar.set_position(calls))
                .with_context(at)?;
            bar.finish_and_clear();
            info!("{}: {} deltas are those of the delivered weights", path.display(), compared.deltas);
            checked.push(Checked { path: path.clone(), session: signed.session, compared });
        }
        Ok(checked)
    }

    /// What was given from elsewhere. Whoever names the base model gets its digest computed, which was found to be the manifest's.
    fn pins(&self, manifest: &Manifest) -> Pins {
        Pins {
            adapters: self.adapter.into_iter().collect(),
            contributors: self.contributor.into_iter().collect(),
            base_models: self.base_model.iter().map(|_| *manifest.base_model()).collect(),
            ..Pins::default()
        }
    }

    fn print(&self, delivery: &Delivery, checked: &[Checked], out: &mut dyn Write) -> io::Result<()> {
        let (adapter, manifest) = (delivery.manifest().adapter_id(), delivery.manifest().manifest());
        let modules = delivery.openings().len();
        if self.json {
            let bundles = checked.iter().map(|Checked { path, session, compared }| AcceptedBundle {
                bundle: path.display().to_string(),
                session: *session,
                calls: compared.calls,
                rows: compared.rows,
                deltas: compared.deltas,
            });
            let pins = self.pins(manifest).given();
            let report = AcceptReport {
                folder: self.out.display().to_string(),
                verdict: Standing::of_valid(pins),
                pinned: pins.adapter,
                pins,
                adapter,
                contributor: *manifest.contributor(),
                base_model: *manifest.base_model(),
                digest: delivery.digest(),
                modules: modules as u64,
                bundles: bundles.collect(),
                rows: checked.iter().map(|bundle| bundle.compared.rows).sum(),
            };
            return writeln!(out, "{}", report.to_line()?);
        }
        let pinned = |pinned: bool| if pinned { "the one you gave" } else { "NOT PINNED" };
        writeln!(out, "folder       {}", self.out.display())?;
        writeln!(out, "adapter      {adapter}, {}", pinned(self.adapter.is_some()))?;
        writeln!(out, "contributor  {}, {}", manifest.contributor(), pinned(self.contributor.is_some()))?;
        writeln!(out, "base model   {}", manifest.base_model())?;
        writeln!(out, "package      {}, signed by the contributor", delivery.digest())?;
        writeln!(out, "weights      of all {} open their commitments", counted(modules, "module"))?;
        for Checked { path, compared: Compared { calls, rows, deltas }, .. } in checked {
            writeln!(
                out,
                "deltas       of {}: all {deltas} are those of these weights ({}, {})",
                path.display(),
                counted(*calls, "call"),
                counted(*rows, "row")
            )?;
        }
        Ok(())
    }
}

fn open(path: &Path) -> anyhow::Result<Bundle<BufReader<File>>> {
    Bundle::open(path).with_context(|| path.display().to_string())
}

/// Whether the base model is the manifest's, and has the modules that it names.
fn check_base_model(source: &Source, manifest: &Manifest) -> anyhow::Result<()> {
    let base = BaseModel::open(source.base_model(&Options::from_env())?)?;
    ensure!(
        base.digest() == *manifest.base_model(),
        "the package is for the base model {}, but {source} is {}",
        manifest.base_model(),
        base.digest()
    );
    let projections = base.projections();
    for entry in manifest.modules() {
        let shape = entry.shape();
        ensure!(
            projections
                .iter()
                .any(|p| p.name == entry.name() && (p.d_in, p.d_out) == (shape.d_in(), shape.d_out())),
            "module {}: the base model has no projection of this name from {} to {}",
            entry.name(),
            shape.d_in(),
            shape.d_out()
        );
    }
    Ok(())
}

/// A bar on stderr, if that is a terminal.
fn bar(length: u64, template: &str, what: &'static str) -> ProgressBar {
    // The templates are sound: a test would show it at once.
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(length).with_style(style).with_message(what)
}
