"""Where entries lie."""

from __future__ import annotations

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
