"""What the identity in a manifest may say, and which format version it takes to say it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.store.fields import MOST_ENTRIES, MOST_PARTS, Fields, shown


def format_of(identity: Mapping[str, Any]) -> int:
    """1, or 2 for what version 1 cannot say: something is unknown, views have several seeds, view 0 is not plain."""
    teacher, data, views = (identity.get(name) or {} for name in ("teacher", "data", "views"))
    known = (identity.get("preprocessing"), teacher.get("reference"), teacher.get("state"), data.get("digest"))
    seen = (views.get("transform"), views.get("seed"))
    return 2 if None in (*known, *seen) or "merged" in views or not views.get("plain", True) else 1


def check_identity(reader: Fields, identity: Mapping[str, Any], version: int, *, third: bool) -> None:
    """What everybody who uses a cache asks of its identity is there, or, from version 2 on, is said to be unknown.

    ``third``: its layout or encoding takes version 3.
    """
    teacher, data, views = (reader.get(identity, name, dict) for name in ("teacher", "data", "views"))
    texts = ((identity, "preprocessing"), (teacher, "reference"), (teacher, "state"), (data, "digest"))
    for place, name in (*texts, (views, "transform")):
        if version == 1 or place.get(name, "") is not None:
            reader.get(place, name, str)
    if version == 1 or views.get("seed", 0) is not None:
        reader.get(views, "seed", int)
    if not isinstance(views.get("plain", True), bool):
        raise reader.fail(f"views should say whether the first is plain; found {shown(views['plain'])}")
    _check_merged(reader, views)
    if "lineage" in identity:
        _check_lineage(reader, reader.get(identity, "lineage", list))
    least = 3 if third else format_of(identity)
    if version != least:
        raise reader.fail(f"it says format version {version}; what it says of itself takes {least}")
    if not isinstance(teacher.get("args", {}), dict):
        raise reader.fail(f"the teacher's args should be an object; found {shown(teacher['args'])}")
    reader.count(data, "examples", 0, MOST_ENTRIES)
    reader.count(views, "count", 1, MOST_PARTS)


def _check_lineage(reader: Fields, steps: list[Any]) -> None:
    """Each step says what was done, and of what: caches, or files that others published."""
    for step in steps:
        if not isinstance(step, dict) or not isinstance(step.get("verb"), str):
            raise reader.fail(f"lineage should be a list of steps, each with a verb; found {shown(step)}")
        reader.get({"options": {}, **step}, "options", dict)
        for cache in reader.get({"from": [], **step}, "from", list):
            if not isinstance(cache, dict):
                raise reader.fail(f"a step of lineage should say which caches it read; found {shown(cache)}")
            reader.get(cache, "identity", str)
            for name in ("encoding", "fidelity"):
                reader.get(cache, name, dict)
        reader.get({"source": {}, **step}, "source", dict)
        if "files" in step:
            files = reader.get(step, "files", dict)
            reader.get(files, "sha256", str)
            for name in ("number", "bytes"):
                reader.count(files, name, 0, MOST_ENTRIES)
        if not all(isinstance(name, str) for name in reader.get({"unknown": [], **step}, "unknown", list)):
            raise reader.fail(f"unknown should be a list of names; found {shown(step['unknown'])}")


def _check_merged(reader: Fields, views: Mapping[str, Any]) -> None:
    """Random views of several dumps: how many of each, and its seed."""
    if "merged" not in views:
        return
    runs = reader.get(views, "merged", list)
    if not runs or not all(isinstance(run, dict) and type(run.get("seed")) is int for run in runs):
        raise reader.fail(f"merged views should list a seed and a count each; found {shown(runs)}")
    if 1 + sum(reader.count(run, "count", 1, MOST_PARTS) for run in runs) != views.get("count"):
        count = shown(views.get("count"))
        raise reader.fail(f"the merged views {shown(runs)} and the plain one do not come to {count}")
