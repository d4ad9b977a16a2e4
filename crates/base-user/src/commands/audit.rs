//! `zklora-base-user audit`.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::{Value, json};
use tracing::info;
use zklora_base_user::error::ModelError;
use zklora_base_user::evaluation::{Estimate, difference, mean};
use zklora_base_user::remote::CombineMode;
use zklora_base_user::replay::{NotReplayed, Recording, ReplayError, ReplayHook, Replayed, TOLERANCE};
use zklora_base_user::reported::{Report, Truth};
use zklora_cli::{Escaped, NOT_PINNED, WRONG_USAGE, fail};
use zklora_proto::bundle::Bundle;
use zklora_proto::{AdapterId, BaseModelDigest, PublicKey, SignedReceipt};
use zklora_verdict::{Kind, Pins, Verifier, write_not_shown};

use super::eval::shown;
use super::inputs::{DatasetArgs, Task, read_text};
use super::{Loaded, ModelArgs, SecurityArgs, combine_modes, session_json};

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

/// What came of it.
struct Audited {
    base_model: BaseModelDigest,
    /// Which one cut the text into tokens.
    tokenizer: String,
    bundles: Vec<AuditedBundle>,
    tokens: usize,
    /// If everything was replayed.
    losses: Option<Losses>,
    /// If there is a report: what is wrong with it.
    report: Option<Option<String>>,
}

struct Losses {
    base: Estimate,
    adapter: Estimate,
    difference: Estimate,
    texts: usize,
    predicted: usize,
}

/// What came of one bundle.
struct AuditedBundle {
    path: PathBuf,
    mode: CombineMode,
    /// If it could be read so far.
    receipt: Option<SignedReceipt>,
    outcome: Outcome,
}

enum Outcome {
    /// The bundle is valid.
    Valid,
    /// And all its calls are those of this run.
    Replayed(Replayed),
    Failed(Failure),
}

struct Failure {
    /// In one stable word.
    kind: &'static str,
    what: String,
    /// Where activations differ.
    place: Option<Value>,
}

pub fn run(args: &Audit, out: &mut dyn Write) -> ExitCode {
    let tell = |audited: Audited| -> anyhow::Result<ExitCode> {
        match args.json {
            true => writeln!(out, "{}", audited.json(args))?,
            false => audited.print(args, out)?,
        }
        out.flush()?;
        Ok(match (audited.holds(), audited.pinned(args) || args.unpinned) {
            (true, true) => ExitCode::SUCCESS,
            (true, false) => NOT_PINNED.into(),
            (false, _) => ExitCode::FAILURE,
        })
    };
    // As for wrong usage: an audit that was not made has not failed.
    audit(args).and_then(tell).unwrap_or_else(|error| fail(&error, WRONG_USAGE))
}

/// Fails only if something that it takes cannot be had.
fn audit(args: &Audit) -> anyhow::Result<Audited> {
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

    let (bundles, recordings) = verify(args, &modes, &base)?;
    let mut audited = Audited {
        base_model: base.digest,
        tokenizer: base.tokenizer.digest()?.to_string(),
        bundles,
        tokens: task.windows.rows(),
        losses: None,
        report: None,
    };
    if audited.bundles.iter().any(|bundle| matches!(bundle.outcome, Outcome::Failed(_))) {
        return Ok(audited);
    }
    info!(bundles = audited.bundles.len(), tokens = audited.tokens, "verified; replaying");
    let without = task.evaluate("base model", &base.model)?;
    let hook = Arc::new(ReplayHook::new(recordings.into_iter().zip(modes)));
    let with = match base.adapt(Some(hook.clone())) {
        Ok(_) => task.evaluate("replay", &base.model),
        Err(error) => Err(error.downcast::<ModelError>()?),
    };
    match with {
        Err(error) => return audited.failed(error, &task, args).map(|()| audited),
        Ok(with) => match hook.finish() {
            Err(error) => audited.not_replayed(&error, &task, args),
            Ok(replayed) => {
                for (bundle, replayed) in audited.bundles.iter_mut().zip(replayed) {
                    bundle.outcome = Outcome::Replayed(replayed);
                }
                audited.losses = Some(Losses {
                    base: mean(&without.totals),
                    adapter: mean(&with.totals),
                    difference: difference(&without.totals, &with.totals),
                    texts: without.texts(),
                    predicted: without.predicted(),
                });
            }
        },
    }
    if let (Some(report), Some(losses)) = (report, &audited.losses) {
        let receipts = audited.bundles.iter().filter_map(|bundle| bundle.receipt.as_ref());
        let truth = Truth {
            base: losses.base,
            adapter: losses.adapter,
            difference: losses.difference,
            tokens: audited.tokens,
            tokenizer: audited.tokenizer.clone(),
            dataset: args.input.dataset.is_some().then_some([losses.texts, losses.predicted]),
            sessions: receipts.map(|receipt| session_json(receipt.receipt())).collect(),
        };
        audited.report = Some(report.check(&truth).err().map(|disagreement| disagreement.to_string()));
    }
    Ok(audited)
}

