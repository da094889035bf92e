"""A run that was stopped goes on after its last finished step, and ends as if nothing had happened."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import compression
from pipeline.compression import finetuning, keeping, making
from pipeline.evaluation import costs
from stages.cli import main
from tests.compression.every_step import block, config
from tests.small_pipeline import SmallPipeline

RECIPE = "".join(
    [
        block("prune", ratio=0.5, multiple=1, epochs=4),
        block("quantise", activations="uint8"),
        block("finetune", of="pruned", epochs=1, control=True),
        block("prune", name="missing", of="pruned-uint8"),
        block("quantise", of="pruned", method="dynamic"),
        block("prune", name="zeros", of="baseline", what="weights", control=True, epochs=0),
        block("finetune", name="zeros-tuned", of="zeros", control=True, epochs=1),
    ]
).replace("pruned-uint8", "pruned-int8")
STEPS = ["pruned", "pruned-int8", "pruned-finetuned", "missing", "pruned-int8-dynamic", "zeros", "zeros-tuned"]
TIMED = ("latency", "memory", "load_seconds", "process", "seconds", "joules", "warnings", "activations")


@pytest.fixture(autouse=True, scope="module")
def _few_processes() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "STARTS", 1)
        yield


@pytest.fixture(scope="module")
def unbroken(small: SmallPipeline, tmp_path_factory: pytest.TempPathFactory) -> compression.CompressReport:
    for package in ("onnx", "onnxscript", "onnxruntime", "torch_pruning"):
        pytest.importorskip(package)
    return compression.run(config(small, tmp_path_factory.mktemp("unbroken"), RECIPE))


def counting(patch: pytest.MonkeyPatch, stop: str | None = None) -> list[str]:
    """The steps that are performed from now on; Ctrl-C comes when ``stop`` begins."""
    taken: list[str] = []
    perform = making.perform

    def counted(steps: Any, *rest: Any) -> Any:
        if steps[-1].name == stop:
            raise KeyboardInterrupt
        taken.append(steps[-1].name)
        return perform(steps, *rest)

    patch.setattr(making, "perform", counted)
    return taken


def stopping(patch: pytest.MonkeyPatch, at: int | None) -> list[int]:
    """Optimiser steps that are taken from now on; Ctrl-C comes after number ``at``."""
    taken: list[int] = []
    fit = finetuning.fit

    def halt(step: int, loss: object) -> None:
        taken.append(step)
        if len(taken) == at:
            signal.raise_signal(signal.SIGINT)

    patch.setattr(finetuning, "fit", lambda *given, **options: fit(*given, **options, on_step=halt))
    return taken


def same(one: compression.CompressReport, other: compression.CompressReport) -> None:
    """Rows, times aside, and files bit for bit."""

    def told(report: compression.CompressReport) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.items() if k not in TIMED} for row in report.table["rows"]]

    assert told(one) == told(other)
    mine, others = Path(one.out), Path(other.out)
    assert {path.name for path in mine.iterdir()} == {path.name for path in others.iterdir()}
    for path in others.iterdir():
        if path.suffix in (".onnx", ".safetensors", ".toml"):
            assert (mine / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_run_that_was_stopped_again_and_again_ends_the_same(
    small: SmallPipeline, unbroken: compression.CompressReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = config(small, tmp_path, RECIPE)

    def attempt(stop: str | None, at: int | None = None) -> tuple[list[str], list[int], Any]:
        with monkeypatch.context() as patch:
            taken, trained, report = counting(patch, stop), stopping(patch, at), None
            if stop is None and at is None:
                report = compression.run(wanted)
            else:
                with pytest.raises(KeyboardInterrupt):
                    compression.run(wanted)
            return taken, trained, report

    first, trained, _ = attempt(None, at=2)  # in the middle of the first fine-tuning
    assert first == ["pruned"] and len(trained) == 2
    assert list(tmp_path.glob(".out.softlabels-*/journal/pruned.state")), "the state of the training is kept"
    assert not (tmp_path / "out").exists()
    second, trained, _ = attempt("pruned-finetuned")
    assert second == ["pruned", "pruned-int8"]
    assert len(trained) == 2, "two of four optimiser steps were left"
    third, _, _ = attempt("zeros-tuned")
    assert third == ["pruned-finetuned", "missing", "pruned-int8-dynamic", "zeros"]
    last, _, report = attempt(None)
    assert last == ["zeros-tuned"]
    assert second + third + last == STEPS
    same(report, unbroken)


def stopped_before(stop: str, small: SmallPipeline, folder: Path, patch: pytest.MonkeyPatch, **options: Any) -> Path:
    """A run that ended before a step, and its journal."""
    with patch.context() as inner, pytest.raises(KeyboardInterrupt):
        counting(inner, stop)
        compression.run(config(small, folder, SHORT, **options))
    (journal,) = folder.glob(".out.softlabels-*/journal")
    return journal


def weights_of(entry: Path) -> Path:
    """The model of a control whose entry of the journal this is."""
    return entry.parent.parent / keeping.CONTROLS / f"{entry.stem}.safetensors"


SHORT = block("prune", ratio=0.5, multiple=1, control=True, epochs=0) + block("finetune", control=True, epochs=1)


@pytest.mark.parametrize(
    "harm",
    [
        lambda entry: entry.write_bytes(entry.read_bytes()[:40]),
        lambda entry: entry.write_bytes(b""),
        lambda entry: entry.write_bytes(b'{"row": '),
        lambda entry: entry.write_bytes(b"[]"),
        lambda entry: entry.write_bytes(b"{}"),
        lambda entry: weights_of(entry).unlink(),
        lambda entry: weights_of(entry).write_bytes(b"half"),
    ],
    ids=["cut", "empty", "begun", "a list", "no row", "its model is gone", "half its model"],
)
def test_half_an_entry_is_a_step_that_is_not_done(
    harm: Callable[[Path], Any], small: SmallPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = stopped_before("pruned-finetuned", small, tmp_path, monkeypatch)
    harm(journal / "pruned.json")
    taken = counting(monkeypatch, "pruned-finetuned")
    with pytest.raises(KeyboardInterrupt):
        compression.run(config(small, tmp_path, SHORT))
    assert taken == ["pruned"]
    assert keeping.read(journal / "pruned.json") is not None


def test_other_options_or_another_recipe_start_afresh(
    small: SmallPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_before("pruned-finetuned", small, tmp_path, monkeypatch)
    for text, options in ((SHORT, {"seed": 1}), (SHORT.replace("0.5", "0.4"), {}), (SHORT, {"alpha": 0.3})):
        with monkeypatch.context() as patch:
            taken = counting(patch, "pruned-finetuned")
            with pytest.raises(KeyboardInterrupt):
                compression.run(config(small, tmp_path, text, **options))
            assert taken == ["pruned"]
    taken = counting(monkeypatch, "pruned-finetuned")
    with pytest.raises(KeyboardInterrupt):
        compression.run(config(small, tmp_path, SHORT))
    assert taken == []


def test_rows_that_were_skipped_stay_so_when_it_goes_on(
    small: SmallPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without ONNX Runtime there is a file that nobody can open; the model answers in its place, then and later."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    journal = stopped_before("pruned-finetuned", small, tmp_path, monkeypatch)
    entry = json.loads((journal / "baseline.json").read_text())
    assert "softlabels[compress]" in entry["row"]["skipped"]
    report = compression.run(config(small, tmp_path, SHORT))
    row = report.table["rows"][0]
    assert row["skipped"] == entry["row"]["skipped"] and row["accuracy"] is not None and row["file"] is None
    assert not list((tmp_path / "out").glob("*.onnx"))


def test_ctrl_c_says_how_to_go_on(
    small: SmallPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config(small, tmp_path, SHORT)
    counting(monkeypatch, "pruned")
    words = ["compress", "--runs", str(small.soft), "--recipe", str(tmp_path / "recipe.toml"), "--no-controls"]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--threads", "1", "--out", str(tmp_path / "out")])
    assert ended.value.code == 130
    assert "run the same command again to resume" in capsys.readouterr().err
