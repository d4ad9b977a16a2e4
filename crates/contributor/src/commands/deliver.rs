use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args;
use rand::rngs::StdRng;
use schemars::JsonSchema;
use serde::Serialize;
use tracing::info;
use zklora_delivery::seal;
use zklora_proto::{AdapterId, Bytes, DeliveryDigest, Document, PublicKey, counted, partial};

use super::open_state;

/// Hands the adapter over: writes a package with its weights and salts, which only the holder of one key can read.
///
/// The package is signed. Its recipient sees with `zklora-base-user accept` that these are the weights that were committed to, and so those
/// that every proof is about; and with that has them, for good. Nothing here knows whether you have been paid.
#[derive(Args)]
#[command(
    after_help = "Example: zklora-contributor deliver --state a-state --adapter ID --to KEY --out adapter.zkd"
)]
pub struct Deliver {
    /// Folder that `init` made.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// The adapter that is meant: the id that `init` printed.
    #[arg(long, value_name = "ID")]
    adapter: AdapterId,
    /// Who gets it: the key that `zklora-base-user identity` prints, and that receipts name as the client's.
    #[arg(long, value_name = "KEY")]
    to: PublicKey,
    /// The package; ADAPTER.zkd by default. A file that is there is never written over.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The identity key, if it is not in the state folder.
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// The package that was made.
#[derive(Serialize, JsonSchema)]
pub struct DeliverReport {
    /// The file.
    package: String,
    /// Its size.
    bytes: u64,
    /// Its digest, which is signed.
    digest: DeliveryDigest,
    /// The adapter id.
    adapter: AdapterId,
    /// The key of the one who can read it.
    recipient: PublicKey,
    /// Modules whose weights are in it.
    modules: usize,
}

impl Document for DeliverReport {
    const FORMAT: &'static str = "zklora-deliver/1";
    const PRINTED_BY: &'static str = "zklora-contributor deliver --json";
}

pub fn run(args: &Deliver, stdout: &mut dyn Write) -> anyhow::Result<()> {
    let state = open_state(&args.state, args.identity.as_deref())?;
    let adapter = state.manifest.adapter_id();
    ensure!(
        adapter == args.adapter,
        "{} is the state of adapter {adapter}, not of {}",
        args.state.display(),
        args.adapter
    );
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from(format!("{adapter}.zkd")));
    ensure!(
        out.symlink_metadata().is_err(),
        "{} is there already; name another file with --out",
        out.display()
    );
    let folder = match out.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    // With mode 0600, and gone unless it gets its name.
    let mut file = partial::file(folder, partial::PARTIAL)
        .with_context(|| format!("making a file in {}", folder.display()))?;
    let mut rng: StdRng = rand::make_rng();
    let digest = seal(
        BufWriter::new(file.as_file_mut()),
        &state.key,
        &state.manifest,
        &state.openings,
        args.to,
        &mut rng,
        |bytes| {
            if bytes % (256 << 20) == 0 {
                info!("sealed {} MiB", bytes >> 20);
            }
        },
    )?;
    file.as_file().sync_all().context("writing the package")?;
    let bytes = file.as_file().metadata().context("writing the package")?.len();
    file.persist_noclobber(&out).with_context(|| format!("naming the package {}", out.display()))?;
    std::fs::File::open(folder).and_then(|folder| folder.sync_all()).context("writing the package")?;

    if args.json {
        let report = DeliverReport {
            package: out.display().to_string(),
            bytes,
            digest,
            adapter,
            recipient: args.to,
            modules: state.openings.len(),
        };
        writeln!(stdout, "{}", report.to_line()?)?;
    } else {
        writeln!(stdout, "package      {}, {}", out.display(), Bytes(bytes))?;
        writeln!(stdout, "digest       {digest}")?;
        writeln!(stdout, "adapter      {adapter}, {}", counted(state.openings.len(), "module"))?;
        writeln!(stdout, "recipient    {}", args.to)?;
        writeln!(stdout, "Only the recipient can read it. Whoever has read it has the adapter.")?;
    }
    Ok(())
}
