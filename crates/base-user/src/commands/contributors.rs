//! A run with contributors: sessions that are opened, asked through a hook, and ended with receipts.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use tokio::runtime::Runtime;
use tracing::{info, warn};
use zklora_base_user::hooks::Hook;
use zklora_base_user::remote::{CombineMode, RemoteHook};
use zklora_base_user::stop::{Stop, Stopped};
use zklora_cli::{UsageError, causes};
use zklora_client::{Record, Records, Session};
use zklora_proto::message::ProofState;
use zklora_proto::{
    AdapterId, Address, BLINDING_ROWS, BaseModelDigest, Bytes, SessionId, SignedReceipt, counted,
};
use zklora_verdict::SessionReport;

use super::{Loaded, SecurityArgs, SessionsArgs, identity};

/// Who serves which adapter, and as whom they are asked.
#[derive(Args)]
pub struct ContributorArgs {
    /// Address of a contributor, which pins its key. May be given several times; deltas of the same projection add.
    #[arg(long, value_name = "zklora://KEY@HOST:PORT", requires = "adapter")]
    contributor: Vec<Address>,
    /// The adapter to be served: the id that `zklora-contributor init` printed. One for each contributor, in their order.
    #[arg(long, value_name = "ID", requires = "contributor")]
    adapter: Vec<AdapterId>,
    /// What becomes of a projection's own output: once for all contributors, or one for each, in their order.
    #[arg(long, value_enum, value_name = "MODE", default_value = "add-delta", requires = "contributor")]
    combine_mode: Vec<CombineMode>,
    /// Your identity key; made if there is none.
    #[arg(long, value_name = "FILE", env = "ZKLORA_IDENTITY")]
    identity: Option<PathBuf>,
    #[command(flatten)]
    sessions: SessionsArgs,
    #[command(flatten)]
    security: SecurityArgs,
    /// Wait until the contributors have proved the sessions.
    #[arg(long, requires = "contributor")]
    wait: bool,
    /// Send 16 random rows through each module at the end, so that a redacted bundle gives no activations away. They count against
    /// what the contributor answers.
    #[arg(long, requires = "contributor")]
    blind: bool,
}

/// Open sessions with contributors.
pub struct Contributors {
    // Closed before the runtime ends.
    sessions: Vec<(Arc<Session>, CombineMode)>,
    /// Of each session, in their order; with the space for its receipt.
    kept: Vec<(Record, File)>,
    records: Records,
    runtime: Runtime,
    stop: Stop,
    wait: bool,
    blind: bool,
}

impl ContributorArgs {
    /// Whether there is of everything one for each contributor: to be asked before a model is loaded. Gives the modes.
    pub fn check(&self) -> Result<Vec<CombineMode>, UsageError> {
        let (contributors, adapters) = (self.contributor.len(), self.adapter.len());
        if contributors != adapters {
            return Err(UsageError::new(format!(
                "expected an --adapter for each --contributor, found {adapters} for {contributors}"
            )));
        }
        combine_modes(&self.combine_mode, contributors, "contributors")
    }

    /// Opens a session with each contributor. From then on a signal that would end the program ends the run in order.
    pub fn connect(&self, base_model: BaseModelDigest) -> anyhow::Result<Contributors> {
        let modes = self.check()?;
        let runtime = Runtime::new().context("starting the runtime")?;
        let records = self.sessions.records()?;
        // Without contributors there is nothing to be lost.
        let stop = match self.contributor.is_empty() {
            true => Stop::default(),
            false => Stop::on_signals().context("listening for signals")?,
        };
        let (mut sessions, mut kept) = (Vec::with_capacity(modes.len()), Vec::with_capacity(modes.len()));
        for ((address, adapter), mode) in self.contributor.iter().zip(&self.adapter).zip(modes) {
            let key = identity::load(self.identity.clone())?;
            let session = Session::open_with_min_security(
                runtime.handle().clone(),
                key,
                address,
                *adapter,
                base_model,
                self.security.min_security,
            )
            .with_context(|| format!("opening a session with {address}"))?;
            info!(session = %session.id(), "session opened with {address}");
            // Before the first call: without its seed none can be shown.
            let record = session.record(address.clone());
            let keep = || {
                records.put(&record)?;
                records.reserve(session.manifest().modules().len())
            };
            let reserved = keep().context("keeping the record of the session")?;
            kept.push((record, reserved));
            sessions.push((Arc::new(session), mode));
        }
        Ok(Contributors { sessions, kept, records, runtime, stop, wait: self.wait, blind: self.blind })
    }
}

