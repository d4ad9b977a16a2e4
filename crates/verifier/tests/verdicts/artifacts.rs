//! Bundles whose parts do not fit: manifest, receipt, layout and plan.

use std::path::Path;

use crate::common::{SESSION, accepted, bare, refused, refused_pinned, verdict};
use zklora_proto::SecretKey;
use zklora_proto::identity::Purpose;
use zklora_testing::{
    CLIENT_SIGNATURE, CONTRIBUTOR_SIGNATURE, MANIFEST, MANIFEST_SIGNATURE, PROOFS, RECEIPT, RawBundle,
    TRANSCRIPT, TableEntry, World, rng, shape,
};
use zklora_verdict::{BundleReport, Pins};

/// Edits of the manifest's text: what is changed, from, to.
const MANIFEST_EDITS: [(&str, &str, &str); 5] = [
    ("scale", "\"scale\":1e-6", "\"scale\":2e-6"),
    ("module name", "\"name\":\"m.1\"", "\"name\":\"m.9\""),
    ("base model", "\"base_model\":\"09", "\"base_model\":\"08"),
    ("time", "\"created\":0", "\"created\":1"),
    ("shape", "\"rank\":16", "\"rank\":17"),
];

fn with_text(index: usize, edit: impl FnOnce(&str) -> String) -> RawBundle {
    let text = std::str::from_utf8(&SESSION.bundle.blobs[index]).unwrap();
    let edited = edit(text);
    assert_ne!(edited, text);
    SESSION.bundle.with_blob(index, edited.into_bytes())
}

fn pins() -> Pins {
    let world = &SESSION.world;
    Pins {
        adapters: vec![world.manifest().adapter_id()],
        contributors: vec![world.contributor().public()],
        ..Pins::default()
    }
}

/// The attacker has the file alone.
#[test]
fn an_outsiders_manifest_is_not_signed() {
    for (what, from, to) in MANIFEST_EDITS {
        let bundle = with_text(MANIFEST, |text| text.replacen(from, to, 1)).to_bytes();
        refused(what, &bundle, "manifest", &["the manifest's signature is not one of its contributor"]);
    }
    let mut manifest = SESSION.bundle.blobs[MANIFEST].clone();
    manifest.push(b' ');
    let bundle = SESSION.bundle.with_blob(MANIFEST, manifest).to_bytes();
    refused("a space", &bundle, "manifest", &["the manifest's signature"]);
}

/// The attacker is the contributor: it signs the changed manifest, under the receipt that the client signed.
#[test]
fn a_contributors_second_manifest_is_not_the_receipts() {
    for (what, from, to) in MANIFEST_EDITS {
        let changed = SESSION.world.with_manifest(|text| text.replacen(from, to, 1));
        let bundle = SESSION
            .bundle
            .with_blob(MANIFEST, changed.manifest().bytes().to_vec())
            .with_blob(MANIFEST_SIGNATURE, changed.manifest().signature().as_bytes().to_vec());
        refused(
            what,
            &bundle.to_bytes(),
            "receipt",
            &["the receipt names another adapter than the manifest"],
        );
    }
}

/// The attackers are contributor and client together: manifest and receipt are signed anew. With the old proofs that is
/// caught by them; with new proofs it is an honest bundle of another adapter, which only the pin tells.
#[test]
fn colluders_with_a_second_manifest_are_caught_by_the_pin() {
    for (what, from, to) in &MANIFEST_EDITS[..4] {
        let changed = SESSION.world.with_manifest(|text| text.replacen(from, to, 1));
        let receipt = changed.sign(&changed.receipt(&SESSION.calls));
        let stale = RawBundle::new(
            &changed.session(receipt),
            &SESSION.calls,
            &SESSION.bundle.plan,
            SESSION.bundle.proofs(),
        );
        refused(what, &stale.to_bytes(), "proof", &["proof 0 (of m.0, "]);
        let fresh = changed.bundle(&SESSION.calls).to_bytes();
        accepted(&fresh);
        refused_pinned(pins(), what, &fresh, "adapter-pin", &["is not the pinned one", "expected"]);
    }
}

/// The attacker has keys of its own, and no others.
#[test]
fn a_contributor_who_is_not_the_pinned_one_is_named() {
    let stranger = World::new(&[shape(8, 2, 8)], 1);
    let bundle = stranger.bundle(&[stranger.call(1, &[0], &mut rng(1))]).to_bytes();
    let (mine, found) = (SESSION.world.contributor().public(), stranger.contributor().public().to_string());
    let only_key = Pins { contributors: vec![mine], ..Pins::default() };
    let words = ["the contributor of this file is not the pinned one", &found, &mine.to_string()];
    refused_pinned(only_key, "a stranger", &bundle, "contributor-pin", &words);
    // The stranger serves the pinned manifest's commitments under its own name.
    let both = Pins { adapters: vec![stranger.manifest().adapter_id()], ..pins() };
    refused_pinned(both, "a stranger's manifest", &bundle, "contributor-pin", &[&found]);
}

