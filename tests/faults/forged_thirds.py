"""Forged caches of format version 3: all that the catalogue does to others, and what only these can hold.

They have uneven entries; one keeps draws, whose arrays on the axis "kept" are as long as ``kept`` says, in zarr and,
with weights, in Parquet, and one keeps top-k labels in four bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.encodings import KEPT, Encoding, Sampled, TopK
from tests.faults.forged_files import indices, parquet_bytes, tables
from tests.faults.forged_manifests import Forge, Forgery, links, manifests
from tests.faults.forged_shards import shards
from tests.faults.forging import put

THIRD_BASES: dict[str, tuple[Encoding, str]] = {
    "draws": (Sampled(5), "zarr"),
    "draws in parquet": (Sampled(5, proposal=0.8), "parquet"),
    "int4": (TopK(3, "int4", (1.0, 4.0)), "zarr"),
}
LIKE = {"zarr": "draws", "parquet": "draws in parquet", "int8": "int4"}
"""The base of version 3 that takes the place of another."""

SOUND = ("an unknown teacher, version 1", "version 2 for nothing")
"""What only version 3 may say, or changes nothing there."""


def thirds() -> Iterator[Forgery]:
    """The whole catalogue over caches of version 3."""
    for forgery in [*manifests(), *links(KEPT, "c.0"), *indices(), *tables()]:
        if forgery.base in LIKE and not forgery.name.startswith("labels: "):
            yield replace(forgery, base=LIKE[forgery.base], sound=forgery.sound or forgery.name in SOUND)
    yield from shards("draws", KEPT, "draws_0")
    yield from shards("int4", "span", "id_deltas_0")
    yield from _columns()


def _columns() -> Iterator[Forgery]:
    """What the label columns of drawn classes can hold."""
    path = "labels/part-00000.parquet"

    def forged(change: Callable[[pa.Table], pa.Table], **how: Any) -> Forge:
        def forge(folder: Path) -> None:
            put(folder, path, parquet_bytes(change(pq.read_table(folder / path)), **how))

        return forge

    def with_values(name: str, change: Callable[[Any], Any]) -> Callable[[pa.Table], pa.Table]:
        """Each row of a column made anew."""

        def changed(table: pa.Table) -> pa.Table:
            at = table.schema.get_field_index(name)
            field = table.schema.field(at)
            return table.set_column(at, field, pa.array([change(v) for v in table[name].to_pylist()], field.type))

        return changed

    def uncounted(table: pa.Table) -> pa.Table:
        """Lists that are one longer, and a count that says so."""
        for name in ("draws_0", "weights"):
            table = with_values(name, lambda values: [*values, values[-1]])(table)
        return with_values(KEPT, lambda count: count + 1)(table)

    def floats(table: pa.Table) -> pa.Table:
        return table.set_column(table.schema.get_field_index("draws_0"), "draws_0", table["weights"])

    for name, column, change in (
        ("no class kept", KEPT, lambda count: 0),
        ("a class less kept", KEPT, lambda count: max(1, count - 1)),
        ("255 classes kept", KEPT, lambda count: 255),
        ("empty lists", "draws_0", lambda values: []),
        ("longer lists", "draws_0", lambda values: values * 2),
        ("a vast list", "draws_0", lambda values: [0] * 10**6),
        ("ids that leave the classes", "draws_0", lambda values: [255] * len(values)),
        ("ids that repeat", "draws_0", lambda values: [0] * len(values)),
        ("NaN weights", "weights", lambda values: [float("nan")] * len(values)),
        ("infinite weights", "weights", lambda values: [float("inf")] * len(values)),
        ("weights below 0", "weights", lambda values: [-1.0] * len(values)),
        ("other positions", "position", lambda number: number + 1),
        ("huge positions", "position", lambda number: 2**62),
    ):
        yield Forgery(f"labels: {name}", forged(with_values(column, change)), "draws in parquet")
    for name, whole in (
        ("more classes than parts say", uncounted),
        ("fewer rows", lambda table: table.slice(1)),
        ("a column less", lambda table: table.drop_columns(["weights"])),
        ("floats for ids", floats),
    ):
        yield Forgery(f"labels: {name}", forged(whole), "draws in parquet")
    for name, how in (("gzip", {"compression": "gzip"}), ("a dictionary", {"use_dictionary": True})):
        yield Forgery(f"labels: {name}", forged(lambda table: table, **how), "draws in parquet")
