//! `zklora-contributor`: see the library's documentation.

mod commands;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
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
    Serve(commands::serve::Serve),
    Exposure(commands::exposure::ExposureReport),
    #[command(flatten)]
    Documents(Documents),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // A core file would hold the weights and the private key.
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        eprintln!("warning: core files cannot be switched off: {error}");
    }
    zklora_cli::run(&cli.logging, || match cli.command {
        Command::Init(args) => commands::init::run(&args),
        Command::Plan(args) => commands::plan::run(&args),
        Command::Exposure(args) => commands::exposure::run(&args),
        Command::Serve(args) => commands::serve::run(&args),
        Command::Documents(args) => Ok(args.write::<Cli>(&commands::MANUAL, &mut std::io::stdout())?),
    })
}
