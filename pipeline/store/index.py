"""The index: a row per entry, one Parquet file per part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import CacheError
from pipeline.identity import SPLITS
from pipeline.store.files import Files
from pipeline.store.layout import Part
from pipeline.store.pages import parquet
from pipeline.store.tables import write_table

Ints = npt.NDArray[np.int64]

LEAST_BYTES = 8
"""No entry takes fewer bytes of the index, however it is compressed: the seed of its view has as many."""

SCHEMA = pa.schema(
    [
        pa.field("example_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("view", pa.int32(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("start", pa.int64(), nullable=False),
        pa.field("length", pa.int32(), nullable=False),
        pa.field("label", pa.int64(), nullable=False),
        pa.field("input_digest", pa.binary(32)),
    ]
)


@dataclass(frozen=True)
class IndexRows:
    """The entries of one part, E of them, all of one view of one split.

    - ``example_ids``: E names; ``seeds`` (E,): of the view; ``labels`` (E,): the hard label, -1 where there is none;
    - ``input_digests``: E hex sha256 of the stored bytes of the example, before decoding; None for random views,
      whose examples are those of view 0 (a digest does not compress: 32 bytes for every entry would add up), and
      where nobody knows (an imported cache);
    - ``length`` (E,): how many positions each entry has, at least 1. Left out where all have equally many;
    - ``start`` (E,): the first of them in the arrays. The writer fills it in.
    """

    example_ids: Sequence[str]
    view: int
    split: str
    seeds: Ints
    labels: Ints
    input_digests: Sequence[str] | None
    start: Ints | None = None
    length: Ints | None = None

    def __post_init__(self) -> None:
        columns = (self.example_ids, self.seeds, self.labels, self.input_digests, self.length)
        counts = {len(column) for column in columns if column is not None}
        if len(counts) != 1:
            raise ValueError(f"the columns of an index should be equally long; found lengths {sorted(counts)}")
        if self.input_digests is not None and self.view > 0:
            raise ValueError(f"input digests belong to view 0, and to it alone; this is view {self.view}")
        if self.split not in SPLITS:
            raise ValueError(f"a split is one of {', '.join(SPLITS)}; found {self.split!r}")

    def __len__(self) -> int:
        return len(self.example_ids)


def path_of(number: int) -> str:
    """The index file of part ``number``."""
    return f"index/part-{number:05d}.parquet"


def encode(part: Part, rows: IndexRows) -> bytes:
    """The index file of ``part``, with ``start`` filled in, and ``length`` where all entries have equally many.

    Raises ValueError when ``rows`` are not its own.
    """
    if (rows.split, rows.view, len(rows)) != (part.split, part.view, part.entries):
        raise ValueError(
            f"part {part.number} holds {part.entries} entries of {part.split}, view {part.view}; "
            f"found {len(rows)} of {rows.split}, view {rows.view}"
        )
    count = len(rows)
    length = lengths_of(part, rows)
    digests = [None] * count if rows.input_digests is None else [bytes.fromhex(d) for d in rows.input_digests]
    if any(d is not None and len(d) != 32 for d in digests):
        raise ValueError("an input digest should be a hex sha256")
    columns: list[Any] = [
        pa.array(list(rows.example_ids), pa.string()),
        pa.array([rows.split] * count, pa.string()),
        pa.array(np.full(count, rows.view, dtype=np.int32)),
        pa.array(np.asarray(rows.seeds, dtype=np.int64)),
        pa.array(part.start + np.cumsum(length) - length),
        pa.array(length.astype(np.int32)),
        pa.array(np.asarray(rows.labels, dtype=np.int64)),
        pa.array(digests, pa.binary(32)),
    ]
    zstd = ("example_id", "split", "view", "start", "length", "label")
    return write_table(pa.Table.from_arrays(columns, schema=SCHEMA), row_group_size=65_536, zstd=zstd)


def lengths_of(part: Part, rows: IndexRows) -> Ints:
    """The positions (E,) of each entry of ``part``. ValueError when they are not those that the part has."""
    if rows.length is None:
        each, rest = divmod(part.positions, part.entries)
        if rest:
            raise ValueError(f"the entries of part {part.number} are ragged: IndexRows needs the length of each")
        return np.full(part.entries, each, dtype=np.int64)
    length = np.asarray(rows.length, dtype=np.int64)
    if (length < 1).any() or int(length.sum()) != part.positions:
        raise ValueError(
            f"part {part.number} has {part.positions:,} positions in entries of 1 or more; found lengths that come to "
            f"{int(length.sum()):,}, the least {int(length.min())}"
        )
    return length


def decode(
    files: Files, part: Part, size: int, columns: Sequence[str] | None = None, *, digests: bool = True
) -> pa.Table:
    """The index of ``part`` as a table, or some of its columns; ``digests``: whether view 0 has digests of its inputs.

    Raises CacheIncompleteError when the file is gone, CacheCorruptError when it is not what was committed or does
    not describe this part.
    """
    path = path_of(part.number)
    if part.entries * LEAST_BYTES > size:
        raise files.corrupt(path, f"{size:,} bytes cannot hold {part.entries:,} entries")
    data = files.read(path, size)
    try:
        reader = parquet(data)
        if not reader.schema_arrow.equals(SCHEMA) or reader.metadata.num_rows != part.entries:
            raise files.corrupt(path, f"it is not the index of the {part.entries:,} entries of part {part.number}")
        # Positions are the part's own: they tell its index from that of another part in its place.
        table = reader.read(columns=[*columns, "start"] if columns else None, use_threads=False)
        table.validate(full=True)  # texts that are no UTF-8
        for name in table.column_names:
            nulls = table[name].null_count
            if name == "input_digest" and nulls != (0 if digests and not part.view else part.entries):
                raise _foreign(files, part)
            if len(table[name]) != part.entries or (nulls and name != "input_digest"):
                raise files.corrupt(path, f"it holds missing values of {name}")
        if table["start"][0].as_py() != part.start:
            raise _foreign(files, part)
        return table
    except CacheError:
        raise
    except (OSError, ValueError, RuntimeError, pa.ArrowException) as error:
        raise files.unreadable(path, error) from error


def _foreign(files: Files, part: Part) -> CacheError:
    where = f"part {part.number}: {part.split}, view {part.view}, positions from {part.start:,}"
    return files.corrupt(path_of(part.number), f"its rows are not those of {where}")


def spans_of(files: Files, part: Part, size: int, *, ragged: bool, digests: bool = True) -> tuple[Ints, Ints]:
    """``start`` and ``length`` (E,) of each entry of ``part``, checked against it. Raises as ``decode`` does."""
    return _spans(files, part, decode(files, part, size, ["length"], digests=digests), ragged)


def _spans(files: Files, part: Part, table: pa.Table, ragged: bool) -> tuple[Ints, Ints]:
    start, length = (table[name].to_numpy().astype(np.int64) for name in ("start", "length"))
    even = ragged or bool((length * part.entries == part.positions).all())
    sums = bool((length >= 1).all()) and int(length.sum()) == part.positions
    if not (even and sums and bool((start == part.start + np.cumsum(length) - length).all())):
        raise _foreign(files, part)
    return start, length


def rows_of(files: Files, part: Part, size: int, *, ragged: bool = False, digests: bool = True) -> IndexRows:
    """The index of ``part``, checked against it. Raises as ``decode`` does."""
    table = decode(files, part, size, digests=digests)
    start, length = _spans(files, part, table, ragged)
    of_part = set(table["split"].to_pylist()) <= {part.split} and bool((table["view"].to_numpy() == part.view).all())
    if not of_part:
        raise _foreign(files, part)
    return IndexRows(
        example_ids=table["example_id"].to_pylist(),
        view=part.view,
        split=part.split,
        seeds=table["seed"].to_numpy(),
        labels=table["label"].to_numpy(),
        input_digests=None if part.view > 0 or not digests else [d.hex() for d in table["input_digest"].to_pylist()],
        start=start,
        length=length,
    )
