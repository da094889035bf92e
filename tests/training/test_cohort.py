"""Models stacked into one are those models, and the objective that they share is each one's own."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.models import build_model
from pipeline.softlabels import Dense, Opinion, Opinions, TopK
from pipeline.training import Objective, Recipe, TrainConfig, fit, prepare
from pipeline.training.cohort import CPU_OPERATIONS, Cohort, _operations, together
from pipeline.training.hints import Hints
from pipeline.training.members import Members, Team
from pipeline.training.objective import Batch, Output
from pipeline.training.optimisation import make_optimizer
from pipeline.training.shared import Shared

SHAPE = (1, 6, 6)


def models(name: str, count: int = 3, **arguments: Any) -> list[nn.Module]:
    torch.manual_seed(5)
    return [build_model(name, arguments, classes=3, input_shape=SHAPE) for _ in range(count)]


def equal_states(one: nn.Module, other: nn.Module) -> None:
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["mlp-4", "cnn-4"])
def test_a_cohort_is_its_members(name: str) -> None:
    alone = models(name)
    cohort = Cohort(alone)
    assert cohort.count == 3 and {p.shape[0] for p in (*cohort.parameters(), *cohort.buffers())} == {3}
    x = torch.randn(8, *SHAPE)
    for mode in (True, True, False):
        cohort.train(mode)
        expected = torch.stack([model.train(mode)(x) for model in alone])
        torch.testing.assert_close(cohort(x), expected, rtol=1e-5, atol=1e-6)
    for one, other in zip(alone, cohort.members(), strict=True):
        equal_states(one, other)
        assert not other.training and type(other) is type(one)


@pytest.mark.parametrize("name", ["mlp-4", "cnn-4"])
def test_gradients_are_those_of_the_members(name: str) -> None:
    alone = models(name)
    cohort, x = Cohort(alone).train(), torch.randn(8, *SHAPE)
    weights = torch.tensor([1.0, -2.0, 0.5])
    (cohort(x).square().sum(dim=(1, 2)) * weights).sum().backward()
    for number, model in enumerate(alone):
        (weights[number] * model.train()(x).square().sum()).backward()
        for own, stacked in zip(model.parameters(), cohort.parameters(), strict=True):
            assert own.grad is not None and stacked.grad is not None
            torch.testing.assert_close(stacked.grad[number], own.grad, rtol=1e-4, atol=1e-5)


def test_each_member_draws_dropout_of_its_own() -> None:
    (model,) = models("cnn-4", 1, dropout=0.5)
    cohort = Cohort([copy.deepcopy(model) for _ in range(3)])
    x = torch.randn(8, *SHAPE)
    first, second, third = cohort.train()(x)
    assert not torch.equal(first, second) and not torch.equal(second, third)
    first, second, third = cohort.eval()(x)
    assert torch.equal(first, second) and torch.equal(second, third)


def test_biases_of_a_cohort_do_not_decay() -> None:
    recipe = Recipe(weight_decay=0.5)
    found = [make_optimizer(made, recipe).param_groups for made in (models("cnn-4", 1)[0], Cohort(models("cnn-4")))]
    shapes = [[(group["weight_decay"], [p.numel() for p in group["params"]]) for group in groups] for groups in found]
    assert [(decay, [3 * size for size in sizes]) for decay, sizes in shapes[0]] == shapes[1]
    team = make_optimizer(Team(models("cnn-4")), recipe).param_groups
    assert [len(group["params"]) for group in team] == [3 * len(group["params"]) for group in found[0]]


class Choosing(nn.Module):
    """What it does depends on its data."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(36, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x.flatten(1))
        return 2 * y if y.sum() > 0 else y


class Scaled(Choosing):
    """Has a number of its own that is no part of its state; ``only``: in training alone."""

    def __init__(self, scale: float, only: bool = False) -> None:
        super().__init__()
        self.scale, self.only = scale, only

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1)) * (1.0 if self.only and not self.training else self.scale)


