"""``softlabels cache diff``: how two caches differ in identity, in what they cover, and in what they say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.caches.origins import top_class
from pipeline.caches.subset import opened
from pipeline.configuration import REQUIRED, Config, option
from pipeline.fidelity import kl_divergence, stored_logprobs
from pipeline.identity import SPLITS
from pipeline.progress import Progress, Silent
from pipeline.softlabels import SoftLabels
from pipeline.store import Cache
from pipeline.store.verify import check_values

Ints = npt.NDArray[np.int64]
_BLOCK_BYTES = 32 << 20
_DEFAULT_TEMPERATURES = (1.0, 4.0)


@dataclass(frozen=True, kw_only=True)
class DiffConfig(Config):
    """Options of ``softlabels cache diff``."""

    one: str = option(REQUIRED, "directory or URL of a cache")
    other: str = option(REQUIRED, "directory or URL of another")
    entries: int = option(10_000, "entries to compare, spread over splits and views; 0 compares all")
    temperature: tuple[float, ...] = option((), "to compare at  [default: 1 and 4, or those that both keep]")

    def problems(self) -> Iterator[str]:
        yield from self.below(entries=0)
        if self.temperature and min(self.temperature) <= 0:
            yield f"--temperature should be above 0; found {min(self.temperature):g}"


@dataclass(frozen=True)
class SplitCoverage:
    """Examples and views of one split: ``one``, ``other`` and ``both`` count examples, ``views`` those of each.

    ``changed``: examples with one id and two contents (None where a cache does not know them); ``relabelled``: other
    hard labels.
    """

    split: str
    one: int
    other: int
    both: int
    views: tuple[int, int]
    changed: int | None
    relabelled: int


@dataclass(frozen=True)
class DiffReport:
    """What ``diff`` found. ``kl``: temperature -> mean and largest KL(one || other) in nats over ``compared`` entries.

    ``agreement``: share of them with the same top class; ``identity``: field -> (one, other) where they differ;
    ``apart``: why labels were not compared, "" when they were; ``same``: the two are one cache, byte for byte.
    """

    one: str
    other: str
    same: bool
    identity: Mapping[str, tuple[Any, Any]]
    coverage: tuple[SplitCoverage, ...]
    compared: int
    kl: Mapping[str, Mapping[str, float]]
    agreement: float | None
    apart: str = ""

    def lines(self) -> Iterator[tuple[str, str]]:
        """For people: a name and a value each."""
        yield "one", self.one
        yield "other", self.other
        yield "identity", "the same" if not self.identity else f"differs in {', '.join(self.identity)}"
        for name, (one, other) in self.identity.items():
            yield f"  {name}", f"{_shown(one)} | {_shown(other)}"
        for each in self.coverage:
            content = "content unknown" if each.changed is None else f"{each.changed:,} with other content"
            yield (
                each.split,
                f"{each.one:,} | {each.other:,} examples, {each.both:,} in both ({content}, {each.relabelled:,} with "
                f"another hard label); views {each.views[0]} | {each.views[1]}",
            )
        if self.apart:
            yield "labels", self.apart
        for temperature, kl in self.kl.items():
            yield f"KL at T = {temperature}", f"mean {kl['mean']:.3g}, largest {kl['max']:.3g} nats (one || other)"
        if self.agreement is not None:
            yield "same top class", f"{self.agreement:.2%} of {self.compared:,} entries"

    @property
    def summary(self) -> str:
        """One line."""
        if self.same:
            return f"{self.one} and {self.other} are the same cache"
        return f"{self.one} and {self.other} differ" if self.identity else f"{self.one} and {self.other}: one identity"

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return asdict(self)


def run(config: DiffConfig, progress: Progress | None = None) -> DiffReport:
    """Compare two caches. Raises the errors of opening and reading them, TemperatureError for one that is not kept."""
    one, other = opened(config.one), opened(config.other)
    identity = dict(_differing(one.identity, other.identity))
    same = one.manifest.as_dict() == other.manifest.as_dict()
    pairs = {s: _pairs(one, other, s) for s in SPLITS if s in one.splits() and s in other.splits()}
    coverage = tuple(_coverage(one, other, split, pairs.get(split)) for split in SPLITS if _holds(one, other, split))
    apart = _apart(one, other, pairs)
    nothing: tuple[int, dict[str, dict[str, float]], float | None] = (0, {}, None)
    compared, kl, agreement = nothing if apart else _compare(one, other, pairs, config, progress or Silent())
    return DiffReport(
        one=config.one,
        other=config.other,
        same=same,
        identity=identity,
        coverage=coverage,
        compared=compared,
        kl=kl,
        agreement=agreement,
        apart=apart,
    )


def _differing(one: Any, other: Any, path: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Leaves of two identities that differ, by dotted path."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for name in sorted({*one, *other}):
            if (path, name) != ("", "digest"):
                yield from _differing(one.get(name), other.get(name), f"{path}.{name}" if path else name)
    elif one != other:
        yield path, (one, other)


def _shown(value: Any) -> str:
    if isinstance(value, list) and value and all(isinstance(step, Mapping) and "verb" in step for step in value):
        return ", ".join(str(step["verb"]) for step in value)  # lineage
    text = str(value)
    return text[:12] if len(text) == 64 else text if len(text) <= 60 else f"{text[:57]}..."


def _holds(one: Cache, other: Cache, split: str) -> bool:
    return split in one.splits() or split in other.splits()


def _pairs(one: Cache, other: Cache, split: str) -> tuple[Ints, Ints]:
    """Entry numbers (n,), (n,) of the examples that both have, in the order of the first."""
    position = {example_id: entry for entry, example_id in enumerate(other.ids(split))}
    found = [(entry, position[i]) for entry, i in enumerate(one.ids(split)) if i in position]
    both = np.array(found, np.int64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def _coverage(one: Cache, other: Cache, split: str, pairs: tuple[Ints, Ints] | None) -> SplitCoverage:
    counts = [cache.examples(split) if split in cache.splits() else 0 for cache in (one, other)]
    views = [len(cache.views(split)) for cache in (one, other)]
    changed: int | None = 0
    relabelled = 0
    if pairs is not None and len(pairs[0]):
        ours, theirs = (np.array(c.input_digests(split), dtype=object) for c in (one, other))
        changed = int((ours[pairs[0]] != theirs[pairs[1]]).sum()) if len(ours) and len(theirs) else None
        relabelled = int((one.labels(split)[pairs[0]] != other.labels(split)[pairs[1]]).sum())
    return SplitCoverage(
        split=split,
        one=counts[0],
        other=counts[1],
        both=0 if pairs is None else len(pairs[0]),
        views=(views[0], views[1]),
        changed=changed,
        relabelled=relabelled,
    )


def _apart(one: Cache, other: Cache, pairs: Mapping[str, tuple[Ints, Ints]]) -> str:
    """Why the labels of two caches cannot be compared; "" when they can."""
    if one.classes != other.classes:
        return f"not compared: {one.classes} and {other.classes} classes"
    if one.class_names and other.class_names and one.class_names != other.class_names:
        return "not compared: the classes have other names or another order"
    for split, (ours, theirs) in pairs.items():
        if not np.array_equal(one.lengths(split)[ours], other.lengths(split)[theirs]):
            return "not compared: entries of another number of positions"
    return "" if any(len(ours) for ours, _ in pairs.values()) else "not compared: no example is in both"


def _same_views(one: Cache, other: Cache, split: str) -> list[int]:
    """The views of a split that show the same images in both: the plain one, and random ones made alike."""
    views = [cache.identity["views"] for cache in (one, other)]
    made = [{k: v for k, v in each.items() if k != "count"} for each in views]
    if made[0] != made[1] or None in (views[0]["transform"], views[0]["seed"]):
        return [0] if all(each.get("plain", True) for each in views) else []
    return [v for v in one.views(split) if v in other.views(split)]


def _compare(
    one: Cache,
    other: Cache,
    pairs: Mapping[str, tuple[Ints, Ints]],
    config: DiffConfig,
    progress: Progress,
) -> tuple[int, dict[str, dict[str, float]], float | None]:
    """Entries compared, KL by temperature, and how often the largest soft label is the same class.

    Draws have no KL: what one cache drew and the other did not would make it infinite.
    """
    temperatures = config.temperature or _shared_temperatures(one, other)
    if one.encoding.draws or other.encoding.draws:
        temperatures = ()
    groups = [(split, view) for split in pairs for view in _same_views(one, other, split)]
    total = sum(len(pairs[split][0]) for split, _ in groups)
    stride = max(1, -(-total // config.entries)) if config.entries else 1
    block = max(1, int(_BLOCK_BYTES // (8 * one.classes * one.manifest.layout.mean_length)))
    sums = {t: [0.0, 0.0] for t in temperatures}
    compared = agreed = positions = 0
    with progress.bar("diff", -(-total // stride), "entry") as bar:
        for split, view in groups:
            ours, theirs = (rows[::stride] for rows in pairs[split])
            for first in range(0, len(ours), block):
                rows = slice(first, first + block)
                a = one.decode(one.read_rows(split, view, ours[rows]))
                b = other.decode(other.read_rows(split, view, theirs[rows]))
                check_values(one, a, f"view {view} of {split}")
                check_values(other, b, f"view {view} of {split}")
                for t in temperatures:
                    kl = _kl(a, b, t)
                    sums[t] = [sums[t][0] + float(kl.sum()), max(sums[t][1], float(kl.max(initial=0.0)))]
                agreed += int((top_class(a) == top_class(b)).sum())
                compared, positions = compared + len(ours[rows]), positions + len(a)
                bar.update(len(ours[rows]))
    if not positions:
        return 0, {}, None
    kl_of = {f"{t:g}": {"mean": total_kl / positions, "max": most} for t, (total_kl, most) in sums.items()}
    return compared, kl_of, agreed / positions


def _kl(one: SoftLabels, other: SoftLabels, temperature: float) -> npt.NDArray[np.float64]:
    return np.maximum(kl_divergence(stored_logprobs(one, temperature), stored_logprobs(other, temperature)), 0.0)


def _shared_temperatures(one: Cache, other: Cache) -> tuple[float, ...]:
    kept = [set(cache.encoding.temperatures) for cache in (one, other) if cache.encoding.temperatures]
    return tuple(sorted(set.intersection(*kept))) if kept else _DEFAULT_TEMPERATURES
