"""Several teachers as one: their probabilities or their logits averaged."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.sampler import Order, Rows
from pipeline.softlabels import Dense
from pipeline.sources.agreement import check_agreement
from pipeline.sources.base import LabelSource, LabelStream
from pipeline.sources.cached import CachedLabels

SPACES = ("probs", "logits")


class Mixture:
    """The weighted mean of several sources, as Dense labels. Weights are divided by their sum.

    - ``space="probs"``: of their probabilities at one ``temperature`` T, which it needs: ``T * log(sum_i w_i
      softmax(z_i / T))``, so that softened by T, and by T alone, the labels give the mean exactly;
    - ``space="logits"``: of their logits, each centred per row (a constant added to a row means nothing): at any
      temperature the geometric mean of their probabilities, made to add up to 1.

    A row has labels when all sources have some. Caches among the sources must speak of the same data: each is held
    against the dataset by ``match``, and here they are held against each other (see ``check_agreement``). In a loop of
    one's own, with ``inputs`` in the order of ``order``::

        a, b = (CachedLabels(open_cache(address), data) for address in ("caches/a", "caches/b"))
        labels = Mixture([(a, 0.7), (b, 0.3)], temperature=4.0)
        order = a.order(batch_size=64, seed=0)
        with contextlib.closing(labels.stream(order, epoch=0)) as stream:
            for x, rows in zip(inputs, order.epoch(0), strict=True):
                loss = distillation_loss(student(x), stream.next(x, rows), temperature=4.0).mean()

    All caches are read in the one order, two of its windows of each in memory. Parts are read whole, so it should be
    the order of the cache with the largest parts, and the caches should hold their examples in the same order.

    Raises ConfigError when the sources do not fit together or give labels that are not dense. Top-k labels of several
    sources keep different classes of a row: of one that a source dropped, the mean probability is not known, only of
    those that all kept, which may leave out the largest. Weigh their losses instead: of whole distributions,
    ``sum_i w_i KL(p_i || q)`` and ``KL(sum_i w_i p_i || q)`` have the same gradient in the student's logits, and each
    top-k loss is exact on the classes that its own cache kept.
    """

    def __init__(
        self, sources: Sequence[tuple[LabelSource, float]], *, temperature: float | None = None, space: str = "probs"
    ) -> None:
        if not sources:
            raise ConfigError("a mixture needs at least one source")
        self.space, self.temperature = space, checked_temperature(space, temperature)
        if len({source.classes for source, _ in sources}) > 1:
            raise ConfigError(
                f"the sources of a mixture should have the same classes; found {[s.classes for s, _ in sources]}"
            )
        self.sources = [source for source, _ in sources]
        self.weights = shares([weight for _, weight in sources])
        self._caches = [source for source in self.sources if isinstance(source, CachedLabels)]
        self._agree(0)

    def _agree(self, view: int) -> None:
        same = [source.labels_view == "plain" for source in self._caches]
        check_agreement([source.cache for source in self._caches], (0,) if all(same) else (view,))

    @property
    def classes(self) -> int:
        """C, the number of classes."""
        return self.sources[0].classes

    def has(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Which of these dataset rows have labels in every source, (B,)."""
        return np.asarray(np.logical_and.reduce([source.has(rows) for source in self.sources]))

    def stream(self, order: Order, epoch: int, start: int = 0, view: int = 0) -> _MixedStream:
        """A stream of each source, read side by side. Raises CacheMismatchError when a view is not the same in all."""
        self._agree(view)
        opened: list[LabelStream] = []
        try:
            for source in self.sources:
                opened.append(source.stream(order, epoch, start, view))
        except BaseException:
            for stream in opened:
                stream.close()
            raise
        return _MixedStream(opened, self)


class _MixedStream:
    def __init__(self, streams: Sequence[LabelStream], mixture: Mixture) -> None:
        self._streams, self._mixture = streams, mixture

    def next(self, inputs: Tensor, rows: Rows) -> Dense:
        found: list[Dense] = []
        for number, stream in enumerate(self._streams):
            soft = stream.next(inputs, rows)
            if not isinstance(soft, Dense):
                raise ConfigError(
                    f"a mixture needs dense labels; its source {number} gives {type(soft).__name__}. Dump with "
                    "--encoding dense"
                )
            found.append(soft)
        return mixed(found, self._mixture.weights, space=self._mixture.space, temperature=self._mixture.temperature)

    def close(self) -> None:
        for stream in self._streams:
            stream.close()


def mixed(labels: Sequence[Dense], weights: Sequence[float], *, space: str, temperature: float | None) -> Dense:
    """The weighted mean of dense labels of the same rows, (B, C) torch tensors; see ``Mixture``.

    ``weights`` come to 1. float32, or float64 where all labels are.
    """
    at = checked_temperature(space, temperature)
    pairs = list(zip([soft.logits for soft in labels], weights, strict=True))
    if space == "logits":
        centred = [weight * (logits - logits.mean(dim=1, keepdim=True)) for logits, weight in pairs]
        return Dense(torch.stack(centred).sum(dim=0))
    terms = [torch.log_softmax(logits / at, dim=1) + math.log(weight) for logits, weight in pairs]
    return Dense(torch.logsumexp(torch.stack(terms), dim=0) * at)


def checked_temperature(space: str, temperature: float | None) -> float:
    """The temperature at which probabilities are averaged, 1 for logits, where none counts.

    Raises ConfigError for a space that does not exist, or probabilities without a temperature above 0.
    """
    if space not in SPACES:
        raise ConfigError(f"the space of a mixture should be one of {', '.join(SPACES)}; found {space!r}")
    if space == "logits":
        return 1.0
    if temperature is None or not temperature > 0:
        raise ConfigError(f"a mixture of probabilities needs the temperature of its mean, above 0; found {temperature}")
    return temperature


def shares(weights: Sequence[float]) -> tuple[float, ...]:
    """``weights`` divided by their sum. Raises ConfigError unless all are finite and above 0, as their shares are.

    >>> shares([3, 1])
    (0.75, 0.25)
    """
    if weights and all(math.isfinite(weight) and weight > 0 for weight in weights):
        largest = max(weights)
        total = math.fsum(weight / largest for weight in weights)
        found = tuple(weight / largest / total for weight in weights)
        if all(found):
            return found
    found_weights = ", ".join(f"{weight:g}" for weight in weights) or "none"
    raise ConfigError(f"a mixture needs weights above 0; found {found_weights}")
