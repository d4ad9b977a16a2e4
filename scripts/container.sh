#!/usr/bin/env bash
# Makes a container image of the contributor, without a daemon, and prints its path, target/container/zklora-contributor_VERSION.tar:
#
#     scripts/container.sh [FILE.deb]         # makes it of scripts/package.sh's package, or of this one
#     scripts/container.sh --test [FILE.deb]  # runs it, too: as root
#
# The image is Debian's minimal root, of the release of this machine, with the package in it. The file is an OCI image layout, which
# `podman load -i`, `skopeo copy oci-archive:FILE ...` and `docker load -i` read. The same package, release and SOURCE_DATE_EPOCH (that of the last
# commit, unless set) give the same files in it as long as Debian's mirror has the same packages.
#
# Needs Debian's packages mmdebstrap and jq, and a Debian repository; no root, where user namespaces may be made. --test needs skopeo or does
# without: then it checks the layout itself, and in any case runs the image's files under chroot, as the image's user. What that
# does not show is how a container runtime sets up networks and volumes. .ci/run does not run it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly NAME=zklora-contributor
# That of docs/proving.md. A number, so that Kubernetes sees that it is not root.
readonly USER_ID=64000

say() { printf 'container: %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

main() {
    local test='' tool
    [[ ${1:-} != --test ]] || { test=yes; shift; }
    (($# <= 1)) || die "expected one package at most"
    if [[ $test ]]; then
        ((EUID == 0)) || die "--test needs root, for chroot"
        # In a mount namespace of its own, so that no mount outlives this.
        [[ ${ZKLORA_UNSHARED:-} ]] || ZKLORA_UNSHARED=yes exec unshare --mount "$0" --test "$@"
    fi
    for tool in mmdebstrap jq; do command -v "$tool" >/dev/null || die "needs $tool: install Debian's package of that name"; done
    local deb=${1:-}
    [[ $deb ]] || deb=$(scripts/package.sh "$NAME" | tail -n1)
    [[ -f $deb ]] || die "$deb: expected a package"
    [[ $(dpkg-deb -f "$deb" Package) == "$NAME" ]] || die "$deb is not a package of $NAME"
    SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
    export SOURCE_DATE_EPOCH

    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    # For the user namespace of mmdebstrap, which is somebody else.
    chmod 755 "$work"
    cp "$deb" "$work/package.deb"
    chmod 644 "$work/package.deb"
    make_root
    make_layout "$(dpkg-deb -f "$deb" Version)" "$(dpkg-deb -f "$deb" Architecture)"

    local out
    out=target/container/${NAME}_$(dpkg-deb -f "$deb" Version).tar
    mkdir -p target/container
    archive "$work/layout" "$work/image.tar"
    mv "$work/image.tar" "$out"
    check_layout "$out"
    if [[ $test ]]; then run_image; fi
    say "$(stat -c %s "$out") bytes; $(jq -r '.rootfs.diff_ids | length' "$work/config") layer"
    echo "$out"
}

# The files of the image, as $work/layer.
make_root() {
    local release
    release=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
    say "Debian $release with the package"
    # shellcheck disable=SC2016 # for the shell of mmdebstrap, which has the root as $1
    mmdebstrap --variant=minbase --quiet --format=tar \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        --customize-hook="upload $work/package.deb /tmp/package.deb" \
        --customize-hook='chroot "$1" apt-get install -qq -y --no-install-recommends -o Dpkg::Use-Pty=0 /tmp/package.deb >/dev/null' \
        --customize-hook='rm -r "$1/tmp/package.deb" "$1"/var/cache/apt/* "$1"/var/lib/apt/lists/* "$1"/var/log/* "$1/etc/hostname" "$1/etc/resolv.conf"' \
        --customize-hook="chroot \"\$1\" groupadd --gid $USER_ID zklora" \
        --customize-hook="chroot \"\$1\" useradd --uid $USER_ID --gid $USER_ID --home-dir /var/lib/zklora --no-create-home --shell /usr/sbin/nologin -K UID_MAX=$USER_ID zklora" \
        --customize-hook="install -d -m 700 -o $USER_ID -g $USER_ID \"\$1/var/lib/zklora\"" \
        --customize-hook='sed -i "s/^#listen = .*/listen = \"0.0.0.0:30000\"/; s/^control = /#control = /" "$1/etc/zklora/contributor.toml"' \
        "$release" "$work/layer" "$(mirror "$release")" >&2 || die "the root could not be made"
}

# Where this machine gets Debian's own release from.
mirror() {
    # shellcheck disable=SC2016 # for apt to fill in
    apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
        awk -v release="$1" '$2 == release && $3 == "main" { print $1; exit }'
}

# make_layout VERSION ARCHITECTURE: the image of $work/layer, as the folder $work/layout.
make_layout() {
    local blobs=$work/layout/blobs/sha256 created diff layer config manifest
    mkdir -p "$blobs"
    created=$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)
    diff=$(digest "$work/layer")
    gzip -9n "$work/layer"
    layer=$(blob "$work/layer.gz")
    # Weights and keys are in the volume, and nowhere in the image.
    jq -cn --arg created "$created" --arg arch "$2" --arg diff "sha256:$diff" --arg user "$USER_ID:$USER_ID" --arg version "$1" '{
        created: $created, architecture: $arch, os: "linux",
        config: {
            User: $user, WorkingDir: "/var/lib/zklora", StopSignal: "SIGTERM",
            Entrypoint: ["/usr/bin/zklora-contributor"], Cmd: ["serve", "--config", "/etc/zklora/contributor.toml"],
            Env: ["PATH=/usr/bin:/bin", "LC_ALL=C.UTF-8", "OMP_WAIT_POLICY=passive"],
            ExposedPorts: {"30000/udp": {}}, Volumes: {"/var/lib/zklora": {}},
            Labels: {"org.opencontainers.image.title": "zklora-contributor", "org.opencontainers.image.version": $version,
                "org.opencontainers.image.licenses": "MIT OR Apache-2.0"}
        },
        rootfs: {type: "layers", diff_ids: [$diff]},
        history: [{created: $created, created_by: "scripts/container.sh"}]
    }' >"$work/config"
    config=$(blob "$work/config")
    jq -cn --argjson config "$(descriptor "$config" application/vnd.oci.image.config.v1+json)" \
        --argjson layer "$(descriptor "$layer" application/vnd.oci.image.layer.v1.tar+gzip)" \
        '{schemaVersion: 2, mediaType: "application/vnd.oci.image.manifest.v1+json", config: $config, layers: [$layer]}' >"$work/manifest"
    manifest=$(blob "$work/manifest")
    # A version of Debian may have characters that a tag may not.
    jq -cn --argjson manifest "$(descriptor "$manifest" application/vnd.oci.image.manifest.v1+json)" --arg tag "${1//[^A-Za-z0-9_.-]/-}" \
        --arg name "$NAME" '{schemaVersion: 2, mediaType: "application/vnd.oci.image.index.v1+json", manifests: [$manifest + {annotations: {
            "org.opencontainers.image.ref.name": $tag, "io.containerd.image.name": "docker.io/library/\($name):\($tag)"}}]}' >"$work/layout/index.json"
    echo '{"imageLayoutVersion":"1.0.0"}' >"$work/layout/oci-layout"
    # What `docker load` of versions before 25 reads.
    jq -cn --arg config "blobs/sha256/$config" --arg layer "blobs/sha256/$layer" --arg tag "$NAME:${1//[^A-Za-z0-9_.-]/-}" \
        '[{Config: $config, RepoTags: [$tag], Layers: [$layer]}]' >"$work/layout/manifest.json"
}

