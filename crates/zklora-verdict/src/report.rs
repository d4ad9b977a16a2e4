//! Verdicts in words and as JSON.

use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;
use zklora_circuit::E;
use zklora_circuit::fold::canonical;
use zklora_circuit::security::Soundness;
use zklora_circuit::session::VerifiedSession;
use zklora_proto::{AdapterId, BaseModelDigest, Bytes, Escaped, PublicKey, SessionId, counted};

use crate::check::{Declared, Verdict, conjectured_bits, provable_bits, weakest};
use crate::pins::{Pins, PinsFound, word_on};

/// All that `verify --json` prints. Fields are only ever added under the same `format`.
#[derive(Debug, Serialize)]
pub struct Report {
    /// `zklora-verify/2`.
    pub format: &'static str,
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

impl Report {
    /// The name of this layout.
    pub const FORMAT: &'static str = "zklora-verify/2";

    /// Adds a bundle, after noting whether one before it is of the same session.
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
}

/// One bundle: its verdict, what was shown, and by whose word the rest holds.
#[derive(Debug, Serialize)]
pub struct BundleReport {
    /// The file.
    pub path: String,
    /// The verdict.
    pub valid: bool,
    /// The same, where what does not hold is told from what was not asked for.
    pub verdict: Standing,
    /// Why not, if it is not.
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
    given: PinsFound,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
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
#[derive(Debug, Serialize)]
pub struct ErrorReport {
    /// One stable word for what is wrong.
    pub kind: &'static str,
    /// The same for people, with control characters escaped.
    pub what: String,
}

/// One module.
#[derive(Debug, Serialize)]
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
pub type Pair = [String; 2];

/// One valid proof.
#[derive(Debug, Serialize)]
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

    /// Rows of all modules.
    pub fn rows(&self) -> u64 {
        self.modules.iter().map(|module| module.rows).sum()
    }

    /// Whether a module's rows are proved, in words.
    pub fn word_on(&self, module: &ModuleReport) -> &'static str {
        match (module.batch, self.verdict) {
            (None, _) => "not called",
            (Some(_), Standing::Valid | Standing::NotPinned) => "ok",
            // Nobody looked, or the proof is worth too little.
            (Some(_), Standing::Refused | Standing::Unreadable) => "not counted",
            (Some(_), Standing::Invalid) => "NOT PROVED",
        }
    }

    /// The verdict in one word.
    pub fn verdict(&self) -> String {
        match (self.verdict, self.redacted) {
            (Standing::Valid, Some(true)) => "VALID, REDACTED".into(),
            (Standing::NotPinned, Some(true)) => "VALID, REDACTED, NOT PINNED".into(),
            (verdict, _) => verdict.to_string(),
        }
    }

    /// What the verdict means, in sentences.
    pub fn meaning(&self) -> String {
        let meaning = match (self.verdict, self.redacted) {
            (Standing::Invalid, _) => "Nothing in this file can be relied on.",
            (Standing::Unreadable, _) => "Nothing is known of this file.",
            (Standing::Refused, _) if self.error.as_ref().is_some_and(|error| error.kind == "security") => {
                "Its proofs hold, and are worth less than was asked for."
            }
            (Standing::Refused, _) => {
                "It is not what was asked for. Whether it holds was not looked into any further."
            }
            (Standing::Valid | Standing::NotPinned, Some(true)) => {
                "The seller and the user both signed the record of this session. If the sums in this file are those of the record, \
                 for which the user gives its word, every answer in it was computed with the adapter below; none was altered."
            }
            (Standing::Valid | Standing::NotPinned, _) => {
                "The seller and the user both signed the record of this session. Every answer in it was computed with the adapter \
                 below; none was altered."
            }
        };
        match self.verdict {
            Standing::NotPinned => format!("{meaning} {NOT_PINNED}"),
            _ => meaning.into(),
        }
    }

