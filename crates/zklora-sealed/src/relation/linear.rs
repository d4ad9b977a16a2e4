//! A linear layer, with or without LoRA, whose outputs are rounded.
//!
//! For inputs X, public W' and b', and of an adapter's module A and B:
//!
//! ```text
//! (A)  2^k·U + R_U = M·(X_l·A) + 2^(k-1)            X_l = g'·X + β', or X
//! (B)  2^s·Z + R   = X·W' + b' + U·B + 2^(s-1)
//! ```
//!
//! Both are matrices of integers below 2^62, so that they are shown at a random point each: (A) at (z_t, z_k), (B) at (z_t, z_j). The prover says what U·B is
//! there, and for a challenge μ one sumcheck over the inputs i shows `X·W' + μ·M·(g'·X + β')·A`, a second over the rank `U·B`. They end in values of
//! X, U, A and B, which are claims about cells, and of W', g' and β', which the verifier computes.

use std::ops::Range;
use std::sync::Arc;

use p3_field::PrimeCharacteristicRing;

use super::{BoundError, Cut, RelationError, bounded};
use crate::adapter::Adapter;
use crate::conversation::Value;
use crate::field::{E, Secret, below, bits_of, eq_table, signed};
use crate::layout::Tensor;
use crate::matrix::Matrix;
use crate::scene::{Scene, Sum, extend};
use crate::sumcheck::{self, Products};

/// `Y = X·W' + b' + U·B`, and (A).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Form {
    /// X, `tokens x d_in`.
    pub input: Tensor,
    /// W', `d_in x d_out`.
    pub weights: Matrix,
    /// b', `d_out`.
    pub bias: Arc<[i64]>,
    /// The adapter's part.
    pub lora: Option<Lora>,
}

/// A linear layer whose outputs are rounded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Linear {
    /// What it is called in errors.
    pub name: String,
    /// What is rounded.
    pub form: Form,
    /// Z and R, `tokens x d_out`, and s.
    pub cut: Cut,
}

/// A module of the adapter on a linear layer, or a part of its outputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lora {
    /// Which module of the adapter.
    pub module: usize,
    /// The module's outputs that the layer has.
    pub outputs: Range<usize>,
    /// g' and β', `d_in` each; X is taken as it is without.
    pub gain: Option<Gain>,
    /// M.
    pub multiplier: i64,
    /// U and R_U, `tokens x rank`, and k.
    pub cut: Cut,
}

/// How LoRA's input comes from X.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gain {
    /// g', `d_in`.
    pub gain: Arc<[i64]>,
    /// β', `d_in`.
    pub bias: Arc<[i64]>,
}

impl Linear {
    /// Whether no side of its identities can wrap around, by the declared ranges alone.
    pub fn check(&self) -> Result<(), BoundError> {
        let sum = self.form.check(&self.name)?;
        bounded(&self.name, "X·W' + b' + U·B", sum.saturating_add(1 << (self.cut.bits - 1)))?;
        bounded(&self.name, "2^s·Z", self.cut.bound())
    }

    /// Everything that decides what is shown, for a digest.
    pub(crate) fn describe(&self, hash: &mut dyn FnMut(&[u8])) {
        hash(&self.cut.bits.to_le_bytes());
        self.form.describe(hash);
    }

    pub(crate) fn converse(&self, scene: &mut Scene<'_>, adapter: Option<&Adapter>) {
        let z_t = scene.run.challenges("token", bits_of(self.form.input.rows));
        let z_j = scene.run.challenges("output", bits_of(self.form.weights.columns()));
        let claim = self.cut.converse(scene, &z_t, &z_j);
        let claim = scene.affine(claim);
        self.form.converse(scene, adapter, claim, &z_t, &z_j);
    }

    /// What an honest prover fills in, from X and the module's A and B, all row-major.
    #[cfg(test)]
    pub(crate) fn values(&self, x: &[i64], module: Option<(&[i16], &[i16])>) -> LinearValues {
        let (sums, ranks) = self.form.values(x, module);
        self.rounded(sums, ranks)
    }

    /// The rounded values of a layer's outputs.
    pub fn rounded(&self, mut sums: Vec<i64>, ranks: RankValues) -> LinearValues {
        let (outputs, remainders) = sums.iter().map(|&sum| self.cut.of(sum)).unzip();
        crate::field::wipe(&mut sums);
        LinearValues { ranks, outputs, remainders }
    }
}

