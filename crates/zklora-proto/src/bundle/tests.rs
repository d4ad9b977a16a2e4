use std::io::Cursor;

use proptest::prelude::*;

use super::*;
use crate::SignedSession;
use crate::identity::{Purpose, SecretKey};
use crate::manifest::{Commitment, Manifest, ModuleEntry};
use crate::transcript::{Call, Delta};
use crate::{BaseModelDigest, CommitmentSeed, ModuleShape, Receipt, SessionHasher, SessionId, SignedReceipt};

/// A well-formed bundle with two modules, two calls and two "proofs", as bytes. The proofs are arbitrary bytes: this crate
/// does not look into them.
fn bundle() -> (Vec<u8>, Vec<Call>) {
    let (a, b) = (SecretKey::generate(), SecretKey::generate());
    let base = BaseModelDigest::from_bytes([1; 32]);
    let entry = |name: &str, d_out| {
        let shape = ModuleShape::new(2, 1, d_out).unwrap();
        ModuleEntry::new(name.into(), shape, 0.5, Commitment::from_elements([1; 4]).unwrap()).unwrap()
    };
    let manifest =
        Manifest::new(a.public(), base, 0, vec![entry("m.0", 3), entry("m.1", 1)]).unwrap().sign(&a);
    let calls = vec![
        Call {
            rows: 2,
            activations: vec![1, -2, 3, 32767],
            deltas: vec![
                Delta { module: 0, values: vec![1, 2, 3, -4, 5, 1 << 40] },
                Delta { module: 1, values: vec![0, 0] },
            ],
        },
        Call { rows: 1, activations: vec![0, 0], deltas: vec![Delta { module: 1, values: vec![-1] }] },
    ];
    let seed = CommitmentSeed::random();
    let mut hasher = SessionHasher::new(2, seed.clone());
    for call in &calls {
        assert!(hasher.add(call));
    }
    let receipt = Receipt::new(
        SessionId::from_bytes([2; 32]),
        manifest.adapter_id(),
        base,
        a.public(),
        b.public(),
        2,
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
    let plan = Plan { security: "any".into(), batches: vec![vec![1], vec![0]] };
    let proofs = [vec![1, 2, 3], vec![4]];
    let session = SignedSession::new(manifest, receipt).unwrap();
    let size = write(
        &path,
        &BundleParts {
            session: &session,
            salt: seed.transcript_salt(),
            calls: &calls,
            plan: &plan,
            proofs: &proofs,
        },
    )
    .unwrap();
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(bytes.len() as u64, size);
    (bytes, calls)
}

fn read(bytes: &[u8]) -> Result<Vec<Call>, BundleError> {
    let mut bundle = Bundle::from_reader(Cursor::new(bytes))?;
    let mut calls = vec![];
    bundle.calls(|call| {
        calls.push(call);
        Ok::<_, BundleError>(())
    })?;
    for index in 0..bundle.plan().batches.len() {
        bundle.proof(index)?;
    }
    Ok(calls)
}

fn header(bytes: &[u8]) -> (usize, serde_json::Value) {
    let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (end, serde_json::from_slice(&bytes[8..end]).unwrap())
}

/// The bundle with another header.
fn with_header(bytes: &[u8], edit: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
    let (end, mut value) = header(bytes);
    edit(&mut value);
    // Through the struct where it fits, for the canonical order of fields.
    let header = match serde_json::from_value::<Header>(value.clone()) {
        Ok(header) => serde_json::to_vec(&header).unwrap(),
        Err(_) => serde_json::to_vec(&value).unwrap(),
    };
    [&(header.len() as u64).to_le_bytes()[..], &header, &bytes[end..]].concat()
}

#[test]
fn round_trips() {
    let (bytes, calls) = bundle();
    assert_eq!(read(&bytes).unwrap(), calls);
}

#[test]
fn layouts_that_could_mislead_are_refused() {
    let (bytes, _) = bundle();
    let refused = |bytes: &[u8], expected: &str| {
        let error = read(bytes).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    };
    let mut huge = bytes.clone();
    huge[..8].copy_from_slice(&(1u64 << 63).to_le_bytes());
    refused(&huge, "by them its header has 8 EiB, expected at most");
    refused(&bytes[..bytes.len() - 1], "cut off or extended");
    refused(&[&bytes[..], &[0]].concat(), "cut off or extended");
    refused(&with_header(&bytes, |h| h["blobs"].as_array_mut().unwrap().swap(7, 8)), "expected \"proof.0\"");
    refused(
        &with_header(&bytes, |h| h["blobs"][1]["offset"] = 0.into()),
        "\"manifest.signature\" begins at 0",
    );
    refused(
        &with_header(&bytes, |h| {
            let offset = h["blobs"][8]["offset"].as_u64().unwrap();
            h["blobs"][8]["offset"] = (offset + 1).into();
        }),
        "\"proof.1\" begins at",
    );
    refused(
        &with_header(&bytes, |h| h["blobs"][0]["length"] = (1u64 << 62).into()),
        "\"manifest\" has 4611686018427387904 bytes",
    );
    refused(&with_header(&bytes, |h| h["format"] = "zklora-pf/1".into()), "expected \"zklora-pf/2\"");
    refused(&with_header(&bytes, |h| h["plan"]["batches"] = serde_json::json!([[0], [0]])), "module 0 twice");
    refused(&with_header(&bytes, |h| h["plan"]["batches"] = serde_json::json!([[0], [7]])), "module 7 of 2");
    refused(&with_header(&bytes, |h| h["plan"]["batches"] = serde_json::json!([[0], []])), "empty batch");
    refused(
        &with_header(&bytes, |h| h["plan"]["batches"] = serde_json::json!([[0, 1]])),
        "9 blobs, expected 8",
    );
    refused(&with_header(&bytes, |h| h["surprise"] = 1.into()), "unknown field");
    refused(&bytes[..4], "failed to fill");
}

#[test]
fn a_blob_with_fewer_calls_or_an_absurd_length_is_refused() {
    let (bytes, _) = bundle();
    let (end, value) = header(&bytes);
    let blob = &value["blobs"][TRANSCRIPT];
    let (offset, length) =
        (blob["offset"].as_u64().unwrap() as usize, blob["length"].as_u64().unwrap() as usize);
    let transcript = end + offset..end + offset + length;
    for (position, value) in [(0, 1u64), (0, u64::MAX), (0, 3), (8 + 16, u64::MAX), (8 + 16, 1)] {
        let mut changed = bytes.clone();
        changed[transcript.clone()][position..position + 8].copy_from_slice(&value.to_le_bytes());
        let digest = BundleDigest::of_blob(&changed[transcript.clone()]).to_string();
        let changed = with_header(&changed, |h| h["blobs"][TRANSCRIPT]["digest"] = digest.clone().into());
        assert!(read(&changed).is_err(), "{position} {value}");
    }
}

proptest! {
    #[test]
    fn no_flipped_bit_goes_unnoticed(position: prop::sample::Index, bit in 0u8..8) {
        let (mut bytes, _) = bundle();
        let position = position.index(bytes.len());
        // What the name of the parameter set means is for the verifier to say.
        let name = bytes.windows(5).position(|w| w == b"\"any\"").unwrap();
        prop_assume!(!(name..name + 5).contains(&position));
        bytes[position] ^= 1 << bit;
        prop_assert!(read(&bytes).is_err());
    }

    #[test]
    fn random_bytes_are_refused_without_panic(bytes: Vec<u8>) {
        prop_assert!(read(&bytes).is_err());
    }
}
