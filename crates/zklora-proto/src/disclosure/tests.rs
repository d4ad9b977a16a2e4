use std::io::Cursor;

use super::*;
use crate::bundle::{BundleParts, Plan, write};
use crate::identity::Purpose;
use crate::{BaseModelDigest, Commitment, Manifest, ModuleShape, Receipt, SecretKey, SessionId};

/// A session of three calls, the first and the last of equal content, of whoever holds these keys.
fn bundle(a: &SecretKey, b: &SecretKey, seed: &CommitmentSeed, session: u8) -> Bundle<Cursor<Vec<u8>>> {
    let base = BaseModelDigest::from_bytes([1; 32]);
    let entry = |name: &str, d_out| {
        let shape = ModuleShape::new(2, 1, d_out).unwrap();
        ModuleEntry::new(name.into(), shape, 0.5, Commitment::from_elements([1; 4]).unwrap()).unwrap()
    };
    let manifest =
        Manifest::new(a.public(), base, 0, vec![entry("m.0", 3), entry("m.1", 1)]).unwrap().sign(a);
    let first = Call {
        rows: 2,
        activations: vec![1, -2, 3, 32767],
        deltas: vec![
            Delta { module: 1, values: vec![0, 300] },
            Delta { module: 0, values: vec![1, 2, 3, -4, 5, 1 << 40] },
        ],
    };
    let second =
        Call { rows: 1, activations: vec![0, 0], deltas: vec![Delta { module: 1, values: vec![-1] }] };
    let calls = vec![first.clone(), second, first];
    let mut hasher = SessionHasher::new(2, seed.clone());
    assert!(calls.iter().all(|call| hasher.add(call)));
    let receipt = Receipt::new(
        SessionId::from_bytes([session; 32]),
        manifest.adapter_id(),
        base,
        a.public(),
        b.public(),
        3,
        hasher.rows().to_vec(),
        hasher.digest(),
        hasher.commitments(),
        1,
        2,
    );
    let bytes = receipt.to_bytes();
    let by_a = a.sign(Purpose::ReceiptContributor, &bytes);
    let by_b = b.sign(Purpose::ReceiptClient, &bytes);
    let receipt = SignedReceipt::parse(bytes, by_a, by_b).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.pf");
    let plan = Plan { security: "any".into(), batches: vec![vec![1, 0]] };
    let salt = seed.transcript_salt();
    let proofs = [vec![1]];
    let session = SignedSession::new(manifest, receipt).unwrap();
    let parts = BundleParts { session: &session, salt, calls: &calls, plan: &plan, proofs: &proofs };
    write(&path, &parts).unwrap();
    Bundle::from_reader(Cursor::new(std::fs::read(&path).unwrap())).unwrap()
}

fn opened(session: u8, call: u64, module: usize) -> Disclosure {
    let (a, b) = (SecretKey::generate(), SecretKey::generate());
    let seed = CommitmentSeed::random();
    Disclosure::new(&mut bundle(&a, &b, &seed, session), &seed, call, module).unwrap()
}

#[test]
fn every_module_of_every_call_opens_to_a_file_that_is_read_as_itself() {
    let (a, b, seed) = (SecretKey::generate(), SecretKey::generate(), CommitmentSeed::random());
    let mut bundle = bundle(&a, &b, &seed, 1);
    let mut nodes = Vec::new();
    for (call, module, values) in [
        (0, 1, &[0, 300][..]),
        (0, 0, &[1, 2, 3, -4, 5, 1 << 40]),
        (1, 1, &[-1]),
        (2, 1, &[0, 300]),
        (2, 0, &[1, 2, 3, -4, 5, 1 << 40]),
    ] {
        let disclosure = Disclosure::new(&mut bundle, &seed, call, module).unwrap();
        assert_eq!((disclosure.number(), disclosure.module(), disclosure.deltas()), (call, module, values));
        assert_eq!(Disclosure::from_bytes(&disclosure.to_bytes()).unwrap(), disclosure);
        nodes.push(disclosure.leaf());
    }
    // The first and the last call have equal content.
    assert!(nodes[0] != nodes[3] && nodes[1] != nodes[4]);

    let refused = |seed: &CommitmentSeed, bundle: &mut _, call, module| {
        Disclosure::new(bundle, seed, call, module).unwrap_err().to_string()
    };
    let error = refused(&seed, &mut bundle, 1, 0);
    assert!(error.contains("call 1 does not ask for this module; it asks for m.1"), "{error}");
    assert!(refused(&seed, &mut bundle, 3, 0).contains("there is no call 3: the session has 3"));
    assert!(refused(&seed, &mut bundle, u64::MAX, 0).contains("there is no call"));
    assert!(refused(&CommitmentSeed::random(), &mut bundle, 0, 0).contains("commitment seed"));
}

