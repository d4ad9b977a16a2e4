//! What a base-model user measured with an adapter, as `loss` and `eval` of `zklora-base-user` print it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zklora_proto::document::{DocumentError, format_of};
use zklora_proto::{
    AdapterId, BaseModelDigest, Document, ExactModelDigest, PublicKey, Receipt, SessionId, TokenizerDigest,
    TranscriptDigest,
};

/// The losses of one text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LossReport {
    /// The mean loss of the base model alone, in nats for each predicted token.
    pub base_loss: f64,
    /// The same with the adapters of all sessions together; null if there was none.
    pub adapter_loss: Option<f64>,
    /// Tokens of the text.
    pub tokens: u64,
    /// Which tokenizer cut the text into tokens.
    pub tokenizer: TokenizerDigest,
    /// Every session, in the order of the contributors.
    pub sessions: Vec<SessionReport>,
}

impl Document for LossReport {
    const FORMAT: &'static str = "zklora-loss/1";
    const PRINTED_BY: &'static str = "zklora-base-user loss --json";
}

/// The losses of a dataset.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EvalReport {
    /// Texts that counted.
    pub texts: u64,
    /// Texts of which nothing counted.
    pub texts_skipped: u64,
    /// What there is to say of single texts.
    pub notes: Vec<NoteReport>,
    /// Tokens that went through the model.
    pub tokens: u64,
    /// How many of them were predicted.
    pub predicted: u64,
    /// Which tokenizer cut the texts into tokens.
    pub tokenizer: TokenizerDigest,
    /// The base model alone.
    pub base: MeanReport,
    /// The same with the adapters of all sessions together; null if there was none.
    pub adapter: Option<MeanReport>,
    /// The mean of the second loss less the first.
    pub difference: Option<Estimate>,
    /// Every session, in the order of the contributors.
    pub sessions: Vec<SessionReport>,
}

impl Document for EvalReport {
    const FORMAT: &'static str = "zklora-eval/1";
    const PRINTED_BY: &'static str = "zklora-base-user eval --json";
}

/// Something to be said of lines of a dataset that follow one another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NoteReport {
    /// The first line and the last, from 1.
    pub lines: [u64; 2],
    /// How many texts.
    pub examples: u64,
    /// What happened to each, for people.
    pub what: String,
}

/// What one pass over a dataset gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MeanReport {
    /// The mean loss in nats for each predicted token.
    pub loss: Estimate,
    /// Its exponential; null where that is beyond a float64.
    pub perplexity: Option<Estimate>,
    /// How fast it was.
    pub tokens_per_second: f64,
}

impl MeanReport {
    /// The mean loss and what follows from it.
    pub fn new(loss: Estimate, tokens_per_second: f64) -> Self {
        let perplexity = Some(loss.exp()).filter(Estimate::is_finite);
        Self { loss, perplexity, tokens_per_second }
    }
}

/// An estimate with its interval of 95 % confidence.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Estimate {
    /// The estimate.
    pub value: f64,
    /// Bounds of the interval, the lower one first. Of a single text both are the estimate.
    pub interval: [f64; 2],
}

impl Estimate {
    /// Of a mean loss, the perplexity.
    pub fn exp(self) -> Self {
        Self { value: self.value.exp(), interval: self.interval.map(f64::exp) }
    }

    /// Whether estimate and bounds are numbers.
    pub fn is_finite(&self) -> bool {
        self.value.is_finite() && self.interval.into_iter().all(f64::is_finite)
    }
}

/// A session of a run: what its receipt says, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SessionReport {
    /// The session.
    pub session: SessionId,
    /// The adapter id.
    pub adapter: AdapterId,
    /// The contributor's key.
    pub contributor: PublicKey,
    /// The key of the base-model user.
    pub client: PublicKey,
    /// The base model.
    pub base_model: BaseModelDigest,
    /// Forward calls.
    pub calls: u64,
    /// Rows of each module, in the manifest's order.
    pub rows: Vec<u64>,
    /// The digest by which the session's bundle is known.
    pub transcript: TranscriptDigest,
    /// Whether it was blinded; null if that was not asked for.
    pub blinded: Option<bool>,
    /// Size of its bundle; null if it was not waited for.
    pub bundle_bytes: Option<u64>,
}

impl SessionReport {
    /// What a receipt says.
    pub fn new(receipt: &Receipt) -> Self {
        Self {
            session: receipt.session,
            adapter: receipt.adapter,
            contributor: receipt.contributor,
            client: receipt.client,
            base_model: receipt.base_model,
            calls: receipt.calls,
            rows: receipt.rows.clone(),
            transcript: receipt.transcript,
            blinded: None,
            bundle_bytes: None,
        }
    }
}

/// The losses of one text by an exact model: integers, which anyone gets to the last digit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ExactLossReport {
    /// The exact model.
    pub exact_model: ExactModelDigest,
    /// The base model that it is made of.
    pub base_model: BaseModelDigest,
    /// The adapter id, if the adapter is in a folder that `accept` wrote, by the manifest there: without the salts, which are in the package, nothing
    /// shows that the folder still has those weights. Null of another adapter, or of none.
    pub adapter_id: Option<AdapterId>,
    /// Tokens of the text.
    pub tokens: u64,
    /// How many of them were predicted.
    pub predicted: u64,
    /// Which tokenizer cut the text into tokens.
    pub tokenizer: TokenizerDigest,
    /// The base model alone.
    pub base: ExactLoss,
    /// The same with the adapter; null if there was none.
    pub adapter: Option<ExactLoss>,
}

impl Document for ExactLossReport {
    const FORMAT: &'static str = "zklora-exact-loss/1";
    const PRINTED_BY: &'static str = "zklora-base-user loss --exact PLAN --json";
}

/// A sum of losses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ExactLoss {
    /// The sum of all, in units of 2^-25 octave, in decimal: it may be beyond what JSON's numbers hold exactly everywhere.
    #[schemars(regex(pattern = "^-?[0-9]{1,19}$"))]
    pub units: String,
    /// The mean, in nats for each predicted token.
    pub nats: f64,
}

/// A report of either kind.
#[derive(Debug, Clone, PartialEq)]
pub enum Measured {
    /// Of one text.
    Loss(LossReport),
    /// Of a dataset.
    Eval(EvalReport),
}

impl Measured {
    /// Reads what `loss --json` or `eval --json` printed.
    pub fn parse(json: &[u8]) -> Result<Self, DocumentError> {
        match format_of(json)? {
            format if format == LossReport::FORMAT => LossReport::parse(json).map(Self::Loss),
            format if format == EvalReport::FORMAT => EvalReport::parse(json).map(Self::Eval),
            format => Err(DocumentError::other(&format, "zklora-loss/1 or zklora-eval/1")),
        }
    }

    /// The sessions that it names.
    pub fn sessions(&self) -> &[SessionReport] {
        match self {
            Self::Loss(loss) => &loss.sessions,
            Self::Eval(eval) => &eval.sessions,
        }
    }
}
