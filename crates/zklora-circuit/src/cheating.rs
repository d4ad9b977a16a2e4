//! A prover that lies: what the circuit must stop, with the honest prover's checks taken away.

use plonky2::field::types::{Field, Sample};
use plonky2::plonk::proof::ProofWithPublicInputs;
use plonky2::util::serialization::{Buffer, Read};
use rand::SeedableRng;
use rand::rngs::StdRng;
use zklora_proto::{Commitment, ModuleShape};

use crate::circuit::BatchCircuit;
use crate::commitment::{Opening, Salt};
use crate::fold::{Fold, signed};
use crate::gate::instance::{Instance, InstanceRows};
use crate::gate::poseidon::SBOXES;
use crate::gate::weight::{CAPACITY, DIGITS, WEIGHTS};
use crate::parameters::Security;
use crate::prove::{Contradictions, ModuleRows, prove, prove_rows};
use crate::verify::{VerifyError, verify};
use crate::{E, F};

/// One small module, its folded one-row transcript, and the circuit. Its rows: one of the salt, one of A, four of B.
struct Case {
    circuit: BatchCircuit,
    opening: Opening,
    fold: Fold,
    beta: E,
    rng: StdRng,
}

const SALT: usize = 0;
const OF_A: usize = 1;
const ROWS: usize = 6;

