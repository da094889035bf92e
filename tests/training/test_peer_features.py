"""Features that peers learn from each other: who learns what of whom, when, on ranks, and after a stop."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.errors import ConfigError, ModelError
from pipeline.losses import FEATURE_LOSSES, hard_loss
from pipeline.models import build_model
from pipeline.training import Objective, TrainConfig, fit, prepare, run
from pipeline.training.exchange import Exchange
from pipeline.training.fitted import DivergedError
from pipeline.training.grid import SweepConfig
from pipeline.training.hints import Hints, Lesson
from pipeline.training.lessons import Lessons
from pipeline.training.members import Team
from pipeline.training.methods import methods, table
from pipeline.training.objective import Batch, Output, Terms
from pipeline.training.peers import Peers, with_peers
from pipeline.training.recipe import outcome_options
from pipeline.training.stage import initial_student
from stages.cli import main
from tests.training.stopping import stopped
from tests.training.two_ranks import on_ranks, save_examples

Make = Callable[..., TrainConfig]
ROOT = Path(__file__).resolve().parent.parent.parent
B, C = 7, 3
LABELS = torch.tensor([0, 1, -1, 2, 2, -1, 0])
PAIRS = (("hidden", "activation"), ("activation", "hidden"))
ONLINE = {"peer": ("cnn-2", "cnn-3"), "student": "cnn-2", "exchange": "online", "hints": ("stage2=stage1", "stage1")}
MUTUAL = {"peers": 2, "peer": ("mlp-8",), "hints": ("hidden", "activation=hidden")}


def team(kind: str, loss: str, pairs: tuple[tuple[str, str], ...] = PAIRS, seed: int = 0) -> Peers:
    """Three mlps of different widths in float64, with what they learn from each other."""
    torch.manual_seed(seed)
    models = [build_model(f"mlp-{width}", {}, classes=C, input_shape=(5,)) for width in (4, 6, 3)]
    lessons = Lessons(models, ["a", "b", "c"], kind, Hints(pairs, loss), torch.zeros(1, 5), seed)
    return Peers(Team(models), lessons=lessons).double()


def inputs(seed: int = 3) -> Tensor:
    return torch.randn(B, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def values(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What the modules of an mlp give, computed from its weights."""
    weights = dict(model.named_parameters())
    hidden = x @ weights["hidden.weight"].T + weights["hidden.bias"]
    return {"hidden": hidden, "activation": hidden.clamp_min(0)}


def distances(own: Tensor, other: Tensor) -> Tensor:
    """Park et al. 2019, RKD-D: the sum over rows of the mean smooth L1, pair by pair."""

    def relative(side: Tensor) -> Tensor:
        found = (side[:, None] - side[None]).square().sum(dim=2).add(1e-300).sqrt()
        return found / (found.sum() / (B * (B - 1)))

    apart = (relative(own) - relative(other.detach())).abs()
    return torch.where(apart < 1, apart.square() / 2, apart - 0.5).mean(dim=1).sum()


def squares(own: Tensor, other: Tensor, projection: nn.Module) -> Tensor:
    """Romero et al. 2015, with their regressor."""
    weights = dict(projection.named_parameters())
    mapped = own @ weights["linear.weight"].T + weights["linear.bias"]
    return (mapped - other.detach()).square().mean(dim=1).sum()


def goal(kind: str, loss: str, **options: Any) -> Exchange:
    hints = Hints(PAIRS, loss, weight=3.0, **options)
    return Exchange(Objective(alpha=0.0, beta=0.7, temperature=2.0), kind, 0.5, hints)


def terms(peers: Peers, exchange: Exchange) -> Terms:
    return exchange(peers(inputs()), Batch(labels=LABELS))


