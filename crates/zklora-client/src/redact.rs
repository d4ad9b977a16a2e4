//! A bundle without activations and deltas, for who takes the client's word for their folds.

use std::path::{Path, PathBuf};

use zklora_proto::bundle::{Bundle, BundleError};
use zklora_proto::{BLINDING_ROWS, CommitmentSeed, PublicKey, SecretKey};
use zklora_verdict::Verifier;

use crate::fetch::check;
use crate::record::{Record, RecordError, Records};

/// Why there is no redacted bundle.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RedactError {
    /// The session was never finished.
    #[error("the session was not finished: its record has no receipt")]
    NoReceipt,
    /// The key is not the session's.
    #[error("the session was opened with key {client}, but --identity is {mine}")]
    Key {
        /// The receipt's client.
        client: PublicKey,
        /// The key at hand.
        mine: PublicKey,
    },
    /// What is to be redacted does not hold: its folds would not be signed.
    #[error("{path} is not this session's bundle: {why}", path = .path.display())]
    Bundle {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Folds of the session were signed under another challenge: whoever had both could take the blinding out.
    #[error(
        "folds of this session were signed before, under another challenge α: who has both can solve for the rows that hide the \
         activations. Give out the redacted bundle that you made first"
    )]
    SecondChallenge,
    /// That folds are signed cannot be kept.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The bundle cannot be read again, or the redacted one cannot be written.
    #[error("{path}: {error}", path = .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        error: BundleError,
    },
}

/// A redacted bundle that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redacted {
    /// Its size.
    pub bytes: u64,
    /// Names of the modules whose last rows are not random: the folds may give their activations away.
    pub not_blinded: Vec<String>,
}

/// Verifies the bundle of a session and writes it without activations and deltas to `out`, which must not be there yet. What takes their
/// place is signed with the client's key.
///
/// The bundle has to hold: nobody's folds are signed unseen. And no session is folded under a second challenge: `records` keeps
/// under which it was.
pub fn redact(
    bundle: &Path,
    records: &Records,
    record: &Record,
    key: &SecretKey,
    out: &Path,
) -> Result<Redacted, RedactError> {
    let Some(receipt) = &record.receipt else { return Err(RedactError::NoReceipt) };
    let (client, mine) = (receipt.receipt().client, key.public());
    if client != mine {
        return Err(RedactError::Key { client, mine });
    }
    // Whatever the parameters of the proofs: how much they are worth is for the auditor to say.
    let verifier = Verifier::default().with_min_security(0);
    let session = check(bundle, record, &verifier)
        .map_err(|why| RedactError::Bundle { path: bundle.into(), why: why.to_string() })?;
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| RedactError::Write { path, error }
    };
    let mut file = Bundle::open(bundle).map_err(failed(bundle))?;
    let not_blinded = not_blinded(&mut file, &record.seed).map_err(failed(bundle))?;
    let folds = session.signed_folds();
    if record.alpha.is_some_and(|alpha| alpha != folds.alpha) {
        return Err(RedactError::SecondChallenge);
    }
    // Before anybody can have the folds.
    records.put(&Record { alpha: Some(folds.alpha), ..record.clone() })?;
    let signature = folds.sign(receipt, key);
    let bytes = file.write_redacted(out, &folds, &signature).map_err(failed(out))?;
    Ok(Redacted { bytes, not_blinded })
}

/// The modules with rows of which the last are not those that the seed gives for blinding.
fn not_blinded<R: std::io::Read + std::io::Seek>(
    bundle: &mut Bundle<R>,
    seed: &CommitmentSeed,
) -> Result<Vec<String>, BundleError> {
    let manifest = bundle.manifest().clone();
    let modules = manifest.manifest().modules();
    let rows = bundle.receipt().receipt().rows.clone();
    let mut blinded: Vec<bool> = rows.iter().map(|&rows| rows >= BLINDING_ROWS as u64).collect();
    let mut seen = vec![0; rows.len()];
    bundle.calls(|call| {
        for delta in &call.deltas {
            let (module, d_in) = (delta.module, modules[delta.module].shape().d_in());
            let (before, blinding) = (seen[module], rows[module].saturating_sub(BLINDING_ROWS as u64));
            seen[module] += call.rows as u64;
            if blinded[module] && seen[module] > blinding {
                let expected = seed.blinding_rows(module, d_in);
                // Of both, the part that they have in common: fewer rows than a call or a blinding has.
                let first = blinding.saturating_sub(before) as usize;
                let skipped = before.saturating_sub(blinding) as usize;
                let (found, expected) = (&call.activations[first * d_in..], &expected[skipped * d_in..]);
                blinded[module] = expected.starts_with(found);
            }
        }
        Ok::<_, BundleError>(())
    })?;
    let not_blinded = (0..rows.len()).filter(|&module| rows[module] > 0 && !blinded[module]);
    Ok(not_blinded.map(|module| modules[module].name().to_owned()).collect())
}
