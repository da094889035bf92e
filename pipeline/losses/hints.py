"""FitNets: the student's features are drawn to the teacher's, value by value."""

from __future__ import annotations

from torch import Tensor

from pipeline.errors import ModelError
from pipeline.losses.sides import sides


def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared difference of each row, (B,), of features of equal shape (B, ...).

    Romero et al. 2015 (FitNets), equation 3, with the mean in the place of half the sum: the size does not grow with
    that of the feature. Their regressor is ``make_projection``. It does grow with the square of the teacher's values.

    Raises ModelError when the shapes differ.
    """
    if student.shape != teacher.shape:
        raise ModelError(
            f"hints need features of equal shape; the student's have {tuple(student.shape)}, the teacher's "
            f"{tuple(teacher.shape)}. make_projection maps the one to the other"
        )
    student, teacher = sides(student, teacher)
    return (student - teacher).square().flatten(1).mean(dim=1)
