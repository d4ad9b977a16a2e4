//! Verdicts in words and as JSON.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zklora_circuit::E;
use zklora_circuit::fold::canonical;
use zklora_circuit::security::Soundness;
use zklora_circuit::session::VerifiedSession;
use zklora_proto::{AdapterId, BaseModelDigest, Document, Escaped, PublicKey, SessionId};

use crate::check::{Declared, Verdict, conjectured_bits, provable_bits, weakest};
use crate::kind::Kind;
use crate::pins::{Pins, PinsFound};

/// The verdict on some bundles together.
#[derive(Debug, Default, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct Report {
    /// Whether there was at least one bundle and every bundle is valid.
    pub valid: bool,
    /// Whether that is so, and of every bundle the caller had pinned the adapter.
    pub pinned: bool,
    /// Paths that led to no bundle.
    pub problems: Vec<String>,
    /// One entry for each bundle, in the order in which they were checked.
    pub bundles: Vec<BundleReport>,
    /// Proofs in the valid bundles.
    pub proofs: usize,
    /// Wall-clock time of the whole run.
    pub seconds: f64,
}

impl Document for Report {
    const FORMAT: &'static str = "zklora-verify/2";
    const PRINTED_BY: &'static str = "zklora-verifier verify --json";
}

impl Report {
    /// Adds a bundle, after noting whether one before it is of the same session. Before [`Report::conclude`] nothing is said of all.
    pub fn add(&mut self, mut bundle: BundleReport) -> &BundleReport {
        bundle.same_session_as = bundle.session.and_then(|session| {
            let same = |other: &&BundleReport| {
                other.valid && other.session == Some(session) && other.contributor == bundle.contributor
            };
            self.bundles.iter().find(same).map(|other| other.path.clone())
        });
        self.proofs += bundle.batches.len();
        self.bundles.push(bundle);
        &self.bundles[self.bundles.len() - 1]
    }

    /// The verdict on all of them, after so much time.
    pub fn conclude(&mut self, took: Duration) {
        let all_hold = self.bundles.iter().all(|bundle| bundle.valid);
        self.valid = all_hold && self.problems.is_empty() && !self.bundles.is_empty();
        self.pinned = self.valid && self.bundles.iter().all(|bundle| bundle.pinned);
        self.seconds = seconds(took);
    }

    /// How many bundles stand so.
    pub fn count(&self, standing: Standing) -> usize {
        self.bundles.iter().filter(|bundle| bundle.verdict == standing).count()
    }
}

/// One bundle: its verdict, what was shown, and by whose word the rest holds.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(extend(
    "if" = { "properties": { "valid": { "const": true } } },
    "then" = {
        "properties": {
            "verdict": { "enum": ["valid", "not-pinned"] },
            "error": { "type": "null" },
            "adapter": { "type": "string" },
            "security": { "type": "string" },
            "alpha": { "type": "array" },
            "batches": { "minItems": 1 },
        },
        "if": { "properties": { "pinned": { "const": true } } },
        "then": { "properties": { "verdict": { "const": "valid" } } },
        "else": { "properties": { "verdict": { "const": "not-pinned" } } },
    },
    "else" = {
        "properties": {
            "verdict": { "enum": ["refused", "unreadable", "invalid"] },
            "error": { "type": "object" },
            "security": { "type": "null" },
            "alpha": { "type": "null" },
            "batches": { "maxItems": 0 },
            "modules": { "items": { "properties": { "ok": { "const": false } } } },
        },
    },
))]
#[non_exhaustive]
pub struct BundleReport {
    /// The file.
    pub path: String,
    /// The verdict.
    pub valid: bool,
    /// The same, where what does not hold is told from what was not asked for.
    pub verdict: Standing,
    /// Why not, if it is not: null if and only if it is valid.
    pub error: Option<ErrorReport>,
    /// The valid bundle before it that is of the same session, so that it says nothing new.
    pub same_session_as: Option<String>,
    /// The adapter id. This and what follows is null where the bundle could not be read so far.
    pub adapter: Option<AdapterId>,
    /// The contributor's key.
    pub contributor: Option<PublicKey>,
    /// Whether the caller had pinned the adapter, and it is the bundle's. Without, a valid bundle may be about any other adapter.
    pub pinned: bool,
    /// Which of these the caller had pinned, and found in the bundle.
    pub pins: PinsFound,
    /// Which the caller had pinned at all.
    #[serde(skip)]
    pub(crate) given: PinsFound,
    /// The base model that both parties name.
    pub base_model: Option<BaseModelDigest>,
    /// The session.
    pub session: Option<SessionId>,
    /// Whether the bundle is redacted, so that the folds are the client's word.
    pub redacted: Option<bool>,
    /// The key of the base-model user, by the receipt's word.
    pub client: Option<PublicKey>,
    /// When the session began, in seconds since 1970, by the contributor's clock.
    pub started: Option<u64>,
    /// When it ended.
    pub finished: Option<u64>,
    /// Name of the parameter set of the proofs; null unless they hold.
    pub security: Option<&'static str>,
    /// Bits of soundness of the weakest proof on theorems alone, all errors added up.
    pub provable_bits: Option<f64>,
    /// The same on the conjecture that `docs/soundness.md` states.
    pub conjectured_bits: Option<f64>,
    /// What the weakest proof is worth, error by error; `zklora-verifier explain` prints it. Not part of the JSON document.
    #[serde(skip)]
    pub soundness: Option<Soundness>,
    /// The challenge α of the fold as its two parts, each a decimal text: many are beyond what JSON's numbers hold exactly
    /// everywhere. Null unless the proofs hold, as all that was computed here.
    pub alpha: Option<Pair>,
    /// The challenge β.
    pub beta: Option<Pair>,
    /// Forward calls.
    pub calls: Option<u64>,
    /// Every module of the manifest.
    pub modules: Vec<ModuleReport>,
    /// Every proof, if all hold.
    pub batches: Vec<BatchReport>,
    /// Reading, hashing and folding the transcript.
    pub fold_seconds: Option<f64>,
    /// All of it.
    pub seconds: f64,
}

