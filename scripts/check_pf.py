#!/usr/bin/env python3
"""Check a `.pf` bundle without plonky2: everything but the proofs.

Written from docs/format.md alone, so that the page and the verifier are held against each
other. It reads one bundle, checks its header, blob table, digests, signatures, plan and
transcript, and recomputes the challenges and the fold of every module. With `--against`
it compares them with what the verifier says:

    zklora-verifier verify --unpinned --json session.pf > verdict.json
    "$(scripts/setup-python.sh)" scripts/check_pf.py session.pf --against verdict.json

Exit code 0: all of this holds (and agrees). 1: it does not; the reason is on stderr.
What is left to a verifier: that the batches' circuits are not too large, and the proofs.

Needs Python 3.11 and the packages of scripts/requirements.txt; the other half is pf_format.py.
"""

import argparse
import functools
import json
import mmap
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from pf_format import (
    Call,
    Manifest,
    Module,
    P,
    Receipt,
    Refused,
    Transcript,
    check_plan,
    h,
    need,
    read_calls,
    read_folds,
    read_header,
    read_manifest,
    read_receipt,
)

E = tuple[int, int]
"""An element x0 + x1·φ of F[φ]/(φ² - 7)."""


# --- Challenges and fold ---


def mul(x: E, y: E) -> E:
    """A product in F[φ]/(φ² - 7)."""
    return (x[0] * y[0] + 7 * x[1] * y[1]) % P, (x[0] * y[1] + x[1] * y[0]) % P


def powers(x: E, count: int, start: E = (1, 0)) -> list[E]:
    """start·x^0, start·x^1, ...: `count` of them."""
    found = []
    for _ in range(count):
        found.append(start)
        start = mul(start, x)
    return found


def challenges(receipt: Receipt) -> tuple[E, E]:
    """α and β."""
    data = struct.pack("<IQ", 2, len(receipt.bytes)) + receipt.bytes + receipt.client_signature
    # The first of these 64 words are enough but once in 2^1900 times.
    words = struct.unpack("<64Q", h("zklora v2 fold challenge", data, 512))
    a0, a1, b0, b1 = [word for word in words if word < P][:4]
    return (a0, a1), (b0, b1)


LIMBS = 4
"""Integers are split into limbs of 16 bits, so that sums of products of limbs stay below 2^53.

A float64 holds these exactly, whatever the order of the additions; so BLAS multiplies them.
"""


def limbs_of_elements(elements: Sequence[E]) -> NDArray[np.float64]:
    """Both parts of each element in limbs, lowest first: (len, 2 * LIMBS)."""
    return np.array(elements, np.uint64).astype("<u8").view("<u2").astype(np.float64).reshape(-1, 2 * LIMBS)


