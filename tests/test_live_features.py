"""A live teacher's features: those of a cache of the same digits and views, from one forward pass a batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pipeline.datasets import Dataset, load_dataset
from pipeline.dump import DumpConfig
from pipeline.dump import run as dump
from pipeline.errors import ConfigError, ModelError
from pipeline.models import build_model, load_weights, save_weights
from pipeline.sampler import Order
from pipeline.sources import CachedFeatures, CachedLabels, FeatureSource, LiveFeatures, LiveTeacher, replay_views
from pipeline.store import Cache, open_cache
from pipeline.views import EntryDataset

FEATURES = {"early": "stage1", "hint": "stage2"}
ROWS = np.arange(6)
ORDER = Order((ROWS,), 6)


class Counted(nn.Module):
    """A small teacher that counts its forward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 5)
        self.act = nn.ReLU()
        self.norm = nn.BatchNorm1d(5)
        self.head = nn.Linear(5, 4)
        self.idle = nn.Linear(1, 1)
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        out: Tensor = self.head(self.norm(self.act(self.first(x))))
        return out


def counted(**features: str) -> tuple[Counted, LiveTeacher]:
    torch.manual_seed(0)
    model = Counted()
    return model, LiveTeacher(model, 4, features=features)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("live") / "teacher.safetensors"
    save_weights(path, build_model("cnn-4", {}, classes=10, input_shape=(1, 8, 8)), {})
    return path


@pytest.fixture(scope="module")
def cache(digits: Dataset, weights: Path) -> Cache:
    named = tuple(f"{name}={path}" for name, path in FEATURES.items())
    out = weights.parent / "cache"
    options = {"features": named, "views": 1, "transform": "affine:degrees=15", "part_size": 256}
    dump(DumpConfig(data="digits", teacher="cnn-4", weights=weights, out=out, **options))  # type: ignore[arg-type]
    return open_cache(out)


def test_a_live_teacher_gives_the_features_that_the_cache_holds(cache: Cache, digits: Dataset, weights: Path) -> None:
    model = build_model("cnn-4", {}, classes=10, input_shape=(1, 8, 8))
    load_weights(model, weights)
    teacher = LiveTeacher(model, 10, features=FEATURES)
    labels = CachedLabels(cache, digits)
    views = EntryDataset(digits, replay_views(cache))
    sources: list[FeatureSource] = [
        CachedFeatures(labels, tuple(FEATURES), resident="none"),
        LiveFeatures(teacher, digits.prepare(digits.load(0)).unsqueeze(0)),
    ]
    assert sources[0].names == sources[1].names and sources[0].shapes == sources[1].shapes
    order = labels.order(250, seed=2, window=2)
    for view in labels.views:
        loader = DataLoader(views, batch_sampler=[[(int(row), view) for row in rows] for rows in order.epoch(1)])
        cached, live = (source.stream(order, 1, view=view) for source in sources)
        for inputs, rows in zip(loader, order.epoch(1), strict=True):
            assert sources[1].has(rows).all() and sources[0].has(rows).all()
            held, told = cached.next(inputs, rows), live.next(inputs, rows)
            torch.testing.assert_close(labels_of(cache, labels, rows, view), teacher.next(inputs, rows).logits)
            for name in FEATURES:
                assert told[name].dtype == torch.float32 and held[name].dtype == torch.float16
                # Half a unit in the last place of float16, and what another batch size does to a convolution.
                torch.testing.assert_close(held[name].float(), told[name], rtol=2**-11 + 1e-5, atol=1e-5)
        cached.close()
        live.close()


def labels_of(cache: Cache, labels: CachedLabels, rows: np.ndarray, view: int) -> Tensor:
    """The exact logits that the cache holds of these rows."""
    soft = cache.decode(cache.read_rows("train", view, labels.matching.entries(rows)))
    return torch.from_numpy(np.asarray(soft.logits))


