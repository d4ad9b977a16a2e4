//! Replay: the base model once more, with the deltas that a session recorded, and its inputs held against those that were sent.
//!
//! A bundle proves that its deltas belong to its activations, and says nothing of where the activations came from. Here the base
//! model computes them anew from the text: [`ReplayHook`] takes, for each set of projections that read the same input, the next calls
//! of the transcript, compares what was sent with what the base model gives now, and goes on with the recorded deltas. So an error
//! does not travel through a delta, and all that may differ is how two machines round.
//!
//! Calls are read from the bundle one by one as the model comes to them.

use std::collections::BTreeSet;
use std::io::{Read, Seek};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use tch::Tensor;
use zklora_proto::bundle::{Bundle, BundleError};
use zklora_proto::transcript::TranscriptHasher;
use zklora_proto::{BLINDING_ROWS, Call, Manifest, SignedReceipt, SignedSession};
use zklora_verdict::Kind;

use crate::activations::quantised;
use crate::hooks::{BaseOutput, Hook};
use crate::sources::{Adapter, CombineMode, Sources, combine, own_outputs};

/// By how many units a recorded activation may differ from the replayed one. A unit is 1/32767 of the largest entry of its row. Two
/// machines, or one with other numbers of threads, differ by a small part of one, which rounding makes a whole one in a few entries.
pub const TOLERANCE: u32 = 1;

/// Gives a base model the deltas of recorded sessions, and compares its activations with theirs. Serves one run of the model; then
/// [`finish`](Self::finish) says whether it was that of the sessions.
pub struct ReplayHook {
    sources: Sources<Recording>,
}

/// A session, as its bundle has it.
///
/// That the bundle is valid is not checked here: [`ReplayHook::finish`] shows that the calls are those of the receipt, and nothing
/// about proofs.
pub struct Recording {
    session: SignedSession,
    tape: Mutex<Tape>,
}

/// What came of replaying one session to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replayed {
    /// Activations that were compared.
    pub entries: u64,
    /// How many of them differ; by no more than [`TOLERANCE`].
    pub differing: u64,
    /// The largest difference.
    pub largest: u32,
    /// Rows of each module, after those of the text, that are none of it: 0 or [`BLINDING_ROWS`], as [`Session::blind`] sends them.
    ///
    /// [`Session::blind`]: zklora_client::Session::blind
    pub blinding_rows: usize,
}

/// Why a run of the base model is not that of a session.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct NotReplayed {
    /// Which of the sessions.
    pub session: usize,
    /// Why.
    pub error: ReplayError,
}

/// Why a replay fails, at the first call that does not fit.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// The bundle cannot be read.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// It is not what it was when it was opened.
    #[error("the bundle's calls are not those of its receipt: it was changed meanwhile")]
    Exchanged,
    /// The text goes on, the session does not.
    #[error(
        "the session ended after {calls} calls, where this text goes on with {modules}: it was a shorter text, or {OTHER_RUN}"
    )]
    Ended {
        /// Calls of the session.
        calls: u64,
        /// What comes next.
        modules: String,
    },
    /// The session went on with other modules.
    #[error(
        "call {call} of the session is to {found}, expected {expected}: it was another text, or {OTHER_RUN}"
    )]
    Modules {
        /// The call, from 0.
        call: u64,
        /// The modules that read the next input.
        expected: String,
        /// Those of the call.
        found: String,
    },
    /// Another number of rows.
    #[error(
        "call {call} of the session, to {modules}, brings the rows of its input to {found}, where this text has {expected}: it was \
         another text, or {OTHER_RUN}"
    )]
    Rows {
        /// The call, from 0.
        call: u64,
        /// Its modules.
        modules: String,
        /// Rows of the input.
        expected: usize,
        /// Rows that were sent.
        found: usize,
    },
    /// Other activations.
    #[error(transparent)]
    Activation(#[from] Box<Difference>),
    /// The session goes on, the text does not.
    #[error("the session has {calls} more calls than this text gives: it was a longer text, or {OTHER_RUN}")]
    More {
        /// How many.
        calls: u64,
    },
}

impl ReplayError {
    /// What kind of thing is wrong.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Bundle(_) | Self::Exchanged => Kind::Bundle,
            Self::Ended { .. } => Kind::FewerCalls,
            Self::Modules { .. } => Kind::Modules,
            Self::Rows { .. } => Kind::Rows,
            Self::Activation(_) => Kind::Activation,
            Self::More { .. } => Kind::MoreCalls,
        }
    }
}

