//! From a bundle to a verdict.

use std::io::{Read, Seek};
use std::time::{Duration, Instant};

use plonky2::field::extension::quadratic::QuadraticExtension;
use plonky2::field::types::Field;
use zklora_proto::bundle::{Bundle, BundleError, Element, FoldedModule, Folds};
use zklora_proto::{ModuleEntry, ModuleShape};

use super::circuits::Circuits;
use super::{fold, shapes};
use crate::F;
use crate::challenge::Challenges;
use crate::circuit::{BatchCircuit, BatchVerifier, CircuitError};
use crate::fold::{Fold, FoldError, canonical};
use crate::parameters::{Security, UnknownSecurity};
use crate::security::Soundness;
use crate::verify::{VerifyError, verify};

/// What a valid bundle shows.
#[derive(Debug, Clone)]
pub struct VerifiedSession {
    /// The parameter set of its proofs.
    pub security: Security,
    /// The challenges under which it holds.
    pub challenges: Challenges,
    /// The folded transcript of every module, in the manifest's order; empty for modules without rows.
    pub folds: Vec<Fold>,
    /// Whether the bundle is redacted: the folds are not computed from a transcript, but what the receipt's client signed.
    pub redacted: bool,
    /// Each proof.
    pub batches: Vec<VerifiedBatch>,
    /// Reading, hashing and folding the transcript, or reading the folds.
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
///
/// Not `non_exhaustive`: each has its kind in `zklora-verdict`, which does not compile without.
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
    /// A call whose tensors are not of its dimensions.
    #[error("the transcript: {0}")]
    Fold(#[from] FoldError),
    /// The folds of a redacted bundle were made with other challenges.
    #[error(
        "the client folded with other challenges than follow from this receipt and its signature: they are the folds of another \
         receipt"
    )]
    Challenges,
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
/// Of a redacted bundle, the folds are taken from the client's word: it shows that *they* are those of a session in which every
/// delta is right. That they are those of the receipt's transcript is what the client signed.
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
    let (session, plan) = (bundle.session().clone(), bundle.plan().clone());
    let manifest = session.manifest().manifest();
    let entries = manifest.modules();
    // Before anything is folded or built: is every circuit one that may be built?
    for (batch, modules) in plan.batches.iter().enumerate() {
        BatchCircuit::check_size(security, &shapes(manifest, modules))
            .map_err(|error| VerifySessionError::Circuit { batch, error })?;
    }
    if plan.batches.is_empty() {
        return Err(VerifySessionError::Empty);
    }
    check_proofs(bundle)?;
    let challenges = Challenges::derive(session.receipt());
    let started = Instant::now();
    let signed = bundle.folds()?;
    let redacted = signed.is_some();
    let folds = match signed {
        Some(signed) => signed_folds(&signed, challenges)?,
        None => {
            let salt = bundle.transcript_salt()?;
            fold(&session, salt, challenges, |visit| bundle.calls(|call| visit(&call)))?.0
        }
    };
    let fold_time = started.elapsed();

    let mut batches = Vec::with_capacity(plan.batches.len());
    for (batch, modules) in plan.batches.iter().enumerate() {
        let proof = bundle.proof(batch)?;
        let started = Instant::now();
        let verifier = circuits
            .get(security, &shapes(manifest, modules), &build)
            .map_err(|error| VerifySessionError::Circuit { batch, error })?;
        let build_time = started.elapsed();
        let rows: Vec<u64> = modules.iter().map(|&m| session.rows()[m]).collect();
        let public: Vec<_> = modules.iter().map(|&m| (entries[m].commitment(), &folds[m])).collect();
        let started = Instant::now();
        verify(&verifier, &public, challenges.beta, &proof).map_err(|error| VerifySessionError::Proof {
            batch,
            modules: names(entries, modules),
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
    Ok(VerifiedSession { security, challenges, folds, redacted, batches, fold_time })
}

/// Refuses a bundle with a proof of fewer bytes than any has: before memory and time go into its circuit.
pub fn check_proofs<R: Read + Seek>(bundle: &Bundle<R>) -> Result<(), VerifySessionError> {
    let security: Security = bundle.plan().security.parse()?;
    let entries = bundle.manifest().manifest().modules();
    for (batch, modules) in bundle.plan().batches.iter().enumerate() {
        if bundle.proof_bytes(batch) < security.least_proof_bytes() {
            let error = VerifyError::Malformed("it has too few bytes for any proof of its parameter set");
            return Err(VerifySessionError::Proof { batch, modules: names(entries, modules), error });
        }
    }
    Ok(())
}

fn names(entries: &[ModuleEntry], modules: &[usize]) -> String {
    modules.iter().map(|&m| entries[m].name()).collect::<Vec<_>>().join(", ")
}

impl VerifiedSession {
    /// What the client signs to have this session's bundle redacted.
    pub fn signed_folds(&self) -> Folds {
        let module = |fold: &Fold| FoldedModule {
            a: fold.a.iter().copied().map(canonical).collect(),
            s: canonical(fold.s),
        };
        Folds {
            alpha: canonical(self.challenges.alpha),
            beta: canonical(self.challenges.beta),
            modules: self.folds.iter().map(module).collect(),
        }
    }
}

/// The folds that a client signed, if it made them with these challenges.
fn signed_folds(signed: &Folds, challenges: Challenges) -> Result<Vec<Fold>, VerifySessionError> {
    let element = |[x0, x1]: Element| QuadraticExtension([x0, x1].map(F::from_canonical_u64));
    if [signed.alpha, signed.beta].map(element) != [challenges.alpha, challenges.beta] {
        return Err(VerifySessionError::Challenges);
    }
    let fold = |module: &FoldedModule| Fold {
        a: module.a.iter().copied().map(element).collect(),
        s: element(module.s),
    };
    Ok(signed.modules.iter().map(fold).collect())
}
