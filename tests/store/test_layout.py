"""Where entries lie."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.identity import SPLITS
from pipeline.store import Group, Layout
from pipeline.store.shards import CHUNK_BYTES, ShardPlan, _largest_divisor

COUNTS = st.dictionaries(st.sampled_from(SPLITS), st.tuples(st.integers(0, 40), st.integers(0, 4)))


@given(COUNTS, st.integers(1, 50), st.integers(1, 3))
def test_every_entry_lies_in_exactly_one_part_and_no_part_in_two_groups(
    splits: dict[str, tuple[int, int]], part_size: int, length: int
) -> None:
    layout = Layout.of(splits, part_size, length)
    covered = [(p.split, p.view, p.first + i) for p in layout.parts for i in range(p.entries)]
    wanted = [(g.split, g.view, i) for g in layout.groups for i in range(g.entries)]
    assert covered == wanted
    assert layout.entries == len(covered)
    assert all(p.positions == p.entries * length for p in layout.parts)
    assert all(p.first % part_size == 0 for p in layout.parts)


@given(st.integers(1, 30), st.integers(1, 50), st.integers(1, 3))
def test_a_part_never_leaves_its_shard(examples: int, part_size: int, length: int) -> None:
    layout = Layout.of({"train": (examples, 2)}, part_size, length)
    for part in layout.parts:
        assert part.start == part.number * layout.capacity
        assert part.positions <= layout.capacity
    assert layout.rows == len(layout.parts) * layout.capacity


@given(st.integers(1, 10**6))
def test_the_capacity_is_at_most_a_sixteenth_more_than_a_part(part_size: int) -> None:
    capacity = Layout.of({}, part_size).capacity
    assert part_size <= capacity <= part_size * 17 / 16


@given(st.integers(1, 10**5), st.integers(1, 10**6))
def test_chunks_divide_the_shard_and_are_of_the_right_size(part_size: int, row_bytes: int) -> None:
    capacity = Layout.of({}, part_size).capacity
    chunk = _largest_divisor(capacity, max(1, CHUNK_BYTES // row_bytes))
    assert capacity % chunk == 0
    if row_bytes <= CHUNK_BYTES:
        assert chunk * row_bytes <= CHUNK_BYTES
        # More than a quarter of the limit, unless the whole shard is smaller than that.
        assert chunk == capacity or chunk * row_bytes > CHUNK_BYTES / 4 or part_size < 32


def test_a_row_larger_than_a_chunk_is_a_chunk() -> None:
    from pipeline.encodings import ArraySpec

    assert ShardPlan.of(ArraySpec((200_000,), "float32", "none"), 1, 64).chunk == 1


def test_the_order_is_that_of_splits_and_views() -> None:
    layout = Layout.of({"test": (3, 1), "train": (2, 2), "validation": (0, 1)}, 2)
    assert [(g.split, g.view) for g in layout.groups] == [("train", 0), ("train", 1), ("test", 0)]
    assert layout.splits() == {"train": (2, 2), "test": (3, 1)}


@pytest.mark.parametrize(
    ("groups", "part_size"),
    [
        ((), 0),
        ((Group("test", 0, 3), Group("train", 0, 3)), 4),
        ((Group("train", 1, 3),), 4),
        ((Group("dev", 0, 3),), 4),
        ((Group("train", 0, -1),), 4),
    ],
)
def test_a_layout_that_cannot_be_is_refused(groups: tuple[Group, ...], part_size: int) -> None:
    with pytest.raises(ValueError, match=r"should be|fewer than 0"):
        Layout(groups, part_size)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="found dev"):
        Layout.of({"dev": (3, 1)}, 4)


LENGTHS = st.lists(st.integers(1, 9), max_size=30).map(lambda n: np.array(n, np.int64))


@given(st.dictionaries(st.sampled_from(SPLITS), st.tuples(LENGTHS, st.integers(0, 3))), st.integers(1, 12))
def test_ragged_entries_lie_in_parts_as_long_as_they_are(
    splits: dict[str, tuple[np.ndarray, int]], part_size: int
) -> None:
    layout = Layout.ragged(splits, part_size)
    assert layout.splits() == {s: (len(splits[s][0]), splits[s][1]) for s in layout.splits()}
    for part in layout.parts:
        assert part.positions == splits[part.split][0][part.first : part.first + part.entries].sum()
        assert part.start == part.number * layout.capacity and part.positions <= layout.capacity
    assert layout.positions == sum(int(n.sum()) * views for n, views in splits.values())
    alike = len({int(n) for given, views in splits.values() if views for n in given}) < 2
    assert layout.is_ragged != alike
    counted = {s: (len(n), views) for s, (n, views) in splits.items()}
    assert layout.entries == Layout.of(counted, part_size).entries
    if layout.entries:
        assert layout.mean_length == pytest.approx(layout.positions / layout.entries)
    longest = max((part.positions for part in layout.parts), default=1)
    assert not layout.is_ragged or longest <= layout.capacity <= max(longest * 17 / 16, longest)


@pytest.mark.parametrize("counts", [(3, 2), (3, 2, 1, 1), (1, 2, 3, 2), (3, 2, 3, 3), (-3, 2, -3, 2)])
def test_counts_that_cannot_be(counts: tuple[int, ...]) -> None:
    groups = Layout.of({"train": (5, 2)}, 3).groups
    with pytest.raises(ValueError, match=r"counts|positions"):
        Layout(groups, 3, 0, counts)


@pytest.mark.parametrize("lengths", [[1, 0], [3, -1], [2**31, 1], [[1, 2]]])
def test_an_entry_has_a_sensible_number_of_positions(lengths: list) -> None:
    with pytest.raises(ValueError, match="positions"):
        Layout.ragged({"train": (np.array(lengths), 1)}, 4)
