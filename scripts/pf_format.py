"""What docs/format.md says of a `.pf` bundle's bytes, in Python: everything but the fold and the proofs.

Used by check_pf.py.
"""

import json
import math
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from blake3 import blake3
from nacl.exceptions import CryptoError
from nacl.signing import VerifyKey
from numpy.typing import NDArray

P = 2**64 - 2**32 + 1
SECURITY = ("standard", "compact")
SIGNED = ("manifest", "manifest.signature", "receipt", "receipt.contributor", "receipt.client")
MIB = 2**20
SIGNED_MAX = (4 * MIB, 64, 1 * MIB, 64, 64)
FULL, REDACTED = "zklora-pf/2", "zklora-pf-redacted/2"
FIXED = {FULL: (*SIGNED, "transcript.salt", "transcript"), REDACTED: (*SIGNED, "folds", "folds.client")}
FIXED_MAX = {FULL: (*SIGNED_MAX, 32, 2**40), REDACTED: (*SIGNED_MAX, 2**40, 64)}
EXACT = (64, 32)
PROOF_MAX = 16 * MIB
U64_MAX = 2**64 - 1

Bytes = bytes | memoryview

class Refused(Exception):
    """The bundle is invalid; the text says why."""


def need(condition: bool, why: str) -> None:
    """Refuse the bundle unless the condition holds."""
    if not condition:
        raise Refused(why)


# --- Hashes, signatures and JSON ---


def h(context: str, data: Bytes, length: int = 32) -> bytes:
    """H(context; data) of the page."""
    return blake3(data, derive_key_context=context).digest(length=length)


def check_signature(what: str, key: str, context: str, message: Bytes, signature: Bytes) -> None:
    """Check an Ed25519 signature over H(context; message) as strictly as libsodium does.

    It refuses scalars that are not reduced, keys that are not canonical, and a key or R of
    small order, as the page asks; and it compares R as bytes.
    """
    try:
        VerifyKey(bytes.fromhex(key)).verify(h(context, message), bytes(signature))
    except (CryptoError, ValueError) as error:
        raise Refused(f"{what}: the signature is not one of {key}") from error


