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

/// Folds a session's calls one by one.
///
/// Work: each entry of a call is looked at once, each activation whatever the number of modules that read it; and for each module
/// of a call `d_in` products in E. Memory goes to the modules that are called, not to those that a manifest names: 16 bytes for each
/// of their inputs, and beside them some MiB.
pub struct Folder {
    challenges: Challenges,
    shapes: Vec<ModuleShape>,
    modules: Vec<Option<ModuleFolder>>,
    /// Powers of β as canonical integers, as many as the widest module called so far needs.
    betas: Vec<[u64; 2]>,
    work: u64,
}

/// A call whose tensors do not have the dimensions that it claims and the manifest gives: not all of it would be folded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a call of {rows} rows has {found} {what} of module {module}, expected {rows} x {columns}")]
pub struct FoldError {
    /// Activations or deltas.
    pub what: &'static str,
    /// Which module's, by index in the manifest.
    pub module: usize,
    /// Rows that the call claims.
    pub rows: usize,
    /// Entries of a row.
    pub columns: usize,
    /// Entries that are there.
    pub found: usize,
}

impl Folder {
    /// The folder of a session with no calls yet.
    pub fn new(manifest: &Manifest, challenges: Challenges) -> Self {
        let shapes: Vec<ModuleShape> = manifest.modules().iter().map(|m| m.shape()).collect();
        let modules = shapes.iter().map(|_| None).collect();
        Self { challenges, modules, shapes, betas: Vec::new(), work: 0 }
    }

    /// Adds the next call, to modules of the manifest. Nothing is added if its tensors are not exactly `rows x d_in` and
    /// `rows x d_out`: what was hashed is folded, all of it.
    pub fn add(&mut self, call: &Call) -> Result<(), FoldError> {
        let Some(first) = call.deltas.first() else { return Ok(()) };
        let d_in = self.shapes[first.module].d_in();
        for delta in &call.deltas {
            let (module, shape) = (delta.module, self.shapes[delta.module]);
            for (what, columns, found) in [
                ("activations", shape.d_in(), call.activations.len()),
                ("deltas", shape.d_out(), delta.values.len()),
            ] {
                let rows = call.rows;
                if rows as u64 * columns as u64 != found as u64 {
                    return Err(FoldError { what, module, rows, columns, found });
                }
            }
        }
        // Within the call the rows weigh 1, α, α², ..., whatever came before: modules that read the same activations differ
        // in the power of α in front of the sum alone.
        let mut lanes = Lanes::new(d_in);
        let mut powers = Vec::with_capacity(call.rows);
        let mut power = E::ONE;
        for x in call.activations.chunks_exact(d_in) {
            lanes.add(canonical(power), x);
            powers.push(power);
            power *= self.challenges.alpha;
        }
        self.work += call.activations.len() as u64;
        let sum = lanes.finish();
        let mut weighted: Option<(E, Vec<E>)> = None;
        for delta in &call.deltas {
            let d_out = self.shapes[delta.module].d_out();
            if self.betas.len() < d_out {
                self.betas = self.challenges.beta.powers().take(d_out).map(canonical).collect();
            }
            let module = self.modules[delta.module].get_or_insert_with(|| ModuleFolder {
                a: vec![E::ZERO; d_in],
                s: E::ZERO,
                power: E::ONE,
            });
            // Modules that travel together are mostly at the same row.
            if weighted.as_ref().is_none_or(|(power, _)| *power != module.power) {
                weighted = Some((module.power, sum.iter().map(|&x| module.power * x).collect()));
            }
            for (a, &x) in module.a.iter_mut().zip(weighted.iter().flat_map(|(_, sum)| sum)) {
                *a += x;
            }
            let rows = powers.iter().zip(delta.values.chunks_exact(d_out));
            let s: E = rows.map(|(&power, y)| power * dot(&self.betas[..d_out], y)).sum();
            module.s += module.power * s;
            module.power *= power;
            self.work += d_in as u64 + delta.values.len() as u64;
        }
        Ok(())
    }

    /// Entries that were multiplied so far: those of the calls, and `d_in` for each module of each.
    pub fn work(&self) -> u64 {
        self.work
    }

    /// The folds of all modules, in the manifest's order; empty ones of those that were never called.
    pub fn finish(self) -> Vec<Fold> {
        let empty = || Fold { a: Vec::new(), s: E::ZERO };
        let fold = |m: ModuleFolder| Fold { a: m.a, s: m.s };
        self.modules.into_iter().map(|module| module.map_or_else(empty, fold)).collect()
    }
}

