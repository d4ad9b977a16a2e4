//! An attack on the way rows are counted: find the prime by calls that are refused, or by one that is answered and should not be,
//! and then have rows answered that depend on each other modulo the prime alone.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::tests::{World, counted};
use super::{Ledger, Refused};
use crate::store::Store;

const WIDTH: usize = 128;
const BUDGET: usize = WIDTH / 4;

/// A way to count rows, as a client sees it.
trait Rule {
    /// Asks for rows. If they are refused: how many independent ones there are, if that is told.
    fn ask(&mut self, rows: &[i16]) -> Result<(), Option<usize>>;
    /// Rows that count.
    fn counted(&self) -> usize;
}

/// Rank modulo one prime of 22 bits.
struct SmallPrime {
    p: i64,
    tells: bool,
    known: Vec<(usize, Vec<i64>)>,
}

impl SmallPrime {
    fn new(tells: bool) -> Self {
        let primes = small_primes();
        let p = primes[StdRng::seed_from_u64(3).random_range(0..primes.len())];
        Self { p, tells, known: Vec::new() }
    }

    fn inverse(&self, x: i64) -> i64 {
        let (mut result, mut power, mut exponent) = (1, x, self.p - 2);
        while exponent > 0 {
            if exponent & 1 == 1 {
                result = result * power % self.p;
            }
            power = power * power % self.p;
            exponent >>= 1;
        }
        result
    }
}

impl Rule for SmallPrime {
    fn ask(&mut self, rows: &[i16]) -> Result<(), Option<usize>> {
        let before = self.known.len();
        for row in rows.chunks_exact(WIDTH) {
            let mut row: Vec<i64> = row.iter().map(|&x| i64::from(x).rem_euclid(self.p)).collect();
            for (pivot, by) in &self.known {
                let factor = self.p - row[*pivot];
                if factor != self.p {
                    row.iter_mut().zip(by).for_each(|(x, by)| *x = (*x + factor * by) % self.p);
                }
            }
            let Some(pivot) = row.iter().position(|&x| x != 0) else { continue };
            let inverse = self.inverse(row[pivot]);
            row.iter_mut().for_each(|x| *x = *x * inverse % self.p);
            self.known.push((pivot, row));
        }
        if self.known.len() <= BUDGET {
            return Ok(());
        }
        let asked = self.known.len() - before;
        self.known.truncate(before);
        Err(self.tells.then_some(asked))
    }

    fn counted(&self) -> usize {
        self.known.len()
    }
}

/// The ledger.
struct Ours {
    world: World,
    open: (Store, Ledger),
}

impl Ours {
    fn new() -> Self {
        let world = World::with(WIDTH, 0.25);
        let open = world.open(b"boot");
        Self { world, open }
    }
}

impl Rule for Ours {
    fn ask(&mut self, rows: &[i16]) -> Result<(), Option<usize>> {
        self.world.ask(&self.open, &[0], rows).map(drop).map_err(|refused| {
            let Refused::Exhausted(_) = &refused else { panic!("{refused}") };
            // All numbers but those that every client knows.
            let said = refused.to_string();
            let numbers = said.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok());
            let known = [0, BUDGET, WIDTH, BUDGET - self.counted()];
            numbers.into_iter().find(|number| !known.contains(number))
        })
    }

    fn counted(&self) -> usize {
        counted(&self.open.1)[0]
    }
}

fn small_primes() -> Vec<i64> {
    let mut sieve = vec![true; 1 << 22];
    for d in 2..1 << 11 {
        (d * d..1 << 22).step_by(d).for_each(|multiple| sieve[multiple] = false);
    }
    (1 << 21..1 << 22).filter(|&n| sieve[n]).map(|n| n as i64).collect()
}

/// For each of these primes two rows, in two columns of their own, whose minor is the prime.
fn traps(primes: &[i64]) -> Vec<i16> {
    let mut rows = vec![0; 2 * primes.len() * WIDTH];
    for (index, prime) in primes.iter().enumerate() {
        // 2048·d - c
        let d = (prime + 2047) / 2048;
        let at = 2 * index * WIDTH + 2 * index;
        (rows[at], rows[at + 1]) = (2048, 1);
        (rows[at + WIDTH], rows[at + WIDTH + 1]) = ((2048 * d - prime) as i16, d as i16);
    }
    rows
}

