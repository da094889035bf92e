"""Features of the teacher in training: what is learnt when, from which rows, and that nothing of it stays behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.errors import ConfigError, ModelError
from pipeline.losses import FEATURE_LOSSES
from pipeline.models import FeatureTap, load_weights
from pipeline.training import TrainConfig, fit, prepare
from pipeline.training.hinted import Hinted
from pipeline.training.hints import Hints, parse_hints
from pipeline.training.objective import Batch, Objective, Output
from pipeline.training.stage import initial_student, run

Make = Callable[..., TrainConfig]
PAIR = ("code=hidden",)


@pytest.fixture
def hinted(config: Make, make_cache: Callable[..., str]) -> Make:
    """Options of a student that learns the hidden layer of a teacher of twice its width."""
    cache = make_cache("hints", features=("code=hidden", "late=activation"), store="zarr")
    return lambda **options: config(**({"cache": cache, "hints": PAIR} | options))


def fitted(made: TrainConfig, **more: Any) -> tuple[torch.nn.Module, list[dict[str, Any]]]:
    prepared = prepare(made)
    model = initial_student(made, prepared.dataset, 0)
    return model, fit(model, prepared.task, made, seed=0, **more).history


@pytest.mark.parametrize("loss", [name for name, loss in FEATURE_LOSSES.items() if not loss.places])
def test_features_are_learnt_and_the_student_stays_a_student(hinted: Make, loss: str) -> None:
    made = hinted(hint_loss=loss, epochs=12, train_views="all")
    model, history = fitted(made)
    assert history[-1]["hints"] < 0.9 * history[0]["hints"]
    plain = initial_student(made, prepare(made).dataset, 0)
    assert set(model.state_dict()) == set(plain.state_dict())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_maps_are_compared_place_by_place(hinted: Make, config: Make, make_cache: Callable[..., str]) -> None:
    with pytest.raises(ModelError, match="maps"):
        fitted(hinted(hint_loss="attention"))


def test_the_record_adds_up(hinted: Make) -> None:
    _, history = fitted(hinted(hint_weight=3.0, alpha=0.6, beta=0.7))
    for epoch in history:
        total = 0.6 * epoch["soft"] + 0.7 * epoch["hard"] + 3.0 * epoch["hints"]
        assert epoch["loss"] == pytest.approx(total, rel=1e-5)


def test_a_live_teacher_teaches_the_same(hinted: Make, shared: Path) -> None:
    """To the rounding of features, which a cache keeps in float16."""
    options = {"cache": None, "teacher": "mlp-8", "weights": shared / "teacher.safetensors"}
    _, cached = fitted(hinted(resident="none"))
    _, live = fitted(hinted(hints=("hidden=hidden",), block=16, **options))
    assert [e["hints"] for e in live] == pytest.approx([e["hints"] for e in cached], rel=2e-3)
    assert [e["soft"] for e in live] == pytest.approx([e["soft"] for e in cached], rel=2e-3)


@pytest.mark.parametrize("in_turn", [False, True])
def test_hints_come_first_and_labels_after(hinted: Make, in_turn: bool) -> None:
    pairs = ("code=hidden", "late=activation")
    made = hinted(hints=pairs, hint_epochs=3, epochs=5, hints_in_turn=in_turn, weight_decay=0.0)
    prepared = prepare(made)
    model = initial_student(made, prepared.dataset, 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    history = fit(model, prepared.task, replace(made, epochs=5), seed=0).history
    assert ["hints" in e for e in history] == [True] * 3 + [False] * 2
    assert ["soft" in e and "hard" in e for e in history] == [False] * 3 + [True] * 2
    turns = [[name for name, _ in made.objective.at(epoch).hints.pairs] for epoch in range(3)]  # type: ignore[union-attr]
    assert turns == ([["code"], ["code"], ["late"]] if in_turn else [["code", "late"]] * 3)
    # With as many epochs as learn hints alone the head is as it was: nothing else was learnt.
    seen: list[dict[str, torch.Tensor]] = []

    def look(step: int, loss: torch.Tensor) -> None:
        seen.append({name: value.clone() for name, value in again.state_dict().items()})

    again = initial_student(made, prepared.dataset, 0)
    fit(again, prepared.task, made, seed=0, on_step=look)
    last = seen[3 * (len(seen) // 5) - 1]
    assert torch.equal(last["head.weight"], before["head.weight"])
    assert not torch.equal(last["hidden.weight"], before["hidden.weight"])
    assert not torch.equal(again.state_dict()["head.weight"], before["head.weight"])


@pytest.mark.parametrize("loss", ["hint", "distance"])
def test_rows_without_features_do_not_count(loss: str) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 4, requires_grad=True), torch.randn(6, 4)
    has = torch.tensor([True, False, True, True, False, True])
    objective = Objective(beta=0.0, hints=Hints((("a", "b"),), loss, weight=2.0))
    labels = torch.zeros(6, dtype=torch.int64)
    some = objective(Output(torch.zeros(6, 3), {"a": (student, teacher)}), Batch(labels, has_hints=has))
    alone = objective(Output(torch.zeros(4, 3), {"a": (student[has], teacher[has])}), Batch(labels[:4]))
    assert torch.allclose(some.total, alone.total) and torch.allclose(some.total, 2 * some.hints)  # type: ignore[operator]
    some.total.backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None and not student.grad[~has].any()
    none = objective(Output(torch.zeros(6, 3), {"a": (student, teacher)}), Batch(labels, has_hints=has & False))
    assert none.total == 0


def test_examples_that_the_cache_lacks_stay_for_their_hard_labels(
    hinted: Make, make_cache: Callable[..., str], tmp_path: Path, shared: Path
) -> None:
    whole = np.load(shared / "data.npz")
    keep = np.ones(len(whole["ids"]), dtype=bool)
    keep[:10] = False
    np.savez(tmp_path / "part.npz", **{n: whole[n][keep] if n != "classes" else whole[n] for n in whole.files})
    part = make_cache("part", data=f"arrays:{tmp_path / 'part.npz'}", features=("code=hidden",))
    _, history = fitted(hinted(cache=part, missing="hard", epochs=2))
    assert all(np.isfinite(e["hints"]) and e["hints"] > 0 for e in history)


def test_an_interrupted_run_goes_on_with_its_projections(hinted: Make, tmp_path: Path) -> None:
    made = hinted(hint_epochs=2, epochs=4, checkpoint_every=0.0)
    whole, history = fitted(made)
    prepared = prepare(made)
    state = tmp_path / "state.safetensors"

    class Stop(Exception):
        pass

    def stop(step: int, loss: torch.Tensor) -> None:
        if step == 8:  # in the second epoch
            raise Stop

    model = initial_student(made, prepared.dataset, 0)
    with pytest.raises(Stop):
        fit(model, prepared.task, replace(made, checkpoint_every=1e-9), seed=0, state=state, on_step=stop)
    assert not any(module._forward_hooks for module in model.modules())
    assert any("projections" in name for name in load_file(state))
    resumed = initial_student(made, prepared.dataset, 0)
    again = fit(resumed, prepared.task, made, seed=0, state=state)
    assert again.history == history
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


def test_a_run_keeps_the_student_alone_and_knows_its_hints(hinted: Make, tmp_path: Path) -> None:
    report = run(hinted(epochs=1))
    tensors = load_file(tmp_path / "run" / "seed-0" / "model.safetensors")
    assert set(tensors) == {"hidden.weight", "hidden.bias", "head.weight", "head.bias"}
    other = run(hinted(epochs=1, hint_weight=20.0, out=tmp_path / "other"))
    assert report.identity != other.identity
    model = initial_student(hinted(), prepare(hinted()).dataset, 3)
    load_weights(model, tmp_path / "run" / "seed-0" / "model.safetensors")


def test_projections_follow_from_the_seed_and_leave_the_generator_alone() -> None:
    def made(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(5)
        student = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
        learner = Hinted(student, Hints((("a", "0"),)), {"a": (6,)}, torch.zeros(1, 3), seed)
        assert torch.equal(torch.rand(2), expected)
        return list(learner.projections.parameters())

    torch.manual_seed(5)
    torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    expected = torch.rand(2)
    assert all(torch.equal(a, b) for a, b in zip(made(0), made(0), strict=True))
    assert not torch.equal(made(0)[0], made(1)[0])


def test_a_module_that_is_not_there_leaves_no_taps(hinted: Make) -> None:
    made = hinted(hints=("code=stage9",))
    prepared = prepare(made)
    model = initial_student(made, prepared.dataset, 0)
    with pytest.raises(ConfigError, match=r"no module 'stage9'.*hidden"):
        fit(model, prepared.task, made, seed=0)
    assert not any(module._forward_hooks for module in model.modules())
    with FeatureTap(model, {"a": "hidden"}) as tap:
        model(prepared.task.example)
    assert set(tap.values) == {"a"}


def test_a_feature_that_is_not_there_is_named(hinted: Make) -> None:
    with pytest.raises(ConfigError, match="no feature 'cod'; it has code, late"):
        prepare(hinted(hints=("cod=hidden",)))


@pytest.mark.parametrize(
    ("options", "problems"),
    [
        ({"hints": ()} | {"hint_weight": 2.0, "hint_epochs": 1}, ["--hint-weight", "--hint-epochs"]),
        ({"hints": ("a=",), "hint_epochs": 1}, ["--hints should be FEATURE=MODULE"]),
        ({"hints": ("a=b", "a=c")}, ["names the feature 'a' twice"]),
        ({"cache": None}, ["--hints are features of one teacher"]),
        ({"hint_epochs": 4, "hint_weight": 0.0}, ["--hint-epochs should leave", "--hint-weight should be above 0"]),
        ({"hints_in_turn": True}, ["--hints-in-turn gives each", "is for several"]),
    ],
)
def test_problems_are_reported_together(hinted: Make, options: dict[str, Any], problems: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        hinted(**options)
    for problem in problems:
        assert problem in str(caught.value)


def test_one_name_stands_for_both() -> None:
    assert parse_hints(["a = b.c", "d.e"]) == (("a", "b.c"), ("d.e", "d.e"))
