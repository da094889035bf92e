"""Say how two caches differ."""

from __future__ import annotations

import json

import click

from pipeline.caches.difference import DiffConfig, DiffReport, run
from stages.options import verb_command
from stages.verbs.inspecting import table


def _print(report: DiffReport, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(report.as_dict(), indent=2, ensure_ascii=False))
    elif report.same:
        click.echo(report.summary)
    else:
        click.echo("\n".join(table(report.lines())))


diff = verb_command(
    "diff",
    DiffConfig,
    run,
    """Compare two caches, ONE and OTHER (directories or URLs): what their identities say, which examples and views each
    covers, and how far their labels lie apart on the examples that both have. Nothing is written.
    """,
    {"one": "ONE", "other": "OTHER"},
    _print,
)
