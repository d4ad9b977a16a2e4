//! What the three programs do alike: completions, where their output goes, how they fail.

use std::fs::{self, File};
use std::io::pipe;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use zklora_tests::fixtures;
use zklora_tests::programs::{Programs, program, success, text};

const PROGRAMS: [&str; 3] = ["zklora-contributor", "zklora-base-user", "zklora-verifier"];

/// What a shell sees of a program that SIGPIPE has ended.
const CLOSED_PIPE: i32 = 141;

fn run(program_name: &str, args: &[&str]) -> Output {
    program(program_name).args(args).output().unwrap()
}

/// What `--help` of a command says.
fn help(program_name: &str, command: &[&str]) -> String {
    let output = run(program_name, &[command, &["--help"][..]].concat());
    assert!(output.status.success(), "{command:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// The commands below one, by its help; not `help` itself.
fn commands_of(help: &str) -> Vec<String> {
    let Some((_, list)) = help.split_once("Commands:\n") else { return Vec::new() };
    let lines = list.lines().take_while(|line| line.starts_with("  "));
    let names = lines.filter_map(|line| line.strip_prefix("  ")?.split_whitespace().next());
    names.filter(|name| *name != "help").map(Into::into).collect()
}

/// The long options of a command, by its help.
fn options_of(help: &str) -> Vec<String> {
    let option = |line: &str| {
        let line = line.trim_start();
        let line = line.strip_prefix('-')?;
        let long = line.strip_prefix('-').or_else(|| line.split_once(", --").map(|(_, long)| long))?;
        Some(format!("--{}", long.split([' ', '=', '[', '.']).next()?))
    };
    help.lines().filter(|line| line.starts_with("  ")).filter_map(option).collect()
}

/// What bash offers for the last of these words.
fn offered(script: &Path, words: &[&str]) -> Vec<String> {
    let ask = r#"
        source "$1"; shift
        [[ $(complete -p "$1") =~ -F\ ([^ ]+) ]] || exit 1
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
        "${BASH_REMATCH[1]}" "$1" "${!#}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let output = Command::new("bash").args(["-c", ask, "bash"]).arg(script).args(words).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", text(&output.stderr));
    text(&output.stdout).lines().map(Into::into).collect()
}

#[test]
fn bash_completes_every_option_of_every_command() {
    let folder = tempfile::tempdir().unwrap();
    for name in PROGRAMS {
        let script = folder.path().join(name);
        fs::write(&script, run(name, &["completions", "bash"]).stdout).unwrap();
        let mut commands: Vec<Vec<String>> = vec![vec![]];
        let mut checked = 0;
        while let Some(command) = commands.pop() {
            let command: Vec<&str> = command.iter().map(String::as_str).collect();
            let help = help(name, &command);
            let mut words = [&[name][..], &command, &["--"]].concat();
            let offers = offered(&script, &words);
            for option in options_of(&help) {
                assert!(offers.contains(&option), "{words:?}: {offers:?} has no {option}");
                checked += 1;
            }
            *words.last_mut().unwrap() = "";
            let (below, offers) = (commands_of(&help), offered(&script, &words));
            for next in below {
                assert!(offers.contains(&next), "{words:?}: {offers:?} has no {next}");
                commands.push(command.iter().map(ToString::to_string).chain([next]).collect());
            }
        }
        assert!(checked > 20, "{name}: {checked}");
    }
}

/// Every command of a kind that prints something, with files that it needs in a folder.
fn printing(folder: &Path) -> Vec<Command> {
    let text = "El administrador debe comprobar la red.";
    let base = fixtures().join("gpt2-tiny");
    let valid = fixtures().join("vectors/valid");
    let bundle = fs::read_dir(&valid)
        .unwrap()
        .map(|file| file.unwrap().path())
        .find(|path| path.extension().is_some_and(|extension| extension == "pf"));
    let bundle = bundle.unwrap();
    let state = folder.join("state");
    let make = |name: &str, args: &[&str]| {
        let mut command = program(name);
        command.env("XDG_CACHE_HOME", folder).env("HOME", folder).env_remove("XDG_CONFIG_HOME");
        command.args(args);
        command
    };
    let with = |name: &str, args: &[&str], path: &Path| {
        let mut command = make(name, args);
        command.arg(path);
        command
    };
    let user = |args: &[&str]| with("zklora-base-user", &[args, &["--base-model"]].concat(), &base);
    let seller = |args: &[&str]| with("zklora-contributor", &[args, &["--state"]].concat(), &state);
    let verifier = |args: &[&str]| with("zklora-verifier", args, &bundle);
    let mut extract = verifier(&["extract"]);
    extract.arg("receipt");
    let dataset = fixtures().join("text/es-heldout.txt");
    let eval = ["eval", "--max-tokens", "300", "--dataset", dataset.to_str().unwrap()];
    let mut check = seller(&["serve", "--check-config", "--open"]);
    check.arg("--out-dir").arg(folder.join("out"));
    let mut commands = vec![
        user(&["loss", "--text", text]),
        user(&["loss", "--json", "--text", text]),
        user(&eval),
        user(&["generate", "--max-tokens", "3", "--prompt", "El"]),
        user(&["generate", "--max-tokens", "3", "--prompt", "El", "--json"]),
        make("zklora-base-user", &["identity"]),
        make("zklora-base-user", &["sessions", "list"]),
        make("zklora-base-user", &["sessions", "list", "--json"]),
        check,
        seller(&["plan"]),
        seller(&["plan", "--json"]),
        seller(&["exposure"]),
        seller(&["status", "--json"]),
        verifier(&["verify"]),
        verifier(&["verify", "--json"]),
        verifier(&["verify", "--quiet"]),
        verifier(&["verify", "--html", "-"]),
        verifier(&["explain"]),
        verifier(&["inspect"]),
        verifier(&["inspect", "--json"]),
        verifier(&["keys"]),
        extract,
    ];
    for name in PROGRAMS {
        commands.extend([
            make(name, &["--help"]),
            make(name, &["--version"]),
            make(name, &["completions", "bash"]),
        ]);
        commands.extend([make(name, &["help"]), make(name, &["completions", "--help"])]);
    }
    commands
}

/// A folder with a contributor's state in it.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let made = zklora_tests::programs::init(
        &fixtures().join("gpt2-tiny"),
        &fixtures().join("lora-es"),
        &folder.path().join("state"),
    );
    assert!(made.status.success(), "{}", text(&made.stderr));
    folder
}

