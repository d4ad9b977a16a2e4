//! The estimate of memory against what a process really takes.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "tests say what they measure or pass over")]

use std::process::Command;

use plonky2::field::types::Field;
use zklora_circuit::E;
use zklora_circuit::challenge::Challenges;
use zklora_circuit::circuit::BatchCircuit;
use zklora_circuit::fold::Folder;
use zklora_circuit::memory::Footprint;
use zklora_circuit::parameters::Security;
use zklora_circuit::plan::{Planner, degree_bits};
use zklora_circuit::prove::prove;
use zklora_proto::ModuleShape;
use zklora_testing::{World, rng, shape};

/// Set in the process that is measured.
const CHILD: &str = "ZKLORA_TEST_MEMORY";
/// What comes before the peaks that it prints.
const PEAKS: &str = "peaks in bytes:";

#[test]
fn the_estimate_is_an_upper_bound_and_not_far_off() {
    let security = Security::Standard;
    let shapes = vec![shape(768, 8, 2304); 12];
    if std::env::var_os(CHILD).is_some() {
        return build_and_prove(security, &shapes);
    }
    let peaks = peaks_of("the_estimate_is_an_upper_bound_and_not_far_off");
    let [built, proved] = peaks[..] else { panic!("{peaks:?} are not two peaks") };

    let bits = degree_bits(security, &shapes);
    let footprint = Footprint::new(&security.config(), bits, rayon::current_num_threads());
    let building = Footprint::PROCESS + footprint.building;
    for (what, estimate, peak) in [("building", building, built), ("proving", footprint.alone(), proved)] {
        println!("{what} 2^{bits} rows: estimated {} MiB, measured {} MiB", estimate >> 20, peak >> 20);
        assert!(peak <= estimate && estimate < peak * 3 / 2, "{what}: {estimate}, measured {peak}");
    }
}

#[test]
fn proofs_side_by_side_stay_within_the_estimate() {
    let shapes = [shape(768, 8, 2304); 4];
    let world = World::new(&shapes, 1).with_max_bits(10);
    if std::env::var_os(CHILD).is_some() {
        world.bundle(&[world.call(2, &[0, 1, 2, 3], &mut rng(1))]);
        return println!("{PEAKS} {} .", peak());
    }
    let planner = Planner { max_bits: 10, ..Planner::new(Security::Standard) };
    let planned = planner.plan(world.manifest().manifest(), &[2; 4]).unwrap();
    assert_eq!(planned.batches.len(), 4);
    let at_once = planner.at_once(&planned.circuits, &planned.batches);
    let estimate = planner.side_by_side(&planned.circuits, &planned.batches[..at_once]);
    let peak = peaks_of("proofs_side_by_side_stay_within_the_estimate")[0];
    println!("{at_once} side by side: estimated {} MiB, measured {} MiB", estimate >> 20, peak >> 20);
    assert!(peak <= estimate, "{estimate}, measured {peak}");
}

/// Runs one of the tests here in a process of its own, and returns the peaks that it prints, in bytes.
fn peaks_of(test: &str) -> Vec<usize> {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    let peaks = text.split_once(PEAKS).unwrap_or_else(|| panic!("{text} has no peaks")).1;
    peaks.split_whitespace().map_while(|peak| peak.parse().ok()).collect()
}

/// Makes one proof, and prints the peaks after building and after proving.
fn build_and_prove(security: Security, shapes: &[ModuleShape]) {
    let world = World::new(shapes, 1);
    let call = world.call(2, &(0..shapes.len()).collect::<Vec<_>>(), &mut rng(1));
    let challenges = Challenges { alpha: E::TWO, beta: E::TWO };
    let mut folder = Folder::new(world.manifest().manifest(), challenges);
    folder.add(&call).unwrap();
    let folds = folder.finish();
    let circuit = BatchCircuit::build(security, shapes).unwrap();
    let built = peak();
    let (openings, folds): (Vec<_>, Vec<_>) = world.openings().iter().zip(&folds).unzip();
    let proof = prove(&circuit, &openings, &folds, challenges.beta, &mut rng(2)).unwrap();
    let footprint = Footprint::new(&security.config(), circuit.degree_bits(), rayon::current_num_threads());
    assert!(proof.len().abs_diff(footprint.proof) < proof.len() / 20, "{} bytes", proof.len());
    println!("{PEAKS} {built} {} .", peak());
}

/// The process's largest resident size so far, in bytes.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}
