//! The command `zklora-verifier`.

use std::collections::HashSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{ArgGroup, Args, Parser, Subcommand};
use zklora_circuit::CircuitId;
use zklora_cli::{Documents, Escaped, Logging, Manual, NOT_PINNED, Output, fail, say_error, say_panics};
use zklora_proto::{Document, counted};
use zklora_verdict::{
    BundleReport, DEFAULT_MIN_SECURITY, DisclosureReport, Kind, Pins, Policy, Refusal, Report, Standing,
    TextStyle, Verifier, circuits_of,
};

use crate::explain::{ExplainArgs, explain};
use crate::find::bundles;
use crate::html::{HtmlArgs, HtmlError, HtmlOutput};
use crate::keys::{KeyCache, Origin};
use crate::parts::{ExtractArgs, ExtractError, InspectArgs, extract, inspect};
use crate::policy::{PinArgs, read_policy};
use crate::sandbox;
use crate::slow::Slow;

/// Verifies ZKLoRA .pf bundles, offline.
#[derive(Debug, Parser)]
#[command(name = "zklora-verifier", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,

    /// How to log.
    #[command(flatten)]
    pub logging: Logging,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Says of every bundle whether it is valid, and what that means
    #[command(after_help = EXIT_CODES)]
    Verify(VerifyArgs),
    /// Says whether a call that is shown without its bundle is one that both parties signed for
    #[command(after_help = DISCLOSURE_HELP)]
    Disclosure(DisclosureArgs),
    /// Says what proofs are worth: every error term, with its source
    #[command(
        after_help = "Exit codes: 0 explained, 1 the bundle is not valid, 2 wrong usage, or a file that cannot be read."
    )]
    Explain(ExplainArgs),

    /// Lists what is in a bundle: modules, plan, parts and their sizes. Verifies neither transcript nor proofs
    #[command(
        after_help = "Exit codes: 0 listed, 1 the bundle is not valid, 2 wrong usage, or a path that cannot be read."
    )]
    Inspect(InspectArgs),
    /// Writes one part of a bundle, such as its receipt, as the bytes that are in the file
    #[command(after_help = EXTRACT_HELP)]
    Extract(ExtractArgs),

    /// Builds the circuits that bundles need and keeps them, so that verifying these and others like them is quick
    #[command(after_help = KEYS_HELP)]
    Keys(KeysArgs),

    #[command(flatten)]
    #[allow(missing_docs, reason = "documented where it is made")]
    Documents(Documents),
}

/// Arguments of `keys`.
#[derive(Debug, Args)]
pub struct KeysArgs {
    /// Bundles, or folders of bundles
    #[arg(value_name = "FILE|DIR", required = true)]
    pub paths: Vec<PathBuf>,
}

/// Arguments of `disclosure`.
#[derive(Debug, Args)]
pub struct DisclosureArgs {
    /// The disclosure
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// What it must agree with
    #[command(flatten)]
    pub pins: PinArgs,

    /// Print one JSON document on stdout instead of text
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `verify`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("bundles").required(true).multiple(true).args(["paths", "proof_dirs"])))]
pub struct VerifyArgs {
    /// Folder whose *.pf files are verified, in the order of their names; may be repeated
    #[arg(long = "proof-dir", value_name = "DIR")]
    pub proof_dirs: Vec<PathBuf>,

    /// Bundles, or folders of bundles
    #[arg(value_name = "FILE|DIR")]
    pub paths: Vec<PathBuf>,

    /// What every bundle must agree with
    #[command(flatten)]
    pub pins: PinArgs,

    /// TOML file with all that is asked of a bundle, in place of the options that say the same
    #[arg(long, value_name = "FILE", conflicts_with_all = ["adapter", "contributor", "base_model", "client", "redacted", "min_security"])]
    pub policy: Option<PathBuf>,

    /// Take redacted bundles of the clients given with --client, on their word that the folds in them are those of the session
    #[arg(long, requires = "client")]
    pub redacted: bool,

    /// Fewest bits of soundness on theorems alone, all errors added up, that a proof must have
    #[arg(long, value_name = "BITS", default_value_t = DEFAULT_MIN_SECURITY)]
    pub min_security: u32,

    /// Print session, client and the size and time of every proof, too
    #[arg(long, short)]
    pub verbose: bool,

