#!/usr/bin/env bash
# Builds zklora-verifier as one file that runs on any x86-64 Linux, whatever its distribution, and prints its path:
#
#     scripts/static-verifier.sh [PROCESSOR]
#
# Nothing is linked at run time: no C library, no loader. PROCESSOR is the least that it runs on, x86-64-v2 unless given: every
# processor since about 2009. x86-64-v3 (2013, but for the cheapest) builds circuits a little faster; see "The portable verifier" in
# docs/verifying.md. Then checks that the file asks for no loader, that it accepts a valid bundle in an empty environment, and
# that it refuses that bundle with one byte more.
# Needs rustup, or a Rust toolchain that has the target x86_64-unknown-linux-musl; gcc, as compiler of BLAKE3's assembly and as linker.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly TARGET=x86_64-unknown-linux-musl
readonly PROCESSOR=${1:-x86-64-v2}
readonly BUNDLE=fixtures/vectors/valid/shared-input.pf

say() { printf 'static-verifier: %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

main() {
    if (($# > 1)) || [[ $PROCESSOR == -* ]]; then
        echo "usage: scripts/static-verifier.sh [PROCESSOR]" >&2
        exit 2
    fi
    [[ $(uname -sm) == "Linux x86_64" ]] || die "runs on x86-64 Linux, where it can try what it has built"
    command -v gcc >/dev/null || die "needs gcc"
    has_target || rustup target add "$TARGET" >&2 || true
    has_target || die "the toolchain has no target $TARGET: rustup target add $TARGET, or your distribution's package of it"

    local target
    target=${CARGO_TARGET_DIR:-$(cargo metadata --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')}/static
    build "$target"
    local binary=$target/$TARGET/release/zklora-verifier
    check "$binary"
    say "$(stat -c %s "$binary") bytes for $PROCESSOR and above"
    echo "$binary"
}

has_target() {
    [[ -d $(rustc --print sysroot)/lib/rustlib/$TARGET ]]
}

# build FOLDER
build() {
    local cargo_home=${CARGO_HOME:-$HOME/.cargo}
    # In place of .cargo/config.toml's: neither this machine's processor nor `nightly`, whose vectors need AVX2.
    local flags=(-C "target-cpu=$PROCESSOR" -C strip=symbols)
    [[ $PROCESSOR == x86-64 || $PROCESSOR == x86-64-v2 ]] || flags+=(--cfg nightly)
    flags+=(--remap-path-prefix="$cargo_home=/cargo" --remap-path-prefix="$PWD=/zklora" --remap-path-prefix="$1=/target")
    # BLAKE3's assembly, which finds out at run time what the processor has. It includes no header of a C library, so that the
    # machine's own compiler will do.
    CC_x86_64_unknown_linux_musl=gcc CFLAGS_x86_64_unknown_linux_musl="-ffile-prefix-map=$cargo_home=/cargo -ffile-prefix-map=$1=/target" \
        CARGO_TARGET_DIR=$1 RUSTFLAGS=${flags[*]} \
        cargo build --release --locked --target "$TARGET" -p zklora-verifier --bin zklora-verifier >&2
}

# check BINARY
check() {
    local types
    types=$(segments "$1")
    grep -qx 1 <<<"$types" || die "$1 is no program: expected a segment to load"
    if grep -qx 3 <<<"$types"; then die "$1 asks for a loader (PT_INTERP): it is not static"; fi
    if grep -qaF "$HOME/" "$1"; then die "$1 names a folder of this machine"; fi

    local work said
    work=$(mktemp -d)
    # Now: a local variable is gone when the script ends.
    # shellcheck disable=SC2064
    trap "rm -rf '$work'" EXIT
    cat "$BUNDLE" <(printf x) >"$work/changed.pf"
    said=$(env -i "$1" verify --unpinned --verbose "$BUNDLE") || die "it refuses $BUNDLE: $said"
    grep -E '^fixtures.*VALID|circuit of' <<<"$said" >&2
    if env -i "$1" verify --unpinned "$work/changed.pf" >/dev/null 2>&1; then die "it accepts $BUNDLE with one byte more"; fi
}

# segments BINARY: the types of its segments, one a line, by the ELF header of 64 bits. readelf is not everywhere.
segments() {
    number() { od -An -v -tu"$3" -j"$2" -N"$3" "$1" | tr -d ' \n'; }
    local offset size count i
    offset=$(number "$1" 32 8) size=$(number "$1" 54 2) count=$(number "$1" 56 2)
    for ((i = 0; i < count; i++)); do
        number "$1" $((offset + i * size)) 4
        echo
    done
}

main "$@"
