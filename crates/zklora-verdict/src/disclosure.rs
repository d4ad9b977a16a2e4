//! The verdict on one call that is shown without its bundle.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use schemars::JsonSchema;
use serde::Serialize;
use zklora_proto::Escaped;
use zklora_proto::disclosure::DisclosureError;
use zklora_proto::limits::MAX_DISCLOSURE_BYTES;
use zklora_proto::{
    AdapterId, BaseModelDigest, Disclosure, Document, PublicKey, SessionId, TranscriptDigest, counted,
    read_bounded,
};

use crate::kind::Kind;
use crate::pins::{PinRefusal, Pins, PinsFound, word_on};
use crate::report::{ErrorReport, NOT_PINNED, Standing};
use crate::words::write_not_shown;

/// Why a disclosure is not valid.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DisclosureRefusal {
    /// The file cannot be read.
    #[error("the file cannot be read: {0}")]
    File(#[from] io::Error),
    /// It does not hold by itself.
    #[error(transparent)]
    Disclosure(#[from] DisclosureError),
    /// It is not what the caller asked for.
    #[error(transparent)]
    Pin(#[from] PinRefusal),
}

impl DisclosureRefusal {
    /// What kind of thing is wrong: that of a bundle, where there is the same.
    pub fn kind(&self) -> Kind {
        match self {
            Self::File(_) => Kind::File,
            Self::Disclosure(DisclosureError::Manifest(_)) => Kind::Manifest,
            Self::Disclosure(DisclosureError::Receipt(_) | DisclosureError::Foreign(_)) => Kind::Receipt,
            Self::Disclosure(DisclosureError::NotCommitted | DisclosureError::Impossible { .. }) => {
                Kind::Commitment
            }
            Self::Disclosure(_) => Kind::Format,
            Self::Pin(refusal) => refusal.kind(),
        }
    }
}

/// Reads a disclosure and holds it against itself, and against the pins.
pub fn check_disclosure(path: &Path, pins: &Pins) -> (Option<Disclosure>, Result<(), DisclosureRefusal>) {
    let disclosure = match read(path) {
        Ok(disclosure) => disclosure,
        Err(refusal) => return (None, Err(refusal)),
    };
    let outcome = pins.check(disclosure.session());
    (Some(disclosure), outcome.map_err(DisclosureRefusal::from))
}

fn read(path: &Path) -> Result<Disclosure, DisclosureRefusal> {
    // Before disclosure: to open a pipe would wait for a writer.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is no regular file").into());
    }
    let bytes = read_bounded(File::open(path)?, MAX_DISCLOSURE_BYTES)?;
    Ok(Disclosure::from_bytes(&bytes.ok_or(DisclosureError::TooLarge)?)?)
}

/// The verdict on a disclosure.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(extend(
    "if" = { "properties": { "valid": { "const": true } } },
    "then" = {
        "properties": {
            "verdict": { "enum": ["valid", "not-pinned"] },
            "error": { "type": "null" },
            "disclosure": { "type": "object" },
        },
    },
    "else" = {
        "properties": {
            "verdict": { "enum": ["refused", "unreadable", "invalid"] },
            "error": { "type": "object" },
        },
    },
))]
#[non_exhaustive]
pub struct DisclosureReport {
    /// The file.
    pub path: String,
    /// The verdict.
    pub valid: bool,
    /// The same, where what does not hold is told from what was not asked for.
    pub verdict: Standing,
    /// Why not, if it is not.
    pub error: Option<ErrorReport>,
    /// Whether the caller had pinned the adapter, and it is the disclosure's.
    pub pinned: bool,
    /// Which of these the caller had pinned, and found in the disclosure.
    pub pins: PinsFound,
    /// Which the caller had pinned at all.
    #[serde(skip)]
    given: PinsFound,
    /// What the disclosure says; null if it does not hold by itself.
    pub disclosure: Option<Disclosed>,
}

impl Document for DisclosureReport {
    const FORMAT: &'static str = "zklora-disclosure-check/2";
    const PRINTED_BY: &'static str = "zklora-verifier disclosure --json";
}

/// What a disclosure shows.
#[derive(Debug, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct Disclosed {
    /// The adapter id.
    pub adapter: AdapterId,
    /// The contributor's key.
    pub contributor: PublicKey,
    /// The base model that both parties name.
    pub base_model: BaseModelDigest,
    /// The session.
    pub session: SessionId,
    /// The key of the base-model user, by the receipt's word.
    pub client: PublicKey,
    /// The digest by which the session's bundle is known.
    pub transcript: TranscriptDigest,
    /// The number of the call, from 0.
    pub call: u64,
    /// Calls of the session.
    pub calls: u64,
    /// The module's name.
    pub module: String,
    /// Rows of the call.
    pub rows: usize,
    /// Activations of a row.
    pub d_in: usize,
    /// Deltas of a row.
    pub d_out: usize,
}

