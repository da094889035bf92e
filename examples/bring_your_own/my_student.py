"""A student of one's own: ``--student my_student:Student --student-args width=12``."""

from __future__ import annotations

import math

from torch import Tensor, nn


class Student(nn.Module):
    """One hidden layer, of any input shape."""

    def __init__(self, classes: int, input_shape: tuple[int, ...], width: int = 8) -> None:
        super().__init__()
        self.hidden = nn.Linear(math.prod(input_shape), width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x.flatten(1)).relu())
