#!/usr/bin/env bash
# The whole story on this machine: a contributor serves the Spanish adapter, a base-model user computes the loss of a
# Spanish text with it, the contributor proves every delta, and a verifier that trusts neither checks the bundle.
# Gets libtorch and builds, then leaves everything in demo-out/. Needs a Rust toolchain, gcc and Python with pip.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

TEXT=${1:-$(sed -n 4p fixtures/text/es-heldout.txt)}
OUT=demo-out

LIBTORCH=$(scripts/setup-libtorch.sh)
export LIBTORCH
cargo build --release --bins
bin=target/release

rm -rf "$OUT"
mkdir -p "$OUT"

echo "== The contributor commits to its adapter"
$bin/zklora-contributor init --base-model fixtures/gpt2-tiny --lora fixtures/lora-es --state $OUT/a-state |
    tee $OUT/init.txt
adapter=$(awk '$1 == "adapter" { print $2 }' $OUT/init.txt)
contributor=$(awk '$1 == "contributor" { print $2 }' $OUT/init.txt)

echo
echo "== The base-model user has a key, and gives it to the contributor"
client=$($bin/zklora-base-user identity --identity $OUT/b.key)
echo "$client"

echo
echo "== The contributor serves whoever has it"
$bin/zklora-contributor serve --state $OUT/a-state --listen 127.0.0.1:0 --out-dir $OUT/a-out --allow "$client" \
    >$OUT/address.txt 2>$OUT/contributor.log &
server=$!
trap 'kill $server 2>/dev/null || true' EXIT
for _ in $(seq 100); do
    [[ -s $OUT/address.txt ]] && break
    kill -0 $server 2>/dev/null || { cat $OUT/contributor.log; exit 1; }
    sleep 0.1
done
address=$(head -n 1 $OUT/address.txt)
echo "$address"

echo
echo "== The base-model user computes the loss of: ${TEXT:0:100}..."
$bin/zklora-base-user loss --base-model fixtures/gpt2-tiny --contributor "$address" --adapter "$adapter" \
    --identity $OUT/b.key --sessions $OUT/b-sessions --wait --text "$TEXT" 2>$OUT/base-user.log

echo
echo "== It fetches the bundle, and opens the first call for somebody who is not to see the others"
$bin/zklora-base-user fetch --all --identity $OUT/b.key --sessions $OUT/b-sessions --out $OUT/b-bundles 2>>$OUT/base-user.log
$bin/zklora-base-user open $OUT/b-bundles/*.pf --call 0 --module transformer.h.0.attn.c_attn \
    --sessions $OUT/b-sessions --out $OUT/first.opening.json

echo
echo "== The contributor, stopped, has said"
kill -TERM $server
wait $server
trap - EXIT
grep -E 'proved|proving' $OUT/contributor.log

echo
echo "== The verifier, which trusts neither, checks the bundle"
$bin/zklora-verifier verify --proof-dir $OUT/b-bundles --adapter "$adapter" --contributor "$contributor" --verbose

echo
echo "== Whoever is shown the opening checks it without the bundle"
$bin/zklora-verifier opening $OUT/first.opening.json --adapter "$adapter" --contributor "$contributor"
