//! `zklora-base-user fetch`.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use schemars::JsonSchema;
use serde::Serialize;
use tokio::runtime::Runtime;
use tracing::{info, warn};
use zklora_cli::{Escaped, causes, say_error};
use zklora_client::SessionError;
use zklora_client::{FetchError, Fetched, Fetcher};
use zklora_client::{Record, Records};
use zklora_proto::message::ProofState;
use zklora_proto::{Address, Bytes, Document, PublicKey, SessionId, counted};
use zklora_verdict::Verifier;

use super::{Failed, SecurityArgs, SessionsArgs, identity};

/// Fetches the bundles of your sessions from their contributors, and verifies them.
///
/// A bundle is taken if every proof in it holds and is worth --min-security, and if its receipt is the one that you signed. What was
/// interrupted goes on where it was. What is not taken is kept beside, for you to look at. Several contributors are asked at once,
/// and what one of them does not have stands in nobody's way.
#[derive(Args)]
#[command(after_help = "\
Examples:
  zklora-base-user fetch --session ID --wait
  zklora-base-user fetch --all --out bundles")]
pub struct Fetch {
    #[command(flatten)]
    which: Which,
    /// Folder for the bundles; made if there is none.
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
    /// Wait until the contributors have proved the sessions.
    #[arg(long)]
    wait: bool,
    /// Where the contributor is now, if that is not where it was. With --all, the sessions of that contributor are fetched.
    #[arg(long, value_name = "zklora://KEY@HOST:PORT")]
    contributor: Option<Address>,
    /// Most bytes of a bundle.
    #[arg(long, value_name = "N", default_value_t = MAX_BYTES)]
    max_bytes: u64,
    /// Your identity key, with which the sessions were opened.
    #[arg(long, value_name = "FILE", env = "ZKLORA_IDENTITY")]
    identity: Option<PathBuf>,
    #[command(flatten)]
    sessions: SessionsArgs,
    #[command(flatten)]
    security: SecurityArgs,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// The session.
    #[arg(long, value_name = "ID")]
    session: Option<SessionId>,
    /// Every session that you have finished.
    #[arg(long)]
    all: bool,
}

/// Several times what a contributor of this version makes of its longest session.
const MAX_BYTES: u64 = 8 << 30;

/// Contributors that are asked at once.
const AT_ONCE: usize = 32;

/// How often a contributor is asked again for sessions that it has not proved.
const POLL: Duration = Duration::from_millis(200);

pub fn run(args: &Fetch, out: &mut dyn Write) -> anyhow::Result<()> {
    let records = args.sessions.records()?;
    let mut done = Done::default();
    let wanted = wanted(args, &records, &mut done)?;
    if !wanted.is_empty() {
        let fetching = Fetching {
            args,
            records: &records,
            client: identity::load(args.identity.clone())?.public(),
            runtime: Runtime::new().context("starting the runtime")?,
            verifier: Verifier::default().with_min_security(args.security.min_security),
            bars: MultiProgress::new(),
            done: Mutex::new(done),
        };
        done = fetching.all(wanted);
    }
    done.tell(args, out)
}

/// The sessions that are to be fetched, each contributor's together. What cannot be is noted.
fn wanted(args: &Fetch, records: &Records, done: &mut Done) -> anyhow::Result<Vec<(Address, Vec<Record>)>> {
    let sessions = match args.which.session {
        Some(session) => vec![session],
        None => records.sessions()?,
    };
    if sessions.is_empty() {
        info!("there is no record of a session in {}", records.folder().display());
    }
    let mut wanted: Vec<(Address, Vec<Record>)> = Vec::new();
    for session in sessions {
        let record = match records.get(session) {
            Ok(record) => record,
            Err(error) => {
                done.failed.insert(session, causes(&error.into()));
                continue;
            }
        };
        if args.which.all && record.receipt.is_none() {
            info!(%session, "left out: it was not finished");
            continue;
        }
        let address = match &args.contributor {
            Some(address) if address.key == record.contributor.key => address,
            Some(address) if args.which.session.is_some() => {
                bail!("the session was with contributor {}, not with {}", record.contributor.key, address.key)
            }
            Some(_) => continue,
            None => &record.contributor,
        };
        match wanted.iter_mut().find(|(known, _)| known == address) {
            Some((_, records)) => records.push(record),
            None => wanted.push((address.clone(), vec![record])),
        }
    }
    Ok(wanted)
}

