"""The reference file of a cache that DVC keeps: for each file, the address of its object in the remote."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from pipeline.errors import CacheError, CacheIncompleteError, CacheNotFoundError, ConfigError, first_line, some
from stages.options import SETTINGS, Command, counted, json_option, print_report


@click.command("refs", cls=Command, context_settings=SETTINGS)
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The reference file to write  [default: PATH.refs.json]")
@click.option("--remote", help="Name of the DVC remote  [default: the default remote; of an import, its source's]")
@click.option("--url", help="Where readers find what the remote holds, such as https://data.example.org/distillation")
@click.option("--check", is_flag=True, help="Ask whether each object is there, at the remote or at --url")
@json_option
def refs(path: Path, out: Path | None, as_json: bool, **asked: Any) -> None:
    """Write a reference file for PATH, a cache that DVC tracks: with it, anyone reads rows or trains without DVC.

    PATH is the output of a stage, or came by `dvc add` or `dvc import`; it need not be in the workspace.
    `--cache FILE.refs.json` then takes the cache from the remote, over plain S3 or HTTP. Stock fsspec opens it, too.
    """
    print_report(write_references(path, out or path.with_name(f"{path.name}.refs.json"), **asked), as_json)


@dataclass(frozen=True)
class ReferencesReport:
    """The reference file ``out`` for ``files`` objects at ``url``; ``checked``: all were found there.

    ``endpoint`` is that of an S3 which is not Amazon's; readers have to name it.
    """

    path: str
    out: str
    url: str
    files: int
    checked: bool
    endpoint: str | None

    @property
    def summary(self) -> str:
        """One line, and a second one where readers need more than the file."""
        line = f"{self.out}: {counted(self.files, 'file')} of {self.path} at {self.url}"
        line += ", all there" if self.checked else "; not looked for there (--check)"
        if self.endpoint:
            line += f"\nreaders set FSSPEC_S3_ENDPOINT_URL={self.endpoint}, or get a reference file with --url"
        return line

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Tracked:
    """What DVC holds of a folder: md5 by path within it, and the remote with the objects."""

    objects: dict[str, str]
    remote: Any
    store: Any


def write_references(
    path: Path, out: Path, remote: str | None = None, url: str | None = None, check: bool = False
) -> ReferencesReport:
    """Write the reference file ``out`` of the cache at ``path``; ``url`` stands for that of the DVC remote.

    Raises ConfigError when DVC does not track ``path`` or knows no remote, CacheNotFoundError when it is no cache,
    CacheIncompleteError when ``check`` finds objects missing.
    """
    from pipeline.store import manifest
    from pipeline.store.references import SUFFIX, parse, to_json
    from pipeline.workspace import write_atomic

    if not out.name.endswith(SUFFIX):
        raise ConfigError(f"--out should end in {SUFFIX}, by which reference files are known; found {out}")
    if out.is_dir():
        raise ConfigError(f"--out {out} is a folder. Name a file in it")
    with _named(path):
        found = _tracked(path, remote)
        if manifest.PATH not in found.objects:
            held = some(sorted(found.objects)) or "nothing"
            raise CacheNotFoundError(f"{path} is not a cache: DVC holds no {manifest.PATH} in it, but {held}")
        base = (url or _address(found.remote)).rstrip("/")
        within = {name: _within(found, md5) for name, md5 in found.objects.items()}
        data = to_json({name: f"{base}/{rest}" for name, rest in within.items()})
        parse(data, str(out), local=True)
        if check:
            missing = _missing_at(base, within) if url else _missing(found)
            if missing:
                what = f"{base} lacks {counted(len(missing), 'file')} of {len(within):,} of {path}: {some(missing)}"
                raise CacheIncompleteError(f"{what}. Run `dvc push`, or name the --remote that has them")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, data)
    endpoint = None if url else found.remote.config.get("endpointurl")
    return ReferencesReport(str(path), str(out), base, len(within), check, endpoint)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """DVC's own errors as ours."""
    from pipeline.references import optional

    errors = optional("dvc.exceptions", "dvc", "softlabels cache refs")
    try:
        yield
    except errors.OutputNotFoundError as error:
        what = f"{path} is tracked by no dvc.lock or .dvc file here"
        raise ConfigError(f"{what}. Name a stage's output, or run `dvc add {path}` and `dvc push` first") from error
    except errors.NotDvcRepoError as error:
        raise ConfigError(f"{path} lies in no DVC repository: {first_line(error)}") from error
    except errors.DvcException as error:
        raise ConfigError(f"DVC cannot say where {path} is: {first_line(error)}") from error


