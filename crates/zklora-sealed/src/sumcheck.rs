//! Sumchecks in a hidden conversation.
//!
//! A claim `Σ_x p(x)` over `{0, 1}^n` becomes one of `p(r)` at a point of challenges, a variable a round, the highest bit first (C. Lund, L. Fortnow, H.
//! Karloff, N. Nisan, 1992). A round's polynomial is sent as its values at 0, 2, 3, …: that at 1 follows from the claim, so that rounds have no checks of their own.

use p3_field::{Algebra, ExtensionField, Field, PackedFieldExtension, PackedValue, PrimeCharacteristicRing};
use rayon::prelude::*;

use crate::conversation::{Conversation, Value, lagrange};
use crate::field::{E, F, eq_table, wipe};

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

/// Several elements of E in one register each.
type Packed = <E as ExtensionField<F>>::ExtensionPacking;
/// How many.
const LANES: usize = <F as Field>::Packing::WIDTH;
/// Tables of fewer values are not packed.
const LEAST_PACKED: usize = 4 * LANES;

/// A sum of products of tables, over E.
pub struct Products {
    /// Tables of 2^n values each, secret; empty while they are packed.
    tables: Vec<Vec<E>>,
    /// The same with several values in a register; empty when they are not.
    packed: Vec<Vec<Packed>>,
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
        let mut products = Self { tables, packed: Vec::new(), terms, degree, eq: None, free: 0 };
        products.pack();
        products
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
        let mut products = Self::new(tables, terms);
        products.unpack();
        products.eq = Some(eq_table(z.get(1..).unwrap_or(&[])));
        (products.free, products.degree) = (free, degree);
        products
    }

    /// The tables' values after the last round.
    pub fn ends(&self) -> Vec<E> {
        self.tables.iter().map(|table| table[0]).collect()
    }

    /// The sum, before the first round.
    pub fn total(&self) -> E {
        match self.packed.is_empty() {
            true => total(&self.tables, &self.terms),
            false => lanes([total(&self.packed, &self.terms)]).sum(),
        }
    }

    fn pack(&mut self) {
        if self.tables[0].len() < LEAST_PACKED {
            return;
        }
        self.packed = self
            .tables
            .iter_mut()
            .map(|table| {
                let chunks = table.par_chunks(LANES).with_min_len(PART);
                let packed = chunks.map(<Packed as PackedFieldExtension<F, E>>::from_ext_slice).collect();
                wipe(table);
                *table = Vec::new();
                packed
            })
            .collect();
    }

    fn unpack(&mut self) {
        for (table, packed) in self.tables.iter_mut().zip(&mut self.packed) {
            *table = lanes(packed.iter().copied()).collect();
            wipe_packed(packed);
        }
        self.packed = Vec::new();
    }
}

/// What one thread does at a time.
const PART: usize = 1 << 9;

fn total<T: Algebra<E> + Copy + Send + Sync>(tables: &[Vec<T>], terms: &[(E, Vec<usize>)]) -> T {
    (0..tables[0].len())
        .into_par_iter()
        .with_min_len(PART)
        .map(|x| {
            let product = |(factor, of): &(E, Vec<usize>)| {
                of.iter().fold(T::from(*factor), |product, &table| product * tables[table][x])
            };
            terms.iter().map(product).sum::<T>()
        })
        .reduce(|| T::ZERO, |a, b| a + b)
}

