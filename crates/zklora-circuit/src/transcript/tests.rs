use plonky2::field::extension::quadratic::QuadraticExtension;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use zklora_testing::shape;

use plonky2::field::types::Sample;

use super::*;
use crate::commitment::Salt;

const MESSAGES: usize = 11;

/// A circuit, what it is about, and a form that holds.
struct Case {
    circuit: TranscriptCircuit,
    openings: Vec<Opening>,
    rng: StdRng,
}

/// One run of a case.
struct Run {
    pads: Pads,
    form: Form,
    binding: [u8; 32],
}

fn opening(shape: ModuleShape, rng: &mut StdRng) -> Opening {
    let mut weights = |n: usize| (0..n).map(|_| rng.random_range(-2048..2048)).collect::<Vec<i16>>();
    let (a, b) = (weights(shape.d_in() * shape.rank()), weights(shape.rank() * shape.d_out()));
    Opening::new(shape, a, b, Salt::random(rng)).unwrap()
}

impl Case {
    fn new(shapes: &[ModuleShape]) -> Self {
        let mut rng = StdRng::seed_from_u64(11);
        let openings = shapes.iter().map(|&shape| opening(shape, &mut rng)).collect();
        use Operand::{Message, One, Weights};
        let products = vec![
            (Message(0), Message(MESSAGES - 1)),
            (Message(3), Message(3)),
            (Weights, One),
            (One, One),
            (Message(7), One),
            (Weights, Weights),
            (Message(4), Weights),
        ];
        let shape = TranscriptShape { modules: shapes.to_vec(), messages: MESSAGES, products };
        let circuit = TranscriptCircuit::build(Security::Standard, &shape).unwrap();
        Self { circuit, openings, rng }
    }

    fn openings(&self) -> Vec<&Opening> {
        self.openings.iter().collect()
    }

    fn commitments(&self) -> Vec<Commitment> {
        self.openings.iter().map(Opening::commitment).collect()
    }

    fn run(&mut self) -> Run {
        let rng = &mut self.rng;
        let pads = Pads::random(MESSAGES, rng);
        let mut list = |n: usize| (0..n).map(|_| E::sample(rng)).collect::<Vec<_>>();
        let (lambda, kappa) = (list(MESSAGES), list(self.circuit.rows.products.len()));
        let mut form = Form { beta: list(1)[0], lambda, kappa, target: E::ZERO };
        form.target = self.values(&pads, &form).sum();
        Run { pads, form, binding: [7; 32] }
    }

    fn values(&self, pads: &Pads, form: &Form) -> Values {
        Values::new(&self.circuit.rows, &self.openings(), pads, form)
    }

    fn instance(&self, pads: &PadCommitment, form: &Form) -> Instance {
        self.circuit.rows.instance(&self.commitments(), pads, form, &[7; 32])
    }

    /// Proves with these values for this instance, whatever contradicts it.
    fn force(&mut self, values: &Values, instance: &Instance) -> Vec<u8> {
        prove_values(&self.circuit, values, instance, Contradictions::Keep, &mut self.rng).unwrap()
    }

    fn verify(&self, pads: &PadCommitment, form: &Form, proof: &[u8]) -> Result<(), TranscriptError> {
        verify(&self.circuit.verifier(), &self.commitments(), pads, form, &[7; 32], proof)
    }

    /// Whether a verifier accepts what a cheating prover with these values sends.
    fn accepted(&mut self, values: &Values, pads: &PadCommitment, form: &Form) -> bool {
        let instance = self.instance(pads, form);
        let proof = self.force(values, &instance);
        match self.verify(pads, form, &proof) {
            Ok(()) => true,
            Err(TranscriptError::Rejected(_)) => false,
            Err(error) => panic!("refused for another reason: {error}"),
        }
    }
}

fn one() -> E {
    E::ONE
}

