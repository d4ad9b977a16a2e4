//! All that the page says of one bundle.

use maud::{Markup, Render, html};
use zklora_circuit::security;

use super::plot::{Bars, Panel, intervals, strip};
use super::words::{Foreign, badge, bytes, capitalised, counted, file_name, number, percent, plain, time};
use crate::evaluation::{Evaluation, Loss};
use crate::report::{BatchReport, BundleReport, Fact, ModuleReport, Pair};

/// All that is said of one bundle.
pub(super) struct Section<'a> {
    pub(super) index: usize,
    pub(super) bundle: &'a BundleReport,
    pub(super) evaluations: &'a [Evaluation],
}

impl Render for Section<'_> {
    fn render(&self) -> Markup {
        let bundle = self.bundle;
        html! {
            article.bundle id=(format!("bundle-{}", self.index)) {
                h2 { (badge(bundle)) " " (Foreign(file_name(bundle))) }
                p.path { (Foreign(&bundle.path)) ", checked in " (time(bundle.seconds)) }
                @if let Some(error) = &bundle.error {
                    section.reason {
                        h3 { "Why it is not valid" }
                        p { (Foreign(&error.what)) " " span.muted { "(" (error.kind) ")" } }
                    }
                }
                @if let Some(other) = &bundle.same_session_as {
                    p.note { "The same session as " (Foreign(other)) ": it counts once." }
                }
                dl.meaning {
                    div { dt { "Means" } dd { (bundle.meaning()) } }
                    @if !bundle.not_shown().is_empty() {
                        div {
                            dt { "Not shown" }
                            dd { ul { @for clause in bundle.not_shown() { li { (clause) } } } }
                        }
                    }
                }
                (self.facts())
                (self.losses())
                (self.modules())
                (self.proofs())
                (self.security())
                (self.digests())
            }
        }
    }
}

