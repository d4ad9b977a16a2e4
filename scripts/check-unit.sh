#!/usr/bin/env bash
# Checks the systemd unit without a running systemd: that it is valid, and that what it is still allowed to do scores below 2.0
# (systemd-analyze security: 0 is nothing, 10 everything). Prints the score. Needs Debian's package systemd.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly UNIT=dist/systemd/zklora-contributor.service
readonly THRESHOLD=20 # tenths

die() { printf 'check-unit: %s\n' "$*" >&2; exit 1; }

command -v systemd-analyze >/dev/null || die "needs systemd-analyze: install the package systemd"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The unit's program is not installed where packages are made, so it is put into a root of its own, with a stand-in.
mkdir -p "$work/etc/systemd/system" "$work/usr/bin" "$work/bin"
cp "$UNIT" "$work/etc/systemd/system/"
for program in usr/bin/zklora-contributor bin/kill; do
    printf '#!/bin/sh\n' >"$work/$program"
    chmod +x "$work/$program"
done
# The targets and sockets that every unit is ordered with.
mkdir -p "$work/usr/lib/systemd/system"
for unit in /lib/systemd/system/*.{target,slice,mount}; do cp -P "$unit" "$work/usr/lib/systemd/system/"; done
complaints=$(systemd-analyze verify --man=no --root="$work" zklora-contributor.service 2>&1) ||
    die "systemd-analyze verify: $complaints"
[[ -z $complaints ]] || die "systemd-analyze verify: $complaints"
echo "verify: clean"

systemd-analyze security --offline=true --threshold="$THRESHOLD" --no-pager "$UNIT" >"$work/security" ||
    { cat "$work/security"; die "expected an exposure below 2.0"; }
grep 'Overall exposure level' "$work/security"
