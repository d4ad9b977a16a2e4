//! Which modules go into which proof.
//!
//! A plan costs the cells that its proofs fill: for each proof its padded rows times [`columns`] and [`PROOF_CELLS`], for each
//! different circuit its padded rows times [`columns`] once more, since building takes about as long as proving and a
//! verifier has to build it, too. [`Planner::plan`] tries a few ways to group modules and takes the cheapest
//! (of equally cheap ones the one with the fewest proofs); `docs/planning.md` explains them.

mod pack;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use plonky2::plonk::circuit_data::CircuitConfig;
use zklora_proto::bundle::Plan;
use zklora_proto::{Manifest, ModuleShape};

pub use self::pack::Arrangement;
use self::pack::{Packing, ShapeGroups};
use crate::circuit;
use crate::gate::weight::MOST_INSTANCE_COLUMNS;
use crate::memory::Footprint;
use crate::parameters::{MAX_DEGREE_BITS, Security};

/// Largest circuit that the planner chooses unless told otherwise: 2^16 rows.
pub const DEFAULT_DEGREE_BITS: usize = 16;

/// What a proof costs whatever its size, in cells: its bytes, which are nearly the same for all sizes, its verification and its
/// grinding. A choice rather than a measurement: about a second of proving for 300 KB.
pub const PROOF_CELLS: u64 = 1 << 20;

/// Most padded rows of all different circuits of a plan. A verifier builds no more for one bundle.
pub const MAX_CIRCUIT_ROWS: u64 = 1 << 21;

/// Plans the proofs of sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planner {
    /// The parameter set of the proofs.
    pub security: Security,
    /// Logarithm of the most rows that a circuit may have.
    pub max_bits: usize,
    /// Bytes that proving may take: one circuit and a proof with it, and more only if they fit, too.
    pub memory: usize,
    /// Threads that prove. What each of them holds counts towards `memory`.
    pub threads: usize,
}

/// A plan and why it is the one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// The plan.
    pub plan: Plan,
    /// Its batches, in the plan's order. Those of equal circuits follow one another.
    pub batches: Vec<Batch>,
    /// The different circuits, in the order in which batches first use them.
    pub circuits: Vec<Circuit>,
    /// How the modules were grouped.
    pub way: Arrangement,
    /// What it costs.
    pub cost: Cost,
    /// The cheapest plan of every way that was tried, the chosen one included, from the cheapest to the dearest. Where two
    /// ways come to the same, only one is named.
    pub tried: Vec<(Arrangement, Cost)>,
}

/// One proof of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Its modules, by index in the manifest, in the order of the circuit.
    pub modules: Vec<usize>,
    /// Its circuit: an index into [`Planned::circuits`].
    pub circuit: usize,
}

/// One circuit of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Circuit {
    /// The shapes of its modules.
    pub shapes: Vec<ModuleShape>,
    /// Its rows before padding.
    pub rows: usize,
    /// Logarithm of its rows.
    pub degree_bits: usize,
    /// What it takes in memory.
    pub footprint: Footprint,
}

/// What a plan costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// Field elements that it fills, in all: what plans are compared by.
    pub cells: u64,
    /// Its proofs.
    pub proofs: usize,
    /// Its different circuits.
    pub circuits: usize,
    /// Padded rows of all proofs together.
    pub proved_rows: u64,
    /// Padded rows of all different circuits together.
    pub circuit_rows: u64,
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// A module that no circuit of the allowed size holds.
    #[error(
        "module {name} of shape {shape} alone takes a circuit of 2^{needed} rows, expected at most 2^{max}: its rank or its \
         dimensions are too large"
    )]
    Rows {
        /// The module.
        name: String,
        /// Its shape.
        shape: String,
        /// Logarithm of the rows that it takes.
        needed: usize,
        /// Logarithm of the most rows.
        max: usize,
    },
    /// A module that cannot be proved within the memory.
    #[error(
        "module {name} of shape {shape} alone takes a circuit of 2^{bits} rows, and proving that takes {needed} MiB of memory, \
         expected at most {limit} MiB: allow more memory, or train an adapter of lower rank"
    )]
    Memory {
        /// The module.
        name: String,
        /// Its shape.
        shape: String,
        /// Logarithm of the rows that it takes.
        bits: usize,
        /// What proving it takes, in MiB.
        needed: usize,
        /// What proving may take, in MiB.
        limit: usize,
    },
    /// So many different circuits that no verifier would build them.
    #[error(
        "every plan has too many different circuits, the cheapest {0} rows of them in all, expected at most \
         {MAX_CIRCUIT_ROWS}, which is what a verifier builds for one bundle: call fewer modules in a session, or train an \
         adapter whose modules have fewer different shapes"
    )]
    Circuits(u64),
}

