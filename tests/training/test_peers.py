"""Students that learn from each other: what each minimises, what is kept of them, a stop anywhere between, ranks."""

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
from torch import Tensor, nn

from pipeline import evaluation
from pipeline.compression import CompressConfig
from pipeline.compression.finetuning import training_config
from pipeline.errors import ConfigError
from pipeline.evaluation import EvaluateConfig
from pipeline.losses import distillation_loss, hard_loss
from pipeline.models import build_model, read_metadata
from pipeline.report.reading import read_histories
from pipeline.runs import read_run
from pipeline.softlabels import Dense
from pipeline.training import Objective, TrainConfig, fit, prepare, run
from pipeline.training.exchange import Exchange
from pipeline.training.grid import SweepConfig
from pipeline.training.members import Team
from pipeline.training.objective import Batch, Output
from pipeline.training.peers import Peers, with_peers
from pipeline.training.recipe import outcome_options
from pipeline.training.stage import initial_student
from tests.training.stopping import stopped
from tests.training.two_ranks import on_ranks, save_examples

Make = Callable[..., TrainConfig]
ROOT = Path(__file__).resolve().parent.parent.parent
N, B, C, T = 3, 6, 4, 2.0


def logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 3


def kl(student: Tensor, teacher: Tensor) -> Tensor:
    return distillation_loss(student, Dense(teacher), temperature=T).sum()


LABELS = torch.tensor([0, 1, -1, 3, 2, -1])
SOFT = Dense(logits(B, C, seed=9))


def goal(kind: str, *, weight: float = 0.5, alpha: float = 0.3, beta: float = 0.7) -> Exchange:
    return Exchange(Objective(alpha=alpha, beta=beta, temperature=T), kind, weight)


def test_mutual_adds_up() -> None:
    given = logits(N, B, C)
    found = goal("mutual")(Output(given), Batch(labels=LABELS, soft=SOFT))
    for i in range(N):
        peers = sum(kl(given[i], given[j]) for j in range(N) if j != i) / (N - 1)
        hard, soft = hard_loss(given[i], LABELS).sum(), kl(given[i], SOFT.logits)
        torch.testing.assert_close(found.total[i], 0.3 * soft + 0.7 * hard + 0.5 * peers)
        assert found.peers is not None and found.hard is not None and found.soft is not None
        torch.testing.assert_close(torch.stack([found.hard[i], found.soft[i], found.peers[i]]),
                                   torch.stack([hard, soft, peers]))  # fmt: skip


def test_the_ensemble_teaches_its_members_and_learns_from_hard_labels() -> None:
    given = logits(N, B, C).requires_grad_()
    found = goal("ensemble")(Output(given), Batch(labels=LABELS, soft=SOFT))
    for i in range(N - 1):
        own = 0.3 * kl(given[i], SOFT.logits) + 0.7 * hard_loss(given[i], LABELS).sum()
        torch.testing.assert_close(found.total[i], own + 0.5 * kl(given[i], given[-1].detach()))
    torch.testing.assert_close(found.total[-1], 0.7 * hard_loss(given[-1], LABELS).sum())
    (gradient,) = torch.autograd.grad(found.total[:-1].sum(), given)
    assert not gradient[-1].any(), "what teaches is a constant"


def test_online_teachers_learn_from_hard_labels_alone() -> None:
    given = logits(N, B, C).requires_grad_()
    found = goal("online")(Output(given), Batch(labels=LABELS, soft=SOFT))
    mean = torch.softmax(given[1:] / T, dim=2).mean(dim=0).detach()
    own = 0.3 * kl(given[0], SOFT.logits) + 0.7 * hard_loss(given[0], LABELS).sum()
    torch.testing.assert_close(found.total[0], own + 0.5 * kl(given[0], T * mean.log()))
    (gradient,) = torch.autograd.grad(found.total.sum(), given)
    alone = given.detach().requires_grad_()
    (expected,) = torch.autograd.grad(sum(hard_loss(each, LABELS).sum() for each in alone), alone)
    torch.testing.assert_close(gradient[1:], expected[1:])


def test_the_gate_and_every_peer_get_gradients_of_their_own() -> None:
    torch.manual_seed(0)
    peers = Peers(Team([nn.Linear(5, C) for _ in range(2)]), gated=True).double()
    output = peers(logits(B, 5, seed=3))
    assert peers.count == 3 and output.shape == (3, B, C)
    torch.testing.assert_close(output[2], output[:2].mean(dim=0))
    goal("ensemble")(Output(output), Batch(labels=LABELS)).total.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in peers.parameters())


