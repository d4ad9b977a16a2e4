//! One bundle, one verdict.

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use zklora_circuit::CircuitId;
use zklora_circuit::circuit::{BatchCircuit, BatchVerifier, CircuitError};
use zklora_circuit::parameters::{MAX_DEGREE_BITS, Security};
use zklora_circuit::plan::degree_bits;
use zklora_circuit::security::Soundness;
use zklora_circuit::session::{
    Circuits, VerifiedSession, VerifySessionError, check_proofs, verify_session_with,
};
use zklora_proto::bundle::{Bundle, BundleError, Plan};
use zklora_proto::{Manifest, ModuleEntry, ModuleShape, SignedSession, counted};

use crate::kind::Kind;
use crate::pins::{PinRefusal, Pins};

/// Fewest bits of provable soundness that are accepted unless told otherwise: what the default parameter set has.
pub const DEFAULT_MIN_SECURITY: u32 = Security::Standard.provable_bits();

type Build = dyn Fn(Security, &[ModuleShape]) -> Result<BatchVerifier, CircuitError> + Send + Sync;
type Announce = dyn Fn(String) -> Box<dyn Any> + Send + Sync;

/// Checks bundles, one after another or from several threads; a circuit that one needed is there for the next.
pub struct Verifier {
    pins: Pins,
    min_security: u32,
    circuits: Circuits<BatchVerifier>,
    build: Box<Build>,
    announce: Box<Announce>,
    /// What `circuits` has, to foresee what a bundle will cost.
    built: Mutex<HashSet<CircuitId>>,
}

impl Default for Verifier {
    /// A verifier without pins, at the default level.
    fn default() -> Self {
        Self::new(Pins::default())
    }
}

impl Verifier {
    /// A verifier that accepts only bundles that agree with `pins`.
    pub fn new(pins: Pins) -> Self {
        Self {
            pins,
            min_security: DEFAULT_MIN_SECURITY,
            circuits: Circuits::default(),
            build: Box::new(BatchVerifier::build),
            announce: Box::new(|_| Box::new(())),
            built: Mutex::default(),
        }
    }

    /// Accepts proofs of at least this many bits of provable soundness, all errors added up.
    pub fn with_min_security(self, bits: u32) -> Self {
        Self { min_security: bits, ..self }
    }

    /// The same verifier, which has circuits from `build`: that has to give what [`BatchVerifier::build`] gives, and may be
    /// quicker about it.
    pub fn with_circuits(
        self,
        build: impl Fn(Security, &[ModuleShape]) -> Result<BatchVerifier, CircuitError> + Send + Sync + 'static,
    ) -> Self {
        Self { build: Box::new(build), ..self }
    }

