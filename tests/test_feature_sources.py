"""Features beside the labels: the right ones for the right rows, out of a cache and from a live teacher; refusals."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from pipeline.datasets import Dataset, load_dataset
from pipeline.dump import DumpConfig
from pipeline.dump import run as dump
from pipeline.errors import CacheCorruptError, CacheIncompleteError, CacheMismatchError, ConfigError
from pipeline.models import build_model, save_weights
from pipeline.sources import CachedFeatures, CachedLabels, FeatureSource, Matching, match
from pipeline.store import Cache, open_cache, pull, push

FEATURES = ("early=stage1", "hint=stage2")
SHAPES = {"early": (4, 4, 4), "hint": (8, 2, 2)}
N = 60
SPLITS = np.array(["train"] * 43 + ["validation"] * 9 + ["test"] * 8)


def write_data(path: Path, more: int = 0) -> Dataset:
    """Images of 8 x 8 with ids, and ``more`` training examples after them."""
    random = np.random.default_rng(0)
    np.savez(
        path,
        x=random.normal(size=(N + more, 1, 8, 8)).astype(np.float32),
        y=np.arange(N + more) % 5,
        ids=np.array([f"e{n:02d}" for n in range(N + more)]),
        split=np.concatenate([SPLITS, ["train"] * more]),
    )
    return load_dataset(f"arrays:{path}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Dataset:
    return write_data(folder / "data.npz")


@pytest.fixture(scope="module")
def make_cache(folder: Path, dataset: Dataset) -> Callable[..., Cache]:
    torch.manual_seed(0)
    weights = folder / "teacher.safetensors"
    save_weights(weights, build_model("cnn-4", {}, classes=5, input_shape=(1, 8, 8)), {})

    def make(name: str, **options: Any) -> Cache:
        given: dict[str, Any] = {"teacher": "cnn-4", "weights": weights, "part_size": 8, "features": FEATURES}
        given |= {"views": 1, "transform": "affine:degrees=20", "data": dataset.name, "out": folder / name}
        dump(DumpConfig(**(given | options)))
        return open_cache(folder / name)

    return make


@pytest.fixture(scope="module")
def cache(make_cache: Callable[..., Cache]) -> Cache:
    return make_cache("cache")


@pytest.fixture(scope="module", params=["zarr", "parquet"])
def either(request: pytest.FixtureRequest, make_cache: Callable[..., Cache], cache: Cache) -> Cache:
    return cache if request.param == "zarr" else make_cache("parquet", store="parquet", encoding="topk", k=3)


def stored(cache: Cache, name: str, matching: Matching, view: int) -> npt.NDArray[np.float16]:
    """A feature of all rows of the dataset, (N, ...): read part by part, zero where there is none."""
    parts = [cache.read_feature(name, part) for part in cache.parts_of("train", view)]
    found = np.concatenate(parts)[matching.entry_of]
    found[matching.entry_of < 0] = 0
    return found


def feature_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "softlabels-features"]


def assert_batch(found: dict[str, Tensor], expected: dict[str, npt.NDArray[np.float16]], rows: Any) -> None:
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name].dtype == torch.float16
        np.testing.assert_array_equal(found[name].numpy(), values[rows])


@pytest.mark.parametrize("resident", ["none", "ram", "device", "auto"])
@pytest.mark.parametrize(("batch_size", "window", "world"), [(1, 1, 1), (5, 2, 1), (20, 1, 1), (64, 2, 1), (5, 2, 3)])
def test_every_batch_has_the_features_of_its_rows(
    either: Cache, dataset: Dataset, resident: str, batch_size: int, window: int, world: int
) -> None:
    labels = CachedLabels(either, dataset)
    source: FeatureSource = CachedFeatures(labels, ["hint", "early"], resident=resident)
    assert source.names == ("hint", "early") and source.shapes == SHAPES
    seen = []
    for view in labels.views:
        expected = {name: stored(either, name, labels.matching, view) for name in source.names}
        for rank in range(world):
            order = labels.order(batch_size, seed=3, window=window, rank=rank, world=world)
            stream, beside = source.stream(order, 2, view=view), labels.stream(order, 2, view=view)
            for rows in order.epoch(2):
                inputs = torch.empty(len(rows))
                assert len(beside.next(inputs, rows)) == len(rows)
                assert_batch(stream.next(inputs, rows), expected, rows)
                seen.append(rows)
            stream.close()
            stream.close()
            beside.close()
    assert sorted(np.concatenate(seen).tolist()) == sorted(dataset.rows("train").tolist() * 2)
    assert not feature_threads()


@pytest.mark.parametrize("resident", ["none", "ram"])
@pytest.mark.parametrize("start", [1, 4, 9])
def test_a_stream_that_starts_in_the_middle_goes_on_as_the_whole_one_would(
    cache: Cache, dataset: Dataset, resident: str, start: int
) -> None:
    labels = CachedLabels(cache, dataset, resident="none")
    source = CachedFeatures(labels, ["hint"], resident=resident)
    order = labels.order(5, seed=1, window=2, first_window=1)
    whole, rest = list(source.stream(order, 0)), list(source.stream(order, 0, start))
    assert len(rest) == max(0, len(whole) - start)
    for (rows, found), (same_rows, same) in zip(rest, whole[start:], strict=True):
        assert rows.tolist() == same_rows.tolist() and torch.equal(found["hint"], same["hint"])


def test_plain_labels_come_with_plain_features(cache: Cache, dataset: Dataset) -> None:
    plain, own = (
        CachedFeatures(CachedLabels(cache, dataset, labels_view=which), "hint", resident="none")
        for which in ("plain", "own")
    )
    order = own.labels.order(16, shuffle=False)
    found = [torch.cat([b["hint"] for _, b in s.stream(order, 0, view=v)]) for s, v in ((plain, 1), (own, 0), (own, 1))]
    assert torch.equal(found[0], found[1]) and not torch.equal(found[1], found[2])


def test_a_view_that_the_cache_lacks_is_refused(cache: Cache, dataset: Dataset) -> None:
    source = CachedFeatures(CachedLabels(cache, dataset), ["hint"])
    with pytest.raises(CacheMismatchError, match=r"no view 2.*0, 1"):
        source.stream(source.labels.order(8), 0, view=2)


@pytest.mark.parametrize("resident", ["none", "ram", "device"])
def test_rows_without_labels_get_finite_placeholders(cache: Cache, tmp_path: Path, resident: str) -> None:
    larger = write_data(tmp_path / "larger.npz", more=3)
    labels = CachedLabels(cache, larger, missing="hard", resident="none")
    source = CachedFeatures(labels, ["early"], resident=resident)
    expected = stored(cache, "early", labels.matching, 0)
    without = []
    for rows, found in source.stream(labels.order(1, window=1), 0):
        assert torch.isfinite(found["early"]).all() and found["early"].shape == (1, *SHAPES["early"])
        if source.has(rows).all():
            np.testing.assert_array_equal(found["early"].numpy(), expected[rows])
        else:
            without += rows.tolist()
    assert sorted(without) == [N, N + 1, N + 2]


def test_inputs_in_another_order_than_the_features_are_noticed(cache: Cache, dataset: Dataset) -> None:
    source = CachedFeatures(CachedLabels(cache, dataset), ["hint"], resident="none")
    order, other = (source.labels.order(8, seed=seed) for seed in (0, 1))
    with source.stream(order, 0) as stream, pytest.raises(CacheMismatchError, match="inputs and features are out of"):
        stream.next(None, next(other.epoch(0)))
    with source.stream(order, 0, 5) as stream, pytest.raises(CacheMismatchError, match="features are those of rows"):
        stream.next(None, next(order.epoch(0)))


def test_features_that_are_not_there_are_named_beside_those_that_are(
    cache: Cache, make_cache: Callable[..., Cache], dataset: Dataset
) -> None:
    labels = CachedLabels(cache, dataset)
    with pytest.raises(ConfigError, match=r"no feature 'late', 'last'; it has early, hint"):
        CachedFeatures(labels, ["late", "hint", "last"])
    with pytest.raises(ConfigError, match=r"at least one feature .*; it has early, hint"):
        CachedFeatures(labels, [])
    with pytest.raises(ConfigError, match="resident should be one of auto, none"):
        CachedFeatures(labels, ["hint"], resident="disk")
    bare = make_cache("bare", features=(), views=0, transform=None)
    with pytest.raises(ConfigError, match="it has none"):
        CachedFeatures(CachedLabels(bare, dataset), ["hint"])


def test_features_that_fit_are_kept_unless_told_otherwise(
    cache: Cache, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 2 * 8 * 2 * 2 * 43 * 2  # float16, shape, examples, views
    labels, plain = (CachedLabels(cache, dataset, labels_view=which) for which in ("own", "plain"))
    for limit, expected in ((size + 1, "device"), (size, "none")):
        monkeypatch.setattr("pipeline.sources.streams.AUTO_BYTES", limit)
        assert CachedFeatures(labels, ["hint"]).resident == expected
    assert CachedFeatures(plain, ["hint"]).resident == "device"
    assert CachedFeatures(plain, ["hint", "early"]).resident == "none"


# The meta device has no values: it shows that batches are handed over from another thread, and moved.
@pytest.mark.parametrize(
    ("device", "resident"), [("meta", "none"), ("meta", "ram"), ("cuda", "none"), ("cuda", "ram"), ("cuda", "device")]
)
def test_features_come_on_the_device_of_the_labels(cache: Cache, dataset: Dataset, resident: str, device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    labels = CachedLabels(cache, dataset, device=device, resident="none")
    source = CachedFeatures(labels, ["hint"], resident=resident)
    expected = stored(cache, "hint", labels.matching, 1)
    order = labels.order(7, window=2)
    with source.stream(order, 0, view=1) as stream:
        for rows in order.epoch(0):
            found = stream.next(None, rows)["hint"]
            assert found.device.type == device and found.dtype == torch.float16
            assert found.shape == (len(rows), *SHAPES["hint"])
            if device == "cuda":
                np.testing.assert_array_equal(found.cpu().numpy(), expected[rows])
    assert not feature_threads()


def test_an_error_in_the_thread_reaches_the_consumer(
    make_cache: Callable[..., Cache], dataset: Dataset, tmp_path: Path
) -> None:
    broken = make_cache("broken", views=0, transform=None)
    path = next(path for path in broken.parts[3].files if path.startswith("features.zarr/hint/c"))
    place = Path(broken.address) / path
    place.write_bytes(bytes(place.stat().st_size))
    labels = CachedLabels(broken, dataset, resident="none")
    order = labels.order(8, window=1)
    assert sum(len(soft) for _, soft in labels.stream(order, 0)) == 43
    assert sum(len(found["early"]) for _, found in CachedFeatures(labels, ["early"]).stream(order, 0)) == 43
    with (
        CachedFeatures(labels, ["hint"], resident="none").stream(order, 0) as stream,
        pytest.raises(CacheCorruptError, match=r"features\.zarr/hint"),
    ):
        list(stream)
    assert not feature_threads()


# Caches elsewhere, and those that were pulled in part.


@pytest.mark.parametrize("copied", [False, True])
def test_features_of_a_cache_at_a_url(cache: Cache, dataset: Dataset, tmp_path: Path, copied: bool) -> None:
    url = f"memory://features-{copied}"
    push(cache.address, url)
    far = open_cache(url, cache_dir=tmp_path) if copied else open_cache(url)
    labels = CachedLabels(far, dataset, resident="none")
    source = CachedFeatures(labels, ["early", "hint"], resident="none")
    expected = {name: stored(cache, name, labels.matching, 1) for name in source.names}
    for rows, found in source.stream(labels.order(7, window=2), 0, view=1):
        assert_batch(found, expected, rows)
    fsspec.filesystem("memory").rm(url, recursive=True)


@pytest.mark.parametrize("free", [None, 0])
def test_some_features_that_were_pulled_are_read_without_the_others(
    cache: Cache, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int | None
) -> None:
    push(cache.address, "memory://features-some")
    pull("memory://features-some", tmp_path / "some", features=["early"])
    if free is not None:  # as for reads of more than 32 MB
        monkeypatch.setattr("pipeline.store.arrays._FREE_BYTES", free)
    some = open_cache(tmp_path / "some")
    labels = CachedLabels(some, match(cache, dataset))
    expected = {"early": stored(cache, "early", labels.matching, 0)}
    for resident in ("none", "ram", "device", "auto"):
        for rows, found in CachedFeatures(labels, ["early"], resident=resident).stream(labels.order(9), 0):
            assert_batch(found, expected, rows)
    rows = np.array([5, 40, 0])
    np.testing.assert_array_equal(some.read_feature_rows("early", "train", 0, rows), expected["early"][rows])
    with pytest.raises(CacheIncompleteError, match=r"features.zarr/hint/.* is missing"):
        list(CachedFeatures(labels, ["hint"], resident="none").stream(labels.order(9), 0))


def test_a_read_of_more_than_32_mb_looks_at_the_files_of_its_own_features(cache: Cache, tmp_path: Path) -> None:
    push(cache.address, "memory://features-large")
    pull("memory://features-large", tmp_path / "some", features=["early"])
    some, rows = open_cache(tmp_path / "some"), np.tile(np.arange(43), 6500)
    found = some.read_feature_rows("early", "train", 0, rows)
    assert found.nbytes > 32 << 20
    once = cache.read_feature_rows("early", "train", 0, rows[:43])
    assert (found.reshape(6500, 43, *SHAPES["early"]) == once).all()
