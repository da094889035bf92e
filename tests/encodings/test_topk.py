"""Top-k encodings: what is kept, and the mass of what is not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from pipeline.encodings import Encoding, TopK
from pipeline.errors import EncodingError, TemperatureError
from tests.contracts.encodings import LOGITS, EncodingContract, softmax


class TestTopKFloat32(EncodingContract):
    def make(self, classes: int) -> Encoding:
        return TopK(min(4, classes), "float32", (1.0, 4.0))


class TestTopKFloat16(EncodingContract):
    def make(self, classes: int) -> Encoding:
        return TopK(min(4, classes), "float16", (0.5, 1.0, 20.0))

    def test_a_kept_logit_that_float16_cannot_hold_is_refused_with_its_row(self) -> None:
        logits = np.array([[0.0, -9.0, -9.0], [0.0, -70_000.0, -80_000.0]], np.float32)
        with pytest.raises(EncodingError, match="65,504") as caught:
            TopK(2, "float16").encode(logits)
        assert caught.value.row == 1


class TestAllClassesKept(EncodingContract):
    """k = classes: nothing is dropped."""

    def make(self, classes: int) -> Encoding:
        return TopK(classes, "float32", (1.0, 2.0))

    def test_the_residual_says_that_nothing_was_dropped(self) -> None:
        logits = self.random(5, 10)
        soft = TopK(10).decode(TopK(10).encode(logits), 10)
        assert np.isneginf(soft.log_residual).all()
        np.testing.assert_array_equal(soft.ids, np.tile(np.arange(10), (5, 1)))
        np.testing.assert_allclose(np.exp(soft.at(1.0)[0]), softmax(logits), rtol=1e-5)


@given(LOGITS)
def test_the_kept_are_the_largest_and_of_equal_ones_the_first(logits: np.ndarray) -> None:
    classes = logits.shape[1]
    k = max(1, classes // 2)
    soft = TopK(k).decode(TopK(k).encode(logits), classes)
    expected = np.sort(np.argsort(-logits, axis=1, kind="stable")[:, :k], axis=1)
    np.testing.assert_array_equal(soft.ids, expected)


def test_the_residual_of_a_confident_row_keeps_its_logarithm() -> None:
    """One minus the kept mass would be 0 or negative here."""
    logits = np.array([[200.0, 0.0, -1.0, -1.0]], np.float32)
    soft = TopK(1).decode(TopK(1).encode(logits), 4)
    expected = np.log(1 + 2 * np.exp(-1.0)) - 200.0
    assert soft.log_residual[0, 0] == pytest.approx(expected, rel=1e-6)


def test_residual_and_kept_mass_come_to_one_at_each_declared_temperature() -> None:
    logits = (np.random.default_rng(0).standard_normal((200, 50)) * 6).astype(np.float32)
    encoding = TopK(5, "float32", (8.0, 1.0, 2.0))
    soft = encoding.decode(encoding.encode(logits), 50)
    assert soft.temperatures == (1.0, 2.0, 8.0)
    for temperature in soft.temperatures:
        logprobs, residual = soft.at(temperature)
        np.testing.assert_allclose(np.exp(logprobs).sum(axis=1) + np.exp(residual), 1.0, atol=1e-6)


def test_another_temperature_is_refused_naming_those_on_hand() -> None:
    soft = TopK(1, temperatures=(1, 4)).decode(TopK(1, temperatures=(1, 4)).encode(np.zeros((1, 3), np.float32)), 3)
    with pytest.raises(TemperatureError, match="T = 1, 4"):
        soft.at(2.0)


def test_ids_take_the_smallest_type_that_holds_them() -> None:
    found = [TopK(1).specs(classes)["id_deltas"].dtype for classes in (256, 257, 65_536, 65_537)]
    assert found == ["uint8", "uint16", "uint16", "uint32"]


def test_more_than_the_classes_cannot_be_kept() -> None:
    with pytest.raises(EncodingError, match="at most the number of classes, 3; found 4"):
        TopK(4).encode(np.zeros((2, 3), np.float32))
    with pytest.raises(EncodingError, match="at most the number of classes"):
        TopK(4).specs(3)


@pytest.mark.parametrize("wrong", [{"k": 0}, {"k": 1.5}, {"k": True}, {"dtype": "int8"}])
@pytest.mark.parametrize("temperatures", [(1.0,), (), (0.0,), (-1.0,), (1.0, 1.0), (float("nan"),), ("x",)])
def test_parameters_are_checked(wrong: dict, temperatures: tuple) -> None:
    if temperatures != (1.0,):
        with pytest.raises(EncodingError, match="temperature"):
            TopK(3, temperatures=temperatures)
    with pytest.raises(EncodingError):
        TopK(**{"k": 3, "temperatures": temperatures, **wrong})
