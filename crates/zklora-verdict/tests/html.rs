//! The report as a page: what it says, and that nothing in a bundle or an evaluation gets out of the place where it is shown.
//!
//! The pages are left in `target/tmp`, to be looked at.

use std::fs;
use std::io::Cursor;
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use serde_json::{Value, json};
use zklora_proto::Document;
use zklora_testing::vectors::{Vector, load};
use zklora_verdict::{
    BundleReport, EvalReport, Evaluation, LossReport, Made, Page, Pair, Pins, Refusal, Report, TextStyle,
    Verdict, Verifier,
};

static VECTORS: LazyLock<Vec<Vector>> = LazyLock::new(load);
/// Keeps its circuits for all tests.
static VERIFIER: LazyLock<Verifier> = LazyLock::new(Verifier::default);

const VALID: &str = "valid/shared-input.pf";
const INVALID: &str = "invalid/proof-changed.json";

fn bundle(name: &str) -> BundleReport {
    let vector = VECTORS.iter().find(|vector| vector.name == name).unwrap();
    BundleReport::new(Path::new(name), VERIFIER.pins(), &VERIFIER.check(Cursor::new(&vector.bytes)))
}

fn report(bundles: Vec<BundleReport>) -> Report {
    let mut report = Report::default();
    for bundle in bundles {
        report.add(bundle);
    }
    report.conclude(Duration::from_millis(1250));
    report
}

/// The page, which is well-formed and loads nothing.
fn page(name: &str, report: &Report, evaluations: Vec<Evaluation>) -> String {
    let made = Made { by: "zklora-verifier 1.2.3", at: 1_700_000_000 };
    let mut page = Vec::new();
    Page::new(report, evaluations, made).unwrap().write(&mut page).unwrap();
    fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join(name), &page).unwrap();
    let page = String::from_utf8(page).unwrap();
    check(&page);
    page
}

/// Every tag is closed in its order, ids are unique, and nothing is there that would be loaded or run.
fn check(page: &str) {
    let (mut open, mut ids, mut rest) = (Vec::new(), Vec::new(), page);
    while let Some(start) = rest.find('<') {
        let (text, tag) = rest.split_at(start);
        assert!(!text.contains('>') || open.last() == Some(&"style"), "a bracket in {text:?}");
        let end = tag.find('>').expect("a tag that ends");
        let inside = &tag[1..end];
        rest = &tag[end + 1..];
        if inside == "!DOCTYPE html" {
            continue;
        }
        if let Some(name) = inside.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "before {:?}", &rest[..rest.len().min(80)]);
            continue;
        }
        let (name, attributes) = inside.split_once(' ').unwrap_or((inside, ""));
        assert!(ELEMENTS.contains(&name), "<{inside}>");
        for attribute in attributes.split_inclusive("\" ").map(str::trim_end).filter(|a| !a.is_empty()) {
            let (key, value) = attribute.split_once('=').unwrap_or((attribute, "\"\""));
            assert!(ATTRIBUTES.contains(&key), "<{inside}>: {key:?}");
            let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap();
            assert!(!value.contains('"'), "<{inside}>");
            match key {
                "id" => ids.push(value),
                "href" => assert!(value.starts_with("#bundle-"), "<{inside}>"),
                _ => {}
            }
        }
        if name != "meta" {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?} stay open");
    let all = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), all, "an id twice");

    let lower = page.to_lowercase();
    for absent in ["<script", "javascript:", "https://", "url(", "@import", "<link", "<img", "<a href=\"h"] {
        assert!(!lower.contains(absent), "{absent} is in the page");
    }
    // The name of a namespace, which nobody fetches.
    assert!(!lower.replace("xmlns=\"http://www.w3.org/2000/svg\"", "").contains("http://"));
    let policy = "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'";
    assert!(page.find(policy).unwrap() < page.find("<style>").unwrap(), "the policy comes first");
    let hostile = |c: char| {
        c.is_control() && c != '\n'
            || ('\u{200b}'..='\u{200f}').contains(&c)
            || ('\u{202a}'..='\u{202e}').contains(&c)
            || ('\u{2066}'..='\u{2069}').contains(&c)
    };
    assert!(!page.contains(hostile));
}

