//! README.md, the three terminals and the guide, followed word by word: every block of commands is run, in its order, and what is shown of a
//! command's output is what it says. And links of all pages lead somewhere.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::UdpSocket;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use regex::Regex;
use tempfile::TempDir;
use zklora_tests::programs::program;
use zklora_tests::{fixtures, rust_files};

#[test]
fn the_readme_and_the_three_terminals_do_what_they_say() {
    let pages = ["README.md", "docs/three-terminals.md"].map(read);
    let mut reader = Reader::new();
    let mut shown = Vec::new();
    let mut commands = 0;
    for block in pages.iter().flat_map(|text| blocks(text)) {
        if block[0].starts_with("== ") {
            shown.push(block);
            continue;
        }
        // The picture.
        if block[0].trim_start().starts_with("seller") {
            continue;
        }
        for step in steps(&block) {
            // It is what runs this.
            if step.command.starts_with("scripts/test.sh") {
                continue;
            }
            reader.follow(&step);
            commands += 1;
        }
    }
    assert!(commands >= 12, "{commands} commands");
    let said = &reader.said["scripts/demo.sh"];
    // README has the end, the page all of it.
    let [end, all] = &mut shown[..] else { panic!("{} blocks of what the demo prints", shown.len()) };
    end.insert(0, "...".to_owned());
    compare("scripts/demo.sh", end, said);
    compare("scripts/demo.sh", all, said);
}

