//! Verdicts in words, for people.

use std::io::{self, Write};
use std::time::{Duration, UNIX_EPOCH};

use zklora_proto::{Bytes, Escaped, counted};

use crate::kind::Kind;
use crate::pins::word_on;
use crate::report::{BundleReport, Fact, ModuleReport, NOT_PINNED, Standing, TextStyle};

impl BundleReport {
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
            (Standing::Refused, _)
                if self.error.as_ref().is_some_and(|error| error.kind == Kind::Security) =>
            {
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