class Folder:
    """Folds the rows of all modules, call by call."""

    CHUNK = 2**21
    """Entries that are converted to limbs at a time."""

    def __init__(self, modules: Sequence[Module], alpha: E, beta: E) -> None:
        self.next_power: list[E] = [(1, 0)] * len(modules)
        self.a = [np.zeros((2, module.d_in), object) for module in modules]
        self.s: list[E] = [(0, 0)] * len(modules)
        # In a call, modules mostly are at the same row; equal d_out is common.
        self.alphas = functools.lru_cache(4)(lambda start, count: powers(alpha, count + 1, start))
        self.betas = functools.lru_cache(16)(lambda count: limbs_of_elements(powers(beta, count)))

    def add(self, call: Call) -> None:
        """Fold the next call."""
        rows = len(call.activations)
        for module, width, values in call.deltas:
            *weights, self.next_power[module] = self.alphas(self.next_power[module], rows)
            # Below 2^16 times 2^15 in magnitude, for at most 2^17 rows.
            sums = limbs_of_elements(weights).T @ call.activations.astype(np.float64)
            for part in range(2):
                for limb in range(LIMBS):
                    exact = sums[part * LIMBS + limb].astype(np.int64).astype(object)
                    self.a[module][part] = (self.a[module][part] + (exact << (16 * limb))) % P
            s0, s1 = self.s[module]
            for weight, inner in zip(weights, self.inner(values, width)):
                t0, t1 = mul(weight, inner)
                s0, s1 = s0 + t0, s1 + t1
            self.s[module] = s0 % P, s1 % P

    def inner(self, values: NDArray[np.int64], width: int) -> Iterator[E]:
        """For each row y of the values, Σ_j β^j · y[j]."""
        betas = self.betas(values.shape[1])
        step = max(1, self.CHUNK // values.shape[1])
        for first in range(0, len(values), step):
            rows = values[first : first + step]
            total = np.zeros((len(rows), 2), object)
            for low in range((width + 1) // 2):
                # The highest limb has the sign; shifting has extended it.
                limb = rows >> (16 * low)
                if low + 1 < (width + 1) // 2:
                    limb = limb & 0xFFFF
                # Below 2^16 times 2^16 in magnitude, for at most 2^16 columns.
                sums = (limb.astype(np.float64) @ betas).astype(np.int64).astype(object)
                for part in range(2):
                    for high in range(LIMBS):
                        total[:, part] += sums[:, part * LIMBS + high] << (16 * (low + high))
            yield from ((x0 % P, x1 % P) for x0, x1 in total)

    def folded(self, module: int) -> list[E]:
        """The folded activations of a module."""
        return [(int(x0), int(x1)) for x0, x1 in self.a[module].T]


# --- The whole ---


def a_digest(a: Sequence[E]) -> str:
    """The digest of a module's folded activations, as `verify --json` prints it."""
    return h("zklora v1 folded activations", np.array(a, np.uint64).astype("<u8").tobytes()).hex()


def pair(x: E) -> list[str]:
    """An element as `verify --json` prints it."""
    return [str(part) for part in x]


def check(path: Path, seed: bytes | None) -> dict[str, Any]:
    """Check a bundle, and return what `verify --json` must say of it.

    With the seed of the commitments, which only the session's two parties have, these are checked, too.
    """
    with path.open("rb") as file:
        need(path.stat().st_size >= 8, "the file has fewer than 8 bytes")
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    header = read_header(data)
    blobs = header.blobs
    manifest = read_manifest(blobs[0], blobs[1])
    receipt = read_receipt(manifest, blobs[2], blobs[3], blobs[4])
    check_plan(header.batches, receipt.rows)
    need(len(header.batches) > 0, "the session has no rows, so that nothing is proved")
    alpha, beta = challenges(receipt)
    if header.redacted:
        need(seed is None, "a redacted bundle has no calls to hold the commitments against")
        folds = read_folds(blobs[5], blobs[6], manifest, receipt)
        need((folds.alpha, folds.beta) == (alpha, beta), "the client folded with other challenges than these")
        a, s = folds.a, folds.s
    else:
        folder = fold_transcript(blobs[5], blobs[6], manifest, receipt, (alpha, beta), seed)
        a, s = [folder.folded(index) for index in range(len(manifest.modules))], folder.s
    batch_of = {module: index for index, batch in enumerate(header.batches) for module in batch}
    modules = [
        {
            "name": module.name,
            "d_in": module.d_in,
            "rank": module.rank,
            "d_out": module.d_out,
            "rows": receipt.rows[index],
            "batch": batch_of.get(index),
            "ok": index in batch_of,
            "a_digest": a_digest(a[index]) if index in batch_of else None,
            "s": pair(s[index]) if index in batch_of else None,
        }
        for index, module in enumerate(manifest.modules)
    ]
    names = [[manifest.modules[module].name for module in batch] for batch in header.batches]
    return {
        "valid": True,
        "adapter": manifest.adapter,
        "contributor": manifest.contributor,
        "client": receipt.client,
        "base_model": manifest.base_model,
        "session": receipt.session,
        "redacted": header.redacted,
        "security": header.security,
        "alpha": pair(alpha),
        "beta": pair(beta),
        "calls": receipt.calls,
        "modules": modules,
        "batches": [{"modules": n, "proof_bytes": len(b)} for n, b in zip(names, header.proofs())],
    }


def fold_transcript(
    salt: memoryview, blob: memoryview, manifest: Manifest, receipt: Receipt, by: tuple[E, E], seed: bytes | None
) -> Folder:
    """Hash and fold all calls, and hold them against the receipt."""
    transcript, folder = Transcript(len(manifest.modules), salt, seed), Folder(manifest.modules, *by)
    for call in read_calls(blob, manifest.modules):
        transcript.add(call)
        folder.add(call)
    need(transcript.calls == receipt.calls, f"the transcript has {transcript.calls} calls, not {receipt.calls}")
    need(transcript.rows == receipt.rows, "the transcript's rows are not those of the receipt")
    need(transcript.digest() == receipt.transcript, "the transcript's digest is not that of the receipt")
    if seed is not None:
        need(blake3(b"transcript", key=seed).digest() == salt, "the salt of the transcript is another seed's")
        need(transcript.commitments() == receipt.commitments, "the receipt's commitments are not the calls' under this seed")
    return folder


def report_on(path: Path, against: str) -> Any:
    """The verifier's word on the bundle at `path`, out of the JSON document `against` (`-`: stdin)."""
    try:
        document = json.loads(sys.stdin.read() if against == "-" else Path(against).read_text("utf-8"))
        bundles = document["bundles"]
        named = [bundle for bundle in bundles if Path(bundle["path"]).resolve() == path.resolve()]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise Refused(f"{against}: expected what `zklora-verifier verify --json` prints: {error!r}") from error
    need(len(named) == 1, f"{against} has {len(named)} verdicts on {path}, expected 1")
    return named[0]


def differences(where: str, here: Any, there: Any) -> Iterator[str]:
    """Every place where `there` does not say what `here` says; it may say more."""
    if isinstance(here, dict) and isinstance(there, dict):
        for key, value in here.items():
            yield from differences(f"{where}.{key}" if where else key, value, there.get(key))
    elif isinstance(here, list) and isinstance(there, list) and len(here) == len(there):
        for index, (a, b) in enumerate(zip(here, there)):
            yield from differences(f"{where}[{index}]", a, b)
    elif here != there or type(here) is not type(there):
        yield f"{where}: computed here {here!r}, the verifier says {there!r}"


def seed_of(text: str) -> bytes:
    """A commitment seed as it is given on the command line."""
    seed = bytes.fromhex(text)
    if len(seed) != 32:
        raise ValueError
    return seed


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Check a .pf bundle, all but its proofs.")
    parser.add_argument("bundle", type=Path, help="the .pf file")
    parser.add_argument("--against", metavar="FILE", help="output of `zklora-verifier verify --json`; - is stdin")
    parser.add_argument("--seed", type=seed_of, metavar="HEX", help="commitment seed of the session, if you are a party to it")
    args = parser.parse_args()
    try:
        found = check(args.bundle, args.seed)
        if args.against is not None:
            wrong = list(differences("", found, report_on(args.bundle, args.against)))
            need(not wrong, "the verifier's verdict differs:\n  " + "\n  ".join(wrong))
    except (Refused, OSError) as error:
        print(f"{args.bundle}: REFUSED: {error}", file=sys.stderr)
        return 1
    agrees = "; not compared with a verifier" if args.against is None else "; the verifier agrees"
    rows = sum(module["rows"] for module in found["modules"])
    folds = ", whose folds are the client's word" if found["redacted"] else ""
    print(f"{args.bundle}: HOLDS but for the proofs, which are not checked here: {rows} rows{folds}{agrees}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
