//! How much memory building a circuit and proving with it take.
//!
//! plonky2 allocates nearly all of it by the shape of the circuit alone, so that it can be added up beforehand from the
//! configuration and the number of rows. What follows is the list of what is alive at the worst moment of each phase, read off
//! `qp-plonky2` 1.6.0. In all of it, n is the number of rows, N = n · 2^rate_bits the size of the domain of the Merkle trees.

use plonky2::field::types::Field;
use plonky2::fri::FriConfig;
use plonky2::plonk::circuit_data::CircuitConfig;
use plonky2::plonk::plonk_common::SALT_SIZE;

use crate::{D, F};

/// Bytes of a field element.
const ELEMENT: usize = F::BITS / 8;
/// Bytes of a target, of an index of one, and of a value that may be missing.
const TARGET: usize = 24;
const INDEX: usize = 8;
const OPTION: usize = 16;
/// Bytes of a vector beside its elements: its place in another one, and what the allocator adds.
const VECTOR: usize = 24 + 16;
/// Bytes of a hash.
const HASH: usize = 32;
/// Columns of constants beyond those of the gates: the selectors. One for each group of gates; there are two or three.
const SELECTORS: usize = 4;
/// What an allocator takes beyond what is asked of it: pages not given back and holes between blocks, in percent.
const ALLOCATOR: usize = 20;
/// An upper estimate, in bytes, of what one circuit takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// While it is there, whether anything is proved or not.
    pub kept: usize,
    /// At the worst moment of building it, in place of `kept`.
    pub building: usize,
    /// At the worst moment of each proof with it, beside `kept`.
    pub proving: usize,
    /// A proof, as it is in a bundle.
    pub proof: usize,
}

impl Footprint {
    /// What a process takes that does no work yet, with its threads' stacks, in bytes.
    pub const PROCESS: usize = 32 << 20;

    /// That of a circuit of `2^degree_bits` rows in this configuration, built and proved by this many threads.
    pub fn new(config: &CircuitConfig, degree_bits: usize, threads: usize) -> Self {
        let sizes = Sizes::new(config, degree_bits, threads);
        let with_reserve = |bytes: usize| bytes / 100 * (100 + ALLOCATOR);
        Self {
            kept: with_reserve(sizes.kept()),
            building: with_reserve(sizes.building()),
            proving: with_reserve(sizes.proving()),
            proof: sizes.proof(&config.fri_config, degree_bits),
        }
    }

    /// What it takes to build the circuit and then to make one proof at a time, in a process that does nothing else.
    pub fn alone(&self) -> usize {
        Self::PROCESS + self.building.max(self.kept + self.proving)
    }
}

/// What allocations depend on.
struct Sizes {
    rows: usize,
    domain: usize,
    wires: usize,
    routed: usize,
    /// Columns of the four trees, without salts.
    constants: usize,
    products: usize,
    quotients: usize,
    challenges: usize,
    threads: usize,
}

impl Sizes {
    fn new(config: &CircuitConfig, degree_bits: usize, threads: usize) -> Self {
        let rows = 1 << degree_bits;
        // One Z and its partial products for each challenge: together as many as chunks of routed wires.
        let chunks = config.num_routed_wires.div_ceil(config.max_quotient_degree_factor);
        Self {
            rows,
            domain: rows << config.fri_config.rate_bits,
            wires: config.num_wires,
            routed: config.num_routed_wires,
            constants: config.num_constants + SELECTORS + config.num_routed_wires,
            products: config.num_challenges * chunks,
            quotients: config.num_challenges * config.max_quotient_degree_factor,
            challenges: config.num_challenges,
            threads,
        }
    }

    /// A committed batch of this many columns: coefficients, and a tree whose leaves are vectors of their own.
    fn committed(&self, columns: usize) -> usize {
        columns * self.rows * ELEMENT + self.values(columns) + self.domain * (VECTOR + 2 * HASH)
    }

    /// A batch's values on the domain.
    fn values(&self, columns: usize) -> usize {
        columns * self.domain * ELEMENT
    }

