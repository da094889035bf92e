"""The order of an epoch: complete, deterministic, windowed, sharded, resumable."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.sampler import Order, blocks_of


def order_of(examples: int, block: int, **options: int | bool) -> Order:
    rows = np.arange(examples, dtype=np.int64)
    return Order(blocks_of(rows, rows // block), **options)  # type: ignore[arg-type]


@given(
    examples=st.integers(0, 200),
    block=st.integers(1, 50),
    batch_size=st.integers(1, 64),
    window=st.integers(1, 5),
    first=st.integers(0, 5),
    epoch=st.integers(0, 3),
)
def test_every_epoch_visits_every_example_once(
    examples: int, block: int, batch_size: int, window: int, first: int, epoch: int
):
    order = order_of(examples, block, batch_size=batch_size, window=window, first_window=min(first, window))
    batches = list(order.epoch(epoch))
    assert sorted(np.concatenate([*batches, np.empty(0, dtype=np.int64)]).tolist()) == list(range(examples))
    assert len(batches) == order.batches
    assert all(len(b) == batch_size for b in batches[:-1])


@given(start=st.integers(0, 12), world=st.integers(1, 3), first=st.integers(0, 4), epoch=st.sampled_from([0, 5]))
def test_resuming_at_a_batch_gives_the_rest_of_the_epoch(start: int, world: int, first: int, epoch: int):
    for rank in range(world):
        order = order_of(101, 16, batch_size=7, window=4, rank=rank, world=world, first_window=first)
        whole = [b.tolist() for b in order.epoch(epoch)]
        assert [b.tolist() for b in order.epoch(epoch, start=start)] == whole[start:]
        assert len(whole) == order.batches


@pytest.mark.parametrize("epoch", [0, 1])
def test_ranks_share_the_batches_of_one_process(epoch: int):
    single = order_of(100, 16, batch_size=8, window=2, first_window=1)
    ranks = [list(replace(single, rank=r, world=3).epoch(epoch)) for r in range(3)]
    dealt = [ranks[i % 3][i // 3].tolist() for i in range(single.batches)]
    assert dealt == [b.tolist() for b in single.epoch(epoch)]


@pytest.mark.parametrize(
    ("first", "epoch", "sizes"),
    [(1, 0, [1, 2, 4, 5, 5, 3]), (3, 0, [3, 5, 5, 5, 2]), (0, 0, [5, 5, 5, 5]), (1, 1, [5, 5, 5, 5])],
)
def test_windows_of_epoch_0_grow_from_the_first(first: int, epoch: int, sizes: list[int]):
    order = order_of(40, 2, batch_size=4, window=5, first_window=first)
    windows = [numbers.tolist() for numbers, _ in order.windows(epoch)]
    assert [len(numbers) for numbers in windows] == sizes
    alike = [numbers.tolist() for numbers, _ in replace(order, first_window=0).windows(epoch)]
    assert [n for each in windows for n in each] == [n for each in alike for n in each]  # the same order of blocks


def test_rows_of_a_window_come_from_its_blocks_alone():
    order = order_of(64, 8, batch_size=4, window=2, seed=3)
    for numbers, rows in order.windows(0):
        assert {int(r) // 8 for r in rows} == set(numbers.tolist())


def test_epochs_and_seeds_differ_and_repeat():
    order = order_of(64, 8, batch_size=64)
    first = next(order.epoch(0)).tolist()
    assert next(order.epoch(0)).tolist() == first
    assert next(order.epoch(1)).tolist() != first
    assert next(replace(order, seed=1).epoch(0)).tolist() != first


def test_without_shuffling_rows_come_as_they_are():
    order = order_of(20, 6, batch_size=8, shuffle=False)
    assert np.concatenate(list(order.epoch(9))).tolist() == list(range(20))


def test_drop_last_leaves_out_the_short_batch():
    order = order_of(20, 6, batch_size=8, drop_last=True)
    assert [len(b) for b in order.epoch(0)] == [8, 8]
    assert order.batches == 2


def test_wrong_sizes_are_refused():
    with pytest.raises(ConfigError, match="rank 2 of 2"):
        order_of(4, 2, batch_size=1, rank=2, world=2)
    with pytest.raises(ConfigError, match="first window should be 0"):
        order_of(4, 2, batch_size=1, window=2, first_window=3)
