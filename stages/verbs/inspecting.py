"""Say what a cache is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import click

from stages.options import SETTINGS, Command, counted, json_option


@click.command("inspect", cls=Command, context_settings=SETTINGS)
@click.argument("cache")
@json_option
def inspect(cache: str, as_json: bool) -> None:
    """Say what a cache is: teacher, data, views, encoding, fidelity, bytes. CACHE is a directory or a URL."""
    from pipeline.store import open_cache

    found = open_cache(cache).describe()
    click.echo(json.dumps(found, indent=2, ensure_ascii=False) if as_json else "\n".join(table(describe(found))))


def describe(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What ``Cache.describe`` knows, as lines for people: a name and a value."""
    identity, counts = found["identity"], found["counts"]
    teacher, views = identity["teacher"], identity["views"]
    arguments = "".join(f", {key}={value}" for key, value in teacher.get("args", {}).items())
    yield "cache", f"{found['address']}  {identity['digest'][:12]}, format {found['format']}, store {identity['store']}"
    yield (
        "teacher",
        f"{teacher['reference']}{arguments}, weights {teacher['state'][:12]}, {teacher.get('precision', '')}",
    )
    yield "data", f"{identity['data']['examples']:,} examples, {identity['data']['digest'][:12]}"
    yield "preprocessing", str(identity["preprocessing"])
    names = ", ".join(found["class_names"][:12])
    yield "classes", f"{found['classes']:,}: {names}{', ...' if len(found['class_names']) > 12 else ''}"
    for split, number in counts["splits"].items():
        yield split, f"{number['examples']:,} examples, {counted(number['views'], 'view')}"
    yield "views", f"{views['transform']}, seed {views['seed']}" if views["count"] > 1 else "plain only"
    yield "entries", f"{counts['entries']:,} in {counted(counts['parts'], 'part')} of up to {identity['part_size']:,}"
    options = (f"{key} {_short(value)}" for key, value in found["encoding"].items() if key != "name")
    yield "encoding", ", ".join([found["encoding"]["name"], *options])
    yield "bound", _bound(found)
    fidelity = dict(found["fidelity"])
    for temperature, kl in fidelity.pop("kl", {}).items():
        yield f"kl at T = {temperature}", _short(kl)
    for name, value in fidelity.items():
        yield name.replace("_", " "), _short(value)
    for name, feature in found["features"].items():
        module = identity.get("features", {}).get(name, "unnamed")
        yield f"feature {name}", f"{module}: {tuple(feature['shape'])} {feature['dtype']}"
    for name, size in found["bytes"].items():
        yield f"bytes of {name}" if name != "total" else "bytes", f"{size:,}"
    yield "bytes per label", f"{found['bytes_per_label']:.1f}"


def table(lines: Iterator[tuple[str, str]]) -> Iterator[str]:
    """The lines with their values in one column."""
    rows = list(lines)
    width = max(len(name) for name, _ in rows)
    return (f"{name:<{width}}  {value}" for name, value in rows)


def _bound(found: Mapping[str, Any]) -> str:
    if not found["bound"]:
        return "0: exact"
    if found["temperatures"]:
        return f"{found['bound']:.3g} of a probability at T = {_short(found['temperatures'])}"
    return f"{found['bound']:.3g} of a centred logit"


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_short(item)}" for key, item in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(_short(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