def parse_json(what: str, data: Bytes) -> Any:
    """Parse JSON, refusing repeated fields and what JSON does not have (NaN, other encodings)."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        need(len(fields) == len(pairs), f"{what}: a field is repeated")
        return fields

    def constant(name: str) -> None:
        raise Refused(f"{what}: {name} is no JSON")

    def integer(digits: str) -> int | float:
        # Minus zero is no integer: it would lose its sign.
        return -0.0 if digits == "-0" else int(digits)

    try:
        text = bytes(data).decode("utf-8")
        return json.loads(text, object_pairs_hook=unique, parse_constant=constant, parse_int=integer)
    except (ValueError, RecursionError) as error:
        raise Refused(f"{what}: no valid JSON: {error}") from error


def fields(what: str, value: Any, *names: str) -> dict[str, Any]:
    """Take an object with exactly these fields."""
    need(isinstance(value, dict), f"{what}: expected an object")
    need(set(value) == set(names), f"{what}: has the fields {sorted(value)}, expected {sorted(names)}")
    return value


def array(what: str, value: Any) -> list[Any]:
    """Take an array."""
    need(isinstance(value, list), f"{what}: expected an array")
    return value


def integer(what: str, value: Any, low: int, high: int) -> int:
    """Take an integer from `low` to `high`."""
    need(type(value) is int and low <= value <= high, f"{what}: is {value!r}, expected {low} to {high}")
    return value


def string(what: str, value: Any, *expected: str) -> str:
    """Take a string; one of those expected, if any are given."""
    need(isinstance(value, str), f"{what}: is {value!r}, expected a string")
    need(not expected or value in expected, f"{what}: is {value!r}, expected {' or '.join(expected)}")
    return value


def hex32(what: str, value: Any) -> str:
    """Take 32 bytes in hexadecimal, in lower case from here on."""
    text = string(what, value)
    need(re.fullmatch("[0-9a-fA-F]{64}", text) is not None, f"{what}: expected 64 hexadecimal digits")
    return text.lower()


# --- Header, manifest, receipt, plan ---


@dataclass
class Header:
    """What the header says, with the blobs it names cut out of the file."""

    redacted: bool
    security: str
    batches: list[list[int]]
    blobs: list[memoryview]

    def proofs(self) -> list[memoryview]:
        """The proofs."""
        return self.blobs[len(FIXED[FULL]) :]


@dataclass
class Module:
    """One module of the manifest."""

    name: str
    d_in: int
    rank: int
    d_out: int


@dataclass
class Manifest:
    """The signed manifest."""

    adapter: str
    contributor: str
    base_model: str
    modules: list[Module]


@dataclass
class Receipt:
    """The signed receipt."""

    bytes: memoryview
    client_signature: memoryview
    session: str
    client: str
    calls: int
    rows: list[int]
    transcript: str
    commitments: str


def read_header(file: memoryview) -> Header:
    """Check the file's layout and every blob's digest."""
    need(8 <= len(file) <= 2**40, f"the file has {len(file)} bytes, expected 8 to 2^40")
    (length,) = struct.unpack("<Q", file[:8])
    need(length <= min(4 * MIB, len(file) - 8), f"the header claims {length} bytes")
    raw, rest = file[8 : 8 + length], file[8 + length :]
    value = parse_json("header", raw)
    header = fields("header", value, "format", "plan", "blobs")
    layout = string("header: format", header["format"], FULL, REDACTED)
    plan = fields("plan", header["plan"], "security", "batches")
    security = string("plan: security", plan["security"], *SECURITY)
    batches = [
        [integer("plan: module index", module, 0, U64_MAX) for module in array("plan: batch", batch)]
        for batch in array("plan: batches", plan["batches"])
    ]
    names = [*FIXED[layout], *(f"proof.{i}" for i in range(len(batches)))]
    table = array("blobs", header["blobs"])
    need(len(table) == len(names), f"the table has {len(table)} blobs, expected {len(names)}")
    blobs, end, canonical_table = [], 0, []
    for index, (entry, name) in enumerate(zip(table, names)):
        entry = fields(f"blob {index}", entry, "name", "offset", "length", "digest")
        string(f"blob {index}: name", entry["name"], name)
        integer(f"{name}: offset", entry["offset"], end, end)
        most = FIXED_MAX[layout][index] if index < len(FIXED[layout]) else PROOF_MAX
        size = integer(f"{name}: length", entry["length"], most if most in EXACT else 0, most)
        need(end + size <= len(rest), f"{name}: ends beyond the end of the file")
        digest = hex32(f"{name}: digest", entry["digest"])
        blobs.append(rest[end : end + size])
        need(h("zklora v1 bundle blob", blobs[-1]).hex() == digest, f"{name}: does not have its digest")
        canonical_table.append({"name": name, "offset": end, "length": size, "digest": digest})
        end += size
    need(end == len(rest), f"the file has {len(rest) - end} bytes after its last blob")
    canonical = {
        "format": header["format"],
        "plan": {"security": security, "batches": batches},
        "blobs": canonical_table,
    }
    written = json.dumps(canonical, separators=(",", ":"), ensure_ascii=False).encode()
    need(written == raw, "the header is not in its canonical form")
    return Header(layout == REDACTED, security, batches, blobs)


def read_manifest(data: memoryview, signature: memoryview) -> Manifest:
    """Check the manifest and its signature."""
    names = ("format", "contributor", "base_model", "created", "weight_bits", "modules")
    value = fields("manifest", parse_json("manifest", data), *names)
    string("manifest: format", value["format"], "zklora-manifest/1")
    contributor = hex32("manifest: contributor", value["contributor"])
    base_model = hex32("manifest: base_model", value["base_model"])
    integer("manifest: created", value["created"], 0, U64_MAX)
    integer("manifest: weight_bits", value["weight_bits"], 12, 12)
    entries = array("manifest: modules", value["modules"])
    need(1 <= len(entries) <= 4096, f"the manifest has {len(entries)} modules, expected 1 to 4096")
    modules = [read_module(f"module {index}", entry) for index, entry in enumerate(entries)]
    need(len({module.name for module in modules}) == len(modules), "two modules have the same name")
    check_signature("manifest", contributor, "zklora v1 signature: manifest", data, signature)
    return Manifest(h("zklora v1 adapter id", data).hex(), contributor, base_model, modules)


def read_module(what: str, entry: Any) -> Module:
    """Check one module of the manifest."""
    entry = fields(what, entry, "name", "d_in", "rank", "d_out", "scale", "commitment")
    name = string(f"{what}: name", entry["name"])
    need(re.fullmatch("[!-~]{1,256}", name) is not None, f"{what}: its name is not printable")
    try:
        scale = float(entry["scale"]) if type(entry["scale"]) in (int, float) else math.nan
    except OverflowError:
        scale = math.inf
    need(math.isfinite(scale) and scale > 0, f"{what}: the scale is no finite number above 0")
    elements = struct.unpack("<4Q", bytes.fromhex(hex32(f"{what}: commitment", entry["commitment"])))
    need(max(elements) < P, f"{what}: an element of the commitment is not below p")
    return Module(
        name,
        integer(f"{what}: d_in", entry["d_in"], 1, 2**14),
        integer(f"{what}: rank", entry["rank"], 1, 2**8),
        integer(f"{what}: d_out", entry["d_out"], 1, 2**16),
    )


def read_receipt(manifest: Manifest, data: memoryview, contributor: memoryview, client: memoryview) -> Receipt:
    """Check the receipt, both signatures, and that it is about this manifest."""
    names = ("session", "adapter", "base_model", "contributor", "client", "transcript", "commitments")
    rest = ("format", "calls", "rows", "started", "finished")
    value = fields("receipt", parse_json("receipt", data), *names, *rest)
    string("receipt: format", value["format"], "zklora-receipt/1")
    ids = {name: hex32(f"receipt: {name}", value[name]) for name in names}
    calls = integer("receipt: calls", value["calls"], 0, 2**24)
    rows = [integer("receipt: rows", count, 0, 2**32) for count in array("receipt: rows", value["rows"])]
    started, finished = (integer(f"receipt: {name}", value[name], 0, U64_MAX) for name in ("started", "finished"))
    need(started <= finished, f"the receipt has {finished} as the session's end, which is before its start at {started}")
    context = "zklora v1 signature: receipt, "
    check_signature("receipt", ids["contributor"], context + "contributor", data, contributor)
    check_signature("receipt", ids["client"], context + "client", data, client)
    for name in ("adapter", "contributor", "base_model"):
        need(ids[name] == getattr(manifest, name), f"the receipt names another {name} than the manifest")
    need(len(rows) == len(manifest.modules), f"the receipt has rows of {len(rows)} modules")
    return Receipt(data, client, ids["session"], ids["client"], calls, rows, ids["transcript"], ids["commitments"])


def check_plan(batches: list[list[int]], rows: list[int]) -> None:
    """Check that the plan covers every module with rows exactly once, and no other."""
    need(all(batches), "the plan has an empty batch")
    planned = sorted(module for batch in batches for module in batch)
    called = [module for module, count in enumerate(rows) if count > 0]
    need(planned == called, f"the plan covers the modules {planned}, those with rows are {called}")


# --- Folds ---


@dataclass
class Folds:
    """What a client signed in place of the transcript: elements of E, those of a module without rows empty."""

    alpha: tuple[int, int]
    beta: tuple[int, int]
    a: list[list[tuple[int, int]]]
    s: list[tuple[int, int]]


def read_folds(blob: memoryview, signature: memoryview, manifest: Manifest, receipt: Receipt) -> Folds:
    """Check the folds of a redacted bundle and the client's signature."""
    counts = [module.d_in if rows else 0 for module, rows in zip(manifest.modules, receipt.rows)]
    size = 32 + sum(16 * (count + 1) for count in counts if count)
    need(len(blob) == size, f"the folds have {len(blob)} bytes, expected {size}")
    message = struct.pack("<Q", len(receipt.bytes)) + bytes(receipt.bytes) + bytes(blob)
    check_signature("folds", receipt.client, "zklora v1 signature: folds, client", message, signature)
    words = np.frombuffer(blob, "<u8")
    need(bool((words < np.uint64(P)).all()), "a fold has an element that is not below p")
    parts = iter(words.tolist())
    elements = iter(list(zip(parts, parts)))
    alpha, beta = next(elements), next(elements)
    a, s = [], []
    for count in counts:
        a.append([next(elements) for _ in range(count)])
        s.append(next(elements) if count else (0, 0))
    return Folds(alpha, beta, a, s)


