"""The scratch directory of a cache that is being written: which of its parts are done, by its journal.

A part is journalled with the digests of its files once they are durable. Only journalled parts are trusted when the
work is taken up again.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

from pipeline.encodings import Encoding
from pipeline.errors import CacheError
from pipeline.store import index as index_files
from pipeline.store import manifest as manifest_file
from pipeline.store import parts as parts_file
from pipeline.store.files import LocalFiles, safe_name
from pipeline.store.fitting import label_backend
from pipeline.store.layout import Layout
from pipeline.store.manifest import FeatureSpec, Manifest
from pipeline.store.parts import FileRecord, PartRecord
from pipeline.store.zarr_backend import ZarrBackend

JOURNAL = "journal"


class Scratch:
    """What lies in ``folder`` of the cache of ``identity``, which has ``layout``."""

    def __init__(
        self,
        folder: Path,
        layout: Layout,
        encoding: Encoding,
        *,
        classes: int,
        store: str = "zarr",
        features: Mapping[str, FeatureSpec] | None = None,
        identity: str,
    ) -> None:
        self.folder = Path(folder)
        self.layout = layout
        self.encoding = encoding
        self.classes = classes
        self.store = store
        self.features = dict(features or {})
        self.identity = identity
        odd = [name for name in self.features if not safe_name(name)]
        if odd:
            raise ValueError(f"a feature's name should be letters, digits and . _ + -; found {odd[0]!r}")
        self._labels = label_backend(store, encoding, classes, layout)
        specs = {name: spec.array for name, spec in self.features.items()}
        self._features = ZarrBackend.create("features.zarr", specs, len(layout.parts), layout.capacity)
        self._lock = threading.Lock()
        self._records = self._recover()

    @property
    def done(self) -> set[int]:
        """Numbers of the parts that are written and journalled."""
        with self._lock:
            return set(self._records)

    def look(self, number: int) -> bool:
        """Whether a part is written: known here, or journalled since by another process.

        All parts are once a manifest stands in the scratch directory, or that directory has become the cache.
        """
        with self._lock:
            if number in self._records:
                return True
        record = self._journalled(number)
        if record is None and not self._journal(number).exists():
            return (self.folder / manifest_file.PATH).exists() or not self.folder.exists()
        if record is None or not self._present(record):
            return False
        with self._lock:
            self._records[number] = record
        return True

    @property
    def records(self) -> tuple[PartRecord, ...]:
        """What is known of each finished part, in the order of their numbers: its files and statistics."""
        with self._lock:
            return tuple(self._records[number] for number in sorted(self._records))

    def _journal(self, number: int) -> Path:
        return self.folder / JOURNAL / f"part-{number:05d}.json"

    def _journalled(self, number: int) -> PartRecord | None:
        """What the journal says of a part; None without an entry that can be read."""
        try:
            path = f"{JOURNAL}/{self._journal(number).name}"
            data = LocalFiles(self.folder).read(path, limit=parts_file.MOST_JOURNAL_BYTES)
        except CacheError:
            return None
        return parts_file.parse_journal(data, self.identity, self.layout.parts[number])

    def _recover(self) -> dict[int, PartRecord]:
        found: dict[int, PartRecord] = {}
        parts = self.layout.parts
        for path in sorted((self.folder / JOURNAL).glob("part-*.json")):
            digits = path.stem.removeprefix("part-")
            number = int(digits) if digits.isdecimal() else len(parts)
            if number < len(parts) and path == self._journal(number):
                record = self._journalled(number)
                if record is not None:
                    found[number] = record
        if len(found) < len(parts):
            # Killed while finalising, after the manifest and before the last of the journal went.
            found = {**{record.number: record for record in self._committed()}, **found}
        sound = {n: record for n, record in found.items() if self._present(record)}
        if len(sound) < len(parts):
            # A manifest without its parts would tell other processes that nothing is left to do.
            (self.folder / manifest_file.PATH).unlink(missing_ok=True)
        return sound

    def _committed(self) -> tuple[PartRecord, ...]:
        try:
            files = LocalFiles(self.folder)
            data = files.read(manifest_file.PATH, limit=manifest_file.MAX_BYTES)
            manifest = Manifest.from_json(data, manifest_file.PATH, files.size(parts_file.PATH) or 0)
            table = manifest.files.get(parts_file.PATH)
            if manifest.identity["digest"] != self.identity or manifest.layout != self.layout or table is None:
                return ()
            data = files.read(parts_file.PATH, table.size)
            if table != FileRecord.of(data):
                return ()
            return parts_file.decode(data, len(self.layout.parts), parts_file.PATH)
        except (OSError, CacheError):
            return ()

    def _paths(self, number: int) -> set[str]:
        arrays = {*self._labels.paths(number).values(), *self._features.paths(number).values()}
        return {index_files.path_of(number), *arrays}

    def _present(self, record: PartRecord) -> bool:
        if set(record.files) != self._paths(record.number) or record.part != self.layout.parts[record.number]:
            return False
        for path, file in record.files.items():
            place = self.folder / path
            if place.is_symlink() or not place.is_file() or place.stat().st_size != file.size:
                return False
        return True
