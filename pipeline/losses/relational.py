"""Losses that compare how the rows of a batch relate on each side: their distances, angles and similarities.

Features are flattened to (B, D), and D may differ between the sides: nothing has to be projected. A row's value is its
share of the batch's: the mean over rows is the loss of the paper. A single row has no relations, and loss 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from pipeline.losses.sides import sides, unit

MOST_VALUES = 2**20
"""Triplets that ``angle_relation_loss`` looks at in one go; it makes about a dozen tensors of that size."""


def distance_relation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """RKD-D, (B,): smooth L1 of the distances from each row to all rows, in units of the mean distance of the side.

    Park et al. 2019, section 3.2.1. As in the code that they released the mean distance is that of the pairs that are
    apart at all, and the loss is the mean over all B^2 pairs, where the paper has their sum. Scaling, turning or
    shifting the features of a side changes nothing.
    """
    flat = [side.flatten(1) for side in sides(student, teacher)]
    found, expected = (_distances(side) for side in flat)
    return functional.smooth_l1_loss(found, expected, reduction="none").mean(dim=1)


def angle_relation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """RKD-A, (B,): smooth L1 of the cosines of the angles that any two rows make, seen from this one.

    Park et al. 2019, section 3.2.2, as the mean over all B^3 triplets. Scaling, turning or shifting the features of a
    side changes nothing. Takes of the order of B^2 D + B^3 operations; in large batches the angles at a few rows are
    computed at a time, and again for the gradient, so that memory stays bounded.
    """
    found, expected = (_distances(side.flatten(1)) for side in sides(student, teacher))
    if len(found) ** 3 <= MOST_VALUES:
        return _angles_differ(found, expected, slice(None))
    loss: Tensor = _AnglesInParts.apply(found, expected)  # type: ignore[no-untyped-call]
    return loss


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """SP, (B,): B times the mean squared difference of each row's similarities, so that their mean is ``1/B^2 |G|^2``.

    Similarities are inner products with all rows of the batch, scaled to Euclidean length 1 as a row of B numbers.
    Tung and Mori 2019, equation 4. Orthogonal maps and scales of a side change nothing; shifts do.
    """
    flat = [side.flatten(1) for side in sides(student, teacher)]
    found, expected = (unit(side @ side.mT) for side in flat)
    return (found - expected).square().mean(dim=1)


def _distances(rows_BD: Tensor) -> Tensor:
    """(B, B), divided by the mean of those above 0; zeros where all rows are alike."""
    # Products instead of differences would leave equal rows a little apart, at an infinite slope.
    distances = torch.cdist(rows_BD, rows_BD, compute_mode="donot_use_mm_for_euclid_dist")
    mean = distances.sum() / (distances > 0).sum().clamp_min(1)
    return distances / mean.masked_fill(mean == 0, torch.inf)


class _AnglesInParts(torch.autograd.Function):
    """``_angles_differ`` of all rows, ``MOST_VALUES`` triplets at a time, and again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        ctx.save_for_backward(student, teacher)
        return torch.cat([_angles_differ(student, teacher, part) for part in _parts(len(student))])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        student, teacher = ctx.saved_tensors
        leaf, total = student.detach().requires_grad_(), torch.zeros_like(student)
        for part in _parts(len(student)):
            with torch.enable_grad():
                shares = _angles_differ(leaf, teacher, part)
            total += torch.autograd.grad(shares, leaf, gradient[part])[0]
        return total, None


def _parts(rows: int) -> list[slice]:
    at_once = max(1, MOST_VALUES // rows**2)
    return [slice(first, first + at_once) for first in range(0, rows, at_once)]


def _angles_differ(student_BB: Tensor, teacher_BB: Tensor, vertices: slice) -> Tensor:
    """The shares of the rows ``vertices``, from which the others are seen, by the distances of either side."""
    found, expected = (_cosines(side, vertices) for side in (student_BB, teacher_BB))
    return functional.smooth_l1_loss(found, expected, reduction="none").mean(dim=(1, 2))


def _cosines(distances_BB: Tensor, vertices: slice) -> Tensor:
    """(V, B, B): of the angle between the directions from a vertex to two rows; 0 where a row lies on the vertex.

    By the law of cosines. The directions themselves would take B times as many operations as the distances.
    """
    squares, seen = distances_BB.square(), distances_BB[vertices]
    products = (squares[vertices, :, None] + squares[vertices, None, :] - squares) / 2
    near = 1 / seen.masked_fill(seen == 0, torch.inf)
    return products * near[:, :, None] * near[:, None, :]
