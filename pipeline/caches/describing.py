"""How sure a teacher was: entropy and largest probability of stored distributions, split by split.

A sample of entries is enough: short runs of neighbours, drawn evenly over each view of each split, so that sorted data
is met everywhere and few chunks are read. N rows are positions, C the classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError, TemperatureError
from pipeline.metrics import predicted
from pipeline.progress import Progress, Silent
from pipeline.softlabels import Sampled, SoftLabels, TopK
from pipeline.store import Cache
from pipeline.store.verify import check_values

Floats = npt.NDArray[np.float64]

PLAIN, RANDOM = "plain", "random"
QUANTILES = (5, 25, 50, 75, 95)
SAMPLE = 50_000
"""Entries that are looked at unless something else is said."""

_RUN, _LEAST, _BATCH_BYTES, _BLOCK = 32, 1000, 16 * 1024 * 1024, 1 << 20


@dataclass(frozen=True)
class Spread:
    """Mean and quantiles (in per cent) of a quantity."""

    mean: float
    q5: float
    q25: float
    median: float
    q75: float
    q95: float

    @classmethod
    def of(cls, values: npt.NDArray[np.float32]) -> Spread:
        """The spread of ``values`` (N,)."""
        q5, q25, q50, q75, q95 = (float(q) for q in np.percentile(values, QUANTILES))
        return cls(float(values.mean(dtype=np.float64)), q5, q25, q50, q75, q95)


@dataclass(frozen=True)
class Sureness:
    """What is known of the plain or the random views of one split at one temperature.

    - ``looked_at`` entries ``of`` so many; ``entropy`` in nats; ``confidence``: the largest probability;
    - ``top1``: share of the ``labelled`` entries whose most probable class is the hard label; None without any;
    - ``entropies``, ``confidences``: the values (N,) float32 themselves, for figures.
    """

    split: str
    views: str
    temperature: float
    looked_at: int
    of: int
    entropy: Spread
    confidence: Spread
    top1: float | None
    labelled: int
    entropies: npt.NDArray[np.float32] = field(repr=False)
    confidences: npt.NDArray[np.float32] = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON, without the values."""
        values = {n: v for n, v in vars(self).items() if n not in ("entropies", "confidences")}
        return {**values, "entropy": asdict(self.entropy), "confidence": asdict(self.confidence)}


def temperatures_of(cache: Cache, temperature: float | None) -> tuple[float, ...]:
    """1, where the cache has it, and ``temperature``; by default 4, or the highest that a top-k cache keeps.

    Raises TemperatureError when the cache did not keep it, ConfigError when it is none.
    """
    if temperature is not None and not 0 < temperature < math.inf:
        raise ConfigError(f"--temperature should be above 0; found {temperature}")
    kept = cache.manifest.temperatures
    if not kept:
        return tuple(sorted({1.0, temperature or 4.0}))
    if temperature is None:
        temperature = max(kept)
    elif not any(math.isclose(temperature, one, rel_tol=1e-6) for one in kept):
        there = ", ".join(f"{t:g}" for t in kept)
        raise TemperatureError(
            f"{cache.address} keeps T = {there}; found --temperature {temperature:g}. Name one of those"
        )
    return tuple(sorted({*(t for t in kept if t == 1.0), temperature}))


def sureness(
    cache: Cache, temperatures: Sequence[float], sample: int = SAMPLE, progress: Progress | None = None
) -> list[Sureness]:
    """Entropy and confidence of about ``sample`` entries (0: of all), by split, kind of view and temperature.

    What is kept of a position is two float32 for each temperature. Raises as ``Cache.read_rows`` does.
    """
    progress = progress or Silent()
    chosen = {key: list(_chosen(cache, key, sample)) for key in _kinds(cache)}
    total = sum(len(rows) for runs in chosen.values() for _, rows in runs)
    found: list[Sureness] = []
    labels: dict[str, npt.NDArray[np.int64]] = {}
    with progress.bar("look at labels", total, "entry") as bar:
        for (split, kind), runs in chosen.items():
            if split not in labels:
                labels = {split: cache.labels(split)}  # of one split at a time
            seen: dict[float, list[npt.NDArray[np.float32]]] = {t: [] for t in temperatures}
            hits = labelled = looked_at = 0
            for view, rows in runs:
                for batch in _batches(cache, rows):
                    soft = cache.decode(cache.read_rows(split, view, batch))
                    check_values(cache, soft, f"view {view} of {split}")
                    for temperature in temperatures:
                        seen[temperature].append(entropy_and_confidence(soft, temperature).astype(np.float32))
                    if len(soft) == len(batch):  # one position an entry: it has a hard label of its own
                        hard = labels[split][batch]
                        hits += int((predicted(soft) == hard)[hard >= 0].sum())
                        labelled += int((hard >= 0).sum())
                    looked_at += len(batch)
                    bar.update(len(batch))
            for temperature in temperatures:
                entropies, confidences = np.concatenate(seen[temperature], axis=1)
                found.append(
                    Sureness(
                        split=split,
                        views=kind,
                        temperature=temperature,
                        looked_at=looked_at,
                        of=cache.examples(split) * len(_views(cache, split, kind)),
                        entropy=Spread.of(entropies),
                        confidence=Spread.of(confidences),
                        top1=hits / labelled if labelled else None,
                        labelled=labelled,
                        entropies=entropies,
                        confidences=confidences,
                    )
                )
    return found


