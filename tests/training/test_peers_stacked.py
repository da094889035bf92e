"""Peers that are alike are trained as one stack of weights, and come to what they come to one by one."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.errors import ConfigError
from pipeline.models import build_model, evaluating
from pipeline.progress import Silent
from pipeline.training import Objective, TrainConfig, cohort, fit, prepare, run
from pipeline.training import peers as making
from pipeline.training.cohort import Cohort
from pipeline.training.exchange import Exchange
from pipeline.training.fitted import DivergedError
from pipeline.training.members import Members, Team
from pipeline.training.objective import Batch, Output
from pipeline.training.optimisation import make_optimizer
from pipeline.training.peers import Peers, with_peers
from pipeline.training.stage import initial_student
from tests.training.stopping import stopped

Make = Callable[..., TrainConfig]
SHAPE, CLASSES, ROWS = (1, 6, 6), 3, 8
KINDS = {
    "mutual": {"peers": 3},
    "ensemble": {"peers": 3, "exchange": "ensemble"},
    "online": {"peer": ("cnn-4", "cnn-4"), "exchange": "online"},
}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two peers are enough to be stacked."""
    monkeypatch.setattr(making, "FEWEST", 2)


class _Log(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, message: str) -> None:
        self.lines.append(message)


def alike(student: str, count: int = 3) -> list[nn.Module]:
    torch.manual_seed(4)
    return [build_model(student, {}, classes=CLASSES, input_shape=SHAPE).double() for _ in range(count)]


def learner(options: TrainConfig) -> Peers:
    dataset = prepare(options).dataset
    return with_peers(initial_student(options, dataset, 0), options, dataset, 0)


