"""Dumps straight to a URL: the bytes of a local dump, whoever makes the parts, whatever fails on the way."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.torch import save_file

from pipeline import dump
from pipeline.dump import DumpConfig, DumpReport, PartialReport
from pipeline.errors import CacheIncompleteError, CacheMismatchError, CacheNotFoundError, ConfigError
from pipeline.models import build_model
from pipeline.store import open_cache, verify
from stages.cli import main
from tests.store.flaky import QUICK, s3_behind_a_proxy
from tests.store.small import files_of

ROOT = Path(__file__).resolve().parent.parent
PARTS = 10


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data.npz and a teacher's weights; local/ is the cache that all of these tests make."""
    folder = tmp_path_factory.mktemp("dumps")
    random = np.random.default_rng(0)
    np.savez(folder / "data.npz", x=random.random((36, 1, 4, 4), dtype=np.float32), y=np.arange(36) % 3)
    save_file(build_model("mlp-8", {}, classes=3, input_shape=(1, 4, 4)).state_dict(), folder / "teacher.safetensors")
    dump.run(config(folder, folder / "local"))
    assert len(open_cache(folder / "local").parts) == PARTS
    return folder


def config(home: Path, out: str | Path, **options: Any) -> DumpConfig:
    base: dict[str, Any] = {
        "data": f"arrays:{home / 'data.npz'}",
        "teacher": "mlp-8",
        "weights": home / "teacher.safetensors",
        "out": Path(out),
        "views": 1,
        "transform": "affine:degrees=10",
        "part_size": 8,
        "batch_size": 8,
        "device": "cpu",
        "features": ("hidden=hidden",),
    }
    return DumpConfig(**(base | options))


@pytest.fixture
def url() -> Iterator[str]:
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    yield "memory://dumps/cache"
    memory.store.clear()


def at(url: str, **options: Any) -> dict[str, bytes]:
    """Every file under a URL by its path."""
    filesystem, root = fsspec.core.url_to_fs(url, **options)
    filesystem.invalidate_cache()
    found = filesystem.find(root)
    return {path.removeprefix(f"{root}/"): filesystem.cat_file(path) for path in found}


class Stop(BaseException):
    """As a kill: nothing is cleaned up."""