impl Form {
    /// Whether sizes fit, and LoRA is of a module of the adapter. Without this, LoRA would be left out where there is no adapter.
    pub(crate) fn fits(&self, name: &str, adapter: Option<&Adapter>) -> Result<(), RelationError> {
        let refuse = |what| Err(RelationError::Shape { name: name.into(), what });
        let (d_in, d_out) = (self.weights.rows(), self.weights.columns());
        if self.input.columns != d_in || self.bias.len() != d_out {
            return refuse("inputs, weights and bias have different sizes");
        }
        let Some(lora) = &self.lora else { return Ok(()) };
        let shapes = adapter.map_or_else(Vec::new, Adapter::shapes);
        let Some(shape) = shapes.get(lora.module) else { return refuse("the adapter has no such module") };
        let size = (self.input.rows, shape.rank());
        let gain = lora.gain.as_ref().is_none_or(|gain| [gain.gain.len(), gain.bias.len()] == [d_in; 2]);
        let cut = [&lora.cut.output, &lora.cut.remainder];
        if shape.d_in() != d_in
            || lora.outputs.len() != d_out
            || lora.outputs.end > shape.d_out()
            || cut.iter().any(|tensor| (tensor.rows, tensor.columns) != size)
            || !gain
        {
            return refuse("LoRA has another size than its module");
        }
        Ok(())
    }

    /// Whether no side of its identities can wrap around, by the declared ranges alone: the most that an output can be.
    pub fn check(&self, name: &str) -> Result<u128, BoundError> {
        let input = self.input.most_of_all();
        let mut sum = self.weights.norm() * input;
        sum += self.bias.iter().map(|b| u128::from(b.unsigned_abs())).max().unwrap_or(0);
        if let Some(lora) = &self.lora {
            let into: u128 = match &lora.gain {
                None => self.input.columns as u128 * input,
                Some(Gain { gain, bias }) => gain
                    .iter()
                    .zip(bias.iter())
                    .map(|(g, b)| u128::from(g.unsigned_abs()) * input + u128::from(b.unsigned_abs()))
                    .fold(0, u128::saturating_add),
            };
            let product = into.saturating_mul(2048 * u128::from(lora.multiplier.unsigned_abs()));
            bounded(name, "M·(X·A)", product.saturating_add(1 << (lora.cut.bits - 1)))?;
            bounded(name, "2^k·U", lora.cut.bound())?;
            sum = sum.saturating_add(lora.cut.output.columns as u128 * 2048 * lora.cut.output.most_of_all());
        }
        bounded(name, "X·W' + b' + U·B", sum)?;
        Ok(sum)
    }

    /// Everything that decides what is shown, for a digest.
    pub(crate) fn describe(&self, hash: &mut dyn FnMut(&[u8])) {
        let mut number = |x: i64| hash(&x.to_le_bytes());
        number(self.weights.rows() as i64);
        number(self.weights.columns() as i64);
        number(self.lora.is_some().into());
        self.weights.entries().iter().for_each(|&x| number(x.into()));
        self.bias.iter().for_each(|&x| number(x));
        if let Some(lora) = &self.lora {
            for x in [lora.module, lora.outputs.start, lora.outputs.end] {
                number(x as i64);
            }
            number(lora.multiplier);
            number(lora.cut.bits.into());
            number(lora.gain.is_some().into());
            if let Some(Gain { gain, bias }) = &lora.gain {
                gain.iter().chain(bias.iter()).for_each(|&x| number(x));
            }
        }
    }

