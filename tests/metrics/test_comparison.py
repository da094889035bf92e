"""Differences over seeds and test examples, and what chance alone does."""

from __future__ import annotations

import numpy as np

from pipeline import metrics


def test_a_difference_below_the_spread_is_noise_and_one_above_is_not() -> None:
    noisy = metrics.compare({0: 0.91, 1: 0.95, 2: 0.90}, {0: 0.93, 1: 0.90, 2: 0.92})
    assert noisy.verdict == "within noise"
    clear = metrics.compare({0: 0.95, 1: 0.96, 2: 0.95}, {0: 0.75, 1: 0.76, 2: 0.76})
    assert clear.verdict == "higher"
    assert metrics.compare({0: 0.75, 1: 0.76, 2: 0.76}, {0: 0.95, 1: 0.96, 2: 0.95}).verdict == "lower"


def test_pairing_by_seed_removes_what_seeds_share() -> None:
    """A constant gain on top of a large spread between seeds is seen, because seeds are paired."""
    base = {0: 0.60, 1: 0.80, 2: 0.95}
    better = {seed: value + 0.02 for seed, value in base.items()}
    assert metrics.compare(better, base).verdict == "higher"


def test_no_disagreement_on_few_examples_is_not_certainty() -> None:
    hits = np.ones(50)
    found = metrics.compare({0: 1.0}, {0: 1.0}, hits, hits)
    assert 0 < found.half_width < 0.1
    assert found.verdict == "within noise"
    assert metrics.compare({0: 1.0}, {0: 0.9}).verdict == "within noise", "one seed and no examples tell nothing"


def test_the_paired_interval_covers_as_often_as_it_says() -> None:
    """1,000 test sets of 100 examples: the true difference is inside 95% of the intervals, give or take."""
    random = np.random.default_rng(0)
    first, second = random.random((1000, 100)) < 0.9, random.random((1000, 100)) < 0.85
    inside = 0
    for a, b in zip(first, second, strict=True):
        found = metrics.compare({0: float(a.mean())}, {0: float(b.mean())}, a.astype(float), b.astype(float))
        inside += abs(found.difference - 0.05) <= found.half_width
    assert 930 <= inside <= 985
