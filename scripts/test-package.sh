#!/usr/bin/env bash
# Installs the contributor's package into a bare Debian, runs it there and removes it again:
#
#     scripts/test-package.sh [--systemd] [FILE.deb]
#
# Without a file, scripts/package.sh makes one. The Debian is a folder, of the release of this machine, made by debootstrap from the
# first repository among apt's sources here. Nothing outside of it is changed. With --systemd, systemd is booted in it, in a
# container, and runs the service as the unit says. Needs root and Debian's package debootstrap, and systemd-container for --systemd.
# .ci/run does not run it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

die() { printf 'test-package: %s\n' "$*" >&2; exit 1; }
step() { printf '\n== %s\n' "$*"; }

main() {
    local with_systemd='' deb
    [[ ${1:-} != --systemd ]] || { with_systemd=yes; shift; }
    ((EUID == 0)) || die "needs root, for chroot"
    # In a mount namespace of its own, so that no mount outlives this.
    [[ ${ZKLORA_UNSHARED:-} ]] || ZKLORA_UNSHARED=yes exec unshare --mount "$0" ${with_systemd:+--systemd} "$@"
    command -v debootstrap >/dev/null || die "needs debootstrap"
    deb=${1:-$(scripts/package.sh zklora-contributor | tail -n1)}
    [[ -f $deb ]] || die "$deb: expected a package"

    work=$(mktemp -d)
    root=$work/root
    trap clean EXIT
    step "A bare Debian"
    bare_debian ${with_systemd:+systemd systemd-sysv dbus}

    step "Install"
    cp "$deb" "$root/tmp/package.deb"
    cp -r fixtures "$root/tmp/fixtures"
    inside apt-get install -y --no-install-recommends man-db /tmp/package.deb >"$work/apt" 2>&1 ||
        { cat "$work/apt"; die "it does not install"; }
    inside dpkg -s zklora-contributor | grep -E '^(Status|Version|Depends|Installed-Size):'
    inside dpkg -L zklora-contributor | grep -vE '/libtorch-licenses/'

    step "Run"
    inside zklora-contributor --version
    inside zklora-contributor serve --help | head -n1
    inside man -w zklora-contributor zklora-contributor-serve 2>/dev/null || echo "(manual pages are left out by this machine's dpkg)"
    inside sh -c '! ldd /usr/bin/zklora-contributor /usr/lib/zklora-contributor/*.so* | grep "not found"' ||
        die "a library is missing"
    # As an operator would.
    inside zklora-contributor init --base-model /tmp/fixtures/gpt2-tiny --lora /tmp/fixtures/lora-es \
        --state /var/lib/zklora/state
    serve_for_a_moment
    [[ ! -e $root/etc/systemd/system/multi-user.target.wants/zklora-contributor.service ]] ||
        die "the service is enabled though nobody has enabled it"
    if [[ $with_systemd ]]; then run_service; fi

    step "Purge"
    inside rm -rf /var/lib/zklora /var/lib/private/zklora /etc/zklora/identity.key
    inside apt-get purge -y zklora-contributor >/dev/null 2>&1
    inside apt-get purge -y --autoremove man-db procps >/dev/null 2>&1
    local left
    left=$(find "$root" -xdev -iname '*zklora*' -not -path "$root/tmp/*" -not -path "$root/var/log/*" | sed "s|^$root||")
    [[ -z $left ]] || die "purging leaves: $left"
    echo "nothing is left"
}

# bare_debian [PACKAGE...]
bare_debian() {
    local release mirror
    release=$(release)
    mirror=$(repositories | head -n1)
    [[ $mirror ]] || die "apt has no source with packages of $release"
    debootstrap --variant=minbase ${1:+--include="$(IFS=,; echo "$*")"} "$release" "$root" "$mirror" \
        >"$work/debootstrap" 2>&1 || { tail -n 20 "$work/debootstrap"; die "debootstrap failed"; }
    # The dynamic loader asks /proc where a program is.
    mount -t proc proc "$root/proc"
    cp /etc/resolv.conf "$root/etc/resolv.conf"
    echo "$release, $(du -sm "$root" | cut -f1) MB, $(inside dpkg-query -f '.\n' -W | wc -l) packages"
}

# The code name of this machine's Debian.
release() { sed -n 's/^VERSION_CODENAME=//p' /etc/os-release; }

# Where this machine gets Debian's own release from.
repositories() {
    # shellcheck disable=SC2016 # for apt to fill in
    apt-get indextargets --format '$(SITE) $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
        awk -v release="$(release)" '$3 == release && $4 == "main" { print $2 }' | sort -u
}

