//! The transcript: every activation that went out and every delta that came back, and the digest that binds them.

use crate::limits::{MAX_CALL_DELTAS, MAX_CALL_MODULES, MAX_CALL_ROWS, MAX_CALLS, MAX_TENSOR_ENTRIES};
use crate::manifest::Manifest;
use crate::{TranscriptDigest, TranscriptSalt};

/// One forward call: the rows of one projection input and the deltas of every module that reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Number of rows, at least 1.
    pub rows: usize,
    /// Quantised activations, row-major, `rows x d_in`.
    pub activations: Vec<i16>,
    /// One delta for each module of the call, in the order of the request.
    pub deltas: Vec<Delta>,
}

/// The delta of one module in one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delta {
    /// Index of the module in the manifest.
    pub module: usize,
    /// X·A·B over the integers, row-major, `rows x d_out`.
    pub values: Vec<i64>,
}

/// Why a call is none that this manifest allows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// No rows, or too many.
    #[error("the call has {0} rows, expected 1 to {MAX_CALL_ROWS}")]
    Rows(usize),
    /// No modules, or too many.
    #[error("the call addresses {0} modules, expected 1 to {MAX_CALL_MODULES}")]
    Modules(usize),
    /// A module that the manifest does not have.
    #[error("the call addresses module {found}, but the manifest has {count} modules")]
    UnknownModule {
        /// The index.
        found: usize,
        /// Modules of the manifest.
        count: usize,
    },
    /// A module named twice.
    #[error("the call addresses module {0} twice")]
    RepeatedModule(usize),
    /// Modules of one call have different input dimensions.
    #[error("the call's modules have different input dimensions, {0} and {1}")]
    MixedInput(usize, usize),
    /// A tensor larger than a call may carry.
    #[error("the call has a tensor of {rows} x {columns} entries, expected at most {MAX_TENSOR_ENTRIES}")]
    TooLarge {
        /// Rows of the tensor.
        rows: usize,
        /// Its columns.
        columns: usize,
    },
    /// Deltas that would not fit a message, and that a reader of a bundle must not be made to hold.
    #[error("the call asks for {0} deltas in all modules together, expected at most {MAX_CALL_DELTAS}")]
    TooManyDeltas(u64),
}

/// What a call may be before its tensors are there: rows and modules, checked against a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallShape {
    rows: usize,
    d_in: usize,
    d_out: usize,
    modules: Vec<usize>,
}

impl CallShape {
    /// A call of `rows` rows to these modules, all with the same `d_in`.
    pub fn new(manifest: &Manifest, rows: usize, modules: Vec<usize>) -> Result<Self, CallError> {
        if rows == 0 || rows > MAX_CALL_ROWS {
            return Err(CallError::Rows(rows));
        }
        if modules.is_empty() || modules.len() > MAX_CALL_MODULES {
            return Err(CallError::Modules(modules.len()));
        }
        let entries = manifest.modules();
        let mut d_in = None;
        let mut d_out = 0;
        for (i, &module) in modules.iter().enumerate() {
            let shape = entries
                .get(module)
                .ok_or(CallError::UnknownModule { found: module, count: entries.len() })?
                .shape();
            if modules[..i].contains(&module) {
                return Err(CallError::RepeatedModule(module));
            }
            let first = *d_in.get_or_insert(shape.d_in());
            if first != shape.d_in() {
                return Err(CallError::MixedInput(first, shape.d_in()));
            }
            for columns in [shape.d_in(), shape.d_out()] {
                // In 64 bits: on a 32-bit machine 65,536 x 65,536 would wrap to nothing.
                if rows as u64 * columns as u64 > MAX_TENSOR_ENTRIES as u64 {
                    return Err(CallError::TooLarge { rows, columns });
                }
            }
            // At most MAX_CALL_MODULES times MAX_D_OUT.
            d_out += shape.d_out();
        }
        let deltas = rows as u64 * d_out as u64;
        if deltas > MAX_CALL_DELTAS as u64 {
            return Err(CallError::TooManyDeltas(deltas));
        }
        // At least one module was seen.
        Ok(Self { rows, d_in: d_in.unwrap_or_default(), d_out, modules })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of the activations.
    pub fn d_in(&self) -> usize {
        self.d_in
    }

    /// Columns of the deltas of all modules together.
    pub fn d_out(&self) -> usize {
        self.d_out
    }

    /// Bytes that the call takes in a transcript: two for each activation, eight for each delta.
    pub fn bytes(&self) -> usize {
        // At most 2 MAX_TENSOR_ENTRIES + 8 MAX_CALL_DELTAS, which 32 bits hold.
        self.rows * (2 * self.d_in + 8 * self.d_out)
    }

    /// Indices of the modules, in the order of their deltas.
    pub fn modules(&self) -> &[usize] {
        &self.modules
    }
}

/// Hashes a session's calls in order.
#[derive(Debug, Clone)]
pub struct TranscriptHasher {
    hasher: blake3::Hasher,
    calls: u64,
    rows: Vec<u64>,
}

impl TranscriptHasher {
    /// The hasher of a session with no calls yet, for a manifest of this many modules. The salt is the first thing hashed.
    pub fn new(modules: usize, salt: TranscriptSalt) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("zklora v1 transcript");
        hasher.update(salt.as_bytes());
        Self { hasher, calls: 0, rows: vec![0; modules] }
    }

