"""Several sources read side by side: do their caches agree, and a stream of each that is closed with the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError
from pipeline.sampler import Order, Rows
from pipeline.sources.agreement import check_agreement
from pipeline.sources.base import LabelSource, LabelStream
from pipeline.sources.cached import CachedLabels


def agree(sources: Sequence[LabelSource], view: int, *, partly: bool = False) -> None:
    """``check_agreement`` of the caches among the sources, on the view whose labels are read."""
    cached = [source for source in sources if isinstance(source, CachedLabels)]
    plain = all(source.labels_view == "plain" for source in cached)
    check_agreement([source.cache for source in cached], (0,) if plain else (view,), partly=partly)


def same_classes(sources: Sequence[LabelSource], what: str) -> None:
    """Raise ConfigError unless all sources, which make ``what``, have the same number of classes."""
    found = [source.classes for source in sources]
    if len(set(found)) > 1:
        raise ConfigError(f"the sources of a {what} should have the same classes; found {found}")


def all_have(sources: Sequence[LabelSource], rows: Rows) -> npt.NDArray[np.bool_]:
    """Which of these dataset rows have labels in every source, (B,)."""
    return np.asarray(np.logical_and.reduce([source.has(rows) for source in sources]))


def open_streams(
    sources: Sequence[LabelSource], order: Order, epoch: int, start: int, view: int
) -> tuple[LabelStream, ...]:
    """A stream of each source; should one not open, those before it are closed."""
    opened: list[LabelStream] = []
    try:
        for source in sources:
            opened.append(source.stream(order, epoch, start, view))
    except BaseException:
        for stream in opened:
            stream.close()
        raise
    return tuple(opened)
