#!/usr/bin/env bash
# Makes Debian packages of the programs, in target/debian, and prints their paths:
#
#     scripts/package.sh                      # zklora-contributor
#     scripts/package.sh zklora-contributor zklora-base-user zklora-verifier
#
# They run on releases of Debian as new as this one. Gets libtorch, and cargo-deb if it is missing. Needs, beside a Rust toolchain,
# Debian's packages binutils, dpkg-dev, gcc and patchelf. Set SOURCE_DATE_EPOCH for dates other than that of the last commit.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly CARGO_DEB=3.8.0
readonly REVISION=1

say() { printf 'package: %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

main() {
    (($#)) || set -- zklora-contributor
    local tool program
    for tool in dpkg-shlibdeps gcc nm patchelf readelf strip; do
        command -v "$tool" >/dev/null || die "needs $tool: install binutils, dpkg-dev, gcc and patchelf"
    done
    cargo deb --version >/dev/null 2>&1 || cargo install cargo-deb --locked --version "$CARGO_DEB" >&2

    # Of their own: the programs are built for another place, and name no folder of this machine.
    local target
    target=$(cargo metadata --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
    export CARGO_TARGET_DIR=$target/package
    SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
    export SOURCE_DATE_EPOCH
    for program; do package "$program" "$target"; done
}

# package PROGRAM TARGET
package() {
    local program=$1 stage=$CARGO_TARGET_DIR/release/stage/$1
    rm -rf "$stage"
    mkdir -p "$stage"/{completions,lib,doc,man1}
    case $program in
        zklora-contributor | zklora-base-user) build "$program" with-libtorch ;;
        zklora-verifier) build "$program" ;;
        *) die "$program is not a program: expected zklora-contributor, zklora-base-user or zklora-verifier" ;;
    esac
    local binary=$CARGO_TARGET_DIR/release/$program
    strip "$binary"
    if ! grep -q libtorch_cpu <(readelf -d "$binary"); then
        rmdir "$stage/lib"
    else
        take_libtorch "$binary" "$stage/lib" "/usr/lib/$program"
        mkdir "$stage/doc/libtorch-licenses"
        take_licenses "$(scripts/setup-libtorch.sh --licenses)" "$stage/doc/libtorch-licenses"
    fi
    local libraries=("$stage"/lib/*.so*)
    [[ -e ${libraries[0]} ]] || libraries=()
    if grep -qaF "$HOME/" "$binary"; then die "$binary names a folder of this machine"; fi

    # From the program itself, which finds its libraries in the stage for once.
    local run=(env LD_LIBRARY_PATH="$stage/lib" "$binary") shell
    "${run[@]}" man --out-dir "$stage/man1"
    for shell in bash zsh fish; do "${run[@]}" completions "$shell" >"$stage/completions/$shell"; done

    gzip -9n "$stage/man1"/*
    cp LICENSE-MIT README.md SECURITY.md "$stage/doc/"
    [[ $program != zklora-contributor ]] || cp -r dist/prometheus dist/grafana "$stage/doc/"
    gzip -9n <CHANGELOG.md >"$stage/doc/changelog.gz"
    local version
    version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n1)
    printf '%s (%s-%s) unstable; urgency=medium\n\n  * See changelog.gz beside this file.\n\n -- %s  %s\n' \
        "$program" "$version" "$REVISION" "The ZKLoRA developers <zklora@localhost>" \
        "$(date -u -R -d "@$SOURCE_DATE_EPOCH")" >"$stage/doc/changelog.Debian"
    gzip -9n "$stage/doc/changelog.Debian"
    # The example, with the folders that the unit makes.
    sed -E 's/^#(state|out_dir|control) = /\1 = /' dist/config/contributor.toml >"$stage/contributor.toml"

    # dpkg-shlibdeps looks for libtorch in the stage, where no package says what it is; cargo-deb cannot tell it. And it is asked
    # about all files whenever it is about one, so that each library is named once, with the version that is enough for all.
    mkdir -p "$stage/tools"
    {
        printf '#!/bin/sh\nexec %q --ignore-missing-info %q "$@"' "$(command -v dpkg-shlibdeps)" "-l$stage/lib"
        printf ' %q' "$binary" ${libraries[@]+"${libraries[@]}"}
        echo
    } >"$stage/tools/dpkg-shlibdeps"
    chmod +x "$stage/tools/dpkg-shlibdeps"
    PATH=$stage/tools:$PATH cargo deb --no-build --no-strip --locked -p "$program" --deb-revision "$REVISION" \
        -o "$2/debian/"
}

# build PROGRAM [with-libtorch]
build() {
    local cargo_home=${CARGO_HOME:-$HOME/.cargo} remap
    remap=(-ffile-prefix-map="$cargo_home=/cargo" -ffile-prefix-map="$CARGO_TARGET_DIR=/target")
    if [[ ${2:-} ]]; then
        LIBTORCH=$(scripts/setup-libtorch.sh)
        # Not $ORIGIN, for which the dynamic loader would need /proc.
        export LIBTORCH ZKLORA_RPATH=/usr/lib/$1
        remap+=(-ffile-prefix-map="$LIBTORCH=/libtorch")
    fi
    CFLAGS=${remap[*]} CXXFLAGS=${remap[*]} \
        RUSTFLAGS="--remap-path-prefix=$cargo_home=/cargo --remap-path-prefix=$PWD=/zklora --remap-path-prefix=$CARGO_TARGET_DIR=/target" \
        cargo build --release --locked -p "$1" --bin "$1" >&2
}

# take_libtorch BINARY FOLDER INSTALLED: what BINARY needs of libtorch, and what that needs, to be found in INSTALLED. libgomp is
# Debian's.
take_libtorch() {
    local pending=("$1") file needed
    while ((${#pending[@]})); do
        file=${pending[0]}
        pending=("${pending[@]:1}")
        while read -r needed; do
            [[ ! -e $2/$needed ]] || continue
            case $needed in
                libgomp.so.1) continue ;;
                libcudart.so.* | libcupti.so.*) stand_in "$needed" "$2"; continue ;;
            esac
            if [[ -e $LIBTORCH/lib/$needed ]]; then
                cp "$LIBTORCH/lib/$needed" "$2/$needed"
                strip --strip-unneeded "$2/$needed"
                patchelf --set-rpath "$3" "$2/$needed"
                pending+=("$2/$needed")
            fi
        done < <(readelf -d "$file" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p')
    done
}

# stand_in SONAME FOLDER: a library in which every function fails. The libtorch of the PyPI wheel is linked with two libraries of
# CUDA, which it asks for a GPU and for the GPU's profile; they are not free, and there is no use for them.
stand_in() {
    nm -D --undefined-only --with-symbol-versions "$LIBTORCH/lib/libtorch_cpu.so" | sed -n "s/^ *U \(.*\)@$1\$/\1/p" |
        while read -r function; do
            case $function in
                *GetErrorString) printf 'const char *%s(void) { return "this libtorch is for CPUs"; }\n' "$function" ;;
                *) printf 'int %s(void) { return 100; } /* no device */\n' "$function" ;;
            esac
        done |
        gcc -shared -fPIC -Os -s -Wl,-soname,"$1" -Wl,--version-script=<(printf '%s { global: *; };' "$1") -x c - -o "$2/$1"
}

# take_licenses FROM TO: each text once, all in one folder, named after where it was.
take_licenses() {
    local -A seen
    local file digest
    while read -r file; do
        digest=$(sha256sum <"$1/$file")
        if [[ ! ${seen[$digest]:-} ]]; then
            seen[$digest]=yes
            cp "$1/$file" "$2/${file//\//_}"
        fi
    done < <(cd "$1" && find . -type f -printf '%P\n' | sort)
}

main "$@"
