"""Which teacher is believed for each example: the surest, or those who are right, by rules written anew here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.sampler import Order
from pipeline.softlabels import Dense, SoftLabels
from pipeline.sources import Mixture
from pipeline.sources.mixing import MIXES, mixed
from pipeline.training import TrainConfig

Array = npt.NDArray[np.float64]


def softmax(logits: Array, temperature: float = 1.0) -> Array:
    e = np.exp((logits - logits.max(axis=-1, keepdims=True)) / temperature)
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def dense(logits: Array) -> list[Dense]:
    return [Dense(torch.from_numpy(z)) for z in logits]


class ByRow:
    """A source that has the same labels of each dataset row in any batch."""

    def __init__(self, logits: Array) -> None:
        self.logits, self.classes = torch.from_numpy(logits), logits.shape[1]

    def has(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        return np.ones(len(rows), np.bool_)

    def stream(self, order: Order, epoch: int, start: int = 0, view: int = 0) -> ByRow:
        return self

    def next(self, inputs: Any, rows: npt.NDArray[np.int64]) -> SoftLabels:
        return Dense(self.logits[torch.from_numpy(rows)])

    def close(self) -> None:
        pass


@given(seed=st.integers(0, 999), teachers=st.integers(1, 4), scale=st.sampled_from([0.1, 3.0, 60.0]))
def test_the_surest_teacher_answers_for_each_example(seed: int, teachers: int, scale: float) -> None:
    logits = np.random.default_rng(seed).normal(scale=scale, size=(teachers, 7, 5))
    found = mixed(dense(logits), [1 / teachers] * teachers, mix="confident", temperature=None).logits.numpy()
    for row in range(7):
        entropies = []
        for z in logits[:, row]:
            p = softmax(z)
            entropies.append(-sum(x * np.log(x) for x in p if x > 0))
        np.testing.assert_array_equal(found[row], logits[int(np.argmin(entropies)), row])


def test_of_equally_sure_teachers_the_first_answers() -> None:
    one = np.array([[4.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    other = one[:, [1, 0, 2]]  # as sure, of another class
    equal = mixed(dense(np.stack([one, other])), (0.5, 0.5), mix="confident", temperature=None).logits.numpy()
    np.testing.assert_array_equal(equal, one)
    third = mixed(dense(np.stack([one, other, one * 2])), (1 / 3,) * 3, mix="confident", temperature=None)
    np.testing.assert_array_equal(third.logits.numpy()[0], 2 * one[0])


def test_teachers_too_sure_for_float32_are_still_finite() -> None:
    logits = torch.tensor([[[300.0, 0.0]], [[0.0, 2.0]]])
    found = mixed([Dense(z) for z in logits], (0.5, 0.5), mix="confident", temperature=None)
    torch.testing.assert_close(found.logits, logits[0])


@given(
    seed=st.integers(0, 999),
    weights=st.lists(st.floats(0.05, 5), min_size=1, max_size=4),
    temperature=st.sampled_from([0.5, 1.0, 4.0]),
)
def test_those_who_are_right_are_averaged(seed: int, weights: list[float], temperature: float) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(scale=3, size=(len(weights), 9, 3))
    hard = random.integers(-1, 3, size=9)
    total = sum(weights)
    made = mixed(
        dense(logits),
        [w / total for w in weights],
        mix="correct",
        temperature=temperature,
        hard_B=torch.from_numpy(hard),
    )
    found = softmax(made.logits.numpy(), temperature)
    for row, label in enumerate(hard):
        right = [t for t in range(len(weights)) if label >= 0 and logits[t, row].argmax() == label]
        counted = right or list(range(len(weights)))
        share = sum(weights[t] for t in counted)
        expected = sum(weights[t] / share * softmax(logits[t, row], temperature) for t in counted)
        np.testing.assert_allclose(found[row], expected, rtol=1e-9, atol=1e-12)


def test_without_hard_labels_the_right_ones_are_all() -> None:
    logits = dense(np.random.default_rng(0).normal(size=(2, 5, 3)))
    options: dict[str, Any] = {"weights": (0.7, 0.3), "temperature": 2.0}
    plain = mixed(logits, mix="probs", **options).logits
    for hard in (None, torch.full((5,), -1)):
        torch.testing.assert_close(mixed(logits, mix="correct", hard_B=hard, **options).logits, plain)


def test_a_mixture_finds_the_hard_label_of_each_dataset_row() -> None:
    random = np.random.default_rng(1)
    logits, hard = random.normal(scale=3, size=(2, 12, 3)), np.arange(12) % 4 - 1
    labels = Mixture([(ByRow(z), 1.0) for z in logits], temperature=2.0, mix="correct", labels=hard)
    order = Order((np.arange(12),), 5, seed=3)
    stream = labels.stream(order, 0)
    seen = 0
    for rows in order.epoch(0):
        found = stream.next(torch.empty(0), rows).logits
        expected = mixed(
            dense(logits[:, rows]), (0.5, 0.5), mix="correct", temperature=2.0, hard_B=torch.from_numpy(hard[rows])
        )
        torch.testing.assert_close(found, expected.logits, rtol=1e-12, atol=1e-12)
        seen += len(rows)
    assert seen == 12


def test_what_a_rule_cannot_do_is_refused() -> None:
    sources = [(ByRow(np.zeros((2, 3))), weight) for weight in (0.7, 0.3)]
    with pytest.raises(ConfigError, match=r"weights do not count.*0\.7, 0\.3"):
        Mixture(sources, mix="confident")
    with pytest.raises(ConfigError, match="needs the hard labels"):
        Mixture(sources, mix="correct", temperature=1.0)
    with pytest.raises(ConfigError, match="needs the temperature"):
        Mixture(sources, mix="correct", labels=np.zeros(2, np.int64))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"labels": ("a=0.7", "b=0.3"), "mix": "confident"},
            "--mix confident takes .* should be equal; found 0.7, 0.3",
        ),
        ({"labels": ("a",), "mix": "confident"}, "--mix confident is for two or more"),
        ({"cache": "a", "mix": "losses"}, "--mix losses is for two or more"),
        (
            {"labels": ("a", "b"), "mix": "correct", "loss": "logit-regression"},
            "--mix correct averages probabilities at",
        ),
        ({"labels": ("a", "b"), "mix": "correct", "standardise": True}, "--mix correct averages probabilities"),
        ({"labels": ("a", "b"), "mix": "losses", "foreign": "some"}, "--foreign should be one of skip, keep"),
        ({"alpha": 0.0, "foreign": "keep"}, "--foreign is for runs with a --cache"),
    ],
)
def test_each_mistake_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TrainConfig(out=Path("run"), **options)


def test_mistakes_of_a_mixture_are_named_together() -> None:
    with pytest.raises(ConfigError) as raised:
        TrainConfig(
            out=Path("run"), labels=("a", "b"), mix="correct", standardise=True, loss="logit-regression", seeds=0
        )
    assert len(raised.value.problems) == 3


@pytest.mark.parametrize("mix", [*MIXES, "losses"])
def test_losses_and_standardised_logits_go_with_what_a_rule_gives(mix: str) -> None:
    free = mix in ("logits", "confident", "losses")
    for options in ({"standardise": True}, {"loss": "logit-regression"}):
        try:
            TrainConfig(out=Path("run"), labels=("a", "b"), mix=mix, **options)
        except ConfigError:
            assert not free
        else:
            assert free
