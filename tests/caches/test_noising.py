"""The arithmetic of noise: normal numbers, the grid, the simplex, and logits that say the same."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.caches.noising import FLOOR, bytes_for, logits_of, normals, onto_simplex, with_noise
from tests.caches.noisy import softmax


def test_the_noise_has_the_size_that_the_account_says() -> None:
    """Before it is put back onto the simplex: what was added is normal with deviation sigma, in every coordinate."""
    probs = np.random.default_rng(0).dirichlet(np.ones(7), size=20_000)
    for sigma in (1e-3, 0.3, 40.0):
        added = (with_noise(probs, sigma, bytes_for(0, None)) - probs) / sigma
        assert added.std(axis=0) == pytest.approx(np.ones(7), rel=0.05)
        assert abs(added.mean()) < 5 / math.sqrt(added.size)
        correlation = np.corrcoef(added.T) - np.eye(7)
        assert np.abs(correlation).max() < 0.05


def test_the_normal_numbers_are_normal() -> None:
    from scipy import stats

    found = normals(bytes_for(3, 0), 200_001)
    assert found.shape == (200_001,)
    assert stats.kstest(found, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(found[:100_000], found[100_001:])[0, 1]) < 0.02  # cosine and sine of one angle
    tails = np.mean(np.abs(found) > 3)
    assert tails == pytest.approx(math.erfc(3 / math.sqrt(2)), rel=0.2)
    with np.errstate(all="raise"):
        assert np.isfinite(normals(lambda count: bytes(count), 4)).all()
        assert np.isfinite(normals(lambda count: b"\xff" * count, 4)).all()


def test_noisy_values_lie_on_a_grid_that_shows_nothing_of_the_labels() -> None:
    probs = np.random.default_rng(1).dirichlet(np.ones(5), size=100)
    for sigma in (0.3, 1.0, 17.0):
        steps = with_noise(probs, sigma, bytes_for(0, 1)) / (2.0 ** math.floor(math.log2(sigma)) * 2.0**-20)
        np.testing.assert_array_equal(steps, np.rint(steps))


def test_the_projection_is_the_nearest_distribution() -> None:
    random = np.random.default_rng(2)
    values = random.normal(0, 1, size=(40, 5)) * np.array([0.01, 0.3, 1, 10])[:, None].repeat(10, 0).reshape(40, 1)
    found = onto_simplex(values)
    assert (found >= 0).all() and found.sum(1) == pytest.approx(np.ones(40))
    # The condition of Karush, Kuhn and Tucker: no distribution lies beyond the plane through the projection.
    corners = np.eye(5)
    away = np.einsum("nc,nkc->nk", values - found, corners[None] - found[:, None])
    assert (away <= 1e-9).all()
    inside = random.dirichlet(np.ones(5), size=20)
    np.testing.assert_allclose(onto_simplex(inside), inside, atol=1e-12)


def test_what_is_stored_gives_the_noisy_mean_at_the_temperature() -> None:
    probs = onto_simplex(np.random.default_rng(3).normal(0.1, 0.5, size=(50, 10)))
    assert (probs == 0).any()
    for temperature in (0.5, 1.0, 4.0, 100.0):
        found = softmax(logits_of(probs, temperature), temperature)
        np.testing.assert_allclose(found, probs, atol=10 * FLOOR + 1e-6)
        assert found.min() >= 0.9 * FLOOR
