//! From a transcript to the proofs of a bundle.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use rand::rngs::StdRng;
use rayon::prelude::*;
use zklora_proto::bundle::{BundleError, Plan};
use zklora_proto::{Call, SignedSession, TranscriptSalt};

use super::circuits::Circuits;
use super::{VerifySessionError, circuit_ids, fold};
use crate::CircuitId;
use crate::challenge::Challenges;
use crate::circuit::{BatchCircuit, CircuitError};
use crate::commitment::Opening;
use crate::fold::Fold;
use crate::parameters::UnknownSecurity;
use crate::plan::{Batch, Circuit, PlanError, Planner};
use crate::prove::{ProveError, prove};
use crate::verify::{VerifyError, verify};

/// Why a session was not proved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProveSessionError {
    /// The receipt is about another transcript.
    #[error("the receipt does not belong to this transcript: {0}")]
    Transcript(Box<VerifySessionError>),
    /// The openings are not those of the manifest.
    #[error("module {0}: the stored weights and salt do not open the manifest's commitment")]
    Opening(String),
    /// No plan exists.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A plan that was made for another session.
    #[error("the plan is not one for this session: {0}")]
    Foreign(Box<BundleError>),
    /// A plan with parameters that this prover does not know.
    #[error(transparent)]
    Security(#[from] UnknownSecurity),
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
    /// A proof was made and does not verify: this machine miscalculates, or there is a bug.
    #[error(
        "batch {batch}: the proof that was made does not verify, is the memory of this machine sound? ({error})"
    )]
    Check {
        /// Which batch.
        batch: usize,
        /// What is wrong with it.
        error: VerifyError,
    },
}

/// A session whose batches are to be proved, in any order, at any time and in any process: they share nothing but the plan.
pub struct SessionProver<'a> {
    session: &'a SignedSession,
    openings: &'a [Opening],
    planner: Planner,
    batches: Vec<Batch>,
    circuits: Vec<Circuit>,
    ids: Vec<CircuitId>,
    challenges: Challenges,
    folds: Vec<Fold>,
}

impl<'a> SessionProver<'a> {
    /// Takes up a session by its plan, whose parameter set counts in place of the planner's. `salt` is the transcript's, `openings`
    /// are in the manifest's order; `each` visits all calls.
    pub fn new(
        session: &'a SignedSession,
        salt: TranscriptSalt,
        plan: &Plan,
        openings: &'a [Opening],
        planner: &Planner,
        each: impl FnOnce(
            &mut dyn FnMut(&Call) -> Result<(), VerifySessionError>,
        ) -> Result<(), VerifySessionError>,
    ) -> Result<Self, ProveSessionError> {
        let manifest = session.manifest().manifest();
        let entries = manifest.modules();
        for (index, entry) in entries.iter().enumerate() {
            if openings.get(index).is_none_or(|o| o.commitment() != *entry.commitment()) {
                return Err(ProveSessionError::Opening(entry.name().into()));
            }
        }
        plan.check(session.rows()).map_err(|e| ProveSessionError::Foreign(Box::new(e)))?;
        let planner = Planner { security: plan.security.parse()?, ..*planner };
        let shapes: Vec<_> = entries.iter().map(|entry| entry.shape()).collect();
        let (batches, circuits) = planner.lay_out(&shapes, plan);
        let ids = circuit_ids(manifest, plan, planner.security);
        let challenges = Challenges::derive(session.receipt());
        let (folds, ()) =
            fold(session, salt, challenges, each).map_err(|e| ProveSessionError::Transcript(Box::new(e)))?;
        Ok(Self { session, openings, planner, batches, circuits, ids, challenges, folds })
    }

