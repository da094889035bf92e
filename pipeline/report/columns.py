"""The columns of tables of models and artefacts, declared once: a new figure of a row is a new line here.

A row is a JSON object as ``softlabels compress`` writes it (``compression.table.Row``); a column is shown when any row
has it. The page, the comparison of two reports, the plots and TensorBoard all read this list.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.report.artefacts import is_language
from pipeline.report.tables import Entry, Head, Table, table
from pipeline.report.words import NONE, signed

Row = Mapping[str, Any]
HIGHER, LOWER = "higher", "lower"


@dataclass(frozen=True)
class Column:
    """``key``: where the number lies in a row, with dots between levels; ``*`` stands for each number there, in order.

    The title may use what ``*`` stood for as ``{}``. A value is printed times ``scale`` with ``digits``; ``interval``
    and ``aside`` are keys of what is said beside it: a pair of bounds, or another number. ``difference`` columns hold
    ``difference`` and ``half_width``, and are printed with their sign; ``exact`` ones are counts, without chance;
    ``main`` ones lead where there are many. ``spread``: the key of a standard deviation over seeds; ``between``: that
    of two bounds, of rows where no more is known than these; ``told``: another key, and how its number stands below.
    """

    key: str
    title: str
    unit: str = ""
    digits: int = 1
    scale: float = 1.0
    better: str = ""
    interval: str = ""
    aside: str = ""
    difference: bool = False
    exact: bool = False
    main: bool = False
    spread: str = ""
    between: str = ""
    told: tuple[str, str] = ("", "")

    @property
    def head(self) -> str:
        """The title with its unit."""
        return f"{self.title}, {self.unit}" if self.unit else self.title

    def value(self, row: Row) -> float | None:
        """The number of a row; None where there is none."""
        return number_of(at(row, f"{self.key}.difference" if self.difference else self.key))

    def bounds(self, row: Row) -> tuple[float, float] | None:
        """What the number of a row lies between, where it is not known itself."""
        found = at(row, self.between) if self.between else None
        return (float(found[0]), float(found[1])) if isinstance(found, Sequence) and len(found) == 2 else None

    def known(self, row: Row) -> bool:
        """Whether a row has the number, or its bounds."""
        return self.value(row) is not None or self.bounds(row) is not None

    def text(self, value: float) -> str:
        """A value as it is printed."""
        if self.difference:
            return signed(self.scale * value, self.digits)
        text = f"{value * self.scale:,.{self.digits}f}"
        if self.unit == "p" and value > 0 and not float(text):
            return f"< {10**-self.digits:g}"
        return text

    def entry(self, row: Row, best: float | None = None) -> Entry:
        """The cell of a row."""
        value = self.value(row)
        if value is None:
            ends = self.bounds(row)
            return Entry(f"{self.text(ends[0])}{NONE}{self.text(ends[1])}", ends[0]) if ends else Entry(NONE)
        strong = best is not None and value == best and not row.get("control")
        minor = ""
        if self.difference and (reach := number_of(at(row, f"{self.key}.half_width"))) is not None:
            minor = f"± {self.scale * reach:.{self.digits}f}"
        below = ""
        if self.aside and (other := number_of(at(row, self.aside))) is not None:
            below = f"({self.text(other)})"
        bounds = at(row, self.interval) if self.interval else None
        if isinstance(bounds, Sequence) and len(bounds) == 2:
            below = f"{self.text(float(bounds[0]))}{NONE}{self.text(float(bounds[1]))}"
        if self.spread and (seeds := number_of(at(row, "seeds"))) and seeds > 1:
            spread = number_of(at(row, self.spread)) or 0.0
            text = f"{self.scale * spread:.{self.digits}f}"
            below = f"s = {text}" if is_language([row]) else f"± {text} over {seeds:.0f} seeds"
        key, pattern = self.told
        if key and (other := number_of(at(row, key))) is not None:
            below = pattern.format(other)
        return Entry(self.text(value), value, minor=minor, below=below, strong=strong)


COLUMNS = (
    Column("perplexity", "Perplexity", "", 2, 1, LOWER, main=True, spread="perplexity_std"),
    Column("perplexity_std", "s of the perplexity", "", 2),
    Column("bits_per_byte", "Bits per byte", "", 3, 1, LOWER, main=True),
    Column("against_baseline.nll", "NLL against baseline", "nats", 4, 1, LOWER, difference=True, main=True),
    Column("accuracy", "Accuracy", "%", 1, 100, HIGHER, interval="accuracy_interval", main=True, spread="accuracy_std"),
    Column("accuracy_std", "s over seeds", "points", 1, 100),
    Column("seeds", "Seeds", "", 0, exact=True),
    Column("top_k_accuracy", "Top k", "%", 1, 100, HIGHER),
    Column("top_*_accuracy", "Top {}", "%", 1, 100, HIGHER),
    Column("validation_accuracy", "On validation", "%", 1, 100, HIGHER),
    Column("corrupted_accuracy", "On corrupted images", "%", 1, 100, HIGHER, main=True),
    Column("against_baseline", "Against baseline", "points", 1, 100, HIGHER, difference=True, main=True),
    Column("against_teacher", "Against the teacher", "points", 1, 100, HIGHER, difference=True, main=True),
    Column("against_source", "Against its source", "points", 1, 100, HIGHER, difference=True),
    Column("mcnemar_teacher.p_value", "McNemar against the teacher", "p", 3),
    Column("mcnemar_source.p_value", "McNemar against its source", "p", 3),
    Column("agreement", "Agrees with source", "%", 1, 100, HIGHER),
    Column("teacher_agreement", "Agrees with teacher", "%", 1, 100, HIGHER),
    Column("agreement_where_teacher_wrong", "Agrees where the teacher is wrong", "%", 1, 100),
    Column("kl_to_teacher", "KL to teacher", "nats", 3),
    Column("cross_entropy_to_teacher", "Cross-entropy to teacher", "nats", 3, 1, LOWER),
    Column(
        "acceptance",
        "Accepted by teacher",
        "%",
        1,
        100,
        HIGHER,
        between="acceptance_between",
        told=("tokens_per_call", "{:.2f} a call"),
    ),
    Column("tokens_per_call", "Tokens per call of the teacher", "", 2, 1, HIGHER),
    Column("bytes", "Size", "kB", 1, 1e-3, LOWER, exact=True, main=True),
    Column("parameters", "Parameters", "", 0, 1, LOWER, exact=True),
    Column("nonzeros", "Not zero", "", 0, 1, LOWER, exact=True),
    Column("bits_per_parameter", "Bits per parameter", "", 1, 1, LOWER, exact=True),
    Column("macs", "Multiply-adds", "millions", 2, 1e-6, LOWER, exact=True, main=True),
    Column("latency.*.p50", "Batch {}, p50 (p95)", "ms", 3, 1, LOWER, aside="latency.*.p95", main=True),
    Column("memory", "Peak memory", "MB", 1, 1e-6, LOWER),
    Column("load_seconds", "Load time", "ms", 1, 1e3, LOWER),
    Column("joules", "Energy", "J", 3, 1, LOWER),
    Column("nll", "NLL", "nats", 3, 1, LOWER),
    Column("brier", "Brier score", "", 4, 1, LOWER),
    Column("ece", "ECE", "points", 1, 100, LOWER),
    Column("adaptive_ece", "ECE, equal mass", "points", 1, 100, LOWER),
    Column("calibrated.nll", "NLL, scaled", "nats", 3, 1, LOWER),
    Column("calibrated.ece", "ECE, scaled", "points", 1, 100, LOWER),
    Column("mce", "Mean corruption error", "% of the baseline's", 1, 100, LOWER),
    Column("outlier_auroc", "AUROC of outliers, by confidence", "", 3, 1, HIGHER),
    Column("outlier_energy_auroc", "AUROC of outliers, by energy", "", 3, 1, HIGHER),
    Column("outlier_confidence", "Confidence on outliers", "%", 1, 100, LOWER),
    Column("check.max_difference", "Largest logit difference", "", 6, 1, LOWER),
)
"""What is known of rows, in the order of the page."""


def columns_of(rows: Sequence[Row]) -> list[Column]:
    """The columns that any of the rows has, ``*`` filled in."""
    return [one for column in COLUMNS for one in _filled(column, rows) if any(one.known(r) for r in rows)]


def _filled(column: Column, rows: Sequence[Row]) -> Iterator[Column]:
    if "*" not in column.key:
        yield column
        return
    before, after = column.key.split("*")
    folder, _, start = before.rpartition(".")
    names = set()
    for row in rows:
        for name in at(row, folder) or {} if folder else row:
            rest = after.split(".")[0]
            middle = name[len(start) : len(name) - len(rest)]
            if name.startswith(start) and name.endswith(rest) and middle.isdecimal():
                names.add(middle)
    for name in sorted(names, key=int):
        yield replace(
            column,
            key=column.key.replace("*", name),
            aside=column.aside.replace("*", name),
            title=column.title.format(name),
        )


MOST = 11
"""As many columns are read at once; of more the ``main`` ones lead, and the others make a second table."""

LANGUAGE = (
    "perplexity", "bits_per_byte", "against_baseline.nll", "accuracy", "ece", "kl_to_teacher", "teacher_agreement",
    "acceptance", "bytes", "latency",
)  # fmt: skip
"""The columns that lead where rows are language models, in their order."""


def leading(columns: Sequence[Column], rows: Sequence[Row]) -> list[Column]:
    """The columns of the first table, where there are too many for one."""
    if len(columns) <= MOST:
        return list(columns)
    if is_language(rows):
        return [one for key in LANGUAGE for one in columns if key in (one.key, one.key.split(".")[0])]
    return [one for one in columns if one.main]


def rows_table(caption: str, rows: Sequence[Row]) -> Table | None:
    """The rows with every column that one of them has, or with the main ones of many.

    The best of those that are no controls stand out; what is doubtful of a row stands under its name.
    """
    return _table(caption, rows, leading(shown_columns(rows), rows), told=True)


def more_tables(caption: str, rows: Sequence[Row]) -> list[Table]:
    """The columns that ``rows_table`` leaves out, a table for each thing that they are about."""
    shown = shown_columns(rows)
    first = leading(shown, rows)
    left = [one for one in shown if one not in first]
    found = []
    for title, keys in TOPICS:
        own = [one for one in left if one.key.startswith(keys)]
        if own and (made := _table(f"{caption}: {title}", rows, own, told=False)):
            found.append(made)
    return found


TOPICS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "answers",
        (
            "accuracy",
            "perplexity",
            "seeds",
            "top_",
            "validation",
            "against",
            "mcnemar",
            "agreement",
            "teacher",
            "kl_",
            "cross_entropy",
            "acceptance",
            "tokens_per",
        ),
    ),
    ("size, speed and memory", ("parameters", "nonzeros", "bits", "macs", "memory", "load", "joules", "check")),
    ("calibration, corruptions and outliers", ("nll", "brier", "ece", "adaptive", "calibrated", "mce", "outlier")),
)
"""What the columns that do not lead are about, by how their keys begin; every one has its place."""


def shown_columns(rows: Sequence[Row]) -> list[Column]:
    """The columns of a table for readers: without a spread over seeds where every row has a single one."""
    single = all((number_of(row.get("seeds")) or 1) < 2 for row in rows)
    of_several = ("accuracy_std", "perplexity_std", "seeds")
    return [one for one in columns_of(rows) if not (single and one.key in of_several)]


def _table(caption: str, rows: Sequence[Row], columns: Sequence[Column], *, told: bool) -> Table | None:
    best = {column.key: _best(column, rows) for column in columns}
    lines = []
    for row in rows:
        notes = [f"Skipped: {row['skipped']}."] if row.get("skipped") else []
        notes += [f"{text[:1].upper()}{text[1:]}." for text in _together(row.get("warnings") or ())]
        if not told and row.get("skipped"):
            continue
        name = Entry(
            str(row["name"]),
            minor=str(row.get("what") or "") if told else "",
            tag="control" if row.get("control") else "",
            notes=tuple(notes) if told else (),
            strong=True,
        )
        lines.append([name, *(column.entry(row, best[column.key]) for column in columns)])
    first = Head("Artefact", left=True, wide=told)
    return table(caption, [first, *(Head(column.head, better=column.better) for column in columns)], lines)


def _together(warnings: Sequence[str]) -> list[str]:
    """Warnings of one kind in one sentence: what they have in common is said once.

    >>> _together(["slower than a at batch 1: 3 ms against 1 ms", "slower than a at batch 32: 9 ms against 8 ms"])
    ['slower than a at batch 1: 3 ms against 1 ms; at batch 32: 9 ms against 8 ms']
    """
    found: dict[str, list[str]] = {}
    for text in warnings:
        head, sign, rest = text.partition(" at batch") if " at batch" in text else text.partition(": ")
        found.setdefault(head, []).append(f"{sign.strip()}{rest}" if sign == " at batch" else rest)
    joints = {
        head: " " if any(rest.startswith("at batch") for rest in rests) else ": " for head, rests in found.items()
    }
    return [f"{head}{joints[head] if rests[0] else ''}{'; '.join(rests)}" for head, rests in found.items()]


def _best(column: Column, rows: Sequence[Row]) -> float | None:
    """The best value of the rows that are no controls; None where nothing is better or all are alike."""
    values = [v for row in rows if not row.get("control") and (v := column.value(row)) is not None]
    if not column.better or len(set(values)) < 2:
        return None
    return max(values) if column.better == HIGHER else min(values)


def at(row: Row, key: str) -> Any:
    """What lies in a row under a key with dots between levels; None where there is nothing."""
    found: Any = row
    for name in key.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def number_of(value: Any) -> float | None:
    """A value that is a number; None for others, NaN among them."""
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        return None
    return float(value)
