//! One linear layer with LoRA, its inputs public and a sum of its outputs the result: the smallest statement that has everything.

use std::sync::Arc;

use p3_field::PrimeCharacteristicRing;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use zklora_circuit::commitment::{Opening, Salt};
use zklora_proto::ModuleShape;

use crate::field::{E, F, signed};
use crate::layout::Tensor;
use crate::matrix::Matrix;
use crate::relation::linear::{Form, Gain, Linear, LinearValues, Lora};
use crate::system::{Builder, System, Witness};

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
                input: input.clone(),
                weights: Matrix::new(d_in, d_out, weights).unwrap(),
                bias: bias.into(),
                lora: Some(lora),
            },
            cut: builder.cut(tokens, d_out, 24, 16),
        };
        builder.linear(linear.clone()).unwrap();
        builder.fixed(input.clone(), x.clone());
        let rest = builder.unsigned(1, 1, GRANULARITY);
        let terms = vec![(linear.cut.output.clone(), scored.clone()), (rest.clone(), Arc::from([-1i64]))];
        builder.total("result", terms).unwrap();
        Self { system: builder.build(), linear, opening, x, input, rest, scored }
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
        let mut witness = Witness::new(&self.system);
        let (result, rest) = self.result(values);
        let lora = self.linear.form.lora.as_ref().unwrap();
        witness.set(&self.system, &self.input, &self.x).unwrap();
        witness.set_cut(&self.system, &lora.cut, &values.ranks.outputs, &values.ranks.remainders).unwrap();
        witness.set_cut(&self.system, &self.linear.cut, &values.outputs, &values.remainders).unwrap();
        witness.set(&self.system, &self.rest, &[rest]).unwrap();
        witness.set_adapter(&self.system, &[&self.opening]);
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
