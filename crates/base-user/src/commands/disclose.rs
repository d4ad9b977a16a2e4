//! `zklora-base-user disclose`.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use zklora_proto::bundle::Bundle;
use zklora_proto::{Disclosure, Document, Manifest, SessionId, counted, secret_file};

use super::SessionsArgs;

/// Discloses one module of one call of a session that you took part in, without the others.
///
/// The disclosure has the activations and deltas of that module in that call, and what ties them to the receipt that both parties
/// signed. `zklora-verifier disclosure` checks it. It takes the seed from your record of the session.
#[derive(Args)]
#[command(
    after_help = "Example: zklora-base-user disclose SESSION.pf --call 0 --module transformer.h.0.attn.c_attn"
)]
pub struct Disclose {
    /// The session's bundle.
    #[arg(value_name = "BUNDLE")]
    bundle: PathBuf,
    /// The number of the call in its session, from 0.
    #[arg(long, value_name = "N")]
    call: u64,
    /// The module, by its name or its number in the manifest, from 0.
    #[arg(long, value_name = "NAME|INDEX")]
    module: String,
    /// The disclosure, made for your eyes alone; SESSION.CALL.MODULE.disclosure.json by default.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    sessions: SessionsArgs,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// The disclosure that was made.
#[derive(Serialize, JsonSchema)]
pub struct DiscloseReport {
    /// The file.
    disclosure: String,
    /// The session.
    session: SessionId,
    /// The call, from 0.
    call: u64,
    /// The module's name.
    module: String,
    /// Rows of the call.
    rows: usize,
}

impl Document for DiscloseReport {
    const FORMAT: &'static str = "zklora-disclose/1";
    const PRINTED_BY: &'static str = "zklora-base-user disclose --json";
}

pub fn run(args: &Disclose, stdout: &mut dyn Write) -> anyhow::Result<()> {
    let mut bundle = Bundle::open(&args.bundle).with_context(|| args.bundle.display().to_string())?;
    let session = bundle.receipt().receipt().session;
    let record = args.sessions.records()?.get(session)?;
    let module = find(bundle.manifest().manifest(), &args.module)?;
    let disclosure = Disclosure::new(&mut bundle, &record.seed, args.call, module)
        .with_context(|| args.bundle.display().to_string())?;
    let default = || PathBuf::from(format!("{session}.{}.{module}.disclosure.json", args.call));
    let out = args.out.clone().unwrap_or_else(default);
    secret_file::create(&out, &disclosure.to_bytes())?;

    let name = disclosure.entry().name();
    if args.json {
        let report = DiscloseReport {
            disclosure: out.display().to_string(),
            session,
            call: args.call,
            module: name.into(),
            rows: disclosure.rows(),
        };
        writeln!(stdout, "{}", report.to_line()?)?;
    } else {
        writeln!(stdout, "disclosure   {}", out.display())?;
        writeln!(stdout, "session      {session}")?;
        writeln!(stdout, "call         {}, {name}: {}", args.call, counted(disclosure.rows(), "row"))?;
        writeln!(
            stdout,
            "Anyone who has it sees these rows and their deltas, the receipt, and nothing of the other calls."
        )?;
    }
    Ok(())
}

/// A module by its name, or else by its number.
fn find(manifest: &Manifest, module: &str) -> anyhow::Result<usize> {
    let modules = manifest.modules();
    let by_number = || module.parse().ok().filter(|&index: &usize| index < modules.len());
    modules.iter().position(|entry| entry.name() == module).or_else(by_number).with_context(|| {
        format!(
            "the adapter has no module {module:?}; it has {}, such as {}",
            counted(modules.len(), "module"),
            modules[0].name()
        )
    })
}
