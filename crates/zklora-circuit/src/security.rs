//! The named parameter sets of the proof system and the identity of a circuit.

use std::str::FromStr;

use plonky2::fri::{FriConfig, FriReductionStrategy};
use plonky2::plonk::circuit_data::CircuitConfig;
use zklora_proto::ModuleShape;

use crate::D;
use crate::gate::{ROUTED_WIRES, WIRES};

/// Extra wire columns that are random in every row: see [`crate::masking`].
pub const MASK_COLUMNS: usize = D;
/// Wires that the circuit itself may use: plonky2's Poseidon gate needs 135.
const CIRCUIT_WIRES: usize = 135;
const ROUTED: usize = 80;
const _: () = assert!(WIRES <= CIRCUIT_WIRES && ROUTED_WIRES <= ROUTED);

/// Largest circuit that is built: 2^17 rows.
pub const MAX_DEGREE_BITS: usize = 17;

/// A parameter set. Bundles name it; what it means is fixed here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Security {
    /// Rate 1/8, 60 queries, 16 bits of grinding, 3 base-field challenges.
    #[default]
    Standard,
}

impl Security {
    /// The name in bundles and flags.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Standard => "standard",
        }
    }

    /// FRI queries.
    pub const fn queries(self) -> usize {
        match self {
            Self::Standard => 60,
        }
    }

    /// plonky2's configuration. Its own `zero_knowledge` mode stays off: it leaves the permutation polynomial unblinded,
    /// and [`crate::masking`] takes its place.
    pub fn config(self) -> CircuitConfig {
        CircuitConfig {
            num_wires: CIRCUIT_WIRES + MASK_COLUMNS,
            num_routed_wires: ROUTED,
            num_constants: 2,
            use_base_arithmetic_gate: true,
            security_bits: 100,
            num_challenges: 3,
            zero_knowledge: false,
            max_quotient_degree_factor: 8,
            fri_config: FriConfig {
                rate_bits: 3,
                cap_height: 4,
                proof_of_work_bits: 16,
                reduction_strategy: FriReductionStrategy::ConstantArityBits(4, 5),
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
            _ => Err(UnknownSecurity(name.chars().take(40).collect())),
        }
    }
}

/// A name that is no parameter set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("parameter set {0:?} is not known, expected \"standard\"")]
pub struct UnknownSecurity(String);

/// What a circuit is, before it is built: the parameter set and the shapes of its modules, in order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CircuitId([u8; 32]);

impl CircuitId {
    /// The id: BLAKE3 over the version of the circuit's layout, the parameter set's name and every shape.
    pub fn new(security: Security, shapes: &[ModuleShape]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("zklora v1 circuit");
        let name = security.name().as_bytes();
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name);
        hasher.update(&(shapes.len() as u64).to_le_bytes());
        for shape in shapes {
            for dimension in [shape.d_in(), shape.rank(), shape.d_out()] {
                hasher.update(&(dimension as u64).to_le_bytes());
            }
        }
        Self(*hasher.finalize().as_bytes())
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}
