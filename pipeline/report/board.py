"""The numbers of the page as TensorBoard event files: a run per seed, a run per artefact or model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from pipeline.errors import ConfigError, some
from pipeline.evaluation.comparing import FIGURES, by_seed
from pipeline.identity import digest
from pipeline.references import optional
from pipeline.report.columns import columns_of
from pipeline.report.reading import Cell, Findings
from pipeline.workspace import Workspace

_CURVES = {"loss": "train/loss", "hard": "train/hard", "soft": "train/soft", "accuracy": "validation/accuracy",
           "nll": "validation/nll"}  # fmt: skip
"""What a run records of each epoch, and what it is called there."""

_EVENTS = ".tfevents."
Scalar = tuple[str, float, int]


def check_board(out: Path) -> None:
    """Raise MissingDependencyError without tensorboard, ConfigError when ``out`` holds anything but event files."""
    optional("tensorboard", "tensorboard", "report --tensorboard")
    if not out.is_dir():
        return
    odd = [p.relative_to(out).as_posix() for p in sorted(out.rglob("*")) if p.is_file() and _EVENTS not in p.name]
    if odd:
        raise ConfigError(
            f"--tensorboard {out} holds {some(odd)}, which is no event file, and it is replaced as a whole. Name "
            "another place"
        )


def write_board(findings: Findings, out: Path) -> int:
    """Write ``out``; returns how many scalars. Steps are epochs; the figures on the split stand at the last one.

    Times are left out (they are all 0): the same numbers give the same events. Raises as ``check_board``.
    """
    check_board(out)
    from torch.utils.tensorboard import SummaryWriter

    made: Any = SummaryWriter
    count = 0
    with Workspace(out, digest({"stage": "tensorboard", "out": str(out)})) as space:
        space.clear()
        for name, scalars in _runs(findings):
            with made(log_dir=str(space.path / name)) as writer:
                for tag, value, step in scalars:
                    writer.add_scalar(tag, value, step, walltime=0.0)
                    count += 1
        space.commit()
    return count


def _runs(findings: Findings) -> Iterator[tuple[str, list[Scalar]]]:
    for cell in findings.cells:
        for seed in sorted(int(seed) for seed in cell.details["seeds"]):
            yield f"{cell.name}/seed-{seed}", list(_seed(cell, seed))
    if not findings.cells:  # runs that are evaluated together, in a table of models
        for place, seeds in findings.histories.items():
            for seed, epochs in sorted(seeds.items()):
                yield f"{PurePath(place).name}/seed-{seed}", list(_epochs(epochs))
    for folder, table in (("compressed", findings.compressed), ("models", findings.models)):
        rows = [row for row in table.get("rows", []) if not row.get("skipped")]
        columns = columns_of(rows)
        for row in rows:
            found = [(f"artefact/{c.key.replace('.', '/')}", v, 0) for c in columns if (v := c.value(row)) is not None]
            yield f"{folder}/{row['name']}", found


def _seed(cell: Cell, seed: int) -> Iterator[Scalar]:
    epochs = cell.histories.get(seed, [])
    yield from _epochs(epochs)
    for key in FIGURES:
        value = by_seed(cell.details, key).get(seed)
        if value is not None:
            yield f"{cell.details['split']}/{key}", value, len(epochs)


def _epochs(epochs: Sequence[Mapping[str, Any]]) -> Iterator[Scalar]:
    for epoch in epochs:
        for key, tag in _CURVES.items():
            if isinstance(epoch.get(key), int | float):
                yield tag, float(epoch[key]), int(epoch["epoch"]) + 1
