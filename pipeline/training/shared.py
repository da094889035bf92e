"""One objective for several members, each with its own: what they have in common is computed once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.losses import ResponseLoss
from pipeline.softlabels import Opinions, SoftLabels
from pipeline.training.hints import Hints
from pipeline.training.objective import Batch, Objective, Output, Terms


@dataclass(frozen=True)
class Shared:
    """``objectives``: one a member. Each member's terms are those that its own objective gives for its own logits.

    Members whose soft (or hard) term differs in its weight alone are computed in one call, on their rows one after
    another; a loss that looks at a whole batch is computed member by member.

    Raises ConfigError without objectives, or when one learns hints: features are of one student.
    """

    objectives: tuple[Objective, ...]

    def __post_init__(self) -> None:
        if not self.objectives:
            raise ConfigError("a shared objective should be of one member or more; found none")
        if any(objective.hints is not None for objective in self.objectives):
            raise ConfigError("several students trained as one learn no hints: train each alone")

    @property
    def alpha(self) -> float:
        """The largest of the members': 0 where none uses soft labels."""
        return max(objective.alpha for objective in self.objectives)

    @property
    def beta(self) -> float:
        """The largest of the members': 0 where none uses hard labels."""
        return max(objective.beta for objective in self.objectives)

    @property
    def hints(self) -> Hints | None:
        """None: see the class."""
        return None

    @property
    def response(self) -> ResponseLoss:
        """The loss of the first member."""
        return self.objectives[0].response

    @property
    def used(self) -> tuple[str, ...]:
        """Those that any member uses."""
        return tuple(name for name, weight in (("hard", self.beta), ("soft", self.alpha)) if weight)

    def at(self, epoch: int) -> Shared:
        """With the objective of each member in that epoch."""
        epochs = tuple(objective.at(epoch) for objective in self.objectives)
        return self if epochs == self.objectives else Shared(epochs)

    @functools.cached_property
    def _alike_soft(self) -> list[list[int]]:
        """Members that have one soft term in common."""
        return _alike((n, _soft_key(o, n)) for n, o in enumerate(self.objectives) if o.alpha)

    @functools.cached_property
    def _alike_hard(self) -> list[list[int]]:
        return _alike((n, o.smoothing) for n, o in enumerate(self.objectives) if o.beta)

    def __call__(self, output: Output, batch: Batch) -> Terms:
        """Terms (n,) of logits (n, B, C). A term that a member does not use is 0 for it.

        Raises ConfigError when there are more or fewer members than objectives.
        """
        if len(output.logits) != len(self.objectives):
            raise ConfigError(
                f"logits of {len(self.objectives)} members were expected, one an objective; found {len(output.logits)}"
            )
        logits = output.logits
        wide = functools.cache(lambda times: _repeated(batch, times))  # a step has few sizes of groups
        hard = soft = None
        if self._alike_hard:
            hard = self._terms(logits, self._alike_hard, wide, Objective.hard_rows)
        if self._alike_soft and batch.soft is not None:
            soft = self._terms(logits, self._alike_soft, wide, _soft)
        weighed = [
            _vector(tuple(getattr(o, name) for o in self.objectives), term.dtype, term.device) * term
            for name, term in (("alpha", soft), ("beta", hard))
            if term is not None
        ]
        nothing = logits.sum(dim=(1, 2)) * 0
        return Terms(sum(weighed[1:], start=weighed[0]) if weighed else nothing, hard, soft, None)

    def _terms(
        self,
        logits: Tensor,
        alike: Sequence[Sequence[int]],
        wide: Callable[[int], Batch],
        rows_of: Callable[[Objective, Tensor, Batch], Tensor],
    ) -> Tensor:
        """(n,): sums over the rows of each member; 0 for members of no group."""
        count = len(logits)
        if len(alike[0]) == count:  # one group of all: nothing has to be taken apart
            rows = rows_of(self.objectives[0], logits.flatten(0, 1), wide(count))
            return rows.reshape(count, -1).sum(dim=1)
        each = logits.unbind()
        sums: dict[int, Tensor] = {}
        for members in alike:
            rows = rows_of(self.objectives[members[0]], torch.cat([each[n] for n in members]), wide(len(members)))
            sums |= dict(zip(members, rows.reshape(len(members), -1).sum(dim=1).unbind(), strict=True))
        zero = next(iter(sums.values())).new_zeros(())
        return torch.stack([sums.get(n, zero) for n in range(count)])


def _soft(objective: Objective, logits: Tensor, batch: Batch) -> Tensor:
    if batch.soft is None:
        raise TypeError("a soft term was asked for without soft labels")
    return objective.soft_rows(logits, batch, batch.soft)


def _soft_key(objective: Objective, number: int) -> Any:
    """What members with one soft term in common share; each its own where a loss looks at the whole batch."""
    response = objective.response
    temperature = objective.temperature if response.softened else None
    alone = number if response.batch else None
    return objective.loss, objective.parameters, temperature, objective.standardise, objective.bare, alone


def _alike(keys: Iterable[tuple[int, Any]]) -> list[list[int]]:
    """The numbers that have the same key, in order."""
    found: dict[Any, list[int]] = {}
    for number, key in keys:
        found.setdefault(key, []).append(number)
    return list(found.values())


def _repeated(batch: Batch, times: int) -> Batch:
    """A batch of its rows ``times`` over."""
    if times == 1:
        return batch

    def again(array: Tensor) -> Tensor:
        return array.repeat(times, *[1] * (array.ndim - 1))

    return replace(
        batch,
        labels=again(batch.labels),
        soft=None if batch.soft is None else _labels_again(batch.soft, again),
        has_soft=None if batch.has_soft is None else again(batch.has_soft),
        partners=None if batch.partners is None else again(batch.partners),
        share=None if batch.share is None else again(batch.share),
    )


def _labels_again(soft: SoftLabels | Opinions, again: Callable[[Tensor], Tensor]) -> SoftLabels | Opinions:
    if not isinstance(soft, Opinions):
        return soft.map(again)
    return Opinions(tuple(replace(one, soft=one.soft.map(again), weights=again(one.weights)) for one in soft.opinions))


@functools.lru_cache(maxsize=64)
def _vector(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """(n,): made once, for a step should not wait for the device."""
    return torch.tensor(values, dtype=dtype, device=device)
