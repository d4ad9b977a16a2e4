//! `zklora-contributor`: see the library's documentation.

mod commands;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
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
    Serve(Box<commands::serve::Serve>),
    Prove(commands::prove::Prove),
    Deliver(commands::deliver::Deliver),
    Exposure(commands::exposure::ExposureReport),
    Status(commands::status::StatusReport),
    #[command(flatten)]
    Documents(Documents),
}

fn main() -> ExitCode {
    let mut matches = Cli::command().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    // A core file would hold the weights and the private key.
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        eprintln!("warning: core files cannot be switched off: {error}");
    }
    // There is one: clap asks for it.
    let (_, matches) = matches.remove_subcommand().unwrap_or_default();
    let mut logging = cli.logging.clone();
    if let (None, Command::Serve(args)) = (logging.log_format, &cli.command) {
        logging.log_format = commands::serve::log_format(args, &matches);
    }
    zklora_cli::run(&logging, || match cli.command {
        Command::Init(args) => commands::init::run(&args).map(done),
        Command::Deliver(args) => commands::deliver::run(&args).map(done),
        Command::Plan(args) => commands::plan::run(&args).map(done),
        Command::Exposure(args) => commands::exposure::run(&args).map(done),
        Command::Status(args) => commands::status::run(&args, &matches),
        Command::Documents(args) => {
            Ok(args.write::<Cli>(&commands::MANUAL, &mut std::io::stdout()).map(done)?)
        }
        Command::Prove(args) => commands::prove::run(&args),
        Command::Serve(args) => commands::serve::run(&args, &matches),
    })
}

fn done((): ()) -> ExitCode {
    ExitCode::SUCCESS
}
