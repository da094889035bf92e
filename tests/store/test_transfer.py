"""Caches carried to a URL and back: whole or not at all, resumed, and over a connection that fails."""

from __future__ import annotations

import errno
import http.client
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from pipeline.encodings import Dense
from pipeline.errors import (
    CacheCorruptError,
    CacheError,
    CacheIncompleteError,
    CacheMismatchError,
    CacheNotFoundError,
    ConfigError,
    DiskFullError,
)
from pipeline.store import arrival, open_cache, pull, push, remote, transfer, verify
from pipeline.store.remote import Patience, PatientFiles, transient
from tests.store.flaky import QUICK
from tests.store.small import FEW, LAYOUT, files_of, logits_of, small_cache


@pytest.fixture
def url() -> Iterator[str]:
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    yield "memory://bucket/cache"
    memory.store.clear()


def at(url: str) -> dict[str, bytes]:
    """Every file under a memory URL."""
    root = url.removeprefix("memory:/")
    return {p.removeprefix(f"{root}/"): f.getvalue() for p, f in fsspec.filesystem("memory").store.items()}


@pytest.mark.parametrize("store", ["zarr", "parquet"])
def test_there_and_back_is_the_same_tree(store: str, url: str, tmp_path: Path) -> None:
    cache = small_cache(tmp_path / "a", store=store)
    report = push(tmp_path / "a", url)
    assert at(url) == files_of(tmp_path / "a") and report.files == len(at(url)) and report.complete
    assert verify(open_cache(url)).ok and not verify(open_cache(url)).unlisted
    back = pull(url, tmp_path / "b")
    assert files_of(tmp_path / "b") == files_of(tmp_path / "a")
    assert verify(open_cache(tmp_path / "b")).ok and back.complete and cache.digest[:12] in back.summary
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()].count("b") == 1
    assert not [p for p in tmp_path.iterdir() if p.is_dir() and p.name not in ("a", "b")]


def test_a_folder_as_a_url(folder: Path, tmp_path: Path) -> None:
    url = (tmp_path / "far" / "away").as_uri()
    push(folder, url)
    assert files_of(tmp_path / "far" / "away") == files_of(folder)
    pull(url, tmp_path / "back")
    assert files_of(tmp_path / "back") == files_of(folder)


