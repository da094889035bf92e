"""Telling two kinds of examples apart, against scikit-learn and sums over pairs; energies against float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from pipeline import metrics
from tests.metrics.logits import random_logits

EXAMPLES = st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=2, max_size=60)
"""Whole scores, so that many are equal."""


@given(EXAMPLES, st.sampled_from([0.05, 0.5, 0.8, 0.95, 1.0]))
def test_the_figures_are_those_of_scikit_learn(examples: list[tuple[int, bool]], tpr: float) -> None:
    scores, positive = np.array([s for s, _ in examples]) / 8, np.array([p for _, p in examples])
    found = (
        metrics.auroc(scores, positive),
        metrics.aupr(scores, positive),
        metrics.fpr_at_tpr(scores, positive, tpr),
    )
    if positive.all() or not positive.any():
        assert found == (None, None, None)
        return
    assert found[0] == pytest.approx(roc_auc_score(positive, scores))
    assert found[1] == pytest.approx(average_precision_score(positive, scores))
    false_alarms, reached, _ = roc_curve(positive, scores, drop_intermediate=False)
    assert found[2] == pytest.approx(false_alarms[reached >= tpr].min())


def test_auroc_counts_pairs() -> None:
    random = np.random.default_rng(0)
    scores, wrong = random.integers(0, 8, 60).astype(float), random.random(60) < 0.3
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[wrong] for b in scores[~wrong]]
    assert metrics.auroc(scores, wrong) == pytest.approx(np.mean(pairs))


def test_no_examples_have_no_figures() -> None:
    none, nothing = np.zeros(0), np.zeros(0, bool)
    assert metrics.auroc(none, nothing) is metrics.aupr(none, nothing) is metrics.fpr_at_tpr(none, nothing) is None
    with pytest.raises(ValueError, match="tpr should be above 0, and 1 at most; found 0"):
        metrics.fpr_at_tpr(none, nothing, 0)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 7.0])
def test_energies_are_sums_of_exponentials(temperature: float) -> None:
    logits = random_logits(20, 7, seed=1)
    expected = -temperature * np.log(np.exp(logits.astype(np.float64) / temperature).sum(axis=1))
    np.testing.assert_allclose(metrics.energy(logits, temperature), expected, rtol=1e-12)
    # A constant in all logits changes no probability, and moves the energy by as much.
    np.testing.assert_allclose(metrics.energy(logits + 3e4, temperature), expected - 3e4, atol=1e-2)


def test_energies_need_a_temperature() -> None:
    with pytest.raises(ValueError, match="temperature should be above 0; found 0"):
        metrics.energy(np.zeros((1, 2)), 0.0)
