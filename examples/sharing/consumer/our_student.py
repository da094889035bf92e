"""The consumer's own student: another architecture than the teacher, which it never sees."""

from __future__ import annotations

import math

from torch import Tensor, nn


class Student(nn.Module):
    """One hidden layer."""

    def __init__(self, classes: int, input_shape: tuple[int, ...], width: int = 24) -> None:
        super().__init__()
        self.hidden = nn.Linear(math.prod(input_shape), width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x.flatten(1)).relu())