    /// What a valid bundle leaves open, each a clause that begins with "that"; nothing is said of one that is not.
    pub fn not_shown(&self) -> &'static [&'static str] {
        match (self.valid, self.redacted) {
            (false, _) => &[],
            (true, Some(true)) => &NOT_SHOWN_REDACTED,
            (true, _) => &NOT_SHOWN,
        }
    }

    /// Who and what the bundle is about, as far as it could be read, each with by whose word.
    pub fn facts(&self) -> Vec<Fact> {
        let (given, pinned) = (self.given, self.pins);
        let mut facts = Vec::new();
        if let (Some(adapter), Some(contributor), Some(base)) =
            (self.adapter, self.contributor, self.base_model)
        {
            facts.push(Fact {
                what: "adapter",
                value: adapter.to_string(),
                word: word_on(
                    given.adapter,
                    pinned.adapter,
                    "NOT PINNED: only this bundle says so; give the id that you were promised with --adapter",
                ),
            });
            facts.push(Fact {
                what: "contributor",
                value: contributor.to_string(),
                word: word_on(
                    given.contributor,
                    pinned.contributor,
                    match pinned.adapter {
                        true => "not given with --contributor, but the pinned adapter names this key",
                        false => {
                            "NOT PINNED: only this bundle says so; anyone can make a bundle under a key of their own, so give \
                             the key that you know with --contributor"
                        }
                    },
                ),
            });
            facts.push(Fact {
                what: "base model",
                value: base.to_string(),
                word: word_on(
                    given.base_model,
                    pinned.base_model,
                    "not given with --base-model: both parties name it",
                ),
            });
        }
        if let Some(client) = self.client {
            facts.push(Fact {
                what: "client",
                value: client.to_string(),
                word: word_on(
                    given.client,
                    pinned.client,
                    "not given with --client: by the receipt, which this key signed; a contributor can play the client itself",
                ),
            });
        }
        facts
    }

    /// When the session was, and by whose clock.
    pub fn when(&self) -> Option<String> {
        let (started, finished) = (date(self.started?), date(self.finished?));
        Some(format!("{started} to {finished}, by the contributor's clock"))
    }

    /// What the proofs are worth, if they hold.
    pub fn worth(&self) -> Option<String> {
        let (provable, conjectured) =
            (self.provable_bits.unwrap_or(0.0), self.conjectured_bits.unwrap_or(0.0));
        self.security.map(|set| {
            format!(
                "parameter set {set:?}, {provable:.1} bits on theorems alone, {conjectured:.1} on a conjecture"
            )
        })
    }

    /// Writes the verdict for people: a line for the bundle, one for each module, and what it means.
    pub fn write_text(
        &self,
        out: &mut dyn Write,
        TextStyle { verbose, coloured }: TextStyle,
    ) -> io::Result<()> {
        let verdict = self.verdict.painted(self.verdict(), coloured);
        writeln!(out, "{}: {verdict} ({:.3} s)", Escaped(&self.path), self.seconds)?;
        if let Some(error) = &self.error {
            writeln!(out, "  reason: {}", error.what)?;
        }
        if let Some(other) = &self.same_session_as {
            writeln!(out, "  the same session as {}: it counts once", Escaped(other))?;
        }
        for module in &self.modules {
            let (name, rows, word) = (&module.name, module.rows, self.word_on(module));
            match module.batch {
                Some(batch) => writeln!(out, "  {name}: {}, proof {batch}, {word}", counted(rows, "row"))?,
                None => writeln!(out, "  {name}: 0 rows, {word}")?,
            }
        }
        writeln!(out, "  means: {}", self.meaning())?;
        write_not_shown(out, "  ", self.not_shown())?;
        for Fact { what, value, word } in self.facts() {
            writeln!(out, "  {what}: {value}\n    {word}")?;
        }
        if let Some(when) = self.when() {
            writeln!(out, "  when: {when}")?;
        }
        if let Some(worth) = self.worth() {
            writeln!(out, "  security: {worth}")?;
        }
        if verbose {
            self.write_details(out)?;
        }
        Ok(())
    }

    fn write_details(&self, out: &mut dyn Write) -> io::Result<()> {
        if let (Some(session), Some(calls)) = (self.session, self.calls) {
            let rows = counted(self.rows(), "row");
            writeln!(out, "  session: {session}, {}, {rows}", counted(calls, "call"))?;
        }
        if let Some(seconds) = self.fold_seconds {
            writeln!(out, "  transcript: read and folded in {seconds:.3} s")?;
        }
        for (index, batch) in self.batches.iter().enumerate() {
            writeln!(
                out,
                "  proof {index}: of {}; circuit of 2^{} rows built in {:.3} s, {} checked in {:.3} s",
                batch.modules.join(", "),
                batch.degree_bits,
                batch.build_seconds,
                Bytes(batch.proof_bytes as u64),
                batch.verify_seconds
            )?;
        }
        Ok(())
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

/// Writes what a verdict leaves open as a list, if there is anything.
pub fn write_not_shown(out: &mut dyn Write, indent: &str, not_shown: &[&str]) -> io::Result<()> {
    if !not_shown.is_empty() {
        writeln!(out, "{indent}Not shown:")?;
    }
    not_shown.iter().try_for_each(|clause| writeln!(out, "{indent}- {clause}"))
}

/// What no bundle shows by itself.
const NOT_SHOWN: [&str; 3] = [
    "that the user ran this base model, or that what it sent came from any text (a replay shows that: zklora-base-user audit)",
    "that a loss that somebody reports is true (a replay shows that, too)",
    "that the adapter is good",
];

/// What a redacted one does not show.
const NOT_SHOWN_REDACTED: [&str; 4] = [
    "that the sums in this file, the folds, are those of the record: what was sent and answered is not there, and a user in league \
     with the seller can give its word for false answers",
    "that the user ran this base model, or that what it sent came from any text (a replay of the full bundle shows that)",
    "that a loss that somebody reports is true (a replay of the full bundle shows that, too)",
    "that the adapter is good",
];

/// A time as people write it, in UTC, of seconds since 1970.
pub fn date(seconds: u64) -> String {
    // A receipt may have any number: what no calendar has is shown as it is.
    match seconds {
        0..=MAX_DATE => {
            humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
        }
        _ => format!("{seconds} s after 1970"),
    }
}

/// The end of the year 9999.
const MAX_DATE: u64 = 253_402_300_799;

fn pair(x: E) -> Pair {
    canonical(x).map(|part| part.to_string())
}

fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}