def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model counts as too large to be stacked."""
    monkeypatch.setattr(cohort, "CPU_OPERATIONS", 0)


def steps(peers: Peers, kind: str, options: TrainConfig, count: int) -> None:
    """Optimiser steps on random rows in float64, some of them without a label."""
    random = torch.Generator().manual_seed(1)
    goal = Exchange(Objective(alpha=0.0, beta=0.7, temperature=2.0), kind, 0.5)
    optimizer = make_optimizer(peers.train(), options)
    for _ in range(count):
        x = torch.randn(ROWS, *SHAPE, dtype=torch.float64, generator=random)
        labels = torch.randint(-1, CLASSES, (ROWS,), generator=random)
        (goal(Output(peers(x)), Batch(labels=labels)).total.sum() / ROWS).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("student", ["mlp-4", "cnn-4"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_stacked_peers_take_the_steps_of_peers_one_by_one(kind: str, student: str, optimizer: str) -> None:
    """In float64, with decay of matrices alone, momentum, running statistics and the gate."""
    options = TrainConfig(out=Path("run"), optimizer=optimizer, weight_decay=0.3, lr=0.05)
    ends = []
    for group in (Team(alike(student)), Cohort(alike(student))):
        peers = Peers(group, gated=kind == "ensemble").double()
        steps(peers, kind, options, 12)
        ends.append(peers)
    for number, (one, other) in enumerate(zip(*(peers.members() for peers in ends), strict=True)):
        start = alike(student)[number].state_dict()
        for name, value in one.state_dict().items():
            torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-9, atol=1e-11)
            assert not torch.equal(value, start[name])
    if kind == "ensemble":
        assert ends[0].gate is not None and ends[1].gate is not None and ends[0].gate.detach().any()
        torch.testing.assert_close(ends[1].gate, ends[0].gate, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("student", ["mlp-4", "cnn-4"])
def test_what_decays_is_the_same_and_the_gate_does_not(student: str) -> None:
    options = TrainConfig(out=Path("run"), weight_decay=0.3)
    decayed, rest = [], []
    for group in (Team(alike(student)), Cohort(alike(student))):
        peers = Peers(group, gated=True)
        first, second = make_optimizer(peers, options).param_groups
        assert (first["weight_decay"], second["weight_decay"]) == (0.3, 0.0)
        assert any(p is peers.gate for p in second["params"])
        decayed.append(sum(p.numel() for p in first["params"]))
        rest.append(sum(p.numel() for p in second["params"]))
    assert decayed[0] == decayed[1] and rest[0] == rest[1]


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_fit_of_stacked_peers_is_that_of_peers_one_by_one(
    config: Make, few: None, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """With a cache as one more voice, two batches a step, and validation."""
    options = config(student="cnn-4", accumulate=2, weight_decay=0.3, train_views="all", **KINDS[kind])
    task = prepare(options).task
    stacked = learner(options)
    one_by_one(monkeypatch)
    apart = learner(options)
    assert isinstance(stacked.group, Cohort) and isinstance(apart.group, Team) and stacked.count == apart.count
    found, expected = (fit(peers, task, options, seed=0).history for peers in (stacked, apart))
    for one, other in zip(expected, found, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            np.testing.assert_allclose(other[name], value, rtol=1e-3, atol=1e-5)
    for one, other in zip(apart.members(), stacked.members(), strict=True):
        for name, value in one.state_dict().items():
            torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-3, atol=1e-4)


def test_members_are_copies_and_models_as_they_were_built(config: Make, few: None) -> None:
    peers = learner(config(cached=False, student="cnn-4", peers=2, exchange="ensemble"))
    alone = initial_student(config(cached=False, student="cnn-4"), prepare(config(cached=False)).dataset, 0)
    student = peers.members()[0]
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(student.state_dict()[name], value, rtol=0, atol=0)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert all(p.any() for p in peers.members()[0].parameters() if p.ndim > 1)


@pytest.mark.parametrize(("kind", "stop"), [("mutual", 3), ("ensemble", 10), ("online", 8)])
def test_stacked_peers_go_on_bit_for_bit(config: Make, few: None, tmp_path: Path, kind: str, stop: int) -> None:
    options = config(student="cnn-4", epochs=3, checkpoint_every=1e-9, **KINDS[kind])
    task, whole, again = prepare(options).task, learner(options), learner(options)
    expected = fit(whole, task, options, seed=0)
    stopped(learner(options), prepare(options).task, options, tmp_path / "state.safetensors", stop)
    found = fit(again, task, options, seed=0, state=tmp_path / "state.safetensors")
    assert found.history == expected.history and found.steps == expected.steps
    assert all(torch.equal(a, whole.state_dict()[name]) for name, a in again.state_dict().items())


def test_a_state_with_weights_kept_otherwise_is_refused(
    config: Make, few: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of peers one by one, as they are kept now, and as they were before there was a group; and the other way round."""
    options, state = config(cached=False, peers=2, checkpoint_every=1e-9), tmp_path / "state.safetensors"
    task = prepare(options).task
    with monkeypatch.context() as patch:
        one_by_one(patch)
        stopped(learner(options), prepare(options).task, options, state, 3)
        unstacked = learner(options)
    said = r"state\.safetensors is a state of this run with other weights: expected group\.weights\.0 \(2, "
    with pytest.raises(ConfigError, match=said + r".*found group\.models\.0.*delete it to start over"):
        fit(learner(options), task, options, seed=0, state=state)
    with safetensors.safe_open(str(state), framework="pt") as file:
        metadata = file.metadata()
    save_file({k.replace("model/group.", "model/"): v for k, v in load_file(state).items()}, state, metadata)
    for peers, found in ((learner(options), "models.0"), (unstacked, "models.0")):
        with pytest.raises(ConfigError, match=rf"with other weights: expected group\..*found {found}"):
            fit(peers, task, options, seed=0, state=state)
    stopped(learner(options), prepare(options).task, options, tmp_path / "other.safetensors", 3)
    with pytest.raises(ConfigError, match=r"expected group\.models\.0.*found group\.weights\.0"):
        fit(unstacked, task, options, seed=0, state=tmp_path / "other.safetensors")


