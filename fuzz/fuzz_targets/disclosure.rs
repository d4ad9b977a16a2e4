//! Disclosures of calls: what is taken has one encoding, and is what the seeds' parties committed to.
#![no_main]

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use zklora_fuzz::changed_json;
use zklora_proto::Disclosure;

/// The disclosures that are valid: those of `crates/zklora-testing/examples/fuzz_seeds.rs`.
static HONEST: LazyLock<HashSet<Vec<u8>>> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds/disclosure");
    let files = fs::read_dir(&folder).expect("the seeds, which scripts/fuzz.sh makes");
    files.map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect()
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let mut rng = StdRng::seed_from_u64(seed.into());
    if rng.random_ratio(3, 4)
        && let Some(changed) = changed_json(&data[..size], &mut rng)
        && changed.len() <= max_size
    {
        data[..changed.len()].copy_from_slice(&changed);
        return changed.len();
    }
    fuzzer_mutate(data, size, max_size)
});

fuzz_target!(|file: &[u8]| {
    if let Ok(disclosure) = Disclosure::from_bytes(file) {
        assert_eq!(disclosure.to_bytes(), file);
        assert!(HONEST.contains(file), "a disclosure that nobody made was taken");
    }
});