/// The round's polynomial at 0, 2, 3, …, `degree` values; `eq` says what each x is weighed with.
fn values<T: Algebra<E> + Copy + Send + Sync>(
    tables: &[Vec<T>],
    terms: &[(E, Vec<usize>)],
    degree: usize,
    eq: impl Fn(usize) -> Option<T> + Sync,
) -> Vec<T> {
    let half = tables[0].len() / 2;
    let part = |range: std::ops::Range<usize>| {
        let mut sums = vec![T::ZERO; degree];
        let mut at = vec![T::ZERO; tables.len()];
        let mut steps = vec![T::ZERO; tables.len()];
        for x in range {
            for ((at, step), table) in at.iter_mut().zip(&mut steps).zip(tables) {
                (*at, *step) = (table[x], table[x + half] - table[x]);
            }
            let weight = eq(x);
            for (index, sum) in sums.iter_mut().enumerate() {
                // From 0 to 2, and then one by one.
                match index {
                    0 => {}
                    1 => at.iter_mut().zip(&steps).for_each(|(at, &step)| *at += step.double()),
                    _ => at.iter_mut().zip(&steps).for_each(|(at, &step)| *at += step),
                }
                let mut value = T::ZERO;
                for (factor, of) in terms {
                    let product = of[1..].iter().fold(at[of[0]], |product, &table| product * at[table]);
                    value += if *factor == E::ONE { product } else { product * *factor };
                }
                *sum += weight.map_or(value, |weight| weight * value);
            }
        }
        sums
    };
    (0..half.div_ceil(PART))
        .into_par_iter()
        .map(|index| part(index * PART..half.min((index + 1) * PART)))
        .reduce(
            || vec![T::ZERO; degree],
            |mut a, b| {
                a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
                a
            },
        )
}

impl Rounds for Products {
    fn values(&mut self) -> Vec<E> {
        if self.packed.is_empty() {
            let weight = |x: usize| self.eq.as_ref().map(|eq| eq[x >> self.free]);
            return values(&self.tables, &self.terms, self.degree, weight);
        }
        let weight =
            |x: usize| self.eq.as_ref().map(|eq| Packed::from_ext_slice(&eq[x * LANES..(x + 1) * LANES]));
        let sums = values(&self.packed, &self.terms, self.degree, weight);
        sums.into_iter().map(|sum| lanes([sum]).sum()).collect()
    }

    fn bind(&mut self, r: E) {
        if self.packed.is_empty() {
            self.tables.iter_mut().for_each(|table| fold(table, r));
        } else {
            self.packed.iter_mut().for_each(|table| fold(table, r));
            if self.packed[0].len() * LANES < LEAST_PACKED {
                self.unpack();
            }
        }
        if let Some(eq) = &mut self.eq {
            // Without the next variable: what it is summed over.
            let half = eq.len() / 2;
            let (low, high) = eq.split_at_mut(half);
            low.par_iter_mut().with_min_len(PART).zip(high).for_each(|(low, high)| *low += *high);
            eq.truncate(half.max(1));
        }
    }
}

impl Drop for Products {
    fn drop(&mut self) {
        self.tables.iter_mut().for_each(|table| wipe(table));
        self.packed.iter_mut().for_each(|table| wipe_packed(table));
    }
}

/// The values of registers.
fn lanes(packed: impl IntoIterator<Item = Packed>) -> impl Iterator<Item = E> {
    <Packed as PackedFieldExtension<F, E>>::to_ext_iter(packed)
}

fn wipe_packed(table: &mut [Packed]) {
    table.fill(Packed::ZERO);
    std::hint::black_box(table);
}

/// Fixes the highest variable of a table.
fn fold<T: Algebra<E> + Copy + Send + Sync>(table: &mut Vec<T>, r: E) {
    let half = table.len() / 2;
    let (low, high) = table.split_at_mut(half);
    low.par_iter_mut().with_min_len(PART).zip(high).for_each(|(low, high)| *low += (*high - *low) * r);
    table.truncate(half);
}

/// `Σ_x cell(x)·weight(x)`, cells over F. Lists may end early: what is beyond is zero.
pub struct Inner<'a> {
    /// Of the first round.
    cells: &'a [F],
    folded: Vec<E>,
    weights: Vec<E>,
    /// Of all of it, a power of two.
    size: usize,
}

impl<'a> Inner<'a> {
    /// Over this many variables.
    pub fn new(cells: &'a [F], weights: Vec<E>, variables: usize) -> Self {
        Self { cells, folded: Vec::new(), weights, size: 1 << variables }
    }

