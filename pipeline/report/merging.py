"""What ``softlabels compress`` wrote, read; several directories of one recipe become one table of means over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import metrics
from pipeline.errors import ConfigError
from pipeline.evaluation.comparing import ACCURACY, compared
from pipeline.report.artefacts import BASELINE, TEACHER, with_teacher
from pipeline.runs import read_json

Table = Mapping[str, Any]
_TEXTS = ("name", "what", "source", "control", "runtime")
_PAIRED = ("against_baseline", "against_source", "against_teacher", "mcnemar_teacher", "mcnemar_source")
"""What one model is held against: worked out anew over the seeds, or not known of them."""
_OF_ONE = (
    "accuracy_std",
    "perplexity_std",
    "accuracy_interval",
    "seeds",
    "skipped",
    "warnings",
    "activations",
    "scan",
    *_PAIRED,
)
_TIMES = ("latency", "memory", "load_seconds", "process", "joules", "seconds")


def read_compressed(folders: Sequence[Path]) -> dict[str, Any]:
    """The table of one directory, or of several that hold the seeds of one recipe; empty for none.

    Its environment lies beside its other keys; ``notes`` says what was lost in merging, ``models`` are the details of
    each row where they were kept. Raises ConfigError for a directory without a table, and for tables that do not belong
    together: other recipes, other examples, the same seed of the same run twice.
    """
    tables = [_read(folder) for folder in folders]
    if len(tables) < 2:
        return tables[0] if tables else {}
    _check(folders, tables)
    notes = []
    machines = {(table.get("processor"), table.get("runtime_threads")) for table in tables}
    if len(machines) > 1:
        notes.append("The directories were timed on different machines or threads: times are left out.")
    if any(table.get("front") for table in tables):
        notes.append("A search has its own points for each seed: name its directory alone to see them.")
    names = list(dict.fromkeys(str(row["name"]) for table in tables for row in table["rows"]))
    details = {name: d for name in names if (d := _details(name, tables)) is not None}
    rows = [_merged(name, tables, details, timed=len(machines) == 1) for name in names]
    first = {k: v for k, v in tables[0].items() if k not in ("front", "seed", "run", "command")}
    return {
        **first,
        "run": ", ".join(dict.fromkeys(str(table.get("run")) for table in tables)),
        "seeds": [int(table.get("seed") or 0) for table in tables],
        "commands": [str(table["command"]) for table in tables if table.get("command")],
        "rows": rows,
        "front": [],
        "models": details,
        "notes": notes,
    }


def read_models(folder: Path) -> dict[str, Any]:
    """An evaluation of several models: its ``rows``, as those of compression. Raises ConfigError for another."""
    found = read_json(folder / "details.json", "the details of an evaluation of several models")
    rows = found.get("rows")
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "name" in row for row in rows):
        raise ConfigError(f"--models {folder} should be an evaluation of several models; its details.json has no rows")
    count = found.get("examples")
    return {**(found.get("environment") or {}), **found, "rows": [with_teacher(row, count) for row in rows]}


def _read(folder: Path) -> dict[str, Any]:
    table = read_json(folder / "table.json", "what softlabels compress measured")
    rows = table.get("rows")
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "name" in row for row in rows):
        raise ConfigError(f"{folder / 'table.json'} should be what softlabels compress measured; it has no rows")
    kept = folder / "details.json"
    models = read_json(kept, "the details of each artefact").get("models") if kept.is_file() else None
    count = table.get("test_examples")
    return {
        **(table.get("environment") or {}),
        **table,
        "rows": [with_teacher(row, count) for row in rows],
        "models": models or {},
    }


def _check(folders: Sequence[Path], tables: Sequence[Table]) -> None:
    """Whether the tables are of one recipe, on the same examples, each of another training."""
    what = "--compressed should name directories of one recipe, each of another seed"
    seen: dict[tuple[str, Any], Path] = {}
    for folder, table in zip(folders, tables, strict=True):
        which = str(table.get("run")), table.get("seed")
        if which in seen:
            raise ConfigError(f"{what}; {seen[which]} and {folder} are both of {which[0]}, seed {which[1]}")
        seen[which] = folder
        for key, called in (("recipe", "another recipe"), ("student", "another student")):
            if table.get(key) != tables[0].get(key):
                raise ConfigError(
                    f"{what}; {folder} has {called} than {folders[0]}. Draw a page of each and hold them against each "
                    "other with --compare"
                )
        if _examples(table) != _examples(tables[0]):
            raise ConfigError(f"{what}; {folder} was measured on other examples than {folders[0]}")


def _examples(table: Table) -> Any:
    digests = {str(one.get("examples_digest")) for one in table["models"].values()}
    return sorted(digests) or table.get("test_examples")


def _details(name: str, tables: Sequence[Table]) -> dict[str, Any] | None:
    """The details of one row over all tables: seeds numbered by table, hits and confusions summed; None without."""
    found = [(number, table["models"].get(name)) for number, table in enumerate(tables)]
    kept = [(number, one) for number, one in found if one and len(one.get("seeds") or {}) == 1 and one.get("hits")]
    if len(kept) < len(tables):
        return None
    first = kept[0][1]
    confusion = np.sum([one["confusion"] for _, one in kept], axis=0).tolist() if first.get("confusion") else None
    return {
        **{k: v for k, v in first.items() if k not in ("reliability", "reliability_calibrated")},
        "seeds": {str(number): next(iter(one["seeds"].values())) for number, one in kept},
        "hits": np.sum([one["hits"] for _, one in kept], axis=0).tolist(),
        "confusion": confusion,
    }


def _merged(name: str, tables: Sequence[Table], details: Mapping[str, Any], *, timed: bool) -> dict[str, Any]:
    """The row of one name: means, with the spread of the accuracy; differences are paired by seed and by example."""
    own = [(table["seed"], row) for table in tables for row in table["rows"] if row["name"] == name]
    made = [(seed, row) for seed, row in own if row.get("accuracy") is not None]
    first = own[0][1]
    row: dict[str, Any] = {key: first.get(key) for key in _TEXTS}
    row["warnings"] = _warnings(own)
    if not made:
        return {**row, "skipped": first.get("skipped") or "it was measured in no directory"}
    if len(made) < len(tables):
        row["warnings"].append(f"made for {len(made)} of {len(tables)} seeds")
    left_out = {*_TEXTS, *_OF_ONE, "file", "weights", *(() if timed else _TIMES)}
    for key in made[0][1]:
        if key not in left_out:
            row[key] = _mean([one.get(key) for _, one in made])
    if row.get("bytes"):
        row["bytes"] = round(row["bytes"])
    for key in ("activations", "scan"):
        values = [one.get(key) for _, one in made]
        row[key] = values[0] if len(made) == 1 else None
    accuracies = [float(one["accuracy"]) for _, one in made]
    row["seeds"], row["accuracy_std"] = len(made), metrics.spread(accuracies)[1]
    perplexities = [float(one["perplexity"]) for _, one in made if one.get("perplexity") is not None]
    if perplexities:
        row["perplexity_std"] = metrics.spread(perplexities)[1]
    if name in details and not perplexities:  # of tokens the interval is by sequences, which the hits alone do not tell
        hits = np.asarray(details[name]["hits"]) / len(tables)
        row["accuracy_interval"] = list(metrics.wilson(round(float(hits.sum())), len(hits)))
    for key, other in (("against_baseline", BASELINE), ("against_source", first.get("source"))):
        if other and other != name and (gap := _against(name, str(other), tables, details)):
            row[key] = gap if key == "against_baseline" else {"row": other, **gap}
            if nll := _over_seeds([(one.get(key) or {}).get("nll") for _, one in made]):
                row[key]["nll"] = nll
    if TEACHER in details and name != TEACHER:
        row["against_teacher"] = _against(name, TEACHER, tables, details)
    elif gap := _over_seeds([one.get("against_teacher") for _, one in made]):
        row["against_teacher"] = gap
    return row


def _against(name: str, other: str, tables: Sequence[Table], details: Mapping[str, Any]) -> dict[str, Any] | None:
    if name in details and other in details:
        found = compared(details[name], details[other], ACCURACY)
    else:  # without the hits the seeds alone say how far chance reaches
        ours, theirs = (
            {
                number: float(row["accuracy"])
                for number, table in enumerate(tables)
                for row in table["rows"]
                if row["name"] == one and row.get("accuracy") is not None
            }
            for one in (name, other)
        )
        if not ours.keys() & theirs.keys():
            return None
        found = metrics.compare(ours, theirs)
    reach = None if math.isinf(found.half_width) else found.half_width
    return {"difference": found.difference, "half_width": reach, "verdict": found.verdict}


def _over_seeds(gaps: Sequence[Any]) -> dict[str, Any] | None:
    """The mean of differences whose hits are not kept, each with its interval over the examples.

    The examples are the same for every seed: their part of the interval is taken as not averaged out.
    """
    values = [float(gap["difference"]) for gap in gaps if gap]
    widths = [float(gap["half_width"]) for gap in gaps if gap and gap.get("half_width") is not None]
    if len(values) < 2 or len(values) < len(gaps) or len(widths) < len(gaps):
        return None
    middle, reach = float(np.mean(values)), math.hypot(metrics.half_width(values), float(np.mean(widths)))
    verdict = "within noise" if abs(middle) <= reach else ("higher" if middle > 0 else "lower")
    return {"difference": middle, "half_width": reach, "verdict": verdict}


def _warnings(own: Sequence[tuple[Any, Table]]) -> list[str]:
    """Each warning, with its seeds where it is not of all of them."""
    seeds: dict[str, list[str]] = {}
    for seed, row in own:
        for text in row.get("warnings") or ():
            seeds.setdefault(str(text), []).append(str(seed))
    return [
        text if len(found) == len(own) else f"seed {', '.join(found)}: {text}" for text, found in sorted(seeds.items())
    ]


def _mean(values: Sequence[Any]) -> Any:
    """Of numbers; of objects key by key. None where one of them has none."""
    if all(isinstance(value, Mapping) for value in values):
        return {key: _mean([value.get(key) for value in values]) for key in values[0]}
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return float(np.mean(values))
    return values[0] if all(value == values[0] for value in values) else None
