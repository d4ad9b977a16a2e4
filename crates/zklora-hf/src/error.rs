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
    #[error("cannot read {}: {reason}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        reason: String,
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
    #[error("{} is not the JSON that was expected: {reason}", .path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where it goes wrong.
        reason: String,
    },

    /// A file stands for one that Git LFS keeps elsewhere.
    #[error(
        "{} is a pointer of Git LFS, not the file itself; run `git lfs pull` where it was cloned, or download the file",
        .path.display()
    )]
    LfsPointer {
        /// The file.
        path: PathBuf,
    },

    /// A text file begins with a byte order mark, as some editors write it.
    #[error("{} begins with a byte order mark; save it as UTF-8 without one", .path.display())]
    ByteOrderMark {
        /// The file.
        path: PathBuf,
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

    /// A base model's file has a tensor that nothing is computed with.
    #[error("{}: tensor {tensor} has no place in the model that config.json describes{}", .path.display(), because(.reason))]
    Unused {
        /// The file.
        path: PathBuf,
        /// The tensor's name there.
        tensor: String,
        /// What is known of such tensors; may be empty.
        reason: String,
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
    // Texts of errors have their cause in them: they do not give it as their source, too, or it would be printed twice.
    pub(crate) fn io(path: &Path, error: io::Error) -> Self {
        Self::Io { path: path.to_owned(), reason: error.to_string() }
    }

    pub(crate) fn json(path: &Path, error: &serde_json::Error) -> Self {
        Self::Json { path: path.to_owned(), reason: error.to_string() }
    }

    /// What `found` says may be a stranger's, and long.
    pub(crate) fn setting(path: &Path, field: &str, expected: &str, found: String) -> Self {
        Self::Setting {
            path: path.to_owned(),
            field: field.to_owned(),
            expected: expected.to_owned(),
            found: shortened(found),
        }
    }

    pub(crate) fn safetensors(path: &Path, reason: impl ToString) -> Self {
        Self::Safetensors { path: path.to_owned(), reason: reason.to_string() }
    }

    pub(crate) fn adapter(path: &Path, reason: impl Into<String>) -> Self {
        Self::Adapter { path: path.to_owned(), reason: reason.into() }
    }
}

fn because(reason: &str) -> String {
    match reason {
        "" => "; give the configuration that belongs to these weights, or take the tensor out".to_owned(),
        reason => format!(": {reason}"),
    }
}

fn shortened(text: String) -> String {
    const LONGEST: usize = 200;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
