"""The card beside artefacts: a README.md that says what they are, what was measured, and how to run them.

A pure function of what it is given. The front matter is what Hugging Face's hub reads of a model card.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from pipeline.artefacts.kinds import ONNX, PT2
from pipeline.artefacts.metadata import ArtefactMetadata
from pipeline.artefacts.onnx_file import INPUT, OUTPUT
from pipeline.errors import ModelError

PATH = "README.md"
_MOST_NAMES = 50
_LIBRARIES = {ONNX: "onnx", PT2: "pytorch"}


@dataclass(frozen=True)
class CardFile:
    """One file of the card: its name, kind (``.onnx``, ...), bytes and sha256, and what it is in a few words."""

    name: str
    kind: str
    bytes: int
    sha256: str
    what: str = ""


@dataclass(frozen=True)
class Figure:
    """One measured number of one file: what it is, in which unit, over how many of what (``n`` "test examples").

    ``between``: the ends of its 95% interval; ``note``: what it depends on, the machine of a latency for one.
    """

    file: str
    what: str
    value: float
    unit: str
    n: int
    of: str
    between: tuple[float, float] | None = None
    note: str = ""


def card(
    metadata: ArtefactMetadata,
    files: Sequence[CardFile],
    figures: Sequence[Figure],
    *,
    name: str,
    trained_on: str,
    command: str,
    licence: str | None = None,
    robustness: str | None = None,
    caveats: Sequence[str] = (),
) -> str:
    """Markdown with front matter. ``command`` makes the files again; ``robustness`` says what was measured, if it was.

    Raises ModelError without files, for a figure of a file that is not there, or one without its n.
    """
    known = {file.name for file in files}
    if not files:
        raise ModelError("a card should have files; there are none")
    for figure in figures:
        if figure.file not in known or figure.n < 1:
            raise ModelError(f"a figure should be of a file of the card and say its n; found {figure}")
    sections = [
        [_front(files, licence)],
        [f"# {_line(name)}", "", _about(metadata)],
        ["## Files", "", *_files(files)],
        ["## Input and output", "", *_input(metadata)],
        ["## Figures", "", *_figures(figures)],
        ["## How to run it", "", *_running(metadata, files)],
        ["## Where it comes from", "", *_lineage(metadata, trained_on)],
        ["## Limits", "", *_limits(metadata, trained_on, robustness, caveats)],
        ["## How to make it again", "", *_code(command, "sh")],
    ]
    return "\n\n".join("\n".join(lines).strip() for lines in sections) + "\n"


def _front(files: Sequence[CardFile], licence: str | None) -> str:
    kinds = sorted({file.kind for file in files})
    front: dict[str, Any] = {"license": licence} if licence else {}
    if len(kinds) == 1 and kinds[0] in _LIBRARIES:
        front["library_name"] = _LIBRARIES[kinds[0]]
    front["tags"] = ["knowledge-distillation", "soft-labels", *(kind.removeprefix(".") for kind in kinds)]
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---"


def _about(metadata: ArtefactMetadata) -> str:
    what = "A causal language model" if metadata.discrete else "A classifier"
    taught = f"{what} trained from the soft labels of a teacher" if metadata.lineage.cache else what
    by = f" Made by {_line(metadata.made_by)}." if metadata.made_by else ""
    return f"{taught}, for {len(metadata.class_names):,} {'tokens' if metadata.discrete else 'classes'}.{by}"


def _files(files: Sequence[CardFile]) -> Iterator[str]:
    yield from ("| file | what it is | bytes | sha256 |", "|---|---|---:|---|")
    for file in files:
        yield f"| {_cell(file.name)} | {_cell(file.what)} | {file.bytes:,} | `{file.sha256}` |"


def _input(metadata: ArtefactMetadata) -> Iterator[str]:
    shape = ", ".join(("batch", *map(str, metadata.input_shape)))
    prepared = _line(metadata.preprocessing) if metadata.preprocessing else "not recorded"
    names = metadata.class_names
    listed = ", ".join(f"{i} {_line(n)}" for i, n in enumerate(names[:_MOST_NAMES]))
    if metadata.discrete:
        longest = metadata.input_shape[0]
        yield f"- Input: int64 tokens of shape (batch, length), at most {longest:,} in training. Text: {prepared}."
        yield f"- Output: float32 logits of the next token, of shape (batch, length, {len(names)})."
        yield f"- Tokens: {listed}{f', ... ({len(names):,} in all)' if len(names) > _MOST_NAMES else ''}."
        return
    yield f"- Input: float32 of shape ({shape}). Preprocessing: {prepared}."
    yield f"- Output: float32 logits of shape (batch, {len(names)}); a softmax makes probabilities of them."
    yield f"- Classes: {listed}{f', ... ({len(names):,} in all)' if len(names) > _MOST_NAMES else ''}."


def _figures(figures: Sequence[Figure]) -> Iterator[str]:
    if not figures:
        yield "Nothing was measured."
        return
    yield from ("| file | what | value | n | note |", "|---|---|---:|---:|---|")
    for figure in figures:
        value = f"{figure.value:,.4g} {figure.unit}".strip()
        if figure.between is not None:
            value += f" ({figure.between[0]:,.4g} to {figure.between[1]:,.4g})"
        n = f"{figure.n:,} {_cell(figure.of)}".strip()
        yield f"| {_cell(figure.file)} | {_cell(figure.what)} | {_cell(value)} | {n} | {_cell(figure.note)} |"
    if any(figure.between is not None for figure in figures):
        yield from ("", "In brackets: 95% intervals.")


def _running(metadata: ArtefactMetadata, files: Sequence[CardFile]) -> Iterator[str]:
    kind = "int64" if metadata.discrete else "float32"
    zeros = f"inputs = np.zeros({(1, *metadata.input_shape)}, dtype=np.{kind})  # yours, prepared as above"
    onnx = next((file for file in files if file.kind == ONNX), None)
    pt2 = next((file for file in files if file.kind == PT2), None)
    if onnx is not None:
        opened = f"session = onnxruntime.InferenceSession({_text(onnx.name)}, providers={['CPUExecutionProvider']})"
        lines = ["import numpy as np", "import onnxruntime", "", opened.replace("'", '"'), zeros]
        yield from _code("\n".join([*lines, f'logits = session.run(["{OUTPUT}"], {{"{INPUT}": inputs}})[0]']), "python")
    if pt2 is not None:
        yield from ("", "Loading a `.pt2` runs what it carries: compare its sha256 with the one above first.", "")
        lines = ["import numpy as np", "import torch", "", f"model = torch.export.load({_text(pt2.name)}).module()"]
        call = ["with torch.no_grad():", "    logits = model(torch.from_numpy(inputs)).numpy()"]
        yield from _code("\n".join([*lines, zeros, *call]), "python")
    if onnx is None and pt2 is None:
        yield f"With the runtime for {', '.join(sorted({file.kind for file in files}))} files."


def _lineage(metadata: ArtefactMetadata, trained_on: str) -> Iterator[str]:
    lineage = metadata.lineage
    teacher = ", ".join(f"{_line(k)} {_line(v)}" for k, v in sorted(lineage.teacher.items()) if v not in (None, {}))
    yield from ("| | |", "|---|---|")
    for what, value in (
        ("trained on", trained_on),
        ("soft labels", lineage.cache),
        ("teacher", teacher or None),
        ("run", lineage.run),
        ("options of the run", lineage.config),
        ("seed", lineage.seed),
    ):
        yield f"| {what} | {'not recorded' if value is None else _cell(value)} |"
    if metadata.steps:
        yield ""
    for number, step in enumerate(metadata.steps, 1):
        options = ", ".join(f"{_line(k)}={_line(v)}" for k, v in sorted(step.options.items()))
        yield f"{number}. {_line(step.what)}{f' ({options})' if options else ''}"


def _limits(
    metadata: ArtefactMetadata, trained_on: str, robustness: str | None, caveats: Sequence[str]
) -> Iterator[str]:
    names = "one of its tokens" if metadata.discrete else "one of its classes"
    yield f"- It knows what it was trained on ({_line(trained_on)}); elsewhere it still names {names}."
    told = _line(robustness) if robustness else "not measured: noise, blur and other inputs may lower every figure"
    yield f"- Robustness: {told}."
    if metadata.lineage.cache:
        yield "- A student repeats its teacher's mistakes and leanings."
    yield "- Latencies and energy, where given, hold for the machine they were measured on."
    yield from (f"- {_line(caveat)}" for caveat in caveats)


def _code(text: str, language: str) -> list[str]:
    fence = "```"
    while fence in text:
        fence += "`"
    return [f"{fence}{language}", text.strip("\n"), fence]


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _line(value: Any) -> str:
    """One line of text that starts no HTML and no code."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
    return " ".join(text.split()).replace("<", "&lt;").replace("`", "'")


def _cell(value: Any) -> str:
    return _line(value).replace("|", "\\|")
