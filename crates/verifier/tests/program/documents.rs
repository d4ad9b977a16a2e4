//! The verifier's completions and manual pages.

use std::fs;
use std::process::Command;

#[test]
fn completions_are_printed_and_manual_pages_written() {
    let program = || Command::new(env!("CARGO_BIN_EXE_zklora-verifier"));
    let output = program().args(["completions", "fish"]).output().unwrap();
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("min-security"));

    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man1");
    assert!(program().arg("man").arg("--out-dir").arg(&pages).status().unwrap().success());
    let page = fs::read_to_string(pages.join("zklora-verifier-verify.1")).unwrap();
    assert!(
        page.contains(".SH \"EXIT STATUS\"\n.nf\n0  at least one bundle was found, and every one is valid"),
        "{page}"
    );
    assert!(fs::read_to_string(pages.join("zklora-verifier.1")).unwrap().contains("zklora/keys"));

    // Not a verdict: nothing was verified.
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let output = program().arg("man").arg("--out-dir").arg(&file).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("file"), "{output:?}");
}
