//! What inference costs: one forward of a model of distilgpt2's size with all 24 modules at a contributor on loopback, against
//! the same adapter applied locally.
//!
//!     cargo bench -p zklora-tests --bench inference            # one and two threads of libtorch
//!     cargo bench -p zklora-tests --bench inference -- 1       # this number of threads
//!
//! The contributor is a process of its own, with one thread of libtorch. Models take turns, so that what else the machine does
//! meets all of them.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "no program that people use")]

mod contributor;
#[path = "../../../base-user/tests/models/local_lora/mod.rs"]
mod local_lora;
mod model;
mod spans;

use std::collections::HashMap;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use local_lora::LocalLora;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::runtime::Runtime;
use zklora_base_user::models::Model;
use zklora_base_user::remote::{CombineMode, RemoteHook};
use zklora_client::Session;
use zklora_hf::{BaseModel, LoraAdapter};
use zklora_proto::SecretKey;
use zklora_tests::programs::Programs;

/// Tokens of a forward.
const TOKENS: usize = 15;
/// Forwards that are not counted.
const WARM_UP: usize = 5;
/// Forwards that are.
const ROUNDS: usize = 25;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if let [flag, threads] = &args[..]
        && flag == "--one"
    {
        return measure(threads.parse().expect("a number of threads"));
    }
    let counts = if args.is_empty() { vec!["1".to_owned(), "2".to_owned()] } else { args };
    for threads in counts {
        // libtorch keeps the threads that it once had.
        let status = Command::new(std::env::current_exe().unwrap()).args(["--one", &threads]).status();
        assert!(status.unwrap().success());
    }
}

fn measure(threads: i32) {
    tch::set_num_threads(threads);
    let folder = tempfile::tempdir().unwrap();
    let (base, lora) = (folder.path().join("base"), folder.path().join("lora"));
    model::write_base(&base);
    let opened = BaseModel::open(&base).unwrap();
    model::write_adapter(&lora, &opened.projections());
    let world = Programs::of(&base, &lora);

    let plain = Model::load(&opened).unwrap();
    let mut local = Model::load(&opened).unwrap();
    let adapter = LoraAdapter::open(&lora, &opened.projections()).unwrap();
    local.patch(Arc::new(LocalLora::new(&adapter))).unwrap();
    let server = world.serve_with("OMP_NUM_THREADS", "1");
    let runtime = Runtime::new().unwrap();
    let session = Arc::new(
        Session::open(
            runtime.handle().clone(),
            SecretKey::generate(),
            &server.address.parse().unwrap(),
            world.adapter.parse().unwrap(),
            opened.digest(),
        )
        .unwrap(),
    );
    let mut remote = Model::load(&opened).unwrap();
    remote.patch(Arc::new(RemoteHook::new([(session, CombineMode::AddDelta)]))).unwrap();

    println!("\n## {threads} thread(s) of libtorch, {TOKENS} tokens\n");
    let text = random_text(0);
    let difference = (local.logits(&text).unwrap() - remote.logits(&text).unwrap()).abs().max();
    let adapted = (local.logits(&text).unwrap() - plain.logits(&text).unwrap()).abs().max();
    println!(
        "largest difference of a logit: {:.4} between local and remote, {:.4} by the adapter\n",
        difference.double_value(&[]),
        adapted.double_value(&[])
    );

    println!("| text | base ms | local adapter ms | remote ms | its mean | remote / local |");
    println!("|---|---|---|---|---|---|");
    let models = [&plain, &local, &remote];
    for _ in 0..WARM_UP {
        let _ = models.map(|model| timed(model, &text));
    }
    let same: Vec<_> = (0..ROUNDS).map(|_| models.map(|model| timed(model, &text))).collect();
    report("the same", &same);
    // Each new text is as many independent rows, until the ledger knows all there are.
    let mut new_text = (1..).map(random_text);
    let mut known = TOKENS;
    for (until, name) in [(192, "new, up to a quarter"), (384, "to a half"), (768, "to all of 768")] {
        let mut times = Vec::new();
        while known + TOKENS <= until {
            let text = new_text.next().unwrap();
            times.push(models.map(|model| timed(model, &text)));
            known += TOKENS;
        }
        report(name, &times);
    }
    let again: Vec<_> = (0..ROUNDS).map(|_| models.map(|model| timed(model, &text))).collect();
    report("the first again", &again);

    println!("\nWhere the time of a remote forward goes, medians of {ROUNDS}, with the first text:\n");
    spans::start();
    let mut parts: HashMap<&str, Vec<Duration>> = HashMap::new();
    let mut whole = Vec::new();
    for _ in 0..ROUNDS {
        spans::take();
        whole.push(timed(&remote, &text));
        for (name, time) in spans::take() {
            parts.entry(name).or_default().push(time);
        }
    }
    println!("| part | ms |");
    println!("|---|---|");
    println!("| whole | {:.2} |", ms(median(&whole)));
    for (name, times) in parts {
        println!("| {name} | {:.2} |", ms(median(&times)));
    }
    server.stop();

    println!(
        "\nWhat the contributor does meanwhile, without the network, in this process with one thread:\n"
    );
    tch::set_num_threads(1);
    println!("| text | {} | all ms |", contributor::STEPS.join(" | "));
    println!("|---|{}---|", "---|".repeat(contributor::STEPS.len()));
    let state = Programs::of(&base, &lora);
    let mut contributor = contributor::Contributor::open(&state.path("state"));
    for _ in 0..WARM_UP {
        contributor.forward(TOKENS, 0);
    }
    let mut steps = |name: &str, seeds: &[u64]| {
        let times: Vec<_> = seeds.iter().map(|&seed| contributor.forward(TOKENS, seed)).collect();
        let medians: Vec<f64> = (0..contributor::STEPS.len())
            .map(|step| ms(median(&times.iter().map(|times| times[step]).collect::<Vec<_>>())))
            .collect();
        let cells: Vec<String> = medians.iter().map(|time| format!("{time:.2}")).collect();
        println!("| {name} | {} | {:.2} |", cells.join(" | "), medians.iter().sum::<f64>());
    };
    steps("the same", &[0; ROUNDS]);
    steps("new, up to a quarter", &(1..12).collect::<Vec<_>>());
    steps("to a half", &(12..25).collect::<Vec<_>>());
    steps("to all of 768", &(25..51).collect::<Vec<_>>());
    steps("the first again", &[0; ROUNDS]);
}

fn random_text(seed: u64) -> Vec<i64> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..TOKENS).map(|_| rng.random_range(0..model::VOCABULARY)).collect()
}

fn timed(model: &Model, text: &[i64]) -> Duration {
    let start = Instant::now();
    let _ = model.logits(text).unwrap();
    start.elapsed()
}

/// Medians, the mean of the last, and the median of the ratios of forwards that stood beside each other.
fn report(name: &str, times: &[[Duration; 3]]) {
    let [base, local, remote] =
        [0, 1, 2].map(|model| ms(median(&times.iter().map(|times| times[model]).collect::<Vec<_>>())));
    let mean = times.iter().map(|times| ms(times[2])).sum::<f64>() / times.len() as f64;
    let mut ratios: Vec<f64> =
        times.iter().map(|[_, local, remote]| remote.as_secs_f64() / local.as_secs_f64()).collect();
    ratios.sort_by(f64::total_cmp);
    println!(
        "| {name} | {base:.1} | {local:.1} | {remote:.1} | {mean:.1} | {:.2} |",
        ratios[ratios.len() / 2]
    );
}

fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort();
    times[times.len() / 2]
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
