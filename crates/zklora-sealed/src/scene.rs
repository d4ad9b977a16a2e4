//! What relations share while they are talked about: the conversation, the cells, and the claims about them.

use p3_field::PrimeCharacteristicRing;
use rayon::prelude::*;

use crate::claims::Functional;
use crate::conversation::{Conversation, Message, Value};
use crate::field::{E, F, Secret, eq_table, signed, wipe};
use crate::layout::{LIMB_BITS, Layout, Tensor};
use crate::sumcheck::{self, Inner};
use crate::witness::Witness;

/// What was said of something: a message, and a public number to be added to it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Said {
    pub(crate) message: Message,
    pub(crate) offset: E,
}

impl From<Message> for Said {
    fn from(message: Message) -> Self {
        Self { message, offset: E::ZERO }
    }
}

/// `constant + Σ factor·value + Σ factor·said·said`.
#[derive(Debug, Default)]
pub(crate) struct Sum {
    constant: E,
    values: Vec<(E, Value)>,
    messages: Vec<(E, Message)>,
    products: Vec<(E, Message, Message)>,
}

impl Sum {
    pub(crate) fn of(constant: E) -> Self {
        Self { constant, ..Self::default() }
    }

    pub(crate) fn constant(mut self, constant: E) -> Self {
        self.constant += constant;
        self
    }

    /// All of it, times a factor.
    pub(crate) fn times(mut self, factor: E) -> Self {
        self.constant *= factor;
        self.values.iter_mut().for_each(|(own, _)| *own *= factor);
        self.messages.iter_mut().for_each(|(own, _)| *own *= factor);
        self.products.iter_mut().for_each(|(own, _, _)| *own *= factor);
        self
    }

    pub(crate) fn value(mut self, factor: E, value: Value) -> Self {
        self.values.push((factor, value));
        self
    }

    pub(crate) fn said(mut self, factor: E, said: impl Into<Said>) -> Self {
        let said = said.into();
        self.constant += factor * said.offset;
        self.messages.push((factor, said.message));
        self
    }

    pub(crate) fn product(mut self, factor: E, x: impl Into<Said>, y: impl Into<Said>) -> Self {
        let (x, y) = (x.into(), y.into());
        self.constant += factor * x.offset * y.offset;
        self.messages.push((factor * y.offset, x.message));
        self.messages.push((factor * x.offset, y.message));
        self.products.push((factor, x.message, y.message));
        self
    }
}

/// A conversation about the cells of a layout.
pub(crate) struct Scene<'a> {
    pub(crate) run: Conversation<'a>,
    pub(crate) layout: &'a Layout,
    /// The prover's.
    pub(crate) cells: Option<&'a [F]>,
    /// The prover's integers that no cell has, by number.
    pub(crate) hidden: &'a [Vec<i64>],
    claims: Vec<(Functional, Message)>,
}

impl<'a> Scene<'a> {
    pub(crate) fn new(run: Conversation<'a>, layout: &'a Layout, witness: Option<&'a Witness>) -> Self {
        let hidden = witness.map_or(&[][..], |witness| &witness.hidden);
        Self { run, layout, cells: witness.map(|witness| &witness.cells[..]), hidden, claims: Vec::new() }
    }

    /// Says what a functional of the cells is. That it is so has still to be shown, with all other claims, by [`Scene::reduce`].
    pub(crate) fn claim(&mut self, functional: impl FnOnce() -> Functional) -> Message {
        let functional = self.run.public(Functional::default(), functional);
        let cells = self.cells;
        let message = self.run.message(|| functional.of(cells.unwrap_or(&[])));
        self.claims.push((functional, message));
        message
    }

    /// Says what a tensor's extension is at a point, times a factor.
    pub(crate) fn tensor(&mut self, tensor: &Tensor, row: &[E], column: &[E], factor: E) -> Said {
        self.tensors(std::slice::from_ref(tensor), row, column, factor)
    }

    /// Says what the extension of the sum of tensors of one size is at a point, times a factor.
    pub(crate) fn tensors(&mut self, tensors: &[Tensor], row: &[E], column: &[E], factor: E) -> Said {
        let layout = self.layout;
        let (functional, offset) = self.run.public((Functional::default(), E::ZERO), || {
            let each = tensors.iter().map(|tensor| layout.tensor(tensor, row, column, factor));
            each.fold((Functional::default(), E::ZERO), |(all, sum), (functional, offset)| {
                (all.plus(functional), sum + offset)
            })
        });
        Said { message: self.claim(|| functional), offset }
    }

    /// Says what the entries of the sum of tensors of one size add up to, each times the weights of its row and column.
    pub(crate) fn rows(&mut self, tensors: &[Tensor], weights: impl FnOnce() -> (Vec<E>, Vec<E>)) -> Said {
        let layout = self.layout;
        let (functional, offset) = self.run.public((Functional::default(), E::ZERO), || {
            let (rows, columns) = weights();
            let each = tensors.iter().map(|tensor| layout.outer(tensor, &rows, &columns));
            each.fold((Functional::default(), E::ZERO), |(all, sum), (functional, offset)| {
                (all.plus(functional), sum + offset)
            })
        });
        Said { message: self.claim(|| functional), offset }
    }

    /// Says what a tensor's entries add up to, each times the weights of its row and column.
    pub(crate) fn outer(&mut self, tensor: &Tensor, weights: impl FnOnce() -> (Vec<E>, Vec<E>)) -> Said {
        self.rows(std::slice::from_ref(tensor), weights)
    }

    /// The sum as a value.
    pub(crate) fn affine(&mut self, sum: Sum) -> Value {
        debug_assert!(sum.products.is_empty());
        let terms = self.terms(&sum);
        self.run.affine(sum.constant, &terms)
    }

