//! The circuit of a batch of modules.
//!
//! Public inputs, in this order: β¹ to β²⁰; then for each module `C_m` (4 elements), `a_m` (2·d_in) and `s_m` (2). The
//! verifier computes all of them itself, so that none is taken from the prover. Witness: A, B and the salt of each module.

use std::collections::BTreeSet;

use plonky2::field::types::Field;
use plonky2::hash::poseidon::PoseidonHash;
use plonky2::iop::target::Target;
use plonky2::plonk::circuit_builder::CircuitBuilder;
use plonky2::plonk::circuit_data::{CircuitConfig, CircuitData, VerifierCircuitData};
use zklora_proto::ModuleShape;

use crate::commitment::header;
use crate::gate::{
    WEIGHTS, WIRE_ACC_IN, WIRE_ACC_OUT, WIRE_C, WIRE_M, WIRE_WORDS, WORDS, WeightGate, wire_p,
};
use crate::hash::Blake3Config;
use crate::masking::{Accounting, HidingError, Masking, MaskingCounts};
use crate::security::{CIRCUIT_WIRES, CircuitId, FoldSize, MAX_DEGREE_BITS, Parameters, Security, Soundness};
use crate::{D, F};

/// A built circuit, for proving.
pub struct BatchCircuit {
    pub(crate) data: CircuitData<F, Blake3Config, D>,
    pub(crate) layout: Layout,
}

/// A built circuit, for verifying.
pub struct BatchVerifier {
    pub(crate) data: VerifierCircuitData<F, Blake3Config, D>,
    pub(crate) shapes: Vec<ModuleShape>,
}

/// Where the values of a batch are in its circuit.
pub(crate) struct Layout {
    pub(crate) betas: Vec<[Target; 2]>,
    pub(crate) modules: Vec<ModuleLayout>,
    pub(crate) masking: Masking,
}

/// Where the values of one module are.
pub(crate) struct ModuleLayout {
    pub(crate) shape: ModuleShape,
    pub(crate) commitment: [Target; 4],
    pub(crate) a: Vec<[Target; 2]>,
    pub(crate) s: [Target; 2],
    pub(crate) salt: [Target; 4],
    /// The first row of the module's columns of A; the rows of B follow.
    pub(crate) first_row: usize,
}

/// A batch that no circuit can be built for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CircuitError {
    /// More rows than the largest circuit.
    #[error("the batch takes {rows} rows, expected at most 2^{MAX_DEGREE_BITS}")]
    TooLarge {
        /// Rows that the batch needs.
        rows: usize,
    },
    /// No modules.
    #[error("the batch has no modules")]
    Empty,
    /// Proofs of the circuit would not hide their witness: an error of this program.
    #[error("the circuit does not hide its witness: {0}")]
    Hiding(#[from] HidingError),
}

impl BatchCircuit {
    /// Builds the circuit of modules of these shapes, in this order. The same shapes give the same circuit in every process.
    pub fn build(security: Security, shapes: &[ModuleShape]) -> Result<Self, CircuitError> {
        let circuit = Self::build_with(security, shapes, MaskingCounts::new(security), true)?;
        Accounting::of(&circuit)?.check()?;
        Ok(circuit)
    }

    /// Builds a circuit with any masking, tied or not, and does not check that it hides anything.
    pub(crate) fn build_with(
        security: Security,
        shapes: &[ModuleShape],
        counts: MaskingCounts,
        tie: bool,
    ) -> Result<Self, CircuitError> {
        Self::check_size(security, shapes)?;
        let config = CircuitConfig { num_wires: CIRCUIT_WIRES + counts.columns(), ..security.config() };
        let mut builder = CircuitBuilder::<F, D>::new(config);
        let id = CircuitId::new(security, shapes);
        builder.set_domain_separator(
            id.as_bytes()
                .chunks(4)
                .map(|c| F::from_canonical_u64(c.iter().fold(0, |n, &b| n << 8 | u64::from(b))))
                .collect(),
        );
        let betas: Vec<[Target; 2]> = (0..WEIGHTS).map(|_| public_pair(&mut builder)).collect();
        let modules = shapes.iter().map(|&shape| add_module(&mut builder, &betas, shape)).collect();
        let mut masking = Masking::add_to(&mut builder, counts, tie);
        let mut data = builder.build::<Blake3Config>();
        masking.finish(&mut data);
        Ok(Self { data, layout: Layout { betas, modules, masking } })
    }