@pytest.mark.parametrize("labels_first", [True, False])
def test_the_teacher_runs_once_for_labels_and_features(labels_first: bool) -> None:
    model, teacher = counted(hidden="first", out="head")
    features = LiveFeatures(teacher, torch.zeros(2, 3))
    assert features.names == ("hidden", "out") and features.shapes == {"hidden": (5,), "out": (4,)}
    soft, hints = teacher.stream(ORDER, 0), features.stream(ORDER, 0)
    for number in range(1, 4):
        x = torch.randn(6, 3)
        if labels_first:
            labels, found = soft.next(x, ROWS), hints.next(x, ROWS)
        else:
            found, labels = hints.next(x, ROWS), soft.next(x, ROWS)
        assert model.passes == 1 + number
        hidden = x.double() @ model.first.weight.double().T + model.first.bias.double()
        torch.testing.assert_close(found["hidden"].double(), hidden, rtol=1e-5, atol=1e-5)
        assert torch.equal(found["out"], labels.logits)
        assert not any(value.requires_grad for value in found.values())
    soft.close()
    assert hints.next(x, ROWS)["out"].shape == (6, 4)


def test_an_answer_serves_no_other_batch() -> None:
    model, teacher = counted(hidden="first")
    features = LiveFeatures(teacher, torch.zeros(1, 3))
    x, y, began = torch.randn(6, 3), torch.randn(6, 3), model.passes

    def both(first: Tensor, second: Tensor, rows: np.ndarray = ROWS) -> int:
        before = model.passes
        labels, found = teacher.next(first, ROWS).logits, features.next(second, rows)["hidden"]
        assert torch.equal(labels, model(first)) and torch.equal(found, model.first(second))
        return model.passes - before - 1

    assert both(x, x) == 1
    assert both(x, y) == 2  # other inputs of the same rows, as of another view
    assert both(x, x.clone()) == 2  # the same values, but nobody compares them
    assert both(x, x, ROWS + 1) == 2
    # Asked again, it runs again: somebody may have changed its weights.
    teacher.next(x, ROWS)
    with torch.no_grad():
        model.head.bias += 1
    assert torch.equal(teacher.next(x, ROWS).logits, model(x))
    assert model.passes > began


def test_an_epoch_of_labels_alone_runs_once_a_batch_and_keeps_no_inputs() -> None:
    model, teacher = counted(hidden="first")
    for _ in range(5):
        teacher.next(torch.randn(6, 3), ROWS)
    assert model.passes == 5
    # The tensor of the last batch is gone: one in its place is another batch.
    assert torch.equal(
        LiveFeatures(teacher, torch.ones(6, 3)).next(x := torch.ones(6, 3), ROWS)["hidden"], model.first(x)
    )


def test_a_teacher_without_features_keeps_nothing() -> None:
    model, teacher = counted()
    x = torch.randn(6, 3)
    assert torch.equal(teacher.next(x, ROWS).logits, teacher.next(x, ROWS).logits) and model.passes == 2
    with pytest.raises(ConfigError, match=r"keeps no features.*features=\{'hint'"):
        LiveFeatures(teacher, x)


def test_modules_that_do_not_serve_are_named() -> None:
    with pytest.raises(ConfigError, match=r"feature hint: the model has no module 'frist' \(did you mean first"):
        counted(hint="frist")
    with pytest.raises(ModelError, match="feature hint: the module was not called"):
        LiveFeatures(counted(hint="idle")[1], torch.zeros(1, 3))


def test_features_stay_those_of_evaluation_mode_in_float32() -> None:
    model = Counted()
    teacher = LiveTeacher(model, 4, precision="bfloat16", features={"normed": "norm", "hidden": "first"})
    features = LiveFeatures(teacher, torch.zeros(1, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()  # what a student that holds its teacher does to it
    x = torch.randn(6, 3, requires_grad=True)
    found = features.next(x, ROWS)
    assert {value.dtype for value in found.values()} == {torch.float32}
    exact = model.first(x)
    torch.testing.assert_close(found["hidden"], exact, rtol=2**-7, atol=2**-7)
    assert not torch.equal(found["hidden"], exact)  # it did run in bfloat16
    assert not found["normed"].requires_grad
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