const ELEMENTS: [&str; 54] = [
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "header",
    "main",
    "section",
    "article",
    "h1",
    "h2",
    "h3",
    "p",
    "div",
    "span",
    "bdi",
    "code",
    "strong",
    "i",
    "sub",
    "sup",
    "a",
    "ul",
    "li",
    "dl",
    "dt",
    "dd",
    "table",
    "caption",
    "thead",
    "tbody",
    "tfoot",
    "tr",
    "th",
    "td",
    "details",
    "summary",
    "figure",
    "figcaption",
    "svg",
    "desc",
    "text",
    "line",
    "rect",
    "circle",
    "path",
    "br",
    "hr",
    "em",
    "ol",
    "footer",
    "nav",
    "g",
];
const ATTRIBUTES: [&str; 37] = [
    "lang",
    "charset",
    "http-equiv",
    "content",
    "name",
    "class",
    "id",
    "href",
    "scope",
    "colspan",
    "open",
    "aria-hidden",
    "aria-labelledby",
    "aria-label",
    "tabindex",
    "role",
    "xmlns",
    "viewBox",
    "x",
    "y",
    "x1",
    "x2",
    "y1",
    "y2",
    "width",
    "height",
    "cx",
    "cy",
    "r",
    "d",
    "text-anchor",
    "fill",
    "stroke",
    "points",
    "transform",
    "rx",
    "ry",
];

fn contains(page: &str, parts: &[&str]) {
    for part in parts {
        assert!(page.contains(part), "{part:?} is not in the page");
    }
}

fn of_session(bundle: &BundleReport) -> Value {
    json!({
        "session": bundle.session, "adapter": bundle.adapter, "contributor": bundle.contributor, "client": bundle.client,
        "base_model": bundle.base_model, "calls": bundle.calls, "rows": [1, 2],
        "transcript": "cd".repeat(32), "blinded": null, "bundle_bytes": null,
    })
}

fn eval(bundle: &BundleReport) -> Value {
    json!({
        "format": EvalReport::FORMAT, "texts": 40, "texts_skipped": 2, "notes": [], "tokens": 12345, "predicted": 12305,
        "tokenizer": "ab".repeat(32),
        "base": { "loss": { "value": 3.9214, "interval": [3.8012, 4.0473] }, "perplexity": null, "tokens_per_second": 9.5 },
        "adapter": { "loss": { "value": 3.4127, "interval": [3.3011, 3.5302] }, "perplexity": null, "tokens_per_second": 9.5 },
        "difference": { "value": -0.5087, "interval": [-0.5601, -0.4599] },
        "sessions": [of_session(bundle)],
    })
}

fn parse(value: &Value) -> Result<Evaluation, String> {
    Evaluation::parse("eval.json".into(), value.to_string().as_bytes()).map_err(|error| error.to_string())
}

/// As a large model has them, names and all.
fn many(modules: usize, batches: usize) -> BundleReport {
    let mut bundle = bundle(VALID);
    let kinds =
        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj"];
    bundle.modules = (0..modules)
        .map(|m| {
            let mut module = bundle.modules[0].clone();
            module.name =
                format!("base_model.model.model.layers.{}.{}", m / kinds.len(), kinds[m % kinds.len()]);
            (module.d_in, module.rank, module.d_out) =
                (if m % kinds.len() == 4 { 14336 } else { 4096 }, 16, 4096);
            module.rows = (m * 7919 % 1500) as u64;
            module.ok = module.rows > 0;
            module.batch = module.ok.then_some(m * batches / modules);
            module.a_digest = module.ok.then(|| "ab".repeat(32));
            module.s = module.ok.then(|| Pair(["12345678901234567890".into(), "987654321".into()]));
            module
        })
        .collect();
    bundle.batches = (0..batches)
        .map(|b| {
            let mut batch = bundle.batches[0].clone();
            batch.modules.clear();
            (batch.degree_bits, batch.proof_bytes) = (17, 310_000 + 97 * b);
            batch.build_seconds = if b == 0 { 12.5 } else { 0.0 };
            batch.verify_seconds = 0.012 + 0.0001 * b as f64;
            batch
        })
        .collect();
    bundle
}

#[test]
fn what_rests_on_a_clients_word_and_what_was_not_asked_for_is_said_first() {
    let vector = VECTORS.iter().find(|vector| vector.name == "valid/redacted.pf").unwrap();
    let refused = BundleReport::new(
        Path::new("redacted.pf"),
        VERIFIER.pins(),
        &VERIFIER.check(Cursor::new(&vector.bytes)),
    );
    let client = refused.client.unwrap();
    let said = page("refused.html", &report(vec![refused]), Vec::new());
    contains(
        &said,
        &[
            "<title>REFUSED",
            "The one bundle is not what was asked for.",
            "this bundle is redacted",
            "not counted",
        ],
    );
    assert!(!said.contains("NOT PROVED"), "nobody looked");
    let trusting = Verifier::new(Pins { clients: vec![client], redacted: true, ..Pins::default() });
    let verdict = trusting.check(Cursor::new(&vector.bytes));
    let shown = BundleReport::new(Path::new("redacted.pf"), trusting.pins(), &verdict);
    let said = page("redacted.html", &report(vec![shown]), Vec::new());
    contains(
        &said,
        &[
            "<title>VALID, REDACTED, NOT PINNED",
            "in league with the seller",
            "a replay of the full bundle shows that",
        ],
    );
}

