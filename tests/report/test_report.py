"""The page: whole, self-contained, the same each time, and honest about what chance explains."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from pipeline import evaluation, report, teacher
from pipeline.errors import ConfigError
from pipeline.evaluation import EvaluateConfig
from pipeline.report import ReportConfig
from pipeline.report.charts import pareto_front
from pipeline.report.methods import AUGMENTED, FEW, OMITTED, PLAIN, Method, method_of
from pipeline.report.reading import compare, read_findings
from pipeline.report.style import ON_FILL
from pipeline.report.words import contrasts, summary
from pipeline.teacher import FitTeacherConfig
from tests.report.synthetic import BASE, METHODS, World, artefact, full_world
from tests.small_pipeline import make

FIGURES = {"accuracy", "curves", "pareto", "reliability", "confusion", "costs"}


class Page(HTMLParser):
    """What a page would load or run, its text, and whether its tags close."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.handlers: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        names = ("src", "href", "xlink:href", "srcset", "data", "action")
        self.sources += [value or "" for name, value in attrs if name in names]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)


def draw(world: World, out: Path, **options: Any) -> str:
    report.run(ReportConfig(**{**world.options(), "out": out, **options}))
    return (out / "index.html").read_text(encoding="utf-8")


def small_world(root: Path) -> World:
    world = World(root)
    world.add("mlp-8", "soft", [0.9, 0.9125])
    world.add("mlp-8", "hard", [0.8, 0.8125])
    return world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return full_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def full(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    rows = [
        artefact("baseline", size=4000, milliseconds=0.2, accuracy=0.95),
        artefact("int8", size=3900, milliseconds=0.3, accuracy=0.94, warnings=["slower than baseline at batch 1"]),
        artefact("pruned-int8", size=1000, milliseconds=0.1, accuracy=0.93),
        {"name": "pruned", "what": "", "skipped": "pruning needs torch_pruning, which is not installed"},
    ]
    out = tmp_path_factory.mktemp("page") / "report"
    return draw(world, out, cache=world.add_cache(), compressed=(world.add_compressed(rows),)), out


def test_one_file_that_loads_nothing(full: tuple[str, Path]) -> None:
    page = Page(full[0])
    assert page.open == []
    assert not {"link", "iframe", "object", "embed", "form"} & set(page.tags) and not page.handlers
    assert page.tags.count("svg") == len(FIGURES)
    assert all(source.startswith(("#", "data:image/png;base64,")) for source in page.sources)
    assert "@import" not in full[0] and "http" not in "".join(re.findall(r"url\(([^)]*)\)", full[0]))


def test_the_one_script_is_the_one_that_the_page_allows(full: tuple[str, Path]) -> None:
    [script] = re.findall(r"<script>(.*?)</script>", full[0], re.DOTALL)
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    [policy] = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', full[0])
    assert "default-src 'none'" in html.unescape(policy)
    assert f"script-src 'sha256-{allowed}'" in html.unescape(policy) and "script-src 'unsafe" not in policy


def test_figures_share_a_document_and_no_name(full: tuple[str, Path]) -> None:
    names = re.findall(r'\sid="([^"]*)"', full[0])
    assert len(names) == len(set(names))
    used = set(re.findall(r'href="#([^"]*)"', full[0])) | set(re.findall(r"url\(#([^)]*)\)", full[0]))
    assert used <= set(names)


def test_figures_take_every_colour_from_the_theme(full: tuple[str, Path]) -> None:
    drawn = "".join(re.findall(r"<svg.*?</svg>", full[0], re.DOTALL))
    drawn = re.sub(r"(base64,[^\"]*|href=\"#[^\"]*|id=\"[^\"]*|url\(#[^)]*)", "", drawn)
    assert set(re.findall(r"#[0-9a-f]{6}\b", drawn)) <= {ON_FILL}
    names = set(re.findall(r"var\(--([a-z-]+)\)", drawn))
    assert names and all(full[0].count(f"--{name}: #") == 2 for name in names), "one for light, one for dark"


def test_every_figure_and_table_names_its_command(full: tuple[str, Path]) -> None:
    sections = re.findall(r'<section id="([a-z]+)".*?</section>', full[0], re.DOTALL)
    assert {"accuracy", "results", "curves", "compression", "calibration", "confusions"} <= set(sections)
    for name in ("accuracy", "results", "curves", "compression", "calibration", "confusions"):
        section = full[0].split(f'<section id="{name}"')[1].split("</section>")[0]
        assert re.search(r'<p class="command">.*?<code><span>softlabels</span>', section, re.DOTALL), name


def test_a_png_for_every_figure(full: tuple[str, Path]) -> None:
    pictures = list(full[1].glob("*.png"))
    assert {path.stem for path in pictures} == FIGURES
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)