impl Case {
    fn new() -> Self {
        let mut rng = StdRng::seed_from_u64(7);
        let shape = ModuleShape::new(3, 2, 41).unwrap();
        let a: Vec<i16> = vec![1, -2, 3, 2047, -2048, 5];
        let b: Vec<i16> = (0..82).map(|i| (i * 97 % 4096 - 2048) as i16).collect();
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

    fn instance(&self, commitment: &Commitment, fold: &Fold) -> Instance {
        self.circuit.layout.instance(&[(commitment, fold)], self.beta)
    }

    /// Proves with rows and public values as they come.
    fn prove(&mut self, rows: &ModuleRows, instance: &Instance) -> Vec<u8> {
        prove_rows(&self.circuit, std::slice::from_ref(rows), instance, Contradictions::Keep, &mut self.rng)
            .unwrap()
    }

    /// Proves with rows and public values as they come, and says whether a verifier that knows the true public values accepts.
    fn accepted(&mut self, rows: &ModuleRows, commitment: &Commitment, fold: &Fold) -> bool {
        let instance = self.instance(commitment, fold);
        let proof = self.prove(rows, &instance);
        match self.verify(commitment, fold, &proof) {
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
    assert_eq!(rows.rows.len(), ROWS);
    assert_eq!(rows.commitment(), commitment);
    assert!(case.accepted(&rows, &commitment, &fold));
}

#[test]
fn a_wrong_salt_does_not_open_the_commitment() {
    let mut case = Case::new();
    let (fold, commitment) = (case.fold.clone(), case.opening.commitment());
    for digit in [0, 159] {
        let mut rows = case.rows();
        rows.rows[SALT].digits[digit] ^= 1;
        rows.hash(case.opening.shape());
        assert!(!case.accepted(&rows, &commitment, &fold));
    }
}

/// What can be proved can be delivered: with any salt that the circuit takes, and any padding that leaves the deltas true, there is
/// an opening. With padding of B that is an output of its own, there is none, since its deltas would not be zero.
#[test]
fn an_opening_holds_whatever_the_circuit_takes() {
    let mut case = Case::new();
    let shape = case.opening.shape();
    let honest: Vec<_> = case.opening.blocks().collect();
    // Of A: the weights of row 1 beyond two columns of three entries. Of B: those of rows 3 and 5 beyond the last output.
    let with = |edit: &dyn Fn(&mut Vec<[u64; 8]>)| {
        let mut blocks = honest.clone();
        edit(&mut blocks);
        Opening::from_blocks(shape, &blocks).unwrap()
    };
    let of_a = |blocks: &mut Vec<[u64; 8]>| blocks[OF_A][7] = (1 << 60) - 1;
    let salt = |blocks: &mut Vec<[u64; 8]>| blocks[SALT] = [(1 << 60) - 1; 8];
    for (what, opening, accepted) in [
        ("another salt", with(&salt), true),
        ("padding of A", with(&of_a), true),
        (
            "both",
            with(&|blocks| [&salt as &dyn Fn(&mut _), &of_a].iter().for_each(|edit| edit(blocks))),
            true,
        ),
        ("padding of B", with(&|blocks| blocks[ROWS - 1][7] ^= 1 << 59), false),
    ] {
        assert_ne!(opening.commitment(), case.opening.commitment(), "{what}");
        assert_eq!((opening.a(), opening.b()), (case.opening.a(), case.opening.b()), "{what}");
        let (rows, fold) = (ModuleRows::honest(&opening, &case.fold, case.beta), case.fold.clone());
        assert_eq!(rows.commitment(), opening.commitment(), "{what}");
        assert_eq!(case.accepted(&rows, &opening.commitment(), &fold), accepted, "{what}");
    }
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
    assert!(!case.accepted(&rows, &commitment, &fold));
    assert!(case.accepted(&rows, &other.commitment(), &fold));
}

#[test]
fn rows_that_are_hashed_from_another_start_are_stopped() {
    // The header is what tells commitments to different shapes apart.
    let mut case = Case::new();
    let (fold, mut rows) = (case.fold.clone(), case.rows());
    rows.hash(ModuleShape::new(3, 2, 42).unwrap());
    assert!(!case.accepted(&rows, &rows.commitment(), &fold));
}

#[test]
fn a_false_delta_is_stopped() {
    let mut case = Case::new();
    let mut fold = case.fold.clone();
    fold.s += E::ONE;
    let commitment = case.opening.commitment();
    assert!(prove(&case.circuit, &[&case.opening], &[&fold], case.beta, &mut case.rng).is_err());
    // The last accumulator is s itself, so that the honest rows contradict it; made to agree, the gate refuses.
    let mut rows = ModuleRows::honest(&case.opening, &fold, case.beta);
    rows.rows[OF_A].acc_out = fold.s;
    assert!(!case.accepted(&rows, &commitment, &fold));
}

type Edit = Box<dyn Fn(&mut ModuleRows)>;

#[test]
fn a_wrong_value_anywhere_is_stopped() {
    let mut case = Case::new();
    let (fold, commitment) = (case.fold.clone(), case.opening.commitment());
    let mut edits: Vec<(usize, &str, Edit)> = Vec::new();
    for row in 0..ROWS {
        // The accumulator of the row of A is s itself: `a_false_delta_is_stopped`.
        if row != OF_A {
            edits.push((row, "accumulator", Box::new(move |rows| rows.rows[row].acc_out += E::ONE)));
        }
        // The last row's is C itself.
        if row + 1 < ROWS {
            for i in 0..CAPACITY {
                edits.push((row, "capacity", Box::new(move |rows| rows.rows[row].capacity_out[i] += F::ONE)));
            }
        }
    }
    for slot in (0..SBOXES).step_by(7) {
        let row = slot % ROWS;
        edits.push((row, "S-box", Box::new(move |rows| rows.rows[row].sboxes[slot] += F::ONE)));
    }
    // Also of padding: it is committed to.
    for digit in (0..WEIGHTS * DIGITS).step_by(13) {
        let row = digit % ROWS;
        edits.push((row, "digit", Box::new(move |rows| rows.rows[row].digits[digit] ^= 1)));
    }
    for (row, what, edit) in edits {
        let mut rows = case.rows();
        edit(&mut rows);
        assert!(!case.accepted(&rows, &commitment, &fold), "{what} of row {row}");
    }
}

#[test]
fn a_weight_outside_its_range_is_stopped() {
    let mut case = Case::new();
    let shape = case.opening.shape();
    let w0 = rows_of_w(&case, 0);
    // Adds `by` to the top digit of A[0][0] = 1 and makes everything else agree with it: commitment, accumulator and delta.
    let with = |case: &Case, by: u64| {
        let (mut rows, mut fold) = (case.rows(), case.fold.clone());
        rows.rows[OF_A].digits[3] += by;
        rows.hash(shape);
        let extra = w0 * fold.a[0] * E::from(signed((by << 9) as i64));
        rows.rows[OF_A].acc_out += extra;
        fold.s += extra;
        (rows, fold)
    };
    // 1 + 8·512 = 4097 > 2047: the digit is 12 instead of below 8.
    let (rows, fold) = with(&case, 8);
    assert_eq!(rows.rows[OF_A].digits[3], 4 + 8);
    assert!(!case.accepted(&rows, &rows.commitment(), &fold));

    // The same edit within the range is accepted, so that it is the range check that stops the other.
    let mut a = case.opening.a().to_vec();
    a[0] += 1 << 9;
    let within = Opening::new(shape, a, case.opening.b().to_vec(), case.opening.salt().clone()).unwrap();
    let (rows, fold) = with(&case, 1);
    assert_eq!(rows.commitment(), within.commitment());
    assert!(case.accepted(&rows, &within.commitment(), &fold));
}

#[test]
fn other_public_values_than_the_verifiers_are_stopped() {
    let mut case = Case::new();
    let commitment = case.opening.commitment();
    // A delta that is false: s for x, a for another x'. The prover's columns hold the a that would make it true.
    let claimed = Fold { a: fold_of(&case.opening, &[1, 2, 3], case.beta).a, s: case.fold.s };
    let rows = case.rows();
    let mut instance = case.instance(&commitment, &case.fold);
    // Known by its digest: plonky2 draws other challenges, and refuses.
    let proof = case.prove(&rows, &instance);
    assert!(matches!(case.verify(&commitment, &claimed, &proof), Err(VerifyError::Rejected(_))));
    // With the digest of what is claimed plonky2 has nothing to object, and the columns are found out.
    instance.digest = case.instance(&commitment, &claimed).digest;
    let proof = case.prove(&rows, &instance);
    let public_inputs = instance.public_inputs();
    let parsed = Buffer::new(&proof).read_proof(&case.circuit.data.common).unwrap();
    case.circuit.data.verify(ProofWithPublicInputs { proof: parsed, public_inputs }).unwrap();
    assert_eq!(case.verify(&commitment, &claimed, &proof), Err(VerifyError::Instance));
}

#[test]
fn every_public_value_is_compared() {
    let mut case = Case::new();
    let (commitment, fold) = (case.opening.commitment(), case.fold.clone());
    let honest = case.instance(&commitment, &fold);
    let rows = case.rows();
    let (powers, public) = (0, case.circuit.layout.modules[0].public);
    // A value of each kind, and one where there should be none: in the last column, and in a row without public values.
    let mut edits = vec![(powers, 2), (public, 0), (public, 4), (public, 6), (public, 10)];
    edits.extend([
        (public + SALT + 1, 0),
        (public + SALT + 1, 3),
        (public + OF_A + 1, 0),
        (public + OF_A + 1, 2),
    ]);
    edits.extend([(public + 3, 1), (public + ROWS, 11), (700, 0)]);
    for (row, column) in edits {
        let mut instance = honest.clone();
        // The row alone, though others may have the same values.
        let same = instance.rows.iter_mut().find(|same| same.rows.contains(&row));
        let mut values = same.map_or(Vec::new(), |same| {
            same.rows.retain(|&other| other != row);
            same.values.clone()
        });
        values.resize(values.len().max(column + 1), F::ZERO);
        values[column] += F::ONE;
        instance.rows.push(InstanceRows { rows: vec![row], values });
        let proof = case.prove(&rows, &instance);
        assert!(case.verify(&commitment, &fold, &proof).is_err(), "column {column} of row {row}");
    }
    let proof = case.prove(&rows, &honest);
    assert_eq!(case.verify(&commitment, &fold, &proof), Ok(()));
}

/// w_k = Σ_j B[k][j]·β^j.
fn rows_of_w(case: &Case, k: usize) -> E {
    let d_out = case.opening.shape().d_out();
    let row = &case.opening.b()[k * d_out..(k + 1) * d_out];
    row.iter().zip(case.beta.powers()).map(|(&b, power)| power * E::from(signed(b.into()))).sum()
}
