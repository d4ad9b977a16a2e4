#!/usr/bin/env bash
# Every test. Gets libtorch and the Python packages of scripts/check_pf.py, and builds; needs a Rust toolchain, gcc and
# Python 3.11 or later with pip and venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Before the cache folder is another one, or it would be made twice.
ZKLORA_PYTHON=$(scripts/setup-python.sh)
export ZKLORA_PYTHON

echo "== The verifier, where no libtorch can be found"
# An empty home for caches and no LIBTORCH: a build that wanted libtorch would fail here.
empty=$(mktemp -d)
trap 'rm -rf "$empty"' EXIT
env -u LIBTORCH -u LIBTORCH_USE_PYTORCH -u LD_LIBRARY_PATH XDG_CACHE_HOME="$empty" \
    cargo test --release --no-fail-fast -p zklora-verifier -p zklora-verdict -p zklora-web

echo "== The workspace"
LIBTORCH=$(scripts/setup-libtorch.sh)
export LIBTORCH
cargo test --release --workspace --no-fail-fast