def test_the_manifest_goes_last_and_comes_last(folder: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    write = PatientFiles.write

    def noting(self: PatientFiles, path: str, data: Any) -> None:
        order.append(path)
        write(self, path, data)

    monkeypatch.setattr(PatientFiles, "write", noting)
    push(folder, url, workers=1)
    assert order[0] == transfer.MARKER and order[-1] == "manifest.json"
    small = [order.index(path) for path in open_cache(folder).manifest.files]
    assert min(small) > max(order.index(path) for part in open_cache(folder).parts for path in part.files)


def failing(monkeypatch: pytest.MonkeyPatch, name: str, after: int, error: BaseException) -> None:
    """The method ``name`` of memory's filesystem raises from its call number ``after`` on."""
    kind = type(fsspec.filesystem("memory"))
    method, calls = getattr(kind, name), iter(range(10**6))

    def call(self: Any, *args: Any, **named: Any) -> Any:
        if next(calls) >= after:
            raise error
        return method(self, *args, **named)

    monkeypatch.setattr(kind, name, call)


def test_an_interrupted_push_is_no_cache_and_resumes(folder: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        failing(patch, "pipe_file", 6, PermissionError("403"))
        with pytest.raises(CacheError, match="Check the credentials"):
            push(folder, url, workers=1)
    with pytest.raises(CacheNotFoundError):
        open_cache(url)
    report = push(folder, url)
    assert report.kept == 5 and at(url) == files_of(folder)
    assert push(folder, url).files == 0


def test_an_interrupted_pull_is_no_cache_and_resumes(
    folder: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(folder, url)
    with monkeypatch.context() as patch:
        failing(patch, "cat_file", 9, PermissionError("403"))
        with pytest.raises(CacheError, match="was refused"):
            pull(url, tmp_path / "b", workers=1)
    assert not (tmp_path / "b").exists()
    scratch = next(p for p in tmp_path.iterdir() if p.is_dir())
    (scratch / "labels.zarr" / "stranger").write_bytes(b"x")
    report = pull(url, tmp_path / "b")
    assert report.kept > 0 and files_of(tmp_path / "b") == files_of(folder)
    assert pull(url, tmp_path / "b").files == 0


def test_a_damaged_or_partial_cache_is_never_sent(url: str, tmp_path: Path) -> None:
    cache = small_cache(tmp_path / "a", layout=FEW)
    path = sorted(cache.parts[1].files)[0]
    data = bytearray((tmp_path / "a" / path).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "a" / path).write_bytes(data)
    with pytest.raises(CacheCorruptError, match=path):
        push(tmp_path / "a", url)
    assert "manifest.json" not in at(url) and path not in at(url)
    (tmp_path / "a" / path).unlink()
    fsspec.filesystem("memory").store.clear()
    with pytest.raises(CacheIncompleteError, match=path):
        push(tmp_path / "a", url)
    assert not at(url)


def test_large_files_travel_in_blocks(folder: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "WHOLE", 100)
    monkeypatch.setattr(transfer, "WHOLE", 100)
    monkeypatch.setattr(remote, "_BLOCK", 64)
    push(folder, url)
    pull(url, tmp_path / "b")
    assert files_of(tmp_path / "b") == files_of(folder) == at(url)


def test_another_cache_is_replaced_only_on_demand(folder: Path, url: str, tmp_path: Path) -> None:
    small_cache(tmp_path / "other", Dense(dtype="float16"))
    push(tmp_path / "other", url)
    before = at(url)
    with pytest.raises(CacheMismatchError, match="--overwrite"):
        push(folder, url)
    assert at(url) == before
    push(folder, url, overwrite=True)
    assert at(url) == files_of(folder)
    pull(url, tmp_path / "b")
    push(tmp_path / "other", url, overwrite=True)
    with pytest.raises(CacheMismatchError, match="holds another cache"):
        pull(url, tmp_path / "b")
    pull(url, tmp_path / "b", overwrite=True)
    assert files_of(tmp_path / "b") == before


def test_a_replacement_that_is_killed_leaves_no_mixture(
    folder: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The same layout and sizes, other labels: a size tells nothing.
    small_cache(tmp_path / "other", Dense(dtype="float16"))
    push(tmp_path / "other", url)
    for killed in (0, 4):
        with monkeypatch.context() as patch:
            failing(patch, "pipe_file", killed, KeyboardInterrupt())
            with pytest.raises(KeyboardInterrupt):
                push(folder, url, overwrite=True, workers=1)
        assert "manifest.json" not in at(url)
    push(folder, url)
    assert at(url) == files_of(folder)


def test_files_of_nobody_are_not_overwritten(folder: Path, url: str) -> None:
    fsspec.filesystem("memory").pipe_file(f"{url}/README.md", b"mine")
    fsspec.filesystem("memory").pipe_file(f"{url}/notes.txt", b"mine too")
    with pytest.raises(CacheMismatchError, match="no push left there"):
        push(folder, url)
    push(folder, url, overwrite=True)
    assert at(url) == {**files_of(folder), "notes.txt": b"mine too"}


def test_check_finds_what_a_size_does_not_tell(folder: Path, url: str) -> None:
    push(folder, url)
    path = sorted(open_cache(folder).parts[2].files)[0]
    fsspec.filesystem("memory").pipe_file(f"{url}/{path}", bytes(len(at(url)[path])))
    assert push(folder, url).files == 0
    assert push(folder, url, check=True).files == 1
    assert at(url) == files_of(folder)


def test_parts_of_a_cache_are_added_to(folder: Path, url: str, tmp_path: Path) -> None:
    push(folder, url)
    out, parts = tmp_path / "b", len(LAYOUT.parts)
    report = pull(url, out, parts=["0:2", "4"], features=())
    assert not report.complete and "partial" in report.summary and not list(out.rglob("features.zarr/*/c*"))
    cache = open_cache(out)
    assert np.array_equal(cache.decode(cache.read_part(4)).logits, logits_of(LAYOUT.parts[4]))
    with pytest.raises(CacheIncompleteError):
        cache.read_part(2)
    with pytest.raises(CacheIncompleteError):
        cache.read_feature("block.1", 0)
    assert {problem.message.partition(" is ")[2][:7] for problem in verify(cache).problems} == {"missing"}
    more = pull(url, out, parts=["2:"], features=["block.1"])
    assert more.kept and not more.complete and open_cache(out).read_part(parts - 1)
    assert pull(url, out).complete and files_of(out) == files_of(folder)


@pytest.mark.parametrize("parts", ["7:7", "x", "99", "-1", "2:1"])
def test_parts_that_are_not_there(parts: str, folder: Path, url: str, tmp_path: Path) -> None:
    push(folder, url)
    with pytest.raises(ConfigError, match="--parts should be"):
        pull(url, tmp_path / "b", parts=[parts])
    with pytest.raises(ConfigError, match=r"block\.1"):
        pull(url, tmp_path / "b", features=["block.2"])
    assert not (tmp_path / "b").exists()


def test_wrong_bytes_and_missing_files_are_named(folder: Path, url: str, tmp_path: Path) -> None:
    push(folder, url)
    path = sorted(open_cache(folder).parts[3].files)[0]
    whole = at(url)[path]
    memory = fsspec.filesystem("memory")
    for data, words in ((bytes(len(whole)), "sha256"), (whole[:-1], "bytes arrived"), (whole + b"x", "more bytes")):
        memory.pipe_file(f"{url}/{path}", data)
        with pytest.raises(CacheCorruptError, match=words) as caught:
            pull(url, tmp_path / "b", patience=QUICK)
        assert f"{url}/{path}" in str(caught.value)
    memory.rm_file(f"{url}/{path}")
    with pytest.raises(CacheIncompleteError, match=path):
        pull(url, tmp_path / "b", patience=QUICK)
    assert not (tmp_path / "b").exists()
    with pytest.raises(CacheNotFoundError):
        pull("memory://bucket/nothing", tmp_path / "b")


def test_a_full_disk_is_known_beforehand(
    folder: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(folder, url)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(arrival.shutil, "disk_usage", lambda _: usage(1000, 0, 1000))
    with pytest.raises(DiskFullError, match="Nothing was fetched"):
        pull(url, tmp_path / "b")
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_folder_of_somebody_else_is_left_alone(folder: Path, url: str, tmp_path: Path) -> None:
    push(folder, url)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("...")
    with pytest.raises(ConfigError, match=r"thesis\.tex"):
        pull(url, tmp_path / "b")
    with pytest.raises(ConfigError, match="sends a local directory"):
        push(url, "memory://elsewhere")
    with pytest.raises(ConfigError, match="into a local directory"):
        pull(str(tmp_path), url)


class ClientError(Exception):
    """As botocore's."""

    def __init__(self, status: int, code: str = "") -> None:
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}, "Error": {"Code": code}}


class Cut(Exception):
    """As aiohttp's, of a body that is shorter than was said."""

    code = 400


class ClientPayloadError(Exception):
    """As aiohttp's."""


Cut.__module__, ClientPayloadError.__module__ = "aiohttp.http_exceptions", "aiohttp.client_exceptions"


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (OSError(errno.EBUSY, "slow down"), True),
        (http.client.IncompleteRead(b""), True),
        (ClientError(503), True),
        (ClientError(429), True),
        (ClientError(400, "IncompleteBody"), True),
        (caused(OSError(errno.EINVAL, "?"), ClientError(500)), True),
        (caused(ClientPayloadError(), Cut()), True),
        (ClientError(403), False),
        (ClientError(501), False),
        (caused(OSError(errno.EIO, "?"), ClientError(400)), False),
        (caused(PermissionError(), ClientError(403)), False),
        (FileNotFoundError(), False),
        (OSError(errno.ENOSPC, "full"), False),
        (DiskFullError("full"), False),
        (ValueError(), False),
    ],
)
def test_what_may_pass(error: Exception, passes: bool) -> None:
    assert transient(error) is passes


def test_patience_ends_and_bugs_keep_their_traceback(url: str) -> None:
    files = PatientFiles(url, patience=Patience(3, 0.001))
    calls: list[int] = []

    def action(error: Exception) -> None:
        calls.append(1)
        raise error

    with pytest.raises(CacheError, match="not reached in 3 tries"):
        files.attempt("x", lambda: action(ConnectionResetError()))
    assert len(calls) == 3 and files.retries == 2
    with pytest.raises(ZeroDivisionError):
        files.attempt("x", lambda: action(ZeroDivisionError()))
    waits = [Patience().wait(n) for n in range(1, 12)]
    assert all(low <= wait <= 2 * low for wait, low in zip(waits, (0.25 * 2**n for n in range(7)), strict=False))
    assert max(waits) <= 60
