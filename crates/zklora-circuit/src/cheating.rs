//! A prover that lies: what the circuit must stop, with the honest prover's checks taken away.

use plonky2::field::types::{Field, Sample};
use rand::SeedableRng;
use rand::rngs::StdRng;
use zklora_proto::{Commitment, ModuleShape};

use crate::E;
use crate::circuit::BatchCircuit;
use crate::commitment::{Opening, Salt, pack};
use crate::fold::{Fold, signed};
use crate::gate::WEIGHTS;
use crate::prove::{Contradictions, ModuleRows, prove, prove_rows};
use crate::security::Security;
use crate::verify::{VerifyError, verify};

/// One small module, its folded one-row transcript, and the circuit.
struct Case {
    circuit: BatchCircuit,
    opening: Opening,
    fold: Fold,
    beta: E,
    rng: StdRng,
}

impl Case {
    fn new() -> Self {
        let mut rng = StdRng::seed_from_u64(7);
        let shape = ModuleShape::new(3, 2, 21).unwrap();
        let a: Vec<i16> = vec![1, -2, 3, 2047, -2048, 5];
        let b: Vec<i16> = (0..42).map(|i| (i * 97 % 4096 - 2048) as i16).collect();
        let opening = Opening::new(shape, a, b, Salt::random(&mut rng)).unwrap();
        let beta = E::sample(&mut rng);
        let x = [32767i64, -32767, 1];
        let fold = fold_of(&opening, &x, beta);
        let circuit = BatchCircuit::build(Security::Standard, &[shape]).unwrap();
        Self { circuit, opening, fold, beta, rng }
    }

    fn verify(&self, commitment: &Commitment, fold: &Fold, proof: &[u8]) -> Result<(), VerifyError> {
        verify(&self.circuit.verifier(), &[(commitment, fold)], self.beta, proof)
    }

    /// Proves with rows, salt and public inputs as they come, and says whether a verifier that knows the true public inputs
    /// accepts.
    fn accepted(&mut self, rows: ModuleRows, salt: [u64; 4], commitment: Commitment, fold: &Fold) -> bool {
        let publics = [(commitment.elements(), fold)];
        let proof = prove_rows(
            &self.circuit,
            &[rows],
            &[salt],
            &publics,
            self.beta,
            Contradictions::Keep,
            &mut self.rng,
        )
        .unwrap();
        match self.verify(&commitment, fold, &proof) {
            Ok(()) => true,
            Err(VerifyError::Rejected(_)) => false,
            Err(error) => panic!("a well-formed proof is refused for another reason: {error}"),
        }
    }

    fn rows(&self) -> ModuleRows {
        ModuleRows::honest(&self.opening, &self.fold, self.beta)
    }
}

/// The fold of one row x with its true delta.
fn fold_of(opening: &Opening, x: &[i64], beta: E) -> Fold {
    let (rank, d_out) = (opening.shape().rank(), opening.shape().d_out());
    let mut s = E::ZERO;
    for (j, power) in beta.powers().take(d_out).enumerate() {
        let mut y = 0i64;
        for k in 0..rank {
            let xa: i64 = x.iter().enumerate().map(|(i, x)| x * i64::from(opening.a()[i * rank + k])).sum();
            y += xa * i64::from(opening.b()[k * d_out + j]);
        }
        s += power * E::from(signed(y));
    }
    Fold { a: x.iter().map(|&x| E::from(signed(x))).collect(), s }
}

#[test]
fn honest_proofs_verify_and_bind_their_public_inputs() {
    let mut case = Case::new();
    let proof = prove(&case.circuit, &[&case.opening], &[&case.fold], case.beta, &mut case.rng).unwrap();
    let commitment = case.opening.commitment();
    assert_eq!(case.verify(&commitment, &case.fold, &proof), Ok(()));

    let rejected = |commitment: &Commitment, fold: &Fold| {
        assert!(matches!(case.verify(commitment, fold, &proof), Err(VerifyError::Rejected(_))));
    };
    let other = Commitment::from_elements([1, 2, 3, 4]).unwrap();
    rejected(&other, &case.fold);
    let mut fold = case.fold.clone();
    fold.s += E::ONE;
    rejected(&commitment, &fold);
    let mut fold = case.fold.clone();
    fold.a[2] += E::ONE;
    rejected(&commitment, &fold);

    let mut long = proof.clone();
    long.push(0);
    for bytes in [&proof[..proof.len() - 1], &long, &[]] {
        assert!(matches!(case.verify(&commitment, &case.fold, bytes), Err(VerifyError::Malformed(_))));
    }
}

#[test]
fn the_harness_accepts_what_is_honest() {
    let mut case = Case::new();
    let (rows, fold, commitment) = (case.rows(), case.fold.clone(), case.opening.commitment());
    let salt = *case.opening.salt().elements();
    assert!(case.accepted(rows, salt, commitment, &fold));
}

