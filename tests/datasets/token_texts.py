"""Small texts and contracts for the tests of token datasets."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from pipeline.datasets import Tokens, load_dataset
from pipeline.tokenize import TokenizeConfig, run

WORDS = ("def", "return", "naïve", "日本", "the", "x = 1", "\n    ", "\t", "ß", "🙂", "sum", "(", ")", " ")


def write_texts(folder: Path, n: int = 24, seed: int = 0, longest: int = 120) -> Path:
    """``n`` documents of words in several scripts."""
    draw = random.Random(seed)
    folder.mkdir(parents=True)
    for number in range(n):
        text = " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, longest)))
        (folder / f"{number:03d}.txt").write_bytes(text.encode())
    return folder


def tokenized(out: Path, text: Path, **options: Any) -> Tokens:
    """The dataset of a contract made at ``out``."""
    given: dict[str, Any] = {"vocabulary": 300, "length": 16, "held_out": 0.4}
    if "tokenizer" in options:
        del given["vocabulary"]
    run(TokenizeConfig(text=(str(text),), out=out, **(given | options)))
    found = load_dataset(f"tokens:{out}")
    assert isinstance(found, Tokens)
    return found
