"""Mixtures of label sources: the mean that was asked for, of caches that speak of the same data, read side by side."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from pipeline import evaluation
from pipeline.datasets import Dataset, load_dataset
from pipeline.dump import DumpConfig
from pipeline.dump import run as dump
from pipeline.errors import CacheMismatchError, ConfigError
from pipeline.evaluation import EvaluateConfig
from pipeline.evaluation.teachers import Teachers
from pipeline.losses import distillation_loss
from pipeline.models import build_model, load_model, save_weights
from pipeline.sampler import Order
from pipeline.softlabels import Dense, SoftLabels
from pipeline.sources import CachedLabels, LiveTeacher, Mixture, check_agreement
from pipeline.sources.mixing import mixed, shares
from pipeline.store import Cache, open_cache, push
from pipeline.training import TrainConfig, fit, prepare, run
from pipeline.training.labels import parse_labels
from pipeline.training.stage import initial_student
from stages.cli import main

ROOT = Path(__file__).resolve().parent.parent
TRAIN = 50
TRANSFORM = "affine:degrees=15"
Make = Callable[..., str]
Configure = Callable[..., TrainConfig]


class Fixed:
    """A source with one answer for all rows."""

    def __init__(self, soft: SoftLabels, has: bool = True) -> None:
        self.soft, self.classes, self._has, self.closed = soft, soft.classes, has, 0

    def has(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        return np.full(len(rows), self._has)

    def stream(self, order: Order, epoch: int, start: int = 0, view: int = 0) -> Fixed:
        return self

    def next(self, inputs: Any, rows: npt.NDArray[np.int64]) -> SoftLabels:
        return self.soft

    def close(self) -> None:
        self.closed += 1


def write_data(path: Path, classes: tuple[str, ...] = ("ant", "bee", "cat"), rows: slice = slice(None)) -> str:
    random = np.random.default_rng(0)
    labels = np.arange(72) % 3
    x = (random.normal(size=(3, 1, 6, 6))[labels] + 0.8 * random.normal(size=(72, 1, 6, 6))).astype(np.float32)
    split = np.repeat(["train", "validation", "test"], [TRAIN, 12, 10])
    ids = np.array([f"e{i:02d}" for i in range(72)])
    held = {"x": x[rows], "y": labels[rows], "ids": ids[rows], "split": split[rows]}
    np.savez(path, **held, classes=np.array(classes))
    return f"arrays:{path}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data.npz, two teachers (a, b) and a cache of each: parts of 16 in zarr, parts of 7 in Parquet."""
    made = tmp_path_factory.mktemp("mixture")
    write_data(made / "data.npz")
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        model = build_model("mlp-8", {}, classes=3, input_shape=(1, 6, 6))
        for parameter in model.parameters():
            parameter.data *= 4  # opinions that differ
        save_weights(made / f"{name}.safetensors", model, {})
    _dump(made, made / "a", "a")
    _dump(made, made / "b", "b", part_size=7, store="parquet")
    return made


def _dump(folder: Path, out: Path, teacher: str, **options: Any) -> str:
    base: dict[str, Any] = {"data": f"arrays:{folder / 'data.npz'}", "part_size": 16, "views": 2}
    base |= {"transform": TRANSFORM, "teacher": "mlp-8", "weights": folder / f"{teacher}.safetensors", "out": out}
    dump(DumpConfig(**(base | options)))
    return str(out)


@pytest.fixture
def make_cache(folder: Path, tmp_path: Path) -> Make:
    """Another cache of teacher b; its path."""
    return lambda name, **options: _dump(folder, tmp_path / name, "b", **options)


@pytest.fixture
def dataset(folder: Path) -> Dataset:
    return load_dataset(f"arrays:{folder / 'data.npz'}")


@pytest.fixture
def both(folder: Path) -> tuple[Cache, Cache]:
    return open_cache(folder / "a"), open_cache(folder / "b")


