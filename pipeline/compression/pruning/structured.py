"""Structured pruning: whole channels and heads leave, so that every runtime gets the gain without sparse kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeAlias, TypedDict

import torch
from torch import Tensor, nn

from pipeline.compression.pruning.checks import NothingPrunedError, check_pruned
from pipeline.compression.pruning.graph import Group, Heads, Traced
from pipeline.compression.pruning.importance import Importance, Losses, importances
from pipeline.errors import ModelError, some
from pipeline.runs import parameter_count

Scope: TypeAlias = Literal["local", "global"]
SCOPES: tuple[Scope, ...] = ("local", "global")
Between: TypeAlias = Callable[[nn.Module], nn.Module]
Scores: TypeAlias = Mapping[str, Tensor]

COMPARABLE: tuple[Importance, ...] = ("taylor", "bn-scale")
"""Importances that their papers compare between layers as they are; the others are divided by their group's mean."""


class Ranking(TypedDict, total=False):
    """How the units of a group are ranked, and what a unit is.

    ``importance`` (l2) and ``losses``, ``seed`` (0): see ``importances``. ``heads`` (whole): whether whole heads leave,
    all heads of a layer get narrower ("width"), or neither ("none").
    """

    importance: Importance
    heads: Heads
    losses: Losses | None
    seed: int


class Options(Ranking, total=False):
    """What ``prune`` and all that calls it take, beside model, example, classes and ratio.

    ``scope`` (local): whether every group loses its share, or the least important units of all groups leave.
    ``ratios``: shares of their own for groups, by the name of a layer that makes their channels. ``multiple`` (1): what
    is left of a layer is rounded up to a multiple of so many channels, which runtimes compute faster; 0 takes 8, or
    less for layers of fewer than 64 (``handy``).
    """

    scope: Scope
    ratios: Mapping[str, float] | None
    multiple: int


def groups_of(model: nn.Module, example: Tensor, *, classes: int, heads: Heads = "whole") -> list[Group]:
    """The groups that ``prune`` can take units from, in the order of the model's layers; of a copy of it."""
    return Traced(model, example, classes, heads).groups


def prune(
    model: nn.Module,
    example: Tensor,
    *,
    classes: int,
    ratio: float,
    importance: Importance = "l2",
    scope: Scope = "local",
    heads: Heads = "whole",
    ratios: Mapping[str, float] | None = None,
    losses: Losses | None = None,
    seed: int = 0,
    multiple: int = 1,
    rounds: int = 1,
    between: Between | None = None,
) -> nn.Module:
    """A copy of ``model`` without the share ``ratio`` of its channels, the least important first.

    ``example`` is (2, ...). For the rest see ``Options`` and ``Ranking``. In ``rounds``, round r of R leaves
    1 - ratio r / R of what there was at first, ranks what is left anew, and ``between`` (recalibrate, fine-tune) gives
    the model that the next round starts from; after the last it is not called. At least one unit of every group stays.
    Statistics of batch norms are stale afterwards: see ``recalibrate``. The copy is on the CPU (for ``losses`` and
    ``between`` too), and all its parameters take gradients.

    Raises ModelError when the model cannot be followed, nothing was pruned, or the model broke.
    """
    check_ratio(ratio, "ratio")
    if scope not in SCOPES:
        raise ModelError(f"scope should be one of {', '.join(SCOPES)}; found {scope!r}")
    if rounds < 1:
        raise ModelError(f"rounds should be 1 or more; found {rounds}")
    before, pruned, example = parameter_count(model), model, example.cpu()
    sizes: dict[str, int] = {}
    for done in range(1, rounds + 1):
        traced = Traced(pruned, example, classes, heads)
        scores = importances(traced.model, traced.groups, importance, losses=losses, seed=seed)
        sizes = sizes or {group.name: len(group.units) for group in traced.groups}
        comparable = importance in COMPARABLE
        chosen = choose(
            traced.groups, scores, sizes, ratio, scope, ratios,
            part=done / rounds, comparable=comparable, multiple=multiple,
        )  # fmt: skip
        start, pruned = pruned, traced.remove(chosen)
        try:
            check_pruned(pruned, example, before=before if done == rounds else before + 1, classes=classes)
        except NothingPrunedError:
            raise
        except ModelError as error:
            broken = breaking(start, example, list(chosen), classes=classes, heads=heads)
            if not broken or len(broken) == len(chosen):
                raise
            raise ModelError(
                f"{error}. Channels of {some(broken, 8)} break it, those of other layers do not: give these ratios of 0"
            ) from error
        if done < rounds and between is not None:
            pruned = between(pruned)
    return pruned.eval()


