//! What proving and verifying cost, on the adapters of the original's table and some more.
//!
//!     cargo bench -p zklora-circuit                  # every case
//!     cargo bench -p zklora-circuit -- distilgpt2    # the cases whose name contains this
//!
//! Each case runs in a process of its own, so that its peak memory is its own. Proofs are made one after another; times of single
//! modules are the median of nine. Weights and activations are random, deltas
//! are true, proofs are verified.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "no program that people use")]

use std::collections::HashMap;
use std::process::Command;
use std::time::{Duration, Instant};

use plonky2::field::types::Sample;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use zklora_circuit::CircuitId;
use zklora_circuit::E;
use zklora_circuit::challenge::Challenges;
use zklora_circuit::circuit::{BatchCircuit, BatchVerifier, rows};
use zklora_circuit::commitment::{Opening, Salt};
use zklora_circuit::fold::Folder;
use zklora_circuit::memory::Footprint;
use zklora_circuit::parameters::Security;
use zklora_circuit::plan::{DEFAULT_DEGREE_BITS, Planner, plan};
use zklora_circuit::prove::prove;
use zklora_circuit::verify::verify;
use zklora_proto::{BaseModelDigest, Call, Delta, Manifest, ModuleEntry, ModuleShape, SecretKey};

/// One adapter and the number of rows it is asked for.
struct Case {
    name: &'static str,
    modules: Vec<ModuleShape>,
    rows: usize,
    /// Proving and verifying all modules with the original, in seconds, by its own `proof_metrics.csv`.
    original: Option<(f64, f64)>,
}

fn cases() -> Vec<Case> {
    let block = |r| [(768, r, 2304), (768, r, 768), (768, r, 3072), (3072, r, 768)].to_vec();
    let case = |name, shapes: Vec<(usize, usize, usize)>, count: usize, rows, original| Case {
        name,
        modules: shapes
            .iter()
            .cycle()
            .take(count)
            .map(|&(d_in, rank, d_out)| ModuleShape::new(d_in, rank, d_out).unwrap())
            .collect(),
        rows,
        original,
    };
    let one = || vec![(768, 8, 2304)];
    vec![
        case("distilgpt2", block(8), 24, 15, Some((759.0, 24.0 * 0.69))),
        case("gpt2", block(16), 48, 15, Some((1676.0, 48.0 * 0.68))),
        case("Llama-3.2-1B", vec![(2048, 8, 2048), (2048, 8, 512)], 32, 15, Some((992.0, 32.0 * 0.78))),
        case("Llama-3.3-70B", vec![(8192, 16, 1024)], 80, 15, Some((3750.0, 80.0 * 1.54))),
        case("Llama-3.1-8B", vec![(4096, 32, 1024)], 32, 15, Some((1527.0, 32.0 * 1.12))),
        case("Mixtral-8x7B", vec![(4096, 64, 1024)], 32, 15, Some((2358.0, 32.0 * 1.38))),
        case("distilgpt2-finetuned-es", vec![(768, 16, 2304)], 6, 10, None),
        case("one c_attn, 1 row", one(), 1, 1, None),
        case("one c_attn, 15 rows", one(), 1, 15, None),
        case("one c_attn, 1,000 rows", one(), 1, 1_000, None),
        case("one c_attn, 100,000 rows", one(), 1, 100_000, None),
    ]
}

