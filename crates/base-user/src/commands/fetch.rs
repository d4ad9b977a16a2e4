//! `zklora-base-user fetch`.

use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tracing::{error, info};
use zklora_base_user::fetch::{Fetched, Fetcher};
use zklora_cli::Escaped;
use zklora_proto::{Address, SessionId};
use zklora_verifier::Verifier;

use super::{SecurityArgs, SessionsArgs, identity};

/// Fetches the bundles of your sessions from their contributors, and verifies them.
///
/// A bundle is taken if every proof in it holds and is worth --min-security, and if its receipt is the one that you signed. What was
/// interrupted goes on where it was. What is not taken is kept beside, for you to look at.
#[derive(Args)]
#[command(after_help = "\
Examples:
  zklora-base-user fetch --session ID --wait
  zklora-base-user fetch --all --out bundles")]
pub struct Fetch {
    #[command(flatten)]
    which: Which,
    /// Folder for the bundles; made if there is none.
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
    /// Wait until the contributors have proved the sessions.
    #[arg(long)]
    wait: bool,
    /// Where the contributor is now, if that is not where it was.
    #[arg(long, value_name = "zklora://KEY@HOST:PORT")]
    contributor: Option<Address>,
    /// Most bytes of a bundle.
    #[arg(long, value_name = "N", default_value_t = MAX_BYTES)]
    max_bytes: u64,
    /// Your identity key, with which the sessions were opened.
    #[arg(long, value_name = "FILE", env = "ZKLORA_IDENTITY")]
    identity: Option<PathBuf>,
    #[command(flatten)]
    sessions: SessionsArgs,
    #[command(flatten)]
    security: SecurityArgs,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// The session.
    #[arg(long, value_name = "ID")]
    session: Option<SessionId>,
    /// Every session that you have finished.
    #[arg(long)]
    all: bool,
}

/// Several times what a contributor of this version makes of its longest session.
const MAX_BYTES: u64 = 8 << 30;

pub fn run(args: &Fetch) -> anyhow::Result<()> {
    let records = args.sessions.records()?;
    let sessions = match args.which.session {
        Some(session) => vec![session],
        None => records.sessions()?,
    };
    let runtime = Runtime::new().context("starting the runtime")?;
    // Its circuits serve all bundles.
    let verifier = Verifier::default().with_min_security(args.security.min_security);
    let (mut fetched, mut failed) = (Vec::new(), Vec::new());
    for session in sessions {
        let one = || -> anyhow::Result<Option<Fetched>> {
            let record = records.get(session)?;
            if args.which.all && record.receipt.is_none() {
                info!(%session, "left out: it was not finished");
                return Ok(None);
            }
            let address = args.contributor.as_ref().unwrap_or(&record.contributor);
            ensure!(
                address.key == record.contributor.key,
                "the session was with contributor {}, not with {}",
                record.contributor.key,
                address.key
            );
            let key = identity::load(args.identity.clone())?;
            if let Some(receipt) = &record.receipt {
                let (client, mine) = (receipt.receipt().client, key.public());
                ensure!(client == mine, "the session was opened with key {client}, but --identity is {mine}");
            }
            let fetcher = Fetcher::dial(runtime.handle().clone(), key, address)?;
            if args.wait {
                fetcher
                    .wait_for_proof(session, |state| info!(%session, "the contributor's proof: {state:?}"))?;
            }
            let bar = bar();
            let taken = fetcher.fetch(&record, &args.out, args.max_bytes, &verifier, |have, all| {
                bar.set_length(all);
                bar.set_position(have);
            });
            bar.finish_and_clear();
            fetcher.close();
            Ok(Some(taken?))
        };
        match one() {
            Ok(taken) => fetched.extend(taken.map(|taken| (session, taken))),
            Err(error) => failed.push((session, error)),
        }
    }

    if args.json {
        let bundles = fetched.iter().map(|(session, Fetched { path, bytes, received })| {
            let bundle = path.display().to_string();
            json!({ "session": session, "bundle": bundle, "bytes": bytes, "received": received })
        });
        let failures = failed.iter().map(|(session, error)| {
            let why = Escaped(&format!("{error:#}")).to_string();
            json!({ "session": session, "error": why })
        });
        let summary = json!({ "bundles": bundles.collect::<Value>(), "failed": failures.collect::<Value>() });
        println!("{summary}");
    } else {
        for (_, Fetched { path, bytes, received }) in &fetched {
            let how = if *received == 0 { "was there already" } else { "fetched" };
            println!(
                "{}: {bytes} bytes, {how}, verified, and of the receipt that you signed",
                path.display()
            );
        }
    }
    match &mut failed[..] {
        [] => Ok(()),
        [_] if args.which.session.is_some() => Err(failed.remove(0).1),
        failed => {
            for (session, error) in &*failed {
                error!("session {session}: {}", Escaped(&format!("{error:#}")));
            }
            bail!("{} of {} bundles were not fetched", failed.len(), failed.len() + fetched.len())
        }
    }
}

/// A bar on stderr, if that is a terminal.
fn bar() -> ProgressBar {
    // The template is sound: a test would show it at once.
    let style =
        ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes}, {binary_bytes_per_sec}, {eta} left")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style)
}
