use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::Error;
use crate::reference::Reference;

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
        Reference::parse(text).map(Self::Hub).or_else(refusal)
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
            let Source::Hub(reference) = &source else { panic!("{text} is a folder") };
            assert_eq!((reference.id(), reference.revision()), (id, revision));
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
