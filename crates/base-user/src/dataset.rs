//! Texts to evaluate on, from a file.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use zklora_proto::Bytes;

/// One text of a dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// The line of the file, from 1.
    pub line: usize,
    /// The text, or what the completion follows.
    pub text: String,
    /// What is predicted, if that is not the text itself.
    pub completion: Option<String>,
}

/// Which fields of a JSON object are read.
#[derive(Debug, Clone)]
pub struct Fields {
    /// The text.
    pub text: String,
    /// The completion. Without a name, `completion` or else `label`, if there is one.
    pub completion: Option<String>,
}

/// Why a dataset cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatasetError {
    /// The operating system refuses.
    #[error("cannot read {}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it says.
        source: std::io::Error,
    },
    /// A line that is not what it should be.
    #[error("{}, line {line}: {reason}", .path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What was expected and what was found.
        reason: String,
    },
    /// There is nothing in it.
    #[error("{} has no text in it", .path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// Reads a file: each line of a `.jsonl` or `.json` file is an object with the text in a field; each line of any other is a
/// text. Empty lines are left out.
///
/// Fails if the file cannot be read, has no text, or has a line that is too long, no UTF-8, or no such object.
pub fn read(path: &Path, fields: &Fields) -> Result<Vec<Example>, DatasetError> {
    let json = path.extension().is_some_and(|extension| extension == "jsonl" || extension == "json");
    let io = |source| DatasetError::Io { path: path.to_owned(), source };
    let mut file = BufReader::new(File::open(path).map_err(io)?);
    let mut examples = Vec::new();
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        let refuse = |reason: String| DatasetError::Line { path: path.to_owned(), line, reason };
        if (&mut file).take(MAX_LINE_BYTES + 1).read_until(b'\n', &mut bytes).map_err(io)? == 0 {
            break;
        }
        if bytes.len() as u64 > MAX_LINE_BYTES {
            return Err(refuse(format!("it is longer than {}; split it", Bytes(MAX_LINE_BYTES))));
        }
        let text =
            std::str::from_utf8(&bytes).map_err(|error| refuse(format!("it is not UTF-8: {error}")))?;
        if line == 1 && text.starts_with(BYTE_ORDER_MARK) {
            return Err(refuse(
                "it begins with a byte order mark; save the file as UTF-8 without one".into(),
            ));
        }
        let text = text.trim_end_matches(['\r', '\n']);
        if text.trim().is_empty() {
            continue;
        }
        examples.push(match json {
            true => fields.example(line, text).map_err(refuse)?,
            false => Example { line, text: text.to_owned(), completion: None },
        });
    }
    if examples.is_empty() {
        return Err(DatasetError::Empty { path: path.to_owned() });
    }
    Ok(examples)
}

impl Fields {
    /// The example in a line of JSON.
    fn example(&self, line: usize, json: &str) -> Result<Example, String> {
        let object: Map<String, Value> =
            serde_json::from_str(json).map_err(|error| format!("expected a JSON object: {error}"))?;
        let string = |name: &str| match object.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            // Labels are often numbers.
            Some(value @ (Value::Number(_) | Value::Bool(_))) => Ok(Some(value.to_string())),
            Some(_) => Err(format!("expected a text in the field {name:?}, found an array or an object")),
        };
        let missing = |name: &str| {
            let there: Vec<&str> = object.keys().map(String::as_str).take(8).collect();
            format!("there is no field {name:?}, only {}; name another field", there.join(", "))
        };
        let text = string(&self.text)?.ok_or_else(|| missing(&self.text))?;
        let completion = match &self.completion {
            Some(name) => Some(string(name)?.ok_or_else(|| missing(name))?),
            None => match string("completion")? {
                Some(completion) => Some(completion),
                None => string("label")?,
            },
        };
        Ok(Example { line, text, completion })
    }
}

const BYTE_ORDER_MARK: char = '\u{feff}';

/// Far longer than any text that a model takes at once.
const MAX_LINE_BYTES: u64 = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_text_and_of_json_are_read() {
        let txt = examples("a.txt", "one\r\n\n  \ntwo\n").unwrap();
        assert_eq!(
            txt.iter().map(|e| (e.line, e.text.as_str())).collect::<Vec<_>>(),
            [(1, "one"), (4, "two")]
        );
        let jsonl = examples(
            "a.jsonl",
            "{\"text\":\"a\",\"label\":1}\n{\"text\":\"b\",\"completion\":\" c\",\"label\":2}\n{\"text\":\"d\"}\n",
        )
        .unwrap();
        let completions: Vec<Option<&str>> = jsonl.iter().map(|e| e.completion.as_deref()).collect();
        assert_eq!(completions, [Some("1"), Some(" c"), None]);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (name, content, why) in [
            ("a.jsonl", "{\"text\":\"a\"}\n[1]\n", "line 2: expected a JSON object"),
            ("a.jsonl", "{\"body\":\"a\"}\n", "line 1: there is no field \"text\", only body"),
            ("a.jsonl", "{\"text\":[1]}\n", "expected a text in the field \"text\""),
            ("a.txt", "\n\n", "has no text in it"),
            ("a.txt", "\u{feff}uno\n", "line 1: it begins with a byte order mark"),
            ("a.jsonl", "\u{feff}{\"text\":\"a\"}\n", "line 1: it begins with a byte order mark"),
        ] {
            let message = examples(name, content).unwrap_err().to_string();
            assert!(message.contains(why), "{message:?} should contain {why:?}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        std::fs::write(&path, [b'a', 0xff, b'\n']).unwrap();
        assert!(read(&path, &fields()).unwrap_err().to_string().contains("not UTF-8"));
        assert!(read(folder.path(), &fields()).unwrap_err().to_string().contains("cannot read"));
    }

    fn examples(name: &str, content: &str) -> Result<Vec<Example>, DatasetError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        read(&path, &fields())
    }

    fn fields() -> Fields {
        Fields { text: "text".into(), completion: None }
    }
}