@pytest.fixture
def config(folder: Path, tmp_path: Path) -> Configure:
    """A TrainConfig on the mixture of the two caches, or on ``labels``."""

    def make(*labels: str, **options: Any) -> TrainConfig:
        base: dict[str, Any] = {"data": f"arrays:{folder / 'data.npz'}", "student": "mlp-4", "out": tmp_path / "run"}
        base |= {"epochs": 4, "batch_size": 8, "lr": 0.02, "window": 2, "device": "cpu"}
        base["labels"] = labels or (f"{folder / 'a'}=0.7", f"{folder / 'b'}=0.3")
        return TrainConfig(**(base | options))

    return make


def softmax(logits: npt.NDArray[np.float64], temperature: float = 1.0) -> npt.NDArray[np.float64]:
    e = np.exp((logits - logits.max(axis=1, keepdims=True)) / temperature)
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def read(cache: Cache, rows: npt.NDArray[np.int64], view: int) -> npt.NDArray[np.float64]:
    """Logits (B, C) of training rows, which are the first of the dataset, straight from the store."""
    return np.asarray(cache.decode(cache.read_rows("train", view, rows)).logits, dtype=np.float64)


# The mean.


@given(
    temperature=st.sampled_from([0.5, 1.0, 2.0, 4.0, 20.0]),
    weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=4),
    seed=st.integers(0, 999),
)
def test_probabilities_are_averaged_at_the_temperature(temperature: float, weights: list[float], seed: int) -> None:
    given_logits = np.random.default_rng(seed).normal(scale=5, size=(len(weights), 6, 5))
    pairs = [
        (Fixed(Dense(torch.tensor(z, dtype=torch.float32))), w) for z, w in zip(given_logits, weights, strict=True)
    ]
    rows = np.arange(6)
    found = Mixture(pairs, temperature=temperature).stream(Order((rows,), 6), 0).next(torch.zeros(6), rows)
    expected = sum(w / sum(weights) * softmax(z, temperature) for z, w in zip(given_logits, weights, strict=True))
    np.testing.assert_allclose(softmax(found.logits.double().numpy(), temperature), expected, rtol=2e-5, atol=1e-7)


@given(weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=4), seed=st.integers(0, 999))
def test_logits_are_averaged_without_what_means_nothing(weights: list[float], seed: int) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(scale=5, size=(len(weights), 6, 5))
    shifted = [Dense(torch.tensor(z + random.normal(size=(6, 1)) * 50)) for z in logits]
    found = mixed(shifted, shares(weights), mix="logits", temperature=None).logits
    assert found.dtype == torch.float64 and found.sum(dim=1).abs().max() < 1e-10
    for temperature in (1.0, 3.0):
        expected = np.ones((6, 5))
        for z, weight in zip(logits, weights, strict=True):
            expected *= softmax(z, temperature) ** (weight / sum(weights))
        expected /= expected.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(softmax(found.numpy(), temperature), expected, rtol=1e-9)


def test_weighted_losses_have_the_gradient_of_the_loss_on_the_mixture() -> None:
    """What the docstring recommends for top-k labels, checked where both can be computed."""
    student = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    labels = [Dense(torch.randn(6, 5, dtype=torch.float64) * 3) for _ in range(2)]
    together = distillation_loss(student, mixed(labels, (0.7, 0.3), mix="probs", temperature=2.0), temperature=2.0)
    apart = [weight * distillation_loss(student, soft, temperature=2.0) for soft, weight in zip(labels, (0.7, 0.3))]  # noqa: B905
    one, other = (torch.autograd.grad(loss.sum(), student)[0] for loss in (together, apart[0] + apart[1]))
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert (apart[0] + apart[1] - together).min() > 0, "the losses themselves differ"


def test_a_mixture_of_one_is_that_one_and_closes_its_sources() -> None:
    logits = torch.randn(5, 4)
    sources = [(Fixed(Dense(logits)), 2.0)]
    rows = np.arange(5)
    for mix in ("probs", "logits"):
        stream = Mixture(sources, temperature=3.0, mix=mix).stream(Order((rows,), 5), 0)
        found = stream.next(torch.zeros(5), rows).logits
        torch.testing.assert_close(torch.softmax(found, 1), torch.softmax(logits, 1))
        stream.close()
    assert sources[0][0].closed == 2


