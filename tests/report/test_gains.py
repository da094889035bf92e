"""The page in plain words: every sentence follows from the numbers, and says what they do not tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from pipeline import metrics
from pipeline.report.artefacts import against_teacher, smallest
from pipeline.report.gains import answers, hard_twin
from pipeline.report.reading import Findings, read_findings
from pipeline.report.words import summary
from tests.report.synthetic import World, artefact, write


def read(world: World, **options: Any) -> Findings:
    return read_findings(**{"teacher": None, "cache": None, "compressed": (), **world.options(), **options})


def told(findings: Findings) -> dict[str, str]:
    return {answer.question.split()[1]: " ".join(answer.sentences) for answer in answers(findings)}


def pair(root: Path, soft: list[float], hard: list[float]) -> World:
    world = World(root)
    world.add("mlp-8", "soft", soft)
    world.add("mlp-8", "hard", hard)
    for folder in world.evaluations[1:]:  # the soft one is best on validation, whatever it does on test
        _validation(folder, 0.1)
    return world


def _validation(folder: Path, accuracy: float | None) -> None:
    import json

    details = json.loads((folder / "details.json").read_text())
    for seed in details["seeds"].values():
        seed["validation"] = None if accuracy is None else {"accuracy": accuracy}
    write(folder / "details.json", details)


def test_a_gain_is_said_with_its_size(tmp_path: Path) -> None:
    found = told(read(pair(tmp_path, [0.95, 0.9375, 0.95], [0.60, 0.6125, 0.60])))
    assert "mlp-8 with soft labels, gets 94.6% of the test examples right, 34.2 points more than" in found["was"]
    assert "better, by more than chance explains (+34.2 ±" in found["it"] and "3 paired seeds" in found["it"]


def test_a_loss_is_said_as_one(tmp_path: Path) -> None:
    found = told(read(pair(tmp_path, [0.60, 0.6125, 0.60], [0.95, 0.9375, 0.95])))
    assert "34.2 points fewer than the same student on hard labels (94.6%)" in found["was"]
    assert "worse, by more than chance explains (\u221234.2 ±" in found["it"]


def test_what_chance_explains_is_no_gain(tmp_path: Path) -> None:
    found = told(read(pair(tmp_path, [0.90, 0.9125, 0.8875], [0.9125, 0.8875, 0.90])))
    assert "No difference from the same student on hard labels (90.0%) could be shown" in found["was"]
    assert "no difference could be shown (0.0 ±" in found["it"] and "more than chance" not in found["it"]


def test_one_seed_says_what_it_cannot_tell(tmp_path: Path) -> None:
    found = told(read(pair(tmp_path, [0.9], [0.8])))
    assert "over the test examples of one seed" in found["it"]
    assert "some cells have a single seed" in found["is"]
    assert "paired seeds" not in " ".join(found.values())


def test_without_a_teacher_or_compression_the_page_says_so(tmp_path: Path) -> None:
    import json

    world = pair(tmp_path, [0.9, 0.9], [0.8, 0.8])
    for folder in world.evaluations:
        write(folder / "details.json", {**json.loads((folder / "details.json").read_text()), "teacher": None})
    found = told(read(world))
    assert "How good the teacher is" in found["is"] and "nothing was compressed" in found["is"]
    assert "what" not in found and "teacher" not in found["was"]  # nothing is said of what it cost


def test_against_the_teacher(tmp_path: Path) -> None:
    world = pair(tmp_path, [0.90, 0.9125], [0.8, 0.8125])
    write(tmp_path / "teacher" / "report.json", {"parameters": 50_000})
    found = told(read(world, teacher=tmp_path / "teacher"))
    # 98 and (90 + 91.25) / 2 %; half the interval of two seeds 1.25 points apart: 12.706 * 0.884 / sqrt(2).
    assert "(98.0%) the student loses accuracy: \u22127.4 ± 7.9 points" in found["what"]
    assert "1,000 parameters, 50 times fewer than the teacher" in found["was"]


def test_mcnemar_counts_the_seeds_that_differ(tmp_path: Path) -> None:
    import json

    world = pair(tmp_path, [0.9, 0.9, 0.9], [0.8, 0.8, 0.8])
    details = json.loads((world.evaluations[0] / "details.json").read_text())
    for seed, p in zip(details["seeds"].values(), (0.001, 0.2, 0.04), strict=True):
        seed["mcnemar"] = {"only_student": 1, "only_teacher": 9, "p_value": p}
    write(world.evaluations[0] / "details.json", details)
    assert "finds a difference (p < 0.05) for 2 of 3 seeds" in told(read(world))["it"]


def test_the_smallest_file_is_no_control_and_not_the_student(tmp_path: Path) -> None:
    world = pair(tmp_path, [0.9, 0.9], [0.8, 0.8])
    rows = [
        artefact("teacher", size=80_000, milliseconds=1.0, accuracy=0.97, control=True),
        artefact("baseline", size=4000, milliseconds=0.2, accuracy=0.95),
        artefact("dynamic", size=500, milliseconds=0.1, accuracy=0.9, control=True),
        artefact("int8", size=1600, milliseconds=0.1, accuracy=0.94),
        artefact("pruned", size=2000, milliseconds=0.05, accuracy=0.93),
    ]
    findings = read(world, compressed=(world.add_compressed(rows),))
    row = smallest(findings.compressed)
    assert row and row["name"] == "int8"
    found = told(findings)
    assert "int8, takes 1.6 kB: 50 times smaller than the teacher, 10 times faster at batch 1" in found["was"]
    assert "smallest file changes accuracy by \u22121.0 ± 2.0 points, to 94.0%" in found["what"]
    assert "Smallest file against the student: no difference could be shown" in found["it"]


def test_compression_that_failed_is_missing(tmp_path: Path) -> None:
    world = pair(tmp_path, [0.9, 0.9], [0.8, 0.8])
    rows = [{"name": "int8", "what": "", "skipped": "onnx is not installed"}]
    found = told(read(world, compressed=(world.add_compressed(rows),)))
    assert "no compressed file was measured" in found["is"] and "smallest file" not in found["was"]


def test_the_twin_learnt_hard_labels_in_the_same_setting(tmp_path: Path) -> None:
    world = World(tmp_path)
    for method, value in (("few-soft", 0.95), ("few-hard", 0.7), ("hard", 0.9)):
        world.add("mlp-8", method, [value, value])
    findings = read(world)
    twin = hard_twin(findings)
    assert findings.best.method.setting == "few" and twin and twin.method.setting == "few"


def test_hard_labels_that_do_best_are_no_gain_of_the_teacher(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.add("mlp-8", "soft", [0.7, 0.7])
    world.add("mlp-8", "hard", [0.9, 0.9])
    found = told(read(world))
    assert "It learnt from hard labels: nothing that learnt from the teacher did better" in found["was"]


def test_no_validation_is_said(tmp_path: Path) -> None:
    world = pair(tmp_path, [0.9, 0.9], [0.8, 0.8])
    for folder in world.evaluations:
        _validation(folder, None)
    assert "the choice saw the examples shown" in told(read(world))["is"]


def test_mcnemars_counts_are_the_paired_interval_against_the_teacher() -> None:
    """Against the comparison of the hits themselves, which the table does not hold."""
    first = np.r_[np.ones(70), np.zeros(30)]
    second = np.r_[np.ones(60), np.zeros(5), np.ones(20), np.zeros(15)]
    only_first, only_second = int((first > second).sum()), int((second > first).sum())
    expected = metrics.compare({0: first.mean()}, {0: second.mean()}, first, second)
    row = {"mcnemar_teacher": {"only_first": only_first, "only_second": only_second, "p_value": 0.2}}
    found = against_teacher(row, 100)
    assert found and found["difference"] == pytest.approx(expected.difference)
    assert found["half_width"] == pytest.approx(expected.half_width) and found["verdict"] == expected.verdict
    assert against_teacher({"mcnemar_teacher": None}, 100) is None and against_teacher(row, None) is None


def test_an_interval_that_is_not_known_is_left_out(tmp_path: Path) -> None:
    world = pair(tmp_path, [0.9, 0.9], [0.8, 0.8])
    gap = {"difference": -0.01, "half_width": None, "verdict": "lower"}
    rows = [
        artefact("baseline", size=4000, milliseconds=0.2, accuracy=0.95),
        artefact("int8", size=1600, milliseconds=0.1, accuracy=0.94, against_baseline=gap),
    ]
    findings = read(world, compressed=(world.add_compressed(rows),))
    assert "changes accuracy by \u22121.0 points, to 94.0%" in told(findings)["what"]
    assert "lower than that of the student (\u22121.0 points)" in dict(summary(findings))["Compression"]
