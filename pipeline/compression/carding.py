"""The card beside the files of one compression, from its table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.artefacts.card import CardFile, Figure, card
from pipeline.compression.lineage import about
from pipeline.compression.recipe import BASELINE
from pipeline.compression.workshop import Workshop
from pipeline.evaluation.table import Row
from pipeline.identity import digest_bytes


def card_of(shop: Workshop, rows: Sequence[Row], table: Mapping[str, Any]) -> str:
    """Markdown of what is to be deployed: files that are no controls."""
    made = [row for row in rows if row.file and not row.control]
    if not made:
        return "No file was made; the reasons are in table.json.\n"
    files = []
    for row in made:
        path = shop.folder / str(row.file)
        files.append(CardFile(path.name, path.suffix, row.bytes or 0, digest_bytes(path.read_bytes()), row.what))
    caveats = [f"{row.file}: {warning}" for row in made for warning in row.warnings]
    return card(
        about(shop, BASELINE, ()),
        files,
        [figure for row in made for figure in _figures(row, table)],
        name=f"{table['student']}, compressed",
        trained_on=f"{shop.dataset.name}, {len(shop.dataset.rows('train')):,} training examples",
        command=str(table["command"]),
        robustness="mean accuracy under common corruptions is among the figures" if _corrupted(made) else None,
        caveats=caveats,
    )


def _corrupted(rows: Sequence[Row]) -> bool:
    return any(row.corrupted_accuracy is not None for row in rows)


def _figures(row: Row, table: Mapping[str, Any]) -> Iterator[Figure]:
    examples, file = int(table["test_examples"]), str(row.file)
    if row.perplexity is not None:
        tokens = int(table["test_tokens"])
        yield Figure(file, "perplexity", row.perplexity, "", tokens, "test tokens")
        if row.bits_per_byte is not None:
            yield Figure(file, "bits per byte", row.bits_per_byte, "bits", tokens, "test tokens")
        yield Figure(file, "expected calibration error", 100 * (row.ece or 0.0), "points", tokens, "test tokens")
    elif row.accuracy is not None:
        between = (100 * row.accuracy_interval[0], 100 * row.accuracy_interval[1]) if row.accuracy_interval else None
        yield Figure(file, "accuracy", 100 * row.accuracy, "%", examples, "test examples", between)
    if row.ece is not None and row.perplexity is None:
        yield Figure(file, "expected calibration error", 100 * row.ece, "points", examples, "test examples")
    if row.corrupted_accuracy is not None:
        yield Figure(file, "accuracy under corruptions", 100 * row.corrupted_accuracy, "%", examples, "test examples")
    on = table["environment"]
    where = f"median; {on['processor']}, {on['runtime_threads'] or 'all'} thread(s), {row.runtime}"
    for size, latency in (row.latency or {}).items():
        yield Figure(
            file, f"latency at batch {size}", latency["p50"], "ms", int(latency["calls"]), "calls", None, where
        )
