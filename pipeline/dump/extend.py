"""``softlabels cache extend``: the dataset grew, and only the examples that are new meet the teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.caches.building import BuildReport, Contents, build, derived
from pipeline.caches.origins import check_ids, index_of, top_class
from pipeline.caches.plan import Plan
from pipeline.configuration import REQUIRED, Config, option
from pipeline.dump.asking import answers, ask, entry_labels, keys_of
from pipeline.dump.config import DumpConfig
from pipeline.dump.job import Job, prepare
from pipeline.dump.parts import EntryRows, sampled_per_part
from pipeline.encodings import TopK
from pipeline.errors import CacheMismatchError, ConfigError, EncodingError
from pipeline.fidelity import Fidelity
from pipeline.identity import short
from pipeline.progress import Progress, Silent
from pipeline.sources import match, replay_views
from pipeline.sources.replay import recorded_views
from pipeline.store import Cache, IndexRows, Part, open_cache
from pipeline.store.verify import check_values
from pipeline.views import check_replay, load_inputs

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ExtendConfig(Config):
    """Options of ``softlabels cache extend``. What decides the labels is the cache's own; these name what to run."""

    cache: str = option(REQUIRED, "directory or URL of the cache")
    data: str = option(
        "digits", "the grown dataset: digits, arrays:FILE.npz, images:FOLDER, module:factory, torchvision:NAME, hf:PATH"
    )
    data_args: tuple[str, ...] = option((), "key=value arguments for the dataset")
    teacher: str = option(REQUIRED, "the model that made the cache")
    teacher_args: tuple[str, ...] = option((), "key=value arguments for the teacher's factory")
    weights: Path | None = option(None, "the teacher's weights")
    classes: tuple[str, ...] = option((), "the classes that its outputs stand for, where it was dumped with --classes")
    transform: str | None = option(None, "the random view, when the cache was made with a module:factory")
    out: Path = option(REQUIRED, "directory of the new cache")
    batch_size: int = option(256, "entries per forward pass")
    workers: int = option(0, "processes that load and transform examples; 0 does it in this one")
    device: str = option("auto", "auto, cpu, cuda, cuda:N, mps")
    threads: int = option(0, "CPU threads of the forward pass; 0 leaves torch's choice")
    overwrite: bool = option(False, "replace a cache of another identity at --out")

    def problems(self) -> Iterator[str]:
        yield from self.below(batch_size=1, workers=0, threads=0)


def run(config: ExtendConfig, progress: Progress | None = None) -> BuildReport:
    """Make a cache of the grown dataset; labels that are there are copied, those of new examples asked for.

    Examples that the dataset does not have any more are left out. Raises CacheMismatchError when teacher, classes,
    preprocessing, views or the content of a cached example are others, ConfigError when nothing is new.
    """
    progress = progress or Silent()
    cache = open_cache(config.cache)
    job = prepare(_as_dumped(config, cache))
    _check_teacher(cache, job)
    check_ids(cache)
    entry_of = _old_entries(cache, job)
    _check_partners(cache, job, entry_of)
    replay = check_replay(recorded_views(cache), job.views, job.dataset)
    if not replay.ok:
        raise CacheMismatchError(f"{cache.address}: {replay.summary}")
    rows = EntryRows(job.dataset)
    new = sum(int((entry_of[rows.of(part)] < 0).sum()) for part in job.layout.parts)
    if not new:
        raise ConfigError(f"{config.cache} has labels for every example of {job.dataset.name}: nothing is to be added")
    changes = {"data": job.identity["data"], "splits": job.identity["splits"], "part_size": job.layout.part_size}
    plan = Plan(
        identity=derived([cache], "extend", {"entries": new}, changes),
        layout=job.layout,
        classes=cache.classes,
        class_names=cache.class_names,
        features=job.feature_specs,
        replay=cache.replay_bytes(),
    )
    asked = 0

    def contents(part: Part) -> Contents:
        nonlocal asked
        made, count = _contents(cache, job, part, rows.of(part), entry_of)
        asked += count
        return made

    report = build(
        plan,
        config.out,
        contents,
        verb="extend",
        sources=[config.cache],
        overwrite=config.overwrite,
        progress=progress,
    )
    return BuildReport(**{**vars(report), "asked": asked})


def _as_dumped(config: ExtendConfig, cache: Cache) -> DumpConfig:
    """The dump that the cache says made it, over the grown dataset."""
    identity = cache.identity
    if identity["teacher"]["state"] is None or not cache.manifest.knows_content:
        raise CacheMismatchError(
            f"{config.cache} does not know its teacher or its data (its labels were imported): nothing can be added"
        )
    if "merged" in identity["views"]:
        raise CacheMismatchError(f"{config.cache} holds the views of several dumps: extend each of them, then merge")
    if cache.encoding.draws or cache.manifest.layout.length != 1:
        raise ConfigError(
            f"{config.cache} holds draws, or several positions of an entry, which cannot be extended. Dump the new "
            "examples into a cache of their own, and merge the two"
        )
    views = replay_views(cache, config.transform)
    encoding = cache.encoding
    kept: dict[str, Any] = {}
    if isinstance(encoding, TopK):
        kept = {"k": encoding.k, "temperature": encoding.temperatures}
    return DumpConfig(
        data=config.data,
        data_args=config.data_args,
        teacher=config.teacher,
        teacher_args=config.teacher_args,
        weights=config.weights,
        classes=config.classes,
        out=config.out,
        views=views.count - 1,
        transform=views.description if views.count > 1 else None,
        seed=int(identity["views"]["seed"]),
        splits=tuple(identity.get("splits", cache.splits())),
        encoding=encoding.name,
        dtype=str(encoding.describe()["dtype"]),
        features=tuple(f"{name}={module}" for name, module in identity.get("features", {}).items()),
        store=cache.manifest.store,
        part_size=cache.part_size,
        batch_size=config.batch_size,
        workers=config.workers,
        device=config.device,
        precision=str(identity["teacher"].get("precision", "float32")),
        threads=config.threads,
        **kept,
    )


