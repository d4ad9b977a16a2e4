//! The verdict of an audit: whether sessions were of this base model on this text.

use std::path::Path;

use schemars::JsonSchema;
use serde::Serialize;
use zklora_proto::{
    AdapterId, BaseModelDigest, Document, Escaped, PublicKey, Receipt, SessionId, TokenizerDigest,
    TranscriptDigest,
};

use crate::kind::Kind;
use crate::measured::Estimate;
use crate::pins::{Pins, PinsFound};
use crate::report::Standing;

/// What came of an audit: bundles that were verified, and a base model that was run once more with the deltas in them.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct AuditReport {
    /// Whether every bundle was replayed, and the report, if there is one, agrees.
    pub holds: bool,
    /// Whether every bundle is of an adapter that the caller had pinned.
    pub pinned: bool,
    /// The verdict on all of it.
    pub verdict: Standing,
    /// The base model that was run.
    pub base_model: BaseModelDigest,
    /// Which tokenizer cut the text into tokens.
    pub tokenizer: TokenizerDigest,
    /// By how many units an activation may differ.
    pub tolerance: u64,
    /// One entry for each bundle, in the order in which they were given.
    pub bundles: Vec<AuditedBundle>,
    /// Tokens of the text or dataset.
    pub tokens: u64,
    /// Texts that counted. This and what follows is null unless all bundles were replayed.
    pub texts: Option<u64>,
    /// Tokens that were predicted.
    pub predicted: Option<u64>,
    /// The mean loss of the base model alone.
    pub base_loss: Option<Estimate>,
    /// The same with the deltas of all bundles.
    pub adapter_loss: Option<Estimate>,
    /// The mean of the second less the first.
    pub difference: Option<Estimate>,
    /// Whether what somebody says they measured is that; null if nobody says it.
    pub report: Option<Agreement>,
}

impl Document for AuditReport {
    const FORMAT: &'static str = "zklora-audit/2";
    const PRINTED_BY: &'static str = "zklora-base-user audit --json";
}

impl AuditReport {
    /// An audit of a text of so many tokens, of which nothing is known yet.
    pub fn new(base_model: BaseModelDigest, tokenizer: TokenizerDigest, tolerance: u64, tokens: u64) -> Self {
        Self {
            holds: false,
            pinned: false,
            verdict: Standing::Invalid,
            base_model,
            tokenizer,
            tolerance,
            bundles: Vec::new(),
            tokens,
            texts: None,
            predicted: None,
            base_loss: None,
            adapter_loss: None,
            difference: None,
            report: None,
        }
    }

    /// Draws the verdict from the bundles and the report. What was neither replayed nor found wrong, gets its error.
    pub fn conclude(&mut self) {
        for bundle in self.bundles.iter_mut().filter(|bundle| !bundle.replayed) {
            bundle.error.get_or_insert_with(|| AuditError::new(Kind::NotFinished, STOPPED));
        }
        let replayed = !self.bundles.is_empty() && self.bundles.iter().all(|bundle| bundle.replayed);
        self.holds = replayed && self.report.as_ref().is_none_or(|report| report.agrees);
        self.pinned = !self.bundles.is_empty() && self.bundles.iter().all(|bundle| bundle.pinned);
        let refused =
            |bundle: &AuditedBundle| bundle.error.as_ref().is_some_and(|e| e.kind.is_of_what_was_asked());
        self.verdict = match (self.holds, self.pinned) {
            (true, true) => Standing::Valid,
            (true, false) => Standing::NotPinned,
            (false, _) if self.bundles.iter().any(refused) => Standing::Refused,
            (false, _) => Standing::Invalid,
        };
    }
}

/// What came of one bundle.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct AuditedBundle {
    /// The file.
    pub path: String,
    /// Whether it is valid, and all its calls are those of this run.
    pub replayed: bool,
    /// Whether the caller had pinned the adapter, and it is the bundle's.
    pub pinned: bool,
    /// Which of these the caller had pinned, and found in the bundle. The base model is always the one that was run.
    pub pins: PinsFound,
    /// What became of a projection's own output: `add-delta` or `replace`.
    pub combine_mode: String,
    /// The session. This and what follows, up to the transcript, is null where the bundle could not be read so far.
    pub session: Option<SessionId>,
    /// The adapter id.
    pub adapter: Option<AdapterId>,
    /// The contributor's key.
    pub contributor: Option<PublicKey>,
    /// The key of the base-model user, by the receipt's word.
    pub client: Option<PublicKey>,
    /// The base model that both parties name.
    pub base_model: Option<BaseModelDigest>,
    /// Forward calls.
    pub calls: Option<u64>,
    /// Rows of each module, in the manifest's order.
    pub rows: Option<Vec<u64>>,
    /// The digest by which the session's bundle is known.
    pub transcript: Option<TranscriptDigest>,
    /// Activations that were compared. This and what follows, up to the error, is null unless it was replayed.
    pub activations: Option<u64>,
    /// How many of them differ by one unit; none does by more.
    pub differing_by_one: Option<u64>,
    /// The largest difference in units.
    pub largest_difference: Option<u64>,
    /// Random rows of each module that are not part of the text.
    pub blinding_rows: Option<u64>,
    /// Why it was not replayed: null if and only if it was.
    pub error: Option<AuditError>,
}