/// The modes of so many, of which there is one for all, or one for each.
pub fn combine_modes(
    modes: &[CombineMode],
    count: usize,
    whose: &str,
) -> Result<Vec<CombineMode>, UsageError> {
    match modes {
        [mode] => Ok(vec![*mode; count]),
        modes if modes.len() == count => Ok(modes.to_vec()),
        modes => Err(UsageError::new(format!(
            "expected one --combine-mode, or one for each of {count} {whose}, found {}",
            modes.len()
        ))),
    }
}

impl Contributors {
    /// The module that may answer fewer independent rows than it will be asked for if it is asked for so many, and how many, those
    /// for blinding left aside. The worst, if there are several.
    pub fn too_few(&self, rows: usize) -> Option<(u64, String)> {
        let blinding = if self.blind { BLINDING_ROWS } else { 0 };
        let of_session = |session: &Session| {
            let modules = session.manifest().modules().iter().zip(session.left());
            // No more can be independent than there are inputs.
            let too_few = modules
                .filter(|(module, left)| **left < (rows + blinding).min(module.shape().d_in()) as u64)
                .map(|(module, left)| (left.saturating_sub(blinding as u64), module.name().to_owned()));
            too_few.min()
        };
        self.sessions.iter().filter_map(|(session, _)| of_session(session)).min()
    }

    /// Says beforehand if so many rows of every module may be more than the contributors answer.
    pub fn warn_of(&self, rows: usize) {
        if let Some((left, module)) = self.too_few(rows) {
            warn!(
                "this takes up to {rows} rows of every module, but {module} may answer {left} more independent rows{}: the contributor \
                 will refuse, unless enough of them were answered before; take less text",
                self.beside()
            );
        }
    }

    /// What to add to a number of rows that are left.
    pub fn beside(&self) -> String {
        match self.blind {
            true => format!(" beside the {BLINDING_ROWS} for blinding"),
            false => String::new(),
        }
    }

    /// Runs something with a hook that gets the deltas, if there are any, and ends the sessions whatever came of it: what was
    /// answered gets its receipt. Takes the hook off.
    pub fn run<T>(
        self,
        base: &mut Loaded,
        work: impl FnOnce(&mut Loaded, Option<Arc<dyn Hook>>) -> anyhow::Result<T>,
    ) -> (anyhow::Result<T>, Ended) {
        let hook = || {
            let hook = RemoteHook::new(self.sessions.iter().cloned()).until(self.stop.clone());
            Arc::new(hook) as Arc<dyn Hook>
        };
        let hook = (!self.sessions.is_empty()).then(hook);
        let done = work(base, hook);
        base.model.unpatch();
        let ended = self.finish();
        (done, ended)
    }

    /// Blinds the sessions if that was asked for, ends them with receipts that both sign, and waits for the proofs if that was asked
    /// for and all of them have one.
    fn finish(self) -> Ended {
        let mut sessions = Vec::with_capacity(self.sessions.len());
        for ((session, _), kept) in self.sessions.iter().zip(self.kept) {
            let receipt = match session.counts().0 {
                0 => None,
                _ => Some(end(session, kept, &self.records, self.blind)),
            };
            sessions.push(EndedSession { id: session.id(), receipt });
        }
        let all = sessions.iter().all(|session| matches!(session.receipt, Some(Ok(_))));
        let mut not_proved = None;
        for ((session, _), ended) in self.sessions.into_iter().zip(&mut sessions) {
            if self.wait
                && all
                && let Some(Ok(finished)) = &mut ended.receipt
            {
                let progress = |state: &ProofState| info!("the contributor's proof: {state}");
                match session.wait_for_proof_unless(&|| Ok(self.stop.check()?), progress) {
                    Ok(bytes) => finished.bundle_bytes = Some(bytes),
                    Err(error) => {
                        let waiting = format!("waiting for the proof of session {}", ended.id);
                        not_proved.get_or_insert(anyhow::Error::new(error).context(waiting));
                    }
                }
            }
            // The hook, which shared the session, is gone.
            if let Some(session) = Arc::into_inner(session) {
                session.close();
            }
        }
        drop(self.runtime);
        Ended { sessions, stopped: self.stop.check().err(), not_proved }
    }
}

