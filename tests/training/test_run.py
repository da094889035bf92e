"""The train stage as a whole: what it writes, that it resumes, finds itself finished, and refuses to overwrite."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import BusyError, ConfigError, ModelError
from pipeline.models import build_model, load_weights, read_metadata
from pipeline.runs import read_run
from pipeline.store import open_cache
from pipeline.training import TrainConfig, run
from pipeline.workspace import Workspace

Make = Callable[..., TrainConfig]


def contents(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


class Stopping:
    """A progress that presses Ctrl-C, or crashes, at a batch."""

    def __init__(self, at: int, error: BaseException | None = None) -> None:
        self.left, self.error = at, error

    @contextmanager
    def bar(self, description: str, total: int, unit: str, done: int = 0) -> Iterator[Stopping]:
        yield self

    def update(self, n: int = 1) -> None:
        self.left -= 1
        if self.left == 0:
            if self.error is not None:
                raise self.error
            os.kill(os.getpid(), signal.SIGINT)

    def log(self, line: str) -> None:
        return None


def test_a_run_writes_students_that_can_be_read_back(config: Make, shared: Path) -> None:
    options = config(seeds=2, seed=5, student_args=(), train_views="all")
    report = run(options)
    out = Path(options.out)
    assert sorted(contents(out)) == [
        "run.json",
        "seed-5/history.json",
        "seed-5/model.safetensors",
        "seed-6/history.json",
        "seed-6/model.safetensors",
    ]
    record = json.loads((out / "run.json").read_text())
    assert record["identity"] == report.identity and record["config"]["student"] == "mlp-4"
    assert [s["seed"] for s in record["seeds"]] == [5, 6] and record["seeds"] == report.seeds
    assert record["lineage"]["cache"] == open_cache(shared / "cache").digest
    assert record["lineage"]["views"]["trained_on"] == [0, 1, 2]
    history = json.loads((out / "seed-5" / "history.json").read_text())
    assert [epoch["epoch"] for epoch in history] == [0, 1, 2, 3]
    assert report.seeds[0]["accuracy"] == history[-1]["accuracy"]
    metadata = read_metadata(out / "seed-6" / "model.safetensors")
    assert metadata["reference"] == "mlp-4" and metadata["class_names"] == ["ant", "bee", "cat"]
    assert metadata["input_shape"] == [1, 6, 6] and metadata["cache"] == record["lineage"]["cache"]
    model = build_model("mlp-4", {}, classes=3, input_shape=(1, 6, 6))
    load_weights(model, out / "seed-6" / "model.safetensors")
    assert read_run(out).weights.keys() == {5, 6}
    assert "2 students" in report.summary and "validation accuracy" in report.summary
    beside = json.loads((out.parent / "run.report.json").read_text())
    assert beside["seconds"] > 0 and set(beside["environment"]["fits"]) == {"5", "6"}


def test_a_finished_run_returns_at_once(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(config())
    before = contents(Path(config().out))
    monkeypatch.setattr("pipeline.training.stage.fit", lambda *a, **k: pytest.fail("trained again"))
    beside = Path(config().out).with_name("run.report.json")
    kept = beside.read_bytes()
    again = run(config())
    assert beside.read_bytes() == kept
    beside.unlink()
    again = run(config())
    assert json.loads(beside.read_text())["identity"] == first.identity
    assert (again.identity, again.seeds) == (first.identity, first.seeds) and "found finished" in again.summary
    assert contents(Path(config().out)) == before
    # Where and how fast is not what: these make the same run.
    run(config(threads=1, checkpoint_every=5.0, resident="ram", resident_inputs="none"))


@pytest.mark.parametrize(("stop", "crash"), [(1, False), (28, False), (29, False), (9, True), (40, True)])
def test_a_run_that_was_stopped_ends_in_the_same_bytes(config: Make, tmp_path: Path, stop: int, crash: bool) -> None:
    options = config(seeds=2, student="cnn-2", checkpoint_every=1e-9, student_args=("dropout=0.2",))
    run(options)
    expected = contents(Path(options.out))
    Path(options.out).rename(tmp_path / "whole")
    error = RuntimeError("power cut") if crash else None
    with pytest.raises(RuntimeError if crash else KeyboardInterrupt):
        run(options, Stopping(stop, error))
    assert not Path(options.out).exists()
    (partial,) = tmp_path.glob(".run*softlabels-[0-9a-f]*")
    (partial / "seed-5.99999.partial").touch()  # as a kill in the middle of a write leaves it
    run(options)
    assert contents(Path(options.out)) == expected
    assert not list(tmp_path.glob(".run*softlabels-[0-9a-f]*"))


def test_another_identity_does_not_take_up_the_scratch_of_the_first(config: Make) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(config(), Stopping(9))
    run(config(lr=0.01))
    assert json.loads((Path(config().out) / "run.json").read_text())["config"]["lr"] == 0.01


def test_another_run_or_strangers_files_are_not_overwritten(config: Make) -> None:
    run(config(epochs=1))
    with pytest.raises(ConfigError, match=r"holds the result.*\(epochs 1 there, 2 here\).*--overwrite"):
        run(config(epochs=2))
    report = run(config(epochs=2, overwrite=True))
    assert report.seeds[0]["epochs"] == 2
    out = Path(config().out)
    (out / "run.json").write_text("not json")
    with pytest.raises(ConfigError, match="holds other files"):
        run(config(epochs=2))
    (out / "notes.txt").touch()
    with pytest.raises(ConfigError, match=r"holds notes\.txt"):
        run(config(epochs=2, overwrite=True))


def test_two_processes_do_not_write_one_run(config: Make) -> None:
    with Workspace(Path(config().out), "0" * 64), pytest.raises(BusyError):
        run(config())


def test_the_identity_is_of_what_decides_the_outcome(config: Make, make_cache: Callable[..., str]) -> None:
    base = run(config(epochs=1)).identity
    same = dataclasses.replace(config(epochs=1), out=Path(config().out).with_name("elsewhere"))
    assert run(same).identity == base
    other = config(epochs=1, cache=make_cache("other", seed=1), overwrite=True)
    assert run(other).identity != base
    assert run(config(epochs=1, temperature=2.0, overwrite=True)).identity != base


@pytest.mark.parametrize(
    ("options", "said"),
    [({"student": "mlp-0"}, "mlp"), ({"student": "resnet"}, "resnet"), ({"data": "arrays:none.npz"}, "none.npz")],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    config: Make, options: dict[str, Any], said: str
) -> None:
    with pytest.raises((ConfigError, ModelError, ValueError), match=said):
        run(config(**options))
    assert not Path(config().out).exists()


def test_examples_that_the_cache_lacks_can_count_by_their_hard_labels(
    config: Make, shared: Path, tmp_path: Path
) -> None:
    held = dict(np.load(shared / "data.npz"))
    more = {name: np.concatenate([values, values[:6]]) for name, values in held.items() if name != "classes"}
    more["ids"] = np.array([*held["ids"], *(f"new-{i}" for i in range(6))])
    more["split"][-6:] = "train"
    np.savez(tmp_path / "more.npz", **more, classes=held["classes"])
    data = f"arrays:{tmp_path / 'more.npz'}"
    skipped = run(config(data=data, missing="skip", out=tmp_path / "skip"))
    hard = run(config(data=data, missing="hard", out=tmp_path / "hard", seeds=1))
    assert (skipped.lineage["examples"], hard.lineage["examples"]) == (50, 56)
    assert all(np.isfinite(s["loss"]) for s in (*skipped.seeds, *hard.seeds))


def test_students_of_one_seed_start_from_the_same_weights_whatever_teaches_them(config: Make, tmp_path: Path) -> None:
    states = []
    for number, options in enumerate(({}, {"cached": False})):
        made = run(config(lr=1e-12, weight_decay=0.0, epochs=1, out=tmp_path / str(number), **options))
        model = build_model("mlp-4", {}, classes=3, input_shape=(1, 6, 6))
        load_weights(model, Path(made.out) / "seed-0" / "model.safetensors")
        states.append(model.state_dict())
    torch.testing.assert_close(*states, rtol=0, atol=1e-8)


def test_a_corrected_label_is_another_run(config: Make, shared: Path, tmp_path: Path) -> None:
    identities = []
    for split in (None, "test", "train", "validation"):
        archive = dict(np.load(shared / "data.npz"))
        if split:
            row = int(np.flatnonzero(archive["split"] == split)[0])
            archive["y"][row] = (archive["y"][row] + 1) % 3
        np.savez(tmp_path / "labels.npz", **archive)
        options = config(data=f"arrays:{tmp_path / 'labels.npz'}", epochs=1, overwrite=True)
        identities.append(run(options).identity)
    assert identities[0] == identities[1], "test labels are not trained on"
    assert len(set(identities)) == 3


def test_a_run_goes_on_though_its_cache_was_moved(config: Make, make_cache: Callable[..., str], tmp_path: Path) -> None:
    first = config(cache=make_cache("here"))
    with pytest.raises(KeyboardInterrupt):
        run(first, Stopping(9))
    (tmp_path / "here").rename(tmp_path / "there")
    run(config(cache=str(tmp_path / "there")))
    moved = contents(Path(first.out) / "seed-0")
    run(config(cache=str(tmp_path / "there"), out=tmp_path / "whole"))
    assert moved == contents(tmp_path / "whole" / "seed-0")


def test_a_training_state_is_never_part_of_a_run(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(_: Workspace) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Workspace, "commit", killed)
        run(config())
    out = Path(config().out)
    (scratch,) = out.parent.glob(".run.softlabels-*/seed-0")
    (scratch / "state.safetensors").touch()
    run(config())
    assert {p.name for p in (out / "seed-0").iterdir()} == {"model.safetensors", "history.json"}
