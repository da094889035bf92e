"""Label sources: the right labels for the right rows, in any order, from any of them; refusals; threads that end."""

from __future__ import annotations

import gc
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from pipeline.datasets import Dataset, load_dataset
from pipeline.dump import DumpConfig
from pipeline.dump import run as dump
from pipeline.errors import CacheCorruptError, CacheMismatchError, ConfigError
from pipeline.losses import distillation_loss
from pipeline.models import build_model, load_weights, save_weights
from pipeline.sampler import Order
from pipeline.softlabels import Dense, SoftLabels, TopK
from pipeline.sources import CachedLabels, LabelSource, LiveTeacher, Matching, Mixture, match, replay_views
from pipeline.sources.prefetch import Prefetch
from pipeline.store import Cache, open_cache
from pipeline.views import EntryDataset

CLASSES = ("ant", "bee", "cat", "dog")
TRAIN = 47
SPLITS = ["train"] * TRAIN + ["validation"] * 9 + ["test"] * 8
TRANSFORM = "affine:degrees=20,translate=0.1"


def arrays(folder: Path, name: str = "data", **changes: Any) -> Dataset:
    """The same small dataset, with some of its arrays replaced."""
    random = np.random.default_rng(0)
    n = len(SPLITS)
    held: dict[str, Any] = {
        "x": random.normal(size=(n, 1, 5, 5)).astype(np.float32),
        "y": random.integers(0, 4, n),
        "ids": np.array([f"e{i:03d}" for i in range(n)]),
        "split": np.array(SPLITS),
        "classes": np.array(CLASSES),
    }
    held |= changes
    folder.mkdir(exist_ok=True)
    np.savez(folder / f"{name}.npz", **held)
    return load_dataset(f"arrays:{folder / f'{name}.npz'}")


