"""``--search``: which shares are tried, when it ends, what is worth having, and that each point can be made again."""

from __future__ import annotations

import importlib
import itertools
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import compression
from pipeline.compression import CompressConfig
from pipeline.compression.recipe import Recipe, read_recipe, recipe_of
from pipeline.compression.search import ALIKE, FIRST, NEAREST, _ratios, beats, points, recipe_to
from pipeline.errors import ConfigError
from pipeline.evaluation import costs
from pipeline.evaluation.table import Row
from pipeline.progress import Silent
from stages.cli import main
from tests.small_pipeline import SmallPipeline

module = importlib.import_module("pipeline.compression.search")  # the package has a function of that name


def tried(good_until: float) -> list[float]:
    """The shares that are tried when those up to ``good_until`` are good enough."""
    good: dict[float, bool] = {}
    found = []
    for ratio in itertools.islice(_ratios(good), 50):
        good[ratio] = ratio <= good_until
        found.append(ratio)
    return found


@pytest.mark.parametrize("edge", [0.0, 0.1, 0.42, 0.5, 0.77, 0.9, 1.0])
def test_shares_close_in_on_the_edge(edge: float) -> None:
    found = tried(edge)
    assert tuple(found[: len(FIRST)]) == FIRST and len(found) < 12
    assert len(set(found)) == len(found) and all(0 < ratio < 1 for ratio in found)
    low = max((ratio for ratio in found if ratio <= edge), default=0.0)
    high = min((ratio for ratio in found if ratio > edge), default=0.97)
    assert high - low < 4 * NEAREST


def test_a_share_that_is_good_beyond_one_that_is_not_is_where_it_goes_on() -> None:
    """Accuracy of few examples goes up and down: what was good is believed."""
    good: dict[float, bool] = {}
    shares = _ratios(good)
    for ratio in FIRST:
        assert next(shares) == ratio
        good[ratio] = ratio != 0.3
    assert 0.85 < next(shares) < 0.97


def row(accuracy: float, size: int, milliseconds: float | None) -> Row:
    made = Row("x", "", validation_accuracy=accuracy, bytes=size)
    made.latency = None if milliseconds is None else {"1": {"p50": 0.0}, "32": {"p50": milliseconds}}
    return made


def test_one_row_beats_another_by_what_it_is_better_in() -> None:
    middle = row(0.9, 1000, 2.0)
    assert (
        beats(row(0.91, 1000, 2.0), middle) and beats(row(0.9, 999, 2.0), middle) and beats(row(0.9, 1000, 1.0), middle)
    )
    assert not beats(row(0.9, 1000, 2.0 / ALIKE + 0.01), middle), "that is noise"
    assert not beats(row(0.95, 1001, 2.0), middle) and not beats(row(0.9, 500, 3.0), middle)
    assert beats(row(0.9, 999, None), middle) and not beats(middle, middle)


ROWS = st.builds(row, st.sampled_from([0.8, 0.85, 0.9]), st.integers(1, 4), st.sampled_from([1.0, 1.5, 3.0]))


@given(ROWS, ROWS)
def test_two_rows_never_beat_each_other(one: Row, other: Row) -> None:
    assert not (beats(one, other) and beats(other, one))


class Shop:
    """As much of a workshop as command lines are made of."""

    class Chosen:
        class Run:
            path = Path("runs/best student")

        run, seed = Run, 3

    chosen = Chosen
    config = CompressConfig(
        runs=(Path("runs/a"), Path("runs/best student")), out=Path("out"), search=True, budget=60.0, max_drop="1pt",
        importance="l1", epochs=7, lr=0.00012345678, opset=20,
    )  # fmt: skip


