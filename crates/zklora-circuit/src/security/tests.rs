use plonky2::field::extension::Extendable;
use plonky2::field::types::{Field, Sample};
use plonky2::plonk::proof::{Proof, ProofWithPublicInputs};
use plonky2::util::serialization::{Buffer, Read};
use rand::SeedableRng;
use rand::rngs::StdRng;
use zklora_proto::ModuleShape;

use super::proximity::{Code, exceptional_2020, exceptional_2025};
use super::*;
use crate::circuit::BatchCircuit;
use crate::commitment::{Opening, Salt};
use crate::fold::Fold;
use crate::hash::Blake3Config;
use crate::parameters::{CHALLENGES, MAX_DEGREE_BITS, Security};
use crate::prove::{ModuleRows, prove};
use crate::{D, E, F};

/// Where polynomials are opened.
type Point = <F as Extendable<D>>::Extension;

/// Round numbers: 2^13 rows, a domain of n = 2^16, 64 routed wires, 253 columns, 128 + 1 terms.
fn round_numbers() -> Parameters {
    Parameters {
        degree_bits: 13,
        extension: 2,
        challenges: 3,
        columns: [100, 100, 30, 24],
        routed_wires: 64,
        terms: 129,
        quotient_degree_factor: 8,
        rate_bits: 3,
        arity_bits: vec![3, 3],
        queries: 100,
        grinding_bits: 16,
        folds: vec![FoldSize { rows: (1 << 19) - 64, d_out: 64 }; 2],
    }
}

fn bits(report: &Report, name: &str) -> f64 {
    report.terms.iter().find(|term| term.name == name).unwrap().bits
}

fn assert_near(found: f64, expected: f64) {
    assert!((found - expected).abs() < 0.01, "found {found}, expected {expected}");
}

#[test]
fn unique_decoding_by_hand() {
    let report = round_numbers().report(Basis::UniqueDecoding);
    // Two modules with T + d_out = 2^19 each, over p² = 2^128.
    assert_near(bits(&report, "fold (Freivalds, all modules)"), 128.0 - 20.0);
    // (2·2^13·2^6 / 2^64)^3.
    assert_near(bits(&report, "permutation argument"), 3.0 * (64.0 - 20.0));
    // (128 / 2^64)^3.
    assert_near(bits(&report, "constraint combination"), 3.0 * (64.0 - 7.0));
    // (9·2^13 + 2^16 + 2^13) / 2^128 = 18·2^13 / 2^128, and log2 18 = 4.170.
    assert_near(bits(&report, "out-of-domain point"), 128.0 - 13.0 - 4.170);
    // 254 columns at ζ and 3 at gζ make a curve of degree 256; n + 1 exceptional challenges for each of its degrees.
    assert_near(bits(&report, "FRI batching"), 128.0 - 16.0 - 8.0);
    // Arity 8: a curve of degree 7, log2 7 = 2.807.
    assert_near(bits(&report, "FRI folding, round 2"), 128.0 - 16.0 - 2.807);
    // α = (1 + 1/8)/2 = 9/16: 0.83007 bits a query.
    assert_near(bits(&report, "FRI queries and grinding"), 83.007 + 16.0);
    // 2^-99.007 + 2^-104 + 2·2^-109.19 + 2^-108 + 2^-110.83 + ... = 2^-99.007·(1 + 0.0314 + 0.0017 + 0.0020 + 0.0003).
    assert_near(report.bits, 99.007 - 0.0502);
    assert_eq!(report.weakest().unwrap().name, "FRI queries and grinding");
}

#[test]
fn johnson_bounds_by_hand() {
    let code = Code { degree_bits: 13, rate_bits: 3 };
    // 3.5^7 = 6433.9; n² = 2^32; ρ^(3/2) = 2^-4.5: log2(6433.9/3) + 36.5.
    assert_near(exceptional_2020(code, 3.0).log2(), 11.0665 + 36.5);
    // 2·3.5^5 = 1050.44; α = 0.41248, so 3·3.5·(1 - α)/8 = 0.771; log2(1051.21/3) + 16 + 4.5.
    assert_near(exceptional_2025(code, 3.0).log2(), 8.4529 + 20.5);
    // At ρ = 1/4, m = 10 and 2^20 rows Plonky3's `security` crate works out 20 + 2.5·2 + 16.38 for the same theorem.
    assert_near(exceptional_2025(Code { degree_bits: 20, rate_bits: 2 }, 10.0).log2(), 41.38);
    // m = 10 is the eighth choice: α = 1.05·√(1/8) = 0.37123, and the list has 1/(2·(√ρ/20)·√ρ) = 80 codewords.
    let choice = Basis::Johnson.choices(Code { degree_bits: 16, rate_bits: 3 })[7];
    assert_near(choice.agreement, 0.37123);
    assert_near(choice.list, 6.322);
}

