use std::path::PathBuf;

use crate::reference::Reference;

/// Why a base model or an adapter could not be had by its name.
///
/// The text says what was asked for, what was found and what to do. No variant holds a token.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Neither a folder nor a name on the hub.
    #[error("{text:?}: {reason}")]
    Reference {
        /// What was given.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// An environment variable has a value that cannot be used, or there is none where one is needed.
    #[error("{name}: {reason}")]
    Variable {
        /// The variable.
        name: &'static str,
        /// What is wrong with it.
        reason: String,
    },

    /// The hub, or the host that it sends us to for a file, cannot be reached.
    #[error(
        "cannot reach {host}: {reason}; without a network, set HF_HUB_OFFLINE=1 to use what the cache holds, or give a folder"
    )]
    Unreachable {
        /// The host.
        host: String,
        /// Why not.
        reason: String,
    },

    /// The hub has no such repository.
    #[error(
        "{endpoint} has no model repository {} (asked for {reference}); check the name; if a folder was meant, there is \
         none of that name here",
        .reference.id()
    )]
    NoRepository {
        /// The hub.
        endpoint: String,
        /// What was asked for.
        reference: Reference,
    },

    /// The repository has no such revision.
    #[error("{} has no revision {:?}; give a branch, a tag or a commit that it has", .reference.id(), .reference.revision())]
    NoRevision {
        /// What was asked for.
        reference: Reference,
    },

    /// The hub does not let this user have it, or hides that it does not exist.
    #[error("{endpoint} does not give access to {reference} (status {status}): {}", denied(.reference, .endpoint, *.with_token))]
    Denied {
        /// The hub.
        endpoint: String,
        /// What was asked for.
        reference: Reference,
        /// 401 or 403.
        status: u16,
        /// Whether a token was sent.
        with_token: bool,
    },

    /// The hub answered with an error of its own.
    #[error("{host} answered with status {status} when asked for {what}; try again later")]
    Status {
        /// Who answered.
        host: String,
        /// What was asked for.
        what: String,
        /// The status of HTTP.
        status: u16,
    },

    /// An answer of the hub is not what it should be.
    #[error("the answer to the request for {what} is not sound: expected {expected}, found {found}")]
    Answer {
        /// What was asked for.
        what: String,
        /// What was expected.
        expected: &'static str,
        /// What was found.
        found: String,
    },

    /// The repository lacks a file that has to be there.
    #[error(
        "{reference} has no {file} in its top folder, so it is not what was asked for, or not in a form that can be read"
    )]
    NoFile {
        /// What was asked for.
        reference: Reference,
        /// The file.
        file: String,
    },

    /// The repository has its weights only as a pickle.
    #[error(
        "{reference} has {pickle} but no {file}: a pickle can run code, so it is not read; load it once with transformers or PEFT and \
         save_pretrained(FOLDER, safe_serialization=True), then give that folder"
    )]
    Pickle {
        /// What was asked for.
        reference: Reference,
        /// The pickle.
        pickle: String,
        /// What would be read.
        file: &'static str,
    },

    /// A shard index lists what cannot be a shard.
    #[error("{}: weight_map names {found}, expected at most 1024 files *.safetensors in the same folder", .path.display())]
    Index {
        /// The index.
        path: PathBuf,
        /// What it lists.
        found: String,
    },

    /// Offline, and the cache lacks a file.
    #[error(
        "{file} of {reference} is not in the cache {}, and HF_HUB_OFFLINE is set; unset it to download, or give a folder",
        .cache.display()
    )]
    NotCached {
        /// What was asked for.
        reference: Reference,
        /// What the cache lacks.
        file: String,
        /// The cache.
        cache: PathBuf,
    },

    /// A file is larger than anything of its kind.
    #[error("{file} of {reference} has {found} bytes, at most {limit} are accepted")]
    TooLarge {
        /// What was asked for.
        reference: Reference,
        /// The file.
        file: String,
        /// Its size in bytes.
        found: u64,
        /// The largest size accepted, in bytes.
        limit: u64,
    },

    /// A file does not fit on the disk.
    #[error("{file} takes {needed} more bytes, but only {free} are free in {}; make room or set HF_HUB_CACHE", .cache.display())]
    NoRoom {
        /// The file.
        file: String,
        /// Bytes to come.
        needed: u64,
        /// Bytes free.
        free: u64,
        /// The folder of the cache.
        cache: PathBuf,
    },

    /// A download broke off again and again.
    #[error(
        "{file} broke off after {have} of {size} bytes: {reason}; run the same command again, which goes on from there"
    )]
    BrokeOff {
        /// The file.
        file: String,
        /// Bytes that are there.
        have: u64,
        /// Bytes that should be.
        size: u64,
        /// What happened last.
        reason: String,
    },

    /// What was downloaded is not what the hub had announced.
    #[error(
        "{file} has SHA-256 {found}, but the hub announced {expected}; it was thrown away, run the same command again"
    )]
    Digest {
        /// The file.
        file: String,
        /// The digest announced, in hexadecimal.
        expected: String,
        /// The digest of what came.
        found: String,
    },

    /// The operating system refused something in the cache.
    #[error("{}: {reason}", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        reason: String,
    },

    /// A file that was fetched cannot be read.
    #[error(transparent)]
    File(#[from] zklora_hf::Error),
}

fn denied(reference: &Reference, endpoint: &str, with_token: bool) -> String {
    let page = format!("{endpoint}/{}", reference.id());
    if with_token {
        format!(
            "check the name; for a gated model accept its terms at {page} as the user whose token HF_TOKEN is"
        )
    } else {
        format!(
            "it does not exist, or it is private or gated; check the name; for a gated model accept its terms at {page} and set \
             HF_TOKEN"
        )
    }
}
