"""How two caches differ, against what the test made them differ in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from pipeline.caches import subset, transcode
from pipeline.caches.difference import DiffConfig, DiffReport, run
from pipeline.encodings import Dense
from pipeline.fidelity import kl_divergence
from pipeline.metrics import log_softmax
from pipeline.store import Cache, open_cache
from stages.cache import command
from tests.store.small import LAYOUT, logits_of, small_cache


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return small_cache(tmp_path / "small", Dense())


def diff(one: Cache | Path, other: Cache | Path, **options: Any) -> DiffReport:
    names = [str(c.address if isinstance(c, Cache) else c) for c in (one, other)]
    return run(DiffConfig(one=names[0], other=names[1], **options))


def test_a_cache_and_its_copy_are_the_same(cache: Cache, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(cache.address, tmp_path / "copy")
    found = diff(cache, tmp_path / "copy")
    assert found.same and not found.identity and found.agreement == 1.0
    assert "are the same cache" in found.summary


def test_what_another_encoding_costs(cache: Cache, tmp_path: Path) -> None:
    transcode.run(transcode.TranscodeConfig(cache=cache.address, out=tmp_path / "int8", dtype="int8"))
    other = open_cache(tmp_path / "int8")
    found = diff(cache, other, entries=0, temperature=(2.0,))
    assert found.compared == 80 and set(found.kl) == {"2"}
    expected = np.concatenate(
        [
            kl_divergence(log_softmax(logits_of(p), 2.0), log_softmax(kept, 2.0))
            for p, kept in zip(LAYOUT.parts, halves(other), strict=True)
        ]
    )
    assert found.kl["2"]["mean"] == pytest.approx(expected.mean(), rel=1e-9)
    assert found.kl["2"]["max"] == pytest.approx(expected.max(), rel=1e-9)
    assert found.identity["encoding.dtype"] == ("float32", "int8")
    assert {"lineage", "encoding.dtype"} <= set(found.identity) and not found.same


def halves(cache: Cache) -> list[np.ndarray]:
    """The logits of each group of the small layout, whatever the parts of ``cache`` are."""
    out = []
    for part in LAYOUT.parts:
        rows = np.arange(part.first, part.first + part.entries)
        out.append(np.asarray(cache.decode(cache.read_rows(part.split, part.view, rows)).logits))
    return out


def test_coverage_counts_examples_views_contents_and_labels(cache: Cache, tmp_path: Path) -> None:
    subset.run(subset.SubsetConfig(cache=cache.address, out=tmp_path / "few", first=5, views=2, splits=("train",)))
    found = diff(cache, tmp_path / "few")
    train, validation = found.coverage[:2]
    assert (train.one, train.other, train.both, train.views, train.changed) == (21, 5, 5, (3, 2), 0)
    assert (validation.one, validation.other, validation.both) == (8, 0, 0)
    assert found.compared == 5 * 2


def test_other_classes_are_not_compared(cache: Cache, tmp_path: Path) -> None:
    from tests.store.small import identity_of, write, writer_of

    writer = writer_of(tmp_path / "named", Dense())
    write(writer)
    names = [f"kind {n}" for n in range(6)]
    writer.finalise({"identity": identity_of(Dense(), "zarr", LAYOUT), "class_names": names})
    found = diff(cache, tmp_path / "named")
    assert "other names" in found.apart and not found.kl and found.agreement is None


def test_topk_caches_are_compared_at_the_temperatures_that_both_keep(cache: Cache, tmp_path: Path) -> None:
    for name, temperatures in (("a", (1.0, 4.0)), ("b", (4.0, 8.0))):
        transcode.run(
            transcode.TranscodeConfig(
                cache=cache.address, out=tmp_path / name, encoding="topk", k=3, temperature=temperatures
            )
        )
    found = diff(tmp_path / "a", tmp_path / "b")
    assert set(found.kl) == {"4"} and found.kl["4"]["max"] < 1e-9


def test_a_sample_is_spread_over_all_groups(cache: Cache, tmp_path: Path) -> None:
    transcode.run(transcode.TranscodeConfig(cache=cache.address, out=tmp_path / "b", store="parquet"))
    assert 20 <= diff(cache, tmp_path / "b", entries=20).compared <= 30


def test_as_typed(cache: Cache, tmp_path: Path) -> None:
    subset.run(subset.SubsetConfig(cache=cache.address, out=tmp_path / "few", first=5))
    said = CliRunner().invoke(command, ["diff", cache.address, str(tmp_path / "few")])
    assert said.exit_code == 0 and "21 | 5 examples" in said.stdout and "KL at T = 1" in said.stdout
    found = json.loads(CliRunner().invoke(command, ["diff", cache.address, str(tmp_path / "few"), "--json"]).stdout)
    assert found["coverage"][0]["both"] == 5 and found["same"] is False
