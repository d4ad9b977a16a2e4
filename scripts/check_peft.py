#!/usr/bin/env python3
"""Load a folder that `zklora-base-user accept` wrote with transformers and PEFT themselves.

A developers' tool, as `scripts/make_fixtures.py`, whose docstring says which packages it
needs. The tests hold such folders against what `crates/zklora-hf` asks of an adapter; this
asks PEFT:

    scripts/check_peft.py fixtures/gpt2-tiny bought [--text TEXT --loss LOSS] [--tolerance T]

1. PEFT loads it without a warning, on exactly the manifest's modules, with their ranks and
   scaling 1.
2. A is integers of 12 bits times a power of two, and B is what the manifest's scale makes of
   such integers, rounded to float32 once.
3. PEFT's delta of random integer activations is scale * X*A*B, computed in integers, but for
   float32's rounding.
4. Merged into the base model, it computes the same logits.
5. With --loss, the loss of the text is that of `zklora-base-user loss`.
"""

import argparse
import json
import math
import sys
import warnings
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, AutoTokenizer

ROWS = 7


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base_model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--text", default="El administrador debe comprobar la red.")
    parser.add_argument("--loss", type=float)
    parser.add_argument("--tolerance", type=float, default=1e-3)
    arguments = parser.parse_args()
    torch.manual_seed(1)

    manifest = json.loads((arguments.folder / "manifest.json").read_bytes())
    base = AutoModelForCausalLM.from_pretrained(arguments.base_model, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = PeftModel.from_pretrained(base, arguments.folder).eval()

    layers = {
        name.removeprefix("base_model.model."): layer
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }
    entries = {entry["name"]: entry for entry in manifest["modules"]}
    expect(layers.keys() == entries.keys(), f"modules {sorted(layers)} are not the manifest's")
    worst = max(check_layer(name, layer, entries[name]) for name, layer in layers.items())

    tokenizer = AutoTokenizer.from_pretrained(arguments.base_model)
    ids = tokenizer(arguments.text, return_tensors="pt").input_ids
    with torch.no_grad():
        said = model(input_ids=ids, labels=ids)
        merged = model.merge_and_unload()(input_ids=ids).logits
    difference = (merged - said.logits).abs().max().item()
    expect(difference < 1e-3, f"merged, logits differ by {difference}")
    loss = said.loss.item()
    if arguments.loss is not None:
        expect(abs(loss - arguments.loss) < arguments.tolerance, f"loss {loss}, expected {arguments.loss}")
    print(f"modules {len(layers)}, largest error of a delta {worst:.1e} of the largest delta,")
    print(f"merged logits differ by {difference:.1e}, loss {loss:.6f}", end="")
    print("" if arguments.loss is None else f", {abs(loss - arguments.loss):.1e} from the one given")


def check_layer(name, layer, entry):
    """The error of PEFT's delta, as a share of the largest delta."""
    a = layer.lora_A["default"].weight.detach().double()
    b = layer.lora_B["default"].weight.detach().double()
    expect(layer.scaling["default"] == 1.0, f"{name}: scaling {layer.scaling}")
    expect(tuple(a.shape) == (entry["rank"], entry["d_in"]), f"{name}: A is {tuple(a.shape)}")
    expect(tuple(b.shape) == (entry["d_out"], entry["rank"]), f"{name}: B is {tuple(b.shape)}")
    unit = 2.0 ** round(math.log2(entry["scale"]) / 2)
    a_integers, b_integers = a / unit, (b / (entry["scale"] / unit)).round()
    for which, integers in ("A", a_integers), ("B", b_integers):
        expect(bool((integers == integers.round()).all()), f"{name}: {which} is no integers")
        expect(integers.abs().max() < 2**11, f"{name}: {which} has more than 12 bits")
    expect(
        torch.equal((b_integers * (entry["scale"] / unit)).float().double(), b),
        f"{name}: B is not its integers times the scale, rounded once",
    )
    x = torch.randint(-(2**15) + 1, 2**15, (ROWS, entry["d_in"]))
    exact = (x @ a_integers.long().T @ b_integers.long().T).double() * entry["scale"]
    with torch.no_grad():
        found = layer.lora_B["default"](layer.lora_A["default"](x.float())).double()
    error = ((found - exact).abs().max() / exact.abs().max()).item()
    expect(error < 1e-5, f"{name}: PEFT's delta is off by {error} of the largest")
    return error


def expect(condition, otherwise):
    if not condition:
        sys.exit(f"check_peft.py: {otherwise}")


if __name__ == "__main__":
    main()
