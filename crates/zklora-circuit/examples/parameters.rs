//! What each parameter set costs on a real circuit: `cargo run --release -p zklora-circuit --example parameters [blocks]`.
//!
//! Proves `blocks` transformer blocks of distilgpt2 (four modules each, rank 8) with random weights, and prints for each set
//! the circuit's rows, the times to build, prove and verify, the proof's size and the bits of soundness. `docs/soundness.md`
//! holds a run.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "no program that people use")]

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use zklora_circuit::challenge::Challenges;
use zklora_circuit::circuit::BatchCircuit;
use zklora_circuit::commitment::{Opening, Salt};
use zklora_circuit::fold::Folder;
use zklora_circuit::parameters::Security;
use zklora_circuit::prove::prove;
use zklora_circuit::verify::verify;
use zklora_proto::{BaseModelDigest, Call, Delta, Manifest, ModuleEntry, ModuleShape, SecretKey};

/// c_attn, attn.c_proj, mlp.c_fc and mlp.c_proj.
const BLOCK: [(usize, usize); 4] = [(768, 2304), (768, 768), (768, 3072), (3072, 768)];
const RANK: usize = 8;
/// Proofs of each set; the fastest counts, since the machine may be shared.
const RUNS: usize = 3;

fn main() {
    let blocks: usize = std::env::args().nth(1).map_or(1, |n| n.parse().expect("a number of blocks"));
    let case = Case::new(blocks);
    for security in Security::ALL {
        case.measure(security);
    }
}

/// An adapter with random weights and the one-row transcript of a session.
struct Case {
    openings: Vec<Opening>,
    manifest: Manifest,
    calls: Vec<Call>,
    challenges: Challenges,
}

impl Case {
    fn new(blocks: usize) -> Self {
        let mut rng = StdRng::seed_from_u64(1);
        let mut openings = Vec::new();
        let mut calls = Vec::new();
        for (module, (d_in, d_out)) in BLOCK.repeat(blocks).into_iter().enumerate() {
            let mut weights = |n: usize| (0..n).map(|_| rng.random_range(-2048..2048)).collect::<Vec<i16>>();
            let (a, b) = (weights(d_in * RANK), weights(RANK * d_out));
            let activations: Vec<i16> = (0..d_in).map(|_| rng.random_range(-32767..=32767)).collect();
            let values = delta(&activations, &a, &b);
            calls.push(Call { rows: 1, activations, deltas: vec![Delta { module, values }] });
            let shape = ModuleShape::new(d_in, RANK, d_out).expect("a shape within bounds");
            openings.push(Opening::new(shape, a, b, Salt::random(&mut rng)).expect("weights that fit"));
        }
        let entries = openings
            .iter()
            .enumerate()
            .map(|(i, o)| {
                ModuleEntry::new(format!("m.{i}"), o.shape(), 1.0, o.commitment()).expect("an entry")
            })
            .collect();
        let key = SecretKey::generate().public();
        let manifest =
            Manifest::new(key, BaseModelDigest::from_bytes([0; 32]), 0, entries).expect("a manifest");
        let mut element = || {
            plonky2::field::extension::quadratic::QuadraticExtension(
                [0; 2].map(|_| plonky2::field::types::Sample::sample(&mut rng)),
            )
        };
        let challenges = Challenges { alpha: element(), beta: element() };
        Self { openings, manifest, calls, challenges }
    }

    fn measure(&self, security: Security) {
        let shapes: Vec<ModuleShape> = self.openings.iter().map(Opening::shape).collect();
        let (circuit, build) = timed(|| BatchCircuit::build(security, &shapes).expect("a circuit"));
        let mut folder = Folder::new(&self.manifest, self.challenges);
        self.calls.iter().for_each(|call| folder.add(call).expect("calls of their dimensions"));
        let folds = folder.finish();
        let openings: Vec<_> = self.openings.iter().collect();
        let (mut proved, mut verified, mut bytes) = (Duration::MAX, Duration::MAX, 0);
        let verifier = circuit.verifier();
        for _ in 0..RUNS {
            let (proof, time) = timed(|| {
                prove(
                    &circuit,
                    &openings,
                    &folds.iter().collect::<Vec<_>>(),
                    self.challenges.beta,
                    &mut rand::make_rng::<StdRng>(),
                )
                .expect("a proof")
            });
            proved = proved.min(time);
            bytes = proof.len();
            let commitments: Vec<_> = self.openings.iter().map(Opening::commitment).collect();
            let modules: Vec<_> = commitments.iter().zip(&folds).collect();
            let (valid, time) = timed(|| verify(&verifier, &modules, self.challenges.beta, &proof));
            valid.expect("a valid proof");
            verified = verified.min(time);
        }
        let soundness = verifier.soundness(&vec![1; shapes.len()]);
        println!(
            "{:<10} 2^{} rows  build {:.2} s  prove {:.2} s  verify {:.1} ms  proof {} KB  {:.1} bits, conjectured {:.1}",
            security.name(),
            circuit.degree_bits(),
            build.as_secs_f64(),
            proved.as_secs_f64(),
            1e3 * verified.as_secs_f64(),
            bytes / 1000,
            soundness.provable.bits,
            soundness.conjectured.bits,
        );
    }
}

/// x·A·B.
fn delta(x: &[i16], a: &[i16], b: &[i16]) -> Vec<i64> {
    let d_out = b.len() / RANK;
    let mut y = vec![0; d_out];
    for k in 0..RANK {
        let dot: i64 = x.iter().zip(a.chunks_exact(RANK)).map(|(&x, a)| i64::from(x) * i64::from(a[k])).sum();
        for (y, &b) in y.iter_mut().zip(&b[k * d_out..(k + 1) * d_out]) {
            *y += dot * i64::from(b);
        }
    }
    y
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let started = Instant::now();
    let value = work();
    (value, started.elapsed())
}
