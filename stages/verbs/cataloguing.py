"""List the caches in some places."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from pipeline.configuration import parse_arguments
from stages.options import SETTINGS, Command, counted, json_option

if TYPE_CHECKING:
    from pipeline.caches.catalog import Listed


@click.command("catalog", cls=Command, context_settings=SETTINGS)
@click.argument("places", nargs=-1, required=True, metavar="PLACE...")
@click.option(
    "--identity", default="", show_default=False, metavar="PREFIX", help="Only caches whose identity begins so"
)
@click.option(
    "--teacher",
    default="",
    show_default=False,
    help="Only of teachers with this in their name, or whose weights' digest so begins",
)
@click.option(
    "--data", default="", show_default=False, metavar="PREFIX", help="Only of datasets whose digest begins so"
)
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    help="For the filesystem of a URL, such as endpoint_url=..., anon=true (may be repeated)",
)
@json_option
def catalog(
    places: tuple[str, ...], identity: str, teacher: str, data: str, options: tuple[str, ...], as_json: bool
) -> None:
    """List the caches under folders or URLs: identity, teacher, data, encoding, size, and whether all of it is there.

    PLACE is a folder or any fsspec URL; caches are found at any depth. Only manifests and sizes of files are read.
    """
    from pipeline.caches.catalog import COMPLETE, Wanted
    from pipeline.caches.catalog import catalog as listing

    wanted = Wanted(identity=identity, teacher=teacher, data=data)
    given = parse_arguments(options, "--option")
    rows = [row for place in places for row in listing(place, wanted=wanted, options=given or None)]
    if as_json:
        found = {"caches": [row.as_dict() for row in rows], "bytes": sum(row.bytes for row in rows)}
        click.echo(json.dumps(found, indent=2, ensure_ascii=True))
        return
    if rows:
        click.echo("\n".join(table(rows)))
    for row in rows:
        if row.problem:
            click.echo(f"{plain(row.address)}: {plain(row.problem)}")
    where, total = ", ".join(map(plain, places)), sum(row.bytes for row in rows)
    bad = sum(row.state != COMPLETE for row in rows)
    which = " of that kind" if identity or teacher or data else ""
    click.echo(
        f"{where}: {counted(len(rows), 'cache')}{which}, {total:,} bytes" + (f"; {bad:,} not whole" if bad else "")
    )


HEADINGS = ("address", "identity", "teacher", "weights", "data", "classes", "entries", "encoding", "bytes", "state")
_RIGHT = ("classes", "entries", "bytes")


def table(rows: Sequence[Listed]) -> Iterator[str]:
    """Headings and a line for each cache, in columns."""
    lines = [HEADINGS, *(tuple(_cell(row, name) for name in HEADINGS) for row in rows)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(HEADINGS))]
    for line in lines:
        cells = zip(HEADINGS, line, widths, strict=True)
        yield "  ".join(f"{cell:>{w}}" if name in _RIGHT else f"{cell:<{w}}" for name, cell, w in cells).rstrip()


def _cell(row: Listed, name: str) -> str:
    value = getattr(row, name)
    if not row.identity and name not in ("address", "state"):
        return "-"  # the manifest could not be read
    if name in ("identity", "weights", "data"):
        return plain(value[:12]) or "unknown"
    if isinstance(value, int):
        return f"{value:,}"
    return plain(value) or "unknown"


def plain(text: str) -> str:
    """``text`` in one line, without what a terminal would act upon; a name that is no UTF-8 stays readable."""
    shown = text.encode(errors="backslashreplace").decode()
    return "".join(c if c.isprintable() else "?" for c in " ".join(shown.split()))