#[test]
fn an_honest_proof_is_accepted_for_its_statement_alone() {
    for shapes in [vec![], vec![shape(3, 2, 41)], vec![shape(7, 8, 5), shape(12, 1, 50), shape(9, 4, 3)]] {
        let mut case = Case::new(&shapes);
        let Run { pads, form, binding } = case.run();
        let commitment = pads.commitment();
        assert_eq!(PadCommitment::from_bytes(&commitment.to_bytes()), Some(commitment));
        let openings: Vec<&Opening> = case.openings.iter().collect();
        let proof = prove(&case.circuit, &openings, pads, &form, &binding, &mut case.rng).unwrap();
        assert_eq!(case.verify(&commitment, &form, &proof), Ok(()));
        let verifier = case.circuit.verifier();
        assert!(verifier.soundness().provable.bits >= 100.0);

        let commitments = case.commitments();
        let refused = |commitments: &[Commitment], pads: &PadCommitment, form: &Form, binding: &[u8; 32]| {
            verify(&verifier, commitments, pads, form, binding, &proof).is_err()
        };
        let edited = |edit: &dyn Fn(&mut Form)| {
            let mut form = form.clone();
            edit(&mut form);
            refused(&commitments, &commitment, &form, &binding)
        };
        assert!(edited(&|form| form.target += one()));
        assert!(edited(&|form| form.lambda[2] += one()));
        assert!(edited(&|form| form.kappa[1] += one()));
        assert!(edited(&|form| form.beta += one()));
        assert!(edited(&|form| form.lambda.truncate(3)));
        assert!(edited(&|form| form.kappa.push(one())));
        assert!(refused(&commitments, &commitment, &form, &[8; 32]));
        let other = Pads::random(MESSAGES, &mut case.rng).commitment();
        assert!(refused(&commitments, &other, &form, &binding));
        if let Some(&shape) = shapes.first() {
            let mut others = commitments.clone();
            others[0] = opening(shape, &mut case.rng).commitment();
            assert!(refused(&others, &commitment, &form, &binding));
            assert!(refused(&others[1..], &commitment, &form, &binding));
        }
        for bytes in [&proof[..proof.len() - 1], &[&proof[..], &[0]].concat(), &[]] {
            let found = verify(&verifier, &commitments, &commitment, &form, &binding, bytes);
            assert!(matches!(found, Err(TranscriptError::Malformed(_))), "{found:?}");
        }
    }
}

#[test]
fn f_is_the_polynomial_of_all_hashed_weights() {
    let shapes = [shape(7, 8, 5), shape(12, 1, 50), shape(9, 4, 3), shape(41, 9, 81)];
    let case = Case::new(&shapes);
    let beta = QuadraticExtension([F::from_canonical_u64(12345), F::from_canonical_u64(678)]);
    let zeros = |n: usize| vec![E::ZERO; n];
    let form = Form { beta, lambda: zeros(MESSAGES), kappa: zeros(7), target: E::ZERO };
    let values = case.values(&Pads::random(MESSAGES, &mut StdRng::seed_from_u64(1)), &form);
    let weights = case.openings.iter().flat_map(|opening| opening.hashed_weights());
    let expected: E = weights.zip(beta.powers()).map(|(w, power)| power * E::from(signed(w.into()))).sum();
    assert_eq!(values.modules[0].rows[1].acc_out, expected);
}

#[test]
fn a_form_that_does_not_hold_is_not_proved() {
    let mut case = Case::new(&[shape(3, 2, 41)]);
    let Run { pads, mut form, binding } = case.run();
    form.target += one();
    let openings: Vec<&Opening> = case.openings.iter().collect();
    let found = prove(&case.circuit, &openings, pads, &form, &binding, &mut case.rng);
    assert_eq!(found, Err(TranscriptError::FalseStatement));
}

