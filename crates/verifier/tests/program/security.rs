//! How much a proof must be worth, and what the command says of it.

use std::process::{Command, Output};

use zklora_circuit::parameters::Security;
use zklora_testing::{World, rng, shape};

fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let Output { status, stdout, .. } =
        Command::new(env!("CARGO_BIN_EXE_zklora-verifier")).args(arguments).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap())
}

#[test]
fn proofs_of_less_than_the_least_security_are_refused() {
    let world = World::new(&[shape(16, 2, 16)], 1).with_security(Security::Compact);
    let bundle = world.bundle(&[world.call(3, &[0], &mut rng(1))]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("compact.pf");
    std::fs::write(&file, bundle.to_bytes()).unwrap();
    let file = file.to_str().unwrap();

    let (code, out) = run(&["verify", file]);
    assert_eq!(code, Some(1));
    assert!(out.contains("bits of provable soundness, expected at least 100; --min-security"), "{out}");
    let (code, out) = run(&["verify", file, "--unpinned", "--min-security", "65"]);
    assert_eq!(code, Some(0), "{out}");
    assert!(out.contains("parameter set \"compact\", 65."), "{out}");
    assert_eq!(run(&["verify", file, "--min-security", "66"]).0, Some(1));

    let (code, out) = run(&["explain", file]);
    assert_eq!(code, Some(0));
    assert!(out.contains("proof 0: parameter set \"compact\", 1 module,"), "{out}");
}

#[test]
fn explain_lists_every_set_with_its_terms_and_sources() {
    let (code, out) = run(&["explain"]);
    assert_eq!(code, Some(0));
    for security in Security::ALL {
        assert!(out.contains(&format!("parameter set {:?}", security.name())), "{out}");
    }
    for term in ["BCIKS20", "fold", "queries"] {
        assert!(out.contains(term), "{term:?} is not in:\n{out}");
    }
    let missing = run(&["explain", "no-such-file.pf"]);
    assert!(missing.0 == Some(2) && missing.1.contains("UNREADABLE"), "{missing:?}");
}