/// Changes a field of an honest disclosure.
fn changed(disclosure: &Disclosure, edit: impl FnOnce(&mut Fields)) -> Result<Disclosure, DisclosureError> {
    let Object(mut fields): Object<Fields> = serde_json::from_slice(&disclosure.to_bytes()).unwrap();
    edit(&mut fields);
    let bytes = serde_json::to_vec(&fields).unwrap();
    assert_ne!(bytes, disclosure.to_bytes());
    Disclosure::from_bytes(&bytes)
}

#[test]
fn whatever_is_changed_is_not_what_was_committed_to() {
    let honest = opened(1, 0, 0);
    let other = opened(1, 0, 0);
    let not_committed = |what: &str, edit: fn(&mut Fields)| {
        let error = changed(&honest, edit).unwrap_err();
        assert!(matches!(error, DisclosureError::NotCommitted), "{what}: {error}");
    };
    not_committed("an activation", |f| f.activations[1] ^= 1);
    not_committed("a delta", |f| f.deltas[3] ^= 1);
    not_committed("the salt", |f| f.salt = CallSalt::from_bytes([0; 32]));
    not_committed("the call", |f| f.call = 2);
    not_committed("a call that there is not", |f| f.call = u64::MAX);
    not_committed("the position", |f| f.position = 4);
    not_committed("the position beyond the end", |f| f.position = u64::MAX);
    not_committed("the number of leaves", |f| f.leaves = 6);
    not_committed("no leaves", |f| f.leaves = 0);
    not_committed("a node", |f| f.path[1] = f.path[0]);
    not_committed("fewer nodes", |f| f.path.truncate(1));
    not_committed("more nodes", |f| f.path.push(f.path[0]));
    not_committed("a row less", |f| {
        f.rows = 1;
        f.activations.truncate(4);
        f.deltas = vec![1, 2, 3];
        f.width = 1;
    });
    not_committed("another module", |f| {
        (f.module, f.name, f.width, f.deltas) = (1, "m.1".into(), 1, vec![0, 1]);
    });

    // Another session of other parties, whole; and its receipt alone.
    let Object(foreign): Object<Fields> = serde_json::from_slice(&other.to_bytes()).unwrap();
    let error = changed(&honest, |f| {
        f.receipt = foreign.receipt.clone();
        f.contributor_signature = foreign.contributor_signature;
        f.client_signature = foreign.client_signature;
    });
    assert!(matches!(error, Err(DisclosureError::Foreign(ForeignReceipt { what: "adapter" }))), "{error:?}");
    let error = changed(&honest, |f| {
        f.receipt = foreign.receipt.clone();
        f.contributor_signature = foreign.contributor_signature;
        f.client_signature = foreign.client_signature;
        f.manifest = foreign.manifest;
        f.manifest_signature = foreign.manifest_signature;
    });
    assert!(matches!(error, Err(DisclosureError::NotCommitted)), "{error:?}");
}

