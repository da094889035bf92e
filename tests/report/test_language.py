"""The page of language models: what is told of tokens, which figures there are, what the models write."""

from __future__ import annotations

import csv
import html
import json
import math
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from pipeline import report
from pipeline.errors import ConfigError
from pipeline.report import ReportConfig, charts, cost, language, training_curves
from pipeline.report.artefacts import smallest_as_good, with_teacher
from pipeline.report.board import _runs, write_board
from pipeline.report.columns import LANGUAGE, columns_of, leading, rows_table
from pipeline.report.differences import between, lines
from pipeline.report.explaining import explained
from pipeline.report.facts import tiles
from pipeline.report.merging import read_compressed
from pipeline.report.one_by_one import together
from pipeline.report.reading import Findings, read_findings
from pipeline.report.writing import writing
from tests.report.synthetic import World, artefact, write
from tests.report.tables import WRITTEN, language_details
from tests.report.tables import language as evaluated
from tests.report.test_alone import check, told


def findings_of(**options: Any) -> Findings:
    return read_findings(**{"teacher": None, "cache": None, "runs": (), "evaluations": (), **options})


def drawn(out: Path, **options: Any) -> str:
    report.run(ReportConfig(**options, out=out))
    return (out / "index.html").read_text(encoding="utf-8")


def world_of(root: Path) -> dict[str, Any]:
    """A cache and two runs that read it or not."""
    world = World(root)
    cache = world.add_cache(positions=32_000, entries=500, bytes=640_000, teacher_seconds=10.0)
    for name, alpha in (("hard", 0.0), ("sampled", 1.0)):
        config = {"data": "tokens:t", "student": "gpt-16", "alpha": alpha, "cache": "caches/digits"}
        record = {"config": config, "lineage": {"visits_per_epoch": 300}, "seeds": [{"epochs": 2}] * 3}
        write(root / "runs" / name / "run.json", record)
    return {"cache": cache, "runs": (root / "runs" / "hard", root / "runs" / "sampled")}


def test_the_page_is_of_tokens(tmp_path: Path) -> None:
    several = evaluated(tmp_path / "m")
    page = drawn(tmp_path / "report", models=several, **world_of(tmp_path / "w"))
    assert check(page) == ["summary", "models", "calibration", "writing", "costs", "provenance"]
    assert (
        "<h1>Language models compared</h1>" in page and "n = 1,280 test tokens of 20 sequences, 3 seeds a row" in page
    )
    assert "Every model on the same 1,280 test tokens of 20 sequences, held against hard." in page
    assert "512 tokens" in page and "gpt-64, weights ffffffffffff" in page and "tokens:t, digest dddddddddddd" in page
    shown = re.sub(r"<(style|script).*?</\1>", "", page, flags=re.DOTALL)
    assert not re.search(r"\bimages?\b|[Cc]onfusion|per class|Wilson", re.sub(r"<[^>]*>", " ", shown))
    assert "Marks grow with the number of tokens" in page
    pictures = re.findall(r'aria-label="([A-Za-z]+), figure"', page)
    assert pictures == ["Predicting", "Models", "Reliability", "Costs"]
    with (tmp_path / "report" / "plots" / "language.csv").open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert len(found) == 9 and found[4]["name"] == "sampled" and float(found[4]["perplexity"]) == pytest.approx(16.16)
    assert float(found[4]["ece"]) == pytest.approx(2) and float(found[4]["acceptance"]) == pytest.approx(45)


def test_runs_alone_have_their_curves(tmp_path: Path) -> None:
    several, options = evaluated(tmp_path / "m"), world_of(tmp_path / "w")
    for run, first in zip(options["runs"], (4.0, 3.5), strict=True):
        for seed in range(3):
            epochs = [
                {"epoch": e, "loss": 1.0, "accuracy": 0.1, "nll": first - 0.1 * e - 0.01 * seed} for e in range(6)
            ]
            write(run / f"seed-{seed}" / "history.json", epochs[: 5 + seed])
    page = drawn(tmp_path / "report", models=several, **options)
    assert check(page) == ["summary", "curves", "models", "calibration", "writing", "costs", "provenance"]
    assert "Perplexity of every run on validation after each epoch" in page and "Accuracy of" not in page
    assert "softlabels train --data tokens:t" in html.unescape(page)
    with (tmp_path / "report" / "plots" / "training_perplexity.csv").open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["name"] for row in found] == ["hard"] * 5 + ["sampled"] * 5, "cut to the shortest seed"
    each = np.exp([3.5 - 0.1 * 2 - 0.01 * seed for seed in range(3)])
    assert [float(found[7][key]) for key in ("mean", "lowest", "highest")] == pytest.approx(
        [each.mean(), each.min(), each.max()]
    )
    findings = findings_of(models=several, **options)
    made = training_curves.curves_table(findings)
    assert made is not None and made.caption == "Mean validation perplexity by epoch"
    assert made.groups[0].rows[2][2].value == pytest.approx(each.mean())
    board_of_runs(findings, tmp_path / "board")
    one = options["runs"][0] / "seed-0" / "history.json"
    write(one, json.loads(one.read_text())[:1])
    assert [curve.name for curve in training_curves.curves_of(findings_of(models=several, **options))] == ["sampled"]


