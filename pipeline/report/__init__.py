"""What a team shows: one page of what distillation from the cache brought, which asks nothing of any network.

Everything on it comes from files that other stages wrote; nothing is measured here. The same inputs give the same page.
Beside it lie its numbers: ``report.json`` (two of which ``--compare`` holds against each other), ``plots/*.csv`` for
``dvc plots``, and a PNG per figure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.configuration import REQUIRED, Config, option
from pipeline.identity import digest
from pipeline.outputs import json_bytes
from pipeline.progress import Progress, Silent
from pipeline.references import optional
from pipeline.report.reading import read_findings
from pipeline.workspace import Workspace, refuse_strangers, write_atomic

__all__ = ["ReportConfig", "ReportReport", "run"]

OWN = ("index.html", "report.json", "comparison.json", "plots/", "*.png")
"""What this command writes into its folder."""


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Config):
    """Options of ``softlabels report``."""

    evaluations: tuple[Path, ...] = option((), "directory of an evaluation")
    runs: tuple[Path, ...] = option((), "directory of a training run, for its curves and times")
    teacher: Path | None = option(None, "directory of the teacher, for what its training recorded")
    cache: Path | None = option(None, "directory of the cache, for its identity and what the dump cost")
    compressed: tuple[Path, ...] = option(
        (), "directory that softlabels compress wrote; of several, the seeds of one recipe, the means"
    )
    models: Path | None = option(None, "directory of an evaluation of several models, for their table")
    claims: tuple[Path, ...] = option((), "file that softlabels compare --out wrote")
    title: str | None = option(None, "heading of the page; by default what it is about")
    tensorboard: Path | None = option(None, "also a directory for the same numbers as TensorBoard event files")
    compare: tuple[Path, Path] | None = option(
        None, "instead of all else: two finished reports, for a page of what differs between them", metavar="A B"
    )
    out: Path = option(REQUIRED, "directory for index.html, report.json and the plots")

    def problems(self) -> Iterator[str]:
        if self.compare is not None:
            others = self.given(
                "evaluations", "runs", "teacher", "cache", "compressed", "models", "claims", "tensorboard"
            )
            if others:
                yield f"--compare takes two reports and nothing else; found --{', --'.join(others)}"
            return
        if not (self.evaluations or self.compressed or self.models):
            yield (
                "one of --evaluations, --compressed and --models should name what a stage wrote, or --compare two "
                "reports; found none of them"
            )
        names = [path.name for path in self.runs]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            yield f"--runs should have distinct names; {', '.join(twice)} occurs more than once"
        if self.tensorboard is not None:
            one, other = self.tensorboard.absolute(), self.out.absolute()
            if one.is_relative_to(other) or other.is_relative_to(one):
                yield "--tensorboard and --out should be apart: each is replaced as a whole"


@dataclass(frozen=True)
class ReportReport:
    """Where the page is and what was drawn; ``lines`` is what else people want to see at once."""

    out: str
    bytes: int
    figures: tuple[str, ...]
    lines: tuple[str, ...] = ()
    scalars: int | None = None

    @property
    def summary(self) -> str:
        """What was found, where there is a word on it, then a line on the page."""
        board = "" if self.scalars is None else f"; {self.scalars:,} scalars for TensorBoard"
        figures = f"{len(self.figures)} figure{'' if len(self.figures) == 1 else 's'}"
        return "\n".join([*self.lines, f"{self.out}/index.html: {self.bytes / 1e3:,.0f} kB, {figures}{board}"])

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        found = {"out": self.out, "bytes": self.bytes, "figures": list(self.figures), "lines": list(self.lines)}
        return {**found, "scalars": self.scalars}


def run(config: ReportConfig, progress: Progress | None = None) -> ReportReport:
    """Write index.html, report.json, plots/*.csv and a PNG per figure; with ``compare``, a page of differences.

    Raises ConfigError when a directory that was named is not what it should be, MissingDependencyError without
    matplotlib or jinja2, and without tensorboard where its files are asked for.
    """
    refuse_strangers(config.out, OWN)
    for package in ("matplotlib", "jinja2"):
        optional(package, "report", "the report")
    if config.compare is not None:
        return _compare(config, *config.compare)
    return _draw(config, progress or Silent())


def _draw(config: ReportConfig, progress: Progress) -> ReportReport:
    from pipeline.report.facts import heading
    from pipeline.report.one_by_one import together
    from pipeline.report.page import draw, render  # it imports both packages
    from pipeline.report.record import NAME, record_of
    from pipeline.report.series import all_series

    if config.tensorboard is not None:
        from pipeline.report.board import check_board

        check_board(config.tensorboard)
    findings = read_findings(
        teacher=config.teacher,
        cache=config.cache,
        runs=config.runs,
        evaluations=config.evaluations,
        compressed=config.compressed,
        claims=config.claims,
        models=config.models,
    )
    findings = together(findings)
    drawings = draw(findings, progress)
    title = config.title or heading(findings)
    page = render(findings, drawings, title, _command(config)).encode()
    with Workspace(config.out, digest({"stage": "report", **config.as_dict()})) as space:
        space.clear()
        for drawing in drawings.values():
            write_atomic(space.path / f"{drawing.name}.png", drawing.png)
        for series in all_series(findings):
            write_atomic(space.path / "plots" / f"{series.name}.csv", series.csv)
        write_atomic(space.path / NAME, json_bytes(record_of(findings, title), indent=None))
        write_atomic(space.path / "index.html", page)
        space.commit()
    scalars = None
    if config.tensorboard is not None:
        from pipeline.report.board import write_board

        scalars = write_board(findings, config.tensorboard)
    return ReportReport(str(config.out), len(page), tuple(drawings), scalars=scalars)


def _compare(config: ReportConfig, first: Path, second: Path) -> ReportReport:
    from pipeline.report.comparing_page import draw_comparison, render_comparison
    from pipeline.report.differences import between, lines

    found = between(first, second)
    drawing = draw_comparison(found)
    page = render_comparison(found, drawing).encode()
    with Workspace(config.out, digest({"stage": "report", **config.as_dict()})) as space:
        space.clear()
        if drawing is not None:
            write_atomic(space.path / f"{drawing.name}.png", drawing.png)
        write_atomic(space.path / "comparison.json", json_bytes(found.as_dict()))
        write_atomic(space.path / "index.html", page)
        space.commit()
    figures = () if drawing is None else (drawing.name,)
    return ReportReport(str(config.out), len(page), figures, tuple(lines(found)))


def _command(config: ReportConfig) -> str:
    """The command of the page; where it lies is no part of it."""
    from pipeline.report.commands import line

    return line("report", ReportConfig, {**config.as_dict(), "out": "report", "tensorboard": None})
