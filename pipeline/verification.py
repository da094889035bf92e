"""Ask the teacher again: recompute a sample of entries and hold the cache to its declared bound.

``store/verify.py`` proves that the bytes are those that were committed; this proves that they are what this teacher
says of this data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.configuration import REQUIRED, Config, option, parse_arguments
from pipeline.datasets import knowing, load_dataset
from pipeline.devices import autocast, resolve_device
from pipeline.encodings import Encoding
from pipeline.encodings import Sampled as SampledEncoding
from pipeline.errors import CacheMismatchError
from pipeline.identity import short
from pipeline.metrics import log_softmax
from pipeline.models import check_model, frozen, load_model, logits_of, state_digest
from pipeline.progress import Progress, Silent
from pipeline.softlabels import Sampled, SoftLabels, TopK
from pipeline.sources import match, replay_views
from pipeline.sources.matching import known_classes
from pipeline.store import open_cache
from pipeline.views import load_inputs


@dataclass(frozen=True, kw_only=True)
class VerifyConfig(Config):
    """Options of ``softlabels cache verify --teacher``."""

    cache: str = option(REQUIRED, "directory or URL of the cache")
    teacher: str = option(REQUIRED, "the model that made the cache")
    teacher_args: tuple[str, ...] = option((), "key=value arguments for the teacher's factory")
    weights: Path | None = option(None, "the teacher's weights")
    data: str = option("digits", "the dataset the cache was made from")
    data_args: tuple[str, ...] = option((), "key=value arguments for the dataset")
    transform: str | None = option(None, "the random view, when the cache was made with a module:factory")
    entries: int = option(256, "entries to recompute, drawn at random over splits and views")
    seed: int = option(0, "seed of the draw")
    tolerance: float = option(1e-3, "added to the declared bound for another device, batch or precision")
    batch_size: int = option(64, "entries per forward pass")
    device: str = option("auto", "auto, cpu, cuda, cuda:N, mps")

    def problems(self) -> Iterator[str]:
        if self.entries < 1 or self.batch_size < 1:
            yield f"--entries and --batch-size should be at least 1; found {self.entries} and {self.batch_size}"
        if self.tolerance < 0:
            yield f"--tolerance should be 0 or more; found {self.tolerance}"
        if self.seed < 0:
            yield f"--seed should be 0 or more; found {self.seed}"


@dataclass(frozen=True)
class TeacherReport:
    """The largest difference found between the cache and a teacher asked again."""

    entries: int
    largest: float
    bound: float
    tolerance: float
    unit: str
    worst: str

    @property
    def ok(self) -> bool:
        """Whether every recomputed entry lies within the declared bound and the tolerance."""
        return self.largest <= self.bound + self.tolerance

    @property
    def summary(self) -> str:
        """One line for people."""
        verdict = "within" if self.ok else "BEYOND"
        return (
            f"teacher asked again for {self.entries} entries: largest difference {self.largest:.3g} of a {self.unit}, "
            f"{verdict} the declared {self.bound:.3g} + tolerance {self.tolerance:g} (at {self.worst})"
        )

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {**vars(self), "ok": self.ok}


def verify_with_teacher(config: VerifyConfig, progress: Progress | None = None) -> TeacherReport:
    """Recompute ``entries`` random entries and compare.

    Raises CacheMismatchError when the teacher's weights, or the data, are not those of the cache.
    """
    progress = progress or Silent()
    device = resolve_device(config.device)
    cache = open_cache(config.cache)
    dataset = load_dataset(config.data, parse_arguments(config.data_args, "--data-args"))
    if known_classes(cache, dataset) is not None:
        dataset = knowing(dataset, cache.class_names)
    arguments = parse_arguments(config.teacher_args, "--teacher-args")
    whose = f"teacher {config.teacher}"
    teacher = frozen(load_model(config.teacher, arguments, config.weights, dataset, whose=whose)).to(device)
    example = dataset.prepare(dataset.load(0))[None].to(device)
    check_model(teacher, classes=len(dataset.classes), example_input=example, whose=whose)
    made_by, found = cache.identity["teacher"]["state"], state_digest(teacher)
    if any(step["verb"] == "noise" for step in cache.manifest.lineage):
        raise CacheMismatchError(
            f"{config.cache} holds noisy labels: no teacher says the same. Ask for its bytes alone"
        )
    if made_by is None:
        raise CacheMismatchError(
            f"{config.cache} does not know which teacher made it (its labels were imported), so none can be asked again"
        )
    if made_by != found:
        raise CacheMismatchError(
            f"{config.cache} was made by teacher {short(made_by)} ({cache.identity['teacher']['reference']}), this "
            f"command names {short(found)} ({config.teacher}). Pass the teacher and --weights it was made "
            f"with, or dump again"
        )
    views = replay_views(cache, config.transform)
    random = np.random.default_rng(config.seed)
    groups = [(split, view) for split in cache.splits() for view in cache.views(split)]
    ends = np.cumsum([cache.examples(split) for split, _ in groups])
    drawn = np.sort(random.choice(int(ends[-1]), size=min(config.entries, int(ends[-1])), replace=False))
    matchings = {split: match(cache, dataset, split, missing="skip") for split in cache.splits()}
    largest, worst, compared = -1.0, "", 0
    precision = str(cache.identity["teacher"].get("precision", "float32"))
    with progress.bar("verify", len(drawn), "entries") as bar:
        for (split, view), end in zip(groups, ends, strict=True):
            here = drawn[(drawn >= end - cache.examples(split)) & (drawn < end)] - (end - cache.examples(split))
            matching = matchings[split]
            chosen = matching.rows[np.isin(matching.entry_of[matching.rows], here)]
            for first in range(0, len(chosen), config.batch_size):
                rows = chosen[first : first + config.batch_size]
                stored = cache.decode(cache.read_rows(split, view, matching.entries(rows)))
                inputs = load_inputs(dataset, views, [(int(row), view) for row in rows]).to(device)
                with torch.inference_mode(), autocast(device, precision):
                    logits = logits_of(teacher(inputs)).float().cpu().numpy()
                difference = np.nan_to_num(differences(logits, stored, cache.encoding), nan=np.inf, posinf=np.inf)
                at = int(difference.argmax())
                if difference[at] > largest:
                    largest, worst = float(difference[at]), f"{dataset.ids[int(rows[at])]}, view {view}"
                compared += len(rows)
                bar.update(len(rows))
    if not compared:
        raise CacheMismatchError(
            f"none of the {len(drawn)} entries that were drawn from {config.cache} is in {dataset.name}: nothing was "
            f"compared. Raise --entries, or pass the data it was made from"
        )
    unit = "probability" if cache.encoding.temperatures else "centred logit"
    return TeacherReport(compared, largest, cache.manifest.bound, config.tolerance, unit, worst)


def differences(
    logits_NC: npt.NDArray[np.float32], stored: SoftLabels, encoding: Encoding | None = None
) -> npt.NDArray[np.float64]:
    """The largest error of each row (N,), in the unit of the encoding's bound.

    Dense labels: of a centred logit. Top-k labels: of a kept probability or the residual, over declared temperatures.
    Sampled labels, of which ``encoding`` says how they were drawn: how much further the weight of a class is from its
    probability than draws can bring it (systematic ones), or do in one case out of a thousand million.
    """
    if isinstance(stored, Sampled):
        if not isinstance(encoding, SampledEncoding):
            raise ValueError("sampled labels can be held to a teacher only by the encoding that drew them")
        return _beyond_chance(logits_NC, stored, encoding)
    if not isinstance(stored, TopK):
        a, b = logits_NC.astype(np.float64), np.asarray(stored.logits, dtype=np.float64)
        a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
        return np.asarray(np.abs(a - b).max(axis=1))
    worst = np.zeros(len(logits_NC))
    ids = np.asarray(stored.ids, dtype=np.int64)
    for temperature in stored.temperatures:
        exact = np.exp(log_softmax(logits_NC, temperature))
        logprobs, residual = stored.at(temperature)
        kept = np.take_along_axis(exact, ids, axis=1)
        np.maximum(worst, np.abs(kept - np.exp(logprobs.astype(np.float64))).max(axis=1), out=worst)
        np.put_along_axis(exact, ids, 0.0, axis=1)
        np.maximum(worst, np.abs(exact.sum(axis=1) - np.exp(residual.astype(np.float64))), out=worst)
    return worst


def _beyond_chance(
    logits_NC: npt.NDArray[np.float32], stored: Sampled, encoding: SampledEncoding
) -> npt.NDArray[np.float64]:
    """See ``differences``. A draw of a class stands for p / (n q); n q of them are expected.

    Systematic draws are that number rounded up or down; independent ones stay within 6.5 standard deviations and
    some 14 draws of it (Bernstein's inequality, at exp(-21)), which says little of one row of few draws.
    """
    p = np.exp(log_softmax(logits_NC, encoding.temperature))
    q = p if encoding.counted else np.exp(log_softmax(logits_NC, encoding.temperature / encoding.proposal))
    with np.errstate(divide="ignore", invalid="ignore"):
        each = np.where(q > 0, p / (encoding.n * q), 0.0)
    missed = p.copy()
    rows, ids = np.asarray(stored.rows), np.asarray(stored.ids, dtype=np.int64)
    missed[rows, ids] -= stored.weights
    allowed = each
    if encoding.scheme == "independent":
        allowed = 6.5 * np.sqrt(p * each) + 14.0 * each
    return np.asarray(np.maximum(np.abs(missed) - allowed, 0.0).max(axis=1))