    /// Proves these batches, side by side as far as the planner's memory allows. Circuits that `kept` holds beside those at work
    /// count towards that memory and are forgotten where there is no room.
    ///
    /// `made` takes each proof when it is made, from any thread. Once it breaks, no other batch is begun.
    pub fn prove(
        &self,
        batches: &[usize],
        kept: &Circuits<BatchCircuit>,
        made: &(dyn Fn(usize, Vec<u8>) -> ControlFlow<()> + Sync),
    ) -> Result<ControlFlow<()>, ProveSessionError> {
        let stopped = AtomicBool::new(false);
        let mut rest = batches;
        while !rest.is_empty() && !stopped.load(Ordering::Relaxed) {
            // One proof keeps all cores busy except in its serial parts: side by side they fill each other's.
            let waiting: Vec<Batch> = rest.iter().map(|&batch| self.batches[batch].clone()).collect();
            let (group, after) = rest.split_at(self.planner.at_once(&self.circuits, &waiting));
            rest = after;
            let needed: Vec<CircuitId> = group.iter().map(|&batch| self.ids[batch].clone()).collect();
            let working = self.planner.side_by_side(&self.circuits, &waiting[..group.len()]);
            kept.shrink(&self.planner, &needed, self.planner.memory.saturating_sub(working));
            // One after another, so that equal batches build one circuit.
            let group = group
                .iter()
                .map(|&batch| {
                    let shapes = &self.circuits[self.batches[batch].circuit].shapes;
                    Ok((batch, kept.get(self.planner.security, shapes, BatchCircuit::build)?))
                })
                .collect::<Result<Vec<_>, CircuitError>>()?;
            group.into_par_iter().try_for_each(|(batch, circuit)| {
                if made(batch, self.prove_batch(batch, &circuit)?).is_break() {
                    stopped.store(true, Ordering::Relaxed);
                }
                Ok::<(), ProveSessionError>(())
            })?;
        }
        Ok(match stopped.into_inner() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        })
    }

    /// The proof of a batch, which has been verified.
    fn prove_batch(&self, batch: usize, circuit: &BatchCircuit) -> Result<Vec<u8>, ProveSessionError> {
        let (modules, beta) = (&self.batches[batch].modules, self.challenges.beta);
        let openings: Vec<_> = modules.iter().map(|&module| &self.openings[module]).collect();
        let folds: Vec<_> = modules.iter().map(|&module| &self.folds[module]).collect();
        let proof = prove(circuit, &openings, &folds, beta, &mut rand::make_rng::<StdRng>())
            .map_err(|error| ProveSessionError::Prove { batch, error })?;
        let entries = self.session.manifest().manifest().modules();
        let public: Vec<_> =
            modules.iter().map(|&module| (entries[module].commitment(), &self.folds[module])).collect();
        verify(&circuit.verifier(), &public, beta, &proof)
            .map_err(|error| ProveSessionError::Check { batch, error })?;
        Ok(proof)
    }
}

/// Plans a session and proves all of it in one go. `salt` is the transcript's; `openings` are in the manifest's order.
pub fn prove_session(
    session: &SignedSession,
    salt: TranscriptSalt,
    calls: &[Call],
    openings: &[Opening],
    planner: &Planner,
    circuits: &Circuits<BatchCircuit>,
) -> Result<(Plan, Vec<Vec<u8>>), ProveSessionError> {
    let plan = planner.plan(session.manifest().manifest(), session.rows())?.plan;
    let each =
        |visit: &mut dyn FnMut(&Call) -> Result<(), VerifySessionError>| calls.iter().try_for_each(visit);
    let prover = SessionProver::new(session, salt, &plan, openings, planner, each)?;
    let proofs = Mutex::new(vec![Vec::new(); plan.batches.len()]);
    let all: Vec<usize> = (0..plan.batches.len()).collect();
    // Nothing breaks it.
    let _ = prover.prove(&all, circuits, &|batch, proof| {
        proofs.lock().unwrap_or_else(PoisonError::into_inner)[batch] = proof;
        ControlFlow::Continue(())
    })?;
    Ok((plan, proofs.into_inner().unwrap_or_else(PoisonError::into_inner)))
}
