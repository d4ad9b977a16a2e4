#!/usr/bin/env python3
"""The exact model of docs/exact-model.md once more, from that page alone, in numpy.

    check_exact.py BASE-MODEL PLAN TEXTS [--adapter INTEGERS]

TEXTS is a JSON file with a list of lists of tokens. INTEGERS is a safetensors file with, for each module NAME, int16 tensors
`NAME.a` (d_in x rank) and `NAME.b` (rank x d_out), and the manifest's scales as metadata. Prints a JSON list with each text's sum of
losses in units of 2^-25 octave, or null where a value leaves its range.

Products of matrices are computed in int64, which is slow and exact.
"""

import argparse
import json
import math
import struct
from decimal import ROUND_FLOOR, Decimal, localcontext
from pathlib import Path

import numpy as np

LOG2E = 1.4426950408889634
FAITHFUL = dict(q=22, k=19, v=20, cut=False, u=(15, 12, 16), tokens=512)
LONG = dict(q=25, k=25, v=20, cut=True, u=(20, 20, 16), tokens=2041)


class Refused(Exception):
    """A value left its range."""


def rnd(x, s):
    return x if s == 0 else (x + (1 << (s - 1))) >> s


def near(v):
    return np.floor(np.asarray(v, np.float64) + 0.5).astype(np.int64)


def signed(x, bits):
    if x.size and (x.min() < -(1 << (bits - 1)) or x.max() >= 1 << (bits - 1)):
        raise Refused
    return x


def read_safetensors(path):
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    kinds = {"F32": "<f4", "I16": "<i2", "F16": "<f2"}
    tensors = {
        name: np.frombuffer(data[8 + length :][slice(*t["data_offsets"])], kinds[t["dtype"]]).reshape(t["shape"])
        for name, t in header.items()
        if name != "__metadata__"
    }
    return tensors, header.get("__metadata__", {})


def exponentials(unit, step):
    """T and B, with 50 digits."""
    with localcontext() as context:
        context.prec = 50
        ln2 = Decimal(2).ln()

        def value(j):
            exponent = Decimal(unit) - Decimal(2 * j + 1) / 1024
            if exponent < -1:
                return 0
            return int(((exponent * ln2).exp() + Decimal("0.5")).to_integral_value(ROUND_FLOOR))

        last = (unit + 1) * 512 + 1
        e = np.zeros((1 << 16) + 1, np.int64)
        e[: last + 1] = [value(j) for j in range(-1, last)]
    return (e[1:] << step) + e[:-1] - e[1:], int(e[0]) - 1


def gelu():
    x = np.arange(-(1 << 15), 1 << 15) / 1024.0
    y = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return near(y * 2048)