def test_figures_have_a_text_for_those_who_cannot_see_them(full: tuple[str, Path]) -> None:
    texts = re.findall(r'<svg [^>]*role="img" aria-label="([^"]*)"', full[0])
    assert len(texts) == len(FIGURES) and all(len(text) > 20 for text in texts)


def test_captions_say_how_much_stands_behind_a_figure(full: tuple[str, Path]) -> None:
    assert "n = 80 test examples, 3 seeds" in full[0]


def test_calibration_after_scaling_is_shown_where_it_was_measured(tmp_path: Path) -> None:
    world = small_world(tmp_path)
    before = draw(world, tmp_path / "a")
    flat = world.evaluations[0] / "metrics.json"
    flat.write_text(json.dumps({**json.loads(flat.read_text()), "calibrated_ece": 0.012}))
    after = draw(world, tmp_path / "b")
    assert "An arrow leads to the ECE after" in after and "An arrow" not in before
    assert (tmp_path / "a" / "reliability.png").read_bytes() != (tmp_path / "b" / "reliability.png").read_bytes()


def test_text_of_others_is_escaped(full: tuple[str, Path]) -> None:
    """Class names and processor names come from files: they must not become markup."""
    assert "<3>" not in full[0] and "&lt;3&gt;" in full[0]
    assert "A &lt;CPU&gt;" in full[0]


def test_warnings_and_reasons_are_shown(full: tuple[str, Path]) -> None:
    text = " ".join(Page(full[0]).text)
    assert "Slower than baseline at batch 1." in text
    assert "Skipped: pruning needs torch_pruning, which is not installed." in text


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    world = small_world(tmp_path)
    first, second = draw(world, tmp_path / "a"), draw(world, tmp_path / "b")
    assert first == second
    for path in [*(tmp_path / "a").glob("*.png"), *(tmp_path / "a").glob("*.json")]:
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_evaluations_alone_make_a_page(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.add("mlp-8", "soft", [0.9])
    world.add("mlp-8", "hard", [0.8])
    page = draw(world, tmp_path / "out", runs=())
    assert "single seed" in page
    assert "Smaller and faster" not in page and "What the cache cost" not in page and "Training curves" not in page


def test_a_second_page_replaces_the_first(tmp_path: Path) -> None:
    world = small_world(tmp_path)
    draw(world, tmp_path / "out")
    assert (tmp_path / "out" / "curves.png").is_file()
    draw(world, tmp_path / "out", runs=())
    assert not (tmp_path / "out" / "curves.png").exists()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=r"holds thesis\.tex"):
        draw(world, tmp_path / "out")


def test_costs_are_told_apart_as_measured_and_computed(tmp_path: Path) -> None:
    world = small_world(tmp_path)
    text = " ".join(Page(draw(world, tmp_path / "a", cache=world.add_cache())).text)
    # 2 seeds, 20 epochs of 100 visits each, of the soft one alone; 0.5 s for 500 answers: 1 ms each.
    assert "4,000" in text and "4.00 s" in text and "computed: time per answer by labels read" in text
    resumed = " ".join(Page(draw(world, tmp_path / "b", cache=world.add_cache(resumed=1))).text)
    assert "computed" not in resumed, "a resumed dump timed only some of its answers"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hard", Method(PLAIN, "hard")),
        ("soft", Method(PLAIN, "soft")),
        ("fixed", Method(AUGMENTED, "fixed")),
        ("replayed", Method(AUGMENTED, "replayed")),
        ("hard-aug", Method(AUGMENTED, "hard")),
        ("few-hard", Method(FEW, "hard", "5%")),
        ("few-soft", Method(FEW, "soft", "5%")),
        ("omit-hard", Method(OMITTED, "hard", "<3>")),
        ("omit-soft", Method(OMITTED, "soft", "<3>")),
    ],
)
def test_what_a_run_did_is_told_by_its_configuration(name: str, expected: Method) -> None:
    assert method_of({**BASE, **METHODS[name]}) == expected


def test_without_a_cache_labels_are_hard() -> None:
    assert method_of({"alpha": None}).kind == "hard"
    assert method_of({"alpha": None, "teacher": "cnn-32"}).kind == "soft"


