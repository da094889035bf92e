"""A model with a head for each teacher: what it gives, what each head learns, and how unsure it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from pipeline.compression import CompressConfig
from pipeline.compression.finetuning import training_config
from pipeline.dump import DumpConfig
from pipeline.dump import run as dump
from pipeline.errors import ConfigError, EncodingError, ModelError
from pipeline.evaluation.uncertainty import entropy_and_information
from pipeline.losses import distillation_loss, hard_loss
from pipeline.models import Hydra, build_model, check_model, load_weights, read_metadata, save_weights
from pipeline.references import is_own_code
from pipeline.runs import read_run
from pipeline.softlabels import Dense, Opinion, Opinions
from pipeline.training import TrainConfig
from pipeline.training import run as train
from pipeline.training.heads import HeadsObjective
from pipeline.training.objective import Batch, Output
from stages.cli import main
from tests.losses.references import kl64, softmax64

SHAPE, M, B, C = (1, 6, 6), 3, 5, 4


def hydra(reference: str = "mlp-8", **arguments: Any) -> Hydra:
    torch.manual_seed(0)
    made = build_model(f"hydra:{reference}", {"heads": M, **arguments}, classes=C, input_shape=SHAPE)
    assert isinstance(made, Hydra)
    return made


def logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("reference", ["mlp-8", "cnn-4"])
def test_heads_in_training_and_their_mean_probability_in_evaluation(reference: str) -> None:
    model, x = hydra(reference), torch.randn(B, *SHAPE)
    assert model.train()(x).shape == (M, B, C)
    model.eval()
    expected = np.mean([softmax64(each) for each in model.heads(x).detach().double().numpy()], axis=0)
    found = model(x)
    np.testing.assert_allclose(found.exp().detach().numpy(), expected, rtol=1e-5)
    check_model(model, classes=C, example_input=x)
    assert not torch.equal(model.heads(x)[0], model.heads(x)[1])


def test_the_body_is_that_of_the_student_of_the_same_seed() -> None:
    model = hydra()
    torch.manual_seed(0)
    alone = build_model("mlp-8", {}, classes=C, input_shape=SHAPE)
    assert torch.equal(model.body.get_parameter("hidden.weight"), alone.get_parameter("hidden.weight"))
    assert model.body.get_parameter("head.weight").shape == (M * C, 8)


def test_each_head_is_a_linear_layer_of_its_own() -> None:
    model, x = hydra().train(), torch.randn(B, *SHAPE)
    model(x)[1].sum().backward()
    gradient = model.body.get_parameter("head.weight").grad
    assert gradient is not None
    rows = gradient.reshape(M, C, -1).abs().sum(dim=(1, 2))
    assert rows[1] > 0 and not rows[[0, 2]].any()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (nn.Sequential(nn.Flatten(), nn.ReLU()), "Sequential has none: it is made of Flatten, ReLU"),
        (nn.Sequential(nn.Linear(4, C), nn.Linear(C, 7)), "should give 4 logits; 1 gives 7"),
    ],
)
def test_a_body_without_a_linear_layer_at_its_end_is_refused(body: nn.Module, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        Hydra(body, M, C)
    late = Hydra(nn.Sequential(nn.Linear(4, C), nn.AdaptiveAvgPool1d(C)), M, C)
    with pytest.raises(ModelError, match="should end in them, with 3 x 4 logits"):
        late(torch.randn(B, 4))


def test_references_to_it() -> None:
    for arguments in ({}, {"heads": 0}, {"heads": "two"}):
        with pytest.raises(ConfigError, match="needs a number of heads"):
            build_model("hydra:mlp-8", arguments, classes=C, input_shape=SHAPE)
    assert is_own_code("hydra:mine:build") and not is_own_code("hydra:mlp-8")


def test_weights_go_to_a_file_and_back(tmp_path: Path) -> None:
    model, x = hydra().eval(), torch.randn(B, *SHAPE)
    save_weights(tmp_path / "m.safetensors", model, {})
    other = build_model("hydra:mlp-8", {"heads": M}, classes=C, input_shape=SHAPE).eval()
    load_weights(other, tmp_path / "m.safetensors")
    assert torch.equal(other(x), model(x))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_each_head_learns_from_its_teacher_and_the_mean_from_hard_labels(temperature: float) -> None:
    student, labels = logits(M, B, C), torch.tensor([0, 3, -1, 2, 1])
    teachers = [logits(B, C, seed=n + 1) for n in range(M)]
    weights = torch.rand(M, B, dtype=torch.float64)
    soft = Opinions(tuple(Opinion(Dense(t), None, w) for t, w in zip(teachers, weights, strict=True)))
    goal = HeadsObjective(alpha=0.6, beta=0.4, temperature=temperature)
    found = goal(Output(student), Batch(labels=labels, soft=soft))
    expected = sum(
        float((w.numpy() * temperature**2 * kl64(softmax64(t.numpy(), temperature), softmax64(z, temperature))).sum())
        for w, t, z in zip(weights, teachers, student.numpy(), strict=True)
    )
    mean = np.mean([softmax64(z) for z in student.numpy()], axis=0)
    hard = -sum(np.log(mean[row, label]) for row, label in enumerate(labels.tolist()) if label >= 0)
    assert found.soft is not None and found.hard is not None
    assert float(found.soft) == pytest.approx(expected) and float(found.hard) == pytest.approx(hard)
    assert float(found.total) == pytest.approx(0.6 * expected + 0.4 * hard)
    with pytest.raises(EncodingError, match="3 heads need the soft labels of as many teachers; found 2"):
        goal(Output(student), Batch(labels=labels, soft=Opinions(soft.opinions[:2])))


def test_one_head_is_a_student() -> None:
    student, teacher, labels = logits(1, B, C), logits(B, C, seed=1), torch.tensor([0, 1, 2, 3, -1])
    soft = Opinions((Opinion(Dense(teacher), None, torch.ones(B, dtype=torch.float64)),))
    found = HeadsObjective(alpha=0.5, beta=0.5, temperature=2.0)(Output(student), Batch(labels=labels, soft=soft))
    own = distillation_loss(student[0], Dense(teacher), temperature=2.0) + hard_loss(student[0], labels)
    torch.testing.assert_close(found.total, 0.5 * own.sum())


def test_entropy_and_mutual_information_are_their_definitions() -> None:
    given = logits(M, 50, C).numpy()
    p = np.stack([softmax64(each) for each in given])
    entropy, information = entropy_and_information(given)
    mean = p.mean(axis=0)
    np.testing.assert_allclose(entropy, -(mean * np.log(mean)).sum(axis=1), rtol=1e-10)
    np.testing.assert_allclose(information, np.mean([kl64(each, mean) for each in p], axis=0), rtol=1e-8, atol=1e-12)
    assert not entropy_and_information(np.repeat(given[:1], M, axis=0))[1].max() > 1e-12
    # Members that are sure of different classes disagree about everything there is.
    sure = np.full((2, 1, 2), -1e4)
    sure[0, 0, 0] = sure[1, 0, 1] = 0.0
    entropy, information = entropy_and_information(sure)
    assert float(entropy[0]) == float(information[0]) == pytest.approx(np.log(2))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """data.npz, and a cache of each of three teachers; the last one top-k."""
    folder = tmp_path_factory.mktemp("hydra")
    random = np.random.default_rng(0)
    labels = np.arange(90) % 3
    x = (random.normal(size=(3, *SHAPE))[labels] + 2 * random.normal(size=(90, *SHAPE))).astype(np.float32)
    split = np.repeat(["train", "validation", "test"], [50, 20, 20])
    np.savez(folder / "data.npz", x=x, y=labels, split=split)
    for number in range(3):
        torch.manual_seed(number)
        weights = folder / f"t{number}.safetensors"
        save_weights(weights, build_model("mlp-8", {}, classes=3, input_shape=SHAPE), {})
        encoding: dict[str, Any] = {"encoding": "topk", "k": 2} if number == 2 else {}
        options: dict[str, Any] = {"data": f"arrays:{folder / 'data.npz'}", "teacher": "mlp-8", "weights": weights}
        dump(DumpConfig(**options, out=folder / f"c{number}", **encoding))
    return folder


def options(home: Path, out: Path, *caches: int, **extra: Any) -> TrainConfig:
    base: dict[str, Any] = {"data": f"arrays:{home / 'data.npz'}", "student": "mlp-4", "device": "cpu", "mix": "heads"}
    base |= {"labels": tuple(str(home / f"c{n}") for n in caches), "epochs": 3, "batch_size": 8, "lr": 0.02}
    return TrainConfig(**(base | {"out": out} | extra))


def test_a_run_from_the_command_line_to_its_uncertainty(home: Path, tmp_path: Path) -> None:
    def invoke(*words: str) -> dict[str, Any]:
        result = CliRunner().invoke(main, [*words, "--json"])
        assert result.exit_code == 0, result.output
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    out = tmp_path / "run"
    caches = [word for n in range(2) for word in ("--labels", str(home / f"c{n}"))]
    own = ["--data", f"arrays:{home / 'data.npz'}", "--student", "mlp-4", "--device", "cpu", "--epochs", "3"]
    report = invoke("train", *own, *caches, "--mix", "heads", "--out", str(out), "--seeds", "2")
    assert report["lineage"]["mix"] == "heads"
    metadata = read_metadata(out / "seed-0" / "model.safetensors")
    assert (metadata["reference"], metadata["args"]) == ("hydra:mlp-4", {"heads": 2})
    found = invoke("evaluate", "--run", str(out), "--out", str(tmp_path / "e"), "--device", "cpu")
    metrics, details = found["metrics"], found["details"]
    names = {"predictive_entropy", "mutual_information"}
    assert names | {f"teacher_{name}" for name in names} <= metrics.keys()
    assert details["seeds"]["0"]["validation"]["accuracy"] == pytest.approx(report["seeds"][0]["accuracy"])
    assert 0 < metrics["mutual_information"] < metrics["predictive_entropy"] <= round(np.log(3), 4)
    assert 0 < metrics["teacher_mutual_information"] < metrics["teacher_predictive_entropy"]
    assert set(details["uncertainty"]["seeds"]) == {"0", "1"}
    alone = invoke("evaluate", "--run", str(out), "--cache", "none", "--out", str(tmp_path / "n"), "--device", "cpu")
    assert alone["details"]["uncertainty"]["teachers"] is None and "teacher_mutual_information" not in alone["metrics"]
    plain = tmp_path / "plain"
    train(options(home, plain, 0, 1, mix="probs"))
    other = invoke("evaluate", "--run", str(plain), "--out", str(tmp_path / "p"), "--device", "cpu")
    assert "uncertainty" not in other["details"] and "mutual_information" not in other["metrics"]


def test_each_head_of_a_trained_student_answers_as_its_own_teacher(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(options(home, out, 0, 1, alpha=1.0, epochs=100, temperature=1.0, student="mlp-32"))
    kept = np.load(home / "data.npz")
    x = torch.from_numpy(kept["x"][:50])
    student = Hydra(build_model("mlp-32", {}, classes=3, input_shape=SHAPE), 2, 3)
    load_weights(student, out / "seed-0" / "model.safetensors")
    teachers = [build_model("mlp-8", {}, classes=3, input_shape=SHAPE) for _ in range(2)]
    for number, teacher in enumerate(teachers):
        load_weights(teacher, home / f"t{number}.safetensors")
    with torch.no_grad():
        heads = [softmax64(each.numpy()) for each in student.eval().heads(x)]
        said = [softmax64(teacher(x).numpy()) for teacher in teachers]
    between = np.array([[kl64(p, q).mean() for q in heads] for p in said])
    assert between.diagonal().max() < 0.2 * min(between[0, 1], between[1, 0])


def test_topk_labels_serve(home: Path, tmp_path: Path) -> None:
    train(options(home, tmp_path / "run", 0, 2, temperature=1.0, epochs=10))
    history = json.loads((tmp_path / "run" / "seed-0" / "history.json").read_text())
    assert 0 < history[-1]["soft"] < history[0]["soft"]


def test_compression_learns_from_the_caches_of_the_heads(home: Path, tmp_path: Path) -> None:
    train(options(home, tmp_path / "run", 0, 1, epochs=1))
    found = read_run(tmp_path / "run")
    kept = training_config(CompressConfig(runs=(found.path,), out=tmp_path / "c"), found)
    assert isinstance(kept.goal, HeadsObjective)
    with pytest.raises(ConfigError, match="a head for each of its caches"):
        training_config(CompressConfig(runs=(found.path,), out=tmp_path / "c", cache=str(home / "c0")), found)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"labels": ("a",), "mix": "heads"}, "--mix heads is for two or more --labels"),
        ({"labels": ("a", "b"), "mix": "heads", "alpha": 0.0}, "--mix heads needs soft labels"),
        ({"labels": ("a", "b"), "mix": "heads", "peers": 2}, "leave out --peers and --peer"),
        ({"student": "hydra:mlp-8"}, "heads are made by --mix heads"),
    ],
)
def test_each_mistake_is_named(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TrainConfig(out=Path("run"), **given)
