"""What is asked of all soft labels, asked of draws: fidelity, verification, what is said of a cache, recoding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.caches.describing import entropy_and_confidence
from pipeline.caches.origins import top_class
from pipeline.caches.recoding import carried_bound, check_recoding, recode
from pipeline.encodings import Dense, Sampled, TopK, drawing, keys_of, position_keys
from pipeline.errors import ConfigError, EncodingError
from pipeline.fidelity import Fidelity, stored_logprobs, summarise
from pipeline.identity import view_seed
from pipeline.metrics import divergence, predicted
from pipeline.metrics.scores import score
from pipeline.softlabels import Sampled as SampledLabels
from pipeline.store.verify import wrong_draws, wrong_values
from pipeline.verification import differences
from tests.contracts.encodings import softmax

LOGITS = (np.random.default_rng(0).standard_normal((300, 40)) * 2.5).astype(np.float32)
KEYS = position_keys(1, 300)


def labels(encoding: Sampled, logits: np.ndarray = LOGITS) -> SampledLabels:
    return encoding.decode(encoding.encode(logits, KEYS), logits.shape[1])


def test_fidelity_counts_classes_weights_and_squared_errors_instead_of_a_divergence() -> None:
    made = Sampled(temperature=2)
    arrays, p = made.encode(LOGITS, KEYS), softmax(LOGITS, 2.0)
    whole, halves = Fidelity(made, 40), [Fidelity(made, 40), Fidelity(made, 40)]
    whole.compare(LOGITS, arrays)
    for half, rows in zip(halves, (slice(0, 100), slice(100, None)), strict=True):
        half.compare(LOGITS[rows], made.decode(arrays, 40).select(rows))
    found = summarise([("train", whole.totals())])
    parts = summarise([("train", half.totals()) for half in halves])
    assert found["draws"] == pytest.approx(parts["draws"]) and found["kl"] == {}
    assert found["top1_agreement"] == parts["top1_agreement"] > 0.8
    soft = made.decode(arrays, 40)
    wide = np.exp(stored_logprobs(soft, 2.0))
    assert found["draws"]["classes"] == pytest.approx(len(soft.ids) / 300)
    assert found["draws"]["weight"] == pytest.approx(1.0)
    assert found["draws"]["error"] == pytest.approx(((wide - p) ** 2).sum() / 300)


@pytest.mark.parametrize("made", [Sampled(), Sampled(9, 0.7), Sampled(400, scheme="independent"), Sampled(1)])
def test_draws_of_the_teacher_pass_its_verification_and_those_of_another_do_not(made: Sampled) -> None:
    own = differences(LOGITS, labels(made), made)
    assert own.max() < 1e-4
    if made.n > 9:
        assert differences(LOGITS[::-1], labels(made), made).max() > 0.1
    with pytest.raises(ValueError, match="encoding"):
        differences(LOGITS, labels(made))


def test_verification_names_what_is_wrong_with_draws() -> None:
    made = Sampled()
    soft = labels(made)
    assert wrong_values(soft) is None and wrong_draws(soft, made) is None
    swapped = soft.ids.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    negative = soft.weights.copy()
    negative[3] = -0.02
    for wrong, said in (
        (replace(soft, ids=swapped), "do not ascend"),
        (replace(soft, ids=soft.ids + 30), "below 40"),
        (replace(soft, weights=negative), "0 or more"),
        (replace(soft, weights=soft.weights * np.float32(np.nan)), "0 or more"),
    ):
        assert said in str(wrong_values(wrong))
    more = soft.weights.copy()
    more[3] += np.float32(0.02)
    assert "50 draws each" in str(wrong_draws(replace(soft, weights=more), made))
    assert wrong_draws(labels(Sampled(proposal=0.5)), Sampled(proposal=0.5)) is None
    assert wrong_values(soft.select(slice(0, 0))) is None and wrong_draws(soft.select(slice(0, 0)), made) is None


def test_the_class_that_comes_first_is_the_heaviest() -> None:
    soft = labels(Sampled())
    wide = np.exp(stored_logprobs(soft, 1.0))
    np.testing.assert_array_equal(predicted(soft), wide.argmax(axis=1))
    np.testing.assert_array_equal(top_class(soft), wide.argmax(axis=1))
    assert len(predicted(soft.select(slice(0, 0)))) == 0


def test_entropy_and_confidence_are_those_of_the_draws() -> None:
    soft = labels(Sampled())
    wide = np.exp(stored_logprobs(soft, 1.0))
    entropy, confidence = entropy_and_confidence(soft, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = -np.where(wide > 0, wide * np.log(wide), 0.0).sum(axis=1)
    np.testing.assert_allclose(entropy, np.maximum(expected, 0), atol=1e-6)
    np.testing.assert_allclose(confidence, wide.max(axis=1), atol=1e-6)


def test_scores_against_draws_have_no_agreement_and_no_divergence() -> None:
    """The class that was drawn most is not always the teacher's first, and what was not drawn has no logarithm."""
    soft = labels(Sampled())
    with pytest.raises(EncodingError, match="no divergence"):
        divergence(LOGITS, soft)
    scores = score(LOGITS, np.zeros(300, np.int64), soft)
    assert scores.kl is None and scores.agree is None


def test_dense_labels_become_the_draws_that_a_dump_would_make() -> None:
    dense, made = Dense(), Sampled()
    check_recoding(dense, made, 40, "here")
    found = recode(dense.decode(dense.encode(LOGITS), 40), made, 40, KEYS)
    for name, values in made.encode(LOGITS, KEYS).items():
        np.testing.assert_array_equal(found[name], values)
    assert carried_bound(0.3, dense, made, 0.0) == 0.0


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        (TopK(5), Sampled(), "of the others only the sum"),
        (Sampled(), Dense(), "50 draws hit"),
        (Sampled(), TopK(3), "50 draws hit"),
        (Sampled(), Sampled(20), "50 draws hit"),
    ],
)
def test_what_is_not_there_is_refused_by_name(source, target, said) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=said):
        check_recoding(source, target, 40, "here")
    check_recoding(source, source, 40, "here")


def test_keys_are_those_of_example_view_and_position() -> None:
    keys = keys_of(["a", "b", "c"], 2, [3, 0, 4])
    assert keys.shape == (7,) and len(set(keys.tolist())) == 7
    assert keys[3:].tolist() == position_keys(view_seed(0, "c", 2), 4).tolist()
    assert keys[:3].tolist() == keys_of(["a"], 2, [9])[:3].tolist() != keys_of(["a"], 1, [3]).tolist()
    assert keys_of([], 0, []).shape == (0,)
    assert drawing.thresholds(keys, 5, "independent", 0).shape == (7, 5)