@pytest.mark.parametrize("kind", ["mutual", "online"])
@pytest.mark.parametrize("loss", ["distance", "hint"])
def test_the_terms_are_those_of_every_pair_of_members(kind: str, loss: str) -> None:
    peers, exchange = team(kind, loss), goal(kind, loss)
    found = terms(peers, exchange)
    without = replace(exchange, hints=None)(Output(peers(inputs()).logits), Batch(labels=LABELS))
    given = [values(model, inputs()) for model in peers.members()]
    assert peers.lessons is not None
    projections = iter(peers.lessons.projections.values())
    expected = [torch.zeros((), dtype=torch.float64)] * 3
    for feature, module in PAIRS:
        for i in range(3 if kind == "mutual" else 1):
            each = []
            for j in (j for j in range(3) if j != i):
                projection = next(projections)
                sides = given[i][module], given[j][feature]
                each.append(distances(*sides) if loss == "distance" else squares(*sides, projection))
            expected[i] = expected[i] + (each[0] + each[1]) / 2
    assert next(projections, None) is None
    learnt = torch.stack(expected)
    assert found.hints is not None and all(learnt[:1] > 0)
    torch.testing.assert_close(found.hints, learnt)
    torch.testing.assert_close(found.total, without.total + 3.0 * learnt)
    parameters = list(peers.parameters())
    gradients = torch.autograd.grad(found.total.sum(), parameters)
    wanted = torch.autograd.grad((without.total + 3.0 * learnt).sum(), parameters, materialize_grads=True)
    for one, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("loss", [name for name, loss in FEATURE_LOSSES.items() if not loss.places])
def test_whoever_teaches_is_a_constant(loss: str) -> None:
    peers = team("mutual", loss)
    found = terms(peers, replace(goal("mutual", loss), own=Objective(beta=0.0), weight=0.0))
    for learner in range(3):
        weights = [[p for p in model.parameters() if p.ndim > 1] for model in peers.members()]
        for number, own in enumerate(weights):
            gradients = torch.autograd.grad(found.total[learner], own, retain_graph=True, materialize_grads=True)
            reached = [bool(gradient.any()) for gradient in gradients]
            assert reached == [number == learner, False], "the hidden layer of whoever learns, and no head"


def test_online_teachers_learn_hard_labels_alone_while_the_student_learns_features() -> None:
    peers, exchange = team("online", "hint"), goal("online", "hint", epochs=2)
    first = exchange.at(1)
    found = terms(peers, first)
    assert first.used == ("hard", "hints") and found.peers is None and found.hard is not None
    hard = torch.stack([hard_loss(model(inputs()), LABELS).sum() for model in peers.members()])
    torch.testing.assert_close(found.hard, hard * torch.tensor([0.0, 1.0, 1.0]))
    torch.testing.assert_close(found.total[1:], hard[1:])
    assert found.hints is not None and found.hints[0] > 0 and not found.hints[1:].any()
    torch.testing.assert_close(found.total[0], 3.0 * found.hints[0])


def test_equals_learn_features_alone_at_first_and_none_later() -> None:
    peers, exchange = team("mutual", "hint"), goal("mutual", "hint", epochs=4, in_turn=True)
    first, third, last = (exchange.at(epoch) for epoch in (0, 2, 4))
    assert (first.used, last.used) == (("hints",), ("hard", "peers"))
    both = terms(peers, replace(exchange, hints=Hints(PAIRS, "hint"))).hints
    one, other = terms(peers, first), terms(peers, third)
    assert one.hints is not None and other.hints is not None and both is not None
    torch.testing.assert_close(one.hints + other.hints, both)
    torch.testing.assert_close(one.total, 3.0 * one.hints)
    assert terms(peers, last).hints is None and last.hints is None
    terms(peers, last).total.sum().backward()  # type: ignore[no-untyped-call]
    assert peers.lessons is not None
    assert all(p.grad is not None for p in peers.parameters()) and not any(
        p.grad.any() for p in peers.lessons.parameters()
    )