struct ModuleFolder {
    a: Vec<E>,
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
                folder.add(call).unwrap();
            }
            prop_assert_eq!(folder.finish(), vec![reference(&calls, d_in, d_out, challenges)]);
        }
    }

    /// What was hashed and is not folded would be accepted unproved: on a 32-bit machine, 2^32 + 6 deltas that are six.
    #[test]
    fn a_call_that_is_not_of_its_dimensions_is_not_folded() {
        let challenges = Challenges { alpha: E::TWO, beta: E::TWO };
        let honest =
            Call { rows: 2, activations: vec![1; 6], deltas: vec![Delta { module: 0, values: vec![5; 10] }] };
        let mut folder = Folder::new(&manifest(3, 5), challenges);
        folder.add(&honest).unwrap();
        let edits: [fn(&mut Call); 8] = [
            |call| call.rows = 1,
            |call| call.rows = 3,
            |call| call.rows = 1 << 31,
            |call| call.activations.truncate(5),
            |call| call.activations.push(0),
            |call| call.deltas[0].values.truncate(9),
            |call| call.deltas[0].values.push(7),
            |call| call.deltas[0].values.clear(),
        ];
        for edit in edits {
            let mut call = honest.clone();
            edit(&mut call);
            let error = folder.add(&call).unwrap_err().to_string();
            assert!(error.contains("of module 0, expected"), "{error}");
        }
        // One of two modules.
        let mut call = honest.clone();
        call.deltas.push(Delta { module: 0, values: vec![5; 9] });
        assert!(folder.add(&call).is_err());
        // Nothing of these was added.
        folder.add(&honest).unwrap();
        assert_eq!(folder.finish(), vec![reference(&[honest.clone(), honest], 3, 5, challenges)]);
    }

    /// Modules that read the same activations are folded as if each had read its own, wherever they were before.
    #[test]
    fn shared_activations_are_folded_once_for_all_modules() {
        let mut rng = StdRng::seed_from_u64(4);
        let challenges = Challenges { alpha: E::sample(&mut rng), beta: E::sample(&mut rng) };
        let (d_in, d_out, modules) = (7, 3, 64);
        let shape = ModuleShape::new(d_in, 1, d_out).unwrap();
        let entry = |i: usize| {
            let commitment = Commitment::from_elements([0; 4]).unwrap();
            ModuleEntry::new(format!("m.{i}"), shape, 1.0, commitment).unwrap()
        };
        let (key, base) = (SecretKey::generate().public(), BaseModelDigest::from_bytes([0; 32]));
        let manifest = Manifest::new(key, base, 0, (0..modules).map(entry).collect()).unwrap();
        let mut call = |rows: usize, modules: Vec<usize>| Call {
            rows,
            activations: (0..rows * d_in).map(|_| rng.random_range(-32767..=32767)).collect(),
            deltas: modules
                .into_iter()
                .map(|module| Delta { module, values: (0..rows * d_out).map(|_| rng.random()).collect() })
                .collect(),
        };
        // Module m is at row m before all travel together, twice.
        let mut calls: Vec<Call> = (1..modules).map(|m| call(1, (m..modules).collect())).collect();
        calls.extend([call(100, (0..modules).collect()), call(3, (0..modules).rev().collect())]);
        let mut folder = Folder::new(&manifest, challenges);
        let mut work = 0;
        for call in &calls {
            folder.add(call).unwrap();
            let rows = call.rows as u64;
            let modules = call.deltas.len() as u64;
            work += rows * d_in as u64 + modules * (d_in as u64 + rows * d_out as u64);
            assert_eq!(folder.work(), work);
        }
        for (module, fold) in folder.finish().into_iter().enumerate() {
            let own: Vec<Call> = calls
                .iter()
                .filter_map(|call| {
                    let delta = call.deltas.iter().find(|delta| delta.module == module)?.clone();
                    Some(Call { deltas: vec![delta], ..call.clone() })
                })
                .collect();
            assert_eq!(fold, reference(&own, d_in, d_out, challenges), "module {module}");
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
        folder.add(&call).unwrap();
        assert_eq!(folder.finish(), vec![reference(&[call], 1, 1, challenges)]);
    }
}
