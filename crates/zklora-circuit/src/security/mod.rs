//! The named parameter sets of the proof system, what they are worth, and the identity of a circuit.
//!
//! [`Parameters`] reads off a circuit all that its soundness depends on, and [`Parameters::report`] adds up every way in
//! which a false statement may slip through, on one [`Basis`]. `docs/soundness.md` derives the terms and says why the sets are
//! what they are.
//!
//! All bits are **per query of the hash function**, round by round: a cheating prover who computes 2^k hashes succeeds with
//! probability at most 2^k times the error. Round-by-round soundness would allow to count only the largest error; the sum is
//! kept, as the more careful figure. Grinding helps the queries of FRI alone, since plonky2 asks for it nowhere else.
//!
//! # The conjecture
//! That FRI is sound up to capacity, `α = ρ`, has been refuted (eprint 2025/2010, 2025/2046, 2025/2055). What is assumed
//! here instead comes from the best construction known. In a domain with a subgroup of order s, the lines
//! `X^((ρs+1)n/s) + z·X^(ρn)` match a codeword on a share `ρ + 1/s` of it for every z that is minus a sum of `ρs + 1` different
//! s-th roots of unity. So at `α = ρ + η` some 2^(h(ρ)/η) challenges may be exceptional, with the binary entropy h, and sums
//! that agree give lists of 2^(h(ρ)/2η) codewords. [`Basis::Conjectured`] supposes that nothing does better than **twice
//! these exponents**, nor than n² exceptional challenges. As in a proof, one η serves for all terms of a report.
//!
//! # Sources
//! - \[BCIKS20\] Ben-Sasson, Carmon, Ishai, Kopparty, Saraf, "Proximity gaps for Reed-Solomon codes", eprint 2020/654.
//! - \[BCHKS25\] Ben-Sasson, Carmon, Haböck, Kopparty, Saraf, "On proximity gaps for Reed-Solomon codes", eprint 2025/2055.
//! - \[GWC19\] Gabizon, Williamson, Ciobotaru, "PLONK", eprint 2019/953.
//! - Haböck, "A summary on the FRI low degree test", eprint 2022/1216.
//! - Block, Garreta, Katz, Thaler, Tiwari, Zając, "Fiat-Shamir security of FRI and related SNARKs", eprint 2023/1071.

mod analysis;
mod proximity;
#[cfg(test)]
mod tests;

use std::str::FromStr;

use plonky2::fri::{FriConfig, FriReductionStrategy};
use plonky2::plonk::circuit_data::CircuitConfig;
use zklora_proto::ModuleShape;

pub use self::analysis::{FoldSize, Parameters, Report, Soundness, Term};
pub use self::proximity::Basis;
use crate::gate::instance::CIRCUIT_WIRES;
use crate::gate::weight::ROUTED_WIRES;
use crate::masking::MaskingCounts;

/// Wires that copy constraints may use: those that need it, in whole chunks of the permutation argument.
pub(crate) const ROUTED: usize = ROUTED_WIRES.next_multiple_of(CHUNKS);
/// Challenges of the base field, for the permutation argument and to combine constraints.
pub(crate) const CHALLENGES: usize = 3;
/// Chunks of the quotient; constraints have at most this degree before their gate's selector filters them.
pub(crate) const CHUNKS: usize = 8;

/// Largest circuit that is built: 2^17 rows.
pub const MAX_DEGREE_BITS: usize = 17;

/// Rows and outputs of a batch's modules, added up, to which the guaranteed bits extend: 2^26, such as 24 modules with two
/// million rows each. A session with more still gets its exact figure from [`Soundness`].
pub const GUARANTEED_ROWS: u64 = 1 << 26;

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

    /// The bits on theorems alone that every circuit of this set has, in sessions of up to [`GUARANTEED_ROWS`].
    pub const fn provable_bits(self) -> u32 {
        match self {
            Self::Standard => 100,
            Self::Compact => 65,
        }
    }

    /// The bits on the conjecture that every circuit of this set has, in sessions of up to [`GUARANTEED_ROWS`].
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

/// What a circuit is, before it is built: the parameter set and the shapes of its modules, in order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CircuitId([u8; 32]);

impl CircuitId {
    /// The id: BLAKE3 over the version of the circuit's layout, the parameter set's name and every shape.
    pub fn new(security: Security, shapes: &[ModuleShape]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("zklora v2 circuit");
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
