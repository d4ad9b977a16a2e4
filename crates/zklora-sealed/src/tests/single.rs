//! One linear layer with LoRA, its inputs public and a sum of its outputs the result: the smallest statement that has everything.

use std::sync::Arc;

use p3_field::PrimeCharacteristicRing;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use zklora_circuit::commitment::{Opening, Salt};
use zklora_proto::{Commitment, ModuleShape};

use crate::field::{E, F, signed};
use crate::layout::Tensor;
use crate::matrix::Matrix;
use crate::proof::{ProveError, Prover, Statement, Verifier};
use crate::relation::linear::{Form, Gain, Linear, LinearValues, Lora};
use crate::relation::public::Weighed;
use crate::system::{Builder, System};
use crate::witness::Witness;

/// Sides of the layer.
#[derive(Clone, Copy)]
pub(crate) struct Sides {
    pub(crate) tokens: usize,
    pub(crate) d_in: usize,
    pub(crate) d_out: usize,
    pub(crate) rank: usize,
    /// Whether LoRA's input goes through a gain.
    pub(crate) gain: bool,
}

/// A layer, its adapter and inputs.
pub(crate) struct Single {
    pub(crate) system: System,
    pub(crate) linear: Linear,
    pub(crate) opening: Opening,
    pub(crate) x: Vec<i64>,
    pub(crate) input: Tensor,
    /// Of the result: the granularity's remainder.
    pub(crate) rest: Tensor,
    pub(crate) scored: Arc<[i64]>,
}

/// Bits that the result is rounded by.
pub(crate) const GRANULARITY: u32 = 6;

impl Single {
    pub(crate) fn new(sides: Sides, seed: u64) -> Self {
        let Sides { tokens, d_in, d_out, rank, gain } = sides;
        let mut rng = StdRng::seed_from_u64(seed);
        let mut list =
            |n: usize, most: i64| -> Vec<i64> { (0..n).map(|_| rng.random_range(-most..most)).collect() };
        let x = list(tokens * d_in, 1 << 11);
        let weights: Vec<i32> = list(d_in * d_out, 1 << 12).into_iter().map(|w| w as i32).collect();
        let bias = list(d_out, 1 << 20);
        let gains = Gain { gain: list(d_in, 1 << 10).into(), bias: list(d_in, 1 << 12).into() };
        let small = |list: Vec<i64>| list.into_iter().map(|w| w as i16).collect::<Vec<_>>();
        let (a, b) = (small(list(d_in * rank, 2048)), small(list(rank * d_out, 2048)));
        let scored: Arc<[i64]> = list(tokens * d_out, 2).into();
        let shape = ModuleShape::new(d_in, rank, d_out).unwrap();
        let opening = Opening::new(shape, a, b, Salt::random(&mut rng)).unwrap();

        let mut builder = Builder::default();
        builder.adapter(&[shape]);
        let input = builder.signed(tokens, d_in, 16);
        let lora = Lora {
            module: 0,
            outputs: 0..d_out,
            gain: gain.then_some(gains),
            multiplier: 1500,
            cut: builder.cut(tokens, rank, 24, if gain { 33 } else { 23 }),
        };
        let linear = Linear {
            name: "single".into(),
            form: Form {
                input,
                weights: Matrix::new(d_in, d_out, weights).unwrap(),
                bias: bias.into(),
                lora: Some(lora),
            },
            cut: builder.cut(tokens, d_out, 24, 16),
        };
        Self::finish(builder, linear, opening, x, scored)
    }

    /// The same with another layer, inputs or scores.
    fn of(same: &Self, linear: Option<Linear>, x: Option<Vec<i64>>, scored: Option<Vec<i64>>) -> Self {
        let opening = &same.opening;
        let linear = linear.unwrap_or_else(|| same.linear.clone());
        let (a, b) = (opening.a().to_vec(), opening.b().to_vec());
        let opening = Opening::new(opening.shape(), a, b, opening.salt().clone()).unwrap();
        let mut builder = Builder::default();
        builder.adapter(&[opening.shape()]);
        let form = &linear.form;
        // The same arrays in the same order.
        builder.signed(form.input.rows, form.input.columns, 16);
        let lora = form.lora.as_ref().unwrap();
        builder.cut(lora.cut.output.rows, lora.cut.output.columns, 24, lora.cut.bits);
        builder.cut(linear.cut.output.rows, linear.cut.output.columns, 24, 16);
        let x = x.unwrap_or_else(|| same.x.clone());
        let scored = scored.map_or_else(|| same.scored.clone(), Arc::from);
        Self::finish(builder, linear, opening, x, scored)
    }