    /// The same verifier, which tells `announce` of work that may take long, in words, before it begins; what that returns is
    /// dropped when the work has ended.
    pub fn announcing<Ended: 'static>(
        self,
        announce: impl Fn(String) -> Ended + Send + Sync + 'static,
    ) -> Self {
        Self { announce: Box::new(move |work| Box::new(announce(work))), ..self }
    }

    /// What every bundle has to agree with.
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// Checks a file. Whatever is in it, this returns.
    pub fn check_file(&self, path: &Path) -> Verdict {
        let started = Instant::now();
        match open(path) {
            Ok(file) => self.check(BufReader::new(file)),
            Err(refusal) => Verdict { declared: None, outcome: Err(refusal), time: started.elapsed() },
        }
    }

    /// Checks a bundle that is read from anywhere.
    pub fn check(&self, reader: impl Read + Seek) -> Verdict {
        let started = Instant::now();
        let mut declared = None;
        // What a panic leaves behind is not used: the reader is dropped, a circuit is kept only once it is whole, and
        // `declared` is set in one go.
        let outcome = catch_unwind(AssertUnwindSafe(|| self.outcome(reader, &mut declared)))
            .unwrap_or(Err(Refusal::Internal));
        Verdict { declared, outcome, time: started.elapsed() }
    }

    fn outcome(
        &self,
        reader: impl Read + Seek,
        declared: &mut Option<Declared>,
    ) -> Result<VerifiedSession, Refusal> {
        let mut bundle = Bundle::from_reader(reader).map_err(VerifySessionError::from)?;
        let declared = declared.insert(Declared {
            session: bundle.session().clone(),
            plan: bundle.plan().clone(),
            redacted: bundle.is_redacted(),
        });
        self.pins.check(&declared.session)?;

        if declared.redacted {
            self.pins.check_redacted(declared.session.receipt().receipt().client)?;
        }

        let fold_bytes = fold_bytes(declared);
        if fold_bytes > MAX_FOLD_BYTES {
            return Err(Refusal::FoldBytes(fold_bytes));
        }
        let new = self.new_circuits(declared)?;
        let new_rows: u64 = new.values().map(|bits| 1 << bits).sum();
        if new_rows > MAX_NEW_ROWS {
            return Err(Refusal::NewRows(new_rows));
        }
        let announced = (self.announce)(match new.values().max() {
            Some(bits) => format!(
                "building the circuit for {} (up to 2^{bits} rows) and folding {} of transcript; circuits are built once \
                 and serve all bundles of this run",
                declared.module_names(),
                counted(declared.total_rows(), "row"),
            ),
            None if declared.redacted => "checking proofs".into(),
            None => format!("folding {} of transcript", counted(declared.total_rows(), "row")),
        });
        let session = verify_session_with(&mut bundle, &self.circuits, &self.build)?;
        drop(announced);
        self.built.lock().unwrap_or_else(PoisonError::into_inner).extend(new.into_keys());
        let found = provable_bits(&session);
        if found < f64::from(self.min_security) {
            return Err(Refusal::MinSecurity { found, min: self.min_security });
        }
        Ok(session)
    }

    /// The circuits that the plan needs and that are not built yet, each with the logarithm of its rows. One that is too
    /// large is left out: [`verify_session_with`] refuses it, and says which.
    fn new_circuits(&self, declared: &Declared) -> Result<HashMap<CircuitId, usize>, Refusal> {
        let security: Security = declared.plan.security.parse().map_err(VerifySessionError::from)?;
        let built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        let entries = declared.manifest().modules();
        Ok(declared
            .plan
            .batches
            .iter()
            .map(|batch| batch.iter().filter_map(|&m| entries.get(m).map(ModuleEntry::shape)).collect())
            .map(|shapes: Vec<ModuleShape>| {
                (CircuitId::new(security, &shapes), degree_bits(security, &shapes))
            })
            .filter(|(id, bits)| *bits <= MAX_DEGREE_BITS && !built.contains(id))
            .collect())
    }
}

/// What came of checking one bundle.
#[derive(Debug)]
pub struct Verdict {
    /// What the bundle says of itself, if it could be read so far. Its signatures are valid; that is all.
    pub declared: Option<Declared>,
    /// What was shown, or the first thing found wrong.
    pub outcome: Result<VerifiedSession, Refusal>,
    /// How long it took.
    pub time: Duration,
}

/// What a bundle says of itself.
#[derive(Debug, Clone)]
pub struct Declared {
    /// The session.
    pub session: SignedSession,
    /// Which proof covers which modules: every module with rows exactly once.
    pub plan: Plan,
    /// Whether it has the folds of the transcript, signed by the client, in place of the transcript.
    pub redacted: bool,
}

impl Declared {
    /// What the manifest says.
    pub fn manifest(&self) -> &Manifest {
        self.session.manifest().manifest()
    }

    /// Every module with its rows in the session and the proof that covers it, if it has rows.
    pub fn modules(&self) -> impl Iterator<Item = (&ModuleEntry, u64, Option<usize>)> {
        let batches: HashMap<usize, usize> = (self.plan.batches.iter().enumerate())
            .flat_map(|(batch, modules)| modules.iter().map(move |&module| (module, batch)))
            .collect();
        let modules = self.session.modules().enumerate();
        modules.map(move |(index, (entry, rows))| (entry, rows, batches.get(&index).copied()))
    }

    /// Rows of all modules together.
    pub fn total_rows(&self) -> u64 {
        // At most MAX_MODULES times MAX_SESSION_ROWS.
        self.session.rows().iter().sum()
    }