#[test]
fn a_reader_that_has_gone_ends_every_command_without_a_word() {
    let folder = folder();
    for mut command in printing(folder.path()) {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let output = command.env("RUST_LOG", "warn").stdout(writer).stderr(Stdio::piped()).output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(CLOSED_PIPE), "{command:?}: {said}");
        assert!(!said.contains("error") && !said.contains("panicked"), "{command:?}: {said}");
    }
}

#[test]
fn a_full_disk_is_an_error_that_says_so() {
    let folder = folder();
    for mut command in printing(folder.path()) {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = command.env("RUST_LOG", "off").stdout(full).stderr(Stdio::piped()).output().unwrap();
        let said = text(&output.stderr);
        assert!(matches!(output.status.code(), Some(1 | 2)), "{command:?}: {said}");
        assert!(
            said.starts_with("error: writing to the standard output: No space left"),
            "{command:?}: {said}"
        );
        assert_eq!(said.matches("No space left").count(), 1, "{command:?}: {said}");
    }
}

#[test]
fn a_session_is_kept_although_nobody_reads_its_result() {
    let world = Programs::new();
    let server = world.serve();
    for (full, json) in [(false, true), (true, true), (true, false)] {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let out = if full {
            File::options().write(true).open("/dev/full").unwrap().into()
        } else {
            Stdio::from(writer)
        };
        let mut loss = world.loss(&server.address, "Debian es libre.");
        if !json {
            loss = without_json(&loss);
        }
        let output = loss.stdout(out).stderr(Stdio::piped()).output().unwrap();
        assert_ne!(output.status.code(), Some(0), "{}", text(&output.stderr));
    }
    let mut list = program("zklora-base-user");
    let listed = success(list.args(["sessions", "list", "--json", "--sessions"]).arg(world.path("sessions")));
    let sessions = listed["sessions"].as_array().unwrap();
    assert_eq!(sessions.len(), 3);
    assert!(sessions.iter().all(|session| session["state"] == "signed"), "{listed}");
    server.stop();
}

fn without_json(command: &Command) -> Command {
    let mut same = program("zklora-base-user");
    same.args(command.get_args().filter(|arg| *arg != "--json"));
    same
}

