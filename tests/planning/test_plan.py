"""A plan says what a dump then does: bytes, KL, identity, and the command that makes it."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pipeline import dump
from pipeline.dump import DumpConfig
from pipeline.errors import ConfigError, EncodingError, ModelError
from pipeline.models import build_model, save_weights
from pipeline.planning import PlanConfig, PlanReport, run
from pipeline.store import Cache, open_cache
from stages.cache import command as cache_command
from stages.dump import command as dump_command
from stages.options import settings_from

COUNTS = {"train": 700, "validation": 90, "test": 110}


def write_data(folder: Path, classes: int) -> str:
    random = np.random.default_rng(0)
    splits = np.concatenate([[name] * count for name, count in COUNTS.items()])
    labels = np.arange(len(splits)) % classes
    images = random.normal(size=(len(splits), 1, 8, 8)).astype(np.float32)
    names = np.array([f"class {n}" for n in range(classes)])
    np.savez(folder / f"{classes}.npz", x=images, y=labels, split=splits, classes=names)
    return f"arrays:{folder / f'{classes}.npz'}"


def write_teacher(folder: Path, classes: int) -> Path:
    """An untrained mlp-16 whose last layer is so large that its distributions are no longer even."""
    torch.manual_seed(0)
    model = build_model("mlp-16", {}, classes=classes, input_shape=(1, 8, 8))
    with torch.no_grad():
        list(model.parameters())[-2].mul_(8)
    save_weights(folder / f"{classes}.safetensors", model, {})
    return folder / f"{classes}.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plan")


def options_of(folder: Path, classes: int = 40, **more: Any) -> dict[str, Any]:
    given = {"data": write_data(folder, classes), "weights": write_teacher(folder, classes), "device": "cpu"}
    return {"teacher": "mlp-16", "sample": 200, "batch_size": 64, **given, **more}


def with_views(folder: Path, **more: Any) -> dict[str, Any]:
    return options_of(folder, views=2, transform="affine:degrees=20", **more)


def dumped(report: PlanReport, config: PlanConfig, name: str, out: Path) -> Cache:
    """The cache that a dump makes with the encoding ``name`` of the table."""
    found = next(each for each in report.estimates if each.name == name)
    dump.run(dataclasses.replace(config.dump(), out=out, **found.options))
    return open_cache(out)


@pytest.mark.parametrize("store", ["zarr", "parquet"])
def test_the_figures_are_those_of_the_dump(folder: Path, tmp_path: Path, store: str):
    config = PlanConfig(**with_views(folder, store=store, features=("hidden=hidden",), k=(8,), part_size=300))
    report = run(config)
    assert report.entries == 3 * 700 + 90 + 110
    for name in ("dense float32", "dense int8", "topk-8"):
        estimate = next(each for each in report.estimates if each.name == name)
        cache = dumped(report, config, name, tmp_path / name)
        assert (estimate.identity, estimate.parts) == (cache.digest, len(cache.parts))
        found, held = cache.describe(), cache.sizes()
        assert estimate.bytes_per_label == pytest.approx(found["bytes_per_label"], rel=0.03)
        assert estimate.bytes["total"] == pytest.approx(found["bytes"]["total"], rel=0.03)
        assert estimate.bytes["index"] == pytest.approx(held["index"], rel=0.02)
        assert estimate.bytes["features"] == held["features.zarr/hidden"] > 0
        assert estimate.bytes["other"] == pytest.approx(held["metadata"], rel=0.05)
        assert sum(estimate.bytes.values()) == 2 * estimate.bytes["total"]
        for temperature, kl in cache.manifest.fidelity["kl"].items():
            assert estimate.kl[temperature]["mean"] == pytest.approx(kl["mean"], rel=0.15, abs=1e-12)
        assert estimate.top1_agreement == pytest.approx(cache.manifest.fidelity["top1_agreement"], abs=0.03)


def test_a_sample_of_everything_has_the_kl_of_everything(folder: Path, tmp_path: Path):
    # Parts of at most 64 entries, so that the dump compares every entry.
    config = PlanConfig(**options_of(folder, sample=10_000, k=(3,), part_size=64))
    report = run(config)
    assert report.sample == report.entries == sum(COUNTS.values())
    fidelity = dumped(report, config, "topk-3", tmp_path / "cache").manifest.fidelity
    assert fidelity["entries_compared"] == report.entries
    for temperature, kl in fidelity["kl"].items():
        assert report.estimates[-1].kl[temperature] == pytest.approx(kl, rel=1e-5)
    assert report.estimates[-1].top1_agreement == fidelity["top1_agreement"]


def test_nothing_is_written(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    options = with_views(folder, features=("hidden=hidden",))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    before = sorted(folder.iterdir())
    run(PlanConfig(**options))
    assert sorted(folder.iterdir()) == before
    assert [path.name for path in tmp_path.rglob("*")] == ["work"]


def test_the_same_seed_gives_the_same_figures(folder: Path):
    options = with_views(folder, k=(5,))

    def figures(seed: int) -> Any:
        found = run(PlanConfig(**options, seed=seed)).estimates[-1]
        return found.bytes, found.kl, found.angles, found.top1_agreement

    assert figures(3) == figures(3)
    assert figures(3) != figures(4)


def test_fewer_classes_are_less_faithful_and_turn_the_gradient_further(folder: Path):
    report = run(PlanConfig(**options_of(folder, k=(2, 8, 40))))
    exact, half, int8, *kept = report.estimates
    assert [each.name for each in kept] == ["topk-40", "topk-8", "topk-2"]
    assert exact.kl["1"]["mean"] == exact.kl["4"]["max"] == 0 and exact.top1_agreement == 1
    assert all(angles.rows == angles.batch == 0 for angles in exact.angles.values())
    for temperature in ("1", "4"):
        losses = [each.kl[temperature]["mean"] for each in (exact, half, int8, kept[1], kept[2])]
        assert losses == sorted(losses) and losses[3] > 0.001
    for student in ("untrained", "half_trained"):
        turned = [each.angles[student].rows for each in (exact, half, int8, kept[1], kept[2])]
        assert turned == sorted(turned) and turned[-1] > 10
        # All classes kept: what is left is float16's rounding.
        assert kept[0].angles[student].rows < 0.1
    assert kept[1].bytes_per_label > kept[2].bytes_per_label


def test_more_k_than_classes_is_a_line_of_the_table(folder: Path):
    report = run(PlanConfig(**options_of(folder, k=(41, 5))))
    assert report.estimates[-2].problem is not None and "40" in report.estimates[-2].problem
    assert "topk-41" in report.table and report.estimates[-1].problem is None
    json.dumps(report.as_dict(), allow_nan=False)


def test_one_class(folder: Path):
    report = run(PlanConfig(**options_of(folder, classes=1)))
    assert [each.name for each in report.estimates][-1] == "topk-1"
    for each in report.estimates:
        assert each.kl["4"]["mean"] == 0 and each.top1_agreement == 1
        assert all(angles.rows == 0 for angles in each.angles.values())


def test_what_a_dump_refuses_a_plan_refuses(folder: Path):
    options = options_of(folder)
    with pytest.raises(ModelError, match="does not fit"):
        run(PlanConfig(**{**options, "data": write_data(folder, 12)}))
    wrong = {
        "sample": 0,
        "budget": "5XB",
        "batch_size": -1,
        "max_kl": -1.0,
        "store": "zar",
        "k": (0,),
        "temperature": 0.0,
    }
    with pytest.raises(ConfigError) as refused:
        PlanConfig(**{**options, **wrong})
    named = [f"--{name.replace('_', '-')} " for name in wrong]
    assert [sum(problem.startswith(name) for problem in refused.value.problems) for name in named] == [1] * len(wrong)


def test_an_entry_that_cannot_be_kept_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch):
    from torch import nn

    forward = nn.Linear.forward

    def infinite(self: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        found = forward(self, x)
        return found if len(x) == 1 or found.shape[1] != 40 else found * torch.tensor(float("inf"))

    monkeypatch.setattr(nn.Linear, "forward", infinite)
    with pytest.raises(EncodingError, match=r"example .* view 0: logits should be finite"):
        run(PlanConfig(**options_of(folder)))


def invoke(options: dict[str, Any], *more: str) -> Any:
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    return CliRunner().invoke(cache_command, ["plan", *words, *more])


def test_the_table(folder: Path):
    found = invoke(with_views(folder))
    assert found.exit_code == 0, found.output
    lines = found.stdout.splitlines()
    assert max(map(len, lines[1:])) <= 110
    for words in ("dense float32", "dense float16", "dense int8", "topk-16", "topk-4", "train 700 x 3 views", "KL T=4"):
        assert words in found.stdout
    rows = [line for line in lines if line.startswith(("encoding", "dense", "topk"))]
    assert len({len(row) for row in rows}) == 1
    assert "picked" not in found.stdout and "softlabels dump" not in found.stdout
    assert lines[-1] == "200 of 2,300 entries asked; nothing was written"


def test_json_holds_everything(folder: Path):
    found = json.loads(invoke(options_of(folder, temperature=2, max_kl=0.001), "--json").stdout)
    assert found["picked"] and found["command"].endswith("--out CACHE") and found["temperature"] == 2
    assert set(found["meanings"]) <= set(found["estimates"][0])
    sound = found["estimates"][0]
    assert set(sound["bytes"]) == {"labels", "features", "index", "other", "total"}
    assert set(sound["angles"]) == {"untrained", "half_trained"} and set(sound["kl"]) == {"1", "2"}
    assert sound["hours"] == pytest.approx(sound["seconds"]["dump"] / 3600)


def test_the_command_that_is_printed_makes_the_cache(folder: Path, tmp_path: Path):
    options = with_views(folder, classes=200, temperature=2, max_kl=9, k=8)
    lines = invoke(options).stdout.splitlines()
    words = shlex.split(lines[-1])
    assert words[:2] == ["softlabels", "dump"] and words[-2:] == ["--out", "CACHE"]
    words[-1] = str(tmp_path / "cache")
    context = dump_command.make_context("dump", words[2:])
    config = settings_from(DumpConfig, context.params)
    assert isinstance(config, DumpConfig)
    assert (config.encoding, config.k, config.dtype, config.temperature) == ("topk", 8, "float16", (1.0, 2.0))
    report = dump.run(config)
    planned = json.loads(invoke(options, "--json").stdout)
    (picked,) = [each for each in planned["estimates"] if each["name"] == planned["picked"]]
    assert report.identity == picked["identity"]


def test_what_does_not_fit_is_status_1_below_the_table(folder: Path):
    found = invoke(options_of(folder, classes=200, budget="3kB"))
    assert found.exit_code == 1 and "dense int8" in found.stdout
    assert "takes at most 3kB: the smallest, topk-4" in found.stderr
    assert invoke(options_of(folder, budget="3 things")).exit_code == 2
    refused = json.loads(invoke(options_of(folder, classes=200, budget="3kB"), "--json").stdout)
    assert refused["picked"] is None and "3kB" in refused["refused"]
