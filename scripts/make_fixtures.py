#!/usr/bin/env python3
"""Make the model, the LoRA adapter and the expected outputs kept in `fixtures/`.

This is a developers' tool: the tests only read what it wrote, and nobody needs to run
it unless a fixture has to change. It runs on one CPU core, without a GPU, in about twenty
minutes, and needs Python 3.11 and Debian's `dpkg-deb`:

    python3.11 -m venv fxenv
    fxenv/bin/pip install numpy==2.4.6 torch==2.13.0 safetensors==0.8.0 \\
        tokenizers==0.23.3 transformers==5.23.0 peft==0.21.2
    fxenv/bin/python scripts/make_fixtures.py [--deb debian-handbook_11.20220922_all.deb]

Steps (`--steps`, all of them by default, each reading what the earlier ones wrote):

    text         fixtures/text/: the prose that no training step sees
    base         fixtures/gpt2-tiny/: tokenizer and GPT-2 model, trained on English
    adapter      fixtures/lora-es/: LoRA adapter of that model, trained on Spanish
    unsupported  fixtures/unsupported/: adapters that a plain LoRA reader must refuse
    goldens      fixtures/goldens.json: what transformers and peft compute
    llama        fixtures/llama-tiny/, fixtures/llama-tiny-tied/, fixtures/adapters/llama-*/
                 and fixtures/goldens-llama.json: random models, adapters and outputs
    kinds        fixtures/adapters/ and fixtures/goldens-kinds.json: adapters of the GPT-2
                 model, one for each thing a configuration may say, and outputs
    tokens       fixtures/goldens-tokenizers.json: what other settings of these models'
                 tokenizers make of a text

The text is "The Debian Administrator's Handbook" in English and Spanish, from the Debian
package `debian-handbook`; see fixtures/README.md for its authors and licence.
"""

import argparse
import functools
import math
import re
import subprocess
import tempfile
from dataclasses import dataclass
from html.parser import HTMLParser
from importlib import metadata
from pathlib import Path

import torch
from fixtures.common import (
    BASE_NAME,
    FIXTURES,
    PINNED,
    SEED,
    causal_loss,
    fresh_directory,
    module_samples,
    number,
    output_sample,
    save_adapter,
    write_goldens,
)
from fixtures.kinds import make_kinds
from fixtures.llama import make_llama
from fixtures.tokens import make_tokens
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Tokenizer,
    get_cosine_schedule_with_warmup,
)

STEPS = ("text", "base", "adapter", "unsupported", "goldens", "llama", "kinds", "tokens")

ADAPTER_NAME = "lora-es"

PACKAGE = "debian-handbook=11.20220922"
LOCALES = {"en": "en-US", "es": "es-ES"}
HELD_OUT_PAGES = ("sect.hotplug.html", "sect.user-space.html", "sect.why-debian.html")

END_OF_TEXT = "<|endoftext|>"
VOCAB_SIZE = 2048
CONTEXT = 256

LORA_TARGETS = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]

# Token counts aimed at when choosing held-out paragraphs for the golden texts.
GOLDEN_LENGTHS = {"short": 16, "medium": 64, "long": 200}
MODULES_TEXT = "es-medium"
GOLDEN_POSITIONS = 5
GOLDEN_LOGIT_STRIDE = 128
# Golden texts that are not from the book: very short ones, and one with characters that
# the byte-level tokenizer never met.
GOLDEN_EXTRAS = (
    {"name": "en-phrase", "language": "en", "text": "Debian is a free operating system."},
    {"name": "es-phrase", "language": "es", "text": "¿Qué es un núcleo?"},
    {"name": "en-bytes", "language": "en", "text": "Naïve façade: 日本語 and 🙂 — done."},
)


# ---------------------------------------------------------------------------- text


