"""The terms of an epoch's batches: kept on the device, added up exactly, in whatever order, at its end."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.training.objective import Terms

CHUNK = 1024


class Tally:
    """Terms batch by batch; ``before`` (batches, 4) are those of the same epoch that an earlier process saw."""

    def __init__(self, before: Tensor | None = None) -> None:
        self._done = [] if before is None else [before]
        self._open: Tensor | None = None
        self._used = 0

    def add(self, terms: Terms) -> None:
        """The sums of one batch. Nothing is read back from the device."""
        if self._open is None:
            # One block for many batches: small tensors kept between the large ones of a step would stop the
            # allocator from using the memory of past batches again.
            self._open = torch.zeros(CHUNK, len(Terms._fields), device=terms.total.device)
        for column, value in enumerate(terms):
            if value is not None:
                self._open[self._used, column] = value.detach()
        self._used += 1
        if self._used == CHUNK:
            self._done, self._open, self._used = [self.tensor()], None, 0

    def tensor(self) -> Tensor:
        """(batches, 4) float32 on the host: a column per term."""
        rows = [*self._done]
        if self._open is not None:
            rows.append(self._open[: self._used].cpu())
        return torch.cat(rows) if rows else torch.zeros(0, len(Terms._fields))

    def sums(self) -> dict[str, float]:
        """The exact sum of each term by its name; NaN when a value is not finite."""
        kept = self.tensor()
        if not bool(torch.isfinite(kept).all()):
            return dict.fromkeys(Terms._fields, math.nan)
        return {name: math.fsum(column) for name, column in zip(Terms._fields, kept.T.tolist(), strict=True)}