/// Parties in league can sign for anything, but no reader takes it.
#[test]
fn what_the_receipts_counts_do_not_allow_is_refused_though_both_signed_it() {
    let (a, b, seed) = (SecretKey::generate(), SecretKey::generate(), CommitmentSeed::random());
    // The second of five leaves, in the first of three calls; the fourth, in the third call.
    let open = |call, module| Disclosure::new(&mut bundle(&a, &b, &seed, 1), &seed, call, module).unwrap();
    let (first, third) = (open(0, 0), open(2, 1));
    assert_eq!((first.path.position, third.path.position, first.path.leaves), (1, 3, 5));
    let signed = |disclosure: &Disclosure, calls, rows: [u64; 2]| {
        let mut receipt = disclosure.receipt().receipt().clone();
        (receipt.calls, receipt.rows) = (calls, rows.to_vec());
        let bytes = receipt.to_bytes();
        let by_a = a.sign(Purpose::ReceiptContributor, &bytes);
        let by_b = b.sign(Purpose::ReceiptClient, &bytes);
        let receipt = SignedReceipt::parse(bytes, by_a, by_b).unwrap();
        let session = SignedSession::new(disclosure.manifest().clone(), receipt).unwrap();
        Disclosure::from_bytes(&Disclosure { session, ..disclosure.clone() }.to_bytes())
    };
    for (disclosure, calls, rows, expected) in [
        (&first, 3, [4, 5], None),
        (&third, 3, [4, 5], None),
        // As many leaves, each of a call of its own, would make the second leaf one of the second call; but the first may have two.
        (&first, 4, [4, 5], None),
        (&first, 5, [4, 5], Some("position")),
        (&third, 2, [4, 5], Some("call")),
        (&third, 4, [4, 5], None),
        (&third, 5, [4, 5], Some("position")),
        (&first, 0, [4, 5], Some("call")),
        (&first, 6, [4, 5], Some("leaves")),
        (&first, 1, [4, 5], None),
        (&first, 3, [2, 0], None),
        (&first, 3, [1, 5], Some("rows")),
        (&third, 3, [4, 1], Some("rows")),
    ] {
        let found = signed(disclosure, calls, rows);
        let what = found.as_ref().err().map(|error| match error {
            DisclosureError::Impossible { what, .. } => *what,
            other => panic!("{other}"),
        });
        assert_eq!(what, expected, "call {} of {calls}, {rows:?}: {found:?}", disclosure.number());
    }
}

#[test]
fn what_is_signed_is_checked_and_a_file_has_one_form() {
    let honest = opened(1, 0, 0);
    let refused = |edit: fn(&mut Fields), words: &str| {
        let error = changed(&honest, edit).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    refused(|f| f.manifest_signature = Signature::from_bytes([0; 64]), "the manifest's signature");
    refused(|f| f.contributor_signature = f.client_signature, "signature of the contributor");
    refused(|f| f.client_signature = f.contributor_signature, "signature of the client");
    refused(|f| f.receipt = f.receipt.replace("\"calls\":3", "\"calls\":4"), "signature of the contributor");
    refused(|f| f.format = "zklora-disclosure/2".into(), "zklora-disclosure/2");
    refused(|f| f.name = "m.1".into(), "is not the name of module 0");
    refused(|f| f.module = 7, "addresses module 7");
    refused(|f| f.rows = 0, "has 0 rows");
    refused(|f| f.rows = usize::MAX, "rows");
    refused(|f| f.rows = 1, "expected activations of 1 x 2");
    refused(|f| f.activations[..2].copy_from_slice(&[0, 0x80]), "expected activations of");
    refused(|f| f.width = 9, "deltas of 9 bytes");
    refused(|f| f.width = 7, "the deltas: ");

    let bytes = honest.to_bytes();
    let text = String::from_utf8(bytes.clone()).unwrap();
    for other in [
        format!("{text}\n"),
        text.replacen('{', "{ ", 1),
        text.replacen('{', "{\"x\":0,", 1),
        text.replacen("\"width\":6", "\"width\":6,\"width\":6", 1),
        text.replacen("ff7f", "FF7F", 1),
        text.replacen("\"call\":0", "\"call\":\"0\"", 1),
        "[]".into(),
        String::new(),
    ] {
        assert_ne!(other, text);
        let error = Disclosure::from_bytes(other.as_bytes()).unwrap_err();
        assert!(matches!(error, DisclosureError::Json(_)), "{error}");
    }
    for end in (0..bytes.len()).step_by(7) {
        assert!(Disclosure::from_bytes(&bytes[..end]).is_err());
    }
}
