//! What the proofs of a circuit reveal, against what is random in them.

use plonky2::field::types::Field;
use plonky2::gates::gate::Gate;
use plonky2::plonk::circuit_data::CircuitData;
use plonky2::plonk::plonk_common::{PlonkOracle, SALT_SIZE};

use super::{CHUNKS, CIRCUIT_WIRES, Masking, SPARE_PAIRS, block};
use crate::hash::Blake3Config;
use crate::{D, F};

type Data = CircuitData<F, Blake3Config, D>;

/// The ratios of the tied pairs must be closer to uniform than 2 to the minus this.
const RATIO_BITS: f64 = 80.0;
/// A leaf's salt must have this many elements: 128 bits.
const LEAST_SALT: usize = 2;
const FIELD_BITS: usize = 64;

/// One polynomial, or one kind of value, of a proof: all counts are elements of the base field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// What it is.
    pub name: String,
    /// Linear functionals of it that a proof reveals, directly or through what else it reveals.
    pub revealed: usize,
    /// Independent random values that it is made of, and that are not counted for anything else.
    pub random: usize,
}

/// Why a circuit does not hide its witness.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HidingError {
    /// Too little is random.
    #[error("{}: {} values are revealed and {} are random", .0.name, .0.revealed, .0.random)]
    TooFew(Item),
    /// A row that should have no gate has one.
    #[error("row {row} should be free for masking, and gate {gate} is there")]
    Occupied {
        /// The row.
        row: usize,
        /// The gate's id.
        gate: String,
    },
    /// The permutation is not what the masking needs.
    #[error("column {column} of row {row} is not tied to {expected}")]
    Tie {
        /// The row.
        row: usize,
        /// The routed column.
        column: usize,
        /// What it should be tied to.
        expected: &'static str,
    },
    /// A gate reads masking columns.
    #[error("gate {gate} reads {found} columns, expected at most {expected}")]
    Columns {
        /// The gate's id.
        gate: String,
        /// Columns that it reads.
        found: usize,
        /// Columns that it may read.
        expected: usize,
    },
    /// The gate that makes the quotient random is not as it should be.
    #[error("the gate that masks the quotient {0}")]
    Gate(&'static str),
    /// The ratios of the pairs are too far from uniform.
    #[error("the ratios of the pairs are within 2^-{0} of uniform, expected 2^-{RATIO_BITS}")]
    Ratios(i32),
}

/// What the proofs of a circuit reveal, against what is random in them.
///
/// What is counted is checked against the circuit as plonky2 built it: gates of rows from the selector polynomials, ties
/// from σ, openings from the configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Accounting {
    /// What is revealed.
    pub items: Vec<Item>,
    /// Minus the logarithm of the distance between the ratios of all pairs and uniform ones, by Weil's bound.
    pub ratio_bits: f64,
}

impl Accounting {
    /// Counts. Fails if the masking is not what it is counted as; whether there is enough of it is for
    /// [`Accounting::check`] to say.
    pub fn of(data: &Data, masking: &Masking) -> Result<Self, HidingError> {
        let common = &data.common;
        let gates = gates_of_rows(data);
        check_rows(data, masking, &gates)?;
        check_gates(data, masking, &gates)?;

        let n = common.degree();
        let challenges = common.config.num_challenges;
        // A polynomial's values at all queries, and its value at ζ, which is D values.
        let opened = common.config.fri_config.num_query_rounds + D;
        let mut items = Vec::new();
        let mut item = |name: String, revealed, random| items.push(Item { name, revealed, random });

        for column in 0..CIRCUIT_WIRES {
            item(format!("wires, column {column}"), opened, masking.free.len());
        }
        for column in masking.quotient_masks() {
            item(format!("quotient, a chunk's block of column {column}"), opened, block(n));
        }
        item("quotients that need a column each".into(), challenges, masking.quotient_masks().len());
        for challenge in 0..challenges {
            // Z(x) and, through the quotient, Z(gx) for each query; then ζ and gζ.
            item(format!("Z {challenge}"), 2 * opened, masking.pairs.len().saturating_sub(SPARE_PAIRS));
        }
        for product in 0..challenges * common.num_partial_products {
            item(
                format!("partial product {product}"),
                opened,
                random_in_products(masking.pairs.len(), opened),
            );
        }
        fri(data, masking, &mut item);
        let trees = [
            ("wires", PlonkOracle::WIRES),
            ("Z", PlonkOracle::ZS_PARTIAL_PRODUCTS),
            ("quotient", PlonkOracle::QUOTIENT),
        ];
        for (tree, oracle) in trees {
            let salted = oracle.blinding && common.config.zero_knowledge && common.fri_params.leaf_hiding;
            item(format!("salt of the {tree} tree"), LEAST_SALT, if salted { SALT_SIZE } else { 0 });
        }
        Ok(Self { items, ratio_bits: ratio_bits(data, masking.pairs.len()) })
    }

    /// Fails if anything reveals more than is random in it.
    pub fn check(&self) -> Result<(), HidingError> {
        if let Some(item) = self.items.iter().find(|item| item.revealed > item.random) {
            return Err(HidingError::TooFew(item.clone()));
        }
        if self.ratio_bits < RATIO_BITS {
            return Err(HidingError::Ratios(self.ratio_bits as i32));
        }
        Ok(())
    }
}

