"""Soft labels of each kind against the logits of the same rows: value of the loss, and its gradient in place.

Each class has the same three parts, called in this order by ``blocks.block_terms``: made before the student's
exponentials are taken; ``terms``; ``add_gradient``. With q the student's softmax and s the sum of the labels of a row,
the loss is ``sum_j p_j (log p_j - log q_j)``, without T^2, and for draws, whose p is not known, ``-sum_j w_j log q_j``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from pipeline.errors import ConfigError, EncodingError
from pipeline.softlabels import Dense, Sampled, SoftLabels, TopK

ONE, EVEN = "one", "even"
RESIDUALS = (ONE, EVEN)
"""What stands for the classes that top-k labels dropped: one outcome, whose mass alone is known; or each of them has
the same share of it."""


def check_residual(residual: str, soft: SoftLabels | None) -> None:
    """Raises ConfigError for none of ``RESIDUALS``, EncodingError for labels that have no residual to be spread."""
    if residual not in RESIDUALS:
        raise ConfigError(f"residual should be one of {', '.join(RESIDUALS)}; found {residual!r}")
    if residual == EVEN and soft is not None and not isinstance(soft, TopK):
        found = "sampled ones" if isinstance(soft, Sampled) else "labels of all classes"
        raise EncodingError(
            f"residual={EVEN} spreads what top-k labels dropped; found {found}. Use residual={ONE}, or a cache dumped "
            "with --encoding topk"
        )


@dataclass(frozen=True)
class Softmax:
    """The softmax of rows x = (z - max) / T: ``exponentials`` (P, V) of x, and ``total`` (P,), their sum.

    ``aside`` (P, K): the x of classes that were set aside, which the other two do not have.
    """

    exponentials: Tensor
    total: Tensor
    aside: Tensor | None

    @classmethod
    def of(cls, exponentials: Tensor, aside: Tensor | None) -> Softmax:
        """Adds them up."""
        return cls(exponentials, exponentials.sum(dim=1), aside)

    @cached_property
    def log_normaliser(self) -> Tensor:
        """(P,): log of the sum over all classes."""
        log_total = self.total.log()
        return log_total if self.aside is None else torch.logaddexp(log_total, torch.logsumexp(self.aside, dim=1))

    @cached_property
    def unit(self) -> Tensor:
        """(P,): what makes a probability of an exponential."""
        return self.log_normaliser.neg().exp()

    @cached_property
    def q_aside(self) -> Tensor | None:
        """(P, K): the probabilities of what was set aside."""
        return None if self.aside is None else (self.aside - self.log_normaliser[:, None]).exp()


class Terms(NamedTuple):
    """The loss of each row (P,), and what its exponentials are to be multiplied by for the gradient in x (P,)."""

    value: Tensor
    scale: Tensor


class MetDense:
    """``q - p``."""

    def __init__(self, soft: Dense, x_PV: Tensor, temperature: float) -> None:
        log_p = torch.log_softmax(soft.stored.to(x_PV.dtype) / temperature, dim=1)
        self.p = log_p.exp()
        self.against = torch.linalg.vecdot(self.p, log_p.sub_(x_PV))

    def terms(self, own: Softmax) -> Terms:
        return Terms(self.against + own.log_normaliser, own.unit)

    def add_gradient(self, gradient_PV: Tensor, own: Softmax, push_P: Tensor) -> None:
        gradient_PV.addcmul_(self.p, push_P[:, None], value=-1.0)


class MetTopK:
    """``s q_j - p_j`` for a kept class, ``s q_j - r q_j / q_o`` for another: r the residual, q_o the mass of q there.

    What is summed for q_o is the dropped classes alone, relative to the largest of them: exact where the student is
    so sure of a kept class that q_o underflows, or 1 - sum(q) is all rounding.
    """

    def __init__(self, soft: TopK, x_PV: Tensor, temperature: float) -> None:
        log_p, log_residual = soft.at(temperature)
        self.ids = soft.ids.long()
        self.log_p, self.log_residual = log_p.to(x_PV.dtype), log_residual.to(x_PV.dtype)
        self.p, self.residual = self.log_p.exp(), self.log_residual.exp()
        self.mass = self.p.sum(dim=1) + self.residual

    def terms(self, own: Softmax) -> Terms:
        assert own.aside is not None
        log_q = own.aside - own.log_normaliser[:, None]
        log_others = own.total.log() - own.log_normaliser
        # A residual of 0 (K = C, or one that underflowed) contributes nothing, whatever the student's mass there.
        rest = torch.where(self.residual > 0, self.residual * (self.log_residual - log_others), 0.0)
        drag = torch.where(own.total > 0, self.residual / own.total, 0.0)
        return Terms(torch.linalg.vecdot(self.p, self.log_p - log_q) + rest, self.mass * own.unit - drag)

    def add_gradient(self, gradient_PV: Tensor, own: Softmax, push_P: Tensor) -> None:
        assert own.q_aside is not None
        gradient_PV.scatter_add_(1, self.ids, push_P[:, None] * (self.mass[:, None] * own.q_aside - self.p))


class MetEven:
    """``s q_j - p_j`` for a kept class, ``s q_j - r / n`` for another: the residual r in equal shares for n classes.

    No class is set aside: ``q`` is of all. The mean of log q over the dropped classes comes from a sum over all.
    """

    def __init__(self, soft: TopK, x_PV: Tensor, temperature: float) -> None:
        log_p, log_residual = soft.at(temperature)
        self.ids = soft.ids.long()
        log_p, log_residual = log_p.to(x_PV.dtype), log_residual.to(x_PV.dtype)
        dropped = x_PV.shape[1] - self.ids.shape[1]
        self.p, residual = log_p.exp(), log_residual.exp()
        self.share = residual / max(dropped, 1)
        self.mass = self.p.sum(dim=1) + residual
        kept = x_PV.gather(1, self.ids)
        # Sums of one sign, and r / n is at most the mean kept p: what the difference loses is no more than a rounding
        # of the mean x, however few are dropped.
        others = x_PV.sum(dim=1) - kept.sum(dim=1)
        # A residual of 0 contributes nothing, whatever the student's logits there.
        rest = torch.where(self.share > 0, residual * self.share.log() - self.share * others, 0.0)
        self.against = torch.linalg.vecdot(self.p, log_p - kept) + rest

    def terms(self, own: Softmax) -> Terms:
        return Terms(self.against + self.mass * own.log_normaliser, self.mass * own.unit)

    def add_gradient(self, gradient_PV: Tensor, own: Softmax, push_P: Tensor) -> None:
        each = push_P * self.share
        gradient_PV.sub_(each[:, None])
        gradient_PV.scatter_add_(1, self.ids, each[:, None] - push_P[:, None] * self.p)


class MetSampled:
    """``s q - w``."""

    def __init__(self, soft: Sampled, x_PV: Tensor, temperature: float) -> None:
        self.weights = soft.at(temperature).to(x_PV.dtype)
        numbers = torch.arange(len(soft), device=x_PV.device)
        # With its size given, a device need not be waited for.
        self.rows = numbers.repeat_interleave(soft.offsets[1:] - soft.offsets[:-1], output_size=len(self.weights))
        self.cells = self.rows * x_PV.shape[1] + soft.ids.long()
        self.x = x_PV.view(-1)[self.cells]

    def terms(self, own: Softmax) -> Terms:
        none = torch.zeros_like(own.total)
        mass = none.index_add(0, self.rows, self.weights)
        cost = self.weights * (own.log_normaliser[self.rows] - self.x)
        return Terms(none.index_add(0, self.rows, cost), mass * own.unit)

    def add_gradient(self, gradient_PV: Tensor, own: Softmax, push_P: Tensor) -> None:
        gradient_PV.view(-1).index_add_(0, self.cells, self.weights * push_P[self.rows], alpha=-1.0)


Met: TypeAlias = MetDense | MetTopK | MetEven | MetSampled


def meet(soft: SoftLabels, x_PV: Tensor, temperature: float, residual: str = ONE) -> Met:
    """Labels against x = (z - max) / T. Raises TemperatureError when they were not kept at T."""
    if isinstance(soft, Dense):
        return MetDense(soft, x_PV, temperature)
    if isinstance(soft, Sampled):
        return MetSampled(soft, x_PV, temperature)
    return MetEven(soft, x_PV, temperature) if residual == EVEN else MetTopK(soft, x_PV, temperature)