    /// Adds the next call: its number, its rows, the digest of its activations, and for each module its index and the
    /// digest of its deltas, all little-endian.
    ///
    /// Returns false, and adds nothing, if the session has as many calls as it may have.
    #[must_use]
    pub fn add(&mut self, call: &Call) -> bool {
        self.calls < MAX_CALLS && self.add_hashed(call, &CallDigests::of(call))
    }

    /// The same for a call whose digests are known.
    #[must_use]
    pub(crate) fn add_hashed(&mut self, call: &Call, digests: &CallDigests) -> bool {
        if self.calls >= MAX_CALLS {
            return false;
        }
        self.hasher.update(&self.calls.to_le_bytes());
        self.hasher.update(&(call.rows as u64).to_le_bytes());
        self.hasher.update(&digests.activations);
        self.hasher.update(&(call.deltas.len() as u64).to_le_bytes());
        for (delta, digest) in call.deltas.iter().zip(&digests.deltas) {
            self.hasher.update(&(delta.module as u64).to_le_bytes());
            self.hasher.update(digest);
            self.rows[delta.module] += call.rows as u64;
        }
        self.calls += 1;
        true
    }

    /// Calls so far.
    pub fn calls(&self) -> u64 {
        self.calls
    }

    /// Rows so far of each module, in the manifest's order.
    pub fn rows(&self) -> &[u64] {
        &self.rows
    }

    /// The digest of the calls so far; their number is the last thing hashed.
    pub fn digest(&self) -> TranscriptDigest {
        let mut hasher = self.hasher.clone();
        hasher.update(&self.calls.to_le_bytes());
        TranscriptDigest::from_bytes(*hasher.finalize().as_bytes())
    }
}

/// The digests of a call's tensors.
pub(crate) struct CallDigests {
    pub(crate) activations: [u8; 32],
    /// In the order of the call's deltas.
    pub(crate) deltas: Vec<[u8; 32]>,
}

impl CallDigests {
    pub(crate) fn of(call: &Call) -> Self {
        Self {
            activations: activations_digest(&call.activations),
            deltas: call.deltas.iter().map(|delta| deltas_digest(&delta.values)).collect(),
        }
    }
}

fn activations_digest(activations: &[i16]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("zklora v1 activations");
    hash_words(&mut hasher, activations, i16::to_le_bytes);
    *hasher.finalize().as_bytes()
}

fn deltas_digest(deltas: &[i64]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("zklora v1 deltas");
    hash_words(&mut hasher, deltas, i64::to_le_bytes);
    *hasher.finalize().as_bytes()
}

