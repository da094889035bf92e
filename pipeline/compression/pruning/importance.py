"""How much the units of a group matter: five measures of the literature, each from sums over a layer's channels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from pipeline.compression.pruning.graph import Conv, Coupled, Group, Side
from pipeline.errors import ModelError

Importance: TypeAlias = Literal["l1", "l2", "taylor", "bn-scale", "random"]
IMPORTANCES: tuple[Importance, ...] = ("l1", "l2", "taylor", "bn-scale", "random")
Losses: TypeAlias = Callable[[nn.Module], Iterable[Tensor]]
"""Given the model, scalar losses over batches, each still attached to its gradients."""
Evidence: TypeAlias = dict[tuple[nn.Module, Side], Tensor]


def per_channel(layer: nn.Module, values: Tensor, side: Side) -> Tensor:
    """Sums (channels,) of ``values``, shaped like the layer's weight, over all that belongs to each channel."""
    if side == "norm":
        return values
    if not isinstance(layer, Conv):
        return values.sum(dim=1 if side == "out" else 0)
    # A convolution's weight is (out, in / groups, ...), that of a transposed one (in, out / groups, ...).
    if (side == "out") != layer.transposed:
        return values.flatten(1).sum(dim=1)
    blocks = values.reshape(layer.groups, values.shape[0] // layer.groups, values.shape[1], -1)
    return blocks.sum(dim=(1, 3)).flatten()


def importances(
    model: nn.Module, groups: Sequence[Group], kind: Importance, *, losses: Losses | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """A float32 importance (U,) of every unit, by the group's name; groups that ``kind`` says nothing of are left out.

    ``l1``: sum of |w| over the filters that make the channels (Li et al. 2016). ``l2``: sum of w^2 over all coupled
    weights, those that read the channels and norms too (Fang et al. 2023, DepGraph). ``taylor``: mean over batches of
    (sum of g w)^2 over all coupled weights (Molchanov et al. 2019, equation 8, of a set); ``losses`` gives the
    batches. ``bn-scale``: sum of the |scale| of batch norms (Liu et al. 2017), for groups that have one. ``random``:
    uniform, from ``seed``: the control. A unit of several channels has their sum, a group's biases do not count.

    Raises ModelError for ``taylor`` without losses, ``bn-scale`` without batch norms, or an unknown kind.
    """
    if kind not in IMPORTANCES:
        raise ModelError(f"importance should be one of {', '.join(IMPORTANCES)}; found {kind!r}")
    if kind == "random":
        generator = torch.Generator().manual_seed(seed)
        return {group.name: torch.rand(len(group.units), generator=generator) for group in groups}
    evidence = _contributions(model, groups, losses) if kind == "taylor" else _magnitudes(groups, kind)
    found = {}
    for group in groups:
        parts = [part for part in group.parts if (part.layer, part.side) in evidence]
        if parts:
            sums = _of_units(group, parts, evidence)
            found[group.name] = (sums**2 if kind == "taylor" else sums).mean(dim=0).float()
    if kind == "bn-scale" and not found:
        raise ModelError(
            f"importance bn-scale ranks channels by the scales of batch norms; {type(model).__name__} has none on "
            f"channels that can leave. Use l2 or taylor"
        )
    return found


def _of_units(group: Group, parts: Sequence[Coupled], evidence: Evidence) -> Tensor:
    """Evidence (S, U) of every unit: the sum over its channels in all ``parts``."""
    batches = len(next(iter(evidence.values())))
    sums = torch.zeros(batches, int(group.units.max()) + 1, dtype=torch.float64)
    for part in parts:
        values = evidence[part.layer, part.side][:, list(part.channels)].double()
        sums.index_add_(1, torch.tensor(part.roots), values)
    return sums[:, group.units].sum(dim=2)


def _weight(layer: nn.Module) -> Tensor | None:
    weight = getattr(layer, "weight", None)
    return weight if isinstance(weight, Tensor) else None


def _magnitudes(groups: Sequence[Group], kind: Importance) -> Evidence:
    """Evidence (1, channels) of the weights alone."""
    found: Evidence = {}
    for part in (part for group in groups for part in group.parts):
        is_scale = isinstance(part.layer, nn.modules.batchnorm._BatchNorm)
        counts = {"l1": part.side == "out", "l2": True, "bn-scale": is_scale}[kind]
        weight = _weight(part.layer)
        if counts and weight is not None:
            values = weight.detach() ** 2 if kind == "l2" else weight.detach().abs()
            found[part.layer, part.side] = per_channel(part.layer, values, part.side)[None]
    return found


def _contributions(model: nn.Module, groups: Sequence[Group], losses: Losses | None) -> Evidence:
    """Evidence (S, channels): sums of gradient times weight, for each of S batches."""
    if losses is None:
        raise ModelError("importance taylor needs losses over batches, for their gradients; use l2 without data")
    sides = {(part.layer, part.side): [] for group in groups for part in group.parts}  # type: dict[tuple[nn.Module, Side], list[Tensor]]
    was_training = model.training
    model.eval()
    for loss in losses(model):
        model.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for (layer, side), sums in sides.items():
            weight = _weight(layer)
            if weight is not None and weight.grad is not None:
                sums.append(per_channel(layer, (weight * weight.grad).detach(), side))
    model.zero_grad()
    model.train(was_training)
    counts = {len(sums) for sums in sides.values() if sums}
    if len(counts) != 1:
        raise ModelError("importance taylor needs at least one loss whose gradients reach the layers; found none")
    found = {key: torch.stack(sums) for key, sums in sides.items() if sums}
    if not all(bool(torch.isfinite(sums).all()) for sums in found.values()):
        raise ModelError("importance taylor found gradients that are not finite. Look at the losses, or use l2")
    return found
