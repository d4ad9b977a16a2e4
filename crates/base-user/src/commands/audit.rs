//! `zklora-base-user audit`.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use clap::Args;
use tracing::info;
use zklora_base_user::error::ModelError;
use zklora_base_user::evaluation::{difference, mean};
use zklora_base_user::remote::CombineMode;
use zklora_base_user::replay::{NotReplayed, Recording, ReplayError, ReplayHook, Replayed, TOLERANCE};
use zklora_base_user::reported::{Report, Truth};
use zklora_cli::{Escaped, NOT_PINNED, WRONG_USAGE, fail};
use zklora_proto::bundle::Bundle;
use zklora_proto::{AdapterId, Document, PublicKey, SignedReceipt};
use zklora_verdict::{
    Agreement, AuditError, AuditReport, AuditedBundle, Kind, Pins, Place, SessionReport, Standing, Verifier,
    write_not_shown,
};

use super::contributors::combine_modes;
use super::eval::shown;
use super::inputs::{DatasetArgs, Evaluated, Task, read_text};
use super::{Loaded, ModelArgs, SecurityArgs};

/// Shows that sessions were of this base model on this text: verifies their bundles, and runs the base model once more with the
/// deltas in them.
///
/// Every activation that was sent has to be the one that the base model gives here, within 1 unit: a unit is 1/32767 of the largest
/// entry of its row, and two machines differ by a small part of one before they round. The losses that are printed are computed
/// here. Everything else must be as in the run: the text or dataset and its options, --combine-mode, --lora, and all bundles of the run.
#[derive(Args)]
#[command(after_help = HELP)]
pub struct Audit {
    /// The bundles of one run, one of each contributor, in their order.
    #[arg(value_name = "FILE", required = true)]
    bundles: Vec<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    input: Input,
    #[command(flatten)]
    reading: DatasetArgs,
    /// What became of a projection's own output: once for all bundles, or one for each, in their order.
    #[arg(long, value_enum, value_name = "MODE", default_value = "add-delta")]
    combine_mode: Vec<CombineMode>,
    /// Adapter id that every bundle must be about, known from elsewhere; repeated, one of them.
    #[arg(long, value_name = "ID")]
    adapter: Vec<AdapterId>,
    /// Public key of the contributor that every bundle must come from, known from elsewhere; repeated, one of them.
    #[arg(long, value_name = "KEY")]
    contributor: Vec<PublicKey>,
    /// Public key of the base-model user whose sessions count; repeated, one of them.
    #[arg(long, value_name = "KEY")]
    client: Vec<PublicKey>,
    /// Exit with 0 for what holds even if no adapter is pinned.
    #[arg(long)]
    unpinned: bool,
    #[command(flatten)]
    security: SecurityArgs,
    /// What `loss --json` or `eval --json` printed, which has to say what the replay gives: losses within 1e-4, tokens, sessions.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Input {
    /// The text of a run of `loss`.
    #[arg(long)]
    text: Option<String>,
    /// A file with the text of a run of `loss`, or - for the standard input.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// The dataset of a run of `eval`.
    #[arg(long, value_name = "FILE")]
    dataset: Option<PathBuf>,
}

const HELP: &str = "\
Example: zklora-base-user audit SESSION.pf --base-model fixtures/gpt2-tiny --text \"Un texto\" --adapter ID --contributor KEY --report loss.json

Exit codes:
  0  it holds: every bundle is valid, of a pinned adapter (or of any, with --unpinned) and replayed, and the report agrees
  1  it does not hold
  2  wrong usage, or something that it takes cannot be read
  3  it holds, but no adapter was pinned

Without --adapter it is the bundles' own word which adapters they are about.";

pub fn run(args: &Audit, out: &mut dyn Write) -> ExitCode {
    let tell = |report: AuditReport| -> anyhow::Result<ExitCode> {
        match args.json {
            true => writeln!(out, "{}", report.to_line()?)?,
            false => print(&report, args, out)?,
        }
        out.flush()?;
        Ok(match report.verdict {
            Standing::Valid => ExitCode::SUCCESS,
            Standing::NotPinned if args.unpinned => ExitCode::SUCCESS,
            Standing::NotPinned => NOT_PINNED.into(),
            Standing::Refused | Standing::Unreadable | Standing::Invalid => ExitCode::FAILURE,
        })
    };
    // As for wrong usage: an audit that was not made has not failed.
    audit(args).and_then(tell).unwrap_or_else(|error| fail(&error, WRONG_USAGE))
}

