"""What every backend keeps. A test class inherits this and names its store."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest

from pipeline.encodings import Dense, Encoding, TopK
from pipeline.errors import CacheCorruptError, CacheIncompleteError, ConfigError
from pipeline.store import Cache, Layout, open_cache, verify
from tests.store.small import CLASSES, LAYOUT, feature_of, files_of, index_of, logits_of, small_cache

ENCODINGS = [
    Dense(),
    Dense("float16"),
    Dense("int8"),
    TopK(3, "float16", (1.0, 4.0)),
    TopK(6),
    TopK(5, "int4", (1.0, 4.0)),
]


def named(encoding: Encoding) -> str:
    return "-".join(str(v) for v in encoding.describe().values())


class BackendContract:
    """Round trip of every encoding, order and extent of reads, damage."""

    store: str

    @pytest.fixture(scope="class")
    @classmethod
    def make(cls, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Encoding], Cache]:
        made: dict[str, Cache] = {}

        def make(encoding: Encoding) -> Cache:
            name = named(encoding)
            if name not in made:
                made[name] = small_cache(tmp_path_factory.mktemp("cache") / "c", encoding, cls.store)
            return made[name]

        return make

    @pytest.mark.parametrize("encoding", ENCODINGS, ids=named)
    def test_what_was_written_comes_back(self, make: Callable[[Encoding], Cache], encoding: Encoding) -> None:
        cache = make(encoding)
        for part in LAYOUT.parts:
            expected = encoding.encode(logits_of(part))
            found = cache.read_part(part)
            assert found.keys() == expected.keys()
            for name, rows in expected.items():
                assert found[name].dtype == rows.dtype
                np.testing.assert_array_equal(found[name], rows)
            np.testing.assert_array_equal(cache.read_feature("block.1", part), feature_of(part))

    @pytest.mark.parametrize("encoding", ENCODINGS, ids=named)
    def test_rows_in_any_order_are_those_of_the_parts(
        self, make: Callable[[Encoding], Cache], encoding: Encoding
    ) -> None:
        cache = make(encoding)
        rows = np.array([20, 0, 7, 8, 8, 16, 3])
        whole = cache.read_parts(cache.parts_of("train", 2))
        for name, found in cache.read_rows("train", 2, rows).items():
            np.testing.assert_array_equal(found, whole[name][rows])
        feature = np.concatenate([cache.read_feature("block.1", p) for p in cache.parts_of("train", 2)])
        np.testing.assert_array_equal(cache.read_feature_rows("block.1", "train", 2, rows), feature[rows])

    def test_no_rows_are_no_rows(self, make: Callable[[Encoding], Cache]) -> None:
        found = make(Dense()).read_rows("test", 0, np.empty(0, np.int64))
        assert found["logits"].shape == (0, CLASSES)

    @pytest.mark.parametrize("rows", [[21], [-1], [[0]]])
    def test_rows_out_of_range_are_refused(self, make: Callable[[Encoding], Cache], rows: list) -> None:
        with pytest.raises(IndexError, match="0 to 20"):
            make(Dense()).read_rows("train", 0, np.array(rows))

    def test_parts_are_read_into_the_arrays_that_are_given(self, make: Callable[[Encoding], Cache]) -> None:
        cache = make(Dense("int8"))
        buffer = cache.allocate(64)
        found = cache.read_parts(cache.parts_of("train", 1), buffer)
        assert all(np.shares_memory(found[name], buffer[name]) for name in buffer)
        assert {len(rows) for rows in found.values()} == {21}
        for name, rows in cache.read_parts(cache.parts_of("train", 1)).items():
            np.testing.assert_array_equal(found[name], rows)

    def test_an_array_that_cannot_take_the_rows_is_refused(self, make: Callable[[Encoding], Cache]) -> None:
        cache = make(Dense())
        for wrong in (np.empty((8, CLASSES)), np.empty((7, CLASSES), np.float32), np.empty((CLASSES, 8), "f4").T):
            with pytest.raises(ValueError, match="out should be"):
                cache.read_part(0, {"logits": wrong})

    def test_threads_read_at_once(self, make: Callable[[Encoding], Cache]) -> None:
        cache = make(Dense("int8"))
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(cache.read_part, cache.parts * 3))
        for part, arrays in zip(cache.parts * 3, found, strict=True):
            np.testing.assert_array_equal(arrays["values"], Dense("int8").encode(logits_of(part))["values"])

    def test_the_index_comes_back(self, make: Callable[[Encoding], Cache]) -> None:
        cache = make(Dense())
        for part in LAYOUT.parts:
            found, expected = cache.index(part), index_of(part)
            assert (found.example_ids, found.view, found.split) == (expected.example_ids, part.view, part.split)
            assert found.input_digests == expected.input_digests
            np.testing.assert_array_equal(found.seeds, expected.seeds)
            np.testing.assert_array_equal(found.labels, expected.labels)
            np.testing.assert_array_equal(found.start, part.start + np.arange(part.entries))
            np.testing.assert_array_equal(found.length, np.ones(part.entries))
        assert cache.ids("train") == [f"train/{n}" for n in range(21)]
        assert cache.labels("test").tolist() == [0, 1, -1, 3, 4, -1, 0, 1, -1]
        assert len(cache.input_digests("validation")) == 8

    def test_splits_and_views_that_are_not_there(self, make: Callable[[Encoding], Cache]) -> None:
        cache = make(Dense())
        assert (cache.splits(), cache.views("train"), cache.views("test")) == (
            ("train", "validation", "test"), (0, 1, 2), (0,)
        )  # fmt: skip
        with pytest.raises(ConfigError, match=r"train \(views 0 to 2\).*no view 3 of split 'train'"):
            cache.parts_of("train", 3)
        with pytest.raises(ConfigError, match=r"it has block\.1"):
            cache.read_feature("block.2", 0)

    def test_one_entry(self, tmp_path: Path) -> None:
        cache = small_cache(tmp_path / "c", store=self.store, layout=Layout.of({"test": (1, 1)}, 1))
        assert cache.read_part(0)["logits"].shape == (1, CLASSES)
        assert (cache.examples("test"), cache.examples("train")) == (1, 0)
        assert cache.ids("train") == []
        assert verify(cache).ok

    def test_no_entries(self, tmp_path: Path) -> None:
        cache = small_cache(tmp_path / "c", store=self.store, layout=Layout.of({}, 4))
        assert (cache.parts, cache.splits()) == ((), ())
        assert verify(cache).ok

    def test_the_same_input_gives_the_same_bytes(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            small_cache(tmp_path / name, TopK(3), self.store)
        assert files_of(tmp_path / "a") == files_of(tmp_path / "b")

    def test_a_cache_is_read_through_fsspec(self, make: Callable[[Encoding], Cache]) -> None:
        cache = make(TopK(3, "float16", (1.0, 4.0)))
        remote = fsspec.filesystem("memory")
        address = f"/{self.store}-cache"
        for path, data in files_of(Path(cache.address)).items():
            remote.pipe_file(f"{address}/{path}", data)
        found = open_cache(f"memory:/{address}")
        for name, rows in cache.read_part(2).items():
            np.testing.assert_array_equal(found.read_part(2)[name], rows)
            np.testing.assert_array_equal(found.read_rows("train", 0, np.array([20, 16]))[name], rows[[4, 0]])
        assert found.ids("train") == cache.ids("train")
        assert verify(found).ok

    def test_every_flipped_byte_is_noticed(self, tmp_path: Path) -> None:
        """The error is the named one; the numbers are never wrong. Parquet has a few bytes that nobody reads."""
        cache = small_cache(tmp_path / "c", TopK(3), self.store)
        expected = cache.read_part(1)
        for path in sorted(cache.parts[1].files):
            place = tmp_path / "c" / path
            good = place.read_bytes()
            for offset in np.linspace(0, len(good) - 1, 23).astype(int):
                bad = bytearray(good)
                bad[offset] ^= 0x10
                place.write_bytes(bad)
                try:
                    found, rows = cache.read_part(1), cache.index(1)
                    cache.read_feature("block.1", 1)
                except CacheCorruptError as error:
                    assert path in str(error)
                else:
                    assert self.store == "parquet" or path.startswith("index/")
                    assert rows.example_ids == index_of(LAYOUT.parts[1]).example_ids
                    for name, values in expected.items():
                        np.testing.assert_array_equal(found[name], values)
            place.write_bytes(good)

    def test_a_missing_file_is_noticed(self, tmp_path: Path) -> None:
        cache = small_cache(tmp_path / "c", store=self.store)
        paths = [path for path in cache.parts[0].files if path.startswith("labels")]
        for path in paths:
            (tmp_path / "c" / path).unlink()
            with pytest.raises(CacheIncompleteError, match="is missing"):
                cache.read_part(0)
