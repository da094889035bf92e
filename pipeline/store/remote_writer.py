"""Writing a cache straight to a URL: the files of a part, then its journal entry, and the manifest last of all.

Nothing lies on this machine but the parts in flight, in memory. Who makes a part does not matter, its bytes are the
same: there is no lock, and a part that two processes make is written twice.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from pipeline.encodings import Encoding
from pipeline.errors import CacheIncompleteError, CacheMismatchError, CacheNotFoundError, some
from pipeline.identity import short
from pipeline.store import manifest as manifest_file
from pipeline.store import parts as parts_file
from pipeline.store.layout import Layout
from pipeline.store.manifest import FeatureSpec
from pipeline.store.parts import PartRecord
from pipeline.store.remote import PatientFiles, in_parallel
from pipeline.store.scratch import JOURNAL
from pipeline.store.writer import CacheWriter

_FOLDERS = ("index", "labels", "labels.zarr", "features.zarr", JOURNAL)
_FILES = (parts_file.PATH, "README.md", "views.parquet", "push.json")
_WORKERS = 8


class RemoteWriter(CacheWriter):
    """A writer of the cache at ``remote``. Parts are done that are journalled there, all files in the right size.

    Raises CacheError where the URL cannot be reached or written; what is journalled stays.
    """

    def __init__(
        self,
        remote: PatientFiles,
        layout: Layout,
        encoding: Encoding,
        *,
        classes: int,
        store: str = "zarr",
        features: Mapping[str, FeatureSpec] | None = None,
        identity: str,
    ) -> None:
        self.remote = remote
        super().__init__(Path(), layout, encoding, classes=classes, store=store, features=features, identity=identity)

    def refresh(self) -> set[int]:
        """Look again at what is there; the numbers of the parts that are done, by whomever."""
        found = self._recover()
        with self._lock:
            self._records = found
            return set(found)

    def look(self, number: int) -> bool:
        with self._lock:
            if number in self._records:
                return True
        record = self._journalled(number)
        if record is None or any(self.remote.size(path) != file.size for path, file in record.files.items()):
            return False
        with self._lock:
            self._records[number] = record
        return True

    def _journalled(self, number: int) -> PartRecord | None:
        self.remote.filesystem.invalidate_cache()  # others write there, too
        try:
            data = self.remote.read(_entry(number), limit=parts_file.MOST_JOURNAL_BYTES)
        except CacheIncompleteError:
            return None
        return parts_file.parse_journal(data, self.identity, self.layout.parts[number])

    def _recover(self) -> dict[int, PartRecord]:
        sizes = self.remote.sizes()
        numbers = {_entry(part.number): part.number for part in self.layout.parts}
        found: dict[int, PartRecord] = {}
        lock = threading.Lock()

        def read(path: str) -> None:
            record = self._journalled(numbers[path])
            if record is not None and set(record.files) == self._paths(record.number):
                with lock:
                    found[record.number] = record

        known = getattr(self, "_records", {})  # what this process has written, or read, it need not read again
        journalled = [path for path in numbers if path in sizes]
        found.update({numbers[path]: known[numbers[path]] for path in journalled if numbers[path] in known})
        in_parallel(read, [path for path in journalled if numbers[path] not in found], _WORKERS, self.remote)
        return {
            number: record
            for number, record in found.items()
            if all(sizes.get(path) == file.size for path, file in record.files.items())
        }

    def _write(self, path: str, data: bytes) -> None:
        put(self.remote, path, data)

    def _sweep(self, wanted: set[str]) -> None:
        """Nothing to do: whatever no journal names is of a part that has been written over it."""

    def _clear_journal(self) -> None:
        """Left to ``clear``, when the cache is finished and nothing else is needed."""


def _entry(number: int) -> str:
    return f"{JOURNAL}/part-{number:05d}.json"


def put(remote: PatientFiles, path: str, data: bytes) -> None:
    """Write one file. Raises CacheNotFoundError where there is no bucket, ConfigError for a URL that is only read."""
    try:
        remote.write(path, data)
    except FileNotFoundError as error:
        raise CacheNotFoundError(f"{remote.address} cannot be written: {error}. Make the bucket first") from error


def clear(remote: PatientFiles, plans: Collection[str]) -> None:
    """Remove what only a dump under way needs: the journal, then the files ``plans`` that say what is dumped."""
    there = remote.sizes()
    in_parallel(remote.delete, [path for path in there if path.startswith(f"{JOURNAL}/")], _WORKERS, remote)
    for path in plans:
        if path in there:
            remote.delete(path)


def settle(
    remote: PatientFiles, identity: str, begun: Callable[[], str | None], plans: Collection[str], *, overwrite: bool
) -> bool:
    """Whether the cache ``identity`` is finished at a URL; anything else there is refused or, with ``overwrite``, goes.

    ``begun`` says what is being dumped there, as the files ``plans`` tell: its identity, None for nothing, "" when they
    cannot be read. Raises CacheMismatchError.
    """
    for _ in range(2):  # what was being dumped when the files were listed may have been finished since
        sizes = remote.sizes()
        finished, under_way = _identity_at(remote, sizes), begun()
        if finished == identity or (finished is None and under_way == identity):
            return finished == identity
        if finished is not None or under_way is not None:
            break
    theirs = [path for path in sizes if path in (*_FILES, *plans) or path.partition("/")[0] in _FOLDERS]
    if finished is None and not theirs:
        return False
    if not overwrite:
        if finished is not None:
            what = f"cache {short(finished)}"
        elif under_way is not None:
            what = f"parts of cache {short(under_way)}, whose dump has not finished"
        else:
            what = f"{some(theirs)}, which no dump left there"
        raise CacheMismatchError(
            f"{remote.address} holds {what}; this dump would make {short(identity)}. Name another URL, or --overwrite "
            "it"
        )
    if finished is not None:
        remote.delete(manifest_file.PATH)
    in_parallel(remote.delete, theirs, _WORKERS, remote)
    return False


def _identity_at(remote: PatientFiles, sizes: Collection[str]) -> str | None:
    """The identity of the cache that is finished at a URL; None without one, "" for a manifest that says none."""
    if manifest_file.PATH not in sizes:
        return None
    try:
        found: Any = json.loads(remote.read(manifest_file.PATH, limit=manifest_file.MAX_BYTES))
        return str(found["identity"]["digest"])
    except (ValueError, LookupError, TypeError):
        return ""