def test_in_evaluation_there_are_logits_alone_and_nothing_listens_between_the_steps() -> None:
    peers = team("mutual", "hint")
    found = peers(inputs())
    assert isinstance(found, Output) and len(found.hints) == 3 * 2 * 2 and Lesson(2, 0, "hidden") in found.hints
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in peers.modules())
    torch.testing.assert_close(peers.eval()(inputs()), found.logits)


def test_features_that_nobody_gives_are_missed() -> None:
    bare = Peers(team("mutual", "hint").group)
    with pytest.raises(ModelError, match="no features to learn activation, hidden from"):
        goal("mutual", "hint")(Output(bare(inputs())), Batch(labels=LABELS))


def test_projections_follow_from_the_seed_and_each_lesson_has_its_own() -> None:
    made = [list(team("mutual", "hint", seed=seed).lessons.parameters()) for seed in (0, 0, 1)]  # type: ignore[union-attr]
    assert all(torch.equal(a, b) for a, b in zip(made[0], made[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(made[0], made[2], strict=True))
    assert len(made[0]) == 2 * 3 * 2 * 2 and all(p.dtype == torch.float64 for p in made[0])


def learner(options: TrainConfig) -> Peers:
    dataset = prepare(options).dataset
    return with_peers(initial_student(options, dataset, 0), options, dataset, 0)


@pytest.mark.parametrize(("own", "learners"), [(ONLINE, 1), (MUTUAL, 3)])
def test_a_run_records_the_features_of_each_member_and_keeps_none_of_the_projections(
    config: Make, own: dict[str, Any], learners: int
) -> None:
    """With a cache that holds no features: its labels are one more voice."""
    made = config(epochs=2, hint_weight=3.0, **own)
    assert prepare(made).task.hints is None and prepare(made).task.source is not None
    (record,) = run(made).seeds
    folder = Path(made.out) / "seed-0"
    for epoch in json.loads((folder / "history.json").read_text()):
        assert [value > 0 for value in epoch["hints"]] == [True] * learners + [False] * (3 - learners)
        for n in range(learners):
            total = 0.9 * epoch["soft"][n] + 0.1 * epoch["hard"][n] + epoch["peers"][n] + 3.0 * epoch["hints"][n]
            assert epoch["loss"][n] == pytest.approx(total, rel=1e-5)
    for number, file in enumerate(("model", "peer-1", "peer-2")):
        model = build_model(record["peers"][number]["reference"], {}, classes=3, input_shape=(1, 6, 6))
        model.load_state_dict(load_file(folder / f"{file}.safetensors"))


def test_online_teachers_do_not_notice_who_learns_their_features(config: Make, tmp_path: Path) -> None:
    without = {**ONLINE, "hints": ()}
    states = []
    for name, own in (("with", ONLINE), ("without", without)):
        (record,) = run(config(cached=False, epochs=2, out=tmp_path / name, **own)).seeds
        states.append([peer["state"] for peer in record["peers"]])
    assert states[0][1:] == states[1][1:] and states[0][0] != states[1][0]


@pytest.mark.parametrize("loss", list(FEATURE_LOSSES))
def test_every_loss_on_features_is_learnt(config: Make, loss: str) -> None:
    """The student comes nearer to the same teachers, who go on learning, than one for whom features weigh nothing."""
    made = config(cached=False, **{**ONLINE, "peer": ("cnn-3",), "hint_loss": loss, "epochs": 6})
    task, last = prepare(made).task, []
    for options in (made, replace(made, hint_weight=1e-9)):
        history = fit(learner(options), replace(task, objective=options.goal), options, seed=0).history
        last.append(history[-1]["hints"][0])
    assert last[0] < 0.9 * last[1]


@pytest.mark.parametrize(("own", "stop"), [(ONLINE, 3), (ONLINE, 9), (MUTUAL, 16)])
def test_a_stopped_run_goes_on_with_its_projections(
    config: Make, tmp_path: Path, own: dict[str, Any], stop: int
) -> None:
    """Stopped while each pair has its turn, or after; seven steps an epoch."""
    options = config(**own, hint_epochs=2, hints_in_turn=True, epochs=3, checkpoint_every=1e-9)
    task = prepare(options).task
    whole = learner(options)
    expected = fit(whole, task, options, seed=0)

    state = tmp_path / "state.safetensors"
    stopped(learner(options), task, options, state, stop)
    assert any("projections" in name for name in load_file(state))
    again = learner(options)
    found = fit(again, task, options, seed=0, state=state)
    assert found.history == expected.history and found.steps == expected.steps
    assert all(torch.equal(a, whole.state_dict()[name]) for name, a in again.state_dict().items())


@pytest.mark.parametrize("own", [ONLINE, MUTUAL])
def test_half_precision_is_of_the_members_alone(config: Make, own: dict[str, Any]) -> None:
    made = config(cached=False, precision="bfloat16", hint_epochs=1, epochs=2, **own)
    history = fit(learner(made), prepare(made).task, made, seed=0).history
    assert np.isfinite(history[0]["loss"]).all() and history[0]["hints"][0] > 0


def test_a_member_that_diverges_is_named(config: Make) -> None:
    made = config(cached=False, lr=1e30, optimizer="sgd", epochs=2, **MUTUAL)
    with pytest.raises(DivergedError) as raised:
        fit(learner(made), prepare(made).task, made, seed=0)
    assert raised.value.members == (0, 1, 2)


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (
            {**ONLINE, "peer": ("cnn-2", "mlp-4")},
            [
                "2 problems",
                "peer 2, mlp-4: feature stage1: the model has no module 'stage1'",
                "peer 2, mlp-4: feature s",
            ],
        ),
        ({**ONLINE, "hints": ("stage1=stage9",)}, ["the student, cnn-2: feature stage9", "has no module 'stage9'"]),
        (
            {"peers": 2, "peer": ("cnn-2",), "hints": ("activation",)},
            ["peer 2, cnn-2, which teaches and learns and needs both modules", "no module 'activation'"],
        ),
        (
            {"peer": ("cnn-2",), "hints": ("stage1=hidden",)},
            ["2 problems", "the student, mlp-4, which teaches and", "'stage1'", "peer 1, cnn-2, which", "'hidden'"],
        ),
    ],
)
def test_a_module_that_a_member_lacks_is_named_with_the_member(
    config: Make, own: dict[str, Any], said: list[str]
) -> None:
    with pytest.raises(ConfigError) as raised:
        learner(config(cached=False, **own))
    assert all(text in str(raised.value) for text in said)


