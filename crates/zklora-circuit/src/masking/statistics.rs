//! Whether opened values look uniform over many proofs of one witness, and what attacks find when a measure is taken away.

use std::collections::BTreeMap;

use plonky2::field::extension::{Extendable, FieldExtension};
use plonky2::field::polynomial::{PolynomialCoeffs, PolynomialValues};
use plonky2::field::types::{Field, Field64, PrimeField64, Sample};
use plonky2::iop::target::Target;
use plonky2::iop::witness::{PartitionWitness, Witness};
use plonky2::plonk::proof::{ProofChallenges, ProofWithPublicInputs};
use rand::SeedableRng;
use rand::rngs::StdRng;
use zklora_proto::ModuleShape;

use super::*;
use crate::E;
use crate::circuit::BatchCircuit;
use crate::commitment::{Opening, Salt};
use crate::fold::Fold;
use crate::gate::weight::{WIRE_ACC_OUT, WIRE_SBOXES, wire_digit};
use crate::parameters::Security;
use crate::prove::{Contradictions, ModuleRows, fill_rows, prove_witness};

/// The extension that ζ comes from.
type X = <F as Extendable<D>>::Extension;
type Proof = ProofWithPublicInputs<F, Blake3Config, D>;

const BUCKETS: usize = 16;
/// Chi-square with 15 degrees of freedom is above this once in 10^13, so that some thousand values are all below it but once
/// in 10^10 runs. Salts are drawn by plonky2 and cannot be seeded.
const LIMIT: f64 = 95.0;

/// One small module, a witness of it and its circuit, without grinding.
pub(super) struct Case {
    pub(super) circuit: BatchCircuit,
    opening: Opening,
    fold: Fold,
    beta: E,
}

impl Case {
    pub(super) fn new(security: Security) -> Self {
        Self::with_pairs(security, true)
    }

    /// Pairs are tied or not.
    fn with_pairs(security: Security, tie: bool) -> Self {
        let mut rng = StdRng::seed_from_u64(11);
        let shape = ModuleShape::new(2, 1, 3).unwrap();
        let opening = Opening::new(shape, vec![7, -2048], vec![1, 2, -3], Salt::random(&mut rng)).unwrap();
        let beta = E::sample(&mut rng);
        let mut fold = Fold { a: vec![E::sample(&mut rng), E::sample(&mut rng)], s: E::ZERO };
        fold.s = ModuleRows::honest(&opening, &fold, beta).sum;
        let counts = MaskingCounts::new(security);
        let mut circuit = BatchCircuit::build_with(security, &[shape], counts, tie).unwrap();
        circuit.data.common.config.fri_config.proof_of_work_bits = 0;
        circuit.data.common.fri_params.config.proof_of_work_bits = 0;
        Self { circuit, opening, fold, beta }
    }

    /// The witness without its masking.
    pub(super) fn witness(&self) -> PartitionWitness<'_, F> {
        let rows = ModuleRows::honest(&self.opening, &self.fold, self.beta);
        let instance = self.circuit.layout.instance(&[(&rows.commitment(), &self.fold)], self.beta);
        fill_rows(&self.circuit, &[rows], &instance, Contradictions::Stop).unwrap()
    }

    /// The witness with a masking that is random where `random` says so and zero elsewhere, and its proof.
    fn prove(&self, seed: u64, random: impl Fn(Part) -> bool) -> (PartitionWitness<'_, F>, Proof) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut witness = self.witness();
        let mut value = |part| if random(part) { F::sample(&mut rng) } else { F::ZERO };
        self.circuit.masking.fill_from(&mut witness, &mut value).unwrap();
        let proof = prove_witness(&self.circuit.data, witness.clone()).unwrap();
        (witness, proof)
    }

    fn challenges(&self, proof: &Proof) -> ProofChallenges<F, D> {
        let data = &self.circuit.data;
        let digest = &data.verifier_only.circuit_digest;
        proof.get_challenges(proof.get_public_inputs_hash(), digest, &data.common).unwrap()
    }

    /// The point that a query's index stands for.
    fn point(&self, index: usize) -> F {
        let bits = self.circuit.degree_bits() + self.circuit.data.common.config.fri_config.rate_bits;
        let index = index.reverse_bits() >> (usize::BITS as usize - bits);
        F::coset_shift() * F::primitive_root_of_unity(bits).exp_u64(index as u64)
    }
}

