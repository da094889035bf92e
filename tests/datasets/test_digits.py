from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.datasets import Dataset, Digits, check_dataset, load_dataset, split_of
from pipeline.datasets.base import cut_validation, split_index
from pipeline.errors import ConfigError, DataError, MissingDependencyError
from pipeline.identity import SPLITS


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


def test_the_digits_are_those_of_scikit_learn(digits: Dataset) -> None:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    assert len(digits) == 1797
    assert digits.labels.tolist() == labels.tolist()
    stacked = torch.stack([digits.load(row) for row in range(len(digits))])
    assert stacked.dtype == torch.float32 and stacked.shape == (1797, 1, 8, 8)
    np.testing.assert_array_equal(stacked.reshape(-1, 64).numpy(), images.astype(np.float32) / 16)


def test_reading_the_digits_does_not_import_scikit_learn() -> None:
    load = "from pipeline.datasets import load_dataset; load_dataset('digits')"
    code = f"import sys; {load}; sys.exit('sklearn' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_ids_classes_and_splits(digits: Dataset) -> None:
    assert digits.ids[42] == "digits/00042"
    assert digits.classes == tuple("0123456789")
    assert [len(digits.rows(s)) for s in SPLITS] == [1197, 297, 303]
    assert sorted(np.concatenate([digits.rows(s) for s in SPLITS]).tolist()) == list(range(1797))
    with pytest.raises(ConfigError, match="train, validation, test; found 'dev'"):
        digits.rows("dev")


def test_the_digest_is_a_constant_of_the_data(digits: Dataset) -> None:
    # Another value here makes every cache of the digits ever dumped unusable.
    assert digits.digest() == "3c34e8052f36df823001fdf5fb2cb284957f96257dd1a866e8b03eac9bbf2ac0"
    assert digits.digest() == Digits().digest()


@pytest.mark.parametrize("size", [11, 16, 32])
def test_larger_digits_are_bilinear_between_the_stored_pixels(digits: Dataset, size: int) -> None:
    larger = load_dataset("digits", {"size": size})
    assert larger.input_shape == (1, size, size)
    assert larger.preprocessing == f"values 0 to 16 divided by 16, resized to {size} x {size} (bilinear)"
    assert list(larger.ids) == list(digits.ids) and (larger.labels == digits.labels).all()
    at = np.clip((np.arange(size) + 0.5) * 8 / size - 0.5, 0, 7)
    for row in (0, 1000):
        own = digits.load(row)[0].double().numpy()
        wide = np.stack([np.interp(at, np.arange(8), line) for line in own])
        expected = np.stack([np.interp(at, np.arange(8), line) for line in wide.T]).T
        np.testing.assert_allclose(larger.load(row)[0].numpy(), expected, atol=1e-6)
        assert larger.read(row) == digits.read(row), "what is stored is the same"


def test_digits_of_their_own_size_are_the_same_data(digits: Dataset) -> None:
    same = load_dataset("digits", {"size": 8})
    assert same.preprocessing == digits.preprocessing == "values 0 to 16 divided by 16"
    assert torch.equal(same.load(5), digits.load(5)) and same.digest() == digits.digest()
    for size in (7, 1025, 8.0, True, "16"):
        with pytest.raises(ConfigError, match="size should be a side of 8 to 1024 pixels"):
            load_dataset("digits", {"size": size})


def test_a_missing_scikit_learn_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install scikit-learn"):
        Digits()


@given(st.text(min_size=1), st.sets(st.text(min_size=1)))
def test_a_split_is_a_function_of_the_id_alone(example_id: str, others: set[str]) -> None:
    class Few(Dataset):
        def load(self, row: int) -> torch.Tensor:
            return torch.zeros(1)

    ids = [*sorted(others - {example_id}), example_id]
    assert Few(name="few", classes=["a"], ids=ids, input_shape=(1,)).splits[-1] == split_of(example_id)


def test_splits_have_the_declared_shares() -> None:
    counts = np.bincount([split_of(f"x/{n}") for n in range(6000)], minlength=3) / 6000
    np.testing.assert_allclose(counts, (2 / 3, 1 / 6, 1 / 6), atol=0.02)
    halves = np.bincount([split_of(f"x/{n}", (1, 1)) for n in range(6000)]) / 6000
    np.testing.assert_allclose(halves, (0.5, 0.5), atol=0.02)


def test_split_names_and_the_cut_of_validation() -> None:
    assert [split_index(n) for n in ("Train", "valid", "test", "dev")] == [0, 1, 2, None]
    ids = [str(n) for n in range(600)]
    cut = cut_validation(ids, np.array([0] * 500 + [2] * 100, np.int8))
    assert 50 < (cut == 1).sum() < 120 and (cut[500:] == 2).all()
    whole = np.array([0, 1, 2], np.int8)
    assert cut_validation(ids[:3], whole) is whole


class Faulty(Dataset):
    """Three examples of shape (2,), with whatever a test breaks."""

    def __init__(self, **broken: object) -> None:
        made: dict[str, object] = {"ids": ["a", "b", "c"], "labels": [0, 1, -1], "classes": ["x", "y"]}
        made |= {k: v for k, v in broken.items() if k in ("ids", "labels", "classes", "splits", "input_shape")}
        super().__init__(**({"name": "mine", "input_shape": (2,)} | made))  # type: ignore[arg-type]
        self.value = broken.get("value", lambda: torch.zeros(2))

    def load(self, row: int) -> torch.Tensor:
        return self.value()  # type: ignore[no-any-return, operator]


def test_a_sound_dataset_of_ones_own_passes_and_has_an_identity() -> None:
    dataset = Faulty()
    check_dataset(dataset)
    other = Faulty(value=lambda: torch.ones(2))
    assert dataset.digest() != other.digest() and len(dataset.content_digest(0)) == 64
    assert Faulty(labels=[1, 1, 1]).digest() == dataset.digest()  # a corrected label changes no input


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"ids": [], "labels": []}, "mine is empty"),
        ({"ids": ["a", "b", "a"]}, "each id should occur once; 1 occur more often, among them a"),
        ({"ids": ["a", "b", ""]}, "non-empty text"),
        ({"ids": ["a", "b", "x\ny"]}, "text of one line"),
        ({"ids": ["a", "b", "\udcff"]}, "text of one line"),
        ({"labels": [0, 1, 2]}, r"labels should be 0 to 1, or -1 for none; 1 of 3 are not, among them c \(2\)"),
        ({"labels": [0, 1, -2]}, r"c \(-2\)"),
        ({"labels": [0, 1]}, "one label and one split per id; found 3 ids, 2 labels"),
        ({"splits": np.array([0, 1, 3])}, "splits should be 0, 1 or 2"),
        ({"classes": []}, "name each class once; found no class"),
        ({"classes": ["x", "x"]}, "name each class once; found x, x"),
        ({"input_shape": (3,)}, r"prepared as float32 of shape \(3,\); found float32 of shape \(2,\)"),
        ({"value": lambda: torch.tensor([0.0, float("nan")])}, "a holds NaN"),
        ({"value": lambda: torch.rand(2)}, "loaded differently the second time"),
        ({"value": lambda: [0.0, 1.0]}, "load as a tensor, found list"),
    ],
)
def test_mistakes_are_found(broken: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_dataset(Faulty(**broken))


def test_labels_that_are_no_integers_are_refused() -> None:
    with pytest.raises(DataError, match="labels should be integers, found float64"):
        Faulty(labels=[0.0, 1.0, 1.0])
