//! What the program does for its packaged service: the identity key out of the state folder, completions, manual pages.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use zklora_contributor::state::State;
use zklora_proto::{Address, SecretKey};
use zklora_tests::fixtures;
use zklora_tests::programs::program;

fn contributor() -> Command {
    let mut command = program("zklora-contributor");
    command.env_remove("CREDENTIALS_DIRECTORY").env_remove("LD_LIBRARY_PATH");
    command
}

fn set_mode(file: &Path, mode: u32) {
    fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap();
}

/// The address that `serve` prints, or what it fails with.
fn served(folder: &Path, change: impl FnOnce(&mut Command) -> &mut Command) -> Result<Address, String> {
    let mut command = contributor();
    command.args(["serve", "--open", "--listen", "127.0.0.1:0"]);
    command.arg("--state").arg(folder.join("state")).arg("--out-dir").arg(folder.join("out"));
    change(&mut command);
    let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
    process.kill().unwrap();
    let output = process.wait_with_output().unwrap();
    line.trim_end().parse().map_err(|_| String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn the_identity_key_may_be_a_credential_or_a_file_that_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (folder, state) = (folder.path(), folder.path().join("state"));
    let made = State::create(&state, &fixtures().join("gpt2-tiny"), &fixtures().join("lora-es")).unwrap();
    let is_ours = |address: Address| assert_eq!(address.key, made.key.public());
    let credentials = folder.join("credentials");
    fs::create_dir(&credentials).unwrap();

    // A service may have other credentials, and its key in the state folder.
    is_ours(served(folder, |serve| serve.env("CREDENTIALS_DIRECTORY", &credentials)).unwrap());

    let credential = credentials.join("identity.key");
    fs::rename(state.join("identity.key"), &credential).unwrap();
    let error = served(folder, |serve| serve).unwrap_err();
    assert!(error.contains("identity.key"), "{error}");
    // What systemd makes, with an access control list and without.
    for mode in [0o440, 0o400] {
        set_mode(&credential, mode);
        is_ours(served(folder, |serve| serve.env("CREDENTIALS_DIRECTORY", &credentials)).unwrap());
    }
    is_ours(served(folder, |serve| serve.arg("--identity").arg(&credential)).unwrap());

    // Any other file has to be closed to the group.
    set_mode(&credential, 0o440);
    let error = served(folder, |serve| serve.arg("--identity").arg(&credential)).unwrap_err();
    assert!(error.contains("expected 0600"), "{error}");

    let other = folder.join("other.key");
    SecretKey::generate().save(&other).unwrap();
    let error = served(folder, |serve| serve.arg("--identity").arg(&other)).unwrap_err();
    assert!(error.contains("two different states"), "{error}");
}

#[test]
fn exposure_is_shown_without_the_identity_key() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    State::create(&state, &fixtures().join("gpt2-tiny"), &fixtures().join("lora-es")).unwrap();
    fs::remove_file(state.join("identity.key")).unwrap();
    let files = || {
        let mut files: Vec<_> = fs::read_dir(&state).unwrap().map(|file| file.unwrap().file_name()).collect();
        files.sort();
        files
    };
    let before = files();
    let output = contributor().arg("exposure").arg("--state").arg(&state).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(files(), before, "looking makes nothing");
}

#[test]
fn completions_and_manual_pages_are_those_of_the_commands() {
    let folder = tempfile::tempdir().unwrap();
    let output = contributor().args(["completions", "bash"]).output().unwrap();
    assert!(output.status.success());
    let script = folder.path().join("completions");
    fs::write(&script, &output.stdout).unwrap();
    let completed = Command::new("bash")
        .arg("-c")
        .arg(
            "source \"$1\" && how=$(complete -p zklora-contributor) && how=${how##*-F } \
             && COMP_WORDS=(zklora-contributor se) COMP_CWORD=1 \
             && \"${how%% *}\" zklora-contributor se zklora-contributor && echo \"${COMPREPLY[@]}\"",
        )
        .arg("bash")
        .arg(&script)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&completed.stdout), "serve\n", "{completed:?}");

    let pages = folder.path().join("man1");
    assert!(contributor().arg("man").arg("--out-dir").arg(&pages).status().unwrap().success());
    let mut names: Vec<_> =
        fs::read_dir(&pages).unwrap().map(|page| page.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    // All that `--help` lists, and the program itself.
    let help = String::from_utf8(contributor().arg("--help").output().unwrap().stdout).unwrap();
    let commands =
        help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let commands = commands.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help");
    let mut expected: Vec<_> = commands.map(|name| format!("zklora-contributor-{name}.1")).collect();
    expected.push("zklora-contributor.1".into());
    expected.sort();
    assert_eq!(names, expected);
    assert!(names.len() > 4);
    let serve = fs::read_to_string(pages.join("zklora-contributor-serve.1")).unwrap();
    for part in [".SH EXAMPLES", "\\-\\-listen", ".SH \"EXIT STATUS\""] {
        assert!(serve.contains(part), "{part}\nnot in\n{serve}");
    }
}
