"""How far labels turn the gradient of a student's parameters: of its output matrix, over many positions.

With h the hidden state (D,) of a position, q the student's distribution and p the teacher's at a temperature, full
distributions give the matrix (V, D) the gradient g = sum of (q - p) h over positions, but for a factor; labels that
stand for w give f = sum of (q - w) h. Their difference e = f - g = sum of (p - w) h is what an encoding does. Noise
that is another at every position averages out in it, and a bias does not: a mean over single positions cannot tell the
two apart. (Anshumann et al. 2025, arXiv 2503.16870, compare gradients by angle and ratio of lengths, too.)

``Moments`` holds what is needed to say the angle between g and f, and the ratio of their lengths, over the positions
that were seen and, as long as positions are independent, over any other number of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.losses.meeting import EVEN, ONE
from pipeline.softlabels import Dense, Sampled, SoftLabels, TopK

_WHOLE = 1e-5
"""Weights that come so near to 1 in every row come to 1."""


@dataclass(frozen=True)
class Kept:
    """What labels of P positions stand for: ``values`` (M,) at the classes ``ids`` (M,) of ``rows`` (M,), each once.

    Besides, at every class: ``own`` (P,) of the student's own distribution, and ``even`` (P,). None: nothing.
    """

    rows: Tensor
    ids: Tensor
    values: Tensor
    own: Tensor | None = None
    even: Tensor | None = None

    def wide(self, q_PV: Tensor) -> Tensor:
        """The same at all classes, (P, V)."""
        found = torch.zeros_like(q_PV) if self.own is None else q_PV * self.own[:, None]
        if self.even is not None:
            found += self.even[:, None]
        return found.index_put_((self.rows, self.ids), self.values, accumulate=True)

    def add_to(self, sums_VD: Tensor, q_PV: Tensor, hidden_PD: Tensor) -> None:
        """Add the sum of w h over the positions to ``sums_VD``, without making w as wide as the vocabulary."""
        sums_VD.index_add_(0, self.ids, self.values[:, None] * hidden_PD[self.rows])
        if self.own is not None:
            sums_VD.addmm_(q_PV.T, self.own[:, None] * hidden_PD)
        if self.even is not None:
            sums_VD += self.even @ hidden_PD


def kept(soft: TopK | Sampled, q_PV: Tensor, temperature: float, residual: str = ONE) -> Kept:
    """What torch ``soft`` labels stand for to ``distillation_loss`` where the student's distribution is ``q_PV``.

    The gradient of that loss in the student's logits is T (q - w). Top-k: the dropped mass meets the student's mass on
    the dropped classes, as one outcome, and so is spread over them as the student spreads its own, unless ``residual``
    is "even". Sampled: the weights, and 1 - s of q, s being what they come to.

    Raises TemperatureError when they were not kept at this temperature.
    """
    if isinstance(soft, TopK):
        stand = evenly if residual == EVEN else largest
        return stand(soft.ids.long(), *soft.at(temperature), q_PV)
    weights = soft.at(temperature).to(q_PV.dtype)
    rows, ids = soft.rows, soft.ids.long()
    rest = 1 - torch.zeros_like(q_PV[:, 0]).index_add_(0, rows, weights)
    return Kept(rows, ids, weights, None if bool((rest.abs() < _WHOLE).all()) else rest)


def largest(ids_PK: Tensor, logprobs_PK: Tensor, log_rest_P: Tensor, q_PV: Tensor) -> Kept:
    """``kept`` of classes with their log-probabilities, and the logarithm of the others' mass, -inf for none."""
    own_PK = q_PV.gather(1, ids_PK)
    rest = log_rest_P.to(q_PV.dtype).exp()
    # Summed over the dropped classes: one minus the others is all rounding where the student is sure of a kept one.
    dropped = q_PV.scatter(1, ids_PK, 0.0).sum(dim=1)
    scale = torch.where((rest > 0) & (dropped > 0), rest / dropped, 0.0)
    p_PK = logprobs_PK.to(q_PV.dtype).exp()
    values = p_PK - own_PK * scale[:, None]
    # Rounded logits come to a little more or less than 1 with the rest.
    own = scale + (1 - p_PK.sum(dim=1) - rest)
    return Kept(_rows(ids_PK), ids_PK.flatten(), values.flatten(), _unless_nothing(own))