/// What FRI reveals of the polynomial that it folds. The pads cover all of it, so that the layers are counted only to show what
/// that is good for.
fn fri(data: &Data, masking: &Masking, item: &mut impl FnMut(String, usize, usize)) {
    let params = &data.common.fri_params;
    let n = data.common.degree();
    let random = masking.pads().len() * n;
    let mut length = n;
    for (layer, bits) in params.reduction_arity_bits.iter().enumerate() {
        let values = (params.config.num_query_rounds << bits).min(length);
        item(format!("FRI, layer {layer}"), D * values, random);
        length >>= bits;
    }
    item("FRI, final polynomial".into(), D * length, random);
    item("FRI, the folded polynomial as a whole".into(), D * n, random);
}

/// How many uniform values a partial product is as good as made of.
///
/// It has values v and κ/v in the two rows of a pair, v random and κ fixed by Z. A non-trivial character of the `opened` revealed
/// values ignores at most `(opened - 1)/2` pairs and is a Kloosterman sum, below 2^-31, on each other one. The sum over all
/// p^opened characters leaves a distance below 2^-128 if as many values are revealed as this says, or fewer.
fn random_in_products(pairs: usize, opened: usize) -> usize {
    const SUM_BITS: usize = 31;
    const DISTANCE_BITS: usize = 128;
    let effective = pairs.saturating_sub(opened.saturating_sub(1) / 2);
    (2 * SUM_BITS * effective).saturating_sub(2 * DISTANCE_BITS) / FIELD_BITS
}

/// Minus the logarithm of how far the ratios of all pairs are from uniform, jointly for all challenges.
///
/// A pair has one ratio for each of the c challenges and each chunk of w routed wires: `Π (v + a)/(v + b)` over random v. A
/// non-trivial multiplicative character of a chunk's c ratios is the w-th power of a sum over a rational function with at most 2c
/// zeros and poles, which Weil's bound puts below `(2c - 1)/√p`. There are p^c characters.
fn ratio_bits(data: &Data, pairs: usize) -> f64 {
    let common = &data.common;
    let challenges = common.config.num_challenges as f64;
    let (routed, chunk) = (common.config.num_routed_wires, common.permutation_partial_product_degree());
    let wires = if routed.is_multiple_of(chunk) { chunk } else { routed % chunk };
    let chunks = (pairs * routed.div_ceil(chunk)).max(1) as f64;
    let half_field = FIELD_BITS as f64 / 2.0;
    let sum_bits = half_field - (2.0 * challenges - 1.0).log2();
    1.0 + wires as f64 * sum_bits - challenges * half_field - chunks.log2()
}

/// The index of each row's gate, from the selector polynomials.
pub(super) fn gates_of_rows(data: &Data) -> Vec<Option<usize>> {
    let mut gates = vec![None; data.common.degree()];
    for (group, range) in data.common.selectors_info.groups.iter().enumerate() {
        let selector = data.prover_only.constants_sigmas_commitment.polynomials[group].clone().fft();
        for (gate, value) in gates.iter_mut().zip(selector.values) {
            *gate = gate.or_else(|| range.clone().find(|&index| value == F::from_canonical_usize(index)));
        }
    }
    gates
}

/// Free rows and pairs have no gate; free rows are tied to nothing, and the rows of a pair to each other alone.
fn check_rows(data: &Data, masking: &Masking, gates: &[Option<usize>]) -> Result<(), HidingError> {
    let common = &data.common;
    let tied = |row: usize, to: usize, expected| {
        for column in 0..common.config.num_routed_wires {
            let id = common.k_is[column] * data.prover_only.subgroup[to];
            if data.prover_only.sigmas[row][column] != id {
                return Err(HidingError::Tie { row, column, expected });
            }
        }
        Ok(())
    };
    let free = |row: usize| {
        let gate = gates[row].map_or_else(|| "unknown".into(), |gate| common.gates[gate].0.id());
        if gate == "NoopGate" { Ok(()) } else { Err(HidingError::Occupied { row, gate }) }
    };
    for &row in &masking.free {
        free(row)?;
        tied(row, row, "itself")?;
    }
    for &[first, second] in &masking.pairs {
        for (row, other) in [(first, second), (second, first)] {
            free(row)?;
            tied(row, other, "the same column of the other row of its pair")?;
        }
    }
    Ok(())
}

/// No gate but the masking's own reads masking columns, no gate reads pads, and the masking's own is filtered by the Lagrange
/// polynomial of its one row.
fn check_gates(data: &Data, masking: &Masking, gates: &[Option<usize>]) -> Result<(), HidingError> {
    let common = &data.common;
    let own_id = Gate::<F, D>::id(&masking.gate());
    let mut own = None;
    for (index, gate) in common.gates.iter().enumerate() {
        let (id, found) = (gate.0.id(), gate.0.num_wires());
        let is_own = id == own_id;
        let expected = if is_own { masking.pads().start } else { masking.shift };
        if found > expected {
            return Err(HidingError::Columns { gate: id, found, expected });
        }
        own = own.or(is_own.then_some(index));
    }
    let own = own.ok_or(HidingError::Gate("is missing"))?;
    if gates.iter().enumerate().any(|(row, &gate)| (gate == Some(own)) != (row == masking.gate_row)) {
        return Err(HidingError::Gate("should have one row"));
    }
    let info = &common.selectors_info;
    if info.groups.len() < 2 || info.groups[info.selector_indices[own]].len() != 1 {
        return Err(HidingError::Gate("shares its selector"));
    }
    if common.quotient_degree_factor != CHUNKS {
        return Err(HidingError::Gate("is for another number of chunks"));
    }
    if common.num_lookup_polys > 0 {
        return Err(HidingError::Gate("does not cover lookups"));
    }
    Ok(())
}
