#!/usr/bin/env bash
# What can be said of a change within minutes: format, lints and the unit tests of all crates. scripts/test.sh has every test.
# Spelling and licences, too, if `typos` and `cargo deny` are installed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

step() { printf '\n== %s (after %s s)\n' "$1" "$SECONDS"; }

LIBTORCH=$(scripts/setup-libtorch.sh)
export LIBTORCH
step "format"
cargo fmt --all -- --check
step "lints"
cargo lint
step "unit tests"
cargo test-all --lib
if command -v typos >/dev/null; then
    step "spelling"
    typos
fi
if command -v cargo-deny >/dev/null; then
    step "licences, sources and crates that are not wanted"
    cargo deny --offline check licenses bans sources
fi
step "done"
