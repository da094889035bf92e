"""Caches are read without Softlabels: the snippets of docs/format.md run, and stock readers agree with ours."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import zarr

from pipeline.encodings import KEPT, Dense, Sampled, TopK
from pipeline.store import Cache
from tests.store.small import LAYOUT, RAGGED, small_cache

FORMAT = Path(__file__).resolve().parents[2] / "docs/format.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", FORMAT.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stock")
    small_cache(folder / "mycache", Dense("float16"))
    small_cache(folder / "mycache-topk", TopK(3, "float16", (1.0, 4.0)))
    small_cache(folder / "mycache-parquet", Dense("float16"), "parquet")
    small_cache(folder / "mycache-parquet-topk", TopK(3, "float16", (1.0, 4.0)), "parquet")
    small_cache(folder / "mycache-topk4", TopK(3, "int4", (1.0, 4.0)))
    small_cache(folder / "mycache-parquet-topk4", TopK(3, "int4", (1.0, 4.0)), "parquet")
    small_cache(folder / "mycache-sampled", Sampled(12), layout=RAGGED)
    small_cache(folder / "mycache-parquet-sampled", Sampled(12), "parquet", RAGGED)
    return folder


def test_the_page_has_a_snippet_for_each_reader() -> None:
    for name in ("zarr", "pyarrow.dataset", "duckdb", "polars"):
        assert [s for s in SNIPPETS if f"import {name}" in s]


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_the_snippets_of_the_format_page_run(caches: Path, snippet: str) -> None:
    assert "pipeline" not in snippet
    done = subprocess.run([sys.executable, "-c", snippet], cwd=caches, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def cache(caches: Path, name: str) -> Cache:
    from pipeline.store import open_cache

    return open_cache(caches / name)


@pytest.mark.parametrize("name", ["mycache", "mycache-topk", "mycache-topk4"])
def test_zarr_agrees(caches: Path, name: str) -> None:
    ours, theirs = cache(caches, name), zarr.open_group(caches / name / "labels.zarr", mode="r")
    features = zarr.open_group(caches / name / "features.zarr", mode="r")
    for part in LAYOUT.parts:
        rows = slice(part.start, part.start + part.positions)
        for array, expected in ours.read_part(part).items():
            np.testing.assert_array_equal(theirs[array][rows], expected)
        np.testing.assert_array_equal(features["block.1"][rows], ours.read_feature("block.1", part))


@pytest.mark.parametrize("name", ["mycache-parquet", "mycache-parquet-topk", "mycache-parquet-topk4"])
def test_table_readers_agree(caches: Path, name: str) -> None:
    ours = cache(caches, name)
    folder = caches / name / "labels"
    arrow = ds.dataset(folder, format="parquet").to_table().sort_by("position")
    polars = pl.read_parquet(folder / "*.parquet").sort("position")
    duck = duckdb.sql(f"select * from '{folder}/*.parquet' order by position").fetchnumpy()
    expected = ours.read_parts(ours.parts)
    assert arrow.column_names == ["position", *expected]
    for array, rows in expected.items():
        for found in (arrow[array].to_pylist(), polars[array].to_list(), [_listed(row) for row in duck[array]]):
            np.testing.assert_array_equal(np.array(found, rows.dtype), rows)


def _listed(row: Any) -> Any:
    return list(row) if isinstance(row, (list, np.ndarray)) else row


def test_the_snippet_of_few_bits_finds_the_probabilities_of_our_reader(
    caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(caches)
    (snippet,) = [s for s in SNIPPETS if "mycache-topk4" in s]
    found: dict[str, Any] = {}
    exec(snippet, found)
    soft = cache(caches, "mycache-topk4").decode(cache(caches, "mycache-topk4").read_part(0))
    logprobs, residual = soft.at(1.0)
    np.testing.assert_array_equal(found["ids"], soft.ids)
    np.testing.assert_allclose(found["probs"], np.exp(logprobs), rtol=1e-5)
    np.testing.assert_allclose(found["rest"][:, 0], np.exp(residual), rtol=1e-5)


def test_zarr_agrees_on_kept_classes(caches: Path) -> None:
    ours, theirs = cache(caches, "mycache-sampled"), zarr.open_group(caches / "mycache-sampled/labels.zarr", mode="r")
    for part in RAGGED.parts:
        for array, expected in ours.read_part(part).items():
            first = part.number * theirs[array].shards[0]
            np.testing.assert_array_equal(theirs[array][first : first + len(expected)], expected)
            assert not theirs[array][first + len(expected) : first + theirs[array].shards[0]].any()


def test_table_readers_agree_on_kept_classes(caches: Path) -> None:
    ours = cache(caches, "mycache-parquet-sampled")
    folder = caches / "mycache-parquet-sampled/labels"
    arrow = ds.dataset(folder, format="parquet").to_table().sort_by("position")
    polars = pl.read_parquet(folder / "*.parquet").sort("position")
    duck = duckdb.sql(f"select * from '{folder}/*.parquet' order by position").fetchall()
    expected = ours.read_parts(ours.parts)
    cuts = np.cumsum(expected[KEPT].astype(np.int64))[:-1]
    for number, (array, rows) in enumerate(expected.items(), 1):
        wanted = rows.tolist() if array == KEPT else [each.tolist() for each in np.split(rows, cuts)]
        assert arrow[array].to_pylist() == wanted
        assert polars[array].to_list() == wanted
        assert [list(row[number]) if isinstance(row[number], list) else row[number] for row in duck] == wanted


@pytest.mark.parametrize("name", ["mycache", "mycache-parquet"])
def test_the_index_and_the_parts_are_plain_parquet(caches: Path, name: str) -> None:
    ours = cache(caches, name)
    expected = [i for part in ours.parts for i in ours.index(part).example_ids]
    folder = caches / name
    assert ds.dataset(folder / "index").to_table().sort_by("start")["example_id"].to_pylist() == expected
    assert pl.read_parquet(folder / "index/*.parquet").sort("start")["example_id"].to_list() == expected
    found = duckdb.sql(
        f"select example_id, hex(input_digest) from '{folder}/index/*.parquet' order by start"
    ).fetchall()
    assert [row[0] for row in found] == expected
    assert found[0][1].lower() == ours.input_digests("train")[0]
    starts = [part.start for part in ours.parts]
    assert pl.read_parquet(folder / "parts.parquet")["start"].to_list() == starts
    assert duckdb.sql(f"select start from '{folder}/parts.parquet' order by number").fetchall() == [
        (s,) for s in starts
    ]


def test_pyarrow_notices_a_flipped_bit_when_asked_to(caches: Path, tmp_path: Path) -> None:
    data = bytearray((caches / "mycache-parquet/labels/part-00000.parquet").read_bytes())
    data[data.index(cache(caches, "mycache-parquet").read_part(0)["logits"].tobytes())] ^= 1
    (tmp_path / "p.parquet").write_bytes(data)
    with pytest.raises(OSError, match="CRC checksum"):
        pq.read_table(tmp_path / "p.parquet", page_checksum_verification=True)
