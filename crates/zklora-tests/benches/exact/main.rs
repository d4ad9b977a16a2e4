//! The exact model beside float32: how far its losses are from libtorch's, and how long it takes, for a model of distilgpt2's size with
//! outliers as GPT-2 has them, without and with an adapter of rank 8.
//!
//!     cargo bench -p zklora-tests --bench exact [-- TOKENS...]
//!
//! By default texts of 64, 256 and 512 tokens in the formats `faithful`, and of 1,024 in `long`. Tokens are random, and so is what follows them: losses are
//! those of a model that knows nothing, on which rounding shows as on any other.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "no program that people use")]

mod model;

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use zklora_base_user::models::Model;
use zklora_exact::{ExactAdapter, ExactModel, Plan, Profile};
use zklora_hf::{BaseModel, LoraAdapter};

const TEXTS: usize = 6;

fn main() {
    let args: Vec<usize> = std::env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    let lengths = if args.is_empty() { vec![64, 256, 512, 1024] } else { args };
    let folder = tempfile::tempdir().unwrap();
    model::write_base(&folder.path().join("base"));
    model::write_adapter(&folder.path().join("lora"));
    let base = BaseModel::open(folder.path().join("base")).unwrap();
    let lora = LoraAdapter::open(folder.path().join("lora"), &base.projections()).unwrap();
    let threads = std::thread::available_parallelism().unwrap().get();
    tch::set_num_threads(threads as i32);
    let float = Model::load(&base).unwrap();
    let mut adapted = Model::load(&base).unwrap();
    adapted.merge(&lora).unwrap();

    println!("{threads} threads; {TEXTS} texts of each length; differences in nats, of a text's mean loss\n");
    println!(
        "| tokens | formats | adapter | float32 loss | mean difference | worst text | float32, tokens/s | exact, tokens/s | time, exact / float32 |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for profile in [Profile::Faithful, Profile::Long] {
        let lengths: Vec<usize> = lengths
            .iter()
            .copied()
            .filter(|&tokens| (tokens <= 512) == matches!(profile, Profile::Faithful))
            .collect();
        if lengths.is_empty() {
            continue;
        }
        let plan = Plan::calibrate(&base, profile, &texts(9, 2, 256)).unwrap();
        let hot: usize = plan.hot.iter().map(|hot| hot.attention.len() + hot.mlp.len()).sum();
        eprintln!("{}: f = {}, {hot} hot channels", profile.name(), plan.residual_bits);
        let exact = ExactModel::new(&base, plan).unwrap();
        let adapter = ExactAdapter::quantised(&exact, &lora).unwrap();
        for tokens in lengths {
            compare(&exact, None, &float, profile, tokens);
            compare(&exact, Some(&adapter), &adapted, profile, tokens);
        }
    }
}

fn compare(
    exact: &ExactModel,
    adapter: Option<&ExactAdapter>,
    float: &Model,
    profile: Profile,
    tokens: usize,
) {
    let (mut differences, mut losses) = (Vec::new(), 0.0);
    let (mut float_time, mut exact_time) = (Duration::ZERO, Duration::ZERO);
    // One more, to begin with, which is not timed.
    for (number, ids) in texts(tokens as u64, TEXTS + 1, tokens).iter().enumerate() {
        let as_float: Vec<i64> = ids.iter().map(|&id| id.into()).collect();
        let began = Instant::now();
        let expected = float.loss(&as_float).unwrap();
        let between = Instant::now();
        let found = exact.losses(ids, adapter).unwrap().mean();
        let ended = Instant::now();
        if number > 0 {
            differences.push(found - expected);
            losses += expected;
            float_time += between - began;
            exact_time += ended - between;
        }
    }
    let count = differences.len() as f64;
    let mean = differences.iter().sum::<f64>() / count;
    let worst = differences.iter().fold(0f64, |worst, d| worst.max(d.abs()));
    let speed = |time: Duration| (TEXTS * tokens) as f64 / time.as_secs_f64();
    println!(
        "| {tokens} | {} | {} | {:.3} | {mean:+.5} | {worst:.5} | {:.0} | {:.0} | {:.2} |",
        profile.name(),
        if adapter.is_some() { "rank 8" } else { "none" },
        losses / count,
        speed(float_time),
        speed(exact_time),
        exact_time.as_secs_f64() / float_time.as_secs_f64(),
    );
}

fn texts(seed: u64, count: usize, tokens: usize) -> Vec<Vec<u32>> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..count).map(|_| (0..tokens).map(|_| rng.random_range(0..model::VOCABULARY)).collect()).collect()
}
