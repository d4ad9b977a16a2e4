//! What `loss` and `eval` print with `--json`, held against what a replay gave. Anybody may have written it.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use serde_json::{Map, Value};
use zklora_proto::{Bytes, read_bounded};

use crate::evaluation::Estimate;

/// By how much a reported loss may differ from the replayed one: nats, and above one nat parts of the loss. Losses are means of float32
/// numbers whose last digits depend on machine and threads, a hundred times smaller than this; and this is far below what
/// anybody would make a loss better by.
pub const LOSS_TOLERANCE: f64 = 1e-4;

/// Larger than any report of as many sessions as there are.
const MAX_BYTES: u64 = 16 << 20;

/// Why a report is none.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// It cannot be read.
    #[error("the report cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It is too long.
    #[error("the report has more than {}", Bytes(MAX_BYTES))]
    TooLarge,
    /// It is no JSON object.
    #[error("the report is not the JSON object that `loss --json` or `eval --json` prints: {0}")]
    Json(String),
}

/// Something that a report says, and a replay does not.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("the report says {field} {found}, expected {expected}")]
pub struct Disagreement {
    /// What it is about, as a JSON pointer.
    pub field: String,
    /// What the replay gave.
    pub expected: String,
    /// What the report says.
    pub found: String,
}

/// A report, as far as it can be read without knowing what is true.
#[derive(Debug)]
pub struct Report(Value);

/// What the replay gave, to be found in a report.
#[derive(Debug)]
pub struct Truth {
    /// Of the base model alone.
    pub base: Estimate,
    /// With the adapters.
    pub adapter: Estimate,
    /// The second less the first.
    pub difference: Estimate,
    /// Tokens that went through the model.
    pub tokens: usize,
    /// Which tokenizer they are of, as [`Tokenizer::digest`](crate::tokenizer::Tokenizer::digest) says it.
    pub tokenizer: String,
    /// Whether it is of a dataset, and then how many texts counted, and how many tokens were predicted.
    pub dataset: Option<[usize; 2]>,
    /// Each session, as a report has it.
    pub sessions: Vec<Map<String, Value>>,
}

impl Report {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, ReportError> {
        // Before opening: to open a pipe would wait for a writer.
        if !fs::metadata(path)?.is_file() {
            return Err(io::Error::other("it is no regular file").into());
        }
        let bytes = read_bounded(File::open(path)?, MAX_BYTES)?.ok_or(ReportError::TooLarge)?;
        Self::parse(&bytes)
    }

    fn parse(bytes: &[u8]) -> Result<Self, ReportError> {
        let object: Map<String, Value> =
            serde_json::from_slice(bytes).map_err(|error| ReportError::Json(error.to_string()))?;
        Ok(Self(Value::Object(object)))
    }

    /// The first thing in which it disagrees.
    pub fn check(&self, truth: &Truth) -> Result<(), Disagreement> {
        // Before the tokens, whose number may differ because of it.
        let tokenizer = self.0.get("tokenizer");
        if tokenizer.and_then(Value::as_str) != Some(truth.tokenizer.as_str()) {
            let found = tokenizer.map_or_else(|| "nothing".into(), brief);
            return Err(Disagreement {
                field: "/tokenizer".into(),
                expected: truth.tokenizer.clone(),
                found,
            });
        }
        // Together they tell one kind of report from the other.
        self.number("/tokens", truth.tokens as f64, 0.0)?;
        let within = |loss: f64| LOSS_TOLERANCE * loss.abs().max(1.0);
        let [of_base, of_adapter] = [within(truth.base.value), within(truth.adapter.value)];
        match truth.dataset {
            None => {
                self.number("/base_loss", truth.base.value, of_base)?;
                self.number("/adapter_loss", truth.adapter.value, of_adapter)?;
            }
            Some([texts, predicted]) => {
                self.number("/texts", texts as f64, 0.0)?;
                self.number("/predicted", predicted as f64, 0.0)?;
                self.estimate("/base/loss", truth.base, of_base)?;
                self.estimate("/adapter/loss", truth.adapter, of_adapter)?;
                self.estimate("/difference", truth.difference, of_base + of_adapter)?;
                // A relative error of what is the exponential is an absolute one of the exponent.
                for (pointer, loss, within) in [
                    ("/base/perplexity", truth.base, of_base),
                    ("/adapter/perplexity", truth.adapter, of_adapter),
                ] {
                    let perplexity = loss.exp();
                    let spread = perplexity.interval[1] * within.exp_m1();
                    self.estimate(pointer, perplexity, spread.max(perplexity.value * within.exp_m1()))?;
                }
            }
        }
        self.sessions(&truth.sessions)
    }