/// Plans without a limit of memory. See [`Planner::plan`].
pub fn plan(
    security: Security,
    manifest: &Manifest,
    rows: &[u64],
    max_bits: usize,
) -> Result<Plan, PlanError> {
    Planner { max_bits, ..Planner::new(security) }.plan(manifest, rows).map(|planned| planned.plan)
}

/// Logarithm of the padded rows of a circuit for these shapes.
pub fn degree_bits(security: Security, shapes: &[ModuleShape]) -> usize {
    circuit::rows(security, shapes).next_power_of_two().trailing_zeros() as usize
}

/// Columns that a prover commits to, of wires, Zs with their partial products and quotients.
pub fn columns(security: Security) -> u64 {
    let config = widest(security);
    let products = config.num_routed_wires.div_ceil(config.max_quotient_degree_factor);
    (config.num_wires + config.num_challenges * (products + config.max_quotient_degree_factor)) as u64
}

/// The configuration with as many instance columns as any circuit has.
fn widest(security: Security) -> CircuitConfig {
    let config = security.config();
    CircuitConfig { num_wires: config.num_wires + MOST_INSTANCE_COLUMNS, ..config }
}

impl Planner {
    /// A planner of circuits of up to [`DEFAULT_DEGREE_BITS`], without a limit of memory, for rayon's threads.
    pub fn new(security: Security) -> Self {
        Self {
            security,
            max_bits: DEFAULT_DEGREE_BITS,
            memory: usize::MAX,
            threads: rayon::current_num_threads(),
        }
    }

    /// Plans the proofs of the modules of a manifest that have rows; `rows` are in its order.
    pub fn plan(&self, manifest: &Manifest, rows: &[u64]) -> Result<Planned, PlanError> {
        let modules: Vec<_> =
            manifest.modules().iter().map(|module| (module.name(), module.shape())).collect();
        self.plan_modules(&modules, rows)
    }

    /// Plans the proofs of those of these modules, given by names and shapes, that have rows. The same shapes and the same
    /// modules with rows give the same plan.
    pub fn plan_modules(&self, modules: &[(&str, ModuleShape)], rows: &[u64]) -> Result<Planned, PlanError> {
        // Modules of the same shape are interchangeable.
        let mut by_shape = BTreeMap::<[usize; 3], Vec<usize>>::new();
        for (index, (_, shape)) in modules.iter().enumerate().filter(|&(index, _)| rows[index] > 0) {
            by_shape.entry([shape.d_in(), shape.rank(), shape.d_out()]).or_default().push(index);
        }
        let piles: Vec<(ModuleShape, Vec<usize>)> =
            by_shape.into_values().map(|pile| (modules[pile[0]].1, pile)).collect();
        for (shape, pile) in &piles {
            self.check_module(modules[pile[0]].0, *shape)?;
        }
        let (piles, largest) = (ShapeGroups::new(self.security, piles), self.largest_bits());
        let mut tried: Vec<(Arrangement, Cost, Packing)> = piles
            .packings(largest)
            .into_iter()
            .filter_map(|(way, packing)| Some((way, self.cost(&piles, &packing, largest)?, packing)))
            .collect();
        tried.sort_by_key(|(way, cost, _)| (cost.cells, cost.proofs, cost.circuits, *way));
        // Different ways may come to the same.
        tried.dedup_by(|(_, _, again), (_, _, first)| again == first);
        // Each module alone is always among what was tried, and fits: only a session without rows has no plan.
        let Some((_, cheapest, _)) = tried.first() else {
            return Ok(Planned::empty(self.security));
        };
        let too_many = PlanError::Circuits(cheapest.circuit_rows);
        tried.retain(|(_, cost, _)| cost.circuit_rows <= MAX_CIRCUIT_ROWS);
        let (way, cost, packing) = tried.first().ok_or(too_many)?;
        let mut planned = Planned { way: *way, cost: *cost, ..Planned::empty(self.security) };
        planned.plan.batches = piles.deal(packing);
        planned.tried = tried.iter().map(|(way, cost, _)| (*way, *cost)).collect();
        let shapes: Vec<ModuleShape> = modules.iter().map(|(_, shape)| *shape).collect();
        (planned.batches, planned.circuits) = self.lay_out(&shapes, &planned.plan);
        Ok(planned)
    }