    /// The names of the modules with rows, the first few of them.
    fn module_names(&self) -> String {
        const SHOWN: usize = 3;
        let names: Vec<&str> =
            self.modules().filter(|(_, rows, _)| *rows > 0).map(|(entry, ..)| entry.name()).collect();
        let shown = names.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
        match names.len().saturating_sub(SHOWN) {
            0 => shown,
            more => format!("{shown} and {more} more"),
        }
    }
}

/// Why a bundle is not valid.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The file could not be opened.
    #[error("the file cannot be opened: {0}")]
    Open(#[from] io::Error),
    /// A folder, a pipe or a device under the name of a bundle.
    #[error("this is not a regular file, expected a .pf bundle")]
    NotAFile,
    /// It is not what the caller asked for.
    #[error(transparent)]
    Pin(#[from] PinRefusal),
    /// Checking would take too much memory.
    #[error(
        "the folds of the modules that were called take {0} bytes of memory, expected at most {MAX_FOLD_BYTES}"
    )]
    FoldBytes(u64),
    /// Checking would take too long.
    #[error(
        "the plan asks for different circuits of {0} rows in all, expected at most {MAX_NEW_ROWS}: plan equal batches, \
         which share a circuit"
    )]
    NewRows(u64),
    /// The proofs are worth too little.
    #[error(
        "its proofs have {found:.1} bits of provable soundness, expected at least {min}; --min-security accepts less, \
         and `zklora-verifier explain FILE` says what they rest on"
    )]
    MinSecurity {
        /// Bits of the weakest proof.
        found: f64,
        /// Bits asked for.
        min: u32,
    },
    /// The bundle or a proof in it does not hold.
    #[error(transparent)]
    Session(#[from] VerifySessionError),
    /// Something panicked.
    #[error(
        "internal error: the verifier failed on this bundle, which an honest bundle does not make it do; please report it \
         together with the file"
    )]
    Internal,
}

impl Refusal {
    /// Whether it says nothing of the bundle itself, but that it is not what the caller asked for.
    pub fn is_of_what_was_asked(&self) -> bool {
        matches!(self, Self::Pin(_) | Self::MinSecurity { .. })
    }

    /// Whether it says nothing of the bundle itself, but that the file could not be read: there may be a bundle in it.
    pub fn is_of_reading(&self) -> bool {
        match self {
            Self::Open(_) | Self::NotAFile => true,
            // A file that ends too soon was read.
            Self::Session(VerifySessionError::Bundle(BundleError::Io(error))) => {
                !matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData)
            }
            _ => false,
        }
    }

    /// What kind of thing is wrong.
    pub fn kind(&self) -> Kind {
        if self.is_of_reading() {
            return Kind::File;
        }
        match self {
            Self::Open(_) | Self::NotAFile => Kind::File,
            Self::Pin(refusal) => refusal.kind(),
            Self::FoldBytes(_) => Kind::Manifest,
            Self::NewRows(_) => Kind::Circuit,
            Self::MinSecurity { .. } => Kind::Security,
            Self::Internal => Kind::Internal,
            Self::Session(error) => match error {
                VerifySessionError::Empty => Kind::Transcript,
                VerifySessionError::Security(_) => Kind::Security,
                VerifySessionError::Transcript { .. } | VerifySessionError::Fold(_) => Kind::Transcript,
                VerifySessionError::Challenges => Kind::Folds,
                VerifySessionError::Circuit { .. } => Kind::Circuit,
                VerifySessionError::Proof { .. } => Kind::Proof,
                VerifySessionError::Bundle(error) => match error {
                    BundleError::Manifest(_) => Kind::Manifest,
                    BundleError::Receipt(_) | BundleError::Foreign(_) => Kind::Receipt,
                    BundleError::Plan(_) => Kind::Plan,
                    BundleError::Call { .. } | BundleError::Transcript { .. } => Kind::Transcript,
                    BundleError::Redacted => Kind::Redacted,
                    BundleError::Folds(_) | BundleError::FoldsSignature(_) => Kind::Folds,
                    BundleError::Io(_)
                    | BundleError::HeaderLength { .. }
                    | BundleError::HeaderJson(_)
                    | BundleError::Format(_)
                    | BundleError::Table(_)
                    | BundleError::Length { .. }
                    | BundleError::Digest(_) => Kind::Format,
                },
            },
        }
    }
}

