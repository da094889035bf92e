"""A sweep: its grid, its cells as runs of train, what it resumes and what it refuses."""

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

from pipeline.errors import CacheNotFoundError, ConfigError, ModelError
from pipeline.runs import read_run
from pipeline.training import TrainConfig
from pipeline.training import run as train
from pipeline.training.cohort import Cohort
from pipeline.training.grid import SweepConfig, grid_points
from pipeline.training.members import Members, Team
from pipeline.training.sweep import run
from tests.training.test_run import Stopping, contents

GRID = ("temperature=1,4", "alpha=0.5,0.9")
Make = Callable[..., SweepConfig]


@pytest.fixture
def sweep(config: Callable[..., TrainConfig], tmp_path: Path) -> Make:
    """A SweepConfig on the small dataset."""

    def make(*grid: str, **options: Any) -> SweepConfig:
        own = {name: options.pop(name) for name in ("at_once",) if name in options}
        base = config(out=tmp_path / "sweep")
        fields = {field.name: getattr(base, field.name) for field in dataclasses.fields(base)}
        return SweepConfig(**(fields | {"epochs": 2} | options | own | {"grid": grid or GRID}))

    return make


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[Members]:
    """What each fit of a sweep trained."""
    from pipeline.training import sweep as module

    found: list[Members] = []
    true = module.fit

    def noted(members: Members, *arguments: Any, **options: Any) -> Any:
        found.append(members)
        return true(members, *arguments, **options)

    monkeypatch.setattr(module, "fit", noted)
    return found


# The grid.


def test_points_are_all_combinations_with_the_types_of_the_options() -> None:
    assert grid_points(["--batch-size=8,16", "standardise=true,no", "beta=none,0.5"]) == [
        {"batch_size": size, "standardise": flag, "beta": beta}
        for size in (8, 16)
        for flag in (True, False)
        for beta in (None, 0.5)
    ]
    assert grid_points(["student-args=none,dropout=0.1"]) == [{"student_args": ()}, {"student_args": ("dropout=0.1",)}]
    assert grid_points(["weights=a/b"]) == [{"weights": Path("a/b")}]


def test_all_that_is_wrong_with_a_grid_is_said_at_once() -> None:
    texts = (
        "lrr=1",
        "lr=fast",
        "epochs=1.5",
        "standardise=maybe",
        "temperature",
        "out=a",
        "seed=",
        "alpha=1",
        "alpha=2",
    )
    with pytest.raises(ConfigError) as raised:
        grid_points(texts)
    said = "\n".join(raised.value.problems)
    for expected in (
        "lrr: train has no such option",
        "lr: should be numbers; found 'fast'",
        "epochs: should be whole numbers; found '1.5'",
        "standardise: should be true or false; found 'maybe'",
        "OPTION=VALUE,VALUE,...; found 'temperature'",
        "out: it decides how a result is reached",
        "found 'seed='",
        "alpha is given twice",
    ):
        assert expected in said
    assert len(raised.value.problems) == 8
    with pytest.raises(ConfigError, match="--grid is missing"):
        grid_points(())


def test_contradictory_cells_are_reported_together(sweep: Make) -> None:
    with pytest.raises(ConfigError) as raised:
        sweep("temperature=0,2", "alpha=0.5,2", lr=0.0)
    assert len(raised.value.problems) == 3
    text = str(raised.value)
    assert "--lr should be above 0; found 0.0\n" in text
    assert "--temperature should be above 0; found 0.0 (in 2 of 4 cells: temperature=0,alpha=0.5, " in text
    assert "or --beta given; found 2.0 (in 2 of 4 cells" in text
    with pytest.raises(ConfigError, match="the same cell 2 times"):
        sweep("temperature=2,2.0")
    # A base that is no run by itself is none of the cells: here the grid names the cache.
    assert len(sweep("cache=a,b", cache=None, loss="reverse-kl").cells) == 2


