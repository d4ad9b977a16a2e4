//! Gives the crate a fingerprint of its own sources, so that a key that other sources built is not taken for one of these.
#![allow(clippy::print_stdout, reason = "cargo reads it")]

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo::rerun-if-changed=src");
    let mut files = Vec::new();
    collect(Path::new("src"), &mut files);
    files.sort();
    // Who could change the sources could also change this: it guards against accidents only.
    let mut hasher = DefaultHasher::new();
    for file in files {
        file.hash(&mut hasher);
        fs::read(&file).expect("a source file is readable").hash(&mut hasher);
    }
    println!("cargo::rustc-env=ZKLORA_CIRCUIT_SOURCES={:016x}", hasher.finish());
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the folder of the sources is readable") {
        let path = entry.expect("the folder of the sources is readable").path();
        if path.is_dir() {
            collect(&path, files);
        } else {
            files.push(path);
        }
    }
}