/// An activation that is not what the base model gives.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "call {call}, to {modules}, row {row} of {rows}, column {column} (all from 0): {found} was sent, expected {expected}, at most \
     {TOLERANCE} from it; of the call's {entries} activations {differing} are further off: {}",
    self.cause()
)]
pub struct Difference {
    /// The call, from 0.
    pub call: u64,
    /// Its modules.
    pub modules: String,
    /// The row in the call, from 0.
    pub row: usize,
    /// Rows of the call.
    pub rows: usize,
    /// The column, from 0.
    pub column: usize,
    /// What the base model gives.
    pub expected: i16,
    /// What was sent.
    pub found: i16,
    /// Activations of the call.
    pub entries: usize,
    /// How many of them are further off than [`TOLERANCE`].
    pub differing: usize,
    /// Which token of all that went through the model the row belongs to, from 0.
    pub token: u64,
}

/// What has to be the same as in the run.
const OTHER_RUN: &str = "it was run with another tokenizer or other options (--max-tokens, --batch-tokens, the fields of a dataset)";

impl ReplayHook {
    /// A hook that serves every projection that the recordings' manifests name.
    pub fn new(recordings: impl IntoIterator<Item = (Recording, CombineMode)>) -> Self {
        Self { sources: Sources::new(recordings) }
    }

    /// After the run: whether nothing was left of the sessions.
    pub fn finish(&self) -> Result<Vec<Replayed>, NotReplayed> {
        let finish = |(session, recording): (usize, &Recording)| {
            recording.finish().map_err(|error| NotReplayed { session, error })
        };
        self.sources.iter().map(|source| &source.adapter).enumerate().map(finish).collect()
    }
}

impl Hook for ReplayHook {
    fn projections(&self) -> Vec<String> {
        self.sources.projections()
    }

    /// Fails with [`NotReplayed`] where the sessions are of another run.
    fn apply(
        &self,
        projections: &[&str],
        input: &Tensor,
        base: BaseOutput<'_>,
    ) -> anyhow::Result<Vec<Tensor>> {
        let asked = self.sources.asked(projections, input)?;
        let quantised = quantised(input)?;
        let calls = asked.iter().map(|asked| {
            let calls = asked.source.adapter.take(&asked.modules(), &quantised.values);
            calls.map_err(|error| NotReplayed { session: asked.index, error })
        });
        let calls = calls.collect::<Result<Vec<_>, _>>()?;
        let outputs = own_outputs(&asked, projections.len(), base)?;
        combine(&asked, projections, &quantised, calls, outputs)
    }
}

impl Recording {
    /// The session of an open bundle. Fails on a redacted one, which has no activations.
    pub fn new(bundle: Bundle<impl Read + Seek + Send + 'static>) -> Result<Self, BundleError> {
        let session = bundle.session().clone();
        let modules = session.rows().len();
        let tape = Tape {
            hasher: TranscriptHasher::new(modules, bundle.transcript_salt()?),
            calls: read(bundle),
            entries: 0,
            differing: 0,
            largest: 0,
        };
        Ok(Self { session, tape: Mutex::new(tape) })
    }

    /// What both parties signed.
    pub fn receipt(&self) -> &SignedReceipt {
        self.session.receipt()
    }

    /// The calls that answer row-major activations for these modules. The session may have split them anywhere.
    fn take(&self, modules: &[usize], activations: &[i16]) -> Result<Vec<Arc<Call>>, ReplayError> {
        let tape = &mut *self.tape();
        // The hook is asked for the modules of at least one projection.
        let d_in = self.manifest().modules()[modules[0]].shape().d_in();
        let expected = activations.len() / d_in;
        let (mut calls, mut rows) = (Vec::new(), 0);
        while rows < expected {
            let number = tape.hasher.calls();
            let Some(call) = tape.next()? else {
                return Err(match number < self.receipt().receipt().calls {
                    true => ReplayError::Exchanged,
                    false => ReplayError::Ended { calls: number, modules: self.names(modules) },
                });
            };
            let found: Vec<usize> = call.deltas.iter().map(|delta| delta.module).collect();
            if found != modules {
                // It has gone on to the next input.
                return Err(match rows {
                    0 => ReplayError::Modules {
                        call: number,
                        expected: self.names(modules),
                        found: self.names(&found),
                    },
                    found => {
                        ReplayError::Rows { call: number - 1, modules: self.names(modules), expected, found }
                    }
                });
            }
            let found = rows + call.rows;
            if found > expected {
                return Err(ReplayError::Rows {
                    call: number,
                    modules: self.names(modules),
                    expected,
                    found,
                });
            }
            let replayed = &activations[rows * d_in..found * d_in];
            if let Some(place) = tape.compare(&call.activations, replayed) {
                let beyond =
                    call.activations.iter().zip(replayed).filter(|(a, b)| distance(**a, **b) > TOLERANCE);
                return Err(Box::new(Difference {
                    call: number,
                    modules: self.names(modules),
                    row: place / d_in,
                    rows: call.rows,
                    column: place % d_in,
                    expected: replayed[place],
                    found: call.activations[place],
                    entries: replayed.len(),
                    differing: beyond.count(),
                    // Every module sees every token, in order.
                    token: tape.hasher.rows()[modules[0]] - call.rows as u64 + (place / d_in) as u64,
                })
                .into());
            }
            rows = found;
            calls.push(Arc::new(call));
        }
        Ok(calls)
    }

