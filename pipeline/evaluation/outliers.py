"""Inputs of no class: how much less sure models are of them, and how well that tells them from a dataset's own.

Two scores, higher for a dataset's own examples: the largest softmax probability (Hendrycks and Gimpel 2017), and the
energy with its sign turned (Liu et al. 2020; the density of a classifier's inputs in Grathwohl et al. 2020).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline import identity, metrics
from pipeline.configuration import parse_arguments
from pipeline.corruptions import check_image
from pipeline.datasets import Dataset, load_dataset
from pipeline.errors import ConfigError, DataError
from pipeline.evaluation.batches import Predictor
from pipeline.evaluation.scoring import plain_batches

Key = TypeVar("Key", bound=Hashable)
Rows = npt.NDArray[np.int64]
NOISE, NORMAL, SCRAMBLED = "noise", "normal-noise", "scrambled"
MADE_UP = {
    NOISE: "each value uniform in [0, 1]",
    NORMAL: "each value normal about 0.5 with standard deviation 1, cut to [0, 1]",
    SCRAMBLED: "the dataset's own images with their pixels in random order",
}
"""Outliers that need no data. The noises are those of Liang et al. (2018)."""
TPR = 0.95


@dataclass(frozen=True)
class Detection:
    """How well one score tells inside from outside; inside is positive, but for ``aupr_outside``."""

    auroc: float | None
    aupr: float | None
    aupr_outside: float | None
    fpr_at_95_tpr: float | None


@dataclass(frozen=True)
class Separation:
    """One model: by its largest probability and by its energy, and the means of both, energy in nats."""

    probability: Detection
    energy: Detection
    confidence_inside: float
    confidence_outside: float
    energy_inside: float
    energy_outside: float


@dataclass(frozen=True)
class Outliers(Generic[Key]):
    """``separations`` of the models; ``outside`` names the source, ``preprocessing`` what was done to it."""

    outside: str
    preprocessing: str
    counts: tuple[int, int]
    separations: Mapping[Key, Separation]

    def summary(self, key: Key) -> dict[str, float]:
        """The flat figures of one model."""
        found = self.separations[key]
        flat = {
            "outlier_auroc": found.probability.auroc,
            "outlier_fpr95": found.probability.fpr_at_95_tpr,
            "outlier_energy_auroc": found.energy.auroc,
            "outlier_energy_fpr95": found.energy.fpr_at_95_tpr,
            "outlier_confidence": found.confidence_outside,
        }
        return {name: value for name, value in flat.items() if value is not None}

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "outside": self.outside,
            "preprocessing": self.preprocessing,
            "examples_inside": self.counts[0],
            "examples_outside": self.counts[1],
            "models": {
                str(key): {"summary": self.summary(key), **asdict(found)} for key, found in self.separations.items()
            },
        }


class MadeUp(Dataset):
    """Images of no class, one for each of ``base``, of the shape that it loads with, prepared as it prepares.

    ``kind`` is a key of MADE_UP. An image is a function of the seed, the kind and the example's id.
    """

    def __init__(self, base: Dataset, kind: str, seed: int = 0) -> None:
        if kind not in MADE_UP:
            raise ConfigError(f"outliers that are made up are {', '.join(MADE_UP)}; found {kind!r}")
        self.base, self.kind, self.seed = base, kind, seed
        super().__init__(
            name=kind,
            classes=base.classes,
            ids=base.ids,
            splits=base.splits,
            input_shape=base.input_shape,
            preprocessing=base.preprocessing,
        )

    def load(self, row: int) -> Tensor:
        """(C, H, W) float32 in [0, 1]. Raises ConfigError or DataError where the base has no such images."""
        x = self.base.load(row)
        check_image(x, f"--outliers {self.kind}", self.ids[row])
        seed = identity.view_seed(self.seed, f"{self.kind}\0{self.ids[row]}", 0)
        draw = np.random.RandomState([seed & 0xFFFFFFFF, seed >> 32])
        if self.kind == SCRAMBLED:
            order = torch.from_numpy(draw.permutation(x[0].numel()))
            return x.reshape(len(x), -1)[:, order].reshape(x.shape)
        shape = tuple(x.shape)
        made = draw.random_sample(shape) if self.kind == NOISE else 0.5 + draw.standard_normal(shape)
        return torch.from_numpy(np.clip(made, 0, 1).astype(np.float32))

    def prepare(self, x: Tensor) -> Tensor:
        """As the base does."""
        return self.base.prepare(x)


def open_outliers(
    reference: str, arguments: Sequence[str], inside: tuple[Dataset, Rows], split: str
) -> tuple[Dataset, Rows]:
    """What ``--outliers`` names: a key of MADE_UP, one image for each row inside; or the split of a dataset.

    Raises ConfigError or DataError where there is nothing of the kind, or nothing that the models take.
    """
    dataset, rows = inside
    if reference in MADE_UP:
        if arguments:
            raise ConfigError(f"--outlier-args are of a dataset; --outliers {reference} has none")
        made = MadeUp(dataset, reference)
        made.load(int(rows[0]))
        return made, rows
    outside = load_dataset(reference, parse_arguments(tuple(arguments), "--outlier-args"))
    check_outside(dataset, outside)
    found = outside.rows(split)
    if not len(found):
        raise DataError(f"--outliers {reference} should have examples in its {split} split; found none")
    return outside, found


def check_outside(inside: Dataset, outside: Dataset) -> None:
    """Raise ConfigError where a dataset is what it should be told from, DataError where the models cannot take it.

    So does another normalisation, where both say what theirs is: it alone would tell the two apart.
    """
    if (outside.name, tuple(outside.ids)) == (inside.name, tuple(inside.ids)):
        raise ConfigError(f"--outliers {outside.name} is what is measured: name other data")
    own, other = inside.input_shape, outside.input_shape
    if own != other:
        raise DataError(
            f"--outliers {outside.name} should have inputs of shape {own} as the models do; found {other}. "
            + _advice(own, other)
        )
    norms = [_normalisation(dataset) for dataset in (inside, outside)]
    if None not in norms and norms[0] != norms[1]:
        wanted, found = (" and ".join("/".join(f"{v:g}" for v in part) for part in norm or ()) for norm in norms)
        raise DataError(
            f"--outliers {outside.name} should be normalised as {inside.name} is, by mean and std {wanted}; found "
            f"{found}. Give the same mean and std, or normalise, by --outlier-args"
        )


def _advice(own: tuple[int, ...], other: tuple[int, ...]) -> str:
    if len(own) != 3 or len(other) != 3:
        return "Name data of that shape"
    wanted = [f"size={own[1]}"] if own[1:] != other[1:] and own[1] == own[2] else []
    wanted += [f"channels={own[0]}"] if own[0] != other[0] else []
    if not wanted:
        return "Store them in that shape: no argument makes images that are not square"
    return (
        f"Pictures (images:, torchvision:, hf:) take --outlier-args {','.join(wanted)}, the digits a size; arrays: are "
        "taken as they are stored"
    )


def _normalisation(dataset: Dataset) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation by channel, where a dataset of pictures says so."""
    pictures = getattr(dataset, "pictures", None) or getattr(dataset, "_pictures", None)
    if pictures is None:
        return None
    mean, std = (values * (pictures.channels if len(values) == 1 else 1) for values in (pictures.mean, pictures.std))
    return mean, std


