//! Real proofs of whole sessions, through the bundle and back.

use std::io::Cursor;

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use zklora_circuit::circuit::{BatchCircuit, rows};
use zklora_circuit::commitment::{Opening, Salt};
use zklora_circuit::plan::{DEFAULT_DEGREE_BITS, degree_bits, plan};
use zklora_circuit::security::Security;
use zklora_circuit::session::{Circuits, VerifySessionError, prove_session, verify_session};
use zklora_proto::bundle::{self, Bundle, BundleParts};
use zklora_proto::identity::Purpose;
use zklora_proto::{
    BaseModelDigest, Call, Delta, Manifest, ModuleEntry, ModuleShape, Receipt, SecretKey, SessionId,
    SignedManifest, SignedReceipt, TranscriptHasher,
};

/// A contributor and a client with an adapter between them.
struct World {
    contributor: SecretKey,
    client: SecretKey,
    openings: Vec<Opening>,
    manifest: SignedManifest,
}

impl World {
    fn new(shapes: &[ModuleShape], seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut weights = |n: usize| (0..n).map(|_| rng.random_range(-2048..2048)).collect::<Vec<i16>>();
        let openings: Vec<Opening> = shapes
            .iter()
            .map(|s| {
                let (a, b) = (weights(s.d_in() * s.rank()), weights(s.rank() * s.d_out()));
                Opening::new(*s, a, b, Salt::random(&mut rand::make_rng::<StdRng>())).unwrap()
            })
            .collect();
        let contributor = SecretKey::generate();
        let modules = openings
            .iter()
            .enumerate()
            .map(|(i, o)| ModuleEntry::new(format!("m.{i}"), o.shape(), 1e-6, o.commitment()).unwrap())
            .collect();
        let manifest = Manifest::new(contributor.public(), BaseModelDigest::from_bytes([9; 32]), 0, modules)
            .unwrap()
            .sign(&contributor);
        Self { contributor, client: SecretKey::generate(), openings, manifest }
    }

    /// A call with random activations and true deltas.
    fn call(&self, rows: usize, modules: &[usize], rng: &mut StdRng) -> Call {
        let d_in = self.openings[modules[0]].shape().d_in();
        let activations: Vec<i16> = (0..rows * d_in).map(|_| rng.random_range(-32767..=32767)).collect();
        let deltas = modules
            .iter()
            .map(|&module| Delta { module, values: delta(&self.openings[module], &activations) })
            .collect();
        Call { rows, activations, deltas }
    }

    fn receipt(&self, calls: &[Call]) -> SignedReceipt {
        let mut hasher = TranscriptHasher::new(self.openings.len());
        assert!(calls.iter().all(|call| hasher.add(call)));
        let receipt = Receipt::new(
            SessionId::from_bytes([1; 32]),
            self.manifest.adapter_id(),
            *self.manifest.manifest().base_model(),
            self.contributor.public(),
            self.client.public(),
            hasher.calls(),
            hasher.rows().to_vec(),
            hasher.digest(),
            1,
            2,
        );
        let bytes = receipt.to_bytes();
        let contributor = self.contributor.sign(Purpose::ReceiptContributor, &bytes);
        let client = self.client.sign(Purpose::ReceiptClient, &bytes);
        SignedReceipt::parse(bytes, contributor, client).unwrap()
    }

    /// Proves the session and gives the bundle's bytes.
    fn bundle(&self, calls: &[Call], max_bits: usize) -> Vec<u8> {
        self.bundle_with(Security::Standard, calls, max_bits)
    }

    fn bundle_with(&self, security: Security, calls: &[Call], max_bits: usize) -> Vec<u8> {
        let receipt = self.receipt(calls);
        let (plan, proofs) = prove_session(
            &self.manifest,
            &receipt,
            calls,
            &self.openings,
            security,
            max_bits,
            &Circuits::default(),
            &|_, _| {},
        )
        .unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("session.pf");
        let parts =
            BundleParts { manifest: &self.manifest, receipt: &receipt, calls, plan: &plan, proofs: &proofs };
        bundle::write(&path, &parts).unwrap();
        std::fs::read(path).unwrap()
    }
}

/// X·A·B over the integers.
fn delta(opening: &Opening, x: &[i16]) -> Vec<i64> {
    let (d_in, rank, d_out) = (opening.shape().d_in(), opening.shape().rank(), opening.shape().d_out());
    x.chunks_exact(d_in)
        .flat_map(|row| {
            let xa: Vec<i64> = (0..rank)
                .map(|k| {
                    row.iter()
                        .zip(opening.a().chunks_exact(rank))
                        .map(|(&x, a)| i64::from(x) * i64::from(a[k]))
                        .sum()
                })
                .collect();
            (0..d_out)
                .map(|j| {
                    xa.iter().enumerate().map(|(k, xa)| xa * i64::from(opening.b()[k * d_out + j])).sum()
                })
                .collect::<Vec<i64>>()
        })
        .collect()
}