@pytest.mark.parametrize(
    ("grid", "options", "said"),
    [
        (GRID, {"keep": "best"}, "--keep best and --patience"),
        (("patience=0,3",), {}, "--keep best and --patience .*in 1 of 2 cells"),
        (GRID, {"hints": ("f=hidden",)}, "learnt by one student at a time"),
        (GRID, {"at_once": 0}, "--at-once should be at least 1"),
    ],
)
def test_what_a_sweep_cannot_do_is_refused(sweep: Make, grid: tuple[str, ...], options: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        sweep(*grid, **options)


def test_ranks_are_refused(sweep: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="a sweep is of one process"):
        run(sweep())


def test_what_the_cache_cannot_serve_is_found_before_any_work(
    sweep: Make, make_cache: Callable[..., str], fits: list[Members]
) -> None:
    topk = make_cache("topk", encoding="topk", k=2, temperature=(1.0, 4.0))
    with pytest.raises(ConfigError) as raised:
        run(sweep("temperature=1,2", "loss=kl,dist", cache=topk))
    assert len(raised.value.problems) == 2 and not fits
    assert "--temperature 2 was not kept" in str(raised.value) and "in 1 of 4 cells: temperature=2,loss=kl" in str(
        raised.value
    )
    assert "--loss dist needs the logits of all classes" in str(raised.value)
    with pytest.raises(CacheNotFoundError):
        run(sweep(cache="nowhere"))
    assert not sweep().out.exists()


def test_folders_are_named_after_the_options(sweep: Make) -> None:
    assert [cell.key for cell in sweep().cells][:2] == ["temperature=1,alpha=0.5", "temperature=1,alpha=0.9"]
    one, other = (cell.key for cell in sweep("cache=a/b,a:b").cells)
    assert one.startswith("cache=a-b-") and other.startswith("cache=a-b-") and one != other
    assert len(sweep(f"student-args={'x' * 300}=1").cells[0].key) < 120


# The cells are runs.


def alike(cell: Path, alone: Path) -> None:
    """The same files, records, histories and weights, up to rounding."""
    assert contents(cell).keys() == contents(alone).keys()
    ours, theirs = (json.loads((out / "run.json").read_text()) for out in (cell, alone))
    assert ours["config"] | {"out": ""} == theirs["config"] | {"out": ""}
    assert ours["identity"] != theirs["identity"]
    cohort = ours["lineage"].pop("cohort")
    assert cohort["students"] > 0 and ours["lineage"] == theirs["lineage"]
    for one, other in zip(ours["seeds"], theirs["seeds"], strict=True):
        close(one, other, but=("state",))
        histories = (json.loads((out / f"seed-{one['seed']}/history.json").read_text()) for out in (cell, alone))
        for ours_epoch, theirs_epoch in zip(*histories, strict=True):
            close(ours_epoch, theirs_epoch)
    for path in alone.glob("seed-*/model.safetensors"):
        weights, expected = load_file(cell / path.relative_to(alone)), load_file(path)
        assert weights.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-4)


def close(one: dict[str, Any], other: dict[str, Any], but: tuple[str, ...] = ()) -> None:
    assert list(one) == list(other)
    for name in one.keys() - set(but):
        np.testing.assert_allclose(one[name], other[name], rtol=1e-3, atol=1e-5, err_msg=name)


CASES: dict[str, tuple[tuple[str, ...], dict[str, Any], type[Members]]] = {
    "weights of the terms": (("alpha=0.4,1", "label-smoothing=0,0.1", "beta=0.5"), {}, Cohort),
    "losses": (("loss=kl,dist,dkd,logit-regression",), {"seeds": 2, "seed": 3}, Cohort),
    "batch norm": (("temperature=1,4",), {"student": "cnn-4", "accumulate": 2, "train_views": "all"}, Cohort),
    "one by one": (("temperature=1,4",), {"student": "cnn-40", "epochs": 1}, Team),
    "standardised": (("standardise=true,false", "temperature=1,2"), {"optimizer": "sgd", "drop_last": True}, Cohort),
    "few labels": (("alpha=0.5,0.9", "loss=kl,dist"), {"labelled_fraction": 0.3, "resident": "none"}, Cohort),
    "other data": (("label-noise=0,0.3", "temperature=2,3"), {"first_window": 1}, Cohort),
}


@pytest.mark.parametrize("name", CASES)
def test_a_cell_is_the_run_of_train_up_to_rounding(sweep: Make, tmp_path: Path, fits: list[Members], name: str) -> None:
    grid, options, kind = CASES[name]
    made = sweep(*grid, **options)
    run(made)
    assert fits and all(type(members) is kind for members in fits)
    for cell in made.cells:
        train(dataclasses.replace(cell.config, out=tmp_path / cell.key))
        alike(cell.config.out, tmp_path / cell.key)


def test_rows_without_soft_labels_and_top_k_labels(
    sweep: Make, make_cache: Callable[..., str], shared: Path, tmp_path: Path, fits: list[Members]
) -> None:
    held = dict(np.load(shared / "data.npz"))
    more = {name: np.concatenate([values, values[:6]]) for name, values in held.items() if name != "classes"}
    more["ids"] = np.array([*held["ids"], *(f"new-{i}" for i in range(6))])
    more["split"][-6:] = "train"
    np.savez(tmp_path / "more.npz", **more, classes=held["classes"])
    topk = make_cache("topk", encoding="topk", k=2, temperature=(1.0, 4.0))
    made = sweep(
        "temperature=1,4", "loss=kl,reverse-kl", cache=topk, data=f"arrays:{tmp_path / 'more.npz'}", missing="hard"
    )
    run(made)
    assert [members.count for members in fits] == [4]
    for cell in made.cells:
        train(dataclasses.replace(cell.config, out=tmp_path / cell.key))
        alike(cell.config.out, tmp_path / cell.key)