#[test]
fn the_conjecture_by_hand() {
    let code = Code { degree_bits: 13, rate_bits: 3 };
    let choices = Basis::Conjectured.choices(code);
    // h(1/8) = 0.54356. η = ρ/2: 2h/η = 17.4, below n²; η = ρ/10: 2h/η = 86.97 and h/η = 43.48.
    let wide = choices.iter().find(|c| (c.agreement - 0.1875).abs() < 1e-9).unwrap();
    assert_near(wide.exceptional, 32.0);
    assert_near(wide.list, 8.697);
    let narrow = choices.iter().find(|c| (c.agreement - 0.1375).abs() < 1e-9).unwrap();
    assert_near(narrow.exceptional, 86.97);
    assert_near(narrow.list, 43.48);
}

#[test]
fn each_parameter_weakened_alone_lowers_the_sum() {
    type Weaken = fn(&mut Parameters);
    let weaker: [(&str, Weaken); 11] = [
        ("rows", |p| p.degree_bits += 1),
        ("extension", |p| p.extension = 1),
        ("challenges", |p| p.challenges = 1),
        ("columns", |p| p.columns[1] *= 2),
        ("routed wires", |p| p.routed_wires *= 2),
        ("terms", |p| p.terms *= 2),
        ("quotient degree", |p| p.quotient_degree_factor *= 2),
        ("arity", |p| p.arity_bits[0] += 1),
        ("queries", |p| p.queries -= 1),
        ("grinding", |p| p.grinding_bits -= 1),
        ("rows of the session", |p| p.folds[1].rows *= 2),
    ];
    // Two challenges, and queries to match the other terms of each basis, so that no term is too small to show in the sum.
    let bases = [
        (Basis::UniqueDecoding, 100),
        (Basis::Johnson, 42),
        (Basis::Johnson2025, 56),
        (Basis::Conjectured, 27),
    ];
    for (basis, queries) in bases {
        let base = Parameters { challenges: 2, queries, ..round_numbers() };
        let whole = base.report(basis).bits;
        for (name, weaken) in weaker {
            let mut parameters = base.clone();
            weaken(&mut parameters);
            let bits = parameters.report(basis).bits;
            assert!(bits < whole, "{basis:?}, weaker {name}: {bits}, expected less than {whole}");
        }
    }
}

/// Where the queries are what limits, as in the named sets. Where the batching does, a shorter code is better.
#[test]
fn a_weaker_rate_lowers_the_sum_of_the_named_sets() {
    for security in Security::ALL {
        let strong = parameters(security, ModuleShape::new(16, 2, 16).unwrap());
        let weak = Parameters { rate_bits: strong.rate_bits - 1, ..strong.clone() };
        let (strong, weak) = (Soundness::new(&strong), Soundness::new(&weak));
        assert!(weak.provable.bits < strong.provable.bits);
        assert!(weak.conjectured.bits < strong.conjectured.bits);
    }
}

/// Parameters of a small circuit of the set, which differ from a large one's in its size alone.
fn parameters(security: Security, shape: ModuleShape) -> Parameters {
    let rows = GUARANTEED_ROWS - shape.d_out() as u64;
    BatchCircuit::build(security, &[shape]).unwrap().verifier().parameters(&[rows])
}

#[test]
fn every_circuit_has_the_guaranteed_bits() {
    for security in Security::ALL {
        let small = parameters(security, ModuleShape::new(16, 2, 16).unwrap());
        for degree_bits in small.degree_bits..=MAX_DEGREE_BITS {
            let parameters = small.clone().with_degree(degree_bits, &security.config().fri_config);
            let soundness = Soundness::new(&parameters);
            let (provable, conjectured) = (soundness.provable.bits, soundness.conjectured.bits);
            assert!(
                provable >= security.provable_bits().into(),
                "{security:?}, 2^{degree_bits}:\n{soundness}"
            );
            assert!(conjectured >= security.conjectured_bits().into(), "2^{degree_bits}:\n{soundness}");
            // No more queries to spare than the two that `standard` has for good measure.
            let fewer = Parameters { queries: parameters.queries - 4, ..parameters };
            let fewer = Soundness::new(&fewer);
            let (provable, conjectured) = (fewer.provable.bits, fewer.conjectured.bits);
            if degree_bits == MAX_DEGREE_BITS {
                assert!(provable < 100.0 || conjectured < 100.0, "{provable} {conjectured}");
            }
        }
    }
}

#[test]
fn a_larger_circuit_differs_in_its_size_alone() {
    let security = Security::Standard;
    let small = parameters(security, ModuleShape::new(16, 8, 16).unwrap());
    let large = parameters(security, ModuleShape::new(768, 16, 2304).unwrap());
    assert!(large.degree_bits > small.degree_bits);
    let grown = small.with_degree(large.degree_bits, &security.config().fri_config);
    assert_eq!(grown, Parameters { folds: grown.folds.clone(), ..large });
}

