//! `zklora-base-user`: see the library's documentation.

mod commands;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use commands::{accept, audit, disclose, eval, exact, fetch, generate, identity, loss, redact, sessions};
use zklora_base_user::stop::Stopped;
use zklora_cli::{Documents, Logging, Manual};
use zklora_hub::VARIABLES;

/// Runs a base model with the deltas of contributors' LoRA adapters.
#[derive(Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 success, 1 failure, 2 wrong usage, 128 and its number if a signal ended it."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    logging: Logging,
}

#[derive(Subcommand)]
enum Command {
    Loss(loss::Loss),
    Eval(eval::Eval),
    Generate(generate::Generate),
    Fetch(fetch::Fetch),
    Sessions(sessions::Sessions),
    Disclose(disclose::Disclose),
    Redact(redact::Redact),
    Accept(accept::Accept),
    Audit(audit::Audit),
    Identity(identity::Identity),
    Exact(exact::Exact),
    #[command(flatten)]
    Documents(Documents),
}

/// What the manual page says beside the help.
const MANUAL: Manual = Manual {
    environment: &[
        VARIABLES,
        &[
            (
                "XDG_CONFIG_HOME",
                "Where the identity key is made if --identity names none; ~/.config by default.",
            ),
            (
                "XDG_STATE_HOME",
                "Where records of sessions are if --sessions names no folder; ~/.local/state by default.",
            ),
        ],
    ],
    files: &[
        ("~/.config/zklora/base-user.key", "Your identity key."),
        (
            "~/.local/state/zklora/sessions",
            "A record of each session. Whoever has one can check guesses of that session's calls; without it, you can disclose none.",
        ),
    ],
    see_also: &["zklora-contributor(1)", "zklora-verifier(1)"],
};

fn main() -> ExitCode {
    let cli = match zklora_cli::parse::<Cli>() {
        Ok((cli, _)) => cli,
        Err(code) => return code,
    };
    let mut stopped = None;
    let code = zklora_cli::run(&cli.logging, |out| {
        match cli.command {
            Command::Audit(args) => return Ok(audit::run(&args, out)),
            Command::Accept(args) => return accept::run(&args, out),
            Command::Loss(args) => loss::run(&args, out),
            Command::Eval(args) => eval::run(&args, out),
            Command::Generate(args) => generate::run(&args, out),
            Command::Fetch(args) => fetch::run(&args, out),
            Command::Sessions(args) => sessions::run(&args, out),
            Command::Disclose(args) => disclose::run(&args, out),
            Command::Redact(args) => redact::run(&args, out),
            Command::Identity(args) => identity::run(args, out),
            Command::Exact(args) => exact::run(&args, out),
            Command::Documents(args) => Ok(args.write::<Cli>(&MANUAL, out)?),
        }
        .map(|()| ExitCode::SUCCESS)
        .inspect_err(|error| {
            stopped = error.chain().find_map(|error| error.downcast_ref::<Stopped>()).copied()
        })
    });
    stopped.map_or(code, |stopped| ExitCode::from(stopped.exit_code()))
}
