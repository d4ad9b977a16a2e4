use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;

fn prime() -> Prime {
    Prime::random(&mut StdRng::seed_from_u64(5))
}

/// Adds rows, and says which of them are independent.
fn add(basis: &mut Basis, rows: &[i16]) -> Vec<usize> {
    let addition = basis.consider(rows, usize::MAX - 1).unwrap();
    let independent = addition.independent.clone();
    basis.add(rows, addition);
    independent
}

fn rank(rows: &[i16], width: usize, at_once: usize) -> usize {
    let mut basis = Basis::new(prime(), width);
    for rows in rows.chunks(width * at_once) {
        add(&mut basis, rows);
    }
    basis.rank()
}

#[test]
fn primes_are_prime() {
    let largest = (1 << 61) - 1;
    assert!(Prime::new(largest).is_some(), "M. Mersenne's ninth");
    // Squares of primes, a product of two, an even number, and primes out of range.
    let composite = [1_073_741_827u64.pow(2), 1_073_741_827 * 1_073_741_831, 1 << 60, largest - 1];
    for value in composite.into_iter().chain([2_097_169, (1 << 59) - 55, (1 << 62) - 57]) {
        assert_eq!(Prime::new(value), None, "{value}");
    }
    // Strong pseudoprimes to the first bases, up to the first nine (G. Jaeschke, 1993), and Carmichael's smallest.
    for value in [2047, 1_373_653, 3_215_031_751, 3_825_123_056_546_413_051, 561] {
        assert!(!is_prime(value), "{value}");
    }
    let sieved = |n: u64| (2..n).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d));
    assert!((3..5000).step_by(2).all(|n| is_prime(n) == sieved(n)));
    assert_eq!(format!("{:?}", prime()), "Prime(secret)");
    let p = prime();
    for x in [1, 2, 77, p.value() - 1] {
        assert_eq!(p.multiply(x, p.inverse(x)), p.one());
        assert_eq!(p.multiply(x, p.one()), x);
    }
}

#[test]
fn no_more_is_looked_for_than_there_may_be() {
    let unit = |i: usize| -> Vec<i16> { (0..100).map(|j| i16::from(i == j)).collect() };
    let rows: Vec<i16> = (0..90).flat_map(unit).collect();
    let mut basis = Basis::new(prime(), 100);
    for most in [0, 1, 40, 89] {
        assert!(basis.consider(&rows, most).is_none(), "{most}");
    }
    assert_eq!(basis.consider(&rows, 90).unwrap().independent.len(), 90);
    add(&mut basis, &rows[..50 * 100]);
    assert!(basis.consider(&rows, 39).is_none());
    assert_eq!(basis.consider(&rows, 40).unwrap().independent, Vec::from_iter(50..90));
    // Of many rows that tell nothing new, the last does.
    let mut last = [7; 100];
    last[50..].fill(0);
    let mut many = last.repeat(5000);
    assert_eq!(basis.consider(&many, 0).unwrap().independent, [0; 0]);
    many.extend(unit(99));
    assert!(basis.consider(&many, 0).is_none());
    assert_eq!(basis.consider(&many, 1).unwrap().independent, [5000]);
}

#[test]
fn a_clone_stays_as_it_is() {
    let mut basis = Basis::new(prime(), 3);
    add(&mut basis, &[1, 0, 0]);
    let before = basis.clone();
    let addition = before.consider(&[0, 1, 0], 1).unwrap();
    assert_eq!(addition.to, 1);
    basis.add(&[0, 1, 0], addition);
    assert_eq!((before.rank(), basis.rank()), (1, 2));
    assert_eq!(before.consider(&[0, 2, 0], 1).unwrap().independent, [0]);
    assert_eq!(basis.consider(&[0, 2, 0], 1).unwrap().independent, [0; 0]);
}

#[test]
fn repeated_and_dependent_rows_do_not_count() {
    let mut basis = Basis::new(prime(), 3);
    let mut add = |rows: &[i16]| super::tests::add(&mut basis, rows);
    assert_eq!(add(&[0, 0, 0]), [0; 0]);
    assert_eq!(add(&[1, 2, 3, 2, 4, 6, 0, 0, 1]), [0, 2]);
    assert_eq!(add(&[3, 6, -32767]), [0; 0]);
    assert_eq!(add(&[1, 2, 0, 0, 5, 0]), [1]);
    assert_eq!(add(&[32767, -32767, 1]), [0; 0]);
    assert_eq!(basis.rank(), 3);
}

#[test]
fn many_extreme_rows_add_up_exactly() {
    // Many blocks; the last half is sums of the first.
    let width = 700;
    let mut rows: Vec<Vec<i16>> = (0..300)
        .map(|i| (0..width).map(|j| if j >= i { 32767 - (i * j % 7) as i16 } else { -32767 }).collect())
        .collect();
    let sums: Vec<Vec<i16>> = rows
        .windows(2)
        .map(|pair| pair[0].iter().zip(&pair[1]).map(|(a, b)| a.wrapping_sub(*b) / 2).collect())
        .collect();
    let independent = rows.len();
    let exact = |row: &Vec<i16>, pair: &[Vec<i16>]| {
        row.iter()
            .zip(&pair[0])
            .zip(&pair[1])
            .all(|((s, a), b)| 2 * i32::from(*s) == i32::from(*a) - i32::from(*b))
    };
    let dependent: Vec<Vec<i16>> =
        sums.iter().zip(rows.windows(2)).filter(|(s, pair)| exact(s, pair)).map(|(s, _)| s.clone()).collect();
    assert!(rank(&rows.concat(), width, 300) == independent);
    rows.extend(dependent);
    assert_eq!(rank(&rows.concat(), width, 7), independent);
}

