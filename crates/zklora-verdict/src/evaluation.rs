//! Losses that somebody says they measured, to be shown beside the sessions that they name.
//!
//! They come from a file that anyone can write, and nothing here shows that they are true: [`Evaluation`] holds only that they are
//! numbers, and that the sessions they name are those of the bundles, with the same parties and as many calls.

use zklora_proto::SessionId;
use zklora_proto::document::DocumentError;

use crate::measured::{Estimate, EvalReport, LossReport, Measured, SessionReport};
use crate::report::{BundleReport, Report};

/// Longer than any evaluation: most of one are the rows of each module of each session.
pub const MAX_EVALUATION_BYTES: u64 = 16 << 20;

/// What `zklora-base-user loss --json` or `eval --json` printed.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// Where it came from, for people.
    pub name: String,
    /// The mean loss of the base model alone, in nats for each predicted token.
    pub base: Loss,
    /// The same with the adapters of all its sessions together.
    pub adapter: Loss,
    /// The second less the first, if it says so.
    pub difference: Option<Loss>,
    /// Texts, if it says so.
    pub texts: Option<u64>,
    /// Tokens that went through the model.
    pub tokens: u64,
    /// How many of them were predicted, if it says so.
    pub predicted: Option<u64>,
    sessions: Vec<SessionReport>,
}

/// A loss, finite, with the bounds of its interval of 95 % confidence if there is one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Loss {
    /// The loss.
    pub value: f64,
    /// The bounds, the lower one first.
    pub interval: Option<[f64; 2]>,
}

/// Why an evaluation cannot be shown.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvaluationError {
    /// It is another document, or none.
    #[error("this is not what `zklora-base-user loss --json` or `eval --json` prints: {0}")]
    Document(#[from] DocumentError),
    /// Nothing to compare, and no session.
    #[error("it was made without an adapter, so that it belongs to no session")]
    NoAdapter,
    /// A number that no loss is.
    #[error("{what} is {found}, expected a number from {min} to {MAX_LOSS}")]
    Number {
        /// Which.
        what: &'static str,
        /// What it says.
        found: f64,
        /// The least that it may be.
        min: f64,
    },
    /// Bounds the wrong way round.
    #[error("the interval of {what} goes from {} to {}, expected the lower bound first", found[0], found[1])]
    Interval {
        /// Of which number.
        what: &'static str,
        /// What it says.
        found: [f64; 2],
    },
    /// It belongs to no bundle.
    #[error("{name}: it names {named}, none of which is among the bundles; expected one of: {expected}")]
    NoSession {
        /// The evaluation.
        name: String,
        /// Its sessions.
        named: String,
        /// The bundles'.
        expected: String,
    },
    /// It names a session, and says something else of it than the bundle.
    #[error(transparent)]
    Contradicts(Box<Contradiction>),
}

/// What an evaluation says of a session differently from the session's bundle.
#[derive(Debug, thiserror::Error)]
#[error("{name}: it says of session {session} that its {what} is {found}, while the bundle says {expected}")]
pub struct Contradiction {
    /// The evaluation.
    pub name: String,
    /// The session.
    pub session: SessionId,
    /// What differs.
    pub what: &'static str,
    /// By the evaluation.
    pub found: String,
    /// By the bundle.
    pub expected: String,
}

impl Evaluation {
    /// Reads a document, at most [`MAX_EVALUATION_BYTES`] of it. `name` says where it came from.
    pub fn parse(name: String, json: &[u8]) -> Result<Self, EvaluationError> {
        let evaluation = match Measured::parse(json)? {
            Measured::Loss(loss) => Self::of_loss(name, loss)?,
            Measured::Eval(eval) => Self::of_eval(name, eval)?,
        };
        evaluation.base.check("the loss of the base model", 0.0)?;
        evaluation.adapter.check("the loss with the adapter", 0.0)?;
        if let Some(difference) = evaluation.difference {
            difference.check("the difference", -MAX_LOSS)?;
        }
        Ok(evaluation)
    }

    fn of_loss(name: String, loss: LossReport) -> Result<Self, EvaluationError> {
        let of = |value| Loss { value, interval: None };
        Ok(Self {
            name,
            base: of(loss.base_loss),
            adapter: of(loss.adapter_loss.ok_or(EvaluationError::NoAdapter)?),
            difference: None,
            texts: None,
            tokens: loss.tokens,
            predicted: None,
            sessions: loss.sessions,
        })
    }

