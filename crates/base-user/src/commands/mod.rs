//! One module for each subcommand, and what they share: the base model, a run with [`contributors`], and [`inputs`].

pub mod accept;
pub mod audit;
pub mod contributors;
pub mod disclose;
pub mod eval;
pub mod exact;
pub mod fetch;
pub mod generate;
pub mod identity;
pub mod inputs;
pub mod loss;
pub mod redact;
pub mod sessions;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use schemars::JsonSchema;
use serde::Serialize;
use zklora_base_user::hooks::Hook;
use zklora_base_user::models::Model;
use zklora_base_user::tokenizer::Tokenizer;
use zklora_client::{RecordError, Records};
use zklora_hf::{BaseModel, LoraAdapter};
use zklora_hub::{Options, Source};
use zklora_proto::{BaseModelDigest, SessionId};
use zklora_verdict::DEFAULT_MIN_SECURITY;

/// The model that runs here.
#[derive(Args)]
pub struct ModelArgs {
    /// The base model: a folder in Hugging Face layout, or a name on its hub, such as distilgpt2 or ORG/NAME@REVISION.
    #[arg(long, value_name = "DIR|NAME")]
    pub base_model: Source,
    /// An adapter that you have yourself, as PEFT writes it: a folder, or a name on the hub. It is added to the base model's
    /// weights.
    #[arg(long, value_name = "DIR|NAME")]
    pub lora: Option<Source>,
}

/// The base model, read.
pub struct Loaded {
    pub model: Model,
    pub tokenizer: Tokenizer,
    pub digest: BaseModelDigest,
    lora: Option<LoraAdapter>,
}

impl ModelArgs {
    pub fn load(&self) -> anyhow::Result<Loaded> {
        let options = Options::from_env();
        let base = BaseModel::open(self.base_model.base_model(&options)?)?;
        let open = |lora: &Source| {
            Ok::<_, anyhow::Error>(LoraAdapter::open(lora.adapter(&options)?, &base.projections())?)
        };
        let lora = self.lora.as_ref().map(open).transpose()?;
        let tokenizer = Tokenizer::open(base.folder())?;
        Ok(Loaded { model: Model::load(&base)?, tokenizer, digest: base.digest(), lora })
    }
}

impl Loaded {
    /// Puts the adapters on: the local one for good, those of the hook until it is taken off. Gives whether there is one.
    pub fn adapt(&mut self, hook: Option<Arc<dyn Hook>>) -> anyhow::Result<bool> {
        let mut adapted = false;
        if let Some(lora) = self.lora.take() {
            self.model.merge(&lora)?;
            adapted = true;
        }
        if let Some(hook) = hook {
            self.model.patch(hook)?;
            adapted = true;
        }
        Ok(adapted)
    }
}

/// Where what you keep of your sessions is.
#[derive(Args)]
pub struct SessionsArgs {
    /// Folder of the records of your sessions, one file for each, for your eyes alone. zklora/sessions in $XDG_STATE_HOME or
    /// ~/.local/state unless told otherwise.
    #[arg(long, value_name = "DIR", env = "ZKLORA_RECORDS")]
    sessions: Option<PathBuf>,
}

impl SessionsArgs {
    pub fn records(&self) -> Result<Records, RecordError> {
        Records::new(self.sessions.clone())
    }
}

/// What proofs have to be worth.
#[derive(Args)]
pub struct SecurityArgs {
    /// Fewest bits of soundness on theorems alone, all errors added up, that a proof must have.
    #[arg(long, value_name = "BITS", default_value_t = DEFAULT_MIN_SECURITY)]
    pub min_security: u32,
}

/// A bar on stderr, if that is a terminal.
pub fn progress(total: u64, what: &'static str) -> ProgressBar {
    // The template is sound: a test would show it at once.
    let style = ProgressStyle::with_template("{msg} {bar:30} {pos}/{len} tokens, {rate}, {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .with_key("rate", |state: &ProgressState, out: &mut dyn fmt::Write| {
            // A bar cannot do anything about an error of its own text.
            let _ = out.write_str(&per_second(state.per_sec()));
        });
    ProgressBar::new(total).with_style(style).with_message(what)
}

/// A speed as people read it: what is measured is not known to more than three digits.
fn per_second(speed: f64) -> String {
    match speed {
        _ if speed < 10.0 => format!("{speed:.1}/s"),
        _ => format!("{speed:.0}/s"),
    }
}

/// A session of which something could not be done.
#[derive(Serialize, JsonSchema)]
pub struct Failed {
    /// The session.
    session: SessionId,
    /// Why, for people.
    error: String,
}

#[cfg(test)]
mod tests {
    use zklora_testing::schemas::check_file;

    use super::per_second;

    #[test]
    fn the_files_are_the_schemas_of_the_documents() {
        check_file::<super::generate::GenerateReport>();
        check_file::<super::fetch::FetchReport>();
        check_file::<super::sessions::SessionsReport>();
        check_file::<super::sessions::ForgetReport>();
        check_file::<super::disclose::DiscloseReport>();
        check_file::<super::redact::RedactReport>();
        check_file::<super::identity::IdentityReport>();
        check_file::<super::exact::CalibrateReport>();
        check_file::<super::exact::FidelityReport>();
    }

    #[test]
    fn a_speed_has_no_digits_that_nobody_knows() {
        assert_eq!([0.04321, 9.87, 545.5879].map(per_second), ["0.0/s", "9.9/s", "546/s"]);
    }
}
