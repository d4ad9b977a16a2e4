use std::io::{self, Write};
use std::process::ExitCode;

use clap::ArgMatches;
use zklora_cli::{Escaped, say_error};
use zklora_contributor::control::ask_status;
use zklora_contributor::daemon::{MostExposed, Status};
use zklora_contributor::exposure::MostRefused;
use zklora_contributor::memory::readable;
use zklora_contributor::store::{STORE, is_served};
use zklora_proto::{Document, counted};

use super::args::StatusReport;
use super::settings::control_path;

/// Exit code if no daemon runs.
const NOT_RUNNING: u8 = 3;

/// Asks, and tells what was answered. `matches` are those that the arguments were made of.
pub fn run(args: &StatusReport, matches: &ArgMatches, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let path = control_path(args, matches).map_err(|errors| anyhow::anyhow!(errors.join("; ")))?;
    let Some(status) = ask_status(&path)? else {
        if args.json {
            writeln!(out, "null")?;
        }
        // Before the exit code, in case that nobody reads what is said.
        out.flush()?;
        // Unless told otherwise, the socket is in the state.
        if path.parent().is_some_and(|state| state.join(STORE).exists() && is_served(state)) {
            let path = path.display();
            say_error(format_args!("running, but nobody answers at {path}: name its socket with --control"));
            return Ok(ExitCode::FAILURE);
        }
        say_error(format_args!("not running: nobody answers at {}", path.display()));
        return Ok(ExitCode::from(NOT_RUNNING));
    };
    if args.json {
        writeln!(out, "{}", status.to_line()?)?;
    } else {
        print(&status, out)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Fails only if `out` does.
fn print(status: &Status, out: &mut dyn Write) -> io::Result<()> {
    let mut line = |name: &str, value: String| writeln!(out, "{name:<12} {}", Escaped(&value));
    let Status { prover, .. } = status;
    let state = if status.stopping { "stopping: finishing proofs" } else { "running" };
    line("state", format!("{state}, process {}, for {}", status.pid, duration(status.uptime_seconds)))?;
    line("version", status.version.clone())?;
    line("adapter", status.adapter.to_string())?;
    line("address", status.address.clone())?;
    if let Some(bytes) = status.memory_bytes {
        line("memory", readable(bytes))?;
    }
    line("store", readable(usize::try_from(status.store_bytes).unwrap_or(usize::MAX)))?;
    line("connections", status.connections.to_string())?;
    line(
        "sessions",
        format!(
            "{} open, {} signed, {} waiting for proof, {} being proved",
            status.open,
            status.signed,
            prover.queued,
            prover.proving.len()
        ),
    )?;
    for progress in &prover.proving {
        line(
            "proving",
            format!("{}: {} of {}", progress.session, progress.done, counted(progress.total, "batch")),
        )?;
    }
    line(
        "ended",
        format!(
            "{} proved, {} failed, {} abandoned since it began",
            prover.totals.proved, prover.totals.failed, status.abandoned
        ),
    )?;
    if let Some(MostExposed { module, rows, budget, left }) = &status.most_exposed {
        line("exposure", format!("most in {module}: {} of {budget}, {left} left", counted(*rows, "row")))?;
    }
    if let Some(MostRefused { client, calls }) = &status.most_refused {
        let all = counted(status.exposure_refused, "call");
        line(
            "refused",
            format!("{all} beyond the exposure budget since it began, {calls} of them of {client}"),
        )?;
    }
    Ok(())
}

fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min"),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}