    /// Whether a circuit may be built for modules of these shapes. Costs nothing.
    pub fn check_size(security: Security, shapes: &[ModuleShape]) -> Result<(), CircuitError> {
        if shapes.is_empty() {
            return Err(CircuitError::Empty);
        }
        let rows = rows(security, shapes);
        if rows > 1 << MAX_DEGREE_BITS {
            return Err(CircuitError::TooLarge { rows });
        }
        Ok(())
    }

    /// The part of the circuit that a verifier needs.
    pub fn verifier(&self) -> BatchVerifier {
        BatchVerifier {
            data: self.data.verifier_data(),
            shapes: self.layout.modules.iter().map(|m| m.shape).collect(),
        }
    }

    /// plonky2's digest of the built circuit: the same for the same shapes in every process.
    pub fn digest(&self) -> [u8; 32] {
        self.data.verifier_only.circuit_digest.0
    }

    /// Logarithm of the circuit's rows.
    pub fn degree_bits(&self) -> usize {
        self.data.common.degree_bits()
    }
}

impl BatchVerifier {
    /// Builds the circuit of modules of these shapes and keeps what a verifier needs.
    pub fn build(security: Security, shapes: &[ModuleShape]) -> Result<Self, CircuitError> {
        Ok(BatchCircuit::build(security, shapes)?.verifier())
    }

    /// What a proof of this circuit is worth, if `rows` are the rows that the session has of each module.
    pub fn soundness(&self, rows: &[u64]) -> Soundness {
        Soundness::new(&self.parameters(rows))
    }

    /// What the soundness of this circuit's proofs depends on.
    pub fn parameters(&self, rows: &[u64]) -> Parameters {
        let folds =
            self.shapes.iter().zip(rows).map(|(shape, &rows)| FoldSize { rows, d_out: shape.d_out() });
        Parameters::new(&self.data.common, folds.collect())
    }

    /// Logarithm of the circuit's rows.
    pub fn degree_bits(&self) -> usize {
        self.data.common.degree_bits()
    }
}

/// Rows of the circuit of these shapes, before it is padded to a power of two.
pub fn rows(security: Security, shapes: &[ModuleShape]) -> usize {
    /// Absorbed by one Poseidon row.
    const RATE: usize = 8;
    const PUBLIC_INPUT_GATE: usize = 1;
    /// Constants of one constant row.
    const CONSTANTS: usize = 2;
    let counts = MaskingCounts::new(security);
    let mut public_inputs = 2 * WEIGHTS;
    let mut rows = counts.rows();
    let mut constants = BTreeSet::from([0, 1]);
    for shape in shapes {
        let weight_rows = weight_rows(*shape);
        constants.extend(header(*shape));
        rows += weight_rows + (2 * RATE / 2 + WORDS * weight_rows).div_ceil(RATE);
        public_inputs += 4 + 2 * shape.d_in() + 2;
    }
    let added_by_plonky2 =
        public_inputs.div_ceil(RATE) + PUBLIC_INPUT_GATE + constants.len().div_ceil(CONSTANTS);
    rows.max(counts.least_rows) + added_by_plonky2
}

/// Rows of [`WeightGate`] that a module takes.
pub(crate) fn weight_rows(shape: ModuleShape) -> usize {
    shape.rank() * (shape.d_in().div_ceil(WEIGHTS) + shape.d_out().div_ceil(WEIGHTS))
}

