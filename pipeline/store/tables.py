"""Writing Parquet the one way that caches use: page checksums, no dictionaries, the same bytes every time."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

PAGE_BYTES = 128 * 1024


def write_table(
    table: pa.Table,
    *,
    row_group_size: int,
    zstd: tuple[str, ...],
    delta: tuple[str, ...] = (),
    lists: tuple[str, ...] = (),
) -> bytes:
    """``table`` as Parquet bytes with page checksums: columns ``zstd`` compressed, ``delta`` as differences.

    ``lists``: columns of lists of any length whose values ``zstd`` may name, by their leaf.
    """
    sink = pa.BufferOutputStream()
    leaves = [_leaf_of(field, lists) for field in table.schema]
    pq.write_table(
        table,
        sink,
        row_group_size=row_group_size,
        compression={leaf: "zstd" if leaf in zstd else "none" for leaf in leaves},
        use_dictionary=False,
        column_encoding=dict.fromkeys(delta, "DELTA_BINARY_PACKED") or None,
        write_statistics=False,
        write_page_checksum=True,
        data_page_size=PAGE_BYTES,
        version="2.6",
    )
    return bytes(sink.getvalue().to_pybytes())


def _leaf_of(field: Any, lists: tuple[str, ...]) -> str:
    listed = pa.types.is_fixed_size_list(field.type) or field.name in lists
    return f"{field.name}.list.element" if listed else str(field.name)
