"""``softlabels cache merge``: what several teams dumped with one teacher, as one cache.

Three ways of belonging together, told from the identities:

- the same identity: parts of one cache (``dump --parts`` on machines that share no disk, ``cache pull --parts``). The
  result is that cache, byte for byte, and has no lineage;
- the same data, other seeds of the views: the random views one after another, view 0 from the first;
- other examples, the same views: the examples of the first, then those that the others add.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.caches.building import BuildReport, build, derived
from pipeline.caches.origins import Origins, check_ids, contents_of
from pipeline.caches.partial import join_parts, partial_at
from pipeline.caches.plan import Plan
from pipeline.caches.subset import data_of, opened, recorded_table
from pipeline.configuration import REQUIRED, Config, option
from pipeline.errors import CacheMismatchError, some
from pipeline.identity import SPLITS
from pipeline.progress import Progress
from pipeline.store import Cache, FeatureSpec, Layout, replay_file

Ints = npt.NDArray[np.int64]
_ALIKE = ("teacher", "preprocessing", "class_names", "encoding")


@dataclass(frozen=True, kw_only=True)
class MergeConfig(Config):
    """Options of ``softlabels cache merge``."""

    caches: tuple[str, ...] = option(REQUIRED, "directories or URLs of the caches")
    out: Path = option(REQUIRED, "directory of the new cache")
    overwrite: bool = option(False, "replace a cache of another identity at --out")

    def problems(self) -> Iterator[str]:
        if len(self.caches) < 2:
            yield f"merge takes at least two caches; found {len(self.caches)}"
        if len(set(self.caches)) < len(self.caches):
            yield "a cache is named twice"


def run(config: MergeConfig, progress: Progress | None = None) -> BuildReport:
    """Join the caches into one at ``out``.

    Raises CacheMismatchError naming what differs when they do not belong together, CacheIncompleteError naming the
    parts that none of them has, and the errors of ``build``.
    """
    partial = [found for address in config.caches if (found := partial_at(address)) is not None]
    if len(partial) == len(config.caches) and len({found.plan.digest for found in partial}) == 1:
        return join_parts(partial, config.out, overwrite=config.overwrite, progress=progress)
    unfinished = [found for found in partial if not found.whole]
    if unfinished:
        raise CacheMismatchError(
            f"{unfinished[0].address} lacks parts, and only parts of one identity make up a whole: "
            f"{some([f'{p.address} is {p.plan.digest[:12]}' for p in partial])}. Finish or pull it first"
        )
    caches = [opened(address) for address in config.caches]
    _check_alike(caches)
    for cache in caches:
        check_ids(cache)
    joined = _views(caches) if len({_data(cache) for cache in caches}) == 1 else _examples(caches)
    first = caches[0]
    features = _common_features(caches)
    changes = {
        **joined.changes,
        "features": {name: first.identity.get("features", {}).get(name, "unknown") for name in features},
    }
    options = {"by": joined.by, "features": list(features)}
    plan = Plan(
        identity=derived(caches, "merge", options, changes),
        layout=joined.layout,
        classes=first.classes,
        class_names=first.class_names,
        features=features,
        replay=joined.replay,
    )
    return build(
        plan,
        config.out,
        lambda part: contents_of(joined.origins, part, first.encoding, first.classes, features=tuple(features)),
        verb="merge",
        sources=config.caches,
        overwrite=config.overwrite,
        progress=progress,
        unknown=first.manifest.unknown,
    )


@dataclass(frozen=True)
class _Joined:
    """How caches make up one: by what, where each entry comes from, and where its identity is not the first's."""

    by: str
    layout: Layout
    origins: Origins
    changes: Mapping[str, Any]
    replay: bytes | None


def _data(cache: Cache) -> Any:
    """What tells the data of a cache; content that nobody knows is nobody else's."""
    return cache.identity["data"]["digest"] or cache.address


def _check_alike(caches: Sequence[Cache]) -> None:
    first = caches[0]
    unknown = [cache.address for cache in caches if cache.identity["teacher"]["state"] is None]
    if unknown:
        raise CacheMismatchError(
            f"{some(unknown)} does not know which teacher made it, so nothing says that its labels belong with others. "
            "Mix such caches when training instead: train --labels A --labels B"
        )
    for cache in caches[1:]:
        differing = [name for name in _ALIKE if cache.identity.get(name) != first.identity.get(name)]
        if differing:
            remedy = " Bring one to the other's encoding first: softlabels cache transcode" * ("encoding" in differing)
            raise CacheMismatchError(
                f"{first.address} and {cache.address} are of another {', another '.join(differing)}: they make no one "
                f"cache.{remedy}"
            )


def _common_features(caches: Sequence[Cache]) -> dict[str, FeatureSpec]:
    """Features that all caches have, of one module and shape."""

    def of(cache: Cache, name: str) -> Any:
        return cache.identity.get("features", {}).get(name), cache.manifest.features.get(name)

    first = caches[0]
    return {
        name: spec
        for name, spec in first.manifest.features.items()
        if all(of(cache, name) == of(first, name) for cache in caches)
    }


def _blocks(cache: Cache) -> list[dict[str, int]]:
    """The random views of a cache: seed and count of each dump that they come from."""
    views = cache.identity["views"]
    return list(views.get("merged") or [{"seed": views["seed"], "count": views["count"] - 1}])


