//! `zklora-base-user sessions`.

use std::io::{self, IsTerminal, Write, stdin};
use std::path::PathBuf;
use std::time::UNIX_EPOCH;

use anyhow::bail;
use clap::{Args, Subcommand};
use schemars::JsonSchema;
use serde::Serialize;
use zklora_cli::{Escaped, UsageError, causes, say_error};
use zklora_client::{Record, RecordError, Records};
use zklora_proto::{AdapterId, Document, SessionId, counted};
use zklora_verdict::date;

use super::{Failed, SessionsArgs};

/// Shows the sessions that you have records of, or forgets some.
#[derive(Args)]
pub struct Sessions {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    List(List),
    Forget(Forget),
}

/// Lists your sessions: when they were, with whom, and whether their bundles are here.
#[derive(Args)]
#[command(after_help = "Example: zklora-base-user sessions list")]
struct List {
    #[command(flatten)]
    sessions: SessionsArgs,
    /// Print the list as JSON.
    #[arg(long)]
    json: bool,
}

/// Deletes the records of sessions, and the seeds of their commitments with them.
///
/// A bundle that is not fetched yet cannot be fetched any more without its record, and of one that is, no call can be opened, nor can
/// it be redacted.
#[derive(Args)]
#[command(after_help = "Example: zklora-base-user sessions forget ID")]
struct Forget {
    /// The sessions.
    #[arg(value_name = "ID", required = true)]
    which: Vec<SessionId>,
    /// Forget sessions whose bundles are not here, too, without asking.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    sessions: SessionsArgs,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Sessions, out: &mut dyn Write) -> anyhow::Result<()> {
    match &args.action {
        Action::List(args) => list(args, out),
        Action::Forget(args) => forget(args, out),
    }
}

/// Your sessions.
#[derive(Serialize, JsonSchema)]
pub struct SessionsReport {
    /// Those whose records can be read, the last ones last.
    sessions: Vec<KnownReport>,
    /// The others.
    unreadable: Vec<Failed>,
}

impl Document for SessionsReport {
    const FORMAT: &'static str = "zklora-sessions/1";
    const PRINTED_BY: &'static str = "zklora-base-user sessions list --json";
}

#[derive(Serialize, JsonSchema)]
struct KnownReport {
    /// The session.
    session: SessionId,
    /// The contributor's address, as it was dialled.
    contributor: String,
    /// The adapter id.
    adapter: AdapterId,
    /// Whether there is a receipt that both signed.
    state: State,
    /// When it began, in seconds since 1970, by the contributor's clock; null as all that the receipt says, if there is none.
    started: Option<u64>,
    /// When it ended.
    finished: Option<u64>,
    /// When its record was written last, by the clock of this machine.
    written: Option<u64>,
    /// Forward calls.
    calls: Option<u64>,
    /// Rows of all modules together.
    rows: Option<u64>,
    /// Where its bundle was fetched to, if it was.
    bundle: Option<String>,
    /// Whether it is there.
    fetched: bool,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum State {
    Signed,
    Unfinished,
}

/// What was forgotten.
#[derive(Serialize, JsonSchema)]
pub struct ForgetReport {
    /// The sessions.
    forgotten: Vec<SessionId>,
}

impl Document for ForgetReport {
    const FORMAT: &'static str = "zklora-forget/1";
    const PRINTED_BY: &'static str = "zklora-base-user sessions forget --json";
}

/// What is known of a session here.
struct Known {
    record: Record,
    /// Seconds since 1970 when its record was written last, by the clock of this machine.
    written: Option<u64>,
}

/// Where a session's bundle is.
enum Place {
    /// The session was not finished, so that there is none.
    Nowhere,
    /// At the contributor, as far as is known here.
    NotFetched,
    Here(PathBuf),
    /// It was fetched to this place, and is there no more.
    Lost(PathBuf),
}

impl Place {
    fn of(record: &Record) -> Self {
        match (&record.receipt, &record.bundle) {
            (None, _) => Self::Nowhere,
            (Some(_), None) => Self::NotFetched,
            (Some(_), Some(path)) if path.is_file() => Self::Here(path.clone()),
            (Some(_), Some(path)) => Self::Lost(path.clone()),
        }
    }
}

fn list(args: &List, out: &mut dyn Write) -> anyhow::Result<()> {
    let records = args.sessions.records()?;
    let (known, unreadable) = read_all(&records)?;
    if args.json {
        let unreadable = unreadable
            .iter()
            .map(|(session, error)| Failed { session: *session, error: Escaped(error).to_string() });
        let report = SessionsReport {
            sessions: known.iter().map(Known::report).collect(),
            unreadable: unreadable.collect(),
        };
        writeln!(out, "{}", report.to_line()?)?;
    } else {
        known.iter().try_for_each(|known| known.print(out))?;
        let folder = records.folder().to_string_lossy();
        writeln!(out, "{} in {}", counted(known.len(), "session"), Escaped(&folder))?;
    }
    out.flush()?;
    if unreadable.is_empty() {
        return Ok(());
    }
    unreadable.iter().for_each(|(_, error)| say_error(error));
    bail!("{} cannot be read", counted(unreadable.len(), "record"))
}

/// A record that cannot be read, and why.
type Unreadable = (SessionId, String);

/// All records that can be read, the last ones last, and why others cannot.
fn read_all(records: &Records) -> Result<(Vec<Known>, Vec<Unreadable>), RecordError> {
    let (mut known, mut unreadable) = (Vec::new(), Vec::new());
    for session in records.sessions()? {
        match records.get(session) {
            Ok(record) => {
                let written = records.written(session);
                let written = written.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
                known.push(Known { record, written: written.map(|since| since.as_secs()) });
            }
            Err(error) => unreadable.push((session, causes(&error.into()))),
        }
    }
    known.sort_by_key(Known::when);
    Ok((known, unreadable))
}

impl Known {
    /// By the contributor's clock, or if there is no receipt, by this machine's.
    fn when(&self) -> Option<u64> {
        self.record.receipt.as_ref().map(|receipt| receipt.receipt().started).or(self.written)
    }

