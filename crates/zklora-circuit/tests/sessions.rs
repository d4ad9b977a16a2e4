//! Real proofs of whole sessions, through the bundle and back.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "tests say what they measure or pass over")]

use std::io::Cursor;
use std::ops::ControlFlow;
use std::sync::Mutex;

use proptest::prelude::*;
use zklora_circuit::challenge::Challenges;
use zklora_circuit::circuit::{BatchCircuit, rows};
use zklora_circuit::parameters::Security;
use zklora_circuit::plan::{Planner, degree_bits, plan};
use zklora_circuit::session::{Circuits, SessionProver, VerifySessionError, prove_session, verify_session};
use zklora_proto::SignedReceipt;
use zklora_proto::bundle::{Bundle, BundleParts, Plan, write_unproved};
use zklora_proto::identity::Purpose;
use zklora_testing::{CLIENT_SIGNATURE, PROOFS, RawBundle, World, rng, shape};

fn verify(bytes: &[u8]) -> Result<usize, VerifySessionError> {
    let mut bundle = Bundle::from_reader(Cursor::new(bytes))?;
    Ok(verify_session(&mut bundle, &Circuits::default())?.batches.len())
}

#[test]
fn several_calls_of_different_lengths_make_one_bundle() {
    let world = World::new(&[shape(16, 4, 48), shape(16, 2, 16), shape(40, 4, 8)], 1);
    let mut rng = rng(2);
    // Module 1 is never called, so that no proof need cover it.
    let calls =
        vec![world.call(3, &[0], &mut rng), world.call(70, &[2], &mut rng), world.call(1, &[0], &mut rng)];
    let bytes = world.bundle(&calls).to_bytes();
    let mut bundle = Bundle::from_reader(Cursor::new(&bytes)).unwrap();
    assert_eq!(bundle.receipt().receipt().rows, [4, 0, 70]);
    let verified = verify_session(&mut bundle, &Circuits::default()).unwrap();
    let mut covered: Vec<usize> = verified.batches.iter().flat_map(|b| b.modules.clone()).collect();
    covered.sort_unstable();
    assert_eq!(covered, [0, 2]);
}

#[test]
fn modules_that_share_an_input_and_equal_batches() {
    let world = World::new(&[shape(16, 4, 16); 4], 1);
    let mut rng = rng(3);
    let calls = vec![world.call(2, &[0, 1], &mut rng), world.call(2, &[3, 2], &mut rng)];
    assert!(verify(&world.bundle(&calls).to_bytes()).is_ok());
}

#[test]
fn each_parameter_set_proves_and_says_what_it_is_worth() {
    let world = World::new(&[shape(16, 4, 16); 2], 1);
    let calls = [world.call(2, &[0, 1], &mut rng(3))];
    let mut sizes = Vec::new();
    for security in Security::ALL {
        let bytes = world.with_security(security).bundle(&calls).to_bytes();
        let mut bundle = Bundle::from_reader(Cursor::new(&bytes)).unwrap();
        let verified = verify_session(&mut bundle, &Circuits::default()).unwrap();
        assert_eq!(verified.security, security);
        for batch in verified.batches {
            assert!(batch.soundness.provable.bits >= security.provable_bits().into());
            assert!(batch.soundness.conjectured.bits >= security.conjectured_bits().into());
            sizes.push(batch.proof_bytes);
        }
    }
    assert!(sizes.windows(2).all(|pair| pair[1] < pair[0] * 2 / 3), "{sizes:?}");
}

#[test]
fn a_prover_that_swaps_the_proof_of_another_session_is_caught() {
    let world = World::new(&[shape(8, 2, 8)], 1);
    let mut rng = rng(4);
    let (first, second) = (vec![world.call(2, &[0], &mut rng)], vec![world.call(2, &[0], &mut rng)]);
    let swapped = world.bundle(&first).with_blob(PROOFS, world.bundle(&second).blobs[PROOFS].clone());
    let error = verify(&swapped.to_bytes()).unwrap_err();
    assert!(matches!(error, VerifySessionError::Proof { batch: 0, .. }), "{error}");
}

