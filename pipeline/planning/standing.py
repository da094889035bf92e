"""A student that stands in for the one that will be trained on token sequences, and its gradient on the sample.

It is linear in hidden states of its own: the leading directions of the teacher's, 64 at most, or of the logits where
the teacher has no hidden states to show. Its bias is the teacher's mean logits; of what else the teacher says it has
learnt half, along the first half of its directions, and nothing along the others. Nobody trained it: where a real
student stands, nobody knows before there is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.losses.meeting import ONE
from pipeline.planning.parameters import Moments, Turn, stood_for, turned
from pipeline.softlabels import SoftLabels

DIMENSIONS = 64
STEP = 16_384
"""Positions of a step of training: what the turn of a gradient is told for, besides the sample's own."""

_ELEMENTS = 1 << 23
"""Logits looked at together: 32 MiB in float32, for each of half a dozen arrays."""

Floats = npt.NDArray[np.floating[Any]]


def leading(values_ND: Floats, most: int = DIMENSIONS) -> npt.NDArray[np.float64]:
    """Coordinates (n, d) of rows along their leading directions, ``most`` of those that hold anything at all."""
    rows, width = values_ND.shape
    if rows > width:
        wide = values_ND.astype(np.float64)
        strengths, directions = _leading(wide.T @ wide, most)
        return np.asarray(wide @ directions)
    square = np.zeros((rows, rows))
    step = max(1, _ELEMENTS // rows)
    for first in range(0, width, step):
        part = values_ND[:, first : first + step].astype(np.float64)
        square += part @ part.T
    strengths, directions = _leading(square, most)
    return np.asarray(directions * np.sqrt(strengths))


def _leading(square: npt.NDArray[np.float64], most: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The largest eigenvalues (d,) and their vectors (n, d) of a symmetric matrix (n, n) without negative ones."""
    strengths, directions = np.linalg.eigh(square)
    strengths, directions = strengths[::-1][:most], directions[:, ::-1][:, :most]
    held = strengths > 1e-9 * max(float(strengths[0]), 1e-30)
    return strengths[held], directions[:, held]


@dataclass(frozen=True)
class Standing:
    """The student on a sample of n positions, whose ``logits`` (n, V) float32 the teacher gave.

    - ``hidden`` (n, d): the student's hidden states; ``weight`` (V, r) and ``bias`` (V,): its logits are the first r
      of ``hidden``, less ``middle`` (r,), times weight, plus bias; all float32.
    """

    logits: npt.NDArray[np.float32]
    temperature: float
    hidden: Tensor
    middle: Tensor
    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, logits_NV: npt.NDArray[np.float32], hidden_ND: Floats | None, temperature: float) -> Standing:
        """The student for a sample; ``hidden_ND``: the teacher's hidden states, None where it has none to show."""
        if hidden_ND is None:
            # A constant added to a row says nothing.
            hidden_ND = logits_NV - logits_NV.mean(axis=1, keepdims=True)
        states = leading(hidden_ND)
        half = (states.shape[1] + 1) // 2
        middle = states[:, :half].mean(axis=0)
        bias = logits_NV.mean(axis=0, dtype=np.float64)
        # Half of what is linear in these directions: least squares over the sample. Centred states forget the bias.
        inverse = np.linalg.pinv(states[:, :half] - middle, rcond=1e-6)
        weight = 0.5 * (inverse.astype(np.float32) @ logits_NV).T
        each = (torch.from_numpy(np.ascontiguousarray(a, np.float32)) for a in (states, middle, weight, bias))
        return cls(logits_NV, temperature, *each)

    def batches(self) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """(rows, hidden states (P, d), teacher's p (P, V), student's q (P, V)) of some positions after others."""
        step = max(1, _ELEMENTS // self.logits.shape[1])
        for first in range(0, len(self.logits), step):
            rows = slice(first, first + step)
            hidden = self.hidden[rows]
            student = torch.addmm(self.bias, hidden[:, : len(self.middle)] - self.middle, self.weight.T)
            p, q = (each.div_(self.temperature) for each in (torch.from_numpy(self.logits[rows]).clone(), student))
            yield rows, hidden, p.softmax(dim=1), q.softmax(dim=1)

    @cached_property
    def _full(self) -> tuple[Tensor, Moments]:
        """The gradient from full distributions, and its moments."""
        sums = torch.zeros(self.logits.shape[1], self.hidden.shape[1])
        alone = 0.0
        for _, hidden, p, q in self.batches():
            g = q.sub_(p)
            sums.addmm_(g.T, hidden)
            alone += _product(g, g, hidden)
        return sums, Moments(_dot(sums, sums), alone, len(self.logits))

    def turns(self, soft: SoftLabels, residual: str = ONE) -> dict[str, Turn]:
        """How far numpy labels of the sample turn the gradient: over the ``sample``, and over a ``step`` (expected).

        ``residual``: what stands for the classes that top-k labels dropped, as ``distillation_loss`` takes it.
        """
        full, squared_g = self._full
        sums = torch.zeros_like(full)
        squares = products = 0.0
        for rows, hidden, p, q in self.batches():
            w = stood_for(soft.select(rows).map(torch.from_numpy), q, self.temperature, residual)
            e = torch.sub(p, w, out=w)
            sums.addmm_(e.T, hidden)
            squares += _product(e, e, hidden)
            products += _product(e, q.sub_(p), hidden)
        n = len(self.logits)
        moments = (
            Moments(_dot(sums, sums), squares, n),
            Moments(_dot(sums, full), products, n),
            squared_g,
        )
        return {"sample": turned(*moments, n), "step": turned(*moments, STEP)}


def _product(one_PV: Tensor, other_PV: Tensor, hidden_PD: Tensor) -> float:
    """The sum over positions of the product of two gradients: of the rows, times the squared hidden state."""
    return float(torch.linalg.vecdot(one_PV, other_PV).double() @ hidden_PD.double().square().sum(dim=1))


def _dot(one: Tensor, other: Tensor) -> float:
    """The product of two matrices, in float64 without copies of both."""
    steps = range(0, len(one), 8192)
    return sum((float((one[n : n + 8192].double() * other[n : n + 8192].double()).sum()) for n in steps), 0.0)
