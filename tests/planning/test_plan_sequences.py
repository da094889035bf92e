"""A plan for token sequences: the turn of the gradient against autograd, what a dump then takes, and the choice."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from pipeline import dump, encodings
from pipeline.dump import DumpConfig
from pipeline.encodings import Dense, Encoding, Sampled, TopK, position_keys
from pipeline.errors import ConfigError, EncodingError
from pipeline.losses import distillation_loss
from pipeline.models import build_model, save_weights
from pipeline.planning import Estimate, PlanConfig, choose, run
from pipeline.planning.choosing import biased, reason, recommended, ways
from pipeline.planning.parameters import Moments, Turn, kept, stood_for, turn
from pipeline.planning.standing import Standing, leading
from pipeline.store import open_cache
from stages.cache import command as cache_command
from stages.dump import command as dump_command
from stages.options import settings_from
from tests.sequences import VOCABULARY

RANDOM = np.random.default_rng(0)
LOGITS = (RANDOM.standard_normal((300, 40)) * 2).astype(np.float32)
ENCODINGS = [
    Dense("int8"),
    TopK(5, "float16", (1.0, 2.0)),
    TopK(40, "float32", (1.0, 2.0)),
    Sampled(12),
    Sampled(12, temperature=2.0),
    Sampled(12, proposal=0.7),
]


def labels_of(encoding: Encoding, logits: np.ndarray = LOGITS) -> Any:
    return encoding.decode(encoding.encode(logits, position_keys(0, len(logits))), logits.shape[1])


def temperature_of(encoding: Encoding) -> float:
    return encoding.temperatures[-1] if encoding.temperatures else 2.0


EVENLY = [each for each in ENCODINGS if isinstance(each, TopK)]
WAYS = [*((each, "one") for each in ENCODINGS), *((each, "even") for each in EVENLY)]


@pytest.mark.parametrize(
    ("encoding", "bare", "residual"),
    [*((each, False, residual) for each, residual in WAYS), (ENCODINGS[1], True, "one")],
    ids=str,
)
def test_labels_stand_for_what_the_loss_takes_them_for(encoding: Encoding, bare: bool, residual: str):
    soft, at = labels_of(encoding), temperature_of(encoding)
    soft = (soft.bare() if bare else soft).map(torch.from_numpy)
    student = torch.randn(300, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    losses = distillation_loss(student, soft, temperature=at, residual=residual)
    (gradient,) = torch.autograd.grad(losses.sum(), student)
    q = (student.detach() / at).softmax(dim=1)
    assert (q - stood_for(soft, q, at, residual)).sub(gradient / at).abs().max() < 2e-6


def test_a_student_that_is_sure_loses_nothing_to_rounding():
    logits = LOGITS.copy()
    logits[:, 0] += 30
    soft = labels_of(TopK(5, "float32"), logits).map(torch.from_numpy)
    student = torch.from_numpy(0.8 * logits.astype(np.float64)).requires_grad_()
    (gradient,) = torch.autograd.grad(distillation_loss(student, soft, temperature=1.0).sum(), student)
    q = student.detach().softmax(dim=1)
    expected = (q - gradient)[:, 1:]
    found = stood_for(soft, q.float(), 1.0).double()[:, 1:]
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-12) and float(expected.max()) < 1e-8


@pytest.mark.parametrize(("encoding", "residual"), WAYS[1:], ids=str)
def test_sparse_sums_are_those_of_all_classes(encoding: Encoding, residual: str):
    soft, at = labels_of(encoding).map(torch.from_numpy), temperature_of(encoding)
    q, hidden = torch.rand(300, 40).double().softmax(dim=1), torch.randn(300, 7).double()
    found = torch.zeros(40, 7).double()
    kept(soft, q, at, residual).add_to(found, q, hidden)
    assert torch.allclose(found, stood_for(soft, q, at, residual).T @ hidden, atol=1e-6)


@pytest.mark.parametrize(("encoding", "residual"), WAYS, ids=str)
def test_the_turn_is_that_of_autograd_in_a_linear_layer(encoding: Encoding, residual: str):
    at, soft = temperature_of(encoding), labels_of(encoding)
    student = Standing.of(LOGITS, RANDOM.standard_normal((300, 9)), at)
    layer = nn.Linear(9, 40).double()
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[:, : len(student.middle)] = student.weight
        layer.bias.copy_(student.bias - student.weight @ student.middle)
    gradients = []
    for labels, how in ((Dense("float32").decode({"logits": LOGITS}, 40), "one"), (soft, residual)):
        outputs, labels = layer(student.hidden.double()), labels.map(torch.from_numpy)
        losses = distillation_loss(outputs, labels, temperature=at, residual=how)
        gradients.append(torch.autograd.grad(losses.sum(), layer.weight)[0].numpy().ravel())
    full, found = gradients
    lengths = [np.linalg.norm(each) for each in gradients]
    expected = math.degrees(math.acos(min(1.0, full @ found / lengths[0] / lengths[1])))
    turned = student.turns(soft, residual)["sample"]
    assert turned.angle == pytest.approx(expected, rel=1e-3, abs=2e-3)
    assert turned.ratio == pytest.approx(lengths[1] / lengths[0], rel=1e-5)
    assert turned.positions == 300


def test_the_student_is_linear_and_knows_half():
    random = np.random.default_rng(4)
    hidden, weight = random.standard_normal((500, 6)) * [6, 5, 4, 0.3, 0.2, 0.1], random.standard_normal((30, 6))
    logits = (hidden @ weight.T + 0.5).astype(np.float32)
    student = Standing.of(logits, hidden, 1.0)
    (_, _, p, q), *rest = student.batches()
    assert not rest and torch.allclose(p, torch.from_numpy(logits).softmax(dim=1), atol=1e-6)
    # Of three directions that hold nearly everything it has learnt half; its bias is the mean.
    mean = logits.mean(axis=0)
    expected = mean + 0.5 * ((hidden - hidden.mean(axis=0)) * [1, 1, 1, 0, 0, 0]) @ weight.T
    assert np.abs(q.log().numpy() - torch.from_numpy(expected).log_softmax(dim=1).numpy()).max() < 0.3
    without = Standing.of(logits, None, 1.0)
    assert without.hidden.shape == (500, 6)


@pytest.mark.parametrize("shape", [(20, 90), (90, 20), (1, 5)])
def test_leading_coordinates_keep_products(shape: tuple[int, int]):
    values = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    found = leading(values)
    assert found.shape[1] == min(shape)
    assert np.allclose(found @ found.T, values.astype(np.float64) @ values.T.astype(np.float64), atol=1e-4)
    assert leading(np.random.default_rng(1).standard_normal((200, 100))).shape == (200, 64)


def test_moments_tell_the_products_of_other_numbers_of_positions():
    random = np.random.default_rng(7)
    every = random.standard_normal((40_000, 5)) + np.array([0.3, 0, 0, 0, 0])

    def moments(values: np.ndarray) -> Moments:
        return Moments(float(np.square(values.sum(axis=0)).sum()), float(np.square(values).sum()), len(values))

    first = every[:500]
    assert moments(first).over(500) == pytest.approx(np.square(first.mean(axis=0)).sum())
    # Over many samples of 100 the expectation over 400 is what samples of 400 have in the mean.
    few = np.mean([moments(part).over(400) for part in every.reshape(400, 100, 5)])
    many = np.mean([np.square(part.mean(axis=0)).sum() for part in every.reshape(100, 400, 5)])
    assert few == pytest.approx(0.09 + 5 / 400, rel=0.08) and many == pytest.approx(few, rel=0.1)
    assert Moments(4.0, 8.0, 2).over(400) < 0 < Moments(4.0, 8.0, 2).over(400, square=True)


def test_noise_averages_out_and_a_bias_does_not():
    random = np.random.default_rng(2)
    hidden = random.standard_normal((2000, 8))
    logits = (hidden @ random.standard_normal((8, 400)) - 0.02 * np.arange(400)).astype(np.float32)
    student = Standing.of(logits, hidden, 1.0)
    noisy, bare = student.turns(labels_of(Sampled(6), logits)), student.turns(labels_of(TopK(4), logits).bare())
    factor = math.sqrt(noisy["step"].positions / 2000)
    assert noisy["step"].angle == pytest.approx(noisy["sample"].angle / factor, rel=0.25)
    assert bare["step"].angle == pytest.approx(bare["sample"].angle, rel=0.1) and bare["step"].angle > 3
    assert noisy["step"].ratio == pytest.approx(1, abs=0.01)


def test_turns_of_nothing_and_of_opposites():
    assert Turn.of(0.0, 0.0, 0.0, 1) == Turn(0.0, 1.0, 1)
    assert Turn.of(1.0, 0.0, 0.0, 1) == Turn(90.0, math.inf, 1)
    assert Turn.of(4.0, -2.0, 1.0, 1) == Turn(180.0, 1.0, 1)
    small = Turn.of(1e-18, 0.0, 1.0, 1)
    assert small.angle == pytest.approx(math.degrees(1e-9))
    matrices = torch.eye(3)
    assert turn(matrices, matrices, 2 * matrices, 5) == Turn(0.0, 1.0, 5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With an untrained gpt-16 whose last layer is so large that its distributions are no longer even."""
    found = tmp_path_factory.mktemp("plan")
    torch.manual_seed(0)
    model = build_model("gpt-16", {"layers": 1}, classes=VOCABULARY, input_shape=(12,))
    with torch.no_grad():
        model.head.weight.mul_(60)
    save_weights(found / "teacher.safetensors", model, {})
    return found


