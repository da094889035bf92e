"""A teacher over a large vocabulary and a student of it, made of random numbers: for sizes and errors of encodings.

How the logits are made. Token v of V has a log-frequency -1.6 ln(rank + 5), with ranks that follow the ids up to a
factor drawn at random (as those of byte-pair encodings do, roughly), and a random direction in ``hidden`` dimensions.
A position has a Gaussian hidden state (of its own, nobody's text) and a strength drawn at random: teacher's logit =
log-frequency + strength * (hidden . direction). Strengths are drawn so that some positions are nearly certain and some
have thousands of likely tokens, as in text.

No real teacher has looked at anything here. What it shares with one is by choice of these numbers: an entropy of 3
bits on average and of more than 5.5 in a tenth of the positions, a mean over all positions of 10.4 bits (that of the
tokens of English text is about as much), and a tail of which the 12 most likely tokens leave an eighth.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

VOCABULARY = 128_256

LONG_TAIL = (1.7, 0.5)
"""Strengths of the teacher of the module: 3 bits on average, 14 tokens hit by 50 draws."""

TWELVE = (1.85, 0.5)
"""Of one of which 50 draws hit 12 tokens, as RS-KD counts of its teacher."""

PEAKED = (2.3, 0.4)
"""Of one that is more certain of the next token: 1.6 bits on average, 7 tokens."""


@dataclass(frozen=True)
class Teacher:
    """A teacher of V tokens and a linear student of the same hidden states D, part of the way to it.

    ``weight`` (V, D) and ``bias`` (V,): the teacher's. ``student_weight`` (V, D): the student's, whose bias is the
    teacher's: half of what the teacher has learnt in the first half of the dimensions, and nothing in the others.
    ``strengths``: mean and spread of the logarithm of a position's strength.
    """

    weight: Tensor
    bias: Tensor
    student_weight: Tensor
    strengths: tuple[float, float]

    @classmethod
    def make(
        cls, vocabulary: int = VOCABULARY, hidden: int = 64, strengths: tuple[float, float] = LONG_TAIL
    ) -> Teacher:
        """The same one every time."""
        random = torch.Generator().manual_seed(11)
        weight = torch.randn(vocabulary, hidden, generator=random) / hidden**0.5
        rank = torch.arange(vocabulary) * torch.randn(vocabulary, generator=random).mul(0.7).exp()
        student = 0.5 * weight
        student[:, hidden // 2 :] = 0
        return cls(weight, -1.6 * (rank + 5).log(), student, strengths)

    def hidden(self, rows: int, seed: int) -> Tensor:
        """(rows, D): hidden states, times their strengths."""
        random = torch.Generator().manual_seed(seed)
        states = torch.randn(rows, self.weight.shape[1], generator=random)
        mean, spread = self.strengths
        return states * (mean + spread * torch.randn(rows, 1, generator=random)).exp()

    def measured(self, first: int, rows: int) -> Tensor:
        """(rows, D): hidden states of the positions from ``first`` on, which are the same ones every time."""
        return self.hidden(rows, 1000 + first)

    def others(self) -> Tensor:
        """(1024, D): hidden states of positions that are not measured."""
        return self.hidden(1024, 5)

    def logits(self, hidden: Tensor) -> Tensor:
        """(rows, V): the teacher's."""
        return torch.addmm(self.bias, hidden, self.weight.T)

    def student_logits(self, hidden: Tensor) -> Tensor:
        """(rows, V): the student's."""
        return torch.addmm(self.bias, hidden, self.student_weight.T)