class TestWords:
    def pair(self, tmp_path: Path, soft: list[float], hard: list[float]) -> Any:
        world = World(tmp_path)
        world.add("mlp-8", "soft", soft)
        world.add("mlp-8", "hard", hard)
        return self.read(world)

    def read(self, world: World) -> Any:
        return read_findings(teacher=None, cache=None, runs=(), evaluations=world.evaluations, compressed=())

    def test_noise_is_called_noise(self, tmp_path: Path) -> None:
        findings = self.pair(tmp_path, [0.90, 0.9125, 0.8875], [0.9125, 0.8875, 0.90])
        [(_, sentence)] = summary(findings)
        assert "within noise" in sentence and "higher" not in sentence and "lower" not in sentence

    def test_a_gain_is_called_higher_and_a_loss_lower(self, tmp_path: Path) -> None:
        [(_, gain)] = summary(self.pair(tmp_path / "a", [0.95, 0.9375, 0.95], [0.60, 0.6125, 0.60]))
        [(_, loss)] = summary(self.pair(tmp_path / "b", [0.60, 0.6125, 0.60], [0.95, 0.9375, 0.95]))
        assert "higher for mlp-8" in gain and "lower for mlp-8" in loss

    def test_the_omitted_class_is_compared_on_its_own_examples(self, tmp_path: Path) -> None:
        world = World(tmp_path)
        world.add("mlp-8", "omit-soft", [0.9, 0.9])
        world.add("mlp-8", "omit-hard", [0.5, 0.5])
        [contrast] = contrasts(self.read(world))
        cells = {c.method.kind: c for c in (contrast.first, contrast.second)}
        assert contrast.result.difference == pytest.approx(cells["soft"].omitted[0] - cells["hard"].omitted[0])
        assert "accuracy on" in summary(self.read(world))[0][1]

    def test_comparison_is_symmetric(self, tmp_path: Path) -> None:
        first, second = self.pair(tmp_path, [0.90, 0.9125], [0.85, 0.8875]).cells
        one, other = compare(first, second), compare(second, first)
        assert (one.difference, one.half_width) == (-other.difference, other.half_width)


def test_results_on_other_examples_do_not_share_a_page(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.add("mlp-8", "soft", [0.9])
    world.add("mlp-8", "hard", [0.9], digest="f" * 64)
    with pytest.raises(ConfigError, match="same examples"):
        draw(world, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folders_that_are_no_results(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"details\.json"):
        report.run(ReportConfig(evaluations=(tmp_path,), out=tmp_path / "out"))
    (tmp_path / "details.json").write_text("[]")
    with pytest.raises(ConfigError, match="list"):
        report.run(ReportConfig(evaluations=(tmp_path,), out=tmp_path / "out"))


def test_wrong_options(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one of --evaluations, --compressed and --models"):
        ReportConfig(out=tmp_path)
    with pytest.raises(ConfigError, match="distinct"):
        ReportConfig(evaluations=(tmp_path,), runs=(tmp_path / "a" / "x", tmp_path / "b" / "x"), out=tmp_path)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("teacher", Path("no"), r"no/report\.json should be what fit-teacher recorded"),
        ("cache", Path("no"), r"no/manifest\.json should be the manifest of a cache"),
        ("compressed", (Path("no"),), r"no/table\.json should be what softlabels compress measured"),
        ("runs", (Path("no"),), r"no/run\.json should be the record of a training run"),
    ],
)
def test_a_directory_that_was_named_and_is_not_there(tmp_path: Path, option: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        report.run(ReportConfig(**{"evaluations": (tmp_path,), "out": tmp_path / "out", option: value}))


def test_the_front_is_what_nothing_beats() -> None:
    assert pareto_front([(1, 0.5), (1, 0.6), (2, 0.6), (3, 0.7), (4, 0.65)]) == [1, 3]
    assert pareto_front([]) == []


def test_what_the_stages_write_is_what_the_report_reads(tmp_path: Path) -> None:
    small = make(tmp_path)
    evaluations = []
    for run in (small.soft, small.hard):
        evaluations.append(tmp_path / "evaluations" / run.name)
        evaluation.run(EvaluateConfig(run=run, out=evaluations[-1], device="cpu"))
    fitted = FitTeacherConfig(
        data=small.data, teacher="mlp-4", epochs=1, views=0, out=tmp_path / "teacher", device="cpu"
    )
    size = teacher.run(fitted).figures["parameters"]
    made = report.run(
        ReportConfig(
            evaluations=tuple(evaluations),
            runs=(small.soft, small.hard),
            teacher=tmp_path / "teacher",
            cache=small.cache,
            out=tmp_path / "report",
        )
    )
    assert {"accuracy", "curves", "reliability", "confusion", "costs"} == set(made.figures)
    text = " ".join(Page((tmp_path / "report" / "index.html").read_text(encoding="utf-8")).text)
    identity = json.loads((small.cache / "manifest.json").read_text())["identity"]["digest"]
    assert identity in text
    assert f"{size:,} parameters" in text
    assert "Soft labels against hard labels" in text
