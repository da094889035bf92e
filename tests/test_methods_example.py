"""examples/methods: its dvc.yaml against the commands, its methods against those that exist, and a small run of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("dvc")

from pipeline.losses import FEATURE_LOSSES, LOSSES
from pipeline.sources.mixing import MIXES
from pipeline.sources.panel import APART
from pipeline.training import TrainConfig
from tests.examples import ROOT, copied, run_in_process, settings_as_read, stages_as_read
from tests.test_dvc import inputs

EXAMPLE = ROOT / "examples" / "methods"
PARAMS: dict[str, Any] = yaml.safe_load((EXAMPLE / "params.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return stages_as_read(tmp_path_factory.mktemp("project"), "methods")


@pytest.fixture(scope="module")
def settings(stages: dict[str, Any]) -> dict[str, Any]:
    return settings_as_read("methods", stages)


def trained(settings: dict[str, Any]) -> dict[str, TrainConfig]:
    """The runs of the matrix of losses, teachers and data."""
    return {name.split("@")[1]: config for name, config in settings.items() if name.startswith("train@")}


def hinted(settings: dict[str, Any]) -> dict[str, TrainConfig]:
    """The runs that learn features, and what they are compared with."""
    return {name.split("@")[1]: config for name, config in settings.items() if name.startswith("hinted@")}


def test_every_command_has_the_options_it_is_given(settings: dict[str, Any]) -> None:
    kinds = {"teacher", "dump", "train", "hinted", "evaluate", "evaluate-hinted", "report"}
    assert {name.split("@")[0] for name in settings} == kinds
    assert len(trained(settings)) == len(PARAMS["students"]) * len(PARAMS["methods"])
    assert len(hinted(settings)) == len(PARAMS["hinted_students"]) * len(PARAMS["hinted_methods"])


def test_every_loss_is_compared(settings: dict[str, Any]) -> None:
    runs = trained(settings).values()
    assert {run.loss for run in runs} == set(LOSSES)
    assert any(run.standardise for run in runs) and any(run.label_smoothing for run in runs)
    assert {"kl", "reverse-kl", "jensen-shannon", "skewed-kl"} == {r.loss for r in runs if r.cache == "caches/top3"}


def test_every_loss_on_features_and_every_rule_for_several_teachers_is_compared(settings: dict[str, Any]) -> None:
    runs = hinted(settings).values()
    assert {run.hint_loss for run in runs if run.hints} == set(FEATURE_LOSSES)
    assert any(run.hint_epochs for run in runs) and any(run.hints_in_turn for run in runs)
    assert {run.mix for run in trained(settings).values() if run.labels} == {*MIXES, *APART}


def test_peers_see_the_views_that_all_others_see(settings: dict[str, Any]) -> None:
    runs = {name: run for name, run in trained(settings).items() if run.exchanging}
    assert {(run.exchange, run.peers, run.temperature) for run in runs.values() if not run.alpha} == {
        ("mutual", 2, 1.0),
        ("mutual", 4, 1.0),
        ("ensemble", 4, 3.0),
    }
    assert [name for name, run in runs.items() if run.objective.alpha] == ["mlp-8-kl-mutual", "mlp-16-kl-mutual"]
    assert all(run.cache == "caches/digits" for run in runs.values())


def test_what_was_published_for_other_epochs_is_scaled(settings: dict[str, Any]) -> None:
    """DKD's weight rises over 20 of 240 epochs in its authors' code."""
    run = trained(settings)["mlp-8-dkd"]
    assert run.alpha_epochs == round(20 / 240 * run.epochs) and trained(settings)["mlp-8-dkd-even"].alpha_epochs == 0


def test_the_comparison_is_fair(settings: dict[str, Any]) -> None:
    """Students, views, steps and rates are the same; so are the weights, but where a comment says why."""
    shared = ("train_views", "epochs", "lr", "batch_size", "seeds", "seed", "schedule", "weight_decay")
    # MUNGE has more examples and fewer epochs: as many steps, but for the last batch of an epoch.
    steps = {name: -(-1197 // run.batch_size) * run.epochs for name, run in trained(settings).items()}
    for name, run in trained(settings).items():
        if name.endswith("-munge"):
            assert -(-5000 // run.batch_size) * run.epochs == pytest.approx(steps["mlp-8-kl"], rel=0.01)
    for name in shared:
        for runs in (trained(settings), hinted(settings)):
            alike = {getattr(run, name) for key, run in runs.items() if name != "epochs" or not key.endswith("-munge")}
            assert len(alike) == 1, name
    explained = {"jensen-shannon", "skewed-kl", "skewed-reverse-kl", "dkd", "dist", "standardise", "munge"}
    usual = (0.9, pytest.approx(0.1), 4.0)
    for method in PARAMS["methods"]:
        run = trained(settings)[f"{PARAMS['students'][0]}-{method}"]
        if method.removesuffix("-top3") not in explained and run.alpha:
            assert (run.objective.alpha, run.objective.beta, run.temperature) == usual, method


def test_the_weights_make_up_for_the_factors_at_high_temperature(settings: dict[str, Any]) -> None:
    for run in trained(settings).values():
        if run.loss == "jensen-shannon":
            assert run.alpha == pytest.approx(0.9 / 0.25)
        if run.loss.startswith("skewed"):
            assert run.alpha == pytest.approx(0.9 / 0.81, rel=1e-3)


def test_top_k_is_cut_from_the_dense_cache_without_a_teacher(stages: dict[str, Any]) -> None:
    command = stages["topk"].cmd
    assert command.startswith("softlabels cache transcode caches/digits")
    assert "--k 3" in command and "--temperature 4.0" in command and "teacher" not in command


def test_every_cache_that_a_run_names_is_among_its_dependencies(
    stages: dict[str, Any], settings: dict[str, Any]
) -> None:
    for name, config in settings.items():
        if isinstance(config, TrainConfig):
            named = {address for address, _ in config.caches}
            assert named and named <= set(inputs(stages[name])), name


def test_a_small_run_makes_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped stages with few methods, of two epochs and seeds."""
    small = {**PARAMS, "students": ["mlp-8"]}
    small["teacher"] = {**PARAMS["teacher"], "teacher": "cnn-4", "views": 1, "epochs": 2}
    small["dump"] = {**PARAMS["dump"], "views": 1}
    small["train"] = {**PARAMS["train"], "epochs": 2, "seeds": 2}
    munge = PARAMS["caches"]["munge"]
    made = {"munge": {**munge, "options": {**munge["options"], "data_args": ["size=50"]}}}
    small["caches"] = {**PARAMS["caches"], **made}
    small["methods"] = {name: PARAMS["methods"][name] for name in ("kl", "reverse-kl-top3", "specialists")}
    small["hinted_train"] = {**PARAMS["hinted_train"], "epochs": 2, "seeds": 2}
    small["hinted_methods"] = {name: PARAMS["hinted_methods"][name] for name in ("kl", "hint")}
    folder = copied(tmp_path, "methods", small)
    run_in_process(tmp_path, folder, monkeypatch)
    page = (folder / "report" / "index.html").read_text(encoding="utf-8")
    assert "<h2>Losses</h2>" in page and "reverse KL from top3" in page
    assert "KL with features (hint)" in page and "KL from 2 caches, a loss each" in page
    assert (folder / "report" / "losses.png").is_file()
    metrics = json.loads((folder / "evaluations/mlp-8-reverse-kl-top3/metrics.json").read_text())
    assert 0 <= metrics["teacher_agreement"] <= 1
