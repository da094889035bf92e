"""Forged caches: tables and shards that are not what an honest dump would write."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.encodings import KEPT
from pipeline.store import index, parts
from tests.faults.forged_manifests import HUGE, Forge, Forgery, counted
from tests.faults.forging import (
    VIEWS,
    VIEWS_SCHEMA,
    manifest,
    put,
    records,
    with_parts,
)
from tests.store.small import FEW


def rows_of(folder: Path, number: int = 0) -> list[dict[str, Any]]:
    """The index of a part as it was."""
    found: list[dict[str, Any]] = pq.read_table(folder / index.path_of(number)).to_pylist()
    return found


def parquet_bytes(table: pa.Table, **options: Any) -> bytes:
    """A table written in any way that pyarrow can."""
    sink = io.BytesIO()
    pq.write_table(table, sink, **({"compression": "none", "use_dictionary": False} | options))
    return sink.getvalue()


def indexed(change: Callable[[list[dict[str, Any]]], Any], schema: pa.Schema = index.SCHEMA, **options: Any) -> Forge:
    """Other rows in the first index file, which is written as ``options`` say."""

    def forge(folder: Path) -> None:
        rows = rows_of(folder)
        changed = change(rows)
        table = pa.Table.from_pylist(rows if changed is None else changed, schema)
        put(folder, index.path_of(0), parquet_bytes(table, **options))

    return forge


def every(name: str, values: Callable[[int], Any]) -> Callable[[list[dict[str, Any]]], None]:
    """One column of the rows, made anew."""

    def change(rows: list[dict[str, Any]]) -> None:
        for number, row in enumerate(rows):
            row[name] = values(number)

    return change


def indices() -> Iterator[Forgery]:
    """What an index can claim."""
    for name, column, values in (
        ("out of range", "start", lambda n: n + 10**6),
        ("negative", "start", lambda n: n - 5),
        ("overlapping", "start", lambda n: 0),
        ("with gaps", "start", lambda n: 2 * n),
        ("at the end of int64", "start", lambda n: 2**63 - 1),
        ("of 2**31", "length", lambda n: 2**31 - 1),
        ("of nothing and of two", "length", lambda n: 2 * (n % 2)),
        ("negative", "length", lambda n: -1),
        ("of another split", "split", lambda n: "test"),
        ("of no split", "split", lambda n: "../../x"),
        ("of another view", "view", lambda n: 1),
        ("of view -1", "view", lambda n: -1),
        ("twice", "example_id", lambda n: "train/0"),
        ("strange", "example_id", lambda n: f"../{n}\0\n"),
        ("without digests", "input_digest", lambda n: None),
        ("with some digests", "input_digest", lambda n: None if n else bytes(32)),
    ):
        yield Forgery(f"index: {column} {name}", indexed(every(column, values)))
    loose = pa.schema([field.with_nullable(True) for field in index.SCHEMA])
    for column in index.SCHEMA.names:
        yield Forgery(f"index: null {column}", indexed(every(column, lambda n: None), loose))
        fewer = pa.schema([field for field in index.SCHEMA if field.name != column])
        yield Forgery(f"index: no {column}", indexed(lambda rows: None, fewer))
    yield Forgery("index: content that nobody knows", _unknown_content, sound=True)
    yield Forgery("index: a column more", indexed(lambda rows: None, index.SCHEMA.append(pa.field("x", pa.int8()))))
    yield Forgery("index: fewer rows", indexed(lambda rows: rows[:-1]))
    yield Forgery("index: more rows", indexed(lambda rows: rows * 2))
    yield Forgery("index: no UTF-8", _raw_ids(b"train/\xff\xfe"))
    long = "x" * (4 << 20)
    yield Forgery("index: a bomb of texts", indexed(every("example_id", lambda n: long), compression="zstd"))
    yield Forgery(
        "index: a dictionary", indexed(every("example_id", lambda n: long), use_dictionary=True, compression="zstd")
    )
    yield Forgery("index: shared beginnings", indexed(every("example_id", lambda n: long), column_encoding={"example_id": "DELTA_BYTE_ARRAY"}, compression="zstd"))  # fmt: skip # noqa: E501
    for codec in ("snappy", "gzip", "brotli", "lz4"):
        yield Forgery(f"index: {codec}", indexed(lambda rows: None, compression=codec))
    yield Forgery("index: pages of version 2", indexed(lambda rows: None, data_page_version="2.0"))
    yield Forgery("index: a footer of 2 GB", lambda f: put(f, index.path_of(0), _footer(f, 2**31 - 1)))
    yield Forgery("index: no footer", lambda f: put(f, index.path_of(0), _footer(f, 0)))
    yield Forgery("index: a nested footer", lambda f: put(f, index.path_of(0), _nested()))
    yield Forgery("index: a million rows", lambda f: (_many_rows(f), None))


def _unknown_content(folder: Path) -> None:
    """Version 2 without the digest of its data, and so without those of its examples."""
    for number in range(len(FEW.parts)):
        rows = rows_of(folder, number)
        every("input_digest", lambda n: None)(rows)
        put(folder, index.path_of(number), parquet_bytes(pa.Table.from_pylist(rows, index.SCHEMA)))

    def change(body: dict[str, Any]) -> None:
        body["format"], body["identity"]["data"]["digest"] = max(2, body["format"]), None

    manifest(folder, change)


def _raw_ids(value: bytes) -> Forge:
    def forge(folder: Path) -> None:
        table = pa.Table.from_pylist(rows_of(folder), index.SCHEMA)
        ids = pa.array([value + bytes([48 + n]) for n in range(len(table))], pa.binary()).view(pa.string())
        put(folder, index.path_of(0), parquet_bytes(table.set_column(0, index.SCHEMA.field(0), ids)))

    return forge


def _footer(folder: Path, length: int) -> bytes:
    return (folder / index.path_of(0)).read_bytes()[:-8] + length.to_bytes(4, "little") + b"PAR1"


def _nested() -> bytes:
    footer = b"\x15\x02\x19" + b"\x1c" * 500_000
    return b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def _many_rows(folder: Path) -> None:
    """An index of a million rows in a few kilobytes, and a manifest that agrees."""
    count = 1_000_000
    zeros = pa.array(np.zeros(count, np.int64))
    table = pa.table(
        {
            "example_id": pa.array([""], pa.string()).take(zeros),
            "split": pa.array(["train"], pa.string()).take(zeros),
            "view": pa.array(np.zeros(count, np.int32)),
            "seed": zeros,
            "start": pa.array(np.arange(count)),
            "length": pa.array(np.ones(count, np.int32)),
            "label": zeros,
            "input_digest": pa.array([bytes(32)], pa.binary(32)).take(zeros),
        }
    ).cast(index.SCHEMA)
    delta = dict.fromkeys(("view", "seed", "start", "length", "label"), "DELTA_BINARY_PACKED")
    data = parquet_bytes(table, compression="zstd", column_encoding=delta, row_group_size=count)
    put(folder, index.path_of(0), data)
    first = records(folder)[0]
    with_parts(folder, [type(first)(**{**vars(first), "entries": count, "positions": count})])
    counted(examples=count, views=1, part_size=count)(folder)


def tables() -> Iterator[Forgery]:
    """What parts.parquet, the label columns and the replay table can hold."""

    def parts_as(change: Callable[[list[dict[str, Any]]], Any], schema: pa.Schema = parts.SCHEMA, **how: Any) -> Forge:
        def forge(folder: Path) -> None:
            rows = pq.read_table(folder / parts.PATH).to_pylist()
            changed = change(rows)
            table = pa.Table.from_pylist(rows if changed is None else changed, schema)
            put(folder, parts.PATH, parquet_bytes(table, **how))

        return forge

    def of_file(name: str, value: Any) -> Forge:
        return parts_as(lambda rows: rows[0]["files"][0].update({name: value}))

    for name, value in (("path", None), ("path", "../x"), ("path", "/etc/passwd"), ("path", "a\0"), ("sha256", None),
                        ("sha256", "Z" * 64), ("size", None), ("size", -1), ("size", 2**62), ("size", 2**40),
                        ("seal", -1), ("seal", 2**40), ("seal", 7)):  # fmt: skip
        yield Forgery(f"parts: {name} {value!r}", of_file(name, value))
    for column in parts.SCHEMA.names:
        yield Forgery(f"parts: null {column}", parts_as(every(column, lambda n: None)))
    for column, value in (
        ("number", 7),
        ("start", -8),
        ("positions", HUGE),
        ("entries", 2**62),
        ("split", "x" * 10**6),
    ):
        yield Forgery(f"parts: {column}", parts_as(every(column, lambda n, v=value: v)))
    yield Forgery("parts: a null file", parts_as(every("files", lambda n: [None])))
    yield Forgery("parts: 400,000 nulls", parts_as(every("files", lambda n: [None] * 10**5), compression="zstd"))
    yield Forgery("parts: a null statistic", parts_as(every("statistics", lambda n: [{"name": None, "value": None}])))
    bomb = [{"name": "x" * (8 << 20), "value": 0.0}]

    def claimed(claim: dict[str, float]) -> Callable[[list[dict[str, Any]]], None]:
        """Other statistics, but for how many classes are kept: that is a size."""

        def change(rows: list[dict[str, Any]]) -> None:
            for row in rows:
                kept = [each for each in row["statistics"] if each["name"] == KEPT]
                row["statistics"] = [{"name": n, "value": v} for n, v in claim.items()] + kept

        return change

    yield Forgery("parts: a bomb", parts_as(every("statistics", lambda n: bomb), compression="zstd"))
    yield Forgery("parts: a dictionary", parts_as(every("statistics", lambda n: bomb * 8), use_dictionary=True, compression="zstd"))  # fmt: skip # noqa: E501
    for name, claim in {
        "too good": {"compared": 8.0, "agreed": 16.0},
        "too many": {"compared": 1e9, "agreed": 1e9, "labelled": 1e9, "correct": 1e9},
        "below zero": {"compared": 8.0, "agreed": 8.0, "kl_sum_T1": -1.0, "kl_max_T1": 1.0},
    }.items():
        yield Forgery(f"parts: statistics {name}", parts_as(claimed(claim)), sound=True)
    for value in (math.nan, math.inf):
        yield Forgery(
            f"parts: a statistic {value}",
            parts_as(claimed({"bound": value})),
        )
    yield Forgery("parts: fewer", parts_as(lambda rows: rows[:-1]))
    yield Forgery("parts: not Parquet", lambda f: put(f, parts.PATH, b"PAR1" * 100))
    yield Forgery("parts: empty", lambda f: put(f, parts.PATH, b""))

    def views_as(table: pa.Table, **how: Any) -> Forge:
        return lambda folder: put(folder, "views.parquet", parquet_bytes(table, **how))

    def viewed(**values: Any) -> pa.Table:
        return pa.Table.from_pylist([{**VIEWS[0], **values}], VIEWS_SCHEMA)

    yield Forgery("views: another shape", views_as(viewed(shape=[2**31 - 1, 2**31 - 1])))
    yield Forgery("views: a negative shape", views_as(viewed(shape=[-1, -1])))
    yield Forgery("views: nulls", views_as(viewed(pixels=None)))
    yield Forgery("views: a bomb", views_as(viewed(pixels=np.zeros(8 << 20, np.float32)), compression="zstd"))
    yield Forgery("views: texts for pixels", views_as(pa.table({"example_id": ["a"], "view": [1], "seed": [1], "shape": [[1]], "pixels": [["x"]]})))  # fmt: skip # noqa: E501
    yield Forgery("views: no columns", views_as(pa.table({"a": [1]})))
    yield Forgery("views: no Parquet", lambda f: put(f, "views.parquet", b"\x80\x04cos\nsystem\n(S'true'\ntR."))

    def columns_as(change: Callable[[pa.Table], pa.Table], **how: Any) -> Forge:
        def forge(folder: Path) -> None:
            path = "labels/part-00000.parquet"
            put(folder, path, parquet_bytes(change(pq.read_table(folder / path)), **how))

        return forge

    def other(name: str, array: Any) -> Callable[[pa.Table], pa.Table]:
        def change(table: pa.Table) -> pa.Table:
            at = table.schema.get_field_index(name)
            kind = table.schema.field(at)
            return table.set_column(at, kind, pa.array(array(len(table)), kind.type))

        return change

    for name, column, values in (
        ("NaN logits", "logits", lambda n: [[np.float16("nan")] * 3] * n),
        ("infinite normalisers", "log_normaliser", lambda n: [[float("inf")] * 2] * n),
        ("ids that leave the classes", "id_deltas", lambda n: [[255, 255, 255]] * n),
        ("ids that repeat", "id_deltas", lambda n: [[1, 0, 0]] * n),
        ("other positions", "position", lambda n: list(range(1, n + 1))),
        ("huge positions", "position", lambda n: [2**62] * n),
    ):
        yield Forgery(f"labels: {name}", columns_as(other(column, values)), "parquet")
    yield Forgery("labels: fewer rows", columns_as(lambda t: t.slice(1)), "parquet")
    yield Forgery("labels: a column less", columns_as(lambda t: t.drop_columns(["logits"])), "parquet")
    yield Forgery("labels: floats for ids", columns_as(lambda t: t.set_column(1, "id_deltas", t["logits"])), "parquet")
    yield Forgery("labels: gzip", columns_as(lambda t: t, compression="gzip"), "parquet")
    yield Forgery("labels: a dictionary", columns_as(lambda t: t, use_dictionary=True), "parquet")
