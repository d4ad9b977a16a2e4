//! Redacted bundles: what the client signed stands, whatever else is changed, and nothing stands without the client's word.

use std::io::Cursor;
use std::path::Path;

use crate::common::SESSION;
use zklora_proto::bundle::Folds;
use zklora_proto::identity::Purpose;
use zklora_proto::{PublicKey, SecretKey};
use zklora_testing::{
    CLIENT_SIGNATURE, FOLDS, FOLDS_SIGNATURE, PROOFS, RECEIPT, RawBundle, TRANSCRIPT, TRANSCRIPT_SALT, rng,
};
use zklora_verdict::{BundleReport, Pins, TextStyle, Verifier};

fn trusting(client: PublicKey) -> Verifier {
    Verifier::new(Pins { clients: vec![client], redacted: true, ..Pins::default() })
}

fn report(verifier: &Verifier, bundle: &RawBundle) -> BundleReport {
    let verdict = verifier.check(Cursor::new(bundle.to_bytes()));
    BundleReport::new(Path::new("x.pf"), verifier.pins(), &verdict)
}

fn honest() -> Folds {
    SESSION.world.folds(&SESSION.bundle, |call| call.clone())
}

fn text(report: &BundleReport) -> String {
    let mut out = Vec::new();
    report.write_text(&mut out, TextStyle::default()).unwrap();
    String::from_utf8(out).unwrap()
}

/// Asserts that a bundle is refused though its client is trusted.
fn refused(case: &str, bundle: &RawBundle, kind: &str, words: &str) {
    let report = report(&trusting(SESSION.world.client().public()), bundle);
    let error = report.error.unwrap_or_else(|| panic!("{case}: accepted"));
    assert!(
        error.kind.name() == kind && error.what.contains(words),
        "{case}: {}: {}",
        error.kind,
        error.what
    );
    assert!(report.modules.iter().all(|module| !module.ok), "{case}: a module is ok");
}

#[test]
fn an_honest_one_shows_the_same_proofs_without_the_transcript() {
    let client = SESSION.world.client().public();
    let verifier = trusting(client);
    let redacted = SESSION.world.redact(&SESSION.bundle, &honest());
    let (full, shown) = (report(&verifier, &SESSION.bundle), report(&verifier, &redacted));
    assert!(full.valid && shown.valid, "{:?}", shown.error);
    assert_eq!((full.redacted, shown.redacted), (Some(false), Some(true)));
    for (full, shown) in full.modules.iter().zip(&shown.modules) {
        assert!(full.ok && shown.ok);
        assert_eq!((&full.a_digest, &full.s), (&shown.a_digest, &shown.s));
    }
    assert_eq!((full.alpha, full.beta), (shown.alpha.clone(), shown.beta.clone()));
    assert!(text(&shown).contains("VALID, REDACTED"));
    assert!(
        text(&shown)
            .contains("If the sums in this file are those of the record, for which the user gives its word")
    );
    assert!(text(&shown).contains("can give its word for false answers"));

    // Neither the transcript nor its salt, with which a guess of all of it could be checked, is anywhere in it.
    let bytes = redacted.to_bytes();
    for secret in [&SESSION.bundle.blobs[TRANSCRIPT_SALT][..], &SESSION.bundle.blobs[TRANSCRIPT][16..80]] {
        assert!(!bytes.windows(secret.len()).any(|window| window == secret));
    }
}

/// Without the client's word the folds are anybody's: two keys are all it takes to make such a bundle.
#[test]
fn it_is_taken_only_from_a_pinned_client_and_only_when_asked_for() {
    let redacted = SESSION.world.redact(&SESSION.bundle, &honest());
    let client = SESSION.world.client().public();
    let pins = |clients: Vec<PublicKey>, redacted| Pins { clients, redacted, ..Pins::default() };
    for (case, pins, kind) in [
        ("no pins", pins(vec![], false), "redacted"),
        ("a pinned client, not asked for", pins(vec![client], false), "redacted"),
        ("asked for, no client", pins(vec![], true), "redacted"),
        ("asked for, another client", pins(vec![SecretKey::generate().public()], true), "client-pin"),
    ] {
        let report = report(&Verifier::new(pins), &redacted);
        assert_eq!(report.error.unwrap_or_else(|| panic!("{case}: accepted")).kind.name(), kind, "{case}");
    }
}

