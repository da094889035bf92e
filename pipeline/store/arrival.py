"""Where the files of a pulled cache land: in scratch, each with the bytes that were committed."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import CacheIncompleteError, DiskFullError
from pipeline.store.parts import FileRecord
from pipeline.store.remote import PatientFiles, Torn
from pipeline.workspace import Workspace, room_for

_BLOCK = 4 * 1024 * 1024


def sound(space: Workspace, files: Mapping[str, FileRecord], ours: bool) -> dict[str, Path]:
    """Where files of the cache lie already, in scratch or in the output, with the right bytes; other scratch goes."""
    found: dict[str, Path] = {}
    for left in list(space.path.rglob("*")):
        if left.is_symlink() or (left.is_file() and left.relative_to(space.path).as_posix() not in files):
            left.unlink()
    for path, record in files.items():
        for folder in (space.out, space.path) if ours else (space.path,):
            place = folder / path
            if place.is_file() and place.stat().st_size == record.size and sha256_of(place) == record.sha256:
                found[path] = place
                break
    return found


def check_room(out: Path, needed: int) -> None:
    """Raise DiskFullError when ``needed`` more bytes do not fit beside ``out``."""
    free = shutil.disk_usage(out.parent).free
    if free < needed:
        what = f"{out} takes {needed:,} more bytes, and {free:,} are free on that disk. Nothing was fetched"
        raise DiskFullError(f"{what}: make room, name another place, or pull fewer --parts", out, needed, free)


def link(source: Path, target: Path) -> None:
    """Have a committed file in scratch too: it is never written again, so a second name will do."""
    if source == target:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        with room_for(target, source.stat().st_size):
            shutil.copyfile(source, target)


def fetch_file(remote: PatientFiles, path: str, record: FileRecord, target: Path) -> None:
    """Have one file in place, with the bytes that were committed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")

    def once() -> None:
        total, count = hashlib.sha256(), 0
        with room_for(target, record.size), open(partial, "wb") as file:
            for block in remote.blocks(path, record.size):
                total.update(block)
                count += file.write(block)
            file.flush()
            os.fsync(file.fileno())
        if count != record.size:
            raise Torn(f"{'more' if count > record.size else f'{count:,}'} bytes arrived of {record.size:,}")
        if total.hexdigest() != record.sha256:
            raise Torn(f"its sha256 is not {record.sha256[:12]}...")
        os.replace(partial, target)

    try:
        remote.attempt(path, once)
    except FileNotFoundError as error:
        raise CacheIncompleteError(f"{remote.where(path)} is missing. Push the cache there again") from error


def fetch_bytes(remote: PatientFiles, path: str, record: FileRecord) -> bytes:
    """The bytes of one file, found to be those that were committed, without a place for them."""

    def once() -> bytes:
        data = b"".join(remote.blocks(path, record.size))
        if len(data) != record.size:
            raise Torn(f"{len(data):,} bytes arrived of {record.size:,}")
        if FileRecord.of(data) != record:
            raise Torn(f"its sha256 is not {record.sha256[:12]}...")
        return data

    try:
        return remote.attempt(path, once)
    except FileNotFoundError as error:
        raise CacheIncompleteError(f"{remote.where(path)} is missing. Push the cache there again") from error


def sha256_of(path: Path) -> str:
    """The digest of a local file, read in blocks."""
    total = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            total.update(block)
    return total.hexdigest()
