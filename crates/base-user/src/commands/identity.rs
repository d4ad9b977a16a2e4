//! `zklora-base-user identity`.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use zklora_proto::{Document, PublicKey, SecretKey, secret_file};

/// Prints your public key, by which a contributor knows you; makes the identity if there is none.
#[derive(Args)]
#[command(after_help = "Example: zklora-base-user identity")]
pub struct Identity {
    /// Your identity key; made if there is none.
    #[arg(long, value_name = "FILE", env = "ZKLORA_IDENTITY")]
    identity: Option<PathBuf>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// Who you are.
#[derive(Serialize, JsonSchema)]
pub struct IdentityReport {
    /// Your public key.
    client: PublicKey,
}

impl Document for IdentityReport {
    const FORMAT: &'static str = "zklora-identity/1";
    const PRINTED_BY: &'static str = "zklora-base-user identity --json";
}

pub fn run(args: Identity, out: &mut dyn Write) -> anyhow::Result<()> {
    let key = load(args.identity)?.public();
    match args.json {
        true => writeln!(out, "{}", IdentityReport { client: key }.to_line()?)?,
        false => writeln!(out, "{key}")?,
    }
    Ok(())
}

/// The identity in this file, or in the user's configuration folder; a new one if there is none yet.
pub fn load(path: Option<PathBuf>) -> anyhow::Result<SecretKey> {
    let path = file(path)?;
    if let Some(folder) = path.parent() {
        secret_file::create_folder(folder, 0o700).with_context(|| format!("making {}", folder.display()))?;
    }
    Ok(SecretKey::load_or_create(&path)?)
}

/// The same identity, which has to be there: nothing was made for a new one.
pub fn load_existing(path: Option<PathBuf>) -> anyhow::Result<SecretKey> {
    let key = SecretKey::load(&file(path)?);
    key.context("there has to be the identity that this was made with, or for: name its file with --identity")
}

fn file(path: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    match path {
        Some(path) => Ok(path),
        None => Ok(std::env::var_os("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")))
            .context("neither HOME nor XDG_CONFIG_HOME is set; name a file with --identity")?
            .join("zklora/base-user.key")),
    }
}
