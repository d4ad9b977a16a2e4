//! The words that people read on the command line: pages that show commands and what these print, word by word.
//!
//! A block of a page that begins with three backticks and `console` has commands after a `$`, each followed by a line with `?` and its exit
//! code, unless that is 0, and what it prints on both outputs. `[..]` stands for what differs from run to run. A changed word is changed in
//! the code, and with `ZKLORA_WRITE_PAGES=1` this test writes it into the pages.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use regex::Regex;
use zklora_tests::fixtures;
use zklora_tests::programs::program;

const PROGRAMS: [&str; 3] = ["zklora-contributor", "zklora-base-user", "zklora-verifier"];

#[test]
fn commands_print_what_the_pages_show() {
    let root = fixtures().join("..").canonicalize().unwrap();
    let mut wrong = Vec::new();
    let mut commands = 0;
    for page in pages(&root) {
        let shown = fs::read_to_string(&page).unwrap();
        let printed = follow(&shown, &root);
        commands += printed.matches("\n$ ").count();
        if shown == printed {
            continue;
        }
        if std::env::var_os("ZKLORA_WRITE_PAGES").is_some() {
            fs::write(&page, &printed).unwrap();
        }
        let line = shown.lines().zip(printed.lines()).position(|(shown, printed)| shown != printed);
        let (shown, printed) =
            line.map_or((None, None), |at| (shown.lines().nth(at), printed.lines().nth(at)));
        wrong.push(format!(
            "{}:{}\n  shows  {shown:?}\n  prints {printed:?}",
            page.display(),
            line.unwrap_or(0) + 1
        ));
    }
    assert!(commands > 40, "{commands} commands");
    assert!(wrong.is_empty(), "ZKLORA_WRITE_PAGES=1 has this written: {}", wrong.join("\n"));
}

/// Every command of every program has its help on a page.
#[test]
fn no_command_is_without_its_page() {
    let folder = fixtures().join("../docs/commands");
    for name in PROGRAMS {
        let page = fs::read_to_string(folder.join(name).with_extension("md")).unwrap();
        let help = String::from_utf8(program(name).arg("--help").output().unwrap().stdout).unwrap();
        let (_, commands) = help.split_once("Commands:\n").unwrap();
        let commands: Vec<&str> = commands
            .lines()
            .take_while(|line| !line.is_empty())
            // Explanations that go on in the next line are indented further.
            .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
            .filter_map(|line| line.split_whitespace().next())
            .filter(|&command| command != "help")
            .collect();
        assert!(commands.len() > 4, "{commands:?}");
        for command in commands {
            assert!(page.contains(&format!("$ {name} {command} ")), "{name}.md does not show {command}");
        }
    }
}

fn pages(root: &Path) -> Vec<PathBuf> {
    let mut pages = Vec::new();
    for folder in ["docs/commands", "crates/zklora-tests/tests/words"] {
        let files = fs::read_dir(root.join(folder)).unwrap().map(|file| file.unwrap().path());
        pages.extend(files.filter(|file| file.extension().is_some_and(|extension| extension == "md")));
    }
    assert!(pages.len() >= 6, "{pages:?}");
    pages.sort();
    pages
}

/// The page with what its commands print now.
fn follow(page: &str, root: &Path) -> String {
    let (mut now, mut lines) = (String::new(), page.lines().peekable());
    let mut console = false;
    while let Some(line) = lines.next() {
        now += &format!("{line}\n");
        console = if console { line != "```" } else { line == "```console" };
        let Some(command) = line.strip_prefix("$ ").filter(|_| console) else { continue };
        let mut shown = Vec::new();
        while let Some(line) = lines.next_if(|line| !line.starts_with("$ ") && *line != "```") {
            shown.push(line);
        }
        now += &said(&run(command, root), &shown);
    }
    now
}

/// Runs a command in the root, and gives what it prints behind its exit code.
fn run(command: &str, root: &Path) -> Vec<String> {
    // Cargo does not build here: see `program`.
    let programs = PROGRAMS.map(program);
    let folder = Path::new(programs[0].get_program()).parent().unwrap();
    let home = tempfile::tempdir().unwrap();
    let output = Command::new("bash")
        .args(["-c", &format!("{{ {command}; }} 2>&1")])
        .current_dir(root)
        .env_clear()
        .env("PATH", format!("{}:/usr/bin:/bin", folder.display()))
        .env("HOME", home.path())
        .env("RUST_LOG", "off")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let code = output.status.code().unwrap();
    let code = (code != 0).then(|| format!("? {code}"));
    code.into_iter().chain(text.lines().map(|line| line.trim_end().to_owned())).collect()
}

/// What was printed, with the lines that are shown where these say the same.
fn said(printed: &[String], shown: &[&str]) -> String {
    let mut said = String::new();
    for (at, line) in printed.iter().enumerate() {
        let same = shown.get(at).filter(|shown| shown.contains("[..]") && is_like(line, shown));
        said += &format!("{}\n", same.copied().unwrap_or(line));
    }
    said
}

fn is_like(line: &str, shown: &str) -> bool {
    let parts: Vec<String> = shown.split("[..]").map(regex::escape).collect();
    Regex::new(&format!("^{}$", parts.join(".*"))).unwrap().is_match(line)
}
