"""Top-k encodings: what is kept, and the mass of what is not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from pipeline.encodings import Encoding, TopK
from pipeline.errors import EncodingError, TemperatureError
from pipeline.store.verify import wrong_values
from tests.contracts.encodings import LOGITS, EncodingContract, largest_error, softmax


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


class TestTopKInt8(EncodingContract):
    def make(self, classes: int) -> Encoding:
        return TopK(min(4, classes), "int8", (1.0, 4.0))


class TestTopKInt4(EncodingContract):
    """Of an odd number of classes, so that half a byte is left over."""

    def make(self, classes: int) -> Encoding:
        return TopK(min(5, classes), "int4", (0.5, 1.0, 20.0))


class TestAllClassesInFewBits(EncodingContract):
    def make(self, classes: int) -> Encoding:
        return TopK(classes, "int4")

    def test_the_residual_says_that_nothing_was_dropped(self) -> None:
        logits = self.random(5, 9)
        soft = TopK(9, "int4").decode(TopK(9, "int4").encode(logits), 9)
        assert np.isneginf(soft.log_residual).all()
        np.testing.assert_allclose(np.exp(soft.at(1.0)[0]).sum(axis=1), 1.0, rtol=1e-6)


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


@pytest.mark.parametrize("wrong", [{"k": 0}, {"k": 1.5}, {"k": True}, {"dtype": "int2"}])
@pytest.mark.parametrize("temperatures", [(1.0,), (), (0.0,), (-1.0,), (1.0, 1.0), (float("nan"),), ("x",)])
def test_parameters_are_checked(wrong: dict, temperatures: tuple) -> None:
    if temperatures != (1.0,):
        with pytest.raises(EncodingError, match="temperature"):
            TopK(3, temperatures=temperatures)
    with pytest.raises(EncodingError):
        TopK(**{"k": 3, "temperatures": temperatures, **wrong})


# Logits of few bits.


def few_bits(dtype: str, stored: dict[str, np.ndarray], k: int, at: tuple[float, ...]) -> tuple[np.ndarray, ...]:
    """Ids (N, K), and at each temperature probabilities (N, K) and the residual (N,), as docs/format.md says them."""
    planes = sorted(name for name in stored if name.startswith("id_deltas_"))
    ids = np.cumsum(sum(stored[name].astype(np.int64) * 256**n for n, name in enumerate(planes)), axis=1)
    values = stored["values"].astype(np.int64)
    if dtype == "int4":
        values = np.concatenate([values % 16, values // 16], axis=1)[:, :k]
    logits = -stored["span"].astype(np.float64)[:, None] * (values / (255 if dtype == "int8" else 15)) ** 2
    residual = np.exp(stored["log_residual"].astype(np.float64)).T
    shares = np.stack([softmax(logits, t) for t in at])
    return ids, shares * (1 - residual[:, :, None]), residual


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize(("k", "classes"), [(1, 2), (1, 300), (8, 40), (9, 70_000), (140, 70_000)])
def test_few_bits_decode_to_what_the_format_says(dtype: str, k: int, classes: int) -> None:
    at = (1.0, 3.0)
    logits = (np.random.default_rng(k).standard_normal((6, classes)) * 5).astype(np.float32)
    logits[0, -1] = 40.0
    encoding = TopK(k, dtype, at)
    stored = encoding.encode(logits)
    soft = encoding.decode(stored, classes)
    ids, probabilities, residual = few_bits(dtype, stored, k, at)
    np.testing.assert_array_equal(soft.ids, ids)
    np.testing.assert_array_equal(ids, TopK(k).decode(TopK(k).encode(logits), classes).ids)
    for column, temperature in enumerate(at):
        logprobs, log_residual = soft.at(temperature)
        np.testing.assert_allclose(np.exp(logprobs), probabilities[column], rtol=1e-4, atol=1e-30)
        np.testing.assert_allclose(np.exp(log_residual), residual[column], rtol=1e-4, atol=1e-30)
        np.testing.assert_allclose(np.exp(logprobs).sum(axis=1) + np.exp(log_residual), 1.0, atol=1e-6)


@pytest.mark.parametrize(("dtype", "largest"), [("int8", 0.02), ("int4", 0.3)])
def test_few_bits_bound_is_of_use(dtype: str, largest: float) -> None:
    """A declared bound, and not only a true one: no more than a few times the largest error."""
    logits = (np.random.default_rng(0).standard_normal((500, 400)) * 5).astype(np.float32)
    encoding = TopK(16, dtype, (1.0, 4.0))
    bound = encoding.bound(encoding.encode(logits), 400)
    assert largest_error(encoding, logits) <= bound < min(largest, 4 * largest_error(encoding, logits))


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_few_bits_bound_what_half_precision_does_to_the_residual(dtype: str) -> None:
    """Of one class nothing but its mass is kept."""
    logits = (np.random.default_rng(0).standard_normal((500, 7)) * 3).astype(np.float32)
    encoding = TopK(1, dtype, (1.0, 4.0))
    assert 5e-5 < largest_error(encoding, logits) <= encoding.bound(encoding.encode(logits), 7) < 2e-4


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_few_bits_keep_what_is_far_below_without_losing_the_rest(dtype: str) -> None:
    """One class far down takes no precision from the others, and logits that float16 cannot hold are kept."""
    logits = np.array([[0.0, -0.7, -1.4, -3e38, -3e38], [3e38, 0.0, 0.0, 0.0, -3e38]], np.float32)
    encoding = TopK(4, dtype)
    stored = encoding.encode(logits)
    soft = encoding.decode(stored, 5)
    assert stored["span"].tolist() == [16.0, 16.0]
    assert largest_error(encoding, logits) <= encoding.bound(stored, 5) < 0.2
    assert np.isfinite(soft.log_normaliser).all() and np.isfinite(soft.log_residual).all()


def test_few_bits_tell_a_teacher_that_knows_nothing_from_one_that_dropped_nothing() -> None:
    logits = np.zeros((2, 70_000), np.float32)
    soft = TopK(1, "int4").decode(TopK(1, "int4").encode(logits), 70_000)
    np.testing.assert_allclose(np.exp(soft.at(1.0)[0]), 1 / 70_000, rtol=0.01)
    sure = np.array([[0.0, -200.0, -200.0]], np.float32)
    soft = TopK(1, "int8", (0.001, 1.0)).decode(TopK(1, "int8", (0.001, 1.0)).encode(sure), 3)
    assert soft.log_residual[0, 0] == -65_504.0 and soft.log_residual[0, 1] == pytest.approx(np.log(2) - 200, rel=1e-3)


def test_few_bits_are_bytes_two_to_a_byte() -> None:
    specs = TopK(9, "int4", (1.0, 4.0)).specs(128_256)
    assert {name: (spec.shape, spec.dtype, spec.codec) for name, spec in specs.items()} == {
        **{f"id_deltas_{n}": ((9,), "uint8", "zstd") for n in range(3)},
        "values": ((5,), "uint8", "zstd"),
        "span": ((), "float16", "none"),
        "log_residual": ((2,), "float16", "none"),
    }
    assert TopK(9, "int8").specs(200)["values"].shape == (9,)
    assert [TopK(2, dtype).least_format for dtype in TopK.choices] == [1, 1, 3, 3]


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize(
    ("name", "value"), [("span", np.nan), ("span", np.inf), ("log_residual", 0.5), ("log_residual", np.nan)]
)
def test_few_bits_that_are_damaged_are_no_labels(dtype: str, name: str, value: float) -> None:
    encoding = TopK(5, dtype)
    stored = encoding.encode(np.random.default_rng(0).standard_normal((4, 300)).astype(np.float32))
    assert wrong_values(encoding.decode(stored, 300)) is None
    stored[name][2] = value
    assert "not finite" in str(wrong_values(encoding.decode(stored, 300)))


def test_ids_of_any_bytes_do_not_come_around_to_others() -> None:
    """Sums of so many differences pass 2^31, which narrow arithmetic would take for ids again."""
    encoding = TopK(300, "int8")
    stored = encoding.encode(np.random.default_rng(0).standard_normal((1, 70_000)).astype(np.float32))
    for plane in range(3):
        stored[f"id_deltas_{plane}"][:] = 255
    assert encoding.decode(stored, 70_000).ids[0, -1] == 300 * (2**24 - 1)
