"""What stands between the features of the two sides and a loss: modules that take both and give both.

Shapes are those of one row, without the batch. Weights are float32, drawn from torch's global generator, and belong to
the student's training; the teacher's features are a constant. Nothing of it is part of the student afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import ModelError
from pipeline.losses.partition import wide
from pipeline.losses.sides import MAP, SEQUENCE, VECTOR, Shape, shared_places, unit

EMBEDDING = 128
"""Width of the embeddings of Tian et al. 2020."""


class Bridge(nn.Module):
    """Holds features to the shapes that it was made for, and passes them on, the teacher's without gradient.

    Raises ModelError for features of other shapes.
    """

    def __init__(self, student_shape: Sequence[int], teacher_shape: Sequence[int]) -> None:
        super().__init__()
        self.shapes: tuple[Shape, Shape] = tuple(student_shape), tuple(teacher_shape)
        if not all(shape and min(shape) > 0 for shape in self.shapes):
            raise ModelError(f"features should hold something: {_both(*self.shapes)}")

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Both sides, (B, ...) each."""
        found = tuple(student.shape[1:]), tuple(teacher.shape[1:])
        if found != self.shapes:
            raise ModelError(f"features of other shapes were expected: {_both(*self.shapes)}; now {_both(*found)}")
        return self.across(student, teacher.detach())

    def across(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """What ``forward`` gives for features of the right shapes."""
        return student, teacher


class Projection(Bridge):
    """Maps the student's features linearly to the shape of the teacher's, and averages where one side has more places.

    - two vectors (D,), or two sequences (L, D) of one length: a linear map of each position;
    - two maps (C, H, W): the larger height and width averaged down to the smaller, then a 1 x 1 convolution;
    - a vector and a map or sequence: the latter averaged over its places, then a linear map.

    What differs from the teacher's shape afterwards is what was averaged on the teacher's side. Equal shapes are mapped
    too: the channels of two networks do not correspond. Features of three dimensions are taken for (C, H, W),
    of two for (L, D). Raises ModelError for other pairs.
    """

    def __init__(self, student_shape: Sequence[int], teacher_shape: Sequence[int]) -> None:
        super().__init__(student_shape, teacher_shape)
        student, teacher = self.shapes
        self.places = shared_places(student, teacher)
        if self.places is None and (VECTOR not in map(len, self.shapes) or not all(map(_has_channels, self.shapes))):
            raise ModelError(
                f"no projection maps the student's features to the teacher's: {_both(student, teacher)}. It maps "
                "vectors (D,), sequences (L, D) of one length, maps (C, H, W) of any size, and any of these to or from "
                "a vector. Name modules whose outputs fit, or use a loss without one: distance, angle, similarity"
            )
        inputs, outputs = _channels(student), _channels(teacher)
        between_maps = self.places is not None and len(student) == MAP
        self.linear = nn.Conv2d(inputs, outputs, 1) if between_maps else nn.Linear(inputs, outputs)

    def across(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """The mapped student's features and the teacher's, of one shape."""
        student, teacher = student.to(self.linear.weight.dtype), wide(teacher)
        if self.places is None:
            student, teacher = averaged(student), averaged(teacher)
        elif len(self.places) == 2:
            # Averaging before the convolution gives what it would give after, for less.
            student, teacher = (functional.adaptive_avg_pool2d(side, self.places) for side in (student, teacher))
        return self.linear(student), teacher


class EmbeddingHeads(Bridge):
    """A linear map of each side to ``size`` dimensions, scaled to length 1, for ``contrastive_loss``.

    Maps and sequences are averaged over their places first, features of other shapes flattened. Both heads are learnt.
    Tian et al. 2020, in the form of the code that they released.
    """

    def __init__(self, student_shape: Sequence[int], teacher_shape: Sequence[int], size: int = EMBEDDING) -> None:
        super().__init__(student_shape, teacher_shape)
        student, teacher = self.shapes
        self.student_head = nn.Linear(_channels(student), size)
        self.teacher_head = nn.Linear(_channels(teacher), size)

    def across(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (B, size) of both."""
        heads = (self.student_head, student), (self.teacher_head, teacher)
        found = [unit(head(averaged(features.to(head.weight.dtype)))) for head, features in heads]
        return found[0], found[1]


def make_projection(student_shape: Sequence[int], teacher_shape: Sequence[int]) -> Projection:
    """The ``Projection`` of features whose rows have these shapes. Raises ModelError, naming both, if none can be."""
    return Projection(student_shape, teacher_shape)


def averaged(features: Tensor) -> Tensor:
    """(B, channels): the mean over the places of maps and sequences; other features flattened."""
    if features.ndim == 1 + MAP:
        return features.mean(dim=(2, 3))
    return features.mean(dim=1) if features.ndim == 1 + SEQUENCE else features.flatten(1)


def _channels(shape: Shape) -> int:
    """Width of a row of this shape after ``averaged``; of a place before."""
    if len(shape) == MAP:
        return shape[0]
    return shape[-1] if len(shape) == SEQUENCE else int(torch.Size(shape).numel())


def _has_channels(shape: Shape) -> bool:
    return len(shape) in (MAP, SEQUENCE, VECTOR)


def _both(student: Shape, teacher: Shape) -> str:
    return f"the student's have shape {student}, the teacher's {teacher}"
