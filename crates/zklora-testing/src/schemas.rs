//! The schemas in `docs/schemas`: they are those of the types, and what the programs print is what they say.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use jsonschema::Validator;
use serde_json::{Value, json};
use zklora_proto::Document;

/// The schema of a document, as strict as the version at hand: a field that it does not describe is an error.
pub struct Schema(Validator);

impl Schema {
    /// The schema of this format, from its file.
    pub fn of(format: &str) -> Self {
        let path = path(format);
        let json = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut schema: Value = serde_json::from_slice(&json).unwrap();
        close(&mut schema);
        Self(jsonschema::draft202012::options().build(&schema).unwrap())
    }

    /// Holds a document against it.
    pub fn holds(&self, case: &str, document: &Value) {
        let wrong: Vec<String> =
            self.0.iter_errors(document).map(|e| format!("{}: {e}", e.instance_path())).collect();
        assert!(wrong.is_empty(), "{case}: {wrong:#?} in {document:#}");
    }

    /// Whether a document is what it says.
    pub fn allows(&self, document: &Value) -> bool {
        self.0.is_valid(document)
    }
}

/// Holds what a program printed against the schema of the format that it names.
pub fn holds(document: &Value) {
    let format = document["format"].as_str().unwrap_or_else(|| panic!("no format in {document:#}"));
    Schema::of(format).holds(format, document);
}

/// Reads a document that a program printed, and holds it against the schema of its format.
pub fn read_document(printed: &[u8]) -> Value {
    let document: Value = serde_json::from_slice(printed)
        .unwrap_or_else(|error| panic!("{error} in {:?}", String::from_utf8_lossy(printed)));
    holds(&document);
    document
}

/// The file in `docs/schemas` is the schema of the type. With `ZKLORA_WRITE_SCHEMAS=1` it is written instead.
pub fn check_file<D: Document>() {
    let path = path(D::FORMAT);
    let made = serde_json::to_string_pretty(&D::schema()).unwrap() + "\n";
    if std::env::var_os("ZKLORA_WRITE_SCHEMAS").is_some() {
        // Other tests may be reading it.
        let mut file = tempfile::NamedTempFile::new_in(path.parent().unwrap()).unwrap();
        file.write_all(made.as_bytes()).unwrap();
        file.persist(&path).unwrap();
    }
    let said = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        said == made,
        "{} is not the schema of the type: run the tests once with ZKLORA_WRITE_SCHEMAS=1, and look at what changed",
        path.display()
    );
}

fn path(format: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/schemas");
    folder.join(format!("{}.json", format.replace('/', "-")))
}

/// Lets objects that say which fields they have to have no others.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if fields.contains_key("required") {
                fields.insert("additionalProperties".into(), json!(false));
                let described: Vec<&String> = fields["properties"].as_object().unwrap().keys().collect();
                assert_eq!(described.len(), fields["required"].as_array().unwrap().len(), "{described:?}");
            }
            fields.values_mut().for_each(close);
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        _ => {}
    }
}