/// What was measured; times in seconds.
#[derive(Serialize, Deserialize)]
struct Figures {
    weights: usize,
    batches: usize,
    rows: usize,
    degree_bits: Vec<usize>,
    build: f64,
    prove: f64,
    verify_cold: f64,
    verify_warm: f64,
    fold: f64,
    fold_entries: usize,
    proof_bytes: usize,
    peak_mib: u64,
    estimated_mib: u64,
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if let [flag, name, security] = &args[..]
        && flag == "--one"
    {
        let case = cases().into_iter().find(|case| case.name == name).expect("a known case");
        let figures = measure(&case, security.parse().expect("a known parameter set"));
        println!("{}", serde_json::to_string(&figures).unwrap());
        return;
    }
    let wanted = args.first().map(String::as_str).unwrap_or_default();
    println!(
        "| adapter | set | weights | proofs | rows | degree | build s | prove s | s/M weights | verify cold s | warm ms a proof | fold M entries/s | proof KB | peak MiB | estimated MiB | original: prove, verify s |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    for case in cases().iter().filter(|case| case.name.contains(wanted)) {
        for security in Security::ALL {
            let output = Command::new(std::env::current_exe().unwrap())
                .args(["--one", case.name, security.name()])
                .output()
                .unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let f: Figures = serde_json::from_slice(&output.stdout).unwrap();
            let original = case.original.map(|(prove, verify)| format!("{prove:.0}, {verify:.1}"));
            println!(
                "| {} | {} | {} | {} | {} | {} | {:.2} | {:.2} | {:.2} | {:.2} | {:.1} | {:.0} | {:.0} | {} | {} | {} |",
                case.name,
                security.name(),
                f.weights,
                f.batches,
                f.rows,
                f.degree_bits.iter().map(|bits| format!("2^{bits}")).collect::<Vec<_>>().join(" "),
                f.build,
                f.prove,
                f.prove / f.weights as f64 * 1e6,
                f.verify_cold,
                f.verify_warm / f.batches as f64 * 1e3,
                f.fold_entries as f64 / f.fold / 1e6,
                f.proof_bytes as f64 / f.batches as f64 / 1e3,
                f.peak_mib,
                f.estimated_mib,
                original.as_deref().unwrap_or("-"),
            );
        }
    }
}

fn measure(case: &Case, security: Security) -> Figures {
    let mut rng = StdRng::seed_from_u64(1);
    let openings: Vec<Opening> = case.modules.iter().map(|&shape| opening(shape, &mut rng)).collect();
    let manifest = manifest(&openings);
    let plan = plan(security, &manifest, &vec![1; openings.len()], DEFAULT_DEGREE_BITS).expect("a plan");
    let challenges = Challenges { alpha: E::sample(&mut rng), beta: E::sample(&mut rng) };

    let mut folder = Folder::new(&manifest, challenges);
    let (mut fold, mut fold_entries) = (Duration::ZERO, 0);
    for (module, opening) in openings.iter().enumerate() {
        let mut left = case.rows;
        while left > 0 {
            let rows = left.min(1000);
            left -= rows;
            let call = call(module, opening, rows, &mut rng);
            fold_entries += call.activations.len() + call.deltas[0].values.len();
            fold += timed(|| folder.add(&call).unwrap()).0;
        }
    }
    let folds = folder.finish();

    let mut figures = Figures {
        weights: case.modules.iter().map(ModuleShape::weights).sum(),
        batches: plan.batches.len(),
        rows: 0,
        degree_bits: vec![],
        build: 0.0,
        prove: 0.0,
        verify_cold: 0.0,
        verify_warm: 0.0,
        fold: fold.as_secs_f64(),
        fold_entries,
        proof_bytes: 0,
        peak_mib: 0,
        estimated_mib: 0,
    };
    let mut built: HashMap<CircuitId, (BatchCircuit, BatchVerifier)> = HashMap::new();
    for modules in &plan.batches {
        let shapes: Vec<ModuleShape> = modules.iter().map(|&m| case.modules[m]).collect();
        let id = CircuitId::new(security, &shapes);
        let (circuit, verifier) = built.entry(id).or_insert_with(|| {
            let (time, circuit) = timed(|| BatchCircuit::build(security, &shapes).unwrap());
            let (cold, verifier) = timed(|| BatchVerifier::build(security, &shapes).unwrap());
            figures.build += time.as_secs_f64();
            figures.verify_cold += cold.as_secs_f64();
            figures.degree_bits.push(circuit.degree_bits());
            (circuit, verifier)
        });
        figures.rows += rows(security, &shapes);
        let batch_openings: Vec<&Opening> = modules.iter().map(|&m| &openings[m]).collect();
        let batch_folds: Vec<_> = modules.iter().map(|&m| &folds[m]).collect();
        // What takes a blink is measured several times: the median.
        let mut times = Vec::new();
        let mut proof = Vec::new();
        for _ in 0..if case.modules.len() == 1 { 9 } else { 1 } {
            let made =
                timed(|| prove(circuit, &batch_openings, &batch_folds, challenges.beta, &mut rng).unwrap());
            times.push(made.0.as_secs_f64());
            proof = made.1;
        }
        times.sort_by(f64::total_cmp);
        figures.prove += times[times.len() / 2];
        figures.proof_bytes += proof.len();
        let public: Vec<_> =
            modules.iter().map(|&m| (manifest.modules()[m].commitment(), &folds[m])).collect();
        let (warm, verdict) = timed(|| verify(verifier, &public, challenges.beta, &proof));
        verdict.unwrap();
        figures.verify_warm += warm.as_secs_f64();
    }
    figures.verify_cold += figures.verify_warm;
    figures.peak_mib = peak_mib();
    // All circuits are kept here, and one proof is made at a time.
    let footprints = figures.degree_bits.iter().map(|&bits| Planner::new(security).footprint(bits));
    let kept: usize = footprints.clone().map(|footprint| footprint.kept).sum();
    let work = footprints.map(|footprint| footprint.building.max(footprint.proving)).max().unwrap_or(0);
    figures.estimated_mib = ((Footprint::PROCESS + kept + work) >> 20) as u64;
    figures
}

