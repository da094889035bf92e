"""How much to prune: the smallest ratio that meets a budget, or the largest one whose accuracy is still good enough."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Unpack

from torch import Tensor, nn

from pipeline.compression.pruning.checks import NothingPrunedError
from pipeline.compression.pruning.structured import Between, Options, prune
from pipeline.errors import ModelError
from pipeline.models.macs import count_macs
from pipeline.runs import parameter_count

STEPS = 256
"""Ratios are searched in steps of 1 / STEPS."""


@dataclass(frozen=True)
class Pruned:
    """A pruned model, and what is left of the original: shares of its MACs and of its parameters."""

    model: nn.Module
    ratio: float
    macs: float
    parameters: float


def measured(original: nn.Module, pruned: nn.Module, example: Tensor, ratio: float) -> Pruned:
    """``pruned`` with its shares of the original."""
    macs = count_macs(pruned, example) / max(1, count_macs(original, example))
    return Pruned(pruned, ratio, macs, parameter_count(pruned) / max(1, parameter_count(original)))


def prune_to(
    model: nn.Module,
    example: Tensor,
    *,
    classes: int,
    target_macs: float | None = None,
    target_parameters: float | None = None,
    rounds: int = 1,
    between: Between | None = None,
    **options: Unpack[Options],
) -> Pruned:
    """Pruned by the smallest ratio that leaves at most the share ``target_macs`` or ``target_parameters`` (or both).

    The ratio is found by bisection with models pruned in one round, 8 or so, each traced but not trained; then the
    model is pruned by it in ``rounds``. In the local scope the counts do not depend on the rounds; in the global
    scope they may, and ``macs`` and ``parameters`` say what came out. MACs are of one example (``count_macs``).

    Raises ModelError for no target, one that is not between 0 and 1, or one that no ratio reaches.
    """
    targets = {"MACs": target_macs, "parameters": target_parameters}
    if all(target is None for target in targets.values()):
        raise ModelError("prune_to needs target_macs or target_parameters: the share that may be left")
    for what, target in targets.items():
        if target is not None and not 0 < target < 1:
            raise ModelError(f"the target of {what} should be a share between 0 and 1; found {target:g}")

    def attempt(step: int) -> Pruned:
        pruned = prune(model, example, classes=classes, ratio=step / STEPS, **options)
        return measured(model, pruned, example, step / STEPS)

    def meets(found: Pruned) -> bool:
        return found.macs <= (target_macs or 1) and found.parameters <= (target_parameters or 1)

    best = attempt(STEPS - 1)
    if not meets(best):
        raise ModelError(
            f"no ratio reaches the target: with all but one unit of every group gone, {best.macs:.1%} of the MACs and "
            f"{best.parameters:.1%} of the parameters are left. Ask for more than that"
        )
    low, high = 0, STEPS - 1  # a ratio of 0 removes nothing, and meets no target below 1
    while high - low > 1:
        middle = (low + high) // 2
        try:
            found = attempt(middle)
        except NothingPrunedError:
            low = middle
            continue
        if meets(found):
            best, high = found, middle
        else:
            low = middle
    if rounds == 1:
        return best
    pruned = prune(model, example, classes=classes, ratio=best.ratio, rounds=rounds, between=between, **options)
    return measured(model, pruned, example, best.ratio)


@dataclass(frozen=True)
class Trial:
    """One ratio that was tried, and the accuracy after it; shares of the original that are left."""

    ratio: float
    accuracy: float
    macs: float
    parameters: float


def prune_within(
    model: nn.Module,
    example: Tensor,
    *,
    classes: int,
    accuracy: float,
    max_drop: float,
    accuracy_after: Callable[[nn.Module], float],
    trials: int = 5,
    highest: float = 0.9,
    rounds: int = 1,
    between: Between | None = None,
    **options: Unpack[Options],
) -> tuple[Pruned | None, list[Trial]]:
    """The largest ratio found whose accuracy is at least ``accuracy - max_drop``; and all that was tried, in order.

    ``accuracy`` is the original's, on validation; ``accuracy_after(pruned)`` recalibrates or fine-tunes the pruned
    model **in place** and scores it likewise (both are shares, as is ``max_drop``). Bisection between 0 and
    ``highest``, with ``trials`` models trained and no more, the first at the middle; so the ratio is known to
    ``highest`` / 2^trials. It takes accuracy to fall with the ratio, which noise can break: choose ``max_drop`` above
    the noise. A ratio too small to remove anything counts as good, and is no trial. None when no trial was good
    enough.
    """
    if trials < 1:
        raise ModelError(f"trials should be 1 or more; found {trials}")
    if not 0 <= max_drop < 1 or not 0 < highest < 1:
        raise ModelError(f"max_drop and highest should be shares below 1; found {max_drop:g} and {highest:g}")
    low, high = 0.0, highest
    best: Pruned | None = None
    tried: list[Trial] = []
    for _ in range(trials):
        ratio = (low + high) / 2
        try:
            pruned = prune(model, example, classes=classes, ratio=ratio, rounds=rounds, between=between, **options)
        except NothingPrunedError:
            low = ratio
            continue
        found = accuracy_after(pruned)
        shares = measured(model, pruned, example, ratio)
        tried.append(Trial(ratio, found, shares.macs, shares.parameters))
        if found >= accuracy - max_drop:
            best, low = shares, ratio
        else:
            high = ratio
    return best, tried