#[test]
fn a_valid_bundle_has_all_that_the_text_says() {
    let bundle = bundle(VALID);
    let mut text = Vec::new();
    bundle.write_text(&mut text, TextStyle::default()).unwrap();
    let report = report(vec![bundle]);
    let page = page("valid.html", &report, Vec::new());
    let bundle = &report.bundles[0];
    for fact in bundle.facts() {
        contains(&page, &[fact.what, &fact.value, fact.word]);
        contains(std::str::from_utf8(&text).unwrap(), &[fact.word]);
    }
    contains(
        &page,
        &[
            "<title>VALID, NOT PINNED \u{2013} 1 bundle",
            "One bundle. It is valid, and nobody said which adapter it has to be of.",
            "class=\"banner unpinned\"",
            "class=\"badge unpinned\"",
            &bundle.meaning(),
            bundle.not_shown()[0],
            bundle.not_shown()[2],
            &bundle.when().unwrap(),
            &bundle.session.unwrap().to_string(),
            "NOT PINNED: only this bundle says so",
            "Made by",
            "zklora-verifier 1.2.3",
            "2023-11-14T22:13:20Z",
            "proves nothing by itself",
            "not called",
            "Provable (",
            "fold (Freivalds, all modules)",
            "all together",
            "Schwartz-Zippel",
            &bundle.alpha.as_ref().unwrap().0[0],
            &bundle.beta.as_ref().unwrap().0[1],
            bundle.modules[0].a_digest.as_ref().unwrap(),
            "user-select: all",
            "@media print",
            "prefers-color-scheme: dark",
        ],
    );
    for term in &bundle.soundness.as_ref().unwrap().provable.terms {
        contains(&page, &[&term.name, &format!("{:.1}</td>", term.bits), term.source]);
    }
    assert_eq!(page.matches("<svg").count(), 4, "rows and proofs, for wide and for narrow pages");
    assert_eq!(page.matches("<desc").count(), 4);
    assert!(!page.contains("Loss with"));
}

#[test]
fn a_bundle_is_green_only_if_its_adapter_is_the_one_that_was_promised() {
    let adapter = bundle(VALID).adapter.unwrap();
    let verifier = Verifier::new(Pins { adapters: vec![adapter], ..Pins::default() });
    let pinned = |name: &str| {
        let vector = VECTORS.iter().find(|vector| vector.name == name).unwrap();
        BundleReport::new(Path::new(name), verifier.pins(), &verifier.check(Cursor::new(&vector.bytes)))
    };
    let mut all = report(vec![pinned(VALID)]);
    let said = page("pinned.html", &all, Vec::new());
    contains(
        &said,
        &["<title>VALID \u{2013} 1 bundle", "One bundle, and it is valid.", "class=\"banner good\""],
    );
    assert!(!said.contains("NOT PINNED"));
    // One that is not spoils it for all.
    all = report(vec![pinned(VALID), bundle("valid/one-module.pf")]);
    let said = page("half-pinned.html", &all, Vec::new());
    contains(&said, &["<title>VALID, NOT PINNED", "Of 1 nobody said which adapter it has to be of."]);
    assert_eq!((said.matches("badge good").count(), said.matches("badge unpinned").count()), (2, 2));
}

#[test]
fn an_invalid_bundle_says_why_and_draws_nothing() {
    let report = report(vec![bundle(INVALID)]);
    let page = page("invalid.html", &report, Vec::new());
    contains(
        &page,
        &[
            "<title>INVALID",
            "The one bundle is not valid.",
            "Nothing in this file can be relied on",
            "Why it is not valid",
            "(proof)",
            "NOT PROVED",
            "which cannot be relied on",
        ],
    );
    for absent in ["<svg", "Not shown", "a_digest", "all together", "\u{2713}"] {
        assert!(!page.contains(absent), "{absent}");
    }
}

