"""Writing a cache, part by part, so that a kill loses at most the parts in flight.

Each file of a part is written aside, made durable and renamed into place; then the part is journalled with the
digests of its files. Only journalled parts are trusted when the work is taken up again.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pyarrow as pa

from pipeline.encodings import KEPT, Arrays
from pipeline.errors import CacheIncompleteError, DiskFullError
from pipeline.store import index as index_files
from pipeline.store import manifest as manifest_file
from pipeline.store import parts as parts_file
from pipeline.store.arrival import link, sha256_of
from pipeline.store.card import PATH as CARD
from pipeline.store.card import card, sizes_of
from pipeline.store.files import Files, LocalFiles, MemoryFiles
from pipeline.store.fitting import check_lengths, check_rows, ranges
from pipeline.store.index import IndexRows
from pipeline.store.layout import Part
from pipeline.store.manifest import Manifest
from pipeline.store.parts import FileRecord, PartRecord
from pipeline.store.scratch import JOURNAL, Scratch
from pipeline.store.tables import write_table
from pipeline.workspace import sync_directory, write_atomic

REPLAY = "views.parquet"
_WANTED = ("identity", "class_names")
_KNOWN = (*_WANTED, "bound", "fidelity", "replay", "temperatures")


def replay_file(table: pa.Table) -> bytes:
    """The bytes of views.parquet: a few views as they were seen when the cache was dumped."""
    return write_table(table, row_group_size=64, zstd=())


class CacheWriter(Scratch):
    """Writes the parts of one cache into ``folder``, a scratch directory that belongs to ``identity``.

    ``features`` says what each part carries beside its labels. ``done`` holds the numbers of the parts that an
    earlier run finished: journalled, with all their files there in the right size.
    """

    def write_part(
        self,
        part: Part,
        arrays: Arrays,
        index: IndexRows,
        features: Mapping[str, npt.NDArray[Any]] | None = None,
        statistics: Mapping[str, float] | None = None,
    ) -> PartRecord:
        """Write one part and journal it. Threads may write different parts at once.

        ``arrays`` is what the encoding made of the part's positions (those on the kept axis as long as ``KEPT`` sums
        to), ``features`` (positions, ...) float16 of each named feature, ``statistics`` finite numbers worth keeping,
        to which that sum is added. Raises ValueError when they do not fit the part,
        DiskFullError when there is no room, CacheIncompleteError when the system refuses to write for another reason;
        what was journalled before stays good.
        """
        if part != self.layout.parts[part.number]:
            raise ValueError(f"part {part.number} of this layout is another: {self.layout.parts[part.number]}")
        check_lengths(self.layout, index)
        features, statistics = features or {}, dict(statistics or {})
        if not all(map(math.isfinite, statistics.values())):
            raise ValueError(f"statistics should be finite numbers; found {statistics}")
        kept = check_rows("arrays", part, self._labels, arrays)
        check_rows("features", part, self._features, features)
        if self._labels.kept:
            statistics[KEPT] = kept
        data = {
            **self._labels.encode(part, arrays),
            **self._features.encode(part, features),
            index_files.path_of(part.number): index_files.encode(part, index),
        }
        written = MemoryFiles(data)
        sizes = {path: len(content) for path, content in data.items()}
        seals = {
            **self._labels.seals(written, part, sizes, kept),
            **self._features.seals(written, part, sizes),
        }
        record = PartRecord.of(part, {p: FileRecord.of(d) for p, d in data.items()}, statistics, seals)
        journal = parts_file.journal_entry(record, self.identity)
        try:
            for path, content in data.items():
                self._write(path, content)
            self._write(f"{JOURNAL}/{self._journal(part.number).name}", journal)
        except DiskFullError as error:
            raise error.adding(self._rest(part, sum(sizes.values()))) from error
        with self._lock:
            self._records[part.number] = record
        return record

    def adopt(self, record: PartRecord, source: Path) -> None:
        """Take over a part that another writer of the same identity made in the folder ``source``.

        Its files are linked, or copied, once they are known to be what was journalled. Raises CacheIncompleteError or
        CacheCorruptError when they are not, DiskFullError when there is no room.
        """
        files = LocalFiles(source)
        if record.part != self.layout.parts[record.number] or set(record.files) != self._paths(record.number):
            raise files.corrupt(parts_file.PATH, f"part {record.number} is not one of this cache")
        for path, file in record.files.items():
            files.check_size(path, file.size)
            if sha256_of(source / path) != file.sha256:
                raise files.corrupt(path, f"its sha256 is not {file.sha256[:12]}...")
            link(source / path, self.folder / path)
            sync_directory((self.folder / path).parent)
        self._write(f"{JOURNAL}/{self._journal(record.number).name}", parts_file.journal_entry(record, self.identity))
        with self._lock:
            self._records[record.number] = record

    def _rest(self, part: Part, size: int) -> str:
        """What the parts that are not written take, by the mean of those that are and of ``part``, ``size`` bytes."""
        records = [record for record in self.records if record.number != part.number]
        known = size + sum(file.size for record in records for file in record.files.values())
        written = sum(record.positions for record in records)
        left = (self.layout.positions - written) * known // max(1, written + part.positions)
        parts = len(self.layout.parts) - len(records)
        return f"The {parts:,} part{'s' * (parts > 1)} still to be written take about {left:,} bytes in all"

    def _write(self, path: str, data: bytes) -> None:
        place = self.folder / path
        try:
            missing = [
                folder for folder in place.relative_to(self.folder).parents if not (self.folder / folder).exists()
            ]
            write_atomic(place, data)
            for folder in missing:
                sync_directory((self.folder / folder).parent)
        except DiskFullError:
            raise
        except OSError as error:
            raise CacheIncompleteError(
                f"writing {place} failed: {error.strerror or error}. Put that right and run the same command again: "
                "the parts that are done are kept"
            ) from error

    def finalise(self, manifest: Mapping[str, Any]) -> Manifest:
        """Check that every part is there, remove everything else, and write the manifest last.

        ``manifest`` holds ``identity`` (with the digest that this writer was made for, ``store`` and ``part_size``)
        and ``class_names``; and, as wanted, ``bound`` (without it the largest ``bound`` among the statistics of
        the parts), ``fidelity`` (JSON) and ``replay``, the bytes of a table of a few views as they were seen.

        Raises CacheIncompleteError when parts are missing, and as ``write_part`` does. May be repeated: the same bytes
        come out.
        """
        self._check(manifest)
        records = self.records
        missing = sorted({part.number for part in self.layout.parts} - {r.number for r in records})
        if missing:
            raise CacheIncompleteError(
                f"{len(missing):,} of {len(self.layout.parts):,} parts are not written yet: {ranges(missing)}. Run "
                "the dump again: it goes on from here"
            )
        static = {**self._labels.static(), **(self._features.static() if self.features else {})}
        replay: bytes | None = manifest.get("replay")
        if replay is not None:
            static[REPLAY] = replay
        static[parts_file.PATH] = parts_file.encode(records)
        self._sweep({path for record in records for path in record.files} | set(static))
        bounds = [record.statistics.get("bound", 0.0) for record in records]
        draft = Manifest(
            identity=dict(manifest["identity"]),
            layout=self.layout,
            encoding=self.encoding,
            bound=float(manifest.get("bound", max(bounds, default=0.0))),
            classes=self.classes,
            class_names=tuple(manifest["class_names"]),
            features=self.features,
            fidelity=dict(manifest.get("fidelity") or {}),
            replay=None if replay is None else REPLAY,
        )
        static[CARD] = card(draft, sizes_of(records, {path: len(content) for path, content in static.items()})).encode()
        files = {path: FileRecord.of(content) for path, content in static.items()}
        data = Manifest(**{**vars(draft), "files": files}).to_json()
        final = Manifest.from_json(data, manifest_file.PATH)
        try:
            for path, content in static.items():
                self._write(path, content)
            self._write(manifest_file.PATH, data)
        except DiskFullError as error:
            rest = sum(file.size for file in files.values()) + len(data)
            raise error.adding(
                f"All parts are written; the files that finish the cache take {rest:,} bytes in all"
            ) from error
        self._clear_journal()
        return final

    def finalise_as(self, committed: Files) -> None:
        """Finish with the manifest of a committed cache of this identity, all of whose parts have been adopted.

        Raises CacheCorruptError or CacheIncompleteError when one of its small files is not what it was.
        """
        data = committed.read(manifest_file.PATH)
        manifest = Manifest.from_json(data, committed.where(manifest_file.PATH))
        self._sweep({path for record in self.records for path in record.files} | set(manifest.files))
        for path, record in manifest.files.items():
            content = committed.read(path, record.size)
            if FileRecord.of(content) != record:
                raise committed.corrupt(path, "its sha256 is not the one in the manifest")
            self._write(path, content)
        self._write(manifest_file.PATH, data)
        self._clear_journal()

    def _clear_journal(self) -> None:
        shutil.rmtree(self.folder / JOURNAL, ignore_errors=True)

    def _check(self, manifest: Mapping[str, Any]) -> None:
        odd = [name for name in manifest if name not in _KNOWN] + [name for name in _WANTED if name not in manifest]
        if odd:
            raise ValueError(f"finalise takes {', '.join(_KNOWN)}; unknown or missing: {', '.join(odd)}")
        identity = manifest["identity"]
        expected = {"digest": self.identity, "store": self.store, "part_size": self.layout.part_size}
        differing = [name for name, value in expected.items() if identity.get(name) != value]
        if differing:
            raise ValueError(f"the identity differs from what this writer was made for in {', '.join(differing)}")
        if tuple(manifest.get("temperatures", self.encoding.temperatures)) != tuple(self.encoding.temperatures):
            raise ValueError("the temperatures should be those of the encoding")

    def _sweep(self, wanted: set[str]) -> None:
        """Remove whatever nobody committed: half-written files, parts that were never journalled, strangers."""
        keep = wanted | {CARD, manifest_file.PATH}
        for place in sorted(self.folder.rglob("*"), reverse=True):
            path = place.relative_to(self.folder)
            if path.parts[0] == JOURNAL:
                continue
            if place.is_symlink() or not place.is_dir():
                if path.as_posix() not in keep:
                    place.unlink()
            elif not any(place.iterdir()):
                place.rmdir()