    fn finish(
        mut builder: Builder,
        linear: Linear,
        opening: Opening,
        x: Vec<i64>,
        scored: Arc<[i64]>,
    ) -> Self {
        let d_out = linear.form.weights.columns();
        let input = linear.form.input.clone();
        builder.linear(linear.clone()).unwrap();
        builder.fixed(input.clone(), x.clone()).unwrap();
        let rest = builder.unsigned(1, 1, GRANULARITY);
        let entries = scored.iter().enumerate().map(|(i, &w)| (i / d_out, i % d_out, w)).collect();
        let terms = vec![
            Weighed { tensor: linear.cut.output.clone(), entries },
            Weighed { tensor: rest.clone(), entries: vec![(0, 0, -1)] },
        ];
        builder.total("result", terms).unwrap();
        Self { system: builder.build().unwrap(), linear, opening, x, input, rest, scored }
    }

    pub(crate) fn values(&self) -> LinearValues {
        self.linear.values(&self.x, Some((self.opening.a(), self.opening.b())))
    }

    /// `2^granularity·result = Σ scored·Z - rest`.
    pub(crate) fn result(&self, values: &LinearValues) -> (i64, i64) {
        let sum: i64 = values.outputs.iter().zip(self.scored.iter()).map(|(z, s)| z * s).sum();
        let rest = sum.rem_euclid(1 << GRANULARITY);
        (sum - rest, rest)
    }

    pub(crate) fn witness(&self, values: &LinearValues) -> (Witness, Vec<i64>) {
        let mut witness = self.system.witness(&[&self.opening]);
        let (result, rest) = self.result(values);
        let lora = self.linear.form.lora.as_ref().unwrap();
        witness.set(self.system.layout(), &self.input, &self.x).unwrap();
        lora.cut
            .fill(&mut witness, self.system.layout(), &values.ranks.outputs, &values.ranks.remainders)
            .unwrap();
        self.linear
            .cut
            .fill(&mut witness, self.system.layout(), &values.outputs, &values.remainders)
            .unwrap();
        witness.set(self.system.layout(), &self.rest, &[rest]).unwrap();
        (witness, vec![result])
    }

    pub(crate) fn weights_at(&self, beta: E) -> E {
        self.opening.hashed_weights().zip(beta.powers()).map(|(w, power)| power * signed(w.into())).sum()
    }
}

fn talk(single: &Single, witness: &mut Witness, results: &[i64]) -> (Option<usize>, bool) {
    super::talk(&single.system, &|beta| single.weights_at(beta), witness, results)
}

#[test]
fn the_conversation_of_an_honest_prover_holds() {
    for (index, sides) in [
        Sides { tokens: 5, d_in: 12, d_out: 20, rank: 2, gain: false },
        Sides { tokens: 8, d_in: 6, d_out: 9, rank: 3, gain: true },
        Sides { tokens: 1, d_in: 1, d_out: 1, rank: 1, gain: true },
        Sides { tokens: 33, d_in: 40, d_out: 50, rank: 8, gain: true },
    ]
    .into_iter()
    .enumerate()
    {
        let single = Single::new(sides, index as u64);
        let values = single.values();
        let (mut witness, results) = single.witness(&values);
        assert_eq!(talk(&single, &mut witness, &results), (None, true), "{index}");
        assert!(!talk(&single, &mut witness, &[results[0] + 1]).1);
        // Any cell that means something.
        for (id, _) in single.system.layout().arrays().take(7) {
            let cell = single.system.layout().cell(id, 0, 0).unwrap();
            let honest = witness.cells[cell];
            witness.cells[cell] += F::ONE;
            let (violated, holds) = talk(&single, &mut witness, &results);
            assert!(violated.is_some() && !holds, "{index}: {id:?}");
            witness.cells[cell] = honest;
        }
    }
}

const SIDES: Sides = Sides { tokens: 5, d_in: 12, d_out: 20, rank: 3, gain: true };

/// A proof, whole, and what a verifier makes of it.
struct Proved {
    single: Single,
    results: Vec<i64>,
    commitments: Vec<Commitment>,
    bytes: Vec<u8>,
}

fn prove(single: Single, seed: u64) -> Proved {
    let values = single.values();
    let (witness, results) = single.witness(&values);
    let commitments = vec![single.opening.commitment()];
    let bytes = {
        let prover = Prover::new(&single.system).unwrap();
        let statement = Statement { context: b"context", commitments: &commitments, results: &results };
        let mut rng = StdRng::seed_from_u64(seed);
        prover.prove(statement, witness, &[&single.opening], &mut rng).unwrap().to_bytes()
    };
    Proved { single, results, commitments, bytes }
}

