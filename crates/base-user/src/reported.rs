//! What `loss` and `eval` print with `--json`, held against what a replay gave. Anybody may have written it.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use zklora_proto::document::DocumentError;
use zklora_proto::{Bytes, TokenizerDigest, read_bounded};
use zklora_verdict::{Estimate, MAX_EVALUATION_BYTES, MeanReport, Measured, SessionReport};

/// By how much a reported loss may differ from the replayed one: nats, and above one nat parts of the loss. Losses are means of float32
/// numbers whose last digits depend on machine and threads, a hundred times smaller than this; and this is far below what
/// anybody would make a loss better by.
pub const LOSS_TOLERANCE: f64 = 1e-4;

/// Why a report is none.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// It cannot be read.
    #[error("the report cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It is too long.
    #[error("the report has more than {}", Bytes(MAX_EVALUATION_BYTES))]
    TooLarge,
    /// It is another document, or none.
    #[error("the report is not what `loss --json` or `eval --json` prints: {0}")]
    Document(#[from] DocumentError),
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
pub struct Report(Measured);

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
    pub tokens: u64,
    /// Which tokenizer they are of.
    pub tokenizer: TokenizerDigest,
    /// Whether it is of a dataset, and then how many texts counted, and how many tokens were predicted.
    pub dataset: Option<[u64; 2]>,
    /// Each session, as its receipt has it.
    pub sessions: Vec<SessionReport>,
}

impl Report {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, ReportError> {
        // Before opening: to open a pipe would wait for a writer.
        if !fs::metadata(path)?.is_file() {
            return Err(io::Error::other("it is no regular file").into());
        }
        let bytes = read_bounded(File::open(path)?, MAX_EVALUATION_BYTES)?.ok_or(ReportError::TooLarge)?;
        Self::parse(&bytes)
    }

    fn parse(bytes: &[u8]) -> Result<Self, ReportError> {
        Ok(Self(Measured::parse(bytes)?))
    }

    /// The first thing in which it disagrees.
    pub fn check(&self, truth: &Truth) -> Result<(), Disagreement> {
        let (tokenizer, tokens) = match &self.0 {
            Measured::Loss(loss) => (loss.tokenizer, loss.tokens),
            Measured::Eval(eval) => (eval.tokenizer, eval.tokens),
        };
        // Before the tokens, whose number may differ because of it.
        same("/tokenizer", tokenizer, truth.tokenizer)?;
        same("/tokens", tokens, truth.tokens)?;
        let within = |loss: f64| LOSS_TOLERANCE * loss.abs().max(1.0);
        let [of_base, of_adapter] = [within(truth.base.value), within(truth.adapter.value)];
        match (&self.0, truth.dataset) {
            (Measured::Loss(loss), None) => {
                number("/base_loss", Some(loss.base_loss), truth.base.value, of_base)?;
                number("/adapter_loss", loss.adapter_loss, truth.adapter.value, of_adapter)?;
            }
            (Measured::Eval(eval), Some([texts, predicted])) => {
                same("/texts", eval.texts, texts)?;
                same("/predicted", eval.predicted, predicted)?;
                mean("/base", Some(&eval.base), truth.base, of_base)?;
                mean("/adapter", eval.adapter.as_ref(), truth.adapter, of_adapter)?;
                estimate("/difference", eval.difference, truth.difference, of_base + of_adapter)?;
            }
            (Measured::Loss(_), Some(_)) => differs("/format", "zklora-loss/1", "zklora-eval/1")?,
            (Measured::Eval(_), None) => differs("/format", "zklora-eval/1", "zklora-loss/1")?,
        }
        sessions(self.0.sessions(), &truth.sessions)
    }
}

fn sessions(found: &[SessionReport], expected: &[SessionReport]) -> Result<(), Disagreement> {
    let ids = |sessions: &[SessionReport]| {
        let mut ids: Vec<String> = sessions.iter().map(|session| session.session.to_string()).collect();
        ids.sort_unstable();
        ids.join(", ")
    };
    same("/sessions", ids(found), ids(expected))?;
    for expected in expected {
        // There is one of each id, as just seen.
        let Some(index) = found.iter().position(|said| said.session == expected.session) else { continue };
        let said = &found[index];
        let at = |field: &str| format!("/sessions/{index}/{field}");
        same(&at("adapter"), said.adapter, expected.adapter)?;
        same(&at("contributor"), said.contributor, expected.contributor)?;
        same(&at("client"), said.client, expected.client)?;
        same(&at("base_model"), said.base_model, expected.base_model)?;
        same(&at("calls"), said.calls, expected.calls)?;
        same(&at("rows"), format!("{:?}", said.rows), format!("{:?}", expected.rows))?;
        same(&at("transcript"), said.transcript, expected.transcript)?;
    }
    Ok(())
}

