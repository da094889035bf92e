"""A cache that grows with its dataset: old labels are copied, new examples alone meet the teacher."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.caches import difference
from pipeline.dump import DumpConfig, extend
from pipeline.dump import run as dump
from pipeline.dump.extend import ExtendConfig
from pipeline.errors import CacheMismatchError, ConfigError, ModelError
from pipeline.models import build_model, save_weights
from pipeline.store import Cache, open_cache, verify

Save = Callable[..., str]
SHAPE = (1, 8, 8)


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Writes images of the given numbers as a dataset; number n is always the same image with the same id."""

    def write(name: str, numbers: Any, **changed: Any) -> str:
        images = [np.random.default_rng(n).normal(size=SHAPE).astype(np.float32) for n in numbers]
        splits = ["test" if n % 4 == 3 else "train" for n in numbers]
        arrays = {
            "x": np.stack(images),
            "y": np.array([n % 3 for n in numbers]),
            "ids": np.array([f"n{n}" for n in numbers]),
            "split": np.array(splits),
            "classes": np.array(["a", "b", "c"]),
        }
        np.savez(tmp_path / f"{name}.npz", **{**arrays, **changed})
        return f"arrays:{tmp_path / name}.npz"

    return write


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_weights(tmp_path / "t.safetensors", build_model("cnn-4", {}, classes=3, input_shape=SHAPE), {})
    return tmp_path / "t.safetensors"


def dumped(out: Path, data: str, weights: Path, **options: Any) -> Cache:
    given = {"views": 2, "transform": "affine:degrees=10", "features": ("hint=stage2",), "part_size": 10, **options}
    dump(DumpConfig(data=data, teacher="cnn-4", weights=weights, out=out, device="cpu", **given))
    return open_cache(out)


def extended(cache: Cache, data: str, weights: Path, out: Path, **options: Any) -> extend.BuildReport:
    return extend.run(
        ExtendConfig(cache=cache.address, data=data, teacher="cnn-4", weights=weights, out=out, device="cpu", **options)
    )


@pytest.mark.parametrize("options", [{}, {"encoding": "topk", "k": 2, "temperature": (1.0, 2.0)}, {"dtype": "int8"}])
def test_it_says_what_a_dump_of_the_grown_data_would(
    tmp_path: Path, save: Save, weights: Path, options: dict[str, Any]
) -> None:
    old = dumped(tmp_path / "old", save("old", range(40)), weights, **options)
    grown = save("grown", [*range(60, 35, -1), *range(30)])  # others first, in another order, and some are gone
    report = extended(old, grown, weights, tmp_path / "made")
    assert report.asked == sum(3 if n % 4 != 3 else 1 for n in range(40, 61))
    made, whole = open_cache(tmp_path / "made"), dumped(tmp_path / "whole", grown, weights, **options)
    assert verify(made).ok
    found = difference.run(difference.DiffConfig(one=made.address, other=whole.address, entries=0))
    assert set(found.identity) == {"lineage"}
    assert max(kl["max"] for kl in found.kl.values()) < 1e-6 and found.agreement == 1.0
    assert found.compared == whole.manifest.counts["entries"]
    for part in whole.parts:
        np.testing.assert_allclose(
            made.read_feature("hint", part.number).astype(np.float32), whole.read_feature("hint", part), atol=1e-3
        )
        assert made.index(part.number).example_ids == whole.index(part).example_ids
    for key in ("teacher_accuracy",):
        assert made.manifest.fidelity[key] == whole.manifest.fidelity[key]
    assert made.manifest.lineage[-1]["verb"] == "extend"


