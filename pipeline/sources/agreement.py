"""Do several caches speak of the same data? What ``match`` cannot see, for it holds one cache against the dataset."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pipeline.errors import CacheMismatchError
from pipeline.store import Cache


def check_agreement(caches: Sequence[Cache], views: Iterable[int] = (0,), *, partly: bool = False) -> None:
    """Hold every cache against the first: number, names and order of classes, preprocessing, and ``views``.

    A view is the same when its transform, its dump's seed and its number there are. Encodings, precisions, part sizes
    and stores may differ, and so may the data they were dumped from, as long as each matches the dataset (``match``).
    What a cache does not know of itself (an imported one) counts as equal, but for random views. ``partly``: each may
    know classes of its own, which ``match`` finds by name in the dataset.

    Raises one CacheMismatchError that names both caches and everything that differs.
    """
    wanted = sorted(set(views))
    for other in caches[1:]:
        found = [*_differences(caches[0], other, wanted, partly)]
        if found:
            raise CacheMismatchError(
                f"{caches[0].address} and {other.address} do not speak of the same data: {'; '.join(found)}. Dump "
                "both alike, or train on one of them"
            )


def _differences(first: Cache, other: Cache, views: Sequence[int], partly: bool) -> Iterator[str]:
    if partly:
        pass
    elif first.classes != other.classes:
        yield f"{first.classes} and {other.classes} classes"
    elif first.class_names and other.class_names:
        pairs = enumerate(zip(first.class_names, other.class_names, strict=True))
        unlike = next(((number, a, b) for number, (a, b) in pairs if a != b), None)
        if unlike is not None:
            same = sorted(first.class_names) == sorted(other.class_names)
            what = "the same classes in another order" if same else "other classes"
            yield f"{what}, number {unlike[0]} is {unlike[1]!r} in the one and {unlike[2]!r} in the other"
    prepared = [cache.identity["preprocessing"] for cache in (first, other)]
    if None not in prepared and prepared[0] != prepared[1]:
        yield f"inputs prepared as {prepared[0]!r} and as {prepared[1]!r}"
    declared = [cache.identity["views"] for cache in (first, other)]
    yield from _view_differences(declared[0], declared[1], views)


def _view_differences(first: Mapping[str, Any], other: Mapping[str, Any], views: Sequence[int]) -> Iterator[str]:
    random = [view for view in views if view]
    plain = [bool(declared.get("plain", True)) for declared in (first, other)]
    if views and plain[0] != plain[1]:
        yield "view 0 is the plain one in one of them alone"
    if not random:
        return
    hint = "--label-view plain or --train-views plain would do with those of the plain view"
    if any(declared["transform"] is None or declared["seed"] is None for declared in (first, other)):
        yield f"one of them does not know how its random views were made ({hint})"
        return
    counts = [int(declared["count"]) for declared in (first, other)]
    if min(counts) <= random[-1]:
        held = " and ".join(f"{count - 1} random view{'' if count == 2 else 's'}" for count in counts)
        yield f"{held}, where view {random[-1]} is trained on (--train-views {min(counts)} would do with fewer)"
        random = [view for view in random if view < min(counts)]
    if random and first["transform"] != other["transform"]:
        yield f"views made by {first['transform']!r} and by {other['transform']!r} ({hint})"
    elif any(_made(first, view) != _made(other, view) for view in random):
        seeds = [", ".join(str(seed) for seed in dict.fromkeys(_made(d, v)[0] for v in random)) for d in (first, other)]
        yield f"views of dump seed {seeds[0]} and of dump seed {seeds[1]} ({hint})"


def _made(declared: Mapping[str, Any], view: int) -> tuple[int, int]:
    """The seed of the dump that a random view is of, and its number there."""
    number = view
    for run in declared.get("merged", ()):
        if number <= int(run["count"]):
            return int(run["seed"]), number
        number -= int(run["count"])
    return int(declared["seed"]), view
