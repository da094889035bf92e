"""Claims on the page: what was expected, what was found, and nothing of them where there are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from pipeline import report
from pipeline.errors import ConfigError
from pipeline.evaluation.comparing import read_comparison
from pipeline.report import ReportConfig, claims
from tests.report.synthetic import World

KNOWN: dict[str, Any] = {
    "first": "evaluations/cold",
    "second": "evaluations/hot",
    "metric": "accuracy",
    "expect": "higher",
    "margin": None,
    "claim": "A low <temperature> helps small students",
    "source": "Hinton et al. 2015",
    "first_mean": 0.75,
    "second_mean": 0.5,
    "difference": 0.25,
    "half_width": 0.05,
    "paired_seeds": 5,
    "verdict": "higher",
    "outcome": "as expected",
    "text": "+25.0 ± 5.0 points",
}


def write(folder: Path, **changes: Any) -> Path:
    path = folder / f"claim-{len(list(folder.glob('claim-*')))}.json"
    path.write_text(json.dumps(KNOWN | changes))
    return path


def several(folder: Path) -> tuple[Path, ...]:
    return (
        write(folder),
        write(folder, expect="alike", margin=1.0, outcome="not shown", verdict="within noise", claim="They are alike"),
        write(folder, metric="nll", difference=-0.1, half_width=None, outcome="the other way", text="-0.100 nats"),
        write(folder, expect=None, outcome="", claim="", source=""),
    )


def test_rows_say_what_was_expected_and_found(tmp_path: Path) -> None:
    rows = claims.rows([read_comparison(path) for path in several(tmp_path)])
    assert [row["outcome"] for row in rows] == ["as expected", "not shown", "the other way", "higher"]
    assert [row["tone"] for row in rows] == ["higher", "noise", "lower", "noise"]
    assert rows[1]["expected"] == "alike within 1 points" and rows[3]["claim"] == "cold against hot"
    assert rows[0]["values"] == "75.0 and 50.0%" and rows[2]["values"] == "0.750 and 0.500 nats"


def test_the_page_has_them_escaped_and_a_figure(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.add("mlp-8", "soft", [0.8, 0.9])
    out = tmp_path / "page"
    config = ReportConfig(evaluations=tuple(world.evaluations), claims=several(tmp_path), out=out)
    assert "claims" in report.run(config).figures
    page = (out / "index.html").read_text()
    assert "<h2>Claims</h2>" in page and "low &lt;temperature&gt; helps" in page and "+25.0 ± 5.0 points" in page
    assert "Of 3: 1 as expected, 1 not shown, 1 the other way." in page
    assert (out / "claims.png").read_bytes().startswith(b"\x89PNG")
    plain = report.run(ReportConfig(evaluations=tuple(world.evaluations), out=tmp_path / "plain"))
    assert "claims" not in plain.figures and "<h2>Claims</h2>" not in (tmp_path / "plain" / "index.html").read_text()


@pytest.mark.parametrize("change", [{"metric": "f1"}, {"difference": "1"}, {"outcome": None}, {"half_width": []}])
def test_another_file_is_refused_by_name(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"claim-0\.json should be a comparison"):
        read_comparison(write(tmp_path, **change))
