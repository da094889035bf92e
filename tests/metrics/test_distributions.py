"""Divergences and predictions against definitions written out in plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import metrics
from pipeline.errors import TemperatureError
from pipeline.softlabels import Dense, TopK
from tests.metrics.logits import random_logits


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
