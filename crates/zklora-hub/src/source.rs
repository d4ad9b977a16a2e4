use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use hf_hub::{Repo, RepoType};

use super::Error;

/// Where a base model or an adapter is.
///
/// Parsed as transformers does it: a folder that exists wins over a name on the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A folder on this machine.
    Folder(PathBuf),
    /// A repository on the Hugging Face hub.
    Hub(Reference),
}

impl FromStr for Source {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let refusal = |reason| Err(Error::Reference { text: text.to_owned(), reason });
        let path = Path::new(text);
        if path.is_dir() {
            return Ok(Self::Folder(path.to_owned()));
        }
        if path.exists() {
            return refusal("is not a folder; give the folder that holds config.json or adapter_config.json");
        }
        if text.starts_with(['.', '/', '~']) || text.ends_with('/') || text.contains('\\') {
            return refusal("there is no such folder");
        }
        // As models of an organisation do: `fixtures/gpt-tiny` where there is a folder `fixtures`.
        let first = text.split('/').next().filter(|first| *first != text);
        if !text.contains('@') && first.is_some_and(|first| Path::new(first).is_dir()) {
            return refusal(
                "there is no such folder, though where it would be there is one; if a name on the hub is meant, add @main",
            );
        }
        let (id, revision) = text.split_once('@').unwrap_or((text, "main"));
        if !is_id(id) {
            return refusal(
                "there is no such folder, and a name on the hub looks like gpt2 or organisation/name, with @revision if wanted",
            );
        }
        if !is_revision(revision) {
            return refusal(
                "what follows the @ is not a revision: expected a branch, a tag or a commit such as main",
            );
        }
        Ok(Self::Hub(Reference { id: id.to_owned(), revision: revision.to_owned() }))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => folder.display().fmt(f),
            Self::Hub(reference) => reference.fmt(f),
        }
    }
}

/// A model repository on the hub and a revision of it; both can be parts of paths and addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    id: String,
    revision: String,
}

impl Reference {
    /// The repository, such as `gpt2` or `ng0-k1/distilgpt2-finetuned-es`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// A branch, a tag or a commit; `main` if none was given.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// Whether the revision is a commit in full, which cannot come to mean another one.
    pub(super) fn is_commit(&self) -> bool {
        is_commit(&self.revision)
    }

    pub(super) fn repo(&self) -> Repo {
        Repo::with_revision(self.id.clone(), RepoType::Model, self.revision.clone())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.id, self.revision)
    }
}

/// A name that is one component of a path, not hidden, and the same in an address.
pub(super) fn is_plain(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (1..=MAX_NAME).contains(&name.len()) && name.chars().all(plain) && !name.starts_with('.')
}

pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && is_lower_hex(text)
}

pub(super) fn is_lower_hex(text: &str) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_on_the_hub() {
        for (text, id, revision) in [
            ("distilgpt2", "distilgpt2", "main"),
            ("ng0-k1/distilgpt2-finetuned-es", "ng0-k1/distilgpt2-finetuned-es", "main"),
            (
                "gpt2@607a30d783dfa663caf39e06633721c8d4cfcd7e",
                "gpt2",
                "607a30d783dfa663caf39e06633721c8d4cfcd7e",
            ),
            ("o/n@refs/pr/1", "o/n", "refs/pr/1"),
            // There is a folder `src`, and one can say that it is not meant.
            ("src/n@main", "src/n", "main"),
        ] {
            let source: Source = text.parse().unwrap();
            assert_eq!(source, Source::Hub(Reference { id: id.into(), revision: revision.into() }));
            assert_eq!(source.to_string(), format!("{id}@{revision}"));
        }
    }

    #[test]
    fn an_existing_folder_wins() {
        for folder in ["src", ".", "/"] {
            assert_eq!(folder.parse::<Source>().unwrap(), Source::Folder(folder.into()));
        }
    }

    #[test]
    fn neither_a_folder_nor_a_name() {
        for (text, why) in [
            ("./nowhere", "there is no such folder"),
            ("/nowhere/at/all", "there is no such folder"),
            ("~/models/gpt2", "there is no such folder"),
            ("nowhere/", "there is no such folder"),
            ("src/nowhere", "there is no such folder, though where it would be there is one"),
            ("src/hub/nowhere", "there is no such folder, though where it would be there is one"),
            ("Cargo.toml", "is not a folder"),
            ("", "a name on the hub looks like"),
            ("a/b/c", "a name on the hub looks like"),
            ("a--b", "a name on the hub looks like"),
            ("a/..", "a name on the hub looks like"),
            ("a b", "a name on the hub looks like"),
            ("o/n?x=1", "a name on the hub looks like"),
            ("gpt2@", "is not a revision"),
            ("gpt2@../../x", "is not a revision"),
            ("gpt2@a//b", "is not a revision"),
            ("gpt2@a?b", "is not a revision"),
        ] {
            let message = text.parse::<Source>().unwrap_err().to_string();
            assert!(message.contains(why), "{text:?}: {message:?} should contain {why:?}");
        }
    }
}
