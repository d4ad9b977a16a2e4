//! Says of a `.pf` bundle whether it is true, to somebody who was not there.
//!
//! A bundle claims: these deltas are exactly X·A·B of the adapter that the manifest commits to, and both parties signed for
//! them. [`Verifier`] believes none of it. It checks the file's layout and digests, all signatures, that the transcript is
//! the one of the receipt, and every proof, with circuits that it builds itself from the modules' shapes. What no bundle
//! can say about itself is whether it is the *right* adapter of the *right* contributor: that is what [`Pins`] are for, and
//! the [`BundleReport`] says in words which of the two were given.
//!
//! 1. [`Verifier::check`]: one bundle, wherever it is read from, one [`Verdict`].
//! 2. [`Policy`]: all that is asked of a bundle.
//! 3. [`BundleReport`]: the verdict in words and as JSON.
//! 4. [`Page`]: the same as a page for people, with the losses that an [`Evaluation`] claims.
//! 5. [`DisclosureReport`], [`AuditReport`], [`AcceptReport`]: the verdicts on a call that is shown, on a run that is replayed, and on an
//!    adapter that was delivered.
//!
//! Every report is a [`Document`](zklora_proto::Document), whose schema is in `docs/schemas`.
//!
//! What is here starts no threads of its own, and needs neither a file system nor a command line, so that it runs in a browser,
//! too. `zklora-verifier` is the program around it.

mod acceptance;
mod audit;
mod check;
mod disclosure;
mod evaluation;
mod html;
mod kind;
mod measured;
mod pins;
mod policy;
mod report;
mod words;

pub use acceptance::{AcceptReport, AcceptedBundle};
pub use audit::{Agreement, AuditError, AuditReport, AuditedBundle, Place};
pub use check::{
    DEFAULT_MIN_SECURITY, Declared, MAX_FOLD_BYTES, MAX_NEW_ROWS, Refusal, Verdict, Verifier, circuits_of,
    open,
};
pub use disclosure::{Disclosed, DisclosureRefusal, DisclosureReport, check_disclosure};
pub use evaluation::{Contradiction, Evaluation, EvaluationError, Loss, MAX_EVALUATION_BYTES};
pub use html::{Made, Page};
pub use kind::Kind;
pub use measured::{
    Estimate, EvalReport, ExactLoss, ExactLossReport, LossReport, MeanReport, Measured, NoteReport,
    SessionReport,
};
pub use pins::{PinRefusal, Pins, PinsFound, word_on};
pub use policy::Policy;
pub use report::{
    BatchReport, BundleReport, ErrorReport, Fact, ModuleReport, NOT_PINNED, Pair, Report, Standing, TextStyle,
};
pub use words::{date, write_not_shown};
