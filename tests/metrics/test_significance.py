"""Intervals of shares and McNemar's test against binomials summed in whole numbers."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import metrics
from pipeline.errors import DataError

Z = 1.959963984540054
COUNTS = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def end(share: float, n: int, inside: float, outside: float) -> float:
    """Where the score test of a share begins to reject, by bisection between a p that it accepts and one beyond."""
    for _ in range(200):
        middle = (inside + outside) / 2
        accepted = abs(share - middle) <= Z * math.sqrt(middle * (1 - middle) / n)
        inside, outside = (middle, outside) if accepted else (inside, middle)
    return inside


@given(COUNTS)
def test_wilson_holds_the_shares_that_a_score_test_accepts(counts: tuple[int, int]) -> None:
    successes, n = counts
    low, high = metrics.wilson(successes, n)
    assert low == pytest.approx(end(successes / n, n, successes / n, 0.0), abs=1e-12)
    assert high == pytest.approx(end(successes / n, n, successes / n, 1.0), abs=1e-12)
    assert 0 <= low <= successes / n <= high <= 1 and low < high


@given(COUNTS)
def test_wilson_of_failures_is_that_of_successes_from_the_other_end(counts: tuple[int, int]) -> None:
    successes, n = counts
    low, high = metrics.wilson(successes, n)
    assert metrics.wilson(n - successes, n) == (pytest.approx(1 - high, abs=1e-15), pytest.approx(1 - low, abs=1e-15))
    if successes < n:
        assert all(b > a for a, b in zip((low, high), metrics.wilson(successes + 1, n), strict=True))


@pytest.mark.parametrize("n", [1, 3, 50, 10**9])
def test_wilson_is_exact_at_its_ends(n: int) -> None:
    low, high = metrics.wilson(0, n)
    assert low == 0.0 and high == pytest.approx(Z**2 / (n + Z**2))
    assert metrics.wilson(n, n)[1] == 1.0


def test_wilson_of_nothing_is_everything_and_impossible_counts_are_refused() -> None:
    assert metrics.wilson(0, 0) == (0.0, 1.0)
    for successes, n in ((-1, 5), (6, 5), (0, -1)):
        with pytest.raises(ValueError, match=f"found {successes} of {n}"):
            metrics.wilson(successes, n)


def test_wilson_covers_about_as_often_as_it_says() -> None:
    """The exact probability that the interval of 50 examples holds the true share, averaged over shares."""
    shares = np.linspace(0.02, 0.98, 97)
    covered = []
    for p in shares:
        held = [low <= p <= high for low, high in (metrics.wilson(s, 50) for s in range(51))]
        covered.append(sum(math.comb(50, s) * p**s * (1 - p) ** (50 - s) for s in range(51) if held[s]))
    assert 0.945 < np.mean(covered) < 0.96
    assert min(covered) > 0.88


def outcomes(only_first: int, only_second: int, both: int = 0, neither: int = 0) -> tuple[np.ndarray, np.ndarray]:
    first = [True] * only_first + [False] * only_second + [True] * both + [False] * neither
    second = [False] * only_first + [True] * only_second + [True] * both + [False] * neither
    return np.array(first, dtype=bool), np.array(second, dtype=bool)


def two_sided(b: int, c: int) -> Fraction:
    """The probability of all splits of b + c that are no likelier than this one, by a fair coin."""
    n = b + c
    return Fraction(sum(w for i in range(n + 1) if (w := math.comb(n, i)) <= math.comb(n, b)), 2**n)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 30), st.integers(0, 30))
def test_mcnemar_is_the_binomial_test_of_the_pairs_that_differ(b: int, c: int, both: int, neither: int) -> None:
    found = metrics.mcnemar(*outcomes(b, c, both, neither))
    assert (found.only_first, found.only_second) == (b, c)
    assert found.p_value == pytest.approx(float(two_sided(b, c)), rel=1e-14)
    swapped = metrics.mcnemar(*reversed(outcomes(b, c)))
    assert (swapped.only_first, swapped.only_second, swapped.p_value) == (c, b, found.p_value)


@pytest.mark.parametrize("b", [0, 1, 40, 240, 249, 250])
@pytest.mark.parametrize("n", [500, 501, 502, 1200])
def test_mcnemar_of_many_pairs(b: int, n: int) -> None:
    assert metrics.mcnemar(*outcomes(b, n - b)).p_value == pytest.approx(float(two_sided(b, n - b)), rel=1e-10)


def test_mcnemar_of_very_many_pairs() -> None:
    """Four standard deviations off the middle of two million: the normal distribution's tails, and no overflow."""
    n, off = 2_000_000, 4 * math.sqrt(2_000_000) / 2
    found = metrics.mcnemar(*outcomes(int(n / 2 - off), n - int(n / 2 - off))).p_value
    assert found == pytest.approx(math.erfc(4 / math.sqrt(2)), rel=0.01)
    assert metrics.mcnemar(*outcomes(0, 100_000)).p_value == 0.0
    assert metrics.mcnemar(*outcomes(100_000, 99_999)).p_value == 1.0


def test_no_difference_is_no_evidence() -> None:
    assert metrics.mcnemar(*outcomes(0, 0, 10, 3)).p_value == 1.0
    assert metrics.mcnemar(np.zeros(0, bool), np.zeros(0, bool)) == metrics.McNemar(0, 0, 1.0)
    assert metrics.mcnemar(*outcomes(5, 0)).p_value > 0.05 > metrics.mcnemar(*outcomes(6, 0)).p_value


@pytest.mark.parametrize("n", [6, 20, 75])
def test_equal_models_are_told_apart_no_more_often_than_said(n: int) -> None:
    found = [metrics.mcnemar(*outcomes(b, n - b)).p_value for b in range(n + 1)]
    for level in (0.01, 0.05, 0.2):
        assert sum(Fraction(math.comb(n, b), 2**n) for b, p in enumerate(found) if p <= level) <= level


def test_shares_over_seeds_and_other_lengths_are_refused() -> None:
    hits = np.array([True, False, True])
    with pytest.raises(DataError, match="float64"):
        metrics.mcnemar(hits, np.array([1.0, 0.4, 0.6]))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="same order"):
        metrics.mcnemar(hits, hits[:2])
    with pytest.raises(DataError, match="same order"):
        metrics.mcnemar(hits[None], hits[None])
