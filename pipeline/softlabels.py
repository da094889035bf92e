"""Typed batches of soft labels: what an encoding decodes to and what a loss takes.

The classes hold numpy arrays or torch tensors alike (this layer imports neither torch nor the store); ``map``
turns one into the other. Shapes are checked once, here, so that losses need not. Every distribution is a row:
B rows are the positions of a batch, C the classes, K the kept classes, S the declared temperatures, M the draws of
all rows together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from pipeline.errors import EncodingError, TemperatureError

Array: TypeAlias = Any
"""A numpy array or a torch tensor."""

Rows: TypeAlias = Any
"""Which rows: a slice, a mask (B,) or numbers, as the array of the other side takes them."""


def _check(name: str, array: Array, shape: tuple[int | None, ...]) -> None:
    found = tuple(array.shape)
    if len(found) != len(shape) or any(
        want is not None and want != got for want, got in zip(shape, found, strict=True)
    ):
        wanted = ", ".join("*" if s is None else str(s) for s in shape)
        raise EncodingError(f"{name} should have shape ({wanted}), found {found}")


@dataclass(frozen=True)
class Dense:
    """All the logits of each row.

    ``stored`` is (B, C), floating, in the precision in which it was kept: half the memory, and half the way to a
    device, for float16. Compute with ``logits``. Lossy encodings keep logits up to a constant per row, so that only
    differences within a row carry meaning.
    """

    stored: Array

    def __post_init__(self) -> None:
        _check("logits", self.stored, (None, None))

    def __len__(self) -> int:
        return int(self.stored.shape[0])

    @property
    def logits(self) -> Array:
        """The logits (B, C) to compute with: float32, or float64 where that was given. Half precision is widened."""
        stored = self.stored
        if not str(stored.dtype).endswith("float16"):
            return stored
        return stored.astype("float32") if hasattr(stored, "astype") else stored.float()

    @property
    def classes(self) -> int:
        """C, the number of classes."""
        return int(self.stored.shape[1])

    def map(self, function: Callable[[Array], Array]) -> Dense:
        """The same labels with ``function`` applied to every array (a device move)."""
        return Dense(function(self.stored))

    def select(self, rows: Rows) -> Dense:
        """The labels of some rows: a slice, a mask (B,) or row numbers, in any order."""
        return Dense(self.stored[rows])


@dataclass(frozen=True)
class TopK:
    """The K largest logits of each row and, per declared temperature, the mass of all the others.

    - ``ids`` (B, K) integer, ascending within a row;
    - ``logits`` (B, K) floating, relative to the row's largest logit;
    - ``log_normaliser`` (B, S) float32: logsumexp over **all** classes of (logits - max) / T;
    - ``log_residual`` (B, S) float32: log of the probability mass of the dropped classes at T, ``-inf`` when
      nothing was dropped (K = C);
    - ``temperatures``: the S values of T; ``num_classes``: C.
    """

    ids: Array
    logits: Array
    log_normaliser: Array
    log_residual: Array
    temperatures: tuple[float, ...]
    num_classes: int

    def __post_init__(self) -> None:
        _check("ids", self.ids, (None, None))
        rows, kept = self.ids.shape
        _check("logits", self.logits, (rows, kept))
        _check("log_normaliser", self.log_normaliser, (rows, len(self.temperatures)))
        _check("log_residual", self.log_residual, (rows, len(self.temperatures)))

    def __len__(self) -> int:
        return int(self.ids.shape[0])

    @property
    def classes(self) -> int:
        """C, the number of classes."""
        return self.num_classes

    def at(self, temperature: float) -> tuple[Array, Array]:
        """Log-probabilities of the kept classes (B, K) and log of the dropped mass (B,) at one temperature.

        Raises TemperatureError when the cache did not keep that temperature: the dropped mass cannot be rescaled.
        """
        column = self.column(temperature)
        logprobs = self.logits / temperature - self.log_normaliser[:, column : column + 1]
        return logprobs, self.log_residual[:, column]

    def column(self, temperature: float) -> int:
        """The column that holds ``temperature``; raises TemperatureError naming those on hand."""
        for column, known in enumerate(self.temperatures):
            if same_temperature(temperature, known):
                return column
        on_hand = ", ".join(f"{t:g}" for t in self.temperatures)
        raise TemperatureError(
            f"temperature {temperature:g} was not kept: these top-{self.ids.shape[1]} labels hold T = {on_hand}. "
            f"Use one of those, or dump again with --temperature {temperature:g}"
        )

    def bare(self) -> TopK:
        """Top-k labels as they are kept without the residual: the kept classes renormalised, the others at nothing.

        At each declared temperature ``p'_j = exp(z_j / T) / sum_i exp(z_i / T)``, summed over the kept classes, for a
        kept class j, and 0 for any other: ``log_normaliser`` becomes the logsumexp of the kept logits / T, and
        ``log_residual`` -inf. That is another teacher than the one asked, but where nothing was dropped (K = C).

        >>> labels = TopK(np.array([[0, 2]]), np.zeros((1, 2)), np.log([[4.0]]), np.log([[0.5]]), (1.0,), 4)
        >>> logprobs, log_residual = labels.bare().at(1.0)
        >>> np.exp(logprobs).round(2).tolist(), log_residual.tolist()
        ([[0.5, 0.5]], [-inf])
        """
        normaliser = self.log_normaliser * 0
        for column, temperature in enumerate(self.temperatures):
            normaliser[:, column] = _log_sum_exp(self.logits, temperature)
        return replace(self, log_normaliser=normaliser, log_residual=normaliser * 0 - math.inf)

    def map(self, function: Callable[[Array], Array]) -> TopK:
        """The same labels with ``function`` applied to every array (a device move)."""
        return replace(
            self,
            ids=function(self.ids),
            logits=function(self.logits),
            log_normaliser=function(self.log_normaliser),
            log_residual=function(self.log_residual),
        )

    def select(self, rows: Rows) -> TopK:
        """The labels of some rows: a slice, a mask (B,) or row numbers, in any order."""
        return self.map(lambda array: array[rows])


@dataclass(frozen=True)
class Sampled:
    """Some classes of each row, drawn at random, with unbiased estimates of their probabilities.

    The expectation of a row's weights, over the draws, is the teacher's distribution at ``temperature``: a class that
    was not drawn has weight 0. A row has as many classes as its draws hit, so those of all rows lie one after another:

    - ``ids`` (M,) integer, ascending within a row, each once;
    - ``weights`` (M,) floating, 0 or more; they sum to about 1 in a row (exactly where the teacher's own distribution
      was drawn from);
    - ``offsets`` (B + 1,) int64: row b has ``ids[offsets[b] : offsets[b + 1]]``;
    - ``temperature``: that of the distribution; ``num_classes``: C.
    """

    ids: Array
    weights: Array
    offsets: Array
    temperature: float
    num_classes: int

    def __post_init__(self) -> None:
        _check("ids", self.ids, (None,))
        _check("weights", self.weights, (int(self.ids.shape[0]),))
        _check("offsets", self.offsets, (None,))
        if not self.offsets.shape[0]:
            raise EncodingError("offsets should have shape (B + 1,): one more than there are rows; found none")

    def __len__(self) -> int:
        return int(self.offsets.shape[0]) - 1

    @property
    def classes(self) -> int:
        """C, the number of classes."""
        return self.num_classes

    @property
    def rows(self) -> Array:
        """(M,): the row that each of ``ids`` belongs to."""
        lengths = self.offsets[1:] - self.offsets[:-1]
        return _repeat(_ones(lengths).cumsum(0) - 1, lengths)

    def at(self, temperature: float) -> Array:
        """The weights (M,). Raises TemperatureError for another temperature than that of the draws."""
        if not same_temperature(temperature, self.temperature):
            raise TemperatureError(
                f"temperature {temperature:g} was not kept: these draws are of the distribution at T = "
                f"{self.temperature:g}. Use that, or dump again with --temperature {temperature:g}"
            )
        return self.weights

    def map(self, function: Callable[[Array], Array]) -> Sampled:
        """The same labels with ``function`` applied to every array (a device move)."""
        return replace(self, ids=function(self.ids), weights=function(self.weights), offsets=function(self.offsets))

    def select(self, rows: Rows) -> Sampled:
        """The labels of some rows: a slice, a mask (B,) or row numbers, in any order.

        >>> two = Sampled(np.array([3, 1, 2]), np.array([1.0, 0.5, 0.5]), np.array([0, 1, 3]), 1.0, 4)
        >>> two.select(np.array([1, 0])).ids.tolist(), two.select(np.array([1, 0])).offsets.tolist()
        ([1, 2, 3], [0, 2, 3])
        """
        starts = self.offsets[:-1][rows]
        lengths = self.offsets[1:][rows] - starts
        ends = lengths.cumsum(0)
        index = _ones(_repeat(lengths, lengths)).cumsum(0) - 1 + _repeat(starts - (ends - lengths), lengths)
        offsets = _zeros(ends, len(ends) + 1)
        offsets[1:] = ends
        return replace(self, ids=self.ids[index], weights=self.weights[index], offsets=offsets)


def _ones(array: Array) -> Array:
    return np.ones_like(array) if isinstance(array, np.ndarray) else array.new_ones(array.shape)


def _zeros(like: Array, count: int) -> Array:
    return np.zeros(count, like.dtype) if isinstance(like, np.ndarray) else like.new_zeros(count)


def _repeat(values: Array, times: Array) -> Array:
    """Each of ``values`` (n,) as often as ``times`` (n,) says."""
    return np.repeat(values, times) if isinstance(values, np.ndarray) else values.repeat_interleave(times)


def _log_sum_exp(logits: Array, temperature: float) -> Array:
    """(B,): log of the sum of exp(z / T) over each row of (B, K) logits. Their largest is 0: no sum is beyond K."""
    if hasattr(logits, "logsumexp"):
        return (logits / temperature).logsumexp(1)
    with np.errstate(over="ignore"):  # a logit far below the largest may leave its range: its exponential is 0
        return np.log(np.exp(logits / temperature).sum(axis=1))


def same_temperature(wanted: float, known: float) -> bool:
    """Whether a temperature is one that was kept: equal up to what writing it down may have rounded.

    >>> same_temperature(0.1 + 0.2, 0.3), same_temperature(4.0, 4.01)
    (True, False)
    """
    return abs(known - wanted) <= 1e-6 * max(1.0, abs(known))


def is_kept(temperature: float, kept: Iterable[float]) -> bool:
    """Whether ``temperature`` is one of those that were kept.

    >>> is_kept(4.0, (1.0, 4.0)), is_kept(2.0, ())
    (True, False)
    """
    return any(same_temperature(temperature, known) for known in kept)


SoftLabels: TypeAlias = Dense | TopK | Sampled


@dataclass(frozen=True)
class Opinion:
    """What one of several teachers said of the rows of a batch.

    - ``soft``: labels of B rows, over the classes that it knows;
    - ``classes`` (n,) int64: the student's number of each of those, None for all C in order;
    - ``weights`` (B,) floating: how much it counts for each row, 0 where it does not.
    """

    soft: SoftLabels
    classes: Array | None
    weights: Array

    def __post_init__(self) -> None:
        _check("weights", self.weights, (len(self.soft),))
        if self.classes is not None:
            _check("classes", self.classes, (self.soft.classes,))


@dataclass(frozen=True)
class Opinions:
    """What several teachers said of the same rows, kept apart: each may know classes of its own (``Panel``)."""

    opinions: tuple[Opinion, ...]

    def __len__(self) -> int:
        return len(self.opinions[0].soft)
