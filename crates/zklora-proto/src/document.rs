//! JSON documents that the programs print for other programs: each has a type, a `format` with a version, and a schema made from the
//! type.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::json::Object;

/// What a program prints with `--json`. Fields are only ever added under the same format.
pub trait Document: Serialize + JsonSchema {
    /// Its name and version, such as `zklora-verify/2`: the first field.
    const FORMAT: &'static str;
    /// The command that prints it, such as `zklora-verifier verify --json`.
    const PRINTED_BY: &'static str;

    /// The document in one line.
    ///
    /// Fails as [`serde_json::to_string`] does.
    fn to_line(&self) -> serde_json::Result<String> {
        serde_json::to_string(&Versioned { format: Self::FORMAT, document: self })
    }

    /// The document in lines that people can read.
    ///
    /// Fails as [`serde_json::to_string_pretty`] does.
    fn to_pretty(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(&Versioned { format: Self::FORMAT, document: self })
    }

    /// Reads one. Fields that are not known are passed over: who prints them may be newer.
    fn parse(json: &[u8]) -> Result<Self, DocumentError>
    where
        Self: DeserializeOwned,
    {
        let found = format_of(json)?;
        if found != Self::FORMAT {
            return Err(DocumentError::other(&found, Self::FORMAT));
        }
        Ok(serde_json::from_slice::<Object<_>>(json)?.0)
    }

    /// The JSON schema (draft 2020-12) of what is printed.
    fn schema() -> Value {
        let settings = SchemaSettings::draft2020_12().for_serialize();
        let root = SchemaGenerator::new(settings).into_root_schema_for::<Self>();
        let mut schema = root.to_value();
        schema["title"] = Self::FORMAT.into();
        schema["description"] = format!(
            "What `{}` prints. Fields are only ever added: take what you know and pass over the rest.",
            Self::PRINTED_BY
        )
        .into();
        schema["properties"]["format"] = json!({ "const": Self::FORMAT });
        if let Some(required) = schema["required"].as_array_mut() {
            required.insert(0, "format".into());
        }
        schema
    }
}

/// The `format` of a document, by which one is told from another.
pub fn format_of(json: &[u8]) -> Result<String, DocumentError> {
    #[derive(Deserialize)]
    struct Form {
        format: String,
    }
    Ok(serde_json::from_slice::<Object<Form>>(json)?.0.format)
}

/// Why a document cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DocumentError {
    /// It is no JSON object, or a field is missing or of another type.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// It is something else, or of another version.
    #[error("its format is {found:?}, expected {expected}")]
    Format {
        /// What was asked for.
        expected: &'static str,
        /// What it says, as far as a line takes it.
        found: String,
    },
}

impl DocumentError {
    /// That the format `found` is another than was `expected`.
    pub fn other(found: &str, expected: &'static str) -> Self {
        Self::Format { expected, found: found.chars().take(64).collect() }
    }
}

#[derive(Serialize)]
struct Versioned<'a, D: ?Sized> {
    format: &'static str,
    #[serde(flatten)]
    document: &'a D,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
    struct Example {
        /// How many.
        count: u64,
        name: Option<String>,
    }

    impl Document for Example {
        const FORMAT: &'static str = "zklora-example/2";
        const PRINTED_BY: &'static str = "example --json";
    }

    #[test]
    fn a_document_is_read_as_it_was_written() {
        let example = Example { count: 3, name: None };
        let line = example.to_line().unwrap();
        assert_eq!(line, r#"{"format":"zklora-example/2","count":3,"name":null}"#);
        assert_eq!(Example::parse(line.as_bytes()).unwrap(), example);
        assert_eq!(Example::parse(example.to_pretty().unwrap().as_bytes()).unwrap(), example);
        let newer = line.replace('}', r#","more":[]}"#);
        assert_eq!(Example::parse(newer.as_bytes()).unwrap(), example);
    }

    #[test]
    fn what_is_no_such_document_is_refused() {
        for (json, expected) in [
            (r#"{"format":"zklora-example/1","count":3}"#, "expected zklora-example/2"),
            (r#"{"count":3}"#, "missing field `format`"),
            (r#"{"format":"zklora-example/2"}"#, "missing field `count`"),
            (r#"{"format":"zklora-example/2","count":-1}"#, "expected u64"),
            (r#"["zklora-example/2", 3, null]"#, "expected an object"),
            ("", "EOF"),
        ] {
            let error = Example::parse(json.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{json}: {error}");
        }
    }

    #[test]
    fn the_schema_has_the_format_and_every_field() {
        let schema = Example::schema();
        assert_eq!(schema["required"], json!(["format", "count", "name"]));
        assert_eq!(schema["properties"]["format"], json!({ "const": "zklora-example/2" }));
        assert_eq!(schema["properties"]["count"]["description"], "How many.");
        assert!(schema["description"].as_str().unwrap().contains("`example --json`"));
    }
}
