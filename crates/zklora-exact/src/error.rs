//! Why there is no exact model, or no result.

/// A value that left the range it is proved in. The text has no result then: nothing is ever clipped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} is {found}, expected {least} to {most}")]
pub struct OutOfRange {
    what: &'static str,
    found: i128,
    least: i128,
    most: i128,
}

impl OutOfRange {
    pub(crate) fn new(
        what: &'static str,
        found: impl Into<i128>,
        least: impl Into<i128>,
        most: impl Into<i128>,
    ) -> Self {
        Self { what, found: found.into(), least: least.into(), most: most.into() }
    }
}

/// Why a text has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The text is too short, too long, or has a token that the model does not have.
    #[error("{0}")]
    Tokens(String),
    /// A value left its range.
    #[error("{place}: {value}")]
    OutOfRange {
        /// Where in the model.
        place: String,
        /// What left its range.
        value: OutOfRange,
    },
}

/// Why there is no exact model of a base model, or of an adapter on it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The base model cannot be read.
    #[error(transparent)]
    Model(#[from] zklora_hf::Error),
    /// Another architecture, or a model that is too large.
    #[error("{0}")]
    Unsupported(String),
    /// A plan for another base model, or that says something else than a plan can.
    #[error("{0}")]
    Plan(String),
    /// An adapter module that this model cannot have.
    #[error("module {module}: {why}")]
    Module {
        /// Its name.
        module: String,
        /// What is wrong with it.
        why: String,
    },
    /// A sum that could wrap around in a proof.
    #[error("{place}: {what} could reach 2^{bits:.1}, and must stay below 2^{limit}")]
    Bound {
        /// Where in the model.
        place: String,
        /// The sum.
        what: &'static str,
        /// Logarithm of what it could reach.
        bits: f64,
        /// Logarithm of what it may reach.
        limit: u32,
    },
    /// The texts given for calibration do not do for it.
    #[error("calibration: {0}")]
    Calibration(String),
}
