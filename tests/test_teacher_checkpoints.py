"""``fit-teacher --checkpoints``: the weights of epochs on the way, the same whether or not the fit was stopped."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipeline import teacher
from pipeline.datasets import load_dataset
from pipeline.errors import ConfigError
from pipeline.models import load_model, read_metadata, state_digest
from pipeline.teacher import FitTeacherConfig, run


def options(out: Path, **changes: Any) -> FitTeacherConfig:
    base: dict[str, Any] = {"teacher": "mlp-4", "epochs": 5, "lr": 0.01, "out": out, "device": "cpu", "views": 0}
    return FitTeacherConfig(**(base | {"keep": "last", "checkpoints": 3} | changes))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@given(epochs=st.integers(1, 120), data=st.data())
def test_epochs_are_spread_evenly_and_end_with_the_last(epochs: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, epochs))
    kept = [*options(Path("t"), epochs=epochs, checkpoints=count).kept_epochs]
    assert len(set(kept)) == count and kept == sorted(kept) and kept[0] >= 1 and kept[-1] == epochs
    gaps = [later - earlier for earlier, later in zip([0, *kept], kept, strict=False)]
    assert max(gaps) - min(gaps) <= 1


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("checkpoints") / "t"
    run(options(out))
    return out


def test_each_file_holds_the_weights_of_its_epoch(fitted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against digests that a hook of the test's own takes of every epoch of the same fit."""
    record = json.loads((fitted / "report.json").read_text())
    kept = {"checkpoint-01.safetensors": 1, "checkpoint-02.safetensors": 3, "checkpoint-03.safetensors": 5}
    assert record["checkpoints"] == kept
    seen: dict[int, str] = {}
    whole = teacher.fit

    def watched(*arguments: Any, on_epoch: Callable[[int, nn.Module], None], **named: Any) -> Any:
        def hook(epochs: int, model: nn.Module) -> None:
            seen[epochs] = state_digest(model)
            on_epoch(epochs, model)

        return whole(*arguments, on_epoch=hook, **named)

    monkeypatch.setattr(teacher, "fit", watched)
    run(options(fitted.parent / "again"))
    dataset = load_dataset("digits")
    for name, epochs in kept.items():
        metadata = read_metadata(fitted / name)
        assert metadata["reference"] == "mlp-4" and metadata["epochs"] == epochs
        model = load_model("mlp-4", {}, fitted / name, dataset, whose="t")
        assert state_digest(model) == seen[epochs]
    assert record["state"] == seen[5] and len(set(seen.values())) == 5
    assert {path.name for path in fitted.iterdir()} == {"model.safetensors", "history.json", "report.json", *kept}


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_fit_that_was_stopped_keeps_the_same_files(
    fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    whole = teacher.fit

    def stopped(*arguments: Any, **named: Any) -> Any:
        steps: list[int] = []

        def stop(step: int, _: torch.Tensor) -> None:
            steps.append(step)
            if len(steps) == 18 * epoch:
                signal.raise_signal(signal.SIGTERM)

        return whole(*arguments, on_step=stop, **named)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(teacher, "fit", stopped)
        run(options(tmp_path / "t"))
    assert not (tmp_path / "t").exists()
    run(options(tmp_path / "t"))
    for path in fitted.iterdir():
        if path.suffix == ".safetensors" or path.name == "history.json":
            assert digest(tmp_path / "t" / path.name) == digest(path), path.name


def test_they_count_in_the_identity_only_where_asked_for(fitted: Path, tmp_path: Path) -> None:
    plain = run(options(tmp_path / "t", checkpoints=0))
    assert not [*(tmp_path / "t").glob("checkpoint-*")] and "checkpoints" not in plain.figures
    assert digest(tmp_path / "t" / "model.safetensors") == digest(fitted / "model.safetensors")
    assert plain.identity != json.loads((fitted / "report.json").read_text())["identity"]
    with pytest.raises(ConfigError, match="--overwrite"):
        run(options(tmp_path / "t"))
    run(options(tmp_path / "t", overwrite=True))
    assert len([*(tmp_path / "t").glob("checkpoint-*")]) == 3
    run(options(tmp_path / "t", checkpoints=0, overwrite=True))
    assert not [*(tmp_path / "t").glob("checkpoint-*")]


def test_identities_of_before_stay(tmp_path: Path) -> None:
    from pipeline.training.recipe import outcome_options

    assert "checkpoints" not in outcome_options(options(tmp_path, checkpoints=0))
    assert outcome_options(options(tmp_path, checkpoints=2))["checkpoints"] == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"checkpoints": 6}, "0 to --epochs 5"), ({"checkpoints": -1}, "0 to"), ({"patience": 2}, "may stop before")],
)
def test_wrong_numbers_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        options(tmp_path, **changes)
