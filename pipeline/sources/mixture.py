"""Several teachers as one: their probabilities or logits averaged, or for each example the answers to be believed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pipeline.devices import on_device
from pipeline.errors import ConfigError
from pipeline.sampler import Order, Rows
from pipeline.softlabels import Dense
from pipeline.sources.base import LabelSource, LabelStream
from pipeline.sources.mixing import check_weights, checked_temperature, mixed, shares
from pipeline.sources.together import agree, all_have, open_streams, same_classes


class Mixture:
    """Several sources made into one, as Dense labels. Weights are divided by their sum.

    - ``mix="probs"``: the weighted mean of their probabilities at one ``temperature`` T, which it needs: ``T *
      log(sum_i w_i softmax(z_i / T))``, so that softened by T, and by T alone, the labels give the mean exactly;
    - ``"logits"``: the weighted mean of their logits, each centred per row (a constant added to a row means nothing):
      at any temperature the geometric mean of their probabilities, made to add up to 1;
    - ``"confident"``: for each example the logits of the source whose softmax has the lowest entropy, at T = 1; of
      equal ones the first. Weights do not count, and should be equal;
    - ``"correct"``: for each example the mean of ``probs``, of those sources alone whose largest class is its hard
      label, with their weights divided by their sum; of all where none is right or there is no hard label. It needs
      ``labels`` (N,), the hard label of each dataset row, -1 for none: those that training may know.

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
    those that all kept, which may leave out the largest. ``Panel`` weighs their losses instead: of whole distributions,
    ``sum_i w_i KL(p_i || q)`` and ``KL(sum_i w_i p_i || q)`` have the same gradient in the student's logits, and each
    top-k loss is exact on the classes that its own cache kept.
    """

    def __init__(
        self,
        sources: Sequence[tuple[LabelSource, float]],
        *,
        temperature: float | None = None,
        mix: str = "probs",
        labels: npt.NDArray[np.int64] | None = None,
    ) -> None:
        if not sources:
            raise ConfigError("a mixture needs at least one source")
        self.mix, self.temperature = mix, checked_temperature(mix, temperature)
        same_classes([source for source, _ in sources], "mixture")
        if mix == "correct" and labels is None:
            raise ConfigError("a mixture of those who are right needs the hard labels: pass labels")
        self.sources = [source for source, _ in sources]
        self.weights = shares([weight for _, weight in sources])
        self.labels = labels if mix == "correct" else None
        check_weights(mix, self.weights)
        agree(self.sources, 0)

    @property
    def classes(self) -> int:
        """C, the number of classes."""
        return self.sources[0].classes

    def has(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Which of these dataset rows have labels in every source, (B,)."""
        return all_have(self.sources, rows)

    def stream(self, order: Order, epoch: int, start: int = 0, view: int = 0) -> _MixedStream:
        """A stream of each source, read side by side. Raises CacheMismatchError when a view is not the same in all."""
        agree(self.sources, view)
        return _MixedStream(open_streams(self.sources, order, epoch, start, view), self)


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
        mixture, hard = self._mixture, None
        if mixture.labels is not None:
            hard = on_device(mixture.labels[rows], found[0].stored.device)
        return mixed(found, mixture.weights, mix=mixture.mix, temperature=mixture.temperature, hard_B=hard)

    def close(self) -> None:
        for stream in self._streams:
            stream.close()