#[test]
fn a_wrong_salt_does_not_open_the_commitment() {
    let mut case = Case::new();
    let (rows, fold, commitment) = (case.rows(), case.fold.clone(), case.opening.commitment());
    let mut salt = *case.opening.salt().elements();
    salt[3] ^= 1;
    assert!(!case.accepted(rows, salt, commitment, &fold));
}

#[test]
fn other_weights_do_not_open_the_commitment() {
    let mut case = Case::new();
    let mut a = case.opening.a().to_vec();
    a[0] += 1;
    let other = Opening::new(case.opening.shape(), a, case.opening.b().to_vec(), case.opening.salt().clone())
        .unwrap();
    // Everything agrees with the other weights, deltas included, except the commitment.
    let fold = fold_of(&other, &[1, 2, 3], case.beta);
    let rows = ModuleRows::honest(&other, &fold, case.beta);
    assert_eq!(rows.sum, fold.s);
    let commitment = case.opening.commitment();
    assert!(!case.accepted(rows, *other.salt().elements(), commitment, &fold));
}

#[test]
fn a_false_delta_is_stopped() {
    let mut case = Case::new();
    let mut fold = case.fold.clone();
    fold.s += E::ONE;
    let commitment = case.opening.commitment();
    let salt = *case.opening.salt().elements();
    assert!(prove(&case.circuit, &[&case.opening], &[&fold], case.beta, &mut case.rng).is_err());
    // The last accumulator is s itself, so that the honest rows contradict it; made to agree, the gate refuses.
    let mut rows = ModuleRows::honest(&case.opening, &fold, case.beta);
    let last = 2 * 3usize.div_ceil(WEIGHTS) - 1;
    rows.rows[last].acc_out = fold.s;
    assert!(!case.accepted(rows, salt, commitment, &fold));
}

#[test]
fn a_wrong_intermediate_value_is_stopped() {
    let mut case = Case::new();
    let (fold, commitment) = (case.fold.clone(), case.opening.commitment());
    let salt = *case.opening.salt().elements();
    // The last accumulator of A is s itself: `a_false_delta_is_stopped`.
    let last = 1;
    for row in (0..case.rows().rows.len()).filter(|&row| row != last) {
        let mut rows = case.rows();
        rows.rows[row].acc_out += E::ONE;
        assert!(!case.accepted(rows, salt, commitment, &fold), "row {row}");
    }
}

#[test]
fn a_weight_outside_its_range_is_stopped() {
    let mut case = Case::new();
    let shape = case.opening.shape();
    // A[0][0] = 1 + 8·512 = 4097 > 2047: its top digit is 12 instead of below 8. Everything else is made to agree with it:
    // the packed word, the commitment, the accumulators and the delta.
    let mut rows = case.rows();
    let excess = 8 << 9;
    rows.rows[0].digits[3] += 8;
    rows.rows[0].words[0] += excess;
    assert_eq!(rows.rows[0].digits[3], 4 + 8);
    let mut words: Vec<u64> = crate::commitment::header(shape).to_vec();
    words.extend(case.opening.salt().elements());
    words.extend(rows.rows.iter().flat_map(|row| row.words.iter().copied()));
    let commitment = crate::commitment::hash_words(&words);
    assert_ne!(commitment, case.opening.commitment());

    let w0 = rows_of_w(&case, 0);
    let extra = w0 * case.fold.a[0] * E::from(signed(excess as i64));
    for row in &mut rows.rows[..2] {
        row.acc_out += extra;
    }
    let mut fold = case.fold.clone();
    fold.s += extra;
    let salt = *case.opening.salt().elements();
    assert!(!case.accepted(rows, salt, commitment, &fold));

    // The same edit within the range is accepted, so that it is the range check that stops the other.
    let mut a = case.opening.a().to_vec();
    a[0] += 1 << 9;
    let within = Opening::new(shape, a, case.opening.b().to_vec(), case.opening.salt().clone()).unwrap();
    let mut rows = case.rows();
    rows.rows[0].digits[3] += 1;
    rows.rows[0].words[0] += 1 << 9;
    assert_eq!(rows.rows[0].words, pack(&within.rows().next().unwrap()).collect::<Vec<_>>());
    let extra = w0 * case.fold.a[0] * E::from(signed(1 << 9));
    for row in &mut rows.rows[..2] {
        row.acc_out += extra;
    }
    let mut fold = case.fold.clone();
    fold.s += extra;
    assert!(case.accepted(rows, salt, within.commitment(), &fold));
}

/// w_k = Σ_j B[k][j]·β^j.
fn rows_of_w(case: &Case, k: usize) -> E {
    let d_out = case.opening.shape().d_out();
    let row = &case.opening.b()[k * d_out..(k + 1) * d_out];
    row.iter().zip(case.beta.powers()).map(|(&b, power)| power * E::from(signed(b.into()))).sum()
}
