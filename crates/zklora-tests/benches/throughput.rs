//! Tokens per second of `eval` and `generate`, with all 24 modules of a model of distilgpt2's size at a contributor on loopback,
//! against the same model with the adapter merged into its weights.
//!
//!     cargo bench -p zklora-tests --bench throughput             # one and two threads of libtorch
//!     cargo bench -p zklora-tests --bench throughput -- 1        # this number of threads
//!     cargo bench -p zklora-tests --bench throughput -- --write FOLDER
//!
//! The last writes model and adapter for `scripts/bench_peft.py`. The contributor is a process of its own, with one thread of
//! libtorch and a budget that lets it answer everything.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "no program that people use")]

#[path = "inference/model.rs"]
mod model;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::runtime::Runtime;
use zklora_base_user::evaluation::{Total, Window, Windows, add_losses};
use zklora_base_user::models::{Model, Past};
use zklora_base_user::remote::{CombineMode, RemoteHook};
use zklora_base_user::sampling::Sampler;
use zklora_client::Session;
use zklora_hf::{BaseModel, LoraAdapter};
use zklora_proto::SecretKey;
use zklora_tests::programs::Programs;

/// Texts, and tokens of each. A session may have 1 GiB of transcript, which is 2700 tokens of this model.
const TEXTS: usize = 8;
const TEXT_TOKENS: usize = 64;
/// Tokens of a prompt, and tokens that are added.
const PROMPT: usize = 16;
const NEW_TOKENS: usize = 64;
/// Rounds, of which the medians are shown.
const ROUNDS: usize = 3;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    match &args[..] {
        [flag, threads] if flag == "--one" => return measure(threads.parse().expect("a number of threads")),
        [flag, folder] if flag == "--write" => return write(Path::new(folder)),
        _ => {}
    }
    let counts = if args.is_empty() { vec!["1".to_owned(), "2".to_owned()] } else { args };
    for threads in counts {
        // libtorch keeps the threads that it once had.
        let status = Command::new(std::env::current_exe().unwrap()).args(["--one", &threads]).status();
        assert!(status.unwrap().success());
    }
}

fn write(folder: &Path) {
    model::write_base(&folder.join("base"));
    let base = BaseModel::open(folder.join("base")).unwrap();
    model::write_adapter(&folder.join("lora"), &base.projections());
}

fn measure(threads: i32) {
    tch::set_num_threads(threads);
    let folder = tempfile::tempdir().unwrap();
    write(folder.path());
    let (base, lora) = (folder.path().join("base"), folder.path().join("lora"));
    let opened = BaseModel::open(&base).unwrap();
    let world = Programs::of(&base, &lora);
    let server = world.serve_with("OMP_NUM_THREADS", "1");
    let runtime = Runtime::new().unwrap();
    let session = || {
        let (key, handle) = (SecretKey::generate(), runtime.handle().clone());
        let (address, adapter) = (server.address.parse().unwrap(), world.adapter.parse().unwrap());
        let session = Session::open(handle, key, &address, adapter, opened.digest()).unwrap();
        Arc::new(RemoteHook::new([(Arc::new(session), CombineMode::AddDelta)]))
    };
    let mut remote = Model::load(&opened).unwrap();
    remote.patch(session()).unwrap();
    let mut merged = Model::load(&opened).unwrap();
    merged.merge(&LoraAdapter::open(&lora, &opened.projections()).unwrap()).unwrap();

    println!("\n## {threads} thread(s) of libtorch\n");
    println!("| | merged here, tokens/s | remote, tokens/s | merged / remote |");
    println!("|---|---|---|---|");
    let windows = texts(1);
    let first = evaluated(&remote, &windows);
    evaluated(&merged, &windows);
    row("eval, rows that are new", TEXTS * TEXT_TOKENS, median(|| evaluated(&merged, &windows)), first);
    // All rows there can be are known now: what any further text costs.
    let other = texts(2);
    row(
        "eval, any rows after that",
        TEXTS * TEXT_TOKENS,
        median(|| evaluated(&merged, &other)),
        median(|| evaluated(&remote, &other)),
    );
    remote.patch(session()).unwrap();
    generated(&merged);
    generated(&remote);
    row("generate", NEW_TOKENS, median(|| generated(&merged)), median(|| generated(&remote)));
    remote.unpatch();
    server.stop();
}

fn texts(seed: u64) -> Windows {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut ids = || (0..TEXT_TOKENS).map(|_| rng.random_range(0..model::VOCABULARY)).collect();
    let windows = (0..TEXTS).map(|example| Window { example, ids: ids(), from: 1 }).collect();
    Windows { windows, notes: Vec::new() }
}

fn evaluated(model: &Model, windows: &Windows) -> Duration {
    let started = Instant::now();
    let mut totals = vec![Total::default(); TEXTS];
    add_losses(model, &windows.windows, &mut totals).unwrap();
    started.elapsed()
}

fn generated(model: &Model) -> Duration {
    let mut rng = StdRng::seed_from_u64(3);
    let mut new: Vec<i64> = (0..PROMPT).map(|_| rng.random_range(0..model::VOCABULARY)).collect();
    let started = Instant::now();
    let mut past = Past::new(PROMPT + NEW_TOKENS);
    let mut sampler = Sampler::new(0.0, None, 1.0, 0);
    for _ in 0..NEW_TOKENS {
        new = vec![sampler.sample(&model.next(&mut past, &new).unwrap()) as i64];
    }
    started.elapsed()
}

fn median(mut timed: impl FnMut() -> Duration) -> Duration {
    let mut times: Vec<Duration> = (0..ROUNDS).map(|_| timed()).collect();
    times.sort();
    times[ROUNDS / 2]
}

fn row(what: &str, tokens: usize, merged: Duration, remote: Duration) {
    let speed = |time: Duration| tokens as f64 / time.as_secs_f64();
    println!(
        "| {what} | {:.1} | {:.1} | {:.2} |",
        speed(merged),
        speed(remote),
        remote.as_secs_f64() / merged.as_secs_f64()
    );
}
