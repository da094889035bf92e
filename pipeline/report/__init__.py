"""One page that shows what distillation from the cache brought: self-contained, no network, no scripts.

Everything on it comes from files that other stages wrote; nothing is measured here. The same inputs give the same page.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.configuration import REQUIRED, Config, option
from pipeline.identity import digest
from pipeline.progress import Progress, Silent
from pipeline.references import optional
from pipeline.report.reading import read_findings
from pipeline.workspace import Workspace, refuse_strangers, write_atomic

__all__ = ["ReportConfig", "ReportReport", "run"]


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Config):
    """Options of ``softlabels report``."""

    evaluations: tuple[Path, ...] = option((), "directory of an evaluation")
    runs: tuple[Path, ...] = option((), "directory of a training run, for its curves and times")
    teacher: Path | None = option(None, "directory of the teacher, for what its training recorded")
    cache: Path | None = option(None, "directory of the cache, for its identity and what the dump cost")
    compressed: Path | None = option(None, "directory that softlabels compress wrote")
    claims: tuple[Path, ...] = option((), "file that softlabels compare --out wrote")
    title: str = option("What distillation from the cache brought", "heading of the page")
    out: Path = option(REQUIRED, "directory for index.html and the plots")

    def problems(self) -> Iterator[str]:
        if not self.evaluations:
            yield "--evaluations should name at least one evaluation"
        names = [path.name for path in self.runs]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            yield f"--runs should have distinct names; {', '.join(twice)} occurs more than once"


@dataclass(frozen=True)
class ReportReport:
    """Where the page is and what was drawn."""

    out: str
    bytes: int
    figures: tuple[str, ...]

    @property
    def summary(self) -> str:
        """One line for people."""
        return f"{self.out}/index.html: {self.bytes / 1e3:,.0f} kB, {len(self.figures)} figures"

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {"out": self.out, "bytes": self.bytes, "figures": list(self.figures)}


def run(config: ReportConfig, progress: Progress | None = None) -> ReportReport:
    """Write index.html and a PNG per figure.

    Raises ConfigError when a directory that was named is not what it should be, MissingDependencyError without
    matplotlib or jinja2.
    """
    progress = progress or Silent()
    refuse_strangers(config.out, ("index.html", "*.png"))
    for package in ("matplotlib", "jinja2"):
        optional(package, "report", "the report")
    from pipeline.report.page import draw, render  # they import both packages

    findings = read_findings(
        teacher=config.teacher,
        cache=config.cache,
        runs=config.runs,
        evaluations=config.evaluations,
        compressed=config.compressed,
        claims=config.claims,
    )
    drawings = draw(findings, progress)
    page = render(findings, drawings, config.title).encode()
    with Workspace(config.out, digest({"stage": "report", **config.as_dict()})) as space:
        space.clear()
        for drawing in drawings.values():
            write_atomic(space.path / f"{drawing.name}.png", drawing.png)
        write_atomic(space.path / "index.html", page)
        space.commit()
    return ReportReport(str(config.out), len(page), tuple(drawings))
