//! `zklora-base-user redact`.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use zklora_client::redact;
use zklora_proto::bundle::Bundle;
use zklora_proto::{Bytes, Document, PublicKey, SessionId};

use super::{SessionsArgs, identity};

/// Makes a bundle without activations and deltas of the bundle of a session that you took part in, for an auditor who shall not see
/// your prompts.
///
/// In their place it has the folds that the proofs are about, signed by you: the auditor takes your word that they are the session's. Of
/// a session that was not run with --blind, the folds give activations away.
#[derive(Args)]
#[command(after_help = "\
Example: zklora-base-user redact SESSION.pf

The auditor verifies with: zklora-verifier verify SESSION.redacted.pf --redacted --client YOUR-KEY --adapter ID --contributor KEY")]
pub struct Redact {
    /// The session's bundle.
    #[arg(value_name = "BUNDLE")]
    bundle: PathBuf,
    /// The redacted bundle, which must not be there yet; SESSION.redacted.pf by default.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Your identity key, with which the session was opened.
    #[arg(long, value_name = "FILE", env = "ZKLORA_IDENTITY")]
    identity: Option<PathBuf>,
    #[command(flatten)]
    sessions: SessionsArgs,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// The redacted bundle that was made.
#[derive(Serialize, JsonSchema)]
pub struct RedactReport {
    /// The file.
    bundle: String,
    /// Its size.
    bytes: u64,
    /// The session.
    session: SessionId,
    /// Your key, on whose word the folds rest.
    client: PublicKey,
    /// Whether random rows hide the activations behind the folds of every module.
    blinded: bool,
    /// The modules of which that is not so.
    not_blinded: Vec<String>,
}

impl Document for RedactReport {
    const FORMAT: &'static str = "zklora-redact/1";
    const PRINTED_BY: &'static str = "zklora-base-user redact --json";
}

pub fn run(args: &Redact, stdout: &mut dyn Write) -> anyhow::Result<()> {
    let bundle = Bundle::open(&args.bundle).with_context(|| args.bundle.display().to_string())?;
    let session = bundle.receipt().receipt().session;
    let records = args.sessions.records()?;
    let record = records.get(session)?;
    let key = identity::load_existing(args.identity.clone())?;
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from(format!("{session}.redacted.pf")));
    let redacted = redact(&args.bundle, &records, &record, &key, &out)?;
    let blinded = redacted.not_blinded.is_empty();
    if args.json {
        let report = RedactReport {
            bundle: out.display().to_string(),
            bytes: redacted.bytes,
            session,
            client: key.public(),
            blinded,
            not_blinded: redacted.not_blinded,
        };
        writeln!(stdout, "{}", report.to_line()?)?;
        return Ok(());
    }
    writeln!(stdout, "redacted     {}, {}", out.display(), Bytes(redacted.bytes))?;
    writeln!(stdout, "session      {session}")?;
    writeln!(stdout, "client       {}", key.public())?;
    if blinded {
        writeln!(
            stdout,
            "Anyone who has it sees the receipt and the proofs; random rows hide the activations behind the folds."
        )?;
    } else {
        writeln!(
            stdout,
            "NOT BLINDED: of a short session, activations follow from the folds in it, and of any, a guess of the whole text can be \
             checked. Run sessions that you mean to redact with --blind."
        )?;
    }
    writeln!(
        stdout,
        "It is valid for anyone who takes your word: zklora-verifier verify --redacted --client {} --adapter {}",
        key.public(),
        record.adapter
    )?;
    Ok(())
}
