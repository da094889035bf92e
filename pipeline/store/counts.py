"""What a manifest counts: entries, positions and parts, and the layout that they come to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.encodings import KEPT, Encoding
from pipeline.errors import CacheIncompleteError
from pipeline.identity import SPLITS
from pipeline.store.fields import MOST_ENTRIES, MOST_PARTS, Fields, shown
from pipeline.store.identity_fields import format_of
from pipeline.store.layout import Layout, groups_of
from pipeline.store.parts import LEAST_BYTES
from pipeline.store.parts import PATH as PARTS

RAGGED = "part_positions"
"""The positions of each part, where entries have uneven numbers of them."""

_FREE_PARTS = 2048
"""So many parts take no memory worth a check."""


def least_format(identity: Mapping[str, Any], *, ragged: bool, encoding: Encoding, classes: int) -> int:
    """The lowest format version that can say what a cache is: see ``is_third``, and ``format_of``."""
    return 3 if is_third(ragged, encoding, classes) else format_of(identity)


def is_third(ragged: bool, encoding: Encoding, classes: int) -> bool:
    """Whether it takes version 3: uneven entries, or kept classes, or logits of few bits."""
    uneven = ragged or any(spec.axis == KEPT for spec in encoding.specs(classes).values())
    return uneven or encoding.least_format == 3


def counts_of(layout: Layout) -> dict[str, Any]:
    """``counts`` in a manifest: entries, positions and parts, and the examples and views of each split."""
    splits = {s: {"examples": e, "views": v} for s, (e, v) in layout.splits().items()}
    ragged = {} if layout.counts is None else {RAGGED: list(layout.counts)}
    return {
        "entries": layout.entries,
        "positions": layout.positions,
        "parts": len(layout.parts),
        "splits": splits,
        **ragged,
    }


def parse(reader: Fields, found: Mapping[str, Any], parts_bytes: int) -> Layout:
    """The layout that the counts describe, made only once it is known to be of a sensible size.

    ``parts_bytes``: of parts.parquet, 0 when it is missing: no more parts are believed than it could hold. Raises
    CacheCorruptError for numbers that cannot be or contradict one another, CacheIncompleteError without that table.
    """
    counts = reader.get(found, "counts", dict)
    entries = reader.count(counts, "entries", 0, MOST_ENTRIES)
    positions = reader.count(counts, "positions", 0, MOST_ENTRIES)
    parts = reader.count(counts, "parts", 0, MOST_PARTS)
    part_size = reader.count(found["identity"], "part_size", 1, MOST_ENTRIES)
    splits: dict[str, tuple[int, int]] = {}
    for split, numbers in reader.get(counts, "splits", dict).items():
        if split not in SPLITS or not isinstance(numbers, dict):
            raise reader.fail(f"splits are {', '.join(SPLITS)}; found {shown(split)}")
        examples = reader.count(numbers, "examples", 1, MOST_ENTRIES)
        splits[split] = (examples, reader.count(numbers, "views", 1, MOST_PARTS))
    each = _ragged(reader, counts, parts) if RAGGED in counts else None
    length = positions // entries if entries else 1
    expected = (
        sum(examples * views for examples, views in splits.values()),
        entries * length if each is None else sum(each),
        sum(-(-examples // part_size) * views for examples, views in splits.values()),
    )
    if (entries, positions, parts) != expected or length < 1:
        raise reader.fail(
            f"entries, positions and parts are {(entries, positions, parts)}, its splits come to {expected}"
        )
    _check_parts(reader, parts, parts_bytes)
    if each is None:
        return Layout.of(splits, part_size, length)
    try:
        return Layout(groups_of(splits), part_size, 0, each)
    except ValueError as error:
        raise reader.fail(str(error)) from None


def _ragged(reader: Fields, counts: Mapping[str, Any], parts: int) -> tuple[int, ...]:
    each = reader.get(counts, RAGGED, list)
    if len(each) != parts or not all(type(n) is int and 1 <= n <= MOST_ENTRIES for n in each):
        raise reader.fail(f"{RAGGED} should be the positions of {parts:,} parts, at least 1 each; found {shown(each)}")
    return tuple(each)


def _check_parts(reader: Fields, parts: int, held: int) -> None:
    if parts <= _FREE_PARTS:
        return
    if not held:
        raise CacheIncompleteError(
            f"{reader.where} counts {parts:,} parts and {PARTS}, which says where they are, is missing. Fetch the "
            "cache again, or dump again to restore it"
        )
    if parts * LEAST_BYTES > held:
        raise reader.fail(f"{parts:,} parts cannot be listed in the {held:,} bytes of {PARTS}")
