//! `scripts/check_delivery.py`, written from `docs/delivery.md` alone, reads packages as this crate does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use zklora_delivery::seal;
use zklora_proto::SecretKey;
use zklora_testing::{World, known_key, rng, shape};

/// The script on a package, with a file of what is expected and of the secret key.
fn check(package: &Path, expected: &Path) -> Output {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let python = Command::new(repository.join("scripts/setup-python.sh")).output().unwrap();
    assert!(python.status.success(), "{}", String::from_utf8_lossy(&python.stderr));
    let python = PathBuf::from(String::from_utf8(python.stdout).unwrap().trim_end());
    let script = repository.join("scripts/check_delivery.py");
    Command::new(python).arg(script).arg(package).arg("--expect").arg(expected).output().unwrap()
}

#[test]
fn both_implementations_read_the_vector_and_refuse_the_same() {
    let vector = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/vectors/delivery");
    let (package, expected) = (vector.join("package.zkd"), vector.join("expected.json"));
    let output = check(&package, &expected);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("package");
    let good = fs::read(&package).unwrap();
    for at in [0, 20, 60, 100, good.len() / 2, good.len() - 70, good.len() - 1] {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        fs::write(&file, bytes).unwrap();
        assert_eq!(check(&file, &expected).status.code(), Some(1), "byte {at}");
    }
    // Another package for the same key, with a module that fills its chunk.
    let world =
        World::with_keys(SecretKey::generate(), known_key(0x42), &[shape(128, 127, 128), shape(3, 2, 1)], 1);
    let mut bytes = Vec::new();
    let to = world.client().public();
    seal(&mut bytes, world.contributor(), world.manifest(), world.openings(), to, &mut rng(1), |_| {})
        .unwrap();
    fs::write(&file, bytes).unwrap();
    let secret = folder.path().join("secret.json");
    fs::write(&secret, format!("{{\"recipient_secret\":\"{}\"}}", "42".repeat(32))).unwrap();
    let output = check(&file, &secret);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains(&world.manifest().adapter_id().to_string()), "{said}");
}
