//! Deltas in libtorch: `Y = X·A·B`, exactly, over the integers.

use std::sync::{Mutex, PoisonError};

use tch::{Kind, Tensor};
use zklora_circuit::commitment::Opening;
use zklora_proto::limits::{MAX_ACTIVATION, WEIGHT_BITS};
use zklora_proto::transcript::CallShape;
use zklora_proto::{Call, Delta, ModuleShape, SignedManifest};

use crate::store::StoredCall;

/// The matrices of one module as tensors.
#[derive(Debug)]
pub struct DeltaEngine {
    shape: ModuleShape,
    kind: Kind,
    // A tensor may be used by one thread at a time.
    matrices: Mutex<(Tensor, Tensor)>,
}

/// libtorch failed: memory ran out, or there is a bug in this program.
#[derive(Debug, thiserror::Error)]
#[error("libtorch: {0}")]
pub struct DeltaError(#[from] tch::TchError);

impl DeltaEngine {
    /// Takes the matrices of an opening. They are multiplied as float64 where every partial sum stays below 2^53, which is
    /// exact and uses the fast matrix product, and as int64 otherwise.
    pub fn new(opening: &Opening) -> Result<Self, DeltaError> {
        let shape = opening.shape();
        let kind = if exact_in_float64(shape) { Kind::Double } else { Kind::Int64 };
        let matrix = |values: &[i16], rows: usize, columns: usize| -> Result<Tensor, DeltaError> {
            Ok(Tensor::f_from_slice(values)?.f_to_kind(kind)?.f_view([rows as i64, columns as i64])?)
        };
        let a = matrix(opening.a(), shape.d_in(), shape.rank())?;
        let b = matrix(opening.b(), shape.rank(), shape.d_out())?;
        Ok(Self { shape, kind, matrices: Mutex::new((a, b)) })
    }

    /// The deltas of row-major activations `rows x d_in`: row-major `rows x d_out`.
    pub fn delta(&self, activations: &[i16]) -> Result<Vec<i64>, DeltaError> {
        let rows = activations.len() / self.shape.d_in();
        let x = Tensor::f_from_slice(activations)?
            .f_view([rows as i64, self.shape.d_in() as i64])?
            .f_to_kind(self.kind)?;
        let y = {
            let matrices = self.matrices.lock().unwrap_or_else(PoisonError::into_inner);
            x.f_matmul(&matrices.0)?.f_matmul(&matrices.1)?.f_to_kind(Kind::Int64)?
        };
        let mut values = vec![0i64; rows * self.shape.d_out()];
        let count = values.len();
        y.f_contiguous()?.f_copy_data(&mut values, count)?;
        Ok(values)
    }
}

/// All modules of an adapter, ready to answer.
#[derive(Debug)]
pub struct Engines {
    manifest: SignedManifest,
    modules: Vec<DeltaEngine>,
}

impl Engines {
    /// Takes the openings, in the manifest's order.
    pub fn new(manifest: SignedManifest, openings: &[Opening]) -> Result<Self, DeltaError> {
        Ok(Self { manifest, modules: openings.iter().map(DeltaEngine::new).collect::<Result<_, _>>()? })
    }

    /// Whose modules they are.
    pub fn manifest(&self) -> &SignedManifest {
        &self.manifest
    }

    /// The deltas of a call, module by module.
    pub fn deltas(&self, shape: &CallShape, activations: &[i16]) -> Result<Vec<Delta>, DeltaError> {
        let of = |&module: &usize| Ok(Delta { module, values: self.modules[module].delta(activations)? });
        shape.modules().iter().map(of).collect()
    }

    /// A recorded call, with its deltas.
    pub fn call(&self, stored: StoredCall) -> anyhow::Result<Call> {
        let shape = CallShape::new(self.manifest.manifest(), stored.rows, stored.modules)?;
        anyhow::ensure!(stored.activations.len() == stored.rows * shape.d_in(), "a recorded call is damaged");
        let deltas = self.deltas(&shape, &stored.activations)?;
        Ok(Call { rows: stored.rows, activations: stored.activations, deltas })
    }
}

/// Whether no sum of the product can leave the integers that a float64 holds, whatever the weights and activations.
fn exact_in_float64(shape: ModuleShape) -> bool {
    let weight = 1u64 << (WEIGHT_BITS - 1);
    let bound = MAX_ACTIVATION as u64 * weight * weight * shape.d_in() as u64 * shape.rank() as u64;
    bound <= 1 << 53
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};
    use zklora_circuit::commitment::Salt;
    use zklora_proto::limits::{MAX_D_IN, MAX_RANK};

    use super::*;

    fn opening(shape: ModuleShape, a: Vec<i16>, b: Vec<i16>) -> Opening {
        Opening::new(shape, a, b, Salt::from_words([0; 8]).unwrap()).unwrap()
    }

    /// X·A·B in i128, one multiplication at a time.
    fn reference(opening: &Opening, x: &[i16]) -> Vec<i128> {
        let shape = opening.shape();
        let (d_in, rank, d_out) = (shape.d_in(), shape.rank(), shape.d_out());
        let mut y = Vec::new();
        for row in x.chunks_exact(d_in) {
            for j in 0..d_out {
                let mut sum = 0i128;
                for k in 0..rank {
                    let mut xa = 0i128;
                    for (i, &x) in row.iter().enumerate() {
                        xa += i128::from(x) * i128::from(opening.a()[i * rank + k]);
                    }
                    sum += xa * i128::from(opening.b()[k * d_out + j]);
                }
                y.push(sum);
            }
        }
        y
    }

    fn check(opening: &Opening, x: &[i16]) {
        let y = DeltaEngine::new(opening).unwrap().delta(x).unwrap();
        assert_eq!(y.into_iter().map(i128::from).collect::<Vec<_>>(), reference(opening, x));
    }

    #[test]
    fn exact_at_the_extremes_of_every_bound() {
        for (d_in, rank) in
            [(1, 1), (MAX_D_IN, 1), (1, MAX_RANK), (MAX_D_IN, MAX_RANK), (2048, 32), (2049, 32)]
        {
            let shape = ModuleShape::new(d_in, rank, 2).unwrap();
            for (a, b, x) in [(-2048, -2048, i16::MAX), (-2048, 2047, -i16::MAX), (2047, 2047, i16::MAX)] {
                let opening = opening(shape, vec![a; d_in * rank], vec![b; rank * 2]);
                check(&opening, &vec![x; d_in]);
            }
        }
        // 2^15·2^14·2^11·2^8·2^11 = 2^59: the largest magnitude there can be fits an i64.
        let largest = i128::from(i16::MAX) * MAX_D_IN as i128 * 2048 * MAX_RANK as i128 * 2048;
        assert!(largest < 1 << 59);
    }

    #[test]
    fn both_kinds_of_arithmetic_are_used() {
        let shape = |d_in, rank| ModuleShape::new(d_in, rank, 1).unwrap();
        assert!(exact_in_float64(shape(2048, 32)));
        assert!(!exact_in_float64(shape(2049, 32)));
        assert!(!exact_in_float64(shape(MAX_D_IN, MAX_RANK)));
    }

    proptest! {
        #[test]
        fn agrees_with_the_reference(seed: u64, rows in 1usize..4, d_in in 1usize..40, rank in 1usize..6, d_out in 1usize..20, force_int: bool) {
            let mut rng = StdRng::seed_from_u64(seed);
            let shape = ModuleShape::new(d_in, rank, d_out).unwrap();
            let mut weights = |n: usize| (0..n).map(|_| {
                *[-2048, 2047, rng.random_range(-2048..2048)].get(rng.random_range(0..3)).unwrap()
            }).collect::<Vec<i16>>();
            let opening = opening(shape, weights(d_in * rank), weights(rank * d_out));
            let x: Vec<i16> = (0..rows * d_in).map(|_| {
                *[i16::MAX, -i16::MAX, rng.random_range(-i16::MAX..=i16::MAX)].get(rng.random_range(0..3)).unwrap()
            }).collect();
            let mut engine = DeltaEngine::new(&opening).unwrap();
            if force_int {
                let (a, b) = engine.matrices.into_inner().unwrap();
                engine.matrices = Mutex::new((a.to_kind(Kind::Int64), b.to_kind(Kind::Int64)));
                engine.kind = Kind::Int64;
            }
            let y = engine.delta(&x).unwrap();
            prop_assert_eq!(y.into_iter().map(i128::from).collect::<Vec<_>>(), reference(&opening, &x));
        }
    }
}