def evenly(ids_PK: Tensor, logprobs_PK: Tensor, log_rest_P: Tensor, q_PV: Tensor) -> Kept:
    """``largest``, where each of the others has the same share of their mass."""
    rest = log_rest_P.to(q_PV.dtype).exp()
    even = rest / max(q_PV.shape[1] - ids_PK.shape[1], 1)
    p_PK = logprobs_PK.to(q_PV.dtype).exp()
    own = 1 - p_PK.sum(dim=1) - rest
    return Kept(_rows(ids_PK), ids_PK.flatten(), (p_PK - even[:, None]).flatten(), _unless_nothing(own), even)


def _rows(ids_PK: Tensor) -> Tensor:
    """(P K,): the row of each id."""
    return torch.arange(len(ids_PK), device=ids_PK.device)[:, None].expand_as(ids_PK).flatten()


def _unless_nothing(own: Tensor) -> Tensor | None:
    return None if bool((own.abs() < _WHOLE).all()) else own


def stood_for(soft: SoftLabels, q_PV: Tensor, temperature: float, residual: str = ONE) -> Tensor:
    """The distribution w (P, V) that torch labels of any kind stand for; see ``kept``."""
    if isinstance(soft, Dense):
        return torch.softmax(soft.logits.to(q_PV.dtype) / temperature, dim=1)
    return kept(soft, q_PV, temperature, residual).wide(q_PV)


@dataclass(frozen=True)
class Turn:
    """``angle`` in degrees between f and g, and ``ratio``, the length of f to that of g, over so many positions."""

    angle: float
    ratio: float
    positions: int

    @classmethod
    def of(cls, squared_e: float, e_with_g: float, squared_g: float, positions: int) -> Turn:
        """From the products of e and g: exact for small angles, where a cosine has no digits left."""
        if squared_g <= 0:
            return cls(90.0 if squared_e > 0 else 0.0, math.inf if squared_e > 0 else 1.0, positions)
        across = math.sqrt(max(0.0, squared_g * squared_e - e_with_g**2))
        length = math.sqrt(max(0.0, squared_g + 2 * e_with_g + squared_e))
        return cls(math.degrees(math.atan2(across, squared_g + e_with_g)), length / math.sqrt(squared_g), positions)


def turn(full_VD: Tensor, label_VD: Tensor, student_VD: Tensor, positions: int) -> Turn:
    """The turn from sums over positions of p h, w h and q h."""
    e, g = (full_VD - label_VD).double(), (student_VD - full_VD).double()
    return Turn.of(float(e.square().sum()), float((e * g).sum()), float(g.square().sum()), positions)


@dataclass(frozen=True)
class Moments:
    """Products of sums over n ``positions``, and the sums of each position's own products, of two gradients x and y."""

    of_sums: float
    of_each: float
    positions: int

    def over(self, count: int, square: bool = False) -> float:
        """The expected product of their means over ``count`` positions, of positions that are independent.

        Two of them meet in the product of their means, E[x] E[y], in all cases but one in ``count``: the unbiased
        estimate of that is the mean over all pairs of different positions. For n it is what was found. ``square``: x
        and y are the same, and E[x] E[x], whatever its estimate is, is not below 0.
        """
        n = self.positions
        alone = self.of_each / n
        if n == count:
            return self.of_sums / n**2
        apart = (self.of_sums - self.of_each) / (n * (n - 1)) if n > 1 else alone
        apart = max(0.0, apart) if square else apart
        return apart * (count - 1) / count + alone / count


def turned(squared_e: Moments, e_with_g: Moments, squared_g: Moments, positions: int) -> Turn:
    """The turn to expect over so many positions, from products of e with itself, with g, and of g with itself."""
    squares, full = (each.over(positions, square=True) for each in (squared_e, squared_g))
    return Turn.of(squares, e_with_g.over(positions), full, positions)