#[test]
fn links_of_all_pages_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let pages = pages(&root);
    let link = Regex::new(r"\]\(([^)\s]+)\)").unwrap();
    let mut wrong = Vec::new();
    for page in &pages {
        let text = fs::read_to_string(root.join(page)).unwrap();
        for found in link.captures_iter(&text) {
            let target = &found[1];
            if target.starts_with("http") {
                continue;
            }
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = match path {
                "" => root.join(page),
                path => root.join(page).parent().unwrap().join(path),
            };
            let has_anchor = || {
                anchor.is_empty() || anchors(&fs::read_to_string(&path).unwrap()).any(|known| known == anchor)
            };
            if !path.exists() || !has_anchor() {
                wrong.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A page says where something is and which test holds it: neither may have been moved since.
#[test]
fn files_and_functions_that_pages_name_are_there() {
    /// Of plonky2, and of a library that counts for the operating system.
    const OF_OTHERS: [&str; 4] = [
        "all_wires_permutation_partial_products",
        "eval_vanishing_poly_base_batch",
        "partial_products_and_z_gx",
        "process_start_time_seconds",
    ];
    let root = fixtures().join("..");
    let sources: String =
        rust_files(&root.join("crates")).iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    let quoted = Regex::new("`([^`\\n]+)`").unwrap();
    let path = Regex::new(r"^(crates|scripts|fixtures|dist|docs)/[\w./-]+$").unwrap();
    let path_in_crate = Regex::new(r"^[a-z-]+/(src|tests|benches|examples)/[\w./-]+$").unwrap();
    // So long a name is one of a test or another function.
    let name = Regex::new(r"^[a-z0-9]+(_[a-z0-9]+){3,}$").unwrap();
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for page in pages(&root) {
        let text = fs::read_to_string(root.join(&page)).unwrap();
        for found in quoted.captures_iter(&text) {
            let word = &found[1];
            let is_there = if path.is_match(word) {
                root.join(word).exists()
            } else if path_in_crate.is_match(word) {
                root.join("crates").join(word).exists() || root.join(word).exists()
            } else if name.is_match(word) && !OF_OTHERS.contains(&word) {
                sources.contains(word.trim_end_matches("_total"))
            } else {
                continue;
            };
            seen += 1;
            if !is_there {
                wrong.push(format!("{}: {word}", page.display()));
            }
        }
    }
    assert!(seen > 250, "{seen}");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// All pages, from the root on.
fn pages(root: &Path) -> Vec<PathBuf> {
    let mut pages: Vec<PathBuf> =
        ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"].map(Into::into).to_vec();
    for page in fs::read_dir(root.join("docs")).unwrap() {
        let name = page.unwrap().file_name();
        pages.extend(
            name.to_str().filter(|name| name.ends_with(".md")).map(|name| Path::new("docs").join(name)),
        );
    }
    assert!(pages.len() > 20, "{pages:?}");
    pages
}

/// What the headings of a page are linked by: small letters, and hyphens for spaces.
fn anchors(text: &str) -> impl Iterator<Item = String> {
    let headings = text.lines().filter_map(|line| line.strip_prefix('#'));
    headings.map(|line| {
        let kept = line.trim_start_matches('#').trim().to_lowercase();
        let kept = kept.chars().filter(|c| c.is_alphanumeric() || "_- ".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    })
}

#[test]
fn the_guide_does_what_it_says() {
    let text = read("docs/guide-base-user.md");
    let mut reader = Reader::new();
    let steps: Vec<Step> = blocks(&text).iter().flat_map(|block| steps(block)).collect();
    let shown = steps.iter().filter(|step| !step.expected.is_empty()).count();
    assert!(steps.len() >= 24 && shown >= 12, "{} commands, {shown} with output", steps.len());
    steps.iter().for_each(|step| reader.follow(step));
}

/// A command, and what is shown of its output.
#[derive(Debug)]
struct Step {
    command: String,
    expected: Vec<String>,
}

/// The blocks that are indented by four, as lines without that. Blocks of a document that follow each other with a blank line only are
/// one.
fn blocks(text: &str) -> Vec<Vec<String>> {
    let (mut blocks, mut block): (Vec<Vec<String>>, Vec<String>) = Default::default();
    for line in text.lines().chain(["end"]) {
        match line.strip_prefix("    ") {
            Some(code) => block.push(code.to_owned()),
            None if line.is_empty() && !block.is_empty() => block.push(String::new()),
            None => {
                while block.last().is_some_and(String::is_empty) {
                    block.pop();
                }
                if !block.is_empty() {
                    blocks.push(std::mem::take(&mut block));
                }
            }
        }
    }
    blocks
}

/// The commands of a block. Where some are shown after a prompt, what follows them is output.
fn steps(block: &[String]) -> Vec<Step> {
    let prompts = block.iter().any(|line| line.starts_with("$ "));
    let is_assignment = |line: &str| {
        let name = line.split('=').next().unwrap_or_default();
        line.contains('=') && !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase())
    };
    let mut steps: Vec<Step> = Vec::new();
    let mut lines = block.iter();
    while let Some(line) = lines.next() {
        let begins = if prompts { line.starts_with("$ ") || is_assignment(line) } else { !line.is_empty() };
        if begins {
            let mut command = line.strip_prefix("$ ").unwrap_or(line).to_owned();
            while let Some(more) = command.strip_suffix('\\') {
                command =
                    format!("{} {}", more.trim_end(), lines.next().expect("a line that goes on").trim());
            }
            steps.push(Step { command, expected: Vec::new() });
        } else if prompts && let Some(step) = steps.last_mut() {
            step.expected.push(line.clone());
        }
    }
    for step in &mut steps {
        while step.expected.last().is_some_and(String::is_empty) {
            step.expected.pop();
        }
    }
    steps
}

/// Somebody with a fresh copy, who does what is written.
struct Reader {
    folder: TempDir,
    shell: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    port: u16,
    /// What is to be put where a document has a placeholder.
    known: HashMap<&'static str, String>,
    /// What each command has said.
    said: HashMap<String, Vec<String>>,
    serving: bool,
}

impl Reader {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let root = fixtures().join("..").canonicalize().unwrap();
        for name in ["fixtures", "scripts"] {
            symlink(root.join(name), at(name)).unwrap();
        }
        // The programs are built, and building is not what is tried here.
        fs::create_dir_all(at("target/release")).unwrap();
        fs::create_dir_all(at("bin")).unwrap();
        fs::create_dir_all(at("home")).unwrap();
        for name in ["zklora-contributor", "zklora-base-user", "zklora-verifier"] {
            symlink(program(name).get_program(), at("target/release").join(name)).unwrap();
        }
        fs::write(at("bin/cargo"), "#!/bin/sh\n[ \"$1\" = build ]\n").unwrap();
        fs::set_permissions(at("bin/cargo"), fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("{}:{}", at("bin").display(), std::env::var("PATH").unwrap());
        let mut shell = Command::new("bash")
            .args(["--noprofile", "--norc", "-o", "pipefail"])
            .current_dir(folder.path())
            .env("PATH", path)
            .env("HOME", at("home"))
            .env_remove("RUST_LOG")
            .env_remove("ZKLORA_RECORDS")
            .env_remove("ZKLORA_IDENTITY")
            .env_remove("XDG_STATE_HOME")
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("XDG_CACHE_HOME")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // The one in the documents may be taken.
        let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (stdin, stdout) = (shell.stdin.take().unwrap(), BufReader::new(shell.stdout.take().unwrap()));
        let mut reader = Self {
            folder,
            shell,
            stdin,
            stdout,
            port,
            known: HashMap::new(),
            said: HashMap::new(),
            serving: false,
        };
        let stderr = reader.path("stderr");
        reader.run(&format!("exec 2>>'{stderr}'"));
        reader
    }

    /// Runs a command and holds its output against what is shown.
    fn follow(&mut self, step: &Step) {
        let command = self.fill(&step.command);
        if command.contains("zklora-contributor serve") {
            return self.serve(&command);
        }
        let (code, said) = self.run(&command);
        let fails = step.expected.first().is_some_and(|line| line.starts_with("error: "));
        assert_eq!(
            code != 0,
            fails,
            "{command}\nexited with {code}:\n{}\n{}",
            said.join("\n"),
            self.stderr()
        );
        self.learn(&said);
        if !step.expected.is_empty() {
            compare(&command, &step.expected, &said);
        }
        let name = command.split_whitespace().next().unwrap_or_default();
        self.said.insert(name.to_owned(), said);
    }

    /// A command with what is known in place of what a document cannot know.
    fn fill(&self, command: &str) -> String {
        let command = command.replace("127.0.0.1:30000", &format!("127.0.0.1:{}", self.port));
        let known =
            |name: &str| self.known.get(name).cloned().unwrap_or_else(|| panic!("{command}: no {name}"));
        if let Some((name, value)) = command.split_once('=')
            && value.ends_with("...")
        {
            let value = match name {
                "ADAPTER" => known("ID"),
                "CONTRIBUTOR" => known("KEY"),
                _ => known("SESSION"),
            };
            return format!("{name}={value}");
        }
        let placeholder = Regex::new(r"\b(KEY|ID|SESSION)\b").unwrap();
        let filled = placeholder.replace_all(&command, |found: &regex::Captures| {
            let variable = command[..found.get(0).unwrap().start()].ends_with('$');
            if variable { found[0].to_owned() } else { known(&found[0]) }
        });
        filled.into_owned()
    }

    /// Starts to serve, in the place of who serves already.
    fn serve(&mut self, command: &str) {
        if std::mem::replace(&mut self.serving, true) {
            let (code, said) = self.run("kill -TERM $SERVER; wait $SERVER");
            assert_eq!(code, 0, "{}", said.join("\n"));
        }
        let (address, log) = (self.path("address"), self.path("log"));
        let _ = fs::remove_file(&address);
        self.run(&format!("{command} > '{address}' 2> '{log}' & SERVER=$!"));
        for _ in 0..600 {
            if fs::read_to_string(&address).is_ok_and(|address| address.ends_with('\n')) {
                return;
            }
            sleep(Duration::from_millis(50));
        }
        panic!("{command}\n{}", fs::read_to_string(&log).unwrap_or_default());
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn stderr(&self) -> String {
        fs::read_to_string(self.path("stderr")).unwrap_or_default()
    }

    /// Takes what later commands need out of an output.
    fn learn(&mut self, said: &[String]) {
        for (name, pattern) in [
            ("ID", r"^adapter +([0-9a-f]{64})$"),
            ("KEY", r"^contributor +([0-9a-f]{64})$"),
            ("SESSION", r#"(?:^session +|"session":")([0-9a-f]{64})"#),
        ] {
            let pattern = Regex::new(pattern).unwrap();
            let found = said.iter().filter_map(|line| pattern.captures(line)).next_back();
            self.known.extend(found.map(|found| (name, found[1].to_owned())));
        }
    }

    /// What a command says, its errors last, and its exit code.
    fn run(&mut self, command: &str) -> (i32, Vec<String>) {
        let before = self.stderr().len();
        writeln!(self.stdin, "{command}\nCODE=$?; echo; echo \"== $CODE ==\"").unwrap();
        let mut said = Vec::new();
        loop {
            let mut line = String::new();
            assert!(
                self.stdout.read_line(&mut line).unwrap() > 0,
                "{command}: the shell has ended: {said:?}"
            );
            let line = line.trim_end_matches('\n');
            let code = line.strip_prefix("== ").and_then(|rest| rest.strip_suffix(" ==")?.parse().ok());
            if let Some(code) = code {
                // That of `echo`, unless it has ended a line.
                if said.last().is_some_and(String::is_empty) {
                    said.pop();
                }
                // A log is not part of what is shown.
                let errors = self.stderr().split_off(before);
                said.extend(errors.lines().filter(|line| line.starts_with("error: ")).map(Into::into));
                return (code, said);
            }
            said.push(line.to_owned());
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = writeln!(self.stdin, "kill $SERVER; exit");
        let _ = self.stdin.flush();
        let _ = self.shell.wait();
    }
}

/// Whether a command says what is shown: ids, numbers and units of bytes may be others, and `...` stands for the rest of a line, or at
/// its beginning for any lines.
fn compare(command: &str, shown: &[String], said: &[String]) {
    let wrong = |why: String| panic!("{command}\n{why}\nsaid:\n{}", said.join("\n"));
    let mut rest = said.iter();
    let mut skipping = false;
    for line in shown {
        if line.trim_start().starts_with("...") {
            skipping = true;
            continue;
        }
        let pattern = plain(line);
        let found = loop {
            match rest.next() {
                Some(said) if alike(&pattern, &plain(said)) => break true,
                Some(_) if skipping => {}
                Some(said) => break wrong(format!("shown: {line}\nfound: {said}")),
                None => break wrong(format!("shown, but not said: {line}")),
            }
        };
        assert!(found);
        skipping = false;
    }
    if !skipping && let Some(line) = rest.find(|line| !line.is_empty()) {
        wrong(format!("said, but not shown: {line}"));
    }
}

fn alike(shown: &str, said: &str) -> bool {
    match shown.strip_suffix("...") {
        Some(beginning) => said.starts_with(beginning.trim_end()),
        None => shown == said,
    }
}

/// A line without what differs from one run to the next.
fn plain(line: &str) -> String {
    // When and how loud a log says it.
    let log = Regex::new(r"^20\S+Z +[A-Z]+ +").unwrap();
    let id = Regex::new(r"\b[0-9a-f]{64}\b|\b[0-9a-f]{8}\.\.\.").unwrap();
    let number = Regex::new(r"\d+(\.\d+)*").unwrap();
    let unit = Regex::new(r"\b(bytes|KiB|MiB)\b").unwrap();
    let blanks = Regex::new(r" +").unwrap();
    let line = log.replace(line, "");
    let line = id.replace_all(&line, "<id>");
    let line = number.replace_all(&line, "<n>");
    let line = unit.replace_all(&line, "<unit>");
    blanks.replace_all(line.trim(), " ").into_owned()
}

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(name)).unwrap()
}