def board_of_runs(findings: Findings, out: Path) -> None:
    """TensorBoard's own reader finds the curves, each seed to its end."""
    if find_spec("tensorboard") is None:
        return
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_board(findings, out)
    for seed in range(3):
        curve = EventAccumulator(str(out / "sampled" / f"seed-{seed}")).Reload().Scalars("validation/nll")
        epochs = range(min(5 + seed, 6))
        assert [event.step for event in curve] == [epoch + 1 for epoch in epochs]
        assert [event.value for event in curve] == pytest.approx([3.5 - 0.1 * epoch - 0.01 * seed for epoch in epochs])


def test_what_leads_in_the_table() -> None:
    row = {"name": "a", "perplexity": 10.0, "perplexity_std": 0.5, "bits_per_byte": 1.5, "accuracy": 0.4, "seeds": 3}
    row |= {"accuracy_std": 0.02, "ece": 0.01, "kl_to_teacher": 0.1, "teacher_agreement": 0.7, "acceptance": 0.8}
    row |= {"tokens_per_call": 3.36, "bytes": 9000, "latency": {"1": {"p50": 1.0, "p95": 2.0}}, "brier": 0.5}
    row |= {"macs": 9, "parameters": 9, "memory": 9, "nll": 2.3, "nonzeros": 8}
    nll = {"difference": -0.1234, "half_width": 0.05, "verdict": "lower"}
    gap = {"difference": 0.01, "half_width": 0.01, "verdict": "higher", "nll": nll}
    rows = [row, {**row, "name": "b", "against_baseline": gap}]
    keys = [column.key for column in leading(columns_of(rows), rows)]
    assert keys == [*LANGUAGE[:-1], "latency.1.p50"]
    made = rows_table("rows", rows)
    assert made is not None
    cells = dict(zip([head.title for head in made.heads], made.groups[0].rows[1], strict=True))
    assert cells["Perplexity"].text == "10.00" and cells["Perplexity"].below == "s = 0.50"
    assert cells["Accuracy, %"].below == "s = 2.0" and cells["Accepted by teacher, %"].below == "3.36 a call"
    assert cells["NLL against baseline, nats"].text == "\u22120.1234"
    assert cells["NLL against baseline, nats"].minor == "± 0.0500"
    assert "paired seeds and test sequences" in explained(rows) and "Wilson" not in explained(rows)


def test_bounds_stand_where_no_more_is_known() -> None:
    known = {"name": "a", "perplexity": 9.0, "acceptance": 0.5}
    bound = {"name": "b", "perplexity": 8.0, "acceptance": None, "acceptance_between": [0.25, 0.75]}
    for rows in ([known, bound], [bound]):
        made = rows_table("rows", rows)
        assert made is not None and made.groups[0].rows[-1][-1].text == "25.0\u201375.0"


def test_the_figure_shows_each_seed_with_its_interval() -> None:
    measured = {"rows": [{"name": "a", "perplexity": 20.0}], "models": {"a": language_details("a", 20.0, 0.5)}}
    made = language.predicting_table(measured)
    assert made is not None
    cells = dict(zip([head.title for head in made.heads], made.groups[0].rows[0], strict=True))
    assert cells["Perplexity, each seed"].text == "20.0, 20.2, 20.4"
    # Student's t for 2 degrees of freedom: 4.3027.
    assert made.groups[0].rows[0][3].value == pytest.approx(4.3027 * 0.2 / math.sqrt(3), rel=1e-4)
    drawing = language.predicting(measured)
    assert drawing is not None and drawing.png.startswith(b"\x89PNG")
    assert language.predicting({"rows": [{"name": "a", "accuracy": 1.0}], "models": measured["models"]}) is None
    for one in measured["models"]["a"]["seeds"].values():
        one["acceptance"] = None
    assert [panel.key for panel in language.panels_of(measured)] == ["perplexity", "ece"]


