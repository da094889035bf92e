"""Writing: resume, coverage, threads, refusals."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.encodings import Dense, TopK
from pipeline.errors import CacheIncompleteError, CacheNotFoundError
from pipeline.store import (
    CacheWriter,
    FeatureSpec,
    FileRecord,
    IndexRows,
    Layout,
    PartRecord,
    open_cache,
    replay_file,
    verify,
)
from pipeline.store.files import MemoryFiles
from pipeline.store.fitting import label_backend
from tests.store.small import (
    CLASSES,
    LAYOUT,
    feature_of,
    files_of,
    finalise,
    index_of,
    logits_of,
    small_cache,
    write,
    writer_of,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of a cache that was written in one go."""
    folder = tmp_path_factory.mktemp("whole") / "c"
    small_cache(folder, TopK(3))
    return files_of(folder)


def test_the_order_of_parts_makes_no_difference(tmp_path: Path, whole: dict[str, bytes]) -> None:
    writer = writer_of(tmp_path, TopK(3))
    write(writer, reversed(LAYOUT.parts))
    finalise(writer)
    assert files_of(tmp_path) == whole


def test_threads_may_write_different_parts(tmp_path: Path, whole: dict[str, bytes]) -> None:
    writer = writer_of(tmp_path, TopK(3))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda part: write(writer, [part]), LAYOUT.parts))
    finalise(writer)
    assert files_of(tmp_path) == whole


def test_a_second_writer_goes_on_where_the_first_stopped(tmp_path: Path, whole: dict[str, bytes]) -> None:
    first = writer_of(tmp_path, TopK(3))
    write(first, LAYOUT.parts[:5])
    again = writer_of(tmp_path, TopK(3))
    assert again.done == {0, 1, 2, 3, 4}
    write(again)
    finalise(again)
    assert files_of(tmp_path) == whole


def test_parts_of_another_identity_are_not_taken_over(tmp_path: Path) -> None:
    write(writer_of(tmp_path, TopK(3)), LAYOUT.parts[:2])
    assert writer_of(tmp_path, TopK(2)).done == set()


def test_missing_parts_are_counted(tmp_path: Path) -> None:
    writer = writer_of(tmp_path)
    write(writer, [LAYOUT.parts[0], LAYOUT.parts[2]])
    with pytest.raises(CacheIncompleteError, match="10 of 12 parts are not written yet: 1:2, 3:12"):
        finalise(writer)


def test_what_nobody_journalled_goes(tmp_path: Path, whole: dict[str, bytes]) -> None:
    writer = writer_of(tmp_path, TopK(3))
    write(writer)
    (tmp_path / "labels.zarr/logits/c.99.0").write_bytes(b"left over")
    (tmp_path / "index/part-00000.parquet.12.partial").write_bytes(b"half")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/link").symlink_to("/etc/passwd")
    finalise(writer)
    assert files_of(tmp_path) == whole
    assert not (tmp_path / "elsewhere").exists()


def test_finalising_twice_gives_the_same_bytes(tmp_path: Path, whole: dict[str, bytes]) -> None:
    writer = writer_of(tmp_path, TopK(3))
    write(writer)
    finalise(writer)
    finalise(writer)
    assert files_of(tmp_path) == whole
    again = writer_of(tmp_path, TopK(3))
    assert again.done == {part.number for part in LAYOUT.parts}
    finalise(again)
    assert files_of(tmp_path) == whole


def test_the_bound_is_the_largest_of_the_parts(tmp_path: Path) -> None:
    cache = small_cache(tmp_path, Dense("int8"))
    assert cache.manifest.bound == max(record.statistics["bound"] for record in cache.parts) > 0


def test_replayed_views_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({"example_id": ["train/0"], "view": [1], "pixels": [[0.5, 1.0]]})
    writer = writer_of(tmp_path)
    write(writer)
    manifest = finalise(writer, replay=replay_file(table))
    assert manifest.replay == "views.parquet"
    cache = open_cache(tmp_path)
    # By this thread alone: one of Arrow's that still holds a buffer when the interpreter ends aborts it.
    monkeypatch.setattr("pyarrow.parquet.read_table", None)
    assert cache.replayed_views().to_pylist() == table.to_pylist()
    assert verify(cache).ok


def test_a_cache_without_features_has_no_folder_for_them(tmp_path: Path) -> None:
    cache = small_cache(tmp_path / "c", features=False)
    assert cache.feature_names == ()
    assert not (tmp_path / "c/features.zarr").exists()