/// Hashes words in buffers large enough for BLAKE3's widest code path.
fn hash_words<T: Copy, const N: usize>(
    hasher: &mut blake3::Hasher,
    words: &[T],
    bytes: impl Fn(T) -> [u8; N],
) {
    const BUFFER: usize = 64 << 10;
    let mut buffer = Vec::with_capacity(BUFFER);
    for chunk in words.chunks(BUFFER / N) {
        buffer.clear();
        for &word in chunk {
            buffer.extend_from_slice(&bytes(word));
        }
        hasher.update(&buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(rows: usize, seed: i64) -> Call {
        Call {
            rows,
            activations: (0..rows * 2).map(|i| (i as i16) + seed as i16).collect(),
            deltas: vec![Delta { module: 0, values: (0..rows as i64 * 3).map(|i| i * seed).collect() }],
        }
    }

    const SALT: TranscriptSalt = TranscriptSalt::from_bytes([1; 32]);

    fn digest(calls: &[Call]) -> TranscriptDigest {
        let mut hasher = TranscriptHasher::new(2, SALT);
        for call in calls {
            assert!(hasher.add(call));
        }
        hasher.digest()
    }

    #[test]
    fn every_part_of_a_call_is_bound() {
        let honest = vec![call(2, 1), call(3, 2)];
        let reference = digest(&honest);
        let mut variants = vec![honest[..1].to_vec(), vec![honest[1].clone(), honest[0].clone()], vec![]];
        let mut change = |edit: fn(&mut Vec<Call>)| {
            let mut calls = honest.clone();
            edit(&mut calls);
            variants.push(calls);
        };
        change(|c| c[0].activations[0] += 1);
        change(|c| c[1].deltas[0].values[8] += 1);
        change(|c| c[0].activations.swap(0, 1));
        change(|c| c[0].deltas[0].module = 1);
        change(|c| c[0].rows = 1);
        change(|c| c[1].deltas.clear());
        change(|c| c.push(call(1, 1)));
        for variant in variants {
            assert_ne!(digest(&variant), reference);
        }
        assert_eq!(digest(&honest), reference);
    }

    #[test]
    fn the_deltas_of_a_call_are_bounded_in_all_modules_together() {
        let shape = crate::ModuleShape::new(1, 1, 1 << 13).unwrap();
        let entry = |i: usize| {
            let commitment = crate::Commitment::from_elements([0; 4]).unwrap();
            crate::ModuleEntry::new(format!("m.{i}"), shape, 1.0, commitment).unwrap()
        };
        let key = crate::SecretKey::generate().public();
        let base = crate::BaseModelDigest::from_bytes([0; 32]);
        let manifest = Manifest::new(key, base, 0, (0..4).map(entry).collect()).unwrap();
        let rows = MAX_TENSOR_ENTRIES / shape.d_out();
        assert!(CallShape::new(&manifest, rows, vec![0, 1]).is_ok());
        assert_eq!(
            CallShape::new(&manifest, rows, vec![0, 1, 2]),
            Err(CallError::TooManyDeltas(3 * MAX_TENSOR_ENTRIES as u64))
        );
    }

    /// Products that 32 bits would hold as something small, of rows with one module's outputs, its inputs, and all modules' outputs.
    #[test]
    fn no_product_of_dimensions_wraps() {
        let manifest = |d_in: usize, d_out: usize, modules: usize| {
            let shape = crate::ModuleShape::new(d_in, 1, d_out).unwrap();
            let entry = |i: usize| {
                let commitment = crate::Commitment::from_elements([0; 4]).unwrap();
                crate::ModuleEntry::new(format!("m.{i}"), shape, 1.0, commitment).unwrap()
            };
            let key = crate::SecretKey::generate().public();
            let base = crate::BaseModelDigest::from_bytes([0; 32]);
            Manifest::new(key, base, 0, (0..modules).map(entry).collect()).unwrap()
        };
        for (rows, d_out) in [(1 << 16, 1 << 16), (1 << 17, 1 << 15), (1 << 17, 1 << 16), (87_382, 49_152)] {
            let refused = CallShape::new(&manifest(1, d_out, 1), rows, vec![0]);
            assert_eq!(refused, Err(CallError::TooLarge { rows, columns: d_out }));
        }
        let refused = CallShape::new(&manifest(1 << 14, 1, 1), 1 << 17, vec![0]);
        assert_eq!(refused, Err(CallError::TooLarge { rows: 1 << 17, columns: 1 << 14 }));
        // Each tensor is within its bound: 2^16 rows of 64 times 2^10.
        let refused = CallShape::new(&manifest(1, 1 << 10, 64), 1 << 16, (0..64).collect());
        assert_eq!(refused, Err(CallError::TooManyDeltas(1 << 32)));
    }

    #[test]
    fn rows_are_counted_by_module() {
        let mut hasher = TranscriptHasher::new(2, SALT);
        assert!(hasher.add(&call(2, 1)) && hasher.add(&call(3, 1)));
        assert_eq!((hasher.calls(), hasher.rows()), (2, &[5, 0][..]));
    }
}
