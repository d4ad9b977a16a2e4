//! Folding: all rows of a module's activations and deltas into one vector and one value, outside any circuit.
//!
//! `a = Σ_t α^t·X[t]` and `s = Σ_t Σ_j α^t·β^j·Y[t][j]`. If Y = X·A·B then `Σ_k (Σ_j B[k][j]·β^j)·⟨a, A[:,k]⟩ = s`; if not,
//! this holds for at most a share (T + d_out)/p² of all (α, β), by Schwartz and Zippel.

use plonky2::field::extension::FieldExtension;
use plonky2::field::extension::quadratic::QuadraticExtension;
use plonky2::field::types::{Field, PrimeField64};
use zklora_proto::{Call, Manifest, ModuleShape};

use crate::challenge::Challenges;
use crate::{E, F};

/// The folded transcript of one module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fold {
    /// `Σ_t α^t·X[t]`, of length d_in.
    pub a: Vec<E>,
    /// `Σ_t Σ_j α^t·β^j·Y[t][j]`.
    pub s: E,
}

impl Fold {
    /// A digest of `a`, for comparing with another implementation: BLAKE3 over its 2·d_in canonical elements of F, eight
    /// bytes each, little-endian.
    pub fn a_digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("zklora v1 folded activations");
        for part in self.a.iter().flat_map(|&x| canonical(x)) {
            hasher.update(&part.to_le_bytes());
        }
        *hasher.finalize().as_bytes()
    }
}

/// Folds a session's calls one by one. Memory goes to the modules that are called, not to those that a manifest names.
pub struct Folder {
    challenges: Challenges,
    shapes: Vec<ModuleShape>,
    modules: Vec<Option<ModuleFolder>>,
    /// Powers of β as canonical integers, as many as the widest module called so far needs.
    betas: Vec<[u64; 2]>,
}

impl Folder {
    /// The folder of a session with no calls yet.
    pub fn new(manifest: &Manifest, challenges: Challenges) -> Self {
        let shapes: Vec<ModuleShape> = manifest.modules().iter().map(|m| m.shape()).collect();
        Self { challenges, modules: shapes.iter().map(|_| None).collect(), shapes, betas: Vec::new() }
    }

    /// Adds the next call, whose tensors have the dimensions that the manifest gives its modules.
    pub fn add(&mut self, call: &Call) {
        for delta in &call.deltas {
            let (d_in, d_out) = (self.shapes[delta.module].d_in(), self.shapes[delta.module].d_out());
            if self.betas.len() < d_out {
                self.betas = self.challenges.beta.powers().take(d_out).map(canonical).collect();
            }
            let module = self.modules[delta.module].get_or_insert_with(|| ModuleFolder {
                activations: Lanes::new(d_in),
                s: E::ZERO,
                power: E::ONE,
            });
            for (x, y) in call.activations.chunks_exact(d_in).zip(delta.values.chunks_exact(d_out)) {
                module.activations.add(canonical(module.power), x);
                module.s += module.power * dot(&self.betas[..d_out], y);
                module.power *= self.challenges.alpha;
            }
        }
    }

    /// The folds of all modules, in the manifest's order; empty ones of those that were never called.
    pub fn finish(self) -> Vec<Fold> {
        let empty = || Fold { a: Vec::new(), s: E::ZERO };
        let fold = |m: ModuleFolder| Fold { a: m.activations.finish(), s: m.s };
        self.modules.into_iter().map(|module| module.map_or_else(empty, fold)).collect()
    }
}

struct ModuleFolder {
    activations: Lanes,
    s: E,
    /// α^t for the module's next row t.
    power: E,
}

/// Sums of 32-bit halves times int16, which stay exact in an `i64` for 2^15 rows and vectorise.
struct Lanes {
    /// For each half (low and high of both parts), one sum a column.
    sums: [Vec<i64>; 4],
    rows: u32,
    folded: Vec<E>,
}

impl Lanes {
    fn new(columns: usize) -> Self {
        Self { sums: std::array::from_fn(|_| vec![0; columns]), rows: 0, folded: vec![E::ZERO; columns] }
    }

    fn add(&mut self, power: [u64; 2], x: &[i16]) {
        let halves = [power[0] & 0xffff_ffff, power[0] >> 32, power[1] & 0xffff_ffff, power[1] >> 32];
        for (sums, half) in self.sums.iter_mut().zip(halves) {
            // Below 2^32 times below 2^15 in magnitude: below 2^47, and 2^15 of them below 2^62.
            let half = half as i64;
            for (sum, &x) in sums.iter_mut().zip(x) {
                *sum += half * i64::from(x);
            }
        }
        self.rows += 1;
        if self.rows == 1 << 15 {
            self.carry();
        }
    }

    fn carry(&mut self) {
        for (i, folded) in self.folded.iter_mut().enumerate() {
            let [low0, high0, low1, high1] = [0, 1, 2, 3].map(|lane| signed(self.sums[lane][i]));
            let shift = F::from_canonical_u64(1 << 32);
            *folded += QuadraticExtension([low0 + shift * high0, low1 + shift * high1]);
        }
        for sums in &mut self.sums {
            sums.fill(0);
        }
        self.rows = 0;
    }