fn mean(
    field: &str,
    found: Option<&MeanReport>,
    expected: Estimate,
    within: f64,
) -> Result<(), Disagreement> {
    estimate(&format!("{field}/loss"), found.map(|found| found.loss), expected, within)?;
    // A relative error of what is the exponential is an absolute one of the exponent.
    let perplexity = expected.exp();
    let spread = perplexity.interval[1].max(perplexity.value) * within.exp_m1();
    let field = format!("{field}/perplexity");
    match found.and_then(|found| found.perplexity) {
        // Nearly all of float64: on another machine it may be on the other side of its end.
        None if !perplexity.is_finite() || !spread.is_finite() => Ok(()),
        found => estimate(&field, found, perplexity, spread),
    }
}

fn estimate(
    field: &str,
    found: Option<Estimate>,
    expected: Estimate,
    within: f64,
) -> Result<(), Disagreement> {
    number(&format!("{field}/value"), found.map(|found| found.value), expected.value, within)?;
    for (place, bound) in expected.interval.into_iter().enumerate() {
        let found = found.map(|found| found.interval[place]);
        number(&format!("{field}/interval/{place}"), found, bound, within)?;
    }
    Ok(())
}

fn number(field: &str, found: Option<f64>, expected: f64, within: f64) -> Result<(), Disagreement> {
    match found {
        Some(found) if (found - expected).abs() <= within => Ok(()),
        found => {
            let found = found.map_or_else(|| "nothing".to_owned(), |found| found.to_string());
            differs(field, found, format!("{expected} (within {within:.1e})"))
        }
    }
}

fn same<T: PartialEq + ToString>(field: &str, found: T, expected: T) -> Result<(), Disagreement> {
    if found == expected { Ok(()) } else { differs(field, found, expected) }
}

fn differs(field: &str, found: impl ToString, expected: impl ToString) -> Result<(), Disagreement> {
    let [found, expected] = [found.to_string(), expected.to_string()].map(shortened);
    Err(Disagreement { field: field.into(), expected, found })
}