/// Ends a session that has calls.
fn end(
    session: &Session,
    (record, reserved): (Record, File),
    records: &Records,
    blind: bool,
) -> anyhow::Result<Finished> {
    let blinded = match blind.then(|| session.blind()) {
        None => None,
        Some(Ok(())) => Some(true),
        // What was answered is not lost for it.
        Some(Err(error)) => {
            let why = anyhow::Error::new(error);
            warn!("NOT BLINDED, so that a redacted bundle of this session hides little: {why:#}");
            Some(false)
        }
    };
    let keep = |receipt: &SignedReceipt| {
        drop(reserved);
        records.put(&Record { receipt: Some(receipt.clone()), ..record })
    };
    let receipt = session.finish_keeping(keep)?;
    info!(session = %session.id(), "receipt signed by both");
    Ok(Finished { receipt, blinded, bundle_bytes: None })
}

/// What became of the sessions of a run.
pub struct Ended {
    sessions: Vec<EndedSession>,
    stopped: Option<Stopped>,
    /// Why a proof was not waited for.
    not_proved: Option<anyhow::Error>,
}

struct EndedSession {
    id: SessionId,
    /// None if nothing was answered.
    receipt: Option<anyhow::Result<Finished>>,
}

impl Ended {
    /// The sessions that have receipts, for programs.
    pub fn reports(&self) -> Vec<SessionReport> {
        self.finished().map(Finished::report).collect()
    }

    /// The sessions that have receipts.
    pub fn finished(&self) -> impl Iterator<Item = &Finished> {
        self.sessions.iter().filter_map(|session| session.receipt.as_ref()?.as_ref().ok())
    }

    /// What the run gave, if it came to its end and every session has its receipt; otherwise an error that says what became of
    /// which session.
    pub fn complete<T>(&mut self, done: anyhow::Result<T>) -> anyhow::Result<T> {
        let early = done.is_err();
        let became = |EndedSession { id, receipt }: &EndedSession| match receipt {
            None if early => None,
            None => Some(format!("session {id} has no calls, and so no receipt")),
            Some(Ok(_)) if !early => None,
            Some(Ok(Finished { receipt, .. })) => {
                let (calls, rows) = (receipt.receipt().calls, receipt.receipt().rows.iter().sum::<u64>());
                Some(format!(
                    "session {id} ended early, with a receipt of both for {}, {}",
                    counted(calls, "call"),
                    counted(rows, "row")
                ))
            }
            Some(Err(why)) => Some(format!("session {id} has NO receipt ({})", causes(why))),
        };
        let became: Vec<String> = self.sessions.iter().filter_map(became).collect();
        match done {
            Ok(done) if became.is_empty() => Ok(done),
            Ok(_) => bail!(became.join("; ")),
            Err(error) => {
                // What failed for a signal tells nothing else.
                let error = self.stopped.take().map_or(error, anyhow::Error::new);
                Err(if became.is_empty() { error } else { error.context(became.join("; ")) })
            }
        }
    }

    /// Fails if a proof was to be waited for, and is not there.
    pub fn proved(self) -> anyhow::Result<()> {
        self.not_proved.map_or(Ok(()), Err)
    }
}

/// A session that has ended.
pub struct Finished {
    receipt: SignedReceipt,
    /// Whether it was blinded, if that was asked for.
    blinded: Option<bool>,
    /// Size of its bundle, if it was waited for.
    bundle_bytes: Option<u64>,
}

impl Finished {
    pub fn report(&self) -> SessionReport {
        SessionReport {
            blinded: self.blinded,
            bundle_bytes: self.bundle_bytes,
            ..SessionReport::new(self.receipt.receipt())
        }
    }

    pub fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        let receipt = self.receipt.receipt();
        let rows = receipt.rows.iter().sum::<u64>();
        writeln!(out, "session                  {}", receipt.session)?;
        writeln!(
            out,
            "receipt                  signed by both: {}, {}",
            counted(receipt.calls, "call"),
            counted(rows, "row")
        )?;
        match self.blinded {
            None => {}
            Some(true) => {
                writeln!(out, "blinded                  with {BLINDING_ROWS} random rows of each module")?
            }
            Some(false) => {
                writeln!(out, "blinded                  NO: the contributor refused the random rows")?
            }
        }
        match self.bundle_bytes {
            Some(bytes) => writeln!(
                out,
                "bundle                   {}.pf, {}, at the contributor",
                receipt.session,
                Bytes(bytes)
            )?,
            None => writeln!(
                out,
                "bundle                   {}.pf, when the contributor has proved it",
                receipt.session
            )?,
        }
        Ok(())
    }
}