def options_of(folder: Path, data: str = "uneven", **more: Any) -> dict[str, Any]:
    given = {"data": f"tests.sequences:{data}", "weights": folder / "teacher.safetensors", "device": "cpu"}
    return {"teacher": "gpt-16", "teacher_args": ("layers=1",), "batch_size": 8, "threads": 1, **given, **more}


@pytest.mark.parametrize(("data", "store"), [("uneven", "zarr"), ("even", "parquet")])
def test_the_figures_are_those_of_the_dump(folder: Path, tmp_path: Path, data: str, store: str):
    config = PlanConfig(**options_of(folder, data, store=store, k=(4,), draws=(10,), part_size=10))
    report = run(config)
    assert report.temperature == 1 and report.entries == 60 and report.positions == report.sample
    assert [each.name for each in report.estimates][:2] == ["dense float16", "dense int8"]
    for name in ("dense float16", "topk-4", "sampled-10"):
        estimate = next(each for each in report.estimates if each.name == name)
        made = dump.run(dataclasses.replace(config.dump(), out=tmp_path / name, **estimate.options))
        cache = open_cache(tmp_path / name)
        assert estimate.identity == made.identity == cache.digest and estimate.parts == len(cache.parts)
        assert made.positions == report.positions
        labels = cache.sizes()
        stored = sum(size for what, size in labels.items() if what.startswith("labels"))
        assert estimate.bytes["labels"] == pytest.approx(stored, rel=0.1)
        assert estimate.bytes["total"] == pytest.approx(cache.describe()["bytes"]["total"], rel=0.1)
        fidelity = cache.manifest.fidelity
        assert estimate.top1_agreement == pytest.approx(fidelity["top1_agreement"], abs=0.05)
        if name == "sampled-10":
            assert estimate.kl == {} and estimate.kept == pytest.approx(fidelity["draws"]["classes"], rel=0.05)
        else:
            assert estimate.kl["1"]["mean"] == pytest.approx(fidelity["kl"]["1"]["mean"], rel=0.1)