def test_bare_labels_and_those_with_the_residual_are_trained_together(
    sweep: Make, make_cache: Callable[..., str], fits: list[Members], tmp_path: Path
) -> None:
    topk = make_cache("topk", encoding="topk", k=1, temperature=(4.0,))
    made = sweep("bare-topk=true,false", "alpha=0.5,1", cache=topk)
    run(made)
    assert [members.count for members in fits] == [2, 2]
    for cell in made.cells:
        train(dataclasses.replace(cell.config, out=tmp_path / cell.key))
        alike(cell.config.out, tmp_path / cell.key)
    with pytest.raises(ConfigError, match=r"cache keeps the logits of all classes.*in 1 of 2 cells: bare-topk=true"):
        run(sweep("bare_topk=true,false"))
    with pytest.raises(ConfigError, match=r"--loss reverse-kl is infinite.*in 1 of 4 cells"):
        sweep("bare_topk=true,false", "loss=kl,reverse-kl", cache=topk)


def test_students_that_differ_in_more_than_the_objective_are_apart(sweep: Make, fits: list[Members]) -> None:
    run(sweep("student=mlp-4,mlp-5", "alpha=0,0.5,0.9,1", "temperature=2", beta=None, seeds=2))
    # Each student: hard labels alone; both; soft labels alone. Each of these for two seeds.
    assert [members.count for members in fits] == [1, 1, 2, 2, 1, 1] * 2


def test_at_once_bounds_a_cohort(sweep: Make, fits: list[Members]) -> None:
    run(sweep("temperature=1,2,3,4,5", at_once=2))
    assert [members.count for members in fits] == [2, 2, 1]


def test_dropout_draws_other_masks_and_trains(sweep: Make) -> None:
    report = run(sweep("temperature=1,4", student="cnn-4", student_args=("dropout=0.3",)))
    assert all(np.isfinite(cell["nll"]["mean"]) for cell in report.cells)


# What is written.


def test_the_table_is_written_best_first(sweep: Make) -> None:
    made = sweep(seeds=2)
    report = run(made)
    keys = {cell.key for cell in made.cells}
    assert {path.name for path in made.out.iterdir()} == {*keys, "sweep.json"}
    record = json.loads((made.out / "sweep.json").read_text())
    assert record["cells"] == report.cells and record["identity"] == report.identity
    scores = [(-cell["accuracy"]["mean"], cell["nll"]["mean"]) for cell in report.cells]
    assert scores == sorted(scores) and {cell["cell"] for cell in report.cells} == keys
    for cell in report.cells:
        found = read_run(made.out / cell["cell"])
        accuracies = [seed["accuracy"] for seed in found.record["seeds"]]
        assert cell["accuracy"] == {"mean": np.mean(accuracies), "s": pytest.approx(np.std(accuracies, ddof=1))}
        assert cell["options"]["alpha"] == found.config["alpha"] and cell["identity"] == found.record["identity"]
        assert found.weights.keys() == {0, 1}
    lines = report.summary.splitlines()
    assert lines[0].split() == ["temperature", "alpha", "seeds", "accuracy", "s", "nll", "s"] and len(lines) == 6
    assert "8 students in 4 cells, best " in lines[-1]
    beside = json.loads(made.out.with_name("sweep.report.json").read_text())
    (timing,) = beside["environment"]["cohorts"].values()
    assert timing["0"]["stacked"] and timing["0"]["students_per_minute"] > 0


def test_a_finished_sweep_is_found_finished(sweep: Make, fits: list[Members]) -> None:
    first = run(sweep())
    before = contents(sweep().out)
    again = run(sweep(threads=1))
    assert len(fits) == 1 and contents(sweep().out) == before
    assert again.cells == first.cells and "found finished" in again.summary
    with pytest.raises(ConfigError, match="holds the result"):
        run(sweep("temperature=1,2"))
    (sweep().out / "notes.txt").touch()
    with pytest.raises(ConfigError, match=r"holds notes\.txt"):
        run(sweep("temperature=1,2", overwrite=True))
    (sweep().out / "notes.txt").unlink()
    run(sweep("temperature=1,2", overwrite=True))
    assert {path.name for path in sweep().out.iterdir()} == {"temperature=1", "temperature=2", "sweep.json"}


@pytest.mark.parametrize(("stop", "crash"), [(3, False), (9, True), (18, False)])
def test_a_sweep_that_was_stopped_ends_in_the_same_bytes(
    sweep: Make, tmp_path: Path, fits: list[Members], stop: int, crash: bool
) -> None:
    made = sweep("student=cnn-4,mlp-4", "temperature=1,4", checkpoint_every=1e-9)
    run(made)
    expected = contents(made.out)
    made.out.rename(tmp_path / "whole")
    fits.clear()
    with pytest.raises(RuntimeError if crash else KeyboardInterrupt):
        run(made, Stopping(stop, RuntimeError("power cut") if crash else None))
    assert not made.out.exists()
    begun = len(fits)
    run(made)
    assert contents(made.out) == expected
    assert len(fits) == 2 + 1, "the fit that was stopped goes on, those before it are found finished"
    assert begun == 1 + (stop - 1) // 14


def test_a_student_that_diverges_is_named(sweep: Make) -> None:
    with pytest.raises(ModelError, match=r"no longer finite.*That is so for alpha=1e\+38[:,]") as raised:
        run(sweep("alpha=0.5,1e38", "beta=0.5", optimizer="sgd", lr=1.0))
    assert "alpha=0.5" not in str(raised.value)
