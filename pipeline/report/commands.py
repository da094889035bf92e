"""The commands that make the numbers of the page, from the options that each stage recorded.

A stage's record holds all of its options; a line says those that differ from their defaults.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from pipeline.configuration import Config, command_line
from pipeline.evaluation.config import EvaluateConfig
from pipeline.report.reading import Cell, Findings
from pipeline.teacher import FitTeacherConfig
from pipeline.training import TrainConfig

_BY_THE_WAY = frozenset({"overwrite", "checkpoint_every"})
"""Options that decide neither the result nor its times."""


def line(name: str, kind: type[Config], options: Mapping[str, Any]) -> str:
    """``softlabels NAME`` with those of ``options`` that are not the default of ``kind``.

    >>> line("evaluate", EvaluateConfig, {"run": "runs/a b", "bins": 15, "correct_class": ["3"], "out": "e"})
    "softlabels evaluate --run 'runs/a b' --correct-class 3 --out e"
    """
    return command_line(name, kind, options, without=_BY_THE_WAY)


def train(cell: Cell) -> str:
    """The command of a cell's training; empty where its options were not recorded (--weights)."""
    config = cell.details.get("config")
    if not config:
        return ""
    place = {} if cell.run is None else {"out": _posix(cell.run)}
    return line("train", TrainConfig, {**config, **place})


def evaluate(cell: Cell) -> str:
    """The command of a cell's evaluation, as far as its options were recorded."""
    recorded = cell.details.get("command")
    if recorded:
        return str(recorded)
    details = cell.details
    options: dict[str, Any] = {
        "split": details.get("split"),
        "temperature": details.get("temperature"),
        "bins": len(details["reliability"]["counts"]),
        "correct_class": list((details.get("correction") or {}).get("classes", ())),
    }
    if details.get("config"):
        folder = cell.run or PurePath(str((details["config"] or {}).get("out") or f"runs/{details['run']}"))
        options["run"] = _posix(folder)
    else:
        options |= {"weights": str(details["run"]), "student": details["student"]}
    return line("evaluate", EvaluateConfig, {**options, "out": _posix(cell.folder or PurePath(cell.name))})


def train_run(folder: str, record: Mapping[str, Any]) -> str:
    """The command of a run that no evaluation on the page is of; empty where it was not recorded."""
    config = record.get("config")
    return line("train", TrainConfig, {**config, "out": folder}) if config else ""


def compress_all(compressed: Mapping[str, Any]) -> list[str]:
    """The command of each directory of compression."""
    return [str(text) for text in compressed.get("commands") or ()] or [compress(compressed)]


def compress(compressed: Mapping[str, Any]) -> str:
    """The command of the table of compression: as it recorded it, or the run that it chose."""
    if not compressed:
        return ""
    if compressed.get("commands"):
        return str(compressed["commands"][0])
    return str(
        compressed.get("command") or shlex.join(["softlabels", "compress", "--runs", f"runs/{compressed['run']}"])
    )


def teacher(findings: Findings) -> str:
    """The command of the teacher's training; empty where it was not recorded."""
    config = findings.teacher.get("config")
    return line("fit-teacher", FitTeacherConfig, config) if config else ""


def dump(findings: Findings) -> str:
    """The command that the cache records of itself; empty where it does not."""
    return str(findings.dump.get("command") or "")


def compare(first: Cell, second: Cell) -> str:
    """The command that holds one evaluation against another."""
    places = [_posix(cell.folder or PurePath(cell.name)) for cell in (first, second)]
    return shlex.join(["softlabels", "compare", *places])


def claim(found: Mapping[str, Any]) -> str:
    """The command of one claim, from what it recorded."""
    words = ["softlabels", "compare", str(found["first"]), str(found["second"]), "--metric", str(found["metric"])]
    for name in ("expect", "margin", "claim", "source"):
        if found.get(name):
            words += [f"--{name}", f"{found[name]:g}" if isinstance(found[name], float) else str(found[name])]
    return shlex.join(words)


def _posix(path: PurePath) -> str:
    return path.as_posix()
