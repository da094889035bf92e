"""What stages share about their output directories: found finished, refused, or free; and how they write JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.identity import short
from pipeline.workspace import write_atomic


def read_finished(
    out: Path, record: str, identity: str, *, overwrite: bool, options: Mapping[str, Any] | None = None
) -> dict[str, Any] | None:
    """The record of a finished result of this identity at ``out``, None when it is still to be made.

    Raises ConfigError when ``out`` holds something else, unless ``overwrite``; it names what differs from ``options``
    and lineage, where these are given as the record holds them.
    """
    found: dict[str, Any] | None = None
    try:
        value = json.loads((out / record).read_text(encoding="utf-8"))
        found = value if isinstance(value, dict) else None
    except (OSError, ValueError):
        pass
    if found is not None and found.get("identity") == identity:
        return found
    if overwrite or not out.is_dir() or not any(out.iterdir()):
        return None
    if found is None or "identity" not in found:
        raise ConfigError(f"--out {out} holds other files than the result of such a run. Name another place")
    raise ConfigError(
        f"--out {out} holds the result {short(str(found['identity']))}, this run would make {short(identity)}"
        f"{_differences(found, options or {})}. Name another place, or --overwrite it"
    )


def _differences(found: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    held = {**(found.get("config") or {}), **(found.get("lineage") or {})}
    other = []
    for name, wanted in options.items():
        there = held.get(name)
        if there != wanted:
            long = any(isinstance(value, (dict, list, str)) and len(str(value)) > 40 for value in (there, wanted))
            other.append(f"other {name}" if long else f"{name} {there} there, {wanted} here")
    return f" ({'; '.join(other)})" if other else ""


def write_beside(out: Path, report: dict[str, Any], *, again: bool = False) -> None:
    """``report`` as ``out``.report.json, beside ``out``: what varies from run to run stays out of what others read.

    ``again``: the work was found finished; a report that is there says how it was done, and stays.
    """
    path = out.with_name(f"{out.name}.report.json")
    if not (again and path.is_file()):
        write_atomic(path, json_bytes(report))


def json_bytes(value: Any, indent: int | None = 2) -> bytes:
    """UTF-8 JSON that ends in a newline, keys in the order given. Raises ValueError on NaN."""
    return (json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False) + "\n").encode()
