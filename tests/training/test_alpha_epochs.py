"""A weight of the soft labels that rises over the first epochs: by epoch, for every kind of goal, and across a stop."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.compression import CompressConfig
from pipeline.compression.finetuning import training_config
from pipeline.errors import ConfigError
from pipeline.runs import read_run
from pipeline.softlabels import Dense, Opinion, Opinions
from pipeline.training import Objective, TrainConfig, fit, prepare, run
from pipeline.training import sweep as sweeps
from pipeline.training.exchange import Exchange
from pipeline.training.grid import SweepConfig
from pipeline.training.heads import HeadsObjective
from pipeline.training.hints import Hints
from pipeline.training.objective import Batch, Output
from pipeline.training.recipe import outcome_options
from pipeline.training.shared import Shared
from pipeline.training.stage import initial_student
from tests.losses.references import kl64, softmax64
from tests.training.stopping import stopped

Make = Callable[..., TrainConfig]
N, B, C, T = 3, 6, 4, 2.0
LABELS = torch.tensor([0, 1, 3, 3, 2, 0])


def published(epoch: int, warmup: int) -> float:
    """The factor of the soft term in the code of Zhao et al. 2022, where epochs count from 1."""
    return min((epoch + 1) / warmup, 1.0)


def logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 3


TEACHER = logits(B, C, seed=9)


def soft64(student: Tensor, teacher: Tensor = TEACHER) -> float:
    return float(T**2 * kl64(softmax64(teacher.numpy(), T), softmax64(student.numpy(), T)).sum())


def hard64(student: Tensor) -> float:
    return float(-np.log(softmax64(student.numpy())[np.arange(B), LABELS.numpy()]).sum())


def test_the_weight_of_each_epoch_is_that_of_the_published_code() -> None:
    student, batch = logits(B, C), Batch(labels=LABELS, soft=Dense(TEACHER))
    goal = Objective(alpha=0.7, beta=0.4, temperature=T, rising=5)
    weights = [goal.at(epoch).alpha for epoch in range(8)]
    assert weights == pytest.approx([0.14, 0.28, 0.42, 0.56, 0.7, 0.7, 0.7, 0.7])
    for epoch in range(8):
        total = 0.7 * published(epoch, 5) * soft64(student) + 0.4 * hard64(student)
        assert float(goal.at(epoch)(Output(student), batch).total) == pytest.approx(total)
        assert goal.at(epoch).used == ("hard", "soft") and goal.at(epoch).beta == 0.4
    for whole in (0, 1):
        assert [Objective(alpha=0.7, rising=whole).at(epoch).alpha for epoch in range(3)] == [0.7] * 3


@pytest.mark.parametrize("kind", ["mutual", "ensemble", "online"])
def test_the_teacher_of_peers_comes_in_slowly_and_the_peers_do_not(kind: str) -> None:
    given, batch = logits(N, B, C), Batch(labels=LABELS, soft=Dense(TEACHER))
    goal = Exchange(Objective(alpha=0.6, beta=0.4, temperature=T, rising=4), kind, 0.5)
    learners = {"mutual": range(N), "ensemble": range(N - 1), "online": range(1)}[kind]
    for epoch in range(6):
        found, whole = (each(Output(given), batch) for each in (goal.at(epoch), dataclasses.replace(goal)))
        for member in range(N):
            missing = 0.6 * (1 - published(epoch, 4)) * soft64(given[member]) if member in learners else 0.0
            assert float(whole.total[member] - found.total[member]) == pytest.approx(missing, abs=1e-9)


def test_heads_rise_together() -> None:
    student, teachers = logits(N, B, C), [logits(B, C, seed=n + 1) for n in range(N)]
    weights = torch.full((N, B), 1 / N, dtype=torch.float64)
    soft = Opinions(tuple(Opinion(Dense(t), None, w) for t, w in zip(teachers, weights, strict=True)))
    goal = HeadsObjective(alpha=0.6, beta=0.0, temperature=T, rising=3)
    each = np.mean([soft64(own, teacher) for own, teacher in zip(student, teachers, strict=True)])
    for epoch in range(4):
        total = goal.at(epoch)(Output(student), Batch(labels=LABELS, soft=soft)).total
        assert float(total) == pytest.approx(0.6 * published(epoch, 3) * each)


def test_each_student_of_a_sweep_rises_by_itself() -> None:
    given, batch = logits(3, B, C), Batch(labels=LABELS, soft=Dense(TEACHER))
    risings, alphas = (0, 2, 4), (0.9, 0.9, 0.5)
    goal = Shared(
        tuple(Objective(alpha=a, beta=0.1, temperature=T, rising=r) for a, r in zip(alphas, risings, strict=True))
    )
    for epoch in range(5):
        found = goal.at(epoch)(Output(given), batch).total
        for member, (alpha, rising) in enumerate(zip(alphas, risings, strict=True)):
            weight = alpha * (published(epoch, rising) if rising else 1.0)
            assert float(found[member]) == pytest.approx(weight * soft64(given[member]) + 0.1 * hard64(given[member]))
    assert goal.at(4) == Shared(tuple(goal.objectives[n].at(4) for n in range(3)))


def test_epochs_count_from_the_first_that_learns_labels() -> None:
    apart = Objective(alpha=0.8, hints=Hints((("a", "b"),), epochs=3), rising=4)
    assert [apart.at(epoch).alpha for epoch in range(9)] == pytest.approx([0, 0, 0, 0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    assert [apart.at(epoch).hints is None for epoch in range(5)] == [False] * 3 + [True] * 2
    together = Objective(alpha=0.8, hints=Hints((("a", "b"),)), rising=4)
    assert [together.at(epoch).alpha for epoch in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8])
    assert all(together.at(epoch).hints == together.hints for epoch in range(5))


def test_the_records_of_a_run_add_up_by_epoch(config: Make) -> None:
    made = config(epochs=5, alpha=0.75, alpha_epochs=4)
    prepared = prepare(made)
    history = fit(initial_student(made, prepared.dataset, 0), prepared.task, made, seed=0).history
    for number, epoch in enumerate(history):
        expected = 0.75 * published(number, 4) * epoch["soft"] + 0.25 * epoch["hard"]
        assert epoch["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("stop", [2, 9, 16])
@pytest.mark.parametrize("peers", [0, 2])
def test_a_run_that_was_stopped_goes_on_with_the_weight_of_its_epoch(
    config: Make, tmp_path: Path, peers: int, stop: int
) -> None:
    made = config(epochs=4, alpha_epochs=3, checkpoint_every=1e-9, peers=peers)
    prepared = prepare(made)

    def learner() -> Any:
        from pipeline.training.peers import with_peers

        student = initial_student(made, prepared.dataset, 0)
        return with_peers(student, made, prepared.dataset, 0) if peers else student

    whole = learner()
    expected = fit(whole, prepared.task, made, seed=0)

    state = tmp_path / "state.safetensors"
    stopped(learner(), prepared.task, made, state, stop)
    other = dataclasses.replace(made, alpha_epochs=2)
    with pytest.raises(ConfigError, match="the state of another run"):
        fit(learner(), prepare(other).task, other, seed=0, state=state)
    again = learner()
    assert fit(again, prepared.task, made, seed=0, state=state).history == expected.history
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), whole.parameters(), strict=True))


def test_a_sweep_over_it_trains_the_cells_together_and_as_train_does(config: Make, tmp_path: Path) -> None:
    base = config(out=tmp_path / "sweep", epochs=4)
    fields = {field.name: getattr(base, field.name) for field in dataclasses.fields(base)}
    made = SweepConfig(**fields, grid=("alpha-epochs=0,3", "temperature=1,4"))
    sweeps.run(made)
    weights = []
    for cell in made.cells:
        record = json.loads((Path(cell.config.out) / "run.json").read_text())
        assert record["lineage"]["cohort"]["students"] == 4
        alone = dataclasses.replace(cell.config, out=tmp_path / cell.key)
        run(alone)
        found, expected = (load_file(out / "seed-0" / "model.safetensors") for out in (cell.config.out, alone.out))
        weights.append(found["hidden.weight"])
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(weights[0], weights[2], atol=1e-3), "with a weight that rises it is another student"
    with pytest.raises(ConfigError, match=r"--alpha-epochs should leave .*in 1 of 2 cells: alpha-epochs=4"):
        SweepConfig(**fields, grid=("alpha-epochs=0,4",))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cache": "c", "alpha_epochs": -1}, "--alpha-epochs should be at least 0; found -1"),
        ({"cache": "c", "alpha_epochs": 5}, "--alpha-epochs should leave some of --epochs 5 for the whole alpha"),
        (
            {"cache": "c", "alpha_epochs": 3, "hints": ("a=b",), "hint_epochs": 2},
            "should leave some of --epochs 5 after --hint-epochs 2",
        ),
        ({"alpha_epochs": 2}, "--alpha-epochs is of soft labels, and there are none"),
        ({"alpha_epochs": 2, "peers": 2}, "--alpha-epochs is of soft labels, and there are none"),
        ({"cache": "c", "alpha": 0.0, "alpha_epochs": 2}, "--alpha-epochs is of soft labels, which weigh nothing"),
    ],
)
def test_each_mistake_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as raised:
        TrainConfig(out=Path("run"), epochs=5, **options)
    assert len(raised.value.problems) == 1


def test_runs_without_it_keep_their_identity(config: Make) -> None:
    plain = outcome_options(config())
    assert "alpha_epochs" not in plain
    assert outcome_options(config(alpha_epochs=2)) == plain | {"alpha_epochs": 2}


def test_a_student_that_is_compressed_learns_with_the_whole_weight(config: Make, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(config(epochs=3, alpha_epochs=2, out=out))
    again = training_config(CompressConfig(runs=(out,), out=tmp_path / "c"), read_run(out))
    assert again.alpha_epochs == 0 and again.objective.at(0).alpha == 0.9