impl Section<'_> {
    fn facts(&self) -> Markup {
        let facts = self.bundle.facts();
        html! {
            @if !facts.is_empty() {
                section {
                    h3 { "Who and what" }
                    @if !self.bundle.valid { p.note { "By the file's own word, which cannot be relied on." } }
                    div.scroll {
                        table.facts {
                            thead { tr { th scope="col" { "what" } th scope="col" { "which" } th scope="col" { "by whose word" } } }
                            tbody {
                                @for Fact { what, value, word } in facts {
                                    tr {
                                        th scope="row" { (what) }
                                        td { code.digest { (value) } }
                                        td.warn[word.starts_with("NOT")] { (word) }
                                    }
                                }
                                @if let (Some(session), Some(calls)) = (self.bundle.session, self.bundle.calls) {
                                    tr {
                                        th scope="row" { "session" }
                                        td { code.digest { (session.to_string()) } }
                                        td { (counted(calls as usize, "call")) ", by the receipt" }
                                    }
                                }
                                @if let Some(when) = self.bundle.when() {
                                    tr { th scope="row" { "when" } td colspan="2" { (when) } }
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    fn losses(&self) -> Markup {
        let evaluations = self.evaluations.iter().filter(|evaluation| evaluation.is_of(self.bundle));
        html! {
            @for (number, evaluation) in evaluations.enumerate() {
                section {
                    h3 { "Loss with and without the adapter" }
                    @if self.bundle.valid {
                        (claimed(evaluation, &format!("loss-{}-{number}", self.index)))
                    } @else {
                        p.note {
                            "An evaluation of this session was given, " (Foreign(&evaluation.name))
                            ". Its losses are not shown, since the bundle is not valid."
                        }
                    }
                }
            }
        }
    }

    fn modules(&self) -> Markup {
        let modules = &self.bundle.modules;
        html! {
            @if !modules.is_empty() {
                section {
                    h3 { "Modules" }
                    @if self.bundle.valid {
                        (self.exposure())
                    } @else {
                        p.note { "Rows are those of the receipt; no module is proved." }
                    }
                    div.scroll {
                        table.modules {
                            thead {
                                tr {
                                    th scope="col" { "module" }
                                    th.n scope="col" { "d_in" }
                                    th.n scope="col" { "rank" }
                                    th.n scope="col" { "d_out" }
                                    th.n scope="col" { "rows" }
                                    th.n scope="col" { "share of d_in" }
                                    th.n scope="col" { "proof" }
                                    th scope="col" { "proved" }
                                }
                            }
                            tbody {
                                @for module in modules {
                                    tr {
                                        th.name scope="row" { (Foreign(&module.name)) }
                                        td.n { (number(module.d_in as u64)) }
                                        td.n { (number(module.rank as u64)) }
                                        td.n { (number(module.d_out as u64)) }
                                        td.n { (number(module.rows)) }
                                        td.n { (percent(share(module))) }
                                        td.n { @match module.batch { Some(batch) => (batch), None => "\u{2013}" } }
                                        td.warn[!module.ok && module.batch.is_some()] { (self.bundle.word_on(module)) }
                                    }
                                }
                            }
                            tfoot {
                                tr {
                                    th scope="row" { (counted(modules.len(), "module")) }
                                    td {} td {} td {}
                                    td.n { (number(self.bundle.rows())) }
                                    td {}
                                    td.n { @if self.bundle.valid { (counted(self.bundle.batches.len(), "proof")) } }
                                    td {}
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    /// The plot of rows, and what to make of them.
    fn exposure(&self) -> Markup {
        let modules = &self.bundle.modules;
        let most = |f: &dyn Fn(&ModuleReport) -> f64| modules.iter().map(f).fold(0.0, f64::max);
        let (rows, exposed) = (most(&|module| module.rows as f64), most(&share));
        let mut shown: Vec<&ModuleReport> = modules.iter().collect();
        let capped = shown.len() > MAX_BARS;
        if capped {
            // Stable, so that equal ones stay in the manifest's order.
            shown.sort_by(|a, b| share(b).total_cmp(&share(a)).then(b.rows.cmp(&a.rows)));
            shown.truncate(FEWER_BARS);
        }
        let bars = Bars {
            id: format!("rows-{}", self.index),
            title: "Rows and share of d_in of each module".into(),
            labels: shown.iter().map(|module| plain(&module.name)).collect(),
            panels: vec![
                Panel {
                    title: "rows",
                    kind: 1,
                    most: rows,
                    bars: shown.iter().map(|module| (module.rows as f64, number(module.rows))).collect(),
                },
                Panel {
                    title: "share of d_in",
                    kind: 2,
                    most: exposed,
                    bars: shown.iter().map(|module| (share(module), percent(share(module)))).collect(),
                },
            ],
        };
        html! {
            p {
                "The share of d_in is the most of A\u{b7}B that these rows can have shown by linear algebra alone: d_in linearly "
                "independent rows determine the product, and rows that repeat or follow from others show less. It counts this "
                "session only, while other sessions add to it; and rows that were chosen for it can show more, since weights are "
                "small integers: about half of d_in are known to be enough."
            }
            figure {
                @if capped {
                    (strip(
                        &format!("shares-{}", self.index),
                        "Share of d_in over all modules, in the manifest's order",
                        "share of d_in, all modules",
                        &modules.iter().map(share).collect::<Vec<_>>(),
                        exposed,
                        &percent(exposed),
                    ))
                }
                (bars)
                figcaption {
                    @if capped {
                        "Above, all " (number(modules.len() as u64)) " modules in the manifest's order. Below, the "
                        (FEWER_BARS) " with the largest share of d_in. The table has all of them."
                    } @else {
                        "The table has the same numbers."
                    }
                }
            }
        }
    }

    fn proofs(&self) -> Markup {
        let batches = &self.bundle.batches;
        let covered = |index: usize| self.bundle.modules.iter().filter(|m| m.batch == Some(index)).count();
        let mut shown: Vec<(usize, &BatchReport)> = batches.iter().enumerate().collect();
        let capped = shown.len() > MAX_BARS;
        if capped {
            shown.sort_by_key(|(_, batch)| std::cmp::Reverse(batch.proof_bytes));
            shown.truncate(FEWER_BARS);
        }
        let panel = |title, kind, of: &dyn Fn(&BatchReport) -> (f64, String)| Panel {
            title,
            kind,
            most: batches.iter().map(|batch| of(batch).0).fold(0.0, f64::max),
            bars: shown.iter().map(|(_, batch)| of(batch)).collect(),
        };
        let bars = Bars {
            id: format!("proofs-{}", self.index),
            title: "Size of each proof and time to check it".into(),
            labels: shown.iter().map(|(index, _)| format!("proof {index}")).collect(),
            panels: vec![
                panel("size", 1, &|batch| (batch.proof_bytes as f64, bytes(batch.proof_bytes as f64))),
                panel("checking", 2, &|batch| (batch.verify_seconds, time(batch.verify_seconds))),
                panel("building the circuit", 3, &|batch| (batch.build_seconds, time(batch.build_seconds))),
            ],
        };
        html! {
            @if !batches.is_empty() {
                section {
                    h3 { "Proofs" }
                    p {
                        "All of them hold."
                        @if let Some(fold) = self.bundle.fold_seconds {
                            " Reading, hashing and folding the transcript took " (time(fold)) "."
                        }
                        " A circuit is built once for all proofs of a run that need the same one, and may have been kept from an earlier run."
                    }
                    figure {
                        (bars)
                        figcaption {
                            @if capped {
                                "The " (FEWER_BARS) " largest of " (number(batches.len() as u64))
                                " proofs. The table has all of them."
                            } @else {
                                "The table has the same numbers."
                            }
                        }
                    }
                    div.scroll {
                        table {
                            thead {
                                tr {
                                    th scope="col" { "proof" }
                                    th.n scope="col" { "modules" }
                                    th.n scope="col" { "rows of the circuit" }
                                    th.n scope="col" { "size" }
                                    th.n scope="col" { "checking" }
                                    th.n scope="col" { "building the circuit" }
                                }
                            }
                            tbody {
                                @for (index, batch) in batches.iter().enumerate() {
                                    tr {
                                        th scope="row" { "proof " (index) }
                                        td.n { (number(covered(index) as u64)) }
                                        td.n { "2" sup { (batch.degree_bits) } }
                                        td.n { (bytes(batch.proof_bytes as f64)) }
                                        td.n { (time(batch.verify_seconds)) }
                                        td.n { (time(batch.build_seconds)) }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    fn security(&self) -> Markup {
        let soundness = self.bundle.soundness.as_ref();
        html! {
            @if let (Some(worth), Some(soundness)) = (self.bundle.worth(), soundness) {
                section {
                    h3 { "What the proofs are worth" }
                    p { (capitalised(&worth)) "." }
                    p {
                        "Each line is a way in which a false statement may slip through: with " i { "b" } " bits, with probability at "
                        "most 2" sup { "\u{2212}b" } " for each hash that a cheating prover computes. Of several proofs, this is the weakest."
                    }
                    (terms(&soundness.provable))
                    @if soundness.conjectured.basis != soundness.provable.basis { (terms(&soundness.conjectured)) }
                }
            }
        }
    }

    fn digests(&self) -> Markup {
        let bundle = self.bundle;
        let folded: Vec<(&ModuleReport, &str, &Pair)> = (bundle.modules.iter())
            .filter_map(|module| Some((module, module.a_digest.as_deref()?, module.s.as_ref()?)))
            .collect();
        html! {
            @if let (Some(alpha), Some(beta)) = (&bundle.alpha, &bundle.beta) {
                section {
                    h3 { "To compare with another implementation" }
                    p { "A click selects a whole value. An element x" sub { "0" } " + x" sub { "1" } "\u{b7}\u{3c6} has two parts." }
                    details open[folded.len() <= MAX_BARS] {
                        summary { "Challenges, and what was folded for " (counted(folded.len(), "module")) }
                        div.scroll {
                            table.digests {
                                thead { tr { th scope="col" { "what" } th scope="col" { "value" } } }
                                tbody {
                                    tr { th scope="row" { "\u{3b1}" } td { (parts(alpha)) } }
                                    tr { th scope="row" { "\u{3b2}" } td { (parts(beta)) } }
                                    @for (module, a_digest, s) in folded {
                                        tr {
                                            th.name scope="row" { (Foreign(&module.name)) }
                                            td {
                                                div { span.what { "a_digest" } code.digest { (a_digest) } }
                                                div { span.what { "s" } (parts(s)) }
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
    }
}

/// An evaluation's losses, and by whose word.
fn claimed(evaluation: &Evaluation, id: &str) -> Markup {
    let rows = [("base model", evaluation.base), ("with the adapter", evaluation.adapter)];
    let has_interval = rows.iter().any(|(_, loss)| loss.interval.is_some());
    html! {
        p.claim {
            strong { "Claimed by whoever made the file, and not verified: " } (Foreign(&evaluation.name))
            ". The bundle shows that the deltas are the adapter's. It does not show that these losses came from them; that takes "
            "a replay of the session with the base model."
        }
        figure {
            (intervals(id, "Mean loss of the base model and with the adapter", &rows))
            figcaption {
                "Mean loss in nats for each predicted token; less is better. "
                @if has_interval { "Bars are intervals of 95 % confidence." } @else { "One text, hence no interval." }
            }
        }
        div.scroll {
            table {
                thead {
                    tr {
                        th scope="col" { "claimed" }
                        th.n scope="col" { "loss" }
                        th.n scope="col" { "95 % interval" }
                        th.n scope="col" { "perplexity" }
                    }
                }
                tbody {
                    @for (name, loss) in rows {
                        (loss_row(name, loss, Some(loss.value.exp())))
                    }
                    @if let Some(difference) = evaluation.difference { (loss_row("difference", difference, None)) }
                }
            }
        }
        p.note {
            @if let Some(texts) = evaluation.texts { (counted(texts as usize, "text")) ", " }
            (counted(evaluation.tokens as usize, "token"))
            @if let Some(predicted) = evaluation.predicted { ", of which " (number(predicted)) " predicted" }
            "."
            @if evaluation.sessions() > 1 {
                " It names " (number(evaluation.sessions() as u64)) " sessions: the losses are those of all their adapters together."
            }
        }
    }
}

fn loss_row(name: &str, loss: Loss, perplexity: Option<f64>) -> Markup {
    html! {
        tr {
            th scope="row" { (name) }
            td.n { (format!("{:.4}", loss.value)) }
            td.n {
                @match loss.interval {
                    Some([low, high]) => (format!("{low:.4} to {high:.4}")),
                    None => "\u{2013}",
                }
            }
            td.n {
                // Beyond that it is no number that anyone reads.
                @match perplexity.filter(|perplexity| *perplexity < 1e9) {
                    Some(perplexity) => (format!("{perplexity:.2}")),
                    None => "\u{2013}",
                }
            }
        }
    }
}

fn terms(report: &security::Report) -> Markup {
    let weakest = report.weakest().map(|term| term.name.as_str());
    html! {
        div.scroll {
            table.terms {
                caption { (capitalised(report.basis.name())) }
                thead { tr { th scope="col" { "error term" } th.n scope="col" { "bits" } th scope="col" { "source" } } }
                tbody {
                    @for term in &report.terms {
                        tr {
                            th scope="row" {
                                (term.name)
                                @if weakest == Some(term.name.as_str()) { " " span.muted { "(weakest)" } }
                            }
                            td.n { (format!("{:.1}", term.bits)) }
                            td { (term.source) }
                        }
                    }
                }
                tfoot { tr { th scope="row" { "all together" } td.n { (format!("{:.1}", report.bits)) } td {} } }
            }
        }
    }
}

fn parts(pair: &Pair) -> Markup {
    html! { code.digest { (pair.0[0]) } " " code.digest { (pair.0[1]) } }
}

/// The most of A·B that the rows of a module can have shown.
fn share(module: &ModuleReport) -> f64 {
    // A shape has d_in of at least 1; a report is only numbers.
    (module.rows as f64 / module.d_in.max(1) as f64).min(1.0)
}

/// Most modules or proofs that are drawn one by one.
const MAX_BARS: usize = 40;
/// How many are, where there are more.
const FEWER_BARS: usize = 20;