#[test]
fn a_service_outlives_whoever_read_its_log() {
    let world = Programs::new();
    let (reader, writer) = pipe().unwrap();
    let mut serve = program("zklora-contributor");
    serve.args(["serve", "--open", "--json", "--listen", "127.0.0.1:0", "--exposure-budget", "1", "--state"]);
    serve.arg(world.path("state")).arg("--out-dir").arg(world.path("out")).env("RUST_LOG", "debug");
    let mut child = serve.stdout(Stdio::piped()).stderr(writer).spawn().unwrap();
    // Or this process would have the pipe open, too.
    drop(serve);
    drop(reader);
    let mut said = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut said)
        .unwrap();
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    success(world.loss(said["address"].as_str().unwrap(), "Debian es libre.").arg("--wait"));
    assert!(child.try_wait().unwrap().is_none(), "it has ended");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn errors_are_said_once_and_alike_whatever_is_logged() {
    let none = "/no/such/place";
    let missing = PathBuf::from(none);
    let id = "ab".repeat(32);
    let empty = tempfile::tempdir().unwrap();
    let empty = empty.path().to_str().unwrap();
    let cases: [(&str, Vec<&str>, i32); 12] = [
        ("zklora-base-user", vec!["loss", "--base-model", empty, "--text", "x"], 1),
        ("zklora-base-user", vec!["fetch", "--session", &id], 1),
        ("zklora-base-user", vec!["audit", none, "--base-model", none, "--text", "x"], 2),
        ("zklora-base-user", vec!["disclose", none, "--call", "0", "--module", "x"], 1),
        ("zklora-contributor", vec!["plan", "--state", none], 1),
        ("zklora-contributor", vec!["serve", "--config", none], 2),
        ("zklora-contributor", vec!["serve", "--config", none, "--check-config"], 1),
        ("zklora-contributor", vec!["status", "--state", none], 3),
        ("zklora-verifier", vec!["verify", none], 2),
        ("zklora-verifier", vec!["verify", none, "--policy", none], 2),
        ("zklora-verifier", vec!["inspect", none], 2),
        ("zklora-verifier", vec!["keys", none], 2),
    ];
    for (name, args, code) in cases {
        let mut said = Vec::new();
        for log in ["off", "info"] {
            let output = program(name).args(&args).env("RUST_LOG", log).output().unwrap();
            assert_eq!(output.status.code(), Some(code), "{args:?}: {}", text(&output.stderr));
            let stderr = text(&output.stderr);
            let errors: Vec<String> =
                stderr.lines().filter(|line| line.starts_with("error: ")).map(Into::into).collect();
            assert!(!errors.is_empty(), "{args:?}: {stderr}");
            assert_eq!(errors[0].matches("error: ").count(), 1, "{args:?}: {stderr}");
            assert!(!errors[0].contains("\\n"), "{args:?}: {stderr}");
            for cause in ["No such file", "no such folder"] {
                assert!(errors[0].matches(cause).count() <= 1, "{args:?}: {stderr}");
            }
            said.push(errors);
        }
        assert_eq!(said[0], said[1], "{args:?}");
    }
    assert!(!missing.exists());
}

#[test]
fn an_error_is_a_json_line_where_the_log_is_json() {
    for name in PROGRAMS {
        let (command, code) = match name {
            "zklora-verifier" => (["verify", "/no/such"], 2),
            "zklora-base-user" => (["disclose", "/no/such"], 1),
            _ => (["plan", "--state=/no/such"], 1),
        };
        let mut run = program(name);
        run.args(command).args(["--log-format", "json"]).env("RUST_LOG", "off");
        if name == "zklora-base-user" {
            run.args(["--call", "0", "--module", "x"]);
        }
        let output = run.output().unwrap();
        assert_eq!(output.status.code(), Some(code));
        let said: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
        assert_eq!(said["level"], "ERROR");
        assert!(said["fields"]["message"].as_str().unwrap().contains("/no/such"), "{said}");
    }
}

#[test]
fn options_that_need_each_other_are_wrong_usage_apart() {
    let key = "zklora://".to_owned() + &"ab".repeat(32) + "@127.0.0.1:1";
    let id = "cd".repeat(32);
    let base = fixtures().join("gpt2-tiny");
    let base = base.to_str().unwrap();
    let loss = ["loss", "--base-model", base, "--text", "x"];
    let generate = ["generate", "--base-model", base, "--prompt", "x"];
    let audit = ["audit", "x.pf", "--base-model", base, "--text", "x"];
    let mut cases: Vec<(&str, Vec<&str>)> = Vec::new();
    for more in [
        &["--contributor", &key][..],
        &["--adapter", &id],
        &["--contributor", &key, "--contributor", &key, "--adapter", &id],
        &["--contributor", &key, "--adapter", &id, "--adapter", &id],
        &["--blind"],
        &["--wait"],
        &["--combine-mode", "replace"],
    ] {
        cases.push(("zklora-base-user", [&loss[..], more].concat()));
        cases.push(("zklora-base-user", [&generate[..], more].concat()));
    }
    for more in [
        &["--max-tokens", "5"][..],
        &["--completion-field", "a"],
        &["--text-field", "a"],
        &["--batch-tokens", "7"],
        &["--combine-mode", "replace", "--combine-mode", "replace"],
    ] {
        cases.push(("zklora-base-user", [&audit[..], more].concat()));
    }
    cases.push(("zklora-base-user", [&generate[..], &["--stop", ""]].concat()));
    cases.push(("zklora-base-user", vec!["fetch"]));
    cases.push(("zklora-base-user", vec!["sessions", "forget"]));
    cases.push(("zklora-contributor", vec!["plan", "--lora", base]));
    cases.push(("zklora-contributor", vec!["serve"]));
    cases.push(("zklora-verifier", vec!["verify", "x.pf", "--redacted"]));
    cases.push(("zklora-verifier", vec!["verify", "x.pf", "--evaluation", "x.json"]));
    cases.push(("zklora-verifier", vec!["verify", "x.pf", "--quiet", "--verbose"]));
    for (name, args) in cases {
        let output = run(name, &args);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.starts_with("error: "), "{args:?}: {said}");
    }
}
