use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

struct Case {
    sizes: Sizes,
    cells: Vec<F>,
    point: Vec<E>,
    cap: Vec<Digest>,
    value: E,
    opening: Opening,
}

fn case(cells: usize, seed: u64) -> Case {
    let mut rng = StdRng::seed_from_u64(seed);
    let sizes = Sizes::new(cells);
    let cells: Vec<F> = (0..sizes.cells).map(|_| F::from_u64(rng.random_range(0..1 << 16))).collect();
    let committed = Committed::new(sizes, &cells, &mut rng);
    let cap = committed.cap();
    let point: Vec<E> =
        (0..sizes.point_bits()).map(|_| extension(uniform(&mut rng), uniform(&mut rng))).collect();
    let (value, opening) = committed.open(&cells, &point, &mut FiatShamir::new());
    Case { sizes, cells, point, cap, value, opening }
}

fn check(case: &Case, value: E, opening: &Opening) -> Result<(), OpeningError> {
    verify(&case.sizes, &case.cap, &case.point, value, opening, &mut FiatShamir::new())
}

#[test]
fn every_size_has_the_queries_that_it_needs() {
    for row_bits in LEAST_ROW_BITS..=MOST_ROW_BITS {
        let q = queries(row_bits).unwrap();
        let (n, k) = ((2u64 << row_bits) as f64, (1u64 << row_bits) as f64);
        let bits = |q: f64| -q * (1.0 - ((n - k - q) / 2.0).floor() / n - 1.0 / n).log2();
        assert!(bits(q as f64) >= 88.0 && bits(q as f64 - 1.0) < 88.0, "{row_bits}: {q}");
        assert!(q < 1 << row_bits);
    }
    assert_eq!(queries(16), Some(213));
    assert_eq!(queries(8), None);
    for cells in [1, 1000, 1 << 14, (1 << 20) + 1, 1 << 26] {
        let sizes = Sizes::new(cells);
        assert!(sizes.cells >= cells && sizes.columns << sizes.row_bits == sizes.cells, "{sizes:?}");
        assert!(sizes.proximity_bits() > 104.0);
    }
}

#[test]
fn a_value_of_the_extension_is_opened() {
    for cells in [1, 3 << 10, 100_000] {
        let case = case(cells, 1);
        let table = eq_table(&case.point);
        let value: E = case.cells.iter().zip(&table).map(|(&x, &e)| e * x).sum();
        assert_eq!(case.value, value);
        assert_eq!(check(&case, value, &case.opening), Ok(()));
    }
}

#[test]
fn a_changed_opening_is_refused_for_what_was_changed() {
    let case = case(5 << 10, 2);
    let refused = |edit: &dyn Fn(&mut Opening)| {
        let mut opening = case.opening.clone();
        edit(&mut opening);
        check(&case, case.value, &opening).unwrap_err()
    };
    assert_eq!(check(&case, case.value + E::ONE, &case.opening), Err(OpeningError::Value));
    assert_eq!(refused(&|o| o.mask += E::ONE), OpeningError::Value);
    assert_eq!(refused(&|o| o.combination[7] += E::ONE), OpeningError::Value);
    // A coefficient beyond the cells has no part in the value: other positions are drawn, or it is not on the rows.
    assert!(matches!(
        refused(&|o| *o.combination.last_mut().unwrap() += E::ONE),
        OpeningError::Grinding | OpeningError::Path(0)
    ));
    assert!(matches!(refused(&|o| o.nonce += 1), OpeningError::Grinding | OpeningError::Path(0)));
    assert_eq!(refused(&|o| o.rows[3].values[1] += F::ONE), OpeningError::Path(3));
    assert_eq!(refused(&|o| o.rows[4].salt[0] ^= 1), OpeningError::Path(4));
    assert_eq!(refused(&|o| o.rows[5].path[1][0] ^= 1), OpeningError::Path(5));
    assert_eq!(refused(&|o| o.rows.swap(0, 1)), OpeningError::Path(0));
    for edit in [
        &(|o: &mut Opening| o.rows.truncate(1)) as &dyn Fn(&mut Opening),
        &|o| o.combination.truncate(1),
        &|o| o.rows[0].values.push(F::ZERO),
        &|o| o.rows[0].path.truncate(0),
    ] {
        assert!(matches!(refused(edit), OpeningError::Length { .. }));
    }
}

/// The prover who answers for other cells than those under the commitment: with the value of the others, all that it sends is
/// consistent but for the rows.
#[test]
fn other_cells_than_those_committed_to_are_found_out() {
    let mut rng = StdRng::seed_from_u64(3);
    let honest = case(5 << 10, 2);
    let mut others = honest.cells.clone();
    others[0] += F::ONE;
    let again = |rng: &mut StdRng| Committed::new(honest.sizes, &honest.cells, rng);
    let committed = again(&mut rng);
    let cap = committed.cap();
    let (value, opening) = committed.open(&others, &honest.point, &mut FiatShamir::new());
    let found = verify(&honest.sizes, &cap, &honest.point, value, &opening, &mut FiatShamir::new());
    assert!(matches!(found, Err(OpeningError::Row(_))), "{found:?}");
    let committed = again(&mut rng);
    let cap = committed.cap();
    let (value, opening) = committed.open(&honest.cells, &honest.point, &mut FiatShamir::new());
    assert_eq!(verify(&honest.sizes, &cap, &honest.point, value, &opening, &mut FiatShamir::new()), Ok(()));
}

