#!/usr/bin/env bash
# Makes a CPU libtorch in a cache folder, once, and prints its path:
#
#     export LIBTORCH="$(scripts/setup-libtorch.sh)"
#
# With --licenses, prints a folder with the licences of libtorch and of what is in it, which whoever passes it on has to add. They
# are in the wheel alone, so that this gets the wheel.
#
# Only the path goes to stdout; progress and errors go to stderr. Looked at in this order:
#   1. $LIBTORCH, if set (an unusable one is an error, never silently replaced);
#   2. the cache, ${XDG_CACHE_HOME:-~/.cache}/zklora/libtorch-<version>;
#   3. the official CPU archive, where it can be reached;
#   4. the PyPI wheel, stripped to what a CPU program needs.
# Needs bash, python3 with pip, gcc. Two runs at once wait for each other.
set -euo pipefail

readonly VERSION=2.13.0 # what tch 0.26 is written for
readonly ARCHIVE_URL="https://download.pytorch.org/libtorch/cpu/libtorch-shared-with-deps-$VERSION%2Bcpu.zip"
readonly CONNECT_TIMEOUT=10 # seconds without a byte before the archive counts as out of reach

say() { printf 'setup-libtorch: %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

main() {
    if [[ ${1:-} == --licenses ]]; then
        licenses
        return
    fi
    if [[ -n ${LIBTORCH:-} ]]; then
        local why
        why=$(why_unusable "$LIBTORCH")
        [[ -z $why ]] || die "LIBTORCH=$LIBTORCH $why. Point it at a libtorch $VERSION, or unset it to have one made."
        printf '%s\n' "$LIBTORCH"
        return
    fi

    [[ $(uname -s)-$(uname -m) == Linux-x86_64 ]] ||
        die "makes libtorch for Linux on x86-64 only, this is $(uname -sm). Install libtorch $VERSION and set LIBTORCH."
    local cache target
    cache=$(cache_folder)
    target=$cache/libtorch-$VERSION
    if [[ -n $(why_unusable "$target") ]]; then
        need_tools
        mkdir -p "$cache"
        exec 9>"$cache/.libtorch-$VERSION.lock"
        flock --nonblock 9 || { say "waiting for another run to finish"; flock 9; }
        # The other run may have made it meanwhile.
        [[ -z $(why_unusable "$target") ]] || make "$target"
    fi
    printf '%s\n' "$target"
}

# Builds next to the target and renames at the end, so that a target that exists is whole.
make() {
    local target=$1 why
    rm -rf "$target".partial.* # left by runs that were killed; we hold the lock
    work=$(mktemp -d "$target.partial.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    # pip and zipfile put their temporary files on the disk that has to hold the result anyway.
    export TMPDIR=$work

    if from_archive "$work"; then
        say "using the official archive"
    else
        rm -rf "$work/archive.zip" "$work/libtorch"
        mkdir "$work/libtorch"
        from_wheel "$work"
    fi
    why=$(why_unusable "$work/libtorch")
    [[ -z $why ]] || die "what was downloaded $why"
    loads "$work/libtorch" ||
        die "libtorch.so was made but does not load on this system; the lines above name the library it misses"
    rm -rf "$target"
    mv "$work/libtorch" "$target"
    say "ready: $target ($(du -sm "$target" | cut -f1) MB)"
}

cache_folder() {
    printf '%s\n' "${XDG_CACHE_HOME:-${HOME:?HOME is not set; set it, XDG_CACHE_HOME or LIBTORCH}/.cache}/zklora"
}

licenses() {
    local cache target
    cache=$(cache_folder)
    target=$cache/libtorch-$VERSION-licenses
    if [[ ! -s $target/LICENSE ]]; then
        need_tools
        mkdir -p "$cache"
        work=$(mktemp -d "$target.partial.XXXXXX")
        trap 'rm -rf "$work"' EXIT
        export TMPDIR=$work
        say "taking libtorch's licences out of the PyPI wheel (about 530 MB)"
        download_wheels "$work/wheels" "torch==$VERSION"
        unpack "$work"/wheels/torch-*.whl "$work/all" "torch-$VERSION.dist-info/licenses/**=licenses" ||
            die "torch's wheel has no licences where they are expected"
        rm -rf "$target"
        mv "$work/all/licenses" "$target"
    fi
    printf '%s\n' "$target"
}

from_archive() {
    say "trying $ARCHIVE_URL"
    fetch "$ARCHIVE_URL" "$1/archive.zip" || return 1
    unpack "$1/archive.zip" "$1/libtorch" \
        libtorch/build-version=build-version 'libtorch/include/**=include' 'libtorch/lib/**=lib' || return 1
    rm "$1/archive.zip"
}

# torch's wheel on PyPI is the CUDA one. Its CPU half loads without CUDA once the two small CUDA libraries that
# libtorch_cpu.so is linked to are there, and once libtorch.so, which only pulls in the halves, pulls in one of them.
from_wheel() {
    local lib=$1/libtorch/lib wheels=$1/wheels
    say "the archive is out of reach; taking the PyPI wheels instead (about 540 MB)"
    download_wheels "$wheels" "torch==$VERSION" 'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-cupti==13.0.*'
    unpack "$wheels"/torch-*.whl "$1/libtorch" 'torch/include/**=include' \
        torch/lib/{libtorch_cpu.so,libc10.so,libgomp.so.1}=lib || die "torch's wheel is not laid out as expected"
    unpack "$wheels"/nvidia_cuda_runtime-*.whl "$1/libtorch" 'nvidia/*/lib/libcudart.so.13=lib' ||
        die "the nvidia-cuda-runtime wheel holds no libcudart.so.13"
    unpack "$wheels"/nvidia_cuda_cupti-*.whl "$1/libtorch" 'nvidia/*/lib/libcupti.so.13=lib' ||
        die "the nvidia-cuda-cupti wheel holds no libcupti.so.13"
    # shellcheck disable=SC2016 # $ORIGIN is for the dynamic loader
    gcc -shared -o "$lib/libtorch.so" -Wl,-soname,libtorch.so -Wl,-rpath,'$ORIGIN' \
        -L"$lib" -Wl,-rpath-link,"$lib" -Wl,--no-as-needed -ltorch_cpu -lc10 >&2 || die "gcc could not link libtorch.so"
    printf '%s+cpu\n' "$VERSION" >"$1/libtorch/build-version"
    rm -r "$wheels"
}

download_wheels() {
    local dest=$1 platform=()
    shift
    set -- --no-deps --only-binary=:all: --disable-pip-version-check --dest "$dest" "$@"
    python3 -m pip download "$@" >&2 && return
    # No wheel for this Python, perhaps. The libraries are the same in every Python's wheel.
    say "trying the wheels made for Python 3.12"
    for tag in manylinux_2_{28,27,26,25,24,17}_x86_64 manylinux2014_x86_64; do platform+=(--platform "$tag"); done
    python3 -m pip download --python-version 3.12 --implementation cp "${platform[@]}" "$@" >&2 ||
        die "pip could not download the wheels (its reason is above). Give pip an index that has torch $VERSION, or" \
            "install libtorch $VERSION and set LIBTORCH."
}

# Says what is wrong with folder $1 as a libtorch; says nothing if it is usable.
why_unusable() {
    local version file
    if [[ ! -d $1 ]]; then echo "is not a folder"; return; fi
    for file in build-version lib/libtorch.so lib/libtorch_cpu.so lib/libc10.so include/torch/csrc/api/include/torch/torch.h; do
        if [[ ! -s $1/$file ]]; then echo "has no $file"; return; fi
    done
    version=$(head -c 64 "$1/build-version" | tr -d '[:space:]')
    if [[ ${version%%+*} != "$VERSION" ]]; then echo "is libtorch $version, needed is $VERSION"; fi
}

need_tools() {
    local tool
    for tool in python3 gcc flock; do
        command -v "$tool" >/dev/null || die "needs $tool, which is not in PATH. Install it, or set LIBTORCH to a libtorch $VERSION."
    done
    python3 -m pip --version >/dev/null 2>&1 ||
        die "needs pip for $(command -v python3). Install it (python3-pip, or python3 -m ensurepip), or set LIBTORCH."
}

# fetch URL FILE
fetch() {
    python3 - "$1" "$2" "$CONNECT_TIMEOUT" >&2 <<'PYTHON'
import http.client, shutil, sys, urllib.request
url, path, timeout = sys.argv[1:]
try:
    with urllib.request.urlopen(url, timeout=float(timeout)) as reply, open(path, "wb") as file:
        shutil.copyfileobj(reply, file, 1 << 20)
except (OSError, http.client.HTTPException) as error:  # OSError: no route, a 404, a time-out, a full disk
    sys.exit(f"setup-libtorch: {error}")
PYTHON
}

# unpack ZIP FOLDER PATTERN=SUBPATH...
# 'dir/**' takes the tree below dir into SUBPATH/, a name without ** is put at SUBPATH/ (or at SUBPATH if that is what
# it is called). Every pattern has to match something.
unpack() {
    python3 - "$@" >&2 <<'PYTHON'
import fnmatch, pathlib, shutil, sys, zipfile
source, folder, *wanted = sys.argv[1:]
folder = pathlib.Path(folder).resolve()
try:
    with zipfile.ZipFile(source) as archive:
        files = [name for name in archive.namelist() if not name.endswith("/")]
        for pattern, _, sub in (item.partition("=") for item in wanted):
            matching = fnmatch.filter(files, pattern.replace("**", "*"))
            if not matching:
                sys.exit(f"setup-libtorch: {source} has nothing like {pattern}")
            for name in matching:
                if pattern.endswith("/**"):
                    target = folder / sub / name[len(pattern) - 2:]
                else:
                    base = name.rpartition("/")[2]
                    target = folder / sub if sub == base else folder / sub / base
                if folder not in target.resolve().parents:
                    sys.exit(f"setup-libtorch: {source} wants to write outside of its folder: {name}")
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(name) as data, open(target, "wb") as file:
                    shutil.copyfileobj(data, file, 1 << 20)
except (OSError, zipfile.BadZipFile) as error:
    sys.exit(f"setup-libtorch: {source}: {error}")
PYTHON
}

loads() {
    python3 -c 'import ctypes, sys; ctypes.CDLL(sys.argv[1])' "$1/lib/libtorch.so" >&2
}

main "$@"