@pytest.mark.parametrize("transform", ["mixup", "affine:degrees=10+cutmix"])
def test_mixed_views_are_copied_where_their_split_is_as_it_was(
    tmp_path: Path, save: Save, weights: Path, transform: str
) -> None:
    """New examples of other splits change no partner: what is made is what a dump of the grown data would."""
    train = [n for n in range(40) if n % 4 != 3]
    old = dumped(tmp_path / "old", save("old", range(40)), weights, transform=transform)
    grown = save("grown", [*range(43, 80, 4), *train[::-1], *range(3, 40, 8)])
    report = extended(old, grown, weights, tmp_path / "made")
    assert report.asked == 10
    made, whole = open_cache(tmp_path / "made"), dumped(tmp_path / "whole", grown, weights, transform=transform)
    assert verify(made).ok
    found = difference.run(difference.DiffConfig(one=made.address, other=whole.address, entries=0))
    assert set(found.identity) == {"lineage"} and found.agreement == 1.0
    assert max(kl["max"] for kl in found.kl.values()) < 1e-6
    for part in whole.parts:
        ours, theirs = made.index(part.number), whole.index(part)
        assert ours.labels.tolist() == theirs.labels.tolist()
        assert part.view == 0 or set(ours.labels.tolist()) == {-1}
    assert made.manifest.fidelity["teacher_accuracy"] == whole.manifest.fidelity["teacher_accuracy"]


@pytest.mark.parametrize("numbers", [range(41), range(36)], ids=["grown", "shrunk"])
def test_mixed_views_of_a_split_that_changed_are_refused_by_name(
    tmp_path: Path, save: Save, weights: Path, numbers: range
) -> None:
    """Every example may have another partner, whatever the few views that are recorded say."""
    old = dumped(tmp_path / "old", save("old", range(40)), weights, transform="mixup")
    changed = save("changed", [*numbers, 43, 47])
    with pytest.raises(CacheMismatchError, match=r"mixes each train example with another of that split, .* dump again"):
        extended(old, changed, weights, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_only_new_examples_meet_the_teacher(
    tmp_path: Path, save: Save, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = dumped(tmp_path / "old", save("old", range(20)), weights)
    asked = 0

    def counting(job: Any, inputs: torch.Tensor, *rest: Any) -> Any:
        nonlocal asked
        asked += len(inputs)
        return real(job, inputs, *rest)

    real = extend.ask
    monkeypatch.setattr(extend, "ask", counting)
    report = extended(old, save("grown", range(24)), weights, tmp_path / "made", batch_size=3)
    assert asked == report.asked == 3 * 3 + 1


def test_a_run_that_was_stopped_goes_on(
    tmp_path: Path, save: Save, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = dumped(tmp_path / "old", save("old", range(20)), weights)
    grown = save("grown", range(44))
    real, calls = extend.ask, 0

    def dying(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(extend, "ask", dying)
    with pytest.raises(KeyboardInterrupt):
        extended(old, grown, weights, tmp_path / "made")
    assert extended(old, grown, weights, tmp_path / "made").resumed > 0
    assert verify(open_cache(tmp_path / "made")).ok


def test_refusals(tmp_path: Path, save: Save, weights: Path) -> None:
    data = save("old", range(20))
    old = dumped(tmp_path / "old", data, weights)
    with pytest.raises(ConfigError, match="nothing is to be added"):
        extended(old, data, weights, tmp_path / "x")
    other = tmp_path / "other.safetensors"
    torch.manual_seed(1)
    save_weights(other, build_model("cnn-4", {}, classes=3, input_shape=SHAPE), {})
    with pytest.raises(CacheMismatchError, match="was made by teacher"):
        extended(old, save("grown", range(30)), other, tmp_path / "x")
    with pytest.raises(CacheMismatchError, match="other content"):
        extended(
            old, save("changed", range(30), ids=np.array([f"n{29 - n}" for n in range(30)])), weights, tmp_path / "x"
        )
    with pytest.raises((CacheMismatchError, ModelError)):
        extended(old, save("named", range(30), classes=np.array(["a", "c", "b"])), weights, tmp_path / "x")
    assert not (tmp_path / "x").exists()
