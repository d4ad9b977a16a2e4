#!/usr/bin/env python3
"""Time transformers and peft on a CPU: what ZKLoRA's own figures are compared with.

This is a developers' tool, run by hand; `scripts/make_fixtures.py` says what to install.

    fxenv/bin/python scripts/bench_peft.py fixtures/gpt2-tiny fixtures/lora-es \\
        --text fixtures/text/es-heldout.txt --threads 2 --json

It measures, in tokens per second, for the base model alone (`base`), with the adapter as
peft applies it (`adapter`), and with the adapter merged into the weights (`merged`):

    evaluation   the mean loss of a text, one line after the other, each cut to the context
    generation   greedy decoding with a key-value cache, from the beginning of the text

Evaluation counts the tokens whose loss is known: all but the first of each line.
Generation counts the tokens made; the time of the prompt is not counted. Each is done
`--repeats` times after one that is not counted, and the fastest counts.

A model without a tokenizer, as the benchmark `inference` of zklora-base-user makes it, gets
random token ids, in `--lines` lines of `--line-tokens` tokens.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
SEED = 1


def load_base(folder: Path) -> torch.nn.Module:
    """The base model in float32, ready for inference."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def load_adapted(base: Path, adapter: Path) -> PeftModel:
    """The base model with an adapter, ready for inference."""
    return PeftModel.from_pretrained(load_base(base), adapter).eval()


def read_lines(arguments: argparse.Namespace) -> list[list[int]]:
    """The token ids to evaluate, each line cut to the context of the model."""
    config = AutoConfig.from_pretrained(arguments.base)
    context = config.max_position_embeddings
    if arguments.text and any((arguments.base / name).exists() for name in TOKENIZER_FILES):
        tokenizer = AutoTokenizer.from_pretrained(arguments.base)
        texts = arguments.text.read_text(encoding="utf-8").splitlines()
        lines = tokenizer(texts, verbose=False)["input_ids"]
    else:
        generator = torch.Generator().manual_seed(SEED)
        lines = torch.randint(
            config.vocab_size, (arguments.lines, arguments.line_tokens), generator=generator
        ).tolist()
    lines = [line[:context] for line in lines if len(line) > 1]
    if not lines:
        raise SystemExit("there is no line of at least two tokens")
    if arguments.prompt_tokens + arguments.new_tokens > context:
        raise SystemExit(f"prompt and new tokens exceed the model's context of {context} tokens")
    return lines


@torch.inference_mode()
def evaluate(model: torch.nn.Module, lines: list[list[int]]) -> float:
    """The mean loss per predicted token."""
    total = 0.0
    for line in lines:
        ids = torch.tensor([line])
        total += model(input_ids=ids, labels=ids).loss.item() * (len(line) - 1)
    return total / sum(len(line) - 1 for line in lines)


@torch.inference_mode()
def generate(model: torch.nn.Module, prompt: list[int], count: int) -> tuple[list[int], float]:
    """The tokens chosen greedily after `prompt`, and the seconds all but the first took.

    The first token is a result of the prompt's forward pass.
    """
    output = model(input_ids=torch.tensor([prompt]), use_cache=True)
    tokens = [int(output.logits[0, -1].argmax())]
    start = time.perf_counter()
    for _ in range(count):
        output = model(
            input_ids=torch.tensor([tokens[-1:]]),
            past_key_values=output.past_key_values,
            use_cache=True,
        )
        tokens.append(int(output.logits[0, -1].argmax()))
    return tokens, time.perf_counter() - start


def fastest(repeats: int, run: Callable[[], float]) -> float:
    """The least number of seconds that `run` gives, after one run that is not counted."""
    run()
    return min(run() for _ in range(repeats))


def measure(
    model: torch.nn.Module, lines: list[list[int]], arguments: argparse.Namespace
) -> dict[str, float]:
    """Loss and speed of one model."""
    loss = math.nan

    def timed_evaluation() -> float:
        nonlocal loss
        start = time.perf_counter()
        loss = evaluate(model, lines)
        return time.perf_counter() - start

    prompt = [token for line in lines for token in line][: arguments.prompt_tokens]
    predicted = sum(len(line) - 1 for line in lines)
    evaluation = fastest(arguments.repeats, timed_evaluation)
    generation = fastest(
        arguments.repeats, lambda: generate(model, prompt, arguments.new_tokens)[1]
    )
    return {
        "loss": loss,
        "evaluation_tokens_per_second": predicted / evaluation,
        "generation_tokens_per_second": arguments.new_tokens / generation,
    }


def parse_arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description="Time transformers and peft; see the docstring.")
    parser.add_argument("base", type=Path, help="folder of the base model")
    parser.add_argument("adapter", type=Path, help="folder of the adapter")
    parser.add_argument("--text", type=Path, help="text to evaluate, a text of its own a line")
    parser.add_argument("--lines", type=int, default=8, help="random lines without a text")
    parser.add_argument("--line-tokens", type=int, default=128, help="tokens of a random line")
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=64, help="tokens to generate")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    for name in ("lines", "prompt_tokens", "new_tokens", "repeats", "threads"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if arguments.line_tokens < 2:
        parser.error("--line-tokens must be at least 2")
    return arguments


def main() -> None:
    """Measure the three and print what was found."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    lines = read_lines(arguments)
    models = {
        "base": lambda: load_base(arguments.base),
        "adapter": lambda: load_adapted(arguments.base, arguments.adapter),
        "merged": lambda: load_adapted(arguments.base, arguments.adapter).merge_and_unload(),
    }
    results = {name: measure(load(), lines, arguments) for name, load in models.items()}
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "peft")}
    predicted = sum(len(line) - 1 for line in lines)
    if arguments.json:
        settings = {"threads": arguments.threads, "evaluated_tokens": predicted}
        settings |= {"prompt_tokens": arguments.prompt_tokens, "new_tokens": arguments.new_tokens}
        print(json.dumps({"versions": versions, **settings, "results": results}, indent=1))
        return
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    print(f"{predicted} tokens evaluated, {arguments.threads} threads; tokens per second:")
    for name, result in results.items():
        print(
            f"{name:8} loss {result['loss']:7.4f}"
            f"  evaluation {result['evaluation_tokens_per_second']:9.1f}"
            f"  generation {result['generation_tokens_per_second']:7.1f}"
        )


if __name__ == "__main__":
    main()
