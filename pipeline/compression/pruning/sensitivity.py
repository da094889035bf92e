"""Which layers bear pruning: each group pruned alone, scored; and ratios per layer that follow from it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Unpack

from torch import Tensor, nn

from pipeline.compression.pruning.checks import NothingPrunedError
from pipeline.compression.pruning.structured import Ranking, check_ratio, groups_of, prune
from pipeline.compression.pruning.targets import STEPS, measured
from pipeline.errors import ModelError
from pipeline.models.macs import count_macs
from pipeline.runs import parameter_count

HIGHEST = 0.95
"""No group loses a larger share by ``ratios_from``."""


@dataclass(frozen=True)
class Sensed:
    """One group pruned alone by ``ratio``: what is left of the whole model (parameters, MACs of one example), a score.

    ``layer`` is the group's name, as ``ratios`` of ``prune`` take it.
    """

    layer: str
    ratio: float
    parameters: int
    macs: int
    score: float


@dataclass(frozen=True)
class Scan:
    """A sensitivity scan: the original's score, parameters and MACs, and a row for each group and ratio."""

    score: float
    parameters: int
    macs: int
    rows: tuple[Sensed, ...]


def sensitivity(
    model: nn.Module,
    example: Tensor,
    ratios: Sequence[float],
    score: Callable[[nn.Module], float],
    *,
    classes: int,
    prepare: Callable[[nn.Module], object] | None = None,
    **options: Unpack[Ranking],
) -> Scan:
    """Prune each group alone at each of ``ratios``, ``prepare`` it (recalibrate, in place), and ``score`` it.

    ``score`` gives a number that is larger for better models, accuracy on validation say. A ratio too small to take
    a unit from a group gives the original's row. Costs a trace and a score for each row. Raises ModelError for
    ratios that are not between 0 and 1, or a model in which nothing can be pruned.
    """
    for ratio in ratios:
        check_ratio(ratio, "a ratio")
    groups = groups_of(model, example, classes=classes, heads=options.get("heads", "whole"))
    if not groups or not ratios:
        raise ModelError(f"a scan needs groups and ratios; found {len(groups)} groups and {len(ratios)} ratios")
    whole = Sensed("", 0.0, parameter_count(model), count_macs(model, example), float(score(model)))
    rows = []
    for group in groups:
        for ratio in sorted(ratios):
            rows.append(replace(whole, layer=group.name, ratio=ratio))
            if int(ratio * len(group.units) + 0.5) == 0 or len(group.units) == 1:
                continue
            pruned = prune(model, example, classes=classes, ratio=0.0, ratios={group.name: ratio}, **options)
            if prepare is not None:
                prepare(pruned)
            found = parameter_count(pruned), count_macs(pruned, example), float(score(pruned))
            rows[-1] = Sensed(group.name, ratio, *found)
    return Scan(whole.score, whole.parameters, whole.macs, tuple(rows))


def ratios_at(scan: Scan, tolerance: float) -> dict[str, float]:
    """For each group, the largest ratio whose loss of score stays within ``tolerance``.

    The loss of a group at a ratio is the original's score less its own, never below what a smaller ratio lost, and is
    linear between the ratios that were scanned, from 0 at 0; past the last it goes on at the slope of the last piece.
    """
    found = {}
    for layer in dict.fromkeys(row.layer for row in scan.rows):
        points = [(0.0, 0.0)]
        for row in sorted((r for r in scan.rows if r.layer == layer), key=lambda r: r.ratio):
            points.append((row.ratio, max(points[-1][1], scan.score - row.score)))
        found[layer] = min(HIGHEST, _crossing(points, tolerance))
    return found


def _crossing(points: Sequence[tuple[float, float]], tolerance: float) -> float:
    """Where the broken line through ``points`` (ratio, loss) last is at ``tolerance``."""
    for (left, low), (right, high) in itertools.pairwise(points):
        if high > tolerance:
            return left + (right - left) * (tolerance - low) / (high - low)
    (left, low), (right, high) = points[-2:]
    if high <= low or right <= left:
        return HIGHEST
    return right + (right - left) * (tolerance - high) / (high - low)


def ratios_from(
    scan: Scan,
    model: nn.Module,
    example: Tensor,
    *,
    classes: int,
    target_macs: float | None = None,
    target_parameters: float | None = None,
    **options: Unpack[Ranking],
) -> dict[str, float]:
    """Ratios per group that leave at most a share of the MACs or parameters and cost every group the same score.

    The rule: one tolerance for all groups, each pruned as far as its own loss in the scan allows (``ratios_at``), so
    that layers which hurt less lose more. The smallest tolerance that meets the target is found by bisection, between
    0 and 2 times the largest loss that was seen. Losses of groups pruned together are not the sum of those alone: this
    divides a budget, it does not foretell the score.

    Raises ModelError when no target is given, or it is not reached with ``HIGHEST`` taken from every group.
    """
    if target_macs is None and target_parameters is None:
        raise ModelError("ratios_from needs target_macs or target_parameters: the share that may be left")

    def meets(ratios: dict[str, float]) -> bool:
        try:
            pruned = prune(model, example, classes=classes, ratio=0.0, ratios=ratios, **options)
        except NothingPrunedError:
            return False
        left = measured(model, pruned, example, 0.0)
        return left.macs <= (target_macs or 1) and left.parameters <= (target_parameters or 1)

    largest = max((scan.score - row.score for row in scan.rows), default=0.0)
    top = 2 * max(largest, 1e-9)
    best = ratios_at(scan, top)
    if not meets(best):
        best = dict.fromkeys(best, HIGHEST)
        if not meets(best):
            raise ModelError(f"no ratios reach the target, with {HIGHEST:.0%} taken from every group. Ask for more")
        return best
    low, high = 0, STEPS
    while high - low > 1:
        middle = (low + high) // 2
        found = ratios_at(scan, top * middle / STEPS)
        if meets(found):
            best, high = found, middle
        else:
            low = middle
    return best
