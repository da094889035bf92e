"""The views that a cache was dumped with, so that a student sees what the teacher saw."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from torch import Tensor

from pipeline.errors import CacheCorruptError, CacheMismatchError
from pipeline.store import Cache
from pipeline.transforms import BUILT_IN
from pipeline.views import PLAIN, ViewRecord, Views, parse_transform

UNKNOWN = "unknown"
"""The description of views that the cache does not know how to make."""


def replay_views(cache: Cache, transform: str | None = None) -> Views:
    """The cache's views: built-in ones from what the cache says, one's own from ``transform``, as it was dumped.

    A name found in a cache is never imported: a cache of ``module:factory`` views needs ``transform`` from you.
    Views that the cache does not know how to make (an imported one) are all the plain image: ``match`` says so.
    Raises CacheMismatchError when it is missing, or describes other views than those of the cache.
    """
    declared = cache.identity["views"]
    if declared["transform"] is None or declared["seed"] is None:
        if transform is not None:
            raise CacheMismatchError(
                f"{cache.address} does not say how its views were made, so --transform {transform} cannot make them "
                "again. Leave it out: the student sees the plain images"
            )
        count = int(declared["count"])
        return Views(_as_it_is if count > 1 else None, UNKNOWN, count)
    description, count, seed = str(declared["transform"]), int(declared["count"]), int(declared["seed"])
    if count == 1:
        return Views(seed=seed)
    if transform is None:
        foreign = [step for step in description.split("+") if step.partition(":")[0] not in BUILT_IN]
        if description == PLAIN or foreign:
            raise CacheMismatchError(
                f"{cache.address} holds {count - 1} random views made by {description!r}, which is not built in. Names "
                f"found in a cache are never imported: pass --transform {description} if you have that code"
            )
        transform = description
    function, found = parse_transform(transform)
    if found != description:
        raise CacheMismatchError(
            f"{cache.address} holds labels of views made by {description!r}; --transform makes {found!r}. The labels "
            "would belong to other images. Leave --transform out, or dump again"
        )
    merged = tuple((int(run["seed"]), int(run["count"])) for run in declared.get("merged", ()))
    return Views(function, description, count, seed, merged)


def _as_it_is(x: Tensor) -> Tensor:
    return x


def replay_table(records: Sequence[ViewRecord]) -> pa.Table:
    """Recorded views as the table that a cache keeps of them (``views.parquet``)."""
    return pa.table(
        {
            "example_id": pa.array([record.example_id for record in records], pa.string()),
            "view": pa.array([record.view for record in records], pa.int32()),
            "seed": pa.array([record.seed for record in records], pa.int64()),
            "shape": pa.array([list(record.pixels.shape) for record in records], pa.list_(pa.int32())),
            "pixels": pa.array([record.pixels.ravel() for record in records], pa.list_(pa.float32())),
        }
    )


def recorded_views(cache: Cache) -> list[ViewRecord]:
    """The views that a cache keeps as they were seen at dump time; none when it has no random views.

    Raises CacheCorruptError when the table is not one of views.
    """
    table = cache.replayed_views()
    try:
        return [
            ViewRecord(row["example_id"], row["view"], row["seed"], np.float32(row["pixels"]).reshape(row["shape"]))
            for row in (table.to_pylist() if table is not None else ())
        ]
    except (KeyError, TypeError, ValueError, OverflowError, pa.ArrowException) as error:
        raise CacheCorruptError(f"{cache.address}: its table of replayed views is damaged: {error}") from error
