//! What a program says of itself for others to keep: completions for shells, and manual pages.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory, Subcommand};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

/// Commands about the program itself, the same in all three.
#[derive(Debug, Subcommand)]
pub enum Documents {
    /// Prints completions for a shell
    #[command(after_help = "\
Examples, and likewise for the other programs:
  zklora-verifier completions bash > ~/.local/share/bash-completion/completions/zklora-verifier
  source <(zklora-verifier completions bash)

bash finds the file of the first example by itself if the package bash-completion is installed. The second needs nothing, and
is a line for ~/.bashrc.")]
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Writes the manual pages, one for each command
    // For those who make packages; everybody else has `--help`.
    #[command(hide = true, after_help = "Example: zklora-verifier man --out-dir man1")]
    Man {
        /// Folder for the pages; made if there is none.
        #[arg(long, value_name = "DIR")]
        out_dir: PathBuf,
    },
}

/// What the manual page of a program says beside what its `--help` does: names, each with what it is for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Manual {
    /// Environment variables, but for `RUST_LOG`, which all programs know, and those that stand for arguments.
    pub environment: &'static [&'static [(&'static str, &'static str)]],
    /// Files that the program finds by itself.
    pub files: &'static [(&'static str, &'static str)],
    /// Other pages, with their sections.
    pub see_also: &'static [&'static str],
}

impl Documents {
    /// Writes completions to `out`, or manual pages into their folder, of the program whose arguments are `C`. Errors are
    /// those of writing.
    pub fn write<C: CommandFactory>(&self, manual: &Manual, out: &mut dyn Write) -> io::Result<()> {
        let mut program = C::command();
        match self {
            Self::Completions { shell } => {
                // Not straight to `out`, since a pipe that is closed would make it panic.
                let mut script = Vec::new();
                let name = program.get_name().to_owned();
                clap_complete::generate(*shell, &mut program, &name, &mut script);
                if *shell == Shell::Bash {
                    script = with_one_name(&name, &String::from_utf8_lossy(&script)).into_bytes();
                }
                out.write_all(&script)
            }
            Self::Man { out_dir } => {
                let at = |error| with_path(out_dir, error);
                fs::create_dir_all(out_dir).map_err(at)?;
                // `help` has no page, nor have its own commands.
                let mut program = program.disable_help_subcommand(true);
                program.build();
                write_pages(out_dir, &program, &program, manual)
            }
        }
    }
}

/// Has clap_complete's script for bash call the program by one name. Where a name has dashes, the script goes to a command under a
/// name with `__` for each of them and looks for that command's options under one with `__subcmd__`, so that it finds none.
fn with_one_name(program: &str, script: &str) -> String {
    script.replace(&program.replace('-', "__subcmd__"), &program.replace('-', "__"))
}

/// The page of a command of `program` and those of its commands.
fn write_pages(folder: &Path, program: &Command, command: &Command, manual: &Manual) -> io::Result<()> {
    let man = Man::new(command.clone()).manual("ZKLoRA");
    let path = folder.join(man.get_filename());
    fs::write(&path, page(&man, program, command, manual)?).map_err(|error| with_path(&path, error))?;
    for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        write_pages(folder, program, command, manual)?;
    }
    Ok(())
}

fn page(man: &Man, program: &Command, command: &Command, manual: &Manual) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    man.render_title(&mut out)?;
    man.render_name_section(&mut out)?;
    man.render_synopsis_section(&mut out)?;
    man.render_description_section(&mut out)?;
    man.render_options_section(&mut out)?;
    if command.get_subcommands().any(|command| !command.is_hide_set()) {
        man.render_subcommands_section(&mut out)?;
    }
    let (mut more, help) = (Roff::new(), Epilogue::of(command));
    more_of(&mut more, "NOTES", &help.notes);
    more_of(&mut more, "EXAMPLES", &help.examples);
    // Commands that say nothing of it exit as the program does.
    let exit_codes =
        if help.exit_codes.is_empty() { Epilogue::of(program).exit_codes } else { help.exit_codes };
    more_of(&mut more, "EXIT STATUS", &exit_codes);
    let is_program = command.get_name() == program.get_name();
    if is_program {
        let log = ("RUST_LOG", "What is logged, as tracing-subscriber's filters say it; info by default.");
        list(&mut more, "ENVIRONMENT", manual.environment.iter().copied().flatten().chain([&log]));
        list(&mut more, "FILES", manual.files);
    }
    let own = format!("{}(1)", program.get_name());
    let see_also = (!is_program).then_some(&own[..]).into_iter().chain(manual.see_also.iter().copied());
    let see_also = see_also.collect::<Vec<_>>().join(", ");
    more_of(&mut more, "SEE ALSO", &see_also);
    more.to_writer(&mut out)?;
    Ok(out)
}

