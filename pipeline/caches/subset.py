"""``softlabels cache subset``: some examples, splits, views or features of a cache, as a cache of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.caches.building import BuildReport, build, derived
from pipeline.caches.origins import Origins, check_ids, contents_of
from pipeline.caches.plan import Plan
from pipeline.configuration import REQUIRED, Config, option
from pipeline.errors import CacheCorruptError, ConfigError, some
from pipeline.identity import SPLITS, digest_array, digest_dataset
from pipeline.progress import Progress
from pipeline.store import Cache, open_cache, replay_file
from pipeline.store.copies import default_folder

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class SubsetConfig(Config):
    """Options of ``softlabels cache subset``."""

    cache: str = option(REQUIRED, "directory or URL of the cache")
    out: Path = option(REQUIRED, "directory of the new cache")
    splits: tuple[str, ...] = option(SPLITS, "splits to keep", choices=SPLITS)
    ids: Path | None = option(None, "file of the example ids to keep, one a line")
    classes: tuple[str, ...] = option((), "keep examples whose hard label is one of these classes  [default: all]")
    first: int = option(0, "keep at most so many examples of each split, the first ones; 0 keeps all")
    views: int = option(0, "keep at most so many views, the plain one included; 0 keeps all")
    features: tuple[str, ...] = option((), "features to keep  [default: all]")
    labels_only: bool = option(False, "keep no features")
    overwrite: bool = option(False, "replace a cache of another identity at --out")

    def problems(self) -> Iterator[str]:
        yield from self.below(first=0, views=0)
        if not self.splits:
            yield "--splits should name at least one split"
        if self.features and self.labels_only:
            yield "--labels-only keeps no features, and --features names some: give one of the two"


def run(config: SubsetConfig, progress: Progress | None = None) -> BuildReport:
    """Copy what is chosen into a cache of its own, in the order of the old one.

    Raises ConfigError for ids, classes or features that are not there, or when nothing is left, and the errors of
    ``build``.
    """
    source = opened(config.cache)
    check_ids(source)
    features = chosen_features(source, config.features, config.labels_only)
    entries = _chosen(config, source)
    manifest = source.manifest
    views = {s: min(config.views or n, n) for s, (_, n) in manifest.layout.splits().items()}
    origins = Origins(
        [source],
        {s: rows[None] for s, rows in entries.items()},
        {s: [(None, v) for v in range(views[s])] for s in entries},
    )
    random = max((views[s] for s in entries), default=1)
    changes = {
        "data": data_of([source], {s: rows[None] for s, rows in entries.items()}),
        "views": fewer_views(source.identity["views"], random),
        "splits": [s for s in SPLITS if s in entries],
        "features": {name: source.identity.get("features", {}).get(name, "unknown") for name in features},
    }
    options = {"splits": {s: digest_array(rows) for s, rows in entries.items()}, "views": random}
    plan = Plan(
        identity=derived([source], "subset", {**options, "features": list(features)}, changes),
        layout=origins.layout(source.part_size),
        classes=source.classes,
        class_names=source.class_names,
        features={name: manifest.features[name] for name in features},
        replay=replayed([source], entries, random),
    )
    return build(
        plan,
        config.out,
        lambda part: contents_of(origins, part, source.encoding, source.classes, features=features),
        verb="subset",
        sources=[source.address],
        overwrite=config.overwrite,
        progress=progress,
        unknown=manifest.unknown,
    )


def opened(address: str) -> Cache:
    """A cache that is to be read whole: at a URL, through copies of its parts."""
    return open_cache(address, cache_dir=default_folder())


def chosen_features(cache: Cache, names: Sequence[str], none: bool) -> tuple[str, ...]:
    """The features that are asked for, in the order of the cache. Raises ConfigError for one that is not there."""
    absent = [name for name in names if name not in cache.feature_names]
    if absent:
        there = ", ".join(cache.feature_names) or "none"
        raise ConfigError(f"{cache.address} has no feature {some(absent)}; it has {there}")
    return () if none else tuple(n for n in cache.feature_names if not names or n in names)


def _chosen(config: SubsetConfig, cache: Cache) -> dict[str, Ints]:
    """The entries to keep of each split, ascending."""
    wanted = _read_ids(config.ids) if config.ids is not None else None
    numbers = _class_numbers(cache, config.classes)
    found: dict[str, Ints] = {}
    seen: set[str] = set()
    for split in cache.splits():
        if split not in config.splits:
            continue
        keep = np.ones(cache.examples(split), dtype=bool)
        if wanted is not None:
            ids = cache.ids(split)
            keep &= np.array([i in wanted for i in ids], dtype=bool)
            seen.update(i for i, kept in zip(ids, keep.tolist(), strict=True) if kept)
        if numbers:
            keep &= np.isin(cache.labels(split), numbers)
        rows = np.flatnonzero(keep)[: config.first or None]
        if len(rows):
            found[split] = rows
    absent = sorted(wanted - seen) if wanted is not None else []
    if absent:
        raise ConfigError(
            f"{config.ids} names {len(absent):,} ids that {cache.address} does not have in {', '.join(config.splits)}, "
            f"among them {some(absent)}. Take them out, or name the cache that has them"
        )
    if not found:
        held = ", ".join(f"{s} ({cache.examples(s):,})" for s in cache.splits())
        raise ConfigError(f"nothing of {cache.address} is left by these options; it holds {held}")
    return found


def _read_ids(path: Path) -> set[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--ids should be a text file with one id a line; {path}: {error}") from None
    found = {line.strip() for line in lines if line.strip()}
    if not found:
        raise ConfigError(f"--ids {path} names no id")
    return found


def _class_numbers(cache: Cache, names: Sequence[str]) -> list[int]:
    absent = [name for name in names if name not in cache.class_names]
    if absent:
        known = some(cache.class_names, 10) or "none by name"
        raise ConfigError(f"--classes should be classes of {cache.address} ({known}); found {some(absent)}")
    return [cache.class_names.index(name) for name in names]


def data_of(caches: Sequence[Cache], entry_of: Mapping[str, Ints]) -> dict[str, Any]:
    """The ``data`` of an identity: how many examples, and their digest in the order of the new cache.

    ``entry_of``: split -> (J, N) as in ``Origins``. The digest is None where a cache does not know the content.
    """
    count = sum(entries.shape[1] for entries in entry_of.values())
    if not all(cache.manifest.knows_content for cache in caches):
        return {"digest": None, "examples": count}

    def rows() -> Iterator[tuple[str, str, str]]:
        for split in SPLITS:
            if split not in entry_of:
                continue
            columns = [
                (cache.ids(split), cache.input_digests(split)) if split in cache.splits() else ([], [])
                for cache in caches
            ]
            for entries in entry_of[split].T:
                owner = int((entries >= 0).argmax())
                ids, digests = columns[owner]
                yield ids[entries[owner]], split, digests[entries[owner]]

    return {"digest": digest_dataset(rows()), "examples": count}


def fewer_views(views: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The ``views`` of an identity when only the first ``count`` are left.

    >>> fewer_views({"seed": 0, "count": 5, "merged": [{"seed": 0, "count": 2}, {"seed": 7, "count": 2}]}, 4)
    {'seed': 0, 'count': 4, 'merged': [{'seed': 0, 'count': 2}, {'seed': 7, 'count': 1}]}
    """
    left, merged = count - 1, []
    for run_of in views.get("merged", ()):
        if left > 0:
            merged.append({**run_of, "count": min(left, run_of["count"])})
            left -= run_of["count"]
    plain = {key: value for key, value in views.items() if key != "merged"}
    return {**plain, "count": count, **({"merged": merged} if len(merged) > 1 else {})}