#[test]
fn several_bundles_have_a_summary_and_one_bad_one_decides() {
    let mut all = report(vec![bundle(VALID), bundle(INVALID), bundle("valid/one-module.pf")]);
    let page_of = page("several.html", &all, Vec::new());
    contains(&page_of, &["1 of 3 bundles is not valid.", "href=\"#bundle-2\"", "id=\"bundle-2\""]);
    assert_eq!(page_of.matches("class=\"badge bad\"").count(), 2, "in the summary and above its section");

    all.bundles.remove(1);
    all.problems.push("<b>x</b>: no bundle found".into());
    let page_of = page("incomplete.html", &all, Vec::new());
    contains(&page_of, &["INCOMPLETE", "1 path led to no bundle", "&lt;b&gt;x&lt;/b&gt;: no bundle found"]);
    let page_of = page("none.html", &report(Vec::new()), Vec::new());
    contains(&page_of, &["INCOMPLETE", "No bundle was verified"]);
}

/// The attacker has made the bundle, chosen the names of its modules and of the file, or has the verifier say what it likes.
#[test]
fn hostile_names_stay_text() {
    let hostile = [
        "<script>alert(1)</script>",
        "\"><img src=x onerror=alert(1)>",
        "' onmouseover='x",
        "</title></style></svg><svg onload=alert(1)>",
        "&lt;script&gt;&#60;",
        "\u{202e}DILAV\u{2066}\u{200f}\u{1b}[2J\0",
        "<!--",
        "]]>",
        "javascript:alert(1)",
    ];
    let escaped = |text: &str| {
        let text = zklora_proto::Escaped(text).to_string();
        text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
    };
    for name in hostile {
        let mut good = many(3, 1);
        good.path = format!("dir/{name}");
        good.modules[1].name = name.into();
        let mut bad = bundle(INVALID);
        bad.error.as_mut().unwrap().what = name.into();
        bad.modules[0].name = name.into();
        let mut evaluation = parse(&eval(&good)).unwrap();
        evaluation.name = name.into();
        let mut report = report(vec![good, bad]);
        report.problems.push(name.into());
        // No check for a word that stands there as a text.
        let page = {
            let made = Made { by: "x", at: 0 };
            let mut page = Vec::new();
            Page::new(&report, vec![evaluation], made).unwrap().write(&mut page).unwrap();
            String::from_utf8(page).unwrap()
        };
        check(&page.replace("javascript:", ""));
        // Heading, path, plot, two tables of modules, evaluation, problem, reason, summary.
        assert!(page.matches(&escaped(name)).count() >= 9, "{name:?}");
        assert_eq!(page.matches(name).count() > 0, escaped(name) == name, "{name:?}");
    }
}

#[test]
fn large_reports_have_bounded_plots_and_whole_tables() {
    let large = page("many.html", &report(vec![many(3000, 120)]), Vec::new());
    let bars = large.matches("<rect").count();
    // Drawn for wide and for narrow pages.
    assert!(bars < 1000, "{bars} bars");
    assert_eq!(large.matches("<th class=\"name\" scope=\"row\">").count(), 3000 + 2998, "table and digests");
    contains(&large, &["all 3,000 modules", "The 20 largest of 120 proofs", "<details>", "3,000 modules"]);
    assert!(large.len() < 5 << 20, "{} bytes", large.len());
    let few = page("forty.html", &report(vec![many(40, 6)]), Vec::new());
    contains(&few, &["<details open>", "The table has the same numbers."]);
}

#[test]
fn an_evaluation_is_shown_as_a_claim() {
    let all = report(vec![bundle(VALID), bundle("valid/one-module.pf")]);
    let evaluation = parse(&eval(&all.bundles[0])).unwrap();
    let page_of = page("evaluation.html", &all, vec![evaluation]);
    contains(
        &page_of,
        &[
            "Claimed by whoever made the file, and not verified",
            "eval.json",
            "3.9214",
            "3.3011 to 3.5302",
            "-0.5087",
            "95 % confidence",
            "12,305 predicted",
        ],
    );
    assert_eq!(page_of.matches("Loss with and without").count(), 1, "only at its own session");

    // The vectors share a session's id and nothing else.
    let mut all = all;
    all.bundles[1].session = Some("ef".repeat(32).parse().unwrap());
    let mut loss = json!({
        "format": LossReport::FORMAT, "base_loss": 4.25, "adapter_loss": 3.5, "tokens": 21, "tokenizer": "ab".repeat(32),
        "sessions": [of_session(&all.bundles[0])],
    });
    loss["sessions"].as_array_mut().unwrap().push(of_session(&all.bundles[1]));
    let page_of = page("loss.html", &all, vec![parse(&loss).unwrap()]);
    contains(
        &page_of,
        &["4.2500", "3.5000", "21 tokens", "One text, hence no interval", "It names 2 sessions"],
    );
    assert_eq!(page_of.matches("Loss with and without").count(), 2);

    // Nothing that is claimed of an invalid bundle is drawn.
    let invalid = report(vec![bundle(INVALID)]);
    let page_of = page("invalid-evaluation.html", &invalid, vec![parse(&eval(&invalid.bundles[0])).unwrap()]);
    contains(&page_of, &["Its losses are not shown, since the bundle is not valid"]);
    assert!(!page_of.contains("3.9214"));
}