def test_hidden_states_and_logits_are_of_the_same_positions(folder: Path):
    from pipeline.dump import prepare
    from pipeline.planning.sampling import ask_sample
    from pipeline.progress import Silent

    job = prepare(PlanConfig(**options_of(folder)).dump())
    sample = ask_sample(job, 100, 0, Silent())
    assert sample.logits.shape == (100, VOCABULARY) and sample.hidden is not None
    assert np.allclose(job.teacher.head(torch.from_numpy(sample.hidden)).detach(), sample.logits, atol=1e-4)


def invoke(options: dict[str, Any], *more: str) -> Any:
    words = []
    for name, value in options.items():
        for each in value if isinstance(value, tuple) else (value,):
            words.append(f"--{name.replace('_', '-')}={each}")
    return CliRunner().invoke(cache_command, ["plan", *words, *more])


def test_the_table_and_the_command(folder: Path, tmp_path: Path):
    options = options_of(folder, draws=(4, 50), k=(4,))
    found = invoke(options)
    assert found.exit_code == 0, found.output
    lines = found.stdout.splitlines()
    assert max(map(len, lines[1:-2])) <= 120
    for words in ("B/token", "sampled-50", "vocabulary of 24", "16,384 positions", "a position", "length"):
        assert words in found.stdout
    (row,) = [line.split() for line in lines if line.startswith("sampled-50")]
    assert row[5] == "-"
    assert "To be recommended: " in lines[-2] and "B per token" in lines[-2]
    words = shlex.split(lines[-1])
    assert words[:2] == ["softlabels", "dump"] and words[-2:] == ["--out", "CACHE"]
    words[-1] = str(tmp_path / "cache")
    context = dump_command.make_context("dump", words[2:])
    config = settings_from(DumpConfig, context.params)
    assert isinstance(config, DumpConfig)
    planned = json.loads(invoke(options, "--json").stdout)
    (advised,) = [each for each in planned["estimates"] if each["name"] == planned["recommended"]]
    assert dump.run(config).identity == advised["identity"]


