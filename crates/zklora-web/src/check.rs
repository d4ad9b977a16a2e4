//! A request, a file, an answer.

use std::io::BufReader;
use std::path::Path;

use serde::{Deserialize, Serialize};
use zklora_verdict::{BundleReport, Policy, TextStyle, Verifier};

use crate::read_at::{ReadAt, Reader};

/// Checks files, one after another. Circuits are kept from one to the next, for as long as the same is asked of them.
pub struct Checker {
    announce: fn(&str),
    last: Option<(Policy, Verifier)>,
}

impl Checker {
    /// A checker that tells `announce` of work that may take long, in words, before it begins.
    pub fn new(announce: fn(&str)) -> Self {
        Self { announce, last: None }
    }

    /// Answers `{"name": "...", "policy": {...}}`, where `policy` has the settings of a policy file. The answer is
    /// `{"problem": "..."}` if the request cannot be used. Otherwise it has the `report` that `verify --json` prints for a bundle, and
    /// what the program's text says beside: `verdict`, `meaning`, `not_shown`, `facts`, `when`, `worth`, and all of it as
    /// `text`.
    pub fn check(&mut self, request: &[u8], file: impl ReadAt) -> Vec<u8> {
        let Request { name, policy } = match serde_json::from_slice(request) {
            Ok(request) => request,
            Err(error) => return json(&Problem { problem: error.to_string() }),
        };
        let (_, verifier) = match self.last.take().filter(|(last, _)| *last == policy) {
            Some(last) => self.last.insert(last),
            None => {
                let announce = self.announce;
                let verifier = Verifier::new(policy.pins.clone())
                    .with_min_security(policy.min_security)
                    .announcing(move |work| announce(&work));
                self.last.insert((policy, verifier))
            }
        };
        // Each read is a call out to the page, and a copy there.
        let reader = BufReader::with_capacity(BUFFER_BYTES, Reader::new(file));
        let report = BundleReport::new(Path::new(&name), verifier.pins(), &verifier.check(reader));
        json(&Answer::new(&report))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    name: String,
    policy: Policy,
}

#[derive(Serialize)]
struct Problem {
    problem: String,
}

#[derive(Serialize)]
struct Answer<'a> {
    verdict: String,
    meaning: String,
    not_shown: &'static [&'static str],
    facts: Vec<Fact>,
    modules: Vec<&'static str>,
    when: Option<String>,
    worth: Option<String>,
    text: String,
    report: &'a BundleReport,
}

#[derive(Serialize)]
struct Fact {
    what: &'static str,
    value: String,
    word: &'static str,
}

impl<'a> Answer<'a> {
    fn new(report: &'a BundleReport) -> Self {
        let mut text = Vec::new();
        report
            .write_text(&mut text, TextStyle { verbose: true, coloured: false })
            .expect("memory takes what is written");
        let facts = report.facts().into_iter();
        Self {
            verdict: report.verdict(),
            meaning: report.meaning(),
            not_shown: report.not_shown(),
            facts: facts.map(|fact| Fact { what: fact.what, value: fact.value, word: fact.word }).collect(),
            modules: report.modules.iter().map(|module| report.word_on(module)).collect(),
            when: report.when(),
            worth: report.worth(),
            text: String::from_utf8_lossy(&text).into_owned(),
            report,
        }
    }
}

fn json(answer: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(answer).expect("fields are texts, numbers and lists of them")
}

const BUFFER_BYTES: usize = 1 << 20;
