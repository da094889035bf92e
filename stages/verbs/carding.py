"""Write a card beside a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stages.options import SETTINGS, Command, json_option, print_report
from stages.progress import TerminalProgress


@click.command("card", cls=Command, context_settings=SETTINGS)
@click.argument("cache")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder of the card  [default: CACHE.card; for a URL, needed]"
)
@click.option("--licence", metavar="TEXT", help="Terms under which others may use the cache")
@click.option("--contact", metavar="TEXT", help="Whom to ask")
@click.option(
    "--not-for", multiple=True, metavar="TEXT", help="What it must not be used for (may be repeated; replaces the list)"
)
@click.option("--about", metavar="TEXT", help="Free text, in Markdown")
@click.option(
    "--temperature", type=float, help="Shown besides T = 1  [default: 4, or the highest that the cache keeps]"
)
@click.option("--sample", type=int, help="Entries looked at, spread over the cache; 0 is all  [default: 50000]")
@click.option("--overwrite", is_flag=True, help="Replace a README.md of other origin, or the card of another cache")
@json_option
def card(cache: str, as_json: bool, **asked: Any) -> None:
    """Write a card beside CACHE (a directory or a URL): what it is, whose it is, and how sure the teacher was.

    Run again, it keeps what was said before; an empty text removes it. The cache itself is not touched.
    """
    from pipeline.report.cards import CardConfig, run

    print_report(run(CardConfig(cache=cache, **asked), TerminalProgress()), as_json)
