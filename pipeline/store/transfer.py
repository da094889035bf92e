"""A whole cache to a URL and back: every byte held to its sha256 on the way, the manifest last.

Whoever looks at the other end meanwhile sees a whole cache or none. Both ways resume: what went through stays.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import (
    CacheError,
    CacheIncompleteError,
    CacheMismatchError,
    CacheNotFoundError,
    ConfigError,
    some,
)
from pipeline.identity import canonical_json, digest, digest_bytes
from pipeline.progress import Bar, Progress, Silent
from pipeline.store import manifest as manifest_file
from pipeline.store.arrival import check_room, fetch_file, link, sha256_of, sound
from pipeline.store.files import LocalFiles
from pipeline.store.parts import FileRecord, PartRecord
from pipeline.store.reader import Cache
from pipeline.store.references import ReferencedFiles, is_reference
from pipeline.store.remote import WHOLE, Patience, PatientFiles, in_parallel
from pipeline.workspace import Workspace, refuse_strangers, sync_directory, write_atomic

MARKER = "push.json"
"""While a push is under way, it says of which cache: files beside it may be told by their size."""

_FOLDERS = ("labels", "labels.zarr", "features.zarr", "index")
_OWN = (*(f"{name}/" for name in _FOLDERS), "*.parquet", "README.md", manifest_file.PATH)


@dataclass(frozen=True)
class TransferReport:
    """What ``push`` or ``pull`` did: ``files`` went through, ``kept`` were there before.

    ``parts`` of ``of_parts`` lie whole at the target, ``labels`` of them with index and labels; ``complete`` says that
    nothing of the cache is missing there.
    """

    verb: str
    source: str
    target: str
    identity: str
    files: int
    bytes: int
    kept: int
    parts: int
    labels: int
    of_parts: int
    complete: bool
    retries: int

    @property
    def summary(self) -> str:
        """One line."""
        done = "sent" if self.verb == "push" else "fetched"
        line = f"{self.target}: {self.files:,} files, {self.bytes:,} bytes {done}, {self.kept:,} were there"
        if not self.complete and self.labels == self.of_parts:
            line += "; all labels, without some features: it can be trained from"
        elif not self.complete:
            line += f"; partial, {self.labels:,} of {self.of_parts:,} parts with labels: pull the rest to train from it"
        return f"{line}; identity {self.identity[:12]}"

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def push(
    folder: str | Path,
    url: str,
    *,
    options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    check: bool = False,
    workers: int = 4,
    patience: Patience | None = None,
    progress: Progress | None = None,
) -> TransferReport:
    """Send the cache at ``folder`` to ``url``; ``options`` are those of its filesystem.

    What lies there already is told by its size, and with ``check`` by its sha256. ``overwrite`` replaces another cache:
    its manifest goes first. Raises CacheCorruptError or CacheIncompleteError when the local cache is not what was
    committed, CacheMismatchError when something else lies at the URL, CacheError when it is not reached.
    """
    if "://" in str(folder):
        raise ConfigError(f"push sends a local directory; found {folder}. Pull it first")
    progress = progress or Silent()
    local = LocalFiles(Path(folder))
    cache = Cache(local)
    manifest = local.read(manifest_file.PATH)
    files = cache.file_records()
    for path, record in files.items():
        local.check_size(path, record.size)  # before anything is sent
    remote = PatientFiles(url, options, patience, progress)
    there, begun = _settle(remote, manifest, files, overwrite)
    same = {path for path, record in files.items() if there.get(path) == record.size}
    todo = {path: record for path, record in files.items() if check or path not in same}
    sent: dict[str, int] = {}
    try:
        if todo and not begun:
            remote.write(MARKER, canonical_json({"manifest": digest_bytes(manifest)}))
        with _counting(progress, "push", files, todo) as count:

            def send(path: str) -> None:
                record = files[path]
                if path not in same or remote.sha256(path, record.size) != record.sha256:
                    remote.write(path, _checked(local, path, record))
                    sent[path] = record.size
                count(record.size)

            in_parallel(send, todo, workers, remote)
        if sent:
            found = remote.sizes()
            lost = [path for path, record in files.items() if found.get(path) != record.size]
            if lost:
                raise CacheIncompleteError(f"{url} lacks {some(lost)}, which it had taken. Run the same command again")
        if there.get(manifest_file.PATH) is None:
            remote.write(manifest_file.PATH, manifest)
            sent[manifest_file.PATH] = len(manifest)
    except FileNotFoundError as error:
        raise CacheNotFoundError(f"{url} cannot be written: {error}. Make the bucket or the folder first") from error
    try:
        if MARKER in there or (todo and not begun):
            remote.delete(MARKER)
    except CacheError as error:
        progress.log(f"{error} (only {MARKER} is left over, which no reader looks at)")
    count_of = len(cache.parts)
    return TransferReport(
        "push", str(folder), url, cache.digest, len(sent), sum(sent.values()), len(files) + 1 - len(sent), count_of,
        count_of, count_of, True, remote.retries,
    )  # fmt: skip


def _settle(
    remote: PatientFiles, manifest: bytes, files: Mapping[str, FileRecord], overwrite: bool
) -> tuple[dict[str, int], bool]:
    """What lies at the URL and belongs to this very cache, as sizes, and whether it needs no marker.

    Anything else there is refused or, with ``overwrite``, removed: manifest first, so that nobody reads a mixture.
    """
    there = remote.sizes()
    found = remote.read(manifest_file.PATH, limit=manifest_file.MAX_BYTES) if manifest_file.PATH in there else None
    if found == manifest:
        return there, True
    own = {"manifest": digest_bytes(manifest)}
    marker = remote.read(MARKER, limit=4096) if MARKER in there else None
    if found is None and marker == canonical_json(own):
        return there, True
    strange = [path for path in there if path in files or path == MARKER or path.partition("/")[0] in _FOLDERS]
    if (found is not None or strange) and not overwrite:
        what = f"another cache{_identity(found)}" if found or marker else f"{some(strange)}, which no push left there"
        raise CacheMismatchError(f"{remote.address} holds {what}. Name another URL, or replace it with --overwrite")
    if found is not None:
        remote.delete(manifest_file.PATH)
    # All of it: beside the marker that is written next, what is left would be told by its size.
    for path in strange:
        remote.delete(path)
    return {}, False


def _identity(manifest: bytes | None) -> str:
    with contextlib.suppress(ValueError, LookupError, TypeError):
        return f" (identity {str(json.loads(manifest or b'')['identity']['digest'])[:12]})"
    return ""


def _checked(local: LocalFiles, path: str, record: FileRecord) -> bytes | Path:
    """A file's bytes, or where it lies when it is large, once it is known to be what was committed."""
    if record.size > WHOLE:
        if sha256_of(local.root / path) == record.sha256:
            return local.root / path
    elif FileRecord.of(data := local.read(path, record.size)) == record:
        return data
    raise local.corrupt(path, f"its sha256 is not {record.sha256[:12]}...")


