"""``hf:path``, on datasets made here and kept on disk."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.datasets import Dataset, load_dataset
from pipeline.errors import ConfigError, DataError

library = pytest.importorskip("datasets")
Image = pytest.importorskip("PIL.Image")
pytestmark = pytest.mark.filterwarnings("default")  # of that library: they are not this project's to fix


@pytest.fixture(autouse=True)
def _quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library.disable_progress_bars()
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def png(value: int) -> bytes:
    held = io.BytesIO()
    Image.fromarray(np.full((5, 6, 3), value, np.uint8)).save(held, "PNG")
    return held.getvalue()


def pictures(n: int) -> Any:
    features = library.Features({"img": library.Image(), "label": library.ClassLabel(names=["cat", "dog"])})
    data = {"img": [{"bytes": png(i), "path": None} for i in range(n)], "label": [i % 2 for i in range(n)]}
    return library.Dataset.from_dict(data, features=features)


def test_pictures_saved_to_disk(tmp_path: Path) -> None:
    splits = {"train": pictures(40), "test": pictures(3), "unsupervised": pictures(1)}
    library.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    dataset = load_dataset(f"hf:{tmp_path / 'saved'}", {"size": 4})
    assert dataset.classes == ("cat", "dog") and dataset.labels[:3].tolist() == [0, 1, 0]
    assert len(dataset) == 43 and dataset.ids[1] == "train/1" and dataset.ids[-1] == "test/2"
    assert len(dataset.rows("test")) == 3 and 0 < len(dataset.rows("validation")) < 20
    assert dataset.read(7) == png(7)
    assert dataset.load(7).shape == (3, 4, 5) and float(dataset.load(7).max()) == pytest.approx(7 / 255)
    assert "centre crop 4" in dataset.preprocessing


def numbers(tmp_path: Path) -> Path:
    """A folder with one Parquet file: an integer key, a vector, a label."""
    random = np.random.default_rng(0)
    x = random.normal(size=(12, 5)).astype(np.float32)
    table = library.Dataset.from_dict({"key": [f"k{n}" for n in range(12)], "x": x.tolist(), "y": [0, 1, 2] * 4})
    (tmp_path / "table").mkdir()
    table.to_parquet(str(tmp_path / "table" / "data.parquet"))
    return tmp_path / "table"


def test_numbers_from_a_folder_of_parquet(tmp_path: Path) -> None:
    folder = numbers(tmp_path)
    dataset = load_dataset(f"hf:{folder}", {"id": "key"})
    assert dataset.ids[3] == "k3" and dataset.input_shape == (5,) and dataset.classes == ("0", "1", "2")
    x = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
    assert torch.equal(torch.stack([dataset.load(row) for row in range(12)]), torch.from_numpy(x))
    assert set(dataset.splits.tolist()) <= {0, 1, 2} and len(dataset.rows("train")) < 12
    again: Dataset = load_dataset(f"hf:{folder}", {"id": "key", "column": "x", "label": "y"})
    assert again.digest() == dataset.digest()


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"column": "z"}, ConfigError, "has no column 'z'; it has key, x, y"),
        ({"label": "key"}, DataError, "column key should hold integer labels"),
        ({"column": "key"}, DataError, "should hold numbers of one shape"),
        ({"size": 8}, ConfigError, "size are options of pictures; x holds none"),
    ],
)
def test_wrong_columns(tmp_path: Path, arguments: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        load_dataset(f"hf:{numbers(tmp_path)}", arguments)


def test_what_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        load_dataset(f"hf:{tmp_path / 'nowhere'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="cannot be opened"):
        load_dataset(f"hf:{tmp_path / 'empty'}")
    library.DatasetDict({"dev": pictures(2)}).save_to_disk(str(tmp_path / "dev"))
    with pytest.raises(DataError, match="splits among train, validation, test; found dev"):
        load_dataset(f"hf:{tmp_path / 'dev'}", {"size": 4})


def test_a_corrupt_picture_is_named(tmp_path: Path) -> None:
    broken = pictures(3).to_dict()
    broken["img"][1] = {"bytes": b"no picture", "path": None}
    features = library.Features({"img": library.Image(), "label": library.ClassLabel(names=["cat", "dog"])})
    library.Dataset.from_dict(broken, features=features).save_to_disk(str(tmp_path / "saved"))
    dataset = load_dataset(f"hf:{tmp_path / 'saved'}", {"size": 4})
    with pytest.raises(DataError, match=r"saved, 1 should be a picture and cannot be decoded"):
        dataset.load(1)
