#!/usr/bin/env bash
# Feeds hostile input to the parsers and the verifier, and says how much was tried:
#
#     scripts/fuzz.sh [SECONDS [TARGET...]]
#
# Runs each target of fuzz/ for SECONDS (600 unless given), one after another; see "Fuzzing" in CONTRIBUTING.md. Ends with an error
# at the first input that breaks a target, and says where it is kept. Corpora stay in fuzz/corpus for the next run.
# Needs rustup with a nightly toolchain, g++, and cargo-fuzz, which is installed if it is missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly SECONDS_EACH=${1:-600}
[[ $SECONDS_EACH =~ ^[1-9][0-9]*$ ]] || { echo "usage: scripts/fuzz.sh [SECONDS [TARGET...]]" >&2; exit 2; }
shift || true
(($#)) || set -- bundle message disclosure package verifier

cargo fuzz --version >/dev/null 2>&1 || cargo install cargo-fuzz --locked
cargo run --release -p zklora-testing --example fuzz_seeds -- fuzz/seeds
cargo run --release -p zklora-delivery --example package_seeds -- fuzz/seeds/package
# Its oracle knows the valid bundles of these seeds alone, and each run makes its own.
rm -rf fuzz/corpus/verifier

# The code that is shipped: cargo-fuzz adds its own flags to these, and would otherwise replace those of .cargo/config.toml.
# --release leaves debug assertions to the profile in fuzz/Cargo.toml.
export RUSTFLAGS="-C target-cpu=native --cfg nightly"
# One thread, so that an input always takes the same way.
export RAYON_NUM_THREADS=1
cargo +nightly fuzz build --release

run() {
    local target=$1 log=fuzz/artifacts/$1.log options
    # Lengths: a bundle of this size decompresses to some megabytes; messages keep payloads of up to 4 KiB; real proofs are large.
    # Memory: at most what the longest input may decompress to, with the sanitizer's share.
    case $target in
        bundle) options=(-max_len=16384 -rss_limit_mb=1536 -malloc_limit_mb=256 -timeout=20 -dict=fuzz/json.dict) ;;
        message) options=(-max_len=16384 -rss_limit_mb=512 -malloc_limit_mb=16 -timeout=5 -dict=fuzz/json.dict) ;;
        disclosure) options=(-max_len=65536 -rss_limit_mb=512 -malloc_limit_mb=64 -timeout=5 -dict=fuzz/json.dict) ;;
        package) options=(-max_len=131072 -rss_limit_mb=512 -malloc_limit_mb=64 -timeout=5) ;;
        verifier) options=(-max_len=786432 -rss_limit_mb=4096 -malloc_limit_mb=1024 -timeout=60 -dict=fuzz/json.dict) ;;
        *) echo "no such target: $target" >&2; exit 2 ;;
    esac
    mkdir -p "fuzz/corpus/$target" fuzz/artifacts
    echo "== $target, $SECONDS_EACH s"
    if ! cargo +nightly fuzz run --release "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- -max_total_time="$SECONDS_EACH" \
        -len_control=0 -print_final_stats=1 "${options[@]}" >"$log" 2>&1; then
        tail -n 60 "$log"
        echo "$target: broken; all of the output is in $log" >&2
        exit 1
    fi
    local executions coverage
    executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    coverage=$(sed -n 's/^#[0-9]*\tDONE *\(cov: [0-9]* ft: [0-9]* corp: [0-9]*\).*/\1/p' "$log")
    echo "$target: $executions executions, $coverage (edges, features, inputs kept)"
}

for target; do run "$target"; done
