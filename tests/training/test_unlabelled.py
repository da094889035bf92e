"""A transfer set without hard labels: soft ones are enough, and what needs hard ones says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.dump import DumpConfig
from pipeline.dump import run as dump
from pipeline.errors import ConfigError, DataError
from pipeline.training import TrainConfig, prepare, run

Make = Callable[..., TrainConfig]


@pytest.fixture
def unlabelled(shared: Path, tmp_path: Path) -> dict[str, Any]:
    """The small dataset without labels in its training split, and a cache of it."""
    held = dict(np.load(shared / "data.npz"))
    held["y"] = np.where(held["split"] == "train", -1, held["y"])
    np.savez(tmp_path / "unlabelled.npz", **held)
    data, cache = f"arrays:{tmp_path / 'unlabelled.npz'}", tmp_path / "cache"
    dump(DumpConfig(data=data, teacher="mlp-8", weights=shared / "teacher.safetensors", out=cache, device="cpu"))
    return {"data": data, "cache": str(cache)}


def test_soft_labels_are_enough(config: Make, unlabelled: dict[str, Any]) -> None:
    report = run(config(**unlabelled, alpha=1.0, epochs=2))
    assert report.lineage["examples"] == 50 and report.lineage["labelled"] == 0
    assert 0 <= report.seeds[0]["accuracy"] <= 1, "judged on the labelled validation split"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, r"hard labels weigh 0.1, and none of the 50 training examples of .* has one: .*\(--alpha 1 --beta 0\)"),
        ({"alpha": 1.0, "beta": 0.5}, "hard labels weigh 0.5"),
        ({"alpha": 1.0, "loss": "dkd"}, "--loss dkd needs the hard label of each example"),
    ],
)
def test_what_needs_hard_labels_says_so(
    config: Make, unlabelled: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        prepare(config(**unlabelled, **options))


def test_hard_labels_alone_are_not_there(config: Make, unlabelled: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="none has a label or soft labels to learn from"):
        prepare(config(**unlabelled, alpha=0.0))


def test_a_few_labels_will_do(config: Make, shared: Path) -> None:
    assert prepare(config(labelled_fraction=0.01)).lineage["labelled"] == 3
