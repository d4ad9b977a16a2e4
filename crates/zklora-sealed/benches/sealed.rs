//! What sealing a text takes: a model of distilgpt2's size with random weights and outliers as GPT-2 has them, and an adapter of rank 8 on all
//! its projections; or the fixture.
//!
//!     cargo bench -p zklora-sealed --bench sealed [-- tiny | distilgpt2] [TOKENS...]
//!
//! By default `tiny` at 64 and 256 tokens. Prints wall-clock seconds on all threads, and the memory at the end.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "no program that people use")]

#[path = "../../zklora-tests/benches/exact/model.rs"]
mod model;

use std::path::Path;
use std::time::Instant;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use zklora_circuit::commitment::{Opening, Salt};
use zklora_exact::{ExactAdapter, ExactModel, Plan, Profile};
use zklora_hf::{BaseModel, LoraAdapter, quantise};
use zklora_proto::{Commitment, ModuleShape};
use zklora_sealed::model::{SealedAdapter, SealedModel};
use zklora_sealed::proof::{Prover, Statement, Verifier};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let large = args.iter().any(|arg| arg == "distilgpt2");
    let mut lengths: Vec<usize> = args.iter().filter_map(|arg| arg.parse().ok()).collect();
    if lengths.is_empty() {
        lengths = vec![64, 256];
    }
    let folder = tempfile::tempdir().unwrap();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
    let (base, lora) = if large {
        model::write_base(&folder.path().join("base"));
        model::write_adapter(&folder.path().join("lora"));
        (folder.path().join("base"), folder.path().join("lora"))
    } else {
        (fixtures.join("gpt2-tiny"), fixtures.join("lora-es"))
    };
    let base = BaseModel::open(base).unwrap();
    let lora = LoraAdapter::open(lora, &base.projections()).unwrap();
    let vocabulary = if large { model::VOCABULARY } else { 2048 };
    let text = |seed: u64, tokens: usize| -> Vec<u32> {
        let mut rng = StdRng::seed_from_u64(seed);
        (0..tokens).map(|_| rng.random_range(0..vocabulary)).collect()
    };
    let plan = Plan::calibrate(&base, Profile::Faithful, &[text(9, 256), text(10, 256)]).unwrap();
    let exact = ExactModel::new(&base, plan).unwrap();
    let adapter = ExactAdapter::quantised(&exact, &lora).unwrap();
    let mut rng = StdRng::seed_from_u64(1);
    let openings: Vec<Opening> = lora
        .modules
        .iter()
        .map(|module| {
            let q = quantise(module);
            let shape =
                ModuleShape::new(q.a.len() / module.rank, module.rank, q.b.len() / module.rank).unwrap();
            Opening::new(shape, q.a.to_vec(), q.b.to_vec(), Salt::random(&mut rng)).unwrap()
        })
        .collect();
    let modules = lora.modules.iter().map(|module| module.name.as_str());
    let sealed_adapter = SealedAdapter {
        exact: &adapter,
        modules: modules.zip(openings.iter().map(Opening::shape)).collect(),
    };
    let commitments: Vec<Commitment> = openings.iter().map(Opening::commitment).collect();
    let openings: Vec<&Opening> = openings.iter().collect();

    println!(
        "{}, {} threads",
        if large { "distilgpt2's size" } else { "gpt2-tiny" },
        std::thread::available_parallelism().unwrap()
    );
    println!(
        "| tokens | million cells | messages | circuit | system, circuit | witness | prove | tokens/s | proof | verify | bits | memory |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|");
    for tokens in lengths {
        let tokens = text(tokens as u64, tokens);
        let scored: Vec<usize> = (1..tokens.len()).collect();
        let began = Instant::now();
        let sealed = SealedModel::new(&exact, &tokens, &scored, Some(&sealed_adapter)).unwrap();
        let prover = Prover::new(sealed.system()).unwrap();
        let built = began.elapsed();
        let began = Instant::now();
        let (witness, loss) = sealed.witness(Some(&adapter), &openings).unwrap();
        let filled = began.elapsed();
        let results = SealedModel::results(loss).unwrap();
        let statement = Statement { context: b"bench", commitments: &commitments, results: &results };
        let began = Instant::now();
        let proof = prover.prove(statement, witness, &openings, &mut rng).unwrap().to_bytes();
        let proved = began.elapsed();
        let verifier: Verifier<'_> = prover.verifier();
        let began = Instant::now();
        verifier.verify(statement, &proof).unwrap();
        let verified = began.elapsed();
        println!(
            "| {} | {:.1} | {} | 2^{} | {:.2} s | {:.2} s | {:.2} s | {:.1} | {:.2} MB | {:.2} s | {:.1} | {:.1} GB |",
            tokens.len(),
            sealed.system().layout().sizes.cells as f64 / 1e6,
            prover.shape().messages,
            prover.degree_bits(),
            built.as_secs_f64(),
            filled.as_secs_f64(),
            proved.as_secs_f64(),
            tokens.len() as f64 / (filled + proved).as_secs_f64(),
            proof.len() as f64 / 1e6,
            verified.as_secs_f64(),
            verifier.soundness().1,
            memory(),
        );
        let items: Vec<String> =
            verifier.soundness().0.iter().map(|item| format!("{} {:.1}", item.name, item.bits)).collect();
        eprintln!("bits: {}", items.join(", "));
    }
}

/// The most memory that the process had, in GB.
fn memory() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: f64 = line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0.0);
    kib * 1024.0 / 1e9
}