def pull(
    url: str,
    folder: str | Path,
    *,
    parts: Sequence[str] = (),
    features: Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    workers: int = 4,
    patience: Patience | None = None,
    progress: Progress | None = None,
) -> TransferReport:
    """Fetch the cache at ``url`` into ``folder``, which appears whole or, if it is one already, is added to.

    ``parts`` are numbers (``7``) or ranges (``0:8``), () for all; ``features`` names, () for none and None for all.
    Raises CacheCorruptError for bytes that stay wrong, CacheIncompleteError for files that are not there,
    CacheMismatchError when the folder holds another cache (unless ``overwrite``), DiskFullError before the first byte.
    """
    if "://" in str(folder):
        raise ConfigError(f"pull fetches into a local directory; found {folder}. To send a cache there, push it")
    progress = progress or Silent()
    remote = (ReferencedFiles if is_reference(url) else PatientFiles)(url, options, patience, progress)
    cache = Cache(remote)
    manifest = remote.seen[manifest_file.PATH]
    files, wanted = cache.file_records(), _wanted(cache, parts, features)
    with Workspace(Path(folder), scratch_of(manifest)) as space:
        try:
            refuse_strangers(space.out, _OWN)
        except ConfigError as error:
            raise ConfigError(str(error).removeprefix("--out ")) from None  # here it is an argument
        old = space.out / manifest_file.PATH
        ours = old.is_file() and old.read_bytes() == manifest
        if old.exists() and not ours and not overwrite:
            raise CacheMismatchError(f"{folder} holds another cache. Name another place, or pull with --overwrite")
        kept = sound(space, files, ours)
        todo = {path: record for path, record in wanted.items() if path not in kept}
        if todo or not ours or any(not path.is_relative_to(space.out) for path in kept.values()):
            check_room(space.out, sum(record.size for record in todo.values()))
            for path, source in kept.items():
                link(source, space.path / path)
            with _counting(progress, "pull", wanted, todo) as count:

                def fetch(path: str) -> None:
                    fetch_file(remote, path, files[path], space.path / path)
                    count(files[path].size)

                in_parallel(fetch, todo, workers, remote)
            write_atomic(space.path / manifest_file.PATH, manifest)
            for inner in [path for path in space.path.rglob("*") if path.is_dir()]:
                sync_directory(inner)
            space.commit()
    here = kept.keys() | todo.keys()
    whole = sum(all(path in here for path in part.files) for part in cache.parts)
    labels = sum(
        all(path in here for path in part.files if not path.startswith("features.zarr/")) for part in cache.parts
    )
    new = 0 if ours else 1  # the manifest
    size = sum(record.size for record in todo.values()) + new * len(manifest)
    return TransferReport(
        "pull", url, str(folder), cache.digest, len(todo) + new, size, len(kept) + 1 - new, whole, labels,
        len(cache.parts), here >= files.keys(), remote.retries,
    )  # fmt: skip


