//! What a stranger's small file costs: memory of a process that checks it, against the figures of `docs/verifying.md`. How much work
//! folding is, in entries, is tested where it is done (`crates/zklora-circuit/src/fold.rs`).

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{bare, bare_with};
use zklora_circuit::parameters::Security;
use zklora_proto::{Call, Delta, ModuleShape};
use zklora_testing::{PROOFS, shape};
use zklora_verdict::Verifier;
use zklora_verifier::KeyCache;

/// What the process that is measured checks or builds.
const CHILD: &str = "ZKLORA_TEST_COST";
/// What comes before the peak that it prints.
const PEAK: &str = "peak in bytes:";
const MIB: usize = 1 << 20;

/// The process that is measured: checks a file, or builds the circuits whose outputs a file lists, and prints its peak.
#[test]
fn child() {
    let Some(file) = std::env::var_os(CHILD).map(PathBuf::from) else { return };
    match file.extension().is_some_and(|extension| extension == "pf") {
        true => println!("{}", Verifier::default().check_file(&file).outcome.unwrap_err()),
        false => {
            let cache = KeyCache::new(file.with_extension("keys"));
            for d_out in fs::read_to_string(&file).unwrap().split_whitespace() {
                let shape = shape(768, 8, d_out.parse().unwrap());
                cache.get(Security::Standard, &[shape; 12]).unwrap();
            }
        }
    }
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    println!("{PEAK} {} .", line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10);
}

/// What the child prints, and its peak in bytes.
fn run_child(file: &Path) -> (String, usize) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(CHILD, file)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    let peak = text.split_once(PEAK).unwrap_or_else(|| panic!("{text} has no peak")).1;
    let peak = peak.split_whitespace().next().unwrap().parse().unwrap();
    (text, peak)
}

/// Checks a bundle in a process of its own; the reason for which it is refused, and the peak.
fn check(bundle: &[u8]) -> (String, usize) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.pf");
    fs::write(&path, bundle).unwrap();
    run_child(&path)
}

/// A file of some kilobytes asked for the largest circuit, which took 1.4 GB to build before its proof was looked at.
#[test]
fn no_circuit_is_built_for_what_is_too_short_for_a_proof() {
    let largest = shape(1 << 14, 48, 1 << 16);
    let least = Security::Standard.least_proof_bytes() as usize;
    for proof_bytes in [0, 1, least - 1] {
        let bundle = bare_with(&[largest], vec![1], &[zeros(largest, 1, 1)], proof_bytes);
        assert!(bundle.len() < 8192 + proof_bytes, "{} bytes", bundle.len());
        let (said, peak) = check(&bundle);
        assert!(said.contains("too few bytes for any proof"), "{said}");
        assert!(peak < 64 * MIB, "{} MiB", peak / MIB);
    }
}

/// 64 modules that share 2^26 activations, and as many deltas as a call may have: all zeros, in a file of a megabyte or two. Its deltas take
/// 1 GiB and its activations 128 MiB, which is the most that a call takes.
#[test]
fn the_longest_call_takes_what_the_format_says() {
    let shape = shape(512, 1, 16);
    let call = zeros(shape, 64, 1 << 17);
    // As if there were one row more, so that it is refused when all of it has been folded, and no circuit is built.
    let mut raw = common::raw(&bare_with(&[shape; 64], vec![(1 << 17) + 1; 64], &[call], 160_000));
    raw.blobs.truncate(PROOFS + 1);
    let all: Vec<usize> = (0..64).collect();
    let bundle = raw.with_plan(&[&all]).to_bytes();
    assert!(bundle.len() < 2_000_000, "{} bytes", bundle.len());
    let (said, peak) = check(&bundle);
    assert!(said.contains("the number of rows of a module is 131072"), "{said}");
    assert!(peak < 1300 * MIB, "{} MiB", peak / MIB);
}

/// A tensor whose entries have eight bytes, of which seven are zeros for all but one.
#[test]
fn a_wide_tensor_takes_no_more_than_its_integers() {
    let shape = shape(1, 1, 1 << 10);
    let mut call = zeros(shape, 1, 1 << 16);
    call.deltas[0].values[5] = i64::MIN;
    let bundle = bare_with(&[shape], vec![(1 << 16) + 1], &[call], 160_000);
    let (said, peak) = check(&bundle);
    assert!(said.contains("the number of rows of a module is 65536"), "{said}");
    assert!(peak < 700 * MIB, "{} MiB", peak / MIB);
}

/// Folds of as many modules as there may be take memory for those that were called.
#[test]
fn modules_that_are_not_called_take_no_memory() {
    let shapes = vec![shape(1 << 14, 1, 1); 4000];
    let mut rows = vec![0; 4000];
    rows[0] = 1;
    let mut raw = common::raw(&bare_with(&shapes, rows, &[zeros(shapes[0], 1, 1)], 160_000));
    raw.blobs.truncate(PROOFS + 1);
    let (said, peak) = check(&raw.with_plan(&[&[0]]).to_bytes());
    assert!(said.contains("proof 0 (of m.0)"), "{said}");
    assert!(peak < 128 * MIB, "{} MiB", peak / MIB);
    // And is refused before it is taken, if too many were.
    assert!(check(&bare(&vec![shape(1 << 14, 1, 1); 2049])).0.contains("bytes of memory, expected at most"));
}

/// Circuits are built one after another, and each is gone before the next, but for what an allocator does not give back.
#[test]
fn many_circuits_take_no_more_memory_than_one() {
    let folder = tempfile::tempdir().unwrap();
    let peak = |name: &str, outputs: &str| {
        let file = folder.path().join(name);
        fs::write(&file, outputs).unwrap();
        run_child(&file).1
    };
    let one = peak("one", "2304");
    let many = peak("many", "2304 2264 2224 2184 2144 2104");
    assert!(many < one * 2, "one circuit {} MiB, six {} MiB", one / MIB, many / MIB);
}

/// One call of zeros to the first `modules` modules, all of this shape.
fn zeros(shape: ModuleShape, modules: usize, rows: usize) -> Call {
    Call {
        rows,
        activations: vec![0; rows * shape.d_in()],
        deltas: (0..modules).map(|module| Delta { module, values: vec![0; rows * shape.d_out()] }).collect(),
    }
}