fn opening(shape: ModuleShape, rng: &mut StdRng) -> Opening {
    let mut weights = |n: usize| (0..n).map(|_| rng.random_range(-2047..=2047)).collect::<Vec<i16>>();
    let (a, b) = (weights(shape.d_in() * shape.rank()), weights(shape.rank() * shape.d_out()));
    Opening::new(shape, a, b, Salt::random(rng)).unwrap()
}

fn manifest(openings: &[Opening]) -> Manifest {
    let entry = |(i, opening): (usize, &Opening)| {
        ModuleEntry::new(format!("module.{i}"), opening.shape(), 1.0, opening.commitment()).unwrap()
    };
    let entries = openings.iter().enumerate().map(entry).collect();
    Manifest::new(SecretKey::generate().public(), BaseModelDigest::from_bytes([0; 32]), 0, entries).unwrap()
}

/// Random activations and their true deltas.
fn call(module: usize, opening: &Opening, rows: usize, rng: &mut StdRng) -> Call {
    let (d_in, rank, d_out) = (opening.shape().d_in(), opening.shape().rank(), opening.shape().d_out());
    let activations: Vec<i16> = (0..rows * d_in).map(|_| rng.random_range(-32767..=32767)).collect();
    let mut values = vec![0i64; rows * d_out];
    for (x, y) in activations.chunks_exact(d_in).zip(values.chunks_exact_mut(d_out)) {
        let mut xa = vec![0i64; rank];
        for (&x, a) in x.iter().zip(opening.a().chunks_exact(rank)) {
            for (sum, &a) in xa.iter_mut().zip(a) {
                *sum += i64::from(x) * i64::from(a);
            }
        }
        for (&xa, b) in xa.iter().zip(opening.b().chunks_exact(d_out)) {
            for (y, &b) in y.iter_mut().zip(b) {
                *y += xa * i64::from(b);
            }
        }
    }
    Call { rows, activations, deltas: vec![Delta { module, values }] }
}

fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let started = Instant::now();
    let value = work();
    (started.elapsed(), value)
}

/// The process's largest resident size.
fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|kib| kib.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) / 1024
}