def scratch_of(manifest: bytes) -> str:
    """What a pull of the cache with this manifest.json names its scratch after: files found there are used."""
    return digest({"pull": digest_bytes(manifest)})


def _wanted(cache: Cache, parts: Sequence[str], features: Sequence[str] | None) -> dict[str, FileRecord]:
    """The files of a choice. Raises ConfigError for a part or a feature that is not there."""
    unknown = sorted(set(features or ()) - set(cache.feature_names))
    if unknown:
        there = ", ".join(cache.feature_names) or "none"
        raise ConfigError(f"--features should name some of those in {cache.address} ({there}); found {some(unknown)}")
    out = tuple(f"features.zarr/{n}/" for n in cache.feature_names if features is not None and n not in features)
    chosen: Iterable[PartRecord] = cache.parts
    if parts:
        numbers = sorted({number for text in parts for number in _numbers(text, len(cache.parts))})
        chosen = [cache.parts[number] for number in numbers]
    found = {path: record for part in chosen for path, record in part.files.items() if not path.startswith(out)}
    # What opening the cache reads is part of every choice.
    found.update({path: record for path, record in cache.manifest.files.items() if path != manifest_file.PATH})
    return found


def _numbers(text: str, count: int) -> range:
    """The part numbers that ``text`` names among ``count``.

    >>> list(_numbers("2", 5)), list(_numbers("3:", 5)), list(_numbers("0:2", 5))
    ([2], [3, 4], [0, 1])
    """
    first, colon, end = text.partition(":")
    with contextlib.suppress(ValueError):
        start = int(first or 0) if colon else int(first)
        found = range(start, min(int(end or count), count)) if colon else range(start, start + 1)
        if found and found[0] >= 0 and found[-1] < count:
            return found
    raise ConfigError(f"--parts should be a number or FIRST:END (END left out) among {count} parts; found {text!r}")


@contextlib.contextmanager
def _counting(
    progress: Progress, verb: str, files: Mapping[str, FileRecord], todo: Mapping[str, FileRecord]
) -> Iterator[Callable[[int], None]]:
    """A bar of bytes that several threads may count on."""
    total, left = (sum(record.size for record in some_of.values()) for some_of in (files, todo))
    lock = threading.Lock()
    with progress.bar(verb, total, "byte", total - left) as bar:
        yield lambda size: _count(bar, lock, size)


def _count(bar: Bar, lock: threading.Lock, size: int) -> None:
    with lock:
        bar.update(size)