/// A circuit, and an honest proof of it with its public inputs.
fn small_proof() -> (BatchCircuit, (Vec<u8>, Vec<F>)) {
    let mut rng = StdRng::seed_from_u64(1);
    let shape = ModuleShape::new(2, 1, 2).unwrap();
    let circuit = BatchCircuit::build(Security::Compact, &[shape]).unwrap();
    let opening = Opening::new(shape, vec![1, 2], vec![3, 4], Salt::random(&mut rng)).unwrap();
    let beta = E::sample(&mut rng);
    let mut fold = Fold { a: vec![E::sample(&mut rng), E::sample(&mut rng)], s: beta };
    fold.s = ModuleRows::honest(&opening, &fold, beta).sum;
    let bytes = prove(&circuit, &[&opening], &[&fold], beta, &mut rng).unwrap();
    let inputs = circuit.layout.instance(&[(&opening.commitment(), &fold)], beta).public_inputs();
    (circuit, (bytes, inputs))
}

#[test]
fn columns_are_those_that_a_proof_opens() {
    let (circuit, (bytes, _)) = small_proof();
    let proof: Proof<F, Blake3Config, D> = Buffer::new(&bytes).read_proof(&circuit.data.common).unwrap();
    let parameters = circuit.verifier().parameters(&[1]);
    let opened = &proof.openings;
    assert_eq!(
        parameters.columns,
        [
            opened.constants.len() + opened.plonk_sigmas.len(),
            opened.wires.len(),
            opened.plonk_zs.len() + opened.partial_products.len(),
            opened.quotient_polys.len(),
        ]
    );
    assert_eq!(parameters.challenges, opened.plonk_zs_next.len());
    assert_eq!(parameters.queries, proof.opening_proof.query_round_proofs.len());
    assert_eq!(parameters.arity_bits.len(), proof.opening_proof.commit_phase_merkle_caps.len());
}

/// Bad (β, γ) in some of the repetitions and bad α in the others do not add up to a proof: each of the c quotients combines the
/// constraints of all c permutation polynomials. Here an opening of each of these polynomials is changed in an honest proof, and then the openings of
/// quotients so that their equations hold: it takes a change of all c. The first equation that fails is plonky2's own word.
#[test]
fn every_quotient_combines_the_constraints_of_every_permutation_polynomial() {
    let (circuit, bytes) = small_proof();
    let common = &circuit.data.common;
    let proof: Proof<F, Blake3Config, D> = Buffer::new(&bytes.0).read_proof(common).unwrap();
    let proof = ProofWithPublicInputs { proof, public_inputs: bytes.1 };
    circuit.data.verify(proof.clone()).unwrap();
    let digest = &circuit.data.verifier_only.circuit_digest;
    let challenges = proof.get_challenges(proof.get_public_inputs_hash(), digest, common).unwrap();
    let (zeta, n, chunk) = (challenges.plonk_zeta, common.degree(), common.quotient_degree_factor);
    let vanishing = zeta.exp_u64(n as u64) - Point::ONE;
    let lagrange = vanishing / (Point::from_canonical_usize(n) * (zeta - Point::ONE));
    let partials = common.num_partial_products + 1;
    let opened = &proof.proof.openings;
    let fails_at_an_equation = |change: &dyn Fn(&mut Proof<F, Blake3Config, D>)| {
        let mut changed = proof.clone();
        change(&mut changed.proof);
        let error = circuit.data.verify(changed).unwrap_err().to_string();
        error.contains("vanishing_polys_zeta[i]")
    };
    for k in 0..CHALLENGES {
        // Z_k stands in L_0·(Z_k - 1), term k, and in the first check of its products, term c + k·partials.
        let (beta, gamma) = (challenges.plonk_betas[k], challenges.plonk_gammas[k]);
        let numerators: Point = (0..chunk)
            .map(|j| opened.wires[j] + zeta * Point::from(common.k_is[j] * beta) + Point::from(gamma))
            .product();
        let moved = |alpha: F| {
            let power = |term: usize| Point::from(alpha.exp_u64(term as u64));
            (lagrange * power(k) + numerators * power(CHALLENGES + k * partials)) / vanishing
        };
        let mended = |left_out: Option<usize>| {
            fails_at_an_equation(&|proof| {
                proof.openings.plonk_zs[k] += Point::ONE;
                for (i, &alpha) in challenges.plonk_alphas.iter().enumerate() {
                    if left_out != Some(i) {
                        proof.openings.quotient_polys[i * chunk] += moved(alpha);
                    }
                }
            })
        };
        // What refuses it then is FRI, since nothing of it was committed to.
        assert!(!mended(None), "Z {k}: what it changes in the quotients is known");
        for i in 0..CHALLENGES {
            assert!(mended(Some(i)), "quotient {i} does not depend on Z {k}");
        }
    }
}

#[test]
fn a_report_is_a_table() {
    let report = round_numbers().report(Basis::UniqueDecoding);
    let text = report.to_string();
    assert!(text.lines().any(|l| l.contains("FRI batching") && l.contains("104.0")), "{text}");
    assert!(text.lines().any(|l| l.contains("all together") && l.contains("99.0")), "{text}");
}
