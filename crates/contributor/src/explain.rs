//! What a plan is and why, for people and for programs.

use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;
use zklora_circuit::plan::{
    Arrangement, Circuit, Cost, PROOF_CELLS, PlanError, Planned, Planner, columns, degree_bits,
};
use zklora_proto::{Document, ModuleShape};

use crate::memory::readable;

/// The plan of a session that calls every module of an adapter.
#[derive(Debug)]
pub struct Explanation {
    planner: Planner,
    planned: Planned,
    names: Vec<String>,
    shapes: Vec<ModuleShape>,
}

impl Explanation {
    /// Plans these modules, given by names and shapes.
    pub fn new(planner: Planner, modules: &[(&str, ModuleShape)]) -> Result<Self, PlanError> {
        Ok(Self {
            planner,
            planned: planner.plan_modules(modules, &vec![1; modules.len()])?,
            names: modules.iter().map(|(name, _)| (*name).into()).collect(),
            shapes: modules.iter().map(|(_, shape)| *shape).collect(),
        })
    }

    /// The plan for programs.
    pub fn report(&self) -> PlanReport {
        let planned = &self.planned;
        let circuits = planned.circuits.iter().enumerate().map(|(index, circuit)| CircuitReport {
            batches: self.batches_of(index),
            modules: circuit.shapes.len(),
            rows: circuit.rows,
            degree_bits: circuit.degree_bits,
            fill: fill(circuit),
            memory: MemoryReport {
                kept: circuit.footprint.kept,
                building: circuit.footprint.building,
                proving: circuit.footprint.proving,
            },
            proof_bytes: circuit.footprint.proof,
        });
        let batches = planned.batches.iter().map(|batch| BatchReport {
            circuit: batch.circuit,
            modules: batch.modules.iter().map(|&module| self.names[module].clone()).collect(),
        });
        PlanReport {
            security: self.planner.security.name(),
            memory: self.planner.memory,
            threads: self.planner.threads,
            max_degree_bits: self.planner.max_bits,
            modules: self.names.len(),
            batches: batches.collect(),
            circuits: circuits.collect(),
            side_by_side: self.side_by_side(),
            peak_memory: self.peak(),
            proof_bytes: self.proof_bytes(),
            chosen: CostReport::new(planned.way, &planned.cost),
            tried: planned.tried.iter().map(|(way, cost)| CostReport::new(*way, cost)).collect(),
        }
    }

    /// How many batches use a circuit.
    fn batches_of(&self, circuit: usize) -> usize {
        self.planned.batches.iter().filter(|batch| batch.circuit == circuit).count()
    }

    /// The numbers of batches that are proved side by side, one group after another.
    fn groups(&self) -> Vec<(usize, usize)> {
        let mut rest = &self.planned.batches[..];
        let mut groups = Vec::new();
        while !rest.is_empty() {
            let (group, after) = rest.split_at(self.planner.at_once(&self.planned.circuits, rest));
            groups.push((group.len(), self.planner.side_by_side(&self.planned.circuits, group)));
            rest = after;
        }
        groups
    }

    /// Most proofs that run side by side.
    fn side_by_side(&self) -> usize {
        self.groups().iter().map(|(count, _)| *count).max().unwrap_or(0)
    }

    /// Memory of proving, at the worst moment.
    fn peak(&self) -> usize {
        self.groups().iter().map(|(_, bytes)| *bytes).max().unwrap_or(0)
    }

