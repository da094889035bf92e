"""The page of differences between two reports."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence

from pipeline.report.differences import SAME, UNTESTED, Difference, Differences
from pipeline.report.gains import Answer
from pipeline.report.methods import HARD, REPLAYED
from pipeline.report.rendering import picture, render_page
from pipeline.report.style import COLOURS, FAINT, INK, MUTED, Drawing, clean, finish, new_figure, style
from pipeline.report.tables import Entry, Head, Table, table, verdict

MOST = 60
"""A figure of more lines is not drawn: the table says it better."""
_LOOKS = {"higher": ("^", COLOURS[REPLAYED]), "lower": ("v", COLOURS[HARD])}


def render_comparison(found: Differences, drawing: Drawing | None) -> str:
    """The page. All text is escaped, as in the page of one report."""
    first, second = found.first.as_posix(), found.second.as_posix()
    only = [(name, first) for name in found.only_first] + [(name, second) for name in found.only_second]
    return render_page(
        "comparison.html.j2",
        "Two reports compared",
        first=first,
        second=second,
        answers=answers(found),
        picture=picture(drawing) if drawing else None,
        cells=differences_table("Figures of runs", found.cells),
        rows=differences_table("Figures of artefacts", found.rows),
        changed=table(
            "Options that differ",
            ["Run", "Option", Head("First", left=True, wrap=True), Head("Second", left=True, wrap=True)],
            [(one.name, one.option, one.first, one.second) for one in found.changed],
        ),
        only=table("What only one report has", ["Run or artefact", "Only in"], only),
        by_chance=by_chance(found),
        line=shlex.join(["softlabels", "report", "--compare", first, second, "--out", "comparison"]),
    )


def answers(found: Differences) -> list[Answer]:
    """What differs, in plain words."""
    accuracies = _accuracies(found)
    same = sum(one.verdict == SAME for one in accuracies)
    tested = [one for one in accuracies if one.verdict not in (UNTESTED, SAME)]
    told: list[str] = []
    for tone, word in (("higher", "Better"), ("lower", "Worse")):
        members = [f"{one.name} ({one.text} points)" for one in tested if one.tone == tone]
        if members:
            told.append(f"{word} in the second report: {', '.join(members)}.")
    if tested and not told:
        told.append(
            f"No difference in accuracy could be shown for any of {len(tested)} figures that both reports have."
        )
    elif tested:
        quiet = sum(one.tone == "noise" for one in tested)
        told += [f"For {quiet} of {len(tested)} accuracies no difference could be shown."] if quiet else []
    if untested := len(accuracies) - len(tested) - same:
        told.append(f"{untested} accuracies could not be tested: nothing says how far chance reaches.")
    if same:
        told.append(f"{same} of {len(accuracies)} accuracies are the same to the last digit.")
    if not accuracies:
        told.append("The two reports have no accuracy in common.")
    options = list(dict.fromkeys(one.option for one in found.changed))
    changed = (
        f"These options differ: {', '.join(options)}." if options else "No option of the runs that both have differs."
    )
    missing = [*found.notes]
    count = len(found.only_first) + len(found.only_second)
    missing += [f"{count} runs or artefacts are in one report alone."] if count else []
    parts = [Answer("What differs?", tuple(told)), Answer("What was set otherwise?", (changed,))]
    return [*parts, *([Answer("What does not compare?", tuple(missing))] if missing else [])]


def by_chance(found: Differences) -> str:
    """How many figures are left out of the tables, how many are compared, and how many chance alone calls different."""
    same = sum(one.verdict == SAME for one in found.cells)
    count = sum(one.verdict not in (UNTESTED, SAME) for one in found.cells)
    left_out = f"{same} figures are the same to the last digit in both, and left out. " if same else ""
    return f"{left_out}{count} comparisons at 95%: chance alone would call about {count / 20:.1f} of them different."


def differences_table(caption: str, found: Sequence[Difference]) -> Table | None:
    """Both values and their difference, a line each; what is the same in both is left out."""
    heads = (
        "Name",
        Head("Figure", left=True, wrap=True),
        Head("First"),
        Head("Second"),
        Head("Difference"),
        "Verdict",
    )
    rows = [
        (
            Entry(one.name, strong=True),
            Entry(f"{one.figure}, {one.unit}" if one.unit else one.figure),
            Entry(one.first_text, one.first),
            Entry(one.second_text, one.second),
            Entry(one.text, one.difference),
            verdict(one.verdict, one.tone),
        )
        for one in found
        if one.verdict != SAME
    ]
    return table(caption, heads, rows)


def draw_comparison(found: Differences) -> Drawing | None:
    """The difference of every accuracy with its interval. None without any, or with too many to read."""
    shown = [one for one in _accuracies(found) if one.verdict != SAME]
    if not shown or len(shown) > MOST:
        return None
    with style():
        drawn = new_figure(8.6, 0.3 * len(shown) + 1.0)
        axes = drawn.subplots()
        axes.axvline(0, color=FAINT, lw=1)
        for y, one in enumerate(shown):
            marker, colour = _LOOKS.get(one.tone, ("o", MUTED))
            gap, reach = 100 * one.difference, 100 * one.half_width
            if not math.isnan(reach):
                axes.plot([gap - reach, gap + reach], [y, y], color=colour, lw=2.2, alpha=0.45, solid_capstyle="round")
            axes.plot(gap, y, marker, ms=7.5, color=colour, mec="white", mew=0.8, zorder=4)
            axes.annotate(one.text, (1.015, y), xycoords=("axes fraction", "data"), va="center", fontsize=9, color=INK)
        labels = [
            one.name if one.figure.lower() == "accuracy" else f"{one.name}: {one.figure.lower()}" for one in shown
        ]
        axes.set_yticks(range(len(shown)), labels)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlabel("difference in accuracy, points")
        clean(axes, grid="x")
        axes.spines["left"].set_visible(False)
        return finish("differences", drawn, "The difference in every accuracy that both reports have, with intervals.")


def _accuracies(found: Differences) -> list[Difference]:
    return [one for one in (*found.cells, *found.rows) if one.figure.lower().startswith("accuracy")]