/// What a command's help ends with, by what it is about.
#[derive(Default)]
struct Epilogue {
    notes: String,
    examples: String,
    exit_codes: String,
}

impl Epilogue {
    fn of(command: &Command) -> Self {
        let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let mut epilogue = Self::default();
        for paragraph in text.split("\n\n") {
            let (heading, rest) = paragraph.split_once(':').unwrap_or_default();
            // On the line of its heading, or on lines below it.
            let rest = rest.strip_prefix(' ').or(rest.strip_prefix('\n')).unwrap_or(rest);
            let (part, text) = match heading {
                "Exit codes" => (&mut epilogue.exit_codes, rest),
                "Example" | "Examples" => (&mut epilogue.examples, rest),
                // "Example, for such a case:"
                _ if heading.starts_with("Example") => (&mut epilogue.examples, paragraph),
                _ => (&mut epilogue.notes, paragraph),
            };
            if !part.is_empty() {
                part.push_str("\n\n");
            }
            part.push_str(text);
        }
        epilogue
    }
}

/// A section with this text, unless it is empty. Indented lines stay as they are, as in the help.
fn more_of(roff: &mut Roff, heading: &str, text: &str) {
    if text.trim().is_empty() {
        return;
    }
    roff.control("SH", [heading]);
    let mut as_is = false;
    for line in text.lines() {
        let indented = line.strip_prefix("  ");
        if indented.is_some() != as_is {
            as_is = !as_is;
            roff.control(if as_is { "nf" } else { "fi" }, []);
        }
        match indented.unwrap_or(line) {
            "" => roff.control("PP", []),
            line => roff.text([roman(line)]),
        };
    }
    if as_is {
        roff.control("fi", []);
    }
}

/// A section of names, each with its text, unless there are none.
fn list<'a>(roff: &mut Roff, heading: &str, items: impl IntoIterator<Item = &'a (&'a str, &'a str)>) {
    let mut items = items.into_iter().peekable();
    if items.peek().is_some() {
        roff.control("SH", [heading]);
    }
    for (name, text) in items {
        roff.control("TP", []);
        roff.text([bold(*name)]);
        roff.text([roman(*text)]);
    }
}

