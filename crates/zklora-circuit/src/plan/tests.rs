use proptest::prelude::*;
use zklora_proto::{BaseModelDigest, Commitment, ModuleEntry, SecretKey};

use super::*;

const SECURITY: Security = Security::Standard;

fn shape(d_in: usize, rank: usize, d_out: usize) -> ModuleShape {
    ModuleShape::new(d_in, rank, d_out).unwrap()
}

/// A manifest of modules of these shapes.
fn manifest(shapes: &[ModuleShape]) -> Manifest {
    let entry = |(index, &shape): (usize, &ModuleShape)| {
        let commitment = Commitment::from_elements([0; 4]).unwrap();
        ModuleEntry::new(format!("m.{index}"), shape, 1.0, commitment).unwrap()
    };
    let entries = shapes.iter().enumerate().map(entry).collect();
    Manifest::new(SecretKey::generate().public(), BaseModelDigest::from_bytes([0; 32]), 0, entries).unwrap()
}

fn planner(max_bits: usize) -> Planner {
    Planner { max_bits, threads: 2, ..Planner::new(SECURITY) }
}

fn plan_all(planner: &Planner, shapes: &[ModuleShape]) -> Planned {
    planner.plan(&manifest(shapes), &vec![1; shapes.len()]).unwrap()
}

/// As many modules of this shape as fill a circuit of `2^bits` rows to about this share.
fn filling(bits: usize, share: f64) -> ModuleShape {
    let rows = (share * f64::from(1 << bits)) as usize;
    let fits = |d_out: &usize| circuit::rows(SECURITY, &[shape(512, 64, *d_out)]) <= rows;
    shape(512, 64, (1..1 << 16).step_by(8).take_while(fits).last().expect("a share that one module fills"))
}