class ProseParser(HTMLParser):
    """Collects the prose paragraphs of a page of the handbook.

    Prose, in list items too, is in `<div class="para">`, which may hold further such
    elements. Listings, tables and definition lists within it are left out.
    """

    SKIPPED = frozenset({"pre", "table", "dl"})

    def __init__(self) -> None:
        super().__init__()
        self.paragraphs: list[str] = []
        self._open_divs: list[bool] = []  # whether each open div is a paragraph
        self._skipping = 0
        self._text: list[str] = []

    def _end_paragraph(self) -> None:
        """Keep the text gathered so far, with its white space normalised."""
        text = " ".join("".join(self._text).split())
        if text:
            self.paragraphs.append(text)
        self._text = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note where a paragraph or a skipped element starts."""
        if tag in self.SKIPPED:
            self._skipping += 1
        elif tag == "div":
            is_paragraph = dict(attrs).get("class") == "para"
            if is_paragraph:
                self._end_paragraph()
            self._open_divs.append(is_paragraph)

    def handle_endtag(self, tag: str) -> None:
        """Note where a paragraph or a skipped element ends."""
        if tag in self.SKIPPED:
            self._skipping -= 1
        elif tag == "div" and self._open_divs.pop():
            self._end_paragraph()

    def handle_data(self, data: str) -> None:
        """Gather text that is inside a paragraph and not skipped."""
        if any(self._open_divs) and not self._skipping:
            self._text.append(data)


@dataclass(frozen=True)
class Corpus:
    """The paragraphs of one language."""

    train: list[str]
    held_out: list[str]


def read_pages(directory: Path) -> dict[str, list[str]]:
    """The paragraphs of each HTML page in `directory`, by file name."""
    pages = {}
    for page in sorted(directory.glob("*.html")):
        parser = ProseParser()
        parser.feed(page.read_text(encoding="utf-8"))
        parser.close()
        pages[page.name] = parser.paragraphs
    return pages


def looks_english(text: str) -> bool:
    """Whether English function words outnumber Spanish ones."""
    words = re.findall(r"\w+", text.lower())
    english = sum(word in {"the", "and", "of", "is", "to"} for word in words)
    spanish = sum(word in {"el", "la", "los", "de", "que", "en", "y", "es"} for word in words)
    return english > spanish


def split(pages: dict[str, list[str]]) -> Corpus:
    """Split the paragraphs of a language by page into training and held-out text."""
    train, held_out = [], []
    for name, paragraphs in pages.items():
        (held_out if name in HELD_OUT_PAGES else train).extend(paragraphs)
    return Corpus(train, held_out)


def load_corpora(deb: Path | None) -> dict[str, Corpus]:
    """Read the English and Spanish text from the package, downloaded unless given.

    The Spanish edition keeps untranslated paragraphs in English; they are left out.
    """
    with tempfile.TemporaryDirectory() as scratch:
        if deb is None:
            subprocess.run(["apt-get", "download", PACKAGE], cwd=scratch, check=True)
            (deb,) = Path(scratch).glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", str(deb), scratch], check=True)
        html = Path(scratch, "usr/share/doc/debian-handbook/html")
        pages = {language: read_pages(html / locale) for language, locale in LOCALES.items()}
    english = {text for paragraphs in pages["en"].values() for text in paragraphs}
    pages["es"] = {
        name: [text for text in paragraphs if text not in english and not looks_english(text)]
        for name, paragraphs in pages["es"].items()
    }
    return {language: split(pages[language]) for language in LOCALES}


def held_out_path(language: str) -> Path:
    """Where the held-out text of a language is kept."""
    return FIXTURES / "text" / f"{language}-heldout.txt"


def make_text(corpora: dict[str, Corpus]) -> None:
    """Write the held-out text, one paragraph a line."""
    for language, corpus in corpora.items():
        path = held_out_path(language)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{text}\n" for text in corpus.held_out), encoding="utf-8")


def read_held_out(language: str) -> list[str]:
    """The held-out paragraphs that `make_text` wrote."""
    return held_out_path(language).read_text(encoding="utf-8").splitlines()


# ------------------------------------------------------------------------ training


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train."""

    steps: int
    learning_rate: float
    weight_decay: float
    batch: int = 16
    warmup: int = 50


BASE_SCHEDULE = Schedule(steps=1000, learning_rate=2e-3, weight_decay=0.1)
ADAPTER_SCHEDULE = Schedule(steps=300, learning_rate=4e-3, weight_decay=0.0)


