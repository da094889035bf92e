"""Look at caches and share them: inspect, verify, push, pull, finalize, gc."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from pipeline.errors import CacheCorruptError, CacheMismatchError, ConfigError
from pipeline.workspace import MARK, leftovers
from stages.options import SETTINGS, Command
from stages.progress import TerminalProgress
from stages.transfer import pull, push


@click.group("cache", help=__doc__, commands=[push, pull], context_settings=SETTINGS)
def command() -> None:  # those two and the verbs below are all there is to it
    ...


as_json_option = click.option("--json", "as_json", is_flag=True, help="Print everything as JSON on standard output")


@command.command(
    "inspect", cls=Command, context_settings=SETTINGS, short_help="What a cache is: teacher, data, views, encoding."
)
@click.argument("cache")
@as_json_option
def inspect(cache: str, as_json: bool) -> None:
    """Say what a cache is: teacher, data, views, encoding, fidelity, bytes. CACHE is a directory or a URL."""
    from pipeline.store import open_cache

    found = open_cache(cache).describe()
    click.echo(json.dumps(found, indent=2, ensure_ascii=False) if as_json else "\n".join(table(describe(found))))


def describe(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What ``Cache.describe`` knows, as lines for people: a name and a value."""
    identity, counts = found["identity"], found["counts"]
    teacher, views = identity["teacher"], identity["views"]
    arguments = "".join(f", {key}={value}" for key, value in teacher.get("args", {}).items())
    yield "cache", f"{found['address']}  {identity['digest'][:12]}, format {found['format']}, store {identity['store']}"
    yield (
        "teacher",
        f"{teacher['reference']}{arguments}, weights {teacher['state'][:12]}, {teacher.get('precision', '')}",
    )
    yield "data", f"{identity['data']['examples']:,} examples, {identity['data']['digest'][:12]}"
    yield "preprocessing", str(identity["preprocessing"])
    names = ", ".join(found["class_names"][:12])
    yield "classes", f"{found['classes']:,}: {names}{', ...' if len(found['class_names']) > 12 else ''}"
    for split, number in counts["splits"].items():
        yield split, f"{number['examples']:,} examples, {_plural(number['views'], 'view')}"
    yield "views", f"{views['transform']}, seed {views['seed']}" if views["count"] > 1 else "plain only"
    yield "entries", f"{counts['entries']:,} in {_plural(counts['parts'], 'part')} of up to {identity['part_size']:,}"
    options = (f"{key} {_short(value)}" for key, value in found["encoding"].items() if key != "name")
    yield "encoding", ", ".join([found["encoding"]["name"], *options])
    yield "bound", _bound(found)
    fidelity = dict(found["fidelity"])
    for temperature, kl in fidelity.pop("kl", {}).items():
        yield f"kl at T = {temperature}", _short(kl)
    for name, value in fidelity.items():
        yield name.replace("_", " "), _short(value)
    for name, feature in found["features"].items():
        module = identity.get("features", {}).get(name, "unnamed")
        yield f"feature {name}", f"{module}: {tuple(feature['shape'])} {feature['dtype']}"
    for name, size in found["bytes"].items():
        yield f"bytes of {name}" if name != "total" else "bytes", f"{size:,}"
    yield "bytes per label", f"{found['bytes_per_label']:.1f}"


def table(lines: Iterator[tuple[str, str]]) -> Iterator[str]:
    """The lines with their values in one column."""
    rows = list(lines)
    width = max(len(name) for name, _ in rows)
    return (f"{name:<{width}}  {value}" for name, value in rows)


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _bound(found: Mapping[str, Any]) -> str:
    if not found["bound"]:
        return "0: exact"
    if found["temperatures"]:
        return f"{found['bound']:.3g} of a probability at T = {_short(found['temperatures'])}"
    return f"{found['bound']:.3g} of a centred logit"


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_short(item)}" for key, item in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(_short(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@command.command(
    "verify", cls=Command, context_settings=SETTINGS, short_help="Check every byte, and ask the teacher again."
)
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
@as_json_option
def verify(cache: str, as_json: bool, teacher: str | None, **asked: Any) -> None:
    """Check every byte of a cache: digests, chunks, index, values. CACHE is a directory or a URL.

    With --teacher, its answers are recomputed too. The other options are about that.
    """
    from pipeline.store import open_cache
    from pipeline.store import verify as verify_bytes

    given = {name: value for name, value in asked.items() if value not in (None, ())}
    if teacher is None and given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        need = "needs" if len(given) == 1 else "need"
        raise ConfigError(f"{names} {need} --teacher: without one, only the bytes are checked")
    report = verify_bytes(open_cache(cache), TerminalProgress())
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


@command.command(
    "finalize", cls=Command, context_settings=SETTINGS, short_help="Finish a cache whose parts several processes made."
)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--identity", default="", help="First characters of the one meant, where parts of several lie there")
@click.option("--overwrite", is_flag=True, help="Replace a cache of another identity at OUT")
@as_json_option
def finalize(out: Path, identity: str, overwrite: bool, as_json: bool) -> None:
    """Turn the parts that `softlabels dump --parts` made for OUT into a cache. Needs neither teacher nor data.

    Parts that are missing are named; nothing is lost, and it may be repeated.
    """
    from pipeline.dump import finalize as finish

    cache = finish(out, identity, overwrite=overwrite)
    found = {"out": str(out), "identity": cache.digest, "entries": cache.manifest.counts["entries"]}
    parts = len(cache.parts)
    said = f"{out}: {found['entries']:,} entries in {_plural(parts, 'part')}; identity {cache.digest[:12]}"
    click.echo(json.dumps({**found, "parts": parts}, indent=2) if as_json else said)


@command.command(
    "gc", cls=Command, context_settings=SETTINGS, short_help="List or remove what killed runs left behind."
)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path), default=Path("."))
@click.option("--yes", is_flag=True, help="Remove what is listed")
@as_json_option
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


if __name__ == "__main__":
    command(prog_name="python -m stages.cache")
