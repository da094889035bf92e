"""``softlabels evaluate --corruptions --outliers``, as commands on the digits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from pipeline.corruptions import CORRUPTIONS, corrupt
from pipeline.datasets import load_dataset
from pipeline.errors import ConfigError
from pipeline.evaluation import EvaluateConfig
from pipeline.models import build_model, load_weights
from pipeline.training import TrainConfig
from pipeline.training import run as train
from stages.cli import main
from tests.small_pipeline import write_images

DIGITS = load_dataset("digits")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of a small student of the digits."""
    out = tmp_path_factory.mktemp("runs") / "mlp"
    train(TrainConfig(data="digits", student="mlp-16", out=out, alpha=0.0, epochs=8, seeds=2, lr=0.01, device="cpu"))
    return out


def command(run: Path, out: Path, *options: str) -> Result:
    return CliRunner().invoke(
        main, ["evaluate", "--run", str(run), "--out", str(out), "--device", "cpu", "--threads", "1", *options]
    )


def written(out: Path, name: str = "details") -> dict[str, Any]:
    return dict(json.loads((out / f"{name}.json").read_text()))


BOTH = ("--corruptions", "occlusion", "--corruptions", "fog", "--severities", "2", "--severities", "5",
        "--outliers", "noise")  # fmt: skip


@pytest.fixture(scope="module")
def done(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "e"
    found = command(run, out, *BOTH, "--workers", "0")
    assert found.exit_code == 0, found.output
    return out


def test_the_figures_are_those_of_the_models(run: Path, done: Path) -> None:
    details, rows = written(done), DIGITS.rows("test").tolist()
    labels = DIGITS.labels[rows]
    for seed in ("0", "1"):
        model = build_model("mlp-16", {}, classes=10, input_shape=(1, 8, 8)).eval()
        load_weights(model, run / f"seed-{seed}" / "model.safetensors")

        def guesses(images: list[torch.Tensor], model: torch.nn.Module = model) -> np.ndarray:
            with torch.no_grad():
                return model(torch.stack(images)).argmax(dim=1).numpy()

        own = guesses([DIGITS.load(row) for row in rows])
        found = details["robustness"]["models"][seed]
        assert found["clean"]["accuracy"] == details["seeds"][seed]["accuracy"]
        for name in ("occlusion", "fog"):
            for level in (2, 5):
                seen = guesses([corrupt(DIGITS.load(r), name, level, seed=0, example_id=DIGITS.ids[r]) for r in rows])
                figures = found["by_corruption"][name][str(level)]
                assert figures["accuracy"] == (seen == labels).mean() < found["clean"]["accuracy"]
                assert figures["agreement"] == (seen == own).mean()
        assert details["outliers"]["models"][seed]["confidence_outside"] > 0.1
    assert details["outliers"]["examples_inside"] == details["outliers"]["examples_outside"] == len(rows)


def test_the_flat_figures_are_means_over_seeds(done: Path) -> None:
    details, flat = written(done), written(done, "metrics")
    for part, names in (
        ("robustness", ("accuracy", "nll", "ece", "agreement", "drop")),
        ("outliers", ("auroc", "fpr95", "energy_auroc", "energy_fpr95", "confidence")),
    ):
        for name in names:
            key = f"{'corrupted' if part == 'robustness' else 'outlier'}_{name}"
            values = [model["summary"][key] for model in details[part]["models"].values()]
            assert len(values) == 2 and flat[key] == round(float(np.mean(values)), 4)
    assert 0 < flat["corrupted_accuracy"] < flat["accuracy"] and 0.5 < flat["outlier_energy_auroc"] <= 1
    assert "mce" not in flat


def test_two_workers_give_the_same_bytes(run: Path, done: Path, tmp_path: Path) -> None:
    found = command(run, tmp_path / "e", *BOTH, "--workers", "2")
    assert found.exit_code == 0, found.output
    for name in ("metrics.json", "details.json"):
        one, two = (json.loads((folder / name).read_text()) for folder in (tmp_path / "e", done))
        assert {k: v for k, v in one.items() if k != "command"} == {k: v for k, v in two.items() if k != "command"}


def test_all_says_what_it_left_out(run: Path, tmp_path: Path) -> None:
    found = command(run, tmp_path / "e", "--corruptions", "all", "--severities", "3", "--batch-size", "300")
    assert found.exit_code == 0, found.output
    details = written(tmp_path / "e")["robustness"]
    assert details["corruptions"] == [name for name in CORRUPTIONS if name != "saturate"]
    assert "saturate is of images with 3 channels; found 1" in details["left_out"]["saturate"]


def test_without_them_nothing_changes(run: Path, tmp_path: Path) -> None:
    assert command(run, tmp_path / "e").exit_code == 0
    assert not {"robustness", "outliers"} & set(written(tmp_path / "e"))
    assert not [name for name in written(tmp_path / "e", "metrics") if name.startswith(("corrupted", "outlier"))]


def test_the_list_of_corruptions() -> None:
    found = CliRunner().invoke(main, ["evaluate", "--list-corruptions"])
    assert found.exit_code == 0 and all(f"\n  {name} " in found.output for name in CORRUPTIONS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--corruptions", "rain"), "--corruptions should be one of all, gaussian-noise"),
        (("--corruptions", "saturate"), "saturate is of images with 3 channels; found 1"),
        (("--corruptions", "fog", "--severities", "6"), "--severities should be one or more of 1 to 5; found 6"),
        (("--severities", "2"), "--severities are of --corruptions: name some, or all"),
        (("--outlier-args", "size=8"), "--outlier-args are of the dataset that --outliers names"),
        (("--outliers", "digits"), "is what is measured: name other data"),
        (("--outliers", "snow"), "--data should be digits, arrays:FILE.npz"),
    ],
)
def test_what_cannot_be_had_is_refused(run: Path, tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    found = command(run, tmp_path / "e", *options)
    assert found.exit_code == 2 and message in found.output and not (tmp_path / "e").exists()


def test_values_beyond_an_image_are_refused(run: Path, tmp_path: Path) -> None:
    data = write_images(tmp_path / "x.npz")
    found = command(run, tmp_path / "e", "--data", data, "--corruptions", "fog")
    assert found.exit_code == 1 and "acts on images in [0, 1]" in found.output and not (tmp_path / "e").exists()


def test_severities_need_a_number() -> None:
    with pytest.raises(ConfigError, match="--severities should be one or more of 1 to 5; found none"):
        EvaluateConfig(run=Path("r"), out=Path("o"), corruptions=("fog",), severities=())
