"""The terms of an epoch's batches: kept on the device, added up exactly, in whatever order, at its end.

A term is a scalar, or (n,) where n members are trained as one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.training.objective import Terms

CHUNK = 1024


class Tally:
    """Terms batch by batch; ``before`` are those of the same epoch that an earlier process saw, as ``tensor`` gave."""

    def __init__(self, before: Tensor | None = None) -> None:
        self._done = [] if before is None or not len(before) else [before]  # of no batch it has no members either
        self._open: Tensor | None = None
        self._used = 0

    def add(self, terms: Terms) -> None:
        """The sums of one batch. Nothing is read back from the device."""
        if self._open is None:
            # One block for many batches: small tensors kept between the large ones of a step would stop the
            # allocator from using the memory of past batches again.
            self._open = torch.zeros(CHUNK, len(Terms._fields), *terms.total.shape, device=terms.total.device)
        for column, value in enumerate(terms):
            if value is not None:
                self._open[self._used, column] = value.detach()
        self._used += 1
        if self._used == CHUNK:
            self._done, self._open, self._used = [self.tensor()], None, 0

    def tensor(self) -> Tensor:
        """(batches, terms) or (batches, terms, n), float32 on the host."""
        rows = [*self._done]
        if self._open is not None:
            rows.append(self._open[: self._used].cpu())
        return torch.cat(rows) if rows else torch.zeros(0, len(Terms._fields))

    def sums(self) -> dict[str, Tensor]:
        """The exact sum of each term by its name, a scalar or (n,) float64; NaN when a value is not finite."""
        return dict(zip(Terms._fields, exact_sum(self.tensor()), strict=True))


def judged(logits: Tensor, expected_B: Tensor) -> Tensor:
    """How many of the rows have their label as largest class, and the sum of their negative log-likelihoods (nats).

    (2,) of logits (B, C), (2, n) of those of n members, (n, B, C).
    """
    expected = expected_B.expand(logits.shape[:-1])
    hits = (logits.argmax(dim=-1) == expected).sum(dim=-1)
    nll = functional.cross_entropy(logits.movedim(-1, 1), expected, reduction="none").sum(dim=-1)
    return torch.stack([hits, nll])


def exact_sum(rows: Tensor) -> Tensor:
    """The sum over the first dimension of (rows, ...), float64, whatever the order of the rows.

    A sum with a NaN or infinite term is NaN; those of other members are not touched.
    """
    flat = rows.double().flatten(1).T.tolist()
    finite = torch.isfinite(rows).flatten(1).all(dim=0).tolist()
    sums = [math.fsum(column) if whole else math.nan for column, whole in zip(flat, finite, strict=True)]
    return torch.tensor(sums, dtype=torch.float64).reshape(rows.shape[1:])


def plain(figure: Tensor) -> float | list[float]:
    """A scalar as a float, (n,) as a list: what a record may hold."""
    found: float | list[float] = figure.tolist()
    return found
