from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.datasets import Dataset, load_dataset
from pipeline.errors import ConfigError, DataError

X = np.arange(24, dtype=np.float32).reshape(6, 4)
Y = np.array([0, 1, 2, 0, 1, -1])


def saved(folder: Path, compressed: bool = False, **arrays: Any) -> str:
    path = folder / "held.npz"
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return f"arrays:{path}"


@pytest.mark.parametrize("compressed", [False, True])
def test_rows_labels_and_names(tmp_path: Path, compressed: bool) -> None:
    dataset = load_dataset(
        saved(tmp_path, compressed, x=X, y=Y, ids=np.array(list("abcdef")), classes=np.array(["u", "v", "w"]))
    )
    assert dataset.ids == list("abcdef") and dataset.classes == ("u", "v", "w")
    assert dataset.labels.tolist() == Y.tolist() and dataset.input_shape == (4,)
    assert torch.equal(dataset.load(2), torch.from_numpy(X[2]))
    assert dataset.preprocessing == "values as they are, in float32"


def test_an_uncompressed_archive_is_memory_mapped(tmp_path: Path) -> None:
    reference = saved(tmp_path, x=X, y=Y)
    held = load_dataset(reference)._array()  # type: ignore[attr-defined]
    assert isinstance(held.base, np.memmap)
    np.testing.assert_array_equal(held, X)


@pytest.mark.parametrize("x", [np.asfortranarray(X), X.astype(">f8"), X[:, :, None, None].astype(np.int16), X > 3])
def test_other_layouts_and_types_come_out_as_float32(tmp_path: Path, x: Any) -> None:
    dataset = load_dataset(saved(tmp_path, x=x, y=Y))
    stacked = torch.stack([dataset.load(row) for row in range(6)])
    assert stacked.dtype == torch.float32
    np.testing.assert_array_equal(stacked.numpy(), x.astype(np.float32))


def test_uint8_is_scaled_and_says_so(tmp_path: Path) -> None:
    dataset = load_dataset(saved(tmp_path, x=np.full((2, 1, 2, 2), 255, np.uint8), y=Y[:2]))
    assert dataset.load(0).max() == 1 and dataset.preprocessing == "uint8 divided by 255"


def test_without_ids_rows_are_known_by_number_and_splits_follow(tmp_path: Path) -> None:
    few = load_dataset(saved(tmp_path, x=X, y=Y))
    many = load_dataset(saved(tmp_path, x=np.repeat(X, 3, 0), y=np.repeat(Y, 3)))
    assert few.ids == ["0", "1", "2", "3", "4", "5"]
    assert few.splits.tolist() == many.splits[:6].tolist()


def test_given_splits_and_their_aliases(tmp_path: Path) -> None:
    names = np.array(["train", "val", "validation", "test", "train", "valid"])
    assert load_dataset(saved(tmp_path, x=X, y=Y, split=names)).splits.tolist() == [0, 1, 1, 2, 0, 1]


def test_unlabelled_rows_need_the_number_of_classes(tmp_path: Path) -> None:
    reference = saved(tmp_path, x=X)
    with pytest.raises(DataError, match="--data-args classes=10"):
        load_dataset(reference)
    dataset = load_dataset(reference, {"classes": 3})
    assert dataset.classes == ("0", "1", "2") and dataset.labels.tolist() == [-1] * 6


def test_the_digest_sees_content_order_and_ids_but_no_labels(tmp_path: Path) -> None:
    def digest(**arrays: Any) -> str:
        return load_dataset(saved(tmp_path, **arrays)).digest()

    base = digest(x=X, y=Y)
    assert base == digest(x=X, y=(Y + 1) % 3)
    assert len({base, digest(x=X + 1, y=Y), digest(x=X[::-1], y=Y), digest(x=X.astype(np.float64), y=Y)}) == 4


def test_other_arrays_in_the_archive_do_no_harm(tmp_path: Path) -> None:
    assert len(load_dataset(saved(tmp_path, x=X, y=Y, mean=X.mean(0), logits=X))) == 6


def test_it_is_pickled_without_its_data(tmp_path: Path) -> None:
    x = np.zeros((1000, 100), np.float32)
    dataset = load_dataset(saved(tmp_path, x=x, y=np.zeros(1000, int)))
    data = pickle.dumps(dataset)
    assert len(data) < 40_000
    copy: Dataset = pickle.loads(data)
    assert torch.equal(copy.load(7), dataset.load(7))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": Y}, "should hold x"),
        ({"x": X, "labels": Y}, "holds 'labels', which is not read: call it 'y'"),
        ({"x": X, "y": Y, "splits": np.array(["test"] * 6)}, "holds 'splits', .*call it 'split'"),
        ({"x": X[:, 0], "y": Y}, r"x should be an array of numbers \(N, ...\), found float32 \(6,\)"),
        ({"x": X.astype("U3"), "y": Y}, "x should be an array of numbers"),
        ({"x": X, "y": Y[:3]}, r"y should have shape \(6,\) like x, found \(3,\)"),
        ({"x": X, "y": Y, "ids": np.array(["a"])}, "ids should have shape"),
        ({"x": X, "y": Y, "ids": np.array(["a"] * 6)}, "each id should occur once"),
        ({"x": X, "y": Y, "ids": X[:, 0]}, "ids should be texts"),
        ({"x": X, "y": Y / 2}, "y should be integer labels, found float64"),
        ({"x": X, "y": Y, "split": np.array(["dev"] * 6)}, "split should be one of train, validation, test; found dev"),
        ({"x": X, "y": Y, "classes": np.array(["only"])}, "labels should be 0 to 0"),
        ({"x": X[:0], "y": Y[:0], "classes": np.array(["a"])}, "is empty"),
        ({"x": np.full_like(X, np.nan), "y": Y}, "holds NaN"),
        ({"x": np.array([object()] * 6)[:, None], "y": Y}, "Object arrays cannot be loaded"),
        ({"x": X, "y": np.array([None] * 6)}, "Object arrays cannot be loaded"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset(saved(tmp_path, **arrays))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 truncated", b"no archive at all"])
def test_files_that_are_no_archives(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.npz cannot be read"):
        load_dataset(f"arrays:{path}")


def test_a_truncated_archive_and_a_single_array(tmp_path: Path) -> None:
    whole = Path(saved(tmp_path, x=X, y=Y).removeprefix("arrays:"))
    whole.write_bytes(whole.read_bytes()[:200])
    with pytest.raises(DataError, match="cannot be read"):
        load_dataset(f"arrays:{whole}")
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(DataError, match="found a single array"):
        load_dataset(f"arrays:{tmp_path / 'x.npy'}")
    with pytest.raises(DataError, match="there is no file"):
        load_dataset("arrays:nowhere.npz")


@pytest.mark.parametrize("reference", ["", "arrays", "arrays:", "digit"])
def test_unknown_references_list_the_choices(reference: str) -> None:
    with pytest.raises(ConfigError, match=r"--data should be digits, arrays:FILE\.npz"):
        load_dataset(reference)


def test_unknown_arguments_list_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unexpected keyword argument 'size'; it takes path, classes"):
        load_dataset(saved(tmp_path, x=X, y=Y), {"size": 3})
    with pytest.raises(ConfigError, match="unexpected keyword argument 'sides'; it takes size"):
        load_dataset("digits", {"sides": 3})
