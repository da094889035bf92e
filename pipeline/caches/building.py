"""Make a cache from anything that yields its parts: other caches, published files. No teacher, no torch.

Like a dump it works in a scratch directory under a lock, journals each part, resumes, and puts the manifest last.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt

from pipeline.caches.plan import Plan
from pipeline.encodings import Arrays, Encoding
from pipeline.errors import CacheError, ConfigError
from pipeline.identity import canonical_json, digest, short
from pipeline.progress import Progress, Silent
from pipeline.store import Cache, FeatureSpec, IndexRows, Part, open_cache
from pipeline.workspace import Workspace, refuse_strangers

OWN = ("manifest.json", "parts.parquet", "views.parquet", "README.md", "index*", "labels*", "features.zarr*")
"""What a cache consists of: --overwrite deletes nothing else."""


@dataclass(frozen=True)
class Contents:
    """What one part holds, in stored form.

    ``arrays``: as the encoding keeps them; ``features`` (positions, ...) float16 by name; ``statistics``: "bound", and
    the sums of ``fidelity.Fidelity`` where there was something to compare.
    """

    arrays: Arrays
    index: IndexRows
    features: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    statistics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class BuildReport:
    """What was made of what.

    ``sources``: where it came from; ``unknown``: what nobody could say of it; ``asked``: entries that met a teacher.
    """

    verb: str
    sources: tuple[str, ...]
    out: str
    identity: str
    entries: int
    parts: int
    resumed: int
    bytes: int
    seconds: float
    unknown: tuple[str, ...] = ()
    asked: int | None = None

    @property
    def summary(self) -> str:
        """One line for people."""
        again = f", {self.resumed} of {self.parts} parts found finished" if self.resumed else ""
        unknown = f"; unknown: {', '.join(self.unknown)}" if self.unknown else ""
        asked = f"; the teacher was asked for {self.asked:,} of them" if self.asked is not None else ""
        return (
            f"{self.out}: {self.entries:,} entries in {self.parts:,} part{'s' * (self.parts != 1)}, "
            f"{self.bytes / 1e6:.1f} MB, {self.seconds:.1f} s{again}; identity {short(self.identity)}{asked}{unknown}"
        )

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return asdict(self)


def identify(description: Mapping[str, Any]) -> dict[str, Any]:
    """The identity that ``description`` stands for: the same with its digest."""
    plain = {key: value for key, value in description.items() if key != "digest"}
    return {**plain, "digest": digest(plain)}


def row_bytes(encoding: Encoding, classes: int, features: Mapping[str, FeatureSpec]) -> int:
    """Bytes of one position before compression, at most."""
    specs = [*encoding.specs(classes).values(), *(f.array for f in features.values())]
    return sum(spec.position_bytes for spec in specs)


def build(
    plan: Plan,
    out: Path,
    contents: Callable[[Part], Contents],
    *,
    verb: str,
    sources: Sequence[str] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
    unknown: Sequence[str] = (),
) -> BuildReport:
    """Make the cache that ``plan`` describes at ``out``; ``contents`` yields each part that is not there yet.

    A cache of the same identity at ``out`` is found finished. Raises ConfigError when ``out`` holds something else
    (unless ``overwrite``), BusyError when another process is writing it, DiskFullError, and what ``contents`` raises;
    parts that were written stay, and the same call goes on from them.
    """
    progress = progress or Silent()
    started = time.perf_counter()
    out = Path(out)

    def report(cache: Cache, resumed: int) -> BuildReport:
        return BuildReport(
            verb=verb,
            sources=tuple(sources),
            out=str(out),
            identity=plan.digest,
            entries=plan.layout.entries,
            parts=len(plan.layout.parts),
            resumed=resumed,
            bytes=sum(cache.sizes().values()),
            seconds=round(time.perf_counter() - started, 3),
            unknown=tuple(unknown),
        )

    if (found := finished(out)) is not None and found.digest == plan.digest:
        return report(found, len(found.parts))
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise ConfigError(occupied(out, found, plan.identity))
    refuse_strangers(out, OWN)
    with Workspace(out, plan.digest) as space:
        writer = plan.writer(space.path)
        resumed = writer.done
        done = sum(part.entries for part in plan.layout.parts if part.number in resumed)
        with progress.bar(verb, plan.layout.entries, "entry", done) as bar:
            for part in plan.layout.parts:
                if part.number in resumed:
                    continue
                made = contents(part)
                _check_digests(plan, part, made.index)
                writer.write_part(part, made.arrays, made.index, made.features, made.statistics)
                bar.update(part.entries)
        plan.finalise(writer)
        space.commit()
    return report(open_cache(out), len(resumed))


def _check_digests(plan: Plan, part: Part, index: IndexRows) -> None:
    known = plan.identity["data"]["digest"] is not None
    if part.view == 0 and (index.input_digests is not None) != known:
        raise ValueError(f"part {part.number}: input digests and a data digest are both known, or neither is")


def finished(out: Path) -> Cache | None:
    """The cache at ``out``, None when there is none that can be opened."""
    try:
        return open_cache(out)
    except CacheError:
        return None


def occupied(out: Path, found: Cache | None, identity: Mapping[str, Any]) -> str:
    """The message for an output that holds something else than the cache of ``identity``: ``found``, or no cache."""
    if found is None:
        return f"--out {out} is not empty and not a finished cache. Name another place, or --overwrite it"
    differs = [key for key in identity if key != "digest" and found.identity.get(key) != identity[key]]
    return (
        f"--out {out} holds cache {short(found.digest)}, this would make {short(str(identity['digest']))} "
        f"(other {', '.join(differs)}). Name another place, or --overwrite it"
    )


def steps_before(caches: Sequence[Cache]) -> Iterator[Mapping[str, Any]]:
    """The lineage of a cache that is made from ``caches``, up to its own step: theirs, each step once."""
    seen: set[bytes] = set()
    for cache in caches:
        for step in cache.manifest.lineage:
            if (said := canonical_json(step)) not in seen:
                seen.add(said)
                yield step


def source_of(cache: Cache) -> dict[str, Any]:
    """What a step of lineage says of a cache that it read: its identity, and how faithful it was."""
    return {
        "identity": cache.digest,
        "encoding": cache.encoding.describe(),
        "bound": cache.manifest.bound,
        "fidelity": dict(cache.manifest.fidelity),
    }


def derived(
    caches: Sequence[Cache], verb: str, options: Mapping[str, Any], changes: Mapping[str, Any]
) -> dict[str, Any]:
    """The identity of a cache made from ``caches`` by ``verb``: that of the first, with ``changes`` and its lineage."""
    step = {"verb": verb, "from": [source_of(cache) for cache in caches], "options": dict(options)}
    return identify({**caches[0].identity, **changes, "lineage": [*steps_before(caches), step]})