def test_features_that_do_not_fit_are_named_with_both_members(config: Make) -> None:
    own = {"peer": ("mlp-8",), "hints": ("hidden",), "hint_loss": "attention"}
    with pytest.raises(
        ModelError, match=r"--hints hidden=hidden, which the student, mlp-4, learns from peer 1, mlp-8: "
    ):
        learner(config(cached=False, **own))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"peers": 2, "exchange": "ensemble", "hints": ("a",)}, "--exchange ensemble has no --hints"),
        ({"peers": 2, "hint_weight": 2.0}, "--hint-weight is of hints, and there are none"),
        ({"peers": 2, "hints": ("a", "b"), "hints_in_turn": True}, "--hint-epochs of 2 or more"),
        ({"peers": 2, "hints": ("a=",)}, "--hints should be FEATURE=MODULE"),
        ({"peers": 2, "hints": ("a",), "hint_epochs": 60}, "--hint-epochs should leave some of --epochs 60"),
    ],
)
def test_each_mistake_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TrainConfig(out=Path("run"), **options)


def test_features_count_in_the_identity_and_a_sweep_refuses_them() -> None:
    without, having = (TrainConfig(out=Path("a"), peers=2, hints=hints) for hints in ((), ("stage1",)))
    changed = {k for k, v in outcome_options(having).items() if v != outcome_options(without)[k]}
    assert changed == {"hints"} and without.objective == having.objective and having.objective.hints is None
    with pytest.raises(ConfigError, match="of one student at a time: use softlabels train"):
        SweepConfig(out=Path("sweep"), grid=("lr=0.1,0.2",), peers=2, hints=("stage1",))