def _tracked(path: Path, remote: str | None) -> Tracked:
    from pipeline.references import optional

    repo_class = optional("dvc.repo", "dvc", "softlabels cache refs").Repo
    full = path.absolute()
    there = next(folder for folder in full.parents if folder.is_dir())  # what was not pulled has no folder, either
    with repo_class(repo_class.find_root(str(there))) as repo:
        return _in_repo(repo, str(full), path, remote)


def _in_repo(repo: Any, full: str, path: Path, remote: str | None) -> Tracked:
    """What ``repo`` holds at ``full``; of an import, what the repository it came from holds."""
    (output,) = repo.find_outs_by_path(full, strict=False)
    if remote is None and output.stage.is_repo_import:
        source = output.stage.deps[0]
        beyond = repo.fs.relparts(full, output.fs_path) if full != output.fs_path else ()
        origin = source.fs.repo
        place = origin.fs.join(origin.root_dir, source.def_path, *beyond)
        return _in_repo(origin, place, path, source.def_repo.get("remote"))
    if not output.use_cache:
        raise ConfigError(f"DVC keeps no copy of {path} (cache: false). Take that out of dvc.yaml, and run `dvc push`")
    if not output.hash_info:
        raise ConfigError(f"{path} has not been made yet. Run `dvc repro` and `dvc push` first")
    if not output.hash_info.isdir:
        raise ConfigError(f"{path} is a file. Name the cache's folder")
    name = remote if isinstance(remote, str) else output.remote
    store = repo.cloud.get_remote_odb(name, "cache refs", hash_name=output.hash_name)
    prefix = repo.fs.relparts(full, output.fs_path) if full != output.fs_path else ()
    tree = _tree(output, store, path)
    found = {"/".join(key[len(prefix) :]): md5.value for key, _, md5 in tree if key[: len(prefix)] == tuple(prefix)}
    return Tracked(found, repo.cloud.get_remote(name), store)


def _tree(output: Any, store: Any, path: Path) -> Any:
    """The directory object: from DVC's cache, or from the remote."""
    from pipeline.references import optional

    load = optional("dvc_data.hashfile", "dvc", "softlabels cache refs").load
    try:
        return load(output.cache, output.hash_info)
    except FileNotFoundError:
        pass
    try:
        return load(store, output.hash_info)
    except FileNotFoundError as error:
        what = f"{path} is neither in DVC's cache nor in the remote at {store.path}"
        raise CacheIncompleteError(f"{what}. Run `dvc push` where it was made") from error
    except Exception as error:  # whatever a client of a store raises
        raise CacheError(f"{store.path} was not reached: {type(error).__name__}: {first_line(error)}") from error


def _address(remote: Any) -> str:
    """The URL of a DVC remote, as fsspec spells it."""
    protocol = remote.fs.protocol
    if protocol == "local":
        return f"file://{remote.path}"
    url = str(remote.fs.unstrip_protocol(remote.path))
    return f"az://{url.removeprefix('azure://')}" if protocol == "azure" else url


def _within(found: Tracked, md5: str) -> str:
    """Where an object lies, seen from the remote's URL."""
    place = str(found.store.oid_to_path(md5))
    return place.removeprefix(str(found.remote.path)).lstrip("/")


def _missing(found: Tracked) -> list[str]:
    """Files whose objects the remote does not have."""
    names = sorted(found.objects)
    places = [found.store.oid_to_path(found.objects[name]) for name in names]
    try:
        # One alone first: where that fails, the others are not even begun.
        there = [found.store.fs.exists(places[0]), *found.store.fs.exists(places[1:])]
    except Exception as error:  # whatever a client of a store raises
        what = f"{found.remote.path} was not reached: {type(error).__name__}: {first_line(error)}"
        raise CacheError(f"{what}. Check the endpoint and the credentials") from error
    return [name for name, is_there in zip(names, there, strict=True) if not is_there]


def _missing_at(base: str, within: dict[str, str]) -> list[str]:
    """Files whose objects are not there for readers of ``base``."""
    from pipeline.store.remote import PatientFiles, in_parallel

    remote, missing = PatientFiles(base), []

    def look(name: str) -> None:
        if remote.size(within[name]) is None:
            missing.append(name)

    in_parallel(look, sorted(within), 8, remote)
    return sorted(missing)
