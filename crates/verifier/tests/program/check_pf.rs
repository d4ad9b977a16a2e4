//! `scripts/check_pf.py`, written from `docs/format.md` alone, agrees with the verifier on everything but the proofs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use crate::common::{SESSION, client_of_redacted};
use serde_json::{Value, json};
use tempfile::TempDir;
use zklora_testing::vectors::load;
use zklora_testing::{RawBundle, TRANSCRIPT, World, encode_transcript, rng, shape};

/// A Python with the script's packages: `$ZKLORA_PYTHON`, or one that `scripts/setup-python.sh` makes.
static PYTHON: LazyLock<PathBuf> = LazyLock::new(|| {
    let output = Command::new(repository().join("scripts/setup-python.sh")).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout).trim_end().into()
});

/// A bundle in a file, and what `verify --json` says of it.
struct Checked {
    folder: TempDir,
}

impl Checked {
    fn new(bundle: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("session.pf"), bundle).unwrap();
        let checked = Self { folder };
        let trusted =
            client_of_redacted(bundle).map(|client| ["--redacted".into(), format!("--client={client}")]);
        let output = Command::new(env!("CARGO_BIN_EXE_zklora-verifier"))
            .args([
                "verify".as_ref(),
                "--json".as_ref(),
                "--min-security".as_ref(),
                "0".as_ref(),
                checked.bundle().as_os_str(),
            ])
            .args(trusted.into_iter().flatten())
            .output()
            .unwrap();
        fs::write(checked.verdict(), output.stdout).unwrap();
        checked
    }

    fn bundle(&self) -> PathBuf {
        self.folder.path().join("session.pf")
    }

    fn verdict(&self) -> PathBuf {
        self.folder.path().join("verdict.json")
    }

    /// The verdict with one value changed.
    fn edit(&self, pointer: &str, value: Value) {
        let mut verdict: Value = serde_json::from_slice(&fs::read(self.verdict()).unwrap()).unwrap();
        let place = verdict.pointer_mut(pointer).unwrap();
        assert_ne!(*place, value);
        *place = value;
        fs::write(self.verdict(), verdict.to_string()).unwrap();
    }

    /// Runs the script; returns whether it is content, and what it says.
    fn run(&self, compare: bool) -> (bool, String) {
        self.run_with(compare, &[])
    }

    fn run_with(&self, compare: bool, arguments: &[&str]) -> (bool, String) {
        let mut command = Command::new(&*PYTHON);
        command.arg(repository().join("scripts/check_pf.py")).arg(self.bundle()).args(arguments);
        command.env("PYTHONUTF8", "1");
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        if compare {
            command.arg("--against").arg(self.verdict());
        }
        let Output { status, stdout, stderr } = command.output().unwrap();
        assert!(matches!(status.code(), Some(0 | 1)), "{}", text(&stderr));
        let said = text(&stdout) + &text(&stderr);
        assert!(!said.contains("Traceback"), "{said}");
        assert_eq!(status.success(), said.contains("HOLDS"), "{said}");
        assert_eq!(!status.success(), said.contains("REFUSED"), "{said}");
        (status.success(), said)
    }

    fn agrees(&self) {
        let (holds, said) = self.run(true);
        assert!(holds && said.contains("the verifier agrees"), "{said}");
    }

    fn refused(&self, case: &str, compare: bool, word: &str) {
        let (holds, said) = self.run(compare);
        assert!(!holds && said.contains(word), "{case}: {word:?} is not in {said}");
    }
}

fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn honest_bundles_are_computed_alike() {
    Checked::new(&SESSION.bundle.to_bytes()).agrees();
    // Modules that share an input, one that is called alone, too, and one that is never called; more rows than one chunk
    // of the script's fold, and calls of one row.
    let world = World::new(&[shape(33, 3, 700), shape(33, 2, 41), shape(7, 1, 5)], 5);
    let mut rng = rng(6);
    let calls = [(3500, &[0, 1][..]), (1, &[1]), (2, &[1, 0]), (700, &[0])]
        .map(|(rows, modules)| world.call(rows, modules, &mut rng));
    Checked::new(&world.bundle(&calls).to_bytes()).agrees();
}

