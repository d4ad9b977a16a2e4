//! The files of a crate use one another in one direction.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use regex::Regex;
use zklora_tests::{fixtures, rust_files};

#[test]
fn no_files_of_a_crate_use_each_other_in_a_circle() {
    let mut circles = Vec::new();
    let mut edges = 0;
    for entry in fs::read_dir(fixtures().join("../crates")).unwrap() {
        let folder = entry.unwrap().path();
        if folder.join("src").is_dir() {
            let uses = uses(&folder.join("src"));
            edges += uses.values().map(BTreeSet::len).sum::<usize>();
            circles
                .extend(circle(&uses).map(|circle| format!("{}: {}", folder.display(), circle.join(" -> "))));
        }
    }
    assert!(edges > 250, "{edges} uses: are they found?");
    assert!(circles.is_empty(), "{circles:#?}");
}

#[test]
fn a_circle_is_found() {
    let uses = |pairs: &[(&str, &str)]| {
        let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (from, to) in pairs {
            uses.entry((*from).into()).or_default().insert((*to).into());
        }
        uses
    };
    assert_eq!(circle(&uses(&[("a", "b"), ("a", "c"), ("b", "c")])), None);
    assert_eq!(circle(&uses(&[("a", "b"), ("b", "c"), ("c", "b")])).unwrap(), ["b", "c", "b"]);
}

/// Which modules each module of a crate uses, by the paths in its code. Tests may look at everything.
fn uses(src: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let mut modules = BTreeMap::new();
    for path in rust_files(src) {
        let name = path.strip_prefix(src).unwrap().with_extension("");
        let name = name.to_str().unwrap().replace('/', "::");
        let name = name.strip_suffix("::mod").unwrap_or(&name).to_owned();
        let is_test = name.split("::").any(|part| part == "tests" || part == "testing");
        if !is_test && !["lib", "main"].contains(&&name[..]) {
            let code = fs::read_to_string(&path).unwrap();
            let code = code.split("#[cfg(test)]").next().unwrap();
            modules.insert(
                name,
                code.lines().map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n"),
            );
        }
    }
    let root = fs::read_to_string(src.join("lib.rs")).unwrap_or_default();
    let path = Regex::new(r"\b(crate|super)((?:::super)*)::(\{[^;]*?\}|[\w:]+)").unwrap();
    let word = Regex::new(r"[\w:]+").unwrap();
    let mut uses = BTreeMap::new();
    for (name, code) in &modules {
        let mut used = BTreeSet::new();
        for found in path.captures_iter(code) {
            let ups = found[2].matches("super").count() + usize::from(&found[1] == "super");
            let mut base: Vec<&str> = if ups == 0 { Vec::new() } else { name.split("::").collect() };
            base.truncate(base.len().saturating_sub(ups));
            for item in word.find_iter(&found[3]) {
                let parts: Vec<&str> = base.iter().copied().chain(item.as_str().split("::")).collect();
                used.extend(module(&parts, &modules, &root).filter(|used| used != name));
            }
        }
        uses.insert(name.clone(), used);
    }
    uses
}

/// The module that a path is in, if it is none of the root's own.
fn module(path: &[&str], modules: &BTreeMap<String, String>, root: &str) -> Option<String> {
    let by_path = (1..=path.len()).rev().map(|parts| path[..parts].join("::"));
    by_path.into_iter().find(|name| modules.contains_key(name)).or_else(|| {
        // What the root passes on.
        let exported =
            Regex::new(&format!(r"pub use (\w+)::(?:\{{[^}}]*\b{0}\b[^}}]*\}}|{0});", path[0])).unwrap();
        exported.captures(root).map(|found| found[1].to_owned()).filter(|name| modules.contains_key(name))
    })
}

/// A way from a module back to itself.
fn circle(uses: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    fn follow(
        at: &str,
        uses: &BTreeMap<String, BTreeSet<String>>,
        way: &mut Vec<String>,
        done: &mut BTreeSet<String>,
    ) -> Option<Vec<String>> {
        if let Some(from) = way.iter().position(|passed| passed == at) {
            return Some(way[from..].iter().cloned().chain([at.to_owned()]).collect());
        }
        if !done.insert(at.to_owned()) {
            return None;
        }
        way.push(at.to_owned());
        let found = uses.get(at).into_iter().flatten().find_map(|used| follow(used, uses, way, done));
        way.pop();
        found
    }
    let mut done = BTreeSet::new();
    uses.keys().find_map(|start| follow(start, uses, &mut Vec::new(), &mut done))
}
