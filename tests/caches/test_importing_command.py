"""``softlabels cache import`` as it is typed; and students of an imported cache learn what those of the dump learn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pipeline import dump, training
from pipeline.datasets import load_dataset
from pipeline.dump import DumpConfig
from pipeline.errors import CacheMismatchError
from pipeline.models import build_model, load_weights, save_weights
from pipeline.progress import Silent
from pipeline.softlabels import Dense
from pipeline.store import Cache, open_cache
from pipeline.training import TrainConfig
from stages.cache import command
from tests.small_pipeline import CLASSES, write_images

FOREIGN = Path(__file__).parent / "foreign"


def softlabels_cache(*arguments: object, status: int = 0) -> str:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output
    return result.output


def test_one_line_names_what_is_unknown(tmp_path: Path) -> None:
    said = softlabels_cache("import", FOREIGN / "tinyvit", "--classes", 20, "--out", tmp_path / "cache")
    assert "34 entries in 2 parts" in said and "unknown: teacher, weights, preprocessing" in said
    report = json.loads(
        softlabels_cache("import", FOREIGN / "tinyvit", "--classes", 20, "--out", tmp_path / "cache", "--json")
    )
    assert report["resumed"] == 2 and "views" in report["unknown"] and report["sources"] == [str(FOREIGN / "tinyvit")]
    assert "34 entries: sound" in softlabels_cache("verify", tmp_path / "cache")
    card = (tmp_path / "cache/README.md").read_text()
    assert str(tmp_path) not in card and str(FOREIGN) not in (tmp_path / "cache/manifest.json").read_text()


def test_inspect_says_what_is_unknown(tmp_path: Path) -> None:
    source = FOREIGN / "fkd/marginal_smoothing_k5"
    softlabels_cache("import", source, "--classes", 20, "--teacher", "effnet", "--out", tmp_path / "cache")
    lines = dict(line.split("  ", 1) for line in softlabels_cache("inspect", tmp_path / "cache").splitlines())
    said = {name.strip(): value.strip() for name, value in lines.items()}
    assert said["teacher"] == "effnet, weights unknown, precision unknown" and said["preprocessing"] == "unknown"
    assert said["data"] == "4 examples, unknown" and said["classes"] == "20: names unknown"
    assert said["views"] == "how they were made is unknown"
    assert (
        said["made by import"].startswith("fkd; 4 files of 7,580 bytes") and "teacher effnet" in said["made by import"]
    )
    assert "temperature (taken as 1)" in said["unknown"]


def test_wrong_usage_is_status_2_and_a_bad_source_status_1(tmp_path: Path) -> None:
    assert "give --classes" in softlabels_cache("import", FOREIGN / "tinyvit", "--out", tmp_path / "c", status=2)
    np.save(tmp_path / "logits.npy", np.zeros((2, 3), np.float32))
    assert "--ids row" in softlabels_cache("import", tmp_path / "logits.npy", "--out", tmp_path / "c", status=1)


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Cache]:
    """Where, the dataset, and a cache that was dumped of it."""
    root = tmp_path_factory.mktemp("import")
    data = write_images(root / "images.npz")
    torch.manual_seed(0)
    model = build_model("cnn-4", {}, classes=3, input_shape=(1, 8, 8))
    save_weights(root / "teacher.safetensors", model, {"class_names": list(CLASSES)})
    weights = root / "teacher.safetensors"
    dump.run(DumpConfig(data=data, teacher="cnn-4", weights=weights, out=root / "dumped", device="cpu"))
    return root, data, open_cache(root / "dumped")


def published(cache: Cache, path: Path) -> Path:
    """The labels of a cache as somebody may publish them: an .npz of logits, in another order."""
    ids: list[str] = []
    splits: list[str] = []
    logits = []
    for split in cache.splits():
        for part in cache.parts_of(split, 0):
            soft = cache.decode(cache.read_part(part))
            assert isinstance(soft, Dense)
            ids += cache.index(part).example_ids
            logits.append(soft.logits)
            splits += [split] * part.entries
    order = np.random.default_rng(0).permutation(len(ids))
    np.savez(path, logits=np.concatenate(logits)[order], ids=np.array(ids)[order], split=np.array(splits)[order])
    return path


def test_students_learn_from_it_what_they_learn_from_the_dump(dumped: tuple[Path, str, Cache]) -> None:
    root, data, cache = dumped
    source = published(cache, root / "teacher_logits.npz")
    softlabels_cache("import", source, "--plain", "--out", root / "imported")
    imported = open_cache(root / "imported")
    assert sorted(imported.ids("train")) == sorted(cache.ids("train")) and imported.manifest.bound == 0
    weights = []
    for name in ("dumped", "imported"):
        out = root / f"run-{name}"
        # One block, whatever the order of the labels: the batches are then drawn from the rows of the dataset.
        training.run(
            TrainConfig(data=data, cache=str(root / name), student="cnn-2", out=out, epochs=2, block=64, device="cpu")
        )
        student = build_model("cnn-2", {}, classes=3, input_shape=(1, 8, 8))
        load_weights(student, out / "seed-0/model.safetensors")
        weights.append(student.state_dict())
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.allclose(value, weights[1][key], atol=1e-5) for key, value in weights[0].items())


def test_top_k_labels_train_whatever_lay_in_memory_before(
    dumped: tuple[Path, str, Cache], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, data, cache = dumped
    source = published(cache, tmp_path / "logits.npz")
    softlabels_cache("import", source, "--encoding", "topk", "--k", 2, "--temperature", 4, "--out", tmp_path / "topk")
    allocate = Cache.allocate

    def dirty(self: Cache, positions: int, kept: int = 0) -> dict[str, Any]:
        arrays = allocate(self, positions, kept)
        for values in arrays.values():
            values.view(np.uint8)[:] = 0xFF
        return arrays

    monkeypatch.setattr(Cache, "allocate", dirty)
    report = training.run(
        TrainConfig(
            data=data, cache=str(tmp_path / "topk"), student="cnn-2", out=tmp_path / "run", epochs=1, device="cpu"
        )
    )
    assert len(report.as_dict()["seeds"]) == 1


def test_labels_of_other_examples_are_refused(dumped: tuple[Path, str, Cache], tmp_path: Path) -> None:
    _, data, cache = dumped
    source = published(cache, tmp_path / "logits.npz")
    softlabels_cache("import", source, "--id-template", "other/{id}", "--out", tmp_path / "imported")
    with pytest.raises(CacheMismatchError, match="labels for none of the 60 train examples"):
        training.run(TrainConfig(data=data, cache=str(tmp_path / "imported"), student="cnn-2", out=tmp_path / "run"))
    assert len(load_dataset(data, {})) == 130


def test_train_says_what_it_cannot_check(dumped: tuple[Path, str, Cache], tmp_path: Path) -> None:
    folder, data, cache = dumped
    ids = cache.ids("train")
    logits = np.random.default_rng(0).normal(size=(len(ids), 3)).astype(np.float32)
    np.savez(tmp_path / "published.npz", logits=logits, ids=np.array(ids))
    softlabels_cache("import", tmp_path / "published.npz", "--out", tmp_path / "cache")
    said = Said()
    config = TrainConfig(data=data, cache=str(tmp_path / "cache"), student="cnn-2", out=tmp_path / "run", epochs=1)
    report = training.run(config, said)
    unchecked = [line for line in said.lines if line.startswith("cannot be checked: ")]
    assert len(unchecked) == len(report.unchecked) == 4
    for words in ("order of the classes", "inputs were prepared", "joined by id alone", "which views"):
        assert any(words in line for line in unchecked)
    known = Said()
    dumped_config = TrainConfig(data=data, cache=cache.address, student="cnn-2", out=tmp_path / "known", epochs=1)
    assert training.run(dumped_config, known).unchecked == ()
    assert folder.exists() and not [line for line in known.lines if "cannot be checked" in line]


class Said(Silent):
    """Progress that remembers what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, line: str) -> None:
        self.lines.append(line)
