"""Shapes of soft labels are checked where they are made."""

from __future__ import annotations

import numpy as np
import pytest
import torch

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


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_bare_labels_are_the_kept_classes_renormalised(framework: str) -> None:
    random = np.random.default_rng(0)
    whole = random.normal(size=(6, 9)).astype(np.float32) * 5
    whole -= whole.max(axis=1, keepdims=True)
    ids = np.sort(np.argsort(-whole, axis=1)[:, :4], axis=1)
    kept, temperatures = np.take_along_axis(whole, ids, axis=1), (0.5, 4.0)
    masses = [np.exp(whole.astype(np.float64) / t) for t in temperatures]
    normaliser = np.log(np.stack([m.sum(axis=1) for m in masses], axis=1)).astype(np.float32)
    labels = TopK(ids, kept, normaliser, np.zeros((6, 2), np.float32) - 1, temperatures, 9)
    given = labels.map(torch.from_numpy) if framework == "torch" else labels
    found = given.bare()
    assert type(found.log_normaliser) is type(given.log_normaliser) and found.log_normaliser.dtype == given.logits.dtype
    for temperature, mass in zip(temperatures, masses, strict=True):
        chosen = np.take_along_axis(mass, ids, axis=1)
        logprobs, log_residual = found.at(temperature)
        np.testing.assert_allclose(np.exp(np.asarray(logprobs)), chosen / chosen.sum(axis=1, keepdims=True), rtol=2e-6)
        assert np.isneginf(np.asarray(log_residual)).all()
    assert np.array_equal(np.asarray(given.log_normaliser), normaliser), "the labels themselves are as they were"
    again = found.bare()
    assert np.array_equal(np.asarray(again.log_normaliser), np.asarray(found.log_normaliser))


def test_bare_labels_that_dropped_nothing_are_the_same_and_logits_far_below_count_nothing() -> None:
    labels = top_two((1.0, 4.0))
    everything = TopK(np.array([[0, 1, 2]]), np.array([[0.0, -1.0, -3.0]], np.float32), labels.log_normaliser,
                      np.full((1, 2), -np.inf, np.float32), labels.temperatures, 3)  # fmt: skip
    np.testing.assert_allclose(everything.bare().log_normaliser, everything.log_normaliser, rtol=1e-6)
    lowest = np.finfo(np.float32).min
    far = TopK(
        np.array([[0, 1]]), np.array([[0.0, lowest]], np.float32), *[np.zeros((1, 1), np.float32)] * 2, (0.5,), 9
    )
    assert far.bare().log_normaliser.tolist() == [[0.0]]
    assert far.map(torch.from_numpy).bare().log_normaliser.tolist() == [[0.0]]
