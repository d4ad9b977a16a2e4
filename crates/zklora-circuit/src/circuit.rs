//! The circuit of a batch of modules.
//!
//! Public values come in through [instance columns](crate::gate::instance): β, and for each module `C_m`, `a_m` and `s_m`. The
//! verifier computes all of them itself, so that none is taken from the prover. Witness: A, B and the salt of each module.

use plonky2::field::types::Field;
use plonky2::iop::target::Target;
use plonky2::plonk::circuit_builder::CircuitBuilder;
use plonky2::plonk::circuit_data::{CircuitConfig, CircuitData, VerifierCircuitData};
use zklora_proto::ModuleShape;

use crate::CircuitId;
use crate::gate::instance::{CIRCUIT_WIRES, InstanceGate};
use crate::gate::weight::{
    CAPACITY, WEIGHTS, WIRE_ACC_IN, WIRE_ACC_OUT, WIRE_CAPACITY_IN, WIRE_CAPACITY_OUT, WeightGate, wire_q,
};
use crate::hash::Blake3Config;
use crate::layout::{Layout, ModuleLayout, PUBLIC_C, PUBLIC_HEADER, PUBLIC_S, PUBLIC_ZERO};
use crate::masking::{Accounting, HidingError, Masking};
use crate::parameters::MaskingCounts;
use crate::parameters::{MAX_DEGREE_BITS, Security};
use crate::security::{FoldSize, Parameters, Soundness};
use crate::{D, F};

/// A built circuit, for proving.
pub struct BatchCircuit {
    pub(crate) data: CircuitData<F, Blake3Config, D>,
    pub(crate) layout: Layout,
    pub(crate) masking: Masking,
}

/// A built circuit, for verifying.
pub struct BatchVerifier {
    pub(crate) data: VerifierCircuitData<F, Blake3Config, D>,
    pub(crate) layout: Layout,
}

/// A batch that no circuit can be built for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
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
        Accounting::of(&circuit.data, &circuit.masking)?.check()?;
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
        let layout = Layout::new(shapes);
        let first_mask = CIRCUIT_WIRES + layout.instance_columns();
        let config = CircuitConfig { num_wires: first_mask + counts.columns(), ..security.config() };
        let mut builder = CircuitBuilder::<F, D>::new(config);
        let id = CircuitId::new(security, shapes);
        builder.set_domain_separator(
            id.as_bytes()
                .chunks(4)
                .map(|c| F::from_canonical_u64(c.iter().fold(0, |n, &b| n << 8 | u64::from(b))))
                .collect(),
        );
        add_statement(&mut builder, &layout);
        let mut masking = Masking::add_to(&mut builder, counts, first_mask, tie);
        for _ in 0..PUBLIC_INPUTS {
            builder.add_virtual_public_input();
        }
        let mut data = builder.build::<Blake3Config>();
        masking.finish(&mut data);
        Ok(Self { data, layout, masking })
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
        BatchVerifier { data: self.data.verifier_data(), layout: self.layout.clone() }
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
        // A cheating prover may use the padding of B's rows as further outputs.
        let outputs = self.layout.modules.iter().map(|m| m.shape.d_out().next_multiple_of(WEIGHTS));
        let folds = outputs.zip(rows).map(|(d_out, &rows)| FoldSize { rows, d_out });
        Parameters::new(&self.data.common, folds.collect())
    }

    /// Logarithm of the circuit's rows.
    pub fn degree_bits(&self) -> usize {
        self.data.common.degree_bits()
    }

    /// The shapes of its modules.
    pub fn shapes(&self) -> Vec<ModuleShape> {
        self.layout.modules.iter().map(|module| module.shape).collect()
    }
}

/// plonky2's public inputs: the digest of the instance, in words of 32 bits.
pub(crate) const PUBLIC_INPUTS: usize = 8;

/// Rows of the circuit of these shapes, before it is padded to a power of two.
pub fn rows(security: Security, shapes: &[ModuleShape]) -> usize {
    const PUBLIC_INPUT_GATE: usize = 1;
    /// For the constant zero, which plonky2 asks for wherever it hashes public inputs.
    const CONSTANT_GATE: usize = 1;
    let counts = MaskingCounts::new(security);
    let rows = Layout::rows(shapes) + counts.rows();
    rows.max(counts.least_rows) + PUBLIC_INPUT_GATE + CONSTANT_GATE
}

/// Adds the statement about all modules.
fn add_statement(builder: &mut CircuitBuilder<F, D>, layout: &Layout) {
    for _ in layout.powers() {
        builder.add_gate(InstanceGate, vec![]);
    }
    for module in &layout.modules {
        debug_assert_eq!(builder.num_gates(), module.public);
        builder.add_gate(InstanceGate, vec![]);
        for _ in module.weights() {
            builder.add_gate(WeightGate { grid: module.grid }, vec![]);
        }
        add_sponge(builder, module);
        add_product(builder, layout, module);
    }
    debug_assert_eq!(builder.num_gates(), layout.end());
}

/// The rows hash to `C_m`.
pub(crate) fn add_sponge(builder: &mut CircuitBuilder<F, D>, module: &ModuleLayout) {
    let mut carried = (module.public, PUBLIC_HEADER);
    for row in module.weights() {
        connect::<CAPACITY>(builder, carried, (row, WIRE_CAPACITY_IN));
        carried = (row, WIRE_CAPACITY_OUT);
    }
    connect::<CAPACITY>(builder, carried, (module.public, PUBLIC_C));
}

/// `Σ_k w_k·⟨a, A[:,k]⟩ = s` with `w_k = Σ_j B[k][j]·β^j`.
fn add_product(builder: &mut CircuitBuilder<F, D>, layout: &Layout, module: &ModuleLayout) {
    let zero = (module.public, PUBLIC_ZERO);
    // Horner's rule over chunks of 40, the last chunk first.
    let w: Vec<(usize, usize)> = (0..module.shape.rank())
        .map(|k| {
            let mut acc = zero;
            for row in module.rows_of_b(k).rev() {
                connect::<2>(builder, acc, (row, WIRE_ACC_IN));
                for l in 0..module.grid.ranks {
                    connect::<2>(builder, layout.power(module.grid, l), (row, wire_q(l)));
                }
                acc = (row, WIRE_ACC_OUT);
            }
            acc
        })
        .collect();
    let mut acc = zero;
    for (group, row) in module.rows_of_a() {
        connect::<2>(builder, acc, (row, WIRE_ACC_IN));
        for l in 0..module.grid.ranks {
            // Columns beyond the last are multiplied by zero: no witness can make them count.
            let w = w.get(group * module.grid.ranks + l).copied().unwrap_or(zero);
            connect::<2>(builder, w, (row, wire_q(l)));
        }
        acc = (row, WIRE_ACC_OUT);
    }
    connect::<2>(builder, acc, (module.public, PUBLIC_S));
}

/// Ties `N` wires that stand side by side, each given as row and first column, to `N` others.
pub(crate) fn connect<const N: usize>(
    builder: &mut CircuitBuilder<F, D>,
    (row, column): (usize, usize),
    (to_row, to_column): (usize, usize),
) {
    for i in 0..N {
        builder.connect(Target::wire(row, column + i), Target::wire(to_row, to_column + i));
    }
}