/// What a proof is hidden by.
#[derive(Clone, Copy, PartialEq)]
enum Without {
    Nothing,
    Face,
    Coefficients,
    Mask,
    Salts,
}

const FACE: usize = 64;

/// An opening at one point of the same cells, all of their masks fresh but for one that is left out.
fn opened(without: Without, seed: u64) -> (Case, E) {
    let mut rng = StdRng::seed_from_u64(seed);
    let sizes = Sizes::new(3 << 10);
    let mut cells = guess(sizes);
    if without != Without::Face {
        cells[..FACE].iter_mut().for_each(|cell| *cell = uniform(&mut rng));
    }
    let zero = |missing| if without == missing { F::ZERO } else { F::ONE };
    let random =
        (0..sizes.queries * sizes.columns).map(|_| uniform(&mut rng) * zero(Without::Coefficients)).collect();
    let mask = (0..sizes.coefficients())
        .map(|_| extension(uniform(&mut rng), uniform(&mut rng)) * zero(Without::Mask))
        .collect();
    let mut salts = vec![[0; 32]; 1 << sizes.height_bits()];
    if without != Without::Salts {
        salts.iter_mut().for_each(|salt| rng.fill(salt));
    }
    let committed = Committed::with(sizes, &cells, random, mask, salts);
    let cap = committed.cap();
    let mut of_point = StdRng::seed_from_u64(77);
    let point: Vec<E> =
        (0..sizes.point_bits()).map(|_| extension(uniform(&mut of_point), uniform(&mut of_point))).collect();
    let mut fs = FiatShamir::new();
    let (value, opening) = committed.open(&cells, &point, &mut fs);
    let mut fs = FiatShamir::new();
    fs.absorb_elements("value", &[value, opening.mask]);
    let g = fs.challenge("mask");
    (Case { sizes, cells, point, cap, value, opening }, g)
}

/// The cells, as somebody may guess them, all but the face.
fn guess(sizes: Sizes) -> Vec<F> {
    let mut rng = StdRng::seed_from_u64(5);
    let mut cells: Vec<F> = (0..sizes.cells).map(|_| F::from_u64(rng.random_range(0..1 << 16))).collect();
    cells[..FACE].fill(F::ZERO);
    cells
}

/// Whoever guesses all cells is told so by a proof that lacks one of its masks, and by no other.
#[test]
fn a_guess_is_confirmed_only_where_a_mask_is_missing() {
    let by_value = |(case, _): &(Case, E)| {
        let table = eq_table(&case.point);
        case.value == guess(case.sizes).iter().zip(&table).map(|(&x, &e)| e * x).sum::<E>()
    };
    // Columns without the face, which is in the first.
    let by_row = |(case, _): &(Case, E)| {
        let (k, height) = (1usize << case.sizes.row_bits, 1usize << case.sizes.height_bits());
        let mut column = guess(case.sizes)[k..2 * k].to_vec();
        column.resize(height, F::ZERO);
        let code = encode(column, 1);
        case.opening.rows.iter().all(|row| code.contains(&row.values[1]))
    };
    let by_combination = |(case, g): &(Case, E)| {
        let k = 1usize << case.sizes.row_bits;
        let hi = eq_table(&case.point[..case.point.len() - case.sizes.row_bits]);
        let guess = guess(case.sizes);
        (FACE..k).all(|i| {
            let column = |j: usize| guess.get(j * k + i).copied().unwrap_or(F::ZERO);
            let sum: E = hi.iter().enumerate().map(|(j, &e)| e * column(j)).sum();
            case.opening.combination[i] == *g * sum
        })
    };
    type Attack<'a> = &'a dyn Fn(&(Case, E)) -> bool;
    let attacks: [(Without, Attack<'_>); 3] =
        [(Without::Face, &by_value), (Without::Coefficients, &by_row), (Without::Mask, &by_combination)];
    for (seed, (without, attack)) in attacks.into_iter().enumerate() {
        assert!(attack(&opened(without, seed as u64)));
        for other in [Without::Nothing, Without::Salts] {
            assert!(!attack(&opened(other, seed as u64)));
        }
    }
}

/// V, the combination and the opened values of many proofs of one witness, by their highest four bits.
#[test]
fn what_is_opened_is_uniform_over_many_proofs() {
    use p3_field::PrimeField64;
    let mut counts = vec![[0u32; 16]; 2 + 2 * 8 + 3 * 8];
    const PROOFS: u64 = 320;
    for seed in 0..PROOFS {
        let (case, _) = opened(Without::Nothing, 1000 + seed);
        let mut values: Vec<F> = case.value.as_basis_coefficients_slice().to_vec();
        for x in &case.opening.combination[..8] {
            values.extend_from_slice(x.as_basis_coefficients_slice());
        }
        values.extend(case.opening.rows[..8].iter().flat_map(|row| &row.values[..3]));
        for (counts, value) in counts.iter_mut().zip(values) {
            counts[(value.as_canonical_u64() >> 60) as usize] += 1;
        }
    }
    let expected = PROOFS as f64 / 16.0;
    let chi: Vec<f64> = counts
        .iter()
        .map(|counts| counts.iter().map(|&n| (f64::from(n) - expected).powi(2) / expected).sum())
        .collect();
    // 15 degrees of freedom: above 60 with 2^-21.
    let worst = chi.iter().copied().fold(0.0, f64::max);
    let mean = chi.iter().sum::<f64>() / chi.len() as f64;
    assert!(worst < 60.0 && (10.0..20.0).contains(&mean), "{worst} {mean}");
}