/// Fails only if something that it takes cannot be had.
fn audit(args: &Audit) -> anyhow::Result<AuditReport> {
    ensure!(
        args.input.dataset.is_some() || !args.reading.for_dataset_only(),
        "--text-field, --completion-field and --max-tokens are for a --dataset"
    );
    let modes = combine_modes(&args.combine_mode, args.bundles.len(), "bundles")?;
    let report =
        args.report.as_deref().map(|path| Report::read(path).with_context(|| path.display().to_string()));
    let report = report.transpose()?;
    let examples = args.input.dataset.as_deref().map(|path| args.reading.read(path)).transpose()?;
    let text = match examples {
        None => read_text(args.input.text.as_deref(), args.input.file.as_deref())?,
        Some(_) => String::new(),
    };
    let mut base = args.model.load()?;
    let task = match (&args.input.dataset, examples) {
        (Some(path), Some(examples)) => args.reading.cut(path, examples, &base)?,
        _ => Task::of_text(base.tokenizer.encode(&text)?),
    };

    let (bundles, receipts, recordings) = verify(args, &modes, &base)?;
    let report_of =
        AuditReport::new(base.digest, base.tokenizer.digest()?, TOLERANCE.into(), task.windows.rows() as u64);
    let mut audited = AuditReport { bundles, ..report_of };
    if audited.bundles.iter().all(|bundle| bundle.error.is_none()) {
        info!(bundles = audited.bundles.len(), tokens = audited.tokens, "verified; replaying");
        let without = task.evaluate("base model", &base.model)?;
        let hook = Arc::new(ReplayHook::new(recordings.into_iter().zip(modes)));
        let with = match base.adapt(Some(hook.clone())) {
            Ok(_) => task.evaluate("replay", &base.model),
            Err(error) => Err(error.downcast::<ModelError>()?),
        };
        match with {
            Err(error) => failed(&mut audited, error, &task, args)?,
            Ok(with) => match hook.finish() {
                Err(error) => not_replayed(&mut audited, &error, &task, args),
                Ok(replayed) => note_losses(&mut audited, &replayed, &without, &with),
            },
        }
    }
    if let (Some(report), Some(truth)) = (report, truth(&audited, &receipts, args)) {
        let error =
            report.check(&truth).err().map(|disagreement| Escaped(&disagreement.to_string()).to_string());
        audited.report = Some(Agreement { agrees: error.is_none(), error });
    }
    audited.conclude();
    Ok(audited)
}

/// Notes what a replay gave that came to its end.
fn note_losses(audited: &mut AuditReport, replayed: &[Replayed], without: &Evaluated, with: &Evaluated) {
    for (bundle, replayed) in audited.bundles.iter_mut().zip(replayed) {
        bundle.replayed = true;
        bundle.activations = Some(replayed.entries);
        bundle.differing_by_one = Some(replayed.differing);
        bundle.largest_difference = Some(replayed.largest.into());
        bundle.blinding_rows = Some(replayed.blinding_rows as u64);
    }
    audited.texts = Some(without.texts() as u64);
    audited.predicted = Some(without.predicted() as u64);
    audited.base_loss = Some(mean(&without.totals));
    audited.adapter_loss = Some(mean(&with.totals));
    audited.difference = Some(difference(&without.totals, &with.totals));
}

/// What a report has to say, if everything was replayed.
fn truth(audited: &AuditReport, receipts: &[SignedReceipt], args: &Audit) -> Option<Truth> {
    Some(Truth {
        base: audited.base_loss?,
        adapter: audited.adapter_loss?,
        difference: audited.difference?,
        tokens: audited.tokens,
        tokenizer: audited.tokenizer,
        dataset: match args.input.dataset {
            Some(_) => Some([audited.texts?, audited.predicted?]),
            None => None,
        },
        sessions: receipts.iter().map(|receipt| SessionReport::new(receipt.receipt())).collect(),
    })
}

