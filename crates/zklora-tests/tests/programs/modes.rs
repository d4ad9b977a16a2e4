//! Modes of the files and folders that a client keeps, whatever its umask is.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use zklora_tests::fixtures;
use zklora_tests::programs::{Programs, program, success};

#[test]
fn keys_records_and_bundles_are_their_owners_alone_under_any_umask() {
    let world = Programs::new();
    let server = world.serve();
    for umask in ["000", "022", "077"] {
        let home = world.path(umask);
        fs::create_dir(&home).unwrap();
        // In the folders that it chooses itself.
        let run = |arguments: &[&str]| {
            let inner = program("zklora-base-user");
            let mut command = Command::new("sh");
            command.args(["-c", "umask \"$0\" && exec \"$@\"", umask]).arg(inner.get_program());
            command.args(arguments).env("HOME", &home);
            for variable in ["XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "ZKLORA_RECORDS"] {
                command.env_remove(variable);
            }
            success(&mut command)
        };
        run(&["identity", "--json"]);
        let base = fixtures().join("gpt2-tiny");
        let loss = ["loss", "--json", "--wait", "--text", "Debian es libre.", "--base-model"];
        let said = run(&[
            &loss[..],
            &[base.to_str().unwrap(), "--contributor", &server.address, "--adapter", &world.adapter],
        ]
        .concat());
        let session = said["sessions"][0]["session"].as_str().unwrap();
        let out = home.join("new/fetched");
        run(&["fetch", "--json", "--session", session, "--out", out.to_str().unwrap()]);
        let mode = |path: &str| fs::metadata(home.join(path)).unwrap().permissions().mode() & 0o7777;
        for (path, expected) in [
            (".config/zklora", 0o700),
            (".config/zklora/base-user.key", 0o600),
            (".local/state/zklora/sessions", 0o700),
            (&format!(".local/state/zklora/sessions/{session}.json"), 0o600),
            ("new", 0o700),
            ("new/fetched", 0o700),
            (&format!("new/fetched/{session}.pf"), 0o600),
        ] {
            assert_eq!(mode(path), expected, "{path} under umask {umask}");
        }
        // The verifier's, which is made when it is asked for.
        let mut verify = Command::new("sh");
        verify.args(["-c", "umask \"$0\" && exec \"$@\"", umask]);
        verify.arg(program("zklora-verifier").get_program()).args([
            "verify",
            "--json",
            "--unpinned",
            "--key-cache",
        ]);
        verify.arg(out.join(format!("{session}.pf"))).env("HOME", &home).env_remove("XDG_CACHE_HOME");
        success(&mut verify);
        for (path, expected) in [(".cache", 0o700), (".cache/zklora/keys", 0o700)] {
            assert_eq!(mode(path), expected, "{path} under umask {umask}");
        }
    }
    server.stop();
}
