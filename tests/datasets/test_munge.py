"""``munge:BASE``: synthetic examples by the paper's algorithm, beside the held-out examples of the base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from pipeline.datasets import Dataset, Munged, load_dataset
from pipeline.datasets import munge as module
from pipeline.datasets.munge import munged, nearest, scaled
from pipeline.dump import DumpConfig
from pipeline.dump import run as dump
from pipeline.errors import ConfigError, DataError
from pipeline.evaluation import EvaluateConfig
from pipeline.evaluation import run as evaluate
from pipeline.models import build_model, save_weights
from pipeline.runs import read_run
from pipeline.training import TrainConfig
from pipeline.training import run as train


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


def write(path: Path, x: npt.NDArray[Any], order: npt.NDArray[np.int64] | None = None) -> str:
    """The last fifth is test, the fifth before it validation."""
    n = len(x)
    split = np.repeat(["train", "validation", "test"], [n - 2 * (n // 5), n // 5, n // 5])
    held = {"x": x, "y": np.arange(n) % 3, "split": split, "ids": np.array([f"e{row:03d}" for row in range(n)])}
    np.savez(path, **{key: values[np.arange(n) if order is None else order] for key, values in held.items()})
    return f"arrays:{path}"


def reference(x: npt.NDArray[Any], passes: int, p: float, s: float, seed: int) -> npt.NDArray[Any]:
    """Algorithm 1, an attribute at a time, with draws in the same order; neighbours among the originals."""
    random, made = np.random.RandomState(seed), []
    low, high = x.min(axis=0), x.max(axis=0)
    unit = (x - low) / (high - low)
    for _ in range(passes):
        copy = x.copy()
        for one in range(len(x)):
            distances = [np.inf if two == one else float(((unit[one] - unit[two]) ** 2).sum()) for two in range(len(x))]
            two = int(np.argmin(distances))
            chosen = [a for a, u in enumerate(random.random_sample(x.shape[1])) if u < p]
            noise = random.standard_normal((2, len(chosen)))
            for number, a in enumerate(chosen):
                mine, theirs = copy[one, a], copy[two, a]
                spread = abs(mine - theirs) / s
                copy[one, a] = theirs + spread * noise[0, number]
                copy[two, a] = mine + spread * noise[1, number]
        made.append(np.minimum(np.maximum(copy, low), high))
    return np.concatenate(made)


@pytest.mark.parametrize(("p", "s"), [(0.5, 1.0), (0.9, 10.0), (0.1, 0.5)])
def test_it_is_the_algorithm_of_the_paper(p: float, s: float) -> None:
    x = np.random.default_rng(0).normal(size=(30, 7)) * np.array([1, 100, 0.01, 1, 1, 5, 1]) + 3
    found = munged(x, 60, p=p, s=s, seed=3)
    np.testing.assert_allclose(found, reference(x, 2, p, s, 3), rtol=1e-6, atol=1e-6)
    assert found.dtype == np.float32 and not np.allclose(found[:30], found[30:])


def test_nothing_is_swapped_at_p_0_and_all_at_p_1() -> None:
    x = np.array([[0.0, 0.0], [0.1, 0.1], [0.9, 0.8], [1.0, 1.0]])
    np.testing.assert_array_equal(munged(x, 4, p=0.0, s=1.0, seed=0), x.astype(np.float32))
    # Pairs swap once for each of the two, so that they end where they were.
    np.testing.assert_allclose(munged(x, 4, p=1.0, s=1e9, seed=0), x, atol=1e-7)


def test_the_last_copy_gives_some_of_its_examples() -> None:
    x = np.random.default_rng(0).normal(size=(20, 3))
    whole, some = munged(x, 40, p=0.5, s=1.0, seed=0), munged(x, 27, p=0.5, s=1.0, seed=0)
    np.testing.assert_array_equal(whole[:20], some[:20])
    places = [int(np.flatnonzero((whole[20:] == row).all(axis=1))[0]) for row in some[20:]]
    assert len(set(places)) == 7 and places == sorted(places) and places != list(range(7))


@pytest.mark.parametrize("rows_at_a_time", [1, 7, 1000])
def test_neighbours_are_the_nearest_whatever_the_chunks(rows_at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(1).integers(0, 3, size=(60, 4)) / 2  # many are as near as each other
    monkeypatch.setattr(module, "NEIGHBOUR_BYTES", rows_at_a_time * 8 * 60)
    expected = []
    for row in range(60):
        distances = np.square(x - x[row]).sum(axis=1)
        distances[row] = np.inf
        expected.append(int(np.argmin(distances)))
    assert nearest(x).tolist() == expected


def test_distances_are_of_attributes_scaled_to_their_range_unless_they_are_pixels() -> None:
    x = np.array([[0.0, 5.0, 2.0], [10.0, 5.0, 4.0]])
    np.testing.assert_array_equal(scaled(x), [[0, 0, 0], [1, 0, 1]])
    pixels = np.array([[0.0, 0.25], [0.5, 0.75]])
    assert scaled(pixels) is pixels


class TestDataset:
    def test_splits_ids_and_labels(self, digits: Dataset) -> None:
        made = load_dataset("munge:digits", {"size": 2000})
        assert made.name == "munge:digits" and made.ids[0] == "munge-000000" and made.ids[1999] == "munge-001999"
        assert (made.labels[:2000] == -1).all() and (made.splits[:2000] == 0).all()
        assert made.classes == digits.classes and made.preprocessing == digits.preprocessing
        for split in ("validation", "test"):
            theirs, ours = digits.rows(split), made.rows(split)
            assert [made.ids[row] for row in ours] == [digits.ids[row] for row in theirs]
            assert (made.labels[ours] == digits.labels[theirs]).all()
            assert made.read(int(ours[0])) == digits.read(int(theirs[0]))
            assert made.content_digest(int(ours[-1])) == digits.content_digest(int(theirs[-1]))
            assert torch.equal(made.load(int(ours[3])), digits.load(int(theirs[3])))
        assert len(made.rows("train")) == 2000

    def test_synthetic_pixels_stay_pixels_and_resemble_their_origin(self, digits: Dataset) -> None:
        made = load_dataset("munge:digits", {"size": 1187, "s": 10.0})
        x = torch.stack([made.load(row) for row in range(1187)])
        real = torch.stack([digits.load(int(row)) for row in digits.rows("train")])
        assert x.dtype == torch.float32 and x.shape[1:] == (1, 8, 8)
        assert float(x.min()) >= 0 and float(x.max()) <= 1
        away = torch.cdist(x.flatten(1), real.flatten(1)).min(dim=1).values
        between = torch.cdist(real.flatten(1), real.flatten(1)).fill_diagonal_(torch.inf).min(dim=1).values
        assert 0 < float(away.mean()) < float(between.mean())

    def test_with_union_the_examples_themselves_stay(self, digits: Dataset) -> None:
        made = load_dataset("munge:digits", {"size": 100, "union": True})
        assert len(made) == 100 + len(digits) and list(made.ids[100:]) == list(digits.ids)
        assert (made.labels[100:] == digits.labels).all() and (made.splits[100:] == digits.splits).all()

    def test_the_same_for_the_same_seed_and_for_reordered_data(self, tmp_path: Path) -> None:
        x = np.random.default_rng(0).normal(size=(40, 2, 3))
        base = write(tmp_path / "a.npz", x)
        other = write(tmp_path / "b.npz", x, np.random.default_rng(1).permutation(40))
        one, same, reordered, another = (
            load_dataset(f"munge:{data}", {"size": 30, "seed": seed})
            for data, seed in ((base, 1), (base, 1), (other, 1), (base, 2))
        )
        assert one.digest() == same.digest() != another.digest()
        for row in range(30):
            assert torch.equal(one.load(row), reordered.load(row))
            assert one.content_digest(row) == reordered.content_digest(row)
            assert not torch.equal(one.load(row), another.load(row))

    def test_arguments_of_the_base(self, tmp_path: Path) -> None:
        data = write(tmp_path / "a.npz", np.random.default_rng(0).normal(size=(20, 2)))
        for name in ("classes", "base_classes"):
            assert len(load_dataset(f"munge:{data}", {"size": 5, name: 7}).classes) == 7

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ({"size": 0}, "size should be a whole number from 1; found 0"),
            ({"size": 2.5}, "size should be a whole number from 1; found 2.5"),
            ({"p": 1.5, "s": 0}, r"(?s)p should be a probability.*s should be a number above 0"),
            ({"seed": -1}, "seed should be a whole number, 0 to 4294967295"),
            ({"union": 1}, "union should be true or false"),
            ({"sizes": 3}, "unexpected keyword argument 'sizes'"),
        ],
    )
    def test_wrong_arguments(self, arguments: dict[str, Any], said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            load_dataset("munge:digits", arguments)

    def test_what_it_cannot_be_made_from(self, digits: Dataset, tmp_path: Path) -> None:
        class Sizes(Dataset):
            def __init__(self, train: int = 4) -> None:
                splits = np.array([0] * train + [2] * (4 - train))
                super().__init__(name="sizes", classes=["a"], ids=list("wxyz"), input_shape=(2,), splits=splits)

            def load(self, row: int) -> torch.Tensor:
                return torch.zeros(2 + row)

        with pytest.raises(
            DataError, match=r"munge:sizes needs training examples of one shape; found \(2,\) for w and"
        ):
            Munged(Sizes())
        with pytest.raises(DataError, match=r"munge:sizes needs two training examples or more.* sizes has 1"):
            Munged(Sizes(1))
        with pytest.raises(ConfigError, match="munge:BASE"):
            load_dataset("munge:nothing")


def test_a_student_of_synthetic_examples_from_dump_to_evaluation(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(60, 6))
    data, arguments = f"munge:{write(tmp_path / 'data.npz', x)}", ("size=50", "s=2")
    torch.manual_seed(0)
    weights = tmp_path / "teacher.safetensors"
    save_weights(weights, build_model("mlp-8", {}, classes=3, input_shape=(6,)), {})
    common: dict[str, Any] = {"data": data, "data_args": arguments, "device": "cpu"}
    cache, run = tmp_path / "cache", tmp_path / "run"
    dump(DumpConfig(**common, teacher="mlp-8", weights=weights, out=cache))
    report = train(TrainConfig(**common, cache=str(cache), student="mlp-4", alpha=1.0, epochs=2, out=run))
    assert report.lineage["examples"] == 50 and report.lineage["labelled"] == 0
    assert evaluate(EvaluateConfig(run=run, out=tmp_path / "out", device="cpu")).details["examples"] == 12
    # With the base's examples, whose labels are there to learn from.
    common["data_args"] = (*arguments, "union=true")
    dump(DumpConfig(**common, teacher="mlp-8", weights=weights, out=tmp_path / "both"))
    report = train(
        TrainConfig(**common, cache=str(tmp_path / "both"), student="mlp-4", epochs=2, out=tmp_path / "run2")
    )
    assert report.lineage["examples"] == 50 + 36 and report.lineage["labelled"] == 36


def test_code_of_ones_own_inside_is_not_imported_for_a_run_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "seed-0").mkdir()
    (tmp_path / "seed-0" / "model.safetensors").touch()
    (tmp_path / "run.json").write_text('{"config": {"student": "mlp-4", "data": "munge:strange:Points"}}')
    with pytest.raises(ConfigError, match="never imported: pass --allow munge:strange:Points"):
        read_run(tmp_path).reference("data")
    assert read_run(tmp_path, ["munge:strange:Points"]).reference("data") == "munge:strange:Points"