/// A contributor may plan a session as it likes, after it knows the challenges, and that is no second try at them: whatever the plan
/// and the parameter set, α, β and the folds are the same, so that a false delta fails in all of them or in none.
#[test]
fn no_plan_gives_other_challenges() {
    let world = World::new(&[shape(16, 4, 16); 3], 1);
    let calls = [world.call(2, &[0, 1, 2], &mut rng(3))];
    let mut false_calls = calls.clone();
    false_calls[0].deltas[1].values[5] += 1;
    let receipt = world.sign(&world.receipt(&calls));
    let false_receipt = world.sign(&world.receipt(&false_calls));
    let mut found = Vec::new();
    for (security, batches) in [
        ("standard", vec![vec![0, 1, 2]]),
        ("standard", vec![vec![2, 0, 1]]),
        ("standard", vec![vec![1], vec![0, 2]]),
        ("standard", vec![vec![2], vec![1], vec![0]]),
        ("compact", vec![vec![0, 1, 2]]),
    ] {
        let plan = Plan { security: security.into(), batches };
        let false_one = world.forge_under(&false_receipt, &false_calls, plan.clone());
        let error = verify(&false_one.to_bytes()).unwrap_err();
        assert!(matches!(error, VerifySessionError::Proof { .. }), "{plan:?}: {error}");

        let honest = world.forge_under(&receipt, &calls, plan).to_bytes();
        let mut bundle = Bundle::from_reader(Cursor::new(&honest)).unwrap();
        let verified = verify_session(&mut bundle, &Circuits::default()).unwrap();
        found.push((verified.challenges, verified.folds));
    }
    assert!(found.iter().all(|one| *one == found[0]));
}

/// What gives other challenges is another signature of the client, and nothing that the contributor can make alone: neither of
/// receipts that it writes until it likes their hash, nor of one that the client signed.
#[test]
fn each_try_at_the_challenges_takes_a_signature_of_the_client() {
    let world = World::new(&[shape(8, 2, 8)], 1);
    let calls = [world.call(2, &[0], &mut rng(4))];
    let receipt = world.sign(&world.receipt(&calls));
    let mut found = vec![Challenges::derive(&receipt)];
    assert_eq!(Challenges::derive(&world.sign(&world.receipt(&calls))), found[0], "signed as specified");
    for finished in 100..108 {
        let mut other = world.receipt(&calls);
        other.finished = finished;
        let bytes = other.to_bytes();
        let contributor = world.contributor().sign(Purpose::ReceiptContributor, &bytes);
        for client in [*receipt.client_signature(), contributor] {
            assert!(SignedReceipt::parse(bytes.clone(), contributor, client).is_err());
        }
        found.push(Challenges::derive(&world.sign(&other)));
    }
    let again: Vec<_> = (1..8).map(|nonce| world.sign_again(&receipt, nonce)).collect();
    found.extend(again.iter().map(Challenges::derive));
    for (i, one) in found.iter().enumerate() {
        assert!(found[..i].iter().all(|other| other.alpha != one.alpha && other.beta != one.beta));
    }

    // A proof under one signature is none under the other, though both are valid over the same bytes.
    let bundle = world.bundle(&calls);
    let other = again[0].client_signature().as_bytes().to_vec();
    let error = verify(&bundle.with_blob(CLIENT_SIGNATURE, other.clone()).to_bytes()).unwrap_err();
    assert!(matches!(error, VerifySessionError::Proof { .. }), "{error}");
    let (plan, proofs) = world.prove(&again[0], &calls).unwrap();
    let proved = RawBundle::new(&world.session(again[0].clone()), &calls, &plan, &proofs);
    assert_eq!(proved.blobs[CLIENT_SIGNATURE], other);
    assert!(verify(&proved.to_bytes()).is_ok());
}

#[test]
fn an_honest_prover_refuses_a_false_delta() {
    let world = World::new(&[shape(8, 2, 8)], 1);
    let mut call = world.call(2, &[0], &mut rng(5));
    call.deltas[0].values[3] += 1;
    let calls = [call];
    let receipt = world.sign(&world.receipt(&calls));
    let error = world.prove(&receipt, &calls).unwrap_err();
    assert!(error.to_string().contains("not X·A·B"), "{error}");
}