/// What was fetched.
#[derive(Serialize, JsonSchema)]
pub struct FetchReport {
    /// Bundles that are verified, and of receipts that you signed.
    bundles: Vec<FetchedReport>,
    /// Sessions whose bundles are not.
    failed: Vec<Failed>,
}

impl Document for FetchReport {
    const FORMAT: &'static str = "zklora-fetch/1";
    const PRINTED_BY: &'static str = "zklora-base-user fetch --json";
}

#[derive(Serialize, JsonSchema)]
struct FetchedReport {
    /// The session.
    session: SessionId,
    /// The file.
    bundle: String,
    /// Its size.
    bytes: u64,
    /// Bytes of it that came now; the others were there.
    received: u64,
}

/// What became of the sessions.
#[derive(Default)]
struct Done {
    fetched: BTreeMap<SessionId, Fetched>,
    failed: BTreeMap<SessionId, String>,
    /// Contributors that nothing could be had of, with why, and for how many sessions.
    down: Vec<(Address, String, usize)>,
}

impl Done {
    /// Prints it. Fails if a bundle was not fetched.
    fn tell(self, args: &Fetch, out: &mut dyn Write) -> anyhow::Result<()> {
        let Self { fetched, failed, down } = self;
        if args.json {
            let bundles = fetched.iter().map(|(session, Fetched { path, bytes, received })| FetchedReport {
                session: *session,
                bundle: path.display().to_string(),
                bytes: *bytes,
                received: *received,
            });
            let failures = failed
                .iter()
                .map(|(session, error)| Failed { session: *session, error: Escaped(error).to_string() });
            let report = FetchReport { bundles: bundles.collect(), failed: failures.collect() };
            writeln!(out, "{}", report.to_line()?)?;
        } else {
            for Fetched { path, bytes, received } in fetched.values() {
                let how = if *received == 0 { "was there already" } else { "fetched" };
                writeln!(
                    out,
                    "{}: {}, {how}, verified, and of the receipt that you signed",
                    path.display(),
                    Bytes(*bytes)
                )?;
            }
        }
        out.flush()?;
        if args.which.session.is_some() {
            return failed.into_values().next().map_or(Ok(()), |error| Err(anyhow!(error)));
        }
        for (address, error, sessions) in &down {
            let sessions = counted(*sessions, "bundle");
            say_error(format_args!("contributor {address}: {error}; {sessions} not fetched"));
        }
        let told: Vec<&String> = down.iter().map(|(_, error, _)| error).collect();
        for (session, error) in failed.iter().filter(|(_, error)| !told.contains(error)) {
            say_error(format_args!("session {session}: {error}"));
        }
        match failed.len() {
            0 => Ok(()),
            some => bail!(
                "{some} of {} not fetched; `sessions forget` has done with what is lost for good",
                counted(some + fetched.len(), "bundle")
            ),
        }
    }
}

/// What all contributors' threads share.
struct Fetching<'a> {
    args: &'a Fetch,
    records: &'a Records,
    /// Who asks.
    client: PublicKey,
    runtime: Runtime,
    /// Its circuits serve all bundles.
    verifier: Verifier,
    bars: MultiProgress,
    done: Mutex<Done>,
}

