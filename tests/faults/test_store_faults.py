"""Caches that were damaged, cut short or made to mislead: a named error each, never wrong numbers."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import workspace
from pipeline.encodings import Dense, TopK
from pipeline.errors import CacheCorruptError, CacheError, CacheFormatError, CacheIncompleteError
from pipeline.identity import digest
from pipeline.store import STORES, Cache, FileRecord, open_cache, parts, verify
from pipeline.store import writer as writer_module
from pipeline.store.files import LocalFiles, safe_path
from tests.store.small import FEW, files_of, finalise, small_cache, write, writer_of

ENCODING = TopK(3, "float16", (1.0, 4.0))


@pytest.fixture(scope="module", params=STORES)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound cache, never changed."""
    folder = tmp_path_factory.mktemp("faults") / request.param
    small_cache(folder, ENCODING, request.param, FEW)
    return folder


def everything(cache: Cache) -> list[bytes]:
    """All that a reader can get out of a cache, as bytes."""
    found = [repr((cache.manifest.as_dict(), cache.ids("train"))).encode()]
    for part in cache.parts:
        index = cache.index(part)
        found += [rows.tobytes() for rows in cache.read_part(part).values()]
        found += [cache.read_feature("block.1", part).tobytes(), repr(index).encode()]
    return found


def attempt(folder: Path) -> tuple[list[bytes] | None, bool]:
    """(what was read, whether verify calls it sound); None where a named error came instead."""
    try:
        cache = open_cache(folder)
    except CacheError:
        return None, False
    try:
        return everything(cache), verify(cache).ok
    except CacheError:
        return None, verify(cache).ok


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damaged_file_is_noticed(whole: Path, data: st.DataObject) -> None:
    """Flip, cut, empty, lengthen, delete, or swap for another file of the cache: verify always says so."""
    contents = files_of(whole)
    path = data.draw(st.sampled_from(sorted(contents)))
    good = contents[path]
    kind = data.draw(st.sampled_from(["flip", "cut", "empty", "lengthen", "delete", "swap", "zero"]))
    place = whole / path
    try:
        if kind == "delete":
            place.unlink()
        elif kind == "swap":
            others = [p for p in sorted(contents) if contents[p] != good]
            place.write_bytes(contents[data.draw(st.sampled_from(others))])
        else:
            offset = data.draw(st.integers(0, max(0, len(good) - 1)))
            bit = data.draw(st.integers(0, 7))
            flipped = good[:offset] + bytes([good[offset] ^ 1 << bit]) + good[offset + 1 :]
            changes = {"flip": flipped, "cut": good[:offset], "empty": b"", "lengthen": good + b"\0", "zero": bytes(9)}
            place.write_bytes(changes[kind])
        found, sound = attempt(whole)
    finally:
        place.write_bytes(good)
    assert not sound
    assert found is None or found == everything(open_cache(whole))


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of a sound cache, to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "c"))


NOTICED = r"not the shard that was committed|should hold the positions|bytes and has"


def test_swapped_shards_are_noticed(folder: Path) -> None:
    """Both are sound by themselves: a seal tells shards apart, the column of positions Parquet files."""
    paths = [max(p for p in record.files if p.startswith("labels")) for record in open_cache(folder).parts[:2]]
    first, second = ((folder / path).read_bytes() for path in paths)
    (folder / paths[0]).write_bytes(second)
    (folder / paths[1]).write_bytes(first)
    cache = open_cache(folder)
    assert {p.path for p in verify(cache).problems} == set(paths)
    for number in (0, 1):
        with pytest.raises(CacheCorruptError, match=NOTICED):
            cache.read_part(number)
    with pytest.raises(CacheCorruptError, match=NOTICED):
        cache.read_rows("train", 0, np.array([3]))


