"""What is of no class: made-up images, other data, and how far two scores tell them from a dataset's own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from pipeline.datasets import Images, load_dataset
from pipeline.errors import ConfigError, DataError
from pipeline.evaluation.outliers import MADE_UP, MadeUp, check_outside, open_outliers, out_of_distribution

DIGITS = load_dataset("digits")
ROWS = DIGITS.rows("test")[:50]
INSIDE = (DIGITS, ROWS)


def model(x: Tensor) -> np.ndarray:
    """Ten sums of pixels, each of its own pixels, so that what is smooth is surer than what is not."""
    weights = torch.randn(64, 10, generator=torch.Generator().manual_seed(3))
    return (x.reshape(len(x), -1) @ weights).numpy()


@pytest.mark.parametrize("kind", MADE_UP)
def test_made_up_images_follow_from_seed_and_id(kind: str) -> None:
    made = MadeUp(DIGITS, kind)
    x = made.load(7)
    assert x.shape == (1, 8, 8) and x.dtype == torch.float32 and x.min() >= 0 and x.max() <= 1
    torch.manual_seed(1)
    assert torch.equal(MadeUp(DIGITS, kind).load(7), x) and not torch.equal(made.load(8), x)
    assert not torch.equal(MadeUp(DIGITS, kind, seed=1).load(7), x)
    assert made.rows("test").tolist() == DIGITS.rows("test").tolist() and (made.labels == -1).all()


def test_made_up_images_are_what_they_are_called() -> None:
    def values(kind: str) -> np.ndarray:
        return np.sort(torch.stack([MadeUp(DIGITS, kind).load(row) for row in range(60)]).numpy().ravel())

    uniform, normal = values("noise"), values("normal-noise")
    assert np.abs(uniform - np.linspace(0, 1, len(uniform))).max() < 0.03
    # A normal distribution about 0.5 has 30.9% at or below 0, and as much beyond 1.
    assert np.mean(normal == 0) == pytest.approx(0.3085, abs=0.03) == np.mean(normal == 1)
    scrambled = MadeUp(DIGITS, "scrambled")
    for row in range(5):
        x, own = scrambled.load(row), DIGITS.load(row)
        assert sorted(x.flatten().tolist()) == sorted(own.flatten().tolist()) and not torch.equal(x, own)


def test_colours_are_scrambled_together(tmp_path: Path) -> None:
    colour = write_pictures(tmp_path, 6, 9)
    data = Images(str(tmp_path), size=6)
    x, own = MadeUp(data, "scrambled").load(0), data.load(0)
    assert colour and x.shape == own.shape == (3, 6, 9)
    assert sorted(map(tuple, x.reshape(3, -1).T.tolist())) == sorted(map(tuple, own.reshape(3, -1).T.tolist()))


def write_pictures(folder: Path, height: int, width: int) -> int:
    random = np.random.default_rng(0)
    (folder / "test" / "a").mkdir(parents=True)
    for n in range(4):
        Image.fromarray(random.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(folder / f"test/a/{n}.png")
    return 4


def test_figures_are_those_of_the_logits() -> None:
    outside = open_outliers("scrambled", (), INSIDE, "test")
    models = {"one": model, "half": lambda x: model(x) / 2}
    found = out_of_distribution(models, INSIDE, outside, temperature=2.0, batch_size=7)
    logits = [
        np.stack([predict(dataset.load(row)[None])[0] for row in ROWS.tolist()]).astype(np.float64)
        for predict in models.values()
        for dataset in (DIGITS, outside[0])
    ]
    positive = np.arange(100) < 50
    for at, key in enumerate(models):
        both = np.concatenate(logits[2 * at : 2 * at + 2])
        sure = (np.exp(both) / np.exp(both).sum(axis=1, keepdims=True)).max(axis=1)
        energy = -2 * np.log(np.exp(both / 2).sum(axis=1))
        one = found.separations[key]
        for detection, score in ((one.probability, sure), (one.energy, -energy)):
            assert detection.auroc == pytest.approx(roc_auc_score(positive, score))
            assert detection.aupr == pytest.approx(average_precision_score(positive, score))
            assert detection.aupr_outside == pytest.approx(average_precision_score(~positive, -score))
            threshold = np.sort(score[positive])[2]  # 48 of 50, the first share that is 95% or more
            assert detection.fpr_at_95_tpr == pytest.approx((score[~positive] >= threshold).mean())
        assert one.confidence_inside == pytest.approx(sure[:50].mean(), rel=1e-5)
        assert one.confidence_outside == pytest.approx(sure[50:].mean(), rel=1e-5)
        assert one.energy_outside == pytest.approx(energy[50:].mean(), rel=1e-5)
    assert found.separations["one"].probability.auroc != found.separations["half"].energy.auroc
    text = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert text["outside"] == "scrambled" and text["examples_outside"] == 50
    assert text["models"]["one"]["summary"]["outlier_energy_auroc"] == found.separations["one"].energy.auroc
    assert out_of_distribution(models, INSIDE, outside, temperature=2.0, workers=2).as_dict() == found.as_dict()


def test_what_cannot_be_told_apart_has_half_of_the_pairs() -> None:
    found = out_of_distribution({0: model}, INSIDE, INSIDE).separations[0]
    assert found.probability.auroc == found.energy.auroc == 0.5
    assert found.energy.fpr_at_95_tpr is not None and found.energy.fpr_at_95_tpr >= 0.95


def test_logits_that_are_not_finite_are_refused() -> None:
    with pytest.raises(DataError, match="logits should be finite"):
        out_of_distribution({0: lambda x: model(x) * np.nan}, INSIDE, INSIDE)
    with pytest.raises(DataError, match="found none of a kind"):
        out_of_distribution({0: model}, INSIDE, (DIGITS, ROWS[:0]))


# Other data.


def test_a_dataset_that_the_models_take(tmp_path: Path) -> None:
    write_pictures(tmp_path, 9, 12)
    reference = f"images:{tmp_path}"
    with pytest.raises(
        DataError, match=r"shape \(1, 8, 8\) as the models do; found \(3, 224, 224\).*size=8,channels=1"
    ):
        open_outliers(reference, (), INSIDE, "test")
    with pytest.raises(DataError, match=r"take --outlier-args channels=1"):
        open_outliers(reference, ("size=8",), INSIDE, "test")
    dataset, rows = open_outliers(reference, ("size=8", "channels=1"), INSIDE, "test")
    assert dataset.input_shape == (1, 8, 8) and len(rows) == 4
    assert out_of_distribution({0: model}, INSIDE, (dataset, rows)).counts == (50, 4)
    with pytest.raises(DataError, match="should have examples in its validation split; found none"):
        open_outliers(reference, ("size=8,channels=1",), INSIDE, "validation")


def test_another_normalisation_is_no_other_data(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_pictures(tmp_path / name, 8, 8)
    own = Images(str(tmp_path / "a"), size=8, normalise="imagenet")
    with pytest.raises(DataError, match=r"by mean and std 0\.485/0\.456/0\.406 and .*; found 0/0/0 and 1/1/1"):
        check_outside(own, Images(str(tmp_path / "b"), size=8))
    check_outside(own, Images(str(tmp_path / "b"), size=8, normalise="imagenet"))
    check_outside(
        Images(str(tmp_path / "a"), size=8, mean=0.5), Images(str(tmp_path / "b"), size=8, mean="0.5/0.5/0.5")
    )


def test_what_is_no_outlier_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--outliers digits is what is measured"):
        open_outliers("digits", (), INSIDE, "test")
    with pytest.raises(ConfigError, match="--outlier-args are of a dataset; --outliers noise has none"):
        open_outliers("noise", ("size=8",), INSIDE, "test")
    np.savez(tmp_path / "t.npz", x=np.random.rand(9, 5).astype(np.float32), y=np.arange(9) % 2)
    table = load_dataset(f"arrays:{tmp_path / 't.npz'}")
    with pytest.raises(ConfigError, match=r"--outliers noise acts on images \(C, H, W\)"):
        open_outliers("noise", (), (table, np.arange(9)), "test")
    with pytest.raises(DataError, match=r"found \(5,\)\. Name data of that shape"):
        check_outside(DIGITS, table)
    with pytest.raises(ConfigError, match="made up are noise, normal-noise, scrambled; found 'rain'"):
        MadeUp(DIGITS, "rain")
