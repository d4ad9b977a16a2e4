//! Sessions over QUIC, proved and verified.

use std::time::Instant;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use zklora_circuit::session::{Circuits, verify_session};
use zklora_contributor::limits::Limits;
use zklora_proto::SecretKey;
use zklora_proto::bundle::Bundle;
use zklora_tests::Contributor;

fn activations(rows: usize, d_in: usize, seed: u64) -> Vec<i16> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..rows * d_in).map(|_| rng.random_range(-i16::MAX..=i16::MAX)).collect()
}

#[test]
fn calls_of_different_lengths_make_one_bundle_that_covers_every_row() {
    let world = Contributor::new(Limits::default());
    let session = world.session(SecretKey::generate()).unwrap();
    let modules = world.state.manifest.manifest().modules().len();
    let mut expected = vec![0; modules];
    for (call, rows) in [1, 15, 200, 3].into_iter().enumerate() {
        for (module, expected) in expected.iter_mut().enumerate() {
            let x = activations(rows, world.d_in(module), call as u64);
            let deltas = session.forward(&[module], &x).unwrap();
            assert_eq!(deltas.len(), 1);
            *expected += rows as u64;
        }
    }
    let receipt = session.finish().unwrap();
    assert_eq!(receipt.receipt().rows, expected);
    session.wait_for_proof(|_| {}).unwrap();

    let bundles = world.bundles();
    assert_eq!(bundles.len(), 1);
    let mut bundle = Bundle::open(&bundles[0]).unwrap();
    assert_eq!(bundle.receipt(), &receipt);
    let verified = verify_session(&mut bundle, &Circuits::default()).unwrap();
    let mut covered: Vec<usize> = verified.batches.iter().flat_map(|batch| batch.modules.clone()).collect();
    covered.sort_unstable();
    assert_eq!(covered, (0..modules).collect::<Vec<_>>());
}

#[test]
fn modules_that_share_an_input_travel_together_and_long_inputs_are_split() {
    let world = Contributor::new(Limits::default());
    let session = world.session(SecretKey::generate()).unwrap();
    // c_attn and c_fc of the first block read rows of the same length.
    let names: Vec<&str> = session.manifest().modules().iter().map(|m| m.name()).collect();
    let position = |suffix: &str| names.iter().position(|name| name.ends_with(suffix)).unwrap();
    let pair = [position("c_attn"), position("c_fc")];
    let d_out = |module: usize| session.manifest().modules()[module].shape().d_out();
    let row = 2 * world.d_in(pair[0]) + 8 * (d_out(pair[0]) + d_out(pair[1]));
    // A call takes a sixth of the memory that a client may take.
    let rows = Limits::DEFAULT.client_memory / 6 / row + 5;
    let x = activations(rows, world.d_in(pair[0]), 1);
    let together = session.forward(&pair, &x).unwrap();
    assert_eq!(session.counts().0, 2, "two calls: more than one call may take");
    for (module, delta) in pair.into_iter().zip(&together) {
        assert_eq!(delta.len(), rows * d_out(module));
        let last = session.forward(&[module], &x[x.len() - world.d_in(module)..]).unwrap();
        assert_eq!(last[0], delta[delta.len() - d_out(module)..]);
    }
}

#[test]
fn a_second_session_goes_on_while_the_first_is_proved() {
    let world = Contributor::new(Limits::default());
    let key = || SecretKey::generate();
    let first = world.session(key()).unwrap();
    first.forward(&[0], &activations(10, world.d_in(0), 1)).unwrap();
    first.finish().unwrap();
    let second = world.session(key()).unwrap();
    second.forward(&[0], &activations(20, world.d_in(0), 2)).unwrap();
    second.finish().unwrap();
    first.wait_for_proof(|_| {}).unwrap();
    second.wait_for_proof(|_| {}).unwrap();
    assert_eq!(world.bundles().len(), 2);
}

#[test]
fn few_rows_and_many_are_proved_in_about_the_same_time() {
    let world = Contributor::new(Limits::default());
    let mut sizes = Vec::new();
    // The first session builds the circuit.
    for rows in [1, 15, 1500] {
        let session = world.session(SecretKey::generate()).unwrap();
        for module in 0..session.manifest().modules().len() {
            session.forward(&[module], &activations(rows, world.d_in(module), 1)).unwrap();
        }
        session.finish().unwrap();
        let started = Instant::now();
        session.wait_for_proof(|_| {}).unwrap();
        println!("{rows} rows of every module: proved, bundled and written in {:.2?}", started.elapsed());
        let path = world.folder.path().join(format!("out/{}.pf", session.id()));
        let mut bundle = Bundle::open(&path).unwrap();
        sizes.push(bundle.proof(0).unwrap().len());
    }
    assert!(sizes.windows(2).all(|pair| pair[0] == pair[1]), "{sizes:?}");
}