/// The circuits that a bundle's proofs need, each once, as parameter set and shapes. Of the bundle, only what
/// [`Bundle::from_reader`] checks has been checked; what is too much work is refused as [`Verifier::check`] does.
pub fn circuits_of(path: &Path) -> Result<Vec<(Security, Vec<ModuleShape>)>, Refusal> {
    let bundle = Bundle::from_reader(BufReader::new(open(path)?)).map_err(VerifySessionError::from)?;
    let security: Security = bundle.plan().security.parse().map_err(VerifySessionError::from)?;
    let entries = bundle.manifest().manifest().modules();
    let (mut circuits, mut rows) = (Vec::new(), 0u64);
    for (batch, modules) in bundle.plan().batches.iter().enumerate() {
        let shapes: Vec<ModuleShape> =
            modules.iter().filter_map(|&m| entries.get(m).map(ModuleEntry::shape)).collect();
        BatchCircuit::check_size(security, &shapes)
            .map_err(|error| VerifySessionError::Circuit { batch, error })?;
        if !circuits.contains(&(security, shapes.clone())) {
            rows += 1 << degree_bits(security, &shapes);
            circuits.push((security, shapes));
        }
    }
    if rows > MAX_NEW_ROWS {
        return Err(Refusal::NewRows(rows));
    }
    check_proofs(&bundle)?;
    Ok(circuits)
}

/// Bits of the weakest proof, on theorems alone.
pub(crate) fn provable_bits(session: &VerifiedSession) -> f64 {
    session.batches.iter().map(|batch| batch.soundness.provable.bits).fold(f64::INFINITY, f64::min)
}

/// Bits of the weakest proof, on the conjecture of `docs/soundness.md`.
pub(crate) fn conjectured_bits(session: &VerifiedSession) -> f64 {
    session.batches.iter().map(|batch| batch.soundness.conjectured.bits).fold(f64::INFINITY, f64::min)
}

/// What the proof with the fewest provable bits is worth.
pub(crate) fn weakest(session: &VerifiedSession) -> Option<&Soundness> {
    let soundness = session.batches.iter().map(|batch| &batch.soundness);
    soundness.min_by(|a, b| a.provable.bits.total_cmp(&b.provable.bits))
}

/// Opens a bundle, which has to be a regular file.
pub fn open(path: &Path) -> Result<File, Refusal> {
    // Before opening: to open a pipe would wait for a writer.
    if !std::fs::metadata(path)?.is_file() {
        return Err(Refusal::NotAFile);
    }
    Ok(File::open(path)?)
}

/// Memory that the folds take, whatever the number of rows: an element of the extension field for each input of a module that was
/// called.
fn fold_bytes(declared: &Declared) -> u64 {
    let called = declared.modules().filter(|(_, rows, _)| *rows > 0);
    called.map(|(module, ..)| 16 * module.shape().d_in() as u64).sum()
}

/// Most memory that the folds of a bundle may take: 512 MiB, which is all of the 4,096 modules that there may be at 8192 inputs.
pub const MAX_FOLD_BYTES: u64 = 512 << 20;
/// Most rows of circuits that are built for one bundle: a few minutes' work. Equal batches share one circuit, so that an
/// honest plan stays far below, and a contributor's planner makes none beyond it.
pub const MAX_NEW_ROWS: u64 = zklora_circuit::plan::MAX_CIRCUIT_ROWS;

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, SeekFrom};

    use super::*;

    #[test]
    fn a_panic_is_a_verdict() {
        struct Panics;
        impl Read for Panics {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                panic!("as plonky2 might");
            }
        }
        impl Seek for Panics {
            fn seek(&mut self, _: SeekFrom) -> io::Result<u64> {
                Ok(100)
            }
        }
        let verdict = Verifier::default().check(Panics);
        assert!(matches!(verdict.outcome, Err(Refusal::Internal)));
        assert_eq!(verdict.outcome.unwrap_err().kind(), Kind::Internal);
    }
}
