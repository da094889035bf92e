"""Shapes of soft labels are checked where they are made."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import EncodingError, TemperatureError
from pipeline.softlabels import Dense, TopK


def top_two(temperatures: tuple[float, ...] = (1.0, 4.0)) -> TopK:
    logits = np.array([[0.0, -1.0, -3.0]], dtype=np.float32)
    scaled = [logits[0] / t for t in temperatures]
    normaliser = np.array([[np.log(np.exp(s).sum()) for s in scaled]], dtype=np.float32)
    residual = np.array([[s[2] - np.log(np.exp(s).sum()) for s in scaled]], dtype=np.float32)
    return TopK(np.array([[0, 1]]), logits[:, :2], normaliser, residual, temperatures, 3)


def test_top_k_gives_probabilities_that_sum_to_one():
    labels = top_two()
    for temperature in labels.temperatures:
        logprobs, residual = labels.at(temperature)
        assert np.exp(logprobs).sum() + np.exp(residual[0]) == pytest.approx(1, abs=1e-6)


def test_a_temperature_that_was_not_kept_names_those_on_hand():
    with pytest.raises(TemperatureError, match=r"temperature 2 was not kept.*T = 1, 4"):
        top_two().at(2.0)


def test_wrong_shapes_name_the_array():
    with pytest.raises(EncodingError, match=r"logits should have shape \(\*, \*\), found \(3,\)"):
        Dense(np.zeros(3))
    with pytest.raises(EncodingError, match="log_residual should have shape"):
        TopK(np.zeros((2, 1), int), np.zeros((2, 1)), np.zeros((2, 1)), np.zeros((2, 2)), (1.0,), 3)


def test_map_reaches_every_array():
    doubled = top_two().map(lambda a: np.concatenate([a, a]))
    assert len(doubled) == 2
    assert doubled.classes == 3
    assert Dense(np.zeros((2, 3))).map(lambda a: a[:1]).logits.shape == (1, 3)
