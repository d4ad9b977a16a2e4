//! Thousands of small random changes of a valid bundle: none is accepted for something else, and nothing panics.

use std::io::Cursor;
use std::ops::Range;

use crate::common::{SESSION, verdict};
use rand::RngExt;
use rand::rngs::StdRng;
use zklora_proto::Call;
use zklora_proto::bundle::{Bundle, BundleError};
use zklora_testing::{RawBundle, rng};
use zklora_verdict::Kind;

/// The attacker has the file alone and changes bytes of it.
#[test]
fn no_mutation_of_the_file_is_accepted() {
    let bytes = SESSION.bundle.to_bytes();
    let mut rng = rng(11);
    // Positions are drawn part by part, or nearly all would fall into the proofs.
    let parts = parts(&SESSION.bundle, bytes.len());
    for round in 0..4000 {
        let mutated = mutate(&bytes, &parts[round % parts.len()], &mut rng);
        refused_without_panic(round, &mutated);
    }
}

/// The attacker has the file alone and makes all digests of it fit again, so that what is behind them is reached.
#[test]
fn no_mutation_of_a_blob_is_accepted_for_something_else() {
    let mut rng = rng(12);
    let honest = calls(&SESSION.bundle.to_bytes());
    let mut accepted = 0;
    for round in 0..3000 {
        let index = round % SESSION.bundle.blobs.len();
        let blob = &SESSION.bundle.blobs[index];
        let mutated = SESSION.bundle.with_blob(index, mutate(blob, &(0..blob.len()), &mut rng)).to_bytes();
        // Compressed data can be written in more than one way: the same calls are the same session.
        if verdict(&mutated).outcome.is_ok() {
            assert_eq!(index, zklora_testing::TRANSCRIPT, "round {round}");
            assert_eq!(calls(&mutated), honest, "round {round}");
            accepted += 1;
        } else {
            refused_without_panic(round, &mutated);
        }
    }
    assert!(accepted < 30, "{accepted} mutations of the transcript left it as it was");
}

fn refused_without_panic(round: usize, bytes: &[u8]) {
    match verdict(bytes).outcome {
        Ok(_) => panic!("round {round}: accepted"),
        Err(refusal) => assert_ne!(refusal.kind(), Kind::Internal, "round {round}"),
    }
}

/// The length, the header and every blob.
fn parts(bundle: &RawBundle, total: usize) -> Vec<Range<usize>> {
    let mut end = total - bundle.blobs.iter().map(Vec::len).sum::<usize>();
    let mut parts = vec![0..8, 8..end];
    for blob in &bundle.blobs {
        parts.push(end..end + blob.len());
        end += blob.len();
    }
    assert_eq!(end, total);
    parts
}

/// One change within `part`: a flipped bit, another byte, a byte less, a byte more, or an end cut off.
fn mutate(bytes: &[u8], part: &Range<usize>, rng: &mut StdRng) -> Vec<u8> {
    let mut mutated = bytes.to_vec();
    let position = rng.random_range(part.clone());
    match rng.random_range(0..8) {
        0..=3 => mutated[position] ^= 1 << rng.random_range(0..8),
        4..=5 => mutated[position] ^= rng.random_range(1..=255u8),
        6 if rng.random() => drop(mutated.remove(position)),
        6 => mutated.insert(position, rng.random()),
        _ => mutated.truncate(position),
    }
    mutated
}

fn calls(bytes: &[u8]) -> Vec<Call> {
    let mut calls = Vec::new();
    let mut bundle = Bundle::from_reader(Cursor::new(bytes)).unwrap();
    bundle
        .calls(|call| {
            calls.push(call);
            Ok::<_, BundleError>(())
        })
        .unwrap();
    calls
}
