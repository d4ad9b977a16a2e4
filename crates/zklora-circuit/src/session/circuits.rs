//! Built circuits, shared.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use zklora_proto::ModuleShape;

use crate::CircuitId;
use crate::circuit::{BatchCircuit, CircuitError};
use crate::parameters::Security;
use crate::plan::Planner;

/// Built circuits by id, so that equal batches and later sessions share one. `T` is [`BatchCircuit`] for a prover and
/// [`BatchVerifier`](crate::circuit::BatchVerifier) for a verifier.
pub struct Circuits<T>(Mutex<HashMap<CircuitId, Kept<T>>>);

struct Kept<T> {
    circuit: Arc<T>,
    /// When it was last asked for: greater is later.
    used: u64,
}

impl<T> Default for Circuits<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Circuits<T> {
    /// The circuit of these shapes, built by `build` if it is not there yet.
    pub(super) fn get(
        &self,
        security: Security,
        shapes: &[ModuleShape],
        build: impl FnOnce(Security, &[ModuleShape]) -> Result<T, CircuitError>,
    ) -> Result<Arc<T>, CircuitError> {
        let id = CircuitId::new(security, shapes);
        if let Some(circuit) = self.find(&id) {
            return Ok(circuit);
        }
        // The lock is not held while building, and nobody waits for another's circuit: building runs on rayon's threads,
        // which would wait for ever for a lock whose holder waits for them. Two sessions that want the same circuit at the
        // same time build it twice, and keep the first.
        let circuit = Arc::new(build(security, shapes)?);
        let mut kept = self.lock();
        let used = next_use(&kept);
        Ok(kept.entry(id).or_insert(Kept { circuit, used }).circuit.clone())
    }

    fn find(&self, id: &CircuitId) -> Option<Arc<T>> {
        let mut kept = self.lock();
        let used = next_use(&kept);
        let found = kept.get_mut(id)?;
        found.used = used;
        Some(found.circuit.clone())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<CircuitId, Kept<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Circuits<BatchCircuit> {
    /// Forgets circuits that are not among `needed`, those unused for longest first, until the others take at most this many
    /// bytes.
    pub(super) fn shrink(&self, planner: &Planner, needed: &[CircuitId], bytes: usize) {
        let mut kept = self.lock();
        let mut others: Vec<_> = kept
            .iter()
            .filter(|(id, _)| !needed.contains(id))
            .map(|(id, kept)| (kept.used, id.clone(), planner.footprint(kept.circuit.degree_bits()).kept))
            .collect();
        others.sort_by_key(|(used, ..)| *used);
        let mut total: usize = others.iter().map(|(.., bytes)| bytes).sum();
        for (_, id, size) in others {
            if total <= bytes {
                break;
            }
            kept.remove(&id);
            total -= size;
        }
    }
}

fn next_use<T>(kept: &HashMap<CircuitId, Kept<T>>) -> u64 {
    kept.values().map(|kept| kept.used).max().map_or(0, |last| last + 1)
}