/// Every value that a proof opens, by name, at ζ or by its first query, but those of the instance columns and the shift
/// column, which are public.
fn opened(proof: &Proof, masking: &Masking) -> Vec<(String, F)> {
    let public = CIRCUIT_WIRES..masking.shift + 1;
    let mut values = Vec::new();
    let (openings, fri) = (&proof.proof.openings, &proof.proof.opening_proof);
    let mut add = |name: &str, list: &[X]| {
        for (i, value) in list.iter().enumerate() {
            let parts = FieldExtension::<D>::to_basefield_array(value);
            values.extend(parts.into_iter().enumerate().map(|(part, x)| (format!("{name} {i}.{part}"), x)));
        }
    };
    add("at ζ: wire", &openings.wires[..public.start]);
    add("at ζ: mask", &openings.wires[public.end..]);
    add("at ζ: Z", &openings.plonk_zs);
    add("at ζ: next Z", &openings.plonk_zs_next);
    add("at ζ: partial product", &openings.partial_products);
    add("at ζ: chunk", &openings.quotient_polys);
    add("final polynomial", &fri.final_poly.coeffs);
    let query = &fri.query_round_proofs[0];
    for (layer, step) in query.steps.iter().enumerate() {
        add(&format!("layer {layer}"), &step.evals);
    }
    for (tree, (leaf, _)) in query.initial_trees_proof.evals_proofs.iter().enumerate().skip(1) {
        let columns = leaf.iter().enumerate().filter(|(i, _)| tree != 1 || !public.contains(i));
        values.extend(columns.map(|(i, &x)| (format!("leaf of tree {tree}, {i}"), x)));
    }
    values
}

/// Chi-square of each opened value over many proofs.
fn chi_squares(case: &Case, proofs: usize, random: impl Fn(Part) -> bool) -> BTreeMap<String, f64> {
    let mut counts: BTreeMap<String, [u32; BUCKETS]> = BTreeMap::new();
    for seed in 0..proofs as u64 {
        let proof = case.prove(seed, &random).1;
        for (name, value) in opened(&proof, &case.circuit.masking) {
            let share = u128::from(value.to_canonical_u64()) * BUCKETS as u128 / u128::from(F::ORDER);
            counts.entry(name).or_default()[share as usize] += 1;
        }
        if seed == 0 {
            case.circuit.data.verify(proof).unwrap();
        }
    }
    let expected = proofs as f64 / BUCKETS as f64;
    let chi_square = |counts: [u32; BUCKETS]| {
        counts.iter().map(|&count| (f64::from(count) - expected).powi(2) / expected).sum()
    };
    counts.into_iter().map(|(name, counts)| (name, chi_square(counts))).collect()
}

#[test]
fn opened_values_are_uniform() {
    let found = chi_squares(&Case::new(Security::Compact), 400, |_| true);
    assert!(found.len() > 1000, "{} values", found.len());
    for (name, chi_square) in &found {
        assert!(*chi_square < LIMIT, "{name}: {chi_square}");
    }
    // All together: chi-square has mean 15 and variance 30.
    let mean = found.values().sum::<f64>() / found.len() as f64;
    let deviation = (mean - 15.0) / (30.0 / found.len() as f64).sqrt();
    println!("{} values, mean {mean:.2}, {deviation:.1} standard deviations from 15", found.len());
    assert!(deviation.abs() < 7.0, "mean {mean}, {deviation} standard deviations from 15");
}

#[test]
fn opened_values_without_masking_are_always_the_same() {
    let mut case = Case::new(Security::Compact);
    // Salts, too, are masking.
    case.circuit.data.common.config.zero_knowledge = false;
    case.circuit.data.common.fri_params.leaf_hiding = false;
    let found = chi_squares(&case, 40, |_| false);
    // Which nonce is found first depends on threads, and with it the queries; nothing else does.
    let fixed: Vec<_> =
        found.iter().filter(|(name, _)| name.contains('ζ') || name.contains("final")).collect();
    assert!(fixed.len() > 700, "{} values", fixed.len());
    for (name, chi_square) in fixed {
        assert!(*chi_square > LIMIT, "{name}: {chi_square}");
    }
}

/// Rows whose values nobody but the prover knows.
fn masked_rows(masking: &Masking) -> impl Iterator<Item = usize> {
    let pairs = masking.pairs.iter().flatten();
    masking.free.iter().chain(pairs).chain([&masking.public_input_row]).copied()
}

/// What someone computes who guesses the weights rightly, from a wire column with one random row, of which two openings
/// make up for: an equation that holds because the guess is right.
fn confirms_wires(case: &Case, witness: &PartitionWitness<'_, F>, proof: &Proof, column: usize) -> bool {
    let masking = &case.circuit.masking;
    let n = case.circuit.data.common.degree();
    let mut known: Vec<F> =
        (0..n).map(|row| witness.try_get_target(Target::wire(row, column)).unwrap_or(F::ZERO)).collect();
    masked_rows(masking).for_each(|row| known[row] = F::ZERO);
    let known = PolynomialValues::new(known).ifft();
    let mut unit = PolynomialValues::zero(n);
    unit.values[masking.public_input_row] = F::ONE;
    let unit = unit.ifft();

    let queries = case.challenges(proof).fri_challenges.fri_query_indices;
    let rounds = &proof.proof.opening_proof.query_round_proofs;
    let other = queries.iter().position(|&query| query != queries[0]).unwrap();
    let [first, second] = [0, other].map(|query| {
        let x = case.point(queries[query]);
        let opened = rounds[query].initial_trees_proof.evals_proofs[1].0[column];
        (opened - known.eval(x), unit.eval(x))
    });
    first.0 * second.1 == second.0 * first.1
}

