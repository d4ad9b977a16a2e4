//! Sumchecks in a hidden conversation.
//!
//! A claim `Σ_x p(x)` over `{0, 1}^n` becomes one of `p(r)` at a point of challenges, a variable a round, the highest bit first (C. Lund, L. Fortnow, H.
//! Karloff, N. Nisan, 1992). A round's polynomial is sent as its values at 0, 2, 3, …: that at 1 follows from the claim, so that rounds have no checks of their own.

use p3_field::{Field, PrimeCharacteristicRing};
use rayon::prelude::*;

use crate::conversation::{Conversation, Value, lagrange};
use crate::field::{E, eq_table, wipe};

/// The prover's part in a sumcheck.
pub trait Rounds {
    /// The round's polynomial at 0, 2, 3, …, as many values as it has degrees.
    fn values(&mut self) -> Vec<E>;
    /// Fixes the variable.
    fn bind(&mut self, r: E);
}

/// `Σ_x p(x) = claim`, p of this degree in each variable: p's value at the point that is returned with it.
pub fn sum(
    run: &mut Conversation<'_>,
    claim: Value,
    variables: usize,
    degree: usize,
    prover: Option<&mut dyn Rounds>,
) -> (Value, Vec<E>) {
    rounds(run, claim, &vec![None; variables], degree, prover)
}

/// `Σ_x eq(z, x)·q(x) = claim`, q of this degree in each variable: q's value at the point that is returned with it. Rounds are about q alone.
pub fn zero_check(
    run: &mut Conversation<'_>,
    claim: Value,
    z: &[E],
    degree: usize,
    prover: Option<&mut dyn Rounds>,
) -> (Value, Vec<E>) {
    rounds(run, claim, &z.iter().copied().map(Some).collect::<Vec<_>>(), degree, prover)
}

/// `Σ_x Π_i eq(z_i, x_i)·q(x) = claim`, the product over the variables that have a z: q's value at the point that is returned with it.
pub fn rounds(
    run: &mut Conversation<'_>,
    mut claim: Value,
    z: &[Option<E>],
    degree: usize,
    mut prover: Option<&mut dyn Rounds>,
) -> (Value, Vec<E>) {
    let mut point = Vec::with_capacity(z.len());
    for &z in z {
        let mut values = prover.as_mut().map_or_else(Vec::new, |prover| prover.values()).into_iter();
        let messages: Vec<Value> = (0..degree)
            .map(|_| {
                let message = run.message(|| values.next().unwrap_or(E::ZERO));
                run.value(message)
            })
            .collect();
        let r = run.challenge("round");
        let factors = lagrange(degree, r);
        // p(1) = claim - p(0), or (1 - z)·q(0) + z·q(1) = claim. No challenge is zero, but with 2^-128.
        let (of_claim, of_first) = match z {
            None => (factors[1], factors[0] - factors[1]),
            Some(z) => {
                let inverse = z.try_inverse().unwrap_or(E::ZERO);
                (factors[1] * inverse, factors[0] - factors[1] * (E::ONE - z) * inverse)
            }
        };
        let mut terms = vec![(of_claim, claim), (of_first, messages[0])];
        terms.extend(factors[2..].iter().copied().zip(messages[1..].iter().copied()));
        claim = run.affine(E::ZERO, &terms);
        if let Some(prover) = &mut prover {
            prover.bind(r);
        }
        point.push(r);
    }
    (claim, point)
}

/// A sum of products of tables, over E.
pub struct Products {
    /// Tables of 2^n values each, secret.
    tables: Vec<Vec<E>>,
    /// Each a factor and the tables that it multiplies.
    terms: Vec<(E, Vec<usize>)>,
    degree: usize,
    /// `eq(z, x)` over the variables after the next one that have a z.
    eq: Option<Vec<E>>,
    /// How many of the last variables have none.
    free: usize,
}

impl Products {
    /// `Σ_x Σ_terms factor·Π tables(x)`.
    pub fn new(tables: Vec<Vec<E>>, terms: Vec<(E, Vec<usize>)>) -> Self {
        let degree = terms.iter().map(|(_, tables)| tables.len()).max().unwrap_or(0);
        Self { tables, terms, degree, eq: None, free: 0 }
    }

    /// The same under `eq(z, x)`, for [`zero_check`].
    pub fn under_eq(tables: Vec<Vec<E>>, terms: Vec<(E, Vec<usize>)>, z: &[E]) -> Self {
        let mut products = Self::new(tables, terms);
        products.eq = Some(eq_table(z.get(1..).unwrap_or(&[])));
        products
    }

    /// The same where only the first variables have a z, for [`rounds`]. `degree` is that of each variable, if it is lower than the number of factors of a term.
    pub fn under_first(
        tables: Vec<Vec<E>>,
        terms: Vec<(E, Vec<usize>)>,
        z: &[E],
        free: usize,
        degree: usize,
    ) -> Self {
        let mut products = Self::under_eq(tables, terms, z);
        (products.free, products.degree) = (free, degree);
        products
    }

    /// The tables' values after the last round.
    pub fn ends(&self) -> Vec<E> {
        self.tables.iter().map(|table| table[0]).collect()
    }

