use clap::{Args, Command, FromArgMatches};
use zklora_cli::Logging;

use super::*;

const EXAMPLE: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../dist/config/contributor.toml"));

fn read(file: &str, flags: &[&str]) -> Result<Settings, Vec<String>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("contributor.toml");
    std::fs::write(&path, file).unwrap();
    let given = [&["serve", "--config", path.to_str().unwrap()], flags].concat();
    let matches = command().get_matches_from(given);
    let folder = format!("{}/", folder.path().display());
    Settings::read(&Serve::from_arg_matches(&matches).unwrap(), &matches)
        .map_err(|errors| errors.iter().map(|error| error.replace(&folder, "")).collect())
}

/// `serve` with what all commands have.
fn command() -> Command {
    Logging::augment_args(Serve::augment_args(Command::new("serve")))
}

/// The settings that the command line knows, with their defaults.
fn known() -> Vec<(String, Option<String>)> {
    let command = command();
    let settings = command
        .get_arguments()
        .filter(|argument| argument.get_env().is_some() && argument.get_id() != "config");
    settings
        .map(|argument| {
            let default = argument.get_default_values().first();
            (argument.get_id().to_string(), default.map(|text| text.to_str().unwrap().into()))
        })
        .collect()
}

#[test]
fn the_example_has_every_setting_at_its_default_and_nothing_else() {
    assert!(known().len() >= 7);
    for (name, default) in known() {
        let line = EXAMPLE.lines().find(|line| line.starts_with(&format!("#{name} = ")));
        let line = line.unwrap_or_else(|| panic!("dist/config/contributor.toml lacks {name}"));
        if let Some(default) = default {
            let value = line.split_once(" = ").unwrap().1.trim_matches('"');
            assert_eq!(value, default, "{name}");
        }
    }
    let entries: Vec<&str> = EXAMPLE
        .lines()
        .filter(|line| line.starts_with('#') && !line.starts_with("# ") && line.len() > 1)
        .collect();
    assert_eq!(entries.len(), known().len());

    // As it is, it sets nothing; with every line in force, it is valid.
    let settings = read(EXAMPLE, &["--state", "s", "--out-dir", "o"]).unwrap();
    assert!(settings.effective.iter().all(|setting| setting.source != Source::File));
    let in_force: String = entries.iter().map(|line| format!("{}\n", &line[1..])).collect();
    let settings = read(&in_force, &[]).unwrap();
    assert!(settings.effective.iter().all(|setting| setting.source == Source::File));
    assert_eq!(settings.effective.len(), known().len());
}

#[test]
fn every_limit_is_in_the_table_of_the_page() {
    let page = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operations.md"));
    for limit in Limits::ALL {
        let row =
            page.lines().any(|line| line.starts_with("| ") && line.contains(&format!("`{}`", limit.name)));
        assert!(row, "docs/operations.md has no {} in its table of limits", limit.name);
    }
}

#[test]
fn a_limit_is_read_from_file_variable_and_flag_by_one_name() {
    let settings =
        read("state = \"s\"\nout_dir = \"o\"\nsession_idle = \"90s\"\nrequest_memory = \"2GiB\"", &[])
            .unwrap();
    assert_eq!((settings.limits.session_idle.as_secs(), settings.limits.request_memory), (90, 2 << 30));
    let flags = ["--session-idle", "1h", "--client-bytes", "3MiB"];
    let settings = read("state = \"s\"\nout_dir = \"o\"\nsession_idle = \"90s\"", &flags).unwrap();
    assert_eq!((settings.limits.session_idle.as_secs(), settings.limits.client_bytes), (3600, 3 << 20));
    let errors =
        read("state = \"s\"\nout_dir = \"o\"\nqueue = \"many\"", &["--session-age", "0s"]).unwrap_err();
    assert_eq!(
        errors,
        [
            "contributor.toml:3: queue = \"many\": expected a whole number",
            "--session-age \"0s\": expected a length of time such as 90s, 10m or 1day",
        ]
    );
}

#[test]
fn everything_that_is_wrong_is_told_with_its_line() {
    let errors = read(
        "state = \"s\"\nsecurity = \"weak\"\n\nlisten = 7\nexposure_budgets = 0.5\nmemory = [1]\n",
        &["--proving-threads", "many"],
    )
    .unwrap_err();
    let expected = [
        "contributor.toml:4: listen = \"7\": expected an address and a port such as 127.0.0.1:30000 or [::1]:30000",
        "no out_dir is given: expected --out-dir, the variable ZKLORA_OUT_DIR, or out_dir = \"...\" in the file of --config",
        "contributor.toml:2: security = \"weak\": parameter set \"weak\" is not known, expected \"standard\" or \"compact\"",
        "--proving-threads \"many\": expected a whole number",
        "contributor.toml:6: memory: expected a text or a number, found this: array",
    ];
    assert_eq!(errors[..5], expected);
    assert!(errors[5].starts_with("contributor.toml:5: \"exposure_budgets\" is no setting"), "{errors:?}");
    assert_eq!(errors.len(), 6);

    let errors = read("state = \"s\nlisten = 1 2\n", &[]).unwrap_err();
    assert!(errors[0].starts_with("contributor.toml:1: "), "{errors:?}");
    assert!(errors.iter().any(|error| error.starts_with("contributor.toml:2: ")), "{errors:?}");
}

#[test]
fn a_flag_is_stronger_than_the_file_and_paths_in_the_file_start_there() {
    let settings =
        read("state = \"s\"\nout_dir = \"/o\"\nproving_threads = 3", &["--proving-threads", "5"]).unwrap();
    assert_eq!(settings.proving_threads, 5);
    assert!(settings.state.is_absolute() && settings.state.ends_with("s"));
    assert_eq!(settings.out_dir, Path::new("/o"));
    let source = |name| settings.effective.iter().find(|setting| setting.name == name).unwrap().source;
    assert_eq!(
        [source("state"), source("proving_threads"), source("listen")],
        [Source::File, Source::Flag, Source::Default]
    );
}