/// What someone computes who guesses the weights rightly: whether Z is what it is if no pair is tied.
fn confirms_z(case: &Case, witness: &PartitionWitness<'_, F>, proof: &Proof) -> bool {
    let (data, challenges) = (&case.circuit.data, case.challenges(proof));
    let (beta, gamma) = (challenges.plonk_betas[0], challenges.plonk_gammas[0]);
    let masked: Vec<usize> = masked_rows(&case.circuit.masking).collect();
    let mut z = F::ONE;
    let mut values = Vec::new();
    for (row, &x) in data.prover_only.subgroup.iter().enumerate() {
        values.push(z);
        for column in (0..ROUTED).filter(|_| !masked.contains(&row)) {
            let wire = witness.try_get_target(Target::wire(row, column)).unwrap_or(F::ZERO);
            let sigma = data.prover_only.sigmas[row][column];
            z *= (wire + beta * data.common.k_is[column] * x + gamma) / (wire + beta * sigma + gamma);
        }
        // The public inputs' hash is tied, the rest of its row is not.
        if row == case.circuit.masking.public_input_row {
            for column in 0..Masking::PUBLIC_INPUT_WIRES {
                let wire = witness.try_get_target(Target::wire(row, column)).unwrap();
                let sigma = data.prover_only.sigmas[row][column];
                z *= (wire + beta * data.common.k_is[column] * x + gamma) / (wire + beta * sigma + gamma);
            }
        }
    }
    let z: PolynomialCoeffs<F> = PolynomialValues::new(values).ifft();
    z.to_extension::<D>().eval(challenges.plonk_zeta) == proof.proof.openings.plonk_zs[0]
}

const ATTACKS: std::ops::Range<u64> = 0..4;

#[test]
fn a_guess_of_the_weights_is_confirmed_by_wires_only_if_no_row_is_random() {
    let case = Case::new(Security::Compact);
    // A digit of the first weight, an accumulator, an S-box of the hash.
    let columns = [wire_digit(0, 0), WIRE_ACC_OUT, WIRE_SBOXES];
    for seed in ATTACKS {
        let (witness, proof) = case.prove(seed, |part| !matches!(part, Part::FreeRows | Part::Pairs));
        assert!(columns.iter().all(|&column| confirms_wires(&case, &witness, &proof, column)));
        let (witness, proof) = case.prove(seed, |_| true);
        assert!(columns.iter().all(|&column| !confirms_wires(&case, &witness, &proof, column)));
    }
}

#[test]
fn a_guess_of_the_weights_is_confirmed_by_z_only_if_pairs_are_not_tied() {
    let [tied, untied] = [true, false].map(|tie| Case::with_pairs(Security::Compact, tie));
    for seed in ATTACKS {
        let (witness, proof) = untied.prove(seed, |_| true);
        assert!(confirms_z(&untied, &witness, &proof));
        let (witness, proof) = tied.prove(seed, |_| true);
        assert!(!confirms_z(&tied, &witness, &proof));
    }
}

#[test]
fn masks_of_the_quotient_make_all_its_chunks_independent() {
    // What docs/zero-knowledge.md proves, in numbers: the values of the chunks of e·(1 + u + … + u^7), at as many points as a
    // proof opens, are linear forms in the coefficients of e and have full rank.
    let case = Case::new(Security::Compact);
    let n = case.circuit.data.common.degree();
    let opened = Security::Compact.queries() + D;
    let points: Vec<F> = (0..opened).map(|i| case.point(17 * i + 5)).collect();
    let mut forms: Vec<Vec<F>> = (0..n - 1)
        .map(|coefficient| {
            let mut values = vec![F::ZERO; CHUNKS * opened];
            for power in (0..CHUNKS).map(|j| coefficient + j * (n - block(n))) {
                for (i, x) in points.iter().enumerate() {
                    values[power / n * opened + i] += x.exp_u64((power % n) as u64);
                }
            }
            values
        })
        .collect();
    let mut rank = 0;
    for column in 0..CHUNKS * opened {
        let Some(pivot) = (rank..n - 1).find(|&row| forms[row][column] != F::ZERO) else { continue };
        forms.swap(rank, pivot);
        let (done, rest) = forms.split_at_mut(rank + 1);
        let pivot = &done[rank];
        let inverse = pivot[column].inverse();
        for row in rest {
            let factor = row[column] * inverse;
            row.iter_mut().zip(pivot).for_each(|(a, &b)| *a -= factor * b);
        }
        rank += 1;
    }
    assert_eq!(rank, CHUNKS * opened);
}