/// How a bundle stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// It holds, and is of the adapter that was asked for.
    Valid,
    /// It holds, and nobody said of which adapter it has to be.
    NotPinned,
    /// It is not what was asked for: a pin, an age, a client's word or the worth of its proofs.
    Refused,
    /// Its file could not be read, so that nothing is known of it.
    Unreadable,
    /// It does not hold.
    Invalid,
}

/// How [`BundleReport::write_text`] writes.
#[derive(Debug, Clone, Copy, Default)]
pub struct TextStyle {
    /// With session, client and the size and time of every proof.
    pub verbose: bool,
    /// With the colours of a terminal.
    pub coloured: bool,
}

impl Standing {
    /// The verdict's word in its colour, for a terminal that has any: green, yellow if nothing was pinned, red.
    pub fn painted(self, word: String, coloured: bool) -> String {
        let colour = match self {
            Self::Valid => 32,
            Self::NotPinned => 33,
            Self::Refused | Self::Unreadable | Self::Invalid => 31,
        };
        if coloured { format!("\x1b[1;{colour}m{word}\x1b[0m") } else { word }
    }

    /// How something stands that holds, where these pins were found.
    pub fn of_valid(found: PinsFound) -> Self {
        // The adapter's id says its contributor and its base model, too; neither of these says which adapter.
        if found.adapter { Self::Valid } else { Self::NotPinned }
    }
}

/// What it means that nobody pinned the adapter.
pub const NOT_PINNED: &str =
    "Nobody said which adapter that has to be: it may be another than the one that you were promised.";

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Valid => "VALID",
            Self::NotPinned => "VALID, NOT PINNED",
            Self::Refused => "REFUSED",
            Self::Unreadable => "UNREADABLE",
            Self::Invalid => "INVALID",
        })
    }
}

/// Why a bundle is not valid.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct ErrorReport {
    /// What kind of thing is wrong.
    pub kind: Kind,
    /// The same for people, with control characters escaped.
    pub what: String,
}

/// One module.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct ModuleReport {
    /// Its name.
    pub name: String,
    /// Input dimension.
    pub d_in: usize,
    /// Rank.
    pub rank: usize,
    /// Output dimension.
    pub d_out: usize,
    /// Rows of the session, by the receipt; shown by a proof only if `ok`.
    pub rows: u64,
    /// The proof that covers it; null if it has no rows.
    pub batch: Option<usize>,
    /// Whether all its rows are proved.
    pub ok: bool,
    /// The digest of its folded activations a_m in hexadecimal; null unless the proofs hold and it has rows.
    #[schemars(regex(pattern = "^[0-9a-f]{64}$"))]
    pub a_digest: Option<String>,
    /// Its folded deltas s_m.
    pub s: Option<Pair>,
}

