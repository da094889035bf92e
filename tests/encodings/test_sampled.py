"""Sampled labels: right on average, the same whenever they are drawn again, and what they are kept as."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.encodings import KEPT, Encoding, Sampled, drawing, position_keys
from pipeline.encodings.encode_torch import encode as encode_torch
from pipeline.encodings.planes import Planes, fill_largest, without_largest
from pipeline.errors import EncodingError, TemperatureError
from pipeline.softlabels import Sampled as SampledLabels
from tests.contracts.encodings import LOGITS, EncodingContract, encoded, softmax

Floats = npt.NDArray[np.float64]


def weights(soft: SampledLabels) -> Floats:
    """(B, C), widened."""
    wide = np.zeros((len(soft), soft.classes))
    np.add.at(wide, (soft.rows, soft.ids), soft.weights.astype(np.float64))
    return wide


def decoded(encoding: Sampled, logits: npt.NDArray[np.floating], first: int = 0) -> SampledLabels:
    return encoding.decode(encoded(encoding, logits, first), logits.shape[1])


class SampledContract(EncodingContract):
    """Where other encodings declare an error, this one gives multiples of 1 / n that come to 1 and miss by chance."""

    encoding = Sampled()

    def make(self, classes: int) -> Encoding:
        return self.encoding

    @given(LOGITS)
    def test_the_declared_bound_holds(self, logits: npt.NDArray[np.float32]) -> None:
        """Draws are of classes that have a probability; the classes of a row ascend; whole draws are kept as such."""
        made = self.encoding
        soft = decoded(made, logits)
        wide, p = weights(soft), softmax(logits, made.temperature)
        assert made.bound(encoded(made, logits), logits.shape[1]) == 0.0
        assert (wide[p < 1e-30] == 0).all() and (soft.weights >= 0).all()
        assert (np.diff(soft.ids)[soft.rows[1:] == soft.rows[:-1]] > 0).all()
        if made.proposal == 1:
            assert (soft.weights > 0).all()
            np.testing.assert_allclose(wide * made.n, np.rint(wide * made.n), atol=1e-3)
            np.testing.assert_array_equal(np.rint(wide * made.n).sum(axis=1), made.n)

    def test_one_row(self) -> None:
        assert len(decoded(self.encoding, self.random(1, 10))) == 1

    def test_one_class(self) -> None:
        soft = decoded(self.encoding, np.array([[3.0], [-1e4]], np.float32))
        assert (soft.ids.tolist(), soft.weights.tolist(), soft.offsets.tolist()) == ([0, 0], [1.0, 1.0], [0, 1, 2])
        assert soft.classes == 1

    def test_ties_stay_ties(self) -> None:
        """On average."""
        wide = weights(decoded(self.encoding, np.full((4_000, 8), 2.5, np.float32)))
        np.testing.assert_allclose(wide.mean(axis=0), 1 / 8, atol=6 * (1 / 8 / self.encoding.n / 4_000) ** 0.5 + 1e-4)

    def test_classes_past_65535(self) -> None:
        logits = np.full((3, 70_001), -40.0, np.float32)
        logits[[0, 1, 2], [70_000, 65_536, 0]] = 40.0
        for soft in (decoded(self.encoding, logits), self.twin_labels(logits)):
            assert soft.ids.tolist() == [70_000, 65_536, 0]
            np.testing.assert_allclose(soft.weights, 1.0, rtol=1e-3)

    def twin_labels(self, logits: npt.NDArray[np.float32]) -> SampledLabels:
        return self.encoding.decode(self.twin(self.encoding, torch.from_numpy(logits)), logits.shape[1])

    def test_a_large_offset_costs_nothing(self) -> None:
        logits = np.round(self.random(4, 10) * 64) / 64
        expected, found = encoded(self.encoding, logits), encoded(self.encoding, logits + np.float32(2**16))
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values)

    def test_a_row_of_many_classes_is_drawn_the_same_whatever_its_neighbours(self) -> None:
        logits = self.random(70, 40_000, 2.0)
        whole, part = decoded(self.encoding, logits), decoded(self.encoding, logits[33:35], 33)
        assert whole.select(slice(33, 35)).ids.tolist() == part.ids.tolist()
        np.testing.assert_array_equal(whole.select(slice(33, 35)).weights, part.weights)

    def test_it_is_right_on_average(self) -> None:
        """Means over rows of the same logits but other keys, within six standard deviations of independent draws.

        Systematic draws of a class spread less than independent ones: n p rounded up or down.
        """
        rows, made = 4_000, self.encoding
        logits = (np.random.default_rng(1).standard_normal(40) * 2).astype(np.float32)
        p, q = (softmax(logits[None], t)[0] for t in (made.temperature, made.temperature / made.proposal))
        for soft in (
            decoded(made, np.tile(logits, (rows, 1))),
            self.twin_labels(np.tile(logits, (rows, 1))),
        ):
            mean = np.bincount(soft.ids, soft.weights, minlength=40) / rows
            spread = (p**2 / q * (1 - q) / made.n / rows) ** 0.5
            assert (np.abs(mean - p) < 6 * spread + 3e-4 * p * (made.proposal != 1) + 1e-6).all()

    def test_the_torch_twin_draws_the_same_of_a_large_vocabulary(self) -> None:
        """But for draws on the border of two classes, where exp rounds otherwise."""
        logits = self.random(40, 50_000, 2.0)
        soft, twin = decoded(self.encoding, logits), self.twin_labels(logits)
        apart = set(zip(soft.rows, soft.ids, strict=True)) ^ set(zip(twin.rows, twin.ids, strict=True))
        assert len(apart) <= 4 + len(soft.ids) // 1000


class TestSystematic(SampledContract):
    pass


class TestIndependent(SampledContract):
    encoding = Sampled(scheme="independent", temperature=2.0)


class TestFlatterProposal(SampledContract):
    encoding = Sampled(20, proposal=0.6)


class TestSharperProposalOfIndependentDraws(SampledContract):
    encoding = Sampled(30, proposal=1.2, temperature=0.7, scheme="independent")


class TestOneDraw(SampledContract):
    encoding = Sampled(1)


class TestManyDraws(SampledContract):
    """More than a byte counts."""

    encoding = Sampled(600)


@pytest.mark.parametrize("scheme", drawing.SCHEMES)
def test_draws_are_those_of_a_plain_inverse_of_the_distribution(scheme: drawing.Scheme) -> None:
    """Against one cumulated sum over all classes in float64, class by class."""
    logits = (np.random.default_rng(3).standard_normal((30, 1_000)) * 3).astype(np.float32)
    made = Sampled(64, scheme=scheme, seed=5)
    keys = position_keys(7, 30)
    wide = weights(decoded(made, logits)) * 64
    places = drawing.thresholds(keys, 64, scheme, 5)
    cumulated = np.cumsum(softmax(logits), axis=1)
    for row in range(30):
        expected = np.diff(np.searchsorted(places[row], cumulated[row] / cumulated[row, -1], side="right"), prepend=0)
        assert np.abs(wide[row] - expected).sum() < 1e-3


def test_systematic_draws_are_the_expected_number_rounded_up_or_down() -> None:
    logits = (np.random.default_rng(4).standard_normal((500, 30)) * 2).astype(np.float32)
    times, expected = weights(decoded(Sampled(), logits)) * 50, softmax(logits) * 50
    assert (np.abs(times - expected) < 1 + 1e-4).all()


def test_systematic_draws_miss_by_less_than_independent_ones() -> None:
    logits = (np.random.default_rng(5).standard_normal((2_000, 60)) * 2).astype(np.float32)
    p = softmax(logits)
    missed = {s: ((weights(decoded(Sampled(scheme=s), logits)) - p) ** 2).sum(axis=1).mean() for s in drawing.SCHEMES}
    independent = ((p * (1 - p)).sum(axis=1) / 50).mean()
    assert missed["independent"] == pytest.approx(independent, rel=0.1)
    assert missed["systematic"] < 0.5 * independent


def test_what_has_next_to_no_probability_is_not_drawn() -> None:
    logits = np.full((200, 300), -200.0, np.float32)
    logits[np.arange(200), np.arange(200)] = 0.0
    for scheme in drawing.SCHEMES:
        soft = decoded(Sampled(scheme=scheme), logits)
        assert soft.ids.tolist() == list(range(200)) and (soft.weights == 1).all()


def test_draws_are_a_function_of_seed_and_key() -> None:
    logits = np.zeros((4, 5_000), np.float32)
    keys = position_keys(7, 4)
    made = Sampled()
    first = made.encode(logits, keys)
    assert all((first[name] == values).all() for name, values in made.encode(logits, keys.copy()).items())
    turned = made.decode(made.encode(logits, keys[::-1]), 5_000)
    assert turned.select(np.array([3, 2, 1, 0])).ids.tolist() == made.decode(first, 5_000).ids.tolist()
    others = [replace(made, seed=1).encode(logits, keys), made.encode(logits, position_keys(8, 4))]
    for other in others:
        assert made.decode(other, 5_000).ids.tolist() != made.decode(first, 5_000).ids.tolist()
    assert made.decode(first, 5_000).select(slice(0, 1)).ids.tolist() != made.decode(first, 5_000).ids[50:100].tolist()


def test_draws_stay_what_they_are() -> None:
    """A cache that is dumped again in a later release holds the same."""
    assert position_keys(7, 2).tolist() == [9672475392221035855, 5573481420429128725]
    places = drawing.thresholds(position_keys(7, 1), 2, "independent", 3)
    assert places[0].tolist() == [
        0.14337333031924715,
        0.4552699249792619,
    ]
    soft = Sampled(4).decode(Sampled(4).encode(np.zeros((1, 1000), np.float32), position_keys(7, 1)), 1000)
    assert soft.ids.tolist() == [112, 362, 612, 862]


@given(st.integers(1, 70), st.integers(0, 2**64 - 1), st.integers(0, 2**62), st.sampled_from(drawing.SCHEMES))
def test_thresholds_ascend_in_a_half_open_range(n: int, key: int, seed: int, scheme: drawing.Scheme) -> None:
    places = drawing.thresholds(np.array([key], np.uint64), n, scheme, seed)
    assert places.shape == (1, n) and (np.diff(places) >= 0).all()
    assert places[0, 0] > 0 and places[0, -1] <= 1


def test_keys_of_a_position_do_not_depend_on_how_many_there_are() -> None:
    assert position_keys(2**64 + 5, 9)[:4].tolist() == position_keys(5, 4).tolist()
    assert position_keys(5, 0).shape == (0,)
    assert len({*position_keys(5, 500).tolist(), *position_keys(6, 500).tolist()}) == 1000


@pytest.mark.parametrize("keys", [None, position_keys(0, 2), position_keys(0, 3)[:, None]])
def test_a_key_is_needed_for_each_row(keys: object) -> None:
    logits = np.zeros((3, 4), np.float32)
    for call in (Sampled().encode, lambda z, k: encode_torch(Sampled(), torch.from_numpy(z), k)):
        with pytest.raises(EncodingError, match="need a key for each"):
            call(logits, keys)  # type: ignore[arg-type]


@given(st.data(), st.integers(1, 200_000), st.integers(1, 3_000))
def test_planes_come_back(data: st.DataObject, classes: int, n: int) -> None:
    drawn = st.lists(st.tuples(st.integers(0, classes - 1), st.integers(0, n // 2)), max_size=20)
    ids, counts = np.array(data.draw(drawn), np.int64).reshape(-1, 2).T
    for layout in (Planes.of(classes, n), Planes.of(classes, 0)):
        stored = layout.split(ids, counts)
        assert len(stored) == layout.number
        found_ids, found_counts = layout.join(stored)
        assert found_ids.tolist() == ids.tolist()
        assert found_counts.tolist() == (counts.tolist() if layout.count_bits else [])


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), max_size=6))
def test_the_largest_count_is_what_the_others_leave(counts: list[list[int]]) -> None:
    n = 60
    whole = [[*each, n - sum(each)] for each in counts]
    flat, kept = (
        np.array([c for each in whole for c in each], np.int64),
        np.array([len(each) for each in whole], np.int64),
    )
    left = without_largest(flat, kept)
    assert (left == 0).sum() == len(whole) and left.max(initial=0) <= n // 2
    fill_largest(left, np.cumsum(kept) - kept, n)
    assert left.tolist() == flat.tolist()


def test_arrays_that_do_not_belong_together_are_refused() -> None:
    stored = encoded(Sampled(), np.zeros((3, 1_000), np.float32))
    for name, wrong in (("draws_0", stored["draws_0"][:-1]), (KEPT, stored[KEPT] * np.array([1, 1, 0], np.uint8))):
        with pytest.raises(EncodingError, match="classes"):
            Sampled().decode({**stored, name: wrong}, 1_000)
    # Bits 4 to 7 of the first plane are the count: without any zeros, nothing is left for the largest.
    with pytest.raises(EncodingError, match="without a count"):
        Sampled().decode({**stored, "draws_0": stored["draws_0"] | np.uint8(16)}, 1_000)


def test_another_temperature_is_refused() -> None:
    with pytest.raises(TemperatureError, match="T = 2"):
        decoded(Sampled(temperature=2), np.zeros((1, 3), np.float32)).at(1.0)


@pytest.mark.parametrize(
    "wrong",
    [{"n": 0}, {"n": 1.5}, {"n": True}, {"n": 70_000}, {"seed": -1}, {"proposal": 0}, {"proposal": float("nan")},
     {"temperature": -1}, {"temperature": float("inf")}, {"temperature": "1"}, {"scheme": "sorted"}],
)  # fmt: skip
def test_parameters_are_checked(wrong: dict) -> None:
    with pytest.raises(EncodingError, match=next(iter(wrong))):
        Sampled(**wrong)