/// The attacker is whoever lacks one of the two signatures.
#[test]
fn both_parties_signatures_are_needed() {
    let world = &SESSION.world;
    let bytes = &SESSION.bundle.blobs[RECEIPT];
    let stranger = SecretKey::generate();
    for (place, party, purpose, other) in [
        (CONTRIBUTOR_SIGNATURE, "contributor", Purpose::ReceiptContributor, world.client()),
        (CLIENT_SIGNATURE, "client", Purpose::ReceiptClient, world.contributor()),
    ] {
        let expected = format!("the receipt's signature of the {party} is missing or not one of");
        for (what, signature) in [
            ("zeros", [0; 64]),
            ("a stranger's", *stranger.sign(purpose, bytes).as_bytes()),
            ("the other party's", *other.sign(purpose, bytes).as_bytes()),
        ] {
            let bundle = SESSION.bundle.with_blob(place, signature.to_vec()).to_bytes();
            refused(what, &bundle, "receipt", &[&expected]);
        }
        let bundle = SESSION.bundle.with_blob(place, vec![]).to_bytes();
        refused("none", &bundle, "format", &[&format!("\"receipt.{party}\" has 0 bytes, expected 64")]);
    }
    let bundle = with_text(RECEIPT, |text| text.replace("\"finished\":2", "\"finished\":3")).to_bytes();
    refused("a changed receipt", &bundle, "receipt", &["the receipt's signature of the contributor"]);
}

/// The attacker has keys of its own and takes the pinned adapter's manifest for its receipt.
#[test]
fn a_receipt_of_other_parties_does_not_fit_the_manifest() {
    let (a, b) = (SecretKey::generate(), SecretKey::generate());
    let mut receipt = SESSION.world.receipt(&SESSION.calls);
    (receipt.contributor, receipt.client) = (a.public(), b.public());
    let bytes = receipt.to_bytes();
    let bundle = SESSION
        .bundle
        .with_blob(CONTRIBUTOR_SIGNATURE, a.sign(Purpose::ReceiptContributor, &bytes).as_bytes().to_vec())
        .with_blob(CLIENT_SIGNATURE, b.sign(Purpose::ReceiptClient, &bytes).as_bytes().to_vec())
        .with_blob(RECEIPT, bytes);
    refused("a foreign receipt", &bundle.to_bytes(), "receipt", &["another contributor"]);
}

/// The attacker has the file alone and lays it out anew.
#[test]
fn blobs_lie_where_they_must() {
    let bundle = &SESSION.bundle;
    let bytes = bundle.to_bytes();
    let format = |what, bytes: &[u8], words: &str| refused(what, bytes, "format", &[words]);
    for length in [bytes.len() - 1, bytes.len() / 2] {
        format("truncated", &bytes[..length], "cut off or extended");
    }
    format("truncated in the header", &bytes[..200], "its header has");
    format("truncated in the length", &bytes[..7], "reading the bundle");
    format("empty", &[], "reading the bundle");
    format("extended", &[&bytes[..], b"\0"].concat(), "cut off or extended");
    let mut long = bytes.clone();
    long[..8].copy_from_slice(&(1u64 << 63).to_le_bytes());
    format("a header of 2^63", &long, "its header has 8 EiB, expected at most");

    let table = |what, words: &str, edit: fn(&mut Vec<TableEntry>)| {
        format(what, &bundle.to_bytes_with_table(edit), words);
    };
    table("entries re-ordered", "\"proof.1\", expected \"proof.0\"", |t| t.swap(PROOFS, PROOFS + 1));
    table("blobs overlapping", "\"proof.1\" begins at", |t| t[PROOFS + 1].offset = t[PROOFS].offset);
    table("a gap", "\"transcript\" begins at", |t| t[TRANSCRIPT].offset += 1);
    table("an offset of 2^63", "begins at 9223372036854775808", |t| t[TRANSCRIPT].offset = 1 << 63);
    table("a length of 2^63", "9223372036854775808 bytes, expected at most", |t| t[0].length = 1 << 63);
    table("one blob too many", "10 blobs, expected 9", |t| t.push(t[8].clone()));
    table("a missing blob", "8 blobs, expected 9", |t| drop(t.pop()));
    table("one blob for two", "\"receipt.client\" begins at", |t| {
        t[CLIENT_SIGNATURE] =
            TableEntry { name: "receipt.client".into(), ..t[CONTRIBUTOR_SIGNATURE].clone() };
    });
    table("a changed digest", "blob \"manifest\" does not have the digest", |t| t[0].digest = t[1].digest);
    table("a digest of the transcript", "blob \"transcript\" does not have", |t| {
        t[TRANSCRIPT].digest = t[0].digest;
    });

    let mut swapped = bundle.clone();
    swapped.blobs.swap(CONTRIBUTOR_SIGNATURE, CLIENT_SIGNATURE);
    refused("signatures exchanged", &swapped.to_bytes(), "receipt", &["signature of the contributor"]);
    let mut swapped = bundle.clone();
    swapped.blobs.swap(MANIFEST, RECEIPT);
    refused("manifest and receipt exchanged", &swapped.to_bytes(), "manifest", &["the manifest"]);
}

