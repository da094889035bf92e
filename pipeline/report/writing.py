"""What the models write, side by side: the beginnings that an evaluation let every model continue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.report.reading import Findings
from pipeline.report.sizes import joined
from pipeline.report.words import split

DATA, TEACHER = "the text itself", "teacher"


@dataclass(frozen=True)
class Continued:
    """A text after a beginning; ``by``: the model that wrote it."""

    by: str
    text: str


@dataclass(frozen=True)
class Beginning:
    """The first tokens of a sequence, where it comes from, and how it goes on."""

    source: str
    text: str
    continued: tuple[Continued, ...]


@dataclass(frozen=True)
class Writing:
    """All samples of a page; ``notes`` says what is not there, and why."""

    beginnings: tuple[Beginning, ...]
    how: str
    notes: tuple[str, ...]


def writing(findings: Findings) -> Writing | None:
    """What the evaluation kept of it. None where it kept nothing: of other data, or of an earlier release."""
    kept: Mapping[str, Any] = findings.models.get("written") or {}
    notes = [f"{kept['note']}."] if kept.get("note") else []
    if not kept.get("prompts"):
        return Writing((), "", tuple(notes)) if notes else None
    teacher, beginnings = kept.get("teacher"), []
    for place, prompt in enumerate(kept["prompts"]):
        texts = [Continued(DATA, _shown(kept["text"][place]))]
        texts += [] if teacher is None else [Continued(TEACHER, _shown(teacher[place]))]
        texts += [Continued(name, _shown(found[place])) for name, found in kept["models"].items()]
        beginnings.append(Beginning(str(kept["ids"][place]), _shown(prompt), tuple(texts)))
    silent: dict[str, list[str]] = {}
    for name, why in (kept.get("left_out") or {}).items():
        silent.setdefault(str(why), []).append(str(name))
    notes += [f"Without samples: {joined(names)}; {why}." for why, names in silent.items()]
    how = (
        f"The first {kept['prompt_tokens']} tokens of {split(findings)} sequences, and {kept['tokens']} tokens more "
        f"by the first seed of every model: drawn at temperature {kept['temperature']:g} among the "
        f"{kept['top_k']} likeliest, with the same random numbers (seed {kept['seed']}) for all."
    )
    return Writing(tuple(beginnings), how, tuple(notes))


def _shown(text: str) -> str:
    """Text as a page can hold it: no control characters but the ends of lines and tabs."""
    return "".join(c if c in "\n\t" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