def test_rows_that_do_not_fit_the_part_are_refused(tmp_path: Path) -> None:
    writer = writer_of(tmp_path)
    part = LAYOUT.parts[2]
    arrays, index, features = Dense().encode(logits_of(part)), index_of(part), {"block.1": feature_of(part)}
    with pytest.raises(ValueError, match="should have 5 rows, found 4"):
        writer.write_part(part, {"logits": arrays["logits"][:4]}, index, features)
    with pytest.raises(ValueError, match="the arrays should be"):
        writer.write_part(part, {}, index, features)
    with pytest.raises(ValueError, match="the features should be"):
        writer.write_part(part, arrays, index, {})
    with pytest.raises(ValueError, match="float32"):
        writer.write_part(part, {"logits": arrays["logits"].astype(np.float64)}, index, features)
    with pytest.raises(ValueError, match="5 entries of train, view 0"):
        writer.write_part(part, arrays, replace(index, view=1, input_digests=None), features)
    with pytest.raises(ValueError, match="part 2 of this layout is another"):
        writer.write_part(replace(part, start=0), arrays, index, features)
    with pytest.raises(ValueError, match="finite"):
        writer.write_part(part, arrays, index, features, {"bound": float("nan")})
    with pytest.raises(ValueError, match="sha256"):
        writer.write_part(part, arrays, replace(index, input_digests=["ab"] * 5), features)
    assert writer.done == set()


def test_an_index_of_unequal_columns_is_refused() -> None:
    with pytest.raises(ValueError, match="equally long"):
        IndexRows(["a"], 0, "train", np.zeros(2, np.int64), np.zeros(1, np.int64), ["00" * 32])
    with pytest.raises(ValueError, match="found 'dev'"):
        IndexRows([], 0, "dev", np.zeros(0, np.int64), np.zeros(0, np.int64), [])
    with pytest.raises(ValueError, match="view 0, and to it alone"):
        IndexRows(["a"], 1, "train", np.zeros(1, np.int64), np.zeros(1, np.int64), ["00" * 32])


def test_finalise_names_what_it_does_not_know(tmp_path: Path) -> None:
    writer = writer_of(tmp_path)
    with pytest.raises(ValueError, match="missing: colour"):
        finalise(writer, colour="red")
    with pytest.raises(ValueError, match="missing: identity, class_names"):
        writer.finalise({})
    with pytest.raises(ValueError, match=r"differs .* in digest"):
        writer.finalise({"identity": {"store": "zarr", "part_size": 8}, "class_names": []})
    with pytest.raises(ValueError, match="temperatures"):
        finalise(writer, temperatures=[2.0])


def test_names_that_could_leave_the_folder_are_refused(tmp_path: Path) -> None:
    for name in ("../x", "/x", "a/b", "", ".x", "x" * 101, "x."):
        with pytest.raises(ValueError, match="a feature's name"):
            CacheWriter(tmp_path, LAYOUT, Dense(), classes=3, features={name: FeatureSpec(())}, identity="0" * 64)
    with pytest.raises(ValueError, match="zarr or parquet; found 'csv'"):
        CacheWriter(tmp_path, LAYOUT, Dense(), classes=3, store="csv", identity="0" * 64)
    with pytest.raises(ValueError, match="float16"):
        FeatureSpec((3,), "float32")


def test_nothing_there_and_not_finished_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CacheNotFoundError, match="there is no cache at"):
        open_cache(tmp_path / "c")
    (tmp_path / "c").mkdir()
    with pytest.raises(CacheNotFoundError, match=r"no manifest\.json"):
        open_cache(tmp_path / "c")
    write(writer_of(tmp_path / "c"), LAYOUT.parts[:1])
    with pytest.raises(CacheIncompleteError, match="has not finished"):
        open_cache(tmp_path / "c")
    (tmp_path / ".d.softlabels-0123456789abcdef").mkdir()
    with pytest.raises(CacheIncompleteError, match="has not finished"):
        open_cache(tmp_path / "d")
    with pytest.raises(CacheNotFoundError, match="no address"):
        open_cache("nonsense://x/y")
    with pytest.raises(CacheNotFoundError, match="is not a cache"):
        open_cache("memory://nowhere")


def test_a_cache_describes_itself_in_json(tmp_path: Path) -> None:
    import json

    cache = small_cache(tmp_path)
    found = json.loads(json.dumps(cache.describe()))
    assert found["bytes"]["total"] == sum(len(data) for data in files_of(tmp_path).values())
    assert found["bytes"]["labels.zarr/logits"] > 80 * CLASSES * 4
    assert found["bytes_per_label"] > CLASSES * 4
    assert cache.digest[:12] in repr(cache)


def test_a_large_part_of_int8_is_read_from_parquet() -> None:
    """Parquet widens small integers to four bytes: a part of 4 MB asks for 16, which is honest."""
    layout = Layout.of({"train": (4096, 1)}, 4096)
    backend, part = label_backend("parquet", Dense("int8"), 1000, layout), layout.parts[0]
    arrays = Dense("int8").encode(np.random.default_rng(0).standard_normal((4096, 1000)).astype(np.float32))
    data = backend.encode(part, arrays)
    record = PartRecord.of(part, {path: FileRecord.of(held) for path, held in data.items()}, {}, {})
    for name, rows in backend.read(MemoryFiles(data), record).items():
        np.testing.assert_array_equal(rows, arrays[name])
