//! The exposure ledger: rows it can look at in a second, and what honest clients wait for while others send what will be refused.
//!
//!     cargo bench -p zklora-contributor --bench ledger
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "no program that people use")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use zklora_circuit::parameters::Security;
use zklora_circuit::plan::Planner;
use zklora_contributor::delta::Engines;
use zklora_contributor::exposure::{Basis, Prime};
use zklora_contributor::limits::Limits;
use zklora_contributor::prover::{Place, Prover, ProverConfig};
use zklora_contributor::service::Service;
use zklora_contributor::state::State;
use zklora_contributor::store::{STORE, Store};
use zklora_proto::message::{Nonce, Request, Response};
use zklora_proto::packing::activations_to_bytes;
use zklora_proto::{CommitmentSeed, PROTOCOL_VERSION, SecretKey, SessionId};

/// Keys that send what is refused, and requests of each at once.
const KEYS: usize = 8;
const AT_ONCE: usize = 4;
/// Rows of each such request.
const ROWS: usize = 20_000;
/// One of the fixture's modules with 512 inputs.
const MODULE: &str = "transformer.h.0.mlp.c_proj";

fn main() {
    for width in [768, 4096] {
        rows(width);
    }
    waiting();
}

/// Rows a second when all but a few of a quarter of the width are known.
fn rows(width: usize) {
    let mut rng = StdRng::seed_from_u64(1);
    let mut random = |rows: usize| -> Vec<i16> {
        (0..rows * width).map(|_| rng.random_range(-i16::MAX..=i16::MAX)).collect()
    };
    let (known, new) = (random(width / 4 - 32), random(32));
    let mut basis = Basis::new(Prime::random(&mut rand::make_rng::<StdRng>()), width);
    let began = Instant::now();
    let addition = basis.consider(&known, width).unwrap();
    basis.add(&known, addition);
    let all = began.elapsed();
    let began = Instant::now();
    let mut looked_at = 0;
    while began.elapsed() < Duration::from_secs(3) {
        assert_eq!(basis.consider(&new, width).unwrap().independent.len(), 32);
        looked_at += 32;
    }
    let each = looked_at as f64 / began.elapsed().as_secs_f64();
    println!("d_in {width}: {each:.0} rows a second near the end of a quarter; {all:.2?} for all before");
}

/// Times of an honest client's calls, with and without others.
fn waiting() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
    let state =
        Arc::new(State::create(&path, &fixtures.join("gpt2-tiny"), &fixtures.join("lora-es")).unwrap());
    let store = Arc::new(Store::open(&path.join(STORE), state.manifest.adapter_id()).unwrap());
    let engines = Arc::new(Engines::new(state.manifest.clone(), &state.openings).unwrap());
    let config = ProverConfig {
        folder: path.clone(),
        out_dir: folder.path().join("out"),
        planner: Planner::new(Security::Standard),
        place: Place::Elsewhere,
    };
    let prover = Prover::start(state.clone(), engines.clone(), store.clone(), config).unwrap();
    let service =
        Arc::new(Service::new(state.clone(), engines, Limits::default(), store, 0.25, prover).unwrap());
    let modules = state.manifest.manifest().modules();
    let module = modules.iter().position(|module| module.name() == MODULE).unwrap();
    let d_in = modules[module].shape().d_in();

    let honest = |seconds: u64| {
        let key = SecretKey::generate();
        let session = hello(&service, &state, &key);
        let (began, mut took) = (Instant::now(), Vec::new());
        while began.elapsed() < Duration::from_secs(seconds) {
            let at = Instant::now();
            let row: Vec<i16> = (0..15 * d_in).map(|i| i16::from(i % d_in == 3)).collect();
            let request =
                Request::Forward { session, call: took.len() as u64, rows: 15, modules: vec![module] };
            service.answer(key.public(), request, activations_to_bytes(&row)).unwrap();
            took.push(at.elapsed());
            std::thread::sleep(Duration::from_millis(5));
        }
        took.sort();
        let [half, most] = [took[took.len() / 2], took[took.len() * 99 / 100]];
        println!(
            "{} calls, p50 {half:.1?}, p99 {most:.1?}, longest {:.1?}",
            took.len(),
            took[took.len() - 1]
        );
    };
    print!("alone: ");
    honest(3);
    let (stop, refused) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for sender in 0..KEYS * AT_ONCE {
            let (service, state, stop, refused) = (&service, &state, &stop, &refused);
            scope.spawn(move || {
                let mut rng = StdRng::seed_from_u64(sender as u64);
                let key = SecretKey::generate();
                let session = hello(service, state, &key);
                let rows: Vec<i16> = (0..ROWS * d_in).map(|_| rng.random_range(-9999..=9999)).collect();
                let rows = activations_to_bytes(&rows);
                while !stop.load(Ordering::Relaxed) {
                    let request = Request::Forward { session, call: 0, rows: ROWS, modules: vec![module] };
                    service.answer(key.public(), request, rows.clone()).unwrap_err();
                    refused.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        while refused.load(Ordering::Relaxed) == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        print!("beside {KEYS} keys with {AT_ONCE} calls of {ROWS} x {d_in} rows each, all refused: ");
        honest(15);
        stop.store(true, Ordering::Relaxed);
    });
    println!("refused meanwhile: {}", refused.load(Ordering::Relaxed));
}

fn hello(service: &Service, state: &State, key: &SecretKey) -> SessionId {
    let mine = Nonce::random();
    let request = Request::Hello {
        version: PROTOCOL_VERSION,
        adapter: state.manifest.adapter_id(),
        base_model: *state.manifest.manifest().base_model(),
        nonce: mine,
        commitment_seed: CommitmentSeed::random(),
    };
    let (Response::Welcome { nonce, .. }, _) = service.answer(key.public(), request, vec![]).unwrap() else {
        panic!("no welcome")
    };
    let adapter = state.manifest.adapter_id();
    SessionId::derive(mine.as_bytes(), nonce.as_bytes(), &key.public(), &state.key.public(), &adapter)
}
