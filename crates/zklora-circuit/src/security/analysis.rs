//! Every way in which a false statement may slip through, with its probability.

use std::fmt;

use plonky2::field::types::Field64;
use plonky2::fri::FriConfig;
use plonky2::plonk::circuit_data::CommonCircuitData;
use serde::Serialize;

use super::proximity::{Basis, Code, Proximity, exp2};
use crate::{D, F};

/// All that the soundness of a proof depends on.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameters {
    /// Logarithm of the circuit's rows.
    pub degree_bits: usize,
    /// Degree of the extension field that ζ and FRI's challenges come from.
    pub extension: usize,
    /// Challenges β, γ and α of the base field, each.
    pub challenges: usize,
    /// Columns of the four oracles: constants and σ, wires, Z and partial products, chunks of the quotients.
    pub columns: [usize; 4],
    /// Columns under copy constraints.
    pub routed_wires: usize,
    /// Terms that powers of α combine: for each challenge one for Z(1) = 1 and one for each chunk of the permutation's
    /// product, and the gates' constraints.
    pub terms: usize,
    /// Chunks of one quotient. Constraints have one degree more.
    pub quotient_degree_factor: usize,
    /// FRI: minus the logarithm of the rate.
    pub rate_bits: usize,
    /// FRI: logarithm of the arity of each folding.
    pub arity_bits: Vec<usize>,
    /// FRI: queries.
    pub queries: usize,
    /// FRI: grinding before the queries. Nothing else in plonky2 is ground for.
    pub grinding_bits: u32,
    /// The modules folded outside the circuit.
    pub folds: Vec<FoldSize>,
}

/// What the folding of one module depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoldSize {
    /// Rows of the session.
    pub rows: u64,
    /// Length of a delta.
    pub d_out: usize,
}

impl Parameters {
    pub(crate) fn new(common: &CommonCircuitData<F, D>, folds: Vec<FoldSize>) -> Self {
        let config = &common.config;
        let products = 1 + common.num_partial_products;
        Self {
            degree_bits: common.degree_bits(),
            extension: D,
            challenges: config.num_challenges,
            columns: [
                common.num_constants + config.num_routed_wires,
                config.num_wires,
                config.num_challenges * products,
                config.num_challenges * common.quotient_degree_factor,
            ],
            routed_wires: config.num_routed_wires,
            terms: config.num_challenges * (1 + products) + common.num_gate_constraints,
            quotient_degree_factor: common.quotient_degree_factor,
            rate_bits: config.fri_config.rate_bits,
            arity_bits: common.fri_params.reduction_arity_bits.clone(),
            queries: config.fri_config.num_query_rounds,
            grinding_bits: config.fri_config.proof_of_work_bits,
            folds,
        }
    }

    /// The same circuit with other rows: what a larger circuit of the same kind would be.
    #[must_use]
    pub fn with_degree(mut self, degree_bits: usize, config: &FriConfig) -> Self {
        self.degree_bits = degree_bits;
        self.arity_bits = config.fri_params(degree_bits, false).reduction_arity_bits;
        self
    }

    /// The report on one basis, with the parameter of its proof (m, η) chosen for the most bits.
    pub fn report(&self, basis: Basis) -> Report {
        let code = Code { degree_bits: self.degree_bits, rate_bits: self.rate_bits };
        let reports = basis.choices(code).into_iter().map(|choice| self.report_with(basis, code, choice));
        reports.max_by(|a, b| a.bits.total_cmp(&b.bits)).unwrap_or_else(|| Report::new(basis, Vec::new()))
    }

