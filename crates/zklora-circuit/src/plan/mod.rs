//! Which modules go into which proof.

use zklora_proto::bundle::Plan;
use zklora_proto::{Manifest, ModuleShape};

use crate::circuit::rows;
use crate::security::{CircuitId, Security};

/// Largest circuit that the planner chooses unless told otherwise: 2^16 rows.
pub const DEFAULT_DEGREE_BITS: usize = 16;

/// What a proof costs whatever its size, grinding above all, as rows that are proved in the same time.
const PROOF_ROWS: usize = 1 << 12;

/// A module that no circuit of the allowed size holds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("module {name} alone takes a circuit of 2^{needed} rows, expected at most 2^{max}")]
pub struct PlanError {
    name: String,
    needed: usize,
    max: usize,
}

/// Plans the proofs of the modules that have rows, in the manifest's order, in circuits of at most `2^max_bits` rows.
///
/// Tries every number of contiguous batches of nearly equal length and takes the cheapest, where a batch costs its padded
/// rows and what every proof costs, and each different circuit costs its padded rows once more, for building it takes about as
/// long as proving. Of equally cheap plans the one with the fewest proofs is taken: proofs have nearly the same size.
pub fn plan(
    security: Security,
    manifest: &Manifest,
    rows: &[u64],
    max_bits: usize,
) -> Result<Plan, PlanError> {
    let modules: Vec<usize> = (0..manifest.modules().len()).filter(|&m| rows[m] > 0).collect();
    let shape = |module: usize| manifest.modules()[module].shape();
    for &module in &modules {
        let needed = degree_bits(security, &[shape(module)]);
        if needed > max_bits {
            return Err(PlanError { name: manifest.modules()[module].name().into(), needed, max: max_bits });
        }
    }
    let best = (1..=modules.len())
        .filter_map(|count| {
            let batches = split(&modules, count);
            let mut cost = batches.len() * PROOF_ROWS;
            let mut circuits = Vec::new();
            for batch in &batches {
                let shapes: Vec<ModuleShape> = batch.iter().map(|&m| shape(m)).collect();
                let bits = degree_bits(security, &shapes);
                if bits > max_bits {
                    return None;
                }
                cost += 1usize << bits;
                let id = CircuitId::new(security, &shapes);
                if !circuits.contains(&id) {
                    circuits.push(id);
                    cost += 1 << bits;
                }
            }
            Some((cost, batches))
        })
        .min_by_key(|(cost, _)| *cost);
    // Batches of one module each are always among the candidates, unless there are no modules at all.
    let batches = best.map(|(_, batches)| batches).unwrap_or_default();
    Ok(Plan { security: security.name().into(), batches })
}

/// Logarithm of the padded rows of a circuit for these shapes.
pub fn degree_bits(security: Security, shapes: &[ModuleShape]) -> usize {
    rows(security, shapes).next_power_of_two().trailing_zeros() as usize
}

/// `count` contiguous parts whose lengths differ by at most one, the longer ones first.
fn split(modules: &[usize], count: usize) -> Vec<Vec<usize>> {
    let (length, longer) = (modules.len() / count, modules.len() % count);
    let mut rest = modules;
    (0..count)
        .map(|part| {
            let (batch, after) = rest.split_at(length + usize::from(part < longer));
            rest = after;
            batch.to_vec()
        })
        .collect()
}
