"""The page in a few plain sentences: what was gained, at what cost, whether chance explains it, what is not known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline import metrics
from pipeline.metrics import Comparison
from pipeline.report.artefacts import BASELINE, TEACHER, Row, against_teacher, named, smallest
from pipeline.report.methods import AUGMENTED, HARD, PLAIN
from pipeline.report.reading import Cell, Findings, compare
from pipeline.report.words import signed

BY_CHANCE = 0.05


@dataclass(frozen=True)
class Answer:
    """A question that readers have, and sentences that answer it from the numbers."""

    question: str
    sentences: tuple[str, ...]


def answers(findings: Findings) -> list[Answer]:
    """What was gained, at what cost, is it significant, and what is missing, if anything."""
    found = [
        Answer("What was gained?", tuple([*_student(findings), *_artefact(findings)])),
        Answer("At what cost?", tuple(_cost(findings))),
        Answer("Is it significant?", tuple(_significance(findings))),
        Answer("What is not known here?", tuple(_missing(findings))),
    ]
    return [answer for answer in found if answer.sentences]


def hard_twin(findings: Findings) -> Cell | None:
    """The best student trained on hard labels in the same setting; None where there is none, or the best is it."""
    best = findings.best
    if best.method.kind == HARD:
        return None
    same = [c for c in findings.cells if c.student == best.student and c.method.kind == HARD and not c.method.variant]
    settings = (best.method.setting, *((PLAIN,) if best.method.setting == AUGMENTED else ()))
    for setting in settings:
        for cell in same:
            if cell.method.setting == setting:
                return cell
    return None


def _student(findings: Findings) -> list[str]:
    best, twin = findings.best, hard_twin(findings)
    text = f"The student that did best on validation, {best.student} with {best.method.full_title}, gets "
    text += f"{_percent(_accuracy(best))} of the {best.details['split']} examples right"
    if best.method.kind == HARD:
        if len(findings.cells) > 1 and any(c.method.kind != HARD for c in findings.cells):
            return [f"{text}. It learnt from hard labels: nothing that learnt from the teacher did better there."]
        return [f"{text}. It learnt from hard labels alone."]
    if twin is None:
        return [f"{text}."]
    result = compare(best, twin)
    value = f"{_percent(twin.mean())}"
    where = f" on “{best.method.detail}”" if best.headline is not best.accuracy else ""
    if result.verdict == "within noise":
        text += f". No difference{where} from the same student on hard labels ({value}) could be shown."
    else:
        word = "more" if result.difference > 0 else "fewer"
        text += f", {_points(abs(result.difference))} {word}{where} than the same student on hard labels ({value})."
    return [text]


def _artefact(findings: Findings) -> list[str]:
    row = smallest(findings.compressed)
    found: list[str] = []
    size, best = findings.teacher_parameters, findings.best
    if size and best.parameters and size > best.parameters:
        found.append(
            f"It has {best.parameters:,} parameters, {_ratio(size / best.parameters)} times fewer than the teacher."
        )
    if row is None:
        return found
    text = f"The smallest file, {row['name']}, takes {row['bytes'] / 1e3:,.1f} kB"
    for name, called in ((TEACHER, "the teacher"), (BASELINE, "the student before compression")):
        other = named(findings.compressed, name)
        if other and other.get("bytes"):
            text += f": {_ratio(other['bytes'] / row['bytes'])} times smaller than {called}"
            text += _speed(row, other)
            break
    return [*found, f"{text}."]


def _speed(row: Row, other: Row) -> str:
    latency, before = row.get("latency") or {}, other.get("latency") or {}
    said = []
    for size in sorted(latency.keys() & before.keys(), key=int):
        ratio = before[size]["p50"] / latency[size]["p50"]
        if 0.95 < ratio < 1.05:
            said.append(f"as fast at batch {size}")
        else:
            word = "faster" if ratio > 1 else "slower"
            said.append(f"{_ratio(max(ratio, 1 / ratio))} times {word} at batch {size}")
    return f", {' and '.join(said)}" if said else ""


def _cost(findings: Findings) -> list[str]:
    found = []
    best, teacher = findings.best, findings.teacher_accuracy
    if teacher is not None:
        change = _accuracy(best) - teacher
        reach = metrics.half_width([value - teacher for value in best.accuracy.values()])
        lost = "loses nothing" if round(100 * change, 1) >= 0 else "loses accuracy"
        over = "" if math.isnan(reach) else ", the interval over its seeds"
        found.append(f"Against the teacher ({_percent(teacher)}) the student {lost}: {_change(change, reach)}{over}.")
    row = smallest(findings.compressed)
    if row is not None:
        for gap, other in _held_against(findings, row, "the student it was made from"):
            if gap:
                moved = _change(gap["difference"], _reach(gap))
                found.append(
                    f"Against {other} the smallest file changes accuracy by {moved}, to {_percent(row['accuracy'])}."
                )
    return found


def _significance(findings: Findings) -> list[str]:
    found = []
    best, twin = findings.best, hard_twin(findings)
    if twin is not None:
        result = compare(best, twin)
        found.append(
            f"Soft against hard labels: {_verdict(result.verdict, result.difference, result.half_width)}"
            f"{_over(result)}."
        )
    p_values = [(seed.get("mcnemar") or {}).get("p_value") for seed in best.details["seeds"].values()]
    known = [float(p) for p in p_values if p is not None]
    if known:
        count = sum(p < BY_CHANCE for p in known)
        seeds = f"{count or 'none'} of {len(known)} seeds"
        found.append(
            "Student against teacher: McNemar's test on the same examples finds a difference "
            f"(p < {BY_CHANCE:g}) for {seeds}."
        )
    row = smallest(findings.compressed)
    if row is not None:
        for gap, other in _held_against(findings, row, "the student"):
            if gap:
                said = _verdict(gap["verdict"], gap["difference"], _reach(gap))
                found.append(f"Smallest file against {other}: {said}, over the test examples of one training.")
    return found


def _held_against(findings: Findings, row: Row, student: str) -> list[tuple[Row | None, str]]:
    against = against_teacher(row, findings.compressed.get("test_examples"))
    return [(against, "the teacher"), (row.get("against_baseline"), student)]


def _missing(findings: Findings) -> list[str]:
    found = []
    best = findings.best
    if findings.teacher_accuracy is None:
        found.append("How good the teacher is: no evaluation here read its labels.")
    if best.method.kind != HARD and hard_twin(findings) is None:
        found.append("What hard labels alone would give this student: no such run is here.")
    if min(findings.seed_counts) < 2:
        found.append("How much another training would vary: some cells have a single seed.")
    if math.isnan(best.validation):
        found.append("Which student is best: nothing was measured on validation, so the choice saw the examples shown.")
    if not findings.compressed:
        found.append("How small and fast it gets: nothing was compressed.")
    elif smallest(findings.compressed) is None:
        found.append("How small and fast it gets: no compressed file was measured.")
    return found


def _verdict(word: str, difference: float, reach: float) -> str:
    if word == "within noise":
        return f"no difference could be shown ({_change(difference, reach)}, which chance alone explains)"
    return f"{'better' if difference > 0 else 'worse'}, by more than chance explains ({_change(difference, reach)})"


def _reach(gap: Row) -> float:
    """Half the interval of a difference that a row holds; infinite where it is not known."""
    return math.inf if gap.get("half_width") is None else float(gap["half_width"])


def _over(result: Comparison) -> str:
    if result.seeds > 1:
        return f", over {result.seeds} paired seeds and the test examples"
    return ", over the test examples of one seed"


def _accuracy(cell: Cell) -> float:
    return metrics.spread(list(cell.accuracy.values()))[0]


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def _points(value: float) -> str:
    text = f"{100 * value:.1f}"
    return f"{text} point{'' if text == '1.0' else 's'}"


def _change(difference: float, reach: float = math.inf) -> str:
    """A difference in points, with half its interval where that is known."""
    around = "" if math.isinf(reach) or math.isnan(reach) else f" ± {100 * reach:.1f}"
    return f"{signed(100 * difference)}{around} points"


def _ratio(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def sentences(found: Sequence[Answer]) -> list[str]:
    """All sentences in a row, for a terminal."""
    return [sentence for answer in found for sentence in answer.sentences]