class Counting(Scaled):
    """Counts its batches by a number of its own."""

    def __init__(self, scale: float) -> None:
        super().__init__(scale, only=True)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.add_(self.scale)
        return self.head(x.flatten(1))


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ([Choosing(), Choosing()], "data-dependent"),
        ([Scaled(1.0), Scaled(2.0)], "other logits"),
        ([Scaled(1.0, True), Scaled(2.0, True)], "other logits in training"),
        ([Counting(1.0), Counting(2.0)], "running statistics differ"),
        ([*models("mlp-4", 1), *models("mlp-5", 1)], "stack"),
        (models("mlp-4", 1), "one alone"),
        (models("cnn-40", 2), "operations"),
    ],
)
def test_what_cannot_be_stacked_or_would_gain_nothing_is_a_team(made: list[nn.Module], said: str) -> None:
    before = [copy.deepcopy(model.state_dict()) for model in made]
    members, why = together(made, torch.randn(1, *SHAPE))
    assert isinstance(members, Team) and said in why
    for model, state in zip(made, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["mlp-4", "cnn-4"])
def test_small_models_are_stacked_as_they_are(name: str) -> None:
    alone = models(name)
    members, why = together(alone, torch.randn(1, *SHAPE))
    assert isinstance(members, Cohort) and not why and CPU_OPERATIONS > 1000
    for one, other in zip(alone, members.members(), strict=True):
        equal_states(one, other)
    members, why = together(models("cnn-4", dropout=0.3), torch.randn(1, *SHAPE))
    assert isinstance(members, Cohort) and not why


def test_operations_are_those_of_the_layers() -> None:
    """Twice the products of an input and a weight, by hand, for one example."""
    made = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, stride=2), nn.ConvTranspose2d(4, 2, 2), nn.Flatten())
    made.append(nn.Linear(32, 3))
    assert _operations(made, torch.randn(1, *SHAPE)) == 2 * (9 * 4 * 9 + 9 * 4 * 2 * 4 + 96)
    assert _operations(models("mlp-4", 1)[0], torch.randn(1, *SHAPE)) == 2 * (36 * 4 + 4 * 3)


# The objective.

GOALS = (
    Objective(alpha=0.5, beta=0.5, temperature=1.0),
    Objective(alpha=0.9, beta=0.1, temperature=1.0, smoothing=0.1),
    Objective(alpha=1.0, beta=0.0, temperature=4.0),
    Objective(alpha=0.0, beta=1.0),
    Objective(alpha=0.3, beta=2.0, temperature=4.0, loss="reverse-kl"),
    Objective(alpha=0.3, beta=0.7, temperature=4.0, loss="jensen-shannon", parameters=(("weight", 0.3),)),
    Objective(alpha=0.6, beta=0.4, temperature=4.0, loss="jensen-shannon"),
)
DENSE_GOALS = (
    *GOALS,
    Objective(alpha=0.5, beta=0.5, temperature=4.0, standardise=True),
    Objective(alpha=0.5, beta=0.5, temperature=2.0, loss="logit-regression"),
    Objective(alpha=0.7, beta=0.5, temperature=8.0, loss="logit-regression"),
    Objective(alpha=0.5, beta=0.5, temperature=4.0, loss="dist"),
    Objective(alpha=0.9, beta=0.5, temperature=4.0, loss="dist"),
)
ROWS, CLASSES = 7, 5


def dense() -> Dense:
    return Dense(torch.randn(ROWS, CLASSES, dtype=torch.float64))


def topk() -> TopK:
    logits = torch.randn(ROWS, CLASSES, dtype=torch.float64)
    ids = logits.topk(2).indices.sort().values
    shifted = logits - logits.max(dim=1, keepdim=True).values
    temperatures = (1.0, 4.0)
    normaliser = torch.stack([(shifted / t).logsumexp(1) for t in temperatures], 1)
    others = shifted.scatter(1, ids, -torch.inf)
    residual = torch.stack([(others / t).logsumexp(1) for t in temperatures], 1) - normaliser
    return TopK(ids, shifted.gather(1, ids), normaliser, residual, temperatures, CLASSES)


def opinions() -> Opinions:
    part = torch.tensor([4, 0, 2])
    some = Dense(torch.randn(ROWS, 3, dtype=torch.float64))
    weights = torch.tensor([0.5, 0.0, 1.0, 0.5, 0.5, 0.0, 0.5], dtype=torch.float64)
    return Opinions((Opinion(some, part, weights), Opinion(dense(), None, 1 - weights)))


