//! `zklora-base-user`: see the library's documentation.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use serde_json::json;
use tracing::{info, warn};
use zklora_base_user::gpt2::Gpt2;
use zklora_base_user::remote::{CombineMode, RemoteHook};
use zklora_base_user::session::Session;
use zklora_base_user::tokenizer::Tokenizer;
use zklora_cli::{Documents, Logging, Manual};
use zklora_hf::BaseModel;
use zklora_proto::{AdapterId, Address, SecretKey};

/// Runs a base model with the deltas of a contributor's LoRA adapter.
#[derive(Parser)]
#[command(version, after_help = "Exit codes: 0 success, 1 failure, 2 wrong usage.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    logging: Logging,
}

#[derive(Subcommand)]
enum Command {
    Loss(Loss),
    Identity(Identity),
    #[command(flatten)]
    Documents(Documents),
}

/// Computes the loss of a text with the base model alone and with the adapter, and ends the session with a receipt that
/// both sign.
#[derive(Args)]
#[command(
    after_help = "Example: zklora-base-user loss --base-model fixtures/gpt2-tiny --contributor zklora://KEY@127.0.0.1:30000 --adapter ID --text \"Un texto\""
)]
struct Loss {
    /// Folder of the base model, in Hugging Face layout.
    #[arg(long, value_name = "DIR")]
    base_model: PathBuf,
    /// Address of the contributor, which pins its key.
    #[arg(long, value_name = "zklora://KEY@HOST:PORT")]
    contributor: Address,
    /// The adapter to be served: the id that `zklora-contributor init` printed.
    #[arg(long, value_name = "ID")]
    adapter: AdapterId,
    /// The text.
    #[arg(long)]
    text: String,
    /// What becomes of a projection's own output.
    #[arg(long, value_enum, default_value_t)]
    combine_mode: CombineMode,
    /// Your identity key; made if there is none.
    #[arg(long, value_name = "FILE", env = "ZKLORA_IDENTITY")]
    identity: Option<PathBuf>,
    /// Wait until the contributor has proved the session.
    #[arg(long)]
    wait: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// Prints your public key, by which a contributor knows you; makes the identity if there is none.
#[derive(Args)]
#[command(after_help = "Example: zklora-base-user identity")]
struct Identity {
    /// Your identity key; made if there is none.
    #[arg(long, value_name = "FILE", env = "ZKLORA_IDENTITY")]
    identity: Option<PathBuf>,
}

/// What the manual page says beside the help.
const MANUAL: Manual = Manual {
    environment: &[(
        "XDG_CONFIG_HOME",
        "Where the identity key is made if --identity names none; ~/.config by default.",
    )],
    files: &[("~/.config/zklora/base-user.key", "Your identity key.")],
    see_also: &["zklora-contributor(1)", "zklora-verifier(1)"],
};

fn main() -> ExitCode {
    let cli = Cli::parse();
    zklora_cli::run(&cli.logging, || match cli.command {
        Command::Loss(args) => loss(&args),
        Command::Identity(args) => {
            println!("{}", load_identity(args.identity)?.public());
            Ok(())
        }
        Command::Documents(args) => Ok(args.write::<Cli>(&MANUAL, &mut std::io::stdout())?),
    })
}

fn loss(args: &Loss) -> anyhow::Result<()> {
    let base = BaseModel::open(&args.base_model)?;
    let ids = Tokenizer::open(&args.base_model)?.encode(&args.text)?;
    let mut model = Gpt2::load(&base)?;
    let base_loss = model.loss(&ids)?;

    let key = load_identity(args.identity.clone())?;
    let runtime = tokio::runtime::Runtime::new().context("starting the runtime")?;
    let session =
        Session::open(runtime.handle().clone(), key, &args.contributor, args.adapter, base.digest())?;
    let session = Arc::new(session);
    info!(session = %session.id(), "session opened");
    let modules = session.manifest().modules().iter().zip(session.left());
    if let Some((module, left)) = modules.min_by_key(|(_, left)| **left)
        && *left < ids.len() as u64
    {
        warn!(
            "the text has {} tokens, each a row of every module, but {} may answer {left} more independent rows: the contributor \
             will refuse, unless enough of them were answered before; take a shorter text",
            ids.len(),
            module.name()
        );
    }
    RemoteHook::patch(&mut model, &session, args.combine_mode)?;
    let adapter_loss = model.loss(&ids)?;
    model.unpatch();
    let receipt = session.finish()?;
    info!(session = %session.id(), "receipt signed by both");
    let bundle_bytes = match args.wait {
        true => Some(session.wait_for_proof(|state| info!("the contributor's proof: {state:?}"))?),
        false => None,
    };

    let receipt = receipt.receipt();
    if args.json {
        let summary = json!({
            "base_loss": base_loss,
            "adapter_loss": adapter_loss,
            "tokens": ids.len(),
            "session": receipt.session,
            "adapter": receipt.adapter,
            "contributor": receipt.contributor,
            "client": receipt.client,
            "base_model": receipt.base_model,
            "calls": receipt.calls,
            "rows": receipt.rows,
            "transcript": receipt.transcript,
            "bundle_bytes": bundle_bytes,
        });
        println!("{summary}");
    } else {
        println!("loss of the base model   {base_loss:.4}");
        println!("loss with the adapter    {adapter_loss:.4}");
        println!("tokens                   {}", ids.len());
        println!("session                  {}", receipt.session);
        println!(
            "receipt                  signed by both: {} calls, {} rows",
            receipt.calls,
            receipt.rows.iter().sum::<u64>()
        );
        match bundle_bytes {
            Some(bytes) => {
                println!("bundle                   {}.pf, {bytes} bytes, at the contributor", receipt.session)
            }
            None => println!(
                "bundle                   {}.pf, when the contributor has proved it",
                receipt.session
            ),
        }
    }
    // The hook, which shared the session, is gone with `unpatch`.
    if let Some(session) = Arc::into_inner(session) {
        session.close();
    }
    Ok(())
}

/// The identity in this file, or in the user's configuration folder; a new one if there is none yet.
fn load_identity(path: Option<PathBuf>) -> anyhow::Result<SecretKey> {
    let path = match path {
        Some(path) => path,
        None => std::env::var_os("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")))
            .context("neither HOME nor XDG_CONFIG_HOME is set; name a file with --identity")?
            .join("zklora/base-user.key"),
    };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    Ok(SecretKey::load_or_create(&path)?)
}
