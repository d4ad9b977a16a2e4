//! Sessions that did not happen as the bundle says, by attackers of growing power.

use crate::common::{SESSION, Session, accepted, refused, refused_pinned};
use zklora_circuit::commitment::Opening;
use zklora_proto::Call;
use zklora_testing::{PROOFS, RawBundle, TRANSCRIPT, World, rng, shape};
use zklora_verdict::Pins;

/// An edit of the transcript: its name, what it does, and what an outsider's bundle with it contradicts in the receipt.
struct Edit {
    name: &'static str,
    apply: fn(&World, &mut Vec<Call>),
    contradicts: &'static str,
}

/// After these edits the transcript is false: no adapter with these commitments gives these deltas.
const FALSE: [Edit; 8] = [
    Edit {
        name: "a changed Y entry",
        apply: |_, calls| calls[0].deltas[1].values[7] += 1,
        contradicts: "its digest is",
    },
    Edit {
        name: "a Y entry changed by 2^32",
        apply: |_, calls| calls[1].deltas[0].values[0] -= 1 << 32,
        contradicts: "its digest is",
    },
    Edit {
        name: "a changed X entry",
        apply: |_, calls| calls[0].activations[5] /= 2,
        contradicts: "its digest is",
    },
    Edit {
        name: "rows of Y swapped",
        apply: |_, calls| swap_rows(&mut calls[0].deltas[0].values, 60),
        contradicts: "its digest is",
    },
    Edit {
        name: "rows of X swapped",
        apply: |_, calls| swap_rows(&mut calls[0].activations, 60),
        contradicts: "its digest is",
    },
    Edit {
        name: "the first row of X dropped and the last of Y",
        apply: |_, calls| {
            let call = &mut calls[0];
            call.rows -= 1;
            call.activations.drain(..60);
            call.deltas.iter_mut().for_each(|delta| delta.values.truncate(2 * 60));
        },
        contradicts: "the number of rows of a module is 3 (m.0), the receipt says 4",
    },
    Edit {
        name: "a row added with no deltas",
        apply: |_, calls| {
            let call = &mut calls[1];
            call.rows += 1;
            call.activations.extend([1; 40]);
            call.deltas[0].values.extend([0; 48]);
        },
        contradicts: "the number of rows of a module is 3 (m.2), the receipt says 2",
    },
    Edit {
        name: "the deltas of two modules exchanged",
        apply: |_, calls| {
            let (first, second) = calls[0].deltas.split_at_mut(1);
            std::mem::swap(&mut first[0].values, &mut second[0].values);
        },
        contradicts: "its digest is",
    },
];

/// After these edits every delta is true, but this is not the session that was signed and proved.
const TRUE: [Edit; 5] = [
    Edit {
        name: "rows swapped in X and Y",
        apply: |_, calls| {
            swap_rows(&mut calls[0].activations, 60);
            calls[0].deltas.iter_mut().for_each(|delta| swap_rows(&mut delta.values, 60));
        },
        contradicts: "its digest is",
    },
    Edit {
        name: "a row dropped",
        apply: |_, calls| {
            let call = &mut calls[0];
            call.rows -= 1;
            call.activations.truncate(2 * 60);
            call.deltas.iter_mut().for_each(|delta| delta.values.truncate(2 * 60));
        },
        contradicts: "the number of rows of a module is 3 (m.0), the receipt says 4",
    },
    Edit {
        name: "a row added",
        apply: |world, calls| {
            let activations = [&calls[1].activations[..], &[7; 40]].concat();
            calls[1] = world.answer(3, activations, &[2]);
        },
        contradicts: "the number of rows of a module is 3 (m.2), the receipt says 2",
    },
    Edit { name: "calls swapped", apply: |_, calls| calls.swap(0, 2), contradicts: "its digest is" },
    Edit {
        name: "a call dropped",
        apply: |_, calls| drop(calls.remove(2)),
        contradicts: "the number of calls is 2, the receipt says 3",
    },
];