    fn report(&self) -> KnownReport {
        let receipt = self.record.receipt.as_ref().map(|receipt| receipt.receipt());
        let (bundle, here) = match Place::of(&self.record) {
            Place::Nowhere | Place::NotFetched => (None, false),
            Place::Here(path) => (Some(path), true),
            Place::Lost(path) => (Some(path), false),
        };
        KnownReport {
            session: self.record.session,
            contributor: self.record.contributor.to_string(),
            adapter: self.record.adapter,
            state: if receipt.is_some() { State::Signed } else { State::Unfinished },
            started: receipt.map(|receipt| receipt.started),
            finished: receipt.map(|receipt| receipt.finished),
            written: self.written,
            calls: receipt.map(|receipt| receipt.calls),
            rows: receipt.map(|receipt| receipt.rows.iter().sum::<u64>()),
            bundle: bundle.map(|path| path.display().to_string()),
            fetched: here,
        }
    }

    fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        let Record { session, contributor, adapter, receipt, .. } = &self.record;
        writeln!(out, "{session}")?;
        match receipt.as_ref().map(|receipt| receipt.receipt()) {
            Some(receipt) => {
                let rows = counted(receipt.rows.iter().sum::<u64>(), "row");
                writeln!(out, "  when         {} to {}", date(receipt.started), date(receipt.finished))?;
                writeln!(out, "  state        signed by both: {}, {rows}", counted(receipt.calls, "call"))?;
            }
            None => {
                if let Some(written) = self.written {
                    writeln!(out, "  when         begun on {}", date(written))?;
                }
                writeln!(out, "  state        not finished: there is no receipt")?;
            }
        }
        let path = |path: PathBuf| Escaped(&path.to_string_lossy()).to_string();
        let bundle = match Place::of(&self.record) {
            Place::Nowhere => "none".into(),
            Place::NotFetched => "not fetched".into(),
            Place::Here(at) => path(at),
            Place::Lost(at) => format!("not here: it was fetched to {}, and is there no more", path(at)),
        };
        writeln!(out, "  bundle       {bundle}")?;
        writeln!(out, "  adapter      {adapter}")?;
        writeln!(out, "  contributor  {}", Escaped(&contributor.to_string()))
    }
}

fn forget(args: &Forget, out: &mut dyn Write) -> anyhow::Result<()> {
    let records = args.sessions.records()?;
    let mut which = args.which.clone();
    which.sort();
    which.dedup();
    // All of them or none.
    let mut losses = Vec::new();
    for &session in &which {
        match records.get(session) {
            Err(error @ RecordError::Unknown { .. }) => return Err(error.into()),
            Err(error) => losses.push(format!("session {session}: its record cannot be read: {error}")),
            Ok(record) => match Place::of(&record) {
                Place::Nowhere | Place::Here(_) => {}
                Place::NotFetched | Place::Lost(_) => losses.push(format!(
                    "session {session}: its bundle is not here, and cannot be fetched any more without its record"
                )),
            },
        }
    }
    if !losses.is_empty() && !args.yes && !agreed(&losses)? {
        losses.iter().for_each(say_error);
        return Err(UsageError::new(
            "nothing is forgotten; give --yes if you mean it, or fetch the bundles first",
        )
        .into());
    }
    which.iter().try_for_each(|&session| records.remove(session))?;
    if args.json {
        writeln!(out, "{}", ForgetReport { forgotten: which.clone() }.to_line()?)?;
    } else {
        which.iter().try_for_each(|session| writeln!(out, "forgotten    {session}"))?;
    }
    Ok(())
}

/// Asks whoever is there whether that may be lost; nobody has not agreed.
fn agreed(losses: &[String]) -> io::Result<bool> {
    let mut stderr = io::stderr();
    if !stdin().is_terminal() || !stderr.is_terminal() {
        return Ok(false);
    }
    for loss in losses {
        writeln!(stderr, "{}", Escaped(loss))?;
    }
    write!(stderr, "Forget all the same? [y/N] ")?;
    stderr.flush()?;
    let mut answer = String::new();
    stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
