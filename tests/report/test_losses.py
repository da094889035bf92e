"""Losses beside each other: told apart, compared with KL by seed, and absent where there is one loss only."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from pipeline import report
from pipeline.report import ReportConfig, cost
from pipeline.report.losses import Family, expected_by_chance, families, summary
from pipeline.report.methods import method_of
from pipeline.report.reading import Findings, read_findings
from tests.report.synthetic import BASE, EXAMPLES, World, full_world

KL = [0.90, 0.9125, 0.925]


def read(world: World, **options: Any) -> Findings:
    given: dict[str, Any] = {"teacher": None, "cache": None, "compressed": (), **world.options(), **options}
    return read_findings(**given)


def page(world: World, out: Path) -> str:
    report.run(ReportConfig(**world.options(), out=out))
    return (out / "index.html").read_text(encoding="utf-8")


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.add("mlp-8", "reverse", [0.6, 0.6125, 0.625])
    made.add("mlp-8", "soft", KL)
    made.add("mlp-8", "hard", [0.3, 0.3125, 0.325])
    made.add("mlp-8", "skewed", [0.925, 0.9, 0.9])
    made.add("mlp-8", "smooth", [0.3, 0.3125, 0.3375])
    return made


def only(findings: Findings) -> Family:
    [family] = families(findings)
    return family


@pytest.mark.parametrize(
    ("config", "loss", "title"),
    [
        ({}, "KL", "soft labels"),
        ({"loss": "kl", "loss_args": [], "standardise": False, "label_smoothing": 0.0}, "KL", "soft labels"),
        ({"loss": "reverse-kl"}, "reverse KL", "soft labels, reverse KL"),
        ({"loss": "jensen-shannon"}, "Jensen-Shannon", "soft labels, Jensen-Shannon"),
        ({"loss": "dkd", "loss_args": ["target=1", "others=2"]}, "DKD (target 1, others 2)", None),
        ({"standardise": True, "train_views": "all"}, "standardised KL", "soft, replayed, standardised KL"),
        ({"alpha": 0.0}, "hard labels", "hard labels"),
        ({"alpha": 0.0, "label_smoothing": 0.1}, "label smoothing 0.1", "hard labels, label smoothing 0.1"),
        ({"label_smoothing": 0.1}, "KL with label smoothing 0.1", None),
        ({"alpha": 0.0, "loss": "dkd"}, "hard labels", "hard labels"),
        ({"cache": None, "labels": ["a=1", "b=1"]}, "KL from 2 caches, mean probability", None),
        ({"cache": None, "labels": ["a", "b", "c"], "mix": "losses"}, "KL from 3 caches, a loss each", None),
        ({"cache": None, "labels": ["a", "b", "c"], "mix": "heads"}, "KL from 3 caches, a head each", None),
        ({"loss": "dkd", "alpha_epochs": 8}, "DKD rising over 8 epochs", None),
        ({"alpha_epochs": 0, "peers": 0, "peer": [], "exchange": "mutual", "peer_weight": 1.0}, "KL", "soft labels"),
        ({"alpha": 0.0, "peers": 2}, "mutual learning of 2", "hard labels, mutual learning of 2"),
        ({"alpha": 0.0, "peers": 2, "hints": ["stage2"]}, "mutual learning of 2 with features (hint)", None),
        ({"peers": 2, "hints": ["stage2"]}, "KL and mutual learning of 2 with features (hint)", None),
        ({"cache": None, "peers": 4}, "mutual learning of 4", "hard labels, mutual learning of 4"),
        ({"cache": None, "peers": 4, "exchange": "ensemble"}, "learning from the ensemble of 4", None),
        ({"cache": None, "peer": ["cnn-8"], "exchange": "online"}, "online learning from cnn-8", None),
        ({"cache": None, "peers": 2, "peer": ["cnn-8"]}, "mutual learning of 3 (with cnn-8)", None),
        ({"cache": None, "peers": 2, "peer_weight": 0.5}, "mutual learning of 2, weight 0.5", None),
        ({"peers": 2}, "KL and mutual learning of 2", "soft labels, KL and mutual learning of 2"),
        ({"label_noise": 0.4}, "KL and hard labels, 40% of them wrong", None),
        ({"alpha": 0.0, "label_noise": 0.4}, "hard labels, 40% of them wrong", None),
        ({"hints": ["a=b"]}, "KL with features (hint)", None),
        ({"hints": ["a", "c"], "hint_loss": "attention"}, "KL with features (attention, 2 layers)", None),
        ({"hints": ["a=b"], "hint_epochs": 3}, "KL with features (hint, before labels)", None),
        (
            {"hints": ["a=b", "c=d"], "hint_epochs": 4, "hints_in_turn": True},
            "KL with features (hint, 2 layers, layer by layer, before labels)",
            None,
        ),
        ({"bare_topk": True}, "KL, bare", "soft labels, KL, bare"),
        (
            {"bare_topk": True, "loss": "skewed-kl", "cache": None, "labels": ["a", "b"], "mix": "losses"},
            "skewed KL from 2 caches, a loss each, bare",
            None,
        ),
        ({"bare_topk": True, "alpha": 0.0}, "hard labels", "hard labels"),
        ({"loss": "a-loss-of-tomorrow"}, "a loss of tomorrow", None),
    ],
)
def test_a_loss_is_told_by_the_configuration(config: dict[str, Any], loss: str, title: str | None) -> None:
    method = method_of({**BASE, **config})
    assert method.loss_title == loss
    assert title in (None, method.title)


def test_two_evaluations_of_a_run_are_told_apart(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.add("mlp-8", "omit-hard", [0.3, 0.3125, 0.325])
    world.add("mlp-8", "omit-soft", KL)
    before = read(world)
    world.add("mlp-8", "omit-soft", [0.95, 0.9625, 0.95], corrected=["<3>", "1"])
    world.add("mlp-8", "omit-hard", [0.35, 0.3375, 0.35], corrected=["<3>"])
    findings = read(world)
    said = {cell.name: cell.method.title for cell in findings.cells}
    assert said == {
        "mlp-8-omit-hard": "hard labels",
        "mlp-8-omit-hard-<3>": "hard labels, bias of <3> corrected",
        "mlp-8-omit-soft": "soft labels",
        "mlp-8-omit-soft-<3>-1": "soft labels, KL, bias of <3> and 1 corrected",
    }
    assert [cell.name for cell in findings.leading] == ["mlp-8-omit-hard", "mlp-8-omit-soft"]
    names = {line.cell.name: line.name for line in only(findings).lines}
    assert len(set(names.values())) == 4 and names["mlp-8-omit-soft-<3>-1"] == "KL, bias of <3> and 1 corrected"
    assert cost.labels_read(findings) == cost.labels_read(before) == 3 * 20 * 100, "a run is counted once"
    assert "soft labels, KL, bias of &lt;3&gt; and 1 corrected" in page(world, tmp_path / "page")


def test_a_corrected_evaluation_names_its_labels_too() -> None:
    assert method_of(BASE, "top3", ["3"]).title == "soft labels, KL from top3, bias of 3 corrected"


def test_bare_labels_are_named_beside_their_cache() -> None:
    assert method_of({**BASE, "bare_topk": True}, "top3").title == "soft labels, KL from top3, bare"


def test_losses_do_not_fall_together(world: World) -> None:
    names = [line.name for line in only(read(world)).lines]
    assert sorted(names) == sorted(["KL", "reverse KL", "skewed KL (skew 0.2)", "hard labels", "label smoothing 0.1"])


def test_what_shares_a_name_is_told_apart_by_labels_then_by_the_runs_own_name(world: World) -> None:
    world.add("mlp-8", "few-soft", KL)  # another setting, no part of it
    again = world.add("mlp-8", "top3", KL)
    twin = again.with_name("mlp-8-twin")
    twin.mkdir()
    for name in ("details.json", "metrics.json"):
        (twin / name).write_bytes((again / name).read_bytes())
    names = [line.name for line in only(read(World(world.root, [*world.evaluations, twin], world.runs))).lines]
    assert len(set(names)) == len(names) == 7
    assert "KL from top3 (mlp-8-twin)" in names and "KL from top3 (mlp-8-top3)" in names


def test_what_differs_names_the_twins(tmp_path: Path) -> None:
    world = World(tmp_path)
    for method in ("soft", "cooler", "reverse"):
        world.add("mlp-8", method, KL)
    names = {line.cell.name: line.name for line in only(read(world)).lines}
    assert names == {
        "mlp-8-soft": "KL at T = 4",
        "mlp-8-cooler": "KL at T = 2",
        "mlp-8-reverse": "reverse KL",
    }
    world.add("mlp-8", "replayed", KL)
    world.add("mlp-8", "fixed", KL)
    world.add("mlp-8", "fixed-reverse", KL)
    views = next(f for f in families(read(world)) if len(f.lines) == 3 and f.lines[0].cell.method.setting != "plain")
    assert {line.name for line in views.lines} == {"KL on replayed views", "KL on fixed labels", "reverse KL"}
    assert views.reference is not None and views.reference.name == "KL on replayed views"


def test_the_difference_is_that_of_paired_seeds(world: World) -> None:
    family = only(read(world))
    assert family.reference is not None and family.reference.name == "KL"
    skewed = next(line for line in family.lines if line.name.startswith("skewed"))
    assert skewed.contrast is not None
    gaps = np.array([0.925, 0.9, 0.9]) - np.array(KL)
    assert skewed.contrast.result.difference == pytest.approx(gaps.mean())
    assert skewed.contrast.result.by_seeds == pytest.approx(4.303 * gaps.std(ddof=1) / np.sqrt(3))
    assert skewed.contrast.result.by_examples > 0
    assert skewed.deviation == pytest.approx(100 * np.std([0.925, 0.9, 0.9], ddof=1))


def test_verdicts_and_order(world: World) -> None:
    lines = only(read(world)).lines
    assert [(line.name, line.verdict) for line in lines] == [
        ("KL", "reference"),
        ("skewed KL (skew 0.2)", "within noise"),
        ("reverse KL", "worse"),
        ("label smoothing 0.1", "worse"),
        ("hard labels", "worse"),
    ]


def test_a_better_loss_is_called_better(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.add("mlp-8", "soft", [0.5, 0.5125])
    world.add("mlp-8", "reverse", [0.9, 0.9125])
    assert [line.verdict for line in only(read(world)).lines] == ["better", "reference"]
    [(lead, sentence)] = summary(read(world))
    assert lead == "Losses, mlp-8"
    assert "Better: reverse KL (+40.0" in sentence and sentence.endswith("Worse: none. Within noise: none.")


def test_labels_of_another_cache_are_named_and_those_of_one_are_not(world: World) -> None:
    assert not any("from" in cell.method.title for cell in read(world).cells)
    world.add("mlp-8", "top3", KL)
    for options in ({}, {"runs": ()}):
        assert [c.name for c in read(world, **options).cells if "from top3" in c.method.title] == ["mlp-8-top3"]


def test_without_plain_kl_nothing_is_compared(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.add("mlp-8", "reverse", KL)
    world.add("mlp-8", "skewed", KL)
    found = families(read(world))
    assert found[0].reference is None and all(line.verdict == "" for line in found[0].lines)
    assert summary(read(world)) == []
    assert "0 comparisons" in expected_by_chance(found)
    assert "<h2>Losses</h2>" in page(world, tmp_path / "out")


def test_students_are_compared_with_their_own_kind(world: World) -> None:
    world.add("cnn-4", "soft", [0.2, 0.2125, 0.225], parameters=2000)
    world.add("cnn-4", "reverse", [0.2, 0.2125, 0.225], parameters=2000)
    found = families(read(world))
    assert [family.student for family in found] == ["mlp-8", "cnn-4"]
    for family in found:
        assert all(c.second.student == family.student for line in family.lines if (c := line.contrast))
    assert expected_by_chance(found).startswith("5 comparisons")


def test_the_page_has_the_table_and_the_figure(world: World, tmp_path: Path) -> None:
    text = page(world, tmp_path / "out")
    assert (tmp_path / "out" / "losses.png").read_bytes().startswith(b"\x89PNG")
    section = text.split("<h2>Losses</h2>")[1].split("</section>")[0]
    assert len(re.findall(r'<tr>\s*<th scope="row"', section)) == 5
    assert section.count('class="verdict lower">worse') == 3
    assert "4 comparisons at 95%" in section and "about 0.2 of them" in section
    assert str(EXAMPLES) in text


def test_other_figures_show_the_usual_loss(world: World) -> None:
    findings = read(world)
    assert [cell.name for cell in findings.leading] == ["mlp-8-hard", "mlp-8-soft"]
    assert len(findings.cells) == 5


def test_one_loss_makes_no_section(tmp_path: Path) -> None:
    """Neither the default pipeline's settings, nor one other loss used throughout."""
    world = full_world(tmp_path / "a")
    findings = read(world)
    assert families(findings) == [] and findings.leading == findings.cells
    text = page(world, tmp_path / "out")
    assert "<h2>Losses</h2>" not in text and not (tmp_path / "out" / "losses.png").exists()
    other = World(tmp_path / "b")
    other.add("mlp-8", "reverse", KL)
    other.add("mlp-8", "hard", KL)
    assert families(read(other)) == [] and len(read(other).of("plain")) == 2