impl Edit {
    fn of(&self, session: &Session) -> Vec<Call> {
        let mut calls = session.calls.clone();
        (self.apply)(&session.world, &mut calls);
        assert_ne!(calls, session.calls, "{}", self.name);
        calls
    }
}

fn swap_rows<T>(rows: &mut [T], columns: usize) {
    let (first, rest) = rows.split_at_mut(columns);
    first.swap_with_slice(&mut rest[..columns]);
}

/// The session's bundle with another transcript, under a receipt that both parties signed for it, and with the old proofs.
fn resigned(session: &Session, calls: &[Call]) -> RawBundle {
    let receipt = session.world.sign(&session.world.receipt(calls));
    let bundle = &session.bundle;
    RawBundle::new(&session.world.session(receipt), calls, &bundle.plan, bundle.proofs())
}

#[test]
fn the_honest_session_is_accepted() {
    accepted(&SESSION.bundle.to_bytes());
}

/// The attacker has the file alone. It edits the transcript and makes all digests of the file fit.
#[test]
fn an_outsiders_transcript_is_not_the_receipts() {
    for edit in FALSE.iter().chain(&TRUE) {
        let transcript = resigned(&SESSION, &edit.of(&SESSION)).blobs[TRANSCRIPT].clone();
        let bundle = SESSION.bundle.with_blob(TRANSCRIPT, transcript).to_bytes();
        refused(edit.name, &bundle, "transcript", &["not the one of the receipt", edit.contradicts]);
    }
}

/// The attackers are contributor and client together: both sign for the edited transcript and keep the proofs they have.
#[test]
fn colluders_cannot_keep_proofs_of_another_transcript() {
    for edit in FALSE.iter().chain(&TRUE) {
        let bundle = resigned(&SESSION, &edit.of(&SESSION)).to_bytes();
        refused(edit.name, &bundle, "proof", &["proof 0 (of m.0, m.1)"]);
    }
}

/// The attackers are contributor and client together: both sign for the false transcript, and the contributor proves anew
/// what it can prove.
#[test]
fn colluders_cannot_prove_a_false_transcript() {
    for edit in &FALSE {
        let bundle = SESSION.world.forge(&edit.of(&SESSION)).to_bytes();
        refused(edit.name, &bundle, "proof", &["does not show that these deltas are X·A·B"]);
    }
}

/// The harness is no obstacle itself: what it forges of a true transcript is accepted.
#[test]
fn a_forger_who_tells_the_truth_is_accepted() {
    for edit in &TRUE {
        accepted(&SESSION.world.forge(&edit.of(&SESSION)).to_bytes());
    }
    accepted(&SESSION.world.forge(&SESSION.calls).to_bytes());
}

/// The attacker is the contributor: it has another adapter of the same shapes, and an honest client.
#[test]
fn another_adapter_of_the_same_shapes_is_caught_by_the_pin() {
    let other = SESSION.world.another_adapter(77);
    let mut rng = rng(3);
    let bundle = other.bundle(&[other.call(1, &[0, 1], &mut rng), other.call(1, &[2], &mut rng)]);
    // Without a pin nothing is wrong with it: it is an honest bundle of the other adapter.
    accepted(&bundle.to_bytes());
    let pinned = SESSION.world.manifest().adapter_id();
    let contributors = vec![SESSION.world.contributor().public()];
    let pins = Pins { adapters: vec![pinned], contributors, ..Pins::default() };
    let found = other.manifest().adapter_id().to_string();
    let words = ["the manifest in this file is not the pinned one", &found, &pinned.to_string()];
    refused_pinned(pins, "another adapter", &bundle.to_bytes(), "adapter-pin", &words);
}