    /// Print bundles that are not valid and the count alone
    #[arg(long, short, conflicts_with_all = ["verbose", "json"])]
    pub quiet: bool,

    /// Print one JSON document on stdout instead of text
    #[arg(long)]
    pub json: bool,

    /// The report as a page
    #[command(flatten)]
    pub html: HtmlArgs,

    /// Take circuits that were built before from the cache folder, and keep there those that are built now. Whoever can change what is in it
    /// can have anything accepted
    #[arg(long)]
    pub key_cache: bool,
}

/// Runs the command with the process's arguments.
pub fn main() -> ExitCode {
    // Before anything is read, and before there is another thread.
    let confined = sandbox::enter();
    let cli = match zklora_cli::parse::<Cli>() {
        Ok((cli, _)) => cli,
        Err(code) => return code,
    };
    cli.logging.init();
    if let Err(unavailable) = confined {
        tracing::info!("{unavailable}; going on without");
    }
    say_panics();
    let out = &mut Output::stdout();
    let code = match cli.command {
        Command::Verify(args) => verify(&args, out),
        Command::Explain(args) => explain(&args, out).and_then(|explained| match explained {
            Ok(()) => Ok(VALID),
            Err(refusal) => {
                let standing = if refusal.is_of_reading() { Standing::Unreadable } else { Standing::Invalid };
                writeln!(out, "{standing}: {}", Escaped(&refusal.to_string()))?;
                Ok(code_of(&refusal))
            }
        }),
        Command::Disclosure(args) => disclosure(&args, out),
        Command::Inspect(args) => inspect(&args, out).map(|read| match read {
            Ok(()) => VALID,
            Err(refusal) => refused(&args.file, &refusal),
        }),
        Command::Extract(args) => match extract(&args, out) {
            Ok(()) => Ok(VALID),
            Err(ExtractError::Output(error)) => Err(error),
            Err(ExtractError::Bundle(refusal)) => Ok(refused(&args.file, &refusal)),
            Err(error) => {
                say_error(error);
                Ok(UNUSABLE)
            }
        },
        Command::Keys(args) => keys(&args, out),
        Command::Documents(args) => args.write::<Cli>(&MANUAL, out).map(|()| VALID),
    };
    match code.and_then(|code| out.flush().map(|()| code)) {
        Ok(code) => ExitCode::from(code),
        Err(error) => fail(&error.into(), UNUSABLE),
    }
}

