"""What is kept of each example against definitions written out in plain Python, ties and missing labels included."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss, top_k_accuracy_score

from pipeline import metrics
from pipeline.errors import DataError
from pipeline.softlabels import Dense
from tests.metrics.logits import random_logits


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
    assert (scores.rank[4:] == -1).all() and np.isnan(scores.brier[4:]).all()
    assert scores.top_k_accuracy(1) == 0.75 and scores.top_k_accuracy(3) == 1
    assert scores.brier_score == pytest.approx(float(np.mean(scores.brier[:4])))
    assert metrics.confusion_matrix(scores.predictions, labels, 3).sum() == 4


def test_logits_that_are_not_finite_are_counted_and_refused() -> None:
    logits = random_logits(5, 3, 0)
    logits[2, 1] = np.nan
    with pytest.raises(DataError, match="1 of 5 rows"):
        metrics.score(logits, np.zeros(5, dtype=int))


def test_gathered_scores_are_those_of_the_whole() -> None:
    logits, labels, teacher = random_logits(9, 4, 0), np.arange(9) % 4, random_logits(9, 4, 1)
    whole, gathered = metrics.score(logits, labels, Dense(teacher)), metrics.Gathered()
    for some in (slice(0, 2), slice(2, 3), slice(3, 8), slice(8, 9)):
        gathered.add(metrics.score(logits[some], labels[some], Dense(teacher[some])))
    joined = gathered.scores
    assert len(gathered) == 9
    for name in metrics.Scores.__dataclass_fields__:
        found, expected = getattr(joined, name), getattr(whole, name)
        assert np.array_equal(found, expected), name
        assert (found is None) == (expected is None) and getattr(found, "dtype", 0) == getattr(expected, "dtype", 0)
    assert joined.accuracy == whole.accuracy
    gathered.add(metrics.score(logits, labels))
    assert gathered.scores.kl is None and len(gathered.scores.rank) == 18


def test_no_label_at_all_leaves_nothing_to_say() -> None:
    scores = metrics.score(random_logits(4, 3, 0), np.full(4, -1))
    assert all(math.isnan(v) for v in (scores.accuracy, scores.nll, scores.brier_score, scores.top_k_accuracy(2)))


# Whole numbers in a narrow range: ties all over, and sums and differences that are exact.
TIED = st.integers(2, 7).flatmap(
    lambda classes: st.lists(
        st.tuples(st.lists(st.integers(-3, 3), min_size=classes, max_size=classes), st.integers(-1, classes - 1)),
        min_size=1,
        max_size=8,
    )
)


def arrays(rows: list[tuple[list[int], int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([z for z, _ in rows], dtype=np.float32), np.array([y for _, y in rows])


@given(TIED)
def test_rank_counts_the_classes_that_are_not_below(rows: list[tuple[list[int], int]]) -> None:
    found = metrics.score(*arrays(rows)).rank
    assert found.tolist() == [-1 if y < 0 else 1 + sum(v >= z[y] for v in z[:y] + z[y + 1 :]) for z, y in rows]


@given(TIED, st.randoms(use_true_random=False))
def test_numbering_classes_otherwise_changes_nothing(rows: list[tuple[list[int], int]], random: object) -> None:
    logits, labels = arrays(rows)
    order = np.array(sorted(range(logits.shape[1]), key=lambda _: random.random()))  # type: ignore[attr-defined]
    there = metrics.score(logits[:, order], np.where(labels < 0, -1, np.argsort(order)[labels]))
    here = metrics.score(logits, labels)
    assert np.array_equal(there.rank, here.rank)
    assert np.allclose(there.brier, here.brier, rtol=0, atol=1e-14, equal_nan=True)


@given(TIED, st.integers(-50, 50))
def test_a_shift_of_all_logits_changes_nothing(rows: list[tuple[list[int], int]], by: int) -> None:
    logits, labels = arrays(rows)
    here, there = metrics.score(logits, labels), metrics.score(logits + by, labels)
    assert np.array_equal(there.rank, here.rank)
    assert np.allclose(there.brier, here.brier, rtol=0, atol=1e-14, equal_nan=True)


@given(TIED)
def test_more_places_never_lose_an_example(rows: list[tuple[list[int], int]]) -> None:
    logits, labels = arrays(rows)
    scores = metrics.score(logits, labels)
    hits = [metrics.top_k_correct(scores.rank, k) for k in range(1, logits.shape[1] + 1)]
    assert all((more >= fewer).all() for fewer, more in itertools.pairwise(hits))
    assert np.array_equal(hits[-1], labels >= 0)
    assert (hits[0] <= scores.correct).all(), "what has rank 1 is predicted"


def test_a_tie_helps_no_class() -> None:
    """Four logits that are alike: top-3 does not hold the classes of the lowest numbers, as a sort would have it."""
    logits = np.zeros((4, 4), dtype=np.float32)
    scores = metrics.score(logits, np.arange(4))
    assert scores.rank.tolist() == [4] * 4
    assert [scores.top_k_accuracy(k) for k in (1, 2, 3, 4)] == [0, 0, 0, 1]
    assert scores.accuracy == 0.25, "a prediction has to be one of them: the first"


def test_the_first_rank_is_what_is_predicted_where_probabilities_are_equal() -> None:
    scores = metrics.score(np.array([[0.0, 1e-20]]), np.array([1]))
    assert scores.confidence[0] == 0.5
    assert scores.rank.tolist() == [1] and scores.correct.tolist() == [True]


def test_places_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="1 or more; found 0"):
        metrics.top_k_correct(np.array([1]), 0)


def test_without_ties_top_k_is_what_others_count() -> None:
    logits, labels = random_logits(60, 7, 5), np.random.default_rng(6).integers(0, 7, 60)
    for k in range(1, 7):
        expected = top_k_accuracy_score(labels, logits, k=k, labels=range(7))
        assert metrics.score(logits, labels).top_k_accuracy(k) == pytest.approx(expected, abs=1e-15)


@given(st.integers(0, 10_000), st.integers(2, 9))
def test_brier_is_its_definition(seed: int, classes: int) -> None:
    logits, labels = random_logits(5, classes, seed), np.random.default_rng(seed).integers(0, classes, 5)
    found = metrics.score(logits, labels).brier
    for row, label, value in zip(logits.astype(float), labels, found, strict=True):
        masses = [math.exp(z - max(row)) for z in row]
        p = [m / math.fsum(masses) for m in masses]
        assert value == pytest.approx(math.fsum((v - (c == label)) ** 2 for c, v in enumerate(p)), abs=1e-14)
        assert 0 <= value <= 2


def test_brier_of_two_classes_is_twice_that_of_one_of_them() -> None:
    logits, labels = random_logits(40, 2, 7), np.arange(40) % 2
    one = brier_score_loss(labels, np.exp(metrics.log_softmax(logits))[:, 1])
    assert metrics.score(logits, labels).brier_score == pytest.approx(2 * one, rel=1e-12)


def test_brier_at_its_ends() -> None:
    logits = np.array([[800.0, 0, 0, 0], [800.0, 0, 0, 0], [1.0, 1, 1, 1]])
    assert metrics.score(logits, np.array([0, 3, 2])).brier.tolist() == [0.0, 2.0, 0.75]


@pytest.mark.parametrize("classes", [4, 400])
def test_what_is_kept_of_an_example_does_not_grow_with_classes(classes: int) -> None:
    scores = metrics.score(random_logits(10, classes, 0), np.zeros(10, dtype=int), Dense(random_logits(10, classes, 1)))
    found = [getattr(scores, name) for name in metrics.Scores.__dataclass_fields__]
    kept = [values for values in found if values is not None]  # what is of tokens alone is not there
    assert all(values.shape == (10,) and values.base is None for values in kept)
    assert sum(values.nbytes for values in kept) == 10 * 53
