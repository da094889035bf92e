"""Packing against a reference that walks token by token, and the properties that make it a packing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.datasets.tokens.layout import BitWriter, bits, open_array
from pipeline.datasets.tokens.packing import DOCUMENTS, PACKED, Packing, ranges, scored_tokens, sequence_ids, sums_over
from pipeline.errors import DataError

sizes = st.lists(st.integers(1, 30), min_size=1, max_size=12)
lengths = st.integers(1, 20)


def starts_of(held: list[int], first: int) -> np.ndarray:
    return first + np.cumsum([0, *held[:-1]])


def walked(held: list[int], first: int, packing: Packing) -> list[tuple[int, int]]:
    """The same windows, found by walking: a window closes when it is full or its run of tokens ends."""
    total = sum(held)
    runs = [(first, first + total)] if packing.kind == PACKED else []
    if packing.kind == DOCUMENTS:
        for size in held:
            runs.append((first, first + size))
            first += size
    found = []
    for start, stop in runs:
        here = []
        while start + 1 < stop:
            end = start + 1
            while end < stop and end - start < packing.length + 1:
                end += 1
            here.append((start, end))
            start = end - 1
        found += here[:1] if packing.truncate else here
    return found


@given(sizes, lengths, st.integers(0, 50), st.sampled_from([(PACKED, False), (DOCUMENTS, False), (DOCUMENTS, True)]))
def test_windows_are_those_found_by_walking(held: list[int], length: int, first: int, kind: tuple[str, bool]) -> None:
    packing = Packing(kind[0], length, truncate=kind[1])
    found = ranges(starts_of(held, first), first + sum(held), packing)
    assert [tuple(pair) for pair in found.tolist()] == walked(held, first, packing)


@given(sizes, lengths, st.integers(0, 50))
def test_packed_every_token_but_the_first_is_a_target_once(held: list[int], length: int, first: int) -> None:
    stop = first + sum(held)
    targets = np.zeros(stop, int)
    for start, end in ranges(starts_of(held, first), stop, Packing(length=length)).tolist():
        targets[start + 1 : end] += 1
    assert targets[first + 1 :].tolist() == [1] * (stop - first - 1) and not targets[: first + 1].any()


@given(sizes, lengths)
def test_documents_no_window_crosses_and_all_but_first_tokens_are_targets_once(held: list[int], length: int) -> None:
    starts = starts_of(held, 0)
    targets = np.zeros(sum(held), int)
    for start, end in ranges(starts, sum(held), Packing(DOCUMENTS, length)).tolist():
        document = np.searchsorted(starts, start, side="right") - 1
        assert end <= starts[document] + held[document]
        targets[start + 1 : end] += 1
    expected = np.ones(sum(held), int)
    expected[starts] = 0
    assert targets.tolist() == expected.tolist()


def test_no_documents_no_windows() -> None:
    assert ranges(np.zeros(0, np.int64), 0, Packing()).shape == (0, 2)


@pytest.mark.parametrize(
    ("prompt", "size", "packing", "expected"),
    [
        (0, 4, Packing(), "0111"),
        (0, 4, Packing(score_boundaries=True), "1111"),
        (2, 5, Packing(), "00111"),
        (2, 5, Packing(score_boundaries=True), "00111"),
        (0, 3, Packing(DOCUMENTS), "011"),
        (3, 4, Packing(DOCUMENTS), "0001"),
        (0, 1, Packing(), "0"),
    ],
)
def test_what_is_scored(prompt: int, size: int, packing: Packing, expected: str) -> None:
    found = scored_tokens(prompt, size, packing=packing)
    assert "".join(str(int(bit)) for bit in found) == expected


@given(sizes, lengths, st.integers(1, 40), st.booleans(), st.randoms(use_true_random=False))
def test_sums_do_not_depend_on_how_much_is_read_at_once(
    held: list[int], length: int, chunk: int, documents: bool, draw: object
) -> None:
    values = np.array([draw.randint(0, 9) for _ in range(sum(held))])  # type: ignore[attr-defined]
    packing = Packing(DOCUMENTS if documents else PACKED, length, truncate=documents)
    found = ranges(starts_of(held, 0), sum(held), packing)
    expected = [int(values[start + 1 : stop].sum()) for start, stop in found.tolist()]
    assert sums_over(found, lambda low, high: values[low:high], chunk).tolist() == expected


@given(st.lists(st.lists(st.booleans(), max_size=20), max_size=8), st.data())
def test_bits_come_back(tmp_path_factory: pytest.TempPathFactory, runs: list[list[bool]], data: st.DataObject) -> None:
    path: Path = tmp_path_factory.mktemp("bits") / "scored.npy"
    with BitWriter(path) as writer:
        for run in runs:
            writer.append(np.array(run, bool))
    flat = [bit for run in runs for bit in run]
    packed = open_array(path, np.dtype("u1"), ((len(flat) + 7) // 8,))
    assert np.load(path).tolist() == packed.tolist()
    start = data.draw(st.integers(0, len(flat)))
    stop = data.draw(st.integers(start, len(flat)))
    assert bits(packed, start, stop).astype(bool).tolist() == flat[start:stop]


def test_ids_number_every_window_or_name_the_document() -> None:
    starts = np.array([10, 14])
    assert sequence_ids(PACKED, "train", np.array([10, 18]), starts, ["a", "b"], 4) == [
        "train/00000000",
        "train/00000002",
    ]
    assert sequence_ids(DOCUMENTS, "train", np.array([10, 14, 18, 22]), starts, ["a", "b"], 4) == [
        "a",
        "b",
        "b#1",
        "b#2",
    ]
    assert sequence_ids(DOCUMENTS, "train", np.zeros(0, np.int64), starts, ["a", "b"], 4) == []
    with pytest.raises(DataError, match="before its first document"):
        sequence_ids(PACKED, "test", np.array([3]), starts, ["a", "b"], 4)