def load_tokenizer() -> GPT2Tokenizer:
    """The tokenizer that `make_tokenizer` wrote."""
    return GPT2Tokenizer.from_pretrained(FIXTURES / BASE_NAME)


def load_base() -> GPT2LMHeadModel:
    """The model that `make_base` wrote, ready for inference."""
    return GPT2LMHeadModel.from_pretrained(FIXTURES / BASE_NAME, dtype=torch.float32).eval()


def tokenize(tokenizer: GPT2Tokenizer, texts: list[str]) -> list[list[int]]:
    """The token ids of each text, however long."""
    return tokenizer(texts, verbose=False)["input_ids"]


def token_stream(tokenizer: GPT2Tokenizer, paragraphs: list[str]) -> torch.Tensor:
    """One stream of token ids, with an end-of-text token after each paragraph."""
    stream: list[int] = []
    for ids in tokenize(tokenizer, paragraphs):
        stream.extend(ids)
        stream.append(tokenizer.eos_token_id)
    return torch.tensor(stream)


def train(model: torch.nn.Module, stream: torch.Tensor, schedule: Schedule) -> None:
    """Train the parameters that require gradients on random windows of `stream`."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters,
        lr=schedule.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=schedule.weight_decay,
    )
    scheduler = get_cosine_schedule_with_warmup(optimizer, schedule.warmup, schedule.steps)
    generator = torch.Generator().manual_seed(SEED)
    windows = stream.unfold(0, CONTEXT, 1)
    model.train()
    for step in range(schedule.steps):
        batch = windows[torch.randint(len(windows), (schedule.batch,), generator=generator)]
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        if step % 50 == 0 or step == schedule.steps - 1:
            print(f"  step {step}: loss {loss.item():.3f}", flush=True)
    model.eval()


def make_tokenizer(paragraphs: list[str]) -> GPT2Tokenizer:
    """Train a byte-level BPE tokenizer; write it as GPT-2's two files and as tokenizer.json."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        paragraphs, vocab_size=VOCAB_SIZE, special_tokens=[END_OF_TEXT], show_progress=False
    )
    directory = FIXTURES / BASE_NAME
    bpe.save_model(str(directory))
    tokenizer = GPT2Tokenizer.from_pretrained(directory, model_max_length=CONTEXT)
    tokenizer.save_pretrained(directory)
    return tokenizer


def make_base(corpora: dict[str, Corpus]) -> None:
    """Train the tokenizer on both languages and the model on English, and write both."""
    directory = fresh_directory(FIXTURES / BASE_NAME)
    tokenizer = make_tokenizer(corpora["en"].train + corpora["es"].train)
    torch.manual_seed(SEED)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=CONTEXT,
        n_embd=128,
        n_layer=3,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        summary_first_dropout=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = GPT2LMHeadModel(config)
    train(model, token_stream(tokenizer, corpora["en"].train), BASE_SCHEDULE)
    model.save_pretrained(directory)


def make_adapter(corpora: dict[str, Corpus]) -> None:
    """Train a LoRA adapter of the base model on Spanish and write it."""
    torch.manual_seed(SEED)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=8,
        lora_alpha=16,
        lora_dropout=0.0,
        target_modules=LORA_TARGETS,
        fan_in_fan_out=True,
        bias="none",
    )
    model = get_peft_model(load_base(), config)
    train(model, token_stream(load_tokenizer(), corpora["es"].train), ADAPTER_SCHEDULE)
    save_adapter(model, FIXTURES / ADAPTER_NAME)


def make_unsupported() -> None:
    """Write tiny untrained adapters, each with one feature that plain LoRA lacks."""
    features = {
        "dora": {"use_dora": True},
        "bias": {"bias": "lora_only"},
        "modules-to-save": {"modules_to_save": ["ln_f"]},
        "embedding": {"target_modules": ["wte"]},
        "trainable-tokens": {"trainable_token_indices": [0, 5]},
    }
    for name, feature in features.items():
        torch.manual_seed(SEED)
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=2,
            lora_alpha=4,
            fan_in_fan_out=True,
            init_lora_weights=False,
            **{"target_modules": ["h.0.attn.c_attn"], **feature},
        )
        save_adapter(get_peft_model(load_base(), config), FIXTURES / "unsupported" / name)


