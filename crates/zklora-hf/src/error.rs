use std::io;
use std::path::{Path, PathBuf};

/// Why a base model or an adapter could not be read.
///
/// Every variant names the file; its text says what was expected, what was found and, where there is something to do
/// about it, what. No variant holds a weight.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to open or read a file.
    #[error("cannot read {}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },

    /// The path given for a model or an adapter is not a folder.
    #[error("{} is not a folder; give the folder that holds config.json or adapter_config.json", .path.display())]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },

    /// A file that has to be there is not.
    #[error("{} is missing: {hint}", .path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// What it is for, or how to get it.
        hint: &'static str,
    },

    /// A file is larger than anything of its kind.
    #[error("{} has {found} bytes, at most {limit} are accepted", .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        found: u64,
        /// The largest size accepted, in bytes.
        limit: u64,
    },

    /// A file is not JSON, or not of the form it should have.
    #[error("{} is not the JSON that was expected: {source}", .path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where it goes wrong.
        source: serde_json::Error,
    },

    /// A file is not in the safetensors format, is cut off, or contradicts its own header.
    #[error("{} is not a sound safetensors file: {reason}", .path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// A setting has a value that is not supported.
    #[error("{}: {field} is {found}, expected {expected}", .path.display())]
    Setting {
        /// The configuration file.
        path: PathBuf,
        /// The setting's name in that file.
        field: String,
        /// What is supported.
        expected: String,
        /// What the file says.
        found: String,
    },

    /// A tensor is missing, or does not have the shape, type or values it must have.
    #[error("{}: tensor {tensor}: expected {expected}, found {found}", .path.display())]
    Tensor {
        /// The file, or the folder if the tensor is in none of its files.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
    },

    /// An adapter is not the plain LoRA that can be served and proved, or does not fit the base model.
    #[error("{}: this adapter cannot be used: {reason}", .path.display())]
    Adapter {
        /// The file that shows it.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
}

impl Error {
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    pub(crate) fn safetensors(path: &Path, reason: impl ToString) -> Self {
        Self::Safetensors { path: path.to_owned(), reason: reason.to_string() }
    }

    pub(crate) fn adapter(path: &Path, reason: impl Into<String>) -> Self {
        Self::Adapter { path: path.to_owned(), reason: reason.into() }
    }
}
