"""Means over tokens whose sequences are what is drawn at random: intervals that do not shrink with more of the same."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline import metrics
from pipeline.metrics.comparison import half_width_of_ratio, student_t95


def tokens(sequences: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Values of tokens of sequences of uneven length, alike within each."""
    random = np.random.default_rng(seed)
    lengths = random.integers(2, 30, sequences)
    groups = np.repeat(random.permutation(sequences), lengths)
    return random.normal(size=sequences)[groups] + 0.1 * random.normal(size=len(groups)), groups


def test_sums_are_in_order_of_the_first_place() -> None:
    groups = np.array([5, 5, 2, 9, 2])
    assert metrics.by_group(np.array([1, 2, 3, 4, 5]), groups).tolist() == [3.0, 8.0, 4.0]


def test_the_interval_is_the_variance_of_a_ratio_by_hand() -> None:
    values, groups = tokens(12, 0)
    mean, half = metrics.clustered(values, groups)
    assert mean == pytest.approx(sum(values.tolist()) / len(values), rel=1e-12)
    residuals = [sum(v - mean for v, g in zip(values, groups, strict=True) if g == one) for one in range(12)]
    variance = 12 / 11 * sum(r * r for r in residuals) / len(values) ** 2
    assert half == pytest.approx(student_t95(11) * math.sqrt(variance), rel=1e-12)
    assert math.isnan(metrics.clustered(values, np.zeros(len(values), int))[1])


def test_tokens_each_in_a_sequence_of_its_own_give_the_usual_interval() -> None:
    values = np.random.default_rng(1).normal(size=40)
    _, half = metrics.clustered(values, np.arange(40))
    assert half == pytest.approx(student_t95(39) * values.std(ddof=1) / math.sqrt(40), rel=1e-12)


def test_the_same_tokens_over_and_over_say_no_more() -> None:
    values, groups = tokens(20, 2)
    once, often = metrics.clustered(values, groups), metrics.clustered(np.repeat(values, 7), np.repeat(groups, 7))
    assert often == pytest.approx(once, rel=1e-12)
    naive = metrics.clustered(np.repeat(values, 7), np.arange(7 * len(values)))[1]
    assert naive < once[1] / 3, "as independent tokens the interval would be far too narrow"


def test_the_interval_holds_the_mean_as_often_as_it_says() -> None:
    hits = 0
    for seed in range(300):
        values, groups = tokens(25, seed + 100)
        mean, half = metrics.clustered(values, groups)
        hits += abs(mean) <= half
    assert 0.90 <= hits / 300 <= 0.985


def test_signs_of_few_sequences_as_all_of_them_give() -> None:
    gaps = np.array([3.0, 1.0, 2.0, -0.5, 1.5])
    signs = np.array([[1 if n >> k & 1 else -1 for k in range(5)] for n in range(32)])
    exact = float((np.abs(signs @ gaps) >= abs(gaps.sum()) - 1e-9).mean())
    assert metrics.sign_flips(gaps) == pytest.approx(exact, abs=0.015)
    assert metrics.sign_flips(gaps) == metrics.sign_flips(-gaps) == metrics.sign_flips(gaps)
    assert metrics.sign_flips(np.ones(40)) == 1 / 10_000, "never 0"


def test_signs_of_nothing_to_tell_are_even() -> None:
    values = [metrics.sign_flips(np.random.default_rng(seed).normal(size=15), flips=199) for seed in range(200)]
    assert np.mean(np.array(values) <= 0.05) <= 0.1


def test_two_results_on_the_same_sequences() -> None:
    first, groups = tokens(15, 3)
    second, _ = tokens(15, 4)
    second = np.resize(second, len(first))
    sums = [metrics.by_group(each, groups) for each in (first, second)]
    sizes = metrics.by_group(np.ones(len(groups)), groups)
    found = metrics.compare({0: first.mean()}, {0: second.mean()}, *sums, sizes)
    assert found.by_examples == pytest.approx(metrics.clustered(first - second, groups)[1], rel=1e-12)
    assert found.by_examples == half_width_of_ratio(sums[0] - sums[1], sizes)
