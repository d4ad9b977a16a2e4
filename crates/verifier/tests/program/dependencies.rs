//! The verifier needs neither libtorch nor a network, a client neither libtorch nor a command line: none may come in through a dependency.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Read from Cargo.lock, so that the test itself needs neither cargo nor a network. This covers every platform, every
/// feature that anyone in the workspace turns on, and development dependencies, too.
#[test]
fn neither_libtorch_nor_a_network_stack_is_among_the_dependencies() {
    let lock = lock();
    let dependencies = parse(&lock);
    let reached = reached(&dependencies, "zklora-verifier");
    assert!(reached.contains("qp-plonky2") && reached.contains("zklora-circuit"), "{reached:?}");
    for absent in [
        "tch",
        "torch-sys",
        "quinn",
        "quinn-proto",
        "tokio",
        "mio",
        "rustls",
        "socket2",
        "zklora-net",
        "zklora-hf",
        "zklora-hub",
        "zklora-contributor",
        "zklora-base-user",
    ] {
        assert!(!reached.contains(absent), "zklora-verifier depends on {absent}");
    }
    // The names are those that the lock file uses: the other programs have them.
    for present in ["tch", "torch-sys", "quinn", "tokio", "rustls"] {
        assert!(dependencies.contains_key(present), "no package {present} in Cargo.lock");
    }
}

/// Front ends of others are built on it.
#[test]
fn neither_libtorch_nor_a_command_line_is_among_the_clients_dependencies() {
    let lock = lock();
    let reached = reached(&parse(&lock), "zklora-client");
    assert!(reached.contains("quinn") && reached.contains("zklora-verdict"), "{reached:?}");
    for absent in [
        "tch",
        "torch-sys",
        "clap",
        "zklora-cli",
        "zklora-hf",
        "zklora-hub",
        "zklora-verifier",
        "zklora-base-user",
    ] {
        assert!(!reached.contains(absent), "zklora-client depends on {absent}");
    }
}

fn lock() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.lock")).unwrap()
}

/// A package and all that it depends on.
fn reached<'a>(dependencies: &BTreeMap<&'a str, BTreeSet<&'a str>>, package: &'a str) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut pending = vec![package];
    while let Some(name) = pending.pop() {
        if reached.insert(name) {
            pending.extend(&dependencies[name]);
        }
    }
    reached
}

/// Packages and the names of their dependencies, all versions together.
fn parse(lock: &str) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut packages: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for package in lock.split("[[package]]").skip(1) {
        let name = package.split("name = \"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
        let list = package.split("dependencies = [").nth(1).and_then(|rest| rest.split(']').next());
        let names = list.unwrap_or_default().lines().filter_map(|line| {
            line.trim().trim_matches(['"', ',']).split(' ').next().filter(|name| !name.is_empty())
        });
        packages.entry(name).or_default().extend(names);
    }
    packages
}
