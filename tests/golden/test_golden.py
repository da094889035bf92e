"""Today's reader reads what earlier releases wrote, for ever. A golden file that is missing fails."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.softlabels import Dense
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


@pytest.fixture(params=NAMES)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Cache]:
    with zipfile.ZipFile(HERE / f"{request.param}.zip") as archive:
        archive.extractall(tmp_path)
    return request.param[3:].rpartition("-")[0], open_cache(tmp_path)


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
