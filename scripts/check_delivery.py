#!/usr/bin/env python3
"""Read a package as `docs/delivery.md` has it, with no code in common with the Rust crates.

    "$(scripts/setup-python.sh)" scripts/check_delivery.py PACKAGE --identity KEYFILE [--expect JSON]

The identity is a file as `zklora-base-user` keeps it: 64 hexadecimal digits. Checks
everything but the commitments, which need Poseidon, and prints digest, adapter and modules.
With --expect it compares with a file such as `fixtures/vectors/delivery/expected.json`,
which may also stand in for the identity.
"""

import argparse
import hashlib
import hmac
import json
import struct
import sys
from pathlib import Path

import blake3
import nacl.bindings as sodium
import nacl.exceptions
import nacl.signing

FORMAT = b"zklora-delivery/2\n"
CHUNK = 2**16
TAG = 16
BLOCK = 64
WEIGHTS = 40
KEM = b"KEM" + struct.pack(">H", 0x0020)
HPKE = b"HPKE" + struct.pack(">HHH", 0x0020, 0x0001, 0x0003)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--identity", type=Path)
    parser.add_argument("--expect", type=Path)
    arguments = parser.parse_args()
    expected = json.loads(arguments.expect.read_text()) if arguments.expect else {}
    secret = arguments.identity.read_text().strip() if arguments.identity else expected["recipient_secret"]
    try:
        found = read(arguments.package.read_bytes(), bytes.fromhex(secret))
    except (struct.error, nacl.exceptions.CryptoError) as error:
        refuse(f"{type(error).__name__}: {error}")
    for name, value in expected.items():
        if name != "recipient_secret" and found[name] != value:
            refuse(f"{name} is not the expected one")
    for name in "digest", "adapter", "recipient", "modules":
        print(f"{name:<9} {found[name]}")


def read(package, seed):
    """What the package says; exits if it says something that it may not."""
    body, signature = package[:-64], package[-64:]
    recipient, adapter, length = body[18:50], body[50:82], struct.unpack_from("<Q", body, 82)[0]
    check(body[:18] == FORMAT, "no package of this format")
    check(length <= 4 << 20, "the manifest is too long")
    text = body[90 : 90 + length]
    manifest = json.loads(text)
    contributor = nacl.signing.VerifyKey(bytes.fromhex(manifest["contributor"]))
    at = 90 + length
    contributor.verify(derive("zklora v1 signature: manifest", text), body[at : at + 64])
    check(derive("zklora v1 adapter id", text) == adapter, "the adapter id is not the manifest's")
    digest = derive("zklora v1 delivery", body)
    contributor.verify(derive("zklora v1 signature: delivery", digest), signature)

    public, secret = sodium.crypto_sign_seed_keypair(seed)
    check(public == recipient, "the package is for somebody else")
    x_secret = sodium.crypto_sign_ed25519_sk_to_curve25519(secret)
    x_public = sodium.crypto_sign_ed25519_pk_to_curve25519(public)
    encapsulated = body[at + 64 : at + 96]
    key, base_nonce = key_schedule(
        sodium.crypto_scalarmult(x_secret, encapsulated),
        encapsulated + x_public,
        b"zklora v1 delivery content" + recipient + adapter,
    )

    shapes = [(m["d_in"], m["rank"], m["d_out"]) for m in manifest["modules"]]
    total = sum(BLOCK * (1 + len(rows(*shape))) for shape in shapes)
    check(total <= 16 << 30, "the content is too long")
    at, content = at + 96, b""
    for sequence in range(-(-total // CHUNK)):
        size = min(CHUNK, total - len(content))
        last = len(content) + size == total
        nonce = (int.from_bytes(base_nonce) ^ sequence).to_bytes(12)
        content += sodium.crypto_aead_chacha20poly1305_ietf_decrypt(
            body[at : at + size + TAG], b"\1" if last else b"\0", nonce, key
        )
        at += size + TAG
    check(at == len(body), "there are more bytes than the manifest asks for")

    modules, at = [], 0
    for shape in shapes:
        places = rows(*shape)
        words = struct.unpack_from(f"<{8 * (1 + len(places))}Q", content, at)
        at += 8 * len(words)
        check(all(word < 2**60 for word in words), "a word is not below 2^60")
        weights = [(word >> 12 * i & 0xFFF) - 2**11 for word in words[8:] for i in range(5)]
        found = dict(zip((place for row in places for place in row), weights))
        found.pop(None, None)
        modules.append((words[:8], [found[key] for key in sorted(found)]))
    salt, weights = modules[0]
    count = shapes[0][0] * shapes[0][1]
    a, b = weights[:count], weights[count:]
    return {
        "recipient": recipient.hex(),
        "adapter": adapter.hex(),
        "digest": digest.hex(),
        "modules": len(modules),
        "salt": [str(word) for word in salt],
        "a": a,
        "b": b,
    }


def rows(d_in, rank, d_out):
    """The rows of a module: for each of 40 weights its place, ("A", i, k) or ("B", k, j), or None for padding."""
    # Few rows, and of equals the first.
    grid = min((8, 4, 2), key=lambda g: -(-rank // g) * -(-d_in // (WEIGHTS // g)))
    entries = WEIGHTS // grid
    of_a = [
        [
            ("A", first + w % entries, group + w // entries) if first + w % entries < d_in and group + w // entries < rank else None
            for w in range(WEIGHTS)
        ]
        for group in range(0, rank, grid)
        for first in range(0, d_in, entries)
    ]
    of_b = [
        [("B", k, first + w) if first + w < d_out else None for w in range(WEIGHTS)]
        for k in range(rank)
        for first in range(0, d_out, WEIGHTS)
    ]
    return of_a + of_b


def key_schedule(shared, kem_context, info):
    """Key and base nonce of RFC 9180's base mode."""
    eae = extract(KEM, b"", b"eae_prk", shared)
    secret = expand(KEM, eae, b"shared_secret", kem_context, 32)
    context = b"\0" + extract(HPKE, b"", b"psk_id_hash", b"") + extract(HPKE, b"", b"info_hash", info)
    prk = extract(HPKE, secret, b"secret", b"")
    return expand(HPKE, prk, b"key", context, 32), expand(HPKE, prk, b"base_nonce", context, 12)


def extract(suite, salt, label, material):
    return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + material, hashlib.sha256)


def expand(suite, prk, label, info, length):
    # One block of HKDF is enough for all that is asked for here.
    return hmac.digest(prk, struct.pack(">H", length) + b"HPKE-v1" + suite + label + info + b"\1", hashlib.sha256)[:length]


def derive(context, material):
    return blake3.blake3(material, derive_key_context=context).digest()


def check(condition, otherwise):
    if not condition:
        refuse(otherwise)


def refuse(why):
    sys.exit(f"check_delivery.py: {why}")


if __name__ == "__main__":
    main()
