"""What a teacher accepts of a student's drafts: exact, in bounds as tight as they can be, and what it saves."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pipeline import metrics
from pipeline.errors import EncodingError, TemperatureError
from pipeline.softlabels import Dense, Sampled, TopK


def rows(n: int, classes: int, seed: int, spread: float = 2.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, classes)) * spread


def probabilities(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    masses = np.exp((logits - logits.max(axis=1, keepdims=True)) / temperature)
    return np.asarray(masses / masses.sum(axis=1, keepdims=True))


def top_k(logits: np.ndarray, k: int, temperature: float = 1.0) -> TopK:
    """The labels of an exact encoder, in float64."""
    ids = np.sort(np.argsort(-logits, axis=1)[:, :k], axis=1)
    relative = logits - logits.max(axis=1, keepdims=True)
    p = probabilities(logits, temperature)
    kept = np.take_along_axis(p, ids, axis=1).sum(axis=1)
    normaliser = np.log(np.exp(relative / temperature).sum(axis=1))
    rest = np.log(np.maximum(1 - kept, 0), out=np.full(len(p), -np.inf), where=kept < 1 - 1e-12)
    return TopK(
        ids, np.take_along_axis(relative, ids, axis=1), normaliser[:, None], rest[:, None], (temperature,),
        logits.shape[1],
    )  # fmt: skip


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_dense_labels_give_it_exactly(temperature: float) -> None:
    student, teacher = rows(7, 5, 0), rows(7, 5, 1)
    lowest, highest = metrics.acceptance(student, Dense(teacher), temperature) or pytest.fail("none")
    p, q = probabilities(teacher, temperature), probabilities(student, temperature)
    expected = [sum(min(a, b) for a, b in zip(x, y, strict=True)) for x, y in zip(p, q, strict=True)]
    np.testing.assert_allclose(lowest, expected, atol=1e-14)
    np.testing.assert_array_equal(lowest, highest)


def test_it_is_one_less_the_total_variation_and_what_drafting_gives() -> None:
    student, teacher = rows(1, 6, 2), rows(1, 6, 3)
    rate = (metrics.acceptance(student, Dense(teacher)) or pytest.fail("none"))[0][0]
    p, q = probabilities(teacher)[0], probabilities(student)[0]
    assert rate == pytest.approx(1 - np.abs(p - q).sum() / 2, abs=1e-14)
    random = np.random.default_rng(0)
    drawn = random.choice(6, size=40_000, p=q)
    accepted = random.random(40_000) < np.minimum(1, p[drawn] / q[drawn])
    assert accepted.mean() == pytest.approx(rate, abs=4 * np.sqrt(rate * (1 - rate) / 40_000))


@pytest.mark.parametrize("seed", range(8))
def test_bounds_of_top_k_are_what_the_best_and_the_worst_split_give(seed: int) -> None:
    student, teacher, k, classes = rows(1, 6, seed, 1.0), rows(1, 6, seed + 50, 1.0), 3, 6
    soft = top_k(teacher, k)
    lowest, highest = (ends[0] for ends in metrics.acceptance(student, soft) or pytest.fail("none"))
    p, q = probabilities(teacher)[0], probabilities(student)[0]
    kept = soft.ids[0].tolist()
    dropped = [c for c in range(classes) if c not in kept]
    ceiling, rest, steps = p[kept].min(), p[dropped].sum(), 60
    known = sum(min(p[c], q[c]) for c in kept)
    found = []
    for first, second in itertools.product(np.linspace(0, rest, steps + 1), repeat=2):
        third = rest - first - second
        if third < -1e-12 or max(first, second, third) > ceiling + 1e-12:
            continue
        found.append(known + sum(min(a, q[c]) for a, c in zip((first, second, third), dropped, strict=True)))
    exact = sum(min(a, b) for a, b in zip(p, q, strict=True))
    assert lowest - 1e-12 <= exact <= highest + 1e-12
    assert lowest - 1e-12 <= min(found) and max(found) <= highest + 1e-12
    # The grid comes as near to the ends as its step allows.
    assert min(found) - lowest <= 2 * rest / steps and highest - max(found) <= 2 * rest / steps


def test_more_classes_kept_never_widen_the_bounds_and_all_of_them_close_them() -> None:
    student, teacher = rows(20, 8, 0), rows(20, 8, 1)
    widths = []
    for k in range(1, 9):
        lowest, highest = metrics.acceptance(student, top_k(teacher, k)) or pytest.fail("none")
        assert (lowest <= highest + 1e-12).all()
        widths.append(highest - lowest)
    assert all((after <= before + 1e-9).all() for before, after in itertools.pairwise(widths))
    np.testing.assert_allclose(widths[-1], 0, atol=1e-12)
    with pytest.raises(TemperatureError, match="temperature 2 was not kept"):
        metrics.acceptance(student, top_k(teacher, 3), 2.0)


def test_draws_tell_the_cross_entropy_and_nothing_else() -> None:
    student, teacher = rows(400, 5, 0), np.repeat(rows(1, 5, 1), 400, axis=0)
    p = probabilities(teacher)
    random = np.random.default_rng(0)
    counts = random.multinomial(30, p[0], size=400)
    offsets = np.concatenate([[0], np.cumsum((counts > 0).sum(axis=1))])
    soft = Sampled(np.nonzero(counts)[1], counts[counts > 0] / 30, offsets, 1.0, 5)
    log_q = metrics.log_softmax(student)
    found = metrics.cross_entropy(log_q, soft)
    by_hand = [-sum(counts[n, c] / 30 * log_q[n, c] for c in range(5)) for n in range(400)]
    np.testing.assert_allclose(found, by_hand, atol=1e-12)
    exact = -(p * log_q).sum(axis=1)
    assert found.mean() == pytest.approx(exact.mean(), abs=4 * (found - exact).std() / 20)
    assert metrics.Told(soft).predicted is None, "agreement with what was drawn most often is biased"
    with pytest.raises(EncodingError, match="no divergence"):
        metrics.divergence(student, soft)
    assert metrics.acceptance(student, soft) is None
    scores = metrics.score(student, np.zeros(400, int), soft, groups_N=np.arange(400))
    assert (scores.agree, scores.kl, scores.accepted_least, scores.accepted_most) == (None, None, None, None)
    np.testing.assert_array_equal(scores.cross_entropy, found)
    with pytest.raises(TemperatureError):
        metrics.cross_entropy(log_q, soft, 2.0)


def test_tokens_of_a_call() -> None:
    for rate in (0.0, 0.3, 0.71, 0.999):
        assert metrics.tokens_per_call(rate, 4) == pytest.approx((1 - rate**5) / (1 - rate), rel=1e-12)
    assert metrics.tokens_per_call(1.0, 4) == 5.0
    # A call of the teacher: accepted drafts until the first that is not, and one token of its own.
    random = np.random.default_rng(0)
    accepted = np.cumprod(random.random((50_000, 4)) < 0.7, axis=1).sum(axis=1) + 1
    assert metrics.tokens_per_call(0.7) == pytest.approx(accepted.mean(), abs=0.03)
