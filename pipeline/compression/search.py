"""``--search``: many recipes within a budget of time, and which of them are worth having.

Plain enumeration. A recipe is a share of the channels to remove, fine-tuning from the cached soft labels, and int8 or
not; what several share is done once. First shares spread over the range, then halves of the gap between the largest
share that still is accurate enough and the smallest that is not: the interesting end. Choices are made on validation.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.compression.defaults import forms
from pipeline.compression.making import Maker
from pipeline.compression.recipe import BASELINE, Recipe
from pipeline.compression.steps import STATIC, Prune, Quantise, Step, fraction
from pipeline.compression.workshop import Workshop
from pipeline.configuration import command_line
from pipeline.evaluation.table import Row

FIRST = (0.5, 0.7, 0.3, 0.85)
NEAREST = 0.02
"""Shares closer than this to each other are not tried."""
DROP = 0.005
"""What may be lost on validation, unless said otherwise."""
ALIKE = 1.05
"""Latencies that differ by less than this factor count as equal."""
FOR_THE_TABLE = 0.1
"""The share of the budget that is kept for measuring."""


def steps_at(ratio: float, shop: Workshop) -> list[Step]:
    """The recipes at one share, as steps of one."""
    config = shop.config
    name = f"pruned-{round(100 * ratio)}"
    return forms(Prune(name=name, of=BASELINE, ratio=ratio, importance=config.importance), config)


def search(maker: Maker, started: float) -> None:
    """Take steps until the budget is used, or there is nothing left between what is good enough and what is not."""
    shop, config = maker.shop, maker.shop.config
    end = started + config.budget * (1 - FOR_THE_TABLE)
    allowed = DROP if config.max_drop is None else fraction(config.max_drop, "--max-drop")
    if config.int8:
        maker.take(Quantise(name="int8", of=BASELINE, method=STATIC))
    least = _accuracy(maker, BASELINE) - allowed
    good: dict[float, bool] = {}
    longest = 0.0
    for ratio in _ratios(good):
        if time.monotonic() + longest > end:
            shop.progress.log(f"the budget of {config.budget:g} s is used; {len(good)} shares were tried")
            break
        before = time.monotonic()
        steps = steps_at(ratio, shop)
        for step in steps:
            maker.take(step)
        longest = max(longest, time.monotonic() - before)
        found = max((_accuracy(maker, step.name) for step in steps), default=0.0)
        good[ratio] = found >= least
        verdict = "good enough" if good[ratio] else "not good enough"
        shop.progress.log(f"{ratio:.0%} removed: {found:.2%} on validation at best, {verdict} (from {least:.2%} on)")


def _ratios(good: dict[float, bool]) -> Iterator[float]:
    """The next share to try, given which were ``good``."""
    yield from FIRST
    while True:
        low = max((ratio for ratio, fine in good.items() if fine), default=0.0)
        high = min((ratio for ratio, fine in good.items() if not fine and ratio > low), default=0.97)
        middle = round((low + high) / 2, 2)
        if min(middle - low, high - middle) < NEAREST or middle in good:
            return
        yield middle


def _accuracy(maker: Maker, name: str) -> float:
    candidate = maker.candidates.get(name)
    if candidate is None:
        return 0.0
    return maker.shop.validation_accuracy(next(iter(candidate.predictors.values())))


@dataclass(frozen=True)
class Point:
    """One recipe: ``accuracy`` on test, by which nothing was chosen, and on validation; ``ms`` at the largest batch."""

    name: str
    accuracy: float
    validation_accuracy: float
    bytes: int
    ms: float | None
    on_front: bool
    recipe: str
    command: str


def points(rows: Sequence[Row], recipes: dict[str, Recipe], shop: Workshop) -> list[Point]:
    """Every file that a recipe made, controls aside, and whether it is worth having: whether no other beats it."""
    made = [
        row
        for row in rows
        if row.file
        and not row.control
        and row.validation_accuracy is not None
        and recipes.get(row.name, Recipe(())).steps
    ]
    return [
        Point(
            name=row.name,
            accuracy=row.accuracy or 0.0,
            validation_accuracy=row.validation_accuracy or 0.0,
            bytes=row.bytes or 0,
            ms=row.milliseconds,
            on_front=not any(beats(other, row) for other in made if other is not row),
            recipe=(path := f"recipes/{row.name}.toml"),
            command=command(shop, path, row.name),
        )
        for row in made
    ]


def beats(other: Row, row: Row) -> bool:
    """Whether ``other`` is as good in validation accuracy, size and latency, and better in one of them.

    Latencies within ``ALIKE`` of each other count as equal.
    """
    gains = (
        (other.validation_accuracy or 0.0) - (row.validation_accuracy or 0.0),
        (row.bytes or 0) - (other.bytes or 0),
        _faster(other.milliseconds, row.milliseconds),
    )
    return min(gains) >= 0 and max(gains) > 0


def _faster(mine: float | None, theirs: float | None) -> float:
    if mine is None or theirs is None or 1 / ALIKE <= mine / theirs <= ALIKE:
        return 0.0
    return theirs - mine


def recipe_to(name: str, steps: Sequence[Step]) -> Recipe:
    """The steps that lead to one product, in order."""
    by_name = {step.name: step for step in steps}
    chain: list[Step] = []
    at: str | None = name
    while at in by_name:
        chain.insert(0, by_name[at])
        at = by_name[at].of
    return Recipe(tuple(chain))


BESIDE_A_RECIPE = ("search", "budget", "prune", "max_drop", "importance", "int8", "qat")
"""What a recipe says by itself."""


def command(shop: Workshop, recipe: str | None = None, name: str = "") -> str:
    """What makes these files again, or one point by the ``recipe`` that is among them."""
    config, chosen = shop.config, shop.chosen
    options = config.as_dict() | {"runs": [chosen.run.path.as_posix()], "student_seed": chosen.seed}
    if recipe is None:
        return command_line("compress", type(config), options)
    options |= {
        "recipe": f"{config.out.as_posix()}/{recipe}",
        "controls": False,
        "out": f"{config.out.as_posix()}-{name}",
    }
    return command_line("compress", type(config), options, without=BESIDE_A_RECIPE)
