"""The files of examples/bring_your_own do what they say. Its commands run in tests/test_docs.py."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.datasets import load_dataset
from pipeline.models import FeatureTap, build_model, check_model, load_weights
from pipeline.references import resolve
from pipeline.views import check_views, make_views

EXAMPLES = Path(__file__).resolve().parent.parent / "examples" / "bring_your_own"
SPIRALS = {"classes": 3, "input_shape": (2,)}


@pytest.fixture(autouse=True)
def _in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(EXAMPLES)])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "memo"))
    yield
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(EXAMPLES)):
            del sys.modules[name]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.name)
def test_each_file_is_short_and_explained(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 60
    assert path.name in (EXAMPLES / "README.md").read_text()


def test_the_dataset() -> None:
    dataset = load_dataset("my_dataset:Spirals")
    more = load_dataset("my_dataset:Spirals", {"points": 250})
    kept = {i: (s, d.tolist()) for i, s, d in zip(more.ids, more.splits, map(more.load, range(750)), strict=True)}
    assert all(kept[i] == (dataset.splits[r], dataset.load(r).tolist()) for r, i in enumerate(dataset.ids))


def test_the_teacher_learns_and_its_checkpoint_fits(tmp_path: Path) -> None:
    dataset = load_dataset("my_dataset:Spirals")
    trained = resolve("my_teacher:train", "a test")()
    torch.save(trained.state_dict(), tmp_path / "teacher.pt")
    teacher = build_model("my_teacher:build", **SPIRALS).eval()
    load_weights(teacher, tmp_path / "teacher.pt")
    rows = dataset.rows("test")
    x = torch.stack([dataset.load(int(row)) for row in rows])
    check_model(teacher, classes=3, example_input=x, class_names=dataset.classes)
    with FeatureTap(teacher, {"hint": "trunk"}) as tap, torch.no_grad():
        accuracy = float((teacher(x).argmax(1).numpy() == dataset.labels[rows]).mean())
    assert accuracy > 0.9 and tap.values["hint"].shape == (len(rows), 64)


def test_the_student() -> None:
    check_model(build_model("my_student:Student", {"width": 5}, **SPIRALS), classes=3, example_input=torch.rand(2, 2))


@pytest.mark.parametrize("text", ["my_views:jitter", "my_views:Jitter:amount=0.1"])
def test_the_views_can_be_replayed(text: str) -> None:
    check_views(make_views(text, 4), load_dataset("my_dataset:Spirals"))


def test_the_arrays() -> None:
    resolve("make_arrays:make", "a test")()
    dataset = load_dataset("arrays:arrays.npz")
    assert dataset.input_shape == (1, 6, 6) and dataset.classes == ("lying", "standing", "none")
    assert np.bincount(dataset.labels).tolist() == [100, 100, 100]


def test_the_pictures() -> None:
    pytest.importorskip("PIL")
    resolve("make_images:make", "a test")(per_class=12)
    dataset = load_dataset("images:pictures", {"size": 16, "normalise": "half"})
    assert dataset.classes == ("disc", "square") and len(dataset) == 24 and dataset.input_shape == (3, 16, 16)
    check_views(make_views("flip", 3), dataset)
