"""What every encoding keeps. A test class inherits this and says how to make its encoding.

Encodings that draw do not lose a bounded amount, but an amount that is nothing on average: ``tests/encodings/
test_sampled.py`` says what holds instead where that is asked here.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from pipeline import encodings
from pipeline.encodings import KEPT, Encoding, position_keys
from pipeline.encodings.encode_torch import begin
from pipeline.encodings.encode_torch import encode as encode_torch
from pipeline.errors import EncodingError
from pipeline.softlabels import Dense

Floats = npt.NDArray[np.float64]

# Fractions of a power of two tie often, the wide range reaches the tails; both signs of zero occur.
VALUES = st.one_of(st.integers(-12, 12).map(lambda n: n / 4), st.floats(-200, 200, width=32))
LOGITS = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9), elements=VALUES)


def encoded(encoding: Encoding, logits: npt.NDArray[np.floating], first: int = 0) -> dict[str, npt.NDArray]:
    """The stored arrays of the positions ``first``, ``first`` + 1, ... of an entry, drawn as theirs where it draws."""
    return encoding.encode(logits, position_keys(7, first + len(logits))[first:] if encoding.draws else None)


def softmax(logits: npt.NDArray[np.floating], temperature: float = 1.0) -> Floats:
    """Probabilities (N, C) in float64."""
    scaled = logits.astype(np.float64) / temperature
    exps = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return exps / exps.sum(axis=1, keepdims=True)


def centred(logits: npt.NDArray[np.floating]) -> Floats:
    """Logits less the mean of their row, in float64."""
    wide = logits.astype(np.float64)
    return wide - wide.mean(axis=1, keepdims=True)


def largest_error(encoding: Encoding, logits: npt.NDArray[np.float32]) -> float:
    """The error that ``Encoding.bound`` bounds, against a float64 reference."""
    soft = encoding.decode(encoded(encoding, logits), logits.shape[1])
    if isinstance(soft, Dense):
        return float(np.abs(centred(soft.logits) - centred(logits)).max(initial=0.0))
    worst = 0.0
    for temperature in encoding.temperatures:
        expected = softmax(logits, temperature)
        logprobs, residual = soft.at(temperature)
        kept = np.take_along_axis(expected, soft.ids, axis=1)
        dropped = np.maximum(expected.sum(axis=1) - kept.sum(axis=1), 0.0)
        found = np.abs(np.exp(logprobs.astype(np.float64)) - kept).max(initial=0.0)
        worst = max(worst, float(found), float(np.abs(np.exp(residual.astype(np.float64)) - dropped).max(initial=0.0)))
    return worst


class EncodingContract:
    """Round trip, bounds, edges and refusals. ``make`` gives an encoding that fits ``classes``."""

    def make(self, classes: int) -> Encoding:
        raise NotImplementedError

    def random(self, rows: int, classes: int, scale: float = 4.0) -> npt.NDArray[np.float32]:
        return (np.random.default_rng([rows, classes]).standard_normal((rows, classes)) * scale).astype(np.float32)

    def test_its_description_is_json_that_parse_inverts(self) -> None:
        encoding = self.make(10)
        assert encodings.parse(encoding.describe()) == encoding

    @given(LOGITS)
    def test_the_declared_bound_holds(self, logits: npt.NDArray[np.float32]) -> None:
        encoding = self.make(logits.shape[1])
        assert largest_error(encoding, logits) <= encoding.bound(encoding.encode(logits), logits.shape[1])

    @given(LOGITS, st.integers(0, 8))
    def test_a_row_is_kept_the_same_whatever_its_neighbours(self, logits: npt.NDArray[np.float32], cut: int) -> None:
        encoding = self.make(logits.shape[1])
        whole, first = encoded(encoding, logits), encoded(encoding, logits[:cut])
        rest = encoded(encoding, logits[cut:], min(cut, len(logits)))
        for name, stored in whole.items():
            np.testing.assert_array_equal(stored, np.concatenate([first[name], rest[name]]))

    def test_stored_arrays_are_those_of_the_specs(self) -> None:
        encoding = self.make(10)
        stored, specs = encoded(encoding, self.random(5, 10)), encoding.specs(10)
        lengths = {"position": 5, "kept": int(stored[KEPT].sum()) if KEPT in stored else 0}
        assert {n: (a.shape, str(a.dtype)) for n, a in stored.items()} == {
            n: ((lengths[s.axis], *s.shape), s.dtype) for n, s in specs.items()
        }
        assert encoding.draws or any(np.dtype(s.dtype).kind == "f" and s.codec == "none" for s in specs.values())

    def test_no_rows(self) -> None:
        encoding = self.make(10)
        stored = encoded(encoding, np.empty((0, 10), np.float32))
        assert {len(rows) for rows in stored.values()} == {0}
        assert len(encoding.decode(stored, 10)) == 0
        assert encoding.bound(stored, 10) < 1e-4

    def test_one_row(self) -> None:
        logits = self.random(1, 10)
        assert largest_error(self.make(10), logits) < 0.2

    def test_one_class(self) -> None:
        encoding = self.make(1)
        logits = np.array([[3.0], [-1e4]], np.float32)
        assert largest_error(encoding, logits) < 1e-6
        assert encoding.decode(encoding.encode(logits), 1).classes == 1

    def test_ties_stay_ties(self) -> None:
        encoding = self.make(8)
        stored = encoding.decode(encoding.encode(np.full((3, 8), 2.5, np.float32)), 8).logits
        assert stored.shape[0] == 3
        assert (stored == stored[:, :1]).all()

    def test_classes_past_65535(self) -> None:
        encoding = self.make(70_001)
        logits = np.zeros((2, 70_001), np.float32)
        logits[0, 70_000], logits[1, 65_536] = 9.0, 9.0
        soft = encoding.decode(encoding.encode(logits), 70_001)
        best = soft.logits.argmax(axis=1)
        ids = best if isinstance(soft, Dense) else soft.ids[[0, 1], best]
        assert ids.tolist() == [70_000, 65_536]

    def test_a_large_offset_costs_nothing(self) -> None:
        """Only differences within a row carry meaning, so a constant must not eat the precision."""
        logits = np.round(self.random(4, 10) * 64) / 64
        encoding = self.make(10)
        shifted = logits + np.float32(2**16)
        expected, found = encoding.encode(logits), encoding.encode(shifted)
        assert largest_error(encoding, shifted) <= encoding.bound(expected, logits.shape[1])
        assert largest_error(encoding, shifted) <= encoding.bound(found, shifted.shape[1])

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_a_value_that_is_not_finite_is_refused_with_its_row(self, value: float) -> None:
        logits = self.random(6, 10)
        logits[4, 7] = value
        with pytest.raises(EncodingError, match="row 4, class 7") as caught:
            encoded(self.make(10), logits)
        assert caught.value.row == 4

    @pytest.mark.parametrize("shape", [(3,), (3, 0), (2, 3, 4)])
    def test_another_shape_is_refused(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(EncodingError, match="shape"):
            encoded(self.make(10), np.zeros(shape, np.float32))

    def test_whole_numbers_are_refused(self) -> None:
        with pytest.raises(EncodingError, match="floating"):
            encoded(self.make(3), np.zeros((2, 3), np.int64))

    def test_the_input_is_left_as_it_was(self) -> None:
        logits = self.random(5, 10)
        before = logits.copy()
        encoding = self.make(10)
        encoding.bound(encoded(encoding, logits), logits.shape[1])
        np.testing.assert_array_equal(logits, before)

    # The twin that encodes where the logits are.

    def twin(self, encoding: Encoding, logits: torch.Tensor) -> dict[str, npt.NDArray]:
        return encode_torch(encoding, logits, position_keys(7, len(logits)) if encoding.draws else None)

    def assert_twins(self, encoding: Encoding, logits: npt.NDArray[np.float32]) -> None:
        expected, found = encoded(encoding, logits), self.twin(encoding, torch.from_numpy(logits))
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            assert found[name].dtype == values.dtype and found[name].shape == values.shape
            if name.startswith("log_"):
                last = 1e-6 if values.dtype == np.float32 else 2.0**-10  # of float16 it may be another last bit
                np.testing.assert_allclose(found[name], values, rtol=last, atol=1e-6)
            else:
                np.testing.assert_array_equal(found[name], values)

    @given(LOGITS)
    def test_the_torch_twin_keeps_the_same(self, logits: npt.NDArray[np.float32]) -> None:
        self.assert_twins(self.make(logits.shape[1]), logits)

    @given(LOGITS)
    def test_the_torch_twin_sees_the_largest_or_says_that_it_did_not(self, logits: npt.NDArray[np.float32]) -> None:
        encoding, given_logits = self.make(logits.shape[1]), torch.from_numpy(logits)
        keys = position_keys(7, len(logits)) if encoding.draws else None
        best = begin(encoding, given_logits, keys, lambda: given_logits).best
        assert (best is None) == encoding.describe()["name"].startswith("dense")
        assert best is None or best.tolist() == logits.argmax(axis=1).tolist()

    @pytest.mark.parametrize("scale", [1e-30, 1.0, 100.0])
    def test_the_torch_twin_keeps_the_same_of_many(self, scale: float) -> None:
        self.assert_twins(self.make(300), self.random(64, 300, scale))

    def test_the_torch_twin_widens_half_precision(self) -> None:
        halves = torch.from_numpy(self.random(4, 20)).bfloat16()
        expected = encoded(self.make(20), halves.float().numpy())
        found = self.twin(self.make(20), halves)
        np.testing.assert_array_equal(found[min(expected)], expected[min(expected)])

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
    def test_the_torch_twin_refuses_the_same(self, value: float) -> None:
        logits = self.random(6, 10)
        logits[4, 2] = value
        encoding = self.make(10)
        try:
            encoded(encoding, logits)
        except EncodingError as error:
            with pytest.raises(EncodingError) as found:
                self.twin(encoding, torch.from_numpy(logits))
            assert (found.value.row, str(found.value)) == (error.row, str(error))
        else:
            self.assert_twins(encoding, logits)

    def test_the_torch_twin_takes_no_rows(self) -> None:
        self.assert_twins(self.make(10), np.empty((0, 10), np.float32))