    /// The sum, before the first round.
    pub fn total(&self) -> E {
        (0..self.tables[0].len())
            .into_par_iter()
            .with_min_len(PART)
            .map(|x| {
                let product = |(factor, tables): &(E, Vec<usize>)| {
                    tables.iter().fold(*factor, |product, &table| product * self.tables[table][x])
                };
                self.terms.iter().map(product).sum::<E>()
            })
            .sum()
    }
}

/// What one thread does at a time.
const PART: usize = 1 << 9;

impl Rounds for Products {
    fn values(&mut self) -> Vec<E> {
        let half = self.tables[0].len() / 2;
        let points = self.degree;
        let part = |range: std::ops::Range<usize>| {
            let mut sums = vec![E::ZERO; points];
            let mut at = vec![E::ZERO; self.tables.len()];
            let mut steps = vec![E::ZERO; self.tables.len()];
            for x in range {
                for ((at, step), table) in at.iter_mut().zip(&mut steps).zip(&self.tables) {
                    (*at, *step) = (table[x], table[x + half] - table[x]);
                }
                let weight = self.eq.as_ref().map_or(E::ONE, |eq| eq[x >> self.free]);
                for (index, sum) in sums.iter_mut().enumerate() {
                    // From 0 to 2, and then one by one.
                    match index {
                        0 => {}
                        1 => at.iter_mut().zip(&steps).for_each(|(at, &step)| *at += step.double()),
                        _ => at.iter_mut().zip(&steps).for_each(|(at, &step)| *at += step),
                    }
                    let mut value = E::ZERO;
                    for (factor, tables) in &self.terms {
                        value += tables.iter().fold(*factor, |product, &table| product * at[table]);
                    }
                    *sum += weight * value;
                }
            }
            sums
        };
        (0..half.div_ceil(PART))
            .into_par_iter()
            .map(|index| part(index * PART..half.min((index + 1) * PART)))
            .reduce(
                || vec![E::ZERO; points],
                |mut a, b| {
                    a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
                    a
                },
            )
    }

    fn bind(&mut self, r: E) {
        self.tables.iter_mut().for_each(|table| fold(table, r));
        if let Some(eq) = &mut self.eq {
            // Without the next variable: what it is summed over.
            let half = eq.len() / 2;
            let (low, high) = eq.split_at_mut(half);
            low.iter_mut().zip(high).for_each(|(low, high)| *low += *high);
            eq.truncate(half.max(1));
        }
    }
}

impl Drop for Products {
    fn drop(&mut self) {
        self.tables.iter_mut().for_each(|table| wipe(table));
    }
}

/// Fixes the highest variable of a table.
pub(crate) fn fold(table: &mut Vec<E>, r: E) {
    let half = table.len() / 2;
    let (low, high) = table.split_at_mut(half);
    low.par_iter_mut().with_min_len(PART).zip(high).for_each(|(low, high)| *low += (*high - *low) * r);
    table.truncate(half);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fiat_shamir::FiatShamir;
    use crate::field::{F, extension};

    fn table(n: usize, seed: u64) -> Vec<E> {
        (0..1u64 << n).map(|i| extension(F::from_u64(i * i * seed + 7), F::from_u64(i + seed))).collect()
    }

    fn at(table: &[E], point: &[E]) -> E {
        table.iter().zip(&eq_table(point)).map(|(&x, &e)| x * e).sum()
    }

    #[test]
    fn a_sum_becomes_a_value() {
        for n in [0, 1, 4, 11] {
            let tables = vec![table(n, 3), table(n, 5), table(n, 11)];
            let terms = vec![(E::ONE, vec![0, 1, 2]), (E::from_u64(9), vec![1]), (E::TWO, vec![0, 2])];
            let pads = vec![E::ONE; 200];
            for under_eq in [false, true] {
                let z: Vec<E> =
                    (0..n as u64).map(|i| extension(F::from_u64(i + 2), F::from_u64(3))).collect();
                let mut run = Conversation::prover(FiatShamir::new(), &pads);
                let mut prover = match under_eq {
                    true => Products::under_eq(tables.clone(), terms.clone(), &z),
                    false => Products::new(tables.clone(), terms.clone()),
                };
                let weights = if under_eq { eq_table(&z) } else { vec![E::ONE; 1 << n] };
                let p = |x: usize| {
                    let term = |(f, t): &(E, Vec<usize>)| t.iter().fold(*f, |p, &t| p * tables[t][x]);
                    terms.iter().map(term).sum::<E>()
                };
                let claim = (0..1 << n).map(|x| weights[x] * p(x)).sum::<E>();
                if !under_eq {
                    assert_eq!(prover.total(), claim);
                }
                let claim = run.affine(claim, &[]);
                let (end, point) = match under_eq {
                    true => zero_check(&mut run, claim, &z, 3, Some(&mut prover)),
                    false => sum(&mut run, claim, n, 3, Some(&mut prover)),
                };
                let ends: Vec<E> = tables.iter().map(|table| at(table, &point)).collect();
                assert_eq!(prover.ends(), ends);
                let expected: E = terms.iter().map(|(f, t)| t.iter().fold(*f, |p, &t| p * ends[t])).sum();
                assert_eq!(run.known(end), expected, "{n} {under_eq}");
            }
        }
    }
}
