#!/usr/bin/env bash
# Makes the verifier as one page for a browser, which needs neither a server nor a network, and prints its path:
#
#     scripts/web-verifier.sh [--test]
#
# target/web/zklora-verifier.html has all of crates/zklora-web in it: the verifier as WebAssembly, and the page around it. With --test,
# every bundle of fixtures/vectors is checked by what is in the page, in Node, and has to have its verdict; prints what that took. Then the
# same by a build without overflow checks, as a program has that depends on zklora-verdict and not on this workspace's profile: in 32 bits,
# products of what a file says must not wrap to something small.
# Needs rustup, or a Rust toolchain that has the target wasm32-wasip1; --test needs Node 20 or later.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly TARGET=wasm32-wasip1
readonly PARTS=crates/zklora-web/web

say() { printf 'web-verifier: %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

main() {
    if (($# > 1)) || [[ ${1:---test} != --test ]]; then
        echo "usage: scripts/web-verifier.sh [--test]" >&2
        exit 2
    fi
    has_target || rustup target add "$TARGET" >&2 || true
    has_target || die "the toolchain has no target $TARGET: rustup target add $TARGET, or your distribution's package of it"

    local target
    target=${CARGO_TARGET_DIR:-$(cargo metadata --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')}
    build "$target/wasm"
    local wasm unchecked=$target/wasm/$TARGET/release/zklora_web.wasm page=$target/web/zklora-verifier.html
    if grep -qaF "$HOME/" "$wasm"; then die "$wasm names a folder of this machine"; fi
    mkdir -p "$target/web"
    page "$wasm" >"$page.part"
    mv "$page.part" "$page"
    say "$(stat -c %s "$wasm") bytes of WebAssembly, $(stat -c %s "$page") bytes in all"
    if [[ ${1:-} ]]; then
        command -v node >/dev/null || die "--test needs node, of version 20 or later"
        cargo run --quiet --release -p zklora-testing --example write_vectors -- "$target/web/vectors" >&2
        node "$PARTS/test.mjs" "$page" "$target/web/vectors" >&2
        unchecked=$target/web/without-overflow-checks.html
        # shellcheck disable=SC2046
        build "$target/wasm-unchecked" $(without_overflow_checks)
        page "$target/wasm-unchecked/$TARGET/release/zklora_web.wasm" >"$unchecked"
        say "without overflow checks:"
        node "$PARTS/test.mjs" "$unchecked" "$target/web/vectors" >&2
    fi
    echo "$page"
}

has_target() {
    [[ -d $(rustc --print sysroot)/lib/rustlib/$TARGET ]]
}

# Options of cargo that take back what Cargo.toml says of single crates.
without_overflow_checks() {
    sed -n 's/^\[profile\.release\.package\.\(.*\)\]$/--config profile.release.package.\1.overflow-checks=false/p' Cargo.toml
}

# build FOLDER [OPTION...]
build() {
    local cargo_home=${CARGO_HOME:-$HOME/.cargo}
    # In place of .cargo/config.toml's, which are for this machine. Every browser since 2023 has these vectors. As little code
    # as is quick: a panic says a sentence and no more.
    CARGO_TARGET_DIR=$1 RUSTFLAGS="-C target-feature=+simd128 -C strip=symbols --remap-path-prefix=$cargo_home=/cargo --remap-path-prefix=$PWD=/zklora --remap-path-prefix=$1=/target" \
        cargo rustc --release --locked --target "$TARGET" "${@:2}" -p zklora-web --lib --crate-type cdylib >&2
}

# page WASM: page.html, with what its lines of one @name@ stand for.
page() {
    local line version
    version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n1)
    while IFS= read -r line; do
        case $line in
            @style@) tagged style "$PARTS/page.css" ;;
            @script@) tagged script "$PARTS/page.js" ;;
            @worker@) cat "$PARTS/worker.js" ;;
            @wasm@) base64 -w 0 "$1"; echo ;;
            *)
                line=${line//@script-hash@/$(hash_of "$PARTS/page.js")}
                line=${line//@style-hash@/$(hash_of "$PARTS/page.css")}
                printf '%s\n' "${line//@version@/$version}"
                ;;
        esac
    done <"$PARTS/page.html"
}

# tagged NAME FILE: as an element whose text is exactly the file, which is what its hash is of.
tagged() {
    printf '<%s>' "$1"
    cat "$2"
    printf '</%s>\n' "$1"
}

# hash_of FILE: as a content security policy names it.
hash_of() {
    # shellcheck disable=SC2059
    printf 'sha256-%s' "$(printf "$(sha256sum "$1" | cut -c-64 | sed 's/../\\x&/g')" | base64)"
}

main "$@"
