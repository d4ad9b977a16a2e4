//! Whether what was delivered is what was proved: commitments are compared in reading, here it is manifests and deltas.

use std::io::{Read, Seek};

use rayon::prelude::*;
use zklora_circuit::commitment::Opening;
use zklora_proto::bundle::{Bundle, BundleError};
use zklora_proto::{Call, Manifest, ModuleEntry, SignedReceipt, TranscriptHasher};

use crate::Delivery;

/// Rows of a call that are computed at a time: enough to keep threads busy, and few enough to hold beside the call.
const ROWS: usize = 64;

/// Why a bundle does not go with a delivery.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeliveryMismatch {
    /// The bundle cannot be read.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// It is of another adapter.
    #[error("it proves another adapter than was delivered: {0}")]
    Adapter(String),
    /// It is another session's than the one whose proofs were verified.
    #[error("it is not the bundle that was verified: it was exchanged meanwhile")]
    Receipt,
    /// Its calls are not those of the receipt.
    #[error("its calls are not those that both parties signed")]
    Transcript,
    /// A delta is not that of the weights.
    #[error("call {call}, module {module}, row {row}: the delta is not that of the delivered weights")]
    Delta {
        /// Number of the call.
        call: u64,
        /// The module.
        module: String,
        /// Row of the call.
        row: usize,
    },
}

/// What was compared of one bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Compared {
    /// Calls.
    pub calls: u64,
    /// Rows of all modules together.
    pub rows: u64,
    /// Deltas: integers.
    pub deltas: u64,
}

impl Delivery {
    /// Computes every delta of a session again, X·A·B over the integers, and compares it with the bundle's. `receipt` is that of the
    /// session whose proofs were verified; the calls are held against it, so that they are those of the proofs. `progress` hears how
    /// many calls are done.
    pub fn check_bundle<R: Read + Seek>(
        &self,
        bundle: &mut Bundle<R>,
        receipt: &SignedReceipt,
        mut progress: impl FnMut(u64),
    ) -> Result<Compared, DeliveryMismatch> {
        if bundle.manifest().adapter_id() != self.manifest().adapter_id() {
            let (found, delivered) = (bundle.manifest().manifest(), self.manifest().manifest());
            return Err(DeliveryMismatch::Adapter(difference(found, delivered)));
        }
        if bundle.receipt() != receipt {
            return Err(DeliveryMismatch::Receipt);
        }
        let signed = receipt.receipt();
        let mut hasher =
            TranscriptHasher::new(self.manifest().manifest().modules().len(), bundle.transcript_salt()?);
        let mut compared = Compared::default();
        bundle.calls(|call| {
            if !hasher.add(&call) || hasher.calls() > signed.calls {
                return Err(DeliveryMismatch::Transcript);
            }
            self.check_call(compared.calls, &call)?;
            compared.calls += 1;
            for delta in &call.deltas {
                compared.rows += call.rows as u64;
                compared.deltas += delta.values.len() as u64;
            }
            progress(compared.calls);
            Ok(())
        })?;
        if hasher.digest() != signed.transcript {
            return Err(DeliveryMismatch::Transcript);
        }
        Ok(compared)
    }

    fn check_call(&self, number: u64, call: &Call) -> Result<(), DeliveryMismatch> {
        for delta in &call.deltas {
            // A call of a bundle of this manifest names its modules alone, and its tensors have their shapes.
            let opening = &self.openings()[delta.module];
            let (d_in, d_out) = (opening.shape().d_in(), opening.shape().d_out());
            let wrong = call
                .activations
                .par_chunks(d_in)
                .zip(delta.values.par_chunks(d_out))
                .enumerate()
                .with_min_len(ROWS.min(call.rows))
                .find_first(|(_, (x, y))| row(opening, x) != *y);
            if let Some((row, _)) = wrong {
                let module = self.manifest().manifest().modules()[delta.module].name().to_owned();
                return Err(DeliveryMismatch::Delta { call: number, module, row });
            }
        }
        Ok(())
    }
}

/// x·A·B over the integers. Below 2^59 for every shape that there is (`docs/statement.md`), so that nothing wraps.
fn row(opening: &Opening, x: &[i16]) -> Vec<i64> {
    let (rank, d_out) = (opening.shape().rank(), opening.shape().d_out());
    let mut inner = vec![0i64; rank];
    for (&x, a) in x.iter().zip(opening.a().chunks_exact(rank)) {
        add_multiple(&mut inner, i64::from(x), a);
    }
    let mut delta = vec![0i64; d_out];
    for (&inner, b) in inner.iter().zip(opening.b().chunks_exact(d_out)) {
        add_multiple(&mut delta, inner, b);
    }
    delta
}

fn add_multiple(sums: &mut [i64], factor: i64, weights: &[i16]) {
    for (sum, &weight) in sums.iter_mut().zip(weights) {
        // Checks for overflow would keep this from the vector units.
        *sum = sum.wrapping_add(factor.wrapping_mul(i64::from(weight)));
    }
}

/// In what one manifest differs from another, in words: the first module and field that do.
pub fn difference(found: &Manifest, expected: &Manifest) -> String {
    let differ = |what: &str, found: &dyn ToString, expected: &dyn ToString| {
        let (found, expected) = (found.to_string(), expected.to_string());
        (found != expected).then(|| format!("{what} is {found}, expected {expected}"))
    };
    let modules = || {
        let pairs = found.modules().iter().zip(expected.modules());
        pairs.enumerate().find_map(|(index, (found, expected))| {
            if found.name() != expected.name() {
                return differ(&format!("the name of module {index}"), &found.name(), &expected.name());
            }
            let field = |name: &str, value: fn(&ModuleEntry) -> String| {
                differ(&format!("module {}: its {name}", found.name()), &value(found), &value(expected))
            };
            None.or_else(|| field("d_in", |entry| entry.shape().d_in().to_string()))
                .or_else(|| field("rank", |entry| entry.shape().rank().to_string()))
                .or_else(|| field("d_out", |entry| entry.shape().d_out().to_string()))
                // The shortest text that is read as the same number.
                .or_else(|| field("scale", |entry| format!("{:e}", entry.scale())))
                .or_else(|| field("commitment", |entry| entry.commitment().to_string()))
        })
    };
    differ("the contributor", found.contributor(), expected.contributor())
        .or_else(|| differ("the base model", found.base_model(), expected.base_model()))
        .or_else(modules)
        .or_else(|| differ("the number of modules", &found.modules().len(), &expected.modules().len()))
        .or_else(|| differ("the time of making", &found.created(), &expected.created()))
        .unwrap_or_else(|| "the manifests say the same in other bytes".to_owned())
}
