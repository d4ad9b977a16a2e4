use plonky2::field::types::Field;
use plonky2::iop::target::Target;
use plonky2::iop::witness::Witness;
use rand::SeedableRng;
use rand::rngs::StdRng;
use zklora_proto::ModuleShape;
use zklora_testing::{World, shape};

use super::statistics::Case;
use super::*;
use crate::circuit::BatchCircuit;
use crate::parameters::Security;
use crate::plan::plan;

fn tiny() -> Vec<ModuleShape> {
    vec![shape(3, 2, 21)]
}

/// What the accounting says of a circuit with this masking.
fn checked(counts: MaskingCounts, tie: bool) -> Result<(), HidingError> {
    let circuit = BatchCircuit::build_with(Security::Standard, &tiny(), counts, tie).unwrap();
    Accounting::of(&circuit.data, &circuit.masking)?.check()
}

/// The name of what there is too little of.
fn lacks(counts: MaskingCounts) -> String {
    match checked(counts, true) {
        Err(HidingError::TooFew(item)) => item.name,
        other => panic!("{other:?}, expected something that too little is random in"),
    }
}

fn hides(security: Security, shapes: &[ModuleShape]) {
    let circuit = BatchCircuit::build(security, shapes).unwrap();
    let accounting = Accounting::of(&circuit.data, &circuit.masking).unwrap();
    assert_eq!(accounting.check(), Ok(()));
    assert!(accounting.ratio_bits > 120.0, "{}", accounting.ratio_bits);
}

#[test]
fn circuits_of_single_modules_and_of_a_gpt2_block_hide_their_witness() {
    let block = [shape(768, 8, 2304), shape(768, 8, 768), shape(768, 8, 3072), shape(3072, 8, 768)];
    for security in Security::ALL {
        hides(security, &[shape(1, 1, 1)]);
        hides(security, &tiny());
        hides(security, &block);
    }
}

#[test]
fn every_circuit_that_is_planned_for_the_fixture_adapter_hides_its_witness() {
    // c_attn, c_proj, c_fc and c_proj of three layers of a GPT-2 with hidden size 128.
    let layer = [shape(128, 8, 384), shape(128, 8, 128), shape(128, 8, 512), shape(512, 8, 128)];
    let shapes = layer.repeat(3);
    let world = World::new(&shapes, 1);
    let manifest = world.manifest().manifest();
    let mut seen = Vec::new();
    for (security, max_bits) in [(Security::Standard, 16), (Security::Standard, 10), (Security::Compact, 10)]
    {
        let plan = plan(security, manifest, &vec![1; shapes.len()], max_bits).unwrap();
        for batch in &plan.batches {
            let batch: Vec<ModuleShape> = batch.iter().map(|&module| shapes[module]).collect();
            if !seen.contains(&(security, batch.clone())) {
                hides(security, &batch);
                seen.push((security, batch));
            }
        }
    }
    assert!(seen.len() > 2, "{} circuits", seen.len());
}

#[test]
fn every_revealed_value_is_counted() {
    let circuit = BatchCircuit::build(Security::Standard, &tiny()).unwrap();
    let common = &circuit.data.common;
    let items = Accounting::of(&circuit.data, &circuit.masking).unwrap().items;
    let of = |name: &str| {
        let found: Vec<_> = items.iter().filter(|item| item.name.starts_with(name)).collect();
        (found.len(), found[0].revealed, found[0].random)
    };
    assert_eq!(common.degree(), 1024);
    assert_eq!(of("wires"), (CIRCUIT_WIRES, 60 + 4, 64));
    assert_eq!(of("quotient, a chunk's block"), (3, 60 + 4, 127));
    assert_eq!(of("quotients that need"), (1, 3, 3));
    assert_eq!(of("Z "), (3, 2 * (60 + 4), 128));
    // 130 pairs less 31 that a character may ignore, 62 bits each, less 256 bits, in elements of 64 bits.
    assert_eq!(of("partial product"), (9, 60 + 4, 91));
    // 60 queries of 8 values of the extension, then as many as there are coefficients left.
    assert_eq!(of("FRI, layer 0"), (1, 4 * 60 * 8, 4 * 1024));
    assert_eq!(of("FRI, layer 1"), (1, 4 * 128, 4 * 1024));
    assert_eq!(of("FRI, final polynomial"), (1, 4 * 16, 4 * 1024));
    assert_eq!(of("FRI, the folded polynomial"), (1, 4 * 1024, 4 * 1024));
    assert_eq!(of("salt"), (3, 2, 4));
    // Every polynomial of the wires and Z trees, but instance columns and the shift, which are public, and the pads, which are FRI's.
    let instance = 12;
    let polynomials = common.config.num_wires - instance - 1 - D + 3 * (1 + common.num_partial_products);
    let counted = items.iter().filter(|item| !item.name.starts_with("FRI") && item.revealed >= 64).count();
    assert_eq!(counted, polynomials);
}

