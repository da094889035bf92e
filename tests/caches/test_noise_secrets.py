"""What a cache made of caches would carry over, and what of it would tell of answers or weights without any noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.caches import subset
from pipeline.encodings import Dense
from pipeline.store import Cache, open_cache
from tests.caches.noisy import dumped, noisy

pytestmark = pytest.mark.usefixtures("own_notes")


def everything_of(cache: Cache) -> bytes:
    """All bytes of a cache's small files, and the texts in its Parquet files."""
    found = []
    for path in sorted(Path(cache.address).rglob("*")):
        if path.is_file():
            found.append(path.read_bytes())
            if path.suffix == ".parquet":
                table = pa.parquet.read_table(path)
                found.append(repr((table.schema.metadata, table.to_pydict())).encode())
    return b"\n".join(found)


def test_no_digest_of_weights_or_of_a_source_is_left(teachers: list[Cache], tmp_path: Path) -> None:
    made = noisy(tmp_path / "made", *teachers)
    held = everything_of(made)
    for cache in teachers:
        assert cache.identity["teacher"]["state"] and made.identity["teacher"]["state"] is None
        for secret in (cache.digest, cache.identity["teacher"]["state"]):
            assert secret[:12].encode() not in held
        assert cache.address.encode() not in held
    assert b"weights" not in (Path(made.address) / "views.parquet").read_bytes()
    assert "made_on" not in made.identity and made.manifest.lineage[0]["from"] == []
    assert [step["verb"] for step in made.manifest.lineage] == ["noise"]


def test_the_lineage_of_a_source_is_not_carried_over(teachers: list[Cache], tmp_path: Path) -> None:
    halves = []
    for number, cache in enumerate(teachers):
        config = subset.SubsetConfig(cache=cache.address, out=tmp_path / f"half{number}", first=4, views=1)
        subset.run(config)
        halves.append(open_cache(config.out))
    made = noisy(tmp_path / "made", *halves)
    held = everything_of(made)
    assert all(cache.digest.encode() not in held for cache in [*teachers, *halves]) and b"0.123456789" not in held
    assert made.manifest.lineage[0]["options"]["rows"] == 8


def test_fidelity_is_that_of_the_noisy_labels(teachers: list[Cache], tmp_path: Path) -> None:
    made = noisy(tmp_path / "made", *teachers, sigma=5.0)
    fidelity = made.manifest.fidelity
    assert fidelity["kl"] == {} and fidelity["entries_compared"] == 0 and fidelity["top1_agreement"] is None
    assert made.manifest.bound == 0.0
    for split in made.splits():
        parts = [p for view in made.views(split) for p in made.parts_of(split, view)]
        right = [made.decode(made.read_part(p)).logits.argmax(1) == made.index(p).labels for p in parts]
        assert fidelity["teacher_accuracy"][split] == pytest.approx(float(np.concatenate(right).mean()))


def test_statistics_of_parts_are_those_of_the_noisy_labels(teachers: list[Cache], tmp_path: Path) -> None:
    made = noisy(tmp_path / "made", *teachers, part_size=teachers[0].part_size)
    assert "secret" in teachers[0].parts[0].statistics
    for record in made.parts:
        assert set(record.statistics) == {"labelled", "correct", "bound"}
        predicted = made.decode(made.read_part(record)).logits.argmax(1)
        assert record.statistics["correct"] == int((predicted == made.index(record).labels).sum())


def test_a_lossy_source_does_not_show_in_the_bound(tmp_path: Path) -> None:
    source = dumped(tmp_path / "a", 0, encoding=Dense("int8"))
    assert source.manifest.bound > 0
    assert noisy(tmp_path / "made", source).manifest.bound == 0.0


def test_features_are_gone(teachers: list[Cache], tmp_path: Path) -> None:
    made = noisy(tmp_path / "made", *teachers)
    assert teachers[0].feature_names == ("hint",) and made.feature_names == ()
    assert not list(Path(made.address).glob("features*")) and made.identity["features"] == {}


def test_replayed_views_hold_images_and_nothing_else(teachers: list[Cache], tmp_path: Path) -> None:
    made = noisy(tmp_path / "made", *teachers)
    table = made.replayed_views()
    assert table.column_names == ["example_id", "view", "seed", "shape", "pixels"]
    assert table.to_pylist() == teachers[0].replayed_views().to_pylist()
    assert not table.schema.metadata
