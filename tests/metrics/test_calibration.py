"""Bins of equal width and of equal mass: every example once, whatever the order, and equal confidences together."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import metrics


def test_full_confidence_is_in_the_last_bin() -> None:
    confidence, correct = np.array([1.0, 0.95]), np.array([True, True])
    assert metrics.reliability(confidence, correct, bins=10).counts.tolist() == [0] * 9 + [2]
    assert metrics.adaptive_reliability(np.array([1.0, 0.2, 1.0]), np.ones(3, bool), bins=2).counts.tolist() == [1, 2]


# Many values twice: those from a grid of eleven, others between them.
CONFIDENCE = st.one_of(st.integers(0, 10).map(lambda tenths: tenths / 10), st.floats(0, 1))
EXAMPLES = st.lists(st.tuples(CONFIDENCE, st.booleans()), min_size=1, max_size=60)


def arrays(examples: list[tuple[float, bool]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([v for v, _ in examples]), np.array([c for _, c in examples])


@pytest.mark.parametrize("binned", [metrics.reliability, metrics.adaptive_reliability])
@given(values=EXAMPLES, bins=st.integers(1, 20))
def test_bins_hold_every_example_once_and_their_error_is_a_share(
    binned: Callable[..., metrics.Reliability], values: list[tuple[float, bool]], bins: int
) -> None:
    confidence, correct = arrays(values)
    found = binned(confidence, correct, bins)
    assert found.counts.sum() == len(values)
    assert 0 <= found.ece <= 1
    full = found.counts > 0
    assert np.isclose((found.counts * np.where(full, found.accuracy, 0)).sum(), correct.sum())


@given(EXAMPLES, st.integers(1, 20))
def test_bins_of_equal_mass_are_cut_by_place_in_order(values: list[tuple[float, bool]], bins: int) -> None:
    found = metrics.adaptive_reliability(*arrays(values), bins)
    held: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for value, correct in values:
        share = Fraction(sum(other <= value for other, _ in values), len(values))
        held[math.ceil(share * bins) - 1].append((value, correct))
    assert found.counts.tolist() == [len(each) for each in held]
    expected = sum(abs(sum(c for _, c in each) - math.fsum(v for v, _ in each)) for each in held) / len(values)
    assert found.ece == pytest.approx(expected, abs=1e-12)


@given(EXAMPLES, st.integers(1, 20), st.randoms(use_true_random=False))
def test_the_order_of_examples_decides_nothing(values: list[tuple[float, bool]], bins: int, random: object) -> None:
    found = metrics.adaptive_reliability(*arrays(values), bins)
    random.shuffle(values)  # type: ignore[attr-defined]
    other = metrics.adaptive_reliability(*arrays(values), bins)
    assert np.array_equal(found.counts, other.counts)
    assert np.allclose(found.accuracy, other.accuracy, equal_nan=True, atol=1e-12)
    assert found.ece == pytest.approx(other.ece, abs=1e-12)


@given(st.sets(st.integers(0, 1000), min_size=1, max_size=60), st.integers(1, 20))
def test_bins_of_equal_mass_differ_by_one_example_at_most(values: set[int], bins: int) -> None:
    confidence = np.array(sorted(values)) / 1000
    counts = metrics.adaptive_reliability(confidence, np.zeros(len(values), bool), bins).counts
    assert counts.max() - counts.min() <= 1 and counts[-1] >= 1
    # Only the order counts, so any rising function of confidence leaves the bins as they are.
    assert np.array_equal(metrics.adaptive_reliability(confidence**3, np.zeros(len(values), bool), bins).counts, counts)


def test_crowded_confidences_fill_bins_of_equal_mass_and_few_of_equal_width() -> None:
    """What equal mass is for: all are nearly sure, and one wide bin averages over- and underconfidence."""
    confidence = np.linspace(0.94, 0.999, 150)
    correct = np.arange(150) >= 75
    assert (metrics.reliability(confidence, correct).counts > 0).sum() == 1
    assert metrics.adaptive_reliability(confidence, correct).counts.tolist() == [10] * 15
    assert metrics.adaptive_reliability(confidence, correct).ece > metrics.reliability(confidence, correct).ece


def test_one_confidence_for_all_is_one_gap() -> None:
    correct = np.arange(30) < 24
    for binned in (metrics.reliability, metrics.adaptive_reliability):
        assert binned(np.full(30, 0.95), correct).ece == pytest.approx(0.15)
        assert (binned(np.full(30, 0.95), correct).counts > 0).sum() == 1


@pytest.mark.parametrize("binned", [metrics.reliability, metrics.adaptive_reliability])
def test_no_examples_have_no_error(binned: Callable[..., metrics.Reliability]) -> None:
    found = binned(np.zeros(0), np.zeros(0, bool), 4)
    assert found.counts.tolist() == [0] * 4 and math.isnan(found.ece)
