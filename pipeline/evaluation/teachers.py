"""What was learnt from, asked about another split: labels of a cache, the mean of those of several, or a live model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from pipeline.configuration import parse_arguments
from pipeline.datasets import Dataset
from pipeline.errors import ConfigError
from pipeline.evaluation.batches import Teacher, TeacherLabels, TorchPredictor, told_by_labels, told_by_model
from pipeline.evaluation.scoring import teacher_labels
from pipeline.identity import SPLITS
from pipeline.models import check_model, state_digest
from pipeline.runs import Run, load_trained, read_trained
from pipeline.softlabels import Dense, SoftLabels
from pipeline.sources.mixing import mixed
from pipeline.sources.panel import APART
from pipeline.store import Cache, open_cache
from pipeline.training.labels import parse_labels


@dataclass(frozen=True)
class Teachers:
    """Caches with the weights of their mixture, which come to 1, and the rule (``mix``) it is made by."""

    caches: tuple[Cache, ...]
    weights: tuple[float, ...] = (1.0,)
    mix: str = "probs"

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that all caches hold."""
        return tuple(split for split in self.caches[0].splits() if all(split in c.splits() for c in self.caches))

    @property
    def digest(self) -> Any:
        """Of the cache; of several a list of digests and weights. JSON values."""
        if len(self.caches) == 1:
            return self.caches[0].digest
        return [{"digest": c.digest, "weight": w} for c, w in zip(self.caches, self.weights, strict=True)]

    def told(self, dataset: Dataset, split: str, temperature: float) -> Teacher:
        """What the labels of ``split`` say of a batch. Raises what ``labels`` raises."""
        return told_by_labels(self.labels(dataset, split, temperature), len(dataset.classes))

    def labels(self, dataset: Dataset, split: str, temperature: float) -> TeacherLabels:
        """From dataset rows of ``split`` to soft labels; probabilities are averaged at ``temperature``.

        Raises CacheMismatchError when a cache belongs to other data, or lacks some of these examples.
        """
        readers = [teacher_labels(cache, dataset, split) for cache in self.caches]
        if len(readers) == 1:
            return readers[0]

        def read(rows: npt.NDArray[np.int64]) -> SoftLabels:
            found: list[Dense] = []
            for cache, reader in zip(self.caches, readers, strict=True):
                soft = reader(rows)
                if not isinstance(soft, Dense):
                    raise ConfigError(
                        f"{cache.address} is {cache.encoding.name}, and dense labels are needed to average several. "
                        "Name the one to compare with by --cache, or 'none'"
                    )
                found.append(soft.map(torch.from_numpy))
            return mixed(found, self.weights, mix=self.mix, temperature=temperature).map(lambda t: t.numpy())

        return read


@dataclass(frozen=True)
class LiveTeacher:
    """A model that runs beside those that are measured: it has an exact opinion of every split."""

    name: str
    predict: TorchPredictor
    caches: tuple[Cache, ...] = ()

    @property
    def splits(self) -> tuple[str, ...]:
        """All of them."""
        return SPLITS

    @property
    def digest(self) -> Any:
        """What it is, and the digest of its weights. JSON values."""
        return {"teacher": self.name, "state": state_digest(self.predict.model)}

    def told(self, dataset: Dataset, split: str, temperature: float) -> Teacher:
        """What it says of a batch."""
        return told_by_model(self.predict)


AnyTeacher: TypeAlias = Teachers | LiveTeacher


def live_teacher(path: Path, dataset: Dataset, device: torch.device, allow: Sequence[str]) -> LiveTeacher:
    """The model of a directory of ``fit-teacher`` or ``train``. Raises ConfigError or ModelError where it does not fit.

    A specialist, which knows some of the classes alone, is refused.
    """
    trained = read_trained(path, allow=allow)
    if trained.classes:
        raise ConfigError(f"--teacher should know all classes; {path} is a specialist of {', '.join(trained.classes)}")
    arguments = parse_arguments(trained.arguments, "the teacher's arguments")
    model = load_trained(trained.weights, dataset, reference=trained.reference, arguments=arguments).to(device)
    example = dataset.prepare(dataset.load(0))[None].to(device)
    check_model(model, classes=len(dataset.classes), example_input=example, whose=f"teacher {path}")
    return LiveTeacher(trained.reference, TorchPredictor(model, device))


def open_teachers(address: str | None, trained: Run | None) -> Teachers | None:
    """The cache named, or those that the run learnt from; None for ``none`` or where there is none.

    No hard label takes part in what teachers say of held-out examples: ``correct`` is the mean of all of them here, and
    so are caches with a loss or a head each (weighted KL divergences are least at the mean of the probabilities).
    """
    if address is None and trained is not None:
        # A route is judged by where it leads.
        address = trained.config.get("cache") or next(reversed(trained.config.get("route") or ()), None)
        if address is None and (pairs := parse_labels([str(text) for text in trained.config.get("labels") or ()])):
            caches = tuple(open_cache(place) for place, _ in pairs)
            mix = str(trained.config.get("mix", "probs"))
            return Teachers(caches, tuple(w for _, w in pairs), "probs" if mix in APART else mix)
    return None if address in (None, "", "none") else Teachers((open_cache(str(address)),))