# --- Transcript ---


@dataclass
class Call:
    """One call: X as (rows, d_in), and for each module its index, the width of its deltas and Y."""

    activations: NDArray[np.int64]
    deltas: list[tuple[int, int, NDArray[np.int64]]]


class Reader:
    """Reads a blob from its front."""

    def __init__(self, data: memoryview) -> None:
        self.data = data

    def take(self, count: int) -> memoryview:
        """The next `count` bytes."""
        need(count <= len(self.data), "the transcript ends too early")
        taken, self.data = self.data[:count], self.data[count:]
        return taken

    def number(self, size: int) -> int:
        """The next unsigned integer of `size` bytes."""
        return int.from_bytes(self.take(size), "little")

    def tensor(self, rows: int, columns: int, width: int) -> NDArray[np.int64]:
        """The next tensor of signed integers of `width` bytes."""
        compressed = self.take(self.number(8))
        entries = rows * columns
        stream = zlib.decompressobj()
        try:
            planes = stream.decompress(compressed, entries * width + 1)
        except zlib.error as error:
            raise Refused(f"a tensor does not decompress: {error}") from error
        whole = stream.eof and not stream.unused_data and len(planes) == entries * width
        need(whole, f"a tensor is not one zlib stream of {entries * width} bytes")
        values = np.zeros(entries, np.int64)
        for plane, octets in enumerate(np.frombuffer(planes, np.uint8).reshape(width, entries)):
            # The highest byte has the sign.
            signed = octets.view(np.int8) if plane == width - 1 else octets
            values |= signed.astype(np.int64) << (8 * plane)
        return values.reshape(rows, columns)


