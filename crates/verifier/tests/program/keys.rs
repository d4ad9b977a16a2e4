//! Kept keys change how long a verification takes, and nothing else.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::SESSION;
use serde_json::Value;
use tempfile::TempDir;
use zklora_testing::RawBundle;

/// A cache folder and bundles: an honest one, and one whose second proof is changed.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        fs::create_dir(place.bundles()).unwrap();
        let mut bad: RawBundle = SESSION.bundle.clone();
        bad.blobs.last_mut().unwrap()[5000] ^= 1;
        fs::write(place.bundles().join("bad.pf"), bad.to_bytes()).unwrap();
        fs::write(place.bundles().join("good.pf"), SESSION.bundle.to_bytes()).unwrap();
        place
    }

    fn bundles(&self) -> PathBuf {
        self.folder.path().join("bundles")
    }

    fn keys(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.folder.path().join("zklora/keys")) else { return Vec::new() };
        let mut keys: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        keys.sort();
        keys
    }

    fn run(&self, arguments: &[&str], bundles: &Path) -> (Option<i32>, String, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_zklora-verifier"))
            .args(arguments)
            .arg(bundles)
            .env("XDG_CACHE_HOME", self.folder.path())
            .env_remove("RUST_LOG")
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }

    /// What `verify --json` says of both bundles but for times, and the log.
    fn verify(&self, more: &[&str]) -> (Value, String) {
        let (code, out, log) = self.run(&[&["verify", "--json"], more].concat(), &self.bundles());
        assert_eq!(code, Some(1));
        let mut verdict: Value = serde_json::from_str(&out).unwrap();
        for bundle in verdict["bundles"].as_array_mut().unwrap() {
            for batch in bundle["batches"].as_array_mut().unwrap() {
                batch["build_seconds"].take();
                batch["verify_seconds"].take();
            }
            bundle["fold_seconds"].take();
            bundle["seconds"].take();
        }
        verdict["seconds"].take();
        (verdict, log)
    }
}

#[test]
fn verdicts_are_the_same_cold_and_warm() {
    let place = Place::new();
    let (without, _) = place.verify(&[]);
    assert!(place.keys().is_empty(), "without being told, nothing is kept");
    assert_eq!(without["bundles"][0]["error"]["kind"], "proof");
    assert_eq!(without["bundles"][1]["valid"], true);
    let (cold, _) = place.verify(&["--key-cache"]);
    let keys = place.keys();
    assert_eq!(keys.len(), 2);
    let (warm, _) = place.verify(&["--key-cache"]);
    assert_eq!((&cold, &warm), (&without, &without));
    // What somebody else put there is looked at only by who asks for it.
    keys.iter().for_each(|key| fs::write(key, "damaged").unwrap());
    let (without, log) = place.verify(&[]);
    assert!(without == cold && !log.contains("damaged"), "{log}");
    assert!(keys.iter().all(|key| fs::read(key).unwrap() == b"damaged"));
}

#[test]
fn a_damaged_key_and_that_of_another_circuit_are_built_anew() {
    let place = Place::new();
    let (cold, _) = place.verify(&["--key-cache"]);
    let keys = place.keys();
    let contents: Vec<Vec<u8>> = keys.iter().map(|key| fs::read(key).unwrap()).collect();
    let mut damaged = contents[0].clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    for (content, word) in [(&damaged, "damaged"), (&contents[1], "another circuit")] {
        fs::write(&keys[0], content).unwrap();
        let (warm, log) = place.verify(&["--key-cache"]);
        assert_eq!(warm, cold, "{word}");
        assert!(log.contains(word) && log.contains("building the key anew"), "{log}");
        assert_eq!(fs::read(&keys[0]).unwrap(), contents[0], "{word}");
    }
}

#[test]
fn a_place_that_keeps_nothing_changes_no_verdict() {
    let place = Place::new();
    let (cold, _) = place.verify(&[]);
    fs::write(place.folder.path().join("zklora"), "a file where the folder should be").unwrap();
    let (verdict, log) = place.verify(&["--key-cache"]);
    assert_eq!(verdict, cold);
    assert!(log.contains("the key is not kept"), "{log}");
    let (code, out, _) = place.run(&["keys"], &place.bundles());
    assert_eq!(code, Some(2));
    assert!(out.contains("NOT KEPT"), "{out}");
}

#[test]
fn keys_are_built_ahead() {
    let place = Place::new();
    let good = place.bundles().join("good.pf");
    let (code, out, _) = place.run(&["keys"], &good);
    assert_eq!((code, out.matches(": built (").count()), (Some(0), 2), "{out}");
    assert!(out.contains("\"standard\", 2^") && out.contains("2 keys in "), "{out}");
    let kept = place.keys();
    for key in &kept {
        assert!(out.contains(key.file_stem().unwrap().to_str().unwrap()), "{out}");
    }
    // The bad bundle has the same circuits: whether its proofs hold is not asked here.
    let (code, out, _) = place.run(&["keys"], &place.bundles());
    assert_eq!((code, out.matches(": was there already (").count()), (Some(0), 2), "{out}");
    assert_eq!(place.keys(), kept);

    fs::write(&good, "junk").unwrap();
    let (code, _, log) = place.run(&["keys"], &place.bundles());
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("good.pf"), "{log}");
    let (code, ..) = place.run(&["keys"], &place.folder.path().join("none"));
    assert_eq!(code, Some(2));
}