_RECORDED = {"example_id": pa.string(), "view": pa.int32(), "seed": pa.int64()}
_LISTED = {"shape": pa.int32(), "pixels": pa.float32()}


def recorded_table(cache: Cache) -> pa.Table | None:
    """The views that a cache keeps as they were seen; None without any. Raises CacheCorruptError for another table."""
    table = cache.replayed_views()
    if table is None:
        return None
    types = dict(zip(table.column_names, table.schema.types, strict=True))
    lists = all(
        name in types and pa.types.is_list(types[name]) and types[name].value_type == kind
        for name, kind in _LISTED.items()
    )
    plain = all(types.get(name) == kind for name, kind in _RECORDED.items())
    if not (lists and plain and len(table.column_names) == len(types) == len(_RECORDED) + len(_LISTED)):
        raise CacheCorruptError(f"{cache.address}: its table of replayed views is damaged. Fetch the cache again")
    return table


def replayed(caches: Sequence[Cache], entries: Mapping[str, Ints], views: int) -> bytes | None:
    """views.parquet of a cache that keeps the training examples ``entries`` of the first of ``caches``.

    None when no recorded view is left.
    """
    table = recorded_table(caches[0])
    if table is None or "train" not in entries:
        return None
    ids = np.asarray(caches[0].ids("train"), dtype=object)[entries["train"]].tolist()
    kept = table.filter(
        pc.and_(pc.is_in(table["example_id"], value_set=pa.array(ids, pa.string())), pc.less(table["view"], views))
    )
    return replay_file(kept.combine_chunks()) if kept.num_rows else None
