"""Datasets of one's own by ``module:factory``, and those of other libraries."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.datasets import MapStyle, load_dataset
from pipeline.errors import ConfigError, DataError, MissingDependencyError
from pipeline.references import resolve

OWN = """
import numpy as np, torch
from pipeline.datasets import Dataset

class Points(Dataset):
    def __init__(self, n=6):
        super().__init__(name="points", classes=["in", "out"], ids=[f"p{i}" for i in range(n)],
                         labels=[i % 2 for i in range(n)], input_shape=(2,), preprocessing="none")
    def load(self, row):
        return torch.full((2,), float(row))

class Plain:
    classes = ["in", "out"]
    def __init__(self, kind="tensor"):
        self.kind = kind
    def __len__(self):
        return 4
    def __getitem__(self, row):
        if row >= 4: raise IndexError
        x = torch.full((3, 2), row, dtype=torch.uint8)
        return {"tensor": x, "array": x.numpy().astype(np.float64), "strange": "text"}[self.kind], row % 2

ready = Plain()
number = 3
def nothing():
    return None
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder with modules of one's own, forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "own_points.py").write_text(OWN)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def test_a_subclass_with_arguments(here: Path) -> None:
    dataset = load_dataset("own_points:Points", {"n": 3})
    assert len(dataset) == 3 and dataset.ids[2] == "p2" and dataset.classes == ("in", "out")


@pytest.mark.parametrize(("kind", "scale"), [("tensor", 1 / 255), ("array", 1.0)])
def test_a_map_style_dataset(here: Path, kind: str, scale: float) -> None:
    dataset = load_dataset("own_points:Plain", {"kind": kind})
    assert dataset.ids == ["0", "1", "2", "3"] and dataset.labels.tolist() == [0, 1, 0, 1]
    assert dataset.input_shape == (3, 2)
    torch.testing.assert_close(dataset.load(3), torch.full((3, 2), 3 * scale))


def test_an_object_that_is_ready(here: Path) -> None:
    assert len(load_dataset("own_points:ready")) == 4


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("own_point:Points", r"no module 'own_point' \(looked in the installed packages, then in "),
        ("own_points:Point", r"own_points was found at .*own_points\.py, and has no 'Point'"),
        ("own_points.deep:Points", r"there is no module 'own_points.deep'"),
        ("pipeline.mine:Points", r"'pipeline' is .*, which has no 'pipeline.mine'; give a module of your own"),
        ("own points:Points", "should be module:factory, like my_module:build"),
        ("own_points:", r"--data should be digits"),
    ],
)
def test_what_cannot_be_found_is_said(here: Path, reference: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_dataset(reference)


def test_arguments_that_do_not_fit(here: Path) -> None:
    with pytest.raises(ConfigError, match=r"--data own_points:Points: .*'m'; it takes n"):
        load_dataset("own_points:Points", {"m": 3})


@pytest.mark.parametrize("name", ["nothing", "number"])
def test_what_is_no_dataset(here: Path, name: str) -> None:
    with pytest.raises(DataError, match="should be a Dataset or a map-style dataset; it has no __len__"):
        load_dataset(f"own_points:{name}")
    with pytest.raises(DataError, match="a tensor, a NumPy array or a Pillow image; found str"):
        load_dataset("own_points:Plain", {"kind": "strange"})


def test_installed_packages_come_before_the_current_folder(here: Path) -> None:
    (here / "pipeline").mkdir()
    (here / "pipeline" / "__init__.py").write_text("raise RuntimeError('the wrong one')")
    (here / "safetensors.py").write_text("raise RuntimeError('the wrong one')")
    assert resolve("pipeline.datasets:Digits", "--data").__name__ == "Digits"
    assert sys.path[-1] == str(here)


def test_errors_inside_a_module_keep_their_traceback(here: Path) -> None:
    (here / "own_broken.py").write_text("import a_package_that_is_missing")
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_missing"):
        load_dataset("own_broken:build")
    (here / "own_faulty.py").write_text("def build():\n    raise TypeError('a bug')")
    with pytest.raises(TypeError, match="a bug"):
        load_dataset("own_faulty:build")


class Listed:
    """A map-style dataset made of a list."""

    def __init__(self, items: list[Any], **attributes: Any) -> None:
        self.items = items
        self.__dict__.update(attributes)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int) -> Any:
        return self.items[row]


