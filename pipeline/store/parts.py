"""What is known of each part once it is written: its files with their digests, and its statistics.

A part is first journalled, one small JSON file each; finalising gathers all of them in ``parts.parquet``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import pyarrow as pa

from pipeline.encodings import KEPT
from pipeline.errors import CacheCorruptError
from pipeline.identity import canonical_json, digest, digest_bytes
from pipeline.store.files import safe_path
from pipeline.store.layout import Part
from pipeline.store.pages import parquet
from pipeline.store.tables import write_table

PATH = "parts.parquet"

MOST_JOURNAL_BYTES = 16 << 20
"""No journal entry is larger: it names a handful of files."""

LEAST_BYTES = 32
"""No part takes fewer bytes of ``parts.parquet``, however it is compressed: the sha256 of its index has as many."""

IS_DIGEST = re.compile(r"[0-9a-f]{64}")
_FIELDS = tuple(f.name for f in fields(Part))


@dataclass(frozen=True)
class FileRecord:
    """A committed file: hex sha256 and bytes. Raises CacheCorruptError when they cannot be that."""

    sha256: str
    size: int

    def __post_init__(self) -> None:
        sized = type(self.size) is int and 0 <= self.size < 2**48
        if not sized or not isinstance(self.sha256, str) or not IS_DIGEST.fullmatch(self.sha256):
            raise CacheCorruptError(f"a file should have a sha256 and a size; found {self.sha256!r} and {self.size!r}")

    @classmethod
    def of(cls, data: bytes) -> FileRecord:
        """The record of a file that holds ``data``."""
        return cls(digest_bytes(data), len(data))


@dataclass(frozen=True)
class PartRecord(Part):
    """A part that is written.

    - ``files`` by path within the cache; ``statistics`` by name;
    - ``seals``: for each shard, by path, crc32c over the stored crc32c of its chunks, in order.
    """

    files: Mapping[str, FileRecord]
    statistics: Mapping[str, float]
    seals: Mapping[str, int]

    @classmethod
    def of(
        cls,
        part: Part,
        files: Mapping[str, FileRecord],
        statistics: Mapping[str, float],
        seals: Mapping[str, int],
    ) -> PartRecord:
        """``part`` with what is known of it.

        Raises CacheCorruptError when seals are not those of its files, or statistics no finite numbers.
        """
        values = {name: getattr(part, name) for name in _FIELDS}
        numbers = {name: _number(value) for name, value in sorted(statistics.items())}
        if not all(map(math.isfinite, numbers.values())):
            raise CacheCorruptError(f"part {part.number} has statistics that are no numbers: {str(statistics)[:200]}")
        if not all(path in files and type(seal) is int and 0 <= seal < 2**32 for path, seal in seals.items()):
            raise CacheCorruptError(f"part {part.number} has seals that are not those of its files: {str(seals)[:200]}")
        return cls(**values, files=dict(files), statistics=numbers, seals=dict(seals))

    @property
    def kept(self) -> int:
        """Classes that its positions keep in all, by its statistics; 0 where each keeps as many."""
        return int(self.statistics.get(KEPT, 0))

    @property
    def part(self) -> Part:
        """The part alone."""
        return Part(**{name: getattr(self, name) for name in _FIELDS})

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file by path."""
        return {path: record.size for path, record in self.files.items()}


def _number(value: Any) -> float:
    try:
        return math.nan if isinstance(value, str) else float(value)
    except OverflowError:
        return math.inf


def parse_files(found: Any, where: str) -> dict[str, FileRecord]:
    """File records out of JSON. Raises CacheCorruptError when a path leaves the cache or a field is missing."""
    try:
        return {safe_path(path): FileRecord(item["sha256"], item["size"]) for path, item in found.items()}
    except (AttributeError, TypeError, KeyError) as error:
        raise CacheCorruptError(f"{where} lists files without their sha256 and size") from error
    except CacheCorruptError as error:
        raise CacheCorruptError(f"{where} cannot be right: {error}") from error


def journal_entry(record: PartRecord, identity: str) -> bytes:
    """The journal file of a part, with a digest of itself."""
    body = {
        "identity": identity,
        "part": asdict(record.part),
        "files": {path: asdict(file) for path, file in record.files.items()},
        "statistics": dict(record.statistics),
        "seals": dict(record.seals),
    }
    return canonical_json({**body, "digest": digest(body)})


def parse_journal(data: bytes, identity: str, part: Part) -> PartRecord | None:
    """The record in a journal file, or None when it is torn, or of another part or identity."""
    try:
        body = json.loads(data)
        whole = body.pop("digest") == digest(body)
        if not whole or body["identity"] != identity or body["part"] != asdict(part):
            return None
        return PartRecord.of(part, parse_files(body["files"], "the journal"), body["statistics"], body["seals"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, CacheCorruptError):
        return None


_FILE = pa.struct([("path", pa.string()), ("sha256", pa.string()), ("size", pa.int64()), ("seal", pa.int64())])
_STATISTIC = pa.struct([("name", pa.string()), ("value", pa.float64())])
SCHEMA = pa.schema(
    [
        ("number", pa.int64()),
        ("split", pa.string()),
        ("view", pa.int64()),
        ("first", pa.int64()),
        ("entries", pa.int64()),
        ("start", pa.int64()),
        ("positions", pa.int64()),
        ("files", pa.list_(_FILE)),
        ("statistics", pa.list_(_STATISTIC)),
    ]
)


def encode(records: Sequence[PartRecord]) -> bytes:
    """``parts.parquet`` of ``records``, in the order of their numbers."""
    rows = [
        {
            **asdict(record.part),
            "files": [{"path": p, **asdict(f), "seal": record.seals.get(p)} for p, f in sorted(record.files.items())],
            "statistics": [{"name": n, "value": v} for n, v in record.statistics.items()],
        }
        for record in sorted(records, key=lambda r: r.number)
    ]
    return write_table(pa.Table.from_pylist(rows, schema=SCHEMA), row_group_size=65_536, zstd=())


def decode(data: bytes, count: int, where: str) -> tuple[PartRecord, ...]:
    """The ``count`` records of a ``parts.parquet``. Raises CacheCorruptError when it holds anything else."""
    try:
        reader = parquet(data)
        if not reader.schema_arrow.equals(SCHEMA) or reader.metadata.num_rows != count:
            raise CacheCorruptError(f"{where} should be a table of {count:,} parts. Fetch the cache again")
        rows = reader.read(use_threads=False).to_pylist()
        return tuple(
            PartRecord.of(
                Part(**{name: row[name] for name in _FIELDS}),
                {safe_path(f["path"]): FileRecord(f["sha256"], f["size"]) for f in row["files"]},
                {s["name"]: s["value"] for s in row["statistics"]},
                {f["path"]: f["seal"] for f in row["files"] if f["seal"] is not None},
            )
            for row in rows
        )
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError, pa.ArrowException) as error:
        if isinstance(error, CacheCorruptError):
            raise CacheCorruptError(f"{where} cannot be right: {error}") from error
        raise CacheCorruptError(f"{where} is damaged: {type(error).__name__}: {error}. Fetch it again") from error
