"""What every backend keeps of entries and positions that are not all alike: several positions, ragged, kept classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.encodings import KEPT, Dense, Encoding, Sampled, TopK
from pipeline.errors import CacheCorruptError
from pipeline.store import Cache, Layout, verify
from tests.contracts.backends import named
from tests.store.small import CLASSES, LAYOUT, LENGTHS, RAGGED, encoded, feature_of, index_of, small_cache

SEVEN = Layout.of({"train": (21, 3), "validation": (8, 1), "test": (9, 1)}, part_size=8, length=7)
LAYOUTS = {"one": LAYOUT, "seven": SEVEN, "ragged": RAGGED}
SAMPLED = [Sampled(5), Sampled(20, scheme="independent"), Sampled(3, proposal=0.5), Sampled(300)]
CASES = [(name, e) for name in LAYOUTS for e in (*SAMPLED, *((Dense("int8"), TopK(3)) if name != "one" else ()))]
IDS = [f"{name}-{named(encoding)}" for name, encoding in CASES]

Make = Callable[[str, Encoding], Cache]


def lengths_of(layout: Layout, split: str, count: int) -> np.ndarray:
    return LENGTHS[split][:count] if layout.is_ragged else np.full(count, layout.length)


class UnevenContract:
    """Round trips, orders of reading and damage."""

    store: str

    @pytest.fixture(scope="class")
    @classmethod
    def make(cls, tmp_path_factory: pytest.TempPathFactory) -> Make:
        made: dict[str, Cache] = {}

        def make(layout: str, encoding: Encoding) -> Cache:
            name = f"{layout}-{named(encoding)}"
            if name not in made:
                made[name] = small_cache(tmp_path_factory.mktemp("c") / "c", encoding, cls.store, LAYOUTS[layout])
            return made[name]

        return make

    @pytest.mark.parametrize(("layout", "encoding"), CASES, ids=IDS)
    def test_what_was_written_comes_back(self, make: Make, layout: str, encoding: Encoding) -> None:
        cache = make(layout, encoding)
        assert verify(cache).problems == ()
        uneven = layout == "ragged" or isinstance(encoding, Sampled)
        assert cache.manifest.format == (3 if uneven else 1)
        for part in LAYOUTS[layout].parts:
            expected = encoded(encoding, part)
            found = cache.read_part(part)
            assert found.keys() == expected.keys()
            for name, rows in expected.items():
                assert found[name].dtype == rows.dtype
                np.testing.assert_array_equal(found[name], rows)
            np.testing.assert_array_equal(cache.read_feature("block.1", part), feature_of(part))
            index = cache.index(part)
            np.testing.assert_array_equal(index.length.sum(), part.positions)
            np.testing.assert_array_equal(index.start, part.start + np.cumsum(index.length) - index.length)

    @pytest.mark.parametrize(("layout", "encoding"), CASES, ids=IDS)
    def test_rows_in_any_order_are_those_of_the_parts(self, make: Make, layout: str, encoding: Encoding) -> None:
        cache = make(layout, encoding)
        lengths = lengths_of(LAYOUTS[layout], "train", 21)
        np.testing.assert_array_equal(cache.lengths("train"), lengths)
        whole = cache.read_parts(cache.parts_of("train", 2))
        kept = whole.get(KEPT, np.ones(int(lengths.sum()), np.int64)).astype(np.int64)
        feature = np.concatenate([cache.read_feature("block.1", p) for p in cache.parts_of("train", 2)])
        for rows in ([20, 0, 7, 8, 8, 16, 3], [5], [], list(range(21))):
            # Slow and plain: the positions of each row, and the classes of each position, one by one.
            positions = [p for r in rows for p in range(int(lengths[:r].sum()), int(lengths[: r + 1].sum()))]
            classes = [c for p in positions for c in range(int(kept[:p].sum()), int(kept[: p + 1].sum()))]
            for name, found in cache.read_rows("train", 2, np.array(rows, np.int64)).items():
                on_kept = encoding.specs(CLASSES)[name].axis == KEPT
                np.testing.assert_array_equal(found, whole[name][classes if on_kept else positions])
            found = cache.read_feature_rows("block.1", "train", 2, np.array(rows, np.int64))
            np.testing.assert_array_equal(found, feature[positions])

    def test_parts_are_read_into_the_arrays_that_are_given(self, make: Make) -> None:
        cache = make("ragged", SAMPLED[0])
        records = cache.parts_of("train", 1)
        buffer = cache.allocate(200, 2000)
        found = cache.read_parts(records, buffer)
        assert all(np.shares_memory(found[name], buffer[name]) for name in buffer)
        for name, rows in cache.read_parts(records).items():
            np.testing.assert_array_equal(found[name], rows)
        assert len(found["draws_0"]) == sum(r.kept for r in records) == found[KEPT].sum()

    def test_a_part_in_the_place_of_another_is_noticed(self, tmp_path: Path) -> None:
        cache = small_cache(tmp_path / "c", Sampled(5), self.store, RAGGED)
        for path, other in zip(sorted(cache.parts[0].files), sorted(cache.parts[3].files), strict=True):
            place = tmp_path / "c" / path
            good = place.read_bytes()
            place.write_bytes((tmp_path / "c" / other).read_bytes())
            with pytest.raises(CacheCorruptError):
                cache.read_part(0)
                cache.index(0)
                cache.read_feature("block.1", 0)
            place.write_bytes(good)

    def test_every_flipped_byte_is_noticed(self, tmp_path: Path) -> None:
        cache = small_cache(tmp_path / "c", Sampled(4), self.store, RAGGED)
        expected = cache.read_part(1)
        for path in sorted(p for p in cache.parts[1].files if p.startswith("labels")):
            place = tmp_path / "c" / path
            good = place.read_bytes()
            for offset in np.linspace(0, len(good) - 1, 23).astype(int):
                bad = bytearray(good)
                bad[offset] ^= 0x10
                place.write_bytes(bad)
                try:
                    found = cache.read_part(1)
                except CacheCorruptError as error:
                    assert path in str(error)
                else:
                    assert self.store == "parquet"
                    for name, values in expected.items():
                        np.testing.assert_array_equal(found[name], values)
            place.write_bytes(good)

    def test_the_index_of_ragged_entries_needs_their_lengths(self, tmp_path: Path) -> None:
        from dataclasses import replace

        from tests.store.small import writer_of

        writer = writer_of(tmp_path / "c", Sampled(5), self.store, RAGGED, features=False)
        part = RAGGED.parts[0]
        arrays, index = encoded(Sampled(5), part), index_of(part)
        with pytest.raises(ValueError, match="needs the length of each"):
            writer.write_part(part, arrays, replace(index, length=None))
        with pytest.raises(ValueError, match="come to"):
            writer.write_part(part, arrays, replace(index, length=index.length + 1))
        with pytest.raises(ValueError, match="draws_0 should have"):
            writer.write_part(part, {**arrays, "draws_0": arrays["draws_0"][1:]}, index)
