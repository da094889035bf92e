"""What a committed cache says of itself: its manifest, its parts, its index. Checked at the door, and read lazily.

Only the manifest, ``parts.parquet`` and the arrays' metadata are read when a cache is opened; nothing grows with
the number of entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.encodings import Encoding
from pipeline.errors import ConfigError
from pipeline.store import index as index_files
from pipeline.store import manifest as manifest_file
from pipeline.store import parts as parts_file
from pipeline.store.absent import absent
from pipeline.store.arrays import Rows
from pipeline.store.backend import Backend
from pipeline.store.files import Files
from pipeline.store.index import IndexRows
from pipeline.store.layout import Part
from pipeline.store.manifest import Manifest
from pipeline.store.pages import parquet
from pipeline.store.parquet_backend import ParquetBackend
from pipeline.store.parts import FileRecord, PartRecord
from pipeline.store.spans import EntrySpans
from pipeline.store.zarr_backend import ZarrBackend


class Committed:
    """A committed cache but for its arrays; see ``Cache``."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.address = files.address
        if files.size(manifest_file.PATH) is None:
            raise absent(files)
        data = files.read(manifest_file.PATH, limit=manifest_file.MAX_BYTES)
        parts_bytes = files.size(parts_file.PATH) or 0
        self.manifest = Manifest.from_json(data, files.where(manifest_file.PATH), parts_bytes)
        self.encoding: Encoding = self.manifest.encoding
        self.classes = self.manifest.classes
        self.class_names = self.manifest.class_names
        layout = self.manifest.layout
        table = self._small(parts_file.PATH)
        count = self.manifest.counts["parts"]
        self.parts = parts_file.decode(table, count, files.where(parts_file.PATH))
        specs = self.encoding.specs(self.classes)
        self._most_kept = max(spec.most for spec in specs.values())
        self._spans = EntrySpans(layout, digests=self.manifest.knows_content)
        self._labels: Backend = (
            ParquetBackend("labels", specs) if self.manifest.store == "parquet" else self._zarr("labels.zarr", specs)
        )
        self._features = self._zarr("features.zarr", {n: f.array for n, f in self.manifest.features.items()})
        for record, part in zip(self.parts, layout.parts, strict=True):
            sealed = {path for path in record.files if ".zarr/" in path}
            if (record.part, set(record.files), set(record.seals)) != (part, self.paths(part.number), sealed):
                raise files.corrupt(parts_file.PATH, f"part {part.number} is not what the manifest says")
            if self._labels.kept and not part.positions <= record.kept <= part.positions * self._most_kept:
                what = f"part {part.number} keeps {record.kept:,} classes at {part.positions:,} positions"
                raise files.corrupt(parts_file.PATH, f"{what}, where each keeps 1 to {self._most_kept:,}")
        gathered: dict[tuple[str, int], list[PartRecord]] = {(g.split, g.view): [] for g in layout.groups}
        for record in self.parts:
            gathered[record.split, record.view].append(record)
        self._groups = {key: tuple(records) for key, records in gathered.items()}

    def _small(self, path: str) -> bytes:
        """A file that belongs to no part, held to its digest."""
        record = self.manifest.files.get(path)
        if record is None:
            raise self.files.corrupt(manifest_file.PATH, f"it does not list {path}")
        data = self.files.read(path, record.size)
        if FileRecord.of(data) != record:
            raise self.files.corrupt(path, "its sha256 is not the one in the manifest")
        return data

    def _zarr(self, folder: str, specs: Mapping[str, Any]) -> ZarrBackend:
        layout = self.manifest.layout
        metadata = {name: self._small(f"{folder}/{name}/zarr.json") for name in specs}
        return ZarrBackend.load(folder, specs, len(self.parts), layout.capacity, metadata)

    def __repr__(self) -> str:
        counts = self.manifest.counts
        return f"Cache({self.address!r}, {self.digest[:12]}, {counts['entries']:,} entries, {self.classes:,} classes)"

    @property
    def identity(self) -> dict[str, Any]:
        """The combination of teacher, data, views and encoding that this cache belongs to."""
        return dict(self.manifest.identity)

    @property
    def digest(self) -> str:
        """The digest of the identity."""
        return str(self.manifest.identity["digest"])

    @property
    def part_size(self) -> int:
        """Entries of a full part."""
        return self.manifest.layout.part_size

    def splits(self) -> tuple[str, ...]:
        """Names of the splits that have entries."""
        return tuple(self.manifest.layout.splits())

    def views(self, split: str) -> tuple[int, ...]:
        """Numbers of the views of a split; 0 is the plain one."""
        return tuple(view for name, view in self._groups if name == split)

    def examples(self, split: str) -> int:
        """Examples of a split: its entries in any one view."""
        return self.manifest.layout.splits().get(split, (0, 0))[0]

    def parts_of(self, split: str, view: int) -> tuple[PartRecord, ...]:
        """The parts of one view of a split: block b holds its examples from b * part_size on.

        Raises ConfigError naming what there is.
        """
        if (split, view) not in self._groups:
            there = ", ".join(f"{s} (views 0 to {max(self.views(s))})" for s in self.splits()) or "nothing"
            raise ConfigError(f"{self.address} holds {there}; it has no view {view} of split {split!r}")
        return self._groups[split, view]

    def paths(self, number: int) -> set[str]:
        """Paths of all files of part ``number``."""
        arrays = {*self._labels.paths(number).values(), *self._features.paths(number).values()}
        return {index_files.path_of(number), *arrays}

    def file_records(self) -> dict[str, FileRecord]:
        """Every file but the manifest by its path: those of the parts in order, then the others."""
        found = {path: record for part in self.parts for path, record in part.files.items()}
        found.update(self.manifest.files)
        found.pop(manifest_file.PATH, None)
        return found

    def label_paths(self, number: int) -> dict[str, str]:
        """Array name -> path of the file that holds part ``number`` of it."""
        return self._labels.paths(number)

    def index(self, part: Part | int) -> IndexRows:
        """The index of a part. Raises as ``read_part`` does."""
        record = self._record(part)
        size = record.files[index_files.path_of(record.number)].size
        ragged = self.manifest.layout.is_ragged
        return index_files.rows_of(self.files, record, size, ragged=ragged, digests=self.manifest.knows_content)

    def ids(self, split: str) -> list[str]:
        """The example ids of a split, in order. Grows with the split, as do the three below."""
        return [i for table in self._column(split, "example_id") for i in table.to_pylist()]

    def input_digests(self, split: str) -> list[str]:
        """The sha256 of each example's stored bytes, in order; [] when the cache does not know them."""
        if not self.manifest.knows_content:
            return []
        return [d.hex() for table in self._column(split, "input_digest") for d in table.to_pylist()]

    def labels(self, split: str) -> Rows:
        """The hard labels (N,) of a split, -1 where there is none."""
        return np.concatenate([np.empty(0, np.int64), *(t.to_numpy() for t in self._column(split, "label"))])

    def lengths(self, split: str) -> Rows:
        """The positions (N,) of each example of a split, in order: as many in every view."""
        if not self.manifest.layout.is_ragged:
            return np.full(self.examples(split), self.manifest.layout.length, dtype=np.int64)
        found = [self.spans(record, np.arange(record.entries))[1] for record in self._groups.get((split, 0), ())]
        return np.concatenate([np.empty(0, np.int64), *found])

    def spans(self, part: Part | int, entries: Rows) -> tuple[Rows, Rows]:
        """Where ``entries`` (n,) of a part begin (n,), and their positions (n,), all counted from the part's first.

        From the part's index where entries are ragged; raises as ``index`` does.
        """
        return self._spans.of(self.files, self._record(part), entries)

    def lengths_of(self, split: str, entries: Rows, view: int = 0) -> Rows:
        """The positions (n,) of some ``entries`` (n,) of a view of a split. Raises as ``index`` does."""
        found = np.zeros(len(entries), dtype=np.int64)
        blocks, within = np.divmod(np.asarray(entries, dtype=np.int64), self.part_size)
        for block in np.unique(blocks).tolist():
            here = np.flatnonzero(blocks == block)
            found[here] = self.spans(self.parts_of(split, view)[block], within[here])[1]
        return found

    def _column(self, split: str, name: str) -> list[Any]:
        columns = []
        for record in self._groups.get((split, 0), ()):
            size = record.files[index_files.path_of(record.number)].size
            table = index_files.decode(self.files, record, size, [name], digests=self.manifest.knows_content)
            columns.append(table[name])
        return columns

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the features stored beside the labels."""
        return tuple(self.manifest.features)

    def replayed_views(self) -> Any:
        """The table of a few views as they were seen at dump time, or None."""
        if self.manifest.replay is None:
            return None
        import pyarrow as pa

        try:
            # In this thread: one of Arrow's may still hold the buffer when the interpreter ends, which aborts it.
            table = parquet(self._small(self.manifest.replay)).read(use_threads=False)
            table.validate(full=True)
            return table
        except (OSError, ValueError, pa.ArrowException) as error:
            raise self.files.unreadable(self.manifest.replay, error) from error

    def replay_bytes(self) -> bytes | None:
        """The file of the replayed views as it is, or None."""
        return None if self.manifest.replay is None else self._small(self.manifest.replay)

    def sizes(self) -> dict[str, int]:
        """Bytes on disk by array (``labels.zarr/logits``), with ``index`` and ``metadata``."""
        total: dict[str, int] = {}
        for record in self.parts:
            for path, file in record.files.items():
                name = path.rpartition("/")[0]
                total[name] = total.get(name, 0) + file.size
        own = self.files.size(manifest_file.PATH) or 0
        return {**total, "metadata": own + sum(file.size for file in self.manifest.files.values())}

    def describe(self) -> dict[str, Any]:
        """All that ``softlabels cache inspect`` prints, as plain JSON: the manifest, and bytes by array."""
        sizes = self.sizes()
        labels = sum(size for name, size in sizes.items() if name.startswith("labels"))
        positions = max(1, self.manifest.counts["positions"])
        return {
            "address": self.address,
            **self.manifest.as_dict(),
            "bytes": {**sizes, "total": sum(sizes.values())},
            "bytes_per_label": labels / positions,
        }

    def _record(self, part: Part | int) -> PartRecord:
        return self.parts[part if isinstance(part, int) else part.number]