def _check_teacher(cache: Cache, job: Job) -> None:
    theirs, ours = cache.identity["teacher"], job.identity["teacher"]
    if theirs["state"] != ours["state"]:
        raise CacheMismatchError(
            f"{cache.address} was made by teacher {short(theirs['state'])} ({theirs['reference']}), this command names "
            f"{short(ours['state'])} ({ours['reference']}). Pass the teacher and --weights it was made with"
        )


def _old_entries(cache: Cache, job: Job) -> Ints:
    """(N,): the entry number of each dataset row in its split of the cache, -1 for a new example."""
    entry_of = np.full(len(job.dataset), -1, np.int64)
    for split in job.layout.splits():
        if split not in cache.splits():
            continue  # it was asked for then, and had no examples yet
        # ``hard`` keeps the rows that are new; what changed under an old id is refused.
        entry_of = np.maximum(entry_of, match(cache, job.dataset, split, "hard").entry_of)
    return entry_of


def _check_partners(cache: Cache, job: Job, entry_of: Ints) -> None:
    """Refuse mixed views of a split that has other examples now: partners are drawn from all of it."""
    for split, (examples, views) in job.layout.splits().items():
        if not job.views.mixed or views < 2 or split not in cache.splits():
            continue
        new = int((entry_of[job.dataset.rows(split)] < 0).sum())
        gone = cache.examples(split) - (examples - new)
        if new or gone:
            raise CacheMismatchError(
                f"{cache.address} mixes each {split} example with another of that split, of which {new:,} are new and "
                f"{gone:,} gone: other partners would be drawn, for old examples too. None of the mixed views can be "
                "kept: dump again"
            )


def _contents(cache: Cache, job: Job, part: Part, rows: Ints, entry_of: Ints) -> tuple[Contents, int]:
    """A part of the grown cache, and how many of its entries the teacher was asked about."""
    entries = entry_of[rows]
    old, new = np.flatnonzero(entries >= 0), np.flatnonzero(entries < 0)
    arrays: dict[str, npt.NDArray[Any]] = {}
    features: dict[str, npt.NDArray[Any]] = {}
    if len(old):
        index_of(cache, part.split, part.view, entries[old])  # of the examples that the plain view is of
        _fill(arrays, cache.read_rows(part.split, part.view, entries[old]), old, part.entries)
        for name in job.feature_specs:
            found = cache.read_feature_rows(name, part.split, part.view, entries[old])
            _fill(features, {name: found}, old, part.entries)
    labels = entry_labels(job, part.view, rows)
    fidelity = Fidelity(job.encoding, cache.classes)
    if len(old):
        there = cache.decode({name: values[old] for name, values in arrays.items()})
        check_values(cache, there, f"view {part.view} of {part.split}")
        fidelity.count(top_class(there), labels[old])
    stride = max(1, len(new) // sampled_per_part(len(job.dataset.classes)))
    for first in range(0, len(new), job.config.batch_size):
        places = new[first : first + job.config.batch_size]
        inputs = load_inputs(job.dataset, job.views, [(int(r), part.view) for r in rows[places]], job.config.workers)
        sample = slice(-first % stride, None, stride)
        try:
            keys = keys_of(job, rows[places], part.view)
            said = answers(job, ask(job, inputs, rows[places], part.view), sample, keys)
        except EncodingError as error:
            row = int(rows[places[error.row or 0]])
            raise EncodingError(f"example {job.dataset.ids[row]}, view {part.view}: {error}", error.row) from None
        _fill(arrays, said.arrays, places, part.entries)
        _fill(features, said.features, places, part.entries)
        fidelity.count(said.predicted, labels[places])
        fidelity.compare(said.sampled, {name: values[sample] for name, values in said.arrays.items()})
    ids = [str(job.dataset.ids[row]) for row in rows]
    index = IndexRows(
        example_ids=ids,
        view=part.view,
        split=part.split,
        seeds=np.array([job.views.seed_of(i, part.view) for i in ids], dtype=np.int64),
        labels=labels,
        input_digests=None if part.view else [job.dataset.known_digest(int(row)) for row in rows],
    )
    bound = max(cache.manifest.bound, job.encoding.bound(arrays, cache.classes))
    return Contents(arrays, index, features, {**fidelity.totals(), "bound": bound}), len(new)


def _fill(out: dict[str, npt.NDArray[Any]], found: Mapping[str, Any], places: Ints, total: int) -> None:
    for name, values in found.items():
        if name not in out:
            out[name] = np.empty((total, *values.shape[1:]), values.dtype)
        out[name][places] = values