def test_the_adapter_takes_what_a_dataset_declares() -> None:
    source = Listed(
        [torch.zeros(2), torch.ones(2)], classes=["a", "b"], ids=["u", "v"], splits=["test", "train"], targets=[1, 0],
        preprocessing="scaled",
    )  # fmt: skip
    dataset = MapStyle(source, "mine")
    assert dataset.ids == ["u", "v"] and dataset.splits.tolist() == [2, 0]
    assert dataset.labels.tolist() == [1, 0] and dataset.preprocessing == "scaled"
    assert MapStyle(Listed([torch.zeros(2)], classes=["a"]), "mine").labels.tolist() == [-1]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Listed([], classes=["a"]), "is empty"),
        (Listed([torch.zeros(1)]), "should have an attribute 'classes'"),
        (Listed([(torch.zeros(1), "cat")], classes=["a"]), "labels should be integers, found 'cat'"),
        (Listed([torch.zeros(1)], classes=["a"], splits=["dev"]), "splits should be among train, validation, test"),
    ],
)
def test_the_adapter_names_what_is_missing(source: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        MapStyle(source, "mine")


@pytest.mark.parametrize(("library", "extra"), [("torchvision", "vision"), ("datasets", "hf")])
def test_a_missing_library_names_its_extra(library: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_Absent(library), *sys.meta_path])
    reference = {"torchvision": "torchvision:MNIST", "datasets": "hf:some/data"}[library]
    with pytest.raises(MissingDependencyError, match=rf"needs {library}, .* pip install 'softlabels\[{extra}\]'"):
        load_dataset(reference)


class _Absent:
    """An import finder under which one package is not installed."""

    def __init__(self, top: str) -> None:
        self.top = top

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] == self.top:
            raise ModuleNotFoundError(f"No module named {name!r}", name=self.top)


def test_the_calls_to_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its conventions, on a stand-in: train= or split= variants, classes and targets as attributes."""
    made: list[dict[str, Any]] = []

    class Trained:
        classes = ("a", "b")

        def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
            made.append({"root": root, "train": train, "download": download})
            self.targets = [0, 1] * (20 if train else 2)

        def __len__(self) -> int:
            return len(self.targets)

        def __getitem__(self, row: int) -> tuple[Any, int]:
            return np.full((1, 4, 4), row, np.uint8), self.targets[row]

    class Split(Trained):
        def __init__(self, root: str, split: str = "train", download: bool = False) -> None:
            if split == "val":
                raise ValueError("unknown split")
            super().__init__(root, split == "train", download)

    stand_in = types.ModuleType("torchvision.datasets")
    stand_in.__all__ = ["Trained", "Split"]  # type: ignore[attr-defined]
    stand_in.Trained, stand_in.Split = Trained, Split  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", stand_in)
    for name in ("Trained", "Split"):
        dataset = load_dataset(f"torchvision:{name}", {"root": "elsewhere", "size": 4, "channels": 1})
        assert made[-2:] == [{"root": "elsewhere", "train": t, "download": True} for t in (True, False)]
        assert dataset.ids[0] == "train/00000" and dataset.ids[-1] == "test/00003" and len(dataset) == 44
        assert len(dataset.rows("test")) == 4 and len(dataset.rows("validation")) > 0
        assert dataset.labels.tolist() == [0, 1] * 22
        assert float(dataset.load(41)[0, 0, 0]) == pytest.approx(1 / 255)
    with pytest.raises(ConfigError, match="no dataset 'Mnist'; it has Trained, Split"):
        load_dataset("torchvision:Mnist")

    class WithoutTest(Split):
        def __init__(self, root: str, split: str = "train", download: bool = False) -> None:
            if split == "test":
                raise ValueError("unknown split")
            Trained.__init__(self, root, split == "train", download)

    class Unreachable(Split):
        def __init__(self, root: str, split: str = "train", download: bool = False) -> None:
            if split == "val":
                raise RuntimeError("the download failed")
            super().__init__(root, split, download)

    stand_in.Split, stand_in.Trained = WithoutTest, Unreachable  # type: ignore[attr-defined]
    held = load_dataset("torchvision:Split", {"size": 4, "channels": 1})
    assert [len(held.rows(s)) for s in ("train", "validation", "test")] == [40, 4, 0]
    with pytest.raises(DataError, match="val: the download failed"):
        load_dataset("torchvision:Trained", {"size": 4, "channels": 1})


def test_torchvision_itself() -> None:
    pytest.importorskip("torchvision")
    dataset = load_dataset("torchvision:FakeData", {"size": 8, "num_classes": 3, "normalise": "imagenet"})
    assert dataset.input_shape == (3, 8, 8) and dataset.classes == ("0", "1", "2")