def test_draws_are_spelt_out_though_they_are_the_default(folder: Path):
    found = json.loads(invoke(options_of(folder, draws=50, k=1, budget="5.5kB"), "--json").stdout)
    sampled = next(each for each in found["estimates"] if each["name"] == "sampled-50")
    assert set(sampled["turns"]) == {"sample", "step"} and sampled["bare"] == {} and sampled["kl"] == {}
    from pipeline.planning.choosing import dump_options

    config = PlanConfig(**options_of(folder))
    picked = Estimate(name="sampled-50", options={"encoding": "sampled", "draws": 50, "temperature": (1.0,)})
    assert "--encoding sampled --draws 50 --temperature 1" in dump_options(config, picked)


def test_what_cannot_be(folder: Path):
    with pytest.raises(ConfigError, match="--draws should be at least 1"):
        PlanConfig(**options_of(folder, draws=(0,)))
    report = run(PlanConfig(**options_of(folder, k=(25, 4), draws=(3,), sample=50)))
    assert "24" in str(next(each for each in report.estimates if each.name == "topk-25").problem)
    json.dumps(report.as_dict(), allow_nan=False)


def estimate(name: str, total: int, angle: float, ratio: float, kl: float | None) -> Estimate:
    turns = {"sample": Turn(angle, ratio, 100), "step": Turn(angle, ratio, 16_384)}
    kls = {} if kl is None else {"1": {"mean": kl, "max": kl}}
    return Estimate(name=name, options={}, bytes={"total": total}, bytes_per_label=1.0, kl=kls, turns=turns)


TABLE = [
    Estimate(name="broken", options={}, problem="it cannot"),
    estimate("dense", 10_000, 0.01, 1.0, 1e-6),
    estimate("topk-64", 500, 1.0, 1.03, 0.01),
    estimate("sampled-100", 400, 2.0, 1.001, None),
    estimate("sampled-50", 250, 3.0, 1.002, None),
    estimate("topk-16", 200, 1.5, 0.94, 0.1),
    estimate("sampled-25", 150, 5.0, 1.01, None),
    estimate("topk-8", 90, 2.5, 0.9, 0.2),
    estimate("topk-4", 50, 9.0, 0.8, 0.4),
]