    /// The cells' value after the last round.
    pub fn end(&self) -> E {
        self.folded.first().copied().unwrap_or_else(|| self.cells[0].into())
    }

    fn values_of<T: Copy + Sync + PrimeCharacteristicRing>(&self, cells: &[T]) -> Vec<E>
    where
        E: Algebra<T>,
    {
        let half = self.size / 2;
        let (low, high) = cells.split_at(cells.len().min(half));
        let (of_low, of_high) = self.weights.split_at(low.len());
        let low = low.par_chunks(PART).zip(of_low.par_chunks(PART)).enumerate();
        let [at_0, at_2] = low
            .map(|(index, (low, of_low))| {
                let (mut at_0, mut at_2) = (E::ZERO, E::ZERO);
                let at = index * PART;
                let (high, of_high) = (high.get(at..).unwrap_or(&[]), of_high.get(at..).unwrap_or(&[]));
                for (i, (&c, &w)) in low.iter().zip(of_low).enumerate() {
                    let product = w * c;
                    at_0 += product;
                    at_2 += match (high.get(i), of_high.get(i)) {
                        (Some(&c2), Some(&w2)) => (w2.double() - w) * (c2.double() - c),
                        _ => product,
                    };
                }
                [at_0, at_2]
            })
            .reduce(|| [E::ZERO; 2], |a, b| [a[0] + b[0], a[1] + b[1]]);
        vec![at_0, at_2]
    }
}

impl Rounds for Inner<'_> {
    fn values(&mut self) -> Vec<E> {
        match self.folded.is_empty() {
            true => self.values_of(self.cells),
            false => self.values_of(&self.folded),
        }
    }

    fn bind(&mut self, r: E) {
        self.size /= 2;
        if self.folded.is_empty() {
            let (low, high) = self.cells.split_at(self.cells.len().min(self.size));
            self.folded = low
                .par_iter()
                .with_min_len(PART)
                .enumerate()
                .map(|(i, &low)| E::from(low) + r * (high.get(i).copied().unwrap_or(F::ZERO) - low))
                .collect();
        } else {
            fold_early(&mut self.folded, self.size, r);
        }
        fold_early(&mut self.weights, self.size, r);
    }
}

impl Drop for Inner<'_> {
    fn drop(&mut self) {
        wipe(&mut self.folded);
    }
}

/// Fixes the highest variable of a list that may end early, of so many values afterwards.
fn fold_early(list: &mut Vec<E>, size: usize, r: E) {
    let split = list.len().min(size);
    let (low, high) = list.split_at_mut(split);
    low.par_iter_mut().with_min_len(PART).enumerate().for_each(|(i, low)| {
        *low += (high.get(i).copied().unwrap_or(E::ZERO) - *low) * r;
    });
    list.truncate(size);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fiat_shamir::FiatShamir;
    use crate::field::extension;

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

    #[test]
    fn lists_that_end_early_are_zero_beyond() {
        for (n, len) in [(0, 1), (3, 8), (5, 19), (11, 1500), (12, 4096), (4, 3)] {
            let cells: Vec<F> = (0..len as u64).map(|i| F::from_u64(i * i + 3)).collect();
            let weights = table(12, 5)[..len].to_vec();
            let pads = vec![E::ONE; 100];
            let mut run = Conversation::prover(FiatShamir::new(), &pads);
            let claim = weights.iter().zip(&cells).map(|(&w, &c)| w * c).sum::<E>();
            let claim = run.affine(claim, &[]);
            let mut prover = Inner::new(&cells, weights.clone(), n);
            let (end, point) = sum(&mut run, claim, n, 2, Some(&mut prover));
            let cells: Vec<E> = cells.iter().map(|&c| E::from(c)).collect();
            assert_eq!(run.known(end), at(&cells, &point) * at(&weights, &point), "{n} {len}");
        }
    }
}