    fn proof_bytes(&self) -> usize {
        let circuits = &self.planned.circuits;
        self.planned.batches.iter().map(|batch| circuits[batch.circuit].footprint.proof).sum()
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (planner, planned) = (&self.planner, &self.planned);
        writeln!(
            f,
            "{}, parameter set {:?}, {}; proving may take {} of memory and circuits of up to 2^{} rows",
            counted(self.names.len(), "module"),
            planner.security.name(),
            counted(planner.threads, "thread"),
            if planner.memory == usize::MAX { "any amount".into() } else { readable(planner.memory) },
            planner.max_bits,
        )?;
        for (index, batch) in planned.batches.iter().enumerate() {
            let names: Vec<&str> = batch.modules.iter().map(|&module| &self.names[module][..]).collect();
            writeln!(f, "proof {index}, circuit {}: {}", batch.circuit, names.join(", "))?;
        }
        for (index, circuit) in planned.circuits.iter().enumerate() {
            writeln!(
                f,
                "circuit {index}, for {}: {} of {} rows (2^{}) used, {:.0} %; memory {} while built, {} kept, {} more for \
                 each proof; a proof has {}",
                counted(self.batches_of(index), "proof"),
                circuit.rows,
                1usize << circuit.degree_bits,
                circuit.degree_bits,
                100.0 * fill(circuit),
                readable(circuit.footprint.building),
                readable(circuit.footprint.kept),
                readable(circuit.footprint.proving),
                readable(circuit.footprint.proof),
            )?;
        }
        writeln!(
            f,
            "in all: {} and {} of proofs; up to {} side by side; at most {} of memory at once",
            cost_words(&planned.cost),
            readable(self.proof_bytes()),
            self.side_by_side(),
            readable(self.peak()),
        )?;
        writeln!(f, "why: the cheapest was {}", planned.way)?;
        writeln!(
            f,
            "  what costs: every row of a proof has {} columns; a circuit's rows count once more for building it; a proof costs \
             {:.1} million cells beside",
            columns(planner.security),
            PROOF_CELLS as f64 / 1e6,
        )?;
        for (way, cost) in &planned.tried {
            writeln!(
                f,
                "  {:.2} times the cost: {way} ({})",
                cost.cells as f64 / planned.cost.cells as f64,
                cost_words(cost),
            )?;
        }
        if !planned.tried.iter().any(|(way, _)| *way == Arrangement::Together) {
            let bits = degree_bits(planner.security, &self.shapes);
            writeln!(f, "  not possible: {}, which would take 2^{bits} rows", Arrangement::Together)?;
        }
        Ok(())
    }
}

/// A plan and why; sizes are in bytes.
#[derive(Debug, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct PlanReport {
    /// Name of the parameter set.
    pub security: &'static str,
    /// Memory that proofs may take.
    pub memory: usize,
    /// Threads that prove.
    pub threads: usize,
    /// Logarithm of the most rows that a circuit may have.
    pub max_degree_bits: usize,
    /// Modules of the adapter.
    pub modules: usize,
    /// Every proof of a session.
    pub batches: Vec<BatchReport>,
    /// Every circuit that they need.
    pub circuits: Vec<CircuitReport>,
    /// Most proofs at a time.
    pub side_by_side: usize,
    /// Memory at the worst moment.
    pub peak_memory: usize,
    /// Size of all proofs together.
    pub proof_bytes: usize,
    /// What was chosen.
    pub chosen: CostReport,
    /// What else was possible.
    pub tried: Vec<CostReport>,
}

impl Document for PlanReport {
    const FORMAT: &'static str = "zklora-plan/1";
    const PRINTED_BY: &'static str = "zklora-contributor plan --json";
}

/// One proof.
#[derive(Debug, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct BatchReport {
    /// Its circuit, as a place in the list of them.
    pub circuit: usize,
    /// Names of its modules.
    pub modules: Vec<String>,
}

/// One circuit.
#[derive(Debug, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct CircuitReport {
    /// Proofs that use it.
    pub batches: usize,
    /// Modules in each.
    pub modules: usize,
    /// Rows that are used.
    pub rows: usize,
    /// Logarithm of the rows that there are.
    pub degree_bits: usize,
    /// The share of the rows that is used.
    pub fill: f64,
    /// Memory that it takes.
    pub memory: MemoryReport,
    /// Size of a proof.
    pub proof_bytes: usize,
}

/// Memory of a circuit.
#[derive(Debug, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct MemoryReport {
    /// As long as it is there.
    pub kept: usize,
    /// At the most while it is built.
    pub building: usize,
    /// At the most while a proof is made with it, beside what is kept.
    pub proving: usize,
}

/// A way to spread modules over proofs, and what it costs.
#[derive(Debug, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct CostReport {
    /// The way, for people.
    pub way: String,
    /// Field elements of all traces: what time goes by.
    pub cells: u64,
    /// Proofs.
    pub proofs: usize,
    /// Circuits.
    pub circuits: usize,
    /// Rows of all proofs.
    pub proved_rows: u64,
    /// Rows of all circuits.
    pub circuit_rows: u64,
}

impl CostReport {
    fn new(way: Arrangement, cost: &Cost) -> Self {
        Self {
            way: way.to_string(),
            cells: cost.cells,
            proofs: cost.proofs,
            circuits: cost.circuits,
            proved_rows: cost.proved_rows,
            circuit_rows: cost.circuit_rows,
        }
    }
}

/// The share of its rows that a circuit uses.
fn fill(circuit: &Circuit) -> f64 {
    circuit.rows as f64 / (1usize << circuit.degree_bits) as f64
}

fn cost_words(cost: &Cost) -> String {
    format!(
        "{} of {} rows, {} of {} rows, {:.1} million cells",
        counted(cost.proofs, "proof"),
        cost.proved_rows,
        counted(cost.circuits, "circuit"),
        cost.circuit_rows,
        cost.cells as f64 / 1e6,
    )
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}
