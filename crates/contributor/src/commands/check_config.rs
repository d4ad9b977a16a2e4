//! `serve --check-config`: all that can be wrong with a configuration, without serving.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use schemars::JsonSchema;
use serde::Serialize;
use zklora_cli::{Escaped, causes, say_error};
use zklora_contributor::control;
use zklora_contributor::store::{STORE, Store};
use zklora_proto::Document;

use super::settings::{Effective, Settings, Source};

/// A configuration, or what is wrong with it.
#[derive(Serialize, JsonSchema)]
pub struct ConfigReport {
    /// Every setting; none if they cannot be read.
    settings: Vec<Effective>,
    /// What stands in the way of serving, for people.
    errors: Vec<String>,
}

impl Document for ConfigReport {
    const FORMAT: &'static str = "zklora-check-config/1";
    const PRINTED_BY: &'static str = "zklora-contributor serve --check-config --json";
}

/// Prints the settings or what is wrong with them. Fails only if `out` does.
pub fn run(settings: Result<Settings, Vec<String>>, json: bool, out: &mut dyn Write) -> io::Result<ExitCode> {
    let (effective, errors) = match settings {
        Ok(settings) => {
            let errors = errors(&settings);
            (settings.effective, errors)
        }
        Err(errors) => (Vec::new(), errors),
    };
    if json {
        writeln!(out, "{}", ConfigReport { settings: effective, errors: errors.clone() }.to_line()?)?;
    } else {
        for setting in &effective {
            let source = match setting.source {
                Source::Default => "default",
                Source::File => "file",
                Source::Environment => "environment",
                Source::Flag => "flag",
            };
            let value = setting.value.as_deref().unwrap_or("-");
            writeln!(out, "{:<22} {:<11} {}", setting.name, source, Escaped(value))?;
        }
        for error in &errors {
            say_error(error);
        }
    }
    Ok(if errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What valid settings meet on this machine that stands in the way of serving.
fn errors(settings: &Settings) -> Vec<String> {
    let provable = || {
        let state = super::open_state(&settings.state, settings.identity.as_deref())?;
        Store::open(&settings.state.join(STORE), state.manifest.adapter_id())?;
        let modules = state.manifest.manifest().modules().len();
        let planner = super::planner(settings.security, settings.proving_threads, settings.memory)?;
        planner.plan(state.manifest.manifest(), &vec![1; modules]).context("this adapter cannot be proved")
    };
    let checks = [
        provable().map(drop),
        writable(&settings.state).context("state"),
        writable(&settings.out_dir).context("out_dir"),
        control::check_path(&settings.control_path()),
        settings.access().map(drop),
    ];
    checks.into_iter().filter_map(Result::err).map(|error| causes(&error)).collect()
}

/// Whether files can be made in a folder, or in the one that it will be made in.
fn writable(folder: &Path) -> anyhow::Result<()> {
    let mut there = folder.ancestors().map(|folder| if folder == "" { Path::new(".") } else { folder });
    let folder = there.find(|folder| folder.exists()).context("there is no such folder, nor any above it")?;
    tempfile::tempfile_in(folder)
        .with_context(|| format!("{}: expected a folder that this user can write into", folder.display()))?;
    Ok(())
}