def permuted(dataset: Dataset, chosen: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Arrays of the same examples in another order, or of some of them."""
    names = np.array(["train", "validation", "test"])[dataset.splits]
    x = np.stack([dataset.load(int(row)).numpy() for row in chosen])
    return {"x": x, "y": dataset.labels[chosen], "ids": np.array(dataset.ids)[chosen], "split": names[chosen]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sources")


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Dataset:
    return arrays(folder)


@pytest.fixture(scope="module")
def weights(folder: Path) -> Path:
    torch.manual_seed(0)
    save_weights(folder / "teacher.safetensors", build_model("mlp-6", {}, classes=4, input_shape=(1, 5, 5)), {})
    return folder / "teacher.safetensors"


@pytest.fixture(scope="module")
def make_cache(folder: Path, dataset: Dataset, weights: Path) -> Callable[..., Cache]:
    def make(name: str, **options: Any) -> Cache:
        base = {"part_size": 8, "views": 2, "transform": TRANSFORM, "teacher": "mlp-6", "weights": weights}
        dump(DumpConfig(**({"data": dataset.name, "out": folder / name} | base | options)))
        return open_cache(folder / name)

    return make


@pytest.fixture(scope="module")
def cache(make_cache: Callable[..., Cache]) -> Cache:
    return make_cache("cache")


@pytest.fixture(scope="module")
def topk(make_cache: Callable[..., Cache]) -> Cache:
    return make_cache("topk", encoding="topk", k=2, store="parquet")


def expected_labels(cache: Cache, matching: Matching, rows: npt.NDArray[np.int64], view: int) -> SoftLabels:
    return cache.decode(cache.read_rows("train", view, matching.entries(rows)))


def assert_same(found: SoftLabels, expected: SoftLabels) -> None:
    if isinstance(expected, Dense):
        assert isinstance(found, Dense)
        np.testing.assert_array_equal(found.logits.numpy(), expected.logits)
    else:
        assert isinstance(found, TopK)
        np.testing.assert_array_equal(found.ids.numpy(), expected.ids.astype(np.int64))
        for name in ("logits", "log_normaliser", "log_residual"):
            np.testing.assert_array_equal(getattr(found, name).numpy(), getattr(expected, name))
        assert found.temperatures == expected.temperatures


def label_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "softlabels-labels"]


def wait_until(condition: Callable[[], bool]) -> bool:
    """True as soon as ``condition`` holds; a thread needs a moment to notice that it is not wanted any more."""
    return any(condition() or time.sleep(0.01) for _ in range(500))


# What a cached stream gives.


@pytest.mark.parametrize("resident", ["none", "ram", "device"])
@pytest.mark.parametrize(
    ("batch_size", "window", "world"), [(1, 1, 1), (5, 2, 1), (8, 3, 1), (20, 1, 1), (64, 2, 1), (5, 2, 3)]
)
def test_every_batch_has_the_labels_of_its_rows(
    cache: Cache, dataset: Dataset, resident: str, batch_size: int, window: int, world: int
) -> None:
    source = CachedLabels(cache, dataset, resident=resident)
    seen = []
    for rank, view in itertools.product(range(world), source.views):
        order = source.order(batch_size, seed=3, window=window, rank=rank, world=world)
        with source.stream(order, epoch=4, view=view) as stream:
            for rows in order.epoch(4):
                assert_same(stream.next(None, rows), expected_labels(cache, source.matching, rows, view))
                seen.append(rows)
    assert sorted(np.concatenate(seen).tolist()) == sorted(dataset.rows("train").tolist() * len(source.views))


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_lossy_labels_stream_as_the_cache_decodes_them(
    make_cache: Callable[..., Cache], dataset: Dataset, dtype: str
) -> None:
    lossy = make_cache(dtype, dtype=dtype, views=0, transform=None)
    for resident in ("none", "ram", "device"):
        source = CachedLabels(lossy, dataset, resident=resident)
        for rows, soft in source.stream(source.order(9), 0):
            assert_same(soft, expected_labels(lossy, source.matching, rows, 0))


@pytest.mark.parametrize("resident", ["none", "ram", "device"])
def test_topk_labels_stream_too(topk: Cache, dataset: Dataset, resident: str) -> None:
    source = CachedLabels(topk, dataset, resident=resident)
    order = source.order(7, window=2)
    for rows, soft in source.stream(order, 0, view=1):
        assert_same(soft, expected_labels(topk, source.matching, rows, 1))
        assert torch.isfinite(distillation_loss(torch.zeros(len(rows), 4), soft, temperature=4.0)).all()


@pytest.mark.parametrize("start", [1, 3, 7, 9, 10])
@pytest.mark.parametrize(("first", "epoch"), [(0, 2), (1, 0)])
def test_a_stream_that_starts_in_the_middle_goes_on_as_the_whole_one_would(
    cache: Cache, dataset: Dataset, start: int, first: int, epoch: int
) -> None:
    source = CachedLabels(cache, dataset, resident="none")
    order = source.order(5, seed=1, window=2, first_window=first)
    whole = list(source.stream(order, epoch))
    rest = list(source.stream(order, epoch, start))
    assert len(rest) == max(0, len(whole) - start)
    for (rows, soft), (same_rows, same) in zip(rest, whole[start:], strict=True):
        assert rows.tolist() == same_rows.tolist()
        assert torch.equal(soft.logits, same.logits)


def test_rows_may_repeat_within_an_epoch(cache: Cache, dataset: Dataset) -> None:
    source = CachedLabels(cache, dataset, resident="none")
    order = source.order(6, rows=np.tile(source.rows[:10], 3), window=1)
    counts = np.zeros(len(dataset), dtype=int)
    for rows, soft in source.stream(order, 0):
        assert_same(soft, expected_labels(cache, source.matching, rows, 0))
        np.add.at(counts, rows, 1)
    assert (counts[source.rows[:10]] == 3).all() and counts.sum() == 30


def test_plain_labels_are_those_of_view_0_whatever_the_view(cache: Cache, dataset: Dataset) -> None:
    plain, own = (CachedLabels(cache, dataset, labels_view=which) for which in ("plain", "own"))
    order = own.order(16, shuffle=False)
    batches = [[soft.logits for _, soft in s.stream(order, 0, view=2)] for s in (plain, own)]
    first = [soft.logits for _, soft in own.stream(order, 0, view=0)]
    assert all(torch.equal(a, b) for a, b in zip(batches[0], first, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(batches[1], first, strict=True))


def test_a_view_that_the_cache_lacks_is_refused(cache: Cache, dataset: Dataset) -> None:
    source = CachedLabels(cache, dataset, resident="none")
    with pytest.raises(CacheMismatchError, match=r"no view 3.*0, 1, 2"):
        source.stream(source.order(8), 0, view=3)


@pytest.mark.parametrize("resident", ["none", "ram"])
def test_inputs_in_another_order_than_the_labels_are_noticed(cache: Cache, dataset: Dataset, resident: str) -> None:
    source = CachedLabels(cache, dataset, resident=resident)
    order = source.order(8, seed=0)
    other = next(source.order(8, seed=1).epoch(0))
    with source.stream(order, 0) as stream, pytest.raises(CacheMismatchError, match="out of step"):
        stream.next(None, other)
    with source.stream(order, 0) as stream:
        for rows in order.epoch(0):
            stream.next(None, rows)
        with pytest.raises(CacheMismatchError, match="no batch is left"):
            stream.next(None, other)


@pytest.mark.parametrize(("option", "value"), [("resident", "disk"), ("labels_view", "fixed"), ("missing", "maybe")])
def test_unknown_choices_are_named(cache: Cache, dataset: Dataset, option: str, value: str) -> None:
    with pytest.raises(ConfigError, match=value):
        CachedLabels(cache, dataset, **{option: value})


def test_labels_that_fit_are_kept_unless_told_otherwise(
    cache: Cache, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 4 * 4 * TRAIN * 3  # float32, classes, examples, views
    monkeypatch.setattr("pipeline.sources.streams.AUTO_BYTES", size + 1)
    assert CachedLabels(cache, dataset).resident == "device"
    monkeypatch.setattr("pipeline.sources.streams.AUTO_BYTES", size)
    assert CachedLabels(cache, dataset).resident == "none"
    assert CachedLabels(cache, dataset, labels_view="plain").resident == "device"


def test_half_precision_stays_so_until_it_is_computed_with(make_cache: Callable[..., Cache], dataset: Dataset) -> None:
    lossy = make_cache("float16", dtype="float16", views=0, transform=None)
    for resident in ("none", "ram", "device"):
        source = CachedLabels(lossy, dataset, resident=resident)
        for _, soft in source.stream(source.order(9), 0):
            assert isinstance(soft, Dense) and soft.stored.dtype == torch.float16 and soft.logits.dtype == torch.float32


# Threads and memory.


class Watched:
    """A cache that notes which parts are read, and may fail at one."""

    def __init__(self, cache: Cache, fail_at: int | None = None) -> None:
        self._cache, self.read, self._fail_at = cache, [], fail_at

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def read_part(self, part: Any, out: Any = None) -> Any:
        if len(self.read) == self._fail_at:
            raise CacheCorruptError("part 3 is not what was committed")
        self.read.append(part.number)
        return self._cache.read_part(part, out)


def test_each_part_of_the_view_is_read_once_and_at_most_one_window_ahead(cache: Cache, dataset: Dataset) -> None:
    watched = Watched(cache)
    source = CachedLabels(watched, match(cache, dataset), resident="none")  # type: ignore[arg-type]
    order = source.order(1, window=1)
    parts = len(cache.parts_of("train", 1))
    with source.stream(order, 0, view=1) as stream:
        visited = 0
        for blocks, rows in order.windows(0):
            for _ in rows:
                stream.next(None, next(itertools.islice(order.epoch(0, visited), 1)))
                visited += 1
                # 64 batches of one row may wait, and the window after theirs may have been read.
                assert len(watched.read) <= 2 + (visited + 64) // 8 + 1
            assert len(blocks) == 1
    assert sorted(watched.read) == sorted(record.number for record in cache.parts_of("train", 1))
    assert len(watched.read) == parts


def test_reading_ahead_is_bounded(cache: Cache, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sources.streams.MOST_BATCHES_AHEAD", 2)
    watched = Watched(cache)
    source = CachedLabels(watched, match(cache, dataset), resident="none")  # type: ignore[arg-type]
    order = source.order(4, window=1)
    with source.stream(order, 0) as stream:
        stream.next(None, next(order.epoch(0)))
        assert wait_until(lambda: len(watched.read) >= 2)
        time.sleep(0.05)  # time to read on, if it were to
        assert len(watched.read) <= 3 < len(cache.parts_of("train", 0))


@pytest.mark.parametrize("fail_at", [0, 3])
def test_an_error_in_the_thread_reaches_the_consumer(cache: Cache, dataset: Dataset, fail_at: int) -> None:
    watched = Watched(cache, fail_at)
    source = CachedLabels(watched, match(cache, dataset), resident="none")  # type: ignore[arg-type]
    order = source.order(8, window=1)
    with source.stream(order, 0) as stream, pytest.raises(CacheCorruptError, match="part 3"):
        for rows in order.epoch(0):
            stream.next(None, rows)
    assert wait_until(lambda: not label_threads())


def test_the_thread_ends_when_the_stream_is_closed_or_abandoned(
    cache: Cache, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.sources.streams.MOST_BATCHES_AHEAD", 2)
    source = CachedLabels(cache, dataset, resident="none")
    order = source.order(1)
    stream = source.stream(order, 0)
    assert wait_until(lambda: len(label_threads()) == 1)
    stream.close()
    stream.close()
    assert not label_threads()
    abandoned = source.stream(order, 0)
    abandoned.next(None, next(order.epoch(0)))
    assert len(label_threads()) == 1
    del abandoned
    gc.collect()
    assert wait_until(lambda: not label_threads())


def test_prefetch_keeps_the_order_and_the_bound() -> None:
    made = []

    def make() -> Iterator[int]:
        for number in range(20):
            made.append(number)
            yield number

    ahead = Prefetch(make, 3, "test-prefetch")
    assert next(ahead) == 0
    assert wait_until(lambda: len(made) >= 4)
    time.sleep(0.02)
    assert len(made) <= 5  # one taken, three waiting, one in hand
    assert list(ahead) == list(range(1, 20))
    assert list(ahead) == []
    ahead.close()


# Does the cache belong to the data?


def test_the_same_data_is_addressed_directly(cache: Cache, dataset: Dataset) -> None:
    found = match(cache, dataset)
    assert found.entries(dataset.rows("train")).tolist() == list(range(TRAIN))
    assert found.rows.tolist() == dataset.rows("train").tolist() and not found.missing
    with pytest.raises(CacheMismatchError, match="9 of these 9 rows"):
        found.entries(dataset.rows("validation"))


def test_reordered_data_is_joined_by_id(cache: Cache, dataset: Dataset, tmp_path: Path) -> None:
    order = np.random.default_rng(5).permutation(len(dataset))
    shuffled = arrays(tmp_path, **permuted(dataset, order))
    found = match(cache, shuffled)
    for row in found.rows.tolist():
        assert cache.ids("train")[int(found.entry_of[row])] == shuffled.ids[row]
    source = CachedLabels(cache, found, resident="none")
    for rows, soft in source.stream(source.order(9), 0):
        x = torch.stack([shuffled.prepare(shuffled.load(int(row))) for row in rows])
        same = torch.stack([dataset.prepare(dataset.load(list(dataset.ids).index(shuffled.ids[row]))) for row in rows])
        assert torch.equal(x, same)
        assert_same(soft, expected_labels(cache, found, rows, 0))


def test_a_subset_needs_no_more_than_its_own_labels(cache: Cache, dataset: Dataset, tmp_path: Path) -> None:
    subset = arrays(tmp_path, **permuted(dataset, np.arange(3, len(dataset), 2)))
    found = match(cache, subset)
    assert len(found.rows) == 22 and not found.missing
    assert (found.entry_of[found.rows] >= 0).all()


def grown(dataset: Dataset, folder: Path) -> Dataset:
    """Three examples more than the cache knows, one of them first."""
    changes = permuted(dataset, np.arange(len(dataset)))
    new = np.zeros((1, 1, 5, 5), np.float32)
    return arrays(
        folder,
        x=np.concatenate([new, changes["x"], new + 1, new + 2]),
        y=np.concatenate([[0], changes["y"], [1, 2]]),
        ids=np.concatenate([["new-0"], changes["ids"], ["new-1", "new-2"]]),
        split=np.concatenate([["train"], changes["split"], ["train", "train"]]),
    )


def test_grown_data_is_an_error_that_counts_and_names(cache: Cache, dataset: Dataset, tmp_path: Path) -> None:
    larger = grown(dataset, tmp_path)
    with pytest.raises(CacheMismatchError, match=r"3 of 50 examples.*new-0, new-1, new-2.*--missing skip"):
        match(cache, larger)
    skipped = match(cache, larger, missing="skip")
    assert len(skipped.rows) == TRAIN and skipped.missing == ("new-0", "new-1", "new-2")
    kept = match(cache, larger, missing="hard")
    assert len(kept.rows) == TRAIN + 3


@pytest.mark.parametrize("resident", ["none", "ram", "device"])
def test_rows_without_labels_get_finite_placeholders(
    cache: Cache, dataset: Dataset, tmp_path: Path, resident: str
) -> None:
    larger = grown(dataset, tmp_path)
    source = CachedLabels(cache, larger, missing="hard", resident=resident)
    order = source.order(1, window=1)
    without = []
    for rows, soft in source.stream(order, 0):
        assert torch.isfinite(soft.logits).all()
        if source.has(rows).all():
            assert_same(soft, expected_labels(cache, source.matching, rows, 0))
        else:
            without += [larger.ids[int(row)] for row in rows]
    assert sorted(without) == ["new-0", "new-1", "new-2"]


def test_examples_in_another_split_are_pointed_out(cache: Cache, dataset: Dataset, tmp_path: Path) -> None:
    changes = permuted(dataset, np.arange(len(dataset)))
    changes["split"][-3:] = "train"
    with pytest.raises(CacheMismatchError, match=r"3 of 50.*in its test split"):
        match(cache, arrays(tmp_path, **changes))


def test_the_same_ids_with_other_content_are_always_refused(cache: Cache, dataset: Dataset, tmp_path: Path) -> None:
    changes = permuted(dataset, np.arange(len(dataset)))
    changes["x"][[4, 9]] += 1
    for missing in ("error", "skip", "hard"):
        with pytest.raises(CacheMismatchError, match=r"2 of 47.*e004, e009"):
            match(cache, arrays(tmp_path, **changes), missing=missing)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("bee", "ant", "cat", "dog"), "another order: class 0 is 'ant' there, 'bee' here"),
        (("ant", "bee", "cat", "eel"), "class 3 is 'dog' there, 'eel' here"),
        (("ant", "bee", "cat", "dog", "eel"), "4 classes there, 5 here"),
    ],
)
def test_other_classes_are_refused(cache: Cache, tmp_path: Path, names: tuple[str, ...], said: str) -> None:
    with pytest.raises(CacheMismatchError, match=said):
        match(cache, arrays(tmp_path, classes=np.array(names)), missing="skip")


def test_other_preprocessing_is_refused(cache: Cache, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "preprocessing", "centred")
    with pytest.raises(CacheMismatchError, match="'centred'"):
        match(cache, dataset)


def test_data_that_the_cache_knows_nothing_of_is_refused(cache: Cache, dataset: Dataset, tmp_path: Path) -> None:
    ids = np.array([f"other-{i}" for i in range(len(dataset))])
    with pytest.raises(CacheMismatchError, match=r"none of the 47.*another dataset"):
        match(cache, arrays(tmp_path, ids=ids), missing="skip")


def test_a_split_that_was_not_dumped_is_refused(make_cache: Callable[..., Cache], dataset: Dataset) -> None:
    test_only = make_cache("test-only", splits=("test",), views=0, transform=None)
    with pytest.raises(CacheMismatchError, match=r"no train labels \(it holds test\)"):
        match(test_only, dataset)
    assert len(match(test_only, dataset, "test").rows) == 8


# Live teachers.


@pytest.fixture
def teacher(weights: Path) -> nn.Module:
    model = build_model("mlp-6", {}, classes=4, input_shape=(1, 5, 5))
    load_weights(model, weights)
    return model


def test_a_live_teacher_says_what_the_cache_says(cache: Cache, dataset: Dataset, teacher: nn.Module) -> None:
    views = replay_views(cache)
    cached, live = CachedLabels(cache, dataset, resident="none"), LiveTeacher(teacher, 4)
    order = cached.order(11, seed=2, window=2)
    for view in cached.views:
        loader = DataLoader(
            EntryDataset(dataset, views), batch_sampler=[[(int(r), view) for r in rows] for rows in order.epoch(1)]
        )
        answers = live.stream(order, 1, view=view)
        for inputs, (rows, soft) in zip(loader, cached.stream(order, 1, view=view), strict=True):
            torch.testing.assert_close(soft.logits, answers.next(inputs, rows).logits, rtol=1e-5, atol=1e-5)


def test_a_live_teacher_stays_in_evaluation_mode_and_takes_no_gradient() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.BatchNorm1d(4))
    live = LiveTeacher(model, 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()  # what a student that holds its teacher does to it
    x = torch.randn(6, 3, requires_grad=True)
    rows = np.arange(6)
    first, second = (live.stream(Order((rows,), 6), 0).next(x, rows).logits for _ in range(2))
    assert torch.equal(first, second) and not first.requires_grad
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("kind", ["none", "ram", "device", "live", "mixture"])
def test_the_contract_of_every_source(cache: Cache, dataset: Dataset, teacher: nn.Module, kind: str) -> None:
    cached = CachedLabels(cache, dataset, resident=kind if kind in ("none", "ram", "device") else "none")
    source: LabelSource = cached
    if kind == "live":
        source = LiveTeacher(teacher, 4)
    elif kind == "mixture":
        source = Mixture([(cached, 1.0), (LiveTeacher(teacher, 4), 2.0)], temperature=2.0)
    order = cached.order(10, seed=9)
    assert source.classes == 4
    assert source.has(dataset.rows("train")).all()
    reference: dict[int, torch.Tensor] = {}
    for start in (0, 2):
        stream = source.stream(order, 1, start, 0)
        for number, rows in enumerate(order.epoch(1, start), start):
            inputs = torch.stack([dataset.prepare(dataset.load(int(row))) for row in rows])
            soft = stream.next(inputs, rows)
            assert isinstance(soft, Dense) and soft.logits.shape == (len(rows), 4)
            assert soft.logits.dtype == torch.float32 and not soft.logits.requires_grad
            same = reference.setdefault(number, soft.logits)
            assert torch.equal(soft.logits, same)
        stream.close()
        stream.close()
    assert not label_threads()


# Views.


def test_the_views_of_a_cache_are_replayed_from_what_it_says(cache: Cache) -> None:
    views = replay_views(cache)
    assert (views.count, views.seed) == (3, 0) and views.description.startswith("affine:degrees=20,translate=0.1")
    assert replay_views(cache, TRANSFORM).description == views.description
    with pytest.raises(CacheMismatchError, match="--transform makes 'affine:degrees=5"):
        replay_views(cache, "affine:degrees=5")


def test_a_cache_without_random_views_has_the_plain_one(make_cache: Callable[..., Cache]) -> None:
    views = replay_views(make_cache("plain", views=0, transform=None))
    assert views.count == 1 and views.transform is None


def test_code_named_by_a_cache_is_never_imported(
    make_cache: Callable[..., Cache], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_views_of_sources.py").write_text("import torch\ndef noisy(x):\n    return x + torch.rand_like(x)\n")
    monkeypatch.syspath_prepend(tmp_path)
    made = make_cache("own-views", transform="my_views_of_sources:noisy")
    with pytest.raises(CacheMismatchError, match="never imported: pass --transform my_views_of_sources:noisy"):
        replay_views(made)
    assert replay_views(made, "my_views_of_sources:noisy").count == 3


# The documented loop.


def test_a_training_loop_of_ones_own_in_a_dozen_lines(cache: Cache, dataset: Dataset) -> None:
    labels = CachedLabels(cache, dataset, resident="none")
    views = EntryDataset(dataset, replay_views(cache))
    order = labels.order(batch_size=16, seed=0)
    torch.manual_seed(0)
    student = nn.Sequential(nn.Flatten(), nn.Linear(25, 4))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.5)
    losses = []
    for epoch in range(15):
        view = epoch % len(labels.views)
        loader = DataLoader(views, batch_sampler=[[(row, view) for row in rows] for rows in order.epoch(epoch)])
        for inputs, (_, soft) in zip(loader, labels.stream(order, epoch, view=view), strict=True):
            loss = distillation_loss(student(inputs), soft, temperature=2.0).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert np.mean(losses[-3:]) < 0.3 * np.mean(losses[:3])