/// What a stranger says, short enough for a line.
fn shortened(text: String) -> String {
    const LONGEST: usize = 200;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use zklora_proto::{Document, SessionId};
    use zklora_verdict::{EvalReport, LossReport};

    use super::*;

    #[test]
    fn every_number_of_a_report_is_held_against_the_replay() {
        let truth = truth(Some([3, 90]));
        let honest = eval(&truth);
        assert_eq!(check(&honest, &truth), Ok(()));
        let sessions = honest["sessions"].clone();
        let other = json!("ee".repeat(32));
        for (pointer, value) in [
            ("/texts", json!(4)),
            ("/tokens", json!(99)),
            ("/tokenizer", other.clone()),
            ("/predicted", json!(91)),
            ("/base/loss/value", json!(9.01)),
            ("/adapter/loss/value", json!(5.99)),
            ("/adapter/loss/interval/0", json!(5.4)),
            ("/adapter/perplexity/value", json!(400.0)),
            ("/difference/value", json!(-3.01)),
            ("/difference/interval/1", json!(-2.6)),
            ("/sessions/1/calls", json!(6)),
            ("/sessions/1/rows", json!([1, 2, 4])),
            ("/sessions/0/adapter", other.clone()),
            ("/sessions/0/contributor", other.clone()),
            ("/sessions/0/client", other.clone()),
            ("/sessions/0/base_model", other.clone()),
            ("/sessions/0/transcript", other.clone()),
            ("/sessions", json!([sessions[0]])),
            ("/sessions", json!([sessions[0], sessions[0]])),
            ("/sessions", json!([])),
        ] {
            let mut changed = honest.clone();
            *changed.pointer_mut(pointer).unwrap() = value;
            assert_eq!(check(&changed, &truth).unwrap_err().field, pointer);
        }
        for (pointer, field) in [
            ("/adapter", "/adapter/loss/value"),
            ("/adapter/perplexity", "/adapter/perplexity/value"),
            ("/difference", "/difference/value"),
        ] {
            let mut changed = honest.clone();
            *changed.pointer_mut(pointer).unwrap() = Value::Null;
            let error = check(&changed, &truth).unwrap_err();
            assert_eq!((error.field.as_str(), error.found.as_str()), (field, "nothing"));
        }
        // Within the tolerance.
        let mut near = honest.clone();
        near["adapter"]["loss"]["value"] = json!(6.0003);
        assert_eq!(check(&near, &truth), Ok(()));
        // What nobody can check is not held against anything.
        near["base"]["tokens_per_second"] = json!(1e9);
        near["sessions"][0]["bundle_bytes"] = json!(77);
        assert_eq!(check(&near, &truth), Ok(()));
    }

    #[test]
    fn a_perplexity_beyond_float64_is_null_and_agrees() {
        let mut truth = truth(Some([3, 90]));
        truth.base = Estimate { value: 709.5, interval: [709.0, 720.0] };
        let mut report = eval(&truth);
        assert_eq!(report["base"]["perplexity"], Value::Null);
        assert_eq!(check(&report, &truth), Ok(()));
        report["base"]["loss"]["interval"][1] = json!(721.0);
        assert_eq!(check(&report, &truth).unwrap_err().field, "/base/loss/interval/1");
    }

    #[test]
    fn a_report_of_one_text_is_another() {
        let truth = truth(None);
        let honest = loss(&truth);
        assert_eq!(check(&honest, &truth), Ok(()));
        let mut changed = honest.clone();
        changed["adapter_loss"] = json!(null);
        let error = check(&changed, &truth).unwrap_err().to_string();
        assert_eq!(error, "the report says /adapter_loss nothing, expected 6 (within 6.0e-4)");
        let of_dataset = Truth { dataset: Some([3, 90]), ..truth };
        let error = check(&honest, &of_dataset).unwrap_err().to_string();
        assert_eq!(error, "the report says /format zklora-loss/1, expected zklora-eval/1");
    }

    #[test]
    fn what_is_no_report_is_refused() {
        for bytes in [&b"[1]"[..], b"", b"{", b"{}", b"\xff", "[".repeat(1 << 16).as_bytes()] {
            assert!(matches!(Report::parse(bytes), Err(ReportError::Document(_))));
        }
        let honest = loss(&truth(None));
        for (field, value) in [
            ("tokenizer", json!(null)),
            ("tokenizer", json!("ab")),
            ("tokens", json!("9")),
            ("base_loss", json!(null)),
            ("sessions", json!("aa")),
            ("format", json!("zklora-audit/2")),
        ] {
            let mut changed = honest.clone();
            changed[field] = value;
            assert!(Report::parse(changed.to_string().as_bytes()).is_err(), "{field}");
            changed.as_object_mut().unwrap().remove(field);
            assert!(Report::parse(changed.to_string().as_bytes()).is_err(), "no {field}");
        }
        // What strangers write is not repeated at length.
        let mut long = honest.clone();
        long["format"] = "9".repeat(1 << 16).into();
        assert!(Report::parse(long.to_string().as_bytes()).unwrap_err().to_string().len() < 400);
        let mut long = honest;
        long["sessions"][0]["rows"] = json!(vec![1; 1 << 12]);
        assert!(check(&long, &truth(None)).unwrap_err().to_string().len() < 400);
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(Report::read(folder.path()), Err(ReportError::Io(_))));
        let path = folder.path().join("large");
        File::create(&path).unwrap().set_len(MAX_EVALUATION_BYTES + 1).unwrap();
        assert!(matches!(Report::read(&path), Err(ReportError::TooLarge)));
    }

    fn check(report: &Value, truth: &Truth) -> Result<(), Disagreement> {
        Report::parse(report.to_string().as_bytes()).unwrap().check(truth)
    }

    /// The honest report of a text.
    fn loss(truth: &Truth) -> Value {
        let report = LossReport {
            base_loss: truth.base.value,
            adapter_loss: Some(truth.adapter.value),
            tokens: truth.tokens,
            tokenizer: truth.tokenizer,
            sessions: truth.sessions.clone(),
        };
        serde_json::from_str(&report.to_line().unwrap()).unwrap()
    }

    /// The honest report of a dataset, with its sessions in another order.
    fn eval(truth: &Truth) -> Value {
        let [texts, predicted] = truth.dataset.unwrap();
        let report = EvalReport {
            texts,
            texts_skipped: 0,
            notes: Vec::new(),
            tokens: truth.tokens,
            predicted,
            tokenizer: truth.tokenizer,
            base: MeanReport::new(truth.base, 7.0),
            adapter: Some(MeanReport::new(truth.adapter, 7.0)),
            difference: Some(truth.difference),
            sessions: truth.sessions.iter().rev().cloned().collect(),
        };
        serde_json::from_str(&report.to_line().unwrap()).unwrap()
    }

    fn truth(dataset: Option<[u64; 2]>) -> Truth {
        let estimate = |value: f64| Estimate { value, interval: [value - 0.5, value + 0.5] };
        let hex = |byte: &str| byte.repeat(32);
        let session = |id: &str, calls: u64| SessionReport {
            session: hex(id).parse::<SessionId>().unwrap(),
            adapter: hex("01").parse().unwrap(),
            contributor: hex("02").parse().unwrap(),
            client: hex("03").parse().unwrap(),
            base_model: hex("04").parse().unwrap(),
            calls,
            rows: vec![1, 2, 3],
            transcript: hex("05").parse().unwrap(),
            blinded: None,
            bundle_bytes: Some(7),
        };
        Truth {
            base: estimate(9.0),
            adapter: estimate(6.0),
            difference: estimate(-3.0),
            tokens: 100,
            tokenizer: hex("cc").parse().unwrap(),
            dataset,
            sessions: vec![session("aa", 5), session("bb", 4)],
        }
    }
}
