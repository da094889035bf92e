"""Outputs appear whole or not at all; a scratch directory outlives its process."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline import workspace
from pipeline.errors import BusyError, ConfigError, DiskFullError
from pipeline.workspace import Workspace, leftovers, refuse_strangers, write_atomic


def test_nothing_appears_before_commit_and_a_second_run_finds_the_scratch(tmp_path: Path):
    out = tmp_path / "deep" / "out"
    with Workspace(out, "a" * 64) as space:
        write_atomic(space.path / "file", b"one")
        assert not out.exists()
    with Workspace(out, "a" * 64) as space:
        assert (space.path / "file").read_bytes() == b"one"
        space.commit()
    assert (out / "file").read_bytes() == b"one"
    assert not space.path.exists()


def test_another_identity_gets_another_scratch(tmp_path: Path):
    with Workspace(tmp_path / "out", "a" * 64) as first:
        (first.path / "mine").touch()
    with Workspace(tmp_path / "out", "b" * 64) as second:
        assert second.path != first.path
        assert not list(second.path.iterdir())


def test_commit_replaces_what_was_there(tmp_path: Path):
    out = tmp_path / "out"
    for text in ("old", "new"):
        with Workspace(out, text * 16) as space:
            (space.path / text).touch()
            space.commit()
    assert [p.name for p in out.iterdir()] == ["new"]


def _hold(out: Path, ready: multiprocessing.Queue, leave: multiprocessing.Queue) -> None:
    with Workspace(out, "a" * 64):
        ready.put(os.getpid())
        leave.get()


def test_the_second_writer_is_refused_and_told_who_holds_the_output(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    ready, leave = context.Queue(), context.Queue()
    holder = context.Process(target=_hold, args=(tmp_path / "out", ready, leave))
    holder.start()
    try:
        pid = ready.get(timeout=60)
        with pytest.raises(BusyError, match=f"process {pid} on "), Workspace(tmp_path / "out", "b" * 64):
            pass
        assert list(leftovers(tmp_path)) == []
    finally:
        leave.put(None)
        holder.join(60)


def test_a_scratch_in_which_nothing_was_made_goes(tmp_path: Path):
    with Workspace(tmp_path / "out", "a" * 64) as space:
        assert space.path.is_dir()
    assert not space.path.exists()


def test_a_file_in_the_way_is_named(tmp_path: Path):
    (tmp_path / "out").touch()
    with pytest.raises(ConfigError, match="is a file"), Workspace(tmp_path / "out", "a" * 64):
        pass


def test_leftovers_are_what_killed_runs_left(tmp_path: Path):
    with Workspace(tmp_path / "sub" / "out", "a" * 64) as space:
        (space.path / "part").touch()
    found = {p.name for p in leftovers(tmp_path)}
    assert space.path.name in found
    assert all(workspace.MARK in name for name in found)


def full(_: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "file"
    write_atomic(path, b"old")
    monkeypatch.setattr(workspace.os, "fsync", full)
    said = r"file takes 3 bytes .*No space left on device; [\d,]+ bytes are free on that disk\. .* is kept: make room"
    with pytest.raises(DiskFullError, match=said) as caught:
        write_atomic(path, b"new")
    assert (caught.value.path, caught.value.needed, caught.value.errno) == (path, 3, errno.ENOSPC)
    assert 0 < caught.value.free <= shutil.disk_usage(tmp_path).total
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_disk_without_places_for_files_is_told_from_one_without_bytes(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(workspace.os, "fsync", full)
    monkeypatch.setattr(workspace.os, "statvfs", lambda _: SimpleNamespace(f_files=9, f_favail=0))
    monkeypatch.setattr(workspace.shutil, "disk_usage", lambda _: SimpleNamespace(free=1234))
    with pytest.raises(DiskFullError, match=r"no more files \(inodes\) fit on that disk, with 1,234 bytes free"):
        write_atomic(tmp_path / "file", b"new")
    monkeypatch.setattr(workspace.shutil, "disk_usage", lambda _: (_ for _ in ()).throw(OSError))
    with pytest.raises(DiskFullError, match="how much is free there is unknown") as caught:
        write_atomic(tmp_path / "file", b"new")
    assert caught.value.free == 0


def test_other_errors_of_the_system_are_passed_on(tmp_path: Path):
    (tmp_path / "file").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomic(tmp_path / "file", b"new")


def test_an_output_that_could_not_be_taken_is_let_go_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    space = Workspace(tmp_path / "out", "a" * 64)
    with monkeypatch.context() as patch:
        patch.setattr(workspace.os, "fsync", full)
        with pytest.raises(DiskFullError), space:
            pytest.fail("taken without a word of who holds it")
    with Workspace(tmp_path / "out", "b" * 64):
        pass


def test_what_was_there_is_put_back_after_a_kill_between_the_two_renames(tmp_path: Path, monkeypatch):
    out, rename = tmp_path / "out", os.rename
    with Workspace(out, "a" * 64) as space:
        (space.path / "first").touch()
        space.commit()

    def killed(source: Path, target: Path) -> None:
        if Path(target) == out:
            raise KeyboardInterrupt
        rename(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), Workspace(out, "b" * 64) as space:
        (space.path / "second").touch()
        patch.setattr(workspace.os, "rename", killed)
        space.commit()
    assert not out.exists()
    assert not [p for p in leftovers(tmp_path) if p.name.endswith("old")], "the only copy of a finished output"
    with Workspace(out, "c" * 64):
        assert (out / "first").exists()
    with Workspace(out, "b" * 64) as space:
        space.commit()
    assert [p.name for p in out.iterdir()] == ["second"]


@pytest.mark.parametrize("place", [".", "..", "../.."])
def test_the_folder_that_one_works_in_is_never_an_output(tmp_path: Path, monkeypatch, place: str):
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    with pytest.raises(ConfigError, match="current folder"), Workspace(Path(place), "a" * 64):
        pass


def test_a_linked_output_stays_a_link(tmp_path: Path):
    (tmp_path / "large").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "large")
    for name in ("one", "two"):
        with Workspace(tmp_path / "out", name * 20) as space:
            (space.path / name).touch()
            space.commit()
    assert (tmp_path / "out").is_symlink()
    assert [p.name for p in (tmp_path / "large").iterdir()] == ["two"]


def test_files_of_others_are_not_replaced(tmp_path: Path):
    out = tmp_path / "out"
    refuse_strangers(out, ("a.json",))
    out.mkdir()
    for name in ("a.json", "b.png", ".gitignore"):
        (out / name).touch()
    refuse_strangers(out, ("a.json", "*.png"))
    (out / "thesis").mkdir()
    with pytest.raises(ConfigError, match=r"holds b\.png, thesis/, which"):
        refuse_strangers(out, ("a.json",))


def test_scratch_of_an_output_with_an_odd_name_is_its_own(tmp_path: Path):
    for name in ("[ab]", "a"):
        with Workspace(tmp_path / name, "c" * 64) as space:
            (space.path / "part").touch()
    found = [p.name for p in leftovers(tmp_path)]
    assert len(found) == len(set(found)) == 4


def test_a_workspace_can_start_over(tmp_path: Path):
    with Workspace(tmp_path / "out", "a" * 64) as space:
        (space.path / "deep").mkdir()
        (space.path / "x.1.partial").touch()
        space.clear()
        assert not list(space.path.iterdir())
