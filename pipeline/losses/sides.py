"""What the losses on features begin with: both sides widened, the teacher's held still, and their places compared.

Features are (B, ...) of any shape: vectors (B, D), maps (B, C, H, W), sequences (B, L, D). A ``Shape`` is that of one
row, without B. The losses are meant to be called outside autocast, which would take their products in half precision.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.errors import ModelError
from pipeline.losses.partition import wide

Shape = tuple[int, ...]
MAP, SEQUENCE, VECTOR = 3, 2, 1
"""Dimensions of a row: channels, height and width; positions and channels; channels."""


def sides(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """The student's features, and the teacher's as a constant in their dtype: float32, or float64 where that was given.

    Raises ModelError when the numbers of rows differ, or a side has no dimension besides them.
    """
    same_rows(student, teacher)
    student = wide(student)
    return student, teacher.detach().to(student.dtype)


def same_rows(student: Tensor, teacher: Tensor) -> None:
    """Raises what ``sides`` raises."""
    if student.ndim < 2 or teacher.ndim < 2 or len(student) != len(teacher):
        raise ModelError(
            f"features should be (B, ...), of the same B rows on both sides; the student's have shape "
            f"{tuple(student.shape)}, the teacher's {tuple(teacher.shape)}. Select the rows that have both first"
        )


def unit(vectors: Tensor) -> Tensor:
    """The last dimension scaled to Euclidean length 1; a vector of zeros stays one, with gradient 0.

    ``functional.normalize`` divides zeros by 1e-12, and gives them a gradient of that order: a dead feature, or an
    example that a batch holds twice, would undo the step.
    """
    length: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / length.masked_fill(length == 0, torch.inf)


def shared_places(student: Shape, teacher: Shape) -> Shape | None:
    """The places at which two features can be compared: the smaller height and width of two maps (C, H, W), the length
    of two sequences (L, D) that are equally long; None of others."""
    if len(student) == len(teacher) == MAP:
        return min(student[1], teacher[1]), min(student[2], teacher[2])
    if len(student) == len(teacher) == SEQUENCE and student[0] == teacher[0]:
        return student[:1]
    return None


def no_shared_places(needs: str, student: Shape, teacher: Shape) -> ModelError:
    """The error of two features without ``shared_places``; ``needs`` begins its message ("attention needs")."""
    return ModelError(
        f"{needs} maps (C, H, W), or sequences (L, D) of one length, on both sides; the student's features have shape "
        f"{student}, the teacher's {teacher}. Name modules whose outputs fit, or use a loss that compares rows with "
        "rows, whatever their shapes: distance, angle, similarity, contrastive"
    )
