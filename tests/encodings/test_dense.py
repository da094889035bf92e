"""Dense encodings: exact, float16 and int8."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.encodings import Dense, Encoding
from pipeline.errors import EncodingError
from tests.contracts.encodings import EncodingContract, centred, largest_error


class TestFloat32(EncodingContract):
    def make(self, classes: int) -> Encoding:
        return Dense("float32")

    def test_every_bit_comes_back(self) -> None:
        logits = np.array([[1e38, -0.0, 1e-45], [-3.4e38, 7.0, 0.1]], np.float32)
        encoding = Dense()
        stored = encoding.encode(logits)
        assert encoding.decode(stored, 3).logits.tobytes() == logits.tobytes()
        assert encoding.bound(stored, logits.shape[1]) == 0.0


class TestFloat16(EncodingContract):
    def make(self, classes: int) -> Encoding:
        return Dense("float16")

    def test_a_spread_that_float16_cannot_hold_is_refused_with_its_row(self) -> None:
        logits = np.array([[0.0, -65_000.0], [0.0, -66_000.0]], np.float32)
        with pytest.raises(EncodingError, match="65,504") as caught:
            Dense("float16").encode(logits)
        assert caught.value.row == 1

    def test_large_logits_that_lie_close_together_are_kept(self) -> None:
        logits = np.array([[1e6, 1e6 + 1, 1e6 - 4]], np.float32)
        found = Dense("float16").decode(Dense("float16").encode(logits), 3).logits
        np.testing.assert_array_equal(centred(found), centred(logits))

    def test_the_bound_is_no_looser_than_a_rounding_step(self) -> None:
        logits = np.random.default_rng(0).uniform(-15, 0, (50, 40)).astype(np.float32)
        logits[:, 0] = 0.0
        encoding = Dense("float16")
        assert encoding.bound(encoding.encode(logits), logits.shape[1]) <= 2.001 * 2**-8


class TestInt8(EncodingContract):
    def make(self, classes: int) -> Encoding:
        return Dense("int8")

    def test_the_scale_is_the_range_of_the_row(self) -> None:
        logits = np.array([[0.0, 127.0, 254.0], [5.0, 5.0, 5.0]], np.float32)
        stored = Dense("int8").encode(logits)
        assert stored["scale"].tolist() == [1.0, 0.0]
        assert stored["values"].tolist() == [[-127, 0, 127], [0, 0, 0]]

    def test_a_range_beyond_float32_is_refused_with_its_row(self) -> None:
        with pytest.raises(EncodingError, match="span") as caught:
            Dense("int8").encode(np.array([[0.0, 1.0], [3e38, -3e38]], np.float32))
        assert caught.value.row == 1

    @pytest.mark.parametrize("span", [1e-45, 1e-38, 1e-31, 1e-29, 1e-20, 1e20, 3e38])
    def test_the_bound_holds_from_the_smallest_to_the_largest_spans(self, span: float) -> None:
        logits = (np.random.default_rng(0).uniform(0, 1, (20, 30)) * span).astype(np.float32)
        encoding = Dense("int8")
        assert largest_error(encoding, logits) <= encoding.bound(encoding.encode(logits), logits.shape[1])


def test_another_dtype_is_refused_naming_the_choices() -> None:
    with pytest.raises(EncodingError, match="float32, float16, int8; found 'float64'"):
        Dense("float64")