def test_a_mixture_has_labels_where_all_of_its_sources_do() -> None:
    labels = Dense(torch.zeros(2, 4))
    rows = np.arange(2)
    assert Mixture([(Fixed(labels), 1), (Fixed(labels), 1)], temperature=1).has(rows).all()
    assert not Mixture([(Fixed(labels), 1), (Fixed(labels, has=False), 1)], temperature=1).has(rows).any()


def test_a_mixture_refuses_what_it_cannot_average(make_cache: Make, dataset: Dataset) -> None:
    source = CachedLabels(open_cache(make_cache("topk", encoding="topk", k=2)), dataset, resident="none")
    order = source.order(8)
    stream = Mixture([(source, 1.0)], temperature=1.0).stream(order, 0)
    with pytest.raises(ConfigError, match="source 0 gives TopK"):
        stream.next(torch.zeros(8), next(order.epoch(0)))
    stream.close()
    three, four = (Fixed(Dense(torch.zeros(1, classes))) for classes in (3, 4))
    with pytest.raises(ConfigError, match=r"same classes.*\[3, 4\]"):
        Mixture([(three, 1), (four, 1)], temperature=1)
    with pytest.raises(ConfigError, match="at least one source"):
        Mixture([], temperature=1)
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="weights above 0"):
            Mixture([(three, 1.0), (three, weight)], temperature=1)
    for temperature in (None, 0.0, float("nan")):
        with pytest.raises(ConfigError, match="needs the temperature of its mean"):
            Mixture([(three, 1.0)], temperature=temperature)
    with pytest.raises(ConfigError, match="probs, logits, confident, correct; found 'odds'"):
        Mixture([(three, 1.0)], temperature=1, mix="odds")


def test_weights_are_divided_by_their_sum() -> None:
    assert shares([7, 3]) == (0.7, 0.3)
    assert shares([1e308, 1e308]) == (0.5, 0.5)
    with pytest.raises(ConfigError, match="above 0"):
        shares([1e300, 1e-300])  # nothing would be left of it


# How they are named.


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["a"], [("a", 1.0)]),
        (["a", "b"], [("a", 0.5), ("b", 0.5)]),
        (["a=0.7", "b=0.3"], [("a", 0.7), ("b", 0.3)]),
        (["a=6", "b=2"], [("a", 0.75), ("b", 0.25)]),
        (["runs/lr=0.1=3", "b=1"], [("runs/lr=0.1", 0.75), ("b", 0.25)]),
        (["s3://bucket/lr=0.1/cache", "b"], [("s3://bucket/lr=0.1/cache", 0.5), ("b", 0.5)]),
        (["./plain=1"], [("./plain", 1.0)]),
        ([], []),
    ],
)
def test_a_cache_and_its_weight(texts: list[str], expected: list[tuple[str, float]]) -> None:
    assert list(parse_labels(texts)) == expected


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"labels": ("plain",)}, "CACHE=WEIGHT.*use --label-view plain"),
        ({"labels": ("own", "b")}, "CACHE=WEIGHT.*use --label-view own"),
        ({"labels": "plain"}, "CACHE=WEIGHT.*use --label-view plain"),
        ({"labels": ("a=0", "b")}, "found weights 0, 1"),
        ({"labels": ("a=-1", "b")}, "found weights -1, 1"),
        ({"labels": ("a=nan", "b")}, "found weights nan, 1"),
        ({"labels": ("a=", "b")}, "CACHE=WEIGHT.*found 'a='"),
        ({"labels": ("=1", "b")}, "CACHE=WEIGHT.*found '=1'"),
        ({"labels": ("a=1", "./a=2")}, r"one cache twice, a=1 and \./a=2"),
        ({"labels": ("s3://x/a", "s3://x/a/=2")}, "one cache twice"),
        ({"labels": ("a", "b"), "cache": "c"}, "either --cache or --labels"),
        ({"labels": ("a", "b"), "teacher": "mlp-4", "weights": Path("w")}, "either --cache or --teacher"),
        ({"labels": ("a", "b"), "views": 2}, "--views is for runs without a cache"),
        ({"labels": ("a", "b"), "mix": "odds"}, "--mix should be one of probs, logits"),
        ({"labels": ("a", "b"), "loss": "logit-regression"}, "at one: use --mix logits"),
        ({"labels": ("a",), "mix": "logits"}, "--mix logits is for two or more"),
        ({"cache": "a", "mix": "logits"}, "--mix logits is for two or more"),
    ],
)
def test_each_mistake_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TrainConfig(out=Path("run"), **options)