def breaking(
    model: nn.Module, example: Tensor, names: Sequence[str] | None = None, *, classes: int, heads: Heads = "whole"
) -> list[str]:
    """The groups (of those with ``names``) that a unit cannot leave without breaking the model, each tried alone.

    With ``ratios`` of 0 for them, ``prune`` takes the others. A trace for each group.
    """
    found = []
    for group in groups_of(model, example, classes=classes, heads=heads):
        if len(group.units) == 1 or (names is not None and group.name not in names):
            continue
        alone = Traced(model, example, classes, heads).remove({group.name: [0]})
        try:
            check_pruned(alone, example, before=parameter_count(model), classes=classes)
        except ModelError:
            found.append(group.name)
    return found


def check_ratio(ratio: float, name: str) -> None:
    """Raise ModelError unless 0 <= ``ratio`` < 1."""
    if not 0 <= ratio < 1:
        raise ModelError(f"{name} should be at least 0 and below 1: a share of the channels; found {ratio:g}")


def choose(
    groups: Sequence[Group],
    scores: Scores,
    sizes: Mapping[str, int],
    ratio: float,
    scope: Scope,
    ratios: Mapping[str, float] | None = None,
    *,
    part: float = 1.0,
    comparable: bool = False,
    multiple: int = 1,
) -> dict[str, list[int]]:
    """Which units leave, by the group's name. ``sizes`` are the units of each group before the first round.

    ``part`` is how much of the way to ``ratio`` is gone. In the global scope the units of all groups that have no
    ratio of their own are ranked together, by their importance as it is if ``comparable``, or over the mean of their
    group; where a group would be left with nothing, the next unit in rank goes instead.
    """
    own = own_ratios(groups, ratios)
    ranked = {group.name: torch.argsort(scores[group.name], stable=True) for group in groups if group.name in scores}
    gone: dict[str, int] = {}
    shared = [name for name in ranked if name not in own and scope == "global"]
    for name, order in ranked.items():
        if name not in shared:
            kept = sizes[name] - rounded(own.get(name, ratio) * part * sizes[name])
            gone[name] = max(0, len(order) - max(1, kept))
    if shared:
        first = sum(sizes[name] for name in shared)
        quota = sum(len(ranked[name]) for name in shared) - (first - rounded(ratio * part * first))
        gone |= _across({name: scores[name] for name in shared}, quota, comparable)
    channels = {group.name: int(group.units.shape[1]) for group in groups}
    for name, count in gone.items():
        whole = len(ranked[name])
        step = multiple if multiple > 0 else handy(sizes[name] * channels[name])
        gone[name] = whole - rounded_up(whole - count, whole, step // math.gcd(step, channels[name]))
    return {name: ranked[name][:count].tolist() for name, count in gone.items() if count}


def handy(channels: int) -> int:
    """The largest of 8, 4, 2 and 1 that is at most an eighth of ``channels``: fine enough, and fast where it is 8.

    >>> [handy(n) for n in (8, 16, 40, 64, 512)]
    [1, 2, 4, 8, 8]
    """
    return next(step for step in (8, 4, 2, 1) if 8 * step <= channels or step == 1)


def rounded_up(kept: int, whole: int, multiple: int) -> int:
    """``kept`` as the next multiple, but no more than the ``whole``.

    >>> rounded_up(13, 64, 8), rounded_up(16, 64, 8), rounded_up(61, 62, 8)
    (16, 16, 62)
    """
    return min(whole, -(-kept // multiple) * multiple)


def rounded(number: float) -> int:
    """To the nearest, halves up."""
    return int(number + 0.5)


def _across(scores: Scores, quota: int, comparable: bool) -> dict[str, int]:
    """How many units of every group are among the ``quota`` least important of all, at least one of each staying."""
    names = list(scores)
    values = [scores[name] if comparable else scores[name] / scores[name].mean().clamp_min(1e-30) for name in names]
    owners = torch.cat([torch.full((len(value),), i) for i, value in enumerate(values)])
    gone = dict.fromkeys(names, 0)
    for unit in torch.argsort(torch.cat(values), stable=True).tolist():
        name = names[int(owners[unit])]
        if quota > 0 and gone[name] < len(scores[name]) - 1:
            gone[name] += 1
            quota -= 1
    return gone


def own_ratios(groups: Sequence[Group], ratios: Mapping[str, float] | None) -> dict[str, float]:
    """``ratios`` by the group's name. Raises ModelError for a layer that makes no group's channels, or two ratios."""
    owners = {maker: group.name for group in groups for maker in group.makers}
    found: dict[str, float] = {}
    for layer, ratio in (ratios or {}).items():
        check_ratio(ratio, f"the ratio of {layer}")
        if layer not in owners:
            raise ModelError(
                f"ratios should name layers that can lose channels ({some(list(owners))}); found {layer!r}"
            )
        if found.get(owners[layer], ratio) != ratio:
            raise ModelError(f"{layer} and {owners[layer]} lose the same channels: give one ratio, not two")
        found[owners[layer]] = ratio
    return found
