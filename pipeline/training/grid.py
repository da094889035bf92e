"""``--grid OPTION=VALUE,VALUE``: the cells of a sweep, each a run of train, checked together before any work."""

from __future__ import annotations

import dataclasses
import itertools
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.configuration import REQUIRED, option
from pipeline.errors import ConfigError, some
from pipeline.identity import digest
from pipeline.sources.panel import HEADS
from pipeline.training.config import TrainConfig
from pipeline.training.recipe import OUTCOME_FREE

LONGEST_KEY = 100
"""Characters of a cell's folder name; a longer one is cut, and a digest says which it was."""
_FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class Cell:
    """One point of the grid: ``options`` are what the grid says (option -> value), ``config`` the whole run."""

    key: str
    options: Mapping[str, Any]
    config: TrainConfig


@dataclass(frozen=True, kw_only=True)
class SweepConfig(TrainConfig):
    """Options of ``softlabels sweep``: those of train, which every cell has but where the grid says otherwise."""

    out: Path = option(REQUIRED, "directory of the sweep: a run for each cell, and sweep.json")
    grid: tuple[str, ...] = option(
        REQUIRED,
        "an option of train and its values; several make a cell for each combination",
        metavar="OPTION=A,B,...",
    )
    at_once: int = option(64, "most students that are trained together")

    def __post_init__(self) -> None:
        # What train makes of one --labels alone is for the cells: the grid may name a cache.
        super(TrainConfig, self).__post_init__()

    def problems(self) -> Iterator[str]:
        """Those of the grid, and those of all its cells: the options as given are a run in a cell only."""
        yield from self.below(at_once=1)
        try:
            points = grid_points(self.grid)
        except ConfigError as error:
            yield from error.problems
            return
        found: dict[str, list[str]] = {}
        for point in points:
            for problem in self._cell_problems(point):
                found.setdefault(problem, []).append(_said(point))
        for problem, cells in found.items():
            yield (
                problem
                if len(cells) == len(points)
                else f"{problem} (in {len(cells)} of {len(points)} cells: {some(cells, 3)})"
            )
        if not found:
            alike: dict[str, list[str]] = {}
            for cell in self.cells:
                alike.setdefault(digest(cell.config.as_dict() | {"out": ""}), []).append(_said(cell.options))
            for same in alike.values():
                if len(same) > 1:
                    yield f"--grid has the same cell {len(same)} times: {some(same, 3)}"

    def _cell_problems(self, point: Mapping[str, Any]) -> Iterator[str]:
        try:
            config = self.cell(point, self.out)
        except ConfigError as error:
            yield from error.problems
            return
        if config.keep != TrainConfig.keep or config.patience:
            yield "--keep best and --patience choose an epoch for each student; in a sweep all train to the last one"
        if config.hints:
            yield "--hints are learnt by one student at a time: use softlabels train"
        if config.exchanging or config.mix == HEADS:
            yield "--peers, --peer and --mix heads are of one student at a time: use softlabels train"

    def cell(self, point: Mapping[str, Any], out: Path) -> TrainConfig:
        """The run of one point of the grid, at ``out``."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(TrainConfig)}
        return TrainConfig(**(own | dict(point) | {"out": out}))

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """Every cell, in the order of the grid, the last option the fastest."""
        points = grid_points(self.grid)
        keys = _keys(points)
        return tuple(
            Cell(key, point, self.cell(point, self.out / key)) for key, point in zip(keys, points, strict=True)
        )


def grid_points(texts: Sequence[str]) -> list[dict[str, Any]]:
    """Every combination of the values of ``OPTION=VALUE,VALUE`` texts, as values of ``TrainConfig``.

    ``none`` stands for an option that is not given. An option that may be repeated has one value in a cell.

    >>> grid_points(["temperature=1,4", "loss=kl"])
    [{'temperature': 1.0, 'loss': 'kl'}, {'temperature': 4.0, 'loss': 'kl'}]

    Raises ConfigError with all that is wrong: no such option, one that decides no outcome, values that it cannot have.
    """
    axes: dict[str, list[Any]] = {}
    problems: list[str] = []
    hints = typing.get_type_hints(TrainConfig)
    for text in [texts] if isinstance(texts, str) else texts:
        name, sign, values = text.partition("=")
        name = name.strip().removeprefix("--").replace("-", "_")
        shown = name.replace("_", "-")
        if not sign or not values.strip():
            problems.append(f"--grid should be OPTION=VALUE,VALUE,...; found {text!r}")
        elif name not in hints:
            problems.append(f"--grid {shown}: train has no such option")
        elif name in OUTCOME_FREE:
            problems.append(f"--grid {shown}: it decides how a result is reached, not what it is; give it as an option")
        elif name in axes:
            problems.append(f"--grid {shown} is given twice: name all of its values in one")
        else:
            try:
                axes[name] = [_value(value.strip(), hints[name]) for value in values.split(",")]
            except ValueError as error:
                problems.append(f"--grid {shown}: {error}")
    if not axes and not problems:
        problems.append("--grid is missing: which option of train should have several values?")
    if problems:
        raise ConfigError(problems)
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _value(text: str, annotation: Any) -> Any:
    """A value of an option of this type. Raises ValueError for what it cannot hold."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        inner = [each for each in typing.get_args(annotation) if each is not type(None)]
        return None if text.lower() == "none" else _value(text, inner[0])
    if typing.get_origin(annotation) is tuple:
        return () if text.lower() == "none" else (_value(text, typing.get_args(annotation)[0]),)
    if annotation is bool:
        if text.lower() not in _FLAGS:
            raise ValueError(f"should be true or false; found {text!r}")
        return _FLAGS[text.lower()]
    if annotation in (int, float):
        try:
            return annotation(text)
        except ValueError:
            kind = "whole numbers" if annotation is int else "numbers"
            raise ValueError(f"should be {kind}; found {text!r}") from None
    return annotation(text)


def _said(point: Mapping[str, Any]) -> str:
    """A cell in words, and the name of its folder: ``temperature=4,loss=kl``."""
    return ",".join(f"{name.replace('_', '-')}={plain_value(value)}" for name, value in point.items())


def plain_value(value: Any) -> str:
    """A value as it is typed."""
    if isinstance(value, tuple):
        return "+".join(map(plain_value, value)) or "none"
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _keys(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """A folder name for each point: what may not be in one becomes a dash, and a digest tells apart what is alike."""
    said = [_said(point) for point in points]
    plain = [re.sub(r"[^A-Za-z0-9._+=,-]+", "-", text)[:LONGEST_KEY] for text in said]
    return [key if key == text else f"{key}-{digest(text)[:6]}" for key, text in zip(plain, said, strict=True)]
