"""A route: one cache after another, chosen by the epoch alone, held against each other, resumable."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from pipeline import evaluation
from pipeline.caches.subset import SubsetConfig
from pipeline.caches.subset import run as subset
from pipeline.datasets import Dataset, load_dataset
from pipeline.dump import DumpConfig
from pipeline.dump import run as dump
from pipeline.errors import CacheMismatchError, ConfigError
from pipeline.evaluation import EvaluateConfig
from pipeline.models import build_model, load_model, save_weights, state_digest
from pipeline.sources import CachedLabels, Route
from pipeline.sources.route import epochs_of
from pipeline.store import open_cache
from pipeline.training import TrainConfig, fit, prepare, run
from pipeline.training.methods import methods
from pipeline.training.stage import initial_student
from stages.cli import main

CLASSES = ("ant", "bee", "cat")
TRAIN = 40
Configure = Callable[..., TrainConfig]


def _data(path: Path) -> str:
    random = np.random.default_rng(0)
    labels = np.arange(60) % 3
    x = (random.normal(size=(3, 1, 6, 6))[labels] + 0.8 * random.normal(size=(60, 1, 6, 6))).astype(np.float32)
    split = np.repeat(["train", "validation", "test"], [TRAIN, 10, 10])
    ids = np.array([f"e{i:02d}" for i in range(60)])
    np.savez(path, x=x, y=labels, ids=ids, split=split, classes=np.array(CLASSES))
    return f"arrays:{path}"


def _dump(folder: Path, out: Path, name: str, **options: Any) -> str:
    base: dict[str, Any] = {"data": f"arrays:{folder / 'data.npz'}", "teacher": "mlp-8", "views": 1, "part_size": 16}
    base |= {"transform": "affine:degrees=15", "weights": folder / f"{name}.safetensors", "device": "cpu", "out": out}
    dump(DumpConfig(**(base | options)))
    return str(out)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data.npz, weights a, b and c, and a cache of each: the second in other parts, in Parquet."""
    made = tmp_path_factory.mktemp("route")
    _data(made / "data.npz")
    for seed, name in enumerate("abc"):
        torch.manual_seed(seed)
        save_weights(made / f"{name}.safetensors", build_model("mlp-8", {}, classes=3, input_shape=(1, 6, 6)), {})
        _dump(made, made / name, name, **({"part_size": 7, "store": "parquet"} if name == "b" else {}))
    return made


@pytest.fixture
def data(folder: Path) -> Dataset:
    return load_dataset(f"arrays:{folder / 'data.npz'}")


@pytest.fixture
def config(folder: Path, tmp_path: Path) -> Configure:
    def make(*names: str, **options: Any) -> TrainConfig:
        base: dict[str, Any] = {"data": f"arrays:{folder / 'data.npz'}", "student": "mlp-4", "out": tmp_path / "run"}
        base |= {"epochs": 6, "batch_size": 8, "lr": 0.02, "window": 2, "device": "cpu", "train_views": "all"}
        base |= {"route": tuple(str(folder / name) for name in names)}
        return TrainConfig(**(base | options))

    return make


@given(sources=st.integers(1, 9), more=st.integers(0, 60))
def test_shares_are_as_even_as_whole_epochs_allow(sources: int, more: int) -> None:
    served = epochs_of(sources, sources + more)
    assert len(served) == sources and sum(served) == sources + more
    assert max(served) - min(served) <= 1


def test_each_epoch_gives_what_its_own_teacher_says(folder: Path, data: Dataset) -> None:
    """Against the teachers themselves, run here on the plain view; epochs 0-1 a, 2-3 b, 4 c."""
    sources = [CachedLabels(open_cache(folder / name), data, resident="none") for name in "abc"]
    route, order = Route(sources, epochs=5), sources[0].order(8, seed=3)
    assert route.classes == 3 and route.has(data.rows("train")).all()
    for epoch, name in enumerate("aabbc"):
        model = load_model("mlp-8", {}, folder / f"{name}.safetensors", data, whose="t").eval()
        with closing(route.stream(order, epoch)) as stream:
            for rows in order.epoch(epoch):
                x = torch.stack([data.prepare(data.load(int(row))) for row in rows])
                with torch.no_grad():
                    expected = model(x)
                found = stream.next(x, rows)
                torch.testing.assert_close(torch.as_tensor(found.stored), expected, rtol=1e-5, atol=1e-5)
    assert route.at(5) is sources[2]  # an epoch beyond the route stays at its end


