//! `zklora-base-user exact`, and `loss --exact`: losses in integers.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::{Args, Subcommand, ValueEnum};
use schemars::JsonSchema;
use serde::Serialize;
use tracing::info;
use zklora_base_user::evaluation::Window;
use zklora_base_user::models::Model;
use zklora_base_user::tokenizer::Tokenizer;
use zklora_delivery::{Integers, committed_integers, delivered_manifest};
use zklora_exact::{ExactAdapter, ExactModel, Losses, Module, Plan, Profile};
use zklora_hf::{BaseModel, LoraAdapter};
use zklora_hub::{Options, Source};
use zklora_proto::{AdapterId, BaseModelDigest, Document, ExactModelDigest, counted};
use zklora_verdict::{ExactLoss, ExactLossReport};

use super::inputs::{DatasetArgs, Task};
use super::{ModelArgs, progress};

/// Works with a base model in exact integers, whose losses are the same to the last digit everywhere.
#[derive(Args)]
pub struct Exact {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    Calibrate(Calibrate),
    Fidelity(Fidelity),
}

/// Makes the plan of a base model's exact model from a public text: anyone gets the same plan from the same text.
#[derive(Args)]
#[command(
    after_help = "Example: zklora-base-user exact calibrate --base-model fixtures/gpt2-tiny --dataset fixtures/text/en-heldout.txt --out plan.json"
)]
struct Calibrate {
    /// The base model: a folder in Hugging Face layout, or a name on its hub.
    #[arg(long, value_name = "DIR|NAME")]
    base_model: Source,
    /// The text: .jsonl, or text with a text on each line.
    #[arg(long, value_name = "FILE")]
    dataset: PathBuf,
    #[command(flatten)]
    reading: DatasetArgs,
    /// The formats of the numbers.
    #[arg(long, value_enum, default_value = "faithful")]
    profile: Formats,
    /// The plan, which must not be there yet.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// Formats of an exact model.
#[derive(Clone, Copy, ValueEnum)]
enum Formats {
    /// Texts of up to 512 tokens and ranks of up to 16
    Faithful,
    /// Texts of up to 2,041 tokens and larger ranks; queries and keys are rounded
    Long,
}

/// Compares the losses of an exact model with those of libtorch's float32, text by text, without and with an adapter.
#[derive(Args)]
#[command(
    after_help = "Example: zklora-base-user exact fidelity --base-model fixtures/gpt2-tiny --exact plan.json --dataset fixtures/text/es-heldout.txt --lora fixtures/lora-es"
)]
struct Fidelity {
    #[command(flatten)]
    model: ModelArgs,
    /// The plan that `exact calibrate` made.
    #[arg(long, value_name = "PLAN")]
    exact: PathBuf,
    /// The texts: .jsonl, or text with a text on each line.
    #[arg(long, value_name = "FILE")]
    dataset: PathBuf,
    #[command(flatten)]
    reading: DatasetArgs,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// The plan that was made.
#[derive(Serialize, JsonSchema)]
pub struct CalibrateReport {
    /// The file.
    plan: String,
    /// The exact model's digest, which a request names.
    exact_model: ExactModelDigest,
    /// The base model.
    base_model: BaseModelDigest,
    /// The formats.
    profile: &'static str,
    /// Fraction bits of the residual stream.
    residual_bits: u32,
    /// Channels that get 24 bits, in all layers together.
    hot_channels: usize,
    /// Texts, or pieces of them.
    texts: usize,
    /// Tokens.
    tokens: usize,
}

impl Document for CalibrateReport {
    const FORMAT: &'static str = "zklora-calibrate/1";
    const PRINTED_BY: &'static str = "zklora-base-user exact calibrate --json";
}

/// How far an exact model is from float32.
#[derive(Serialize, JsonSchema)]
pub struct FidelityReport {
    /// The exact model.
    exact_model: ExactModelDigest,
    /// Texts, or pieces of them.
    texts: usize,
    /// Tokens.
    tokens: usize,
    /// The base model alone.
    base: Differences,
    /// The same with the adapter; null if there was none.
    adapter: Option<Differences>,
}

impl Document for FidelityReport {
    const FORMAT: &'static str = "zklora-fidelity/1";
    const PRINTED_BY: &'static str = "zklora-base-user exact fidelity --json";
}

/// Exact losses less those of float32, each the mean of a text, in nats.
#[derive(Serialize, JsonSchema)]
struct Differences {
    /// The mean loss of float32.
    float32_loss: f64,
    /// The mean of all differences.
    mean: f64,
    /// The largest magnitude of one.
    worst: f64,
    /// Texts that have no exact result because a value left its range.
    refused: usize,
    /// Speed of float32.
    float32_tokens_per_second: f64,
    /// Speed of the exact model.
    exact_tokens_per_second: f64,
}

pub fn run(args: &Exact, out: &mut dyn Write) -> anyhow::Result<()> {
    match &args.action {
        Action::Calibrate(args) => calibrate(args, out),
        Action::Fidelity(args) => fidelity(args, out),
    }
}

fn calibrate(args: &Calibrate, out: &mut dyn Write) -> anyhow::Result<()> {
    // Better known before minutes of work than after them.
    ensure!(
        args.out.symlink_metadata().is_err(),
        "{} is there already: expected a name for a new file",
        args.out.display()
    );
    let profile = match args.profile {
        Formats::Faithful => Profile::Faithful,
        Formats::Long => Profile::Long,
    };
    let examples = args.reading.read(&args.dataset)?;
    let base = BaseModel::open(args.base_model.base_model(&Options::from_env())?)?;
    let tokenizer = Tokenizer::open(base.folder())?;
    let positions = profile.max_tokens().min(base.config().architecture().positions());
    let task = args.reading.cut_to(&args.dataset, examples, &tokenizer, positions)?;
    let windows = task.windows.windows.iter();
    let texts = windows.map(|window| token_ids(&window.ids)).collect::<anyhow::Result<Vec<_>>>()?;
    let bar = progress(task.windows.rows() as u64, "calibrating");
    let plan = Plan::calibrate_telling(&base, profile, &texts, |tokens| bar.inc(tokens as u64))?;
    bar.finish_and_clear();
    // Whether there is a model of it, too.
    ExactModel::new(&base, plan.clone())?;
    let file = OpenOptions::new().write(true).create_new(true).open(&args.out);
    file.and_then(|mut file| file.write_all(&plan.to_bytes()))
        .with_context(|| args.out.display().to_string())?;
    let report = CalibrateReport {
        plan: args.out.display().to_string(),
        exact_model: plan.digest(),
        base_model: plan.base_model,
        profile: profile.name(),
        residual_bits: plan.residual_bits,
        hot_channels: plan.hot.iter().map(|hot| hot.attention.len() + hot.mlp.len()).sum(),
        texts: texts.len(),
        tokens: task.windows.rows(),
    };
    if args.json {
        writeln!(out, "{}", report.to_line()?)?;
        return Ok(());
    }
    writeln!(out, "plan         {}", report.plan)?;
    writeln!(out, "exact model  {}", report.exact_model)?;
    writeln!(out, "base model   {}", report.base_model)?;
    writeln!(out, "formats      {}, {} fraction bits", report.profile, report.residual_bits)?;
    writeln!(out, "channels     {} with 24 bits", report.hot_channels)?;
    writeln!(out, "made of      {}, {}", counted(report.texts, "text"), counted(report.tokens, "token"))?;
    Ok(())
}

/// `loss --exact`.
pub fn loss(
    args: &ModelArgs,
    plan: &Path,
    text: &str,
    json: bool,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let opened = Opened::new(args, plan)?;
    let ids = token_ids(&opened.tokenizer.encode(text)?)?;
    let loss = |adapter| -> anyhow::Result<ExactLoss> {
        let losses = opened.model.losses(&ids, adapter)?;
        Ok(ExactLoss { units: losses.total().to_string(), nats: losses.mean() })
    };
    // Refuses a text of no tokens, of which none is predicted.
    let base = loss(None).context("the base model alone")?;
    let report = ExactLossReport {
        exact_model: opened.model.plan().digest(),
        base_model: opened.base.digest(),
        adapter_id: opened.adapter.as_ref().and_then(|adapter| adapter.id),
        tokens: ids.len() as u64,
        predicted: ids.len() as u64 - 1,
        tokenizer: opened.tokenizer.digest()?,
        base,
        adapter: opened.adapter.as_ref().map(|adapter| loss(Some(&adapter.exact))).transpose()?,
    };
    if json {
        writeln!(out, "{}", report.to_line()?)?;
        return Ok(());
    }
    writeln!(out, "loss of the base model   {:.4}, {} units", report.base.nats, report.base.units)?;
    if let Some(loss) = &report.adapter {
        writeln!(out, "loss with the adapter    {:.4}, {} units", loss.nats, loss.units)?;
    }
    writeln!(out, "tokens                   {}", report.tokens)?;
    if let Some(adapter) = report.adapter_id {
        writeln!(out, "adapter                  {adapter}, by the manifest in its folder")?;
    }
    writeln!(out, "exact model              {}", report.exact_model)?;
    writeln!(
        out,
        "A unit is 2^-25 octave. Anyone gets the same units from the same text, model and adapter."
    )?;
    Ok(())
}

fn fidelity(args: &Fidelity, out: &mut dyn Write) -> anyhow::Result<()> {
    let examples = args.reading.read(&args.dataset)?;
    let opened = Opened::new(&args.model, &args.exact)?;
    let task = args.reading.cut_to(&args.dataset, examples, &opened.tokenizer, opened.model.max_tokens())?;
    let mut float = Model::load(&opened.base)?;
    info!(texts = task.windows.windows.len(), tokens = task.windows.rows(), "dataset read");
    let base = Differences::of("base model", &task, &float, &opened.model, None)?;
    let adapter = match &opened.adapter {
        None => None,
        Some(adapter) => {
            float.merge(&adapter.lora)?;
            Some(Differences::of("with adapter", &task, &float, &opened.model, Some(&adapter.exact))?)
        }
    };
    let report = FidelityReport {
        exact_model: opened.model.plan().digest(),
        texts: task.windows.windows.len(),
        tokens: task.windows.rows(),
        base,
        adapter,
    };
    if args.json {
        writeln!(out, "{}", report.to_line()?)?;
        return Ok(());
    }
    writeln!(out, "texts          {}, {}", report.texts, counted(report.tokens, "token"))?;
    for (name, found) in [("base model", Some(&report.base)), ("with adapter", report.adapter.as_ref())] {
        let Some(found) = found else { continue };
        writeln!(out, "{name:<14} loss {:.4} in float32", found.float32_loss)?;
        writeln!(
            out,
            "{:<14} exact less float32: {:+.5} in the mean, {:.5} at worst",
            "", found.mean, found.worst
        )?;
        writeln!(
            out,
            "{:<14} {:.0} tokens/s, float32 {:.0}",
            "", found.exact_tokens_per_second, found.float32_tokens_per_second
        )?;
        if found.refused > 0 {
            writeln!(
                out,
                "{:<14} {} without a result: a value left its range",
                "",
                counted(found.refused, "text")
            )?;
        }
    }
    Ok(())
}

impl Differences {
    fn of(
        what: &'static str,
        task: &Task,
        float: &Model,
        exact: &ExactModel,
        adapter: Option<&ExactAdapter>,
    ) -> anyhow::Result<Self> {
        let bar = progress(task.windows.rows() as u64, what);
        let (mut differences, mut losses) = (Vec::new(), 0.0);
        let (mut float_time, mut exact_time) = (Duration::ZERO, Duration::ZERO);
        let mut refused = 0;
        for Window { ids, from, .. } in &task.windows.windows {
            let began = Instant::now();
            let counted = float.token_losses(&[ids])?[0][from - 1..].to_vec();
            let between = Instant::now();
            let tokens =
                ids.iter().map(|&id| Ok(u32::try_from(id)?)).collect::<anyhow::Result<Vec<u32>>>()?;
            let scored: Vec<usize> = (*from..ids.len()).collect();
            let found = exact.losses_at(&tokens, &scored, adapter);
            float_time += between - began;
            exact_time += between.elapsed();
            let expected = counted.iter().copied().map(f64::from).sum::<f64>() / counted.len() as f64;
            losses += expected;
            match found.as_ref().map(Losses::mean) {
                Ok(found) => differences.push(found - expected),
                Err(refusal) => {
                    info!("a text has no exact result: {refusal}");
                    refused += 1;
                }
            }
            bar.inc(ids.len() as u64);
        }
        bar.finish_and_clear();
        ensure!(!differences.is_empty(), "no text has an exact result: values left their ranges");
        let count = differences.len() as f64;
        let speed = |time: Duration| task.windows.rows() as f64 / time.as_secs_f64();
        Ok(Self {
            float32_loss: losses / task.windows.windows.len() as f64,
            mean: differences.iter().sum::<f64>() / count,
            worst: differences.iter().fold(0f64, |worst, difference| worst.max(difference.abs())),
            refused,
            float32_tokens_per_second: speed(float_time),
            exact_tokens_per_second: speed(exact_time),
        })
    }
}

/// Tokens as an exact model takes them.
fn token_ids(ids: &[i64]) -> anyhow::Result<Vec<u32>> {
    ids.iter().map(|&id| Ok(u32::try_from(id)?)).collect()
}

/// An exact model, and an adapter on it.
struct Opened {
    base: BaseModel,
    tokenizer: Tokenizer,
    model: ExactModel,
    adapter: Option<Adapter>,
}

struct Adapter {
    lora: LoraAdapter,
    exact: ExactAdapter,
    /// Of one that was delivered, by the manifest in its folder.
    id: Option<AdapterId>,
}

impl Opened {
    fn new(args: &ModelArgs, plan: &Path) -> anyhow::Result<Self> {
        let options = Options::from_env();
        let base = BaseModel::open(args.base_model.base_model(&options)?)?;
        let model = ExactModel::open(&base, plan)?;
        let adapter =
            args.lora.as_ref().map(|source| Adapter::open(source, &options, &base, &model)).transpose()?;
        Ok(Self { tokenizer: Tokenizer::open(base.folder())?, base, model, adapter })
    }
}

impl Adapter {
    fn open(
        source: &Source,
        options: &Options,
        base: &BaseModel,
        model: &ExactModel,
    ) -> anyhow::Result<Self> {
        let lora = LoraAdapter::open(source.adapter(options)?, &base.projections())?;
        let manifest = match source {
            Source::Folder(folder) => delivered_manifest(folder)?,
            Source::Hub(_) => None,
        };
        let Some(manifest) = manifest else {
            return Ok(Self { exact: ExactAdapter::quantised(model, &lora)?, lora, id: None });
        };
        let manifest_of = manifest.manifest();
        ensure!(
            *manifest_of.base_model() == base.digest(),
            "manifest.json of the adapter is for base model {}, this is {}",
            manifest_of.base_model(),
            base.digest()
        );
        ensure!(
            manifest_of.modules().len() == lora.modules.len(),
            "manifest.json of the adapter has {}, but the adapter has {}",
            counted(manifest_of.modules().len(), "module"),
            counted(lora.modules.len(), "module")
        );
        // The very integers: rounded once more they might be others.
        let mut integers: Vec<(&str, Integers, usize, f64)> = Vec::new();
        for module in &lora.modules {
            let entry = manifest_of.modules().iter().find(|entry| entry.name() == module.name);
            let entry = entry
                .with_context(|| format!("manifest.json of the adapter has no module {}", module.name))?;
            let found = committed_integers(entry, &module.a, &module.b)?;
            integers.push((&module.name, found, module.rank, entry.scale()));
        }
        let modules: Vec<Module<'_>> = integers
            .iter()
            .map(|(name, (a, b), rank, scale)| Module { name, a, b, rank: *rank, scale: *scale })
            .collect();
        let exact = ExactAdapter::new(model, &modules)?;
        Ok(Self { exact, id: Some(manifest.adapter_id()), lora })
    }
}
