"""The page in a few plain sentences: what was gained, at what cost, whether chance explains it, what is not known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline import metrics
from pipeline.metrics import Comparison
from pipeline.report import artefact_gains as tables
from pipeline.report.artefacts import smallest
from pipeline.report.methods import AUGMENTED, HARD, PLAIN
from pipeline.report.reading import Cell, Findings, compare
from pipeline.report.sizes import change, percent, points, ratio, verdict

BY_CHANCE = 0.05


@dataclass(frozen=True)
class Answer:
    """A question that readers have, and sentences that answer it from the numbers."""

    question: str
    sentences: tuple[str, ...]


def answers(findings: Findings) -> list[Answer]:
    """What was gained, at what cost, is it significant, and what is missing, if anything.

    Without evaluations of students everything is told from the tables of artefacts and models.
    """
    views = tables.views(findings)
    leading = len(views) > 1 and findings.tokens  # the table of models says what is missing
    told = [tables.told(view, alone=not findings.cells and (view.models or not leading)) for view in views]
    students = bool(findings.cells)
    parts: tuple[tuple[str, list[str], str], ...] = (
        ("What was gained?", [*_student(findings), *_size(findings)] if students else [], "gained"),
        ("At what cost?", _cost(findings) if students else [], "cost"),
        ("Is it significant?", _significance(findings) if students else [], "significance"),
        ("Which warnings are there?", [], "warnings"),
        ("What is not known here?", _missing(findings) if students else [], "missing"),
    )
    found = [
        Answer(question, tuple(dict.fromkeys([*own, *(line for one in told for line in getattr(one, name))])))
        for question, own, name in parts
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
    text += f"{percent(_accuracy(best))} of the {best.details['split']} examples right"
    if best.method.kind == HARD:
        if len(findings.cells) > 1 and any(c.method.kind != HARD for c in findings.cells):
            return [f"{text}. It learnt from hard labels: nothing that learnt from the teacher did better there."]
        return [f"{text}. It learnt from hard labels alone."]
    if twin is None:
        return [f"{text}."]
    result = compare(best, twin)
    value = f"{percent(twin.mean())}"
    where = f" on “{best.method.detail}”" if best.headline is not best.accuracy else ""
    if result.verdict == "within noise":
        text += f". No difference{where} from the same student on hard labels ({value}) could be shown."
    else:
        word = "more" if result.difference > 0 else "fewer"
        text += f", {points(abs(result.difference))} {word}{where} than the same student on hard labels ({value})."
    return [text]


def _size(findings: Findings) -> list[str]:
    size, best = findings.teacher_parameters, findings.best
    if not size or size <= best.parameters:
        return []
    return [f"It has {best.parameters:,} parameters, {ratio(size / best.parameters)} times fewer than the teacher."]


def _cost(findings: Findings) -> list[str]:
    found = []
    best, teacher = findings.best, findings.teacher_accuracy
    if teacher is not None:
        gap = _accuracy(best) - teacher
        reach = metrics.half_width([value - teacher for value in best.accuracy.values()])
        lost = "loses nothing" if round(100 * gap, 1) >= 0 else "loses accuracy"
        over = "" if math.isnan(reach) else ", the interval over its seeds"
        found.append(f"Against the teacher ({percent(teacher)}) the student {lost}: {change(gap, reach)}{over}.")
    return found


def _significance(findings: Findings) -> list[str]:
    found = []
    best, twin = findings.best, hard_twin(findings)
    if twin is not None:
        result = compare(best, twin)
        found.append(
            f"Soft against hard labels: {verdict(result.verdict, result.difference, result.half_width)}{_over(result)}."
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
    return found


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


def _over(result: Comparison) -> str:
    if result.seeds > 1:
        return f", over {result.seeds} paired seeds and the test examples"
    return ", over the test examples of one seed"


def _accuracy(cell: Cell) -> float:
    return metrics.spread(list(cell.accuracy.values()))[0]


def sentences(found: Sequence[Answer]) -> list[str]:
    """All sentences in a row, for a terminal."""
    return [sentence for answer in found for sentence in answer.sentences]