#[test]
fn what_a_prover_forces_is_refused() {
    let mut case = Case::new(&[shape(3, 2, 41), shape(2, 8, 5)]);
    let Run { pads, form, .. } = case.run();
    let commitment = pads.commitment();
    let honest = |case: &Case| case.values(&pads, &form);
    let values = honest(&case);
    assert!(case.accepted(&values, &commitment, &form), "the honest twin");

    // A false sum, with and without an accumulator that ends as it should.
    let mut other = form.clone();
    other.target += one();
    assert!(!case.accepted(&values, &commitment, &other));
    let mut values = honest(&case);
    *values.accumulators.last_mut().unwrap() += one();
    assert!(!case.accepted(&values, &commitment, &other));
    // A false product, a false row of pads.
    for at in 0..values.accumulators.len() {
        let mut values = honest(&case);
        values.accumulators[at..].iter_mut().for_each(|acc| *acc += one());
        assert!(!case.accepted(&values, &commitment, &other), "{at}");
    }

    // Another pad in the circuit, its accumulators and hashes right, under the commitment of the honest ones.
    let mut others = Pads { salt: pads.salt, values: pads.values.clone() };
    others.values[5] += one();
    let mut of_others = form.clone();
    of_others.target = case.values(&others, &form).sum();
    let values = case.values(&others, &of_others);
    assert!(!case.accepted(&values, &commitment, &of_others));
    assert!(case.accepted(&values, &others.commitment(), &of_others), "the honest twin");
    // The same, its hashes those of the honest pads.
    let mut values = case.values(&others, &of_others);
    for (row, honest) in values.pads.iter_mut().zip(&pads.sponge().0) {
        row.sboxes = honest.sboxes.clone();
        (row.middle, row.capacity) = (honest.middle, honest.capacity);
    }
    assert!(!case.accepted(&values, &commitment, &of_others));
    // Another salt.
    let mut salted = Pads { salt: pads.salt, values: pads.values.clone() };
    salted.salt[0] += F::ONE;
    let values = case.values(&salted, &form);
    assert!(!case.accepted(&values, &commitment, &form));

    // Another weight under C_m, and f + 1 with all that follows from it.
    let mut values = honest(&case);
    values.modules[1].rows[1].digits[0] ^= 1;
    values.modules[1].hash(shape(2, 8, 5));
    assert!(!case.accepted(&values, &commitment, &form));
    let mut values = honest(&case);
    values.modules[0].rows[1].acc_out += one();
    assert!(!case.accepted(&values, &commitment, &form));
    // A weight of more than three bits a digit.
    let mut values = honest(&case);
    values.modules[0].rows[2].digits[0] += 8;
    values.modules[0].rows[2].digits[1] = values.modules[0].rows[2].digits[1].wrapping_sub(1);
    values.modules[0].hash(shape(3, 2, 41));
    assert!(!case.accepted(&values, &commitment, &form));
}

/// The prover whose instance columns make a false sum come out right, under the digest of the true ones: plonky2 accepts it.
#[test]
fn instance_columns_are_the_verifiers_own() {
    let mut case = Case::new(&[]);
    let Run { pads, mut form, .. } = case.run();
    form.target += one();
    let mut cheating = form.clone();
    cheating.lambda[5] += one() / pads.values[5];
    let values = case.values(&pads, &cheating);
    assert_eq!(values.sum(), form.target);
    let mut instance = case.instance(&pads.commitment(), &cheating);
    instance.digest = case.instance(&pads.commitment(), &form).digest;
    let proof = case.force(&values, &instance);
    assert_eq!(case.verify(&pads.commitment(), &form, &proof), Err(TranscriptError::Instance));
    // The honest twin: the digest of its own columns.
    let instance = case.instance(&pads.commitment(), &cheating);
    let proof = case.force(&values, &instance);
    assert_eq!(case.verify(&pads.commitment(), &cheating, &proof), Ok(()));
}

#[test]
fn shapes_that_are_too_large_or_false_have_no_circuit() {
    let build = |messages, products| {
        let shape = TranscriptShape { modules: Vec::new(), messages, products };
        TranscriptCircuit::build(Security::Standard, &shape).err()
    };
    assert!(build(MAX_MESSAGES + 1, Vec::new()).is_some());
    assert!(build(1, vec![(Operand::One, Operand::One); MAX_PRODUCTS + 1]).is_some());
    assert!(build(1, vec![(Operand::Message(1), Operand::One)]).is_some());
    assert!(build(0, Vec::new()).is_none());
}

#[test]
fn pads_are_never_printed() {
    let pads = Pads::random(3, &mut StdRng::seed_from_u64(1));
    assert_eq!(format!("{pads:?}"), "Pads(3, secret)");
    assert_eq!(PadCommitment::from_bytes(&[255; 32]), None);
}