def test_bits_per_byte_stand_against_bytes_and_less_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {**artefact(name, size=size, milliseconds=size / 100, accuracy=0.5), "perplexity": 9.0, "bits_per_byte": bits}
        for name, size, bits in (("a", 100, 3.0), ("b", 200, 2.0), ("c", 300, 2.5))
    ]
    seen = []
    front = charts.pareto_front
    monkeypatch.setattr(charts, "pareto_front", lambda points: seen.append(front(points)) or seen[-1])
    drawing = charts.pareto({"rows": rows})
    assert drawing is not None and drawing.alternative.startswith("Bits per byte against file size")
    assert seen == [[0, 1]] * 3
    assert charts._height([*rows[:2], {**rows[2], "bits_per_byte": None}]).key == "perplexity"
    assert charts._height([*rows[:2], {**rows[2], "bits_per_byte": None, "perplexity": None}]).key == "accuracy"


def test_the_plain_words_are_of_perplexity(tmp_path: Path) -> None:
    found = told(models=evaluated(tmp_path / "m"))
    assert "Of 3 models on the same tokens full is the best at predicting text (perplexity 15.50)." in found["was"]
    assert "would accept 50.0% of the tokens that full drafts, the most: 2.00 tokens for each" in found["was"]
    assert "smallest" not in found["was"], "all are of one size"
    assert found["what"] == "Against the teacher (perplexity 15.00) full has 1.03 times the perplexity."
    assert (
        "Full against the baseline (hard): better, by more than chance explains (\u22120.4460 ± 0.0200" in found["it"]
    )
    assert "3 seeds and the test sequences" in found["it"] and "is" not in found
    untimed = told(models=evaluated(tmp_path / "u", timed=False))
    assert untimed["is"] == "How fast it is: nothing was timed."
    shown = {label: value for label, value, _ in tiles(findings_of(models=tmp_path / "m"))}
    assert shown == {"Teacher, perplexity": "15.00", "Best model, perplexity": "15.50", "Its drafts, accepted": "50.0%"}


def test_language_models_are_judged_by_their_likelihood() -> None:
    """The interval of McNemar's table takes tokens as independent, which they are not."""
    row = {"name": "a", "accuracy": 0.4, "perplexity": 9.0, "bytes": 10}
    test = {"mcnemar_teacher": {"only_first": 300, "only_second": 500, "p_value": 0.01}}
    assert "against_teacher" not in with_teacher({**row, **test}, 20)
    nll = {"difference": 0.2, "half_width": 0.1, "verdict": "higher"}
    gap = {"difference": 0.0, "half_width": 0.1, "verdict": "within noise", "nll": nll}
    table = {"rows": [{**row, "against_baseline": gap}], "baseline": "b"}
    assert smallest_as_good(table) is None
    nll["verdict"] = "lower"
    assert (smallest_as_good(table) or {})["name"] == "a"


def test_what_the_cache_cost_is_said_per_position(tmp_path: Path) -> None:
    findings = findings_of(models=evaluated(tmp_path / "m"), **world_of(tmp_path / "w"))
    found = {what: (figure, origin) for what, figure, origin in cost.lines(findings)}
    assert "20.0 B for each of 32,000 positions of 500 sequences" in found["Size of the cache"][1]
    assert found["Sequences whose soft labels were read"][0] == "1,800"  # 300 visits, 2 epochs, 3 seeds, one run
    assert found["Teacher time of one epoch without a cache"][0] == "6.00 s"  # 300 of 500 in 10 s
    assert found["Teacher time without a cache"][0] == "36 s"
    assert [(what, seconds) for what, seconds, _ in cost.bars(findings)] == [
        ("teacher, once, for the cache", 10.0), ("teacher, live in one epoch", 6.0),
        ("teacher, live in every epoch", 36.0),
    ]  # fmt: skip
    assert ("Cache", "20.0 B", "for each of 32,000 positions, asked for once") in tiles(findings)


def test_what_models_write_is_text_and_never_markup(tmp_path: Path) -> None:
    page = drawn(tmp_path / "report", models=evaluated(tmp_path / "m"))
    section = page.split('<section id="writing">')[1].split("</section>")[0]
    texts = [html.unescape(text) for text in re.findall(r"<pre[^>]*>\n(.*?)</pre>", section, re.DOTALL)]
    first = [WRITTEN["text"][0], WRITTEN["teacher"][0], *(one[0] for one in WRITTEN["models"].values())]
    assert texts[:6] == [WRITTEN["prompts"][0], *first]
    assert texts[6] == "class A\N{REPLACEMENT CHARACTER}&amp;:"
    assert re.findall(r"<h4>(.*?)</h4>", section)[:5] == ["the text itself", "teacher", "hard", "sampled", "full"]
    assert "Without samples: int8 and int4; a file." in section and "The first 32 tokens of test sequences" in section
    findings = findings_of(models=evaluated(tmp_path / "n", written={"note": "no tokenizers"}))
    assert (found := writing(findings)) is not None and found.notes == ("no tokenizers.",) and not found.beginnings
    assert "no tokenizers." in drawn(tmp_path / "noted", models=tmp_path / "n")
    assert writing(findings_of(models=evaluated(tmp_path / "o", written={}))) is None
    assert "writing" not in check(drawn(tmp_path / "none", models=tmp_path / "o"))


