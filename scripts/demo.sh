#!/usr/bin/env bash
# The whole story on this machine: a contributor serves the Spanish adapter, a base-model user computes the loss of a
# Spanish text with it, the contributor proves every delta, and a verifier that trusts neither checks the bundle.
# Then the text is replayed, the bundle is redacted for an auditor, and the adapter is delivered and checked.
# Gets libtorch and builds, then leaves everything in demo-out/. Needs a Rust toolchain, gcc and Python with pip.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

TEXT=${1:-$(sed -n 4p fixtures/text/es-heldout.txt)}
OUT=demo-out

LIBTORCH=$(scripts/setup-libtorch.sh)
export LIBTORCH
cargo build --release --workspace --bins
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
# The fixture's modules have 128 inputs: a quarter of them, the default, is less than a text and 16 random rows take.
$bin/zklora-contributor serve --state $OUT/a-state --listen 127.0.0.1:0 --out-dir $OUT/a-out --allow "$client" \
    --exposure-budget 0.5 \
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
    --identity $OUT/b.key --sessions $OUT/b-sessions --wait --blind --text "$TEXT" --json 2>$OUT/base-user.log |
    tee $OUT/loss.json

echo
echo "== It fetches the bundle, and discloses the first call to somebody who is not to see the others"
$bin/zklora-base-user fetch --all --identity $OUT/b.key --sessions $OUT/b-sessions --out $OUT/b-bundles 2>>$OUT/base-user.log
$bin/zklora-base-user disclose $OUT/b-bundles/*.pf --call 0 --module transformer.h.0.attn.c_attn \
    --sessions $OUT/b-sessions --out $OUT/first.disclosure.json

echo
echo "== The contributor, stopped, has said"
kill -TERM $server
wait $server
trap - EXIT
grep -E 'proved|proving' $OUT/contributor.log

echo
echo "== The verifier, which trusts neither, checks the bundle"
$bin/zklora-verifier verify --proof-dir $OUT/b-bundles --adapter "$adapter" --contributor "$contributor" --verbose \
    --html $OUT/report.html --evaluation $OUT/loss.json
echo "(the same as a page: $OUT/report.html)"

echo
echo "== Whoever is shown the disclosure checks it without the bundle"
$bin/zklora-verifier disclosure $OUT/first.disclosure.json --adapter "$adapter" --contributor "$contributor"

echo
echo "== Whoever has the base model and the text replays the session: the loss is this model's, with this adapter, on this text"
$bin/zklora-base-user audit $OUT/b-bundles/*.pf --base-model fixtures/gpt2-tiny --text "$TEXT" --adapter "$adapter" \
    --contributor "$contributor" --client "$client" --report $OUT/loss.json 2>>$OUT/base-user.log

echo
echo "== An auditor who shall not see the text gets a redacted bundle, and takes the base-model user's word for the folds"
$bin/zklora-base-user redact $OUT/b-bundles/*.pf --identity $OUT/b.key --sessions $OUT/b-sessions --out $OUT/redacted.pf \
    2>>$OUT/base-user.log
$bin/zklora-verifier verify $OUT/redacted.pf --redacted --client "$client" --adapter "$adapter" --contributor "$contributor"

echo
echo "== Paid, the contributor delivers the adapter, and the base-model user holds it against what was proved"
$bin/zklora-contributor deliver --state $OUT/a-state --adapter "$adapter" --to "$client" --out $OUT/adapter.zkd
$bin/zklora-base-user accept $OUT/adapter.zkd --adapter "$adapter" --contributor "$contributor" --bundle $OUT/b-bundles/*.pf \
    --identity $OUT/b.key --out $OUT/bought 2>>$OUT/base-user.log
$bin/zklora-base-user loss --base-model fixtures/gpt2-tiny --lora $OUT/bought --text "$TEXT" 2>>$OUT/base-user.log
