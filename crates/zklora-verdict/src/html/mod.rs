//! Verdicts as one page for people who were not there: no scripts, nothing that is loaded, and paper as well as screens.
//!
//! Whatever comes from a file may have been written to mislead who reads the page. It is escaped twice over: as on a terminal
//! ([`Escaped`]), so that nothing invisible or reversed is left in it, and by the template as HTML; and it stands in a `bdi`, so
//! that its direction of writing stays its own.

mod plot;
mod section;
mod words;

use std::io::{self, Write};

use maud::{DOCTYPE, Markup, PreEscaped, html};

use self::section::Section;
use self::words::{Foreign, badge, counted, file_name, number, time};
use crate::evaluation::{Evaluation, EvaluationError};
use crate::report::{BundleReport, Report, Standing};
use crate::words::date;

/// The report of a run as a page.
#[derive(Debug)]
pub struct Page<'a> {
    report: &'a Report,
    evaluations: Vec<Evaluation>,
    made: Made<'a>,
}

/// Who made a page, and when.
#[derive(Debug, Clone, Copy)]
pub struct Made<'a> {
    /// The program and its version.
    pub by: &'a str,
    /// Seconds since 1970, by the clock at hand.
    pub at: u64,
}

impl<'a> Page<'a> {
    /// The page of `report`, with the losses that these evaluations claim for its sessions. Each has to name at least one of them.
    pub fn new(
        report: &'a Report,
        evaluations: Vec<Evaluation>,
        made: Made<'a>,
    ) -> Result<Self, EvaluationError> {
        evaluations.iter().try_for_each(|evaluation| evaluation.check_against(report))?;
        Ok(Self { report, evaluations, made })
    }

    /// Writes the page. Fails only if `out` does.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(self.markup().0.as_bytes())
    }

    fn markup(&self) -> Markup {
        let (outcome, bundles) = (Outcome::of(self.report), &self.report.bundles);
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta http-equiv="Content-Security-Policy" content=(POLICY);
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    meta name="referrer" content="no-referrer";
                    title { (outcome.word) " \u{2013} " (counted(bundles.len(), "bundle")) " \u{2013} ZKLoRA" }
                    style { (PreEscaped(include_str!("report.css"))) }
                }
                body {
                    header {
                        p.kicker { "ZKLoRA verification" }
                        div class=(format!("banner {}", outcome.class)) {
                            h1 { span.sign aria-hidden="true" { (outcome.sign) } (outcome.word) }
                            p { (outcome.counts) }
                        }
                        @if !self.report.problems.is_empty() {
                            section.problems {
                                h2 { "Nothing could be verified here" }
                                ul { @for problem in &self.report.problems { li { (Foreign(problem)) } } }
                            }
                        }
                        p.made {
                            "Made by " (self.made.by) " on " (date(self.made.at)) ", by the clock of its machine. "
                            (counted(self.report.proofs, "proof")) " in valid bundles; the run took " (time(self.report.seconds)) ". "
                            "This page proves nothing by itself: anyone who has the bundles can verify them again and compare."
                        }
                    }
                    main {
                        @if bundles.len() > 1 { (summary(bundles)) }
                        @for (index, bundle) in bundles.iter().enumerate() {
                            (Section { index, bundle, evaluations: &self.evaluations })
                        }
                    }
                }
            }
        }
    }
}

/// Nothing is loaded and nothing runs, whatever the names in a bundle do to the page.
const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'";

/// The verdict on all bundles together.
struct Outcome {
    word: &'static str,
    sign: &'static str,
    class: &'static str,
    counts: String,
}

impl Outcome {
    fn of(report: &Report) -> Self {
        let all = report.bundles.len();
        let standing = |which| report.bundles.iter().filter(|bundle| bundle.verdict == which).count();
        let (invalid, refused) = (standing(Standing::Invalid), standing(Standing::Refused));
        let unreadable = standing(Standing::Unreadable);
        let missing = match report.problems.len() {
            0 => String::new(),
            problems => format!("; {} led to no bundle", counted(problems, "path")),
        };
        if invalid > 0 {
            let counts = match all {
                1 => format!("The one bundle is not valid{missing}."),
                _ if invalid == 1 => format!("1 of {all} bundles is not valid{missing}."),
                _ => format!("{invalid} of {all} bundles are not valid{missing}."),
            };
            return Self { word: "INVALID", sign: "\u{2717}", class: "bad", counts };
        }
        if refused > 0 {
            let counts = match all {
                1 => format!("The one bundle is not what was asked for{missing}."),
                _ if refused == 1 => format!("1 of {all} bundles is not what was asked for{missing}."),
                _ => format!("{refused} of {all} bundles are not what was asked for{missing}."),
            };
            return Self { word: "REFUSED", sign: "\u{2717}", class: "bad", counts };
        }
        if unreadable > 0 {
            let counts = match all {
                1 => format!("The one file could not be read{missing}."),
                _ => format!("{unreadable} of {} could not be read{missing}.", counted(all, "file")),
            };
            return Self { word: "UNREADABLE", sign: "\u{2717}", class: "bad", counts };
        }
        let counts = match all {
            0 => format!("No bundle was verified{missing}."),
            1 => format!("One bundle, and it is valid{missing}."),
            _ => format!("{all} bundles, all of them valid{missing}."),
        };
        if report.valid && !report.pinned {
            let known = report.bundles.iter().filter(|bundle| bundle.pinned).count();
            let counts = match all {
                1 => "One bundle. It is valid, and nobody said which adapter it has to be of.".into(),
                _ if known == 0 => {
                    format!("{all} bundles, all of them valid. Nobody said which adapter they have to be of.")
                }
                _ => format!(
                    "{all} bundles, all of them valid. Of {} nobody said which adapter it has to be of.",
                    all - known
                ),
            };
            let word =
                if bundles_redacted(report) { "VALID, REDACTED, NOT PINNED" } else { "VALID, NOT PINNED" };
            return Self { word, sign: "!", class: "unpinned", counts };
        }
        match report.valid {
            true if bundles_redacted(report) => {
                Self { word: "VALID, REDACTED", sign: "\u{2713}", class: "good", counts }
            }
            true => Self { word: "VALID", sign: "\u{2713}", class: "good", counts },
            false => Self { word: "INCOMPLETE", sign: "!", class: "bad", counts },
        }
    }
}

/// Whether one of the bundles rests on a client's word.
fn bundles_redacted(report: &Report) -> bool {
    report.bundles.iter().any(|bundle| bundle.redacted == Some(true))
}

fn summary(bundles: &[BundleReport]) -> Markup {
    html! {
        section.summary {
            h2 { "Bundles" }
            div.scroll {
                table {
                    thead {
                        tr {
                            th scope="col" { "file" }
                            th scope="col" { "verdict" }
                            th.n scope="col" { "rows" }
                            th.n scope="col" { "proofs" }
                            th scope="col" { "adapter" }
                        }
                    }
                    tbody {
                        @for (index, bundle) in bundles.iter().enumerate() {
                            tr {
                                th scope="row" { a href=(format!("#bundle-{index}")) { (Foreign(file_name(bundle))) } }
                                td { (badge(bundle)) }
                                td.n { (number(bundle.rows())) }
                                td.n { (number(bundle.batches.len() as u64)) }
                                td {
                                    @if let Some(adapter) = bundle.adapter {
                                        code { (adapter.to_string().chars().take(12).collect::<String>()) "\u{2026}" }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
