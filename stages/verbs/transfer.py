"""Carry caches to a URL and back: the verbs push and pull of `softlabels cache`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipeline.configuration import parse_arguments
from pipeline.errors import ConfigError
from stages.options import SETTINGS, Command, json_option, print_report
from stages.progress import TerminalProgress

_SHARED = (
    click.option(
        "--option",
        "options",
        multiple=True,
        metavar="KEY=VALUE",
        help="For the filesystem of the URL, such as endpoint_url=..., anon=true (may be repeated)",
    ),
    click.option("--overwrite", is_flag=True, help="Replace another cache that is there"),
    click.option("--workers", type=click.IntRange(1, 64), default=4, help="Files that travel at the same time"),
    json_option,
)


def _shared(function: Any) -> Any:
    """The options of both verbs."""
    for option in reversed(_SHARED):
        function = option(function)
    return function


@click.command("push", cls=Command, context_settings=SETTINGS)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("url")
@click.option("--check", is_flag=True, help="Hold what is there already to its sha256, not only to its size")
@_shared
def push(folder: Path, url: str, options: tuple[str, ...], as_json: bool, **asked: Any) -> None:
    """Send the cache in DIR to any fsspec URL (s3://, gs://, ...). The manifest goes last: a whole cache or none.

    Run again after an interruption, it sends what is missing. A damaged cache is not sent.
    """
    from pipeline.store import transfer

    given = parse_arguments(options, "--option")
    print_report(transfer.push(folder, url, options=given, progress=TerminalProgress(), **asked), as_json)


@click.command("pull", cls=Command, context_settings=SETTINGS)
@click.argument("url")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--parts", multiple=True, metavar="N or FIRST:END", help="Only these parts (may be repeated)  [default: all]"
)
@click.option("--features", multiple=True, metavar="NAME", help="Only these features (may be repeated)  [default: all]")
@click.option("--labels-only", is_flag=True, help="No features")
@_shared
def pull(
    url: str,
    folder: Path,
    features: tuple[str, ...],
    labels_only: bool,
    options: tuple[str, ...],
    as_json: bool,
    **asked: Any,
) -> None:
    """Fetch the cache at a URL into DIR, which appears once all of it has arrived and is what was committed.

    With --parts, --features or --labels-only only so much is fetched: the rest is missing until another pull adds it.
    """
    from pipeline.store import transfer

    if features and labels_only:
        raise ConfigError("--labels-only leaves out all features, and --features names some: give one of the two")
    chosen = features if features or labels_only else None
    given = parse_arguments(options, "--option")
    report = transfer.pull(url, folder, features=chosen, options=given, progress=TerminalProgress(), **asked)
    print_report(report, as_json)