    fn of_eval(name: String, eval: EvalReport) -> Result<Self, EvaluationError> {
        Ok(Self {
            name,
            base: eval.base.loss.into(),
            adapter: eval.adapter.ok_or(EvaluationError::NoAdapter)?.loss.into(),
            difference: eval.difference.map(Loss::from),
            texts: Some(eval.texts),
            tokens: eval.tokens,
            predicted: Some(eval.predicted),
            sessions: eval.sessions,
        })
    }

    /// How many sessions it names.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Whether it names this bundle's session, and says the same of it.
    pub fn is_of(&self, bundle: &BundleReport) -> bool {
        self.sessions_of(bundle).any(|session| session.contradiction(bundle).is_none())
    }

    /// Holds the sessions that it names against the bundles: at least one has to be among them.
    pub fn check_against(&self, report: &Report) -> Result<(), EvaluationError> {
        // A bundle that has another's session id and other parties does not stand in the way of the right one.
        if report.bundles.iter().any(|bundle| self.is_of(bundle)) {
            return Ok(());
        }
        let mut contradictions = report.bundles.iter().flat_map(|bundle| {
            self.sessions_of(bundle)
                .filter_map(|session| Some((session.session, session.contradiction(bundle)?)))
        });
        if let Some((session, (what, found, expected))) = contradictions.next() {
            let name = self.name.clone();
            let contradiction = Contradiction { name, session, what, found, expected };
            return Err(EvaluationError::Contradicts(Box::new(contradiction)));
        }
        let expected: Vec<_> = report.bundles.iter().filter_map(|bundle| bundle.session).collect();
        let named: Vec<_> = self.sessions.iter().map(|session| session.session).collect();
        Err(EvaluationError::NoSession {
            name: self.name.clone(),
            named: list("no session", &named),
            expected: list("none, for no bundle could be read", &expected),
        })
    }

    fn sessions_of(&self, bundle: &BundleReport) -> impl Iterator<Item = &SessionReport> {
        let session = bundle.session;
        self.sessions.iter().filter(move |s| Some(s.session) == session)
    }
}

impl Loss {
    fn check(&self, what: &'static str, min: f64) -> Result<(), EvaluationError> {
        for found in self.interval.into_iter().flatten().chain([self.value]) {
            // Not a number is within nothing.
            if !(min..=MAX_LOSS).contains(&found) {
                return Err(EvaluationError::Number { what, found, min });
            }
        }
        match self.interval {
            Some(found) if found[0] > found[1] => Err(EvaluationError::Interval { what, found }),
            _ => Ok(()),
        }
    }
}

/// Far above any loss: a model that gives the right token no more than rounding leaves has some hundred.
const MAX_LOSS: f64 = 1e6;

impl From<Estimate> for Loss {
    fn from(estimate: Estimate) -> Self {
        Self { value: estimate.value, interval: Some(estimate.interval) }
    }
}

impl SessionReport {
    /// What it says differently from the bundle of the same session: what, by the evaluation, by the bundle.
    fn contradiction(&self, bundle: &BundleReport) -> Option<(&'static str, String, String)> {
        let pairs = [
            ("adapter", self.adapter.to_string(), bundle.adapter.map(|id| id.to_string())),
            ("contributor", self.contributor.to_string(), bundle.contributor.map(|key| key.to_string())),
            ("client", self.client.to_string(), bundle.client.map(|key| key.to_string())),
            ("base model", self.base_model.to_string(), bundle.base_model.map(|digest| digest.to_string())),
            ("number of calls", self.calls.to_string(), bundle.calls.map(|calls| calls.to_string())),
        ];
        pairs.into_iter().find_map(|(what, found, expected)| {
            let expected = expected.filter(|expected| *expected != found)?;
            Some((what, found, expected))
        })
    }
}

/// The first few of them.
fn list(none: &str, sessions: &[SessionId]) -> String {
    const SHOWN: usize = 8;
    if sessions.is_empty() {
        return none.into();
    }
    let shown = sessions.iter().take(SHOWN).map(SessionId::to_string).collect::<Vec<_>>().join(", ");
    match sessions.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