def batch(kind: str) -> tuple[Batch, tuple[Objective, ...]]:
    labels = torch.tensor([0, 1, -1, 2, 4, 3, -1])
    found = Batch(labels, soft=topk() if kind == "top-k" else opinions() if kind == "opinions" else dense())
    has = torch.tensor([True, False, True, True, True, False, True])
    if kind == "missing":
        found = dataclasses.replace(found, has_soft=has)
    elif kind == "none":
        found = dataclasses.replace(found, has_soft=torch.zeros(ROWS, dtype=torch.bool))
    elif kind == "mixed":
        share = torch.linspace(0.1, 0.9, ROWS, dtype=torch.float64)
        found = dataclasses.replace(found, partners=labels.flip(0), share=share)
    elif kind == "labels":
        found = dataclasses.replace(found, soft=None)
    return found, GOALS if kind == "top-k" else DENSE_GOALS


@pytest.mark.parametrize("kind", ["dense", "top-k", "opinions", "missing", "none", "mixed", "labels"])
def test_terms_and_gradients_are_those_of_each_objective(kind: str) -> None:
    torch.manual_seed(0)
    known, goals = batch(kind)
    logits = torch.randn(len(goals), ROWS, CLASSES, dtype=torch.float64, requires_grad=True)
    found = Shared(goals)(Output(logits), known)
    assert found.total.shape == (len(goals),) and found.hints is None
    (gradient,) = torch.autograd.grad((found.total * torch.arange(1, 1 + len(goals))).sum(), logits)
    for number, goal in enumerate(goals):
        own = logits[number].detach().requires_grad_()
        expected = goal(Output(own), known)
        for name in ("total", "hard", "soft"):
            value, there = getattr(expected, name), getattr(found, name)
            there = torch.zeros(()) if there is None else there[number]
            torch.testing.assert_close(there.double(), torch.zeros((), dtype=torch.float64) if value is None else value)
        (alone,) = torch.autograd.grad((number + 1) * expected.total, own)
        torch.testing.assert_close(gradient[number], alone)


def test_what_members_have_in_common_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    true = Objective._rows

    def rows(self: Objective, logits: Tensor, labels: Tensor, soft: Any) -> Tensor:
        calls.append(len(logits))
        return true(self, logits, labels, soft)

    monkeypatch.setattr(Objective, "_rows", rows)
    known, goals = batch("dense")
    Shared(goals)(Output(torch.randn(len(goals), ROWS, CLASSES, dtype=torch.float64)), known)
    # kl at 1, kl at 4, reverse-kl, two of Jensen-Shannon, standardised, two logit regressions as one, dist twice.
    assert sorted(calls) == [ROWS] * 7 + [2 * ROWS] * 2


def test_what_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ConfigError, match="learn no hints"):
        Shared((Objective(), Objective(hints=Hints((("a", "b"),)))))
    with pytest.raises(ConfigError, match="one member or more"):
        Shared(())
    with pytest.raises(ConfigError, match="logits of 1 members were expected, one an objective; found 2"):
        Shared((Objective(),))(Output(torch.randn(2, 4, 3)), Batch(torch.zeros(4, dtype=torch.int64)))


# Fits.


@pytest.mark.parametrize("kind", [Cohort, Team])
@pytest.mark.parametrize("student", ["mlp-4", "cnn-4"])
def test_a_fit_of_members_is_their_fits(config: Callable[..., TrainConfig], kind: type[Members], student: str) -> None:
    options = config(train_views="all", accumulate=2, weight_decay=0.3)
    task = prepare(options).task
    goals = (Objective(alpha=0.5, beta=0.5), Objective(alpha=0.9, beta=0.1, temperature=1.0), Objective(1.0, 0.0, 2.0))
    started = models(student)
    members = kind([copy.deepcopy(model) for model in started])  # type: ignore[call-arg]
    found = fit(members, dataclasses.replace(task, objective=Shared(goals)), options, seed=2)
    for number, (model, goal, trained) in enumerate(zip(started, goals, members.members(), strict=True)):
        expected = fit(model, dataclasses.replace(task, objective=goal), options, seed=2)
        for one, other in zip(expected.history, found.history, strict=True):
            for name, value in one.items():
                there = other[name][number] if isinstance(other[name], list) else other[name]
                np.testing.assert_allclose(there, value, rtol=1e-3, atol=1e-5)
        for name, value in model.state_dict().items():
            torch.testing.assert_close(trained.state_dict()[name], value, rtol=1e-3, atol=1e-4)
