"""Streams of entries with several, or uneven numbers of, positions, and of positions with uneven numbers of classes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.datasets import Dataset
from pipeline.encodings import Dense, Encoding, Sampled, TopK
from pipeline.errors import CacheMismatchError
from pipeline.softlabels import Sampled as SampledLabels
from pipeline.softlabels import SoftLabels
from pipeline.sources import CachedLabels
from pipeline.sources.features import CachedFeatures
from pipeline.sources.gathering import Places, gather
from pipeline.store import Cache, Layout
from tests.store.small import CLASSES, LAYOUT, LENGTHS, RAGGED, small_cache

SEVEN = Layout.of({"train": (21, 3), "validation": (8, 1), "test": (9, 1)}, part_size=8, length=7)
LAYOUTS = {"one": LAYOUT, "seven": SEVEN, "ragged": RAGGED}
ENCODINGS: dict[str, Encoding] = {
    "dense": Dense("int8"),
    "topk": TopK(3),
    "sampled": Sampled(5),
    "random": Sampled(3, 0.5),
}
CASES = [(layout, name) for layout in LAYOUTS for name in ENCODINGS]


class Sequences(Dataset):
    """The examples of the small caches, in another order and with ``more`` that they do not hold."""

    def __init__(self, layout: Layout, more: int = 0, longer: int = 0) -> None:
        rows = np.random.default_rng(3).permutation(21 + more)
        super().__init__(
            name="sequences",
            classes=[f"class {n}" for n in range(CLASSES)],
            ids=[f"train/{n}" for n in rows],
            input_shape=(1,),
            splits=np.zeros(len(rows), np.int8),
        )
        known = LENGTHS["train"] if layout.is_ragged else np.full(40, layout.length)
        self._lengths = known[rows].astype(np.int64)
        self._lengths[:longer] += 1

    @property
    def lengths(self) -> np.ndarray:
        return self._lengths

    def load(self, row: int) -> Tensor:
        return torch.zeros(1)

    def content_digest(self, row: int) -> str:
        return hashlib.sha256(str(self.ids[row]).encode()).hexdigest()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Cache]:
    folder = tmp_path_factory.mktemp("c")
    return {(a, b): small_cache(folder / f"{a}-{b}", ENCODINGS[b], layout=LAYOUTS[a]) for a, b in CASES}


def flat(soft: SoftLabels) -> list[np.ndarray]:
    """All numbers of soft labels but where they begin."""
    if isinstance(soft, SampledLabels):
        return [np.asarray(a) for a in (soft.ids, soft.weights, np.diff(np.asarray(soft.offsets)))]
    found: list[np.ndarray] = []
    soft.map(lambda array: found.append(np.asarray(array)) or array)
    return found


def expected(cache: Cache, dataset: Dataset, rows: np.ndarray, view: int) -> list[np.ndarray]:
    """What the cache says of dataset rows, asked one by one."""
    numbers = [int(str(dataset.ids[row]).partition("/")[2]) for row in rows]
    each = [flat(cache.decode(cache.read_rows("train", view, np.array([n])))) for n in numbers]
    return [np.concatenate(parts) for parts in zip(*each, strict=True)]


@pytest.mark.parametrize("resident", ["none", "ram", "device"])
@pytest.mark.parametrize(("layout", "encoding"), CASES)
def test_a_batch_holds_the_positions_of_its_entries(
    made: dict[tuple[str, str], Cache], layout: str, encoding: str, resident: str
) -> None:
    cache = made[layout, encoding]
    dataset = Sequences(LAYOUTS[layout])
    labels = CachedLabels(cache, dataset, resident=resident)
    order = labels.order(4, seed=1, window=2)
    seen = 0
    for start in (0, 2):
        with labels.stream(order, 3, start, view=1) as stream:
            for rows in order.epoch(3, start):
                soft = stream.next(None, rows)
                assert len(soft) == dataset.lengths[rows].sum()
                for ours, theirs in zip(flat(soft), expected(cache, dataset, rows, 1), strict=True):
                    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
                seen += len(rows)
    assert seen == 21 + 13


@pytest.mark.parametrize("resident", ["none", "ram", "device"])
@pytest.mark.parametrize(("layout", "encoding"), CASES)
def test_rows_without_labels_have_as_many_placeholders_as_positions(
    made: dict[tuple[str, str], Cache], layout: str, encoding: str, resident: str
) -> None:
    cache = made[layout, encoding]
    dataset = Sequences(LAYOUTS[layout], more=9)
    labels = CachedLabels(cache, dataset, missing="hard", resident=resident)
    order = labels.order(5, seed=2, window=2)
    absent = 0
    with labels.stream(order, 0) as stream:
        for rows in order.epoch(0):
            soft = stream.next(None, rows)
            lengths = dataset.lengths[rows]
            assert len(soft) == lengths.sum()
            there = labels.has(rows)
            absent += int((~there).sum())
            known = torch.from_numpy(np.repeat(there, lengths))
            for ours, theirs in zip(
                flat(soft.select(known)) if there.any() else [],
                expected(cache, dataset, rows[there], 0) if there.any() else [],
                strict=True,
            ):
                np.testing.assert_allclose(ours, theirs, rtol=1e-6)
            assert all(np.isfinite(a).all() for a in flat(soft.select(~known)))
    assert absent == 9


@pytest.mark.parametrize("resident", ["none", "ram", "device"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_features_follow_the_positions(made: dict[tuple[str, str], Cache], layout: str, resident: str) -> None:
    cache = made[layout, "sampled"]
    dataset = Sequences(LAYOUTS[layout], more=4)
    labels = CachedLabels(cache, dataset, missing="hard", resident="none")
    features = CachedFeatures(labels, ["block.1"], resident=resident)
    order = labels.order(5, seed=2, window=2)
    with features.stream(order, 0, view=2) as stream:
        for rows in order.epoch(0):
            found = stream.next(None, rows)["block.1"]
            lengths, there = dataset.lengths[rows], labels.has(rows)
            assert found.shape == (lengths.sum(), 2, 3)
            numbers = np.array([int(str(dataset.ids[row]).partition("/")[2]) for row in rows[there]], np.int64)
            theirs = cache.read_feature_rows("block.1", "train", 2, numbers)
            np.testing.assert_array_equal(found[torch.from_numpy(np.repeat(there, lengths))], theirs)


def test_resident_auto_weighs_the_positions(made: dict[tuple[str, str], Cache]) -> None:
    for case in made:
        assert CachedLabels(made[case], Sequences(LAYOUTS[case[0]])).resident == "device"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_numbers_of_positions_are_refused_by_id(made: dict[tuple[str, str], Cache], layout: str) -> None:
    dataset = Sequences(LAYOUTS[layout], longer=2)
    name = dataset.ids[0]
    with pytest.raises(CacheMismatchError, match=rf"2 of 21 train examples .*{name} \(\d there, \d here\)"):
        CachedLabels(made[layout, "sampled"], dataset)


def test_an_index_that_is_gone_is_named_by_the_stream(tmp_path: Path) -> None:
    cache = small_cache(tmp_path / "c", Sampled(4), layout=RAGGED)
    labels = CachedLabels(cache, Sequences(RAGGED), resident="none")
    (tmp_path / "c" / "index/part-00004.parquet").unlink()
    order = labels.order(21, window=9)
    with labels.stream(order, 0, view=1) as stream, pytest.raises(Exception, match=r"part-00004.parquet is missing"):
        stream.next(None, next(order.epoch(0)))


@pytest.mark.parametrize("mean", [2, 40])
def test_gathering_runs_or_rows_comes_to_the_same(mean: int) -> None:
    random = np.random.default_rng(mean)
    lengths = random.integers(1, 2 * mean, 50)
    ends = np.cumsum(lengths)
    arrays = {"a": random.standard_normal((ends[-1], 2)).astype(np.float16)}
    which = random.permutation(50)[:20]
    places = Places((ends - lengths)[which], lengths[which], np.ones(20, bool))
    slow = np.concatenate([arrays["a"][s : s + n] for s, n in zip(places.starts, places.lengths, strict=True)])
    for threads in (True, False):
        np.testing.assert_array_equal(gather(arrays, (), None, places, threads)["a"], slow)
