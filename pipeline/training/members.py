"""Several models trained as one: each step sees one batch, and every member learns from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.models import logits_of
from pipeline.training.objective import Output


class Members(nn.Module, ABC):
    """What ``fit`` takes in the place of one model. Its objective gives a value for each member."""

    @property
    @abstractmethod
    def count(self) -> int:
        """n, the number of members."""

    @property
    def stacked(self) -> int:
        """Leading axes that a parameter has here more than in a member: 1 where members are stacked.

        Parameters of members within these go by what those say.
        """
        return 0

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor | Output:
        """Logits (n, B, C) of all members for ``x`` (B, ...), in training also the features that they learn."""

    @abstractmethod
    def members(self) -> Sequence[nn.Module]:
        """The members as models of their own, with their weights, in order."""


class Team(Members):
    """Members of any kind, which all answer for the same classes, run one after another."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    @property
    def count(self) -> int:
        return len(self.models)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([logits_of(model(x)) for model in self.models])

    def members(self) -> Sequence[nn.Module]:
        return list(self.models)