    /// The sum has to be zero.
    pub(crate) fn check(&mut self, sum: Sum) {
        let terms = self.terms(&sum);
        self.run.check(sum.constant, &terms, &sum.products);
    }

    fn terms(&self, sum: &Sum) -> Vec<(E, Value)> {
        let messages = sum.messages.iter().map(|&(factor, message)| (factor, self.run.value(message)));
        sum.values.iter().copied().chain(messages).collect()
    }

    /// A tensor of one column. To the prover; secret.
    pub(crate) fn column(&self, tensor: &Tensor) -> Secret<E> {
        let mut entries: Secret<F> = F::zero_vec(tensor.rows).into();
        self.add_entries(tensor, &mut entries);
        entries.iter().map(|&entry| E::from(entry)).collect::<Vec<_>>().into()
    }

    /// Adds a tensor's entries, row-major. To the prover; secret.
    pub(crate) fn add_entries(&self, tensor: &Tensor, entries: &mut [F]) {
        let Some(cells) = self.cells else { return };
        let offset = signed(tensor.offset);
        entries.iter_mut().for_each(|entry| *entry -= offset);
        for (factor, &(id, _)) in tensor.factors().zip(&tensor.limbs) {
            for block in &self.layout.array(id).blocks {
                let width = 1 << block.column_bits;
                for (row, cells) in cells[block.range()].chunks(width).enumerate() {
                    let start = (block.row + row) * tensor.columns + block.column;
                    for (entry, &cell) in entries[start..].iter_mut().zip(cells) {
                        *entry += factor * cell;
                    }
                }
            }
        }
        for (row, column, value) in self.hot(tensor) {
            entries[row * tensor.columns + column] += value;
        }
    }

    /// What is added to the entries of hot columns: row, column and value.
    fn hot(&self, tensor: &Tensor) -> Vec<(usize, usize, F)> {
        let (Some(cells), Some(hot)) = (self.cells, &tensor.hot) else { return Vec::new() };
        let (offset, shift) = (signed(crate::layout::Hot::OFFSET), F::from_u64(1 << LIMB_BITS));
        let blocks = self.layout.array(hot.high).blocks.iter();
        let of_block = |block: &crate::layout::Block| {
            let (width, from) = (1 << block.column_bits, (block.row, block.column));
            let rows = cells[block.range()].chunks(width).enumerate();
            let entries = rows.flat_map(move |(row, cells)| {
                cells.iter().enumerate().map(move |(column, &cell)| (from.0 + row, from.1 + column, cell))
            });
            entries.map(|(row, at, cell)| (row, hot.columns[at], shift * cell - offset)).collect::<Vec<_>>()
        };
        blocks.flat_map(of_block).collect()
    }

    /// What a tensor's rows are together, each times what the table says. To the prover; secret.
    pub(crate) fn fold_rows(&self, tensor: &Tensor, weights: &[E]) -> Vec<E> {
        let mut sums = vec![E::ZERO; tensor.columns];
        let Some(cells) = self.cells else { return sums };
        for (factor, &(id, _)) in tensor.factors().zip(&tensor.limbs) {
            for block in &self.layout.array(id).blocks {
                let width = 1 << block.column_bits;
                let cells = &cells[block.range()];
                sums[block.column..block.column + width]
                    .par_iter_mut()
                    .with_min_len(16)
                    .enumerate()
                    .for_each(|(column, sum)| {
                        let entries = cells[column..].iter().step_by(width);
                        let added: E = entries.zip(&weights[block.row..]).map(|(&x, &w)| w * x).sum();
                        *sum += added * factor;
                    });
            }
        }
        let all: E = weights[..tensor.rows].iter().copied().sum::<E>() * signed(tensor.offset);
        sums.iter_mut().for_each(|sum| *sum -= all);
        for (row, column, value) in self.hot(tensor) {
            sums[column] += weights[row] * value;
        }
        sums
    }

    /// Brings all claims to one point: the point, and what the cells' extension there is, times the number that is returned with it.
    ///
    /// With a challenge γ, `Σ_j γ^j·claim_j = Σ_x cell(x)·W(x)` for the weights `W = Σ_j γ^j·weights_j`, and a sumcheck of degree 2 ends in both extensions at one
    /// point; the verifier computes that of W.
    pub(crate) fn reduce(&mut self) -> (Vec<E>, Value, E) {
        let gamma = self.run.challenge("claims");
        let claims = std::mem::take(&mut self.claims);
        let powers: Vec<E> = gamma.powers().take(claims.len()).collect();
        let terms = powers.iter().zip(&claims);
        let total = terms.fold(Sum::default(), |sum, (&power, &(_, message))| sum.said(power, message));
        let total = self.affine(total);
        let bits = self.layout.sizes.point_bits();
        let mut prover = self.cells.map(|cells| {
            let mut weights = E::zero_vec(cells.len());
            for (power, (functional, _)) in powers.iter().zip(&claims) {
                functional.add_to(&mut weights, *power);
            }
            Inner::new(cells, weights, bits)
        });
        let (end, point) =
            sumcheck::sum(&mut self.run, total, bits, 2, prover.as_mut().map(|prover| prover as _));
        let weight = self.run.public(E::ZERO, || {
            powers.iter().zip(&claims).map(|(&power, (functional, _))| power * functional.at(&point)).sum()
        });
        (point, end, weight)
    }
}

/// `Σ_i eq(point, i)·values[i]`.
pub(crate) fn extend(values: &[E], point: &[E]) -> E {
    let mut table = eq_table(point);
    let sum = values.iter().zip(&table).map(|(&x, &e)| x * e).sum();
    wipe(&mut table);
    sum
}