#[test]
fn one_random_column_row_or_pair_less_is_noticed() {
    let counts = MaskingCounts::new(Security::Standard);
    assert_eq!(checked(counts, true), Ok(()));
    let pads = MaskingCounts { pads: counts.pads - 1, ..counts };
    assert_eq!(lacks(pads), "FRI, the folded polynomial as a whole");
    let masks = MaskingCounts { quotient_masks: counts.quotient_masks - 1, ..counts };
    assert_eq!(lacks(masks), "quotients that need a column each");
    let rows = MaskingCounts { free_rows: counts.free_rows - 1, ..counts };
    assert_eq!(lacks(rows), "wires, column 0");
    let pairs = MaskingCounts { pairs: counts.pairs - 1, ..counts };
    assert_eq!(lacks(pairs), "Z 0");
    // A circuit of 512 rows, whose masks have fewer coefficients.
    let short = MaskingCounts { least_rows: 0, ..counts };
    assert_eq!(lacks(short), "quotient, a chunk's block of column 307");
}

#[test]
fn pairs_that_are_not_tied_are_noticed() {
    let untied = checked(MaskingCounts::new(Security::Standard), false);
    assert!(matches!(untied, Err(HidingError::Tie { column: 0, .. })), "{untied:?}");
}

#[test]
fn leaves_without_salt_are_noticed() {
    let mut circuit = BatchCircuit::build(Security::Standard, &tiny()).unwrap();
    circuit.data.common.fri_params.leaf_hiding = false;
    let error = Accounting::of(&circuit.data, &circuit.masking).unwrap().check().unwrap_err();
    assert_eq!(error.to_string(), "salt of the wires tree: 2 values are revealed and 0 are random");
}

#[test]
fn rows_that_are_used_are_not_counted() {
    let mut circuit = BatchCircuit::build(Security::Standard, &tiny()).unwrap();
    let right = circuit.masking.clone();
    let weights = circuit.layout.modules[0].salt();
    let mut with = |change: &dyn Fn(&mut Masking)| {
        circuit.masking = right.clone();
        change(&mut circuit.masking);
        Accounting::of(&circuit.data, &circuit.masking).map(drop)
    };
    assert_eq!(with(&|_| ()), Ok(()));
    let occupied = with(&|masking| masking.free[5] = weights);
    assert!(matches!(occupied, Err(HidingError::Occupied { gate, .. }) if gate.contains("WeightGate")));
    let of_a_pair = with(&|masking| masking.free[5] = masking.pairs[0][1]);
    assert!(matches!(of_a_pair, Err(HidingError::Tie { expected: "itself", .. })));
    let exchanged = with(&|masking| masking.pairs[0][1] = masking.pairs[1][1]);
    assert!(matches!(exchanged, Err(HidingError::Tie { .. })));
    let elsewhere = with(&|masking| masking.gate_row += 1);
    assert_eq!(elsewhere, Err(HidingError::Gate("should have one row")));
}

#[test]
fn what_is_counted_as_random_is_random() {
    let case = Case::new(Security::Standard);
    let (masking, common) = (&case.circuit.masking, &case.circuit.data.common);
    let [first, second] = [1, 2].map(|seed| {
        let mut witness = case.witness();
        masking.fill(&mut witness, &mut StdRng::seed_from_u64(seed)).unwrap();
        witness
    });
    let differs = |row, column| {
        let [a, b] = [&first, &second].map(|witness| witness.try_get_target(Target::wire(row, column)));
        assert!(a.is_some() && b.is_some() && a != b, "row {row}, column {column}: {a:?}, {b:?}");
    };
    for &row in masking.free.iter().chain(masking.pairs.iter().flatten()) {
        (0..CIRCUIT_WIRES).for_each(|column| differs(row, column));
    }
    for row in 0..common.degree() {
        masking.pads().for_each(|column| differs(row, column));
        for column in masking.quotient_masks() {
            if row == masking.gate_row {
                assert_eq!(first.get_wire(Wire { row, column }), F::ZERO);
            } else {
                differs(row, column);
            }
        }
    }
    assert_eq!(masking.pads().end, common.config.num_wires);
}