#[test]
fn sessions_of_many_batches_are_proved_side_by_side() {
    // Each session has five circuits of its own, on rayon's few threads: while one builds, another is in its parallel part,
    // and nobody may wait for a circuit while holding what its builder needs.
    let circuits = Circuits::default();
    std::thread::scope(|scope| {
        for session in 0..6 {
            let circuits = &circuits;
            scope.spawn(move || {
                let shapes: Vec<_> = (0..5).map(|m| shape(900, 8, 900 - 50 * session - m)).collect();
                let world = World::new(&shapes, 1);
                let calls = [world.call(1, &[0, 1, 2, 3, 4], &mut rng(1))];
                let receipt = world.sign(&world.receipt(&calls));
                let (plan, proofs) = prove_session(
                    &world.session(receipt),
                    World::SEED.transcript_salt(),
                    &calls,
                    world.openings(),
                    &Planner { max_bits: 10, ..Planner::new(Security::Standard) },
                    circuits,
                )
                .unwrap();
                assert!(plan.batches.len() > 2 && proofs.len() == plan.batches.len());
            });
        }
    });
}

#[test]
fn batches_proved_by_processes_that_share_the_plan_alone_make_one_bundle() {
    let shapes: Vec<_> = (0..5).map(|m| shape(900, 8, 800 - 50 * m)).collect();
    let world = World::new(&shapes, 1);
    let calls = [world.call(2, &[0, 1, 2, 3, 4], &mut rng(1))];
    let session = world.session(world.sign(&world.receipt(&calls)));
    let planner = Planner { max_bits: 10, threads: 2, ..Planner::new(Security::Standard) };
    let plan = planner.plan(world.manifest().manifest(), session.rows()).unwrap().plan;
    let folder = tempfile::tempdir().unwrap();
    let (unproved, proved) = (folder.path().join("unproved"), folder.path().join("proved"));
    let salt = World::SEED.transcript_salt();
    let parts = BundleParts { session: &session, salt, calls: &calls, plan: &plan, proofs: &[] };
    write_unproved(&unproved, &parts).unwrap();
    let error = verify(&std::fs::read(&unproved).unwrap()).unwrap_err();
    assert!(matches!(error, VerifySessionError::Proof { batch: 0, .. }), "{error}");

    // Each opens the file anew. The first is stopped after its first proof, and stops at the end of what it had begun; the
    // others prove what is left, in another order, with another idea of parameters.
    let proofs = Mutex::new(vec![Vec::new(); plan.batches.len()]);
    let prove = |security, batches: &[usize], go_on: ControlFlow<()>| {
        let mut bundle = Bundle::open(&unproved).unwrap();
        let (session, plan) = (bundle.session().clone(), bundle.plan().clone());
        let planner = Planner { threads: 1, ..Planner::new(security) };
        let prover = SessionProver::new(&session, salt, &plan, world.openings(), &planner, |visit| {
            bundle.calls(|call| visit(&call))
        });
        let ended = prover.unwrap().prove(batches, &Circuits::default(), &|batch, proof| {
            proofs.lock().unwrap()[batch] = proof;
            go_on
        });
        assert_eq!(ended.unwrap(), go_on);
        (0..plan.batches.len()).filter(|&batch| proofs.lock().unwrap()[batch].is_empty()).collect::<Vec<_>>()
    };
    let all: Vec<usize> = (0..plan.batches.len()).collect();
    let missing = prove(Security::Standard, &all, ControlFlow::Break(()));
    assert_eq!(missing, all[1..]);
    let missing = prove(Security::Compact, &missing[..1], ControlFlow::Continue(()));
    assert_eq!(missing, all[2..]);
    let backwards: Vec<usize> = missing.into_iter().rev().collect();
    assert_eq!(prove(Security::Standard, &backwards, ControlFlow::Continue(())), [0; 0]);

    let mut bundle = Bundle::open(&unproved).unwrap();
    bundle.write_with_proofs(&proved, proofs.lock().unwrap().as_slice()).unwrap();
    assert_eq!(verify(&std::fs::read(&proved).unwrap()).unwrap(), plan.batches.len());
    // A damaged transcript is not handed on.
    let mut bytes = std::fs::read(&unproved).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    let mut damaged = Bundle::from_reader(Cursor::new(bytes)).unwrap();
    let error = damaged.write_with_proofs(&proved, &[]).unwrap_err();
    assert_eq!(error.to_string(), "the transcript does not have its digest");
    assert!(verify(&std::fs::read(&proved).unwrap()).is_ok());
}

