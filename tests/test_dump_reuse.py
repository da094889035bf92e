"""dump --reuse: a cache of this identity is used wherever it lies, and nothing that is not it, or not whole."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pipeline import dump
from pipeline.dump import DumpConfig, DumpReport, parts, reuse
from pipeline.errors import ConfigError
from pipeline.models import build_model, save_weights
from pipeline.progress import Silent
from pipeline.store import open_cache, push, verify
from pipeline.workspace import MARK


class Told(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, line: str) -> None:
        self.lines.append(line)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, weights, and a cache made from them."""
    folder = tmp_path_factory.mktemp("made")
    random = np.random.default_rng(0)
    splits = np.array(["train"] * 20 + ["test"] * 9)
    images = random.normal(size=(29, 1, 8, 8)).astype(np.float32)
    classes = np.array(["ant", "bee", "cat"])
    np.savez(folder / "data.npz", x=images, y=np.arange(29) % 3, split=splits, classes=classes)
    torch.manual_seed(0)
    save_weights(folder / "teacher.safetensors", build_model("mlp-8", {}, classes=3, input_shape=(1, 8, 8)), {})
    dump.run(DumpConfig(**options(folder, folder / "caches/a")))
    return folder


def options(made: Path, out: Path, **more: Any) -> dict[str, Any]:
    given = {"data": f"arrays:{made / 'data.npz'}", "teacher": "mlp-8", "weights": made / "teacher.safetensors"}
    views = {"views": 1, "transform": "affine:degrees=20", "features": ("hint=hidden",)}
    return {**given, **views, "out": out, "part_size": 8, "device": "cpu", **more}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many entries the teacher was asked about, batch by batch."""
    calls: list[int] = []
    original = parts.ask

    def counting(what: Any, inputs: torch.Tensor, *rest: Any) -> Any:
        calls.append(len(inputs))
        return original(what, inputs, *rest)

    monkeypatch.setattr(parts, "ask", counting)
    return calls


def tree(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def run(made: Path, out: Path, *places: Path | str, told: Told | None = None, **more: Any) -> DumpReport:
    report = dump.run(DumpConfig(**options(made, out, reuse=tuple(map(str, places)), **more)), told)
    assert isinstance(report, DumpReport)
    return report


def test_a_cache_that_exists_is_used_and_the_teacher_never_asked(made: Path, tmp_path: Path, asked: list[int]) -> None:
    told = Told()
    report = run(made, tmp_path / "out", made, told=told)
    source = str(made / "caches/a")
    assert asked == [] and report.teacher_seconds == 0 and report.reused == source and report.resumed == 0
    assert f"reused from {source}, teacher not run" in report.summary
    assert f"{source} is this cache" in told.text
    assert tree(tmp_path / "out") == tree(made / "caches/a") and verify(open_cache(tmp_path / "out")).ok
    beside = json.loads((tmp_path / "out.report.json").read_text())
    assert beside["reused"] == source and beside["identity"] == report.identity
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["out"]


def test_files_are_linked_where_they_can_be_and_copied_where_not(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[int]
) -> None:
    run(made, tmp_path / "linked", made)
    index = "index/part-00000.parquet"
    assert (tmp_path / "linked" / index).samefile(made / "caches/a" / index)

    def refused(*_: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(reuse.os, "link", refused)
    run(made, tmp_path / "copied", made)
    assert not (tmp_path / "copied" / index).samefile(made / "caches/a" / index)
    assert tree(tmp_path / "copied") == tree(tmp_path / "linked") == tree(made / "caches/a")
    assert asked == []


def test_what_dvc_links_into_its_store_is_used_too(made: Path, tmp_path: Path, asked: list[int]) -> None:
    place = Path(shutil.copytree(made / "caches", tmp_path / "caches"))
    (tmp_path / "store").mkdir()
    for number, path in enumerate(p for p in sorted((place / "a").rglob("*")) if p.is_file()):
        path.rename(tmp_path / "store" / str(number))
        path.symlink_to(tmp_path / "store" / str(number))
    run(made, tmp_path / "out", place)
    assert asked == [] and not [p for p in (tmp_path / "out").rglob("*") if p.is_symlink()]
    assert tree(tmp_path / "out") == tree(made / "caches/a")


@pytest.fixture
def memory() -> Iterator[str]:
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    yield "memory://bucket/caches"
    filesystem.store.clear()


def test_a_cache_at_a_url(made: Path, memory: str, tmp_path: Path, asked: list[int]) -> None:
    push(made / "caches/a", f"{memory}/x/a")
    report = run(made, tmp_path / "out", memory)
    assert asked == [] and report.reused == f"{memory}/x/a"
    assert tree(tmp_path / "out") == tree(made / "caches/a")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    path.write_bytes(data)


def damaged(made: Path, place: Path, how: str) -> Path:
    """A copy of the cache in ``place`` that is not what it was."""
    cache = Path(shutil.copytree(made / "caches/a", place / "bad"))
    if how == "flipped":
        flip(cache / "labels.zarr/logits/c.1.0")
    elif how == "missing":
        (cache / "index/part-00001.parquet").unlink()
    elif how == "manifest":
        flip(cache / "manifest.json")
    else:
        flip(cache / "README.md")
    return place


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("flipped", "is not used after all"),
        ("card", "is not used after all"),
        ("missing", "cannot be reused: parts missing"),
        ("manifest", "cannot be reused: damaged manifest"),
    ],
)
def test_a_damaged_one_is_not_used_and_the_teacher_runs(
    made: Path, tmp_path: Path, asked: list[int], how: str, words: str
) -> None:
    place, told = damaged(made, tmp_path / "place", how), Told()
    report = run(made, tmp_path / "out", place, told=told)
    assert words in told.text and "the teacher runs" in told.lines[-1]
    assert sum(asked) == report.entries and report.reused == "" and "reused" not in report.summary
    assert tree(tmp_path / "out") == tree(made / "caches/a")
    assert not [p for p in tmp_path.glob(f".*{MARK}*") if p.is_dir()]


def test_after_a_damaged_one_the_next_is_used(made: Path, tmp_path: Path, asked: list[int]) -> None:
    place, told = damaged(made, tmp_path / "place", "flipped"), Told()
    report = run(made, tmp_path / "out", place, tmp_path / "nothing", made / "caches", told=told)
    assert asked == [] and report.reused == str(made / "caches/a")
    assert "not used after all" in told.text and f"there is no folder {tmp_path / 'nothing'}" in told.text
    assert tree(tmp_path / "out") == tree(made / "caches/a")


def test_what_the_nearest_differ_in_is_named(made: Path, tmp_path: Path, asked: list[int]) -> None:
    told = Told()
    run(made, tmp_path / "out", made / "caches", told=told, views=2, encoding="topk", k=2, features=())
    assert f"({made / 'caches/a'} differs in views, encoding, features)" in told.lines[-1] and sum(asked) > 0


def test_a_claimed_digest_is_not_enough(made: Path, tmp_path: Path, asked: list[int]) -> None:
    from pipeline.identity import digest

    cache = Path(shutil.copytree(made / "caches/a", tmp_path / "place/a"))
    found = json.loads((cache / "manifest.json").read_text())
    found["identity"]["teacher"]["state"] = "0" * 64
    del found["digest"]
    (cache / "manifest.json").write_text(json.dumps({**found, "digest": digest(found)}))
    told = Told()
    report = run(made, tmp_path / "out", tmp_path / "place", told=told)
    assert report.reused == "" and sum(asked) > 0 and "differs in teacher" in told.text


def test_only_labels_of_this_identity_are_weighed(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.caches import catalog

    monkeypatch.setattr(catalog, "_state", None)  # would fail if it were asked
    run(made, tmp_path / "out", made / "caches", seed=5)


def test_what_is_finished_is_found_before_anything_is_looked_for(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(made, tmp_path / "out", made)
    monkeypatch.setattr(reuse, "catalog", None)
    assert run(made, tmp_path / "out", made).resumed > 0


def test_another_cache_at_out_is_replaced_only_when_told(made: Path, tmp_path: Path, asked: list[int]) -> None:
    run(made, tmp_path / "out", seed=3)
    asked.clear()
    with pytest.raises(ConfigError, match="holds cache"):
        run(made, tmp_path / "out", made)
    report = run(made, tmp_path / "out", made, overwrite=True)
    assert asked == [] and report.reused and tree(tmp_path / "out") == tree(made / "caches/a")


def test_an_interrupted_reuse_resumes(
    made: Path, memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[int]
) -> None:
    push(made / "caches/a", f"{memory}/a")
    kind = type(fsspec.filesystem("memory"))
    original, reads = kind.cat_file, [0]

    def cat(self: Any, path: str, *args: Any, **named: Any) -> Any:
        reads[0] += 1
        if reads[0] == 15:
            raise KeyboardInterrupt
        return original(self, path, *args, **named)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(kind, "cat_file", cat)
        run(made, tmp_path / "out", memory)
    assert not (tmp_path / "out").exists() and [p for p in tmp_path.glob(f".out{MARK}*") if p.is_dir()]
    run(made, tmp_path / "out", memory)
    assert asked == [] and tree(tmp_path / "out") == tree(made / "caches/a")


def test_several_processes_do_not_reuse(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--parts"):
        DumpConfig(**options(made, tmp_path / "out", reuse=("x",), parts="0:1"))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="one process"):
        run(made, tmp_path / "out", made)


def test_the_command_says_so(made: Path, tmp_path: Path, asked: list[int]) -> None:
    from stages.dump import command

    given = options(made, tmp_path / "out")
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if name != "features"]
    result = CliRunner().invoke(command, [*arguments, "--features", "hint=hidden", "--reuse", str(made)])
    assert result.exit_code == 0, result.output
    assert "teacher not run" in result.stdout and "is this cache" in result.stderr and asked == []


def test_the_pipeline_does_not_reuse_by_itself() -> None:
    root = Path(__file__).resolve().parents[1]
    assert "reuse" not in (root / "dvc.yaml").read_text() + (root / "params.yaml").read_text()