/// Adds the statement about one module.
fn add_module(builder: &mut CircuitBuilder<F, D>, betas: &[[Target; 2]], shape: ModuleShape) -> ModuleLayout {
    let commitment = [(); 4].map(|()| builder.add_virtual_public_input());
    let a: Vec<[Target; 2]> = (0..shape.d_in()).map(|_| public_pair(builder)).collect();
    let s = public_pair(builder);
    let salt = builder.add_virtual_target_arr();
    let zero = [builder.zero(), builder.zero()];
    let one = [builder.one(), builder.zero()];

    let first_row = builder.num_gates();
    let count = weight_rows(shape);
    for _ in 0..count {
        builder.add_gate(WeightGate, vec![]);
    }
    let rows_of_a = shape.rank() * shape.d_in().div_ceil(WEIGHTS);
    let (rows_of_a, rows_of_b) = (first_row..first_row + rows_of_a, first_row + rows_of_a..first_row + count);
    let connect = |builder: &mut CircuitBuilder<F, D>, row, wire, value: [Target; 2]| {
        for (part, target) in value.into_iter().enumerate() {
            builder.connect(Target::wire(row, wire + part), target);
        }
    };

    // w_k = Σ_j B[k][j]·β^j by Horner's rule over chunks of 20, the last chunk first.
    let chunks_of_b = shape.d_out().div_ceil(WEIGHTS);
    let mut w = Vec::with_capacity(shape.rank());
    for k in 0..shape.rank() {
        let mut acc = zero;
        for chunk in (0..chunks_of_b).rev() {
            let row = rows_of_b.start + k * chunks_of_b + chunk;
            connect(builder, row, WIRE_C, betas[WEIGHTS - 1]);
            connect(builder, row, WIRE_M, one);
            connect(builder, row, WIRE_ACC_IN, acc);
            for j in 0..WEIGHTS {
                // Weights beyond the last output are multiplied by zero: no witness can make them count.
                let power = match j {
                    _ if chunk * WEIGHTS + j >= shape.d_out() => zero,
                    0 => one,
                    _ => betas[j - 1],
                };
                connect(builder, row, wire_p(j), power);
            }
            acc = [0, 1].map(|part| Target::wire(row, WIRE_ACC_OUT + part));
        }
        w.push(acc);
    }

    // s = Σ_k w_k·⟨a, A[:,k]⟩, accumulated over all rows of all columns.
    let chunks_of_a = shape.d_in().div_ceil(WEIGHTS);
    let mut acc = zero;
    for (k, &w) in w.iter().enumerate() {
        for chunk in 0..chunks_of_a {
            let row = rows_of_a.start + k * chunks_of_a + chunk;
            connect(builder, row, WIRE_C, one);
            connect(builder, row, WIRE_M, w);
            connect(builder, row, WIRE_ACC_IN, acc);
            for j in 0..WEIGHTS {
                let factor = a.get(chunk * WEIGHTS + j).copied().unwrap_or(zero);
                connect(builder, row, wire_p(j), factor);
            }
            acc = [0, 1].map(|part| Target::wire(row, WIRE_ACC_OUT + part));
        }
    }
    for (acc, s) in acc.into_iter().zip(s) {
        builder.connect(acc, s);
    }

    let mut input: Vec<Target> =
        header(shape).iter().map(|&word| builder.constant(F::from_canonical_u64(word))).collect();
    input.extend(salt);
    for row in first_row..first_row + count {
        input.extend((0..WORDS).map(|word| Target::wire(row, WIRE_WORDS + word)));
    }
    let hash = builder.hash_n_to_hash_no_pad::<PoseidonHash>(input);
    for (hash, commitment) in hash.elements.into_iter().zip(commitment) {
        builder.connect(hash, commitment);
    }
    ModuleLayout { shape, commitment, a, s, salt, first_row }
}

fn public_pair(builder: &mut CircuitBuilder<F, D>) -> [Target; 2] {
    [builder.add_virtual_public_input(), builder.add_virtual_public_input()]
}
