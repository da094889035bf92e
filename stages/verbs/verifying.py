"""Check every byte of a cache, and ask the teacher again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from pipeline.errors import CacheCorruptError, CacheMismatchError, ConfigError
from stages.options import SETTINGS, Command, json_option
from stages.progress import TerminalProgress


@click.command("verify", cls=Command, context_settings=SETTINGS)
@click.argument("cache")
@click.option("--teacher", help="Also ask this model again about some entries, and hold the cache to its bound")
@click.option("--teacher-args", multiple=True, help="key=value arguments for the teacher's factory (may be repeated)")
@click.option("--weights", type=click.Path(path_type=Path), help="The teacher's weights")
@click.option("--data", help="The dataset that the cache was made from  [default: digits]")
@click.option("--data-args", multiple=True, help="key=value arguments for the dataset (may be repeated)")
@click.option("--transform", help="The random view, when the cache was made with a module:factory")
@click.option("--entries", type=int, help="Entries to recompute, drawn at random over splits and views  [default: 256]")
@click.option("--seed", type=int, help="Seed of the draw  [default: 0]")
@click.option(
    "--tolerance",
    type=float,
    help="Added to the declared bound for another device, batch or precision  [default: 0.001]",
)
@click.option("--batch-size", type=int, help="Entries per forward pass  [default: 64]")
@click.option("--device", help="auto, cpu, cuda, cuda:N, mps  [default: auto]")
@click.option("--partly", is_flag=True, help="Let files be absent, as after `cache pull --parts` or --labels-only")
@json_option
def verify(cache: str, as_json: bool, teacher: str | None, partly: bool, **asked: Any) -> None:
    """Check every byte of a cache: digests, chunks, index, values. CACHE is a directory or a URL.

    With --teacher, its answers are recomputed too. The other options, but for --partly, are about that.
    """
    from pipeline.store import open_cache
    from pipeline.store import verify as verify_bytes

    given = {name: value for name, value in asked.items() if value not in (None, ())}
    if teacher is None and given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        need = "needs" if len(given) == 1 else "need"
        raise ConfigError(f"{names} {need} --teacher: without one, only the bytes are checked")
    report = verify_bytes(open_cache(cache), TerminalProgress(), partly=partly)
    results: dict[str, Any] = {"bytes": report.as_dict()}
    summaries, failures = [report.summary], [f"{problem.path}: {problem.message}" for problem in report.problems]
    if teacher is not None and report.ok:
        from pipeline.verification import VerifyConfig, verify_with_teacher

        answers = verify_with_teacher(VerifyConfig(cache=cache, teacher=teacher, **given), TerminalProgress())
        results["teacher"] = answers.as_dict()
        summaries.append(answers.summary)
        failures += [] if answers.ok else [answers.summary]
    if as_json:
        click.echo(json.dumps({"ok": not failures, **results}, indent=2, ensure_ascii=False))
    elif not failures:
        click.echo("\n".join(summaries))
    if failures and report.ok:
        raise CacheMismatchError(f"{cache} does not hold what the teacher says on this device: {failures[0]}")
    if failures:
        listed = "\n".join(f"  {failure}" for failure in failures)
        raise CacheCorruptError(f"{cache} is not what was committed. Fetch it again, or dump again:\n{listed}")