    /// The batches of a plan of modules of these shapes, and their circuits.
    pub fn lay_out(&self, shapes: &[ModuleShape], plan: &Plan) -> (Vec<Batch>, Vec<Circuit>) {
        let (mut batches, mut circuits) = (Vec::new(), Vec::<Circuit>::new());
        for batch in &plan.batches {
            let shapes: Vec<_> = batch.iter().map(|&module| shapes[module]).collect();
            // Batches of equal circuits follow one another.
            if circuits.last().is_none_or(|last| last.shapes != shapes) {
                let rows = circuit::rows(self.security, &shapes);
                let degree_bits = degree_bits(self.security, &shapes);
                let footprint = self.footprint(degree_bits);
                circuits.push(Circuit { shapes, rows, degree_bits, footprint });
            }
            batches.push(Batch { modules: batch.clone(), circuit: circuits.len() - 1 });
        }
        (batches, circuits)
    }

    /// What proving a batch in a circuit of `2^bits` rows takes.
    pub fn footprint(&self, bits: usize) -> Footprint {
        Footprint::new(&widest(self.security), bits, self.threads)
    }

    /// How many of these batches, from the first on, are proved side by side: as many as fit into the memory, and at most one for
    /// each thread; at least one.
    pub fn at_once(&self, circuits: &[Circuit], batches: &[Batch]) -> usize {
        let fits = |count: &usize| self.side_by_side(circuits, &batches[..*count]) <= self.memory;
        (2..=batches.len().min(self.threads)).take_while(fits).last().unwrap_or(1)
    }

    /// What it takes to have the circuits of these batches built, one after another, and then to prove all of them side by side.
    pub fn side_by_side(&self, circuits: &[Circuit], batches: &[Batch]) -> usize {
        let mut used: Vec<usize> = batches.iter().map(|batch| batch.circuit).collect();
        used.dedup();
        let footprint = |circuit: usize| circuits[circuit].footprint;
        let kept: usize = used.iter().map(|&circuit| footprint(circuit).kept).sum();
        let proving: usize = batches.iter().map(|batch| footprint(batch.circuit).proving).sum();
        let building =
            used.iter().map(|&circuit| kept - footprint(circuit).kept + footprint(circuit).building);
        Footprint::PROCESS + building.max().unwrap_or(0).max(kept + proving)
    }

    /// Logarithm of the rows of the largest circuit that fits into memory and is allowed.
    fn largest_bits(&self) -> usize {
        let max = self.max_bits.min(MAX_DEGREE_BITS);
        (0..=max).take_while(|&bits| self.footprint(bits).alone() <= self.memory).last().unwrap_or(0)
    }

    fn check_module(&self, name: &str, shape: ModuleShape) -> Result<(), PlanError> {
        let (bits, max) = (degree_bits(self.security, &[shape]), self.max_bits.min(MAX_DEGREE_BITS));
        let [name, shape] = [name.into(), format!("{} x {} x {}", shape.d_in(), shape.rank(), shape.d_out())];
        if bits > max {
            return Err(PlanError::Rows { name, shape, needed: bits, max });
        }
        let needed = self.footprint(bits).alone();
        if needed > self.memory {
            let (needed, limit) = (needed.div_ceil(1 << 20), self.memory >> 20);
            return Err(PlanError::Memory { name, shape, bits, needed, limit });
        }
        Ok(())
    }

    /// The exact cost of a packing; none if one of its circuits is too large.
    fn cost(&self, piles: &ShapeGroups, packing: &Packing, largest: usize) -> Option<Cost> {
        let mut cost = Cost { cells: 0, proofs: 0, circuits: 0, proved_rows: 0, circuit_rows: 0 };
        for (shapes, copies) in piles.circuits(packing) {
            let bits = degree_bits(self.security, &shapes);
            if bits > largest {
                return None;
            }
            cost.proofs += copies;
            cost.circuits += 1;
            cost.proved_rows += (copies as u64) << bits;
            cost.circuit_rows += 1 << bits;
        }
        cost.cells = columns(self.security) * (cost.proved_rows + cost.circuit_rows)
            + PROOF_CELLS * cost.proofs as u64;
        Some(cost)
    }
}

impl Planned {
    /// The plan of a session without rows.
    fn empty(security: Security) -> Self {
        Self {
            plan: Plan { security: security.name().into(), batches: Vec::new() },
            batches: Vec::new(),
            circuits: Vec::new(),
            way: Arrangement::Together,
            cost: Cost { cells: 0, proofs: 0, circuits: 0, proved_rows: 0, circuit_rows: 0 },
            tried: Vec::new(),
        }
    }
}
