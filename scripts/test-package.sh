#!/usr/bin/env bash
# Installs the contributor's package into a bare Debian, runs it there and removes it again:
#
#     scripts/test-package.sh [FILE.deb]
#     scripts/test-package.sh --systemd [FILE.deb CLIENT.deb]
#
# With --systemd, systemd is booted in it, in a container, and runs the service as the unit says, for a client from the package of
# zklora-base-user. Without files, scripts/package.sh makes them. The Debian is a folder, of the release of this machine, made by
# debootstrap from the first repository among apt's sources here. Nothing outside of it is changed. Needs root and Debian's
# package debootstrap, and systemd-container for --systemd. .ci/run does not run it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

die() { printf 'test-package: %s\n' "$*" >&2; exit 1; }
step() { printf '\n== %s\n' "$*"; }

main() {
    local with_systemd=''
    [[ ${1:-} != --systemd ]] || { with_systemd=yes; shift; }
    ((EUID == 0)) || die "needs root, for chroot"
    # In a mount namespace of its own, so that no mount outlives this.
    [[ ${ZKLORA_UNSHARED:-} ]] || ZKLORA_UNSHARED=yes exec unshare --mount "$0" ${with_systemd:+--systemd} "$@"
    command -v debootstrap >/dev/null || die "needs debootstrap"
    local programs=(zklora-contributor ${with_systemd:+zklora-base-user}) debs=("$@") deb
    (($#)) || mapfile -t debs < <(scripts/package.sh "${programs[@]}")
    ((${#debs[@]} == ${#programs[@]})) || die "expected a package for each of: ${programs[*]}"
    for deb in "${debs[@]}"; do [[ -f $deb ]] || die "$deb: expected a package"; done

    work=$(mktemp -d)
    root=$work/root
    trap clean EXIT
    step "A bare Debian"
    bare_debian ${with_systemd:+systemd systemd-sysv dbus}

    step "Install"
    mkdir "$root/tmp/debs"
    cp "${debs[@]}" "$root/tmp/debs/"
    cp -r fixtures "$root/tmp/fixtures"
    inside sh -c 'apt-get install -y --no-install-recommends man-db zsh fish /tmp/debs/*.deb' >"$work/apt" 2>&1 ||
        { cat "$work/apt"; die "it does not install"; }
    inside dpkg -s zklora-contributor | grep -E '^(Status|Version|Depends|Installed-Size):'
    inside dpkg -L zklora-contributor | grep -vE '/libtorch-licenses/'

    step "Run"
    inside zklora-contributor --version
    inside zklora-contributor serve --help | head -n1
    inside man -w zklora-contributor zklora-contributor-serve 2>/dev/null || echo "(manual pages are left out by this machine's dpkg)"
    inside sh -c '! ldd /usr/bin/zklora-contributor /usr/lib/zklora-contributor/*.so* | grep "not found"' ||
        die "a library is missing"
    completions
    # As an operator would.
    inside zklora-contributor init --base-model /tmp/fixtures/gpt2-tiny --lora /tmp/fixtures/lora-es \
        --state /var/lib/zklora/state
    serve_for_a_moment
    [[ ! -e $root/etc/systemd/system/multi-user.target.wants/zklora-contributor.service ]] ||
        die "the service is enabled though nobody has enabled it"
    if [[ $with_systemd ]]; then run_service; fi

    step "Purge"
    inside rm -rf /var/lib/zklora /var/lib/private/zklora /etc/zklora/{identity.key,clients}
    inside apt-get purge -y "${programs[@]}" >/dev/null 2>&1
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
    # Where the memory that proving may take is a share of what is available.
    mount -t proc proc "$root/proc"
    cp /etc/resolv.conf "$root/etc/resolv.conf"
    echo "$release, $(du -smx "$root" | cut -f1) MB, $(inside dpkg-query -f '.\n' -W | wc -l) packages"
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

# Each shell that has completions for its own programs has them for ours.
completions() {
    # shellcheck disable=SC2016 # for zsh
    {
        inside bash -c '. /usr/share/bash-completion/completions/zklora-contributor && complete -p zklora-contributor'
        inside zsh -fc 'autoload -Uz compinit && compinit -uD && print "zsh: $_comps[zklora-contributor]" && autoload +X _zklora-contributor' |
            grep '_zklora-contributor$'
        inside fish -c 'complete -C "zklora-contributor sta"' | grep '^status'
    } || die "a shell does not complete"
}

serve_for_a_moment() {
    # Not through `inside`, whose shell the signal would reach instead.
    LC_ALL=C.UTF-8 chroot "$root" timeout --preserve-status 20 zklora-contributor serve --state /var/lib/zklora/state --listen 127.0.0.1:0 \
        --open --out-dir /var/lib/zklora/bundles >"$work/address" 2>"$work/log" &
    local pid=$! deadline=$((SECONDS + 15))
    until grep -qs '^zklora://' "$work/address"; do
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
    inside rm -rf /var/lib/zklora
    cat >"$dir/run" <<'TEST'
#!/bin/bash
# Runs in the container. What an operator does is as in docs/operations.md.
set -euo pipefail
cd /opt/zklora-test
trap 'code=$?; set +e; log; echo "exit $code" >result; systemctl poweroff' EXIT
exec >output 2>&1
umask 077

say() { printf '\n-- %s\n' "$*"; }
die() { echo "wrong: $*"; exit 1; }
log() { journalctl --no-pager -o cat -u zklora-contributor; }
show() { systemctl show -P "$1" zklora-contributor; }
# expect PROPERTY VALUE
expect() { [[ $(show "$1") == "$2" ]] || die "$1 is $(show "$1"), expected $2"; }
# until_true SECONDS COMMAND...
until_true() {
    local deadline=$((SECONDS + $1))
    until "${@:2}"; do
        ((SECONDS < deadline)) || die "not within $1 s: ${*:2}"
        sleep 0.2
    done
}
logged() { grep -qF "$1" <(log); }
fed_since() { (($(show WatchdogTimestampMonotonic) > $1)); }
restarted() { [[ $(show NRestarts) == 1 && $(show ActiveState) == active ]]; }

say "set up"
zklora-contributor init --base-model gpt2-tiny --lora lora-es --state /var/lib/zklora/state | tee summary
mv /var/lib/zklora/state/identity.key /etc/zklora/identity.key
zklora-base-user identity --identity client.key >key
zklora-base-user identity --identity other.key | sed 's/$/ another/' >/etc/zklora/clients
chmod 644 /etc/zklora/clients
sed -i 's/^#allow_file = /allow_file = /' /etc/zklora/contributor.toml
grep -E '^[^#]' /etc/zklora/contributor.toml
zklora-contributor serve --config /etc/zklora/contributor.toml --check-config --identity /etc/zklora/identity.key >checked ||
    { cat checked; die "the configuration"; }
# Nobody has a minute to see whether the watchdog bites.
mkdir -p /run/systemd/system/zklora-contributor.service.d
printf '[Service]\nWatchdogSec=5\n' >/run/systemd/system/zklora-contributor.service.d/test.conf
systemctl daemon-reload

say "start"
systemctl start zklora-contributor
expect Type notify
expect ActiveState active
expect SubState running
until_true 15 test -n "$(show StatusText)"
echo "READY, status: $(show StatusText)"
pid=$(show MainPID)
grep -E '^(Uid|CapEff|NoNewPrivs|Seccomp|CoreDumping):' "/proc/$pid/status"
stat -Lc '%a %U %n' /var/lib/private/zklora /var/lib/private/zklora/state /run/zklora/control.sock \
    /run/credentials/zklora-contributor.service/identity.key
! test -e /var/lib/zklora/state/identity.key
zklora-contributor status --config /etc/zklora/contributor.toml

say "a client that is not on the list, then is"
loss() {
    zklora-base-user loss --base-model gpt2-tiny --adapter "$(awk '/^adapter/ { print $2 }' summary)" \
        --contributor "$(awk '/^contributor/ { print "zklora://" $2 "@127.0.0.1:30000" }' summary)" \
        --text "El administrador debe comprobar la red." --identity client.key "$@"
}
if loss; then die "it is served"; fi
sed 's/$/ the client/' key >>/etc/zklora/clients
systemctl reload zklora-contributor
until_true 10 logged "told to reload: 2 clients are on the list"
expect MainPID "$pid"
loss --wait
ls -l /var/lib/zklora/bundles
compgen -G '/var/lib/zklora/bundles/*.pf' >/dev/null || die "no bundle"
zklora-contributor status --control /run/zklora/control.sock | grep -E '^(sessions|ended) '

say "watchdog"
started=$(show ExecMainStartTimestampMonotonic)
until_true 30 fed_since $((started + 15000000))
expect NRestarts 0
echo "fed for $((($(show WatchdogTimestampMonotonic) - started) / 1000000)) s, three times its 5 s or more"
kill -STOP "$pid"
until_true 60 restarted
echo "not fed, it is started again: $(show NRestarts) time"

say "stop"
zklora-contributor status --config /etc/zklora/contributor.toml >/dev/null
systemctl stop zklora-contributor
expect Result success
expect ExecMainStatus 0
code=0
zklora-contributor status --config /etc/zklora/contributor.toml || code=$?
[[ $code == 3 ]] || die "status exits with $code, expected 3"

say "again, with a second adapter"
# The next start has another user, perhaps, and the same state; and the unit as it is in the package.
rm -r /run/systemd/system/zklora-contributor.service.d
systemctl daemon-reload
systemctl start zklora-contributor
expect WatchdogUSec 1min
systemctl stop zklora-contributor
expect Result success
# Made by the service's own user: root's files in a state folder that is in use would be closed to it.
systemd-run --wait --pipe -p DynamicUser=yes -p User=zklora-contributor -p StateDirectory=zklora -p StateDirectoryMode=0700 \
    -p UMask=0077 -p BindReadOnlyPaths=/opt/zklora-test \
    zklora-contributor init --base-model /opt/zklora-test/gpt2-tiny --lora /opt/zklora-test/lora-es --state /var/lib/zklora/second
say "the log"
TEST
    chmod -R a+rX "$dir"
    chmod +x "$dir/run"
    cat >"$root/etc/systemd/system/zklora-test.service" <<'UNIT'
[Unit]
After=multi-user.target
[Service]
Type=oneshot
TimeoutStartSec=infinity
ExecStart=/opt/zklora-test/run
[Install]
WantedBy=default.target
UNIT
    inside systemctl enable zklora-test.service 2>/dev/null
    umount "$root/proc"
    timeout 900 systemd-nspawn --quiet -D "$root" --boot --register=no --keep-unit --console=pipe </dev/null \
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
