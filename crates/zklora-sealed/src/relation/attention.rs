//! Attention over the cells (t, u) that may see each other: u ≤ t in one text.
//!
//! Queries, keys and values are never committed: they are linear in what is. For a head h, a cell (t, u) and a channel c of a head,
//!
//! ```text
//! (1)  C[t, h]·2^g - Σ_c q[t, h, c]·k[u, h, c] = 2^g·D_hi + D_lo,   e = T[D_hi]
//! (2)  rows of e as `softmax` says
//! (3)  2^s·O[t, h, c] + R = Σ_{u ≤ t} e[h, t, u]·v[u, h, c] + 2^(s-1)
//! ```
//!
//! Cells that are not in the list do not exist, so that nothing has to be masked. At a random point, (1) is a sum over t, u and the channels of
//! `eq·q·k` with a public matrix of the weights of cells: two sumchecks, which end in one value of q and one of k; (3) is one, which ends in values of e and v. What q, k and v are there is
//! shown as for any linear layer.

use std::sync::Arc;

use p3_field::PrimeCharacteristicRing;
use rayon::prelude::*;

use super::linear::Form;
use super::softmax::{Exponentials, SHIFT_BITS, Scores, Softmax};
use super::{Cut, RelationError, bounded, power};
use crate::adapter::Adapter;
use crate::field::{E, F, Secret, bits_of, eq, eq_table, signed};
use crate::layout::{Layout, Tensor};
use crate::scene::{Scene, Sum, extend};
use crate::sumcheck::{self, Products};
use crate::tensors::Tensors;
use crate::witness::{OutOfRange, Witness};

/// What attention is made of.
pub struct Inputs {
    /// Queries, keys and values: `tokens x (heads · channels)` each.
    pub forms: [Form; 3],
    /// Heads.
    pub heads: usize,
    /// Which (t, u) see each other.
    pub cells: Arc<[(u32, u32)]>,
    /// Fraction bits of a score below a tick, g.
    pub low_bits: u32,
    /// Bits that outputs are rounded by, s.
    pub cut_bits: u32,
    /// The exponentials.
    pub table: Exponentials,
    /// The most that a score and a value can be, which rests on the length of normalised rows: the caller has shown it.
    pub bounds: [u128; 2],
}

/// See the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attention {
    forms: [Form; 3],
    heads: usize,
    cells: Arc<[(u32, u32)]>,
    low_bits: u32,
    index: Tensor,
    low: Tensor,
    entry: Tensor,
    softmax: Softmax,
    /// O and R.
    pub cut: Cut,
    /// The number of the queries among the hidden integers; keys and values follow.
    hidden: usize,
}

impl Attention {
    pub(crate) fn new(
        builder: &mut Tensors,
        name: &str,
        inputs: Inputs,
        hidden: usize,
    ) -> Result<Self, RelationError> {
        let Inputs { forms, heads, cells, low_bits, cut_bits, table, bounds: [score, value] } = inputs;
        let size = |form: &Form| (form.input.rows, form.weights.columns());
        for form in &forms {
            form.check(name)?;
            form.fits(name, builder.adapter_of())?;
        }
        let (tokens, d) = size(&forms[0]);
        let inside = |&(t, u): &(u32, u32)| u <= t && (t as usize) < tokens;
        let ascending = cells.windows(2).all(|pair| pair[0] < pair[1]);
        if forms.iter().any(|form| size(form) != (tokens, d))
            || heads == 0
            || d % heads != 0
            || cells.is_empty()
            || !ascending
            || !cells.iter().all(inside)
        {
            let what = "queries, keys, values, heads and cells do not fit together";
            return Err(RelationError::Shape { name: name.into(), what });
        }
        bounded(name, "a score's distance", score.saturating_add(1 << (SHIFT_BITS - 1 + low_bits)))?;
        let [index, entry] =
            builder.looked_up(heads, cells.len(), table.table, [(16, 0), (table.entry_bits(), 0)]);
        let low = builder.unsigned(heads, cells.len(), low_bits);
        // A row's entries are at most its budget and rise together.
        let sum = (u128::from(table.budget.unsigned_abs() + 1) << table.step_bits) + (1 << table.step_bits);
        bounded(name, "a sum of values", sum.saturating_mul(value).saturating_add(1 << (cut_bits - 1)))?;
        let softmax = Softmax::new(builder.layout(), tokens, heads, table);
        softmax.check(name, tokens)?;
        let cut = builder.cut(tokens, d, 16, cut_bits);
        bounded(name, "2^s·O", cut.bound())?;
        Ok(Self { forms, heads, cells, low_bits, index, low, entry, softmax, cut, hidden })
    }

