//! What the parameter sets of the proof system are worth.
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

pub use self::analysis::{FoldSize, Parameters, Report, Soundness, Term};
pub use self::proximity::Basis;

/// Rows and outputs of a batch's modules, added up, to which the guaranteed bits extend: 2^26, such as 24 modules with two
/// million rows each. A session with more still gets its exact figure from [`Soundness`].
pub const GUARANTEED_ROWS: u64 = 1 << 26;
