//! What the verifier's tests share: an honest session and the assertion that a bundle is refused for the right reason.

#![allow(dead_code, unused_imports, reason = "each test binary uses a part of this")]

use std::io::Cursor;
use std::path::Path;
use std::sync::LazyLock;

use zklora_proto::bundle::Plan;
use zklora_proto::identity::Purpose;
use zklora_proto::{
    BaseModelDigest, Call, Commitment, Delta, Manifest, ModuleEntry, ModuleShape, Receipt, SecretKey,
    SessionHasher, SessionId, SignedReceipt, SignedSession,
};
pub use zklora_testing::vectors::client_of_redacted;
use zklora_testing::{RawBundle, World, rng, shape};
use zklora_verdict::{BundleReport, Pins, Verdict, Verifier};

/// An honest session: three modules, three calls, two proofs.
pub struct Session {
    pub world: World,
    pub calls: Vec<Call>,
    pub bundle: RawBundle,
}

pub static SESSION: LazyLock<Session> = LazyLock::new(|| {
    // Together too many rows for a circuit of 2^10, so that the plan has two batches: m.0 with m.1, and m.2.
    let world = World::new(&[shape(60, 16, 60), shape(60, 16, 60), shape(40, 216, 48)], 1).with_max_bits(10);
    let mut rng = rng(2);
    let calls =
        vec![world.call(3, &[0, 1], &mut rng), world.call(2, &[2], &mut rng), world.call(1, &[0], &mut rng)];
    let bundle = world.bundle(&calls);
    assert_eq!(bundle.plan.batches, [vec![0, 1], vec![2]]);
    Session { world, calls, bundle }
});

/// The parts of a bundle.
pub fn raw(bundle: &[u8]) -> RawBundle {
    RawBundle::parse(bundle)
}

/// A verifier without pins, which keeps its circuits for all tests of a process.
pub static VERIFIER: LazyLock<Verifier> = LazyLock::new(Verifier::default);

pub fn verdict(bundle: &[u8]) -> Verdict {
    VERIFIER.check(Cursor::new(bundle))
}

pub fn accepted(bundle: &[u8]) {
    let verdict = verdict(bundle);
    assert!(verdict.outcome.is_ok(), "{}", verdict.outcome.unwrap_err());
}

/// Asserts that the bundle is refused, for this kind of reason and in these words.
pub fn refused(case: &str, bundle: &[u8], kind: &str, words: &[&str]) {
    refused_by(&VERIFIER, case, bundle, kind, words);
}

/// Asserts the same of a verifier with pins.
pub fn refused_pinned(pins: Pins, case: &str, bundle: &[u8], kind: &str, words: &[&str]) {
    refused_by(&Verifier::new(pins), case, bundle, kind, words);
}

fn refused_by(verifier: &Verifier, case: &str, bundle: &[u8], kind: &str, words: &[&str]) {
    let report = BundleReport::new(Path::new("x.pf"), verifier.pins(), &verifier.check(Cursor::new(bundle)));
    assert!(!report.valid, "{case}: accepted");
    let error = report.error.unwrap();
    assert_eq!(error.kind.name(), kind, "{case}: {}", error.what);
    for word in words {
        assert!(error.what.contains(word), "{case}: {:?} does not say {word:?}", error.what);
    }
    assert!(report.modules.iter().all(|module| !module.ok), "{case}: a module is ok");
}

/// A well-formed bundle between two keys of anybody's of one call of one row of zeros for each module, with empty proofs. The
/// transcript is one call of the first module: what refuses such a bundle refuses it before.
pub fn bare(shapes: &[ModuleShape]) -> Vec<u8> {
    let call = Call {
        rows: 1,
        activations: vec![0; shapes[0].d_in()],
        deltas: vec![Delta { module: 0, values: vec![0; shapes[0].d_out()] }],
    };
    bare_with(shapes, vec![1; shapes.len()], &[call], 0)
}

/// The same with these rows of each module and these calls, which need not be those rows, and with proofs of so many zeros.
pub fn bare_with(shapes: &[ModuleShape], rows: Vec<u64>, calls: &[Call], proof_bytes: usize) -> Vec<u8> {
    let (a, b) = (SecretKey::generate(), SecretKey::generate());
    let base = BaseModelDigest::from_bytes([0; 32]);
    let commitment = Commitment::from_elements([0; 4]).unwrap();
    let modules = shapes
        .iter()
        .enumerate()
        .map(|(i, shape)| ModuleEntry::new(format!("m.{i}"), *shape, 1.0, commitment).unwrap())
        .collect();
    let manifest = Manifest::new(a.public(), base, 0, modules).unwrap().sign(&a);
    let mut hasher = SessionHasher::new(shapes.len(), World::SEED);
    assert!(calls.iter().all(|call| hasher.add(call)));
    let receipt = Receipt::new(
        SessionId::from_bytes([1; 32]),
        manifest.adapter_id(),
        base,
        a.public(),
        b.public(),
        calls.len() as u64,
        rows,
        hasher.digest(),
        hasher.commitments(),
        1,
        2,
    );
    let bytes = receipt.to_bytes();
    let receipt = SignedReceipt::parse(
        bytes.clone(),
        a.sign(Purpose::ReceiptContributor, &bytes),
        b.sign(Purpose::ReceiptClient, &bytes),
    )
    .unwrap();
    let plan = Plan { security: "standard".into(), batches: (0..shapes.len()).map(|m| vec![m]).collect() };
    RawBundle::new(
        &SignedSession::new(manifest, receipt).unwrap(),
        calls,
        &plan,
        &vec![vec![0; proof_bytes]; shapes.len()],
    )
    .to_bytes()
}