def resealed(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest and put its digest right, as a hostile author would."""
    body = json.loads((folder / "manifest.json").read_bytes())
    body.pop("digest")
    change(body)
    (folder / "manifest.json").write_text(json.dumps({**body, "digest": digest(body)}))


def with_parts(folder: Path, change: Callable[[list[parts.PartRecord]], list[parts.PartRecord]]) -> None:
    """Change parts.parquet and put its digests right."""
    data = (folder / parts.PATH).read_bytes()
    changed = parts.encode(change(list(parts.decode(data, len(FEW.parts), "p"))))
    (folder / parts.PATH).write_bytes(changed)
    record = FileRecord.of(changed)
    resealed(folder, lambda body: body["files"].update({parts.PATH: vars(record)}))


def test_the_manifest_without_its_parts(folder: Path) -> None:
    (folder / parts.PATH).unlink()
    with pytest.raises(CacheIncompleteError, match=r"parts\.parquet is missing"):
        open_cache(folder)
    resealed(folder, lambda body: body["files"].pop(parts.PATH))
    with pytest.raises(CacheCorruptError, match=r"does not list parts\.parquet"):
        open_cache(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda records: records[:-1],
        lambda records: [*records, records[-1]],
        lambda records: [*records[1:], records[1]],
        lambda records: [vary(records[0], files={}), *records[1:]],
        lambda records: [vary(records[0], files=records[1].files), *records[1:]],
        lambda records: [vary(records[0], positions=9), *records[1:]],
        lambda records: [vary(records[0], view=1), *records[1:]],
    ],
)
def test_parts_that_are_not_those_of_the_manifest(folder: Path, change: Callable[..., Any]) -> None:
    with_parts(folder, change)
    with pytest.raises(CacheCorruptError, match="parts"):
        open_cache(folder)


def vary(record: parts.PartRecord, **values: Any) -> parts.PartRecord:
    return parts.PartRecord(**{**vars(record), **values})


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "index/../../x", "C:\\x", "a//b", "", ".", "a\0b"])
def test_paths_that_lead_elsewhere_are_refused_wherever_they_stand(folder: Path, path: str) -> None:
    with pytest.raises(CacheCorruptError, match="no plain path"):
        safe_path(path)
    with pytest.raises(CacheCorruptError, match="no plain path"):
        LocalFiles(folder).read(path)
    record = FileRecord("0" * 64, 1)
    with_parts(folder, lambda records: [vary(records[0], files={path: record}), *records[1:]])
    with pytest.raises(CacheCorruptError, match="no plain path"):
        open_cache(folder)


def test_a_link_to_another_file_is_held_to_the_digest(folder: Path, tmp_path: Path) -> None:
    """DVC links into its own store, so a link is fine; what it leads to has to be what was committed."""
    record = open_cache(folder).parts[0]
    path = next(p for p in sorted(record.files) if p.startswith("labels"))
    place = folder / path
    elsewhere = tmp_path / "elsewhere"
    shutil.move(place, elsewhere)
    place.symlink_to(elsewhere)
    assert verify(open_cache(folder)).ok
    elsewhere.write_bytes(os.urandom(record.files[path].size))
    assert [p.path for p in verify(open_cache(folder)).problems] == [path]
    with pytest.raises(CacheCorruptError):
        open_cache(folder).read_part(0)
    place.unlink()
    place.symlink_to("/dev/zero")
    with pytest.raises(CacheIncompleteError, match="is missing"):
        open_cache(folder).read_part(0)
    place.unlink()
    place.mkdir()
    with pytest.raises(CacheIncompleteError, match="is missing"):
        open_cache(folder).read_part(0)


@pytest.mark.parametrize("classes", [2**31 - 1, 2**31, 10**30])
@pytest.mark.parametrize("store", STORES)
def test_a_manifest_that_promises_more_than_the_files_hold(tmp_path: Path, store: str, classes: int) -> None:
    """Two thousand million classes are a number like any other; no memory is asked for."""
    small_cache(tmp_path, Dense(), store, FEW)
    resealed(tmp_path, lambda body: body.update(classes=classes, class_names=[]))
    for read in (lambda c: c.read_part(0), lambda c: c.read_rows("train", 0, np.array([1]))):
        with pytest.raises(CacheError):
            read(open_cache(tmp_path))


def test_arrays_of_another_kind_than_the_manifest_says(tmp_path: Path) -> None:
    small_cache(tmp_path, Dense(), layout=FEW)
    resealed(tmp_path, lambda b: (b["encoding"].update(dtype="float16"), b["identity"].pop("encoding")))
    with pytest.raises(CacheFormatError, match="should describe"):
        open_cache(tmp_path)


class Killed(BaseException):
    """A kill: nothing handles it."""


@pytest.mark.parametrize("step", [0, 1, 2, 3, 6, 9, 11])
def test_a_kill_before_any_write_loses_at_most_the_part_in_flight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path, step: int
) -> None:
    count = 0
    real = workspace.write_atomic

    def write_or_die(path: Path, data: bytes) -> None:
        nonlocal count
        if count == step:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(f"{path.name}.1.partial").write_bytes(data[: len(data) // 2])
            raise Killed
        count += 1
        real(path, data)

    store = whole.name
    with monkeypatch.context() as patch:
        patch.setattr(writer_module, "write_atomic", write_or_die)
        with pytest.raises(Killed):
            write(writer_of(tmp_path / "c", ENCODING, store, FEW))
    again = writer_of(tmp_path / "c", ENCODING, store, FEW)
    files_per_part = len(open_cache(whole).parts[0].files) + 1
    assert again.done == set(range(step // files_per_part))
    write(again)
    finalise(again)
    assert files_of(tmp_path / "c") == files_of(whole)


@pytest.mark.parametrize("step", [0, 1, 4, 7, 8])
def test_a_kill_while_finalising_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path, step: int
) -> None:
    store = whole.name
    writer = writer_of(tmp_path / "c", ENCODING, store, FEW)
    write(writer)
    count = 0
    real = workspace.write_atomic

    def die() -> None:
        nonlocal count
        count += 1
        if count > step:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(writer_module, "write_atomic", lambda path, data: (die(), real(path, data)))
        # After the last write the journal goes; a kill in the middle of that leaves some of it.
        patch.setattr(writer_module.shutil, "rmtree", lambda path, **_: (os.unlink(path / "part-00003.json"), die()))
        try:
            finalise(writer)
        except Killed:
            again = writer_of(tmp_path / "c", ENCODING, store, FEW)
            assert again.done == {part.number for part in FEW.parts}
    again = writer_of(tmp_path / "c", ENCODING, store, FEW)
    finalise(again)
    assert files_of(tmp_path / "c") == files_of(whole)


@pytest.mark.parametrize(
    "tear", [lambda d: d[:-20], lambda d: b"", lambda d: d.replace(b"train", b"tr\xffin"), lambda d: b"[]"]
)
def test_a_torn_journal_entry_is_a_part_to_be_done_again(tmp_path: Path, tear: Callable[[bytes], bytes]) -> None:
    write(writer_of(tmp_path, layout=FEW), FEW.parts[:3])
    place = tmp_path / "journal/part-00001.json"
    place.write_bytes(tear(place.read_bytes()))
    (tmp_path / "journal/part-99999.json").write_bytes(place.read_bytes())
    (tmp_path / "journal/part-x.json").write_bytes(b"{}")
    assert writer_of(tmp_path, layout=FEW).done == {0, 2}


def test_a_journalled_part_whose_files_are_gone_or_short_is_done_again(tmp_path: Path) -> None:
    write(writer_of(tmp_path, layout=FEW), FEW.parts[:4])
    (tmp_path / "labels.zarr/logits/c.0.0").unlink()
    place = tmp_path / "index/part-00001.parquet"
    place.write_bytes(place.read_bytes()[:-1])
    feature = tmp_path / "features.zarr/block.1/c.2.0.0"
    shutil.move(feature, tmp_path / "moved")
    feature.symlink_to(tmp_path / "moved")
    assert writer_of(tmp_path, layout=FEW).done == {3}


def test_a_journal_entry_that_names_files_elsewhere_is_not_trusted(tmp_path: Path) -> None:
    write(writer_of(tmp_path, layout=FEW), FEW.parts[:1])
    place = tmp_path / "journal/part-00000.json"
    body = json.loads(place.read_bytes())
    body.pop("digest")
    body["files"]["../../etc/passwd"] = {"sha256": "0" * 64, "size": 1}
    place.write_text(json.dumps({**body, "digest": digest(body)}))
    assert writer_of(tmp_path, layout=FEW).done == set()


def test_a_disk_that_fails_is_a_named_error_and_the_parts_before_it_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = writer_of(tmp_path, layout=FEW)
    write(writer, FEW.parts[:2])

    def full(path: Path, data: bytes) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(writer_module, "write_atomic", full)
        with pytest.raises(CacheIncompleteError, match=r"Input/output error.*the parts that are done are kept"):
            write(writer, FEW.parts[2:3])
    assert writer_of(tmp_path, layout=FEW).done == {0, 1} == writer.done


def test_a_shard_that_cannot_be_read_is_a_named_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = open_cache(folder)

    def broken(self: LocalFiles, path: str) -> Any:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(LocalFiles, "whole", broken)
    with pytest.raises(CacheCorruptError, match=r"labels.*Input/output error"):
        cache.read_part(0)
    with pytest.raises(CacheCorruptError, match=r"index.*Input/output error"):
        cache.index(0)


def test_an_empty_shard_never_reads_as_numbers(folder: Path) -> None:
    cache = open_cache(folder)
    for path in cache.parts[0].files:
        (folder / path).write_bytes(b"")
    for read in (cache.read_part, cache.index, lambda p: cache.read_feature("block.1", p)):
        with pytest.raises(CacheCorruptError, match="bytes and has 0"):
            read(0)
    with pytest.raises(CacheCorruptError, match="bytes and has 0"):
        cache.read_rows("train", 0, np.array([0]))