#[test]
fn the_planner_covers_every_module_with_rows_once_and_stays_within_its_bound() {
    for count in [1, 2, 5, 24] {
        let world = World::new(&vec![shape(64, 8, 192); count], 1);
        let mut rows = vec![3; count];
        if count > 2 {
            rows[1] = 0;
        }
        for max_bits in [11, 12, 16] {
            let plan = plan(Security::Standard, world.manifest().manifest(), &rows, max_bits).unwrap();
            plan.check(&rows).unwrap();
            for batch in &plan.batches {
                assert!(degree_bits(Security::Standard, &vec![shape(64, 8, 192); batch.len()]) <= max_bits);
            }
        }
        assert!(plan(Security::Standard, world.manifest().manifest(), &rows, 8).is_err());
    }
}

#[test]
fn proving_does_not_depend_on_the_number_of_rows() {
    let world = World::new(&[shape(128, 8, 384), shape(128, 8, 128)], 1);
    let circuits = Circuits::default();
    let mut sizes = Vec::new();
    // The first run builds the circuit, the others do not.
    for rows in [1, 15, 1500] {
        let mut rng = rng(6);
        let calls = [world.call(rows, &[0, 1], &mut rng)];
        let receipt = world.sign(&world.receipt(&calls));
        let started = std::time::Instant::now();
        let (_, proofs) = prove_session(
            &world.session(receipt),
            World::SEED.transcript_salt(),
            &calls,
            world.openings(),
            &Planner::new(Security::Standard),
            &circuits,
        )
        .unwrap();
        println!("{rows} rows of 2 modules: proved in {:?}", started.elapsed());
        sizes.push(proofs.iter().map(Vec::len).collect::<Vec<_>>());
    }
    assert!(sizes.windows(2).all(|pair| pair[0] == pair[1]), "{sizes:?}");
}

const PRINT_DIGEST: &str = "ZKLORA_TEST_PRINT_DIGEST";

#[test]
fn two_processes_build_the_same_circuit() {
    let shapes = [shape(64, 8, 192), shape(64, 4, 64), shape(21, 1, 1)];
    let digest = || {
        let circuit = BatchCircuit::build(Security::Standard, &shapes).unwrap();
        format!("digest {:02x?}", circuit.digest())
    };
    if std::env::var_os(PRINT_DIGEST).is_some() {
        println!("{}", digest());
        return;
    }
    for _ in 0..2 {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "two_processes_build_the_same_circuit", "--nocapture"])
            .env(PRINT_DIGEST, "1")
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(&digest()), "{text} does not say {}", digest());
    }
}

#[test]
fn rows_are_counted_exactly_at_the_edge_of_a_power_of_two() {
    let counted = |d_out| rows(Security::Standard, &[shape(100, 4, d_out)]);
    // The largest output that still fits 2^11 rows, and the next.
    let last = (1..).step_by(20).take_while(|&d_out| counted(d_out) <= 1 << 11).last().unwrap();
    assert!(counted(last) + 12 > 1 << 11, "{} is not near the edge", counted(last));
    for (d_out, bits) in [(last, 11), (last + 20, 12)] {
        let circuit = BatchCircuit::build(Security::Standard, &[shape(100, 4, d_out)]).unwrap();
        assert_eq!(circuit.degree_bits(), bits, "{} rows", counted(d_out));
    }
}

#[test]
fn rows_are_counted_as_they_are_built() {
    for shapes in
        [vec![shape(1, 1, 1)], vec![shape(768, 8, 2304)], vec![shape(64, 8, 192), shape(256, 8, 64)]]
    {
        let circuit = BatchCircuit::build(Security::Standard, &shapes).unwrap();
        let counted = rows(Security::Standard, &shapes);
        assert_eq!(circuit.degree_bits(), counted.next_power_of_two().trailing_zeros() as usize);
    }
}

#[test]
fn a_circuit_too_big_to_build_is_refused_before_it_is_built() {
    let huge = vec![shape(1 << 14, 256, 1 << 16); 100];
    let error = BatchCircuit::build(Security::Standard, &huge).err().unwrap().to_string();
    assert!(error.contains("expected at most 2^17"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn any_shape_proves_and_verifies(d_in in 1usize..50, rank in 1usize..5, d_out in 1usize..50, rows in 1usize..5, seed: u64) {
        let world = World::new(&[shape(d_in, rank, d_out)], seed);
        let calls = [world.call(rows, &[0], &mut rng(seed))];
        prop_assert_eq!(verify(&world.bundle(&calls).to_bytes()).unwrap(), 1);
    }
}