# ------------------------------------------------------------------------- goldens


def held_out_loss(model: torch.nn.Module, texts: list[list[int]]) -> float:
    """Mean loss per predicted token over texts, each on its own and cut to the context."""
    cut = [ids[:CONTEXT] for ids in texts if len(ids) > 1]
    total = math.fsum(causal_loss(model, ids) * (len(ids) - 1) for ids in cut)
    return total / sum(len(ids) - 1 for ids in cut)


def choose_texts(tokenizer: GPT2Tokenizer) -> list[dict[str, str]]:
    """Held-out paragraphs that are not pure ASCII, of about the wanted lengths."""
    chosen = []
    for language in LOCALES:
        paragraphs = [text for text in read_held_out(language) if not text.isascii()]
        lengths = [len(ids) for ids in tokenize(tokenizer, paragraphs)]
        for name, wanted in GOLDEN_LENGTHS.items():
            nearest = min(range(len(lengths)), key=lambda i: abs(lengths[i] - wanted))
            chosen.append(
                {
                    "name": f"{language}-{name}",
                    "language": language,
                    "text": paragraphs[nearest],
                }
            )
    return [*chosen, *GOLDEN_EXTRAS]


def make_goldens() -> None:
    """Write what transformers and peft compute, in float32, without and with the adapter."""
    tokenizer = load_tokenizer()
    base = load_base()
    adapted = PeftModel.from_pretrained(load_base(), FIXTURES / ADAPTER_NAME).eval()

    sample = functools.partial(
        output_sample, logit_stride=GOLDEN_LOGIT_STRIDE, count=GOLDEN_POSITIONS
    )

    texts = []
    for chosen in choose_texts(tokenizer):
        (ids,) = tokenize(tokenizer, [chosen["text"]])
        outputs = {"base": sample(base, ids), "adapter": sample(adapted, ids)}
        texts.append({**chosen, "token_ids": ids, **outputs})
    module_text = next(text for text in texts if text["name"] == MODULES_TEXT)

    held_out = {}
    for language in LOCALES:
        ids = tokenize(tokenizer, read_held_out(language))
        held_out[language] = {
            "base": number(held_out_loss(base, ids)),
            "adapter": number(held_out_loss(adapted, ids)),
        }
        print(f"  held-out {language}: {held_out[language]}")

    write_goldens(
        "goldens.json",
        {
            "held_out_loss": held_out,
            "logit_token_ids": list(range(0, len(tokenizer), GOLDEN_LOGIT_STRIDE)),
            "texts": texts,
            "modules": {
                "text": module_text["name"],
                "samples": module_samples(adapted, module_text["token_ids"]),
            },
        },
    )


# ---------------------------------------------------------------------------- main


def check_versions() -> None:
    """Refuse to run with other libraries than those pinned."""
    for package, wanted in PINNED.items():
        found = metadata.version(package)
        if found != wanted:
            raise SystemExit(f"{package} {found} is installed, but {wanted} is needed")


def main() -> None:
    """Run the steps asked for, in their order."""
    parser = argparse.ArgumentParser(description="Make the test fixtures; see the docstring.")
    parser.add_argument("--deb", type=Path, help=f"the package; else {PACKAGE} is downloaded")
    parser.add_argument(
        "--steps",
        nargs="+",
        choices=STEPS,
        default=STEPS,
        metavar="STEP",
        help=f"some of: {', '.join(STEPS)} (default: all)",
    )
    arguments = parser.parse_args()

    check_versions()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    corpora = functools.cache(lambda: load_corpora(arguments.deb))
    actions = {
        "text": lambda: make_text(corpora()),
        "base": lambda: make_base(corpora()),
        "adapter": lambda: make_adapter(corpora()),
        "unsupported": make_unsupported,
        "goldens": make_goldens,
        "llama": make_llama,
        "kinds": make_kinds,
        "tokens": make_tokens,
    }
    for step in STEPS:
        if step in arguments.steps:
            print(f"{step}:", flush=True)
            actions[step]()


if __name__ == "__main__":
    main()
