"""The page in a real browser: nothing leaves it, it fits a phone, sorts, follows the theme, and is accessible.

Needs Chromium or Chrome on the machine, Playwright to drive it, and the axe-core that axe-playwright-python carries.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from pipeline import report
from pipeline.report import ReportConfig
from pipeline.report.reading import read_findings
from pipeline.report.record import record_of
from tests.report.synthetic import World, artefact, full_world, write
from tests.report.tables import compressed as compressed_alone
from tests.report.tables import language, models
from tests.report.test_alone import ACCURACIES, FRONT
from tests.report.test_columns import POINTS

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
    "--no-sandbox",
)
PHONE = 360
PAGES = ("report", "comparison", "artefacts", "language")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless browser, or the reason why there is none."""
    named = os.environ.get("SOFTLABELS_CHROME")
    found = named or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on the path, and SOFTLABELS_CHROME names none")
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("no driver for the browser: pip install 'softlabels[dev]' brings playwright")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=found, args=list(FLAGS))
        yield started
        started.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The addresses of a full page with a search, of a comparison, of artefacts and models alone, and of language."""
    root = tmp_path_factory.mktemp("pages")
    world = full_world(root / "world")
    rows = [
        artefact("teacher", size=90_000, milliseconds=2.0, accuracy=0.97, control=True),
        artefact("baseline", size=4000, milliseconds=0.2, accuracy=0.95),
        artefact("int8", size=1900, milliseconds=0.3, accuracy=0.94, warnings=["slower than baseline at batch 1"]),
    ]
    compressed = world.add_compressed(rows)
    table = compressed / "table.json"
    table.write_text(json.dumps({**json.loads(table.read_text()), "front": POINTS}))
    options = {**world.options(), "cache": world.add_cache(), "compressed": (compressed,)}
    report.run(ReportConfig(**options, out=root / "report"))
    other = World(root / "other")
    for student, method in (("mlp-8", "hard"), ("mlp-8", "soft"), ("cnn-4", "soft")):
        other.add(student, method, [0.7, 0.7125, 0.7])
    record = record_of(read_findings(teacher=None, cache=None, compressed=(), **other.options()), "Another")
    write(root / "fewer" / "report.json", record)
    report.run(ReportConfig(compare=(root / "fewer", root / "report"), out=root / "comparison"))
    scan = [{"layer": "conv", "ratio": ratio, "score": 1 - ratio} for ratio in (0.25, 0.5)]
    times = {"chosen": "U8S8", "milliseconds": {"float": {"1": 0.2}, "U8S8": {"1": 0.1}}, "skipped": {}}
    alone = compressed_alone(root / "alone", ACCURACIES, front=FRONT)
    table = json.loads((alone / "table.json").read_text())
    table["rows"][2] |= {"scan": scan, "activations": times, "warnings": ["slower than baseline at batch 1"], "macs": 9}
    table["rows"][2] |= {"memory": 9, "brier": 0.1, "nonzeros": 9, "kl_to_teacher": 0.1}
    write(alone / "table.json", table)
    several = models(root / "several", ACCURACIES)
    report.run(ReportConfig(compressed=(alone,), models=several, out=root / "artefacts"))
    report.run(ReportConfig(models=language(root / "tokens"), out=root / "language"))
    return {name: (root / name / "index.html").as_uri() for name in PAGES}


@pytest.fixture(params=PAGES)
def opened(request: pytest.FixtureRequest, browser: Any, pages: dict[str, str]) -> Iterator[Any]:
    """A page on a desktop; whatever it asks for or complains of fails the test."""
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        page = context.new_page()
        asked: list[str] = []
        page.on("request", lambda call: asked.append(call.url))
        page.on("console", lambda message: asked.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: asked.append(f"error: {error}"))
        page.goto(pages[request.param])
        yield page
        assert asked == [pages[request.param]]


def test_nothing_is_asked_of_any_network_nor_complained_of(opened: Any) -> None:
    assert opened.title().endswith("Softlabels")
    opened.wait_for_load_state("networkidle")


def test_the_page_itself_forbids_every_request(browser: Any, pages: dict[str, str]) -> None:
    """A page that asks for nothing could be made to: its policy refuses an image, a style sheet, a script, a call."""
    script = """() => Promise.all(["img", "link", "script", "fetch"].map((kind) => new Promise((done) => {
        addEventListener("securitypolicyviolation", (e) => e.blockedURI.endsWith(kind) && done(e.effectiveDirective));
        const address = `http://127.0.0.1:9/${kind}`;
        if (kind === "fetch") { fetch(address).catch(() => 0); return; }
        const one = document.createElement(kind);
        one.rel = "stylesheet";
        one[kind === "link" ? "href" : "src"] = address;
        document.body.append(one);
    })))"""
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(pages["report"])
        assert page.evaluate(script) == ["img-src", "style-src-elem", "script-src-elem", "connect-src"]


@pytest.mark.parametrize("width", [PHONE, 768, 1280])
def test_no_page_scrolls_sideways(opened: Any, width: int) -> None:
    opened.set_viewport_size({"width": width, "height": 740})
    opened.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    boxes = "[...document.querySelectorAll('.scroll')]"
    inside = opened.evaluate(f"{boxes}.filter((box) => box.scrollWidth > box.clientWidth).length")
    assert width > PHONE or inside, "wide tables scroll in their own box"
    lost = opened.evaluate(f"{boxes}.filter((box) => box.scrollWidth > box.clientWidth && box.tabIndex < 0).length")
    assert not lost, "and the keyboard gets there"


def column(page: Any, table: int, index: int) -> list[str]:
    """The values of a column of a table, in the order shown, group by group."""
    script = """([t, c]) => [...document.querySelectorAll("table.sortable")[t].tBodies].map((body) =>
        [...body.rows].filter((row) => !row.classList.contains("head")).map((row) => row.cells[c].dataset.value))"""
    return [value for group in page.evaluate(script, [table, index]) for value in ["|", *group]]


def test_tables_sort_by_click_and_by_keyboard(opened: Any) -> None:
    tables = opened.locator("table.sortable")
    which, index = opened.evaluate(
        """() => [...document.querySelectorAll("table.sortable")].flatMap((one, t) =>
            [...one.tHead.rows[0].cells].flatMap((head, c) => (head.dataset.kind === "number" ? [[t, c]] : [])))[0]"""
    )
    head = tables.nth(which).locator("thead th").nth(index)
    written = column(opened, which, index)

    def groups(values: list[str]) -> list[list[float]]:
        text = "\n".join(values).split("|")
        return [[float(v) for v in part.split() if v] for part in text]

    opened.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert groups(column(opened, which, index)) == [sorted(g, reverse=True) for g in groups(written)]
    head.locator("button").focus()
    opened.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert groups(column(opened, which, index)) == [sorted(g) for g in groups(written)]
    assert "ascending" in opened.locator("#said").inner_text()
    other = tables.nth(which).locator("thead th").first
    other.locator("button").focus()
    opened.keyboard.press("Space")
    assert other.get_attribute("aria-sort") == "ascending" and head.get_attribute("aria-sort") is None


def test_the_first_stop_of_the_keyboard_skips_to_the_content(opened: Any) -> None:
    opened.keyboard.press("Tab")
    assert opened.evaluate("document.activeElement.className") == "skip"
    assert opened.evaluate("document.activeElement.getBoundingClientRect().top") >= 0
    opened.keyboard.press("Enter")
    assert opened.evaluate("document.activeElement.id") == "main"


def test_the_theme_is_the_readers_and_print_is_light(opened: Any) -> None:
    def colours() -> list[str]:
        script = """() => { const style = getComputedStyle(document.body);
            const path = document.querySelector("figure svg path[style*='--paper']");
            return [style.backgroundColor, style.color, path ? getComputedStyle(path).fill : ""]; }"""
        found: list[str] = opened.evaluate(script)
        return found

    opened.emulate_media(color_scheme="light")
    light = colours()
    opened.emulate_media(color_scheme="dark")
    dark = colours()
    assert light[0] == "rgb(255, 255, 255)" and dark[0] == "rgb(20, 25, 29)"
    assert light[2] == light[0] and dark[2] == dark[0], "figures follow"
    opened.emulate_media(color_scheme="dark", media="print")
    assert colours() == light


def test_it_prints_as_more_than_nothing(opened: Any) -> None:
    opened.emulate_media(media="print")
    assert opened.pdf(format="A4").startswith(b"%PDF")
    shown = "[...document.querySelectorAll('button.copy, nav')].filter((one) => one.offsetHeight).length"
    assert opened.evaluate(shown) == 0
    cut = "[...document.querySelectorAll('.scroll')].filter((b) => getComputedStyle(b).overflowX !== 'visible').length"
    assert opened.evaluate(cut) == 0


def test_headings_are_in_order(opened: Any) -> None:
    levels = opened.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map((h) => Number(h.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", PHONE)])
def test_axe_finds_nothing(opened: Any, scheme: str, width: int) -> None:
    """No violation of any impact: WCAG 2 A and AA, and what axe calls best practice."""
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None or found.origin is None:
        pytest.skip("no axe-core: pip install 'softlabels[dev]' brings it in axe-playwright-python")
    opened.set_viewport_size({"width": width, "height": 900})
    opened.emulate_media(color_scheme=scheme)
    opened.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    opened.evaluate(Path(found.origin).with_name("axe.min.js").read_text(encoding="utf-8"))
    result = opened.evaluate("axe.run(document, {resultTypes: ['violations']})")
    told = [(v["impact"], v["id"], [node["html"][:120] for node in v["nodes"][:3]]) for v in result["violations"]]
    assert not told
    assert len(result["passes"]) > 20, "axe looked"
