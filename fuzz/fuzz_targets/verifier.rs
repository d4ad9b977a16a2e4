//! The whole verifier: it accepts what was honestly made, and nothing else, and never panics.
#![no_main]

use std::collections::HashSet;
use std::fs;
use std::io::Cursor;
use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::{Corpus, fuzz_mutator, fuzz_target};
use zklora_fuzz::{Parties, attack, calls};
use zklora_proto::bundle::Bundle;
use zklora_proto::{Call, ModuleShape, PublicKey, Receipt};
use zklora_testing::{PROOFS, RECEIPT, REDACTED, RawBundle, TRANSCRIPT};
use zklora_verdict::{BundleReport, Pins, TextStyle, Verifier};

static PARTIES: LazyLock<Parties> = LazyLock::new(Parties::default);

/// Keeps the circuits that it has built, and takes the client's word for folds.
static VERIFIER: LazyLock<Verifier> = LazyLock::new(|| {
    // Of any client, as far as full bundles go: a pin would refuse those of the vectors, whose keys nobody has.
    let clients = HONEST.iter().map(|session| session.client).chain([PARTIES.client.public()]).collect();
    Verifier::new(Pins { clients, redacted: true, ..Pins::default() })
});

/// The bundles that are valid: those of `crates/zklora-testing/examples/fuzz_seeds.rs`.
static HONEST: LazyLock<Vec<Session>> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds/verifier");
    let files = fs::read_dir(&folder).expect("the seeds, which scripts/fuzz.sh makes");
    let honest: Vec<Session> =
        files.map(|entry| Session::of(&fs::read(entry.unwrap().path()).unwrap())).collect();
    assert!(!honest.is_empty(), "no seeds");
    honest
});

/// The shapes of their modules.
static SHAPES: LazyLock<HashSet<ModuleShape>> =
    LazyLock::new(|| HONEST.iter().flat_map(|session| session.shapes.iter().copied()).collect());

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    attack(data, size, max_size, seed, &PARTIES)
});

fuzz_target!(|file: &[u8]| -> Corpus {
    // A manifest may ask for large circuits, which take minutes to build, and that is all it would show here.
    if shapes(file).is_some_and(|shapes| !shapes.iter().all(|shape| SHAPES.contains(shape))) {
        return Corpus::Reject;
    }
    let verdict = VERIFIER.check(Cursor::new(file));
    let report = BundleReport::new(Path::new("x.pf"), VERIFIER.pins(), &verdict);
    assert_eq!(report.valid, verdict.outcome.is_ok());
    assert_eq!(report.error.is_some(), verdict.outcome.is_err());
    let mut text = Vec::new();
    report.write_text(&mut text, TextStyle { verbose: true, coloured: false }).unwrap();
    let text = String::from_utf8(text).unwrap();
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    if let Err(refusal) = verdict.outcome {
        assert_ne!(refusal.kind(), "internal");
        assert!(report.modules.iter().all(|module| !module.ok));
    } else {
        assert!(HONEST.contains(&Session::of(file)), "accepted:\n{text}");
    }
    Corpus::Keep
});

/// What a bundle says, all of it. Two files of one session may differ in how the transcript is compressed, and in the order of the
/// batches with their proofs.
#[derive(PartialEq)]
struct Session {
    /// With batches in order, and nothing in the place of the transcript, if it has one.
    rest: Vec<u8>,
    client: PublicKey,
    calls: Vec<Call>,
    shapes: Vec<ModuleShape>,
}

impl Session {
    fn of(file: &[u8]) -> Self {
        let mut raw = RawBundle::parse(file);
        assert_eq!(raw.to_bytes(), file);
        let redacted = raw.format == REDACTED;
        let mut proofs: Vec<_> = raw.plan.batches.drain(..).zip(raw.blobs.split_off(PROOFS)).collect();
        proofs.sort();
        let (batches, proofs): (Vec<_>, Vec<_>) = proofs.into_iter().unzip();
        raw.plan.batches = batches;
        raw.blobs.extend(proofs);
        Self {
            rest: if redacted { raw.to_bytes() } else { raw.with_blob(TRANSCRIPT, Vec::new()).to_bytes() },
            client: Receipt::from_bytes(&raw.blobs[RECEIPT]).unwrap().client,
            calls: if redacted { Vec::new() } else { calls(file).unwrap().expect("seeds are small") },
            shapes: shapes(file).unwrap(),
        }
    }
}

fn shapes(file: &[u8]) -> Option<Vec<ModuleShape>> {
    let bundle = Bundle::from_reader(Cursor::new(file)).ok()?;
    Some(bundle.manifest().manifest().modules().iter().map(|module| module.shape()).collect())
}
