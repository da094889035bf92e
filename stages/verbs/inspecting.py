"""Say what a cache is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import click

from stages.options import SETTINGS, Command, counted, json_option

UNKNOWN = "unknown"


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
    precision = teacher.get("precision", "")
    made = f"weights {_known(teacher['state'])}, {f'precision {UNKNOWN}' if precision is None else precision}"
    yield "teacher", f"{_known(teacher['reference'], 500)}{arguments}, {made}"
    yield "data", f"{identity['data']['examples']:,} examples, {_known(identity['data']['digest'])}"
    yield "preprocessing", _known(identity["preprocessing"], 500)
    names = ", ".join(found["class_names"][:12]) or f"names {UNKNOWN}"
    yield "classes", f"{found['classes']:,}: {names}{', ...' if len(found['class_names']) > 12 else ''}"
    for split, number in counts["splits"].items():
        yield split, f"{number['examples']:,} examples, {counted(number['views'], 'view')}"
    yield "views", _views(views)
    for step in identity.get("lineage", ()):
        yield from _step(step)
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


def _known(value: Any, most: int = 12) -> str:
    return UNKNOWN if value is None else str(value)[:most]


def _views(views: Mapping[str, Any]) -> str:
    if None in (views["transform"], views["seed"]):
        first = "view 0 is plain, others" if views.get("plain", True) else "how they were made is"
        return f"{first} {UNKNOWN}"
    if views["count"] == 1:
        return "plain only"
    merged = ", ".join(f"{run['count']} of seed {run['seed']}" for run in views.get("merged", ()))
    return f"{views['transform']}, " + (merged or f"seed {views['seed']}")


def _step(step: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What one step of the lineage says: what it read and was told, and what it could not know."""
    said = [str(step[name]) for name in ("format",) if name in step]
    if sources := [str(cache["identity"])[:12] for cache in step.get("from", ())]:
        said.append(", ".join(sources))
    if files := step.get("files"):
        said.append(f"{counted(files['number'], 'file')} of {files['bytes']:,} bytes, sha256 {files['sha256'][:12]}")
    options = {key: value for key, value in (step.get("options") or {}).items() if value not in (None, "", [], {})}
    said += [f"{key.replace('_', ' ')} {_short(value)}" for key, value in options.items()]
    yield f"made by {step['verb']}", "; ".join(said) or "no options"
    if step.get("source"):
        yield "its source", "; ".join(f"{key} {_short(value)}" for key, value in step["source"].items())
    yield from (step.get("account") or {}).items()
    if step.get("unknown"):
        yield UNKNOWN, _short(step["unknown"])


def _bound(found: Mapping[str, Any]) -> str:
    if any(step["verb"] == "noise" for step in found["identity"].get("lineage", ())):
        return f"{found['bound']:.3g} from the noisy labels; none from what the teachers said"
    if found["encoding"]["name"] == "sampled":
        return "none of one draw; their mean is the distribution"
    if not found["bound"]:
        return "0: exact"
    if found["temperatures"]:
        return f"{found['bound']:.3g} of a probability at T = {_short(found['temperatures'])}"
    return f"{found['bound']:.3g} of a centred logit"


def _short(value: Any) -> str:
    if value is None:
        return UNKNOWN
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_short(item)}" for key, item in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(_short(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
