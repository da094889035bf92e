"""``--label-noise``: which hard labels are wrong, for whom, and for how many."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.datasets import Dataset, load_dataset
from pipeline.errors import ConfigError
from pipeline.teacher import FitTeacherConfig, make_teacher_task
from pipeline.training import TrainConfig, prepare
from pipeline.training.stage import run_identity
from pipeline.training.task import flipped, keep_labels
from pipeline.views import Views

Make = Callable[..., TrainConfig]


class Numbered(Dataset):
    """N examples of C classes, all for training; ``order`` decides which row is which."""

    def __init__(self, order: list[int], classes: int = 5) -> None:
        super().__init__(
            name="numbered",
            classes=[str(c) for c in range(classes)],
            ids=[f"e{number}" for number in order],
            labels=[number % classes for number in order],
            splits=np.zeros(len(order), np.int8),
            input_shape=(1,),
        )

    def load(self, row: int) -> Tensor:
        return torch.zeros(1)


def wrong(labels: np.ndarray, dataset: Dataset) -> np.ndarray:
    return np.flatnonzero((labels >= 0) & (labels != dataset.labels))


def test_the_share_is_exact_and_every_other_class_as_likely() -> None:
    dataset = Numbered(list(range(4000)))
    noisy = flipped(dataset, dataset.labels, 0.4)
    changed = wrong(noisy, dataset)
    assert len(changed) == 1600
    assert set(noisy.tolist()) == set(range(5))
    steps = np.bincount((noisy - dataset.labels)[changed] % 5, minlength=5)
    assert steps[0] == 0 and np.square(steps[1:] - 400).sum() / 400 < 16.3, "chi squared, 3 degrees, 0.1%"
    assert np.abs(np.bincount(dataset.labels[changed]) - 320).max() < 60, "of every class about as many"


def test_more_noise_flips_the_same_and_more() -> None:
    dataset = Numbered(list(range(300)))
    less, more = flipped(dataset, dataset.labels, 0.1), flipped(dataset, dataset.labels, 0.5)
    changed = wrong(less, dataset)
    assert len(changed) == 30 and set(changed) < set(wrong(more, dataset))
    assert (less[changed] == more[changed]).all()


def test_ids_decide_and_not_the_order() -> None:
    order = np.random.default_rng(0).permutation(300)
    here, there = Numbered(list(range(300))), Numbered(order.tolist())
    assert (flipped(here, here.labels, 0.3)[order] == flipped(there, there.labels, 0.3)).all()


def test_the_labels_themselves_are_left_alone() -> None:
    dataset = Numbered(list(range(50)))
    before = dataset.labels.copy()
    flipped(dataset, dataset.labels, 0.9)
    assert (dataset.labels == before).all()
    assert (flipped(dataset, dataset.labels, 0.0) == before).all()
    without = np.where(before == 0, -1, before)
    assert (flipped(dataset, without, 0.9)[before == 0] == -1).all()


def test_there_has_to_be_another_class() -> None:
    dataset = Numbered(list(range(4)), classes=1)
    assert (flipped(dataset, dataset.labels, 0.0) == 0).all()
    with pytest.raises(ConfigError, match="--label-noise needs a second class; numbered has '0' alone"):
        flipped(dataset, dataset.labels, 0.5)


def test_the_noise_is_there_before_a_fraction_is_taken(shared: Path) -> None:
    dataset = load_dataset(f"arrays:{shared / 'data.npz'}")
    rows = dataset.rows("train")
    clean, noisy = (keep_labels(dataset, rows, 0.4, noise) for noise in (0.0, 0.5))
    assert ((clean >= 0) == (noisy >= 0)).all(), "the same examples keep a label"
    everything = keep_labels(dataset, rows, 1.0, 0.5)
    assert (noisy[noisy >= 0] == everything[noisy >= 0]).all(), "the same labels are wrong"
    assert 0 < len(wrong(noisy, dataset)) < len(wrong(everything, dataset)) == 25


def test_training_examples_alone_get_it(config: Make) -> None:
    clean, noisy = prepare(config(alpha=0.0)), prepare(config(alpha=0.0, label_noise=0.2))
    task, dataset = noisy.task, noisy.dataset
    assert len(wrong(task.labels, dataset)) == 10 and (task.labels[50:] == -1).all()
    assert (task.validation_labels == dataset.labels).all()
    assert task.validation.tolist() == clean.task.validation.tolist()
    assert noisy.lineage == clean.lineage, "the data is the same; the option says what becomes of it"
    identities = {run_identity(config(alpha=0.0, label_noise=noise), clean.lineage) for noise in (0.0, 0.2, 0.3)}
    assert len(identities) == 3


def test_an_omitted_class_is_the_true_one(config: Make) -> None:
    prepared = prepare(config(alpha=0.0, label_noise=0.9, omit_class="bee"))
    rows = np.concatenate(prepared.task.blocks)
    assert 1 not in prepared.dataset.labels[rows]


def test_a_teacher_may_learn_from_noisy_labels(shared: Path, tmp_path: Path) -> None:
    options = {"data": f"arrays:{shared / 'data.npz'}", "out": tmp_path / "teacher", "device": "cpu"}
    dataset = load_dataset(str(options["data"]))
    for noise, expected in ((0.0, 0), (0.3, 15)):
        task = make_teacher_task(FitTeacherConfig(**options, label_noise=noise), dataset, Views(), torch.device("cpu"))
        assert len(wrong(task.labels, dataset)) == expected


@pytest.mark.parametrize("noise", [-0.1, 1.0, float("nan")])
def test_shares_out_of_range(noise: float, tmp_path: Path) -> None:
    for kind in (TrainConfig, FitTeacherConfig):
        with pytest.raises(ConfigError, match="--label-noise should be 0 or more and below 1"):
            kind(out=tmp_path, label_noise=noise)