#[test]
fn a_layer_is_proved_and_verified_from_bytes() {
    let Proved { single, results, commitments, bytes } = prove(Single::new(SIDES, 1), 1);
    let verifier = Verifier::new(&single.system).unwrap();
    let statement = Statement { context: b"context", commitments: &commitments, results: &results };
    assert_eq!(verifier.verify(statement, &bytes), Ok(()));
    let (items, bits) = verifier.soundness();
    assert!(bits >= 100.0, "{items:?}");

    // Another result, context, adapter; none or too many of them.
    let other = vec![Single::new(SIDES, 2).opening.commitment()];
    let near = vec![results[0] + (1 << GRANULARITY)];
    for statement in [
        Statement { context: b"another", ..statement },
        Statement { commitments: &other, ..statement },
        Statement { commitments: &[], ..statement },
        Statement { results: &near, ..statement },
        Statement { results: &[], ..statement },
        // The same modulo p, were it not out of range.
        Statement { results: &[i64::MIN + 5], ..statement },
    ] {
        assert!(verifier.verify(statement, &bytes).is_err(), "{statement:?}");
    }
    // Another base model, inputs, bias, scores: another system.
    let same = Single::new(SIDES, 1);
    let mut entries = same.linear.form.weights.entries().to_vec();
    entries[17] += 1;
    let mut edited = Single::new(SIDES, 1).linear;
    edited.form.weights = Matrix::new(SIDES.d_in, SIDES.d_out, entries).unwrap();
    let mut x = same.x.clone();
    x[3] += 1;
    let mut scored = same.scored.to_vec();
    scored[0] += 1;
    for single in [
        Single::of(&same, Some(edited), None, None),
        Single::of(&same, None, Some(x), None),
        Single::of(&same, None, None, Some(scored)),
    ] {
        assert_ne!(single.system.digest(), same.system.digest());
        let verifier = Verifier::new(&single.system).unwrap();
        assert!(verifier.verify(statement, &bytes).is_err());
    }
    let same = Verifier::new(&same.system).unwrap();
    assert_eq!(same.verify(statement, &bytes), Ok(()));
}

/// Bytes of every part, and many anywhere: none passes, none panics.
#[test]
fn no_changed_proof_passes() {
    let Proved { single, results, commitments, bytes } = prove(Single::new(SIDES, 1), 2);
    let verifier = Verifier::new(&single.system).unwrap();
    let statement = Statement { context: b"context", commitments: &commitments, results: &results };
    let mut rng = StdRng::seed_from_u64(3);
    let refused = |bytes: &[u8]| assert!(verifier.verify(statement, bytes).is_err());
    for index in 0..2000 {
        let mut changed = bytes.clone();
        // The parts before plonky2's are dense in what matters: most of the changes are there.
        let within = if index % 4 == 0 { bytes.len() } else { bytes.len() / 3 };
        let at = rng.random_range(0..within);
        changed[at] ^= 1 << rng.random_range(0..8);
        refused(&changed);
    }
    for length in [0, 1, 31, 32, 1000, bytes.len() / 2, bytes.len() - 1] {
        refused(&bytes[..length]);
    }
    refused(&[&bytes[..], &[0]].concat());
    assert_eq!(verifier.verify(statement, &bytes), Ok(()));
}

#[test]
fn two_proofs_of_one_statement_share_nothing() {
    let [one, two] = [5, 6].map(|seed| prove(Single::new(SIDES, 1), seed).bytes);
    assert_eq!(one.len(), two.len());
    let words = |bytes: &[u8]| bytes.chunks(8).map(<[u8]>::to_vec).collect::<std::collections::HashSet<_>>();
    // Ciphertexts, combination and opened values are uniform: no eight bytes come twice.
    let head = one.len() / 3;
    assert!(words(&one[..head]).is_disjoint(&words(&two[..head])));
}

#[test]
fn a_false_statement_is_not_proved() {
    let single = Single::new(SIDES, 1);
    let values = single.values();
    let (witness, results) = single.witness(&values);
    let commitments = [single.opening.commitment()];
    let prover = Prover::new(&single.system).unwrap();
    let false_results = [results[0] + 64];
    let statement = Statement { context: b"", commitments: &commitments, results: &false_results };
    let mut rng = StdRng::seed_from_u64(1);
    let found = prover.prove(statement, witness, &[&single.opening], &mut rng);
    assert!(matches!(found, Err(ProveError::FalseStatement)));
}