#[test]
fn reduction_is_exact_to_its_bound() {
    // The largest prime, and the largest sum of products with it.
    for p in [prime(), Prime::new((1 << 61) - 1).unwrap()] {
        let largest = BLOCK as u128 * u128::from(p.value() - 1).pow(2);
        for start in [0, 1, p.value() - 1] {
            for sum in [0, 1, u64::MAX.into(), 1 << 64, largest / 3, largest - 1, largest] {
                let reduced = p.reduce(start, sum);
                let exact = (sum % u128::from(p.value()) + u128::from(start) * u128::from(p.one()))
                    % u128::from(p.value());
                assert!(reduced < p.value());
                assert_eq!(u128::from(reduced) * u128::from(p.one()) % u128::from(p.value()), exact);
            }
        }
    }
}

#[test]
fn rows_that_only_begin_alike_are_told_apart() {
    let width = PREFIX + 2;
    let row = |entries: [i16; 2]| [vec![1; PREFIX], entries.to_vec()].concat();
    let mut basis = Basis::new(prime(), width);
    for (entries, expected) in [([1, 0], 1), ([1, 0], 1), ([0, 1], 2), ([1, 0], 2), ([2, 5], 3), ([0, 1], 3)]
    {
        add(&mut basis, &row(entries));
        assert_eq!(basis.rank(), expected, "{entries:?}");
    }
}

proptest! {
    #[test]
    fn the_independent_rows_are_those_of_plain_elimination(
        seed: u64, width in 1usize..300, count in 1usize..120, at_once in 1usize..70,
    ) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut rows: Vec<Vec<i16>> = Vec::new();
        for _ in 0..count {
            let row = match rng.random_range(0..4) {
                // Seen before, or a difference of two that were.
                0 if !rows.is_empty() => rows[rng.random_range(0..rows.len())].clone(),
                1 if !rows.is_empty() => {
                    let (a, b) = (rng.random_range(0..rows.len()), rng.random_range(0..rows.len()));
                    let half = |x: i16| x / 4 * 2;
                    rows[a].iter().zip(&rows[b]).map(|(&a, &b)| half(a) - half(b)).collect()
                }
                2 => (0..width).map(|_| if rng.random() { i16::MAX } else { -i16::MAX }).collect(),
                _ => (0..width).map(|_| rng.random_range(-i16::MAX..=i16::MAX)).collect(),
            };
            rows.push(row);
        }
        let mut basis = Basis::new(prime(), width);
        let mut found = Vec::new();
        for (batch, rows) in rows.chunks(at_once).enumerate() {
            let independent = add(&mut basis, &rows.concat());
            found.extend(independent.iter().map(|index| batch * at_once + index));
        }
        prop_assert_eq!(basis.rank(), found.len());
        prop_assert_eq!(found, plainly_independent(prime(), &rows));
    }

    #[test]
    fn rank_is_that_of_gauss_elimination_over_the_rationals(
        rows in proptest::collection::vec(proptest::collection::vec(-3i16..4, 5), 0..9),
        at_once in 1usize..4,
    ) {
        prop_assert_eq!(rank(&rows.concat(), 5, at_once), rational_rank(&rows));
    }
}

/// Elimination modulo a prime, one row and one entry at a time.
fn plainly_independent(prime: Prime, rows: &[Vec<i16>]) -> Vec<usize> {
    let p = u128::from(prime.value());
    let inverse = |x: u128| {
        // Fermat again, by plain remainders.
        let (mut result, mut power, mut exponent) = (1, x, p - 2);
        while exponent > 0 {
            if exponent & 1 == 1 {
                result = result * power % p;
            }
            power = power * power % p;
            exponent >>= 1;
        }
        result
    };
    let mut known: Vec<(usize, Vec<u128>)> = Vec::new();
    let mut independent = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        let mut row: Vec<u128> = row.iter().map(|&x| i128::from(x).rem_euclid(p as i128) as u128).collect();
        for (pivot, by) in &known {
            let factor = p - row[*pivot];
            row.iter_mut().zip(by).for_each(|(x, by)| *x = (*x + factor * by) % p);
        }
        let Some(pivot) = row.iter().position(|&x| x != 0) else { continue };
        let inverse = inverse(row[pivot]);
        row.iter_mut().for_each(|x| *x = *x * inverse % p);
        known.push((pivot, row));
        independent.push(index);
    }
    independent
}

/// Fraction-free elimination (E. Bareiss, 1968), exact in `i128` for small entries.
fn rational_rank(rows: &[Vec<i16>]) -> usize {
    let mut rows: Vec<Vec<i128>> = rows.iter().map(|r| r.iter().map(|&x| x.into()).collect()).collect();
    let (mut rank, mut last) = (0, 1);
    for column in 0..5 {
        let Some(pivot) = (rank..rows.len()).find(|&row| rows[row][column] != 0) else { continue };
        rows.swap(rank, pivot);
        let (done, rest) = rows.split_at_mut(rank + 1);
        let top = &done[rank];
        for row in rest {
            let factor = row[column];
            for (entry, above) in row.iter_mut().zip(top) {
                *entry = (*entry * top[column] - factor * above) / last;
            }
        }
        last = rows[rank][column];
        rank += 1;
    }
    rank
}