    /// Shows that the outputs' extension at (z_t, z_j) is `claim`.
    pub(crate) fn converse(
        &self,
        scene: &mut Scene<'_>,
        adapter: Option<&Adapter>,
        claim: Value,
        z_t: &[E],
        z_j: &[E],
    ) {
        let layout = scene.layout;
        let (d_in, d_out) = (self.weights.rows(), self.weights.columns());
        let (eq_t, eq_j) = scene.run.public(Default::default(), || (eq_table(z_t), eq_table(z_j)));
        let of_tokens = below(z_t, self.input.rows);
        let bias: E = self.bias.iter().zip(&eq_j).map(|(&b, &e)| e * signed(b)).sum();
        let mut claim = scene.run.affine(-of_tokens * bias, &[(E::ONE, claim)]);

        let w = scene.run.public(Vec::new(), || self.weights.times(&eq_j[..d_out]));
        let mut tables = scene.cells.map(|_| vec![scene.fold_rows(&self.input, &eq_t), w.clone()]);
        let mut terms = vec![(E::ONE, vec![0, 1])];
        // With LoRA: μ·M, the point of (A)'s columns, and g' and β' as the sumcheck needs them.
        let mut inputs_of_lora = None;
        if let (Some(lora), Some(adapter)) = (&self.lora, adapter) {
            let rank = lora.converse(scene, adapter, (z_t, &eq_t, &eq_j));
            let terms_of_claim = [(E::ONE, claim), (-E::ONE, rank.of_b), (rank.mix, rank.of_a)];
            claim = scene.run.affine(E::ZERO, &terms_of_claim);
            let factor = rank.mix * signed(lora.multiplier);
            let (gain, offset) = scene.run.public(Default::default(), || lora.gains(d_in, of_tokens));
            if let (Some(tables), Some(cells)) = (&mut tables, scene.cells) {
                let v = eq_table(&rank.z_k);
                tables.push(adapter.a_times(layout, cells, lora.module, &v));
                tables.extend([gain.clone(), offset.clone()]);
            }
            terms.extend([(factor, vec![0, 2, 3]), (factor, vec![2, 4])]);
            inputs_of_lora = Some((lora, adapter, factor, rank.z_k, gain, offset));
        }

        let variables = bits_of(d_in);
        let mut prover = tables.map(|mut tables| {
            tables.iter_mut().for_each(|table| table.resize(1 << variables, E::ZERO));
            Products::new(tables, terms)
        });
        let degree = if inputs_of_lora.is_some() { 3 } else { 2 };
        let (end, r_i) =
            sumcheck::sum(&mut scene.run, claim, variables, degree, prover.as_mut().map(|p| p as _));
        let x = scene.tensor(&self.input, z_t, &r_i, E::ONE);
        let w = scene.run.public(E::ZERO, || extend(&w, &r_i));
        let mut sum = Sum::default().said(w, x).value(-E::ONE, end);
        if let Some((lora, adapter, factor, z_k, gain, offset)) = inputs_of_lora {
            let (u, v) = scene.run.public(Default::default(), || (eq_table(&r_i), eq_table(&z_k)));
            let a = scene.claim(|| adapter.a(layout, lora.module, &u, &v));
            let (gain, offset) =
                scene.run.public((E::ZERO, E::ZERO), || (extend(&gain, &r_i), extend(&offset, &r_i)));
            sum = sum.product(factor * gain, x, a).said(factor * offset, a);
        }
        scene.check(sum);
    }

    /// The outputs of an honest prover, from X and the module's A and B, and what its LoRA has at its rank. All row-major.
    #[cfg(test)]
    pub(crate) fn values(&self, x: &[i64], module: Option<(&[i16], &[i16])>) -> (Vec<i64>, RankValues) {
        let (d_in, d_out) = (self.weights.rows(), self.weights.columns());
        let mut sums: Vec<i64> = x
            .chunks_exact(d_in)
            .flat_map(|x| {
                let mut row = self.bias.to_vec();
                for (&x, weights) in x.iter().zip(self.weights.entries().chunks_exact(d_out)) {
                    row.iter_mut().zip(weights).for_each(|(sum, &w)| *sum += x * i64::from(w));
                }
                row
            })
            .collect();
        let ranks = self.add_lora(&mut sums, x, module);
        (sums, ranks)
    }