/// Verifies all bundles that `args` name, writes the outcome to `out` and returns the exit code. Fails only if `out` does.
pub fn verify(args: &VerifyArgs, out: &mut Output) -> io::Result<u8> {
    let started = Instant::now();
    let policy = match args.policy.as_deref().map(read_policy) {
        None => Policy {
            pins: Pins { redacted: args.redacted, ..Pins::from(&args.pins) },
            min_security: args.min_security,
        },
        Some(Ok(policy)) => policy,
        Some(Err(error)) => {
            say_error(error);
            return Ok(UNUSABLE);
        }
    };
    let page = match HtmlOutput::new(&args.html, args.json) {
        Ok(page) => page,
        Err(error) => {
            say_error(error);
            return Ok(UNUSABLE);
        }
    };
    let text = !args.json && !page.as_ref().is_some_and(HtmlOutput::is_stdout);
    let mut verifier = Verifier::new(policy.pins)
        .with_min_security(policy.min_security)
        .announcing(|work| Slow::after(Duration::from_secs(1), move || tracing::info!("{}", Escaped(&work))));
    if let Some(keys) = KeyCache::of_user().filter(|_| args.key_cache) {
        verifier = verifier.with_circuits(move |security, shapes| Ok(keys.get(security, shapes)?.0));
    }
    let style = TextStyle { verbose: args.verbose, coloured: out.has_colours() };
    let mut report = Report::default();
    for place in args.proof_dirs.iter().chain(&args.paths) {
        let found = bundles(place).unwrap_or_else(|error| {
            let problem = Escaped(&error.to_string()).to_string();
            say_error(&problem);
            report.problems.push(problem);
            Vec::new()
        });
        for path in found {
            tracing::debug!("checking {}", Escaped(&path.to_string_lossy()));
            let bundle = BundleReport::new(&path, verifier.pins(), &verifier.check_file(&path));
            let bundle = report.add(bundle);
            if text && !args.quiet {
                bundle.write_text(out, style)?;
                out.flush()?;
            }
        }
    }

    report.conclude(started.elapsed());
    let (refused, unreadable) = (report.count(Standing::Refused), report.count(Standing::Unreadable));
    let (invalid, loose) = (report.count(Standing::Invalid), report.count(Standing::NotPinned));
    let code = match refused + invalid {
        0 if !report.valid => UNUSABLE,
        0 if !report.pinned && !args.pins.unpinned => NOT_PINNED,
        0 => VALID,
        _ => INVALID,
    };
    if args.json {
        writeln!(out, "{}", report.to_pretty()?)?;
    } else if text {
        // Where there are many, they have scrolled away.
        if args.quiet || report.bundles.len() > 1 {
            write_failures(&report, out)?;
        }
        let valid = report.bundles.iter().filter(|bundle| bundle.valid).count();
        let loose = if loose > 0 { format!(" (of which {loose} NOT PINNED)") } else { String::new() };
        let others = [(refused, Standing::Refused), (unreadable, Standing::Unreadable)];
        let others = others.into_iter().filter(|(count, _)| *count > 0);
        let others: String = others.map(|(count, standing)| format!(", {count} {standing}")).collect();
        writeln!(out, "bundles: {valid} valid{loose}{others}, {invalid} INVALID")?;
        if code == NOT_PINNED {
            writeln!(out, "{WHAT_TO_PIN}")?;
        }
        let again = report.bundles.iter().filter(|bundle| bundle.valid && bundle.same_session_as.is_some());
        match again.count() {
            0 => {}
            again => writeln!(
                out,
                "sessions: {}, since {again} of the bundles {} of a session that another is of, too",
                valid - again,
                if again == 1 { "is" } else { "are" }
            )?,
        }
        writeln!(
            out,
            "Done verifying {}. Total time: {:.2} s",
            counted(report.proofs, "proof"),
            report.seconds
        )?;
    }
    out.flush()?;
    match page.map(|page| page.write(&report, out)) {
        None | Some(Ok(())) => Ok(code),
        Some(Err(HtmlError::Output(error))) => Err(error),
        Some(Err(error)) => {
            say_error(error);
            Ok(UNUSABLE)
        }
    }
}

/// Names the bundles that are not valid once more, and why.
fn write_failures(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    for bundle in report.bundles.iter().filter(|bundle| !bundle.valid) {
        // One that is not valid has an error.
        let why = bundle.error.as_ref().map_or("", |error| &error.what);
        writeln!(out, "{}: {}: {why}", Escaped(&bundle.path), bundle.verdict())?;
    }
    Ok(())
}

/// Checks the disclosure that `args` name, writes the outcome to `out` and returns the exit code. Fails only if `out` does.
pub fn disclosure(args: &DisclosureArgs, out: &mut Output) -> io::Result<u8> {
    let report = DisclosureReport::new(&args.file, &Pins::from(&args.pins));
    if args.json {
        writeln!(out, "{}", report.to_pretty()?)?;
    } else {
        let coloured = out.has_colours();
        report.write_text(out, coloured)?;
    }
    out.flush()?;
    Ok(match &report.error {
        None if report.pinned || args.pins.unpinned => VALID,
        None => NOT_PINNED,
        Some(error) if error.kind == Kind::File => UNUSABLE,
        Some(_) => INVALID,
    })
}

/// Builds and keeps the circuits of all bundles that `args` name, says of each where it came from, and returns the exit
/// code. Fails only if `out` does.
pub fn keys(args: &KeysArgs, out: &mut dyn Write) -> io::Result<u8> {
    let Some(cache) = KeyCache::of_user() else {
        say_error("no folder for keys, expected XDG_CACHE_HOME or HOME as an absolute path: set one");
        return Ok(UNUSABLE);
    };
    let mut code = VALID;
    let mut failed = |exit: u8, what: &str| {
        say_error(what);
        code = code.max(exit);
    };
    let mut seen = HashSet::new();
    for place in &args.paths {
        let found = bundles(place).unwrap_or_else(|error| {
            failed(UNUSABLE, &error.to_string());
            Vec::new()
        });
        for path in found {
            let circuits = circuits_of(&path).unwrap_or_else(|refusal| {
                failed(code_of(&refusal), &format!("{}: {refusal}", path.display()));
                Vec::new()
            });
            for (security, shapes) in circuits {
                let id = CircuitId::new(security, &shapes);
                if !seen.insert(id.clone()) {
                    continue;
                }
                let started = Instant::now();
                // Its size has been checked, so that it can be built.
                let Ok((verifier, origin)) = cache.get(security, &shapes) else { continue };
                let word = match origin {
                    Origin::Kept => "was there already",
                    Origin::Built => "built",
                    Origin::NotKept => "NOT KEPT",
                };
                writeln!(
                    out,
                    "{}: {:?}, 2^{} rows: {word} ({:.3} s)",
                    hex::encode(id.as_bytes()),
                    security.name(),
                    verifier.degree_bits(),
                    started.elapsed().as_secs_f64()
                )?;
                if origin == Origin::NotKept {
                    failed(UNUSABLE, "a key was built and could not be kept");
                }
            }
        }
    }
    writeln!(out, "{} in {}", counted(seen.len(), "key"), Escaped(&cache.folder().to_string_lossy()))?;
    out.flush()?;
    Ok(code)
}