/// The attackers are contributor and client together: they run the session with weights other than the committed ones, and
/// all is consistent but the commitments.
#[test]
fn another_adapter_under_the_pinned_manifest_is_caught_by_the_proof() {
    let other = SESSION.world.another_adapter(77);
    let cheat = SESSION.world.serving(other.copy_openings());
    let mut rng = rng(3);
    let calls = [cheat.call(2, &[0, 1], &mut rng), cheat.call(1, &[2], &mut rng)];
    let bundle = cheat.forge(&calls).to_bytes();
    refused("other weights", &bundle, "proof", &["proof 0 (of m.0, m.1)", "of the committed adapter"]);

    // One weight of one module is enough.
    let mut openings = SESSION.world.copy_openings();
    let mut b = openings[2].b().to_vec();
    b[479] ^= 1;
    let salt = openings[2].salt().clone();
    openings[2] = Opening::new(openings[2].shape(), openings[2].a().to_vec(), b, salt).unwrap();
    let cheat = SESSION.world.serving(openings);
    let bundle = cheat.forge(&[cheat.call(1, &[2], &mut rng)]).to_bytes();
    refused("one other weight", &bundle, "proof", &["proof 0 (of m.2)"]);
}

/// The attacker is anyone with two bundles of the same adapter.
#[test]
fn proofs_belong_to_their_session_and_their_place() {
    let mut rng = rng(4);
    let world = &SESSION.world;
    let another = world.bundle(&[world.call(3, &[0, 1], &mut rng), world.call(2, &[2], &mut rng)]);
    for place in [PROOFS, PROOFS + 1] {
        let bundle = SESSION.bundle.with_blob(place, another.blobs[place].clone());
        let expected = format!("proof {} (of m.", place - PROOFS);
        refused("another session's proof", &bundle.to_bytes(), "proof", &[&expected]);
    }
    let mut bundle = SESSION.bundle.clone();
    bundle.blobs.swap(PROOFS, PROOFS + 1);
    refused("proofs in each other's place", &bundle.to_bytes(), "proof", &["proof 0 (of m.0, m.1)"]);
    for (what, proof) in [("no proof", vec![]), ("zeros", vec![0; SESSION.bundle.blobs[PROOFS].len()])] {
        let bundle = SESSION.bundle.with_blob(PROOFS, proof);
        refused(what, &bundle.to_bytes(), "proof", &["proof 0 (of m.0, m.1)"]);
    }
}

/// The same calls in two sessions: equal X and Y, but the receipt differs in the session's name alone.
#[test]
fn a_proof_does_not_serve_a_second_receipt_over_the_same_calls() {
    let mut receipt = SESSION.world.receipt(&SESSION.calls);
    receipt.session = zklora_proto::SessionId::from_bytes([2; 32]);
    let receipt = SESSION.world.sign(&receipt);
    let bundle = RawBundle::new(
        &SESSION.world.session(receipt),
        &SESSION.calls,
        &SESSION.bundle.plan,
        SESSION.bundle.proofs(),
    );
    refused("another session id", &bundle.to_bytes(), "proof", &["proof 0 (of m.0, m.1)"]);
}

/// The attackers are contributor and client together: the manifest is signed anew with another shape, and the commitment is
/// the old one.
#[test]
fn a_commitment_does_not_open_to_another_shape() {
    let world = World::new(&[shape(8, 2, 8)], 5);
    let narrow: Vec<i16> = world.openings()[0].b().chunks(8).flat_map(|row| row[..7].to_vec()).collect();
    let opening = &world.openings()[0];
    let opening = Opening::new(shape(8, 2, 7), opening.a().to_vec(), narrow, opening.salt().clone()).unwrap();
    let cheat = world.with_manifest(|text| text.replace("\"d_out\":8", "\"d_out\":7")).serving(vec![opening]);
    let bundle = cheat.forge(&[cheat.call(2, &[0], &mut rng(6))]).to_bytes();
    refused("another shape", &bundle, "proof", &["of the committed adapter"]);
}
