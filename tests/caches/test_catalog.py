"""The catalogue: every cache of a place is a row, whatever is wrong with it, and nothing else is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from click.testing import CliRunner

from pipeline.caches import catalog as module
from pipeline.caches.catalog import COMPLETE, DAMAGED, MISSING, NO_MANIFEST, OTHER_FORMAT, Listed, Wanted, catalog
from pipeline.encodings import Dense, TopK
from pipeline.errors import CacheNotFoundError
from pipeline.store import open_cache, push
from pipeline.store.files import LocalFiles
from stages.verbs import cataloguing
from tests.store.small import FEW, LAYOUT, small_cache


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    small_cache(folder / "a")
    small_cache(folder / "deep/er/b", TopK(3, "float16", (1.0, 4.0)), "parquet", FEW)
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "place"))


@pytest.fixture
def memory() -> Iterator[str]:
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    yield "memory://bucket/caches"
    filesystem.store.clear()


def rows_of(place: Path | str, **wanted: str) -> dict[str, Listed]:
    return {row.address.removeprefix(f"{place}/"): row for row in catalog(place, wanted=Wanted(**wanted))}


def invoke(*arguments: str) -> Any:
    from stages.cache import command

    return CliRunner().invoke(command, ["catalog", *arguments])


def test_caches_at_any_depth_with_what_they_are(place: Path) -> None:
    rows = rows_of(place)
    assert list(rows) == ["a", "deep/er/b"]
    for name, row in rows.items():
        cache = open_cache(place / name)
        assert (row.identity, row.state, row.problem) == (cache.digest, COMPLETE, "")
        assert (row.teacher, row.weights, row.data, row.classes) == ("cnn-32", "ab" * 32, "cd" * 32, 6)
        assert row.bytes == sum(p.stat().st_size for p in (place / name).rglob("*") if p.is_file())
        assert row.bytes == cache.describe()["bytes"]["total"]
    assert (rows["a"].entries, rows["a"].encoding) == (LAYOUT.entries, "dense float32")
    assert rows["deep/er/b"].encoding == "topk k=3 float16 T=1,4"


def test_a_place_that_is_a_cache_is_one_row(place: Path) -> None:
    assert [row.state for row in catalog(place / "a")] == [COMPLETE]
    assert [row.state for row in catalog(f"file://{place / 'a'}")] == [COMPLETE]


def test_hidden_folders_scratch_and_other_manifests_are_left_out(place: Path) -> None:
    for name in (".dvc/cache", ".venv/x", "sub/.softlabels-0123", ".hidden", "a/labels.zarr/inner"):
        shutil.copytree(place / "deep/er/b", place / name)
    (place / "web").mkdir()
    (place / "web/manifest.json").write_text('{"manifest_version": 3, "name": "an extension"}')
    shutil.move(place / "a", place / "web/a")
    assert list(rows_of(place)) == ["deep/er/b", "web/a"]


def test_links_lead_to_caches_and_nowhere_else(place: Path, tmp_path: Path) -> None:
    outside = Path(shutil.move(place / "a", tmp_path / "outside/a"))
    (place / "linked").symlink_to(outside)
    (place / "away").symlink_to(tmp_path)
    (place / "deep/circle").symlink_to(place)
    (place / "broken").symlink_to(tmp_path / "nothing")
    assert list(rows_of(place)) == ["deep/er/b", "linked"]


def test_links_to_files_are_those_files(place: Path, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    for number, path in enumerate(p for p in sorted((place / "a").rglob("*")) if p.is_file()):
        path.rename(tmp_path / "store" / str(number))
        path.symlink_to(tmp_path / "store" / str(number))
    assert rows_of(place)["a"].state == COMPLETE


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def edited(path: Path, **more: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))


BROKEN: dict[str, tuple[Any, str, str]] = {
    "a label file is gone": (lambda a: next(a.glob("labels.zarr/logits/c*")).unlink(), MISSING, "1 of"),
    "the index is gone": (lambda a: shutil.rmtree(a / "index"), MISSING, "12 of"),
    "a file is shorter": (lambda a: cut(a / "index/part-00003.parquet"), DAMAGED, "index/part-00003.parquet"),
    "no parts.parquet": (lambda a: (a / "parts.parquet").unlink(), MISSING, "parts.parquet"),
    "parts.parquet is another": (lambda a: cut(a / "parts.parquet"), DAMAGED, "parts.parquet"),
    "a torn manifest": (lambda a: cut(a / "manifest.json"), NO_MANIFEST, "manifest.json"),
    "an empty manifest": (lambda a: (a / "manifest.json").write_bytes(b""), NO_MANIFEST, "not JSON"),
    "an edited manifest": (lambda a: edited(a / "manifest.json", bound=1), NO_MANIFEST, "digest"),
    "a deep manifest": (lambda a: (a / "manifest.json").write_text("[" * 10_000), NO_MANIFEST, "not JSON"),
    "another program's": (lambda a: (a / "manifest.json").write_text('{"x": 1}'), NO_MANIFEST, "format"),
    "a later format": (lambda a: edited(a / "manifest.json", format=99), OTHER_FORMAT, "99"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_wrong_is_named_and_stops_nothing(place: Path, what: str) -> None:
    damage, state, words = BROKEN[what]
    damage(place / "a")
    rows = rows_of(place)
    assert rows["a"].state == state and words in rows["a"].problem
    assert rows["deep/er/b"].state == COMPLETE
    result = invoke(str(place))
    assert result.exit_code == 0 and state in result.stdout and words in result.stdout
    assert f"{place}: 2 caches" in result.stdout and "1 not whole" in result.stdout
    found = json.loads(invoke(str(place), "--json").stdout)
    assert [row["state"] for row in found["caches"]] == [state, COMPLETE]


def test_a_damaged_row_still_says_what_it_was(place: Path) -> None:
    digest = open_cache(place / "a").digest
    cut(place / "a/parts.parquet")
    row = rows_of(place)["a"]
    assert (row.state, row.identity, row.entries) == (DAMAGED, digest, LAYOUT.entries)


def test_filters(place: Path) -> None:
    digest = open_cache(place / "a").digest
    assert list(rows_of(place, identity=digest[:8])) == ["a"]
    assert list(rows_of(place, teacher="cnn")) == list(rows_of(place, teacher="abab")) == ["a", "deep/er/b"]
    assert rows_of(place, teacher="resnet") == rows_of(place, data="00") == rows_of(place, identity="zz") == {}
    result = invoke(str(place), "--teacher", "resnet")
    assert result.exit_code == 0 and result.stdout == f"{place}: 0 caches of that kind, 0 bytes\n"


def test_what_is_not_wanted_is_not_looked_at(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_state", None)
    assert rows_of(place, identity="zz") == {}


def test_only_small_files_are_read(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = LocalFiles.open

    def noting(self: LocalFiles, path: str) -> Any:
        read.append(path)
        return original(self, path)

    monkeypatch.setattr(LocalFiles, "open", noting)
    assert len(rows_of(place)) == 2
    assert sorted(set(read)) == ["manifest.json", "parts.parquet"]


def test_a_url(place: Path, memory: str) -> None:
    push(place / "a", f"{memory}/x/a")
    push(place / "deep/er/b", f"{memory}/b")
    files = fsspec.filesystem("memory")
    files.pipe_file("/bucket/caches/.hidden/manifest.json", b"{")
    files.pipe_file("/bucket/caches/note.txt", b"hello")
    rows = rows_of(memory)
    assert {name: row.state for name, row in rows.items()} == {"b": COMPLETE, "x/a": COMPLETE}
    assert rows["x/a"].bytes == rows_of(place)["a"].bytes
    assert open_cache(rows["x/a"].address).digest == rows["x/a"].identity
    files.rm_file("/bucket/caches/x/a/index/part-00000.parquet")
    files.pipe_file("/bucket/caches/b/manifest.json", b"{")
    assert {name: row.state for name, row in rows_of(memory).items()} == {"b": NO_MANIFEST, "x/a": MISSING}
    assert invoke(memory).exit_code == 0


@pytest.mark.parametrize("where", ["nothing", "memory://bucket/nothing"])
def test_no_such_place_is_said(tmp_path: Path, memory: str, where: str) -> None:
    address = where if "://" in where else str(tmp_path / where)
    with pytest.raises(CacheNotFoundError, match="nothing"):
        list(catalog(address))
    result = invoke(address)
    assert result.exit_code == 1 and result.stderr.startswith("error: there is no")


def test_the_table_has_a_line_for_each_and_odd_names_do_no_harm(place: Path) -> None:
    (place / "a").rename(place / "a\x1b[2J\udcff")
    result = invoke(str(place))
    lines = result.stdout.splitlines()
    assert result.exit_code == 0 and len(lines) == 4
    assert lines[0].split() == list(cataloguing.HEADINGS)
    assert "\x1b" not in result.stdout and "cnn-32   abababababab  cdcdcdcdcdcd" in lines[1]
    assert json.loads(invoke(str(place), "--json").stdout)["caches"][0]["entries"] == 80


def test_unknown_things_are_said_to_be_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_cache(tmp_path / "a", Dense(), layout=FEW)
    described = module._described
    monkeypatch.setattr(
        module, "_described", lambda *a: Listed(**{**vars(described(*a)), "teacher": "", "weights": ""})
    )
    assert "unknown  unknown  cdcdcdcdcdcd" in invoke(str(tmp_path)).stdout
