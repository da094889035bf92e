"""What models make of corrupted examples: each is read and decoded once for all of them, then again for the next.

Figures are means over the corruptions with equal weight, as in the paper (Hendrycks and Dietterich 2019, section 4.2).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pipeline import metrics
from pipeline.corruptions import SEVERITIES, check_image, choose, corrupt
from pipeline.datasets import Dataset
from pipeline.errors import ConfigError
from pipeline.evaluation.batches import Predictor
from pipeline.evaluation.scoring import score_rows
from pipeline.metrics import Scores

Key = TypeVar("Key", bound=Hashable)
Condition = tuple[str, int]
"""A corruption and a severity."""


@dataclass(frozen=True)
class Figures:
    """One model under one condition, or the mean of several. ``agreement``: with its own answers on clean examples."""

    accuracy: float
    nll: float
    ece: float
    agreement: float


class Corrupted(Dataset):
    """The examples of ``base`` with one corruption; everything else is that of ``base``."""

    def __init__(self, base: Dataset, corruption: str, severity: int, seed: int = 0) -> None:
        self.base, self.corruption, self.severity, self.seed = base, corruption, severity, seed
        super().__init__(
            name=f"{base.name}, {corruption} {severity}",
            classes=base.classes,
            ids=base.ids,
            labels=base.labels,
            splits=base.splits,
            input_shape=base.input_shape,
            preprocessing=base.preprocessing,
        )

    def load(self, row: int) -> Tensor:
        """(C, H, W) float32 in [0, 1]. Raises what ``corrupt`` raises."""
        return corrupt(
            self.base.load(row), self.corruption, self.severity, seed=self.seed, example_id=self.base.ids[row]
        )

    def prepare(self, x: Tensor) -> Tensor:
        """As the base does."""
        return self.base.prepare(x)


@dataclass(frozen=True)
class Robustness(Generic[Key]):
    """``cells``: of each model, by (corruption, severity); ``clean``: without corruption, ``agreement`` 1.

    ``baseline``: the model whose errors count as 1. ``left_out``: corruptions that these images cannot have, and why.
    """

    corruptions: tuple[str, ...]
    severities: tuple[int, ...]
    seed: int
    clean: Mapping[Key, Figures]
    cells: Mapping[Key, Mapping[Condition, Figures]]
    baseline: Key | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)

    def mean(self, key: Key, *, corruption: str | None = None, severity: int | None = None) -> Figures:
        """Of one model, over all conditions, or those of one corruption or severity."""
        chosen = [
            figures
            for (name, level), figures in self.cells[key].items()
            if corruption in (None, name) and severity in (None, level)
        ]
        return Figures(*np.mean([list(asdict(figures).values()) for figures in chosen], axis=0).tolist())

    def drop(self, key: Key) -> float:
        """Accuracy without corruption, less the mean over all conditions."""
        return self.clean[key].accuracy - self.mean(key).accuracy

    def mce(self, key: Key, *, relative: bool = False) -> float | None:
        """Mean corruption error: over corruptions, of errors by those of the baseline, both summed over severities.

        ``relative``: of what errors exceed those on clean examples. 1 is as good as the baseline (the paper prints
        percents). None without a baseline, or where it has no error, or none beyond its clean ones, of a corruption.
        """
        if self.baseline is None:
            return None
        ratios = []
        for name in self.corruptions:
            own, reference = (self._error(k, name, relative) for k in (key, self.baseline))
            if reference <= 0:
                return None
            ratios.append(own / reference)
        return float(np.mean(ratios))

    def summary(self, key: Key) -> dict[str, float]:
        """The flat figures of one model."""
        found = {f"corrupted_{name}": value for name, value in asdict(self.mean(key)).items()}
        errors = {"mce": self.mce(key), "relative_mce": self.mce(key, relative=True)}
        return {
            **found,
            "corrupted_drop": self.drop(key),
            **{name: value for name, value in errors.items() if value is not None},
        }

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "corruptions": list(self.corruptions),
            "severities": list(self.severities),
            "seed": self.seed,
            "baseline": None if self.baseline is None else str(self.baseline),
            "left_out": dict(self.left_out),
            "models": {
                str(key): {
                    "summary": self.summary(key),
                    "clean": asdict(self.clean[key]),
                    "by_severity": {str(s): asdict(self.mean(key, severity=s)) for s in self.severities},
                    "by_corruption": {
                        name: {
                            "mean": asdict(self.mean(key, corruption=name)),
                            **{str(s): asdict(self.cells[key][name, s]) for s in self.severities},
                        }
                        for name in self.corruptions
                    },
                }
                for key in self.cells
            },
        }

    def _error(self, key: Key, corruption: str, relative: bool) -> float:
        """The mean over severities of the share that is wrong, ``relative`` to that of clean examples."""
        error = 1 - self.mean(key, corruption=corruption).accuracy
        return error - (1 - self.clean[key].accuracy) if relative else error


def conditions(
    dataset: Dataset, row: int, corruptions: Sequence[str], severities: Sequence[int] = SEVERITIES
) -> tuple[list[Condition], dict[str, str]]:
    """What to run, in the order of the catalogue, after a look at one example; and which corruptions are left out.

    Raises ConfigError for names and severities that do not exist or a dataset that holds no images, DataError for
    values outside of [0, 1], MissingDependencyError for a corruption that needs what is not installed.
    """
    unknown = [level for level in severities if level not in SEVERITIES]
    if unknown or not severities:
        raise ConfigError(f"severities are 1 to 5; found {', '.join(map(str, unknown)) or 'none'}")
    example = dataset.load(row)
    check_image(example, "a corruption", dataset.ids[row])
    names, left_out = choose(corruptions, example.shape[0])
    return [(name, level) for name in names for level in sorted(set(severities))], left_out


def corrupted(
    predictors: Mapping[Key, Predictor],
    dataset: Dataset,
    rows: npt.NDArray[np.int64],
    corruptions: Sequence[str],
    severities: Sequence[int] = SEVERITIES,
    seed: int = 0,
    *,
    clean: Mapping[Key, Scores] | None = None,
    baseline: Key | None = None,
    bins: int = 15,
    batch_size: int = 256,
    workers: int = 0,
    advance: Callable[[int], object] = lambda n: None,
) -> Robustness[Key]:
    """Run every model over labelled ``rows`` (N,) under each corruption (``all`` of them) at each severity.

    ``clean``: the scores of the same rows as they are, where they are known; another pass otherwise. Raises what
    ``conditions`` raises, and ConfigError for a baseline that is not among the models.
    """
    if baseline is not None and baseline not in predictors:
        raise ConfigError(f"the baseline should be one of {', '.join(map(str, predictors))}; found {baseline}")
    wanted, left_out = conditions(dataset, int(rows[0]), corruptions, severities)
    options: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "advance": advance}
    if clean is None:
        clean = score_rows(predictors, dataset, rows, **options)
    cells: dict[Key, dict[Condition, Figures]] = {key: {} for key in predictors}
    for name, level in wanted:
        found = score_rows(predictors, Corrupted(dataset, name, level, seed), rows, **options)
        for key, scores in found.items():
            cells[key][name, level] = _figures(scores, clean[key], bins)
    return Robustness(
        corruptions=tuple(dict.fromkeys(name for name, _ in wanted)),
        severities=tuple(sorted(set(severities))),
        seed=seed,
        clean={key: _figures(clean[key], clean[key], bins) for key in predictors},
        cells=cells,
        baseline=baseline,
        left_out=left_out,
    )


def _figures(scores: Scores, clean: Scores, bins: int) -> Figures:
    return Figures(
        accuracy=scores.accuracy,
        nll=scores.nll,
        ece=metrics.reliability(scores.confidence, scores.correct, bins).ece,
        agreement=float((scores.predictions == clean.predictions).mean()),
    )
