"""Damage, in short: every kind of file a few times, a reader that is found out, index files that look alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import CacheCorruptError
from pipeline.store import Layout, open_cache
from pipeline.store.shard_reader import Shard
from tests.faults.damage import campaign
from tests.store.small import feature_of, finalise, index_of, logits_of, writer_of

KINDS = ("shard", "feature shard", "label parquet", "index", "manifest.json", "parts.parquet", "zarr.json")


def test_damage_is_named_and_never_becomes_numbers(tmp_path: Path) -> None:
    counts = campaign(tmp_path, 120, 0)
    assert sum(number for what, number in counts.items() if ":" not in what) == 120 + 40 + 30
    missed = [kind for kind in (*KINDS, "views.parquet", "README.md") if not counts[f"flip, {kind}"]]
    assert not missed
    assert counts["flip, shard: refused by readers"] == counts["flip, shard"]
    assert counts["swap, of two kinds"] == 10


def test_a_reader_that_skips_checksums_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shard, "_check_crc", lambda *_: None)
    with pytest.raises(AssertionError, match=r"round \d+ of seed 0, zarr-.*: flip .* at byte"):
        campaign(tmp_path, 120, 0)


@pytest.mark.parametrize("column", ["ids", "input_digests", "labels"])
def test_columns_of_swapped_index_files_of_one_size(tmp_path: Path, column: str) -> None:
    """With ids of one width, index files often have one size: what tells them apart are the positions in them."""
    writer = writer_of(tmp_path, layout=Layout.of({"train": (48, 1)}, part_size=8))
    for part in writer.layout.parts:
        rows = index_of(part)
        rows = replace(rows, example_ids=[f"e{part.first + n:03d}" for n in range(part.entries)])
        logits = logits_of(part)
        writer.write_part(part, writer.encoding.encode(logits), rows, {"block.1": feature_of(part)})
    finalise(writer)
    places = sorted((tmp_path / "index").iterdir())
    pairs = [(a, b) for a in places for b in places if a < b and a.stat().st_size == b.stat().st_size]
    if not pairs:
        pytest.fail("no two index files of one size")
    first, second = (place.read_bytes() for place in pairs[0])
    pairs[0][0].write_bytes(second)
    pairs[0][1].write_bytes(first)
    with pytest.raises(CacheCorruptError, match="its rows are not those of part"):
        getattr(open_cache(tmp_path), column)("train")
