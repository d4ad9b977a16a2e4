#!/usr/bin/env bash
# Makes a virtual environment with the packages of scripts/requirements.txt in a cache folder, once, and prints the path
# of its Python:
#
#     "$(scripts/setup-python.sh)" scripts/check_pf.py session.pf
#
# Only the path goes to stdout; progress and errors go to stderr. Looked at in this order:
#   1. $ZKLORA_PYTHON, if set (an unusable one is an error, never silently replaced);
#   2. the cache, ${XDG_CACHE_HOME:-~/.cache}/zklora/python-<digest of the requirements and of Python's version>;
#   3. pip, with the index that it is set up for.
# Needs bash, sha256sum, flock, and Python 3.11 or later with venv. Two runs at once wait for each other.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly REQUIREMENTS=$here/requirements.txt

say() { printf 'setup-python: %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

main() {
    if [[ -n ${ZKLORA_PYTHON:-} ]]; then
        usable "$ZKLORA_PYTHON" ||
            die "ZKLORA_PYTHON=$ZKLORA_PYTHON lacks the packages of $REQUIREMENTS. Install them there, or unset it to have a" \
                "virtual environment made."
        printf '%s\n' "$ZKLORA_PYTHON"
        return
    fi

    local tool
    for tool in python3 sha256sum flock; do
        command -v "$tool" >/dev/null || die "needs $tool, which is not in PATH. Install it, or set ZKLORA_PYTHON."
    done
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "needs Python 3.11 or later, python3 is $(python3 --version 2>&1). Install one, or set ZKLORA_PYTHON."
    local cache=${XDG_CACHE_HOME:-${HOME:?HOME is not set; set it, XDG_CACHE_HOME or ZKLORA_PYTHON}/.cache}/zklora
    local digest target
    digest=$( (cat "$REQUIREMENTS"; python3 -c 'import sys; print(sys.version, sys.base_prefix)') | sha256sum | head -c 16)
    target=$cache/python-$digest
    if ! usable "$target/bin/python"; then
        mkdir -p "$cache"
        exec 9>"$cache/.python-$digest.lock"
        flock --nonblock 9 || { say "waiting for another run to finish"; flock 9; }
        # The other run may have made it meanwhile.
        usable "$target/bin/python" || make "$target"
    fi
    printf '%s\n' "$target/bin/python"
}

# Builds next to the target and renames at the end. Python finds its environment by where it is started from, so it may be
# moved; the scripts beside it may not, and nothing uses them.
make() {
    local target=$1
    rm -rf "$target".partial.* # left by runs that were killed; we hold the lock
    work=$(mktemp -d "$target.partial.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    say "installing the packages of $REQUIREMENTS"
    python3 -m venv "$work" >&2 ||
        die "python3 could not make a virtual environment. Install venv (python3-venv), or set ZKLORA_PYTHON."
    "$work/bin/python" -m pip install --disable-pip-version-check --no-cache-dir --quiet --only-binary=:all: \
        --requirement "$REQUIREMENTS" >&2 ||
        die "pip could not install the packages (its reason is above). Give pip an index that has them, or set ZKLORA_PYTHON."
    usable "$work/bin/python" || die "the packages were installed, but this Python cannot import them"
    rm -rf "$target"
    mv "$work" "$target"
    say "ready: $target"
}

# Whether a Python has every package in the version that the requirements name.
usable() {
    [[ -x $1 ]] || command -v "$1" >/dev/null || return 1
    "$1" - "$REQUIREMENTS" >/dev/null 2>&1 <<'PYTHON'
import sys
from importlib import metadata
import blake3, nacl.signing, numpy
for line in open(sys.argv[1], encoding="utf-8"):
    name, found, version = line.partition("#")[0].strip().partition("==")
    if found and metadata.version(name) != version:
        sys.exit(1)
PYTHON
}

main "$@"