    /// Adds U·B to the outputs of rows X, and gives what LoRA has at its rank.
    pub fn add_lora(&self, sums: &mut [i64], x: &[i64], module: Option<(&[i16], &[i16])>) -> RankValues {
        let (d_in, d_out) = (self.weights.rows(), self.weights.columns());
        let mut ranks = RankValues::default();
        if let (Some(lora), Some((a, b))) = (&self.lora, module) {
            let rank = lora.cut.output.columns;
            let columns = b.len() / rank;
            for (t, x) in x.chunks_exact(d_in).enumerate() {
                let mut products: Secret<i64> = vec![0; rank].into();
                for (i, &x) in x.iter().enumerate() {
                    let x = lora.gain.as_ref().map_or(x, |g| g.gain[i] * x + g.bias[i]);
                    for (product, &a) in products.iter_mut().zip(&a[i * rank..][..rank]) {
                        *product += x * i64::from(a);
                    }
                }
                for (k, &product) in products.iter().enumerate() {
                    let (u, r) = lora.cut.of(lora.multiplier * product);
                    ranks.outputs.push(u);
                    ranks.remainders.push(r);
                    let b = &b[k * columns..][lora.outputs.clone()];
                    for (sum, &b) in sums[t * d_out..].iter_mut().zip(b) {
                        *sum += u * i64::from(b);
                    }
                }
            }
        }
        ranks
    }
}

/// What is left of LoRA after the talk about its rank.
struct Rank {
    /// `U·B` at (z_t, z_j): shown.
    of_b: Value,
    /// (A)'s left side at (z_t, z_k), less what is public: M times what A makes of the inputs, to be shown.
    of_a: Value,
    z_k: Vec<E>,
    /// μ.
    mix: E,
}

impl Lora {
    fn converse(
        &self,
        scene: &mut Scene<'_>,
        adapter: &Adapter,
        (z_t, eq_t, eq_j): (&[E], &[E], &[E]),
    ) -> Rank {
        let layout = scene.layout;
        let rank = self.cut.output.columns;
        let z_k = scene.run.challenges("rank", bits_of(rank));
        let of_a = self.cut.converse(scene, z_t, &z_k);
        let of_a = scene.affine(of_a);

        let outputs = eq_j.get(..self.outputs.len()).unwrap_or_default();
        let mut prover = scene.cells.map(|cells| {
            let mut u = scene.fold_rows(&self.cut.output, eq_t);
            let mut b = adapter.b_times(layout, cells, self.module, self.outputs.start, outputs);
            u.resize(1 << bits_of(rank), E::ZERO);
            b.resize(1 << bits_of(rank), E::ZERO);
            Products::new(vec![u, b], vec![(E::ONE, vec![0, 1])])
        });
        let total = prover.as_ref().map_or(E::ZERO, Products::total);
        let of_b = scene.run.message(|| total);
        let of_b = scene.run.value(of_b);
        let (end, rho) =
            sumcheck::sum(&mut scene.run, of_b, bits_of(rank), 2, prover.as_mut().map(|p| p as _));
        let u = scene.tensor(&self.cut.output, z_t, &rho, E::ONE);
        let b = scene.claim(|| adapter.b(layout, self.module, self.outputs.start, &eq_table(&rho), outputs));
        scene.check(Sum::default().value(-E::ONE, end).product(E::ONE, u, b));
        let mix = scene.run.challenge("mix");
        Rank { of_b, of_a, z_k, mix }
    }

    /// g' and β', the latter times the extension of the tokens, over all inputs.
    fn gains(&self, d_in: usize, of_tokens: E) -> (Vec<E>, Vec<E>) {
        match &self.gain {
            None => (vec![E::ONE; d_in], vec![E::ZERO; d_in]),
            Some(Gain { gain, bias }) => (
                gain.iter().map(|&g| E::from(signed(g))).collect(),
                bias.iter().map(|&b| of_tokens * signed(b)).collect(),
            ),
        }
    }
}

/// What LoRA has at its rank, `tokens x rank`. Secret.
#[derive(Default)]
pub struct RankValues {
    /// U.
    pub outputs: Vec<i64>,
    /// R_U.
    pub remainders: Vec<i64>,
}

/// The values of a layer. Secret where there is an adapter.
pub struct LinearValues {
    /// U and R_U.
    pub ranks: RankValues,
    /// Z.
    pub outputs: Vec<i64>,
    /// R.
    pub remainders: Vec<i64>,
}

impl Drop for RankValues {
    fn drop(&mut self) {
        crate::field::wipe(&mut self.outputs);
        crate::field::wipe(&mut self.remainders);
    }
}

impl Drop for LinearValues {
    fn drop(&mut self) {
        crate::field::wipe(&mut self.outputs);
        crate::field::wipe(&mut self.remainders);
    }
}
