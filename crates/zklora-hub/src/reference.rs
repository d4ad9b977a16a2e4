//! A name on the hub.

use std::fmt;

use hf_hub::{Repo, RepoType};

/// A model repository on the hub and a revision of it; both can be parts of paths and addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    id: String,
    revision: String,
}

impl Reference {
    /// A name and a revision, or why that is none.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        let (id, revision) = text.split_once('@').unwrap_or((text, "main"));
        if !is_id(id) {
            return Err(
                "there is no such folder, and a name on the hub looks like gpt2 or organisation/name, with @revision if wanted",
            );
        }
        if !is_revision(revision) {
            return Err(
                "what follows the @ is not a revision: expected a branch, a tag or a commit such as main",
            );
        }
        Ok(Self { id: id.to_owned(), revision: revision.to_owned() })
    }

    /// The repository, such as `gpt2` or `ng0-k1/distilgpt2-finetuned-es`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// A branch, a tag or a commit; `main` if none was given.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// Whether the revision is a commit in full, which cannot come to mean another one.
    pub(crate) fn is_commit(&self) -> bool {
        is_commit(&self.revision)
    }

    pub(crate) fn repo(&self) -> Repo {
        Repo::with_revision(self.id.clone(), RepoType::Model, self.revision.clone())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.id, self.revision)
    }
}

/// A name that is one component of a path, not hidden, and the same in an address.
pub(crate) fn is_plain(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (1..=MAX_NAME).contains(&name.len()) && name.chars().all(plain) && !name.starts_with('.')
}

pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && is_lower_hex(text)
}

pub(crate) fn is_lower_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The rule of huggingface_hub's `validate_repo_id`.
fn is_id(id: &str) -> bool {
    let (owner, name) = id.split_once('/').map_or((None, id), |(owner, name)| (Some(owner), name));
    let part = |part: &str| is_plain(part) && !part.starts_with('-') && !part.ends_with(['-', '.']);
    id.len() <= MAX_ID
        && owner.is_none_or(part)
        && part(name)
        && !id.contains("--")
        && !id.contains("..")
        && !id.ends_with(".git")
}

fn is_revision(revision: &str) -> bool {
    revision.len() <= MAX_NAME && revision.split('/').all(is_plain)
}

const MAX_ID: usize = 96;
const MAX_NAME: usize = 200;