    fn finish(mut self) -> Vec<E> {
        self.carry();
        self.folded
    }
}

/// `Σ_j betas[j]·y[j]`, with one reduction at the end.
fn dot(betas: &[[u64; 2]], y: &[i64]) -> E {
    // Products are below 2^127 in magnitude; their low and high words are summed apart: at most 2^16 columns keep both
    // sums below 2^80.
    let mut low = [0u128; 2];
    let mut high = [0i128; 2];
    for (beta, &y) in betas.iter().zip(y) {
        for part in 0..2 {
            let product = i128::from(beta[part]) * i128::from(y);
            low[part] += u128::from(product as u64);
            high[part] += product >> 64;
        }
    }
    QuadraticExtension([0, 1].map(|part| {
        let high = if high[part] < 0 {
            -F::from_noncanonical_u128(high[part].unsigned_abs())
        } else {
            F::from_noncanonical_u128(high[part] as u128)
        };
        // 2^64 = 2^32 - 1 modulo p.
        F::from_noncanonical_u128(low[part]) + high * F::from_canonical_u64(0xffff_ffff)
    }))
}

/// Both parts of an element as integers below p.
pub fn canonical(x: E) -> [u64; 2] {
    let parts: [F; 2] = x.to_basefield_array();
    parts.map(|part| part.to_canonical_u64())
}

/// A signed integer as a field element.
pub(crate) fn signed(x: i64) -> F {
    let magnitude = F::from_noncanonical_u64(x.unsigned_abs());
    if x < 0 { -magnitude } else { magnitude }
}

#[cfg(test)]
mod tests {
    use plonky2::field::types::Sample;
    use proptest::prelude::*;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};
    use zklora_proto::{BaseModelDigest, Commitment, Delta, ModuleEntry, ModuleShape, SecretKey};

    use super::*;

    fn manifest(d_in: usize, d_out: usize) -> Manifest {
        let shape = ModuleShape::new(d_in, 1, d_out).unwrap();
        let commitment = Commitment::from_elements([0; 4]).unwrap();
        let entry = ModuleEntry::new("m".into(), shape, 1.0, commitment).unwrap();
        let key = SecretKey::generate().public();
        Manifest::new(key, BaseModelDigest::from_bytes([0; 32]), 0, vec![entry]).unwrap()
    }

    /// The definition, one field operation at a time.
    fn reference(calls: &[Call], d_in: usize, d_out: usize, challenges: Challenges) -> Fold {
        let (mut a, mut s, mut power) = (vec![E::ZERO; d_in], E::ZERO, E::ONE);
        for call in calls {
            for t in 0..call.rows {
                for (i, a) in a.iter_mut().enumerate() {
                    *a += power * E::from(signed(call.activations[t * d_in + i].into()));
                }
                for (j, beta) in challenges.beta.powers().take(d_out).enumerate() {
                    s += power * beta * E::from(signed(call.deltas[0].values[t * d_out + j]));
                }
                power *= challenges.alpha;
            }
        }
        Fold { a, s }
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(seed: u64, lengths in prop::collection::vec(1usize..5, 1..4), d_in in 1usize..6, d_out in 1usize..6) {
            let mut rng = StdRng::seed_from_u64(seed);
            let challenges = Challenges { alpha: E::sample(&mut rng), beta: E::sample(&mut rng) };
            let extremes = |rng: &mut StdRng| match rng.random_range(0..4) {
                0 => i64::MIN,
                1 => i64::MAX,
                2 => 0,
                _ => rng.random(),
            };
            let calls: Vec<Call> = lengths.iter().map(|&rows| Call {
                rows,
                activations: (0..rows * d_in).map(|_| *[i16::MAX, -i16::MAX, rng.random()].get(rng.random_range(0..3)).unwrap()).collect(),
                deltas: vec![Delta { module: 0, values: (0..rows * d_out).map(|_| extremes(&mut rng)).collect() }],
            }).collect();
            let mut folder = Folder::new(&manifest(d_in, d_out), challenges);
            for call in &calls {
                folder.add(call);
            }
            prop_assert_eq!(folder.finish(), vec![reference(&calls, d_in, d_out, challenges)]);
        }
    }

    #[test]
    fn sums_do_not_overflow_over_many_extreme_rows() {
        let mut rng = StdRng::seed_from_u64(3);
        let challenges = Challenges { alpha: E::sample(&mut rng), beta: E::sample(&mut rng) };
        let rows = (1 << 16) + 3;
        let call = Call {
            rows,
            activations: vec![i16::MAX; rows],
            deltas: vec![Delta { module: 0, values: vec![i64::MIN; rows] }],
        };
        let mut folder = Folder::new(&manifest(1, 1), challenges);
        folder.add(&call);
        assert_eq!(folder.finish(), vec![reference(&[call], 1, 1, challenges)]);
    }
}
