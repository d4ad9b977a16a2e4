//! What kind of thing is wrong with a file.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Serialize, Serializer};

/// What kind of thing is wrong with a bundle or with what is shown of one, for programs: a stable word for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// The file cannot be read.
    File,
    /// Its layout, or a digest in its header.
    Format,
    /// The manifest, or its signature.
    Manifest,
    /// The receipt, a signature of it, or that it is another manifest's.
    Receipt,
    /// The plan does not cover the modules that have rows.
    Plan,
    /// The transcript is none, or not that of the receipt.
    Transcript,
    /// The folds of a redacted bundle.
    Folds,
    /// The calls that are shown are not those that the receipt commits to.
    Commitment,
    /// A circuit is too large, or there are too many.
    Circuit,
    /// A proof does not hold.
    Proof,
    /// The proofs are worth less than was asked for, or their parameter set is not known.
    Security,
    /// It is of another adapter than the caller's.
    AdapterPin,
    /// It is of another contributor.
    ContributorPin,
    /// It is of another base model.
    BaseModelPin,
    /// It is of another client.
    ClientPin,
    /// It is too old, or dated ahead.
    Age,
    /// It is redacted, and nobody said that the client's word is good.
    Redacted,
    /// A bundle was changed while it was replayed.
    Bundle,
    /// A replay has a call that the session does not have.
    FewerCalls,
    /// A session has a call that the replay does not have.
    MoreCalls,
    /// A call is to other modules than in the replay.
    Modules,
    /// A call has another number of rows than in the replay.
    Rows,
    /// An activation is not the one of the replay.
    Activation,
    /// The replay stopped at another bundle.
    NotFinished,
    /// The verifier failed.
    Internal,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 25] = [
        Self::File,
        Self::Format,
        Self::Manifest,
        Self::Receipt,
        Self::Plan,
        Self::Transcript,
        Self::Folds,
        Self::Commitment,
        Self::Circuit,
        Self::Proof,
        Self::Security,
        Self::AdapterPin,
        Self::ContributorPin,
        Self::BaseModelPin,
        Self::ClientPin,
        Self::Age,
        Self::Redacted,
        Self::Bundle,
        Self::FewerCalls,
        Self::MoreCalls,
        Self::Modules,
        Self::Rows,
        Self::Activation,
        Self::NotFinished,
        Self::Internal,
    ];

    /// Whether it says nothing of a bundle itself, but that it is not what the caller asked for.
    pub const fn is_of_what_was_asked(self) -> bool {
        use Kind::{AdapterPin, Age, BaseModelPin, ClientPin, ContributorPin, Redacted, Security};
        matches!(self, AdapterPin | ContributorPin | BaseModelPin | ClientPin | Age | Redacted | Security)
    }

    /// Its word, as JSON has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Format => "format",
            Self::Manifest => "manifest",
            Self::Receipt => "receipt",
            Self::Plan => "plan",
            Self::Transcript => "transcript",
            Self::Folds => "folds",
            Self::Commitment => "commitment",
            Self::Circuit => "circuit",
            Self::Proof => "proof",
            Self::Security => "security",
            Self::AdapterPin => "adapter-pin",
            Self::ContributorPin => "contributor-pin",
            Self::BaseModelPin => "base-model-pin",
            Self::ClientPin => "client-pin",
            Self::Age => "age",
            Self::Redacted => "redacted",
            Self::Bundle => "bundle",
            Self::FewerCalls => "fewer-calls",
            Self::MoreCalls => "more-calls",
            Self::Modules => "modules",
            Self::Rows => "rows",
            Self::Activation => "activation",
            Self::NotFinished => "not-finished",
            Self::Internal => "internal",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl JsonSchema for Kind {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Kind".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "What kind of thing is wrong. There may be more in later versions.",
            "enum": Self::ALL.map(Self::name),
        })
    }
}
