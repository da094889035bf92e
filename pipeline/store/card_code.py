"""How to read a cache, as its card says it: blocks of Python that run as they stand in the folder of the cache."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.encodings import KEPT, Dense, Sampled, TopK
from pipeline.store.layout import Group
from pipeline.store.manifest import Manifest

_ROWS = 8


def reading(manifest: Manifest) -> Iterator[str]:
    """The section on reading, in Markdown; empty for a cache without entries."""
    groups = [group for group in manifest.layout.groups if group.entries]
    if not groups:
        return
    yield from ("## How to read it", "", "These run as they stand in the folder of the cache. With Softlabels:")
    yield from _block(_ours(groups[0], draws=manifest.encoding.draws))
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


def _ours(group: Group, *, draws: bool) -> list[str]:
    first = "soft.ids[: soft.offsets[1]], soft.weights[: soft.offsets[1]]" if draws else "soft.logits[0]"
    return [
        "from pipeline import open_cache",
        "",
        'cache = open_cache(".")  # or the URL of this folder',
        f'for part in cache.parts_of("{group.split}", view={group.view}):',
        "    ids, soft = cache.index(part).example_ids, cache.decode(cache.read_part(part))",
        f"    print(ids[0], {first})",
    ]


def _stock(manifest: Manifest) -> list[str]:
    """Read some rows of each array, and compute probabilities."""
    rows = min(_ROWS, manifest.layout.parts[0].positions)
    specs = manifest.encoding.specs(manifest.classes)
    if manifest.store == "zarr":
        head = ["import numpy as np", "import zarr", "", 'labels = zarr.open_group("labels.zarr", mode="r")']
        ends = {name: "end" if spec.axis == KEPT else f"{rows}" for name, spec in specs.items()}
        return [*head, *_probabilities(manifest, {name: f'labels["{name}"][:{ends[name]}]' for name in specs})]
    head = [
        "import numpy as np",
        "import pyarrow.dataset as ds",
        "",
        f'labels = ds.dataset("labels", format="parquet").to_table(filter=ds.field("position") < {rows})',
    ]
    names = {name: f'np.array(labels["{name}"].to_pylist(), np.{spec.dtype})' for name, spec in specs.items()}
    names |= {
        name: f'labels["{name}"].combine_chunks().flatten().to_numpy()' for name, s in specs.items() if s.axis == KEPT
    }
    return [*head, *_probabilities(manifest, names)]


def _probabilities(manifest: Manifest, read: dict[str, str]) -> list[str]:
    """Code that makes probabilities of arrays, which the expressions ``read`` give."""
    encoding = manifest.encoding
    if isinstance(encoding, TopK):
        temperature = encoding.temperatures[0]
        if encoding.least_format > 1:
            return _of_few_bits(encoding, read)
        return [
            f"ids = np.cumsum({read['id_deltas']}.astype(np.int64), axis=1)  # the {encoding.k} classes kept",
            f"logits, normaliser = {read['logits']}, {read['log_normaliser']}",
            f"probs = np.exp(logits.astype(np.float32) / {temperature!r} - normaliser[:, :1])  # T = {temperature:g}",
            f"rest = np.exp({read['log_residual']}[:, 0])  # of all other classes together",
            "print(ids[0], probs[0], rest[0])",
        ]
    if isinstance(encoding, Sampled):
        return _draws(manifest, encoding, read)
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


def _of_few_bits(encoding: TopK, read: dict[str, str]) -> list[str]:
    """Code that makes ids and probabilities of top-k labels of 8 or 4 bits."""
    planes = [name for name in read if name.startswith("id_deltas_")]
    deltas = " + ".join(f"({read[name]}.astype(np.int64) << {8 * number})" for number, name in enumerate(planes))
    values, most, temperature = read["values"], 255, encoding.temperatures[0]
    if encoding.dtype == "int4":
        values, most = f"np.concatenate([{values} & 15, {values} >> 4], axis=1)[:, :{encoding.k}]", 15
    return [
        f"ids = np.cumsum({deltas}, axis=1)  # the {encoding.k} classes kept",
        f"values, span = {values}, {read['span']}.astype(np.float32)",
        f"logits = -span[:, None] * (values / np.float32({most})) ** 2",
        f"rest = np.exp({read['log_residual']}[:, 0].astype(np.float32))  # of all other classes together",
        f"probs = np.exp(logits / {temperature!r})  # T = {temperature:g}",
        "probs *= (1 - rest[:, None]) / probs.sum(axis=1, keepdims=True)",
        "print(ids[0], probs[0], rest[0])",
    ]


def _draws(manifest: Manifest, encoding: Sampled, read: dict[str, str]) -> list[str]:
    """Code that makes ids and weights of draws: those of all positions one after another."""
    planes = [name for name in read if name.startswith("draws_")]
    whole = " | ".join(f"({read[name]}.astype(np.int64) << {8 * number})" for number, name in enumerate(planes))
    rest = max((manifest.classes - 1).bit_length() - 4, 0)
    if encoding.counted:
        made = [
            f"deltas = whole & 15 | (whole >> 8 & {2**rest - 1}) << 4",
            f"counts = whole >> 4 & 15 | whole >> {8 + rest} << 4",
            f"counts[counts == 0] = {encoding.n} - np.add.reduceat(counts, starts)  # the largest of each is left out",
            f"probs = counts / {encoding.n}  # T = {encoding.temperature:g}",
        ]
    else:
        made = ["deltas = whole", f"probs = {read['weights']}.astype(np.float32)  # T = {encoding.temperature:g}"]
    return [
        f"kept = {read[KEPT]}.astype(np.int64)  # classes of each position",
        "starts, end = np.cumsum(kept) - kept, int(kept.sum())",
        f"whole = {whole}",
        *made,
        "sums = np.cumsum(deltas)",
        "ids = sums - np.repeat(sums[starts] - deltas[starts], kept)  # each position starts at 0",
        "print(ids[: kept[0]], probs[: kept[0]])",
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
        several = manifest.encoding.draws or manifest.encoding.least_format > 1
        array = ", ".join(manifest.encoding.specs(manifest.classes)) if several else array
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