def one_by_one(root: Path) -> tuple[Path, ...]:
    folders = []
    for name, perplexity, acceptance in (("hard", 20.0, 0.3), ("sampled", 16.0, 0.45)):
        kept = {**WRITTEN, "models": {name: WRITTEN["models"][name]}}
        write(root / name / "details.json", {**language_details(name, perplexity, acceptance), "written": kept})
        write(root / name / "metrics.json", {"perplexity": perplexity})
        folders.append(root / name)
    return tuple(folders)


def test_evaluations_one_by_one_become_a_table(tmp_path: Path) -> None:
    folders = one_by_one(tmp_path / "e")
    found = together(findings_of(evaluations=folders))
    assert not found.cells and [row["name"] for row in found.models["rows"]] == ["hard", "sampled"]
    row = found.models["rows"][1]
    assert row["perplexity"] == pytest.approx(np.mean([16.0, 16.16, 16.32])) and row["seeds"] == 3
    assert row["perplexity_std"] == pytest.approx(0.16) and row["accuracy_std"] < 1e-12
    assert list(found.models["written"]["models"]) == ["hard", "sampled"]
    page = drawn(tmp_path / "report", evaluations=folders)
    assert check(page) == ["summary", "models", "calibration", "writing", "provenance"]
    assert "they were evaluated one by one" in page
    with pytest.raises(ConfigError, match="leave one of the two out"):
        drawn(tmp_path / "both", evaluations=folders, models=evaluated(tmp_path / "m"))
    world = World(tmp_path / "images")
    world.add("mlp-8", "soft", [0.9])
    images = findings_of(**world.options())
    assert together(images) is images


def test_two_reports_and_the_board_have_the_same_columns(tmp_path: Path) -> None:
    several = evaluated(tmp_path / "m")
    drawn(tmp_path / "a", models=several)
    kept = json.loads((several / "details.json").read_text())
    kept["rows"][1]["perplexity"] = 14.0
    write(several / "details.json", kept)
    drawn(tmp_path / "b", models=several)
    found = between(tmp_path / "a", tmp_path / "b")
    [changed] = [one for one in found.rows if one.difference]
    assert (changed.figure, changed.first, changed.second, changed.better) == ("Perplexity", 16.0, 14.0, "lower")
    assert any("perplexity" in line and "16.00" in line and "14.00" in line for line in lines(found))
    scalars = dict(_runs(findings_of(models=several)))["models/sampled"]
    known = {tag: value for tag, value, _ in scalars}
    assert known["artefact/perplexity"] == 14.0 and known["artefact/bits_per_byte"] == 2.0
    assert known["artefact/against_baseline/nll"] == -0.223


def test_seeds_of_one_recipe_are_averaged(tmp_path: Path) -> None:
    folders = []
    for seed in (0, 1):
        nll = {"difference": 0.1 + 0.02 * seed, "half_width": 0.01, "verdict": "higher"}
        gap = {"difference": 0.0, "half_width": 0.01, "verdict": "within noise", "nll": nll}
        row = {"name": "int8", "what": "", "accuracy": 0.4, "perplexity": 10.0 + seed, "bytes": 9, "seeds": 1}
        rows = [{**row, "name": "baseline", "bytes": 20}, {**row, "against_baseline": gap}]
        models = {name: language_details(name, 10.0, 0.5, seeds=1) for name in ("baseline", "int8")}
        table = {"run": "r", "seed": seed, "rows": rows, "test_examples": 20}
        write(tmp_path / str(seed) / "table.json", table)
        write(tmp_path / str(seed) / "details.json", {"models": models})
        folders.append(tmp_path / str(seed))
    row = read_compressed(folders)["rows"][1]
    assert row["perplexity"] == 10.5 and row["perplexity_std"] == pytest.approx(math.sqrt(0.5))
    assert "accuracy_interval" not in row
    assert row["against_baseline"]["nll"]["difference"] == pytest.approx(0.11)