/// The prime, and how many calls it took, if what the rule tells gives it away.
fn find(rule: &mut impl Rule) -> Option<(i64, usize)> {
    let primes = small_primes();
    let mut calls = 0;
    // As many rows as there may be at all: how many are counted tells whether the prime is among them.
    let mut ask = |rule: &mut dyn Rule, primes: &[i64]| {
        calls += 1;
        let asked = rule.ask(&traps(primes));
        (asked.map_err(|told| told.map(|told| told < 2 * primes.len())), calls)
    };
    let mut rest = &primes[..];
    while !rest.is_empty() {
        let (some, after) = rest.split_at(rest.len().min(WIDTH / 2));
        match ask(rule, some).0 {
            Err(Some(true)) => {
                // Fewer than half as many, then a single one with others that are known not to be it.
                let others = if rest.len() < primes.len() { &primes[..WIDTH / 2 - 1] } else { after };
                for &prime in some {
                    let trial = [&others[..WIDTH / 2 - 1], &[prime]].concat();
                    let (told, calls) = ask(rule, &trial);
                    if told == Err(Some(true)) {
                        return Some((prime, calls));
                    }
                }
                return None;
            }
            Err(Some(false)) => rest = after,
            // Nothing is told but whether there are too many. One row more than that: they are answered if the prime is among them.
            _ => break,
        }
    }
    let mut all = primes.chunks_exact(BUDGET / 2);
    // A row beside those of the traps.
    let beside = |index: usize| -> Vec<i16> { (0..WIDTH).map(|i| i16::from(i == index)).collect() };
    let some = all.find(|some| {
        calls += 1;
        rule.ask(&[traps(some), beside(WIDTH - 1)].concat()).is_ok()
    })?;
    // Modulo the prime one direction of its trap is missing. What is in the span of what was answered is answered again.
    let found = (0..some.len()).find(|index| {
        calls += 1;
        rule.ask(&beside(2 * index)).is_err()
    });
    found.map(|index| (some[index], calls))
}

/// Three rows that are independent, and multiples of one row modulo a prime.
fn three_for_one(p: i64) -> Vec<i16> {
    let small = |x: i64| {
        let x = x.rem_euclid(p);
        let x = if x > p / 2 { x - p } else { x };
        i16::try_from(x).ok().filter(|&x| x > i16::MIN)
    };
    let determinant = |[a, b, c]: [&[i16; 3]; 3]| {
        let [a, b, c] = [a, b, c].map(|row| row.map(i128::from));
        a[0] * (b[1] * c[2] - b[2] * c[1]) - a[1] * (b[0] * c[2] - b[2] * c[0])
            + a[2] * (b[0] * c[1] - b[1] * c[0])
    };
    let of_one = |[s, t]: [i64; 2]| {
        let short = (1..p)
            .filter_map(|factor| Some([small(factor)?, small(factor * s % p)?, small(factor * t % p)?]));
        let short: Vec<[i16; 3]> = short.collect();
        let pairs = (0..short.len()).flat_map(|i| (0..i).map(move |j| (i, j)));
        let triples = pairs.flat_map(|(i, j)| (0..j).map(move |k| [i, j, k]));
        let mut triples = triples.map(|triple| triple.map(|index| &short[index]));
        let triple = triples.find(|triple| determinant(*triple) != 0)?;
        Some(triple.into_iter().flat_map(|row| in_first_columns(row)).collect())
    };
    // There are some sixteen short multiples of a row, and mostly three of them are independent.
    (1..100).find_map(|attempt| of_one([1_234_567 * attempt % p, 765_432 + attempt])).unwrap()
}

fn in_first_columns(entries: &[i16]) -> Vec<i16> {
    let mut row = vec![0; WIDTH];
    row[..entries.len()].copy_from_slice(entries);
    row
}

#[test]
fn a_small_prime_is_found_by_what_refusals_tell_and_three_rows_count_as_one() {
    let mut rule = SmallPrime::new(true);
    let (p, calls) = find(&mut rule).unwrap();
    assert_eq!((p, rule.counted()), (rule.p, 0), "it cost nothing");
    assert!(calls < 2400, "{calls}");
    rule.ask(&three_for_one(p)).unwrap();
    assert_eq!(rule.counted(), 1);
}

#[test]
fn a_small_prime_is_found_by_whether_rows_are_answered() {
    let mut rule = SmallPrime::new(false);
    let p = rule.p;
    assert_eq!(find(&mut rule).map(|(found, _)| found), Some(p));
}

#[test]
fn the_ledger_tells_nothing_that_finds_its_prime_and_three_rows_count_as_three() {
    let mut rule = Ours::new();
    assert_eq!(find(&mut rule), None);
    assert_eq!(rule.counted(), 0, "what was asked had one row too many");
    let (small, _) = find(&mut SmallPrime::new(true)).unwrap();
    rule.ask(&three_for_one(small)).unwrap();
    assert_eq!(rule.counted(), 3);
    // Rows that do depend on each other count once.
    let mut rule = Ours::new();
    let multiples = [[3, -5, 7], [6, -10, 14], [-9000, 15000, -21000]];
    rule.ask(&multiples.iter().flat_map(|row| in_first_columns(row)).collect::<Vec<_>>()).unwrap();
    assert_eq!(rule.counted(), 1);
}