    fn report_with(&self, basis: Basis, code: Code, proximity: Proximity) -> Report {
        let base = (F::ORDER as f64).log2();
        let extension = self.extension as f64 * base;
        let challenges = self.challenges as f64;
        let (rows, list) = (code.dimension(), proximity.list);
        let mut terms = Vec::new();
        let mut term = |name: &str, bits: f64, source| {
            terms.push(Term { name: name.into(), bits: bits.max(0.0), source });
        };

        let degrees: f64 = self.folds.iter().map(|f| f.rows as f64 + f.d_out as f64).sum();
        term(
            "fold (Freivalds, all modules)",
            FOLD_EXTENSION * base - degrees.max(1.0).log2(),
            "Schwartz-Zippel; each try takes a signature of the client",
        );
        // Twice: the two products may agree by chance, or a denominator may vanish.
        let factors = 2.0 * rows * self.routed_wires as f64;
        term("permutation argument", challenges * (base - factors.log2()) - list, "PLONK, GWC19 sec. 5");
        let combined = (self.terms as f64 - 1.0).log2();
        term("constraint combination", challenges * (base - combined) - list, "Schwartz-Zippel");
        // Committed polynomials have degree up to `rows`; ζ may also fall into the domain or among the rows.
        let degree = (self.quotient_degree_factor + 1) as f64 * rows + code.length() + rows;
        term("out-of-domain point", extension - degree.log2() - list, "DEEP-ALI, Haboeck 2022/1216 sec. 5");
        // One curve over all columns opened at ζ and then the Zs opened at gζ.
        let curve = self.columns.iter().sum::<usize>() + self.challenges - 1;
        let folding = |curve: usize| extension - proximity.exceptional - (curve as f64).log2();
        term("FRI batching", folding(curve), basis.source());
        for (round, arity_bits) in self.arity_bits.iter().enumerate() {
            term(
                &format!("FRI folding, round {}", round + 1),
                folding((1 << arity_bits) - 1),
                basis.source(),
            );
        }
        let queries = -(self.queries as f64) * proximity.agreement.log2();
        term("FRI queries and grinding", queries + f64::from(self.grinding_bits), "BCIKS20 Thm 8.3");
        term("Merkle trees and transcript", HASH_BITS, "BLAKE3, collisions of 256 bits");
        term("commitments and public inputs", HASH_BITS, "Poseidon, capacity of 256 bits");
        Report::new(basis, terms)
    }
}

/// All error terms on one basis.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// What the terms rest on.
    pub basis: Basis,
    /// Each error.
    pub terms: Vec<Term>,
    /// Minus the logarithm of the sum of all errors.
    pub bits: f64,
}

/// One error, for each query of the hash function that a cheating prover makes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Term {
    /// Where it comes from.
    pub name: String,
    /// Minus its logarithm.
    pub bits: f64,
    /// Who bounds it.
    pub source: &'static str,
}

impl Report {
    fn new(basis: Basis, terms: Vec<Term>) -> Self {
        let sum: f64 = terms.iter().map(|term| exp2(-term.bits)).sum();
        // Without any admissible choice there are no terms and nothing is claimed.
        let bits = if terms.is_empty() { 0.0 } else { (-sum.log2()).max(0.0) };
        Self { basis, terms, bits }
    }

    /// The term with the fewest bits.
    pub fn weakest(&self) -> Option<&Term> {
        self.terms.iter().min_by(|a, b| a.bits.total_cmp(&b.bits))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.basis.name())?;
        for term in &self.terms {
            writeln!(f, "  {:<30} {:>6.1}  {}", term.name, term.bits, term.source)?;
        }
        write!(f, "  {:<30} {:>6.1}", "all together", self.bits)?;
        match self.weakest() {
            Some(weakest) => writeln!(f, "  weakest: {}", weakest.name),
            None => writeln!(f),
        }
    }
}

/// What a proof is worth.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Soundness {
    /// On theorems alone: the better of [`Basis::UniqueDecoding`] and [`Basis::Johnson`].
    pub provable: Report,
    /// On the conjecture, or on theorems where these give more.
    pub conjectured: Report,
}

impl Soundness {
    /// The reports of these parameters.
    pub fn new(parameters: &Parameters) -> Self {
        let better = |a: Report, b: Report| if b.bits > a.bits { b } else { a };
        let provable = better(parameters.report(Basis::UniqueDecoding), parameters.report(Basis::Johnson));
        let conjectured = better(provable.clone(), parameters.report(Basis::Conjectured));
        Self { provable, conjectured }
    }
}

impl fmt::Display for Soundness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.provable.fmt(f)?;
        if self.conjectured.basis != self.provable.basis {
            self.conjectured.fmt(f)?;
        }
        Ok(())
    }
}

/// α and β of [`crate::challenge`] come from the quadratic extension, whatever the proof system's own extension.
const FOLD_EXTENSION: f64 = 2.0;
/// Bits against a birthday collision in 256 bits.
const HASH_BITS: f64 = 128.0;