digest() { sha256sum "$1" | cut -d' ' -f1; }

# blob FILE: puts it among the blobs, and prints its digest.
blob() {
    local name
    name=$(digest "$1")
    cp "$1" "$work/layout/blobs/sha256/$name"
    echo "$name"
}

# descriptor DIGEST MEDIATYPE
descriptor() {
    jq -cn --arg digest "sha256:$1" --arg type "$2" --argjson size "$(stat -c %s "$work/layout/blobs/sha256/$1")" \
        '{mediaType: $type, digest: $digest, size: $size}'
}

# archive FOLDER FILE
archive() {
    tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" --mode='u=rwX,go=rX' -C "$1" -cf "$2" .
}

# check_layout FILE: every blob has its digest and its size, from the index down to the layer's files.
check_layout() {
    local image=$work/unpacked digest size type
    mkdir "$image"
    tar -xf "$1" -C "$image"
    local described
    described=$(jq -c '.manifests[]' "$image/index.json")
    described+=$'\n'$(jq -c '.config, .layers[]' "$image/blobs/sha256/$(jq -r '.manifests[0].digest | ltrimstr("sha256:")' "$image/index.json")")
    while read -r digest size type; do
        local file=$image/blobs/sha256/${digest#sha256:}
        [[ sha256:$(digest "$file") == "$digest" && $(stat -c %s "$file") == "$size" ]] || die "the blob $digest ($type) is not what it should be"
    done < <(jq -r '"\(.digest) \(.size) \(.mediaType)"' <<<"$described")
    local layer diff
    layer=$image/blobs/sha256/$(jq -r '.layers[0].digest | ltrimstr("sha256:")' "$image/blobs/sha256/$(jq -r '.manifests[0].digest | ltrimstr("sha256:")' "$image/index.json")")
    diff=$(jq -r '.rootfs.diff_ids[0]' "$work/config")
    [[ sha256:$(gzip -dc "$layer" | sha256sum | cut -d' ' -f1) == "$diff" ]] || die "the layer does not have the digest in the configuration"
    if command -v skopeo >/dev/null; then
        skopeo inspect --config "oci-archive:$1" | jq -e --arg user "$USER_ID:$USER_ID" '.config.User == $user' >/dev/null || die "skopeo reads something else"
        skopeo inspect "docker-archive:$1" >/dev/null || die "skopeo does not read it as docker's"
        say "skopeo reads it, in both forms"
    fi
}

# Runs the program in the image's files, as the image's user, as far as that can be done without a container runtime.
run_image() {
    root=$work/root
    mkdir "$root"
    gzip -dc "$work/layer.gz" | tar -x --numeric-owner -C "$root"
    [[ ! $(find "$root" -name identity.key -o -name sessions.sqlite -o -name openings.safetensors) ]] || die "there is a secret in the image"
    mount -t proc proc "$root/proc"
    trap 'umount "$root/proc"; rm -rf "$work"' EXIT
    cp -r fixtures/gpt2-tiny fixtures/lora-es "$root/tmp/"
    inside --version >&2
    inside init --base-model /tmp/gpt2-tiny --lora /tmp/lora-es --state /var/lib/zklora/state >/dev/null
    inside serve --config /etc/zklora/contributor.toml --open --check-config >"$work/checked" || { cat "$work/checked" >&2; die "the image's configuration is wrong"; }
    grep -qE '^listen +file +0\.0\.0\.0:30000$' "$work/checked" || die "it does not listen where clients can reach it"
    chroot --userspec="$USER_ID:$USER_ID" "$root" timeout --preserve-status 30 /usr/bin/zklora-contributor \
        serve --config /etc/zklora/contributor.toml --open >"$work/address" 2>"$work/log" &
    local pid=$! deadline=$((SECONDS + 25))
    until grep -qs '^zklora://' "$work/address"; do
        ((SECONDS < deadline)) || { cat "$work/log" >&2; die "serve prints no address"; }
        sleep 0.1
    done
    say "$(head -n1 "$work/address")"
    inside status --config /etc/zklora/contributor.toml >&2
    kill "$pid"
    wait "$pid" || { cat "$work/log" >&2; die "serve does not stop when it is told to"; }
}

inside() { chroot --userspec="$USER_ID:$USER_ID" "$root" /usr/bin/zklora-contributor "$@"; }

main "$@"