    /// A batch at the worst moment of committing to it: its values are there twice, by columns and by leaves, and each thread
    /// holds a padded copy of a polynomial and what becomes its values.
    fn committing(&self, columns: usize) -> usize {
        self.committed(columns) + self.values(columns) + self.values(2 * self.threads)
    }

    /// One field element for each row and wire.
    fn wire_values(&self) -> usize {
        self.wires * self.rows * ELEMENT
    }

    /// plonky2's `ProverOnlyCircuitData`.
    fn kept(&self) -> usize {
        let sigmas = self.rows * (self.routed * ELEMENT + VECTOR);
        let representatives = self.wires * self.rows * INDEX;
        let roots = self.domain * ELEMENT;
        self.committed(self.constants) + sigmas + representatives + roots
    }

    fn building(&self) -> usize {
        let routed = self.routed * self.rows;
        // Gates with their constants, and a copy constraint for each routed wire, in vectors that grow by doubling.
        let gates = self.rows * (OPTION + VECTOR + self.routed);
        let constraints = routed * (2 * TARGET + 24);
        let forest = self.wires * self.rows * INDEX;
        // Wires by their representative, each with a vector of at least four; a hash table has its next power of two of places,
        // and half as many while it grows.
        let table = |entry: usize| (routed * 8 / 7).next_power_of_two() * (entry + 1);
        let partition = table(INDEX + 24) + routed * (4 * OPTION + 16);
        let neighbours = routed * (24 + 4 * OPTION + 16) + table(2 * OPTION) * 3 / 2;
        let permutation = gates + constraints + forest + partition.max(neighbours);
        let sigmas = 2 * routed * ELEMENT;
        let commitment = gates + constraints + forest + sigmas + self.committing(self.constants);
        permutation.max(commitment).max(self.kept() + gates + constraints + sigmas)
    }

    fn proving(&self) -> usize {
        // Values that are put in, for each row about as many as it has wires; and the partial witness, which may lack values.
        let rows = self.wire_values() + 4 * VECTOR * self.rows;
        let witness = rows + self.wires * self.rows * OPTION + self.wire_values();
        // The full witness stays to the end.
        let full = rows + self.wire_values();
        let wires = self.wires + SALT_SIZE;
        let products = self.products + SALT_SIZE;
        let quotients = self.quotients + SALT_SIZE;
        let wires_commitment = full + self.committing(wires);
        let committed = full + self.committed(wires);
        let products_commitment = committed + self.products * self.rows * ELEMENT + self.committing(products);
        let committed = committed + self.committed(products);
        // The quotient's values are one small vector for each point, collected once more than needed.
        let points = self.domain * (2 * VECTOR + self.challenges * ELEMENT * 2);
        let quotient = committed + points.max(self.committing(quotients));
        let committed = committed + self.committed(quotients);
        // FRI: coefficients, values, what becomes values and leaves of the first tree, in the extension field.
        let fri = committed + 5 * self.values(D);
        witness.max(wires_commitment).max(products_commitment).max(quotient).max(fri)
    }

    /// Caps, openings, and for each query a leaf and its path of every tree.
    fn proof(&self, fri: &FriConfig, degree_bits: usize) -> usize {
        let columns = self.constants + self.wires + self.products + self.quotients;
        let openings = (columns + self.challenges) * D;
        let path = |leaves: usize| leaves.saturating_sub(fri.cap_height) * HASH;
        let trees = 4 * path(degree_bits + fri.rate_bits);
        let mut query = (columns + 3 * SALT_SIZE) * ELEMENT + trees;
        let (mut caps, mut bits) = (3, degree_bits);
        for arity_bits in fri.fri_params(degree_bits, false).reduction_arity_bits {
            bits -= arity_bits;
            query += (D << arity_bits) * ELEMENT + path(bits + fri.rate_bits);
            caps += 1;
        }
        (caps << fri.cap_height) * HASH + (openings + (D << bits)) * ELEMENT + fri.num_query_rounds * query
    }
}