#[test]
fn every_value_is_compared() {
    let checked = Checked::new(&SESSION.bundle.to_bytes());
    let honest = fs::read(checked.verdict()).unwrap();
    for (place, value) in [
        ("valid", json!(false)),
        ("alpha/0", json!("1")),
        ("beta/1", json!("1")),
        ("modules/0/a_digest", json!("00".repeat(32))),
        ("modules/2/s/1", json!("1")),
        ("modules/1/rows", json!(4)),
        ("modules/1/batch", json!(1)),
        ("adapter", json!("00".repeat(32))),
        ("batches/1/proof_bytes", json!(1)),
        ("modules", json!([])),
    ] {
        fs::write(checked.verdict(), &honest).unwrap();
        checked.edit(&format!("/bundles/0/{place}"), value);
        checked.refused(place, true, "the verifier's verdict differs");
    }
    fs::write(checked.verdict(), &honest).unwrap();
    checked.edit("/bundles/0/path", json!("other.pf"));
    checked.refused("path", true, "has 0 verdicts on");
    fs::write(checked.verdict(), "{}").unwrap();
    checked.refused("not a verdict", true, "expected what `zklora-verifier verify --json` prints");
}

/// Whoever has the seed finds the commitments that the parties signed; with another seed, nobody does.
#[test]
fn commitments_are_computed_alike_by_who_has_the_seed() {
    let seed = |byte: &str| byte.repeat(32);
    let world = World::new(&[shape(9, 1, 4), shape(9, 2, 5), shape(4, 1, 3)], 5);
    let mut rng = rng(7);
    for count in [1, 2, 3, 5, 8] {
        let calls: Vec<_> = (0..count)
            .flat_map(|_| [world.call(1, &[1, 0], &mut rng), world.call(2, &[2], &mut rng)])
            .take(count)
            .collect();
        let checked = Checked::new(&world.bundle(&calls).to_bytes());
        let (holds, said) = checked.run_with(false, &["--seed", &seed("5e")]);
        assert!(holds, "{said}");
        let (holds, said) = checked.run_with(false, &["--seed", &seed("5f")]);
        assert!(!holds && said.contains("another seed's"), "{said}");
    }
    // The verifier does not notice: it has no seed.
    let calls = [world.call(1, &[0], &mut rng)];
    let mut receipt = world.receipt(&calls);
    receipt.commitments = zklora_proto::CommitmentsDigest::from_bytes([1; 32]);
    let receipt = world.sign(&receipt);
    let (plan, proofs) = world.prove(&receipt, &calls).unwrap();
    let checked = Checked::new(&RawBundle::new(&world.session(receipt), &calls, &plan, &proofs).to_bytes());
    checked.agrees();
    let (holds, said) = checked.run_with(false, &["--seed", &seed("5e")]);
    assert!(!holds && said.contains("commitments are not the calls'"), "{said}");
}

/// All test vectors: what the verifier refuses without looking at a proof, the script refuses, too.
#[test]
fn vectors_have_the_same_verdict_here() {
    for vector in load() {
        let checked = Checked::new(&vector.bytes);
        match vector.reason.as_ref().map(|reason| reason.kind.as_str()) {
            None => checked.agrees(),
            Some("proof") => {
                assert!(checked.run(false).0, "{}", vector.name);
                checked.refused(&vector.name, true, "the verifier's verdict differs");
            }
            Some(_) => checked.refused(&vector.name, false, ""),
        }
    }
}

#[test]
fn folds_of_a_redacted_bundle_are_read_alike() {
    let redacted = SESSION.world.redact(&SESSION.bundle, &SESSION.world.folds(&SESSION.bundle, Clone::clone));
    let checked = Checked::new(&redacted.to_bytes());
    checked.agrees();
    let (_, said) = checked.run(false);
    assert!(said.contains("the client's word"), "{said}");
    checked.edit("/bundles/0/redacted", json!(false));
    checked.refused("redacted", true, "the verifier's verdict differs");
}

#[test]
fn a_changed_byte_anywhere_but_in_a_proof_is_noticed() {
    for index in 0..=TRANSCRIPT {
        let mut bundle = SESSION.bundle.clone();
        let middle = bundle.blobs[index].len() / 2;
        bundle.blobs[index][middle] ^= 1;
        Checked::new(&bundle.to_bytes()).refused(&format!("blob {index}"), false, "");
    }
    let proof = {
        let mut bytes = SESSION.bundle.to_bytes();
        *bytes.last_mut().unwrap() ^= 1;
        bytes
    };
    Checked::new(&proof).refused("proof", false, "proof.1: does not have its digest");
}

#[test]
fn a_session_without_rows_is_refused_here_too() {
    let bundle = World::new(&[shape(8, 2, 8)], 1).bundle(&[]).to_bytes();
    Checked::new(&bundle).refused("empty", false, "the session has no rows");
}

/// The testing crate's own encoder makes what the format's makes, or the vectors would be refused for another reason.
#[test]
fn another_compression_of_the_transcript_is_the_same_session() {
    let bundle: RawBundle = SESSION.bundle.with_blob(TRANSCRIPT, encode_transcript(&SESSION.calls, 0, &[]));
    Checked::new(&bundle.to_bytes()).agrees();
}