    pub(crate) fn describe(&self, hash: &mut dyn FnMut(&[u8])) {
        self.forms.iter().for_each(|form| form.describe(hash));
        self.softmax.describe(hash);
        for number in [self.heads as u32, self.low_bits, self.cut.bits] {
            hash(&number.to_le_bytes());
        }
        hash(&(self.cells.len() as u64).to_le_bytes());
        for (t, u) in self.cells.iter() {
            hash(&t.to_le_bytes());
            hash(&u.to_le_bytes());
        }
    }

    pub(crate) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let own = [&self.index, &self.low, &self.entry, &self.cut.output, &self.cut.remainder];
        let forms = self.forms.iter().flat_map(|form| {
            let lora = form.lora.iter().flat_map(|lora| [&lora.cut.output, &lora.cut.remainder]);
            lora.chain([&form.input])
        });
        own.into_iter().chain(self.softmax.tensors()).chain(forms)
    }

    fn tokens(&self) -> usize {
        self.forms[0].input.rows
    }

    /// Outputs of all heads.
    fn d(&self) -> usize {
        self.forms[0].weights.columns()
    }

    fn channels(&self) -> usize {
        self.d() / self.heads
    }

    pub(crate) fn converse(&self, scene: &mut Scene<'_>, adapter: Option<&Adapter>) {
        self.converse_about_scores(scene, adapter);
        self.converse_about_rows(scene);
        self.converse_about_outputs(scene, adapter);
    }

    /// (1).
    fn converse_about_scores(&self, scene: &mut Scene<'_>, adapter: Option<&Adapter>) {
        let (tokens, d) = (self.tokens(), self.d());
        let (token_bits, bits) = (bits_of(tokens), bits_of(d));
        let z_h = scene.run.challenges("head", bits_of(self.heads));
        let z_c = scene.run.challenges("cell", bits_of(self.cells.len()));
        let (eq_h, eq_c) = scene.run.public(Default::default(), || (eq_table(&z_h), eq_table(&z_c)));
        let tick: E = power(self.low_bits).into();
        let index = scene.tensor(&self.index, &z_h, &z_c, E::ONE);
        let low = scene.tensor(&self.low, &z_h, &z_c, E::ONE);
        let shift = scene.outer(&self.softmax.shift, || {
            let mut rows = E::zero_vec(tokens);
            self.cells.iter().zip(&eq_c).for_each(|(&(t, _), &e)| rows[t as usize] += e);
            (rows, eq_h.clone())
        });
        let scores = Sum::default().said(tick, shift).said(-tick, index).said(-E::ONE, low);
        let scores = scene.affine(scores);

        // Σ_{t, j} eq_h(j)·q(t, j)·Σ_u m(t, u)·k(u, j), with m the weights of the cells.
        let of_heads = scene.run.public(Vec::new(), || self.spread(&eq_h));
        let mut prover = scene.cells.map(|_| {
            let [q, k] = [0, 1].map(|which| &scene.hidden[self.hidden + which]);
            let width = 1 << bits;
            let mut tables = vec![E::zero_vec(width << token_bits); 3];
            tables[0].par_chunks_mut(width).zip(q.par_chunks(d)).for_each(|(target, q)| {
                target.iter_mut().zip(q).for_each(|(target, &q)| *target = signed(q).into());
            });
            let mut rows: Vec<Vec<(usize, E)>> = vec![Vec::new(); tokens];
            for (&(t, u), &e) in self.cells.iter().zip(&eq_c) {
                rows[t as usize].push((u as usize, e));
            }
            tables[1].par_chunks_mut(width).zip(&rows).for_each(|(target, cells)| {
                for &(u, e) in cells {
                    let k = &k[u * d..(u + 1) * d];
                    target.iter_mut().zip(k).for_each(|(target, &k)| *target += e * signed(k));
                }
            });
            tables[2].chunks_mut(width).for_each(|row| row[..d].copy_from_slice(&of_heads));
            Products::new(tables, vec![(E::ONE, vec![0, 1, 2])])
        });
        let (end, point) = sumcheck::sum(
            &mut scene.run,
            scores,
            token_bits + bits,
            3,
            prover.as_mut().map(|prover| prover as _),
        );
        let (s_t, s_j) = point.split_at(token_bits);
        let ends = prover.map_or_else(|| vec![E::ZERO; 3], |prover| prover.ends());
        let q = scene.run.message(|| ends[0]);
        let keys = scene.run.message(|| ends[1]);
        let head = scene.run.public(E::ZERO, || extend(&of_heads, s_j));
        scene.check(Sum::default().value(-E::ONE, end).product(head, q, keys));
        let q = scene.run.value(q);
        self.forms[0].converse(scene, adapter, q, s_t, s_j);

        // Σ_u m~(s_t, u)·k(u, s_j).
        let weights = scene.run.public(Vec::new(), || {
            let eq_t = eq_table(s_t);
            let mut weights = E::zero_vec(tokens);
            for (&(t, u), &e) in self.cells.iter().zip(&eq_c) {
                weights[u as usize] += e * eq_t[t as usize];
            }
            weights
        });
        let mut prover = scene.cells.map(|_| {
            let eq_j = eq_table(s_j);
            let k = &scene.hidden[self.hidden + 1];
            let of_row = |k: &[i64]| k.iter().zip(&eq_j).map(|(&k, &e)| e * signed(k)).sum::<E>();
            let mut tables = vec![weights.clone(), k.par_chunks(d).map(of_row).collect()];
            tables.iter_mut().for_each(|table| table.resize(1 << token_bits, E::ZERO));
            Products::new(tables, vec![(E::ONE, vec![0, 1])])
        });
        let keys = scene.run.value(keys);
        let (end, s_u) =
            sumcheck::sum(&mut scene.run, keys, token_bits, 2, prover.as_mut().map(|prover| prover as _));
        let k = prover.map_or(E::ZERO, |prover| prover.ends()[1]);
        let k = scene.run.message(|| k);
        let weight = scene.run.public(E::ZERO, || extend(&weights, &s_u));
        scene.check(Sum::default().value(-E::ONE, end).said(weight, k));
        let k = scene.run.value(k);
        self.forms[1].converse(scene, adapter, k, &s_u, s_j);
    }

    /// (2).
    fn converse_about_rows(&self, scene: &mut Scene<'_>) {
        let z_t = scene.run.challenges("row of scores", bits_of(self.tokens()));
        let z_h = scene.run.challenges("head of the row", bits_of(self.heads));
        let sums = scene.outer(&self.entry, || {
            let eq_t = eq_table(&z_t);
            (eq_table(&z_h), self.cells.iter().map(|&(t, _)| eq_t[t as usize]).collect())
        });
        self.softmax.converse(scene, sums, &z_t, &z_h);
    }

    /// (3).
    fn converse_about_outputs(&self, scene: &mut Scene<'_>, adapter: Option<&Adapter>) {
        let (tokens, d) = (self.tokens(), self.d());
        let (token_bits, bits) = (bits_of(tokens), bits_of(d));
        let z_t = scene.run.challenges("attended token", token_bits);
        let z_j = scene.run.challenges("attended channel", bits);
        let claim = self.cut.converse(scene, &z_t, &z_j);
        let claim = scene.affine(claim);
        let eq_t = scene.run.public(Vec::new(), || eq_table(&z_t));
        // Σ_{u, j} eq(z_j, j)·g(h(j), u)·v(u, j), with g(h, u) = Σ_t eq(z_t, t)·e[h, t, u].
        let mut prover = scene.cells.map(|_| {
            let v = &scene.hidden[self.hidden + 2];
            let mut entries: Secret<F> = F::zero_vec(self.heads * self.cells.len()).into();
            scene.add_entries(&self.entry, &mut entries);
            let mut g: Secret<E> = E::zero_vec(tokens * self.heads).into();
            for (head, entries) in entries.chunks(self.cells.len()).enumerate() {
                for (&(t, u), &e) in self.cells.iter().zip(entries) {
                    g[u as usize * self.heads + head] += eq_t[t as usize] * e;
                }
            }
            let (width, eq_j) = (1 << bits, eq_table(&z_j));
            let mut tables = vec![E::zero_vec(width << token_bits); 3];
            for (target, v) in tables[0].chunks_mut(width).zip(v.chunks(d)) {
                target.iter_mut().zip(v).for_each(|(target, &v)| *target = signed(v).into());
            }
            for (target, g) in tables[1].chunks_mut(width).zip(g.chunks(self.heads)) {
                target[..d].copy_from_slice(&self.spread(g));
            }
            tables[2].chunks_mut(width).for_each(|row| row.copy_from_slice(&eq_j));
            Products::new(tables, vec![(E::ONE, vec![0, 1, 2])])
        });
        let (end, point) = sumcheck::sum(
            &mut scene.run,
            claim,
            token_bits + bits,
            3,
            prover.as_mut().map(|prover| prover as _),
        );
        let (s_u, s_j) = point.split_at(token_bits);
        let v = prover.map_or(E::ZERO, |prover| prover.ends()[0]);
        let v = scene.run.message(|| v);
        let g = scene.outer(&self.entry, || {
            let (eq_u, eq_j) = (eq_table(s_u), eq_table(s_j));
            let heads = eq_j[..d].chunks(self.channels()).map(|row| row.iter().copied().sum()).collect();
            (heads, self.cells.iter().map(|&(t, u)| eq_t[t as usize] * eq_u[u as usize]).collect())
        });
        scene.check(Sum::default().value(-E::ONE, end).product(eq(&z_j, s_j), g, v));
        let v = scene.run.value(v);
        self.forms[2].converse(scene, adapter, v, s_u, s_j);
    }

    /// A number for each head as one for each output.
    fn spread(&self, heads: &[E]) -> Vec<E> {
        heads[..self.heads].iter().flat_map(|&x| std::iter::repeat_n(x, self.channels())).collect()
    }

    /// Fills in the cells and the hidden integers: from queries, keys and values, `tokens x d` each, shifts, `tokens x heads`, and distances `C·2^g - score`, by head and then by
    /// cell. Returns O.
    pub fn fill(
        &self,
        witness: &mut Witness,
        layout: &Layout,
        qkv: [Vec<i64>; 3],
        shifts: &[i64],
        distances: &[i64],
    ) -> Result<Vec<i64>, OutOfRange> {
        let (tokens, d) = (self.tokens(), self.d());
        let scores = Scores::of(distances, self.low_bits, &self.softmax.table)?;
        let mut sums = vec![0i64; tokens * self.heads];
        let mut products = vec![0i64; tokens * d];
        for (head, entries) in scores.entries.chunks(self.cells.len()).enumerate() {
            let channels = head * self.channels()..(head + 1) * self.channels();
            for (&(t, u), &e) in self.cells.iter().zip(entries) {
                let (t, u) = (t as usize, u as usize);
                sums[t * self.heads + head] += e;
                let v = &qkv[2][u * d..][channels.clone()];
                let row = &mut products[t * d..][channels.clone()];
                row.iter_mut().zip(v).for_each(|(sum, v)| *sum += e * v);
            }
        }
        witness.set(layout, &self.index, &scores.index)?;
        witness.set(layout, &self.low, &scores.low)?;
        witness.set(layout, &self.entry, &scores.entries)?;
        self.softmax.fill(witness, layout, shifts, &sums)?;
        let (outputs, mut remainders): (Vec<i64>, Vec<i64>) =
            products.iter().map(|&sum| self.cut.of(sum)).unzip();
        self.cut.fill(witness, layout, &outputs, &remainders)?;
        for (slot, values) in witness.hidden[self.hidden..].iter_mut().zip(qkv) {
            *slot = values;
        }
        for values in [&mut sums, &mut products, &mut remainders] {
            crate::field::wipe(values);
        }
        Ok(outputs)
    }
}