def test_rows_count_where_all_sources_know_them(folder: Path, data: Dataset, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("\n".join(f"e{i:02d}" for i in range(25)))
    subset(SubsetConfig(cache=str(folder / "b"), ids=tmp_path / "ids.txt", out=tmp_path / "some"))
    some = CachedLabels(open_cache(tmp_path / "some"), data, missing="hard")
    route = Route([CachedLabels(open_cache(folder / "a"), data), some], epochs=2)
    assert route.has(np.arange(TRAIN)).tolist() == [row < 25 for row in range(TRAIN)]


def test_a_route_needs_sources_that_fit(folder: Path, data: Dataset) -> None:
    one = CachedLabels(open_cache(folder / "a"), data)
    with pytest.raises(ConfigError, match="an epoch for each: found 2 sources, 1 epochs"):
        Route([one, one], epochs=1)
    with pytest.raises(ConfigError, match="found 0 sources"):
        Route([], epochs=1)


def test_training_follows_the_route(folder: Path, config: Configure) -> None:
    """Step by step the losses are those of the first cache alone for its epochs, and others from then on."""
    routed, alone = (_losses(config(*names, **more)) for names, more in ((("a", "b", "c"), {}), ((), _only(folder))))
    served = len(routed) // 3
    assert routed[:served] == alone[:served]
    assert all(one != other for one, other in zip(routed[served:], alone[served:], strict=True))


def _only(folder: Path) -> dict[str, Any]:
    return {"cache": str(folder / "a")}


def _losses(options: TrainConfig) -> list[float]:
    prepared = prepare(options)
    found: list[float] = []
    student = initial_student(options, prepared.dataset, 0)
    fit(student, prepared.task, options, seed=0, on_step=lambda _, loss: found.append(float(loss)))
    return found


def test_a_run_that_was_stopped_goes_on_along_the_route(config: Configure, tmp_path: Path) -> None:
    whole = run(config("a", "b", out=tmp_path / "whole"))
    options = config("a", "b")
    prepared, state = prepare(options), tmp_path / "state.safetensors"
    steps = 0

    def stop(step: int, _: torch.Tensor) -> None:
        nonlocal steps
        steps = step
        if step == 16:  # in the fourth epoch, the first of b
            signal.raise_signal(signal.SIGTERM)

    student = initial_student(options, prepared.dataset, 0)
    with pytest.raises(KeyboardInterrupt):
        fit(student, prepared.task, options, seed=0, state=state, on_step=stop)
    assert steps == 16 and state.is_file()
    student = initial_student(options, prepared.dataset, 0)
    fit(student, prepared.task, options, seed=0, state=state)
    assert state_digest(student) == whole.seeds[0]["state"]


def test_the_order_of_the_route_is_part_of_the_identity(folder: Path, config: Configure, tmp_path: Path) -> None:
    made = run(config("a", "b"))
    digests = [open_cache(folder / name).digest for name in "ab"]
    assert made.lineage["cache"] == [{"digest": digest, "epochs": 3} for digest in digests]
    assert [teacher["reference"] for teacher in made.lineage["teacher"]] == ["mlp-8"] * 2
    assert run(config("a", "b")).summary.count("found finished") == 1
    with pytest.raises(ConfigError, match="--overwrite"):
        run(config("b", "a"))
    found = evaluation.run(EvaluateConfig(run=tmp_path / "run", device="cpu", out=tmp_path / "e"))
    assert found.details["cache"] == digests[-1]  # judged by where it leads


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--cache", "x", "--labels", "y", "--teacher", "mlp-8"), "leave --cache, --labels, --teacher out"),
        (("--epochs", "1"), "needs as many --epochs"),
        (("--mix", "logits"), "--mix logits is for two or more --labels"),
        (("--hints", "a=b"), "--hints are features of one teacher"),
    ],
)
def test_contradictions_are_told_at_once(options: tuple[str, ...], words: str) -> None:
    found = CliRunner().invoke(main, ["train", "--route", "a", "--route", "b", *options, "--out", "o"])
    assert found.exit_code == 2 and words in found.stderr
    assert found.stderr.count("--cache") <= 1


def test_one_cache_or_one_twice_is_no_route(folder: Path, config: Configure) -> None:
    with pytest.raises(ConfigError, match="two caches or more"):
        config("a")
    with pytest.raises(ConfigError, match="--route names one cache twice"):
        prepare(config("a", "b", "a"))


def test_caches_of_other_views_or_classes_are_refused(folder: Path, config: Configure, tmp_path: Path) -> None:
    _dump(folder, tmp_path / "other", "c", seed=5)
    with pytest.raises(CacheMismatchError, match="do not speak of the same data"):
        prepare(config("a", str(tmp_path / "other")))
    assert prepare(config("a", str(tmp_path / "other"), train_views="plain")).task.source is not None
    torch.manual_seed(0)
    weights = tmp_path / "two.safetensors"
    save_weights(weights, build_model("mlp-8", {}, classes=2, input_shape=(1, 6, 6)), {})
    _dump(folder, tmp_path / "two", "c", weights=weights, classes=("ant", "bee"))
    with pytest.raises((CacheMismatchError, ConfigError)):
        prepare(config("a", str(tmp_path / "two")))


def test_top_k_caches_may_be_on_the_way(folder: Path, config: Configure, tmp_path: Path) -> None:
    _dump(folder, tmp_path / "topk", "a", encoding="topk", k=2)
    options = config(str(tmp_path / "topk"), "b")
    prepared = prepare(options)
    fit(initial_student(options, prepared.dataset, 0), prepared.task, options, seed=0)
    with pytest.raises(ConfigError, match="needs the logits of all classes"):
        prepare(config("b", str(tmp_path / "topk"), standardise=True))


def test_it_is_listed() -> None:
    assert {"teacher - tutor - student", "online", "born again"} <= {method.family for method in methods()}
    assert "--route" in CliRunner().invoke(main, ["train", "--list-methods"]).output


def test_the_record_can_be_read_as_json(config: Configure, tmp_path: Path) -> None:
    run(config("a", "b", "c"))
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [Path(path).name for path in record["config"]["route"]] == ["a", "b", "c"]
