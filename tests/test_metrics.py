"""The metrics against definitions written out in plain Python, and against what they must never do."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss

from pipeline import metrics
from pipeline.errors import DataError, TemperatureError
from pipeline.softlabels import Dense, TopK


def random_logits(rows: int, classes: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=3, size=(rows, classes)).astype(np.float32)


def top_k(logits: np.ndarray, k: int, temperature: float) -> TopK:
    """Top-k labels of dense logits, from the definition, in float64."""
    relative = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    ids = np.sort(np.argsort(-relative, axis=1)[:, :k], axis=1)
    scaled = np.exp(relative / temperature)
    dropped = scaled.copy()
    np.put_along_axis(dropped, ids, 0, axis=1)
    total = scaled.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore"):
        residual = np.log(dropped.sum(axis=1, keepdims=True) / total)
    return TopK(
        ids=ids,
        logits=np.take_along_axis(relative, ids, axis=1),
        log_normaliser=np.log(total),
        log_residual=residual,
        temperatures=(temperature,),
        num_classes=logits.shape[1],
    )


def test_doctests() -> None:
    assert doctest.testmod(metrics).failed == 0


def test_nll_is_the_log_loss() -> None:
    logits, labels = random_logits(50, 7, 0), np.random.default_rng(1).integers(0, 7, 50)
    labels[:7] = np.arange(7)
    probabilities = np.exp(metrics.log_softmax(logits))
    assert metrics.score(logits, labels).nll == pytest.approx(log_loss(labels, probabilities), rel=1e-12)


def test_examples_without_a_label_do_not_count() -> None:
    logits = random_logits(6, 3, 0)
    best = logits.argmax(axis=1)
    labels = np.where(np.arange(6) < 4, best, -1)
    labels[0] = (best[0] + 1) % 3
    scores = metrics.score(logits, labels)
    assert scores.accuracy == 0.75
    assert not math.isnan(scores.nll)
    assert metrics.confusion_matrix(scores.predictions, labels, 3).sum() == 4


def test_logits_that_are_not_finite_are_counted_and_refused() -> None:
    logits = random_logits(5, 3, 0)
    logits[2, 1] = np.nan
    with pytest.raises(DataError, match="1 of 5 rows"):
        metrics.score(logits, np.zeros(5, dtype=int))


@given(seed=st.integers(0, 10_000), temperature=st.sampled_from([0.5, 1.0, 4.0]))
def test_divergence_is_never_negative_and_zero_for_the_teacher_itself(seed: int, temperature: float) -> None:
    teacher, student = random_logits(4, 6, seed), random_logits(4, 6, seed + 1)
    assert (metrics.divergence(student, Dense(teacher), temperature) >= 0).all()
    # Logits keep their meaning when a row is shifted.
    assert np.allclose(metrics.divergence(teacher + 3, Dense(teacher), temperature), 0, atol=1e-6)


@given(seed=st.integers(0, 10_000), k=st.integers(1, 6))
def test_top_k_divergence_is_that_of_the_classes_lumped_together(seed: int, k: int) -> None:
    teacher, student = random_logits(5, 6, seed), random_logits(5, 6, seed + 1)
    soft = top_k(teacher, k, 2.0)
    found = metrics.divergence(student, soft, 2.0)
    p, q = np.exp(metrics.log_softmax(teacher, 2.0)), np.exp(metrics.log_softmax(student, 2.0))
    for row, ids in enumerate(soft.ids):
        lumped = [[*x[row, ids], max(0.0, 1 - x[row, ids].sum())] for x in (p, q)]
        expected = sum(a * math.log(a / b) for a, b in zip(*lumped, strict=True) if a > 1e-12)
        assert found[row] == pytest.approx(expected, abs=1e-9)
    assert (found <= metrics.divergence(student, Dense(teacher), 2.0) + 1e-9).all()


def test_top_k_at_a_temperature_that_was_not_kept() -> None:
    with pytest.raises(TemperatureError):
        metrics.divergence(random_logits(2, 4, 1), top_k(random_logits(2, 4, 0), 2, 4.0), 1.0)


def test_predicted_maps_kept_columns_to_classes() -> None:
    logits = random_logits(20, 9, 3)
    assert (metrics.predicted(top_k(logits, 3, 1.0)) == logits.argmax(axis=1)).all()
    assert (metrics.predicted(Dense(logits)) == logits.argmax(axis=1)).all()


def test_full_confidence_is_in_the_last_bin() -> None:
    bins = metrics.reliability(np.array([1.0, 0.95]), np.array([True, True]), bins=10)
    assert bins.counts.tolist() == [0] * 9 + [2]


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60), st.integers(1, 20))
def test_bins_hold_every_example_once_and_their_error_is_a_share(values: list[tuple[float, bool]], bins: int) -> None:
    confidence, correct = np.array([v for v, _ in values]), np.array([c for _, c in values])
    found = metrics.reliability(confidence, correct, bins)
    assert found.counts.sum() == len(values)
    assert 0 <= found.ece <= 1
    full = found.counts > 0
    assert np.isclose((found.counts * np.where(full, found.accuracy, 0)).sum(), correct.sum())


def test_concatenated_scores_are_those_of_the_whole() -> None:
    logits, labels, teacher = random_logits(9, 4, 0), np.arange(9) % 4, random_logits(9, 4, 1)
    whole = metrics.score(logits, labels, Dense(teacher))
    halves = [metrics.score(logits[s], labels[s], Dense(teacher[s])) for s in (slice(0, 5), slice(5, 9))]
    joined = metrics.concatenate(halves)
    assert joined.kl is not None and whole.kl is not None
    assert np.array_equal(joined.kl, whole.kl)
    assert joined.accuracy == whole.accuracy


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