fn with_path(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    /// Does a thing.
    #[derive(Parser)]
    #[command(name = "some-program", version, after_help = "Exit codes: 0 done, 1 not.")]
    struct Cli {
        #[command(subcommand)]
        command: Commands,
    }

    #[derive(Subcommand)]
    enum Commands {
        /// Does one thing
        #[command(after_help = "Examples:\n  program one\n  program one --quickly\n\nA note: it\nis long.")]
        One {
            /// At once.
            #[arg(long)]
            quickly: bool,
            /// How.
            #[arg(long, value_parser = ["well", "badly"])]
            how: Option<String>,
        },
        /// Does others
        Others {
            #[command(subcommand)]
            which: Others,
        },
        #[command(flatten)]
        Documents(Documents),
    }

    #[derive(Subcommand)]
    enum Others {
        /// Does the second thing
        TheSecond {
            /// Slowly.
            #[arg(long)]
            slowly: bool,
        },
    }

    const MANUAL: Manual = Manual {
        environment: &[&[("SOME_FOLDER", "Where things are.")]],
        files: &[("/etc/some", "What is done.")],
        see_also: &["other(1)"],
    };

    fn pages() -> (tempfile::TempDir, Vec<String>) {
        let folder = tempfile::tempdir().unwrap();
        let documents = Documents::Man { out_dir: folder.path().into() };
        documents.write::<Cli>(&MANUAL, &mut io::sink()).unwrap();
        let names = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        (folder, names)
    }

    #[test]
    fn each_command_that_is_shown_has_a_page() {
        assert_eq!(
            pages().1,
            [
                "some-program-completions.1",
                "some-program-one.1",
                "some-program-others-the-second.1",
                "some-program-others.1",
                "some-program.1"
            ]
        );
    }

    #[test]
    fn a_page_has_what_help_and_manual_say() {
        let (folder, _) = pages();
        let read = |name| fs::read_to_string(folder.path().join(name)).unwrap();
        let program = read("some-program.1");
        for part in [
            ".SH \"EXIT STATUS\"\n0 done, 1 not.\n",
            "\\fBSOME_FOLDER\\fR\nWhere things are.\n",
            "\\fBRUST_LOG\\fR\n",
            ".SH FILES\n.TP\n\\fB/etc/some\\fR\nWhat is done.\n",
            ".SH \"SEE ALSO\"\nother(1)\n",
        ] {
            assert!(program.contains(part), "{part}\nnot in\n{program}");
        }
        let one = read("some-program-one.1");
        for part in [
            ".SH NOTES\nA note: it\nis long.\n",
            ".SH EXAMPLES\n.nf\nprogram one\nprogram one \\-\\-quickly\n.fi\n",
            ".SH \"EXIT STATUS\"\n0 done, 1 not.\n",
            ".SH \"SEE ALSO\"\nsome\\-program(1), other(1)\n",
        ] {
            assert!(one.contains(part), "{part}\nnot in\n{one}");
        }
        assert!(!one.contains("ENVIRONMENT"), "{one}");
    }

    #[test]
    fn every_shell_gets_completions() {
        for shell in [Shell::Bash, Shell::Elvish, Shell::Fish, Shell::PowerShell, Shell::Zsh] {
            let mut script = Vec::new();
            Documents::Completions { shell }.write::<Cli>(&MANUAL, &mut script).unwrap();
            assert!(String::from_utf8(script).unwrap().contains("quickly"), "{shell}");
        }
    }

    /// What bash offers for the last of these words, as it asks when the tab key is struck.
    fn offered(words: &[&str]) -> Vec<String> {
        let mut script = Vec::new();
        Documents::Completions { shell: Shell::Bash }.write::<Cli>(&MANUAL, &mut script).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("script");
        fs::write(&path, script).unwrap();
        let ask = r#"
            source "$1"; shift
            [[ $(complete -p "${1##*/}") =~ -F\ ([^ ]+) ]] || exit 1
            COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
            "${BASH_REMATCH[1]}" "$1" "${!#}" "${COMP_WORDS[COMP_CWORD - 1]}"
            printf '%s\n' "${COMPREPLY[@]}"
        "#;
        let bash = std::process::Command::new("bash");
        let output = { bash }.args(["-c", ask, "bash"]).arg(&path).args(words).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().split_whitespace().map(Into::into).collect()
    }

    #[test]
    fn bash_completes_commands_options_and_values() {
        let contains = |words: &[&str], expected: &[&str]| {
            let offered = offered(words);
            for word in expected {
                assert!(offered.iter().any(|offer| offer == word), "{words:?}: {offered:?} has no {word}");
            }
        };
        contains(&["some-program", ""], &["one", "others", "completions", "--version"]);
        contains(&["some-program", "one", "--"], &["--quickly", "--how", "--help"]);
        contains(&["/usr/bin/some-program", "one", "--q"], &["--quickly"]);
        contains(&["some-program", "one", "--quickly", "--how", ""], &["well", "badly"]);
        contains(&["some-program", "others", ""], &["the-second"]);
        contains(&["some-program", "others", "the-second", "--"], &["--slowly"]);
        contains(&["some-program", "completions", ""], &["bash", "zsh"]);
        assert_eq!(offered(&["some-program", "one", "--quickly", "--q"]), ["--quickly"]);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let documents = Documents::Man { out_dir: file.path().join("man1") };
        let error = documents.write::<Cli>(&MANUAL, &mut io::sink()).unwrap_err();
        assert!(error.to_string().contains("man1"), "{error}");
    }
}
