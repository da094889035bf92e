"""Finish what several processes made, and remove what killed ones left."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import click

from pipeline.workspace import MARK, leftovers
from stages.options import SETTINGS, Command, counted, json_option


@click.command("finalize", cls=Command, context_settings=SETTINGS)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--identity", default="", help="First characters of the one meant, where parts of several lie there")
@click.option("--overwrite", is_flag=True, help="Replace a cache of another identity at OUT")
@json_option
def finalize(out: Path, identity: str, overwrite: bool, as_json: bool) -> None:
    """Turn the parts that `softlabels dump --parts` made for OUT into a cache. Needs neither teacher nor data.

    OUT may be a URL. Parts that are missing are named; nothing is lost, and it may be repeated.
    """
    from pipeline.configuration import url_of
    from pipeline.dump import finalize as finish

    cache = finish(out, identity, overwrite=overwrite)
    where = url_of(out) or str(out)
    found = {"out": where, "identity": cache.digest, "entries": cache.manifest.counts["entries"]}
    parts = len(cache.parts)
    said = f"{where}: {found['entries']:,} entries in {counted(parts, 'part')}; identity {cache.digest[:12]}"
    click.echo(json.dumps({**found, "parts": parts}, indent=2) if as_json else said)


@click.command("gc", cls=Command, context_settings=SETTINGS)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path), default=Path("."))
@click.option("--yes", is_flag=True, help="Remove what is listed")
@json_option
def gc(folder: Path, yes: bool, as_json: bool) -> None:
    """List scratch that killed runs left under FOLDER; with --yes, remove it. Finished outputs are never touched.

    An interrupted run resumes from its scratch: remove it when that run is not wanted any more.
    """
    found: list[dict[str, Any]] = []
    for path in leftovers(folder):
        size = _size(path)
        if yes:
            # While ``leftovers`` stands here it holds the lock: nobody can start to resume from this.
            _remove(path)
        if not path.name.endswith((f"{MARK}lock", f"{MARK}holder")) and f"{MARK}member-" not in path.name:
            found.append({"path": str(path), "bytes": size})
            if not as_json:
                click.echo(f"{path}  {size:,} bytes{'  removed' if yes else ''}")
    total = sum(item["bytes"] for item in found)
    if as_json:
        click.echo(json.dumps({"removed": yes, "bytes": total, "found": found}, indent=2, ensure_ascii=False))
    elif not found:
        click.echo(f"{folder}: nothing left behind")
    else:
        click.echo(f"{folder}: {total:,} bytes {'removed' if yes else 'could be removed: run again with --yes'}")


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if not file.is_dir() or file.is_symlink())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