fn verify(bytes: &[u8]) -> Result<usize, VerifySessionError> {
    let mut bundle = Bundle::from_reader(Cursor::new(bytes))?;
    Ok(verify_session(&mut bundle, &Circuits::default())?.batches.len())
}

fn shape(d_in: usize, rank: usize, d_out: usize) -> ModuleShape {
    ModuleShape::new(d_in, rank, d_out).unwrap()
}

#[test]
fn several_calls_of_different_lengths_make_one_bundle() {
    let world = World::new(&[shape(16, 4, 48), shape(16, 2, 16), shape(40, 4, 8)], 1);
    let mut rng = StdRng::seed_from_u64(2);
    // Module 1 is never called, so that no proof need cover it.
    let calls =
        vec![world.call(3, &[0], &mut rng), world.call(70, &[2], &mut rng), world.call(1, &[0], &mut rng)];
    let bytes = world.bundle(&calls, DEFAULT_DEGREE_BITS);
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
    let mut rng = StdRng::seed_from_u64(3);
    let calls = vec![world.call(2, &[0, 1], &mut rng), world.call(2, &[3, 2], &mut rng)];
    assert!(verify(&world.bundle(&calls, DEFAULT_DEGREE_BITS)).is_ok());
}

#[test]
fn each_parameter_set_proves_and_says_what_it_is_worth() {
    let world = World::new(&[shape(16, 4, 16); 2], 1);
    let calls = [world.call(2, &[0, 1], &mut StdRng::seed_from_u64(3))];
    let mut sizes = Vec::new();
    for security in Security::ALL {
        let bytes = world.bundle_with(security, &calls, DEFAULT_DEGREE_BITS);
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
    let mut rng = StdRng::seed_from_u64(4);
    let (first, second) = (vec![world.call(2, &[0], &mut rng)], vec![world.call(2, &[0], &mut rng)]);
    let proof_of = |bytes: &[u8]| Bundle::from_reader(Cursor::new(bytes)).unwrap().proof(0).unwrap();
    let (bundle_of_first, bundle_of_second) =
        (world.bundle(&first, DEFAULT_DEGREE_BITS), world.bundle(&second, DEFAULT_DEGREE_BITS));
    let foreign = proof_of(&bundle_of_second);
    let receipt = world.receipt(&first);
    let plan = Bundle::from_reader(Cursor::new(&bundle_of_first)).unwrap().plan().clone();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.pf");
    let parts = BundleParts {
        manifest: &world.manifest,
        receipt: &receipt,
        calls: &first,
        plan: &plan,
        proofs: &[foreign],
    };
    bundle::write(&path, &parts).unwrap();
    let error = verify(&std::fs::read(path).unwrap()).unwrap_err();
    assert!(matches!(error, VerifySessionError::Proof { batch: 0, .. }), "{error}");
}

#[test]
fn an_honest_prover_refuses_a_false_delta() {
    let world = World::new(&[shape(8, 2, 8)], 1);
    let mut call = world.call(2, &[0], &mut StdRng::seed_from_u64(5));
    call.deltas[0].values[3] += 1;
    let calls = [call];
    let receipt = world.receipt(&calls);
    let error = prove_session(
        &world.manifest,
        &receipt,
        &calls,
        &world.openings,
        Security::Standard,
        DEFAULT_DEGREE_BITS,
        &Circuits::default(),
        &|_, _| {},
    )
    .unwrap_err();
    assert!(error.to_string().contains("not X·A·B"), "{error}");
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
            let plan = plan(Security::Standard, world.manifest.manifest(), &rows, max_bits).unwrap();
            plan.check(&rows).unwrap();
            for batch in &plan.batches {
                assert!(degree_bits(Security::Standard, &vec![shape(64, 8, 192); batch.len()]) <= max_bits);
            }
        }
        assert!(plan(Security::Standard, world.manifest.manifest(), &rows, 8).is_err());
    }
}

#[test]
fn proving_does_not_depend_on_the_number_of_rows() {
    let world = World::new(&[shape(128, 8, 384), shape(128, 8, 128)], 1);
    let circuits = Circuits::default();
    let mut sizes = Vec::new();
    // The first run builds the circuit, the others do not.
    for rows in [1, 15, 1500] {
        let mut rng = StdRng::seed_from_u64(6);
        let calls = [world.call(rows, &[0, 1], &mut rng)];
        let receipt = world.receipt(&calls);
        let started = std::time::Instant::now();
        let (_, proofs) = prove_session(
            &world.manifest,
            &receipt,
            &calls,
            &world.openings,
            Security::Standard,
            DEFAULT_DEGREE_BITS,
            &circuits,
            &|_, _| {},
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
        let calls = [world.call(rows, &[0], &mut StdRng::seed_from_u64(seed))];
        prop_assert_eq!(verify(&world.bundle(&calls, DEFAULT_DEGREE_BITS)).unwrap(), 1);
    }
}
