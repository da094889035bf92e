"""Losses that compare how the rows of a batch relate on each side: their distances, angles and similarities.

Features are flattened to (B, D), and D may differ between the sides: nothing has to be projected. A row's value is its
share of the batch's: the mean over rows is the loss of the paper. A single row has no relations, and loss 0.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from pipeline.losses.sides import sides, unit

MOST_VALUES = 2**22
"""Numbers that one of the tensors of ``angle_relation_loss`` may hold; it makes half a dozen of them."""


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

    Park et al. 2019, section 3.2.2, as the mean over all B^3 triplets. Scaling, turning or shifting the features of
    a side changes nothing. Takes B^2 (B + D) multiplications; in large batches the angles at a few rows are computed
    at a time, and again for the gradient, so that memory stays bounded.
    """
    student, teacher = (side.flatten(1) for side in sides(student, teacher))
    rows = len(student)
    at_once = max(1, MOST_VALUES // max(1, rows * max(rows, student.shape[1], teacher.shape[1])))
    if at_once >= rows:
        return _angles_differ(student, teacher, slice(None))
    shares: list[Tensor] = [
        checkpoint(
            _angles_differ,
            student,
            teacher,
            slice(first, first + at_once),
            use_reentrant=False,
            preserve_rng_state=False,
        )
        for first in range(0, rows, at_once)
    ]
    return torch.cat(shares)


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


def _angles_differ(student_BD: Tensor, teacher_BD: Tensor, vertices: slice) -> Tensor:
    """The shares of the rows ``vertices``, from which the others are seen."""
    found, expected = (_cosines(side, vertices) for side in (student_BD, teacher_BD))
    return functional.smooth_l1_loss(found, expected, reduction="none").mean(dim=(1, 2))


def _cosines(rows_BD: Tensor, vertices: slice) -> Tensor:
    """(V, B, B): of the angle between the directions from a vertex to two rows; 0 where a row lies on the vertex."""
    directions = unit(rows_BD - rows_BD[vertices, None])
    return directions @ directions.mT