def read_calls(blob: memoryview, modules: Sequence[Module]) -> Iterator[Call]:
    """Read and check the transcript call by call."""
    reader = Reader(blob)
    calls = reader.number(8)
    need(calls <= 2**24, f"the transcript has {calls} calls, expected at most 2^24")
    for _ in range(calls):
        yield read_call(reader, modules)
    need(len(reader.data) == 0, "the transcript has bytes after its last call")


def read_call(reader: Reader, modules: Sequence[Module]) -> Call:
    """Read and check one call."""
    rows = integer("call: rows", reader.number(4), 1, 2**17)
    count = integer("call: number of modules", reader.number(4), 1, 64)
    indices = [integer("call: module", reader.number(4), 0, len(modules) - 1) for _ in range(count)]
    need(len(set(indices)) == count, "a call names a module twice")
    d_in = modules[indices[0]].d_in
    need(all(modules[m].d_in == d_in for m in indices), "a call's modules have different d_in")
    sizes = [rows * modules[m].d_out for m in indices]
    need(max(rows * d_in, *sizes) <= 2**26, "a tensor has more than 2^26 entries")
    need(sum(sizes) <= 2**27, "a call has more than 2^27 deltas")
    activations = reader.tensor(rows, d_in, 2)
    need(activations.min() > -(2**15), "an activation is -2^15")
    deltas = []
    for module in indices:
        width = integer("call: width of deltas", reader.number(1), 1, 8)
        values = reader.tensor(rows, modules[module].d_out, width)
        if width > 1:
            bound = 2 ** (8 * width - 9)
            fits = -bound <= int(values.min()) and int(values.max()) < bound
            need(not fits, f"deltas of {width} bytes each fit in fewer")
        deltas.append((module, width, values))
    return Call(activations, deltas)


class Transcript:
    """Hashes calls in order; and commits to them, if the seed of the commitments is known."""

    def __init__(self, modules: int, salt: Bytes, seed: bytes | None) -> None:
        self.hasher = blake3(bytes(salt), derive_key_context="zklora v1 transcript")
        self.calls = 0
        self.rows = [0] * modules
        self.seed = seed
        self.leaves: list[bytes] = []

    def add(self, call: Call) -> None:
        """Hash the next call."""
        rows = len(call.activations)
        self.hasher.update(struct.pack("<QQ", self.calls, rows))
        x = h("zklora v1 activations", call.activations.astype("<i2").tobytes())
        self.hasher.update(x)
        self.hasher.update(struct.pack("<Q", len(call.deltas)))
        for module, _, values in call.deltas:
            y = h("zklora v1 deltas", values.astype("<i8").tobytes())
            self.hasher.update(struct.pack("<Q", module) + y)
            self.rows[module] += rows
            if self.seed is not None:
                salt = blake3(b"call" + struct.pack("<QI", self.calls, module), key=self.seed).digest()
                place = struct.pack("<QIQ", self.calls, module, rows)
                self.leaves.append(h("zklora v1 call commitment", salt + place + x + y))
        self.calls += 1

    def digest(self) -> str:
        """The digest of all calls."""
        self.hasher.update(struct.pack("<Q", self.calls))
        return self.hasher.hexdigest()

    def commitments(self) -> str:
        """The digest of the tree over all leaves."""
        root = tree(self.leaves) if self.leaves else b""
        return h("zklora v1 commitments", struct.pack("<Q", len(self.leaves)) + root).hex()


def tree(nodes: list[bytes]) -> bytes:
    """The root above these leaves, by the definition of RFC 6962."""
    if len(nodes) == 1:
        return nodes[0]
    left = 1 << ((len(nodes) - 1).bit_length() - 1)
    return h("zklora v1 commitment node", tree(nodes[:left]) + tree(nodes[left:]))