impl DisclosureReport {
    /// The report on the file at `path`, for whoever has these pins.
    pub fn new(path: &Path, pins: &Pins) -> Self {
        let (disclosure, outcome) = check_disclosure(path, pins);
        let disclosure = disclosure.as_ref().map(Disclosed::new);
        let found = pins.found_in(
            disclosure.as_ref().map(|o| o.adapter),
            disclosure.as_ref().map(|o| o.contributor),
            disclosure.as_ref().map(|o| o.base_model),
            disclosure.as_ref().map(|o| o.client),
        );
        Self {
            path: path.to_string_lossy().into_owned(),
            valid: outcome.is_ok(),
            verdict: match &outcome {
                Ok(()) => Standing::of_valid(found),
                Err(DisclosureRefusal::Pin(_)) => Standing::Refused,
                Err(DisclosureRefusal::File(_)) => Standing::Unreadable,
                Err(_) => Standing::Invalid,
            },
            error: outcome
                .err()
                .map(|e| ErrorReport { kind: e.kind(), what: Escaped(&e.to_string()).to_string() }),
            pinned: found.adapter,
            pins: found,
            given: pins.given(),
            disclosure,
        }
    }

    /// Writes the verdict for people, and what it means and does not mean.
    pub fn write_text(&self, out: &mut dyn Write, coloured: bool) -> io::Result<()> {
        let verdict = self.verdict.painted(self.verdict.to_string(), coloured);
        writeln!(out, "{}: {verdict}", Escaped(&self.path))?;
        if let Some(error) = &self.error {
            writeln!(out, "  reason: {}", error.what)?;
        }
        let Some(opened) = &self.disclosure else {
            let means = match self.verdict {
                Standing::Unreadable => "Nothing is known of this file.",
                _ => "Nothing in this file can be relied on.",
            };
            return writeln!(out, "  means: {means}");
        };
        let Disclosed { call, calls, module, rows, d_in, d_out, .. } = opened;
        let rows = counted(*rows, "row");
        writeln!(out, "  call {call} of {calls}, counted from 0; {module}: {rows}, {d_in} to {d_out}")?;
        if self.valid {
            writeln!(
                out,
                "  means: The seller and the user both signed that in this call these activations were answered with these deltas.{}",
                if self.pinned { String::new() } else { format!(" {NOT_PINNED}") }
            )?;
            write_not_shown(out, "  ", &NOT_SHOWN)?;
        } else {
            writeln!(out, "  means: Nothing is said about what you pinned.")?;
        }
        const ALONE: &str = "NOT PINNED: only this file says so; anyone can make one";
        let (given, pinned) = (self.given, self.pins);
        for (name, value, word) in [
            ("adapter", opened.adapter.to_string(), word_on(given.adapter, pinned.adapter, ALONE)),
            (
                "contributor",
                opened.contributor.to_string(),
                word_on(given.contributor, pinned.contributor, ALONE),
            ),
            (
                "base model",
                opened.base_model.to_string(),
                word_on(
                    given.base_model,
                    pinned.base_model,
                    "not given with --base-model: both parties name it",
                ),
            ),
            (
                "client",
                opened.client.to_string(),
                word_on(
                    given.client,
                    pinned.client,
                    "not given with --client: by the receipt, which this key signed",
                ),
            ),
        ] {
            writeln!(out, "  {name}: {value}\n    {word}")?;
        }
        writeln!(out, "  session: {}", opened.session)
    }
}

/// What no disclosure shows.
const NOT_SHOWN: [&str; 3] = [
    "that the deltas were computed with the adapter below (the proof of that is in the session's bundle)",
    "what any other call was",
    "that the activations came from the base model, or from any text",
];

impl Disclosed {
    fn new(disclosure: &Disclosure) -> Self {
        let (receipt, entry) = (disclosure.receipt().receipt(), disclosure.entry());
        Self {
            adapter: receipt.adapter,
            contributor: receipt.contributor,
            base_model: receipt.base_model,
            session: receipt.session,
            client: receipt.client,
            transcript: receipt.transcript,
            call: disclosure.number(),
            calls: receipt.calls,
            module: entry.name().into(),
            rows: disclosure.rows(),
            d_in: entry.shape().d_in(),
            d_out: entry.shape().d_out(),
        }
    }
}