@pytest.mark.parametrize(
    ("budget", "max_kl", "name"),
    [
        ("20kB", None, "dense"),
        ("600", None, "sampled-100"),
        ("399", None, "sampled-50"),
        ("150", None, "sampled-25"),
        ("149", None, "topk-8"),
        ("60", None, "topk-4"),
        (None, 0.15, "topk-16"),
        ("600", 0.05, "topk-64"),
        (None, None, None),
    ],
)
def test_the_choice(budget: str | None, max_kl: float | None, name: str | None):
    config = PlanConfig(teacher="x:y", temperature=1, budget=budget, max_kl=max_kl)
    picked = choose(TABLE, config)
    assert (picked and picked.name) == name


def test_the_reason_names_what_was_passed_over():
    config = PlanConfig(teacher="x:y", temperature=1, budget="450")
    picked = choose(TABLE, config)
    assert picked is not None and picked.name == "sampled-100"
    assert "topk-16 turn it less, but change its length" in reason(picked, TABLE, config)
    config = PlanConfig(teacher="x:y", temperature=1, budget="60")
    picked = choose(TABLE, config)
    assert picked is not None and biased(picked) and "0.800 of what it should be" in reason(picked, TABLE, config)


def test_the_recommendation_is_the_smallest_that_turns_little():
    advised = recommended(TABLE)
    assert advised is not None and advised.name == "sampled-50"
    far = recommended([each for each in TABLE if each.name in ("broken", "topk-4", "sampled-25")])
    assert far is not None and far.name == "sampled-25"
    assert recommended(TABLE[:1]) is None


def test_a_residual_spread_evenly_is_a_way_of_its_own_where_that_turns_a_step_less():
    def topk(angle: float, ratio: float) -> Estimate:
        even = {"sample": Turn(angle, ratio, 100), "step": Turn(angle, ratio, 16_384)}
        return dataclasses.replace(estimate("topk-4", 50, 3.0, 0.99, 0.1), even=even)

    assert list(ways(TABLE[1])) == [TABLE[1]]
    for worse in (topk(3.1, 1.0), topk(1.0, 0.97)):
        assert list(ways(worse)) == [worse], "a wrong length is worse than an angle"
    plain, even = ways(topk(2.0, 1.01))
    assert (plain.name, plain.residual, even.name, even.residual) == ("topk-4", "one", "topk-4 even", "even")
    assert even.turns["step"].angle == 2 and even.bytes == plain.bytes and even.even == even.bare == {}
    config = PlanConfig(teacher="x:y", temperature=1, budget="60")
    picked = choose([plain, even], config)
    assert picked is even is recommended([plain, even])
    assert "2.0 degrees where it is trained with --loss-args residual=even" in reason(even, [plain, even], config)
    assert "residual" not in reason(plain, [plain], config)


def test_the_plan_measures_both_ways(folder: Path):
    report = run(PlanConfig(**options_of(folder, k=(4,), draws=(3,))))
    for each in report.estimates:
        assert bool(each.even) == (each.name.startswith("topk") and each.residual == "one")
    evenly = [each for each in report.estimates if each.residual == "even"]
    assert {each.name for each in evenly} == {
        f"{each.name} even"
        for each in report.estimates
        if each.even and (biased(each), each.turns["step"].angle) > _of_even(each)
    }
    assert ("residual=even" in report.table) == bool(evenly)


def _of_even(each: Estimate) -> tuple[bool, float]:
    return abs(each.even["step"].ratio - 1) > 0.02, each.even["step"].angle


def test_a_kl_that_only_draws_fit_below_is_refused():
    config = PlanConfig(teacher="x:y", temperature=1, budget="300", max_kl=0.05)
    sampled = [each for each in TABLE if each.name in ("dense", "sampled-50", "sampled-25")]
    with pytest.raises(EncodingError) as refused:
        choose(sampled, config)
    for words in ("sampled-25, takes 150 B and has no KL", "dense, takes 10.0 kB"):
        assert words in str(refused.value)
    with pytest.raises(EncodingError, match="has no KL"):
        choose(sampled[1:], PlanConfig(teacher="x:y", temperature=1, max_kl=0.05))


def test_encodings_made_are_those_of_the_options():
    made = encodings.make("sampled", n=50, seed=0)
    assert made == DumpConfig(teacher="x:y", encoding="sampled", draws=50, out=Path("x")).kept()