    fn sessions(&self, expected: &[Map<String, Value>]) -> Result<(), Disagreement> {
        let ids = |sessions: &mut dyn Iterator<Item = &Value>| {
            let mut ids: Vec<String> =
                sessions.map(|session| brief(session.get("session").unwrap_or(&Value::Null))).collect();
            ids.sort_unstable();
            ids.join(", ")
        };
        let found: &[Value] = self.0["sessions"].as_array().map_or(&[], Vec::as_slice);
        let objects: Vec<Value> = expected.iter().cloned().map(Value::Object).collect();
        let (expected_ids, found_ids) = (ids(&mut objects.iter()), ids(&mut found.iter()));
        if expected_ids != found_ids {
            let field = "/sessions".into();
            return Err(Disagreement { field, expected: expected_ids, found: shortened(found_ids) });
        }
        for session in expected {
            // There is one of each id, as just seen.
            let Some((index, said)) =
                found.iter().enumerate().find(|(_, said)| said["session"] == session["session"])
            else {
                continue;
            };
            for (key, expected) in session {
                if said.get(key) != Some(expected) {
                    return Err(Disagreement {
                        field: format!("/sessions/{index}/{key}"),
                        expected: brief(expected),
                        found: said.get(key).map_or_else(|| "nothing".into(), brief),
                    });
                }
            }
        }
        Ok(())
    }

    fn estimate(&self, pointer: &str, expected: Estimate, within: f64) -> Result<(), Disagreement> {
        self.number(&format!("{pointer}/value"), expected.value, within)?;
        for (place, bound) in expected.interval.into_iter().enumerate() {
            self.number(&format!("{pointer}/interval/{place}"), bound, within)?;
        }
        Ok(())
    }

    fn number(&self, pointer: &str, expected: f64, within: f64) -> Result<(), Disagreement> {
        let found = self.0.pointer(pointer);
        // What is infinite is null in JSON.
        let agrees = match found {
            Some(Value::Null) => !expected.is_finite(),
            found => found.and_then(Value::as_f64).is_some_and(|found| (found - expected).abs() <= within),
        };
        if agrees {
            return Ok(());
        }
        let expected = match within {
            0.0 => expected.to_string(),
            _ => format!("{expected} (within {within:.1e})"),
        };
        let found = found.map_or_else(|| "nothing".into(), brief);
        Err(Disagreement { field: pointer.into(), expected, found })
    }
}

/// A value of a stranger's, short enough for a line.
fn brief(value: &Value) -> String {
    match value {
        Value::String(text) => shortened(text.clone()),
        value => shortened(value.to_string()),
    }
}

