"""The campaign of full disks, short; and what is said where no disk can be filled up."""

from __future__ import annotations

import errno
import os
import resource
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import workspace
from pipeline.encodings import Dense
from pipeline.errors import CacheIncompleteError, DiskFullError
from tests.faults.disk import disk
from tests.faults.disk_jobs import REWRITES
from tests.faults.small_disks import namespace
from tests.store.small import FEW, files_of, finalise, small_cache, write, writer_of


def test_a_full_disk_is_said_to_be_full_and_what_stopped_completes(tmp_path: Path) -> None:
    if not namespace():
        pytest.skip("no tmpfs can be mounted here: that needs unshare, and a system that lets us")
    counts = disk(tmp_path, times=2, seed=1)
    assert sum(count for what, count in counts.items() if "full disk" in what and "DiskFullError" in what) >= 4
    for what in ("dump, full disk", "train, full disk"):
        assert counts[f"{what}: completed with the same bytes once there was room"] == 2
    assert (
        sum(counts[f"{verb}, full disk: completed with the same bytes once there was room"] for verb in REWRITES) == 1
    )
    assert counts["two dumps: the second refused, naming pid and host"] == 1


@pytest.fixture
def limited() -> Iterator[None]:
    """No file may be longer than 200 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_limit_on_file_sizes_is_named(tmp_path: Path, limited: None) -> None:
    workspace.write_atomic(tmp_path / "file", bytes(200))
    said = rf"{tmp_path / 'file'} takes 201 bytes .*File too large; [\d,]+ bytes are free.*raise the limit"
    with pytest.raises(DiskFullError, match=said) as caught:
        workspace.write_atomic(tmp_path / "file", bytes(201))
    assert (caught.value.needed, caught.value.errno) == (201, errno.EFBIG) and caught.value.free > 0
    assert {p.name: p.stat().st_size for p in tmp_path.iterdir()} == {"file": 200}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("stop", [0, 5, 11, 20])
def test_a_writer_says_what_the_rest_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, stop: int
) -> None:
    """Whatever file it is that does not fit; and the writer goes on once there is room."""
    small_cache(tmp_path / "whole", Dense(), layout=FEW)
    whole, real, count = files_of(tmp_path / "whole"), os.fsync, 0
    files = [path for path in whole if "part-" in path or "/c." in path]
    size = sum(len(whole[path]) for path in files)

    def full(file: int) -> None:
        nonlocal count
        count += not stat.S_ISDIR(os.fstat(file).st_mode)
        if count > stop:
            raise OSError(number, os.strerror(number))
        real(file)

    writer = writer_of(tmp_path / "c", Dense(), layout=FEW)
    with monkeypatch.context() as patch, pytest.raises(DiskFullError, match=os.strerror(number)) as caught:
        patch.setattr(workspace.os, "fsync", full)
        write(writer)
        finalise(writer)
    done = len(writer.done)
    assert done == min(4, stop // 4), "four files to a part: labels, feature, index, journal"
    assert caught.value.errno == number
    if done < 4:
        text = str(caught.value)
        assert f"The {4 - done} parts still to be written take about " in text
        assert size / 8 < int(text.split(" about ")[1].split()[0].replace(",", "")) < size * 2
    else:
        rest = sum(len(whole[path]) for path in whole if path not in files)
        assert f"All parts are written; the files that finish the cache take {rest:,} bytes" in str(caught.value)
    again = writer_of(tmp_path / "c", Dense(), layout=FEW)
    assert again.done == writer.done
    write(again)
    finalise(again)
    assert files_of(tmp_path / "c") == whole


def test_other_errors_of_the_system_stay_what_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(file: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(workspace.os, "fsync", broken)
    with pytest.raises(CacheIncompleteError, match=r"Input/output error\. Put that right"):
        write(writer_of(tmp_path, layout=FEW))
