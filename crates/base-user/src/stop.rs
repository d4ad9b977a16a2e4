//! Ending a run early, by Ctrl-C or another signal, so that what was answered gets its receipt.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;
use tracing::warn;

/// Signals that ask a program to end.
const SIGNALS: [i32; 3] = [SIGHUP, SIGINT, SIGTERM];

/// Whether a run is to end. Clones are of the same run.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<State>);

#[derive(Debug, Default)]
struct State {
    /// 0 as long as none came.
    signal: AtomicI32,
    spending: AtomicBool,
}

/// A signal ended the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("stopped by {}", self.name())]
pub struct Stopped {
    signal: i32,
}

impl Stop {
    /// Listens for SIGHUP, SIGINT and SIGTERM, unless whoever started the program had them ignored, as `nohup` does.
    ///
    /// As long as nothing is [spent](Self::spend), a signal ends the process. After that the first one makes [`check`](Self::check) fail, and
    /// the second one ends the process.
    pub fn on_signals() -> io::Result<Self> {
        let stop = Self::default();
        let ignored = ignored_signals();
        let listened = SIGNALS.into_iter().filter(|signal| ignored & (1 << (signal - 1)) == 0);
        let mut signals = Signals::new(listened)?;
        let state = stop.0.clone();
        thread::Builder::new().name("signals".into()).spawn(move || {
            for signal in signals.forever() {
                let first = state.signal.swap(signal, Ordering::SeqCst) == 0;
                if first && state.spending.load(Ordering::SeqCst) {
                    let stopped = Stopped { signal };
                    warn!("{stopped}; what was answered gets its receipt; once more to quit at once");
                } else if let Err(error) = emulate_default_handler(signal) {
                    // They are signals that end a process.
                    warn!("quitting: {error}");
                }
            }
        })?;
        Ok(stop)
    }

    /// From now on there is something to be lost.
    pub fn spend(&self) {
        self.0.spending.store(true, Ordering::SeqCst);
    }

    /// Fails if the run is to end.
    pub fn check(&self) -> Result<(), Stopped> {
        match self.0.signal.load(Ordering::SeqCst) {
            0 => Ok(()),
            signal => Err(Stopped { signal }),
        }
    }
}

impl Stopped {
    /// What a shell says of a program that the signal ended: 128 and its number.
    pub fn exit_code(self) -> u8 {
        128 + self.signal as u8
    }

    fn name(self) -> &'static str {
        match self.signal {
            SIGHUP => "SIGHUP",
            SIGINT => "SIGINT",
            _ => "SIGTERM",
        }
    }
}

/// The signals that this process was told to ignore before it began, a bit for each, the first for 1. None where there is no `/proc`.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