/// Verifies all bundles, and opens those that hold to be replayed.
fn verify(
    args: &Audit,
    modes: &[CombineMode],
    base: &Loaded,
) -> anyhow::Result<(Vec<AuditedBundle>, Vec<Recording>)> {
    let verifier = Verifier::new(Pins {
        adapters: args.adapter.clone(),
        contributors: args.contributor.clone(),
        base_models: vec![base.digest],
        clients: args.client.clone(),
        ..Pins::default()
    })
    .with_min_security(args.security.min_security);
    let (mut bundles, mut recordings): (Vec<AuditedBundle>, Vec<Recording>) = Default::default();
    for (path, &mode) in args.bundles.iter().zip(modes) {
        let verdict = verifier.check_file(path);
        let receipt = verdict.declared.map(|declared| declared.session.receipt().clone());
        let outcome = match verdict.outcome {
            Err(refusal) => {
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
                Outcome::Failed(Failure { kind: refusal.kind().name(), what, place: None })
            }
            Ok(_) => {
                let again = bundles.iter().any(|other| other.receipt == receipt);
                ensure!(!again, "{}: its session is given twice", path.display());
                // Every call is held against this receipt once more as it is replayed.
                let bundle = Bundle::open(path).with_context(|| path.display().to_string())?;
                let same = receipt.as_ref() == Some(bundle.receipt());
                ensure!(same, "{}: it was changed while it was verified", path.display());
                recordings.push(Recording::new(bundle).with_context(|| path.display().to_string())?);
                Outcome::Valid
            }
        };
        bundles.push(AuditedBundle { path: path.clone(), mode, receipt, outcome });
    }
    Ok((bundles, recordings))
}

impl Audited {
    fn holds(&self) -> bool {
        self.losses.is_some() && !matches!(self.report, Some(Some(_)))
    }

    /// Whether every bundle is of an adapter that the caller had pinned.
    fn pinned(&self, args: &Audit) -> bool {
        self.bundles.iter().all(|bundle| bundle.pinned(args))
    }

    /// Notes why the replay stopped, unless it is this machine's fault.
    fn failed(&mut self, error: ModelError, task: &Task, args: &Audit) -> anyhow::Result<()> {
        let ModelError::Hook { error: cause, .. } = &error else {
            // A manifest may name what this model does not have.
            if matches!(error, ModelError::UnknownProjection { .. }) {
                self.all_failed(Kind::Manifest.name(), &error.to_string());
                return Ok(());
            }
            return Err(error.into());
        };
        match cause.downcast_ref::<NotReplayed>() {
            Some(found) => self.not_replayed(found, task, args),
            // Shapes that do not fit the model's.
            None => self.all_failed(Kind::Manifest.name(), &error.to_string()),
        }
        Ok(())
    }

