//! What is in a bundle, without a word on whether it is true: `inspect` and `extract`.

use std::fs::File;
use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;
use zklora_circuit::session::VerifySessionError;
use zklora_cli::Escaped;
use zklora_proto::bundle::{Bundle, BundleError, Plan};
use zklora_proto::{AdapterId, BundleDigest, Bytes, Document, Receipt, counted, partial};
use zklora_verdict::{Refusal, open};

/// Arguments of `inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// A bundle
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// Print one JSON document on stdout instead of text
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `extract`.
#[derive(Debug, Args)]
pub struct ExtractArgs {
    /// A bundle
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// The part, by the name that `inspect` gives it: manifest, receipt, transcript, proof.0 and so on
    #[arg(value_name = "PART")]
    pub part: String,

    /// The file to make, which must not be there yet; - for the standard output
    #[arg(long, short, value_name = "FILE", default_value = "-")]
    pub out: PathBuf,
}

/// What is in a bundle. Of it, layout and signatures have been checked, and neither transcript nor proofs.
#[derive(Debug, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct InspectReport {
    /// The file.
    pub path: String,
    /// Whether it has the client's folds in place of activations and deltas.
    pub redacted: bool,
    /// The adapter id.
    pub adapter: AdapterId,
    /// The manifest, as docs/format.md describes it.
    pub manifest: Value,
    /// The receipt that both parties signed.
    pub receipt: Receipt,
    /// Which proof is of which modules.
    pub plan: Plan,
    /// Every part of the file, in its order.
    pub parts: Vec<Part>,
}

impl Document for InspectReport {
    const FORMAT: &'static str = "zklora-inspect/1";
    const PRINTED_BY: &'static str = "zklora-verifier inspect --json";
}

/// Where a part of a bundle is.
#[derive(Debug, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct Part {
    /// Its name, such as `receipt` or `proof.0`.
    pub name: String,
    /// Where it begins in the file.
    pub offset: u64,
    /// Its bytes.
    pub length: u64,
    /// The digest that the file's header gives it.
    pub digest: BundleDigest,
}

/// Why a part was not extracted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExtractError {
    /// The bundle is not valid so far.
    #[error("{0}")]
    Bundle(#[from] Refusal),
    /// There is no such part.
    #[error("the bundle has no part {found:?}, expected one of: {parts}")]
    NoPart {
        /// What was asked for.
        found: String,
        /// What there is.
        parts: String,
    },
    /// The standard output does not take it.
    #[error(transparent)]
    Output(io::Error),
    /// The file cannot be made.
    #[error("{path}: {error}", path = path.display())]
    Out {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

fn read(path: &Path) -> Result<Bundle<BufReader<File>>, Refusal> {
    Ok(Bundle::from_reader(BufReader::new(open(path)?)).map_err(VerifySessionError::from)?)
}

/// Says what is in a bundle. Of it, layout and signatures have been checked, and neither transcript nor proofs. Returns what is
/// wrong with the bundle, if it could not be read so far; fails only if `out` does.
pub fn inspect(args: &InspectArgs, out: &mut dyn Write) -> io::Result<Result<(), Refusal>> {
    let bundle = match read(&args.file) {
        Ok(bundle) => bundle,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let (manifest, receipt, plan) = (bundle.manifest().manifest(), bundle.receipt().receipt(), bundle.plan());
    let name_of = |module: &usize| manifest.modules()[*module].name();
    if args.json {
        let parts = bundle.blobs().map(|blob| Part {
            name: blob.name.into(),
            offset: blob.offset,
            length: blob.length,
            digest: blob.digest,
        });
        let report = InspectReport {
            path: args.file.to_string_lossy().into_owned(),
            redacted: bundle.is_redacted(),
            adapter: bundle.manifest().adapter_id(),
            manifest: serde_json::from_slice(bundle.manifest().bytes())?,
            receipt: receipt.clone(),
            plan: plan.clone(),
            parts: parts.collect(),
        };
        return writeln!(out, "{}", report.to_pretty()?).map(Ok);
    }
    writeln!(out, "{}: read, NOT VERIFIED", Escaped(&args.file.to_string_lossy()))?;
    if bundle.is_redacted() {
        writeln!(out, "  redacted: the client's folds in place of activations and deltas")?;
    }
    writeln!(out, "  adapter: {}", bundle.manifest().adapter_id())?;
    writeln!(out, "  contributor: {}", receipt.contributor)?;
    writeln!(out, "  client: {}", receipt.client)?;
    writeln!(out, "  base model: {}", receipt.base_model)?;
    writeln!(out, "  session: {}, {}", receipt.session, counted(receipt.calls, "call"))?;
    writeln!(out, "  modules:")?;
    for (entry, rows) in manifest.modules().iter().zip(&receipt.rows) {
        let shape = entry.shape();
        let (d_in, rank, d_out) = (shape.d_in(), shape.rank(), shape.d_out());
        writeln!(out, "    {}: {d_in} to {d_out}, rank {rank}, {}", entry.name(), counted(*rows, "row"))?;
    }
    // Any text: only a verifier knows the sets.
    writeln!(out, "  plan: parameter set {}", Escaped(&format!("{:?}", plan.security)))?;
    for (batch, modules) in plan.batches.iter().enumerate() {
        writeln!(out, "    proof {batch}: {}", modules.iter().map(name_of).collect::<Vec<_>>().join(", "))?;
    }
    writeln!(out, "  parts:")?;
    for blob in bundle.blobs() {
        writeln!(out, "    {}: {} at byte {}", blob.name, Bytes(blob.length), blob.offset)?;
    }
    Ok(Ok(()))
}

/// Writes one part of a bundle to a new file or to `out`.
pub fn extract(args: &ExtractArgs, out: &mut dyn Write) -> Result<(), ExtractError> {
    let mut bundle = read(&args.file)?;
    let stdout = args.out.as_os_str() == "-";
    let failed = |error| match stdout {
        true => ExtractError::Output(error),
        false => ExtractError::Out { path: args.out.clone(), error },
    };
    let mut copy = |to: &mut dyn Write| match bundle
        .read_blob(&args.part, |piece| to.write_all(piece).map_err(failed))
    {
        Some(copied) => copied.and_then(|()| to.flush().map_err(failed)),
        None => {
            let parts = bundle.blobs().map(|blob| blob.name).collect::<Vec<_>>().join(", ");
            Err(ExtractError::NoPart { found: args.part.clone(), parts })
        }
    };
    if stdout {
        return copy(out);
    }
    // It appears under its name only when it is whole and has its digest, and never in the place of another file.
    let folder = args.out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = partial::file(folder, partial::PARTIAL).map_err(failed)?;
    copy(&mut file)?;
    file.persist_noclobber(&args.out).map_err(|error| failed(error.error))?;
    Ok(())
}

impl From<BundleError> for ExtractError {
    fn from(error: BundleError) -> Self {
        Self::Bundle(Refusal::from(VerifySessionError::from(error)))
    }
}
