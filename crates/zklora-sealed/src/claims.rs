//! Linear functionals of the cells: what every claim about committed values is.

use rayon::prelude::*;

use crate::field::{E, F, bits_of, eq, eq_at, eq_table};

/// A part of a functional.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// `factor·Σ_i eq(point, i)·cell[offset + i]`; the offset is a multiple of `2^point.len()`.
    Block {
        /// The first cell.
        offset: usize,
        /// The point.
        point: Vec<E>,
        /// The factor.
        factor: E,
    },
    /// `Σ_{r, c} rows[r]·columns[c]·cell[offset + r·columns.len() + c]`; both lengths are powers of two, and the offset is a multiple of their product.
    Outer {
        /// The first cell.
        offset: usize,
        /// Weights of rows.
        rows: Vec<E>,
        /// Weights of columns.
        columns: Vec<E>,
    },
    /// `Σ_i weights[i]·cell[offset + i]`, for weights that have no short form.
    Dense {
        /// The first cell.
        offset: usize,
        /// The weights.
        weights: Vec<E>,
    },
}

/// A linear functional of the cells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Functional(pub Vec<Piece>);

impl Functional {
    /// Adds its weights, times a factor, to a list of weights for all cells.
    pub fn add_to(&self, weights: &mut [E], by: E) {
        for piece in &self.0 {
            match piece {
                Piece::Block { offset, point, factor } => {
                    // In parts, so that the table of a large block is never in memory as a whole.
                    const PART: usize = 14;
                    let (hi, lo) = point.split_at(point.len().saturating_sub(PART));
                    let lo = eq_table(lo);
                    let scale = *factor * by;
                    weights[*offset..offset + (1 << point.len())]
                        .par_chunks_mut(lo.len())
                        .enumerate()
                        .for_each(|(index, part)| {
                            let scale = scale * eq_at(hi, index);
                            part.iter_mut().zip(&lo).for_each(|(weight, &e)| *weight += scale * e);
                        });
                }
                Piece::Outer { offset, rows, columns } => {
                    weights[*offset..].par_chunks_mut(columns.len()).zip(rows).for_each(|(part, &row)| {
                        let scale = row * by;
                        part.iter_mut().zip(columns).for_each(|(weight, &x)| *weight += scale * x);
                    })
                }
                Piece::Dense { offset, weights: given } => weights[*offset..offset + given.len()]
                    .iter_mut()
                    .zip(given)
                    .for_each(|(weight, &x)| *weight += by * x),
            }
        }
    }

    /// The extension of its weights at a point of as many coordinates as the list of all cells has.
    pub fn at(&self, point: &[E]) -> E {
        self.0
            .iter()
            .map(|piece| match piece {
                Piece::Block { offset, point: own, factor } => {
                    let (hi, lo) = point.split_at(point.len() - own.len());
                    *factor * eq_at(hi, offset >> own.len()) * eq(lo, own)
                }
                Piece::Outer { offset, rows, columns } => {
                    let (of_rows, of_columns) = (bits_of(rows.len()), bits_of(columns.len()));
                    let (hi, lo) = point.split_at(point.len() - of_rows - of_columns);
                    let sum = |weights: &[E], point: &[E]| -> E {
                        weights.iter().zip(&eq_table(point)).map(|(&x, &e)| x * e).sum()
                    };
                    eq_at(hi, offset >> (of_rows + of_columns))
                        * sum(rows, &lo[..of_rows])
                        * sum(columns, &lo[of_rows..])
                }
                Piece::Dense { offset, weights } => {
                    let bits = bits_of(weights.len()).min(point.len());
                    let (hi, lo) = point.split_at(point.len() - bits);
                    let lo = eq_table(lo);
                    // Weights may begin anywhere: they touch two runs of 2^bits cells at most.
                    let (run, start) = (offset >> bits, offset & ((1 << bits) - 1));
                    let first = weights.len().min((1 << bits) - start);
                    let sum =
                        |weights: &[E], lo: &[E]| -> E { weights.iter().zip(lo).map(|(&x, &e)| x * e).sum() };
                    let (one, other) = weights.split_at(first);
                    let mut value = eq_at(hi, run) * sum(one, &lo[start..]);
                    if !other.is_empty() {
                        value += eq_at(hi, run + 1) * sum(other, &lo);
                    }
                    value
                }
            })
            .sum()
    }

    /// Its value.
    pub fn of(&self, cells: &[F]) -> E {
        self.0
            .iter()
            .map(|piece| match piece {
                Piece::Block { offset, point, factor } => {
                    let split = point.len() / 2;
                    let (hi, lo) = (eq_table(&point[..split]), eq_table(&point[split..]));
                    let sum: E = cells[*offset..offset + (1 << point.len())]
                        .par_chunks(lo.len())
                        .zip(&hi)
                        .map(|(cells, &hi)| hi * lo.iter().zip(cells).map(|(&e, &x)| e * x).sum::<E>())
                        .sum();
                    *factor * sum
                }
                Piece::Outer { offset, rows, columns } => {
                    let of_row = |cells: &[F]| columns.iter().zip(cells).map(|(&w, &x)| w * x).sum::<E>();
                    let rows = cells[*offset..].par_chunks(columns.len()).zip(rows);
                    rows.map(|(cells, &row)| row * of_row(cells)).sum()
                }
                Piece::Dense { offset, weights } => {
                    weights.iter().zip(&cells[*offset..]).map(|(&w, &x)| w * x).sum()
                }
            })
            .sum()
    }

    /// Both functionals, this one times a factor.
    pub fn plus(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }
}

#[cfg(test)]
mod tests {
    use p3_field::PrimeCharacteristicRing;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;
    use crate::commitment::uniform;
    use crate::field::extension;

    #[test]
    fn weights_extension_and_value_are_of_one_functional() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut random =
            |n: usize| (0..n).map(|_| extension(uniform(&mut rng), uniform(&mut rng))).collect::<Vec<E>>();
        let bits = 9;
        let pieces = vec![
            Piece::Block { offset: 64, point: random(5), factor: random(1)[0] },
            Piece::Block { offset: 0, point: random(0), factor: random(1)[0] },
            Piece::Block { offset: 0, point: random(9), factor: random(1)[0] },
            Piece::Outer { offset: 64, rows: random(4), columns: random(8) },
            Piece::Dense { offset: 30, weights: random(100) },
            Piece::Dense { offset: 511, weights: random(1) },
            Piece::Dense { offset: 0, weights: random(512) },
        ];
        let cells: Vec<F> = (0..512u64).map(|i| F::from_u64(i * i + 5)).collect();
        let r = random(bits);
        for piece in pieces {
            let functional = Functional(vec![piece]);
            let mut weights = vec![E::ZERO; 512];
            functional.add_to(&mut weights, E::TWO);
            let table = eq_table(&r);
            let at: E = weights.iter().zip(&table).map(|(&w, &e)| w * e).sum();
            assert_eq!(functional.at(&r).double(), at);
            let value: E = weights.iter().zip(&cells).map(|(&w, &x)| w * x).sum();
            assert_eq!(functional.of(&cells).double(), value);
        }
    }
}
