"""Soft labels of one encoding in another, against the labels that the teacher's own logits would have given."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.caches.recoding import carried_bound, check_recoding, lost, recode
from pipeline.encodings import Dense, Encoding, TopK
from pipeline.errors import ConfigError, EncodingError
from pipeline.fidelity import stored_logprobs
from pipeline.softlabels import TopK as TopKLabels
from tests.contracts.encodings import centred, softmax

CLASSES = 12


def logits(seed: int = 0, rows: int = 40, scale: float = 4.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((rows, CLASSES)) * scale).astype(np.float32)


@pytest.mark.parametrize(
    "target", [Dense("float16"), Dense("int8"), TopK(5, "float32", (1.0, 3.0)), TopK(2, "float16"), TopK(5, "int4")]
)
def test_exact_labels_become_what_a_dump_would_have_written(target: Encoding) -> None:
    values = logits()
    found = recode(Dense().decode(Dense().encode(values), CLASSES), target, CLASSES)
    for name, rows in target.encode(values).items():
        np.testing.assert_array_equal(found[name], rows)


@given(st.integers(0, 1000), st.integers(1, 8), st.sampled_from([1.0, 2.0, 8.0]), st.sampled_from([0.5, 4.0, 30.0]))
@settings(max_examples=60, deadline=None)
def test_fewer_classes_are_those_that_would_have_been_kept(seed: int, k: int, temperature: float, scale: float) -> None:
    values = logits(seed, scale=scale)
    wide, target = TopK(8, "float32", (1.0, 2.0, 8.0)), TopK(k, "float32", (temperature,))
    found = target.decode(recode(wide.decode(wide.encode(values), CLASSES), target, CLASSES), CLASSES)
    direct = target.decode(target.encode(values), CLASSES)
    np.testing.assert_array_equal(found.ids, direct.ids)
    np.testing.assert_array_equal(found.logits, direct.logits)
    np.testing.assert_array_equal(found.log_normaliser, direct.log_normaliser)
    np.testing.assert_allclose(found.log_residual, direct.log_residual, rtol=1e-5, atol=1e-5)


def test_ties_keep_the_smaller_ids() -> None:
    values = np.zeros((1, CLASSES), np.float32)
    wide, target = TopK(6), TopK(2)
    found = target.decode(recode(wide.decode(wide.encode(values), CLASSES), target, CLASSES), CLASSES)
    assert found.ids.tolist() == [[0, 1]]
    assert np.exp(found.log_residual[0, 0]) == pytest.approx(10 / 12, rel=1e-6)


def test_all_classes_kept_have_no_residual() -> None:
    values = logits()
    whole = TopK(CLASSES)
    found = recode(whole.decode(whole.encode(values), CLASSES), TopK(CLASSES, "float16"), CLASSES)
    assert np.isneginf(found["log_residual"]).all()


@pytest.mark.parametrize("first", [Dense("float16"), Dense("int8")])
@pytest.mark.parametrize(
    "second", [Dense("float16"), Dense("int8"), TopK(4, "float16", (1.0, 4.0)), TopK(5, "int4", (1.0, 4.0))]
)
def test_the_carried_bound_holds_against_the_teacher(first: Encoding, second: Encoding) -> None:
    values = logits(rows=300, scale=6.0)
    once = first.encode(values)
    twice = recode(first.decode(once, CLASSES), second, CLASSES)
    bound = carried_bound(first.bound(once, CLASSES), first, second, second.bound(twice, CLASSES))
    soft = second.decode(twice, CLASSES)
    if isinstance(second, Dense):
        assert np.abs(centred(soft.logits) - centred(values)).max() <= bound
        return
    for temperature in second.temperatures:
        kept = np.take_along_axis(softmax(values, temperature), soft.ids, axis=1)
        assert np.abs(np.exp(soft.at(temperature)[0]) - kept).max() <= bound


@pytest.mark.parametrize("first", [TopK(8, "float16", (1.0, 4.0)), TopK(7, "int8", (1.0, 4.0))])
@pytest.mark.parametrize("second", [TopK(7, "int4", (1.0, 4.0)), TopK(3, "int4", (4.0,)), TopK(3, "float32", (1.0,))])
def test_kept_classes_become_fewer_bits_within_the_carried_bound(first: TopK, second: TopK) -> None:
    """And of few bits floats, which know no better than the few bits did."""
    values = logits(rows=300, scale=6.0)
    once = first.encode(values)
    soft = first.decode(once, CLASSES)
    twice = recode(soft, second, CLASSES)
    bound = carried_bound(first.bound(once, CLASSES), first, second, lost(soft, second, twice, CLASSES))
    assert bound > first.bound(once, CLASSES)
    found = second.decode(twice, CLASSES)
    direct = second.decode(second.encode(values), CLASSES)
    if first.dtype == "float16":
        np.testing.assert_array_equal(found.ids, direct.ids)
    for temperature in second.temperatures:
        kept = np.take_along_axis(softmax(values, temperature), found.ids, axis=1)
        assert np.abs(np.exp(found.at(temperature)[0]) - kept).max() <= bound


def test_labels_that_do_not_come_to_one_are_further_off_in_few_bits() -> None:
    """Imported labels may not: few bits make them, which moves every class by its share of what was too much."""
    ids, zero = np.array([[0, 1]]), np.zeros((1, 1), np.float32)
    soft = TopKLabels(ids, np.zeros((1, 2), np.float32), zero + np.float32(np.log(2)), zero - 4.0, (1.0,), 12)
    target = TopK(2, "int8")
    arrays = recode(soft, target, CLASSES)
    off = np.abs(np.exp(target.decode(arrays, CLASSES).at(1.0)[0]) - 0.5).max()
    assert target.bound(arrays, CLASSES) < off <= lost(soft, target, arrays, CLASSES)


def test_a_recoded_distribution_sums_to_one() -> None:
    wide, target = TopK(8, "float32", (1.0, 4.0)), TopK(3, "float32", (4.0,))
    found = target.decode(recode(wide.decode(wide.encode(logits()), CLASSES), target, CLASSES), CLASSES)
    np.testing.assert_allclose(np.exp(stored_logprobs(found, 4.0)).sum(axis=1), 1.0, atol=1e-6)


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        (TopK(3), Dense(), "cannot become dense"),
        (TopK(3), TopK(4), "keeps 3 classes"),
        (TopK(3, "float32", (1.0, 4.0)), TopK(2, "float32", (2.0,)), "at 2"),
        (Dense(), TopK(13), "at most the number of classes"),
    ],
)
def test_what_is_not_there_is_refused_by_name(source: Encoding, target: Encoding, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_recoding(source, target, CLASSES, "caches/x")


def test_values_that_do_not_fit_name_their_row() -> None:
    values = logits(rows=3)
    values[1, 0] = -1e6
    with pytest.raises(EncodingError) as caught:
        recode(Dense().decode(Dense().encode(values), CLASSES), Dense("float16"), CLASSES)
    assert caught.value.row == 1