class Exact:
    def __init__(self, folder, plan):
        config = json.loads((folder / "config.json").read_text())
        tensors, _ = read_safetensors(folder / "model.safetensors")
        self.tensors = {name.removeprefix("transformer."): t for name, t in tensors.items()}
        self.layers, self.heads = config["n_layer"], config["n_head"]
        self.epsilon = config.get("layer_norm_epsilon", 1e-5)
        self.f, self.hot = plan["residual_bits"], plan["hot"]
        self.formats = {"faithful": FAITHFUL, "long": LONG}[plan["profile"]]
        self.width = self.tensors["wte.weight"].shape[1]
        self.octaves = LOG2E / math.sqrt(self.width // self.heads)
        self.gelu = gelu()
        self.tables = {}
        self.cache = {}
        self.adapter, self.scales = {}, {}

    def get(self, name):
        return self.tensors[name].astype(np.float64)

    def table(self, unit, step):
        if (unit, step) not in self.tables:
            self.tables[unit, step] = exponentials(unit, step)
        return self.tables[unit, step]

    def behind(self, key, norm, weights, bias, factor, bits):
        if key not in self.cache:
            gain, shift = self.get(norm + ".weight"), self.get(norm + ".bias")
            integers = near(gain[:, None] * weights * factor * 2.0 ** (bits - 8))
            total = np.zeros(weights.shape[1])
            for i in range(len(weights)):
                total = total + shift[i] * weights[i]
            self.cache[key] = integers, near((bias + total) * factor * 2.0**bits)
        return self.cache[key]

    def norm(self, rows, bits):
        d = self.width
        mean = signed((rows.sum(1) + d // 2) // d, 16)
        centred = rows - mean[:, None]
        epsilon = max(1, math.floor(self.epsilon * 4.0**bits * d + 0.5))
        spread = [int(v) + epsilon for v in (centred.astype(object) ** 2).sum(1)]
        if max(spread) >= 1 << 48:
            raise Refused
        inverse = np.array([(math.isqrt((d << 50) // v) + 1) // 2 for v in spread], np.int64)
        if inverse.min() < 1 << 6 or inverse.max() >= 1 << 24:
            raise Refused
        return signed(rnd(centred * inverse[:, None], 16), 16)

    def delta(self, name, x, input_bits, part, bits, factor, rank_bits):
        if name not in self.scales:
            return 0
        a, b = (self.adapter[f"{name}.{which}"].astype(np.int64) for which in "ab")
        value = self.scales[name] * 2.0 ** (bits - input_bits) * factor
        k = 10 - (math.frexp(value)[1] - 1)
        m = math.floor(value * 2.0**k + 0.5)
        return signed(rnd((x @ a) * m, k), rank_bits) @ b[:, part]

    def shifts(self, scores, mask, g, table, budget, step):
        """C of each row, D, and the table's entries, none where the mask is off."""
        low = np.where(mask, scores, -(1 << 61))
        c = (low.max(-1) >> g) + 1
        done = np.zeros(c.shape, bool)
        # Bisection: the sum does not grow with C.
        least, most = c - 1, c + (1 << 16)
        for _ in range(40):
            if done.all():
                break
            middle = (least + most) >> 1
            at = ((middle[..., None] << g) - scores) >> g
            entries = np.where(mask & (at < len(table)), table[np.clip(at, 0, len(table) - 1)] >> step, 0)
            small = (entries.sum(-1) <= budget) & ~(mask & (at < 0)).any(-1)
            most, least = np.where(small, middle, most), np.where(small, least, middle)
            done = most - least == 1
        signed(most, 24)
        distances = (most[..., None] << g) - scores
        at = distances >> g
        if (mask & (at >= len(table))).any():
            raise Refused
        return most, distances, np.where(mask, table[np.clip(at, 0, len(table) - 1)], 0)

    def run(self, tokens):
        formats, d, n, f = self.formats, self.width, len(tokens), self.f
        if not 2 <= n <= min(formats["tokens"], len(self.tensors["wpe.weight"])):
            raise Refused
        embedded = near((self.get("wte.weight")[tokens] + self.get("wpe.weight")[:n]) * 2.0 ** (f + 6))
        h = rnd(embedded, 6)
        step = next(k for k, most in ((7, 82), (8, 232), (9, 499), (10, 1016), (11, 1 << 30)) if n <= most)
        table, budget = self.table(22 - step, step)
        causal = np.tril(np.ones((n, n), bool))[None]
        for layer in range(self.layers):
            at = f"h.{layer}."
            name = "transformer." + at
            x = self.norm(embedded, f + 6) if layer == 0 else self.norm(h, f)
            lora = near(self.get(at + "ln_1.weight") * 2.0**12) * x + near(self.get(at + "ln_1.bias") * 2.0**20)
            weights, bias = self.get(at + "attn.c_attn.weight"), self.get(at + "attn.c_attn.bias")
            parts = []
            for i, part in enumerate("qkv"):
                columns = slice(i * d, (i + 1) * d)
                factor = self.octaves if part == "q" else 1.0
                bits = formats[part]
                w, b = self.behind(at + part, at + "ln_1", weights[:, columns], bias[columns], factor, bits)
                y = x @ w + b + self.delta(name + "attn.c_attn", lora, 20, columns, bits, factor, formats["u"][i])
                if formats["cut"] and part != "v":
                    y = signed(rnd(y, 16), 16)
                parts.append(y.reshape(n, self.heads, -1).transpose(1, 0, 2))
            q, k, v = parts
            score_bits = formats["q"] + formats["k"] - (32 if formats["cut"] else 0)
            _, _, e = self.shifts(q @ k.transpose(0, 2, 1), causal, score_bits - 9, table, budget, step)
            o = signed(rnd(e @ v, 22 + formats["v"] - 10).transpose(1, 0, 2).reshape(n, d), 16)
            h = h + self.added(at, "attn.c_proj", "attention", o, 10, layer)
            x = self.norm(h, f)
            lora = near(self.get(at + "ln_2.weight") * 2.0**12) * x + near(self.get(at + "ln_2.bias") * 2.0**20)
            weights, bias = self.get(at + "mlp.c_fc.weight"), self.get(at + "mlp.c_fc.bias")
            w, b = self.behind(at + "fc", at + "ln_2", weights, bias, 1.0, 26)
            y = x @ w + b + self.delta(name + "mlp.c_fc", lora, 20, slice(None), 26, 1.0, 24)
            g = self.gelu[signed(rnd(y, 16), 16) + (1 << 15)]
            h = h + self.added(at, "mlp.c_proj", "mlp", g, 11, layer)
        x = self.norm(h[:-1], f)
        words = self.get("lm_head.weight" if "lm_head.weight" in self.tensors else "wte.weight").T
        w, b = self.behind("head", "ln_f", words, np.zeros(words.shape[1]), LOG2E, 25)
        table, budget = self.table(28, 20)
        _, distances, _ = self.shifts(x @ w + b, np.ones((1, 1), bool), 16, table, budget, 20)
        return int(distances[np.arange(n - 1), tokens[1:]].sum())

    def added(self, at, part, hot, x, input_bits, layer):
        bits = self.f + 16
        w = near(self.get(at + part + ".weight") * 2.0 ** (bits - input_bits))
        b = near(self.get(at + part + ".bias") * 2.0**bits)
        y = x @ w + b + self.delta("transformer." + at + part, x, input_bits, slice(None), bits, 1.0, 24)
        z = signed(rnd(y, 16), 24)
        ordinary = np.ones(self.width, bool)
        ordinary[self.hot[layer][hot]] = False
        signed(z[:, ordinary], 16)
        return z


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base_model", type=Path)
    parser.add_argument("plan", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--adapter", type=Path)
    args = parser.parse_args()
    model = Exact(args.base_model, json.loads(args.plan.read_text()))
    if args.adapter:
        model.adapter, scales = read_safetensors(args.adapter)
        model.scales = {name: float(scale) for name, scale in scales.items()}
    results = []
    for tokens in json.loads(args.texts.read_text()):
        try:
            results.append(model.run(tokens))
        except Refused:
            results.append(None)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
