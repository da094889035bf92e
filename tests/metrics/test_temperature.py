"""The fitted temperature against a search that knows nothing of derivatives, and what it must not depend on."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import metrics
from pipeline.errors import DataError
from pipeline.metrics import temperature as module
from tests.metrics.logits import random_logits

CASES = st.tuples(st.integers(0, 10_000), st.integers(2, 8), st.floats(-1, 2))


def drawn(seed: int, classes: int, log10_temperature: float, rows: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Logits that fit their labels at about the temperature, of which at least one is wrong and most are right."""
    random = np.random.default_rng(seed)
    logits = random.normal(scale=2, size=(rows, classes))
    labels = (logits + random.gumbel(size=logits.shape)).argmax(axis=1)
    labels[0] = logits[0].argmin()
    labels[1:20] = logits[1:20].argmax(axis=1)
    return logits * 10**log10_temperature, labels


def nll(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    """The mean over examples, from the definition."""
    total = []
    for row, label in zip(logits.astype(float), labels, strict=True):
        below = [(z - max(row)) / temperature for z in row]
        total.append(math.log(math.fsum(math.exp(z) for z in below)) - below[label])
    return math.fsum(total) / len(total)


def searched(logits: np.ndarray, labels: np.ndarray) -> float:
    """The best temperature between 1e-4 and 1e4, by golden section over its logarithm."""
    low, high = math.log(1e-4), math.log(1e4)
    part = (math.sqrt(5) - 1) / 2
    for _ in range(55):
        left, right = high - part * (high - low), low + part * (high - low)
        if nll(logits, labels, math.exp(left)) < nll(logits, labels, math.exp(right)):
            high = right
        else:
            low = left
    return math.exp((low + high) / 2)


@pytest.mark.parametrize("seed", range(6))
def test_it_is_the_one_that_a_search_finds(seed: int) -> None:
    logits, labels = drawn(seed, 2 + seed, (seed - 2) / 2, rows=40)
    assert metrics.fit_temperature(logits, labels) == pytest.approx(searched(logits, labels), rel=1e-5)


@given(CASES)
def test_no_temperature_beside_it_is_better(case: tuple[int, int, float]) -> None:
    logits, labels = drawn(*case)
    best = metrics.fit_temperature(logits, labels)
    least = metrics.score(logits / best, labels).nll
    assert least <= metrics.score(logits, labels).nll + 1e-12
    for factor in (0.5, 0.99, 1.01, 2.0):
        assert metrics.score(logits / (best * factor), labels).nll > least
    # The slope itself: the mean logit that is expected is the mean logit of the labels.
    p = np.exp(metrics.log_softmax(logits, best))
    expected, own = (p * logits).sum(axis=1), logits[np.arange(len(labels)), labels]
    assert np.mean(expected - own) == pytest.approx(0, abs=1e-10 * np.abs(logits).max())


@given(CASES, st.floats(-6, 6))
def test_scaled_logits_have_a_scaled_temperature(case: tuple[int, int, float], power: float) -> None:
    logits, labels = drawn(*case)
    scaled = metrics.fit_temperature(logits * 10**power, labels)
    assert scaled == pytest.approx(metrics.fit_temperature(logits, labels) * 10**power, rel=1e-9)
    assert metrics.fit_temperature(logits / scaled * 10**power, labels) == pytest.approx(1, rel=1e-9)


@given(CASES)
def test_what_it_does_not_depend_on(case: tuple[int, int, float]) -> None:
    logits, labels = drawn(*case)
    expected = pytest.approx(metrics.fit_temperature(logits, labels), rel=1e-9)
    random = np.random.default_rng(case[0])
    assert metrics.fit_temperature(logits + random.normal(size=(len(logits), 1)), labels) == expected
    order = random.permutation(logits.shape[1])
    assert metrics.fit_temperature(logits[:, order], np.argsort(order)[labels]) == expected
    rows = random.permutation(np.tile(np.arange(len(logits)), 3))
    assert metrics.fit_temperature(logits[rows], labels[rows]) == expected
    unlabelled = np.concatenate([logits, random.normal(scale=1e3, size=(7, logits.shape[1]))])
    assert metrics.fit_temperature(unlabelled, np.concatenate([labels, np.full(7, -1)])) == expected


def test_the_temperature_of_labels_that_were_drawn_at_it() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(scale=5, size=(20_000, 6))
    labels = (logits / 2.5 + random.gumbel(size=logits.shape)).argmax(axis=1)
    assert metrics.fit_temperature(logits, labels) == pytest.approx(2.5, abs=0.05)


def test_curves_that_are_flat_over_many_orders_of_magnitude() -> None:
    logits = np.array([[9.0, 0.0], [0.0, 1e-6], [0.0, 5.0]])
    best = metrics.fit_temperature(logits, np.array([0, 0, 1]))
    assert best == pytest.approx(searched(logits, np.array([0, 0, 1])), rel=1e-4)
    # Two large logits that are all but balanced, and a small one: near b = 1 / T = 0 the slope is (-1 + 1e12 b) / 6.
    far = np.array([[1e6, 0.0], [0.0, 1e6], [1.0, 0.0]])
    assert metrics.fit_temperature(far, np.array([0, 0, 0])) == pytest.approx(1e12, rel=1e-6)
    # One of a hundred is wrong, by a hair, and the others all but saturated: 99 5 exp(-5 b) = 1e-9 / 2.
    near = np.tile([5.0, 0.0], (100, 1))
    near[0] = [0.0, 1e-9]
    found = metrics.fit_temperature(near, np.zeros(100, dtype=int))
    assert found == pytest.approx(5 / math.log(990 * 1e9), rel=1e-6)


def test_chunks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = drawn(3, 5, 0.5)
    labels[7:12] = -1
    whole = metrics.fit_temperature(logits, labels)
    for elements in (1, 5, 37):
        monkeypatch.setattr(module, "CHUNK", elements)
        assert metrics.fit_temperature(logits, labels) == pytest.approx(whole, rel=1e-12)


def test_logits_on_disk_are_never_in_memory_together(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    logits, labels = random_logits(4000, 500, 0), np.arange(4000) % 500
    logits[np.arange(4000), labels] += 8
    np.save(tmp_path / "logits.npy", logits)
    mapped = np.load(tmp_path / "logits.npy", mmap_mode="r")
    monkeypatch.setattr(module, "CHUNK", 1 << 14)
    tracemalloc.start()
    try:
        found = metrics.fit_temperature(mapped, labels)
        assert tracemalloc.get_traced_memory()[1] < logits.nbytes / 4
    finally:
        tracemalloc.stop()
    monkeypatch.undo()
    assert found == pytest.approx(metrics.fit_temperature(logits, labels), rel=1e-9)


GOOD, LABELS = drawn(0, 4, 0.0)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.where(np.arange(4) == 2, np.nan, GOOD[:5]), LABELS[:5], "5 of 5 rows hold NaN"),
        (np.where(np.arange(240).reshape(60, 4) == 77, np.inf, GOOD), LABELS, "1 of 60 rows hold NaN or infinities"),
        (GOOD, np.full(60, -1), "none of the 60 examples has one"),
        (GOOD[:0], LABELS[:0], "none of the 0 examples"),
        (GOOD, LABELS + 1, "below 4, the number of classes; found 4"),
        (GOOD, LABELS[:59], r"found logits \(60, 4\) and labels \(59,\)"),
        (GOOD[0], LABELS[:4], r"found logits \(4,\)"),
        (GOOD, LABELS.astype(float), "of float64"),
        (GOOD, GOOD.argmax(axis=1), "every label to have the largest logit"),
        (GOOD, GOOD.argmin(axis=1), "none larger"),
        (np.zeros((60, 4)), LABELS, "none larger"),
        (np.ones((60, 1)), np.zeros(60, dtype=int), "none larger"),
        (np.tile([1.0, 0.0], (4, 1)), np.array([0, 1, 0, 1]), "none larger"),
    ],
)
def test_what_has_no_temperature_is_refused(logits: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        metrics.fit_temperature(logits, labels)
