"""The character that comes next in Python's own sources, as classes: ``python characters.py OUT`` writes an archive.

The sources of the standard library are a corpus that every machine has. They vary with the interpreter's version, and
results with them. An example is eight characters, one-hot; its class is the one after them. What comes next is seldom
certain, so that a teacher's answer is long-tailed, unlike its answers to digits.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

import numpy as np

CONTEXT = 8
EXAMPLES = {"train": 40_000, "validation": 5_000, "test": 15_000}
ALPHABET = "\n" + "".join(map(chr, range(32, 127)))


def sources() -> dict[str, str]:
    """The text of each module at the top of the standard library, by name, in the characters of ALPHABET alone."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    found = {path.name: path.read_text(encoding="utf-8", errors="ignore") for path in sorted(folder.glob("*.py"))}
    return {name: "".join(c for c in text if c in ALPHABET) for name, text in found.items()}


def make(out: Path, examples: Mapping[str, int] = EXAMPLES) -> None:
    """Positions drawn from files that no other split has: every sixth for validation, every sixth for test."""
    random = np.random.default_rng(0)
    texts = {name: text for name, text in sources().items() if len(text) > 1000}
    names = [str(name) for name in random.permutation(list(texts))]
    parts = {"validation": names[0::6], "test": names[1::6], "train": [n for k, n in enumerate(names) if k % 6 > 1]}
    x = np.zeros((sum(examples.values()), CONTEXT, len(ALPHABET)), np.uint8)
    y, ids, splits = [], [], []
    for split, count in examples.items():
        places = [(name, end) for name in parts[split] for end in range(CONTEXT, len(texts[name]))]
        for place in random.choice(len(places), count, replace=False):
            name, end = places[place]
            codes = [ALPHABET.index(c) for c in texts[name][end - CONTEXT : end + 1]]
            x[len(y), range(CONTEXT), codes[:-1]] = 255  # read as 1.0
            y.append(codes[-1])
            ids.append(f"{name}/{end}")
            splits.append(split)
    out.parent.mkdir(parents=True, exist_ok=True)
    classes = [repr(c) for c in ALPHABET]
    np.savez(out, x=x, y=np.array(y), ids=np.array(ids), split=np.array(splits), classes=np.array(classes))


if __name__ == "__main__":
    make(Path(sys.argv[1]))