def command(*words: str) -> None:
    result = CliRunner().invoke(main, [*words, "--device", "cpu"])
    assert result.exit_code == 0, result.output


def test_each_method_is_listed_with_its_family() -> None:
    for section in table().split("\n\n")[1:]:
        family, *lines = section.splitlines()
        expected = [method for method in methods() if f"{method.family}:" == family]
        assert [line.split("  ")[1] for line in lines] == [method.name for method in expected]
    online = [method.options for method in methods() if method.family == "online"]
    assert "--peer cnn-16 --exchange online --hints FEATURE=MODULE" in online


def test_a_student_beside_a_larger_peer_on_the_digits_is_found_by_evaluate(tmp_path: Path) -> None:
    hints = ("--hints", "stage1=stage1", "--hints", "stage2=stage2")
    online = ("--peer", "cnn-8", "--exchange", "online")
    out = str(tmp_path / "run")
    command("train", "--student", "cnn-4", *online, *hints, "--epochs", "2", "--out", out)
    record = json.loads((tmp_path / "run" / "run.json").read_text())["seeds"][0]
    assert [peer["reference"] for peer in record["peers"]] == ["cnn-4", "cnn-8"]
    command("evaluate", "--run", out, "--out", str(tmp_path / "evaluation"))
    found = json.loads((tmp_path / "evaluation" / "details.json").read_text())
    assert found["seeds"]["0"]["validation"]["accuracy"] == pytest.approx(record["accuracy"])


def test_ranks_take_the_steps_of_one_process(tmp_path: Path) -> None:
    """Seven batches on two ranks: the last step of an epoch leaves one without a batch. A pair has each of the first
    epochs, and labels the last: in each, some projections get no gradient."""
    options = [
        "train",
        "--data",
        save_examples(tmp_path),
        "--student",
        "mlp-4",
        "--peer",
        "mlp-6",
        "--exchange",
        "online",
    ]
    options += ["--hints", "hidden", "--hints", "activation=hidden", "--hint-epochs", "2", "--hints-in-turn"]
    options += ["--epochs", "3", "--batch-size", "8", "--lr", "0.05", "--optimizer", "sgd"]
    command(*options, "--accumulate", "2", "--out", str(tmp_path / "alone"))
    assert "took part as rank 1 of 2" in on_ranks(2, tmp_path, *options, "--device", "cpu", "--out", "shared")
    one, other = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("alone", "shared"))
    assert one["identity"] == other["identity"]
    histories = [json.loads((tmp_path / n / "seed-0" / "history.json").read_text()) for n in ("alone", "shared")]
    for a, b in zip(*histories, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-5)
    for file in ("model", "peer-1"):
        weights = [load_file(tmp_path / name / "seed-0" / f"{file}.safetensors") for name in ("alone", "shared")]
        for name, value in weights[0].items():
            torch.testing.assert_close(value, weights[1][name], rtol=1e-3, atol=1e-4)


def test_mutual_peers_have_a_hundredth_of_the_usual_weight() -> None:
    own: dict[str, Any] = {"hints": ("stage2",), "hint_loss": "attention", "student": "cnn-4", "out": Path("run")}
    usual = TrainConfig(**own, peer=("cnn-8",), exchange="online").goal.hints
    shared = TrainConfig(**own, peers=2).goal.hints
    given = TrainConfig(**own, peers=2, hint_weight=7.0).goal.hints
    assert usual and shared and given
    assert shared.weight == pytest.approx(usual.weight / 100) and given.weight == 7.0