impl Fetching<'_> {
    /// Fetches from all contributors at once.
    fn all(self, wanted: Vec<(Address, Vec<Record>)>) -> Done {
        let threads = wanted.len().min(AT_ONCE);
        let queue = Mutex::new(wanted.into_iter());
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while let Some((address, records)) = next() {
                        self.from(&address, records);
                    }
                });
            }
        });
        self.done.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fetches from one contributor, over one connection, whatever is proved first.
    fn from(&self, address: &Address, mut left: Vec<Record>) {
        left.retain(|record| match self.is_mine(record) {
            Ok(()) => true,
            Err(error) => self.note(record, Err(error)),
        });
        if left.is_empty() {
            return;
        }
        let dial = |key| -> anyhow::Result<Fetcher> {
            Ok(Fetcher::dial(self.runtime.handle().clone(), key, address)?)
        };
        let fetcher = match identity::load(self.args.identity.clone()).and_then(dial) {
            Ok(fetcher) => fetcher,
            Err(error) => return self.note_down(address, &left, &error),
        };
        let mut said = HashMap::new();
        while !left.is_empty() {
            let mut down = None;
            left.retain(|record| {
                if down.is_some() {
                    return true;
                }
                match self.one(&fetcher, record, &mut said) {
                    Err(FetchError::NotProved) if self.args.wait => true,
                    // Nor will it answer for the others.
                    Err(FetchError::Session(error @ SessionError::Frame(_))) => {
                        down = Some(error);
                        true
                    }
                    other => self.note(record, other.map_err(Into::into)),
                }
            });
            if let Some(error) = down {
                return self.note_down(address, &left, &error.into());
            }
            if !left.is_empty() {
                thread::sleep(POLL);
            }
        }
        fetcher.close();
    }

    fn is_mine(&self, record: &Record) -> anyhow::Result<()> {
        if let Some(receipt) = &record.receipt {
            let (client, mine) = (receipt.receipt().client, self.client);
            ensure!(client == mine, "the session was opened with key {client}, but --identity is {mine}");
        }
        Ok(())
    }

    /// Fetches the bundle of one session, if it is proved.
    fn one(
        &self,
        fetcher: &Fetcher,
        record: &Record,
        said: &mut HashMap<SessionId, ProofState>,
    ) -> Result<Fetched, FetchError> {
        let session = record.session;
        if self.args.wait && record.receipt.is_some() {
            let state = fetcher.state(session)?;
            if said.insert(session, state.clone()).as_ref() != Some(&state) {
                info!(%session, "the contributor's proof: {state}");
            }
        }
        let bar = self.bars.add(bar());
        let taken =
            fetcher.fetch(record, &self.args.out, self.args.max_bytes, &self.verifier, |have, all| {
                bar.set_length(all);
                bar.set_position(have);
            });
        bar.finish_and_clear();
        self.bars.remove(&bar);
        taken
    }

    /// Notes what became of a session. It is not asked for again: false, for `retain`.
    fn note(&self, record: &Record, outcome: anyhow::Result<Fetched>) -> bool {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(fetched) => {
                self.remember(record, &fetched.path);
                done.fetched.insert(record.session, fetched);
            }
            Err(error) => drop(done.failed.insert(record.session, causes(&error))),
        }
        false
    }

    fn note_down(&self, address: &Address, left: &[Record], error: &anyhow::Error) {
        let why = causes(error);
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        done.failed.extend(left.iter().map(|record| (record.session, why.clone())));
        done.down.push((address.clone(), why, left.len()));
    }

    /// Writes down where the bundle is, for `sessions`.
    fn remember(&self, record: &Record, path: &Path) {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.into());
        if record.bundle.as_ref() == Some(&path) {
            return;
        }
        if let Err(error) = self.records.put(&Record { bundle: Some(path), ..record.clone() }) {
            warn!(session = %record.session, "its record does not say where the bundle is: {error}");
        }
    }
}

/// A bar on stderr, if that is a terminal.
fn bar() -> ProgressBar {
    // The template is sound: a test would show it at once.
    let style =
        ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes}, {binary_bytes_per_sec}, {eta} left")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style)
}