    /// Reads what is left, which must be nothing but blinding calls.
    fn finish(&self) -> Result<Replayed, ReplayError> {
        let tape = &mut *self.tape();
        let more = self.receipt().receipt().calls.saturating_sub(tape.hasher.calls());
        let rows = tape.hasher.rows().iter().enumerate();
        let mut unblinded: BTreeSet<usize> =
            rows.filter(|(_, rows)| **rows > 0).map(|(module, _)| module).collect();
        let mut blinded = false;
        while let Some(call) = tape.next()? {
            if !blinds(&call, &mut unblinded) {
                return Err(ReplayError::More { calls: more });
            }
            blinded = true;
        }
        if tape.hasher.digest() != self.receipt().receipt().transcript {
            return Err(ReplayError::Exchanged);
        }
        if blinded && !unblinded.is_empty() {
            return Err(ReplayError::More { calls: more });
        }
        Ok(Replayed {
            entries: tape.entries,
            differing: tape.differing,
            largest: tape.largest,
            blinding_rows: if blinded { BLINDING_ROWS } else { 0 },
        })
    }

    /// The names of modules, for people.
    fn names(&self, modules: &[usize]) -> String {
        let entries = self.manifest().modules();
        modules.iter().map(|&module| entries[module].name()).collect::<Vec<_>>().join(", ")
    }

    fn tape(&self) -> MutexGuard<'_, Tape> {
        self.tape.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Adapter for Recording {
    fn manifest(&self) -> &Manifest {
        self.session.manifest().manifest()
    }
}

/// Whether a call blinds a module that is not blinded yet, which it takes from the set of those: after the text, each module with rows
/// gets [`BLINDING_ROWS`] more, in a call of its own. Only the session's parties can tell whether they are those of its seed.
fn blinds(call: &Call, unblinded: &mut BTreeSet<usize>) -> bool {
    match &call.deltas[..] {
        [delta] => call.rows == BLINDING_ROWS && unblinded.remove(&delta.module),
        _ => false,
    }
}

/// A transcript as it is read, and what was found so far.
struct Tape {
    calls: Receiver<Result<Call, BundleError>>,
    hasher: TranscriptHasher,
    entries: u64,
    differing: u64,
    largest: u32,
}

impl Tape {
    fn next(&mut self) -> Result<Option<Call>, ReplayError> {
        // The reader has ended if there is nothing to receive.
        let Ok(call) = self.calls.recv() else { return Ok(None) };
        let call = call?;
        // A bundle has no more calls than a session may have.
        if !self.hasher.add(&call) {
            return Err(ReplayError::Exchanged);
        }
        Ok(Some(call))
    }

    /// The first place where recorded and replayed activations are too far from each other.
    fn compare(&mut self, recorded: &[i16], replayed: &[i16]) -> Option<usize> {
        let mut first = None;
        for (place, (&recorded, &replayed)) in recorded.iter().zip(replayed).enumerate() {
            let distance = distance(recorded, replayed);
            self.differing += u64::from(distance > 0);
            self.largest = self.largest.max(distance);
            if distance > TOLERANCE && first.is_none() {
                first = Some(place);
            }
        }
        self.entries += recorded.len() as u64;
        first
    }
}

impl Difference {
    fn cause(&self) -> &'static str {
        match self.call {
            0 => "at the first call of a session it was another text, or another base model or tokenizer",
            _ => {
                "as the calls before agree, later layers of the base model were others, activations were changed before they were \
                 sent, or deltas were combined in another way (--combine-mode, --lora)"
            }
        }
    }
}

fn distance(a: i16, b: i16) -> u32 {
    i32::from(a).abs_diff(b.into())
}

/// Reads a bundle's calls in a thread of its own, no further ahead than one call.
fn read(mut bundle: Bundle<impl Read + Seek + Send + 'static>) -> Receiver<Result<Call, BundleError>> {
    /// Why it ends early.
    enum Stop {
        Unwanted,
        Bundle(BundleError),
    }
    impl From<BundleError> for Stop {
        fn from(error: BundleError) -> Self {
            Self::Bundle(error)
        }
    }
    let (sender, calls) = sync_channel(0);
    thread::spawn(move || {
        let send = |call| sender.send(Ok(call)).map_err(|_| Stop::Unwanted);
        if let Err(Stop::Bundle(error)) = bundle.calls(send) {
            // If nobody wants to know, nobody has to.
            let _ = sender.send(Err(error));
        }
    });
    calls
}