    fn all_failed(&mut self, kind: &'static str, what: &str) {
        for bundle in &mut self.bundles {
            bundle.outcome = Outcome::Failed(Failure { kind, what: what.into(), place: None });
        }
    }

    fn not_replayed(&mut self, NotReplayed { session, error }: &NotReplayed, task: &Task, args: &Audit) {
        let mut failure = Failure { kind: error.kind(), what: error.to_string(), place: None };
        if let ReplayError::Activation(differs) = error {
            let (example, token) = task.windows.find(differs.token).unwrap_or_default();
            let line = args.input.dataset.as_ref().map(|_| task.examples[example].line);
            failure.what += &match line {
                Some(line) => {
                    format!("; the row is that of token {token} of the text in line {line} of the dataset")
                }
                None => format!("; the row is that of token {token} of the text"),
            };
            failure.place = Some(json!({
                "call": differs.call, "modules": differs.modules, "row": differs.row, "column": differs.column,
                "expected": differs.expected, "found": differs.found, "line": line, "token": token,
            }));
        }
        self.bundles[*session].outcome = Outcome::Failed(failure);
    }

    fn json(&self, args: &Audit) -> Value {
        let bundle = |bundle: &AuditedBundle| {
            let mut said = json!({
                "path": bundle.path.display().to_string(),
                "replayed": false,
                "pinned": bundle.pinned(args),
                "combine_mode": mode_name(bundle.mode),
                "session": null,
                "activations": null,
                "differing_by_one": null,
                "largest_difference": null,
                "blinding_rows": null,
                "error": null,
            });
            if let Some(receipt) = &bundle.receipt {
                let session = session_json(receipt.receipt());
                said["pins"] = json!({
                    "adapter": args.adapter.contains(&receipt.receipt().adapter),
                    "contributor": args.contributor.contains(&receipt.receipt().contributor),
                    "client": args.client.contains(&receipt.receipt().client),
                });
                for (key, value) in session {
                    said[key] = value;
                }
            }
            match &bundle.outcome {
                Outcome::Replayed(replayed) => {
                    said["replayed"] = true.into();
                    said["activations"] = replayed.entries.into();
                    said["differing_by_one"] = replayed.differing.into();
                    said["largest_difference"] = replayed.largest.into();
                    said["blinding_rows"] = replayed.blinding_rows.into();
                }
                Outcome::Failed(Failure { kind, what, place }) => {
                    let what = Escaped(what).to_string();
                    said["error"] = json!({ "kind": kind, "what": what, "place": place });
                }
                Outcome::Valid => {
                    said["error"] = json!({ "kind": "not-finished", "what": STOPPED, "place": null });
                }
            }
            said
        };
        let losses = self.losses.as_ref();
        json!({
            "format": "zklora-audit/2",
            "holds": self.holds(),
            "pinned": self.pinned(args),
            "base_model": self.base_model,
            "tokenizer": self.tokenizer,
            "tolerance": TOLERANCE,
            "bundles": self.bundles.iter().map(bundle).collect::<Value>(),
            "tokens": self.tokens,
            "texts": losses.map(|losses| losses.texts),
            "predicted": losses.map(|losses| losses.predicted),
            "base_loss": losses.map(|losses| losses.base),
            "adapter_loss": losses.map(|losses| losses.adapter),
            "difference": losses.map(|losses| losses.difference),
            "report": self.report.as_ref().map(|wrong| {
                json!({ "agrees": wrong.is_none(), "error": wrong.as_ref().map(|wrong| Escaped(wrong).to_string()) })
            }),
        })
    }