fn shortened(text: String) -> String {
    const LONGEST: usize = 200;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_number_of_a_report_is_held_against_the_replay() {
        let truth = truth(Some([3, 90]));
        let honest = json!({
            "texts": 3, "texts_skipped": 0, "tokens": 100, "predicted": 90, "tokenizer": "cc",
            "base": { "loss": { "value": 9.0, "interval": [8.5, 9.5] }, "tokens_per_second": 7.0,
                      "perplexity": { "value": 9f64.exp(), "interval": [8.5f64.exp(), 9.5f64.exp()] } },
            "adapter": { "loss": { "value": 6.0, "interval": [5.5, 6.5] }, "tokens_per_second": 7.0,
                         "perplexity": { "value": 6f64.exp(), "interval": [5.5f64.exp(), 6.5f64.exp()] } },
            "difference": { "value": -3.0, "interval": [-3.5, -2.5] },
            "sessions": [{ "session": "bb", "calls": 4, "bundle_bytes": 7 }, { "session": "aa", "calls": 5 }],
        });
        assert_eq!(check(&honest, &truth), Ok(()));
        for (pointer, value) in [
            ("/texts", json!(4)),
            ("/tokens", json!(99)),
            ("/tokenizer", json!("cd")),
            ("/tokenizer", json!(null)),
            ("/predicted", json!(91)),
            ("/base/loss/value", json!(9.01)),
            ("/adapter/loss/value", json!(5.99)),
            ("/adapter/loss/value", json!("6.0")),
            ("/adapter/loss/interval/0", json!(5.4)),
            ("/adapter/loss/interval/1", json!(null)),
            ("/adapter/perplexity/value", json!(400.0)),
            ("/difference/value", json!(-3.01)),
            ("/difference/interval/1", json!(-2.6)),
            ("/sessions/1/calls", json!(6)),
            ("/sessions", json!([{ "session": "aa", "calls": 5 }])),
            ("/sessions", json!([{ "session": "aa" }, { "session": "aa" }])),
            ("/sessions", json!("aa")),
        ] {
            let mut changed = honest.clone();
            *changed.pointer_mut(pointer).unwrap() = value;
            assert_eq!(check(&changed, &truth).unwrap_err().field, pointer);
        }
        // Within the tolerance.
        let mut near = honest.clone();
        near["adapter"]["loss"]["value"] = json!(6.0003);
        assert_eq!(check(&near, &truth), Ok(()));
        // The other kind of report.
        let error = check(&json!({ "tokens": 100, "tokenizer": "cc", "base_loss": 9.0 }), &truth)
            .unwrap_err()
            .to_string();
        assert_eq!(error, "the report says /texts nothing, expected 3");
        let error = check(&json!({ "tokens": 100, "base_loss": 9.0 }), &truth).unwrap_err().to_string();
        assert_eq!(error, "the report says /tokenizer nothing, expected cc");
    }

    #[test]
    fn a_report_of_one_text_is_another() {
        let honest = json!({
            "base_loss": 9.0, "adapter_loss": 6.0, "tokens": 100, "tokenizer": "cc",
            "sessions": [{ "session": "aa", "calls": 5 }, { "session": "bb", "calls": 4 }],
        });
        assert_eq!(check(&honest, &truth(None)), Ok(()));
        let mut changed = honest.clone();
        changed["adapter_loss"] = json!(null);
        let error = check(&changed, &truth(None)).unwrap_err().to_string();
        assert_eq!(error, "the report says /adapter_loss null, expected 6 (within 6.0e-4)");
    }

    #[test]
    fn what_is_no_report_is_refused() {
        for bytes in [&b"[1]"[..], b"", b"{", b"\xff", "[".repeat(1 << 16).as_bytes()] {
            assert!(matches!(Report::parse(bytes), Err(ReportError::Json(_))));
        }
        // What strangers write is not repeated at length.
        let long = json!({ "tokenizer": "cc", "tokens": "9".repeat(1 << 16) });
        assert!(check(&long, &truth(None)).unwrap_err().to_string().len() < 400);
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(Report::read(folder.path()), Err(ReportError::Io(_))));
        let path = folder.path().join("large");
        File::create(&path).unwrap().set_len(MAX_BYTES + 1).unwrap();
        assert!(matches!(Report::read(&path), Err(ReportError::TooLarge)));
    }

    fn check(report: &Value, truth: &Truth) -> Result<(), Disagreement> {
        Report::parse(report.to_string().as_bytes()).unwrap().check(truth)
    }

    fn truth(dataset: Option<[usize; 2]>) -> Truth {
        let estimate = |value: f64| Estimate { value, interval: [value - 0.5, value + 0.5] };
        let session = |id: &str, calls: u64| {
            [("session".to_owned(), json!(id)), ("calls".to_owned(), json!(calls))].into_iter().collect()
        };
        Truth {
            base: estimate(9.0),
            adapter: estimate(6.0),
            difference: estimate(-3.0),
            tokens: 100,
            tokenizer: "cc".into(),
            dataset,
            sessions: vec![session("aa", 5), session("bb", 4)],
        }
    }
}
