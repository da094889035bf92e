"""The cache card: README.md of a cache, made from its manifest alone, so that equal caches have equal cards."""

from __future__ import annotations

import json
from typing import Any

from pipeline.identity import short
from pipeline.store.manifest import Manifest

PATH = "README.md"


def card(manifest: Manifest) -> str:
    """Markdown: what the cache is, how faithful it is, how to read it."""
    identity, counts = manifest.identity, manifest.counts
    teacher = identity.get("teacher") or {}
    lines = [
        "# A cache of soft labels",
        "",
        f"What a teacher said about {counts['entries']:,} entries, one distribution over {manifest.classes:,} classes "
        f"for each of {counts['positions']:,} positions. Written by Softlabels, format version 1.",
        "",
        "| | |",
        "|---|---|",
        f"| identity | `{short(str(identity['digest']))}` |",
        f"| teacher | {_cell(teacher.get('reference'))}, weights `{short(str(teacher.get('state', '')))}` |",
        f"| data | {_cell(_digest(identity.get('data')))} |",
        f"| preprocessing | {_cell(identity.get('preprocessing'))} |",
        f"| views | {_cell(identity.get('views'))} |",
        *(f"| {s} | {n['examples']:,} examples, {n['views']} view(s) |" for s, n in counts["splits"].items()),
        f"| encoding | {_cell(manifest.encoding.describe())} |",
        f"| features | {', '.join(manifest.features) or 'none'} |",
        "",
        "## How faithful",
        "",
        _bound(manifest),
        *([""] if manifest.fidelity else []),
        *(f"- {name}: {_cell(value)}" for name, value in sorted(manifest.fidelity.items())),
        "",
        "## How to read it",
        "",
        "```python",
        "from pipeline.store import open_cache",
        "",
        'cache = open_cache("path or URL of this folder")',
        'for part in cache.parts_of("train", view=0):',
        "    soft = cache.decode(cache.read_part(part))",
        "```",
        "",
        "or without Softlabels:",
        "",
        "```python",
        *_stock(manifest),
        "```",
        "",
        "Positions are those of `start` in `index/`. The format is described in Softlabels' docs/format.md.",
    ]
    return "\n".join(lines) + "\n"


def _bound(manifest: Manifest) -> str:
    if manifest.bound == 0:
        return "Exact: the logits are those of the teacher, to the bit."
    if manifest.temperatures:
        on_hand = ", ".join(f"{t:g}" for t in manifest.temperatures)
        return f"No probability at a declared temperature (T = {on_hand}) is off by more than {manifest.bound:.3g}."
    return f"No logit, less the mean of its row, is off by more than {manifest.bound:.3g}."


def _stock(manifest: Manifest) -> list[str]:
    if manifest.store == "zarr":
        name = next(iter(manifest.encoding.specs(manifest.classes)))
        return ["import zarr", "", f'labels = zarr.open_group("labels.zarr", mode="r")["{name}"]']
    return ["import pyarrow.dataset", "", 'labels = pyarrow.dataset.dataset("labels", format="parquet").to_table()']


def _digest(data: Any) -> Any:
    if isinstance(data, dict) and isinstance(data.get("digest"), str):
        return {**data, "digest": short(data["digest"])}
    return data


def _cell(value: Any) -> str:
    """A value in one table cell: nothing in it can break the table or the page."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
    plain = " ".join(text.split())[:500]
    return "`" + plain.replace("`", "'").replace("|", "/") + "`" if plain else "none"