def test_the_first_peer_starts_as_the_student_and_the_others_from_seeds_of_their_own(config: Make) -> None:
    options = config(cached=False, peers=3, peer=("mlp-4", "cnn-2"))
    dataset = prepare(options).dataset
    alone = initial_student(options, dataset, 5)
    first, again = (with_peers(initial_student(options, dataset, 5), options, dataset, 5) for _ in range(2))
    other = with_peers(initial_student(options, dataset, 6), options, dataset, 6)
    weights = [peer.state_dict() for peer in first.members()]
    assert len(weights) == 5 and all(torch.equal(value, alone.state_dict()[name]) for name, value in weights[0].items())
    hidden = [peer.get_parameter("hidden.weight") for team in (first, other) for peer in team.members()[:4]]
    assert not any(torch.equal(a, b) for n, a in enumerate(hidden) for b in hidden[:n])
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({"peers": 2}, 2),
        ({"peers": 2, "peer": ("cnn-2",)}, 3),
        ({"peers": 2, "exchange": "ensemble"}, 3),
        ({"peer": ("cnn-2", "mlp-8"), "exchange": "online"}, 3),
    ],
)
def test_a_run_keeps_every_peer_and_its_figures(config: Make, options: dict[str, Any], rows: int) -> None:
    made = config(cached=False, epochs=3, seeds=2, temperature=1.0, **options)
    report = run(made)
    assert "2 students, validation accuracy" in report.summary
    for seed, record in enumerate(report.seeds):
        folder = Path(made.out) / f"seed-{seed}"
        kept = sorted(path.name for path in folder.iterdir())
        count = len(record["peers"])
        assert kept == ["history.json", "model.safetensors", *(f"peer-{k}.safetensors" for k in range(1, count))]
        history = json.loads((folder / "history.json").read_text())
        for name in ("loss", "hard", "peers", "accuracy", "nll"):
            assert len(history[-1][name]) == rows
        dataset, task = prepare(made).dataset, prepare(made).task
        inputs = torch.stack([dataset.prepare(dataset.load(int(row))) for row in task.validation])
        labels = torch.from_numpy(dataset.labels[task.validation])
        probabilities = []
        for number, peer in enumerate(record["peers"]):
            path = folder / ("model.safetensors" if not number else f"peer-{number}.safetensors")
            metadata = read_metadata(path)
            assert metadata["reference"] == peer["reference"] and metadata["seed"] == seed
            model = build_model(metadata["reference"], metadata["args"], classes=3, input_shape=(1, 6, 6))
            model.load_state_dict(load_file(path))
            with torch.no_grad():
                found = model.eval()(inputs)
            assert peer["accuracy"] == pytest.approx(float((found.argmax(1) == labels).double().mean()))
            assert peer["nll"] == pytest.approx(float(nn.functional.cross_entropy(found, labels)), rel=1e-5)
            assert [history[-1][name][number] for name in ("accuracy", "nll")] == [peer["accuracy"], peer["nll"]]
            probabilities.append(torch.softmax(found, dim=1))
        mean = torch.stack(probabilities).mean(dim=0)
        joint = record["mean_probability"]
        assert joint["nll"] == pytest.approx(float(nn.functional.nll_loss(mean.log(), labels)), rel=1e-5)
        assert joint["accuracy"] == pytest.approx(float((mean.argmax(1) == labels).double().mean()))
        assert record["accuracy"] == record["peers"][0]["accuracy"] and record["kept_epoch"] == 2
        assert record["best_epoch"] in range(3) and record["state"] == record["peers"][0]["state"]
        if options.get("exchange") == "ensemble":
            assert sum(record["ensemble"]["weights"]) == pytest.approx(1) and 0 <= record["ensemble"]["accuracy"] <= 1


def test_the_student_beside_online_teachers_learns_as_from_them_alone(config: Make, tmp_path: Path) -> None:
    """The teachers' course does not depend on the student: with weight 1 or 2 they end as the same models."""
    online = {"cached": False, "peer": ("cnn-2",), "exchange": "online", "epochs": 2}
    states = []
    for number, weight in enumerate((1.0, 2.0)):
        (record,) = run(config(**online, peer_weight=weight, out=tmp_path / f"o{number}")).seeds
        states.append([peer["state"] for peer in record["peers"]])
    assert states[0][1] == states[1][1] and states[0][0] != states[1][0]


def test_a_cache_is_one_more_voice(config: Make) -> None:
    (record,) = run(config(peers=2, epochs=2)).seeds
    history = json.loads((Path(config().out) / "seed-0" / "history.json").read_text())
    epoch = history[-1]
    for n in range(2):
        total = 0.9 * epoch["soft"][n] + 0.1 * epoch["hard"][n] + epoch["peers"][n]
        assert epoch["loss"][n] == pytest.approx(total, rel=1e-5) and epoch["soft"][n] > 0
    assert len(record["peers"]) == 2


