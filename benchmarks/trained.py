"""A teacher that was trained on text, and a student that stands in for one of it: for errors of encodings.

A small causal language model, trained here on the sources of Python's standard library (3 MB of them, a byte-pair
vocabulary of 4,096), and what it says about text that it was not trained on. It is no large language model: its
distributions are flatter (docs/decisions/0014-language-models.md has the figures). The student is that of
``softlabels cache plan`` (``pipeline/planning/standing.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline import teacher as teachers
from pipeline import tokenize
from pipeline.dump import DumpConfig, prepare
from pipeline.planning.sampling import ask_sample
from pipeline.planning.standing import Standing
from pipeline.progress import Silent

OTHERS = 1024
"""Positions that are not measured."""


@dataclass(frozen=True)
class Trained:
    """Hidden states (n + 1024, D) of a teacher on held-out text, and two linear maps of them: its own and a student's.

    ``weight`` (V, D), ``bias`` (V,): the teacher's logits; ``student_weight``, ``student_bias``: the student's.
    """

    states: Tensor
    weight: Tensor
    bias: Tensor
    student_weight: Tensor
    student_bias: Tensor

    @classmethod
    def make(cls, folder: Path, rows: int, quick: bool = False) -> Trained:
        """Train one in ``folder``, or take the one that was trained there, and ask it about ``rows`` positions."""
        text = {"vocabulary": 512, "max_bytes": 100_000} if quick else {"vocabulary": 4096, "max_bytes": 3_000_000}
        tokenize.run(tokenize.TokenizeConfig(length=128, out=folder / "tokens", **text))
        data = f"tokens:{folder / 'tokens'}"
        recipe = {"epochs": 1 if quick else 6, "batch_size": 16, "lr": 0.005, "keep": "last", "device": "cpu"}
        teachers.run(
            teachers.FitTeacherConfig(
                data=data, teacher="gpt-64", teacher_args=("layers=2",), out=folder / "teacher", threads=1, **recipe
            )
        )
        asked = DumpConfig(data=data, run=folder / "teacher", splits=("validation", "test"), out=folder, device="cpu")
        sample = ask_sample(prepare(asked), rows + OTHERS, 0, Silent())
        student = Standing.of(sample.logits, sample.hidden, 1.0)
        states = student.hidden
        # The student's coordinates are a rotation of the teacher's hidden states: its logits are linear in them, too.
        wide = np.column_stack([states.numpy().astype(np.float64), np.ones(len(states))])
        found = torch.from_numpy((np.linalg.pinv(wide).astype(np.float32) @ sample.logits).T.copy())
        weight = torch.zeros_like(found[:, :-1])
        weight[:, : len(student.middle)] = student.weight
        bias = student.bias - student.weight @ student.middle
        return cls(states, found[:, :-1].contiguous(), found[:, -1].contiguous(), weight, bias)

    def measured(self, first: int, rows: int) -> Tensor:
        """(rows, D): hidden states of some positions from ``first`` on."""
        return self.states[first : first + rows]

    def others(self) -> Tensor:
        """(1024, D): hidden states of positions that are not measured."""
        return self.states[-OTHERS:]

    def logits(self, hidden: Tensor) -> Tensor:
        """(rows, V): the teacher's."""
        return torch.addmm(self.bias, hidden, self.weight.T)

    def student_logits(self, hidden: Tensor) -> Tensor:
        """(rows, V): the student's."""
        return torch.addmm(self.student_bias, hidden, self.student_weight.T)