def out_of_distribution(
    predictors: Mapping[Key, Predictor],
    inside: tuple[Dataset, Rows],
    outside: tuple[Dataset, Rows],
    *,
    temperature: float = 1.0,
    batch_size: int = 256,
    workers: int = 0,
    advance: Callable[[int], object] = lambda n: None,
) -> Outliers[Key]:
    """Run every model over the rows of both datasets, reading each once, and tell them apart by the two scores.

    ``temperature`` is that of the energy. Labels are not looked at. Raises DataError where the inputs differ in shape,
    there are none, or the logits are not finite.
    """
    if inside[0].input_shape != outside[0].input_shape:
        check_outside(inside[0], outside[0])
    if not len(inside[1]) or not len(outside[1]):
        raise DataError("examples inside and outside should number one or more each; found none of a kind")
    found: dict[Key, list[list[npt.NDArray[Any]]]] = {key: [[], []] for key in predictors}
    for side, (dataset, rows) in enumerate((inside, outside)):
        for batch, inputs in plain_batches(dataset, rows, batch_size=batch_size, workers=workers):
            for key, predict in predictors.items():
                found[key][side].append(_two_scores(predict(inputs), temperature))
            advance(len(batch))
    return Outliers(
        outside=outside[0].name,
        preprocessing=outside[0].preprocessing,
        counts=(len(inside[1]), len(outside[1])),
        separations={key: _separation(*(np.concatenate(side) for side in sides)) for key, sides in found.items()},
    )


def _two_scores(logits_BC: npt.NDArray[Any], temperature: float) -> npt.NDArray[np.float64]:
    """The largest probability and the energy, (B, 2)."""
    if not np.isfinite(logits_BC).all():
        raise DataError("logits should be finite; found NaN or infinities on what is inside or outside")
    return np.stack(
        [np.exp(metrics.log_softmax(logits_BC).max(axis=1)), metrics.energy(logits_BC, temperature)], axis=1
    )


def _separation(inside_N2: npt.NDArray[np.float64], outside_N2: npt.NDArray[np.float64]) -> Separation:
    both = np.concatenate([inside_N2, outside_N2])
    positive = np.arange(len(both)) < len(inside_N2)
    means = [*inside_N2.mean(axis=0), *outside_N2.mean(axis=0)]
    return Separation(
        probability=_detection(both[:, 0], positive),
        energy=_detection(-both[:, 1], positive),
        confidence_inside=float(means[0]),
        confidence_outside=float(means[2]),
        energy_inside=float(means[1]),
        energy_outside=float(means[3]),
    )


def _detection(scores: npt.NDArray[np.float64], positive: npt.NDArray[np.bool_]) -> Detection:
    return Detection(
        auroc=metrics.auroc(scores, positive),
        aupr=metrics.aupr(scores, positive),
        aupr_outside=metrics.aupr(-scores, ~positive),
        fpr_at_95_tpr=metrics.fpr_at_tpr(scores, positive, TPR),
    )