@pytest.mark.parametrize("stop", [3, 7, 10])
@pytest.mark.parametrize("exchange", ["mutual", "ensemble"])
def test_a_stopped_run_goes_on_bit_for_bit(config: Make, tmp_path: Path, exchange: str, stop: int) -> None:
    options = config(peers=2, peer=("cnn-2",), exchange=exchange, epochs=3, checkpoint_every=1e-9)
    prepared = prepare(options)

    def learner() -> Peers:
        return with_peers(initial_student(options, prepared.dataset, 0), options, prepared.dataset, 0)

    whole = learner()
    expected = fit(whole, prepared.task, options, seed=0)

    state = tmp_path / "state.safetensors"
    stopped(learner(), prepared.task, options, state, stop)
    again = learner()
    found = fit(again, prepared.task, options, seed=0, state=state)
    assert found.history == expected.history and found.steps == expected.steps
    assert all(torch.equal(a, whole.state_dict()[name]) for name, a in again.state_dict().items())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"peers": 1}, "--peers should be 2 or more students"),
        ({"exchange": "ensemble"}, "--exchange is of peers, and there are none"),
        ({"peer_weight": 2.0}, "--peer-weight is of peers, and there are none"),
        ({"peers": 2, "peer_weight": 0.0}, "--peer-weight should be above 0"),
        ({"peers": 2, "exchange": "online"}, "one student, which learns from each --peer: leave out --peers"),
        ({"peers": 2, "exchange": "ring"}, "--exchange should be one of mutual, ensemble, online"),
        ({"peers": 2, "keep": "best"}, "none is the one to choose by"),
        ({"peer": ("cnn-2",), "patience": 3}, "none is the one to choose by"),
        ({"peers": 2, "parallel": "fsdp"}, "--peers needs ddp"),
        ({"peers": 2, "compile": True}, "--compile is of a student alone"),
        ({"peers": 2, "exchange": "ensemble", "hints": ("a",)}, "--exchange ensemble has no --hints: an ensemble of"),
        ({"peers": 2, "cache": "c", "alpha": 1.0, "exchange": "ensemble"}, "--exchange ensemble needs a hard term"),
        ({"peers": 2, "alpha": 0.5}, "name a --cache or a --teacher"),
    ],
)
def test_each_mistake_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TrainConfig(out=Path("run"), **options)


def test_contradictions_are_reported_together() -> None:
    with pytest.raises(ConfigError) as raised:
        TrainConfig(out=Path("run"), peers=2, exchange="online", keep="best", parallel="fsdp", compile=True)
    assert len(raised.value.problems) == 4


def test_runs_without_peers_keep_their_identity() -> None:
    alone, together = TrainConfig(out=Path("a")), TrainConfig(out=Path("a"), peers=2)
    assert not {"peers", "peer", "exchange", "peer_weight"} & outcome_options(alone).keys()
    assert outcome_options(together).keys() - outcome_options(alone).keys() == {"peers"}
    assert "exchange" in outcome_options(dataclasses.replace(together, exchange="ensemble"))


def test_the_student_of_peers_is_measured_compressed_and_reported_as_any_other(config: Make, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(config(cached=False, peers=2, exchange="ensemble", epochs=2, out=out))
    found = evaluation.run(EvaluateConfig(run=out, out=tmp_path / "evaluation", device="cpu"))
    student = found.details["seeds"]["0"]["validation"]["accuracy"]
    assert student == pytest.approx(json.loads((out / "run.json").read_text())["seeds"][0]["accuracy"])
    alone = training_config(CompressConfig(runs=(out,), out=tmp_path / "c"), read_run(out))
    assert not alone.exchanging and isinstance(alone.goal, Objective)
    assert all(isinstance(epoch["accuracy"], float) for epoch in read_histories(out)[0])


def train(home: Path, out: str, ranks: int, *options: str) -> str:
    words = ("train", "--data", "arrays:data.npz", "--out", out, "--student", "mlp-4", "--epochs", "2", "--batch-size")
    return on_ranks(ranks, home, *words, "8", "--lr", "0.05", "--optimizer", "sgd", "--device", "cpu", *options)


def test_ranks_take_the_steps_of_one_process(tmp_path: Path) -> None:
    """Seven batches on two ranks: the last step of an epoch leaves one without a batch. The gate is learnt too."""
    save_examples(tmp_path)
    options = ("--peers", "6", "--exchange", "ensemble")  # enough to be stacked
    train(tmp_path, "alone", 1, "--accumulate", "2", *options)
    assert "took part as rank 1 of 2" in train(tmp_path, "shared", 2, *options)
    one, other = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("alone", "shared"))
    assert one["identity"] == other["identity"]
    histories = [json.loads((tmp_path / n / "seed-0" / "history.json").read_text()) for n in ("alone", "shared")]
    for a, b in zip(*histories, strict=True):
        for name in ("loss", "hard", "peers", "accuracy", "nll"):
            np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-5)
    for file in ("model", "peer-1"):
        weights = [load_file(tmp_path / name / "seed-0" / f"{file}.safetensors") for name in ("alone", "shared")]
        for name, value in weights[0].items():
            torch.testing.assert_close(value, weights[1][name], rtol=1e-3, atol=1e-4)
    gates = [record["seeds"][0]["ensemble"]["weights"] for record in (one, other)]
    assert gates[0] == pytest.approx(gates[1], rel=1e-4) and gates[0][0] != gates[0][1]


@pytest.mark.parametrize("own", [{"peers": 2}, {"peer": ("cnn-2",)}, {"mix": "heads", "labels": ("a", "b")}])
def test_a_sweep_refuses_what_is_of_one_student_at_a_time(own: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="of one student at a time: use softlabels train"):
        SweepConfig(out=Path("sweep"), grid=("lr=0.1,0.2",), **own)