/// Verifies all bundles, and opens those that hold to be replayed. Gives the receipts of these, too.
fn verify(
    args: &Audit,
    modes: &[CombineMode],
    base: &Loaded,
) -> anyhow::Result<(Vec<AuditedBundle>, Vec<SignedReceipt>, Vec<Recording>)> {
    let verifier = Verifier::new(Pins {
        adapters: args.adapter.clone(),
        contributors: args.contributor.clone(),
        base_models: vec![base.digest],
        clients: args.client.clone(),
        ..Pins::default()
    })
    .with_min_security(args.security.min_security);
    let (mut bundles, mut receipts) = (Vec::new(), Vec::new());
    let mut recordings: Vec<Recording> = Vec::new();
    for (path, &mode) in args.bundles.iter().zip(modes) {
        let verdict = verifier.check_file(path);
        let receipt = verdict.declared.map(|declared| declared.session.receipt().clone());
        let mut audited = AuditedBundle::new(path, mode_name(mode));
        if let Some(receipt) = &receipt {
            audited.name_session(receipt.receipt(), verifier.pins());
        }
        match (verdict.outcome, receipt) {
            (Err(refusal), receipt) => {
                ensure!(!refusal.is_of_reading(), "{}: {refusal}", path.display());
                let found = receipt.as_ref().map(|receipt| receipt.receipt().base_model);
                let what = match found.filter(|_| refusal.kind() == Kind::BaseModelPin) {
                    Some(found) => format!(
                        "it is of a session with another base model: both parties signed for the digest {found}, {} has {}",
                        args.model.base_model, base.digest
                    ),
                    None if refusal.kind() == Kind::Redacted => {
                        "this bundle is redacted: without activations nothing can be replayed; ask for the full one".into()
                    }
                    None => refusal.to_string(),
                };
                audited.error = Some(AuditError::new(refusal.kind(), &what));
            }
            // What holds has a receipt.
            (Ok(_), None) => bail!("{}: it holds, and has no receipt", path.display()),
            (Ok(_), Some(receipt)) => {
                ensure!(!receipts.contains(&receipt), "{}: its session is given twice", path.display());
                // Every call is held against this receipt once more as it is replayed.
                let bundle = Bundle::open(path).with_context(|| path.display().to_string())?;
                let same = receipt == *bundle.receipt();
                ensure!(same, "{}: it was changed while it was verified", path.display());
                recordings.push(Recording::new(bundle).with_context(|| path.display().to_string())?);
                receipts.push(receipt);
            }
        }
        bundles.push(audited);
    }
    Ok((bundles, receipts, recordings))
}

/// Notes why the replay stopped, unless it is this machine's fault.
fn failed(audited: &mut AuditReport, error: ModelError, task: &Task, args: &Audit) -> anyhow::Result<()> {
    let ModelError::Hook { error: cause, .. } = &error else {
        // A manifest may name what this model does not have.
        if matches!(error, ModelError::UnknownProjection { .. }) {
            all_failed(audited, Kind::Manifest, &error.to_string());
            return Ok(());
        }
        return Err(error.into());
    };
    match cause.downcast_ref::<NotReplayed>() {
        Some(found) => not_replayed(audited, found, task, args),
        // Shapes that do not fit the model's.
        None => all_failed(audited, Kind::Manifest, &error.to_string()),
    }
    Ok(())
}

fn all_failed(audited: &mut AuditReport, kind: Kind, what: &str) {
    for bundle in &mut audited.bundles {
        bundle.error = Some(AuditError::new(kind, what));
    }
}

fn not_replayed(
    audited: &mut AuditReport,
    NotReplayed { session, error }: &NotReplayed,
    task: &Task,
    args: &Audit,
) {
    let (mut what, mut place) = (error.to_string(), None);
    if let ReplayError::Activation(differs) = error {
        let (example, token) = task.windows.find(differs.token).unwrap_or_default();
        let line = args.input.dataset.as_ref().map(|_| task.examples[example].line as u64);
        what += &match line {
            Some(line) => {
                format!("; the row is that of token {token} of the text in line {line} of the dataset")
            }
            None => format!("; the row is that of token {token} of the text"),
        };
        place = Some(Place {
            call: differs.call,
            modules: Escaped(&differs.modules).to_string(),
            row: differs.row as u64,
            column: differs.column as u64,
            expected: differs.expected,
            found: differs.found,
            line,
            token: token as u64,
        });
    }
    audited.bundles[*session].error = Some(AuditError { place, ..AuditError::new(error.kind(), &what) });
}

