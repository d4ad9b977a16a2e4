//! What can go wrong when the base model is loaded or run.

use std::path::PathBuf;

use tch::TchError;

/// Why the base model could not be loaded, patched or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The model's files cannot be read.
    #[error(transparent)]
    Files(#[from] zklora_hf::Error),

    /// libtorch refused an operation: memory ran out, or there is a bug in this program.
    #[error("libtorch: {0}")]
    Torch(#[from] TchError),

    /// There is no projection of this name to patch.
    #[error("the base model has no projection {name:?}; it has {}, ...", .examples.join(", "))]
    UnknownProjection {
        /// The name given.
        name: String,
        /// Some of the names there are.
        examples: Vec<String>,
    },

    /// A hook failed.
    #[error("the hook on {projection} failed: {error:#}")]
    Hook {
        /// The projection it is on.
        projection: String,
        /// What it said.
        #[source]
        error: anyhow::Error,
    },

    /// A hook returned something that cannot stand in for the projection's output.
    #[error("the hook on {projection} returned {found}, expected {expected}")]
    HookOutput {
        /// The projection it is on.
        projection: String,
        /// Shape and type of the projection's output.
        expected: String,
        /// Shape and type of what the hook returned.
        found: String,
    },

    /// A sequence with nothing to predict.
    #[error("a loss needs at least 2 tokens, one to predict from and one to predict; this text has {found}")]
    TooShort {
        /// Tokens given.
        found: usize,
    },

    /// A sequence longer than the model's context.
    #[error("the base model takes 1 to {limit} tokens at once, this text has {found}; shorten or split it")]
    Length {
        /// Tokens given.
        found: usize,
        /// Its longest sequence.
        limit: usize,
    },

    /// A token id that is not in the vocabulary.
    #[error("token id {found} is outside of the base model's vocabulary, 0 to {}", .vocabulary - 1)]
    TokenId {
        /// The id.
        found: i64,
        /// The model's `vocab_size`.
        vocabulary: usize,
    },

    /// The tokenizer's files are missing or unsound.
    #[error("cannot load the tokenizer from {}: {reason}", .path.display())]
    Tokenizer {
        /// The file, or the folder that should hold it.
        path: PathBuf,
        /// Why.
        reason: String,
    },

    /// The tokenizer cannot decode a token.
    #[error("cannot turn tokens into text: {0}")]
    Decode(String),

    /// The tokenizer cannot encode a text.
    #[error("cannot turn the text into tokens: {0}")]
    Encode(String),
}