def test_points_are_files_of_recipes_and_the_front_is_what_none_beats() -> None:
    steps = recipe_of(
        {"steps": [{"step": "prune"}, {"step": "quantise"}, {"step": "prune", "of": "baseline", "name": "p"}]}
    )
    rows = [row(0.9, 1000, 2.0), row(0.9, 500, 1.0), row(0.8, 600, 1.5), row(0.95, 100, 0.1), row(0.9, 1, 0.1)]
    for made, name in zip(rows, ("baseline", "pruned", "pruned-int8", "p", "teacher-int8"), strict=True):
        made.name = name
        made.file = f"{name}.onnx"
    rows[3].file, rows[4].control = None, True
    recipes = {made.name: recipe_to(made.name, steps.steps) for made in rows}
    assert recipes["baseline"] == Recipe(()) and [s.name for s in recipes["pruned-int8"].steps] == [
        "pruned",
        "pruned-int8",
    ]
    shop: Any = Shop
    found = points(rows, recipes, shop)
    assert [(point.name, point.on_front) for point in found] == [("pruned", True), ("pruned-int8", False)]
    words = shlex.split(found[1].command)
    assert words[:2] == ["softlabels", "compress"]
    assert words[words.index("--runs") + 1] == "runs/best student" and words.count("--runs") == 1
    assert words[words.index("--recipe") + 1] == "out/recipes/pruned-int8.toml"
    assert words[words.index("--lr") + 1] == "0.00012345678", "a rate in full: another would make another file"
    assert words[-2:] == ["--out", "out-pruned-int8"]
    assert not {"--search", "--budget", "--max-drop", "--importance"} & set(words)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": Path("r.toml")}, "leave out --recipe"),
        ({"target_macs": 0.5}, "leave out --target-macs"),
        ({"prune": (0.5,)}, "leave out --prune"),
        ({"budget": 0.0}, "--budget should be above 0"),
    ],
)
def test_what_does_not_go_with_a_search(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        CompressConfig(**{"runs": (tmp_path,), "out": tmp_path / "out", "search": True, **change})
    with pytest.raises(ConfigError, match="--budget is of --search"):
        CompressConfig(runs=(tmp_path,), out=tmp_path / "out", budget=5.0)


class Clock:
    """A workshop and a maker whose every step takes ten seconds, and costs a point from half of the channels on."""

    def __init__(self, budget: float) -> None:
        self.config = CompressConfig(runs=(Path("run"),), out=Path("out"), search=True, budget=budget, qat=False)
        self.shop, self.progress, self.now = self, Silent(), 0.0
        self.taken: list[str] = []
        self.candidates: dict[str, Any] = {}

    def monotonic(self) -> float:
        return self.now

    def take(self, step: Any) -> None:
        self.now += 10
        self.taken.append(step.name)
        good = getattr(step, "ratio", None) is None or step.ratio < 0.5
        self.candidates[step.name] = SimpleNamespace(predictors={0: 0.9 if good else 0.8})

    def validation_accuracy(self, predictor: float) -> float:
        return predictor


@pytest.mark.parametrize(("budget", "shares"), [(1, 0), (25, 1), (70, 2), (10_000, len(tried(0.49)))])
def test_the_budget_ends_it(budget: float, shares: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth is kept for measuring; a share is begun while there is time for one that takes as long as the longest."""
    clock: Any = Clock(budget)
    clock.candidates["baseline"] = SimpleNamespace(predictors={0: 0.9})
    monkeypatch.setattr(module, "time", clock)
    module.search(clock, 0.0)
    found = [name for name in clock.taken if name.startswith("pruned") and not name.endswith("int8")]
    assert clock.taken[0] == "int8" and len(found) == shares


QUICK: dict[str, Any] = {
    "latency_seconds": 0.001, "latency_batch": (1,), "device": "cpu", "threads": 1, "calibration": 16,
    "controls": False, "search": True,
}  # fmt: skip


@pytest.mark.slow
def test_each_point_can_be_made_again(small: SmallPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime", "torch_pruning"):
        pytest.importorskip(package)
    monkeypatch.setattr(costs, "STARTS", 1)
    monkeypatch.chdir(tmp_path)
    given: dict[str, Any] = {**QUICK, "runs": (small.hard, small.soft), "out": Path("out"), "epochs": 1}
    monkeypatch.setattr(module, "FIRST", (0.5,))
    monkeypatch.setattr(module, "NEAREST", 1.0)
    report = compression.run(CompressConfig(**given, qat=False))
    front = {point["name"]: point for point in report.table["front"]}
    assert set(front) == {"int8", "pruned-50", "pruned-50-int8"}
    assert any(point["on_front"] for point in front.values())
    for name, point in front.items():
        found = read_recipe(tmp_path / "out" / point["recipe"])
        assert found.steps[-1].name == name
    assert {path.name for path in (tmp_path / "out" / "recipes").iterdir()} == {f"{name}.toml" for name in front}
    tried_steps = read_recipe(tmp_path / "out" / "recipe.toml").steps
    assert [step.name for step in tried_steps] == ["int8", "pruned-50", "pruned-50-int8"]
    words = shlex.split(front["pruned-50"]["command"])
    with pytest.raises(SystemExit) as ended:
        main(words[1:])
    assert ended.value.code in (0, None)
    for name in ("pruned-50.onnx", "pruned-50.safetensors", "baseline.onnx"):
        assert (tmp_path / "out-pruned-50" / name).read_bytes() == (tmp_path / "out" / name).read_bytes(), name
