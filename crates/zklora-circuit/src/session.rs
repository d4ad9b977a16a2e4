//! A whole session: from a transcript to the proofs of a bundle, and from a bundle to a verdict.

use std::collections::HashMap;
use std::io::{Read, Seek};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rayon::prelude::*;
use zklora_proto::bundle::{Bundle, BundleError, Plan};
use zklora_proto::{Call, Manifest, ModuleShape, SignedManifest, SignedReceipt, TranscriptHasher};

use crate::challenge::Challenges;
use crate::circuit::{BatchCircuit, BatchVerifier, CircuitError};
use crate::commitment::Opening;
use crate::fold::{Fold, Folder};
use crate::plan::{PlanError, Planner};
use crate::prove::{ProveError, prove};
use crate::security::{CircuitId, Security, Soundness, UnknownSecurity};
use crate::verify::{VerifyError, verify};

/// Built circuits by id, so that equal batches and later sessions share one. `T` is [`BatchCircuit`] for a prover and
/// [`BatchVerifier`] for a verifier.
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
    fn get(
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
    fn shrink(&self, planner: &Planner, needed: &[CircuitId], bytes: usize) {
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

/// Why a session was not proved.
#[derive(Debug, thiserror::Error)]
pub enum ProveSessionError {
    /// The receipt is about another transcript.
    #[error("the receipt does not belong to this transcript")]
    Transcript,
    /// The openings are not those of the manifest.
    #[error("module {0}: the stored weights and salt do not open the manifest's commitment")]
    Opening(String),
    /// No plan exists.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A circuit cannot be built.
    #[error(transparent)]
    Circuit(#[from] CircuitError),
    /// A batch was not proved.
    #[error("batch {batch}: {error}")]
    Prove {
        /// Which batch.
        batch: usize,
        /// Why.
        error: ProveError,
    },
}

/// Proves a session: plans its batches and proves them side by side as far as the planner's memory allows. Circuits that
/// `circuits` keeps beside those at work count towards that memory and are forgotten where there is no room.
///
/// `openings` are in the manifest's order. `progress` is called with the batches done and their number, from any thread.
#[allow(
    clippy::too_many_arguments,
    reason = "each is a different thing; a struct of them would be made once"
)]
pub fn prove_session(
    manifest: &SignedManifest,
    receipt: &SignedReceipt,
    calls: &[Call],
    openings: &[Opening],
    planner: &Planner,
    circuits: &Circuits<BatchCircuit>,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Result<(Plan, Vec<Vec<u8>>), ProveSessionError> {
    let entries = manifest.manifest().modules();
    for (index, entry) in entries.iter().enumerate() {
        if openings.get(index).is_none_or(|o| o.commitment() != *entry.commitment()) {
            return Err(ProveSessionError::Opening(entry.name().into()));
        }
    }
    let security = planner.security;
    let planned = planner.plan(manifest.manifest(), &receipt.receipt().rows)?;
    let ids = circuit_ids(manifest.manifest(), &planned.plan, security);
    let challenges = Challenges::derive(receipt, &planned.plan, &ids);
    let (folds, _) = fold(manifest.manifest(), receipt, challenges, |visit| calls.iter().try_for_each(visit))
        .map_err(|_| ProveSessionError::Transcript)?;

    let total = planned.batches.len();
    let done = AtomicUsize::new(0);
    progress(0, total);
    let prove_batch = |(batch, circuit): (usize, Arc<BatchCircuit>)| {
        let modules = &planned.batches[batch].modules;
        let proof = prove(
            &circuit,
            &modules.iter().map(|&m| &openings[m]).collect::<Vec<_>>(),
            &modules.iter().map(|&m| &folds[m]).collect::<Vec<_>>(),
            challenges.beta,
            &mut rand::make_rng::<StdRng>(),
        )
        .map_err(|error| ProveSessionError::Prove { batch, error })?;
        progress(done.fetch_add(1, Ordering::Relaxed) + 1, total);
        Ok(proof)
    };
    let mut proofs = Vec::with_capacity(total);
    while proofs.len() < total {
        // One proof keeps all cores busy except in its serial parts: side by side they fill each other's.
        let first = proofs.len();
        let rest = &planned.batches[first..];
        let group = &rest[..planner.at_once(&planned, rest)];
        circuits.shrink(
            planner,
            &ids[first..first + group.len()],
            planner.memory.saturating_sub(planner.side_by_side(&planned, group)),
        );
        // One after another, so that equal batches build one circuit.
        let group = (first..)
            .zip(group)
            .map(|(index, batch)| {
                let shapes = &planned.circuits[batch.circuit].shapes;
                Ok((index, circuits.get(security, shapes, BatchCircuit::build)?))
            })
            .collect::<Result<Vec<_>, CircuitError>>()?;
        let proofs_of_group: Vec<Result<_, ProveSessionError>> =
            group.into_par_iter().map(prove_batch).collect();
        for proof in proofs_of_group {
            proofs.push(proof?);
        }
    }
    Ok((planned.plan, proofs))
}

/// What a valid bundle shows.
#[derive(Debug, Clone)]
pub struct VerifiedSession {
    /// The parameter set of its proofs.
    pub security: Security,
    /// The challenges under which it holds.
    pub challenges: Challenges,
    /// The folded transcript of every module, in the manifest's order; empty for modules without rows.
    pub folds: Vec<Fold>,
    /// Each proof.
    pub batches: Vec<VerifiedBatch>,
    /// Reading, hashing and folding the transcript.
    pub fold_time: Duration,
}

/// One valid proof.
#[derive(Debug, Clone)]
pub struct VerifiedBatch {
    /// The modules it covers, by index in the manifest.
    pub modules: Vec<usize>,
    /// Logarithm of the circuit's rows.
    pub degree_bits: usize,
    /// Size of the proof.
    pub proof_bytes: usize,
    /// What the proof is worth.
    pub soundness: Soundness,
    /// Building the circuit, nothing if it was there already.
    pub build_time: Duration,
    /// Checking the proof.
    pub verify_time: Duration,
}

/// Why a bundle was refused.
#[derive(Debug, thiserror::Error)]
pub enum VerifySessionError {
    /// The file is no valid bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A session without rows.
    #[error("the session has no rows, so that nothing is proved")]
    Empty,
    /// Proofs of parameters that this verifier does not know.
    #[error(transparent)]
    Security(#[from] UnknownSecurity),
    /// The transcript is not the one that both parties signed for.
    #[error("the transcript is not the one of the receipt: {what} is {found}, the receipt says {signed}")]
    Transcript {
        /// What differs.
        what: &'static str,
        /// In the transcript.
        found: String,
        /// In the receipt.
        signed: String,
    },
    /// A circuit that is not built.
    #[error("proof {batch}: {error}")]
    Circuit {
        /// Which proof.
        batch: usize,
        /// Why not.
        error: CircuitError,
    },
    /// A proof that does not hold.
    #[error("proof {batch} (of {modules}): {error}")]
    Proof {
        /// Which proof.
        batch: usize,
        /// The names of its modules.
        modules: String,
        /// Why not.
        error: VerifyError,
    },
}

/// Verifies a bundle: that its transcript is the signed one and that its proofs show every delta of it.
///
/// Nothing that checks comes from the bundle: circuits are built from the shapes of the signed manifest, challenges and
/// public inputs are computed here. Whether the manifest is the right one is for the caller to say, who knows the pinned id.
pub fn verify_session<R: Read + Seek>(
    bundle: &mut Bundle<R>,
    circuits: &Circuits<BatchVerifier>,
) -> Result<VerifiedSession, VerifySessionError> {
    verify_session_with(bundle, circuits, BatchVerifier::build)
}

/// The same, where what `circuits` does not have comes from `build`. That has to give what [`BatchVerifier::build`] gives,
/// and may be quicker about it.
pub fn verify_session_with<R: Read + Seek>(
    bundle: &mut Bundle<R>,
    circuits: &Circuits<BatchVerifier>,
    build: impl Fn(Security, &[ModuleShape]) -> Result<BatchVerifier, CircuitError>,
) -> Result<VerifiedSession, VerifySessionError> {
    let security: Security = bundle.plan().security.parse()?;
    let (manifest, receipt, plan) =
        (bundle.manifest().clone(), bundle.receipt().clone(), bundle.plan().clone());
    let entries = manifest.manifest().modules();
    // Before anything is folded or built: is every circuit one that may be built?
    for (batch, modules) in plan.batches.iter().enumerate() {
        BatchCircuit::check_size(security, &shapes(manifest.manifest(), modules))
            .map_err(|error| VerifySessionError::Circuit { batch, error })?;
    }
    if plan.batches.is_empty() {
        return Err(VerifySessionError::Empty);
    }
    let ids = circuit_ids(manifest.manifest(), &plan, security);
    let challenges = Challenges::derive(&receipt, &plan, &ids);
    let started = Instant::now();
    let (folds, ()) =
        fold(manifest.manifest(), &receipt, challenges, |visit| bundle.calls(|call| visit(&call)))?;
    let fold_time = started.elapsed();

    let mut batches = Vec::with_capacity(plan.batches.len());
    for (batch, modules) in plan.batches.iter().enumerate() {
        let started = Instant::now();
        let verifier = circuits
            .get(security, &shapes(manifest.manifest(), modules), &build)
            .map_err(|error| VerifySessionError::Circuit { batch, error })?;
        let build_time = started.elapsed();
        let proof = bundle.proof(batch)?;
        let rows: Vec<u64> = modules.iter().map(|&m| receipt.receipt().rows[m]).collect();
        let public: Vec<_> = modules.iter().map(|&m| (entries[m].commitment(), &folds[m])).collect();
        let started = Instant::now();
        verify(&verifier, &public, challenges.beta, &proof).map_err(|error| VerifySessionError::Proof {
            batch,
            modules: modules.iter().map(|&m| entries[m].name()).collect::<Vec<_>>().join(", "),
            error,
        })?;
        batches.push(VerifiedBatch {
            modules: modules.clone(),
            degree_bits: verifier.degree_bits(),
            proof_bytes: proof.len(),
            soundness: verifier.soundness(&rows),
            build_time,
            verify_time: started.elapsed(),
        });
    }
    Ok(VerifiedSession { security, challenges, folds, batches, fold_time })
}

/// Folds and hashes all calls that `each` visits, and holds them against the receipt.
fn fold<T>(
    manifest: &Manifest,
    receipt: &SignedReceipt,
    challenges: Challenges,
    each: impl FnOnce(&mut dyn FnMut(&Call) -> Result<(), VerifySessionError>) -> Result<T, VerifySessionError>,
) -> Result<(Vec<Fold>, T), VerifySessionError> {
    let receipt = receipt.receipt();
    let mut hasher = TranscriptHasher::new(manifest.modules().len());
    let mut folder = Folder::new(manifest, challenges);
    let rows_differ = |module: usize, found: u64| VerifySessionError::Transcript {
        what: "the number of rows of a module",
        found: format!("{found} ({})", manifest.modules()[module].name()),
        signed: receipt.rows[module].to_string(),
    };
    let value = each(&mut |call| {
        if !hasher.add(call) || hasher.calls() > receipt.calls {
            return Err(mismatch("the number of calls", "more", receipt.calls));
        }
        // As soon as there is too much: a small file may hold a very long transcript.
        for delta in &call.deltas {
            let found = hasher.rows()[delta.module];
            if found > receipt.rows[delta.module] {
                return Err(rows_differ(delta.module, found));
            }
        }
        folder.add(call);
        Ok(())
    })?;
    if hasher.calls() != receipt.calls {
        return Err(mismatch("the number of calls", hasher.calls(), receipt.calls));
    }
    for (module, (&found, &signed)) in hasher.rows().iter().zip(&receipt.rows).enumerate() {
        if found != signed {
            return Err(rows_differ(module, found));
        }
    }
    if hasher.digest() != receipt.transcript {
        return Err(mismatch("its digest", hasher.digest(), receipt.transcript));
    }
    Ok((folder.finish(), value))
}

fn mismatch(what: &'static str, found: impl ToString, signed: impl ToString) -> VerifySessionError {
    VerifySessionError::Transcript { what, found: found.to_string(), signed: signed.to_string() }
}

fn shapes(manifest: &Manifest, modules: &[usize]) -> Vec<ModuleShape> {
    modules.iter().map(|&m| manifest.modules()[m].shape()).collect()
}

fn circuit_ids(manifest: &Manifest, plan: &Plan, security: Security) -> Vec<CircuitId> {
    plan.batches.iter().map(|batch| CircuitId::new(security, &shapes(manifest, batch))).collect()
}