def test_a_model_of_another_shape_is_refused_too(config: Make, few: None, tmp_path: Path) -> None:
    options, state = config(cached=False, peers=2, checkpoint_every=1e-9), tmp_path / "state.safetensors"
    stopped(learner(options), prepare(options).task, options, state, 3)
    wider = Peers(Cohort([build_model("mlp-5", {}, classes=3, input_shape=SHAPE) for _ in range(2)]))
    with pytest.raises(
        ConfigError, match=r"expected group\.weights\.0 \(2, 5, 36\).*found group\.weights\.0 \(2, 4, 36\)"
    ):
        fit(wider, prepare(options).task, options, seed=0, state=state)


@pytest.mark.parametrize(
    ("own", "kind", "said"),
    [
        ({"peers": 6}, Cohort, ""),
        ({"peers": 5}, Team, ""),
        ({"peer": ("mlp-4",) * 5}, Cohort, ""),
        ({"peers": 2, "peer": ("mlp-4",) * 4, "exchange": "ensemble"}, Cohort, ""),
        ({"peer": ("mlp-4",) * 5, "exchange": "online"}, Cohort, ""),
        ({"peers": 6, "peer": ("cnn-2",)}, Team, ""),
        ({"peer": ("cnn-2",) * 6, "exchange": "online"}, Team, ""),
        ({"peers": 6, "student": "cnn-2", "student_args": ("dropout=0.1",)}, Cohort, ""),
        ({"peers": 5, "student": "cnn-2", "peer": ("cnn-2",), "student_args": ("dropout=0.1",)}, Team, ""),
        ({"peers": 6, "hints": ("hidden",)}, Team, "features are taken from the modules of each"),
        ({"peers": 2, "hints": ("hidden",)}, Team, ""),
    ],
)
def test_which_peers_are_stacked(config: Make, own: dict[str, Any], kind: type[Members], said: str) -> None:
    peers = learner(config(cached=False, **own))
    assert type(peers.group) is kind and peers.apart == said


@pytest.mark.parametrize("large", [False, True])
def test_a_run_says_whether_its_peers_were_stacked(config: Make, monkeypatch: pytest.MonkeyPatch, large: bool) -> None:
    if large:
        one_by_one(monkeypatch)
    made, log = config(cached=False, peers=6, exchange="ensemble", epochs=2), _Log()
    report = run(made, log)
    assert report.environment["fits"]["0"]["stacked"] is not large
    beside = json.loads(Path(f"{made.out}.report.json").read_text())
    assert beside["environment"]["fits"]["0"]["stacked"] is not large
    said = [line for line in log.lines if "run, seed 0: the 6 peers run one after another in each step: with " in line]
    assert len(said) == large and "stacked" not in (Path(made.out) / "run.json").read_text()


def test_a_stacked_peer_that_diverges_is_told_from_the_others(config: Make, few: None) -> None:
    """The online student learns from both teachers, and they from neither."""
    options = config(cached=False, student="cnn-4", **KINDS["online"])
    peers = learner(options)
    with torch.no_grad():
        next(iter(peers.group.parameters()))[2] = torch.nan
    with pytest.raises(DivergedError) as raised:
        fit(peers, prepare(options).task, options, seed=0)
    assert raised.value.members == (0, 2)


def test_a_run_names_the_peers_that_diverged(config: Make, few: None) -> None:
    made = config(cached=False, student="cnn-2", peers=2, exchange="ensemble", lr=1e30, optimizer="sgd")
    with pytest.raises(DivergedError) as raised:
        run(made)
    expected = "That is so for the student, cnn-2, peer 1, cnn-2, their ensemble"
    assert expected in str(raised.value) and raised.value.members == (0, 1, 2)


def test_stacked_models_are_in_the_mode_of_what_holds_them() -> None:
    """Also after they were evaluated in passing, which sets the modes of modules one by one."""
    group, x = Cohort(alike("cnn-4", 2)), torch.randn(ROWS, *SHAPE, dtype=torch.float64)
    other = copy.deepcopy(group)
    for each in (group, other):
        each.train()
    with evaluating(group):
        resting = group(x)
    torch.testing.assert_close(group(x), other(x), rtol=0, atol=0)
    assert not torch.equal(resting, group(x))