    fn print(&self, args: &Audit, out: &mut dyn Write) -> io::Result<()> {
        self.bundles.iter().try_for_each(|bundle| bundle.print(args, out))?;
        let Some(losses) = &self.losses else {
            return writeln!(out, "means: Nothing about a loss can be relied on.");
        };
        writeln!(out, "tokenizer                {}", self.tokenizer)?;
        writeln!(out, "tokens                   {}, of which {} predicted", self.tokens, losses.predicted)?;
        let [base, adapter, difference] = [losses.base, losses.adapter, losses.difference]
            .map(|loss| if losses.texts > 1 { shown(loss, 4) } else { format!("{:.4}", loss.value) });
        writeln!(out, "loss of the base model   {base}")?;
        writeln!(out, "loss with the adapter    {adapter}")?;
        writeln!(out, "difference               {difference}")?;
        match &self.report {
            None => {}
            Some(None) => writeln!(out, "report                   AGREES")?,
            Some(Some(wrong)) => {
                writeln!(out, "report                   DOES NOT AGREE: {}", Escaped(wrong))?
            }
        }
        let local =
            if args.model.lora.is_some() { ", with the adapter of --lora added to its weights," } else { "" };
        writeln!(
            out,
            "means: These are the losses of the base model {}{local} on this text, without and with the adapters above. What was sent \
             is what that model computes, within {TOLERANCE} unit of int16, and every answer was computed with those adapters.{}",
            self.base_model,
            if self.pinned(args) { String::new() } else { format!(" {}", zklora_verdict::NOT_PINNED) }
        )?;
        write_not_shown(out, "", &NOT_SHOWN)
    }
}

/// What no audit shows.
const NOT_SHOWN: [&str; 3] = [
    "that this text speaks for any other, or was not chosen to please",
    "that the adapter is good",
    "that an adapter that is delivered is this one (zklora-base-user accept shows that)",
];

impl AuditedBundle {
    fn pinned(&self, args: &Audit) -> bool {
        self.receipt.as_ref().is_some_and(|receipt| args.adapter.contains(&receipt.receipt().adapter))
    }

    fn print(&self, args: &Audit, out: &mut dyn Write) -> io::Result<()> {
        let path = self.path.to_string_lossy();
        let path = Escaped(&path);
        match &self.outcome {
            Outcome::Replayed(_) if !self.pinned(args) => writeln!(out, "{path}: REPLAYED, NOT PINNED")?,
            Outcome::Replayed(_) => writeln!(out, "{path}: REPLAYED")?,
            Outcome::Valid => writeln!(out, "{path}: NOT REPLAYED\n  reason: {STOPPED}")?,
            Outcome::Failed(Failure { what, .. }) => {
                writeln!(out, "{path}: NOT REPLAYED\n  reason: {}", Escaped(what))?
            }
        }
        if let Some(receipt) = &self.receipt {
            let receipt = receipt.receipt();
            writeln!(out, "  session: {}", receipt.session)?;
            let word = |pinned: bool, option: &str| match pinned {
                true => "pinned: it is one that you gave".to_owned(),
                false => format!(
                    "NOT PINNED: only this bundle says so; give the one that you know with --{option}"
                ),
            };
            writeln!(
                out,
                "  adapter: {}\n    {}",
                receipt.adapter,
                word(args.adapter.contains(&receipt.adapter), "adapter")
            )?;
            let contributor = receipt.contributor;
            writeln!(
                out,
                "  contributor: {contributor}\n    {}",
                word(args.contributor.contains(&contributor), "contributor")
            )?;
        }
        if let Outcome::Replayed(Replayed { entries, differing, largest, blinding_rows }) = self.outcome {
            writeln!(
                out,
                "  activations: {entries} compared, {differing} differ by one unit, none by more; the largest difference is {largest}"
            )?;
            if blinding_rows > 0 {
                writeln!(
                    out,
                    "  {blinding_rows} random rows of each module, sent to blind a redacted bundle, are not part of the text"
                )?;
            }
        }
        Ok(())
    }
}

/// Of a valid bundle, if the replay stopped at another.
const STOPPED: &str = "the replay did not come to its end";

fn mode_name(mode: CombineMode) -> &'static str {
    match mode {
        CombineMode::AddDelta => "add-delta",
        CombineMode::Replace => "replace",
    }
}