inside() { DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 chroot "$root" "$@"; }

serve_for_a_moment() {
    # Not through `inside`, whose shell the signal would reach instead.
    LC_ALL=C.UTF-8 chroot "$root" timeout --preserve-status 20 zklora-contributor serve --state /var/lib/zklora/state --listen 127.0.0.1:0 \
        --out-dir /var/lib/zklora/bundles >"$work/address" 2>"$work/log" &
    local pid=$! deadline=$((SECONDS + 15))
    until grep -q '^zklora://' "$work/address"; do
        ((SECONDS < deadline)) || { cat "$work/log"; die "serve prints no address"; }
        sleep 0.1
    done
    cat "$work/address"
    kill "$pid"
    wait "$pid" || { cat "$work/log"; die "serve does not stop when it is told to"; }
    inside zklora-contributor exposure --state /var/lib/zklora/state | tail -n2
}

# The service as the unit has it, with a client whose session is proved, in a container with systemd. The container stops by itself.
run_service() {
    step "The service, under systemd"
    local dir=$root/opt/zklora-test
    mkdir -p "$dir"
    cp -r fixtures/gpt2-tiny fixtures/lora-es "$dir/"
    cargo build --release -p zklora-base-user --bin zklora-base-user
    cp "$(cargo metadata --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/release/zklora-base-user" "$dir/"
    inside rm -rf /var/lib/zklora
    cat >"$dir/run" <<'TEST'
#!/bin/bash
# Runs in the container. What an operator does is as in docs/operations.md.
set -euo pipefail
cd /opt/zklora-test
show() { systemctl show -P "$1" zklora-contributor; }
trap 'code=$?; journalctl --no-pager -o cat -u zklora-contributor; echo "exit $code" >result; systemctl poweroff' EXIT
exec >output 2>&1
umask 077

zklora-contributor init --base-model gpt2-tiny --lora lora-es --state /var/lib/zklora/state | tee summary
mv /var/lib/zklora/state/identity.key /etc/zklora/identity.key
systemctl start zklora-contributor
[[ $(show ActiveState) == active ]]
pid=$(show MainPID)
grep -E '^(Uid|CapEff|NoNewPrivs|Seccomp|CoreDumping):' "/proc/$pid/status"
stat -Lc '%a %U %n' /var/lib/private/zklora /var/lib/private/zklora/state /run/credentials/zklora-contributor.service/identity.key
! test -e /var/lib/zklora/state/identity.key

address=$(awk '/^contributor/ { print "zklora://" $2 "@127.0.0.1:30000" }' summary)
LD_LIBRARY_PATH=/usr/lib/zklora-contributor ./zklora-base-user loss --base-model gpt2-tiny --contributor "$address" \
    --adapter "$(awk '/^adapter/ { print $2 }' summary)" --text "El administrador debe comprobar la red." \
    --identity client.key --wait
ls -l /var/lib/zklora/bundles
systemctl stop zklora-contributor
[[ $(show Result) == success ]]

# The next start has another user, perhaps, and the same state.
systemctl start zklora-contributor
systemctl stop zklora-contributor
# A second adapter, made by the service's own user: root's files in a state folder that is in use would be closed to it.
systemd-run --wait --pipe -p DynamicUser=yes -p User=zklora-contributor -p StateDirectory=zklora -p StateDirectoryMode=0700 \
    -p UMask=0077 -p BindReadOnlyPaths=/opt/zklora-test \
    zklora-contributor init --base-model /opt/zklora-test/gpt2-tiny --lora /opt/zklora-test/lora-es --state /var/lib/zklora/second
TEST
    chmod -R a+rX "$dir"
    chmod +x "$dir/run"
    cat >"$root/etc/systemd/system/zklora-test.service" <<'UNIT'
[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/opt/zklora-test/run
[Install]
WantedBy=default.target
UNIT
    inside systemctl enable zklora-test.service 2>/dev/null
    umount "$root/proc"
    timeout 300 systemd-nspawn --quiet -D "$root" --boot --register=no --keep-unit --console=pipe </dev/null \
        >"$work/console" 2>&1 || true
    cat "$dir/output"
    [[ $(cat "$dir/result" 2>/dev/null) == "exit 0" ]] || { tail "$work/console"; die "the service does not work"; }
    mount -t proc proc "$root/proc"
    inside systemctl disable zklora-test.service 2>/dev/null
    rm -r "$dir" "$root/etc/systemd/system/zklora-test.service"
}

clean() {
    if mountpoint -q "$root/proc"; then umount "$root/proc"; fi
    # Only what is below it, never what is mounted there.
    rm -rf --one-file-system "$work"
}

main "$@"