/// The attacker has the file alone; the plan is not signed.
#[test]
fn the_plan_covers_what_the_receipt_counts() {
    let bundle = &SESSION.bundle;
    for (what, batches, words) in [
        ("a module left out", &[&[0][..], &[2]][..], "it leaves out module 1"),
        ("a module twice", &[&[0, 1], &[2, 1]], "it names module 1 twice"),
        ("an unknown module", &[&[0, 1], &[3]], "it names module 3 of 3"),
        ("an empty batch", &[&[0, 1, 2], &[]], "it has an empty batch"),
    ] {
        refused(what, &bundle.with_plan(batches).to_bytes(), "plan", &[words]);
    }
    let bytes = bundle.with_plan(&[&[0, 1, 2]]).to_bytes();
    refused("fewer proofs", &bytes, "format", &["9 blobs, expected 8"]);
    // The circuit of m.1 with m.0 is that of m.0 with m.1, but the challenges are not.
    let bytes = bundle.with_plan(&[&[1, 0], &[2]]).to_bytes();
    refused("another order", &bytes, "proof", &["proof 0 (of m.1, m.0)"]);
    let world = World::new(&[shape(8, 2, 8), shape(8, 2, 8)], 1);
    let idle = world.bundle(&[world.call(1, &[0], &mut rng(1))]).with_plan(&[&[0, 1]]).to_bytes();
    refused("an idle module", &idle, "plan", &["it names module 1, which has no rows"]);

    let mut unknown = bundle.clone();
    unknown.plan.security = "none".into();
    let words = ["parameter set \"none\" is not known, expected \"standard\""];
    refused("security", &unknown.to_bytes(), "security", &words);
}

/// The attacker is a contributor who wants the verifier to run out of time or memory.
#[test]
fn work_is_refused_before_it_is_begun() {
    let widest = shape(1 << 14, 256, 1 << 16);
    refused("too big a circuit", &bare(&[widest]), "circuit", &["proof 0: ", "expected at most 2^17"]);
    let different: Vec<_> = (0..20).map(|i| shape((1 << 14) - i, 48, 1 << 16)).collect();
    refused("too many circuits", &bare(&different), "circuit", &["different circuits of 2621440 rows"]);
    let many = [shape(1 << 14, 1, 1 << 16); 2049];
    refused("too much memory", &bare(&many), "manifest", &["537133056 bytes of memory"]);
}

/// The attacker is anyone: it writes an element of a proof as a number that is not below the order of the field.
#[test]
fn a_proof_has_one_encoding() {
    const ORDER: u64 = 0xffff_ffff_0000_0001;
    for (index, proof) in SESSION.bundle.proofs().iter().enumerate() {
        // The last element is what grinding found, often a small number: then the order more is the same element.
        let (rest, last) = proof.split_last_chunk().unwrap();
        let element = u64::from_le_bytes(*last);
        assert!(element < ORDER);
        for other in [element.checked_add(ORDER).unwrap_or(ORDER), ORDER, u64::MAX] {
            let proof = [rest, &other.to_le_bytes()].concat();
            let bundle = SESSION.bundle.with_blob(PROOFS + index, proof).to_bytes();
            refused(&format!("proof {index}, {other}"), &bundle, "proof", &["canonical form"]);
        }
    }
}

/// The attacker is anyone: what it writes into a bundle must not act on the reader's terminal.
#[test]
fn error_texts_hold_no_control_characters() {
    let bundle = with_text(MANIFEST, |text| text.replacen('{', r#"{"\u001b[2J\u202egood":1,"#, 1)).to_bytes();
    let report = BundleReport::new(Path::new("x.pf"), &Pins::default(), &verdict(&bundle));
    let what = report.error.unwrap().what;
    assert!(what.contains("unknown field `\\u{1b}[2J\\u{202e}good`"), "{what}");
    assert!(!what.chars().any(char::is_control));
    let long = "x".repeat(100_000);
    let bundle = with_text(MANIFEST, |text| text.replacen('{', &format!("{{\"{long}\":1,"), 1)).to_bytes();
    let report = BundleReport::new(Path::new("x.pf"), &Pins::default(), &verdict(&bundle));
    assert!(report.error.unwrap().what.len() < 3000);
}