def _views(caches: Sequence[Cache]) -> _Joined:
    """The random views of caches of the same data, one after another."""
    first = caches[0]
    held: dict[int, str] = {}
    for cache in caches:
        views, splits = cache.identity["views"], cache.manifest.layout.splits()
        same = {s: n for s, (n, _) in splits.items()} == {s: n for s, (n, _) in first.manifest.layout.splits().items()}
        if not same or (views["count"] > 1 and views["transform"] != _transform(caches)):
            what = "views of another transform" if same else "other splits"
            raise CacheMismatchError(f"{cache.address} holds {what} than {first.address}: they make no one cache")
        if views["count"] == 1:
            raise CacheMismatchError(f"{cache.address} has no random views, so it adds nothing to {first.address}")
        for block in _blocks(cache):
            if block["seed"] in held:
                raise CacheMismatchError(
                    f"{held[block['seed']]} and {cache.address} both hold the views of seed {block['seed']}: the same "
                    "images. Dump one of them with another --seed"
                )
            held[block["seed"]] = cache.address
    merged = [block for cache in caches for block in _blocks(cache)]
    order: list[tuple[int | None, int]] = [(0, 0)]
    order += [(n, v) for n, cache in enumerate(caches) for v in range(1, cache.identity["views"]["count"])]
    splits = {s: (n, len(order) if s == "train" else 1) for s, (n, _) in first.manifest.layout.splits().items()}
    entry_of = {s: np.stack([_entries_like(first, cache, s) for cache in caches]) for s in splits}
    origins = Origins(caches, entry_of, {s: order[:count] for s, (_, count) in splits.items()})
    views = {**first.identity["views"], "count": len(order), "merged": merged}
    shifts = np.cumsum([0, *(cache.identity["views"]["count"] - 1 for cache in caches)])
    tables = [_shifted(recorded_table(cache), int(shift)) for cache, shift in zip(caches, shifts[:-1], strict=True)]
    _check_lengths(origins)
    layout = origins.layout(first.part_size)
    return _Joined("views", layout, origins, {"views": views}, _replay(tables))


def _transform(caches: Sequence[Cache]) -> str:
    return next((str(c.identity["views"]["transform"]) for c in caches if c.identity["views"]["count"] > 1), "")


def _entries_like(first: Cache, cache: Cache, split: str) -> Ints:
    """Entry numbers in ``cache`` of the examples of ``first``, which are the same ones."""
    if cache is first or cache.ids(split) == first.ids(split):
        return np.arange(first.examples(split))
    position = {example_id: entry for entry, example_id in enumerate(cache.ids(split))}
    absent = [i for i in first.ids(split) if i not in position]
    if absent:
        raise CacheMismatchError(f"{cache.address} lacks {some(absent)} of {first.address}, though their data is one")
    return np.array([position[i] for i in first.ids(split)], np.int64)


def _examples(caches: Sequence[Cache]) -> _Joined:
    """The examples of several caches, each once, those of the first first."""
    first = caches[0]
    for cache in caches[1:]:
        if cache.identity["views"] != first.identity["views"]:
            raise CacheMismatchError(
                f"{first.address} and {cache.address} hold other examples and other views: merge caches that differ in "
                f"one of the two ({first.identity['views']} and {cache.identity['views']})"
            )
    held = [split for split in SPLITS if any(split in cache.splits() for cache in caches)]
    entry_of = {split: _union(caches, split) for split in held}
    count = int(first.identity["views"]["count"])
    splits = {s: (entry_of[s].shape[1], count if s == "train" else 1) for s in held}
    origins = Origins(caches, entry_of, {s: [(None, v) for v in range(n)] for s, (_, n) in splits.items()})
    changes = {"data": data_of(caches, entry_of), "splits": held}
    _check_lengths(origins)
    layout = origins.layout(first.part_size)
    return _Joined("examples", layout, origins, changes, _replay([recorded_table(cache) for cache in caches]))


def _check_lengths(origins: Origins) -> None:
    """Raise CacheMismatchError when an example has other numbers of positions in two of the caches."""
    first = origins.caches[0]
    for split, entry_of in origins.entry_of.items():
        known = origins.lengths(split)
        for cache, entries in zip(origins.caches, entry_of, strict=True):
            here = np.flatnonzero(entries >= 0)
            if len(here) and (cache.lengths(split)[entries[here]] != known[here]).any():
                raise CacheMismatchError(
                    f"{first.address} and {cache.address} have other numbers of positions for the same {split} "
                    "examples: they make no one cache"
                )


def _union(caches: Sequence[Cache], split: str) -> Ints:
    """(J, N) entry numbers of every example of a split. Raises CacheMismatchError for one id with two contents."""
    column: dict[str, int] = {}
    content: dict[str, str] = {}
    rows: list[list[int]] = [[] for _ in caches]
    for number, cache in enumerate(caches):
        if split not in cache.splits():
            continue
        digests = cache.input_digests(split)
        if not digests:
            raise CacheMismatchError(
                f"{cache.address} does not know the content of its examples, so nothing says which of them others have"
            )
        for entry, (example_id, digest) in enumerate(zip(cache.ids(split), digests, strict=True)):
            if content.setdefault(example_id, digest) != digest:
                raise CacheMismatchError(
                    f"{cache.address} has another example {example_id!r} than the caches named before it"
                )
            if example_id not in column:
                column[example_id] = len(column)
                for each in rows:
                    each.append(-1)
            rows[number][column[example_id]] = entry
    return np.array(rows, np.int64)


def _shifted(table: Any, shift: int) -> Any:
    if table is None:
        return None
    place = table.schema.get_field_index("view")
    views = pa.array(table["view"].to_numpy() + np.int32(shift), pa.int32())
    return table.set_column(place, table.schema.field(place), views)


def _replay(tables: Sequence[Any]) -> bytes | None:
    kept = [table for table in tables if table is not None]
    return replay_file(pa.concat_tables(kept).combine_chunks()) if kept else None
