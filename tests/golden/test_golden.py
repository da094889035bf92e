"""Today's reader reads what earlier releases wrote, for ever. A golden file that is missing fails."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.softlabels import Dense, Sampled, TopK
from pipeline.store import Cache, open_cache, verify
from tests.contracts.encodings import centred, softmax
from tests.store.small import logits_of

HERE = Path(__file__).parent
# Spelt out, so that a file that goes missing is missed.
NAMES = [
    "v1-dense-float32-zarr",
    "v1-dense-float32-parquet",
    "v1-dense-float16-zarr",
    "v1-dense-float16-parquet",
    "v1-dense-int8-zarr",
    "v1-dense-int8-parquet",
    "v1-topk-float32-zarr",
    "v1-topk-float32-parquet",
    "v1-topk-float16-zarr",
    "v1-topk-float16-parquet",
]


def unpacked(name: str, folder: Path) -> tuple[str, Cache]:
    """What a golden cache keeps, by its name, and the cache itself."""
    with zipfile.ZipFile(HERE / f"{name}.zip") as archive:
        archive.extractall(folder)
    return name[3:].rpartition("-")[0], open_cache(folder)


@pytest.fixture(params=NAMES)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Cache]:
    return unpacked(request.param, tmp_path)


def test_it_is_sound_and_describes_itself(golden: tuple[str, Cache]) -> None:
    encoding, cache = golden
    assert verify(cache).ok
    assert "-".join(str(cache.encoding.describe()[n]) for n in ("name", "dtype")) == encoding
    assert cache.manifest.counts == {
        "entries": 13,
        "positions": 13,
        "parts": 5,
        "splits": {"train": {"examples": 5, "views": 2}, "test": {"examples": 3, "views": 1}},
    }
    assert cache.class_names == tuple(f"class {n}" for n in range(6))
    assert cache.manifest.fidelity == {"agreement": 1.0}
    assert cache.feature_names == ("block.1",)


def test_stored_arrays_are_those_that_were_written(golden: tuple[str, Cache]) -> None:
    encoding, cache = golden
    with np.load(HERE / "v1-expected.npz") as expected:
        for name, rows in cache.read_parts(cache.parts).items():
            np.testing.assert_array_equal(rows, expected[f"{encoding}/{name}"])
            assert rows.dtype == expected[f"{encoding}/{name}"].dtype


def test_what_it_decodes_to_keeps_the_declared_bound(golden: tuple[str, Cache]) -> None:
    _, cache = golden
    with np.load(HERE / "v1-expected.npz") as expected:
        logits = expected["logits"]
    soft = cache.decode(cache.read_parts(cache.parts))
    if isinstance(soft, Dense):
        assert np.abs(centred(soft.logits) - centred(logits)).max() <= cache.manifest.bound
        return
    for temperature in cache.encoding.temperatures:
        kept = np.take_along_axis(softmax(logits, temperature), soft.ids, axis=1)
        assert np.abs(np.exp(soft.at(temperature)[0]) - kept).max() <= cache.manifest.bound


DIGEST = "d6ec6dece92a4a4744f5c13d6178d9ad649d829a5a75d6caf2b2f92e934518c1"


def test_the_index_is_the_one_that_was_written(golden: tuple[str, Cache]) -> None:
    _, cache = golden
    assert cache.ids("train") == [f"train/{n}" for n in range(5)]
    assert cache.labels("test").tolist() == [0, 1, -1]
    rows = cache.index(2)
    assert (rows.view, rows.split, rows.start.tolist()) == (1, "train", [8, 9, 10, 11])
    assert rows.seeds.tolist() == [3954010378998720695, 1742592949747738674, 6006377501049190632, 8811648359170120739]
    assert rows.input_digests is None
    assert cache.input_digests("train")[0] == DIGEST


SECOND = [
    "v2-unknown-topk-float32-zarr",
    "v2-unknown-topk-float32-parquet",
    "v2-merged-dense-float32-zarr",
    "v2-merged-dense-float32-parquet",
]


@pytest.fixture(params=SECOND)
def second(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Cache]:
    with zipfile.ZipFile(HERE / f"{request.param}.zip") as archive:
        archive.extractall(tmp_path)
    return request.param, open_cache(tmp_path)


def test_version_2_is_sound_and_holds_what_was_written(second: tuple[str, Cache]) -> None:
    _, cache = second
    assert cache.manifest.format == 2 and verify(cache).ok
    for part in cache.parts:
        arrays = cache.encoding.encode(logits_of(part))
        for array, rows in cache.read_part(part).items():
            np.testing.assert_allclose(rows, arrays[array], rtol=1e-6)


def test_version_2_says_what_is_unknown_and_which_views_it_holds(second: tuple[str, Cache]) -> None:
    name, cache = second
    if "unknown" in name:
        assert cache.manifest.unknown == ("teacher", "preprocessing", "data", "views", "class names")
        assert cache.input_digests("train") == [] and cache.index(0).input_digests is None
        assert [step["verb"] for step in cache.manifest.lineage] == ["import"]
    else:
        assert cache.manifest.unknown == () and len(cache.input_digests("train")) == 5
        assert cache.identity["views"]["merged"] == [{"seed": 0, "count": 1}, {"seed": 7, "count": 1}]
        assert cache.views("train") == (0, 1, 2)


DRAWN: dict[str, tuple[list[int], list[float]]] = {
    "ragged-sampled": ([4, 5], [0.2, 0.8]),
    "sampled-warm": ([2, 4, 5], [0.166667, 0.333333, 0.5]),
}

# Ids of the first position of the last part; their probabilities and that of all others, at the first temperature.
KEPT: dict[str, tuple[list[int], list[float]]] = {
    "ragged-topk": ([0, 2, 4], [0.986658, 0.000628103, 0.0126652, 5.69637e-05]),
    "topk-int8": ([0, 2, 3, 4], [0.986834, 0.000616957, 3.71423e-05, 0.0124924, 1.95263e-05]),
    "topk-int4": ([0, 2, 4], [0.883258, 0.0222854, 0.0838154, 0.0106418]),
}

THIRD = [
    "v3-ragged-topk-zarr",
    "v3-ragged-topk-parquet",
    "v3-ragged-sampled-zarr",
    "v3-ragged-sampled-parquet",
    "v3-sampled-warm-zarr",
    "v3-sampled-warm-parquet",
    "v3-topk-int8-zarr",
    "v3-topk-int8-parquet",
    "v3-topk-int4-zarr",
    "v3-topk-int4-parquet",
]


@pytest.fixture(params=THIRD)
def third(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Cache]:
    return unpacked(request.param, tmp_path)


def test_version_3_is_sound_and_holds_what_was_written(third: tuple[str, Cache]) -> None:
    kind, cache = third
    assert cache.manifest.format == 3 and verify(cache).ok
    values = "v3-few-bits-expected.npz" if "int" in kind else "v3-expected.npz"
    with np.load(HERE / values) as expected:
        for part in cache.parts:
            for name, rows in cache.read_part(part).items():
                np.testing.assert_array_equal(rows, expected[f"{kind}/{part.number}/{name}"])
                assert rows.dtype == expected[f"{kind}/{part.number}/{name}"].dtype
    if cache.manifest.layout.is_ragged:
        assert cache.lengths("train").tolist() == [3, 1, 4, 1, 5] and cache.lengths("test").tolist() == [9, 2, 6]
        assert [part.positions for part in cache.parts] == [9, 5, 9, 5, 17]
        assert cache.manifest.layout.capacity == 17 and cache.index(2).start.tolist() == [34, 37, 38, 42]


def test_version_3_decodes_to_what_it_decoded_to(third: tuple[str, Cache]) -> None:
    """Ids and weights of the third position of the first part, spelt out."""
    kind, cache = third
    if "sampled" in kind:
        soft = cache.decode(cache.read_part(0))
        assert isinstance(soft, Sampled)
        here = slice(int(soft.offsets[2]), int(soft.offsets[3]))
        assert soft.ids[here].tolist() == DRAWN[kind][0]
        np.testing.assert_allclose(soft.weights[here], DRAWN[kind][1], rtol=1e-4)
        assert soft.temperature == (2.0 if "warm" in kind else 1.0)
        return
    soft = cache.decode(cache.read_part(4))
    assert isinstance(soft, TopK)
    temperature = soft.temperatures[0]
    logprobs, residual = soft.at(temperature)
    assert soft.ids[0].tolist() == KEPT[kind][0]
    np.testing.assert_allclose(np.exp([*logprobs[0], residual[0]]), KEPT[kind][1], rtol=1e-4)
