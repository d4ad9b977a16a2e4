//! `zklora-base-user redact`.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use serde_json::json;
use zklora_client::redact;
use zklora_proto::Bytes;
use zklora_proto::bundle::Bundle;

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
        let summary = json!({
            "bundle": out.display().to_string(),
            "bytes": redacted.bytes,
            "session": session,
            "client": key.public(),
            "blinded": blinded,
            "not_blinded": redacted.not_blinded,
        });
        writeln!(stdout, "{summary}")?;
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
