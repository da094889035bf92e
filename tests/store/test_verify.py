"""verify: a sound cache passes; each kind of damage is named with its file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.encodings import Dense, Encoding, TopK
from pipeline.identity import digest
from pipeline.softlabels import TopK as TopKLabels
from pipeline.store import STORES, FileRecord, open_cache, parts, verify
from pipeline.store.verify import wrong_values
from tests.contracts.backends import ENCODINGS, named
from tests.store.small import LAYOUT, feature_of, finalise, index_of, logits_of, small_cache, write, writer_of


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("encoding", ENCODINGS, ids=named)
def test_a_sound_cache_passes(tmp_path: Path, encoding: Encoding, store: str) -> None:
    report = verify(small_cache(tmp_path, encoding, store))
    assert report.ok, report.summary
    assert report.files == sum(p.is_file() for p in tmp_path.rglob("*"))
    assert report.bytes == sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file())
    assert report.entries == 80
    assert "sound" in report.summary
    assert json.loads(json.dumps(report.as_dict()))["ok"] is True


def test_all_damage_is_reported_at_once_each_with_its_file(tmp_path: Path) -> None:
    cache = small_cache(tmp_path)
    (tmp_path / "labels.zarr/logits/c.3.0").unlink()
    flip(tmp_path / "index/part-00005.parquet")
    flip(tmp_path / "README.md")
    (tmp_path / "labels.zarr/logits/c.77.0").write_bytes(b"stranger")
    (tmp_path / "notes.txt").write_text("mine")
    report = verify(cache)
    assert {problem.path for problem in report.problems} == {
        "labels.zarr/logits/c.3.0",
        "index/part-00005.parquet",
        "README.md",
        "labels.zarr/logits/c.77.0",
    }
    assert report.unlisted == ("notes.txt",)
    assert "4 problems" in report.summary


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def resealed(folder: Path, change: Callable[[Path], Any]) -> None:
    """Change files, then put every digest right again: damage that only the content gives away."""
    change(folder)
    records = []
    for record in parts.decode((folder / parts.PATH).read_bytes(), len(LAYOUT.parts), "p"):
        files = {path: FileRecord.of((folder / path).read_bytes()) for path in record.files}
        records.append(parts.PartRecord.of(record.part, files, record.statistics, record.seals))
    (folder / parts.PATH).write_bytes(parts.encode(records))
    body = json.loads((folder / "manifest.json").read_bytes())
    for path, record in body["files"].items():
        data = (folder / path).read_bytes()
        record.update(sha256=FileRecord.of(data).sha256, size=len(data))
    body.pop("digest")
    (folder / "manifest.json").write_text(json.dumps({**body, "digest": digest(body)}))


def swap(first: str, second: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        one, other = (folder / first).read_bytes(), (folder / second).read_bytes()
        (folder / first).write_bytes(other)
        (folder / second).write_bytes(one)

    return apply


def test_swapped_index_files_are_noticed_though_every_digest_fits(tmp_path: Path) -> None:
    small_cache(tmp_path)
    resealed(tmp_path, swap("index/part-00000.parquet", "index/part-00003.parquet"))
    report = verify(open_cache(tmp_path))
    # Both parts, and the third view of the same examples, which is compared with the plain one.
    assert [p.path for p in report.problems] == [f"index/part-0000{n}.parquet" for n in (0, 3, 6)]
    assert all("its rows are not those of part" in p.message for p in report.problems)


def test_an_index_of_other_examples_is_noticed(tmp_path: Path) -> None:
    writer = writer_of(tmp_path)
    write(writer, LAYOUT.parts[:3])
    wrong = index_of(LAYOUT.parts[1])
    for part in LAYOUT.parts[3:]:
        index = index_of(part)
        ids = list(wrong.example_ids) if part.number == 3 else index.example_ids
        ids = ["same"] * len(ids) if part.split == "test" else ids
        changed = type(index)(ids, part.view, part.split, index.seeds, index.labels, index.input_digests)
        logits = logits_of(part)
        writer.write_part(part, Dense().encode(logits), changed, {"block.1": feature_of(part)})
    finalise(writer)
    messages = {p.path: p.message for p in verify(open_cache(tmp_path)).problems}
    assert "other example ids" in messages.pop("index/part-00003.parquet")
    assert [m for m in messages.values() if "same example id twice" in m]


def test_values_that_are_no_soft_labels_are_named() -> None:
    good = TopK(2, temperatures=(1.0,)).decode(TopK(2).encode(np.array([[1.0, 2.0, 3.0]], np.float32)), 3)
    assert wrong_values(good) is None
    for change, words in (
        ({"ids": np.array([[1, 3]])}, "below 3"),
        ({"ids": np.array([[2, 1]])}, "ascend"),
        ({"logits": np.array([[np.nan, 0.0]])}, "not finite"),
        ({"log_normaliser": np.array([[np.inf]])}, "not finite"),
        ({"log_residual": np.array([[-np.inf]])}, "residuals"),
    ):
        assert words in str(wrong_values(TopKLabels(**{**vars(good), **change})))
    dense = Dense().decode({"logits": np.array([[np.inf, 0.0]], np.float32)}, 2)
    assert wrong_values(dense) == "its logits are not finite"


def test_nothing_is_copied_but_a_copy_verifies(tmp_path: Path) -> None:
    small_cache(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert verify(open_cache(tmp_path / "b")).ok


def test_what_was_not_pulled_may_be_absent(tmp_path: Path) -> None:
    cache = small_cache(tmp_path / "c", Dense())
    gone = [path for path in cache.parts[2].files if path.startswith(("labels", "features"))]
    gone += [path for path in cache.parts[5].files if path.startswith("features")]
    for path in gone:
        (tmp_path / "c" / path).unlink()
    assert len(verify(open_cache(tmp_path / "c")).problems) == len(gone)
    report = verify(open_cache(tmp_path / "c"), partly=True)
    assert report.ok and report.absent == tuple(sorted(gone)) and f"{len(gone)} more files" in report.summary
    shard = tmp_path / "c" / next(path for path in cache.parts[5].files if path.startswith("labels"))
    data = bytearray(shard.read_bytes())
    data[3] ^= 1
    shard.write_bytes(data)
    assert [p.path for p in verify(open_cache(tmp_path / "c"), partly=True).problems] == [
        shard.relative_to(tmp_path / "c").as_posix()
    ]