#[test]
fn what_the_client_did_not_sign_is_stopped() {
    let world = &SESSION.world;
    let honest = world.redact(&SESSION.bundle, &honest());
    let mut changed = honest.blobs[FOLDS].clone();
    changed[40] ^= 1;
    refused(
        "changed folds",
        &honest.with_blob(FOLDS, changed.clone()),
        "folds",
        "not one of the receipt's client",
    );

    let receipt = &honest.blobs[RECEIPT];
    let message = |folds: &[u8]| [&(receipt.len() as u64).to_le_bytes()[..], receipt, folds].concat();
    for (case, signature) in [
        ("signed by the contributor", world.contributor().sign(Purpose::Folds, &message(&changed))),
        ("signed by a stranger", SecretKey::generate().sign(Purpose::Folds, &message(&changed))),
        ("signed as a receipt", world.client().sign(Purpose::ReceiptClient, &message(&changed))),
        ("signed without the receipt", world.client().sign(Purpose::Folds, &changed)),
    ] {
        let forged = honest
            .with_blob(FOLDS, changed.clone())
            .with_blob(FOLDS_SIGNATURE, signature.as_bytes().to_vec());
        refused(case, &forged, "folds", "not one of the receipt's client");
    }
    let receipts = honest.blobs[CLIENT_SIGNATURE].clone();
    refused("the receipt's signature", &honest.with_blob(FOLDS_SIGNATURE, receipts), "folds", "not one of");

    // Of another session between the same two, with the same rows.
    let calls: Vec<_> = (SESSION.calls.iter())
        .map(|call| {
            let modules: Vec<usize> = call.deltas.iter().map(|delta| delta.module).collect();
            world.call(call.rows, &modules, &mut rng(99))
        })
        .collect();
    let other = world.bundle(&calls);
    let others = world.redact(&other, &world.folds(&other, |call| call.clone()));
    let mixed = honest
        .with_blob(FOLDS, others.blobs[FOLDS].clone())
        .with_blob(FOLDS_SIGNATURE, others.blobs[FOLDS_SIGNATURE].clone());
    refused("another session's folds", &mixed, "folds", "not one of the receipt's client");
}

/// A client that signs anything is still held to the proofs.
#[test]
fn what_the_client_signed_has_to_fit_the_proofs() {
    let world = &SESSION.world;
    let change = |edit: &dyn Fn(&mut Folds)| {
        let mut folds = honest();
        edit(&mut folds);
        world.redact(&SESSION.bundle, &folds)
    };
    refused("another a", &change(&|folds| folds.modules[0].a[3][0] ^= 1), "proof", "does not show");
    refused("another s", &change(&|folds| folds.modules[2].s[1] ^= 1), "proof", "does not show");
    refused("modules exchanged", &change(&|folds| folds.modules.swap(0, 1)), "proof", "does not show");
    let words = "folded with other challenges";
    refused("another α", &change(&|folds| folds.alpha[0] ^= 1), "folds", words);
    refused("another β", &change(&|folds| folds.beta[1] ^= 1), "folds", words);
    let planned = world.redact(&SESSION.bundle, &honest()).with_plan(&[&[1, 0], &[2]]);
    refused("another plan", &planned, "proof", "proof 0");

    let bytes = honest().to_bytes();
    let signed = |folds: Vec<u8>| world.redact_bytes(&SESSION.bundle, folds);
    let mut wide = bytes.clone();
    wide[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
    refused("an element beyond p", &signed(wide), "folds", "is no canonical field element");
    refused("an element less", &signed(bytes[..bytes.len() - 16].to_vec()), "folds", "expected");
    refused("an element more", &signed([&bytes[..], &[0; 16]].concat()), "folds", "expected");
    refused("nothing", &signed(Vec::new()), "folds", "expected");

    let swapped = world.redact(&SESSION.bundle, &honest());
    let proofs = swapped.with_blob(PROOFS, swapped.blobs[PROOFS + 1].clone());
    refused("another proof", &proofs, "proof", "proof 0");
}

#[test]
fn the_two_layouts_are_told_apart_by_their_format_alone() {
    let full = RawBundle { format: "zklora-pf/2".into(), ..SESSION.world.redact(&SESSION.bundle, &honest()) };
    refused("folds in a full bundle", &full, "format", "transcript.salt");
    let redacted = RawBundle { format: zklora_testing::REDACTED.into(), ..SESSION.bundle.clone() };
    refused("a transcript in a redacted one", &redacted, "format", "folds.client");
}

/// What the verdict warns of: a client in league with the contributor has a session of false deltas proved, and only the transcript
/// tells. The same session with its transcript is refused.
#[test]
fn false_deltas_of_a_client_in_league_are_what_only_the_transcript_tells() {
    let world = &SESSION.world;
    let mut calls = SESSION.calls.clone();
    calls[0].deltas[0].values[0] += 1;
    let forged = world.forge(&calls);
    let true_folds = |call: &zklora_proto::Call| {
        let modules: Vec<usize> = call.deltas.iter().map(|delta| delta.module).collect();
        world.answer(call.rows, call.activations.clone(), &modules)
    };
    let redacted = world.redact(&forged, &world.folds(&forged, true_folds));
    let verifier = trusting(world.client().public());
    let (shown, full) = (report(&verifier, &redacted), report(&verifier, &forged));
    assert!(shown.valid && text(&shown).contains("in league with the seller"));
    assert_eq!(full.error.unwrap().kind.name(), "proof");
    // With the folds of the false deltas it does not hold either.
    let folded = world.redact(&forged, &world.folds(&forged, |call| call.clone()));
    refused("the false deltas' folds", &folded, "proof", "does not show");
}
