//! The named parameter sets: plonky2's configuration, and how much of a circuit is random. What they are worth is in
//! [`security`](crate::security).

use std::str::FromStr;

use plonky2::fri::{FriConfig, FriReductionStrategy};
use plonky2::plonk::circuit_data::CircuitConfig;

use crate::D;
use crate::gate::instance::CIRCUIT_WIRES;
use crate::gate::weight::ROUTED_WIRES;

/// Wires that copy constraints may use: those that need it, in whole chunks of the permutation argument.
pub(crate) const ROUTED: usize = ROUTED_WIRES.next_multiple_of(CHUNKS);
/// Challenges of the base field, for the permutation argument and to combine constraints.
pub(crate) const CHALLENGES: usize = 3;
/// Chunks of the quotient; constraints have at most this degree before their gate's selector filters them.
pub(crate) const CHUNKS: usize = 8;

/// Largest circuit that is built: 2^17 rows.
pub const MAX_DEGREE_BITS: usize = 17;

/// Pairs beyond what is revealed of Z, because ratios are uniform among the non-zero elements only.
pub(crate) const SPARE_PAIRS: usize = 2;

/// A parameter set. Bundles name it; what it means is fixed here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Security {
    /// 100 bits on theorems alone, all errors together.
    #[default]
    Standard,
    /// 100 bits on a conjecture, all errors together, in proofs of little more than half the size.
    Compact,
}

impl Security {
    /// Every set.
    pub const ALL: [Self; 2] = [Self::Standard, Self::Compact];

    /// The name in bundles and flags.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Compact => "compact",
        }
    }

    /// FRI queries.
    pub const fn queries(self) -> usize {
        match self {
            Self::Standard => 60,
            Self::Compact => 33,
        }
    }

    /// Bytes that any proof of this set has, whatever its circuit: the opened leaves of the wires, one for each query. What has fewer
    /// is none, which is seen before a circuit is built for it.
    pub const fn least_proof_bytes(self) -> u64 {
        (self.queries() * CIRCUIT_WIRES * size_of::<u64>()) as u64
    }

    /// The bits on theorems alone that every circuit of this set has, in sessions of up to [`GUARANTEED_ROWS`](crate::security::GUARANTEED_ROWS).
    pub const fn provable_bits(self) -> u32 {
        match self {
            Self::Standard => 100,
            Self::Compact => 65,
        }
    }

    /// The bits on the conjecture that every circuit of this set has, in sessions of up to [`GUARANTEED_ROWS`](crate::security::GUARANTEED_ROWS).
    pub const fn conjectured_bits(self) -> u32 {
        100
    }

    /// plonky2's configuration, without instance columns, of which a circuit has as many as its gates read. Its own `zero_knowledge` mode is off while the circuit is built: it leaves the permutation
    /// polynomial unblinded, and [`crate::masking`] takes its place.
    pub fn config(self) -> CircuitConfig {
        CircuitConfig {
            num_wires: CIRCUIT_WIRES + MaskingCounts::new(self).columns(),
            num_routed_wires: ROUTED,
            num_constants: 2,
            use_base_arithmetic_gate: true,
            security_bits: 100,
            num_challenges: CHALLENGES,
            zero_knowledge: false,
            max_quotient_degree_factor: CHUNKS,
            fri_config: FriConfig {
                rate_bits: 3,
                cap_height: 6,
                proof_of_work_bits: 16,
                reduction_strategy: FriReductionStrategy::ConstantArityBits(3, 5),
                num_query_rounds: self.queries(),
            },
        }
    }
}

impl FromStr for Security {
    type Err = UnknownSecurity;

    fn from_str(name: &str) -> Result<Self, UnknownSecurity> {
        match name {
            "standard" => Ok(Self::Standard),
            "compact" => Ok(Self::Compact),
            _ => Err(UnknownSecurity(name.chars().take(40).collect())),
        }
    }
}

/// A name that is no parameter set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("parameter set {0:?} is not known, expected \"standard\" or \"compact\"")]
pub struct UnknownSecurity(String);

/// How much randomness a circuit gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaskingCounts {
    /// Columns that are a one-time pad for what FRI folds.
    pub pads: usize,
    /// Columns that [`MaskGate`](crate::masking::MaskGate) multiplies into the quotient.
    pub quotient_masks: usize,
    /// Rows without a gate.
    pub free_rows: usize,
    /// Pairs of rows.
    pub pairs: usize,
    /// The least number of rows, so that the masks of the quotient have enough coefficients.
    pub least_rows: usize,
}

impl MaskingCounts {
    /// What hides all that a proof of this parameter set reveals.
    pub const fn new(security: Security) -> Self {
        let opened = security.queries() + D;
        Self {
            pads: D,
            quotient_masks: CHALLENGES,
            free_rows: opened,
            pairs: 2 * opened + SPARE_PAIRS,
            least_rows: CHUNKS * opened + 1,
        }
    }

    /// Wire columns that it takes: those here, and the one by which [`MaskGate`](crate::masking::MaskGate) shifts.
    pub const fn columns(&self) -> usize {
        1 + self.quotient_masks + self.pads
    }

    /// Rows that it takes, the one of [`MaskGate`](crate::masking::MaskGate) included.
    pub const fn rows(&self) -> usize {
        1 + self.free_rows + 2 * self.pairs
    }
}