def stopped_after(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next dump dies when it has written so many parts, and the files of one more."""
    from pipeline.store import remote_writer

    real, journalled = remote_writer.put, [0]

    def put(remote: Any, path: str, data: bytes) -> None:
        if path.startswith("journal/"):
            journalled[0] += 1
            if journalled[0] > parts:
                raise Stop
        real(remote, path, data)

    monkeypatch.setattr(remote_writer, "put", put)


def test_it_has_the_bytes_of_a_local_dump_and_is_found_again(home: Path, url: str) -> None:
    report = dump.run(config(home, url))
    assert isinstance(report, DumpReport) and report.out == url and report.parts == PARTS
    assert at(url) == files_of(home / "local") and verify(open_cache(url)).ok
    beside = fsspec.filesystem("memory").cat_file("/dumps/cache.report.json")
    again = dump.run(config(home, url))
    assert isinstance(again, DumpReport) and again.resumed == PARTS and again.teacher_seconds == 0
    assert at(url) == files_of(home / "local")
    assert fsspec.filesystem("memory").cat_file("/dumps/cache.report.json") == beside


def test_a_dump_that_was_killed_goes_on(home: Path, url: str) -> None:
    for parts in (0, 3, 4):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
            stopped_after(parts, patch)
            dump.run(config(home, url))
        assert "manifest.json" not in at(url)
        with pytest.raises(CacheNotFoundError):
            open_cache(url)
    gone = next(path for path in at(url) if path.startswith("labels.zarr"))
    fsspec.filesystem("memory").pipe_file(f"/dumps/cache/{gone}", b"torn")  # its part is made again
    report = dump.run(config(home, url))
    assert isinstance(report, DumpReport) and report.resumed == 6
    assert at(url) == files_of(home / "local")


def test_a_kill_while_finishing_leaves_nothing_behind(home: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr("pipeline.dump.remote.clear", stop)
        dump.run(config(home, url))
    assert "plan.json" in at(url) and verify(open_cache(url)).ok
    dump.run(config(home, url))
    assert at(url) == files_of(home / "local")


def test_tasks_make_shares_and_somebody_finishes(home: Path, url: str) -> None:
    first = dump.run(config(home, url, parts="0/2"))
    assert isinstance(first, PartialReport) and (first.there, first.parts, first.out) == (5, PARTS, url)
    with pytest.raises(CacheIncompleteError, match="1:2, 3:4, 5:6, 7:8, 9:10"):
        dump.finalize(url)
    second = dump.run(config(home, url, parts="1:99"))
    assert isinstance(second, PartialReport) and second.there == PARTS
    found = CliRunner().invoke(main, ["cache", "finalize", url])
    assert found.exit_code == 0 and url in found.output, found.output
    assert at(url) == files_of(home / "local")
    assert dump.finalize(url).digest == open_cache(home / "local").digest
    with pytest.raises(ConfigError, match="found none"):
        dump.finalize("memory://dumps/nothing")


def test_something_else_there_is_refused_unless_overwritten(home: Path, url: str) -> None:
    dump.run(config(home, url, seed=1))
    with pytest.raises(CacheMismatchError, match=r"holds cache .*--overwrite"):
        dump.run(config(home, url))
    with pytest.raises(CacheMismatchError, match="remove each other"):
        dump.run(config(home, url, parts="0/2", overwrite=True))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        stopped_after(2, patch)
        dump.run(config(home, url, overwrite=True))
    with pytest.raises(CacheMismatchError, match="has not finished"):
        dump.run(config(home, url, seed=1))
    dump.run(config(home, url))
    assert at(url) == files_of(home / "local")
    memory = fsspec.filesystem("memory")
    memory.rm_file("/dumps/cache/manifest.json")
    with pytest.raises(CacheMismatchError, match="no dump left there"):
        dump.run(config(home, url))
    memory.pipe_file("/dumps/cache/notes.txt", b"mine")
    dump.run(config(home, url, overwrite=True))
    assert at(url) == {**files_of(home / "local"), "notes.txt": b"mine"}


def test_rank_0_makes_the_parts_of_ranks_that_died(home: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr("pipeline.dump.remote.STALLED_SECONDS", 0.05)
    monkeypatch.setattr("pipeline.dump.remote.POLL_SECONDS", 0.01)
    report = dump.run(config(home, url))
    assert isinstance(report, DumpReport) and report.resumed == 0
    assert at(url) == files_of(home / "local")


def test_where_a_dump_cannot_go(home: Path) -> None:
    for out in ("https://example.org/cache", "file:///tmp/cache"):
        with pytest.raises(ConfigError, match="--out should be a local directory"):
            config(home, out)
    with pytest.raises(ConfigError, match="--reuse"):
        replace(config(home, "memory://x/y"), reuse=("caches",))


# On S3.


@pytest.fixture(scope="module")
def s3() -> Iterator[tuple[Any, dict[str, Any]]]:
    with s3_behind_a_proxy() as (proxy, options), pytest.MonkeyPatch.context() as patch:
        hasty = {**options, "config_kwargs": {"retries": {"max_attempts": 0}, "read_timeout": 5}}
        fsspec.filesystem("s3", **hasty).connect()
        patch.setitem(fsspec.config.conf, "s3", hasty)
        patch.setattr("s3fs.S3FileSystem.retries", 1)
        patch.setattr("pipeline.store.remote.Patience", lambda: QUICK)
        yield proxy, options


def test_s3_over_a_connection_that_fails(home: Path, s3: Any) -> None:
    proxy, options = s3
    proxy.trouble = True
    try:
        dump.run(config(home, "s3://bucket/dumped", parts="0/2"))
        dump.run(config(home, "s3://bucket/dumped"))
    finally:
        proxy.trouble = False
    assert at("s3://bucket/dumped", **options) == files_of(home / "local") and all(proxy.counts)
    with pytest.raises(CacheNotFoundError, match="Make the bucket first"):
        dump.run(config(home, "s3://no-such-bucket/cache"))


def test_ranks_of_torchrun_share_a_dump_to_s3(home: Path, s3: Any) -> None:
    _, options = s3
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "stages.dump"]
    given = [
        "--data",
        f"arrays:{home / 'data.npz'}",
        "--teacher",
        "mlp-8",
        "--weights",
        str(home / "teacher.safetensors"),
    ]
    given += ["--views", "1", "--transform", "affine:degrees=10", "--part-size", "8", "--batch-size", "8"]
    given += ["--device", "cpu", "--features", "hidden=hidden", "--out", "s3://bucket/ranks"]
    keys = {"AWS_ENDPOINT_URL": options["endpoint_url"], "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, *given],
        cwd=home,
        env={**os.environ, **keys, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "s3://bucket/ranks" in done.stdout + done.stderr
    assert at("s3://bucket/ranks", **options) == files_of(home / "local")
