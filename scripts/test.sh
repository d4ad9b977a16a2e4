#!/usr/bin/env bash
# Every test. Gets libtorch and the Python packages of scripts/check_pf.py, and builds; needs a Rust toolchain, gcc and
# Python 3.11 or later with pip and venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

ZKLORA_PYTHON=$(scripts/setup-python.sh)
LIBTORCH=$(scripts/setup-libtorch.sh)
export ZKLORA_PYTHON LIBTORCH
# The whole workspace at once: a part of it has other features of the same dependencies, and would build plonky2 again. That the
# verifier needs no libtorch is read from Cargo.lock (crates/verifier/tests/program/dependencies.rs).
cargo test --release --workspace --no-fail-fast