def test_one_of_labels_is_the_same_as_a_cache() -> None:
    one, other = TrainConfig(out=Path("run"), labels=("c=0.5",)), TrainConfig(out=Path("run"), cache="c")
    assert one == other and one.as_dict() == other.as_dict() and one.caches == (("c", 1.0),)
    assert TrainConfig(out=Path("run"), labels=("a", "b")).objective.alpha == 0.9


def test_params_of_before_are_told_the_new_name(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("train: {labels: plain}\n")
    found = CliRunner().invoke(main, ["train", "--params", f"{tmp_path / 'p.yaml'}:train", "--out", "x"])
    assert found.exit_code == 2 and "--label-view plain" in found.stderr


# Do they speak of the same data?


def described(address: str, **changes: Any) -> Any:
    """What ``check_agreement`` looks at of a cache."""
    views = {"transform": TRANSFORM, "seed": 0, "count": 3, **changes.pop("views", {})}
    cache: dict[str, Any] = {"address": address, "classes": 3, "class_names": ("x", "y", "z")}
    identity = {"preprocessing": changes.pop("preprocessing", "none"), "views": views}
    return SimpleNamespace(**(cache | changes), identity=identity)


MERGED = {"count": 3, "seed": 0, "merged": [{"seed": 0, "count": 1}, {"seed": 5, "count": 1}]}


@pytest.mark.parametrize(
    ("changes", "views", "said"),
    [
        ({"classes": 4}, (0,), "3 and 4 classes"),
        (
            {"class_names": ("x", "z", "y")},
            (0,),
            "the same classes in another order, number 1 is 'y' in the one and 'z'",
        ),
        ({"class_names": ("x", "y", "w")}, (0,), "other classes, number 2 is 'z' in the one and 'w'"),
        ({"preprocessing": "centred"}, (0,), "inputs prepared as 'none' and as 'centred'"),
        ({"views": {"transform": "flip"}}, (0, 1), f"views made by {TRANSFORM!r} and by 'flip' .*--label-view plain"),
        ({"views": {"seed": 3}}, (0, 1), "dump seed 0 and of dump seed 3"),
        ({"views": {"count": 2}}, (0, 1, 2), r"2 random views and 1 random view, .*--train-views 2"),
        ({"views": {"transform": None}}, (1,), "does not know how its random views were made"),
        ({"views": MERGED}, (2,), "dump seed 0 and of dump seed 5"),
        ({"views": {"plain": False}}, (0,), "view 0 is the plain one in one of them alone"),
    ],
)
def test_what_differs_is_named_with_both_caches(changes: dict[str, Any], views: tuple[int, ...], said: str) -> None:
    with pytest.raises(CacheMismatchError, match=f"first and second do not speak of the same data: .*{said}"):
        check_agreement([described("first"), described("second", **changes)], views)


def test_all_that_differs_is_named_together() -> None:
    other = described("second", classes=4, preprocessing="centred", views={"seed": 3})
    with pytest.raises(CacheMismatchError) as raised:
        check_agreement([described("first"), described("same"), other], (0, 1))
    assert all(said in str(raised.value) for said in ("classes", "centred", "seed 3", "first and second"))


@pytest.mark.parametrize(
    ("changes", "views"),
    [
        ({"views": {"transform": "flip", "seed": 3, "count": 9}}, (0,)),
        ({"views": {"count": 2}}, (0, 1)),
        ({"views": MERGED}, (0, 1)),
        ({"class_names": (), "preprocessing": None, "views": {"transform": None}}, (0,)),
    ],
)
def test_what_is_not_trained_on_or_not_known_may_differ(changes: dict[str, Any], views: tuple[int, ...]) -> None:
    check_agreement([described("first"), described("second", **changes)], views)


@pytest.mark.parametrize(
    ("dumped", "options", "said"),
    [
        ({"encoding": "topk", "k": 2}, {}, r"dense labels are needed.*second is topk"),
        ({"seed": 3}, {"train_views": "all"}, r"a and .*second do not speak of the same data: .*dump seed 0 .*seed 3"),
        ({"transform": "flip"}, {"train_views": "random"}, r"views made by"),
        ({"views": 1}, {"train_views": "all"}, r"2 random views and 1 random view.*--train-views 2"),
        ({"splits": ("test",)}, {}, r"a belongs to .*second does not, so they cannot be mixed: .*no train labels"),
    ],
)
def test_train_refuses_caches_that_do_not_go_together(
    folder: Path, config: Configure, make_cache: Make, dumped: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    made = make_cache("second", **dumped)
    with pytest.raises((CacheMismatchError, ConfigError), match=said):
        prepare(config(str(folder / "a"), made, **options))


def test_views_may_differ_where_labels_are_those_of_the_plain_one(
    folder: Path, config: Configure, make_cache: Make
) -> None:
    few = make_cache("few", views=1, transform="flip", seed=4)
    for labels in ((str(folder / "a"), few), (few, str(folder / "a"))):
        task = prepare(config(*labels, train_views="all", label_view="plain")).task
        assert task.train_views == (0, 1, 2), "inputs are those of the cache with most views"
        assert prepare(config(*labels)).task.train_views == (0,)
        with pytest.raises(CacheMismatchError, match="views made by"):
            prepare(config(*labels, train_views="2"))


def test_a_copy_of_a_cache_is_the_same_cache(folder: Path, config: Configure, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder / "a")
    with pytest.raises(ConfigError, match=r"one cache twice: .*a and .*link hold the same"):
        prepare(config(str(folder / "a"), str(tmp_path / "link")))


def test_other_classes_than_the_first_cache_are_named_with_both(
    folder: Path, config: Configure, make_cache: Make, tmp_path: Path
) -> None:
    other = make_cache("other", data=write_data(tmp_path / "o.npz", ("ant", "cat", "bee")))
    with pytest.raises(CacheMismatchError, match=r"a and .*other do not speak.*another order, number 1 is 'bee'"):
        prepare(config(str(folder / "a"), other))


def test_views_are_replayed_against_each_cache(
    folder: Path, config: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        "pipeline.training.caches._check_replay", lambda cache, views, dataset: asked.append(cache.address)
    )
    prepare(config(train_views="all"))
    assert asked == [str(folder / "a"), str(folder / "b")]


def test_rows_stay_where_all_caches_have_labels(
    folder: Path, config: Configure, make_cache: Make, tmp_path: Path
) -> None:
    """Other data digests are fine: each cache is joined by id, and rows that one lacks have no soft labels."""
    some = make_cache("some", data=write_data(tmp_path / "s.npz", rows=slice(10, 72)))
    few = make_cache("few", data=write_data(tmp_path / "f.npz", rows=slice(0, 45)))
    labels = (str(folder / "a"), some, few)
    with pytest.raises(CacheMismatchError, match=r"a belongs to .*some does not.*10 of 50 examples"):
        prepare(config(*labels))
    skipped, hard = (prepare(config(*labels, missing=missing)) for missing in ("skip", "hard"))
    assert sorted(np.concatenate(skipped.task.blocks).tolist()) == list(range(10, 45))
    assert sorted(np.concatenate(hard.task.blocks).tolist()) == list(range(50))
    assert skipped.task.source and hard.task.source
    assert np.flatnonzero(hard.task.source.has(np.arange(50))).tolist() == list(range(10, 45))
    for prepared in (skipped, hard):
        options = config(*labels, missing="hard", resident="none")
        fit(initial_student(options, prepared.dataset, 0), prepared.task, options, seed=0)
    none = make_cache("none", data=write_data(tmp_path / "n.npz", rows=slice(45, 72)))
    with pytest.raises(CacheMismatchError, match=r"few and .*none have labels for no training example in common"):
        prepare(config(few, none, missing="hard"))


# Read side by side.


@pytest.mark.parametrize("resident", ["none", "ram", "device"])
@pytest.mark.parametrize(("start", "world"), [(0, 1), (3, 1), (0, 2)])
def test_parts_that_are_cut_otherwise_are_read_by_one_order(
    both: tuple[Cache, Cache], dataset: Dataset, resident: str, start: int, world: int
) -> None:
    sources = [CachedLabels(cache, dataset, resident=resident) for cache in both]
    labels = Mixture([(sources[0], 3), (sources[1], 1)], temperature=2.0)
    seen: list[int] = []
    for by, rank, view in itertools.product(sources, range(world), (0, 2)):
        order = by.order(6, seed=2, window=2, rank=rank, world=world)
        stream = labels.stream(order, 1, start, view)
        for rows in order.epoch(1, start):
            a, b = (softmax(read(cache, rows, view), 2.0) for cache in both)
            found = softmax(stream.next(torch.empty(0), rows).logits.double().numpy(), 2.0)
            np.testing.assert_allclose(found, 0.75 * a + 0.25 * b, rtol=1e-5)
            seen += rows.tolist()
        stream.close()
    if not start:
        assert sorted(seen) == sorted([*range(TRAIN)] * 4)


def test_a_stream_refuses_a_view_that_is_not_the_same_in_all(
    both: tuple[Cache, Cache], make_cache: Make, dataset: Dataset
) -> None:
    other = CachedLabels(open_cache(make_cache("seeded", seed=9)), dataset)
    first = CachedLabels(both[0], dataset)
    labels, order = Mixture([(first, 1), (other, 1)], mix="logits"), first.order(8)
    labels.stream(order, 0).close()
    with pytest.raises(CacheMismatchError, match="dump seed 0 and of dump seed 9"):
        labels.stream(order, 0, view=1)
    plain = [(CachedLabels(c, dataset, labels_view="plain"), 1.0) for c in (both[0], other.cache)]
    Mixture(plain, mix="logits").stream(order, 0, view=1).close()


def test_each_part_is_read_about_once_when_blocks_are_the_largest(
    config: Configure, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_parts: Counter[tuple[str, int]] = Counter()
    real = Cache.read_part

    def counting(self: Cache, part: Any, out: Any = None) -> Any:
        read_parts[Path(self.address).name, part.number] += 1
        return real(self, part, out)

    monkeypatch.setattr(Cache, "read_part", counting)
    for labels in ((str(folder / "a"), str(folder / "b")), (str(folder / "b"), str(folder / "a"))):
        read_parts.clear()
        options = config(*labels, resident="none", epochs=1, window=1)
        prepared = prepare(options)
        assert [len(block) for block in prepared.task.blocks] == [16, 16, 16, 2]
        fit(initial_student(options, prepared.dataset, 0), prepared.task, options, seed=0)
        assert max(n for (name, _), n in read_parts.items() if name == "a") == 1
        assert max(n for (name, _), n in read_parts.items() if name == "b") <= 2


def test_labels_in_another_order_are_kept_and_not_streamed(
    folder: Path, config: Configure, make_cache: Make, tmp_path: Path
) -> None:
    held = dict(np.load(folder / "data.npz"))
    order = np.random.default_rng(0).permutation(72)
    np.savez(tmp_path / "p.npz", **{n: v if n == "classes" else v[order] for n, v in held.items()})
    labels = (str(folder / "b"), make_cache("other", part_size=7, data=f"arrays:{tmp_path / 'p.npz'}"))
    with pytest.raises(ConfigError, match=r"other holds its examples in another order than .*b: .*--resident ram"):
        prepare(config(*labels, resident="none"))
    one, other = (prepare(config(*labels, resident=resident, window=50)) for resident in ("ram", "none"))
    assert losses_of(one.task, config(*labels), one.dataset) == losses_of(other.task, config(*labels), other.dataset)


def losses_of(
    task: Any, options: TrainConfig, dataset: Dataset, state: Path | None = None, stops: tuple[int, ...] = ()
) -> list[float]:
    """The loss of every step; stopped and resumed after each of ``stops``."""
    found: list[float] = []
    for stop in (*stops, None):

        def on_step(step: int, loss: torch.Tensor, stop: int | None = stop) -> None:
            found.append(float(loss))
            if step == stop:
                os.kill(os.getpid(), signal.SIGINT)

        model = initial_student(options, dataset, 0)
        with nullcontext() if stop is None else pytest.raises(KeyboardInterrupt):
            fit(model, task, options, seed=0, state=state, on_step=on_step)
    return found


@pytest.mark.parametrize("mix", ["probs", "logits"])
def test_cached_mixture_equals_two_live_teachers_mixed(
    folder: Path, config: Configure, tmp_path: Path, mix: str
) -> None:
    """Step by step, over random views, with parts that are cut otherwise; stopped in the middle of an epoch, too."""
    options = config(train_views="all", mix=mix, temperature=3.0, resident="none")
    prepared = prepare(options)
    live = []
    for name, weight in (("a", 0.7), ("b", 0.3)):
        model = load_model("mlp-8", {}, folder / f"{name}.safetensors", prepared.dataset, whose=name)
        live.append((LiveTeacher(model, 3), weight))
    source = Mixture(live, temperature=3.0, mix=mix)
    expected = losses_of(replace(prepared.task, source=source), options, prepared.dataset)
    found = losses_of(prepared.task, options, prepared.dataset)
    assert len(found) == 28 and len(set(found)) == 28
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert losses_of(prepared.task, options, prepared.dataset, tmp_path / "state", (2, 17)) == found
    alone = losses_of(replace(prepared.task, source=live[0][0]), options, prepared.dataset)
    assert not np.allclose(alone, expected, rtol=1e-2), "the second teacher counts"


def test_a_mixture_with_a_cache_at_a_url(folder: Path, config: Configure, tmp_path: Path) -> None:
    push(folder / "b", "memory://mixture/b")
    try:
        labels = (f"{folder / 'a'}=0.7", "memory://mixture/b=0.3")
        local = config(resident="none", train_views="all")
        remote = config(*labels, resident="none", train_views="all", cache_dir=tmp_path / "copies")
        one, other = (prepare(options) for options in (local, remote))
        assert one.lineage == other.lineage
        assert losses_of(one.task, local, one.dataset) == losses_of(other.task, remote, other.dataset)
        assert any(path.is_file() for path in (tmp_path / "copies").rglob("*"))
    finally:
        fsspec.filesystem("memory").rm("/mixture", recursive=True)


# Runs.


def test_a_run_from_the_command_line_and_what_reads_it(folder: Path, tmp_path: Path) -> None:
    def train(out: str, *options: str) -> Any:
        words = ["train", "--data", f"arrays:{folder / 'data.npz'}", "--student", "mlp-4", "--epochs", "2", *options]
        return CliRunner().invoke(main, [*words, "--device", "cpu", "--out", str(tmp_path / out)])

    a, b = folder / "a", folder / "b"
    made = train("run", "--labels", f"{a}=0.7", "--labels", f"{b}=0.3")
    assert made.exit_code == 0, made.output
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    digests = [open_cache(place).digest for place in (a, b)]
    weights = [{"digest": d, "weight": w} for d, w in zip(digests, (0.7, 0.3), strict=True)]
    assert record["lineage"]["cache"] == weights and record["lineage"]["mix"] == "probs"
    assert "found finished" in train("run", "--labels", f"{a}=7", "--labels", f"{b}=3").output, "the same shares"
    other = train("run", "--labels", f"{a}=7", "--labels", f"{b}=4")
    assert other.exit_code == 2 and "other cache" in other.stderr
    assert (
        "mix probs there, logits here"
        in train("run", "--labels", f"{a}=0.7", "--labels", f"{b}=0.3", "--mix", "logits").stderr
    )
    for options, said in (
        (("--labels", str(a), "--cache", str(b)), "either --cache or --labels"),
        (("--labels", "plain"), "--label-view plain"),
        (("--labels", str(a), "--labels", f"{b}=0"), "a number above 0"),
        (("--labels", str(a), "--labels", str(a)), "twice"),
        (("--labels", str(a), "--mix", "logits"), "two or more"),
    ):
        refused = train("x", *options)
        assert refused.exit_code == 2 and said in refused.stderr
    absent = train("x", "--labels", str(a), "--labels", f"{tmp_path / 'nothing'}=2")
    assert absent.exit_code == 1 and "nothing" in absent.stderr

    report = evaluation.run(EvaluateConfig(run=tmp_path / "run", out=tmp_path / "e", device="cpu", temperature=2.0))
    dataset = load_dataset(f"arrays:{folder / 'data.npz'}")
    rows = np.arange(len(dataset.rows("test")))
    opinions = [np.asarray(c.decode(c.read_rows("test", 0, rows)).logits) for c in map(open_cache, (a, b))]
    guesses = (0.7 * softmax(opinions[0], 2.0) + 0.3 * softmax(opinions[1], 2.0)).argmax(axis=1)
    assert report.details["cache"] == weights
    assert report.details["teacher"]["accuracy"] == np.mean(guesses == dataset.labels[dataset.rows("test")])
    alone = EvaluateConfig(run=tmp_path / "run", out=tmp_path / "e1", device="cpu", cache=str(b))
    assert evaluation.run(alone).details["cache"] == digests[1]


def test_evaluation_averages_at_its_own_temperature(both: tuple[Cache, Cache], dataset: Dataset) -> None:
    rows = dataset.rows("test")
    opinions = [np.asarray(c.decode(c.read_rows("test", 0, np.arange(len(rows)))).logits, np.float64) for c in both]
    for temperature in (1.0, 5.0):
        teachers = Teachers(both, (0.7, 0.3))
        assert teachers.splits == ("train", "validation", "test")
        found = teachers.labels(dataset, "test", temperature)(rows)
        a, b = (softmax(z, temperature) for z in opinions)
        np.testing.assert_allclose(softmax(np.float64(found.logits), temperature), 0.7 * a + 0.3 * b, rtol=1e-5)


def test_the_same_weights_make_the_same_run(folder: Path, config: Configure) -> None:
    shares_of = [(f"{folder / 'a'}={a}", f"{folder / 'b'}={b}") for a, b in ((1, 3), (0.1, 0.3))]
    assert config(*shares_of[0]).caches != config(*shares_of[1]).caches, "to rounding alone"
    assert prepare(config(*shares_of[0])).lineage == prepare(config(*shares_of[1])).lineage


def test_one_of_labels_makes_the_run_of_the_cache(folder: Path, config: Configure) -> None:
    first = run(config(f"{folder / 'a'}=0.2", epochs=1))
    again = run(config(cache=str(folder / "a"), labels=(), epochs=1))
    assert again.identity == first.identity and again.seconds == 0
    assert isinstance(first.lineage["cache"], str) and "mix" not in first.lineage


def test_ranks_take_the_steps_of_one_process(folder: Path, tmp_path: Path) -> None:
    def train(out: str, module: list[str], *options: str) -> None:
        words = ["--data", f"arrays:{folder / 'data.npz'}", "--labels", f"{folder / 'a'}=0.7", "--labels"]
        words += [f"{folder / 'b'}=0.3", "--student", "mlp-8", "--epochs", "3", "--batch-size", "8", "--optimizer"]
        words += ["sgd", "--lr", "0.05", "--device", "cpu", "--resident", "none", "--train-views", "all", *options]
        done = subprocess.run(
            [sys.executable, "-m", *module, *words, "--out", str(tmp_path / out)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr

    train("one", ["stages.train"], "--accumulate", "2")
    train("two", ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "stages.train"])
    one, two = (json.loads((tmp_path / out / "seed-0" / "history.json").read_text()) for out in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)