/// Says why a bundle cannot be read, and gives the exit code.
fn refused(path: &Path, refusal: &Refusal) -> u8 {
    say_error(format_args!("{}: {refusal}", Escaped(&path.to_string_lossy())));
    code_of(refusal)
}

fn code_of(refusal: &Refusal) -> u8 {
    if refusal.is_of_reading() { UNUSABLE } else { INVALID }
}

/// Every bundle is valid, and there was at least one.
const VALID: u8 = 0;
/// At least one bundle is not valid.
const INVALID: u8 = 1;
/// The arguments are wrong or lead to no bundle; also what clap exits with.
const UNUSABLE: u8 = 2;

/// Beside a verdict that nothing was pinned for.
const WHAT_TO_PIN: &str = "Not pinned: give the adapter id that you were promised with --adapter, or --unpinned if any adapter will do (exit code 3).";

/// What the manual page says beside the help.
const MANUAL: Manual = Manual {
    environment: &[&[(
        "XDG_CACHE_HOME",
        "Where circuits are kept if that is asked for; ~/.cache by default.",
    )]],
    files: &[(
        "~/.cache/zklora/keys",
        "Circuits that `keys` and `verify --key-cache` have built. Whoever can change them can make `verify --key-cache` accept anything.",
    )],
    see_also: &["zklora-base-user(1)", "zklora-contributor(1)"],
};

const KEYS_HELP: &str = "\
The keys are in zklora/keys in $XDG_CACHE_HOME or ~/.cache, one file for each circuit. Whoever can change them can make this
verifier accept anything. `verify --key-cache` uses them and adds to them; without it, `verify` looks at none.

Exit codes:
  0  every key is there
  1  a bundle is not valid
  2  wrong usage, a path that leads to no bundle, a file that cannot be read, or a key that could not be kept";

const EXTRACT_HELP: &str = "\
Example: zklora-verifier extract SESSION.pf receipt --out receipt.json

The transcript has all activations and deltas of the session: who has it can read the prompts.

Exit codes:
  0  written
  1  the bundle is not valid, or the part was changed
  2  wrong usage, no such part, or a path that cannot be read or written";

const DISCLOSURE_HELP: &str = "\
A disclosure has one module's activations and deltas in one call, and the path from them to the receipt that both parties signed.
It shows that they were sent and answered. The proof that the deltas are the adapter's is in the session's bundle.

Example: zklora-verifier disclosure SESSION.0.MODULE.disclosure.json --adapter ID --contributor KEY

Exit codes:
  0  the disclosure is valid, and of the pinned adapter (or of any, with --unpinned)
  1  the disclosure is not valid
  2  wrong usage, or a path that cannot be read
  3  the disclosure is valid, but no adapter was pinned

Without --adapter a disclosure is only held against itself: anyone can make one.";

const EXIT_CODES: &str = "\
Exit codes:
  0  at least one bundle was found, and every one is valid and of the pinned adapter (or of any, with --unpinned)
  1  a bundle is not valid
  2  wrong usage, a folder without bundles, or a path that cannot be read (and no bundle that is not valid); with --html, the
     page cannot be written, or an evaluation cannot be shown on it; and if the verdict could not be written
  3  every bundle is valid, but no adapter was pinned, by --adapter or by the adapters of a policy

Without --adapter a bundle is only held against itself: it may be a perfect proof about another adapter.";