/// Says it to people.
fn print(audited: &AuditReport, args: &Audit, out: &mut dyn Write) -> io::Result<()> {
    audited.bundles.iter().try_for_each(|bundle| print_bundle(bundle, out))?;
    let (Some(base), Some(adapter), Some(difference)) =
        (audited.base_loss, audited.adapter_loss, audited.difference)
    else {
        return writeln!(out, "means: Nothing about a loss can be relied on.");
    };
    writeln!(out, "tokenizer                {}", audited.tokenizer)?;
    let predicted = audited.predicted.unwrap_or_default();
    writeln!(out, "tokens                   {}, of which {predicted} predicted", audited.tokens)?;
    let several = audited.texts.is_some_and(|texts| texts > 1);
    let [base, adapter, difference] = [base, adapter, difference]
        .map(|loss| if several { shown(loss, 4) } else { format!("{:.4}", loss.value) });
    writeln!(out, "loss of the base model   {base}")?;
    writeln!(out, "loss with the adapter    {adapter}")?;
    writeln!(out, "difference               {difference}")?;
    match &audited.report {
        None => {}
        Some(Agreement { error: None, .. }) => writeln!(out, "report                   AGREES")?,
        Some(Agreement { error: Some(wrong), .. }) => {
            writeln!(out, "report                   DOES NOT AGREE: {wrong}")?
        }
    }
    let local =
        if args.model.lora.is_some() { ", with the adapter of --lora added to its weights," } else { "" };
    writeln!(
        out,
        "means: These are the losses of the base model {}{local} on this text, without and with the adapters above. What was sent \
         is what that model computes, within {TOLERANCE} unit of int16, and every answer was computed with those adapters.{}",
        audited.base_model,
        if audited.pinned { String::new() } else { format!(" {}", zklora_verdict::NOT_PINNED) }
    )?;
    write_not_shown(out, "", &NOT_SHOWN)
}

/// What no audit shows.
const NOT_SHOWN: [&str; 3] = [
    "that this text speaks for any other, or was not chosen to please",
    "that the adapter is good",
    "that an adapter that is delivered is this one (zklora-base-user accept shows that)",
];

fn print_bundle(bundle: &AuditedBundle, out: &mut dyn Write) -> io::Result<()> {
    let path = Escaped(&bundle.path);
    match &bundle.error {
        None if bundle.pinned => writeln!(out, "{path}: REPLAYED")?,
        None => writeln!(out, "{path}: REPLAYED, NOT PINNED")?,
        Some(error) => writeln!(out, "{path}: NOT REPLAYED\n  reason: {}", error.what)?,
    }
    if let (Some(session), Some(adapter), Some(contributor)) =
        (bundle.session, bundle.adapter, bundle.contributor)
    {
        writeln!(out, "  session: {session}")?;
        let word = |pinned: bool, option: &str| match pinned {
            true => "pinned: it is one that you gave".to_owned(),
            false => {
                format!("NOT PINNED: only this bundle says so; give the one that you know with --{option}")
            }
        };
        writeln!(out, "  adapter: {adapter}\n    {}", word(bundle.pins.adapter, "adapter"))?;
        writeln!(out, "  contributor: {contributor}\n    {}", word(bundle.pins.contributor, "contributor"))?;
    }
    let (Some(compared), Some(differing), Some(largest)) =
        (bundle.activations, bundle.differing_by_one, bundle.largest_difference)
    else {
        return Ok(());
    };
    writeln!(
        out,
        "  activations: {compared} compared, {differing} differ by one unit, none by more; the largest difference is {largest}"
    )?;
    if let Some(rows @ 1..) = bundle.blinding_rows {
        writeln!(
            out,
            "  {rows} random rows of each module, sent to blind a redacted bundle, are not part of the text"
        )?;
    }
    Ok(())
}

fn mode_name(mode: CombineMode) -> &'static str {
    match mode {
        CombineMode::AddDelta => "add-delta",
        CombineMode::Replace => "replace",
    }
}
