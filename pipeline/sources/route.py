"""One source after another as training goes on: the checkpoints of a teacher, which lead a student to its end.

Jin et al. 2019, "Knowledge distillation via route constrained optimization": a student that is far from a finished
teacher follows the teacher's own way there, from anchor to anchor. Also the stored counterpart of distillation from a
teacher that is still being trained.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError
from pipeline.sampler import Order, Rows
from pipeline.sources.base import LabelSource, LabelStream
from pipeline.sources.together import agree, all_have, same_classes


def epochs_of(sources: int, epochs: int) -> tuple[int, ...]:
    """How many of ``epochs`` each of ``sources`` serves: as even as whole epochs allow.

    >>> epochs_of(4, 10)
    (3, 2, 3, 2)
    """
    served = np.bincount([epoch * sources // epochs for epoch in range(epochs)], minlength=sources)
    return tuple(served.tolist())


class Route:
    """Several sources, of which epoch e of ``epochs`` reads number ``floor(e * n / epochs)``; later ones the last.

    Which one is read follows from the epoch alone, so that a run that goes on reads what it would have read. A row has
    labels when all sources have some: what is trained on does not change on the way. Caches among the sources must
    speak of the same data (see ``check_agreement``), and may be of any encoding.

    Raises ConfigError for no source, more sources than epochs, or other numbers of classes.
    """

    def __init__(self, sources: Sequence[LabelSource], epochs: int) -> None:
        if not 0 < len(sources) <= epochs:
            raise ConfigError(
                f"a route needs a source, and an epoch for each: found {len(sources)} sources, {epochs} epochs"
            )
        same_classes(sources, "route")
        self.sources, self.epochs = tuple(sources), epochs
        agree(self.sources, 0)

    @property
    def classes(self) -> int:
        """C, the number of classes."""
        return self.sources[0].classes

    def at(self, epoch: int) -> LabelSource:
        """The source that ``epoch``, from 0 on, reads."""
        return self.sources[min(epoch, self.epochs - 1) * len(self.sources) // self.epochs]

    def has(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Which of these dataset rows have labels in every source, (B,)."""
        return all_have(self.sources, rows)

    def stream(self, order: Order, epoch: int, start: int = 0, view: int = 0) -> LabelStream:
        """Labels of the source of ``epoch``. Raises CacheMismatchError when a view is not the same in all."""
        agree(self.sources, view)
        return self.at(epoch).stream(order, epoch, start, view)