#[test]
fn an_evaluation_of_other_sessions_is_refused() {
    let all = report(vec![bundle(VALID)]);
    let refused = |value: Value| {
        let evaluation = parse(&value).unwrap();
        Page::new(&all, vec![evaluation], Made { by: "x", at: 0 }).unwrap_err().to_string()
    };
    let mut value = eval(&all.bundles[0]);
    value["sessions"][0]["session"] = "ab".repeat(32).into();
    let error = refused(value.clone());
    contains(&error, &["eval.json: ", &"ab".repeat(32), &all.bundles[0].session.unwrap().to_string()]);
    value["sessions"] = json!([]);
    contains(&refused(value), &["no session"]);
    for (field, found, words) in [
        ("adapter", json!("cd".repeat(32)), "its adapter is cdcd"),
        ("base_model", json!("cd".repeat(32)), "its base model is cdcd"),
        ("client", json!(all.bundles[0].contributor), "its client is"),
        ("calls", json!(77), "its number of calls is 77"),
    ] {
        let mut value = eval(&all.bundles[0]);
        value["sessions"][0][field] = found;
        contains(&refused(value), &[words, "while the bundle says"]);
    }
    let nothing = report(vec![BundleReport::new(
        Path::new("x.pf"),
        &Pins::default(),
        &Verdict { declared: None, outcome: Err(Refusal::NotAFile), time: Duration::ZERO },
    )]);
    let evaluation = parse(&eval(&all.bundles[0])).unwrap();
    let error = Page::new(&nothing, vec![evaluation], Made { by: "x", at: 0 }).unwrap_err().to_string();
    contains(&error, &["no bundle could be read"]);
}

#[test]
fn hostile_evaluations_are_refused() {
    let good = eval(&bundle(VALID));
    let parsed =
        |text: &str| Evaluation::parse("x".into(), text.as_bytes()).map_err(|error| error.to_string());
    for (pointer, value, words) in [
        ("/base/loss/value", json!("3.9"), "expected f64"),
        ("/base/loss/value", Value::Null, "expected f64"),
        ("/base/loss/value", json!(-0.1), "expected a number from 0 to 1000000"),
        ("/base/loss/value", json!(1e300), "expected a number from 0"),
        ("/adapter/loss/interval", json!([4.0, 3.0]), "the lower bound first"),
        ("/adapter/loss/interval", json!([4.0]), "length 2"),
        ("/adapter/loss/interval/1", json!(1e9), "the loss with the adapter is 1000000000"),
        ("/difference/value", json!(-1e9), "the difference is"),
        ("/adapter", Value::Null, "without an adapter"),
        ("/tokens", json!(-1), "u64"),
        ("/sessions", json!("all"), "expected a sequence"),
        ("/sessions/0/session", json!("<script>"), "hexadecimal"),
        ("/base", Value::Null, "MeanReport"),
        ("/format", json!("zklora-audit/2"), "zklora-loss/1 or zklora-eval/1"),
        ("/format", json!("zklora-loss/1"), "missing field `base_loss`"),
    ] {
        let mut value_of = good.clone();
        *value_of.pointer_mut(pointer).unwrap() = value;
        let error = parse(&value_of).unwrap_err();
        assert!(error.contains(words), "{pointer}: {error}");
    }
    let text = good.to_string();
    for (from, to, words) in [
        ("3.9214", "NaN", "is not what"),
        ("3.9214", "1e999", "out of range"),
        ("\"texts\":40", "\"texts\":40,\"texts\":40", "duplicate field"),
    ] {
        assert!(text.contains(from));
        let error = parsed(&text.replace(from, to)).unwrap_err();
        assert!(error.contains(words), "{error}");
    }
    for text in ["", "[]", "null", "{}", "7", &"[".repeat(100_000), &text[..text.len() - 1]] {
        assert!(parsed(text).is_err(), "{:?}", &text[..text.len().min(20)]);
    }
}
