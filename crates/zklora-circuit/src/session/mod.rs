//! A whole session: from a transcript to the proofs of a bundle, and from a bundle to a verdict.

mod circuits;
mod prove;
mod verify;

use zklora_proto::bundle::Plan;
use zklora_proto::{Call, Manifest, ModuleShape, SignedSession, TranscriptHasher, TranscriptSalt};

pub use self::circuits::Circuits;
pub use self::prove::{ProveSessionError, SessionProver, prove_session};
pub use self::verify::{
    VerifiedBatch, VerifiedSession, VerifySessionError, check_proofs, verify_session, verify_session_with,
};
use crate::CircuitId;
use crate::challenge::Challenges;
use crate::fold::{Fold, Folder};
use crate::parameters::Security;

/// Folds and hashes all calls that `each` visits, with the transcript's salt, and holds them against the receipt.
fn fold<T>(
    session: &SignedSession,
    salt: TranscriptSalt,
    challenges: Challenges,
    each: impl FnOnce(&mut dyn FnMut(&Call) -> Result<(), VerifySessionError>) -> Result<T, VerifySessionError>,
) -> Result<(Vec<Fold>, T), VerifySessionError> {
    let (manifest, receipt) = (session.manifest().manifest(), session.receipt().receipt());
    let mut hasher = TranscriptHasher::new(manifest.modules().len(), salt);
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
        folder.add(call)?;
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

/// The circuits of a plan's batches.
fn circuit_ids(manifest: &Manifest, plan: &Plan, security: Security) -> Vec<CircuitId> {
    plan.batches.iter().map(|batch| CircuitId::new(security, &shapes(manifest, batch))).collect()
}