/// Adapters of up to five different shapes, each of many modules or few, some of which have no rows.
fn adapters() -> impl Strategy<Value = (Vec<ModuleShape>, Vec<u64>)> {
    let shapes =
        (1usize..2000, 1usize..17, 1usize..5000).prop_map(|(d_in, rank, d_out)| shape(d_in, rank, d_out));
    let piles = prop::collection::vec((shapes, 1usize..12), 1..6);
    (piles, any::<u64>()).prop_map(|(piles, seed)| {
        let most = piles.iter().map(|(_, count)| *count).max().unwrap_or(0);
        // Layer after layer, as in a model.
        let shapes: Vec<ModuleShape> = (0..most)
            .flat_map(|layer| piles.iter().filter(move |(_, count)| layer < *count).map(|(shape, _)| *shape))
            .collect();
        let rows = (0..shapes.len()).map(|module| (seed >> (module % 64) & 3).min(1)).collect();
        (shapes, rows)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_module_with_rows_is_proved_once_within_size_and_memory(
        (shapes, rows) in adapters(),
        max_bits in 11usize..17,
        spare in 0usize..4,
    ) {
        let manifest = manifest(&shapes);
        let memory = planner(max_bits).footprint(max_bits).alone() * (4 + spare) / 4;
        let planner = Planner { memory, ..planner(max_bits) };
        let fits = shapes.iter().zip(&rows).all(|(shape, &rows)| rows == 0 || degree_bits(SECURITY, &[*shape]) <= max_bits);
        let planned = planner.plan(&manifest, &rows);
        prop_assert_eq!(planned.is_ok(), fits);
        let Ok(planned) = planned else { return Ok(()) };
        planned.plan.check(&rows).unwrap();
        prop_assert_eq!(&planner.plan(&manifest, &rows).unwrap(), &planned);

        let mut rows_of_circuits = 0;
        let mut rows_of_proofs = 0;
        for (index, circuit) in planned.circuits.iter().enumerate() {
            prop_assert!(circuit.degree_bits <= max_bits && circuit.footprint.alone() <= memory);
            prop_assert_eq!(circuit.rows, circuit::rows(SECURITY, &circuit.shapes));
            prop_assert!(circuit.rows <= 1 << circuit.degree_bits);
            prop_assert!(planned.circuits[..index].iter().all(|other| other.shapes != circuit.shapes));
            rows_of_circuits += 1u64 << circuit.degree_bits;
        }
        for (batch, modules) in planned.batches.iter().zip(&planned.plan.batches) {
            prop_assert_eq!(&batch.modules, modules);
            let expected: Vec<_> = modules.iter().map(|&module| shapes[module]).collect();
            prop_assert_eq!(&planned.circuits[batch.circuit].shapes, &expected);
            rows_of_proofs += 1u64 << planned.circuits[batch.circuit].degree_bits;
        }
        prop_assert!(planned.batches.windows(2).all(|pair| pair[0].circuit <= pair[1].circuit));
        prop_assert_eq!((planned.cost.circuit_rows, planned.cost.proved_rows), (rows_of_circuits, rows_of_proofs));
        prop_assert!(planned.tried.iter().all(|(_, cost)| cost.cells >= planned.cost.cells));

        let mut rest = &planned.batches[..];
        while !rest.is_empty() {
            let (group, after) = rest.split_at(planner.at_once(&planned.circuits, rest));
            prop_assert!(group.len() == 1 || planner.side_by_side(&planned.circuits, group) <= memory);
            rest = after;
        }
    }
}

#[test]
fn modules_of_one_shape_make_equal_batches() {
    let planned = plan_all(&planner(16), &[filling(14, 0.24); 24]);
    assert_eq!(
        (planned.circuits.len(), planned.way),
        (1, Arrangement::Equal { batches: planned.batches.len() })
    );
}

#[test]
fn modules_far_apart_are_grouped_so_that_batches_are_equal() {
    // As in a model with grouped-query attention, where all of one projection were listed before the other.
    let (wide, narrow) = (shape(2048, 8, 2048), shape(2048, 8, 512));
    let shapes = [vec![wide; 30], vec![narrow; 30]].concat();
    let planned = plan_all(&planner(14), &shapes);
    assert_eq!(planned.circuits.len(), 1, "{:?}", planned.tried);
    assert!(planned.batches.len() > 1);
    assert!(
        planned.batches.iter().all(|batch| batch.modules[0] < 30 && *batch.modules.last().unwrap() >= 30)
    );
    // The order in which the manifest has them makes no difference to the circuits.
    let alternating: Vec<_> = (0..60).map(|module| [wide, narrow][module % 2]).collect();
    assert_eq!(plan_all(&planner(14), &alternating).circuits, planned.circuits);
}

#[test]
fn circuits_of_different_sizes_are_mixed_where_that_is_cheaper() {
    // One module fills 2^16 rows and the other 2^15: together they would take 2^17, alike two times 2^16.
    let planned = plan_all(&planner(17), &[filling(16, 0.9), filling(15, 0.9)]);
    let bits: Vec<_> = planned.circuits.iter().map(|circuit| circuit.degree_bits).collect();
    assert_eq!(bits, [16, 15]);
    let together = planned.tried.iter().find(|(way, _)| *way == Arrangement::Together).unwrap();
    assert!(together.1.cells > planned.cost.cells);
}

#[test]
fn small_modules_are_not_proved_in_circuits_as_large_as_one_large_module_needs() {
    let shapes = [vec![filling(16, 0.95)], vec![filling(12, 0.8); 30]].concat();
    let planned = plan_all(&planner(16), &shapes);
    assert_eq!(planned.circuits[0].degree_bits, 16);
    assert!(planned.circuits[1..].iter().all(|circuit| circuit.degree_bits < 16), "{:?}", planned.tried);
}

#[test]
fn a_proof_of_everything_is_made_where_proofs_are_dearer_than_rows() {
    let planned = plan_all(&planner(16), &[shape(16, 1, 16); 20]);
    assert_eq!((planned.batches.len(), planned.way), (1, Arrangement::Together));
}

#[test]
fn less_memory_means_smaller_circuits_and_at_last_a_refusal_that_says_why() {
    let shapes = [filling(13, 0.3); 12];
    let at = |bits| Planner { memory: planner(16).footprint(bits).alone(), ..planner(16) };
    for bits in 12..16 {
        let planned = plan_all(&at(bits), &shapes);
        assert!(planned.circuits.iter().all(|circuit| circuit.degree_bits <= bits));
        assert_eq!(at(bits).at_once(&planned.circuits, &planned.batches[..1]), 1);
    }
    let error = at(11).plan(&manifest(&shapes), &[1; 12]).unwrap_err();
    assert!(matches!(error, PlanError::Memory { bits: 12, .. }), "{error}");
    let error = planner(11).plan(&manifest(&shapes), &[1; 12]).unwrap_err();
    assert!(matches!(error, PlanError::Rows { needed: 12, max: 11, .. }), "{error}");
}

#[test]
fn with_more_memory_more_batches_run_side_by_side() {
    let shapes = [filling(12, 0.9); 8];
    let unlimited = Planner { threads: 8, ..planner(12) };
    let planned = plan_all(&unlimited, &shapes);
    assert_eq!(planned.batches.len(), 8);
    assert_eq!(unlimited.at_once(&planned.circuits, &planned.batches), 8);
    let three =
        Planner { memory: unlimited.side_by_side(&planned.circuits, &planned.batches[..3]), ..unlimited };
    assert_eq!(three.at_once(&planned.circuits, &planned.batches), 3);
}

#[test]
fn the_largest_adapters_are_planned() {
    let most = zklora_proto::limits::MAX_MODULES;
    for shapes in [
        vec![shape(64, 1, 64); most],
        (0..most).map(|module| shape(64 + module / 64, 1 + module % 8, 64 + module % 64)).collect::<Vec<_>>(),
        (0..most).map(|module| shape(4096, 16, if module < 2048 { 1024 } else { module })).collect(),
    ] {
        let rows = vec![1; shapes.len()];
        match planner(16).plan(&manifest(&shapes), &rows) {
            Ok(planned) => planned.plan.check(&rows).unwrap(),
            Err(error) => assert!(matches!(error, PlanError::Circuits(_)), "{error}"),
        }
    }
}
