//! `zklora-contributor`: see the library's documentation.

mod commands;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use tracing::warn;
use zklora_cli::{Documents, Logging};

/// Serves a private LoRA adapter's deltas and proves them.
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
    Init(commands::init::Init),
    Plan(commands::plan::Plan),
    Serve(Box<commands::args::Serve>),
    Prove(commands::prove::Prove),
    Deliver(commands::deliver::Deliver),
    Exposure(commands::args::ExposureReport),
    Status(commands::args::StatusReport),
    #[command(flatten)]
    Documents(Documents),
}

fn main() -> ExitCode {
    // A core file would hold the weights and the private key.
    let undumpable = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    let (cli, mut matches) = match zklora_cli::parse::<Cli>() {
        Ok(parsed) => parsed,
        Err(code) => return code,
    };
    // There is one: clap asks for it.
    let (_, matches) = matches.remove_subcommand().unwrap_or_default();
    let mut logging = cli.logging.clone();
    if let (None, Command::Serve(args)) = (logging.log_format, &cli.command) {
        logging.log_format = commands::serve::log_format(args, &matches);
    }
    zklora_cli::run(&logging, |out| {
        if let Err(error) = undumpable {
            warn!("core files cannot be switched off: {error}");
        }
        match cli.command {
            Command::Init(args) => commands::init::run(&args, out).map(done),
            Command::Deliver(args) => commands::deliver::run(&args, out).map(done),
            Command::Plan(args) => commands::plan::run(&args, out).map(done),
            Command::Exposure(args) => commands::exposure::run(&args, &matches, out).map(done),
            Command::Status(args) => commands::status::run(&args, &matches, out),
            Command::Documents(args) => Ok(args.write::<Cli>(&commands::MANUAL, out).map(done)?),
            Command::Prove(args) => commands::prove::run(&args, out),
            Command::Serve(args) => commands::serve::run(&args, &matches, out),
        }
    })
}

fn done((): ()) -> ExitCode {
    ExitCode::SUCCESS
}