def entropy_and_confidence(soft: SoftLabels, temperature: float) -> Floats:
    """Entropy in nats and largest probability (2, N) of each row, a top-k residual spread evenly over its classes.

    Of sampled labels those of the draws themselves: their entropy is below the teacher's, and log n at most. Raises
    TemperatureError when the labels did not keep this temperature.
    """
    if isinstance(soft, Sampled):
        weights, starts = np.asarray(soft.at(temperature), dtype=np.float64), np.asarray(soft.offsets)[:-1]
        share = np.where(weights > 0, weights, 1.0)  # rounding leaves some at nothing, which counts nothing
        if not len(soft):
            return np.zeros((2, 0))
        entropies, largest = np.add.reduceat(-share * np.log(share), starts), np.maximum.reduceat(weights, starts)
        return np.stack([np.maximum(entropies, 0.0), np.minimum(largest, 1.0)])
    if isinstance(soft, TopK):
        kept, log_rest = (np.asarray(a, dtype=np.float64) for a in soft.at(temperature))
        rest, dropped = np.exp(log_rest), soft.num_classes - soft.ids.shape[1]
        # log_rest is -inf where nothing was dropped, and nothing times that is nothing.
        tail = np.where(rest > 0, rest * (np.where(rest > 0, log_rest, 0.0) - math.log(max(1, dropped))), 0.0)
    else:
        return _of_all_classes(soft.logits, temperature)
    probabilities = np.exp(kept)
    entropy = -(probabilities * kept).sum(axis=1) - tail
    return np.stack([np.maximum(entropy, 0.0), np.minimum(probabilities.max(axis=1), 1.0)])


def _of_all_classes(logits: npt.NDArray[np.float32], temperature: float) -> Floats:
    """As above, of logits (N, C), some classes at a time: rows may be long.

    With z the logits over T less their largest, the entropy is log(sum exp z) - sum(z exp z) / sum(exp z).
    """
    best = logits.max(axis=1, keepdims=True)
    mass, weighted = np.zeros(len(logits)), np.zeros(len(logits))
    step = max(1, _BLOCK // max(1, len(logits)))
    for first in range(0, logits.shape[1], step):
        z = (logits[:, first : first + step] - best).astype(np.float64) / temperature
        exp = np.exp(z)
        mass += exp.sum(axis=1)
        weighted += np.where(exp > 0, z * exp, 0.0).sum(axis=1)
    return np.stack([np.maximum(np.log(mass) - weighted / mass, 0.0), 1.0 / mass])


def _kinds(cache: Cache) -> list[tuple[str, str]]:
    """The (split, kind of view) that a cache holds, in order."""
    return [(s, kind) for s in cache.splits() for kind in (PLAIN, RANDOM) if _views(cache, s, kind)]


def _views(cache: Cache, split: str, kind: str) -> list[int]:
    plain = cache.identity.get("views", {}).get("plain", True)
    return [v for v in cache.views(split) if (v == 0 and plain) == (kind == PLAIN)]


def _chosen(cache: Cache, key: tuple[str, str], sample: int) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """The rows that are looked at, (view, rows ascending) for each view of one kind."""
    split, kind = key
    views, examples = _views(cache, split, kind), cache.examples(split)
    entries = len(views) * examples
    share = sample * entries // max(1, cache.manifest.counts["entries"])
    wanted = entries if sample == 0 else min(entries, max(share, _LEAST))
    for number, view in enumerate(views):
        each = wanted // len(views) + (number < wanted % len(views))
        if each:
            yield view, _rows(examples, each, np.random.default_rng([view, examples]))


def _rows(count: int, wanted: int, random: np.random.Generator) -> npt.NDArray[np.int64]:
    """``wanted`` of ``count`` rows: runs of neighbours, one from each of so many equal stretches."""
    if wanted >= count:
        return np.arange(count, dtype=np.int64)
    runs = -(-wanted // _RUN)
    edges = np.linspace(0, count, runs + 1).astype(np.int64)
    lengths = np.diff(np.linspace(0, wanted, runs + 1).astype(np.int64))  # at most the stretch: wanted < count
    slack = np.maximum(np.diff(edges) - lengths, 0)
    starts = edges[:-1] + (random.random(runs) * (slack + 1)).astype(np.int64)
    rows = np.concatenate([np.arange(s, s + n) for s, n in zip(starts.tolist(), lengths.tolist(), strict=True)])
    return np.unique(np.minimum(rows, count - 1)).astype(np.int64)


def _batches(cache: Cache, rows: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    """``rows`` in pieces that take some megabytes each."""
    specs = cache.encoding.specs(cache.classes).values()
    each = sum(spec.row_bytes for spec in specs) * cache.manifest.layout.mean_length
    step = max(1, int(_BATCH_BYTES // each))
    for first in range(0, len(rows), step):
        yield rows[first : first + step]
