"""How to read a cache, as its card says it: blocks of Python that run as they stand in the folder of the cache."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.encodings import Dense, TopK
from pipeline.store.layout import Group
from pipeline.store.manifest import Manifest

_ROWS = 8


def reading(manifest: Manifest) -> Iterator[str]:
    """The section on reading, in Markdown; empty for a cache without entries."""
    groups = [group for group in manifest.layout.groups if group.entries]
    if not groups:
        return
    yield from ("## How to read it", "", "These run as they stand in the folder of the cache. With Softlabels:")
    yield from _block(_ours(groups[0]))
    tool = "zarr" if manifest.store == "zarr" else "pyarrow"
    yield f"With {tool}, without Softlabels: probabilities at the first positions, those of the first entries."
    yield from _block(_stock(manifest))
    if manifest.features:
        yield "A feature, of the same positions:"
        yield from _block(_feature(manifest))
    what = "the index" if manifest.store == "zarr" else "index and labels"
    yield f"With DuckDB (1.3 or later), {what}:"
    yield from _block(_duckdb(manifest, groups[0]))
    yield "Positions are those of `start` and `length` in `index/`; a part may end in positions that no entry has. The"
    yield "format is described in Softlabels' docs/format.md."


def _block(code: list[str]) -> Iterator[str]:
    yield from ("", "```python", *code, "```", "")


def _ours(group: Group) -> list[str]:
    return [
        "from pipeline import open_cache",
        "",
        'cache = open_cache(".")  # or the URL of this folder',
        f'for part in cache.parts_of("{group.split}", view={group.view}):',
        "    ids, soft = cache.index(part).example_ids, cache.decode(cache.read_part(part))",
        "    print(ids[0], soft.logits[0])",
    ]


def _stock(manifest: Manifest) -> list[str]:
    """Read some rows of each array, and compute probabilities."""
    rows = min(_ROWS, manifest.layout.parts[0].positions)
    if manifest.store == "zarr":
        head = ["import numpy as np", "import zarr", "", 'labels = zarr.open_group("labels.zarr", mode="r")']
        names = {name: f'labels["{name}"][:{rows}]' for name in manifest.encoding.specs(manifest.classes)}
        return [*head, *_probabilities(manifest, names)]
    specs = manifest.encoding.specs(manifest.classes)
    head = [
        "import numpy as np",
        "import pyarrow.dataset as ds",
        "",
        f'labels = ds.dataset("labels", format="parquet").to_table(filter=ds.field("position") < {rows})',
    ]
    names = {name: f'np.array(labels["{name}"].to_pylist(), np.{spec.dtype})' for name, spec in specs.items()}
    return [*head, *_probabilities(manifest, names)]


def _probabilities(manifest: Manifest, read: dict[str, str]) -> list[str]:
    """Code that makes probabilities of arrays, which the expressions ``read`` give."""
    encoding = manifest.encoding
    if isinstance(encoding, TopK):
        temperature = encoding.temperatures[0]
        return [
            f"ids = np.cumsum({read['id_deltas']}.astype(np.int64), axis=1)  # the {encoding.k} classes kept",
            f"logits, normaliser = {read['logits']}, {read['log_normaliser']}",
            f"probs = np.exp(logits.astype(np.float32) / {temperature!r} - normaliser[:, :1])  # T = {temperature:g}",
            f"rest = np.exp({read['log_residual']}[:, 0])  # of all other classes together",
            "print(ids[0], probs[0], rest[0])",
        ]
    if not isinstance(encoding, Dense):
        return [f"print({expression})" for expression in read.values()]
    if encoding.dtype == "int8":
        logits = f"{read['values']} * {read['scale']}[:, None]"
    else:
        logits = f"{read['logits']}.astype(np.float32)"
    return [
        f"logits = {logits}",
        "probs = np.exp(logits - logits.max(axis=1, keepdims=True))  # T = 1",
        "probs /= probs.sum(axis=1, keepdims=True)",
        "print(probs[0])",
    ]


def _feature(manifest: Manifest) -> list[str]:
    rows = min(_ROWS, manifest.layout.parts[0].positions)
    name = next(iter(manifest.features))
    return [
        "import zarr",
        "",
        f'feature = zarr.open_group("features.zarr", mode="r")["{name}"][:{rows}]',
        "print(feature.shape, feature.dtype)",
    ]


def _duckdb(manifest: Manifest, group: Group) -> list[str]:
    where = f"    where split = '{group.split}' and view = {group.view}"
    if manifest.store == "zarr":
        body = ["    select example_id, label, start, length", "    from 'index/*.parquet'"]
    else:
        array = "values, scale" if getattr(manifest.encoding, "dtype", "") == "int8" else "logits"
        array = f"id_deltas, {array}, log_residual" if isinstance(manifest.encoding, TopK) else array
        on = "start = position" if manifest.layout.length == 1 else "position between start and start + length - 1"
        body = [
            f"    select example_id, label, position, {array}",
            f"    from 'index/*.parquet' join 'labels/*.parquet' on {on}",
        ]
    order = "start" if manifest.store == "zarr" else "position"
    return [
        "import duckdb",
        "",
        'rows = duckdb.sql("""',
        *body,
        where,
        f"    order by {order} limit {_ROWS}",
        '""").fetchall()',
        "print(rows[0])",
    ]