/// Of a valid bundle, if the replay stopped at another.
const STOPPED: &str = "the replay did not come to its end";

impl AuditedBundle {
    /// A bundle of which nothing is known yet.
    pub fn new(path: &Path, combine_mode: &str) -> Self {
        Self {
            path: path.to_string_lossy().into_owned(),
            replayed: false,
            pinned: false,
            pins: PinsFound::default(),
            combine_mode: combine_mode.into(),
            session: None,
            adapter: None,
            contributor: None,
            client: None,
            base_model: None,
            calls: None,
            rows: None,
            transcript: None,
            activations: None,
            differing_by_one: None,
            largest_difference: None,
            blinding_rows: None,
            error: None,
        }
    }

    /// Notes what the receipt says, and which of the pins it agrees with.
    pub fn name_session(&mut self, receipt: &Receipt, pins: &Pins) {
        let (adapter, contributor) = (Some(receipt.adapter), Some(receipt.contributor));
        let pins = pins.found_in(adapter, contributor, Some(receipt.base_model), Some(receipt.client));
        self.pinned = pins.adapter;
        self.pins = pins;
        self.session = Some(receipt.session);
        self.adapter = Some(receipt.adapter);
        self.contributor = Some(receipt.contributor);
        self.client = Some(receipt.client);
        self.base_model = Some(receipt.base_model);
        self.calls = Some(receipt.calls);
        self.rows = Some(receipt.rows.clone());
        self.transcript = Some(receipt.transcript);
    }
}

/// Why a bundle was not replayed.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct AuditError {
    /// What kind of thing is wrong.
    pub kind: Kind,
    /// The same for people, with control characters escaped.
    pub what: String,
    /// Where activations differ, if that is what is wrong.
    pub place: Option<Place>,
}

impl AuditError {
    /// An error with its words for people.
    pub fn new(kind: Kind, what: &str) -> Self {
        Self { kind, what: Escaped(what).to_string(), place: None }
    }
}

/// An activation that is not what the base model gives.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Place {
    /// The call, from 0.
    pub call: u64,
    /// Its modules, for people.
    pub modules: String,
    /// The row of the call, from 0.
    pub row: u64,
    /// The column, from 0.
    pub column: u64,
    /// What the base model gives.
    pub expected: i16,
    /// What was sent.
    pub found: i16,
    /// The line of the dataset that the row is of, from 1; null of a text.
    pub line: Option<u64>,
    /// The token of that text, from 0.
    pub token: u64,
}

/// Whether a report says what a replay gave.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Agreement {
    /// Whether it does.
    pub agrees: bool,
    /// The first thing in which it does not, for people.
    pub error: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn audit(bundles: Vec<AuditedBundle>) -> AuditReport {
        let digest = "ab".repeat(32);
        let mut report = AuditReport::new(digest.parse().unwrap(), digest.parse().unwrap(), 1, 9);
        report.bundles = bundles;
        report.conclude();
        report
    }

    fn replayed(pinned: bool) -> AuditedBundle {
        AuditedBundle { replayed: true, pinned, ..AuditedBundle::new(Path::new("x.pf"), "add-delta") }
    }

    fn failed(kind: Kind) -> AuditedBundle {
        let error = Some(AuditError::new(kind, "so"));
        AuditedBundle { error, pinned: true, ..AuditedBundle::new(Path::new("x.pf"), "add-delta") }
    }

    #[test]
    fn an_audit_holds_if_every_bundle_was_replayed_and_the_report_agrees() {
        let report = audit(vec![replayed(true), replayed(true)]);
        assert_eq!((report.holds, report.pinned, report.verdict), (true, true, Standing::Valid));
        let mut report = audit(vec![replayed(true), replayed(false)]);
        assert_eq!((report.holds, report.pinned, report.verdict), (true, false, Standing::NotPinned));
        report.report = Some(Agreement { agrees: false, error: Some("so".into()) });
        report.conclude();
        assert_eq!((report.holds, report.verdict), (false, Standing::Invalid));
        assert_eq!(audit(Vec::new()).verdict, Standing::Invalid);
        assert_eq!(audit(vec![failed(Kind::Rows)]).verdict, Standing::Invalid);
        assert_eq!(audit(vec![failed(Kind::AdapterPin)]).verdict, Standing::Refused);
        // One that has a good and a bad bundle does not hold, and says of the good one that it was not finished.
        let good = AuditedBundle { replayed: false, ..replayed(true) };
        let report = audit(vec![good, failed(Kind::Activation)]);
        assert_eq!(report.verdict, Standing::Invalid);
        assert_eq!(report.bundles[0].error.as_ref().unwrap().kind, Kind::NotFinished);
        assert_eq!(report.bundles[1].error.as_ref().unwrap().kind, Kind::Activation);
    }
}