/// A party or thing that a bundle names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    /// What it is: adapter, contributor, base model or client.
    pub what: &'static str,
    /// Its id, key or digest.
    pub value: String,
    /// Whether it is the one that the caller knows, and if none was given, by whose word it is this one.
    pub word: &'static str,
}

/// An element x0 + x1·φ of the extension field as its two parts in decimal, each below p.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Pair(#[schemars(inner(regex(pattern = "^(0|[1-9][0-9]{0,19})$")))] pub [String; 2]);

/// One valid proof.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct BatchReport {
    /// The modules it covers.
    pub modules: Vec<String>,
    /// Logarithm of the circuit's rows.
    pub degree_bits: usize,
    /// Size of the proof.
    pub proof_bytes: usize,
    /// Building the circuit; next to nothing if an earlier proof of this run needed the same.
    pub build_seconds: f64,
    /// Checking the proof.
    pub verify_seconds: f64,
}

impl BundleReport {
    /// The report of a verdict on the file at `path`, where the caller had given `pins`.
    pub fn new(path: &Path, pins: &Pins, verdict: &Verdict) -> Self {
        let (declared, shown) = (verdict.declared.as_ref(), verdict.outcome.as_ref().ok());
        let receipt = declared.map(|d| d.session.receipt().receipt());
        let adapter = declared.map(|d| d.session.manifest().adapter_id());
        let contributor = declared.map(|d| *d.manifest().contributor());
        let base_model = declared.map(|d| *d.manifest().base_model());
        let client = receipt.map(|r| r.client);
        let name_of = |module: &usize| {
            let entry = declared.and_then(|d| d.manifest().modules().get(*module));
            entry.map(|entry| entry.name().to_owned())
        };
        let found = pins.found_in(adapter, contributor, base_model, client);
        Self {
            path: path.to_string_lossy().into_owned(),
            valid: shown.is_some(),
            verdict: match &verdict.outcome {
                Ok(_) => Standing::of_valid(found),
                Err(refusal) if refusal.is_of_what_was_asked() => Standing::Refused,
                Err(refusal) if refusal.is_of_reading() => Standing::Unreadable,
                Err(_) => Standing::Invalid,
            },
            error: verdict
                .outcome
                .as_ref()
                .err()
                .map(|e| ErrorReport { kind: e.kind(), what: Escaped(&e.to_string()).to_string() }),
            same_session_as: None,
            adapter,
            contributor,
            pinned: found.adapter,
            pins: found,
            given: pins.given(),
            base_model,
            session: receipt.map(|r| r.session),
            redacted: declared.map(|d| d.redacted),
            client,
            started: receipt.map(|r| r.started),
            finished: receipt.map(|r| r.finished),
            security: shown.map(|s| s.security.name()),
            provable_bits: shown.map(provable_bits),
            conjectured_bits: shown.map(conjectured_bits),
            soundness: shown.and_then(weakest).cloned(),
            alpha: shown.map(|s| pair(s.challenges.alpha)),
            beta: shown.map(|s| pair(s.challenges.beta)),
            calls: receipt.map(|r| r.calls),
            modules: declared.map(|d| modules(d, shown)).unwrap_or_default(),
            batches: shown
                .iter()
                .flat_map(|s| &s.batches)
                .map(|batch| BatchReport {
                    modules: batch.modules.iter().filter_map(name_of).collect(),
                    degree_bits: batch.degree_bits,
                    proof_bytes: batch.proof_bytes,
                    build_seconds: seconds(batch.build_time),
                    verify_seconds: seconds(batch.verify_time),
                })
                .collect(),
            fold_seconds: shown.map(|s| seconds(s.fold_time)),
            seconds: seconds(verdict.time),
        }
    }
}

fn modules(declared: &Declared, shown: Option<&VerifiedSession>) -> Vec<ModuleReport> {
    declared
        .modules()
        .enumerate()
        .map(|(index, (entry, rows, batch))| {
            (entry, rows, batch, shown.filter(|_| rows > 0).and_then(|s| s.folds.get(index)))
        })
        .map(|(entry, rows, batch, fold)| ModuleReport {
            name: entry.name().into(),
            d_in: entry.shape().d_in(),
            rank: entry.shape().rank(),
            d_out: entry.shape().d_out(),
            rows,
            batch,
            ok: shown.is_some() && batch.is_some(),
            a_digest: fold.map(|fold| hex::encode(fold.a_digest())),
            s: fold.map(|fold| pair(fold.s)),
        })
        .collect()
}

fn pair(x: E) -> Pair {
    Pair(canonical(x).map(|part| part.to_string()))
}

fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}
